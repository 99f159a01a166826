"""Optimisers in the space of the controls, counted alike: linear solves with the state operator or its transpose.

Both start at the problem's present control with the state solved for it, and stop when the norm of the reduced
gradient, dual to the controls' inner product, has fallen to ``rtol`` of what it was there.
"""

import dataclasses
import math
import time

from petsc4py import PETSc

import numpy as np

from pdeopt.bench.harness import Row
from pdeopt.control import ControlProblem, minimise
from pdeopt.control.reduced import ReducedFunctional
from pdeopt.fem import forms
from pdeopt.optimise.eigenpair_rules import EigenpairRule
from pdeopt.optimise.low_rank import LowRankPreconditioner, Metric, prior_matrix
from pdeopt.report import ConvergenceError

_ARMIJO, _HALVINGS = 1e-4, 30
_ROUNDING = 1e-13  # of the objective: a smaller increase is none
_LARGEST_FORCING = 0.5
# The best of 0.3, 0.1, 0.03, 0.01 and PETSc's own 1e-5 on coefficient inversion and Navier-Stokes control, where it
# takes a half to a fifth of the solves of the last.
_TRUST_REGION_FORCING = 0.1


@dataclasses.dataclass
class _Judge:
    """The norm in which both are judged, and the gradient at the start; its solves are counted for neither."""

    functional: ReducedFunctional
    metric: Metric

    def norm(self, covector: PETSc.Vec) -> float:
        representative = covector.duplicate()
        self.metric.solve_vector(covector, representative)
        value = math.sqrt(max(covector.dot(representative), 0.0))
        representative.destroy()
        return value

    def norm_at(self, control: PETSc.Vec) -> float:
        covector = self.functional.create_vector()
        self.functional.derivative(control, covector)
        value = self.norm(covector)
        covector.destroy()
        return value


def _prepare(problem: ControlProblem) -> tuple[ReducedFunctional, PETSc.Mat, Metric, PETSc.Vec]:
    functional = problem.reduced_functional()
    matrix = prior_matrix(problem.system)
    metric = Metric(matrix, problem.state.function_space.mesh.topology.dim)
    control = functional.create_vector()
    functional.get_control(control)
    return functional, matrix, metric, control


def _row(method: str, solves: int, iterations: int, relative: float, rtol: float, value: float, started: float) -> Row:
    return {
        "method": method,
        "PDE solves": solves,
        "iterations": iterations,
        "relative gradient": relative,
        "converged": relative <= 1.001 * rtol,
        "objective": value,
        "seconds": time.perf_counter() - started,
    }


def inexact_newton_cg(
    problem: ControlProblem,
    *,
    rtol: float = 1e-8,
    gauss_newton_steps: int = 5,
    max_iterations: int = 100,
    renewal: EigenpairRule | None = None,
) -> Row:
    """Minimise by Newton's method with CG preconditioned by the prior, as hIPPYlib does; the optimum is set.

    The forcing term is min(1/2, sqrt(|g| / |g_0|)), CG stops at negative curvature (Steihaug), and the step is halved
    until Armijo's condition holds.

    Parameters
    ----------
    problem
        Without bounds and extra constraints.
    rtol
        Relative tolerance for the gradient.
    gauss_newton_steps
        First steps whose Hessian lacks the second derivatives of the state equation.
    max_iterations
        Of Newton.
    renewal
        Eigenpairs that improve on the prior as preconditioner, see `pdeopt.optimise.eigenpair_rules`.

    Returns
    -------
    Row
        With "PDE solves", "iterations", "CG iterations", "relative gradient", "converged", "objective", "seconds".

    Collective: yes.

    References
    ----------
    Villa, Petra and Ghattas, ACM TOMS 47 (2021), section 3.3.
    """
    started = time.perf_counter()
    functional, matrix, metric, control = _prepare(problem)
    gradient, step, trial = (functional.create_vector() for _ in range(3))
    judge, preconditioner = _Judge(functional, metric), LowRankPreconditioner(metric)
    value, first, relative, inner, last, iteration = functional.value(control), 0.0, 1.0, 0, 0, 0
    while True:
        functional.derivative(control, gradient)
        norm = judge.norm(gradient)
        first = first or norm
        relative = norm / first if first > 0.0 else 0.0
        if relative <= rtol or iteration == max_iterations:
            break
        functional.use_gauss_newton(iteration < gauss_newton_steps)
        pairs = None if renewal is None else renewal(functional.hessian(control), metric, last)
        preconditioner.pairs = pairs or preconditioner.pairs
        forcing = min(_LARGEST_FORCING, math.sqrt(relative))
        last = _steihaug(functional, preconditioner, judge, control, gradient, step, forcing)
        inner += last
        slope, length = gradient.dot(step), 1.0
        for _ in range(_HALVINGS):
            trial.waxpy(length, step, control)
            try:
                candidate = functional.value(trial)
            except ConvergenceError:  # the state equation has no solution that Newton's method finds there
                candidate = math.inf
            if candidate <= value + _ARMIJO * length * slope + _ROUNDING * abs(value):
                break
            length *= 0.5
        else:
            break
        value = candidate
        trial.copy(control)
        iteration += 1
    solves = functional.solves
    functional.set_control(control)
    for item in (gradient, step, trial, control, metric, functional, matrix):
        (item.release if isinstance(item, Metric) else item.destroy)()
    row = _row("inexact Newton-CG", solves, iteration, relative, rtol, value, started)
    return row | {"CG iterations": inner}


def _steihaug(
    functional: ReducedFunctional,
    preconditioner: LowRankPreconditioner,
    judge: _Judge,
    control: PETSc.Vec,
    gradient: PETSc.Vec,
    out: PETSc.Vec,
    rtol: float,
) -> int:
    """Set an inexact Newton step, its residual judged in the prior's norm, and return CG's iterations. Collective."""
    residual, preconditioned, image = (gradient.duplicate() for _ in range(3))
    gradient.copy(residual)
    residual.scale(-1.0)
    preconditioner.apply(None, residual, preconditioned)
    direction = preconditioned.copy()
    out.set(0.0)
    square, start = residual.dot(preconditioned), judge.norm(residual)
    iterations, limit = 0, max(20, 2 * residual.getSize())
    while iterations < limit:
        functional.hessian_action(control, direction, image)
        iterations += 1
        curvature = direction.dot(image)
        if curvature <= 0.0:
            if iterations == 1:
                direction.copy(out)
            break
        length = square / curvature
        out.axpy(length, direction)
        residual.axpy(-length, image)
        preconditioner.apply(None, residual, preconditioned)
        previous, square = square, residual.dot(preconditioned)
        if (judge.norm(residual) if preconditioner.rank else math.sqrt(max(square, 0.0))) <= rtol * start:
            break
        direction.aypx(square / previous, preconditioned)
    for item in (residual, preconditioned, image, direction):
        item.destroy()
    return iterations


def bntr(problem: ControlProblem, *, rtol: float = 1e-8, max_iterations: int = 200) -> Row:
    """Minimise by TAO's Newton method with trust region, its CG preconditioned by the prior; the optimum is set.

    PETSc options under ``reduced_`` override the forcing term and all else.

    Parameters
    ----------
    problem
        Without bounds and extra constraints.
    rtol
        Relative tolerance for the gradient; TAO's own measure is the lumped inner product, so it is asked for as much
        less as the two norms differ at the start.
    max_iterations
        Of TAO.

    Returns
    -------
    Row
        As `inexact_newton_cg` returns it, without iterations of CG.

    Collective: yes.
    """
    started = time.perf_counter()
    functional, matrix, metric, control = _prepare(problem)
    judge = _Judge(functional, metric)
    first = judge.norm_at(control)
    iterations, failed = 0, False
    try:
        with forms.default_options("reduced_", {"tao_bnk_ksp_rtol": _TRUST_REGION_FORCING}):
            report = minimise(
                functional, "bntr", rtol=rtol * _ratio(functional, control), max_iterations=max_iterations,
                preconditioner=LowRankPreconditioner(metric),
            )  # fmt: skip
        iterations = report.iterations
    except ConvergenceError as error:
        failed = True
        iterations = error.report.iterations if error.report is not None else 0
    solves = functional.solves
    functional.get_control(control)
    relative, value = math.nan, math.nan
    try:
        relative = judge.norm_at(control) / first if first > 0.0 else 0.0
        value = functional.value(control)
    except ConvergenceError:
        failed = True
    for item in (control, metric, functional, matrix):
        (item.release if isinstance(item, Metric) else item.destroy)()
    row = _row("TAO BNTR", solves, iterations, relative, rtol, value, started)
    return row | {"converged": bool(row["converged"]) and not (failed and math.isnan(relative))}


def _ratio(functional: ReducedFunctional, control: PETSc.Vec) -> float:
    """Return |g(start)| / |g(0)| in TAO's norm: `minimise` refers its tolerance to zero control. Collective: yes."""
    weights = functional.inner_product().getDiagonal()
    weights.sqrtabs()
    norms = []
    zero, gradient = functional.create_vector(), functional.create_vector()
    for point in (zero, control):
        functional.derivative(point, gradient)
        gradient.pointwiseDivide(gradient, weights)
        norms.append(float(gradient.norm()))
    for item in (zero, gradient, weights):
        item.destroy()
    return float(np.clip(norms[1] / norms[0], 1e-8, 1.0)) if norms[0] > 0.0 else 1.0
