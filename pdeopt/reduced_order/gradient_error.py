"""How far the gradient of a reduced control problem is from the true one: a residual bound, sharpened by corrections.

At a control u, a state y_r and an adjoint p_r that fulfil their equations only nearly give g_r = L_u(y_r, u, p_r) in
place of g = L_u(y, u, p). With an inf-sup constant alpha of F_y and the norms b = |F_u|, c = |L_yy|, d = |L_uy|, all
in the state's norm |.|_V and the control's |.|_U, and with the dual norms of the residuals rho_y = L_p(y_r, u) and
rho_p = L_y(y_r, u, p_r),

    |g - g_r| <= R(y_r, p_r) = b e_p + d e_y,   e_y = |rho_y| / alpha,   e_p = (|rho_p| + c e_y) / alpha.     (1)

These are worst cases, which smooth errors are far from: (1) can be a thousand times the error. So (y_r, p_r) is first
corrected to (y_1, p_1), by a rough solve each of the linearised equations, and with g_1 = L_u(y_1, u, p_1)

    |g - g_r| <= |g_1 - g_r| + R(y_1, p_1),                                                                    (2)

where R is what the rough solves and the linearisation leave. Nothing is linearised in (2): the residuals at (y_1, p_1)
are the true ones. The rough solves are a few iterations of GMRES, preconditioned by the factors of the state operator
at an earlier point, so that nothing is factorised. The same way

    |J(u) - J_r| <= |L(y_1, u, p_1) - J_r| + |rho_p| e_y + c e_y^2 / 2.

(1) is the dual-weighted residual bound of Dede (SIAM J. Sci. Comput. 32 (2010) 997-1019) and of Kaercher, Tokoutsi,
Grepl and Veroy (J. Sci. Comput. 75 (2018) 276-307), with controls of full dimension.
"""

import dataclasses
import math
from collections.abc import Callable

from petsc4py import PETSc

import numpy as np

from pdeopt.control.kkt import KKTSystem, Mask
from pdeopt.control.reduced import ReducedFunctional
from pdeopt.fem import forms
from pdeopt.fem.estimate_constants import largest_eigenvalue
from pdeopt.reduced_order.inner_product import InnerProduct
from pdeopt.report import InputError

_ROUNDING = 1e-5  # relative; what the eigenvalues behind the constants, found to 1e-6, may lack
_SHARP = 0.5  # remainder over computed part that is small enough: the effectivity is then at most 3
_CORRECTION = {"ksp_type": "gmres", "ksp_rtol": 0.05, "ksp_max_it": 20, "ksp_pc_side": "right", "ksp_gmres_restart": 20}


@dataclasses.dataclass(frozen=True)
class GradientConstants:
    """The constants of the bound, at one point.

    Parameters
    ----------
    inf_sup
        alpha, of the linearised state equation.
    control_operator
        b, the norm of F_u from controls to functionals of the state.
    state_curvature
        c, the norm of L_yy.
    mixed_curvature
        d, the norm of L_uy.
    """

    inf_sup: float
    control_operator: float
    state_curvature: float
    mixed_curvature: float

    def worst(self, other: "GradientConstants") -> "GradientConstants":
        """Return the constants that hold at both points. Collective: no."""
        return GradientConstants(
            min(self.inf_sup, other.inf_sup),
            max(self.control_operator, other.control_operator),
            max(self.state_curvature, other.state_curvature),
            max(self.mixed_curvature, other.mixed_curvature),
        )

    def widened(self, safety: float) -> "GradientConstants":
        """Return constants that a factor has made worse. Collective: no."""
        return GradientConstants(
            self.inf_sup / safety,
            self.control_operator * safety,
            self.state_curvature * safety,
            self.mixed_curvature * safety,
        )


@dataclasses.dataclass(frozen=True)
class GradientError:
    """What is known of the errors of one answer.

    Parameters
    ----------
    bound
        Of the gradient's error in the norm of the controls.
    computed
        |g_k - g_r|, after the last correction k; 0 without one.
    remainder
        R, the bound of what the corrections left.
    value_bound
        Of the error of the objective.
    corrections
        How many were made.
    """

    bound: float
    computed: float
    remainder: float
    value_bound: float
    corrections: int

    @property
    def largest_effectivity(self) -> float:
        """What bound / error can be at most, since the error is at least computed - remainder; infinite if unknown."""
        least = self.computed - self.remainder
        return self.bound / least if least > 0.0 else math.inf


class GradientCertificate:
    """Bounds the error of approximate gradients of a control problem.

    The bound holds without reserve for linear-quadratic problems: their constants are the same everywhere. Otherwise
    it holds provided that between the answer and the truth the constants are no worse than the factor ``safety`` makes
    those of the points where `renew` was called; as they multiply only what the corrections left, a large factor costs
    little.

    Parameters
    ----------
    system
        The problem's KKT system.
    full
        The problem as a functional of the controls; its last factorisation preconditions the corrections.
    inner_product
        |.|_V, with the state's Dirichlet conditions.
    corrections
        The most that are made; 0 leaves the bound (1) by constants alone.
    safety
        Factor on the constants where they are not constant.

    Attributes
    ----------
    constants
        Those of the last `renew`, the worst of all points; None before.
    riesz_solves, corrector_solves
        Solves with the state's inner product and with the earlier state operator so far.

    Collective: yes.
    """

    def __init__(
        self,
        system: KKTSystem,
        full: ReducedFunctional,
        inner_product: InnerProduct,
        *,
        corrections: int = 3,
        safety: float = 2.0,
    ) -> None:
        self._system, self._full, self._inner_product = system, full, inner_product
        self._corrections, self._safety = corrections, 1.0 if system.linear_quadratic else safety
        self.constants: GradientConstants | None = None
        self.riesz_solves = self.corrector_solves = 0
        self._layout = forms.BlockLayout(system.comm, system.layout.sizes[1:-1])
        self._unknowns = system.layout.create_vector()
        self._residual = forms.SubVectors(system.layout, 0).vector
        self._solution = self._residual.duplicate()
        self._control_solvers = [_factorise(product) for product in system.control_products]
        self._parts = [forms.SubVectors(self._layout, j) for j in range(len(self._control_solvers))]
        self._operator = system.assemble_state_operator()
        self._corrector = PETSc.KSP().create(system.comm)
        self._corrector.setOptionsPrefix("reduced_correction_")
        self._corrector.setOperators(self._operator)
        self._corrector.getPC().setType("python")
        self._corrector.getPC().setPythonContext(_EarlierOperator(full, self))
        with forms.default_options("reduced_correction_", _CORRECTION):
            self._corrector.setFromOptions()

    # Norms -----------------------------------------------------------------------------------------------------------

    def dual_norm(self, covector: PETSc.Vec) -> float:
        """Return the norm of a gradient from its covector over the controls. Collective: yes."""
        square = 0.0
        for part, solver in zip(self._parts, self._control_solvers, strict=True):
            given = part.load(covector)
            representative = given.duplicate()
            solver.solve(given, representative)
            square += float(given.dot(representative))
            representative.destroy()
        return square if math.isnan(square) else math.sqrt(max(square, 0.0))

    def _load(self, field: int) -> PETSc.Vec:
        """Assemble L_y or L_p at the present unknowns into the work vector. Collective: yes."""
        self._system.assemble_derivative(field, self._unknowns)
        self._residual.array[:] = self._system.layout.read(self._unknowns, field)
        return self._residual

    def _residual_norm(self, field: int) -> float:
        self.riesz_solves += 1
        return self._inner_product.dual_norm(self._load(field))

    def _gradient(self) -> PETSc.Vec:
        """Return L_u at the present unknowns. Collective: yes."""
        covector = self._layout.create_vector()
        for j in range(len(self._system.controls)):
            self._system.assemble_derivative(j + 1, self._unknowns)
            self._layout.write(covector, j, self._system.layout.read(self._unknowns, j + 1))
        return covector

    # Constants -------------------------------------------------------------------------------------------------------

    def renew(self) -> GradientConstants:
        """Compute the constants where the full equations were just solved, and keep the worst so far. Collective: yes.

        Raises
        ------
        ConvergenceError
            If an eigenvalue does not converge.
        """
        found = self._measure_constants()
        self.constants = found if self.constants is None else self.constants.worst(found)
        return found

    def _measure_constants(self) -> GradientConstants:
        system, state_solver = self._system, self._full.state_solver
        energy, solver = self._inner_product.matrix, self._inner_product.solver
        free = ~system.dirichlet_mask()
        work = energy.createVecRight()

        def stability(given: PETSc.Vec, out: PETSc.Vec) -> None:
            """A^-1 M A^-T M, whose largest eigenvalue is alpha^-2."""
            energy.mult(given, work)
            state_solver.solveTranspose(work, out)
            energy.mult(out, work)
            state_solver.solve(work, out)

        blocks = system.assemble_blocks()

        def norm(block: PETSc.Mat | None, inverse: PETSc.KSP) -> float:
            """C, with R the inner product of its columns: the root of the largest eigenvalue of M^-1 C R^-1 C'."""
            if block is None or block.norm() == 0.0:
                return 0.0
            right, state = block.createVecs()
            representative = right.duplicate()

            def apply(given: PETSc.Vec, out: PETSc.Vec) -> None:
                block.multTranspose(given, right)
                inverse.solve(right, representative)
                block.mult(representative, state)
                solver.solve(state, out)

            try:
                return _root_of_largest(apply, energy, free)
            finally:
                for item in (right, state, representative):
                    item.destroy()

        try:
            return GradientConstants(
                inf_sup=1.0 / _root_of_largest(stability, energy, free),
                control_operator=math.hypot(*map(norm, blocks.control_operators, self._control_solvers)),
                state_curvature=norm(blocks.state_state, solver),
                mixed_curvature=math.hypot(*map(norm, blocks.state_control, self._control_solvers)),
            )
        finally:
            blocks.destroy()
            work.destroy()

    # The bound -------------------------------------------------------------------------------------------------------

    def __call__(self, gradient: PETSc.Vec, value: float, tolerance: float = 0.0) -> GradientError:
        """Bound the errors of a gradient and a value that came from the present unknowns, which move. Collective: yes.

        Parameters
        ----------
        gradient, value
            g_r as a covector, and J_r.
        tolerance
            A bound below it needs no correction.
        """
        if self.constants is None:
            raise InputError("the constants of the bound are unknown: call enrich(control) once")
        constants = self.constants.widened(self._safety)
        error = self._estimate(constants, gradient, value, 0)
        for correction in range(1, self._corrections + 1):
            if error.bound <= tolerance:
                break
            if error.remainder <= _SHARP * error.computed:
                break
            self._correct()
            better = self._estimate(constants, gradient, value, correction)
            if not better.bound < error.bound:  # the operator at hand is too far from this one to help
                break
            error = better
        return error

    def _estimate(self, constants: GradientConstants, gradient: PETSc.Vec, value: float, number: int) -> GradientError:
        system = self._system
        last = system.adjoint_field
        state_error = self._residual_norm(last) / constants.inf_sup
        adjoint = forms.owned_values(system.lagrangian.adjoint)
        local = float(self._residual.array_r @ adjoint)
        lagrangian = system.objective() + float(system.comm.allreduce(local))
        adjoint_residual = self._residual_norm(0)
        curvature = constants.state_curvature
        adjoint_error = (adjoint_residual + curvature * state_error) / constants.inf_sup
        remainder = constants.control_operator * adjoint_error + constants.mixed_curvature * state_error
        computed = 0.0
        if number:
            change = self._gradient()
            change.axpy(-1.0, gradient)
            computed = self.dual_norm(change)
            change.destroy()
        value_remainder = adjoint_residual * state_error + 0.5 * curvature * state_error**2
        return GradientError(
            bound=(computed + remainder) * (1.0 + _ROUNDING),
            computed=computed,
            remainder=remainder,
            value_bound=(abs(lagrangian - value) + value_remainder) * (1.0 + _ROUNDING),
            corrections=number,
        )

    def _correct(self) -> None:
        """Move state, then adjoint, by a rough solve each with the present operator. Collective: yes."""
        lagrangian = self._system.lagrangian
        if not self._system.linear_state:
            self._system.reassemble_state_operator(self._operator)
        for field, function, transpose in (
            (self._system.adjoint_field, lagrangian.state, False),
            (0, lagrangian.adjoint, True),
        ):
            solve = self._corrector.solveTranspose if transpose else self._corrector.solve
            solve(self._load(field), self._solution)
            forms.set_function(function, forms.owned_values(function) - self._solution.array_r)

    def destroy(self) -> None:
        """Free the PETSc objects, not what was handed in. Collective: yes."""
        parts = [part.vector for part in self._parts]
        work = [self._unknowns, self._residual, self._solution, *parts]
        for item in (self._corrector, self._operator, *self._control_solvers, *work):
            item.destroy()


class _EarlierOperator:
    """The context of a PETSc preconditioner: solves with the state operator of an earlier point."""

    def __init__(self, full: ReducedFunctional, certificate: GradientCertificate) -> None:
        self._full, self._certificate = full, certificate

    def apply(self, pc: PETSc.PC, right: PETSc.Vec, out: PETSc.Vec) -> None:
        """Solve with it. Collective: yes."""
        self._certificate.corrector_solves += 1
        self._full.state_solver.solve(right, out)

    def applyTranspose(self, pc: PETSc.PC, right: PETSc.Vec, out: PETSc.Vec) -> None:
        """Solve with its transpose. Collective: yes."""
        self._certificate.corrector_solves += 1
        self._full.state_solver.solveTranspose(right, out)


def _factorise(matrix: PETSc.Mat) -> PETSc.KSP:
    """Return a factorisation of a symmetric positive definite matrix. Collective: yes."""
    ksp = PETSc.KSP().create(matrix.comm)
    ksp.setOperators(matrix)
    ksp.setType("preonly")
    ksp.getPC().setType("cholesky")
    ksp.getPC().setFactorSolverType("mumps")
    ksp.setErrorIfNotConverged(True)
    return ksp


def _root_of_largest(apply: Callable[[PETSc.Vec, PETSc.Vec], None], like: PETSc.Mat, free: Mask) -> float:
    start = like.createVecRight()
    first = start.getOwnershipRange()[0]
    start.array[:] = np.where(free, np.cos(1.0 + 0.7 * np.arange(first, first + free.size) ** 1.1), 0.0)
    try:
        return math.sqrt(max(largest_eigenvalue(apply, like, start), 0.0))
    finally:
        start.destroy()
