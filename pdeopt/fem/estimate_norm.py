"""The dual norm of a residual by a Riesz solve: the norm, its localisation, and the constants to the error."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Self

from petsc4py import PETSc

import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import fem
from ufl.core.expr import Expr

from pdeopt.fem import estimate_solvers, forms
from pdeopt.fem.estimate_constants import Constants, extreme_constants
from pdeopt.fem.estimate_space import DualSpace, LinearForm, Space, local_form
from pdeopt.parallel import collective_errors


@dataclasses.dataclass(frozen=True, eq=False)
class Estimate:
    """What a dual norm says about one residual.

    Parameters
    ----------
    eta
        The dual norm of the residual, in units of the energy norm; infinite for a residual with NaN or Inf.
    cells
        The cells' shares of eta^2, a piecewise constant function: eta^2 is the sum of its values.
    seconds
        Wall time of assembly, Riesz solve and localisation.
    constants
        Inf-sup and continuity constant, where a Jacobian was given.
    """

    eta: float
    cells: fem.Function[Any]
    seconds: float
    constants: Constants | None = None

    @property
    def bounds(self) -> tuple[float, float]:
        """Lower and upper bound of the error's energy norm, eta / gamma and eta / alpha; 0 and inf when unknown."""
        if self.constants is None:
            return 0.0, math.inf
        return self.eta / self.constants.continuity, self.eta / self.constants.inf_sup


class DualNorm:
    """The dual norm of residuals with respect to a symmetric positive definite inner product.

        eta^2 = R(z),    (z, v)_V = R(v) for all v in V that vanish where Dirichlet conditions hold

    The Riesz map is set up once, by Cholesky factorisation or, above a size, CG with algebraic multigrid, and used for
    any number of residuals. An instance is itself a callable ``(residual) -> float``.

    Parameters
    ----------
    space
        Space of the test functions.
    inner_product
        Takes u and v as UFL expressions and returns (u, v)_V as a form.
    bcs
        Dirichlet conditions of the state; their values do not matter.
    near_nullspace
        Modes for the algebraic multigrid.
    direct
        Whether to factorise; None decides by the number of unknowns.
    options_prefix
        Prefix under which PETSc options change the solver.

    Attributes
    ----------
    representative
        The Riesz representative z of the last residual, one function for each block of the space.
    iterations
        Krylov iterations of the last Riesz solve (1 for a factorisation).

    Raises
    ------
    InputError
        If a Dirichlet condition belongs to another space.

    Collective: yes.
    """

    name = "residual"

    def __init__(
        self,
        space: Space,
        inner_product: Callable[[Expr, Expr], ufl.Form],
        bcs: Sequence[fem.DirichletBC[Any]] = (),
        *,
        near_nullspace: PETSc.NullSpace | None = None,
        direct: bool | None = None,
        options_prefix: str = "estimate_",
    ) -> None:
        self.space = DualSpace(space, bcs)
        self.representative = self.space.create_functions("riesz_representative")
        self.iterations = 0
        self._inner_product = inner_product
        self._prefix = options_prefix
        self._near_nullspace, self._direct = near_nullspace, direct
        self._last_form: tuple[LinearForm, Any] | None = None
        self._cells: tuple[fem.FunctionSpace[Any], Any] | None = None
        self._compile()
        self._set_up()
        self._right, self._solution = self._matrix.createVecs()

    def _compile(self) -> None:
        (trial,), (test,) = self.space.trials(), self.space.tests()
        self._energy_form = self.space.compile_bilinear(self._inner_product(trial, test))

    def _set_up(self) -> None:
        self._matrix = self.space.matrix(self._energy_form)
        direct = self._is_direct(self._matrix)
        self._ksp = estimate_solvers.definite_solver(self._matrix, self._prefix, direct, self._near_nullspace)

    def _is_direct(self, matrix: PETSc.Mat) -> bool:
        if self._direct is not None:
            return self._direct
        return bool(matrix.getSize()[0] <= estimate_solvers.DIRECT_LIMIT[self.space.mesh.topology.dim])

    def __call__(self, residual: PETSc.Vec) -> float:
        """Return `norm`."""
        return self.norm(residual)

    def norm(self, residual: PETSc.Vec) -> float:
        """Return eta, the dual norm of an assembled residual; infinity if it has NaN or Inf.

        Parameters
        ----------
        residual
            R(v) for every test function, in the layout that DOLFINx assembles (nested vectors, too), contributions
            of ghosts added to their owners. Rows of Dirichlet conditions are ignored.

        Raises
        ------
        InputError
            If the vector does not belong to the space.
        ConvergenceError
            If the Riesz solve fails.

        Collective: yes.
        """
        with collective_errors(self.space.comm):
            values = self.space.free_values(residual)
        return self._norm(values)

    def _norm(self, values: npt.NDArray[np.float64]) -> float:
        self._right.array[:] = values
        if not math.isfinite(self._right.norm()):
            self._solution.set(0.0)
            return math.inf
        self._prepare(self._right)
        self._ksp.solve(self._right, self._solution)
        self.iterations = int(self._ksp.getIterationNumber())
        estimate_solvers.check_solved(self._ksp, self.name)
        self.space.load(self.representative, self._solution.array_r)
        return self.error_norm(self._solution.array_r)

    def _prepare(self, right: PETSc.Vec) -> None:
        """Change the right-hand side so that the Riesz solve has a solution; here it always has one."""

    def error_norm(self, error: npt.NDArray[np.float64]) -> float:
        """Return the energy norm of an error, the norm that eta is compared with.

        Parameters
        ----------
        error
            Owned degrees of freedom, shape (owned,); what stands on Dirichlet rows is ignored.

        Collective: yes.
        """
        covector = self.riesz_covector(error)
        square = self.space.comm.allreduce(float(covector.array_r @ error))
        covector.destroy()
        return math.sqrt(max(square, 0.0))

    def riesz_covector(self, field: npt.NDArray[np.float64]) -> PETSc.Vec:
        """Return v -> (field, v)_V as a covector, zero on Dirichlet rows; the inverse of the Riesz map.

        Parameters
        ----------
        field
            Owned degrees of freedom, shape (owned,).

        Collective: yes.
        """
        free = self._free_rows()
        vector = self._matrix.createVecRight()
        vector.array[:] = np.where(free, field, 0.0)
        covector = vector.duplicate()
        self._matrix.mult(vector, covector)
        covector.array[~free] = 0.0
        vector.destroy()
        return covector

    def residual(self, form: LinearForm) -> PETSc.Vec:
        """Assemble a residual at the present values of its coefficients. Collective: yes.

        Parameters
        ----------
        form
            A linear form (UFL), or the list of its blocks. The last one is kept compiled.
        """
        if self._last_form is None or self._last_form[0] is not form:
            self._last_form = (form, self.space.compile_linear(form))
        return forms.assemble_vector(self._last_form[1])

    def cell_contributions(self) -> fem.Function[Any]:
        """Return the cells' shares of eta^2 for the last residual: a piecewise constant function. Collective: yes."""
        if self._cells is None:
            field = self.space.split(self.representative)[0]
            constants = fem.functionspace(self.space.mesh, ("Discontinuous Lagrange", 0))
            self._cells = constants, forms.compile_form(local_form(self._inner_product(field, field), constants))
        result = fem.Function(self._cells[0], name="error_indicator")
        vector = forms.assemble_vector(self._cells[1])
        forms.set_function(result, vector.array_r)
        vector.destroy()
        return result

    def estimate(self, residual: LinearForm | PETSc.Vec, jacobian: ufl.Form | None = None) -> Estimate:
        """Measure a residual, localise it, and compute the constants if its Jacobian is given.

        Parameters
        ----------
        residual
            The residual as a linear form, evaluated at the present values of its coefficients, or assembled.
        jacobian
            Its derivative with respect to the state, a bilinear form over the same spaces.

        Raises
        ------
        InputError, ConvergenceError
            As `norm`.

        Collective: yes.
        """
        started = time.perf_counter()
        if isinstance(residual, PETSc.Vec):
            eta = self.norm(residual)
        else:
            vector = self.residual(residual)
            eta = self.norm(vector)
            vector.destroy()
        cells = self.cell_contributions()
        seconds = time.perf_counter() - started
        return Estimate(eta, cells, seconds, None if jacobian is None else self.constants(jacobian))

    def constants(self, jacobian: ufl.Form) -> Constants:
        """Return the inf-sup and the continuity constant of a linearised problem in this norm, by SLEPc.

        Parameters
        ----------
        jacobian
            The bilinear form L(e, v) over the space of this norm, at the present values of its coefficients.

        Raises
        ------
        MissingPackageError
            If slepc4py is absent.
        ConvergenceError
            If an eigenvalue does not converge.

        Collective: yes. Takes a factorisation of the Jacobian and some hundred Riesz solves.
        """
        linearised = self._jacobian_matrix(jacobian)
        try:
            return extreme_constants(self._matrix, self._ksp, self._matrix, self._ksp, linearised, self._free_rows())
        finally:
            linearised.destroy()

    def _jacobian_matrix(self, jacobian: ufl.Form) -> PETSc.Mat:
        return self.space.matrix(self.space.compile_bilinear(jacobian))

    def _free_rows(self) -> npt.NDArray[np.bool_]:
        """Return which owned unknowns belong to errors: not fixed, and no pressure."""
        free = np.zeros(self.space.offsets[-1], dtype=bool)
        free[self.space.field_rows(0)] = True
        free[self.space.constrained] = False
        return free

    def _free_matrices(self) -> None:
        self._ksp.destroy()
        self._matrix.destroy()

    def destroy(self) -> None:
        """Free the PETSc objects. Collective: yes."""
        self._free_matrices()
        self._right.destroy()
        self._solution.destroy()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.destroy()
