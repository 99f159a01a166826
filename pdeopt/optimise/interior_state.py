"""The interior point method's numbers; a point with its multipliers, and everything evaluated there."""

import dataclasses
import math

import numpy as np

from pdeopt.optimise.barrier import BoundMultipliers, Bounds
from pdeopt.optimise.filter import Measures
from pdeopt.optimise.program import Pair, Program
from pdeopt.report import ConvergenceError, InputError

LARGEST_MULTIPLIER = 1e3


@dataclasses.dataclass(frozen=True)
class InteriorPointSettings:
    """The numbers of the method.

    Parameters
    ----------
    barrier
        First mu where it falls monotonically; relative to the first gradient's norm where that is above 100.
    adaptive
        Whether mu may follow Mehrotra's prediction.
    linear_decrease, superlinear_decrease
        mu becomes the smaller of linear_decrease * mu and mu^superlinear_decrease.
    boundary
        Least share of the way to the boundary that a step may go, in (0, 1).
    accuracy
        Relative residual of the KKT solves, where they are iterative.
    even_multipliers
        Start from the same multiplier at every bound, of the norm of the Lagrangian's gradient, instead of mu over the
        slacks: for coordinates that are values of functions, all of one kind.

    Raises
    ------
    InputError
        If a number is out of its range.
    """

    barrier: float = 0.1
    adaptive: bool = True
    linear_decrease: float = 0.2
    superlinear_decrease: float = 1.5
    boundary: float = 0.99
    accuracy: float = 1e-6
    even_multipliers: bool = False

    def __post_init__(self) -> None:
        if not self.barrier > 0.0:
            raise InputError(f"barrier is {self.barrier:g}: it must be positive")
        for name in ("linear_decrease", "boundary", "accuracy"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise InputError(f"{name} is {getattr(self, name):g}: it must lie between 0 and 1")
        if not 1.0 < self.superlinear_decrease < 2.0:
            raise InputError(f"superlinear_decrease is {self.superlinear_decrease:g}: it must lie between 1 and 2")


@dataclasses.dataclass(frozen=True)
class Norms:
    """Riesz norms of L_x + w (z_upper - z_lower) and of c, and the weighted norm of slack z."""

    dual_infeasibility: float
    feasibility: float
    complementarity: float

    @property
    def largest(self) -> float:
        """The largest of the three."""
        return max(self.dual_infeasibility, self.feasibility, self.complementarity)


class State:
    """A point with its bound multipliers and everything evaluated there. The program stands at it when it is made."""

    def __init__(self, program: Program, bounds: Bounds, point: Pair, multipliers: BoundMultipliers) -> None:
        program.move(point)
        self.point, self.multipliers = point, multipliers
        self.objective = program.objective()
        self.residual = program.create()
        program.residual(self.residual)
        covector, representative = self.residual.copy(), program.create()
        covector.primal.array[:] += bounds.covector(multipliers)
        covector.primal.array[bounds.fixed] = 0.0
        program.riesz(covector, representative)
        squares = [float(getattr(covector, part).dot(getattr(representative, part))) for part in ("primal", "dual")]
        gradient, infeasibility = (
            math.sqrt(max(square, 0.0)) if math.isfinite(square) else math.inf for square in squares
        )
        covector.destroy()
        representative.destroy()
        self.x = np.array(point.primal.array_r)
        self.norms = Norms(gradient, infeasibility, bounds.complementarity(self.x, multipliers))
        self._barrier_value = bounds.value(self.x)

    @property
    def finite(self) -> bool:
        """Whether objective and norms are finite."""
        return math.isfinite(self.objective) and all(math.isfinite(value) for value in dataclasses.astuple(self.norms))

    def measures(self, barrier: float) -> Measures:
        """Return what the filter compares."""
        return Measures(self.norms.feasibility, self.objective + barrier * self._barrier_value)

    def subproblem_norm(self, bounds: Bounds, barrier: float) -> float:
        """Return the optimality residual of the barrier problem. Collective: yes."""
        complementarity = bounds.complementarity(self.x, self.multipliers, barrier)
        return max(self.norms.dual_infeasibility, self.norms.feasibility, complementarity)

    def destroy(self) -> None:
        """Free the vectors. Collective: yes."""
        self.residual.destroy()
        self.point.destroy()


def fit_multipliers(
    program: Program, bounds: Bounds, state: State, point: Pair, multipliers: BoundMultipliers, largest: float
) -> None:
    """Add to p of a point what minimises the gradient of the Lagrangian there, unless that is large or unknown.

    Parameters
    ----------
    state
        The state at the point.
    point
        Is changed.
    multipliers
        At the bounds.
    largest
        Norm above which nothing is added.

    Collective: yes.
    """
    right, out = program.create(), program.create()
    right.primal.array[:] = -state.residual.primal.array_r - bounds.covector(multipliers)
    right.primal.array[bounds.fixed] = 0.0
    kkt = program.kkt_solver(shift=1.0, fixed=bounds.fixed if bounds.any_fixed else None, curvature=0.0)
    try:
        kkt.solve(right, out, 1e-6)
        size = out.dual.norm()
    except ConvergenceError:
        size = math.inf  # linearly dependent constraints
    finally:
        kkt.destroy()
    if size <= largest:
        point.dual.axpy(1.0, out.dual)
    right.destroy()
    out.destroy()
