"""The optimality (KKT) system of a control problem: its residual, its blocks, its norm.

With unknowns state y, controls u, adjoint p and the Lagrangian L,

    r = (L_y, L_u, L_p),    K = [[L_yy, L_yu, A'], [L_uy, L_uu, B'], [A, B, 0]],   A = L_py, B = L_pu.

Rows and columns of the state's Dirichlet degrees of freedom are taken out (A has ones there). Controls that a bound
holds, and degrees of freedom of a control that act nowhere, are fixed: their rows and columns are taken out too.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

from mpi4py import MPI
from petsc4py import PETSc

import dolfinx
import numpy as np
import numpy.typing as npt
import ufl

from pdeopt.control import riesz
from pdeopt.control.controls import default_inner_product
from pdeopt.control.lagrangian import Lagrangian
from pdeopt.fem import forms

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclasses.dataclass
class Blocks:
    """The assembled blocks of the KKT matrix; None where a block vanishes.

    Parameters
    ----------
    state_state, state_control, control_control
        Second derivatives of the Lagrangian: L_yy, the L_yu_j, and the L_u_i u_j as a table.
    state_operator
        A = L_py with ones on the Dirichlet diagonal.
    control_operators
        The B_j = L_pu_j.
    """

    state_state: PETSc.Mat | None
    state_control: list[PETSc.Mat | None]
    control_control: list[list[PETSc.Mat | None]]
    state_operator: PETSc.Mat
    control_operators: list[PETSc.Mat | None]

    def all(self) -> list[PETSc.Mat | None]:
        """Return the blocks in a fixed order."""
        rows = [block for row in self.control_control for block in row]
        return [self.state_state, *self.state_control, *rows, self.state_operator, *self.control_operators]

    def destroy(self) -> None:
        """Free all blocks. Collective: yes."""
        for block in self.all():
            if block is not None:
                block.destroy()


class KKTSystem:
    """Residual, blocks and norms of the optimality system at the present values of the unknowns.

    Parameters
    ----------
    lagrangian
        The problem's Lagrangian.
    bcs
        Dirichlet conditions of the state.
    inner_products
        Inner product of each control as a bilinear UFL form, or None for the L2 product where the control acts.
    """

    def __init__(
        self,
        lagrangian: Lagrangian,
        bcs: Sequence[dolfinx.fem.DirichletBC],
        inner_products: Sequence[ufl.Form | None],
    ) -> None:
        self.lagrangian = lagrangian
        self.bcs = list(bcs)
        self.comm: MPI.Comm = lagrangian.state.function_space.mesh.comm
        self.controls = lagrangian.controls
        self.adjoint_field = len(self.controls) + 1
        state_size = forms.owned_size(lagrangian.state.function_space)
        self.layout = forms.BlockLayout(self.comm, [state_size, *(c.size for c in self.controls), state_size])
        self.dirichlet_dofs = forms.owned_dirichlet_dofs(self.bcs)
        self.linear_quadratic = lagrangian.is_linear_quadratic()
        self.linear_state = lagrangian.has_constant_state_operator()
        self.affine_state = lagrangian.has_affine_state_equation()
        self._compile()
        self.control_products = [self._control_product(j, form) for j, form in enumerate(inner_products)]
        self.idle = [np.asarray(matrix.getDiagonal().array_r <= 0.0) for matrix in self.control_products]
        for matrix, idle in zip(self.control_products, self.idle, strict=True):
            self._fix(matrix, idle, idle, 1.0)
        self._state_riesz: riesz.RieszMap | None = None
        self._control_riesz = [riesz.control_riesz_map(matrix) for matrix in self.control_products]
        self.observation_weight, self.regularisation_weight = 1.0, 1.0

    def _compile(self) -> None:
        lagrangian, last = self.lagrangian, self.adjoint_field
        functional = lagrangian.functional
        self._first = [lagrangian.first(functional, field) for field in range(last + 1)]
        self._objective = forms.compile_form(lagrangian.objective, lagrangian.entity_maps)
        self._constraints = [forms.compile_form(form, lagrangian.entity_maps) for form in lagrangian.constraints]
        self._constraint_gradients = [
            [lagrangian.first(form, field) for field in range(last)] for form in lagrangian.constraints
        ]
        self._second: dict[tuple[int, int], dolfinx.fem.Form] = {}
        for row in range(last + 1):
            for column in range(last):
                if row == last or row <= column:
                    derivative = lagrangian.second(functional, row, column)
                    if row == column and row > 0:
                        derivative += self.zero_pattern(row)
                    if not forms.is_zero(derivative):
                        self._second[row, column] = forms.compile_form(derivative, lagrangian.entity_maps)

    def zero_pattern(self, field: int) -> ufl.Form:
        """Return a form of zeros that reserves the diagonal of a control's block, where the control acts or not."""
        space = self.controls[field - 1].function.function_space
        zero = dolfinx.fem.Constant(space.mesh, 0.0)
        return zero * ufl.inner(ufl.TrialFunction(space), ufl.TestFunction(space)) * ufl.dx(space.mesh)

    def _control_product(self, index: int, form: ufl.Form | None) -> PETSc.Mat:
        control = self.controls[index]
        if form is None:
            form = default_inner_product(self.lagrangian.functional, control.function)
        compiled = forms.compile_form(form + self.zero_pattern(index + 1), self.lagrangian.entity_maps)
        matrix = control.restrict_both(forms.assemble_matrix(compiled))
        matrix.setOption(PETSc.Mat.Option.SPD, True)
        return matrix

    @staticmethod
    def _fix(matrix: PETSc.Mat, rows: Mask, columns: Mask, diagonal: Array | float | None = None) -> None:
        """Zero rows and columns of a matrix in place, and set the diagonal of the zeroed rows. Collective: yes."""
        left, right = matrix.createVecLeft(), matrix.createVecRight()
        left.array[:] = ~rows
        right.array[:] = ~columns
        matrix.diagonalScale(left, right)
        if diagonal is not None:
            old = matrix.getDiagonal()
            old.array[rows] = diagonal if np.isscalar(diagonal) else np.asarray(diagonal)[rows]
            matrix.setDiagonal(old)

    def dirichlet_mask(self) -> Mask:
        """Return which owned state degrees of freedom a Dirichlet condition fixes, shape (owned,)."""
        mask = np.zeros(self.layout.sizes[0], dtype=bool)
        mask[self.dirichlet_dofs] = True
        return mask

    # The unknowns ----------------------------------------------------------------------------------------------------

    def get_unknowns(self, vector: PETSc.Vec) -> None:
        """Copy state, controls and adjoint into a blocked vector. Collective: no."""
        self.layout.write(vector, 0, forms.owned_values(self.lagrangian.state))
        for field, control in enumerate(self.controls, start=1):
            self.layout.write(vector, field, control.coordinates())
        self.layout.write(vector, self.adjoint_field, forms.owned_values(self.lagrangian.adjoint))

    def set_unknowns(self, vector: PETSc.Vec) -> None:
        """Set state, controls and adjoint from a blocked vector. Collective: yes."""
        forms.set_function(self.lagrangian.state, self.layout.read(vector, 0))
        for field, control in enumerate(self.controls, start=1):
            control.set_coordinates(self.layout.read(vector, field))
        forms.set_function(self.lagrangian.adjoint, self.layout.read(vector, self.adjoint_field))

    def impose_dirichlet(self) -> None:
        """Set the state's Dirichlet values, and zero the adjoint there. Collective: yes."""
        for bc in self.bcs:
            bc.set(self.lagrangian.state.x.array)
        self.lagrangian.state.x.scatter_forward()
        self.lagrangian.adjoint.x.array[self.dirichlet_dofs] = 0.0
        self.lagrangian.adjoint.x.scatter_forward()

    # Values and first derivatives ------------------------------------------------------------------------------------

    def objective(self) -> float:
        """Return J(y, u). Collective: yes."""
        return forms.assemble_scalar(self._objective)

    def constraint_values(self) -> Array:
        """Return the G_k(y, u), shape (constraints,). Collective: yes."""
        return np.array([forms.assemble_scalar(form) for form in self._constraints])

    def _assemble_field(self, form: dolfinx.fem.Form | None, field: int, out: PETSc.Vec) -> None:
        if form is None:
            self.layout.write(out, field, np.zeros(self.layout.sizes[field]))
            return
        covector = forms.assemble_vector(form)
        if field in (0, self.adjoint_field):
            values = np.array(covector.array_r)
            values[self.dirichlet_dofs] = 0.0
        else:
            values = self.controls[field - 1].restrict(covector)
            values[self.idle[field - 1]] = 0.0
        self.layout.write(out, field, values)
        covector.destroy()

    def residual(self, out: PETSc.Vec) -> None:
        """Assemble the gradient of the Lagrangian by all unknowns. Collective: yes."""
        for field, form in enumerate(self._first):
            self._assemble_field(form, field, out)

    def assemble_derivative(self, field: int, out: PETSc.Vec) -> None:
        """Assemble the gradient of the Lagrangian by one unknown into its place. Collective: yes."""
        self._assemble_field(self._first[field], field, out)

    def constraint_gradients(self) -> list[PETSc.Vec]:
        """Return the gradient of each constraint as a blocked vector. Collective: yes."""
        gradients = []
        for row in self._constraint_gradients:
            gradient = self.layout.create_vector()
            for field, form in enumerate(row):
                self._assemble_field(form, field, gradient)
            gradients.append(gradient)
        return gradients

    # Second derivatives ----------------------------------------------------------------------------------------------

    def assemble_state_operator(self) -> PETSc.Mat:
        """Assemble A = L_py with ones on the Dirichlet diagonal. Collective: yes."""
        return forms.assemble_matrix(self._second[self.adjoint_field, 0], self.bcs, diag=1.0)

    def reassemble_state_operator(self, matrix: PETSc.Mat) -> None:
        """Assemble A at the present unknowns into an existing matrix. Collective: yes."""
        forms.reassemble_matrix(matrix, self._second[self.adjoint_field, 0], self.bcs, diag=1.0)

    def assemble_block(self, row: int, column: int) -> PETSc.Mat | None:
        """Assemble one other block (row <= column, or the adjoint's row), reduced. Collective: yes."""
        form = self._second.get((row, column))
        if form is None:
            return None
        if row == column == 0:
            return forms.assemble_matrix(form, self.bcs, diag=0.0)
        matrix = forms.assemble_matrix(form)
        if row == column:
            matrix = self.controls[row - 1].restrict_both(matrix)
            self._fix(matrix, self.idle[row - 1], self.idle[row - 1], 1.0)
            return matrix
        matrix = self.controls[column - 1].restrict_columns(matrix)
        if row in (0, self.adjoint_field):
            self._fix(matrix, self.dirichlet_mask(), self.idle[column - 1])
        else:
            transposed = matrix.transpose(PETSc.Mat())
            matrix = self.controls[row - 1].restrict_columns(transposed).transpose(PETSc.Mat())
            self._fix(matrix, self.idle[row - 1], self.idle[column - 1])
        return matrix

    def assemble_blocks(self) -> Blocks:
        """Assemble all blocks at the present unknowns. Collective: yes."""
        fields = range(1, self.adjoint_field)
        return Blocks(
            state_state=self.assemble_block(0, 0),
            state_control=[self.assemble_block(0, j) for j in fields],
            control_control=[[self.assemble_block(i, j) if i <= j else None for j in fields] for i in fields],
            state_operator=self.assemble_state_operator(),
            control_operators=[self.assemble_block(self.adjoint_field, j) for j in fields],
        )

    def fix_controls(self, blocks: Blocks, active: Sequence[Mask]) -> None:
        """Take the controls that bounds hold out of the blocks, keeping their diagonal. Collective: yes."""
        nothing = np.zeros(self.layout.sizes[0], dtype=bool)
        for j, mask in enumerate(active):
            for block in (blocks.state_control[j], blocks.control_operators[j]):
                if block is not None:
                    self._fix(block, nothing, mask)
            for i, other in enumerate(active):
                block = blocks.control_control[i][j]
                if block is not None:
                    diagonal = block.getDiagonal().array_r.copy() if i == j else None
                    self._fix(block, other, mask, diagonal)

    def matrix(self, blocks: Blocks) -> PETSc.Mat:
        """Return the KKT matrix as a nest of the blocks, transposes included without copies. Collective: yes."""
        return self._nest(blocks, lambda block: PETSc.Mat().createTranspose(block))

    def monolithic_matrix(self, blocks: Blocks, swapped: bool = False) -> PETSc.Mat:
        """Return the KKT matrix as one AIJ matrix, for factorisations. Collective: yes.

        Parameters
        ----------
        blocks
            The blocks of the matrix.
        swapped
            Put the state equation's rows first and the adjoint equation's last: the matrix loses its symmetry, but
            has A, L_uu and A' on its diagonal and needs hardly any pivoting.
        """
        transposes: list[PETSc.Mat] = []

        def transpose(block: PETSc.Mat) -> PETSc.Mat:  # converting a nest of virtual transposes crashes in PETSc 3.25
            transposes.append(block.transpose(PETSc.Mat()))
            return transposes[-1]

        nest = self._nest(blocks, transpose, swapped)
        matrix = nest.convert("aij", PETSc.Mat())
        for item in (nest, *transposes):
            item.destroy()
        return matrix

    def scaling(self) -> PETSc.Vec:
        """Return the diagonal D for which D K D has blocks of one size, from the weights of the norm. Collective: yes.

        D = (w^(-1/2), a^(-1/2), a^(1/2)) for state, controls and adjoint, by `pdeopt.control.riesz`.
        """
        vector = self.layout.create_vector()
        root = math.sqrt(self.regularisation_weight)
        for field, size in enumerate(self.layout.sizes):
            value = 1.0 / root if 0 < field < self.adjoint_field else root
            value = 1.0 / math.sqrt(self.observation_weight) if field == 0 else value
            self.layout.write(vector, field, np.full(size, value))
        return vector

    def swap_rows(self, vector: PETSc.Vec) -> None:
        """Exchange the parts of state and adjoint, as `monolithic_matrix` does with its rows. Collective: no."""
        first, last = np.array(self.layout.read(vector, 0)), np.array(self.layout.read(vector, self.adjoint_field))
        self.layout.write(vector, 0, last)
        self.layout.write(vector, self.adjoint_field, first)

    def _nest(self, blocks: Blocks, transpose: Callable[[PETSc.Mat], PETSc.Mat], swapped: bool = False) -> PETSc.Mat:
        last = self.adjoint_field
        table: list[list[PETSc.Mat | None]] = [[None] * (last + 1) for _ in range(last + 1)]

        def place(row: int, column: int, block: PETSc.Mat | None) -> None:
            table[row][column] = block
            if row != column and block is not None:
                table[column][row] = transpose(block)

        place(0, 0, blocks.state_state)
        place(last, 0, blocks.state_operator)
        for j in range(1, last):
            place(0, j, blocks.state_control[j - 1])
            place(last, j, blocks.control_operators[j - 1])
            for i in range(1, j + 1):
                place(i, j, blocks.control_control[i - 1][j - 1])
        if swapped:
            table[0], table[last] = table[last], table[0]
        return PETSc.Mat().createNest(table, comm=self.comm)

    # Norms -----------------------------------------------------------------------------------------------------------

    def calibrate_norm(self, blocks: Blocks, state_mass: PETSc.Mat) -> None:
        """Take the weights of the Riesz norm from the blocks. Collective: yes."""
        weight = riesz.trace_ratio(blocks.state_state, state_mass) if blocks.state_state is not None else 0.0
        self.observation_weight = weight if weight > 0.0 else 1.0
        ratios = [
            riesz.trace_ratio(blocks.control_control[j][j], product)
            for j, product in enumerate(self.control_products)
            if blocks.control_control[j][j] is not None
        ]
        positive = [ratio for ratio in ratios if ratio > 0.0]
        self.regularisation_weight = min(positive) if positive else 1.0
        if self._state_riesz is not None:
            self._state_riesz.matrix.destroy()
            self._state_riesz.destroy()
        length_squared = math.sqrt(self.regularisation_weight / self.observation_weight)
        self._state_riesz = riesz.state_riesz_map(self.lagrangian.state.function_space, self.bcs, length_squared)

    def norms(self, residual: PETSc.Vec) -> tuple[float, float, float]:
        """Return the Riesz norms of the state, control and adjoint part of a residual. Collective: yes."""
        squares = [scale * product.dual_norm_squared(part) for _, scale, product, part in self._riesz_parts(residual)]
        return math.sqrt(squares[0]), math.sqrt(sum(squares[2:])), math.sqrt(squares[1])

    def representative(self, residual: PETSc.Vec, out: PETSc.Vec, rtol: float) -> None:
        """Set the Riesz representative of a residual, to a relative tolerance in the energy norm. Collective: yes."""
        for field, scale, product, part in self._riesz_parts(residual):
            solution = part.duplicate()
            product.solve(part, solution, rtol=rtol)
            self.layout.write(out, field, scale * solution.array_r)
            solution.destroy()

    def _riesz_parts(self, residual: PETSc.Vec) -> Iterator[tuple[int, float, riesz.RieszMap, PETSc.Vec]]:
        """Yield field, scale of the inverse, Riesz map and covector: of state, adjoint, and every control."""
        if self._state_riesz is None:
            raise RuntimeError("calibrate_norm() comes before norms()")
        w, a = self.observation_weight, self.regularisation_weight
        fields = [(0, 1.0 / w, self._state_riesz), (self.adjoint_field, a, self._state_riesz)]
        fields += [(j, 1.0 / a, product) for j, product in enumerate(self._control_riesz, start=1)]
        for field, scale, product in fields:
            work = forms.SubVectors(self.layout, field)
            yield field, scale, product, work.load(residual)
            work.vector.destroy()

    def control_norm(self, covector: PETSc.Vec, layout: forms.BlockLayout) -> float:
        """Return the Riesz norm of a covector of all controls, which lie in it as a layout says. Collective: yes."""
        square = 0.0
        for j, product in enumerate(self._control_riesz):
            work = forms.SubVectors(layout, j)
            square += product.dual_norm_squared(work.load(covector)) / self.regularisation_weight
            work.vector.destroy()
        return math.sqrt(square)

    def norm(self, residual: PETSc.Vec) -> float:
        """Return the Riesz norm of a residual. Collective: yes."""
        return math.hypot(*self.norms(residual))

    def destroy(self) -> None:
        """Free the PETSc objects. Collective: yes."""
        for product in self._control_riesz:
            product.destroy()
        if self._state_riesz is not None:
            self._state_riesz.matrix.destroy()
            self._state_riesz.destroy()
        for matrix in self.control_products:
            matrix.destroy()
