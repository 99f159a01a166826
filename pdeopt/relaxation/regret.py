"""What a learner lost against those who knew better: oracles in hindsight, replays from a table, regret curves."""

import dataclasses
import time
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pdeopt.report import InputError

Costs = npt.NDArray[np.float64]
"""What every arm would have cost in every round: (rounds, arms)."""


class Chooser(Protocol):
    """What a replay needs of a learner."""

    def choose(self, context: float | None = None) -> int:
        """Return an arm."""

    def learn(self, cost: float) -> None:
        """Take the cost of the arm chosen last."""


@dataclasses.dataclass(frozen=True)
class Replay:
    """What a learner did with a table of costs.

    Parameters
    ----------
    choices
        The arms chosen (rounds).
    incurred
        Their costs (rounds).
    seconds
        Of all choosing and learning: CPU time, which other processes disturb less than the wall clock.
    """

    choices: npt.NDArray[np.int64]
    incurred: npt.NDArray[np.float64]
    seconds: float


def check_costs(costs: npt.ArrayLike) -> Costs:
    """Return a table of costs, or raise `InputError` if it is empty, has no two axes or a cost that is not finite.

    Collective: no.
    """
    table = np.asarray(costs, dtype=float)
    if table.ndim != 2 or table.size == 0:
        raise InputError(f"costs of shape {table.shape}: give one row a round and one column an arm, at least one each")
    if not np.isfinite(table).all():
        raise InputError("the costs hold a number that is not finite: give failed solves a large finite cost")
    return table


def replay(learner: Chooser, costs: npt.ArrayLike, contexts: Sequence[float] | npt.ArrayLike | None = None) -> Replay:
    """Let a learner choose through a table of costs, of which it sees only those of the arms it chooses.

    Parameters
    ----------
    learner
        Goes on from what it knows.
    costs
        (rounds, arms).
    contexts
        What it sees before each choice (rounds).

    Raises
    ------
    InputError
        If the table is none, or has another number of rounds than there are contexts.

    Collective: no.
    """
    table = check_costs(costs)
    seen: list[float | None] = [None] * len(table) if contexts is None else np.asarray(contexts, dtype=float).tolist()
    if len(seen) != len(table):
        raise InputError(f"{len(seen)} contexts for {len(table)} rounds: give one a round")
    rows = table.tolist()
    choices = np.zeros(len(table), dtype=np.int64)
    begin = time.thread_time()
    for number, context in enumerate(seen):
        arm = learner.choose(context)
        learner.learn(rows[number][arm])
        choices[number] = arm
    seconds = time.thread_time() - begin
    return Replay(choices, table[np.arange(len(table)), choices], seconds)


def best_fixed(costs: npt.ArrayLike) -> int:
    """Return the arm with the least total cost (rounds, arms). Collective: no."""
    return int(check_costs(costs).sum(axis=0).argmin())


def best_per_round(costs: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Return the cheapest arm of every round (rounds): no policy whatever does better. Collective: no."""
    return check_costs(costs).argmin(axis=1)


def best_switching(costs: npt.ArrayLike, switches: int) -> npt.NDArray[np.int64]:
    """Return the arms (rounds) of the cheapest policy that changes its arm at most so often.

    Dynamic programming over rounds and switches left, O(rounds x arms x switches).

    Raises
    ------
    InputError
        If the number of switches is negative.

    Collective: no.
    """
    table = check_costs(costs)
    if switches < 0:
        raise InputError(f"{switches} switches: give zero or more")
    rounds, arms = table.shape
    # paid[s, a]: the least cost up to here with s switches, ending with arm a.
    paid = np.full((switches + 1, arms), np.inf)
    paid[0] = table[0]
    came_from = np.empty((rounds, switches + 1, arms), dtype=np.int64)
    came_from[0] = np.arange(arms)
    for number in range(1, rounds):
        came_from[number] = np.arange(arms)
        for used in range(switches, 0, -1):
            source = int(paid[used - 1].argmin())
            cheaper = paid[used - 1, source] < paid[used]
            came_from[number, used, cheaper] = source
            paid[used, cheaper] = paid[used - 1, source]
        paid += table[number]
    used = int(paid.min(axis=1).argmin())
    path = np.empty(rounds, dtype=np.int64)
    path[-1] = paid[used].argmin()
    for number in range(rounds - 1, 0, -1):
        path[number - 1] = came_from[number, used, path[number]]
        used -= int(path[number - 1] != path[number])
    return path


def cumulated_regret(
    incurred: npt.NDArray[np.float64], costs: npt.ArrayLike, oracle: int | npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Return sum_{s <= t} (cost incurred - cost of the oracle's arm) for every round t (rounds).

    Parameters
    ----------
    incurred
        Costs that were paid (rounds).
    costs
        (rounds, arms).
    oracle
        Its arm, or one arm a round.

    Collective: no.
    """
    table = check_costs(costs)
    arms = np.broadcast_to(np.asarray(oracle), len(table))
    return np.cumsum(incurred - table[np.arange(len(table)), arms])


def growth_exponent(regret: npt.NDArray[np.float64]) -> float:
    """Return the slope of log(regret) over log(t) between T / 10 and T, by least squares; NaN if one is not positive.

    1 is what never learns, 1/2 what the worst stochastic case leaves, 0 a regret that has stopped growing.

    Collective: no.
    """
    rounds = np.unique(np.geomspace(max(regret.size // 10, 1), regret.size, 40).astype(int))
    values = regret[rounds - 1]
    if rounds.size < 2 or (values <= 0.0).any():
        return float("nan")
    return float(np.polyfit(np.log(rounds), np.log(values), 1)[0])
