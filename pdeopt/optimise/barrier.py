"""Bounds of a program, their multipliers, and the logarithmic barrier weighted by the metric.

The barrier is mu * sum_i w_i (-log(x_i - l_i) - log(b_i - x_i)), w the weights of the coordinates: close to an
integral, so that mu means the same on every mesh. A multiplier z_i is a value, not a covector (which is w_i z_i), and
on the central path (x_i - l_i) z_i = mu.
"""

import dataclasses

from mpi4py import MPI

import numpy as np
import numpy.typing as npt

from pdeopt.optimise.program import Program

Array = npt.NDArray[np.float64]
Targets = tuple[Array | float, Array | float]  # of slack z at lower and upper bounds
_PUSH = 1e-2  # share of the distance between bounds, or of the bound's size, that the first point keeps
_SPREAD = 1e10  # by which a multiplier may differ from mu over the slack (Waechter and Biegler, eq. 16)


@dataclasses.dataclass
class BoundMultipliers:
    """Values z >= 0 at the lower and upper bounds of the owned coordinates, zero where there is no bound."""

    lower: Array
    upper: Array

    def copy(self) -> "BoundMultipliers":
        """Return a copy."""
        return BoundMultipliers(self.lower.copy(), self.upper.copy())


class Bounds:
    """The bounds of a program. All arguments and results are arrays of the owned coordinates.

    Parameters
    ----------
    program
        The program. If it has a method ``measures``, like that for `weights`, its result is w: the metric of x may give
        controls and state very different weights, which would bend the central path.

    Attributes
    ----------
    lower, upper, weights
        l, b and w; infinite where there is no bound.
    fixed
        Where l = b.
    measure
        Sum of the weights of all bounds that are no such pair; zero if there are none.

    Collective: yes.
    """

    def __init__(self, program: Program) -> None:
        self.comm: MPI.Comm = program.comm
        weights = getattr(program, "measures", program.weights)()
        self.weights = np.array(weights.array_r)
        weights.destroy()
        size = self.weights.size
        bounds = program.bounds()
        self.lower = np.full(size, -np.inf) if bounds is None else np.array(bounds[0].array_r)
        self.upper = np.full(size, np.inf) if bounds is None else np.array(bounds[1].array_r)
        self.fixed = self.lower == self.upper
        self.has_lower = np.isfinite(self.lower) & ~self.fixed
        self.has_upper = np.isfinite(self.upper) & ~self.fixed
        self.measure = self.sum(self.weights @ self.has_lower + self.weights @ self.has_upper)
        self.any_fixed = bool(self.sum(float(self.fixed.any())))

    def sum(self, value: float) -> float:
        """Return the sum over the ranks. Collective: yes."""
        return float(self.comm.allreduce(float(value), op=MPI.SUM)) if self.comm.size > 1 else float(value)

    def minimum(self, value: float) -> float:
        """Return the minimum over the ranks. Collective: yes."""
        return float(self.comm.allreduce(float(value), op=MPI.MIN)) if self.comm.size > 1 else float(value)

    def slacks(self, x: Array) -> tuple[Array, Array]:
        """Return x - l and b - x, one where there is no bound."""
        return np.where(self.has_lower, x - self.lower, 1.0), np.where(self.has_upper, self.upper - x, 1.0)

    def push_inside(self, x: Array, push: float = _PUSH) -> None:
        """Move a point away from the bounds, and onto those that are equal."""
        x[self.fixed] = self.lower[self.fixed]
        width = self.upper - self.lower
        with np.errstate(invalid="ignore"):
            low = self.lower + np.minimum(push * np.maximum(1.0, np.abs(self.lower)), push * width)
            high = self.upper - np.minimum(push * np.maximum(1.0, np.abs(self.upper)), push * width)
        x[self.has_lower] = np.maximum(x, low)[self.has_lower]
        x[self.has_upper] = np.minimum(x, high)[self.has_upper]

    def project(self, x: Array) -> Array:
        """Return the nearest point within the bounds."""
        return np.clip(x, self.lower, self.upper)

    def value(self, x: Array) -> float:
        """Return the barrier over mu; infinite outside. Collective: yes."""
        slacks = self.slacks(x)
        inside = min(slack.min(initial=1.0) for slack in slacks) > 0.0
        local = float(-self.weights @ (np.log(slacks[0]) + np.log(slacks[1]))) if inside else np.inf
        return self.sum(local)

    def gradient(self, x: Array, targets: Targets = (1.0, 1.0)) -> Array:
        """Return the gradient, a covector, of the barrier over mu, or of one with parameters for every bound."""
        low, high = self.slacks(x)
        return self.weights * (self.has_upper * targets[1] / high - self.has_lower * targets[0] / low)

    def covector(self, multipliers: BoundMultipliers) -> Array:
        """Return what the bounds add to the gradient of the Lagrangian: w (z_upper - z_lower)."""
        return self.weights * (multipliers.upper - multipliers.lower)

    def start(self, x: Array, barrier: float, scale: float) -> BoundMultipliers:
        """Return mu over the slacks, at most ``scale``."""
        low, high = self.slacks(x)
        return BoundMultipliers(
            self.has_lower * np.minimum(barrier / low, scale), self.has_upper * np.minimum(barrier / high, scale)
        )

    def diagonal(self, x: Array, multipliers: BoundMultipliers) -> Array:
        """Return the primal-dual Hessian of the barrier: w z over the slacks."""
        low, high = self.slacks(x)
        return self.weights * (multipliers.lower / low + multipliers.upper / high)

    def step(self, x: Array, multipliers: BoundMultipliers, direction: Array, targets: Targets) -> BoundMultipliers:
        """Return Newton's step of the multipliers for a step of x, towards slack z = targets."""
        low, high = self.slacks(x)
        return BoundMultipliers(
            self.has_lower * (targets[0] / low - multipliers.lower - multipliers.lower / low * direction),
            self.has_upper * (targets[1] / high - multipliers.upper + multipliers.upper / high * direction),
        )

    def longest(self, x: Array, direction: Array, fraction: float) -> float:
        """Return the longest step up to 1 that keeps a share 1 - fraction of every slack. Collective: yes."""
        low, high = self.slacks(x)
        toward = np.maximum(self.has_upper * direction / high, -(self.has_lower * direction) / low)
        largest = toward.max(initial=0.0)
        return self.minimum(min(1.0, fraction / largest) if largest > 0.0 else 1.0)

    def longest_dual(self, multipliers: BoundMultipliers, step: BoundMultipliers, fraction: float) -> float:
        """Return the longest step up to 1 that keeps a share of every multiplier. Collective: yes."""
        length = 1.0
        for values, change in ((multipliers.lower, step.lower), (multipliers.upper, step.upper)):
            falling = change < 0.0
            ratios = -fraction * values[falling] / change[falling]
            length = min(length, ratios.min(initial=1.0))
        return self.minimum(length)

    def move(
        self, x: Array, multipliers: BoundMultipliers, step: BoundMultipliers, length: float, barrier: float
    ) -> BoundMultipliers:
        """Return multipliers after a step, kept near mu over the slacks of the new x."""
        result = []
        for mask, slack, values, change in zip(
            (self.has_lower, self.has_upper),
            self.slacks(x),
            (multipliers.lower, multipliers.upper),
            (step.lower, step.upper),
            strict=True,
        ):
            with np.errstate(all="ignore"):
                central = barrier / slack
                kept = np.clip(values + length * change, central / _SPREAD, central * _SPREAD)
            result.append(np.where(mask, kept, 0.0))
        return BoundMultipliers(*result)

    def complementarity(self, x: Array, multipliers: BoundMultipliers, barrier: float = 0.0) -> float:
        """Return the weighted 2-norm of slack z - mu. Collective: yes."""
        square = 0.0
        for mask, slack, values in zip(
            (self.has_lower, self.has_upper), self.slacks(x), (multipliers.lower, multipliers.upper), strict=True
        ):
            square += float(self.weights[mask] @ (slack[mask] * values[mask] - barrier) ** 2)
        return self.sum(square) ** 0.5

    def products(self, x: Array, multipliers: BoundMultipliers) -> tuple[float, float]:
        """Return the weighted mean and the minimum of slack z. Collective: yes."""
        low, high = self.slacks(x)
        products = (low * multipliers.lower, high * multipliers.upper)
        total = self.sum(float(self.weights @ products[0] + self.weights @ products[1]))
        smallest = min(
            product[mask].min(initial=np.inf)
            for product, mask in zip(products, (self.has_lower, self.has_upper), strict=True)
        )
        return total / self.measure if self.measure > 0.0 else 0.0, self.minimum(smallest)

    def stationarity(self, x: Array, gradient: Array) -> float:
        """Return the norm of x - P(x - M^-1 g), zero where no feasible direction descends. Collective: yes."""
        moved = x - self.project(x - gradient / self.weights)
        return self.sum(float(self.weights @ moved**2)) ** 0.5
