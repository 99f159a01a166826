"""Restoration of feasibility: minimise |c(x)|^2 / 2 within the bounds by regularised Gauss-Newton steps.

A step solves [[s M + D, G'], [G, -W]] (d, q) = (-b, -c), which minimises |c + G d|^2 / 2 + d'(s M + D) d / 2 + b'd,
with b and D gradient and primal-dual Hessian of the barrier; s is Levenberg's and Marquardt's.
"""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from pdeopt.optimise.barrier import BoundMultipliers, Bounds
from pdeopt.optimise.program import Pair, Program
from pdeopt.optimise.regularisation import Counters, Failure
from pdeopt.report import ConvergenceError

Array = npt.NDArray[np.float64]
_STATIONARY = 1e-5  # relative to |c| and its scale: the least that can be reached
_LIMIT = 200
_FRACTION = 0.99


def restore(
    program: Program,
    bounds: Bounds,
    start: Pair,
    barrier: float,
    enough: Callable[[float, Array, float], bool],
    counters: Counters,
) -> Pair:
    """Return a point, multipliers p as at the start, that is near enough to the constraints; the program stands there.

    Parameters
    ----------
    start
        Where to begin; strictly within the bounds.
    barrier
        First barrier parameter; it falls with every step.
    enough
        Says of |c|, x and f(x) whether to stop.

    Raises
    ------
    Failure
        If |c| has a stationary point with c != 0, or no step reduces it.

    Collective: yes.
    """
    point, covector, representative = start.copy(), program.create(), program.create()
    program.move(point)
    infeasibility, gradient = _constraint_gradient(program, point, covector, representative)
    first = infeasibility
    barrier = min(barrier, 0.1 * infeasibility**2 / max(bounds.measure, 1.0))
    x = np.array(point.primal.array_r)
    multipliers = bounds.start(x, barrier, math.inf)
    shift = 1e-4 * min(1.0, infeasibility)
    for _ in range(_LIMIT):
        stationarity = bounds.stationarity(x, np.where(bounds.fixed, 0.0, gradient))
        if stationarity <= _STATIONARY * infeasibility * min(1.0, infeasibility) and infeasibility > 0.0:
            raise Failure(
                f"the constraints ({infeasibility:.2e}) cannot be reduced from here: the problem is infeasible, or has "
                "a local minimum of the constraints; start elsewhere",
                -8,
            )
        step = _gauss_newton(program, bounds, x, multipliers, covector, barrier, shift)
        counters.setups += 1
        moved = None
        if step is not None:
            slope = bounds.sum(float((gradient + barrier * bounds.gradient(x)) @ step))
            value = 0.5 * infeasibility**2 + barrier * bounds.value(x)
            length = bounds.longest(x, step, _FRACTION)
            trial = point.copy()
            trial.primal.array[:] = x + length * step
            program.move(trial)
            counters.evaluations += 1
            trial_infeasibility, trial_gradient = _constraint_gradient(program, trial, covector, representative)
            new_x = np.array(trial.primal.array_r)
            objective = program.objective()
            trial_value = 0.5 * trial_infeasibility**2 + barrier * bounds.value(new_x)
            if math.isfinite(trial_value) and trial_value <= value + 1e-4 * length * slope + 1e-14 * abs(value):
                moved = trial
            else:
                trial.destroy()
        if moved is None:
            shift = 8.0 * max(shift, 1e-10)
            program.move(point)
            infeasibility, gradient = _constraint_gradient(program, point, covector, representative)
            if shift > 1e12 * max(1.0, first):
                raise Failure("no step reduces the constraints: look for NaN near the point, or start elsewhere", -6)
            continue
        change = bounds.step(x, multipliers, new_x - x, (barrier, barrier))
        dual_length = bounds.longest_dual(multipliers, change, _FRACTION)
        multipliers = bounds.move(new_x, multipliers, change, dual_length, barrier)
        point.destroy()
        point, x, infeasibility, gradient = moved, new_x, trial_infeasibility, trial_gradient
        shift = max(0.3 * shift, 1e-12)
        barrier = min(0.5 * barrier, 0.1 * infeasibility**2 / max(bounds.measure, 1.0))
        if math.isfinite(objective) and enough(infeasibility, x, objective):
            covector.destroy()
            representative.destroy()
            return point
        if infeasibility <= 1e-14 * max(1.0, first):
            raise Failure("feasible points near by are no better than those already met: start elsewhere", -6)
    raise Failure(f"{_LIMIT} steps left constraints of {infeasibility:.2e}: start elsewhere", -6)


def _constraint_gradient(program: Program, point: Pair, covector: Pair, representative: Pair) -> tuple[float, Array]:
    """Return |c| and the covector G' W^-1 c where the program stands; ``covector.dual`` becomes c. Collective: yes."""
    program.residual(covector)
    covector.primal.set(0.0)
    program.riesz(covector, representative)
    square = float(covector.dual.dot(representative.dual))
    work = point.primal.duplicate()
    program.jacobian_mult_transpose(representative.dual, work)
    gradient = np.array(work.array_r)
    work.destroy()
    return math.sqrt(max(square, 0.0)) if math.isfinite(square) else math.inf, gradient


def _gauss_newton(
    program: Program,
    bounds: Bounds,
    x: Array,
    multipliers: BoundMultipliers,
    covector: Pair,
    barrier: float,
    shift: float,
) -> Array | None:
    """Return the step, None if the system could not be solved. Collective: yes."""
    right, out = program.create(), program.create()
    right.primal.array[:] = np.where(bounds.fixed, 0.0, -barrier * bounds.gradient(x))
    covector.dual.copy(right.dual)
    right.dual.scale(-1.0)
    diagonal = right.primal.duplicate()
    diagonal.array[:] = bounds.diagonal(x, multipliers)
    kkt = program.kkt_solver(shift, 1.0, diagonal, bounds.fixed if bounds.any_fixed else None, curvature=0.0)
    try:
        kkt.solve(right, out, 1e-8)
        step = np.array(out.primal.array_r)
    except ConvergenceError:
        step = None
    finally:
        kkt.destroy()
        for item in (right, out):
            item.destroy()
        diagonal.destroy()
    if step is not None and not math.isfinite(bounds.sum(float(step @ step))):
        step = None
    return step
