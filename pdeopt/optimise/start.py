"""Where the optimisers begin with a control problem."""

from mpi4py import MPI

import numpy as np

from pdeopt.control import ControlProblem
from pdeopt.report import ConvergenceError

_PUSH = 1e-2  # share of the distance between bounds that the first controls keep, at most


def solve_state_first(problem: ControlProblem) -> bool:
    """Solve state and adjoint equation for the first controls where that helps; say whether it was done.

    It helps with bounds on the controls or extra constraints, under a nonlinear problem: the second derivatives of the
    Lagrangian at zero state and adjoint, from which scales and first steps are taken, say nothing there. A state that
    is not zero is a guess and is kept, one with bounds is better left within them.

    Collective: yes.
    """
    system = problem.system
    bounds = problem.bounds
    bounded = any(bool(np.isfinite([b.lower, b.upper]).any()) for b in bounds)
    guessed = bool(np.any(problem.state.x.array))
    bounded, guessed = (system.comm.allreduce(flag, op=MPI.LOR) for flag in (bounded, guessed))
    limited = bounded or bool(system.lagrangian.constraints)
    if system.linear_quadratic or guessed or not limited or getattr(problem, "state_bounds", None) is not None:
        return False
    functional = problem.reduced_functional()
    control, derivative = functional.create_vector(), functional.create_vector()
    try:
        functional.get_control(control)
        pair = functional.bounds()
        if pair is not None:
            control.array[:] = _inside(control.array_r, pair[0].array_r, pair[1].array_r)
            for vector in pair:
                vector.destroy()
        functional.value(control)
        functional.derivative(control, derivative)
    except ConvergenceError:
        for function in (problem.state, problem.adjoint):
            function.x.array[:] = 0.0
        return False
    finally:
        for vector in (control, derivative):
            vector.destroy()
        functional.destroy()
    return True


def _inside(values: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        margin = np.minimum(_PUSH, _PUSH * (upper - lower))
    low = np.where(np.isfinite(lower), lower + margin, lower)
    high = np.where(np.isfinite(upper), upper - margin, upper)
    return np.clip(values, low, high)
