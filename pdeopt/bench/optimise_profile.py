"""Performance profiles of optimisers over a set of problems.

References
----------
E. D. Dolan and J. J. Moré, Benchmarking optimization software with performance profiles, Mathematical Programming 91,
201-213 (2002).
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pdeopt import _panels
from pdeopt.bench.harness import Row
from pdeopt.report import InputError

if TYPE_CHECKING:
    import matplotlib.figure

Array = npt.NDArray[np.float64]

_STYLES = ("-", "--", "-.", ":")
_ROOM = 1.25  # by which the axis outlasts the last step


def performance_ratios(rows: Sequence[Row], measure: str = "iterations") -> dict[str, Array]:
    """Return r = t / (least t of all methods) of each method on each problem, sorted, infinite where it failed.

    Problems that no method solves count, with infinite ratios for all. A cost below 1 counts as 1, so that a method
    that has nothing to do (the start is a solution) does not make all others infinitely bad.

    Parameters
    ----------
    rows
        With the columns "method", "problem" and "converged" beside the measure; one for each method and problem.
    measure
        Column of the cost: "iterations", "evaluations".

    Returns
    -------
    dict
        Ratios by method, in the order of the rows, each of shape (problems,).

    Raises
    ------
    InputError
        If a method lacks a problem or has it twice, or a solved problem has no cost.

    Collective: no.
    """
    costs: dict[str, dict[str, float]] = {}
    for row in rows:
        method, problem, cost = str(row["method"]), str(row["problem"]), math.inf
        if row["converged"]:
            value = row.get(measure)
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise InputError(f"{method} solved {problem}, but its {measure!r} is {value!r}: it must be a number")
            cost = max(float(value), 1.0)
        if problem in costs.setdefault(method, {}):
            raise InputError(f"{method} has two rows for {problem}: a profile compares one run of each")
        costs[method][problem] = cost
    if not costs:
        raise InputError("a profile needs rows: there is none")
    problems = {problem for own in costs.values() for problem in own}
    for method, own in costs.items():
        if missing := sorted(problems - own.keys()):
            raise InputError(f"{method} has no row for {', '.join(missing)}: a failure is a row too")
    best = {problem: min(own[problem] for own in costs.values()) for problem in problems}
    return {
        method: np.sort([own[p] / best[p] if math.isfinite(own[p]) else math.inf for p in problems])
        for method, own in costs.items()
    }


def solved_within(ratios: Array, factor: float) -> float:
    """Return the share of problems that a method solves within a factor of the best; 1 gives where it is the best.

    Collective: no.
    """
    return float(np.count_nonzero(ratios <= factor) / ratios.size)


def draw_profile(
    rows: Sequence[Row], measures: Mapping[str, str] | None = None, title: str = ""
) -> "matplotlib.figure.Figure":
    """Draw the share of problems that each method solves within a factor of the best method.

    At the left a curve shows how often its method is the best; at the right, how many problems it solves at all.

    Parameters
    ----------
    rows
        As `performance_ratios` takes them.
    measures
        Columns of the cost, each with its name under the panel; None means outer iterations and evaluations.
    title
        Above the panels.

    Returns
    -------
    matplotlib.figure.Figure
        ``figure.savefig(path)`` writes it.

    Raises
    ------
    InputError
        If `performance_ratios` refuses the rows.
    MissingPackageError
        If matplotlib is not installed.

    Collective: no.
    """
    panels = measures or {"iterations": "outer iterations", "evaluations": "evaluations of the objective"}
    ratios = {measure: performance_ratios(rows, measure) for measure in panels}
    figure = _panels.new_figure(4.4 * len(panels), 3.6)
    all_axes = np.atleast_1d(figure.subplots(1, len(panels), sharey=True))
    for axes, (measure, name) in zip(all_axes, panels.items(), strict=True):
        finite = np.concatenate([own[np.isfinite(own)] for own in ratios[measure].values()])
        end = _ROOM * max(2.0, float(np.max(finite, initial=1.0)))
        for number, (method, own) in enumerate(ratios[measure].items()):
            solved = own[np.isfinite(own)]
            x = np.concatenate([[1.0], solved[solved > 1.0], [end]])
            y = [solved_within(own, factor) for factor in x]
            label = f"{method} ({solved.size} of {own.size})"
            axes.step(x, y, where="post", linestyle=_STYLES[number % len(_STYLES)], linewidth=1.6, label=label)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlim(1.0, end)
        axes.set_ylim(0.0, 1.03)
        axes.set_xlabel(f"factor of the fewest {name}")
        axes.grid(True, which="major", color="0.85")
    all_axes[0].set_ylabel("share of the problems solved")
    all_axes[-1].legend(loc="lower right", fontsize="small")
    if title:
        figure.suptitle(title, fontsize="medium")
    return figure
