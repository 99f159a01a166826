"""A learner that forgets what it knows when the costs are no longer what they were."""

import copy
import math
from typing import Any, Protocol

from pdeopt.relaxation._learning import check_cost
from pdeopt.report import InputError

# A cost counts as at most this many standard deviations from the mean: one failed solve is no change.
CLIP = 3.0
# Deviations that a change must exceed on average before it is summed up.
DRIFT = 0.5


class Forgetful(Protocol):
    """What `Restarting` needs of a learner."""

    arms: int

    def choose(self, context: float | None = None) -> int:
        """Return an arm."""

    def learn(self, cost: float) -> None:
        """Take the cost of the arm chosen last."""

    def forget(self) -> None:
        """Start anew."""

    def state(self) -> dict[str, Any]:
        """Return all it knows."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""


class Restarting:
    """Starts a learner anew when the mean cost of its arms has changed.

    Page's cumulative sums (Biometrika 41 (1954) 100-115), one for rising and one for falling costs, run over
    (cost - mean of that arm so far) / standard deviation of these differences, so that going from arm to arm is no
    change. With a threshold of 12 independent Gaussian costs raise a false alarm less than once in 10^5 rounds
    (Siegmund's formula for known means); a shift by one deviation is found in about 23, one by three in 6.

    Parameters
    ----------
    learner
        Who chooses. Costs that follow a context count as noise.
    threshold
        Sum of deviations that makes an alarm, > 0.
    warm_up
        Rounds after a start without an alarm, >= 2, in which the deviation is learned.

    Raises
    ------
    InputError
        If an argument is out of its range.
    """

    _KNOWN = ("counts", "means", "squares", "rounds", "rising", "falling", "arm", "restarts")

    def __init__(self, learner: Forgetful, threshold: float = 12.0, warm_up: int = 30) -> None:
        if not threshold > 0.0:
            raise InputError(f"threshold is {threshold}: it must be positive")
        if warm_up < 2:
            raise InputError(f"warm_up is {warm_up}: a standard deviation needs at least two rounds")
        self.learner, self.arms, self.threshold, self.warm_up = learner, learner.arms, threshold, warm_up
        self._arm: int | None = None
        self._restarts = 0
        self._forget_costs()

    @property
    def restarts(self) -> int:
        """How often it has started anew."""
        return self._restarts

    def _forget_costs(self) -> None:
        self._counts, self._means = [0] * self.arms, [0.0] * self.arms
        self._squares, self._rounds = 0.0, 0
        self._rising, self._falling = 0.0, 0.0

    def forget(self) -> None:
        """Start anew. Collective: no."""
        self.learner.forget()
        self._forget_costs()

    def choose(self, context: float | None = None) -> int:
        """Return an arm. Collective: no."""
        self._arm = self.learner.choose(context)
        return self._arm

    def learn(self, cost: float) -> None:
        """Take the cost of the arm chosen last. Collective: no."""
        cost, arm = check_cost(cost, self._arm), self._arm
        assert arm is not None
        self.learner.learn(cost)
        self._arm = None
        difference = cost - self._means[arm] if self._counts[arm] else 0.0
        if self._counts[arm]:
            self._sum_up(difference)
        if max(self._rising, self._falling) > self.threshold:
            self._restarts += 1
            self.forget()
            return
        self._rounds += 1
        self._counts[arm] += 1
        if self._counts[arm] == 1:
            self._means[arm] = cost
        else:
            self._means[arm] += difference / self._counts[arm]
            self._squares += difference * (cost - self._means[arm])

    def _sum_up(self, difference: float) -> None:
        """Add a difference to both sums. Collective: no."""
        known = sum(count - 1 for count in self._counts if count > 1)
        if self._rounds < self.warm_up or known < 1:
            return
        deviation = math.sqrt(self._squares / known)
        if abs(difference) <= CLIP * deviation:
            standard = difference / deviation if deviation > 0.0 else 0.0
        else:
            standard = math.copysign(CLIP, difference)
        self._rising = max(self._rising + standard - DRIFT, 0.0)
        self._falling = max(self._falling - standard - DRIFT, 0.0)

    def state(self) -> dict[str, Any]:
        """Return all it knows. Collective: no."""
        known = {name: copy.deepcopy(getattr(self, f"_{name}")) for name in self._KNOWN}
        return {**known, "learner": self.learner.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state of a learner with as many arms. Collective: no."""
        if len(state["counts"]) != self.arms:
            raise InputError(f"state: {len(state['counts'])} arms, this learner has {self.arms}: it is that of another")
        for name in self._KNOWN:
            setattr(self, f"_{name}", copy.deepcopy(state[name]))
        self.learner.restore(state["learner"])
