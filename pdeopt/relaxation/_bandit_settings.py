"""What `pdeopt.BanditSOR` chooses from, and who chooses."""

import dataclasses
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pdeopt.fem.settings import check_choice
from pdeopt.relaxation.bandit import BinnedTsallisINF, ChebCB, TsallisINF
from pdeopt.relaxation.contexts import CONTEXT_BOUND
from pdeopt.report import InputError

LEARNERS = ("tsallis", "binned", "chebyshev", "fixed")
CONTEXTUAL = ("binned", "chebyshev")
COSTS = ("iterations", "seconds")


class Learner(Protocol):
    """What chooses among numbered arms and learns from their costs."""

    def choose(self, context: float | None = None) -> int:
        """Return an arm."""

    def learn(self, cost: float) -> None:
        """Take the cost of the arm chosen last."""

    def state(self) -> dict[str, Any]:
        """Return all it knows, as JSON takes it."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""


class FixedArm:
    """The learner that has nothing to choose: the classical rival in the same code."""

    def choose(self, context: float | None = None) -> int:
        """Return 0. Collective: no."""
        return 0

    def learn(self, cost: float) -> None:
        """Do nothing. Collective: no."""

    def state(self) -> dict[str, Any]:
        """Return nothing. Collective: no."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Do nothing. Collective: no."""


@dataclasses.dataclass(frozen=True)
class BanditSettings:
    """Settings of `BanditSOR`; its docstring says what they mean."""

    learner: str = "tsallis"
    omega: float = 1.0
    low: float = 1.0
    high: float = 1.95
    count: int = 20
    cost: str = "iterations"
    context: object = "auto"
    context_low: float = -CONTEXT_BOUND
    context_high: float = CONTEXT_BOUND
    state: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice(self, "learner", LEARNERS)
        check_choice(self, "cost", COSTS)
        for name in ("omega", "low", "high"):
            if not 0.0 < getattr(self, name) < 2.0:
                raise InputError(f"{name} is {getattr(self, name)}: SSOR is definite for omega between 0 and 2 only")
        if self.count < 1 or self.low > self.high:
            raise InputError(f"{self.count} omegas from {self.low} to {self.high}: give at least one, in rising order")
        if not callable(self.context) and self.context not in ("auto", "matrix"):
            raise InputError(f"context is {self.context!r}: choose auto, matrix, or give a callable without arguments")
        if not self.context_low < self.context_high:
            raise InputError(f"context_low is {self.context_low}: it must be less than context_high")
        if self.seed < 0:
            raise InputError(f"seed is {self.seed}: it must not be negative")

    @property
    def source(self) -> object:
        """Where the context comes from: a callable, "matrix", or None."""
        if self.context == "auto":
            return "matrix" if self.learner in CONTEXTUAL else None
        return self.context

    def omegas(self) -> npt.NDArray[np.float64]:
        """Return the arms. Collective: no."""
        if self.learner == "fixed":
            return np.array([self.omega])
        return np.linspace(self.low, self.high, self.count)

    def make_learner(self) -> Learner:
        """Return the learner. Collective: no."""
        if self.learner == "fixed":
            return FixedArm()
        floor = 1.0 if self.cost == "iterations" else 0.0
        interval = (self.context_low, self.context_high)
        if self.learner == "binned":
            return BinnedTsallisINF(self.count, interval, floor=floor, seed=self.seed)
        if self.learner == "chebyshev":
            return ChebCB(self.count, interval, floor=floor, seed=self.seed)
        return TsallisINF(self.count, floor, seed=self.seed)
