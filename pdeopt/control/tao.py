"""Optimisation in the space of the controls by PETSc's TAO, in coordinates that know the control's metric.

TAO measures with the Euclidean inner product of coefficient vectors, in which iterations grow as the mesh is refined.
So it works on x = D^(1/2) u, with D the diagonal of the control's inner product: spectrally equivalent to the inner
product itself whatever the mesh (Wathen, IMA J. Numer. Anal. 7 (1987) 449-457), and box bounds stay box bounds.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator

from petsc4py import PETSc

from pdeopt import parallel
from pdeopt.control.reduced import Functional
from pdeopt.control.reduced_kkt import ControlPreconditioner
from pdeopt.fem import forms
from pdeopt.report import TAO_ADVICE, ConvergenceError, OptionError, SolveReport

METHODS = {
    "bqnls": "quasi-Newton with bounds and line search",
    "blmvm": "limited-memory quasi-Newton with gradient projection",
    "bntr": "Newton with bounds and a trust region",
    "bnls": "Newton with bounds and line search",
}
_NEWTON = ("bntr", "bnls")
# PETSc's default, a trust region found by interpolation, crashes (3.25) once bounds hold every control.
_NEWTON_OPTIONS = {"tao_bnk_init_type": "direction"}
# PETSc's default rescales the initial Hessian by a diagonal that it learns; here that undoes the metric, and the
# quasi-Newton methods stall (500 iterations for a gradient of 1e-7). With one number 15 iterations reach 1e-8.
_QUASI_NEWTON = {
    "tao_bqnls_mat_lmvm_scale_type": "scalar",
    "tao_bqnls_mat_lmvm_hist_size": 20,
    "tao_blmvm_mat_lmvm_scale_type": "scalar",
}


class _ScaledFunctional:
    """The callbacks of TAO: a functional of u in the coordinates x = D^(1/2) u."""

    def __init__(self, functional: Functional) -> None:
        self._functional = functional
        self.evaluations = self.hessian_actions = 0
        self.scale = functional.inner_product().getDiagonal()
        self.scale.sqrtabs()
        self.control = functional.create_vector()
        self._at = functional.create_vector()  # where the Hessian stands
        self._direction = functional.create_vector()
        self.callbacks = parallel.CallbackErrors(functional.comm)
        local, size = self.control.getLocalSize(), self.control.getSize()
        self.hessian = PETSc.Mat().createPython(((local, size), (local, size)), context=self, comm=functional.comm)
        self.hessian.setOption(PETSc.Mat.Option.SYMMETRIC, True)
        self.hessian.setUp()

    @contextlib.contextmanager
    def _kept_errors(self) -> Iterator[None]:
        """Keep an exception that PETSc would turn into an error code, for `callbacks.raise_stored`. Collective: no."""
        try:
            yield
        except Exception as error:
            with self.callbacks.guard():
                raise
            raise PETSc.Error(101) from error

    def to_scaled(self, control: PETSc.Vec) -> PETSc.Vec:
        """Return D^(1/2) u as a new vector. Collective: yes."""
        scaled = control.duplicate()
        scaled.pointwiseMult(control, self.scale)
        return scaled

    def to_control(self, scaled: PETSc.Vec, out: PETSc.Vec) -> None:
        """Set u = D^(-1/2) x. Collective: yes."""
        out.pointwiseDivide(scaled, self.scale)

    def evaluate(self, tao: PETSc.TAO, scaled: PETSc.Vec, gradient: PETSc.Vec) -> float:
        """Return the objective and set its gradient in the scaled coordinates. Collective: yes."""
        self.evaluations += 1
        with self._kept_errors():
            self.to_control(scaled, self.control)
            value = self._functional.value(self.control)
            self._functional.derivative(self.control, gradient)
            gradient.pointwiseDivide(gradient, self.scale)
        return value

    def move_hessian(self, tao: PETSc.TAO, scaled: PETSc.Vec, hessian: PETSc.Mat, preconditioner: PETSc.Mat) -> None:
        """Let the Hessian stand at a point. Collective: yes."""
        self.to_control(scaled, self._at)
        hessian.assemble()

    def mult(self, matrix: PETSc.Mat, direction: PETSc.Vec, out: PETSc.Vec) -> None:
        """Apply the Hessian in the scaled coordinates. Collective: yes."""
        self.hessian_actions += 1
        with self._kept_errors():
            self.to_control(direction, self._direction)
            self._functional.hessian_action(self._at, self._direction, out)
            out.pointwiseDivide(out, self.scale)

    multTranspose = mult

    def createSubMatrix(self, matrix: PETSc.Mat, rows: PETSc.IS, columns: PETSc.IS, out: PETSc.Mat | None) -> PETSc.Mat:
        """Return the part of the Hessian that belongs to the controls off their bounds. Collective: yes."""
        return PETSc.Mat().createSubMatrixVirtual(matrix, rows, columns)

    def release(self) -> None:
        """Free matrix and vectors. Collective: yes."""
        for item in (self.hessian, self.scale, self.control, self._at, self._direction):
            item.destroy()


class _ScaledPreconditioner:
    """y = D^(1/2) P D^(1/2) x for an approximate inverse P of the Hessian by the controls: a context of PETSc's PC."""

    def __init__(self, preconditioner: ControlPreconditioner, scale: PETSc.Vec) -> None:
        self._preconditioner, self._scale = preconditioner, scale
        self._covector, self._control = scale.duplicate(), scale.duplicate()

    def apply(self, pc: PETSc.PC, covector: PETSc.Vec, out: PETSc.Vec) -> None:
        """Apply it. Collective: yes."""
        self._covector.pointwiseMult(covector, self._scale)
        self._preconditioner.apply(pc, self._covector, self._control)
        out.pointwiseMult(self._control, self._scale)

    def release(self) -> None:
        """Free the work vectors. Collective: yes."""
        self._covector.destroy()
        self._control.destroy()


def minimise(
    functional: Functional,
    method: str = "bqnls",
    *,
    rtol: float = 1e-8,
    max_iterations: int = 500,
    monitor: Callable[[int, float], None] | None = None,
    preconditioner: ControlPreconditioner | None = None,
) -> SolveReport:
    """Minimise a functional of the controls within its bounds by TAO; the optimum is set in it. Collective: yes.

    PETSc options under ``reduced_`` (``-reduced_tao_view``, ``-reduced_tao_type``, ...) override the defaults.

    Parameters
    ----------
    functional
        What to minimise, for instance ``problem.reduced_functional()``.
    method
        A key of `METHODS`: "bqnls", "blmvm" (gradients alone), "bntr", "bnls" (Hessian actions).
    rtol
        Tolerance for the norm of the projected gradient in the control's metric, relative to that at zero control
        (moved to the bounds).
    max_iterations
        Iterations of TAO.
    monitor
        Called on every rank with (iteration, norm of the projected gradient); an exception in it ends the solve on all.
    preconditioner
        Of the Krylov method of "bntr" and "bnls", for functionals without bounds; worth it where the diagonal of the
        inner product is no measure of it, as with one of H1. Kept, and not freed.

    Raises
    ------
    ConvergenceError
        If the tolerance is not reached; the report of what was done is attached.
    OptionError
        If the method is unknown, or takes no preconditioner.
    """
    if method not in METHODS:
        raise OptionError(f"method {method!r} is no method of TAO here: choose one of {', '.join(METHODS)}")
    if preconditioner is not None and (method not in _NEWTON or functional.bounds() is not None):
        raise OptionError(
            f"a preconditioner serves {' and '.join(_NEWTON)} without bounds, not this problem by {method}"
        )
    started = time.perf_counter()
    scaled = _ScaledFunctional(functional)
    inner = None if preconditioner is None else _ScaledPreconditioner(preconditioner, scaled.scale)
    tao = PETSc.TAO().create(functional.comm)
    history: list[float] = []

    def record(tao: PETSc.TAO) -> None:
        iteration, _, norm = tao.getSolutionStatus()[:3]
        history.append(float(norm))
        if monitor is not None:
            with scaled.callbacks.guard():
                monitor(int(iteration), float(norm))
            if scaled.callbacks.any_stored():
                tao.setConvergedReason(PETSc.TAO.ConvergedReason.DIVERGED_USER)

    try:
        tao.setOptionsPrefix("reduced_")
        functional.get_control(scaled.control)
        _project(functional, scaled.control)
        start = scaled.to_scaled(scaled.control)
        tao.setObjectiveGradient(scaled.evaluate, start.duplicate())
        if method in _NEWTON:
            tao.setHessian(scaled.move_hessian, scaled.hessian)
        bounds = functional.bounds()
        if bounds is not None:
            tao.setVariableBounds([scaled.to_scaled(bound) for bound in bounds])
        tolerance = rtol * _reference(functional, scaled)
        tao.setMonitor(record)
        defaults: dict[str, object] = {"tao_type": method, "tao_max_it": max_iterations, "tao_max_funcs": 100_000}
        defaults |= {"tao_gatol": tolerance, "tao_grtol": 0.0, "tao_gttol": 0.0, **_QUASI_NEWTON, **_NEWTON_OPTIONS}
        with forms.default_options("reduced_", defaults):
            tao.setFromOptions()
            if inner is not None:
                tao.getKSP().getPC().setType("python")
                tao.getKSP().getPC().setPythonContext(inner)
            try:
                tao.solve(start)
            except PETSc.Error:
                scaled.callbacks.raise_stored()
                raise
        scaled.callbacks.raise_stored()
        scaled.to_control(start, scaled.control)
        functional.set_control(scaled.control)
        return _report(tao, scaled, history, tolerance, started)
    finally:
        tao.destroy()
        if inner is not None:
            inner.release()
        scaled.release()


def _project(functional: Functional, control: PETSc.Vec) -> None:
    bounds = functional.bounds()
    if bounds is not None:
        control.pointwiseMax(control, bounds[0])
        control.pointwiseMin(control, bounds[1])


def _reference(functional: Functional, scaled: _ScaledFunctional) -> float:
    """Return the norm of the gradient at zero control (moved to the bounds), whatever the initial guess. Collective."""
    zero = functional.create_vector()
    _project(functional, zero)
    gradient = functional.create_vector()
    functional.derivative(zero, gradient)
    gradient.pointwiseDivide(gradient, scaled.scale)
    return float(gradient.norm())


def _report(
    tao: PETSc.TAO, scaled: _ScaledFunctional, history: list[float], tolerance: float, started: float
) -> SolveReport:
    """Return the report; raise if the norm of the projected gradient stayed above the tolerance. Collective: no."""
    iterations, objective, norm = tao.getSolutionStatus()[:3]
    reason = int(tao.getConvergedReason())
    # A line search that fails once rounding hides the decrease has not failed if the tolerance is reached.
    converged = math.isfinite(norm) and norm <= max(tolerance, tao.getTolerances()[0])
    kind = tao.getType()
    report = SolveReport(
        method=f"TAO {kind} in the metric of the control",
        why=f"asked for: {METHODS.get(kind, 'set by reduced_tao_type')}",
        converged=converged,
        reason=reason,
        iterations=int(iterations),
        residuals=tuple(history),
        seconds={"total": time.perf_counter() - started},
        quantities={
            "unknowns": scaled.control.getSize(),
            "ranks": scaled.control.comm.size,
            "objective": float(objective),
            "gradients": scaled.evaluations,
            "Hessian actions": scaled.hessian_actions,
        },
    )
    if not converged:
        advice = TAO_ADVICE.get(reason, "see reduced_tao_converged_reason")
        raise ConvergenceError(
            f"TAO {kind} stopped at a projected gradient of {norm:.3e}, above the tolerance {tolerance:.3e} "
            f"(reason {reason}): {advice}; or ask for method 'bntr', which uses the Hessian",
            report,
        )
    return report
