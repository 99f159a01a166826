"""SOR whose omega is learned online, on the sequences of random systems of "Learning to relax": regret curves.

Every trial draws its systems from one pool for each distribution, with replacement, and all learners of a trial see the
same systems; what each of them would have taken under every omega is counted beforehand.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt

from pdeopt.bench.harness import Row, say
from pdeopt.bench.relax_sor import OMEGAS, draw_systems, sor_iterations, young_omega
from pdeopt.bench.study import Study
from pdeopt.parallel import on_root, random_stream
from pdeopt.relaxation.bandit import BinnedTsallisINF, ChebCB, TsallisINF
from pdeopt.relaxation.regret import Chooser, best_fixed, best_switching, growth_exponent, replay
from pdeopt.relaxation.restart import Restarting

# Parameters of the Beta distribution of the shifts, as published.
DISTRIBUTIONS = {"low variance, Beta(2, 6)": (2.0, 6.0), "high variance, Beta(1/2, 3/2)": (0.5, 1.5)}
INTERVAL = (-0.15, 0.65)  # of the contexts, as published
FLOOR = 1.0  # iterations
ARMS = OMEGAS.size
MEMORY = 1000  # rounds

LEARNERS: dict[str, Callable[[int], Chooser]] = {
    "Tsallis-INF, as published": lambda seed: TsallisINF(ARMS, FLOOR, reduced_variance=False, seed=seed),
    "Tsallis-INF": lambda seed: TsallisINF(ARMS, FLOOR, seed=seed),
    "Tsallis-INF in 5 bins, as published": lambda seed: BinnedTsallisINF(
        ARMS, INTERVAL, 5, FLOOR, reduced_variance=False, seed=seed
    ),
    "Tsallis-INF in 5 bins": lambda seed: BinnedTsallisINF(ARMS, INTERVAL, 5, FLOOR, seed=seed),
    "ChebCB": lambda seed: ChebCB(ARMS, INTERVAL, floor=FLOOR, seed=seed),
}
FOLLOWERS: dict[str, Callable[[int], Chooser]] = {
    "Tsallis-INF": LEARNERS["Tsallis-INF"],
    f"Tsallis-INF, memory of {MEMORY} rounds": lambda seed: TsallisINF(ARMS, FLOOR, 1.0 - 1.0 / MEMORY, seed=seed),
    "Tsallis-INF, restarting": lambda seed: Restarting(TsallisINF(ARMS, FLOOR, seed=seed)),
}


@dataclasses.dataclass(frozen=True)
class Pool:
    """Systems with what they cost.

    Parameters
    ----------
    shifts
        c of A + c I (systems).
    costs
        Iterations under every omega of the grid (systems, arms).
    young
        Iterations under Young's omega for the system itself (systems).
    """

    shifts: npt.NDArray[np.float64]
    costs: npt.NDArray[np.float64]
    young: npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Curves:
    """What learners and those who know better paid, round by round.

    Parameters
    ----------
    incurred
        Iterations by learner or oracle, each (trials, rounds).
    fixed
        Cumulated iterations of the best fixed omega up to each round, in hindsight of that round (trials, rounds).
    instance
        Iterations of the cheapest omega of the grid for each system (trials, rounds).
    omegas
        The best fixed omega over all rounds (trials).
    microseconds
        CPU time of choosing and learning a round, by learner, each (trials).
    """

    incurred: dict[str, npt.NDArray[np.float64]]
    fixed: npt.NDArray[np.float64]
    instance: npt.NDArray[np.float64]
    omegas: npt.NDArray[np.float64]
    microseconds: dict[str, npt.NDArray[np.float64]]

    def regret(self, name: str, oracle: Literal["fixed", "instance"] = "fixed") -> npt.NDArray[np.float64]:
        """Return the cumulated regret (trials, rounds) against ``fixed`` or ``instance``. Collective: no."""
        paid = np.cumsum(self.incurred[name], axis=1)
        return paid - (self.fixed if oracle == "fixed" else np.cumsum(self.instance, axis=1))


def make_pool(distribution: str, size: int, seed: int = 0) -> Pool:
    """Draw systems of one of DISTRIBUTIONS, and count their iterations. Collective: no."""
    systems = draw_systems(size, DISTRIBUTIONS[distribution], random_stream(f"bench.relax.{distribution}", seed))
    omegas = np.column_stack([np.broadcast_to(OMEGAS, (size, ARMS)), young_omega(systems.shifts)])
    counts = sor_iterations(systems, omegas).astype(float)
    return Pool(systems.shifts, counts[:, :ARMS], counts[:, ARMS])


def curves(pool: Pool, trials: int = 40, rounds: int = 5000, seed: int = 0) -> Curves:
    """Replay LEARNERS on sequences of systems, drawn independently from a pool.

    Parameters
    ----------
    pool
        From `make_pool`.
    trials, rounds
        Number of sequences and their length.
    seed
        Of the sequences and, plus the number of the trial, of the learners.

    Collective: no.
    """
    rows = random_stream("bench.relax.sequences", seed).integers(len(pool.shifts), size=(trials, rounds))
    incurred = {name: np.empty((trials, rounds)) for name in LEARNERS}
    microseconds = {name: np.empty(trials) for name in LEARNERS}
    fixed, omegas = np.empty((trials, rounds)), np.empty(trials)
    for trial, drawn in enumerate(rows):
        costs, shifts = pool.costs[drawn], pool.shifts[drawn]
        fixed[trial] = np.cumsum(costs, axis=0).min(axis=1)
        omegas[trial] = OMEGAS[best_fixed(costs)]
        for name, make in LEARNERS.items():
            played = replay(make(seed + trial), costs, shifts)
            incurred[name][trial] = played.incurred
            microseconds[name][trial] = 1e6 * played.seconds / rounds
    incurred["omega = 1 (Gauss-Seidel)"] = pool.costs[rows, 0]
    incurred["Young's omega for each system"] = pool.young[rows]
    return Curves(incurred, fixed, pool.costs.min(axis=1)[rows], omegas, microseconds)


def measure(study: Study, quick: bool) -> None:
    """Line 1: regret curves of the learners for both distributions of the shifts. Collective: yes."""
    size, trials, rounds = (24, 2, 800) if quick else (3000, 40, 5000)
    seed = study.settings.seed
    exponents, ratios, microseconds = [], [], []
    pools = []
    for distribution in DISTRIBUTIONS:
        say(study.comm, f"  SOR under {ARMS} omegas, {distribution}, {size} systems, {trials} trials of {rounds}")

        def play(distribution: str = distribution) -> tuple[Pool, Curves]:
            pool = make_pool(distribution, size, seed)
            return pool, curves(pool, trials, rounds, seed)

        pool, found = on_root(study.comm, play)
        pools.append(pool)
        _tabulate(study, distribution, found, size)
        for name in ("Tsallis-INF, as published", "Tsallis-INF"):
            exponents.append(growth_exponent(np.median(found.regret(name), axis=0)))
        means = found.incurred["ChebCB"].mean(axis=1)
        ratios.append(float(np.median(means / (found.fixed[:, -1] / rounds))))
        microseconds += [float(np.median(values)) for values in found.microseconds.values()]
    study.target("1a", "exponent of Tsallis-INF's regret against the best fixed omega", max(exponents), 1.0)
    study.target("1b", "iterations of ChebCB over those of the best fixed omega", max(ratios), 1.0)
    _change(study, pools, trials, rounds)
    study.target(
        "1c", "choosing and learning, slowest learner, CPU time [microseconds a solve]", max(microseconds), 50.0
    )


def _tabulate(study: Study, distribution: str, found: Curves, size: int) -> None:
    """Give every learner and oracle its rows. Collective: no."""
    trials, rounds = found.fixed.shape
    how = f"{trials} trials of {rounds} systems drawn from {size}; median, distance of the quartiles"
    oracles = {
        f"best fixed omega in hindsight ({np.median(found.omegas):.2f})": np.diff(found.fixed, axis=1, prepend=0.0),
        "best omega of the grid for each system": found.instance,
    }
    for name, paid in (found.incurred | oracles).items():
        row: Row = {"shifts": distribution, "omega by": name, **_spread("iterations", paid.mean(axis=1))}
        if name in found.microseconds:
            row |= _spread("CPU microseconds a choice", found.microseconds[name])
        study.row(f"SOR, iterations a solve: {how}", row)
    for name in found.incurred:
        for horizon in (rounds // 10, rounds):
            row = {"shifts": distribution, "omega by": name, "T": horizon}
            row |= _spread("on the best fixed", found.regret(name)[:, horizon - 1])
            row |= _spread("on the best each time", found.regret(name, "instance")[:, horizon - 1])
            if horizon == rounds:
                row["exponent, fixed"] = growth_exponent(np.median(found.regret(name), axis=0))
                row["exponent, each time"] = growth_exponent(np.median(found.regret(name, "instance"), axis=0))
            study.row(f"SOR, regret at T in iterations: {how}", row)


def _change(study: Study, pools: list[Pool], trials: int, rounds: int) -> None:
    """Replay FOLLOWERS while the shifts' distribution changes half way from the first pool to the second.

    Collective: yes.
    """

    def play() -> list[Row]:
        generator = random_stream("bench.relax.change", study.settings.seed)
        paid: dict[str, list[float]] = {name: [] for name in ("best fixed omega", "best with one switch", *FOLLOWERS)}
        for trial in range(trials):
            costs = np.concatenate(
                [pool.costs[generator.integers(len(pool.costs), size=rounds // 2)] for pool in pools]
            )
            paid["best fixed omega"].append(costs[:, best_fixed(costs)].mean())
            paid["best with one switch"].append(costs[np.arange(len(costs)), best_switching(costs, 1)].mean())
            for name, make in FOLLOWERS.items():
                paid[name].append(replay(make(study.settings.seed + trial), costs).incurred.mean())
        least = np.array(paid["best with one switch"])
        return [
            {
                "omega by": name,
                **_spread("iterations a solve", np.array(values)),
                "over one switch": float(np.median(np.array(values) / least)),
            }
            for name, values in paid.items()
        ]

    for row in on_root(study.comm, play):
        study.row("SOR, the shifts' distribution changes from low to high variance half way", row)


def _spread(name: str, values: npt.NDArray[np.float64]) -> Row:
    """Return median and distance of the quartiles over the trials as columns. Collective: no."""
    lower, middle, upper = np.percentile(values, [25.0, 50.0, 75.0])
    return {name: float(middle), f"{name} spread": float(upper - lower)}
