"""A point of a barrier problem with its multipliers, and everything evaluated there."""

import dataclasses
import math

import numpy as np

from pdeopt.optimise.barrier import BoundMultipliers, Bounds
from pdeopt.optimise.filter import Measures
from pdeopt.optimise.program import Pair, Program


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

    def destroy(self) -> None:
        """Free the vectors. Collective: yes."""
        self.residual.destroy()
        self.point.destroy()
