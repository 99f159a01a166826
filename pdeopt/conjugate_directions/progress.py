"""Whether proposed directions get on: the fall of the residual, and what it costs beside a classical solve."""

import math
import time

# Part of the price of a classical solve that a trial of the proposals may cost.
_TRIAL = 0.3
# The residual has to fall by this factor within the window.
_FALL = 0.5


class Progress:
    """Watches the residual norms of one solve.

    Parameters
    ----------
    target
        Norm at which the solve ends.
    window
        Iterations within which the norm has to halve.
    price
        Seconds of a classical solve from the start; infinity if they do not count.
    """

    def __init__(self, target: float, window: int, price: float) -> None:
        self._target, self._window, self.price = target, window, price
        self._norms: list[float] = []
        self._times: list[float] = []

    def note(self, norm: float) -> None:
        """Take the norm of the residual after an iteration (first: before the first one). Collective: no."""
        self._norms.append(norm)
        self._times.append(time.perf_counter())

    @property
    def stagnates(self) -> bool:
        """Whether the norm has not halved within the window; the same on all ranks."""
        if len(self._norms) <= self._window:
            return False
        return min(self._norms[-self._window :]) > _FALL * min(self._norms[: -self._window])

    @property
    def due(self) -> bool:
        """Whether seconds are to be looked at after this iteration; the same on all ranks."""
        iterations = len(self._norms) - 1
        return (
            math.isfinite(self.price)
            and iterations > 0
            and (iterations % 16 == 0 or iterations & -iterations == iterations)
        )

    @property
    def too_dear(self) -> bool:
        """Whether the rest would cost more than a classical solve, judged by the later half of the iterations.

        A trial costs up to 0.3 of the price before this is asked. By the seconds of this rank: let rank 0 decide.
        """
        if self._times[-1] - self._times[0] < _TRIAL * self.price or self._norms[-1] <= self._target:
            return False
        half = (len(self._norms) - 1) // 2
        fall = math.log(self._norms[half] / self._norms[-1])
        if fall <= 0.0:
            return True
        pace = (self._times[-1] - self._times[half]) / fall
        return pace * math.log(self._norms[-1] / self._target) > self.price
