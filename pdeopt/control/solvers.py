"""Linear solvers for the KKT system, one per structure: matched Schur complement, factorisation, reduced Hessian.

Each is a PETSc KSP under the prefix ``kkt_``; whatever the user sets there wins over the defaults below.
"""

import time

from petsc4py import PETSc

import numpy as np
import ufl

from pdeopt.control.kkt import KKTSystem
from pdeopt.control.preconditioners import LinearContext, PearsonWathen, SquareBlock, SwappedSchur
from pdeopt.control.reduced_kkt import ControlPreconditioner, ReducedHessianPC
from pdeopt.control.stopping import RieszStopping
from pdeopt.fem import forms
from pdeopt.fem.saddle import SolverSetup
from pdeopt.report import KSP_ADVICE, ConvergenceError, OptionError

_SAFETY = 0.8  # between the residual asked for and that at which CG stops: norms are right to a few digits
METHODS = ("matched_schur", "pearson_wathen", "direct", "reduced_hessian")


class KKTSolver:
    """A KSP for the KKT matrix and the seconds that its set-up took.

    Parameters
    ----------
    method
        One of `METHODS`.
    context
        The system to solve.
    state_setup
        Solver of the state equation in "reduced_hessian", see `state_solver`.
    control_preconditioner
        Preconditioner of the conjugate gradients in "reduced_hessian", kept; see `ReducedHessianPC`.
    recycle
        How many directions of these conjugate gradients to keep for `take_pairs`.

    Raises
    ------
    OptionError
        If the method is unknown, or the options ask for a Krylov method that the preconditioner does not fit.
    """

    def __init__(
        self,
        method: str,
        context: LinearContext,
        state_setup: SolverSetup | None = None,
        control_preconditioner: ControlPreconditioner | None = None,
        recycle: int = 0,
    ) -> None:
        started = time.perf_counter()
        self.method = method
        self._system = system = context.system
        self._preconditioner: PearsonWathen | SquareBlock | SwappedSchur | ReducedHessianPC | None = None
        self._stopping: RieszStopping | None = None
        self._scaling: PETSc.Vec | None = None
        # Symmetric pivoting on the indefinite matrix is slow: without it MUMPS needs a tenth of the time (n = 128).
        self._swapped = method == "direct" and PETSc.Options().getString("kkt_pc_type", "lu") == "lu"
        defaults: dict[str, object]
        if method == "direct":
            self._matrix = system.monolithic_matrix(context.blocks, self._swapped)
            self._scaling = system.scaling()
            left = self._scaling.copy()
            if self._swapped:
                system.swap_rows(left)
            self._matrix.diagonalScale(left, self._scaling)
            left.destroy()
            self._matrix.setOption(PETSc.Mat.Option.SYMMETRIC, not self._swapped)
            defaults = {"ksp_type": "preonly", "pc_type": "lu", "pc_factor_mat_solver_type": "mumps"}
            defaults["mat_mumps_icntl_14"] = 50 if self._swapped else 200  # indefinite pivoting outgrows the estimate
            self.name = "MUMPS on the KKT system"
        else:
            self._matrix = system.matrix(context.blocks)
            if method in ("matched_schur", "pearson_wathen"):
                self._preconditioner = _schur(method, context)
                # Not GCR: it breaks down where the preconditioned matrix is indefinite, as with too few cycles.
                krylov = "minres" if method == "pearson_wathen" else "fgmres"
                defaults = {"ksp_type": krylov, "pc_type": "python", "ksp_max_it": 500}
                if krylov == "fgmres":
                    defaults["ksp_gmres_restart"] = 60
                self._stopping = RieszStopping(system.norm)
                self.name = f"{krylov.upper()} + {type(self._preconditioner).__name__}"
            elif method == "reduced_hessian":
                self._preconditioner = ReducedHessianPC(context, state_setup, control_preconditioner, recycle)
                defaults = {"ksp_type": "preonly", "pc_type": "python"}
                self.name = "reduced-Hessian CG in the control metric"
            else:
                raise OptionError(f"method {method!r} is unknown: choose one of {', '.join(METHODS)}")
        self.ksp = PETSc.KSP().create(system.comm)
        self.ksp.setOptionsPrefix("kkt_")
        self.ksp.setOperators(self._matrix)
        with forms.default_options("kkt_", defaults):
            if self._preconditioner is not None:
                self.ksp.getPC().setType("python")
                self.ksp.getPC().setPythonContext(self._preconditioner)
            self.ksp.setFromOptions()
            self._check_krylov_method()
            if self._stopping is not None:
                self.ksp.setConvergenceTest(self._stopping)
            if method == "direct":
                self.ksp.setUp()
        self.seconds_setup = time.perf_counter() - started

    def _check_krylov_method(self) -> None:
        krylov = self.ksp.getType()
        fitting = {
            PearsonWathen: ("minres", "symmlq", "gmres", "fgmres", "gcr"),
            SquareBlock: ("gcr", "fgmres", "gmres"),
            SwappedSchur: ("gcr", "fgmres", "gmres"),
        }.get(type(self._preconditioner))
        if fitting and self.ksp.getPC().getType() == "python" and krylov not in fitting:
            raise OptionError(f"kkt_ksp_type {krylov} does not fit {self.method}: choose one of {', '.join(fitting)}")

    @property
    def residuals(self) -> tuple[float, ...]:
        """The Krylov method's own residual norms in the last solve; empty for methods without one."""
        return () if self._stopping is None else tuple(self._stopping.own_history)

    @property
    def negative_curvature(self) -> bool:
        """Whether the last solve by "reduced_hessian" met a control d with d'Hd <= 0."""
        inner = self._preconditioner
        return isinstance(inner, ReducedHessianPC) and inner.negative_curvature

    @property
    def solves(self) -> int:
        """Solves with the state operator or its transpose, or with the shifted one, so far; 0 by factorisation."""
        return 0 if self._preconditioner is None else self._preconditioner.solves

    def take_pairs(self) -> list[tuple[PETSc.Vec, PETSc.Vec]]:
        """Return what "reduced_hessian" was told to keep, see `ReducedHessianPC.take_pairs`."""
        inner = self._preconditioner
        return inner.take_pairs() if isinstance(inner, ReducedHessianPC) else []

    def solve(
        self,
        right: PETSc.Vec,
        out: PETSc.Vec,
        rtol: float,
        norm: float | None = None,
        *,
        report_negative_curvature: bool = False,
        no_more_than_asked: bool = False,
    ) -> int:
        """Solve to a tolerance relative in the Riesz norm and return the Krylov iterations. Collective: yes.

        Parameters
        ----------
        right, out
            Right-hand side and solution.
        rtol
            Relative tolerance.
        norm
            The Riesz norm of the right-hand side, if it is known.
        report_negative_curvature
            Where "reduced_hessian" meets negative curvature, set what was found until then and `negative_curvature`;
            otherwise that is an error.
        no_more_than_asked
            Stop "reduced_hessian" once the Riesz norm of the whole KKT residual has the relative tolerance, not well
            below it: for callers that look at the residual that was reached, without barrier terms or fixed controls.

        Raises
        ------
        ConvergenceError
            If the KSP reports divergence, or the reduced Hessian is indefinite.
        """
        if self._stopping is not None:
            self._stopping.start(right, rtol, norm)
        elif isinstance(self._preconditioner, ReducedHessianPC):
            # Eliminating state and adjoint amplifies the right-hand side by up to 1 / sqrt(alpha) before CG sees it.
            self._preconditioner.rtol, self._preconditioner.target = max(1e-3 * rtol, 1e-13), None
            if no_more_than_asked:
                size = self._system.norm(right) if norm is None else norm
                self._preconditioner.target = _SAFETY * max(rtol, 1e-13) * size
        with forms.log_event(f"pdeopt {self.method} solve"):
            try:
                self._solve(right, out)
            except PETSc.Error as error:  # what the preconditioner raised, in PETSc's clothes
                if isinstance(error.__cause__, ConvergenceError):
                    raise error.__cause__ from None
                raise
        reason = self.ksp.getConvergedReason()
        if reason < 0:
            advice = KSP_ADVICE.get(reason, "see kkt_ksp_converged_reason")
            raise ConvergenceError(f"the KKT solve with {self.name} failed (reason {reason}): {advice}")
        if isinstance(self._preconditioner, ReducedHessianPC):
            if self.negative_curvature and not report_negative_curvature:
                raise ConvergenceError(f"the reduced-Hessian solve failed (reason -10): {KSP_ADVICE[-10]}")
            return self._preconditioner.iterations
        return 0 if self.ksp.getType() == "preonly" else int(self.ksp.getIterationNumber())

    def _solve(self, right: PETSc.Vec, out: PETSc.Vec) -> None:
        if self._scaling is None:
            self.ksp.solve(right, out)
            return
        scaled = right.duplicate()
        scaled.pointwiseMult(right, self._scaling)
        if self._swapped:
            self._system.swap_rows(scaled)
        self.ksp.solve(scaled, out)
        out.pointwiseMult(out, self._scaling)
        scaled.destroy()

    def destroy(self) -> None:
        """Free the PETSc objects. Collective: yes."""
        self.ksp.destroy()
        self._matrix.destroy()
        if self._scaling is not None:
            self._scaling.destroy()
        if self._preconditioner is not None:
            self._preconditioner.release()


def _schur(method: str, context: LinearContext) -> PearsonWathen | SquareBlock | SwappedSchur:
    """Build the matched-Schur preconditioner that fits. Collective: yes."""
    if context.structure.kind == "general":
        raise OptionError(
            f"method {method!r} needs control and quadratic observation on the whole domain or a part of it, without "
            "extra constraints; this problem has another structure: choose 'direct' or 'reduced_hessian'"
        )
    if method == "pearson_wathen":
        return PearsonWathen(context)
    return SwappedSchur(context) if context.structure.kind == "partial observation" else SquareBlock(context)


def is_symmetric(matrix: PETSc.Mat) -> bool:
    """Whether a matrix is symmetric, tested on a fixed vector with no structure. Collective: yes."""
    vector, product = matrix.createVecs()
    transposed = product.duplicate()
    first, last = vector.getOwnershipRange()
    vector.array[:] = np.cos(1.0 + 0.7 * np.arange(first, last) ** 1.1)
    matrix.mult(vector, product)
    matrix.multTranspose(vector, transposed)
    size = product.norm()
    transposed.axpy(-1.0, product)
    return bool(transposed.norm() <= 1e-10 * size)


def state_operator_is_symmetric(system: KKTSystem, operator: PETSc.Mat) -> bool:
    """Whether the state operator is symmetric wherever it is assembled, tested at a generic point too. Collective: yes.

    That of a flow at rest is symmetric, and would be factorised as such, though no other is.
    """
    if system.linear_state or not is_symmetric(operator):
        return is_symmetric(operator)
    point, generic = system.layout.create_vector(), system.layout.create_vector()
    system.get_unknowns(point)
    first, last = generic.getOwnershipRange()
    generic.array[:] = point.array_r + 0.1 * np.cos(2.0 + 0.9 * np.arange(first, last))
    system.set_unknowns(generic)
    there = system.assemble_state_operator()
    symmetric = is_symmetric(there)
    system.set_unknowns(point)
    for item in (there, point, generic):
        item.destroy()
    return symmetric


def state_mass_matrix(system: KKTSystem) -> PETSc.Mat:
    """Return the state's mass matrix, Dirichlet rows and columns zero. Collective: yes."""
    space = system.lagrangian.state.function_space
    mass = forms.compile_form(ufl.inner(ufl.TrialFunction(space), ufl.TestFunction(space)) * ufl.dx)
    return forms.assemble_matrix(mass, system.bcs, diag=0.0)
