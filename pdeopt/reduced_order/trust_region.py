"""Minimise an objective of the controls through a reduced model that full solves keep exact where they were made.

At the centre u_k of the trust region the model has the value and the gradient of the full problem (`ReducedControl`). A
minimum v of J_r within |v - u_k| <= radius costs no full solve. There the full equations are solved: state and adjoint
extend the model, and the value decides as usual, by J(u_k) - J(v) over J_r(u_k) - J_r(v), whether v is the next centre
and how large the region is. The full gradient says when to stop, so the optimum is one of the full problem, whatever
the model was.

This is the trust region of Qian, Grepl, Veroy and Willcox (SIAM J. Sci. Comput. 39 (2017) S434-S460), with a full solve
at every centre in place of error bounds.
"""

import math
import time
from collections.abc import Callable

from petsc4py import PETSc

from pdeopt.fem import forms
from pdeopt.reduced_order.control_model import ReducedControl
from pdeopt.report import ConvergenceError, OptionError, SolveReport

_ACCEPT, _SHRINK, _GROW = 1e-4, 0.25, 0.75
_SLACK = 1e-11  # of the objective: smaller decreases are rounding, and the gradient decides
_INNER_STEPS = 30
_INNER_RTOL = 0.1  # of the model's gradient, relative to the tolerance
_STEIHAUG = {
    "ksp_type": "stcg",
    "ksp_cg_dtype": "preconditioned",  # the radius is one in the control's metric
    "ksp_rtol": 1e-2,
    "ksp_max_it": 200,
    "pc_type": "cholesky",
    "pc_factor_mat_solver_type": "mumps",
}
_SHORTEST = 1e-8  # of the first reach: a shorter inner step ends the search
_FIRST_REACH = 100.0  # over the length of a step of steepest descent, where no radius limits the first steps


def minimise_by_model(
    model: ReducedControl,
    *,
    rtol: float = 1e-8,
    max_iterations: int = 50,
    monitor: Callable[[int, float], None] | None = None,
) -> SolveReport:
    """Find a minimum from the present control, which is set with its full state and adjoint. Collective: yes.

    Parameters
    ----------
    model
        The model, empty or not; it grows by each full solve.
    rtol
        Tolerance for the norm of the full gradient in the control space, relative to the first one.
    max_iterations
        Full solves, after the first.
    monitor
        Called on every rank with (full solves after the first, gradient norm).

    Raises
    ------
    ConvergenceError
        If the tolerance is not reached; the report of what was done is attached.
    OptionError
        If the controls have bounds.
    """
    if model.bounds() is not None:
        raise OptionError("the trust region knows no bounds: hand the model to pdeopt.control.minimise")
    started = time.perf_counter()
    search = _InnerSearch(model)
    centre = model.create_vector()
    model.get_control(centre)
    value, gradient = model.enrich(centre)
    history = [model.certificate.dual_norm(gradient)]
    tolerance, radius, iteration = rtol * history[0], math.inf, 0
    try:
        while not history[-1] <= tolerance and iteration < max_iterations and radius > 0.0:
            if monitor is not None:
                monitor(iteration, history[-1])
            iteration += 1
            trial, predicted = search.minimise(centre, value, radius, _INNER_RTOL * tolerance)
            length = search.distance(trial, centre)
            try:
                found, derivative = model.enrich(trial)
            except ConvergenceError:  # no state there: a shorter step
                radius = _SHRINK * length
                continue
            norm = model.certificate.dual_norm(derivative)
            ratio = (value - found) / predicted if predicted > 0.0 else -1.0
            if abs(value - found) <= _SLACK * abs(value):
                ratio = 1.0 if norm < history[-1] else -1.0
            if ratio > _ACCEPT:
                centre, value, gradient = trial, found, derivative
                history.append(norm)
            if not ratio >= _SHRINK:
                radius = _SHRINK * length
            elif ratio > _GROW:
                radius = max(radius, 2.0 * length)
        converged = history[-1] <= tolerance
        model.full.set_control(centre)
    finally:
        search.release()
    report = SolveReport(
        method="trust region on a reduced model",
        why="asked for",
        converged=converged,
        reason=2 if converged else -2,
        iterations=iteration,
        residuals=tuple(history),
        seconds={"total": time.perf_counter() - started},
        quantities={
            "objective": value,
            "modes": model.size,
            "full state solves": model.full.state_solves,
            "full adjoint solves": model.full.adjoint_solves,
        },
    )
    if not converged:
        raise ConvergenceError(
            f"the trust region stopped at a gradient of {history[-1]:.3e}, above the tolerance {tolerance:.3e}, after "
            f"{iteration} full solves: raise max_iterations, or use pdeopt.control.minimise",
            report,
        )
    return report


class _InnerSearch:
    """Newton's method on J_r within a ball, its steps by Steihaug's conjugate gradients in the control's metric."""

    def __init__(self, model: ReducedControl) -> None:
        self._model = model
        self._metric = model.inner_product()
        self._gradient, self._step, self._work = (model.create_vector() for _ in range(3))
        self._point = self._gradient
        local, size = self._gradient.getLocalSize(), self._gradient.getSize()
        self._hessian = PETSc.Mat().createPython(((local, size), (local, size)), context=self, comm=model.comm)
        self._hessian.setUp()
        self._ksp = PETSc.KSP().create(model.comm)
        self._ksp.setOptionsPrefix("reduced_model_")
        self._ksp.setOperators(self._hessian, self._metric)
        with forms.default_options("reduced_model_", _STEIHAUG):
            self._ksp.setFromOptions()
            self._ksp.setUp()

    def mult(self, matrix: PETSc.Mat, direction: PETSc.Vec, out: PETSc.Vec) -> None:
        """Apply J_r'' at the point of the search. Collective: yes."""
        self._model.hessian_action(self._point, direction, out)

    def distance(self, left: PETSc.Vec, right: PETSc.Vec) -> float:
        """Return the norm of a difference. Collective: yes."""
        difference = left.copy()
        difference.axpy(-1.0, right)
        self._metric.mult(difference, self._work)
        square = float(difference.dot(self._work))
        difference.destroy()
        return math.sqrt(max(square, 0.0))

    def minimise(self, centre: PETSc.Vec, value: float, radius: float, tolerance: float) -> tuple[PETSc.Vec, float]:
        """Return a point within the ball where J_r is least, or nearly, and by how much. Collective: yes.

        Parameters
        ----------
        centre, value, radius
            The ball, and J_r at its centre.
        tolerance
            Norm of the gradient of J_r that ends the search.
        """
        model, best = self._model, value
        self._point = centre.copy()
        reach = radius
        for _ in range(_INNER_STEPS):
            model.derivative(self._point, self._gradient)
            if model.certificate.dual_norm(self._gradient) <= tolerance:
                break
            if not math.isfinite(reach):
                reach = _FIRST_REACH * self._steepest_descent_length()
            self._gradient.scale(-1.0)
            longest = reach
            while True:
                trial = self._trial(centre, radius, reach)
                length = self.distance(trial, self._point)
                try:
                    found = model.value(trial)
                except ConvergenceError:
                    found = math.inf
                if found < best or length <= _SHORTEST * longest:
                    break
                reach = _SHRINK * length
            if not found < best:
                break
            gain, best = best - found, found
            self._point = trial
            if gain <= _SLACK * abs(best) or self.distance(trial, centre) >= (1.0 - 1e-9) * radius:
                break
            reach = max(reach, 4.0 * length)
        return self._point, value - best

    def _steepest_descent_length(self) -> float:
        """Return the length of the step along the gradient that the curvature there, or its size, suggests."""
        descent = self._gradient.duplicate()
        self._ksp.getPC().apply(self._gradient, descent)
        self.mult(self._hessian, descent, self._work)
        square, curvature = float(self._gradient.dot(descent)), abs(float(descent.dot(self._work)))
        descent.destroy()
        return square**1.5 / curvature if curvature > 0.0 else math.sqrt(square)

    def _trial(self, centre: PETSc.Vec, radius: float, reach: float) -> PETSc.Vec:
        """Return the point plus a step no longer than ``reach``, brought back into the ball. Collective: yes."""
        options = PETSc.Options()
        options["reduced_model_ksp_cg_radius"] = reach
        self._ksp.setFromOptions()
        options.delValue("reduced_model_ksp_cg_radius")
        self._ksp.solve(self._gradient, self._step)
        trial = self._point.copy()
        trial.axpy(1.0, self._step)
        away = self.distance(trial, centre)
        if away > radius:
            trial.axpby(1.0 - radius / away, radius / away, centre)
        return trial

    def release(self) -> None:
        """Free the PETSc objects. Collective: yes."""
        for item in (self._ksp, self._hessian, self._gradient, self._step, self._work):
            item.destroy()
