"""Block preconditioners that match the Schur complement of distributed optimal control.

For a state operator A, observation w M and control term c^2 M (c^2 = sum of g^2 / a over the controls), eliminating
state and controls leaves the Schur complement S = A M^-1 A' / w + c^2 M. Pearson and Wathen (Numer. Linear Algebra
Appl. 19 (2012) 816-829) match both of its terms by one product,

    S_hat = (A + s M) M^-1 (A + s M)' / w,   s = c sqrt(w),   eigenvalues of S_hat^-1 S in [1/2, 1],

whatever the mesh and the weights. The same two solves with A + s M serve three preconditioners:

- `PearsonWathen`: block diagonal, symmetric positive definite, for MINRES;
- `SquareBlock`: PRESB (Axelsson, Neytcheva, Ahmad, Numer. Algorithms 66 (2014) 811-841) after the controls are
  eliminated: real eigenvalues in [1/2, 1] and no solve with the state's mass matrix, for flexible Krylov methods;
- `SwappedSchur`: for partial observation, where M_o replaces M in the sum and the Schur complement is the state's.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from mpi4py import MPI
from petsc4py import PETSc

import basix
import dolfinx
import numpy as np

from pdeopt.control.kkt import Blocks, KKTSystem, Mask
from pdeopt.control.structure import Structure
from pdeopt.fem import forms

# A drop tolerance of 0.02 keeps V-cycles robust in the mesh size; with the default one iterations grow. MINRES needs
# them accurate and linear, and with swapped roles iterations grow otherwise: Chebyshev acceleration makes six of them
# worth ten. Two suffice for PRESB.
_SHIFTED_OPERATOR = {
    "ksp_norm_type": "none",
    "pc_type": "gamg",
    "pc_gamg_threshold": 0.02,
    "mg_levels_ksp_type": "chebyshev",
    "mg_levels_pc_type": "jacobi",
}
_ACCURATE = {
    "ksp_type": "chebyshev",
    "ksp_max_it": 6,
    "ksp_chebyshev_esteig": "0.8,0,0,1.05",  # from estimates of the extreme eigenvalues of the preconditioned operator
    "esteig_ksp_type": "cg",
    "esteig_ksp_max_it": 10,
}
_FLEXIBLE = {"ksp_type": "richardson", "ksp_max_it": 2}
_MASS = {"ksp_type": "chebyshev", "ksp_max_it": 5, "ksp_norm_type": "none", "pc_type": "jacobi"}


def mass_eigenvalue_bounds(space: dolfinx.fem.FunctionSpace) -> tuple[float, float] | None:
    """Return bounds on the spectrum of the Jacobi-scaled mass matrix, from one reference cell.

    The extreme eigenvalues over a mesh lie between those of the element matrices (Wathen, IMA J. Numer. Anal. 7 (1987)
    449-457), which on affine cells do not depend on the cell's shape. None for elements that are mapped otherwise.
    """
    element = space.ufl_element()
    while element.num_sub_elements > 0:  # vector-valued elements repeat a scalar one
        element = element.sub_elements[0]
    reference = getattr(element, "basix_element", None)
    if reference is None or reference.map_type != basix.MapType.identity:
        return None
    points, weights = basix.make_quadrature(reference.cell_type, 2 * reference.embedded_superdegree)
    values = np.asarray(reference.tabulate(0, points))[0, :, :, 0]
    mass = (values * np.asarray(weights)[:, None]).T @ values
    scale = 1.0 / np.sqrt(np.diag(mass))
    eigenvalues = np.linalg.eigvalsh(scale[:, None] * mass * scale)
    return float(eigenvalues[0]), float(eigenvalues[-1])


@dataclasses.dataclass(frozen=True)
class LinearContext:
    """What every KKT solver is built from.

    Parameters
    ----------
    system, blocks, structure
        The KKT system, its blocks with fixed controls taken out, and what was recognised.
    active
        Which coordinates of each control a bound holds.
    state_mass
        State mass matrix, Dirichlet rows and columns zero: so are residuals and solutions there.
    symmetric
        Whether the state operator is symmetric.
    """

    system: KKTSystem
    blocks: Blocks
    structure: Structure
    active: Sequence[Mask]
    state_mass: PETSc.Mat
    symmetric: bool

    @property
    def held(self) -> bool:
        """Whether a bound holds any coordinate on any rank. Collective: yes."""
        return bool(self.system.comm.allreduce(any(bool(np.any(mask)) for mask in self.active), op=MPI.LOR))

    def same_space(self, index: int) -> bool:
        """Whether a control is a field with the degrees of freedom of the state."""
        control, state = self.system.controls[index], self.system.lagrangian.state.function_space
        same = control.function.function_space.element == state.element
        return bool(same and control.size == self.system.layout.sizes[0])


class MassSolver:
    """A fixed number of Chebyshev steps for a mass matrix: a linear, symmetric approximation of its inverse.

    Parameters
    ----------
    matrix
        The mass matrix, kept.
    space
        Its function space, from which the spectral bounds come.
    prefix
        Options prefix ("kkt_mass_").
    """

    def __init__(self, matrix: PETSc.Mat, space: dolfinx.fem.FunctionSpace, prefix: str) -> None:
        self._ksp = PETSc.KSP().create(matrix.comm)
        self._ksp.setOptionsPrefix(prefix)
        self._ksp.setOperators(matrix)
        bounds = mass_eigenvalue_bounds(space)
        defaults: dict[str, object] = dict(_MASS)
        if bounds is not None and bounds[1] - bounds[0] < 1e-12:
            defaults = {"ksp_type": "preonly", "pc_type": "jacobi"}  # a diagonal matrix
        elif bounds is not None:
            defaults["ksp_chebyshev_eigenvalues"] = f"{bounds[0]},{bounds[1]}"
        with forms.default_options(prefix, defaults):
            self._ksp.setFromOptions()
            self._ksp.setUp()

    def solve(self, covector: PETSc.Vec, out: PETSc.Vec) -> None:
        """Apply the approximate inverse. Collective: yes."""
        self._ksp.solve(covector, out)

    def release(self) -> None:
        """Free the solver. Collective: yes."""
        self._ksp.destroy()


class ShiftedSolver:
    """V-cycles for the shifted state operator A + s M, and for its transpose.

    Parameters
    ----------
    matrix
        A + s M, kept until `destroy`.
    symmetric
        Whether A is symmetric; otherwise the transpose gets a hierarchy of its own.
    accurate
        Whether the result must be an accurate inverse and not just a good direction.
    extra
        Further defaults for the solver's options.

    Attributes
    ----------
    solves
        Applications so far.
    """

    def __init__(
        self, matrix: PETSc.Mat, symmetric: bool, accurate: bool, extra: Mapping[str, object] | None = None
    ) -> None:
        self.solves = 0
        self._matrices = [matrix] if symmetric else [matrix, matrix.transpose(PETSc.Mat())]
        self._ksps = []
        for operator in self._matrices:
            if symmetric:
                operator.setOption(PETSc.Mat.Option.SPD, True)
            ksp = PETSc.KSP().create(operator.comm)
            ksp.setOptionsPrefix("kkt_shifted_")
            ksp.setOperators(operator)
            defaults: dict[str, object] = {**_SHIFTED_OPERATOR, **(_ACCURATE if accurate else _FLEXIBLE)}
            defaults |= extra or {}
            if not symmetric:
                defaults |= {"ksp_type": "richardson"}
                defaults |= {"mg_levels_ksp_type": "richardson", "mg_levels_pc_type": "sor"}
            with forms.default_options("kkt_shifted_", defaults):
                ksp.setFromOptions()
                ksp.setUp()
            self._ksps.append(ksp)

    @property
    def pc(self) -> PETSc.PC:
        """The preconditioner for A + s M."""
        return self._ksps[0].getPC()

    def solve(self, covector: PETSc.Vec, out: PETSc.Vec) -> None:
        """Apply the approximate inverse of A + s M. Collective: yes."""
        self.solves += 1
        self._ksps[0].solve(covector, out)

    def solve_transpose(self, covector: PETSc.Vec, out: PETSc.Vec) -> None:
        """Apply the approximate inverse of (A + s M)'. Collective: yes."""
        self.solves += 1
        self._ksps[-1].solve(covector, out)

    def release(self) -> None:
        """Free solvers and matrices. Collective: yes."""
        for item in (*self._ksps, *self._matrices):
            item.destroy()


class _Workspace:
    """What the three preconditioners share: blocks, inner solvers, work vectors."""

    def __init__(self, context: LinearContext, shift: PETSc.Mat, factor: float, accurate: bool) -> None:
        system, blocks, structure = context.system, context.blocks, context.structure
        self.state_mass = context.state_mass
        self.control_operators = [operator for operator in blocks.control_operators if operator is not None]
        shifted = blocks.state_operator.copy()
        shifted.axpy(factor, shift, structure=PETSc.Mat.Structure.SUBSET_NONZERO_PATTERN)
        self.shifted = ShiftedSolver(shifted, context.symmetric, accurate)
        self.control_solvers = []
        # g_j / a_j where B_j = g_j M and H_j = a_j M with one M: B_j H_j^-1 is then no more than this factor.
        self._ratios: list[float | None] = []
        held = context.held
        for j, control in enumerate(system.controls):
            block = blocks.control_control[j][j]
            self.control_solvers.append(MassSolver(block, control.function.function_space, "kkt_mass_"))
            exact = context.same_space(j) and not held
            self._ratios.append(structure.gains[j] / structure.regularisation[j] if exact else None)
        self._dirichlet = system.dirichlet_dofs
        self._fields = [forms.SubVectors(system.layout, field) for field in range(system.adjoint_field + 1)]
        self._outputs = [forms.SubVectors(system.layout, field) for field in range(system.adjoint_field + 1)]
        self.state_work = [self._fields[0].vector.duplicate() for _ in range(3)]
        self.control_work = [field.vector.duplicate() for field in self._fields[1:-1]]

    @contextlib.contextmanager
    def fields(self, right: PETSc.Vec, out: PETSc.Vec) -> Iterator[tuple[list[PETSc.Vec], list[PETSc.Vec]]]:
        """Yield the parts of a residual and of the result; the latter is written back at the end."""
        outputs = [output.vector for output in self._outputs]
        yield [field.load(right) for field in self._fields], outputs
        for output in self._outputs:
            output.store(out)

    def eliminate_controls(self, parts: Sequence[PETSc.Vec]) -> None:
        """Subtract B_j H_j^-1 r_j from the state equation's residual, in place. Collective: yes."""
        state = self.state_work[0]
        for j, (solver, ratio) in enumerate(zip(self.control_solvers, self._ratios, strict=True)):
            if ratio is None:
                solver.solve(parts[1 + j], self.control_work[j])
                self.control_operators[j].mult(self.control_work[j], state)
                parts[-1].axpy(-1.0, state)
            else:
                state.array[:] = parts[1 + j].array_r
                state.array[self._dirichlet] = 0.0
                parts[-1].axpy(-ratio, state)

    def recover_controls(self, parts: Sequence[PETSc.Vec], out: Sequence[PETSc.Vec]) -> None:
        """Set u_j = H_j^-1 (r_j - B_j' p) from the adjoint in ``out``. Collective: yes."""
        for j, solver in enumerate(self.control_solvers):
            self.control_operators[j].multTranspose(out[-1], self.control_work[j])
            self.control_work[j].aypx(-1.0, parts[1 + j])
            solver.solve(self.control_work[j], out[1 + j])

    def release(self) -> None:
        """Free solvers and work vectors. Collective: yes."""
        self.shifted.release()
        for solver in self.control_solvers:
            solver.release()
        for field in (*self._fields, *self._outputs):
            field.vector.destroy()
        for vector in (*self.state_work, *self.control_work):
            vector.destroy()


class PearsonWathen:
    """diag(w M, L_uu, S_hat): symmetric positive definite, for MINRES (Pearson and Wathen 2012).

    Parameters
    ----------
    context
        The KKT system and what was recognised in it.
    """

    def __init__(self, context: LinearContext) -> None:
        structure = context.structure
        shift = structure.coupling * structure.observation**0.5
        self._work = _Workspace(context, _free_mass(context), shift, accurate=True)
        self._mass = MassSolver(context.state_mass, context.system.lagrangian.state.function_space, "kkt_mass_")
        self._weight = structure.observation

    def apply(self, pc: PETSc.PC, right: PETSc.Vec, out: PETSc.Vec) -> None:
        """Apply the inverse of the block diagonal. Collective: yes."""
        work = self._work
        with work.fields(right, out) as (parts, result):
            self._mass.solve(parts[0], result[0])
            result[0].scale(1.0 / self._weight)
            for j, solver in enumerate(work.control_solvers):
                solver.solve(parts[1 + j], result[1 + j])
            first, second, _ = work.state_work
            work.shifted.solve(parts[-1], first)
            work.state_mass.mult(first, second)
            work.shifted.solve_transpose(second, result[-1])
            result[-1].scale(self._weight)

    @property
    def solves(self) -> int:
        """Applications of the shifted operator's inverse so far."""
        return self._work.shifted.solves

    def release(self) -> None:
        """Free solvers and work vectors. Collective: yes."""
        self._work.release()
        self._mass.release()


class SquareBlock:
    """PRESB for [[w M, A'], [A, -c^2 M]], the controls eliminated before and recovered after, for FGMRES or GCR.

    With p = q w / s the system is [[W, V'], [V, -W]], W = w M, V = (w / s) A, and is preconditioned by
    [[W, V'], [V, -(W + V + V')]], which two solves with W + V = (w / s)(A + s M) invert.

    Parameters
    ----------
    context
        The KKT system and what was recognised in it.
    """

    def __init__(self, context: LinearContext) -> None:
        structure = context.structure
        shift = structure.coupling * structure.observation**0.5
        self._work = _Workspace(context, _free_mass(context), shift, accurate=False)
        self._weight, self._scale = structure.observation, structure.observation / shift

    def apply(self, pc: PETSc.PC, right: PETSc.Vec, out: PETSc.Vec) -> None:
        """Apply the preconditioner. Collective: yes."""
        work, scale = self._work, self._scale
        with work.fields(right, out) as (parts, result):
            work.eliminate_controls(parts)
            difference, second, _ = work.state_work
            parts[-1].scale(scale)
            parts[-1].axpy(1.0, parts[0])
            work.shifted.solve(parts[-1], difference)  # (y - q) w / s
            difference.scale(1.0 / scale)
            work.state_mass.mult(difference, second)
            second.aypx(-self._weight, parts[0])
            work.shifted.solve_transpose(second, result[-1])  # q w / s, which is p
            difference.copy(result[0])
            result[0].axpy(1.0 / scale, result[-1])
            work.recover_controls(parts, result)

    @property
    def solves(self) -> int:
        """Applications of the shifted operator's inverse so far."""
        return self._work.shifted.solves

    def release(self) -> None:
        """Free solvers and work vectors. Collective: yes."""
        self._work.release()


class SwappedSchur:
    """Partial observation: controls and adjoint eliminated, the state's Schur complement matched, for FGMRES.

    S_y = L_yy + A' (c^2 M)^-1 A is approximated by (A + s M_o)' M^-1 (A + s M_o) / c^2, M_o = L_yy / w.

    Parameters
    ----------
    context
        The KKT system and what was recognised in it.
    """

    def __init__(self, context: LinearContext) -> None:
        structure, blocks = context.structure, context.blocks
        shift = structure.coupling / structure.observation**0.5  # on L_yy = w M_o
        self._work = _Workspace(context, blocks.state_state, shift, accurate=True)
        self._operator = blocks.state_operator
        self._mass = MassSolver(context.state_mass, context.system.lagrangian.state.function_space, "kkt_mass_")
        self._coupling = structure.coupling**2

    def apply(self, pc: PETSc.PC, right: PETSc.Vec, out: PETSc.Vec) -> None:
        """Apply the block factorisation. Collective: yes."""
        work, operator = self._work, self._operator
        with work.fields(right, out) as (parts, result):
            work.eliminate_controls(parts)
            first, second, third = work.state_work
            self._mass.solve(parts[-1], first)
            operator.multTranspose(first, second)
            second.axpy(self._coupling, parts[0])
            work.shifted.solve_transpose(second, first)
            work.state_mass.mult(first, third)
            work.shifted.solve(third, result[0])
            operator.mult(result[0], first)
            first.axpy(-1.0, parts[-1])
            self._mass.solve(first, result[-1])
            result[-1].scale(1.0 / self._coupling)
            work.recover_controls(parts, result)

    @property
    def solves(self) -> int:
        """Applications of the shifted operator's inverse so far."""
        return self._work.shifted.solves

    def release(self) -> None:
        """Free solvers and work vectors. Collective: yes."""
        self._work.release()
        self._mass.release()


def _free_mass(context: LinearContext) -> PETSc.Mat:
    """Return the control term of the Schur complement: the mass matrix, less what bounds hold. Collective: yes.

    Where control and state share their degrees of freedom, the mass matrix loses the rows and columns of active
    controls (Porcelli, Simoncini, Tani, SIAM J. Sci. Comput. 37 (2015) S472-S502); otherwise it stays whole.
    """
    if not context.held or len(context.active) != 1 or not context.same_space(0):
        return context.state_mass
    matrix = context.state_mass.copy()
    context.system._fix(matrix, context.active[0], context.active[0])
    return matrix
