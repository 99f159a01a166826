"""The filter: points that are worse in both infeasibility and barrier function than one already met are refused."""

import dataclasses
import math

_MARGIN_INFEASIBILITY, _MARGIN_OBJECTIVE = 1e-5, 1e-8
_ARMIJO = 1e-8
_POWER_INFEASIBILITY, _POWER_OBJECTIVE = 1.1, 2.3
_SHORTEST = 0.05


@dataclasses.dataclass(frozen=True)
class Measures:
    """Infeasibility |c| and barrier function of a point, and the latter's rounding error."""

    infeasibility: float
    objective: float

    @property
    def rounding(self) -> float:
        """What differences of the barrier function are not trusted below."""
        return 1e-15 * 10.0 * max(1e-300, abs(self.objective))


class Filter:
    """Acceptance of trial points by Waechter and Biegler, Math. Program. 106 (2006) 25-57, Section 2.3.

    Parameters
    ----------
    first
        |c| at the first point.

    Attributes
    ----------
    largest
        Infeasibility above which no point is taken.
    """

    def __init__(self, first: float) -> None:
        self.largest, self._small = 1e4 * max(1.0, first), 1e-4 * max(1.0, first)
        self._entries: list[tuple[float, float]] = []

    def reset(self) -> None:
        """Forget all points; the barrier function has changed."""
        self._entries = []

    def admits(self, trial: Measures) -> bool:
        """Whether no entry is better than the trial point in both."""
        if not (math.isfinite(trial.infeasibility) and math.isfinite(trial.objective)):
            return False
        if trial.infeasibility > self.largest:
            return False
        return all(
            trial.infeasibility < infeasibility or trial.objective < objective + trial.rounding
            for infeasibility, objective in self._entries
        )

    def add(self, here: Measures) -> None:
        """Refuse from now on what is no better than this point by a margin."""
        infeasibility = (1.0 - _MARGIN_INFEASIBILITY) * here.infeasibility
        objective = here.objective - _MARGIN_OBJECTIVE * here.infeasibility
        self._entries = [entry for entry in self._entries if entry[0] < infeasibility or entry[1] < objective]
        self._entries.append((infeasibility, objective))

    def _switches(self, here: Measures, slope: float, length: float) -> bool:
        """Whether the model promises so much descent that Armijo's rule must hold."""
        return slope < 0.0 and length * (-slope) ** _POWER_OBJECTIVE > here.infeasibility**_POWER_INFEASIBILITY

    def accepts(self, here: Measures, trial: Measures, slope: float, length: float, base: float | None = None) -> bool:
        """Whether a trial point is good enough; adds ``here`` if that was for the constraints.

        Parameters
        ----------
        slope
            Derivative of the barrier function along the direction.
        length
            Of the step; ``base``, if given, is the length for the descent that the model promises.
        """
        if not self.admits(trial):
            return False
        length = length if base is None else base
        if here.infeasibility <= self._small and self._switches(here, slope, length):
            return trial.objective <= here.objective + _ARMIJO * length * slope + here.rounding
        better = trial.infeasibility <= (1.0 - _MARGIN_INFEASIBILITY) * here.infeasibility
        lower = trial.objective <= here.objective - _MARGIN_OBJECTIVE * here.infeasibility + here.rounding
        if not (better or lower):
            return False
        self.add(here)
        return True

    def shortest(self, here: Measures, slope: float) -> float:
        """Return the length below which no step can be accepted: time to restore feasibility."""
        bound = _MARGIN_INFEASIBILITY
        if slope < 0.0:
            bound = min(bound, _MARGIN_OBJECTIVE * here.infeasibility / -slope)
            if here.infeasibility <= self._small:
                switch = here.infeasibility**_POWER_INFEASIBILITY / (-slope) ** _POWER_OBJECTIVE
                bound = min(bound, switch) if switch > 0.0 else bound
        return max(_SHORTEST * bound, 1e-12)
