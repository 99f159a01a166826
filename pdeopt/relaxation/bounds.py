"""A bandit for costs that vary by factors, as seconds do: confidence bounds on their logarithms."""

import math
from typing import Any

from pdeopt.relaxation._learning import check_arms, check_cost, restored_array
from pdeopt.report import InputError

# Logarithms need a positive number: seconds below a nanosecond are none.
_LEAST_COST = 1e-9


class LowerConfidenceBounds:
    """Plays the arm whose mean logarithm of the cost could be the lowest.

    After t rounds the bound of an arm played n times is its mean - sigma (2 log t / n)^{1/2}, for costs that spread by
    a factor exp(sigma) (Auer, Cesa-Bianchi, Fischer, Machine Learning 47 (2002) 235-256, for Gaussian noise of known
    variance). An arm that costs r times the best one is played about 2 sigma^2 log t / log^2 r times: one that costs
    twice as much, at a spread of 0.2, once or twice in 200 rounds, where learners for adversarial costs take dozens.

    Parameters
    ----------
    arms
        Number of arms, >= 1.
    spread
        sigma > 0.

    Attributes
    ----------
    explore
        If false, `choose` returns the best arm known, for as long as exploring cannot be afforded.

    Raises
    ------
    InputError
        If an argument is out of its range.
    """

    def __init__(self, arms: int, spread: float) -> None:
        if not (math.isfinite(spread) and spread > 0.0):
            raise InputError(f"spread is {spread}: give the standard deviation of the logarithm of a cost, above 0")
        self.arms, self.spread, self.explore = check_arms(arms), spread, True
        self._first = 0  # what is played first, when nothing is known
        self._arm: int | None = None
        self._counts, self._sums = [0] * arms, [0.0] * arms  # lists: arrays of a few numbers take longer

    @property
    def best(self) -> int:
        """The arm of the lowest mean; before anything is known the one that was best before the last `forget`."""
        if not any(self._counts):
            return self._first
        return min(range(self.arms), key=self._mean_log)

    def mean(self, arm: int) -> float:
        """Return the geometric mean of an arm's costs, NaN if it has not been played. Collective: no."""
        return math.exp(self._mean_log(arm)) if self._counts[arm] else math.nan

    def _mean_log(self, arm: int) -> float:
        return self._sums[arm] / self._counts[arm] if self._counts[arm] else math.inf

    def choose(self, context: float | None = None) -> int:
        """Return an arm; a context is of no use. Collective: no."""
        best = self.best
        self._arm = best
        if self.explore and self._counts[best]:
            width = self.spread * math.sqrt(2.0 * math.log(1 + sum(self._counts)))

            def bound(arm: int) -> float:
                count = self._counts[arm]
                return self._sums[arm] / count - width / math.sqrt(count) if count else -math.inf

            self._arm = min(range(self.arms), key=bound)
        return self._arm

    def learn(self, cost: float) -> None:
        """Take the cost of the arm chosen last. Collective: no."""
        cost, arm = check_cost(cost, self._arm), self._arm
        assert arm is not None
        self._counts[arm] += 1
        self._sums[arm] += math.log(max(cost, _LEAST_COST))
        self._arm = None

    def forget(self) -> None:
        """Start anew, with the arm that was best. Collective: no."""
        self._first = self.best
        self._counts, self._sums = [0] * self.arms, [0.0] * self.arms

    def state(self) -> dict[str, Any]:
        """Return all it knows. Collective: no."""
        return {"counts": list(self._counts), "sums": list(self._sums), "arm": self._arm, "first": self._first}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state of a learner with as many arms. Collective: no."""
        counts, sums = (restored_array(state, name, (self.arms,)) for name in ("counts", "sums"))
        self._counts, self._sums = [int(count) for count in counts], [float(value) for value in sums]
        self._arm, self._first = state["arm"], int(state["first"])
