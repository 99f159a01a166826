"""Newton's method for a reduced system: dense, replicated, alike on all ranks."""

import contextlib
import dataclasses
import math
import time

import numpy as np

from pdeopt.parallel import collective_errors
from pdeopt.reduced_order.inner_product import Array
from pdeopt.reduced_order.system import ReducedSystem
from pdeopt.report import ConvergenceError, InputError

_ARMIJO, _SHORTEST = 1e-4, 1e-3
# A step below this share of the coordinates squares to rounding: after it the Jacobian will not be needed.
_LAST_STEP = 1e-5


@dataclasses.dataclass(frozen=True)
class NewtonSettings:
    """When the reduced Newton method stops.

    Parameters
    ----------
    rtol
        Residual norm relative to |r'(a) a|, which measures the forces that balance, so that a good start does not
        tighten the tolerance.
    atol
        Residual norm, in units of the residual.
    max_iterations
        Steps.

    Raises
    ------
    InputError
        If a number is out of its range.
    """

    rtol: float = 1e-10
    atol: float = 1e-14
    max_iterations: int = 25

    def __post_init__(self) -> None:
        for name in ("rtol", "atol"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise InputError(f"{name} is {getattr(self, name)!r}: choose it between 0 and 1")
        if self.max_iterations < 1:
            raise InputError(f"max_iterations is {self.max_iterations}: allow one step at least")


@dataclasses.dataclass(frozen=True, eq=False)
class NewtonResult:
    """What the reduced Newton method found.

    Parameters
    ----------
    coordinates
        Shape (r,), the same on all ranks; the best that was reached where the method did not converge.
    converged
        Whether the tolerance was met.
    residuals
        Residual norm at the start and after each step.
    why
        Why it stopped, where it did not converge.
    seconds
        Wall time [s].
    """

    coordinates: Array
    converged: bool
    residuals: tuple[float, ...]
    why: str
    seconds: float

    @property
    def iterations(self) -> int:
        """Number of steps."""
        return len(self.residuals) - 1


def solve_reduced(system: ReducedSystem, start: Array, settings: NewtonSettings | None = None) -> NewtonResult:
    """Solve r(a) = 0 by Newton's method with backtracking on |r|.

    Residual and Jacobian come bit for bit alike from the all-reduce; start and step are rank 0's, since LAPACK may
    round in another way on another processor. So all ranks decide alike.

    Parameters
    ----------
    system
        The reduced system, with its parameters taken over (`ReducedSystem.update`).
    start
        First coordinates, shape (r,).
    settings
        Tolerances.

    Raises
    ------
    InputError
        If the start has another shape, or NaN or Inf.

    Collective: yes.
    """
    settings = settings or NewtonSettings()
    started = time.perf_counter()
    with collective_errors(system.comm):
        coordinates = check_coordinates(start, system.size, "start").copy()
    if system.comm.size > 1:
        system.comm.Bcast(coordinates)
    residual, jacobian = system.evaluate(coordinates)
    norms, why = [_norm(residual)], ""
    while not why:
        if jacobian is None:
            residual, jacobian = system.evaluate(coordinates)
        assert jacobian is not None
        target = max(settings.atol, settings.rtol * _norm(jacobian @ coordinates))
        if norms[-1] <= target < math.inf:
            break
        if len(norms) > settings.max_iterations:
            why = f"{settings.max_iterations} steps were not enough"
            break
        # A Jacobian with NaN or Inf makes the target infinite, which every residual would meet.
        step = _step(system, jacobian, residual) if target < math.inf else None
        if step is None:
            why = "the residual or its Jacobian has NaN or Inf, or is singular"
            break
        last = _norm(step) <= _LAST_STEP * _norm(coordinates)
        length = 1.0
        while True:
            try:
                found, matrix = system.evaluate(coordinates + length * step, jacobian=not last)
                norm = _norm(found)
            except ConvergenceError:  # a material law that has no state so far away
                norm = math.inf
            if norm <= max((1.0 - _ARMIJO * length) * norms[-1], target):
                break
            length *= 0.5
            if length < _SHORTEST:
                why = "no step along the Newton direction reduces the residual"
                break
        if not why:
            coordinates, residual, jacobian = coordinates + length * step, found, matrix
            norms.append(norm)
            if norm <= target:
                break
    return NewtonResult(coordinates, not why, tuple(norms), why, time.perf_counter() - started)


def check_coordinates(given: Array, size: int, name: str) -> Array:
    """Return coordinates as an array of floats, or raise an error that names them. Collective: no."""
    coordinates = np.asarray(given, dtype=np.float64)
    if coordinates.shape != (size,):
        raise InputError(f"{name} has the shape {coordinates.shape}, and the reduced system has {size} coordinates")
    if not np.isfinite(coordinates).all():
        raise InputError(f"{name} has NaN or Inf: check the parameters that it comes from")
    return coordinates


def _norm(vector: Array) -> float:
    """Return the Euclidean norm, infinite for NaN, without the detour of `numpy.linalg.norm`."""
    square = float(vector @ vector)
    return math.sqrt(square) if square >= 0.0 else math.inf


def _step(system: ReducedSystem, jacobian: Array, residual: Array) -> Array | None:
    """Return the Newton step of rank 0, or None where there is none. Collective: yes."""
    step = np.full(system.size, np.nan)
    if system.comm.rank == 0:
        with contextlib.suppress(np.linalg.LinAlgError):
            step = np.linalg.solve(jacobian, -residual)
    if system.comm.size > 1:
        system.comm.Bcast(step)
    return step if np.isfinite(step).all() else None
