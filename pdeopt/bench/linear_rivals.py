"""The classical rivals of learned linear solvers: the sweep of their settings, and the best of each family.

Every solver starts from 0 and must reach the true relative residual 1e-8 in float64; its set-up counts. `sweep` finds
the constant settings of a group of families on validation seeds, `CONSTANTS` keeps them, `best_classical` takes the
fastest of them on a system. Seconds are those of the processor, as other jobs disturb them less than the clock's.
"""

import math
import statistics
import sys
from collections.abc import Iterable, Sequence

from mpi4py import MPI

from pdeopt.bench.harness import Row, say
from pdeopt.bench.linear_arms import own_arms
from pdeopt.bench.linear_bodies import solve_by_body
from pdeopt.bench.linear_constants import CONSTANTS
from pdeopt.bench.linear_debian import debian_arms, solve_by_debian
from pdeopt.bench.linear_families import FAMILIES, LinearCase
from pdeopt.bench.linear_outcome import Outcome
from pdeopt.bench.study import Study, number
from pdeopt.report import InputError

_FOREIGN = ("BoomerAMG", "ML")  # of Debian's PETSc
_ONE_RANK = ("PyAMG", "Eisenstat", "Sine transform")
_KEPT = 2  # settings of each kind of solver that go on from the small systems of a sweep to the large ones
_FACTOR = 5.0  # a kind of solver this much slower than the best on validation seeds is no candidate for the best


def solve(case: LinearCase, arms: Iterable[str]) -> list[Outcome]:
    """Solve a system by several arms, one after another.

    Parameters
    ----------
    case
        The system.
    arms
        Names, as of `all_arms`.

    Raises
    ------
    InputError
        If there is no such arm for this system.

    Collective: yes.
    """
    names = list(arms)
    own = own_arms(case, FAMILIES[case.family].dimension)
    foreign = [name for name in names if name.partition(":")[0] in _FOREIGN]
    unknown = [name for name in names if name not in own and name not in foreign]
    if unknown:
        raise InputError(f"there is no arm {unknown[0]!r} for {case.family!r}: choose one of {', '.join(own)}")
    found = {name: own[name](case) for name in names if name in own}
    if foreign:
        found |= {outcome.arm: outcome for outcome in solve_by_debian(case, foreign)}
    return [found[name] for name in names]


def all_arms(case: LinearCase) -> list[str]:
    """Return the names of all solvers and settings that can be tried on a system. Collective: no."""
    own = list(own_arms(case, FAMILIES[case.family].dimension))
    return own + list(debian_arms(case.A.getBlockSize() > 1)) if case.comm.size == 1 else own


def best_classical(case: LinearCase, repeat: int = 1) -> tuple[Outcome, list[Outcome]]:
    """Solve a system by the constant settings of its family's group.

    Parameters
    ----------
    case
        The system.
    repeat
        Rounds, of which each arm's fastest counts.

    Returns
    -------
    best, all
        The outcome with the least processor seconds, and those of all arms, in the order of `CONSTANTS`.

    Collective: yes.
    """
    arms = [arm for arm in CONSTANTS[FAMILIES[case.family].group] if arm in set(all_arms(case))]
    rounds = [solve(case, arms) for _ in range(repeat)]
    outcomes = [min(same, key=lambda outcome: outcome.total_cpu) for same in zip(*rounds, strict=True)]
    return min(outcomes, key=lambda outcome: outcome.total_cpu), outcomes


def sweep(family: str, small: int, large: int, seeds: Sequence[int], comm: MPI.Comm) -> tuple[str, ...]:
    """Find the best settings of each kind of solver by successive halving.

    All settings solve the first seed's system of the small size; the best two of each kind solve the other seeds'
    systems of the large one and are compared by the geometric mean of their processor seconds.

    Parameters
    ----------
    family
        One of `FAMILIES`, whose group gets the constants.
    small, large
        Sizes as for `Family.case`.
    seeds
        Validation seeds, at least two.
    comm
        Of size 1.

    Returns
    -------
    arms
        The best setting of each kind that is at most five times as slow as the best of all, best first.

    Collective: one rank only.
    """
    case = FAMILIES[family].case(comm, small, seeds[0])
    left = _best_of_kinds({outcome.arm: outcome.total_cpu for outcome in solve(case, all_arms(case))}, _KEPT)
    case.destroy()
    logarithms = dict.fromkeys(left, 0.0)
    for seed in seeds[1:]:
        case = FAMILIES[family].case(comm, large, seed)
        for outcome in solve(case, left):
            logarithms[outcome.arm] += math.log(outcome.total_cpu) / (len(seeds) - 1)
        case.destroy()
    means = {arm: math.exp(value) for arm, value in logarithms.items()}
    ranked = _best_of_kinds(means, 1)
    for arm in ranked:
        say(comm, f"    {means[arm]:9.3f} s  {arm}")
    return tuple(arm for arm in ranked if means[arm] <= _FACTOR * means[ranked[0]])


def _best_of_kinds(seconds: dict[str, float], count: int) -> list[str]:
    """Return the names of the fastest arms of each kind that have solved, fastest first."""
    ranked = sorted((arm for arm, value in seconds.items() if math.isfinite(value)), key=seconds.__getitem__)
    kinds = [arm.partition(":")[0] for arm in ranked]
    return [arm for place, arm in enumerate(ranked) if kinds[:place].count(kinds[place]) < count]


def measure(study: Study, quick: bool) -> None:
    """Print the classical solvers on grids, and on two ranks; meshes have a part of their own. Collective: yes.

    On one rank these are the bars that learned solvers are compared with, and make no claim of their own. On two ranks
    the algebraic body stands beside them.
    """
    sizes = _QUICK if quick else _FULL
    for name in _QUICK_FAMILIES if quick else [name for name, family in FAMILIES.items() if family.structured]:
        _table(study, name, sizes[FAMILIES[name].domain])
    families = _QUICK_FAMILIES[:1] if quick else _ON_TWO_RANKS
    ratios = [_on_two_ranks(study, name, sizes[FAMILIES[name].domain]) for name in families]
    claim = "algebraic body on two ranks, wall seconds over the best classical, median"
    study.target("2d", claim, statistics.median(ratios), 0.9)


def _table(study: Study, name: str, size: int) -> None:
    """Add a row for each arm on a system, and one for the best."""
    say(study.comm, f"  {name}, {size}")
    case = FAMILIES[name].case(study.comm, size, study.settings.seed)
    best, outcomes = best_classical(case, 1 if study.settings.quick else min(study.settings.repeat, 2))
    (default,) = solve(case, ["GAMG: default"])
    common: Row = {"family": name, "unknowns": case.tags["unknowns"]}
    for outcome in [default, *outcomes]:
        study.row("Classical solvers, one rank", common | outcome.row())
    study.row(
        "Best classical solver, one rank",
        common
        | {
            "best": best.arm,
            "iterations": best.iterations,
            "CPU [s]": best.total_cpu,
            "wall [s]": best.total,
            "default GAMG, CPU [s]": default.total_cpu,
            "best / default GAMG": best.total_cpu / default.total_cpu,
        },
    )
    case.destroy()


def _on_two_ranks(study: Study, name: str, size: int) -> float:
    """Add the arms of both PETScs on two ranks; return the algebraic body's time over the best."""
    seed, table = study.settings.seed, "Classical solvers, two ranks"
    arms = [arm for arm in CONSTANTS[FAMILIES[name].group] if arm.partition(":")[0] not in _ONE_RANK]
    own = [arm for arm in arms if arm.partition(":")[0] not in _FOREIGN]
    function = "pdeopt.bench.linear_rivals:solve_on_ranks"
    row = study.case(function, 2, family=name, size=size, seed=seed, arms=sorted({"GAMG: default", *own}))
    study.row(table, {"family": name, **row})
    case = FAMILIES[name].case(study.comm, size, seed)
    foreign = solve_by_debian(case, [arm for arm in arms if arm not in own], ranks=2)
    for outcome in foreign:
        study.row(table, {"family": name, **outcome.row()})
    case.destroy()
    best = min([number(row, "set-up [s]") + number(row, "solve [s]"), *(outcome.total for outcome in foreign)])
    return number(row, "algebraic body [s]") / best


def solve_on_ranks(comm: MPI.Comm, family: str, size: int, seed: int, arms: list[str]) -> Row:
    """Solve one system by several arms and by the algebraic body; return its seconds beside the fastest's columns.

    Collective: yes.
    """
    case = FAMILIES[family].case(comm, size, seed)
    outcomes = comm.bcast(solve(case, arms))  # each rank has its own seconds, but all must choose alike
    bodies = [solve_by_body(case.A, case.b, "algebraic", case.coordinates) for _ in range(2)]
    case.destroy()
    own = min(outcome.total for outcome in bodies)
    return {
        **min(outcomes, key=lambda outcome: outcome.total).row(),
        "algebraic body [s]": own if math.isfinite(own) else None,
        "algebraic body, iterations": bodies[0].iterations,
    }


_FULL = {"square": 256, "cube": 32, "perforated plate": 50_000, "bracket": 50_000}
_QUICK = {"square": 16, "perforated plate": 200}
_QUICK_FAMILIES = ("square, checker", "perforated plate, inclusions, elasticity")
_ON_TWO_RANKS = ("perforated plate, inclusions", "bracket, anisotropy", "perforated plate, inclusions, elasticity")

SWEEPS = {
    "square": (128, 384),
    "cube": (24, 48),
    "perforated plate": (8_000, 50_000),
    "bracket": (4_000, 25_000),
}
"""Sizes of the sweeps by domain, small and large; the other domains are held out."""


def main() -> None:
    """Sweep the families whose names are given, or all, and print their constants as Python.

    Run it by ``python -c "from pdeopt.bench.linear_rivals import main; main()" FAMILY ...``. Collective: one rank only.
    """
    chosen = sys.argv[1:] or [name for name, family in FAMILIES.items() if family.domain in SWEEPS]
    for name in chosen:
        say(MPI.COMM_WORLD, f"  {name}")
        arms = sweep(name, *SWEEPS[FAMILIES[name].domain], (0, 1), MPI.COMM_WORLD)
        print(f"    {FAMILIES[name].group!r}: {arms!r},", flush=True)
