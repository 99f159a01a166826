"""What the learners share: checks of what they are given, one draw, one piece of their state."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from pdeopt.report import InputError

# Costs above this count as this: sums and squares of what is left cannot overflow.
HUGE_COST = 1e100


def check_arms(arms: int) -> int:
    """Return the number of arms, or raise `InputError` if there is none. Collective: no."""
    if arms < 1:
        raise InputError(f"{arms} arms: there must be at least one to choose")
    return arms


def check_floor(floor: float) -> float:
    """Return the least possible cost, or raise `InputError` if it is not a finite number >= 0. Collective: no."""
    if not (math.isfinite(floor) and floor >= 0.0):
        raise InputError(f"floor of the costs is {floor}: give a finite number >= 0")
    return float(floor)


def check_interval(interval: tuple[float, float]) -> tuple[float, float]:
    """Return the interval of the contexts, or raise `InputError` if it is none. Collective: no."""
    low, high = interval
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError(f"interval of the contexts {interval}: give two finite numbers in rising order")
    return low, high


def check_cost(cost: float, arm: int | None) -> float:
    """Return a cost <= `HUGE_COST` of a chosen arm, or raise `InputError` if the cost or the arm is none.

    Collective: no.
    """
    if arm is None:
        raise InputError(f"cost {cost} belongs to no arm: call choose() before every learn()")
    if not (math.isfinite(cost) and cost >= 0.0):
        raise InputError(f"cost is {cost}: give a finite number >= 0, for a failed solve a large one")
    return min(float(cost), HUGE_COST)


def check_context(context: float | None) -> float:
    """Return a context, or raise `InputError` if it is not a finite number. Collective: no."""
    if context is None or not math.isfinite(context):
        raise InputError(f"context is {context}: this learner needs a finite number")
    return float(context)


def draw(weights: npt.NDArray[np.float64], generator: np.random.Generator) -> int:
    """Return an index with probability proportional to its weight. Collective: no."""
    sums = weights.cumsum()
    return min(int(sums.searchsorted(generator.random() * sums[-1], side="right")), weights.size - 1)


def restored_array(state: dict[str, Any], name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Return an array of a state, or raise `InputError` if it has another shape. Collective: no."""
    array = np.array(state.get(name, ()), dtype=float)
    if array.shape != shape:
        raise InputError(f"state: {name} has shape {array.shape}, this learner needs {shape}: it is that of another")
    return array
