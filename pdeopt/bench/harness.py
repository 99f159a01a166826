"""What a benchmark is made of: settings, targets, paired interleaved timings and peak memory."""

import dataclasses
import math
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from pdeopt.report import InputError

if TYPE_CHECKING:
    from mpi4py import MPI

type Value = str | int | float | bool | None
type Row = dict[str, Value]


@dataclasses.dataclass(frozen=True)
class BenchSettings:
    """How a benchmark is to be run.

    Parameters
    ----------
    quick
        Small sizes, for the tests: seconds instead of minutes.
    repeat
        Timed repeats of every arm, >= 1.
    seed
        Seed of everything drawn at random, >= 0. The command line passes the sealed test seed only to a full run whose
        JSON is kept, so that every look at the test cases is counted; every other run uses validation seed 0.
    """

    quick: bool = False
    repeat: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.repeat < 1:
            raise InputError(f"repeat is {self.repeat}: at least one timed repeat is needed")


@dataclasses.dataclass(frozen=True)
class Target:
    """One line of "What it must show", with the value that was measured.

    Parameters
    ----------
    id
        Name of the bench and number of the line ("control.1").
    claim
        The line, with the unit of the value.
    value
        The measured value; None or NaN when it could not be measured.
    bound
        What the value is compared with.
    sense
        ``"<="`` when smaller is better, ``">="`` when larger is.
    """

    id: str
    claim: str
    value: float | None
    bound: float | None
    sense: Literal["<=", ">="] = "<="

    def __post_init__(self) -> None:
        if self.sense not in ("<=", ">="):
            raise InputError(f"target {self.id}: sense is {self.sense!r}, it must be '<=' or '>='")

    @property
    def holds(self) -> bool:
        """Whether the value meets the bound; what was not measured (None, NaN) never does."""
        if self.value is None or self.bound is None or math.isnan(self.value) or math.isnan(self.bound):
            return False
        return bool(self.value <= self.bound if self.sense == "<=" else self.value >= self.bound)


@dataclasses.dataclass(frozen=True)
class BenchResult:
    """What a benchmark found.

    Parameters
    ----------
    bench
        Its name.
    rows
        Flat dictionaries, one per line of the table. Rows that differ in the value of the key ``"table"`` are printed
        as separate tables under that title, each with the columns of its own rows.
    targets
        The lines of "What it must show", in their order.
    """

    bench: str
    rows: list[Row]
    targets: list[Target]


class Bench(Protocol):
    """What a module named in `pdeopt.bench.BENCHES` offers."""

    def run(self, settings: BenchSettings, comm: "MPI.Comm") -> BenchResult:
        """Run the benchmark. Collective: yes."""


@dataclasses.dataclass(frozen=True)
class Timing[Result]:
    """Wall seconds of one arm, each sample that of the slowest rank, and what its last call returned."""

    samples: tuple[float, ...]
    result: Result

    @property
    def median(self) -> float:
        """Median of the samples [s]."""
        return statistics.median(self.samples)

    @property
    def minimum(self) -> float:
        """Fastest sample [s]."""
        return min(self.samples)

    @property
    def maximum(self) -> float:
        """Slowest sample [s]."""
        return max(self.samples)

    @property
    def interquartile_range(self) -> float:
        """Distance of the quartiles [s]: the spread that one disturbed sample does not blow up."""
        lower, upper = np.percentile(self.samples, [25.0, 75.0])
        return float(upper - lower)

    def columns(self, name: str = "seconds") -> Row:
        """Return median and spread as columns of a row."""
        return {name: self.median, f"{name} spread": self.interquartile_range}


def paired_times[Result](
    arms: Mapping[str, Callable[[], Result]], repeat: int, comm: "MPI.Comm"
) -> dict[str, Timing[Result]]:
    """Time several ways to do the same thing, interleaved, so that a slow minute of the machine hits all of them.

    Every arm is called once to warm up, then ``repeat`` times in rounds; every other round runs in reverse order,
    so that no arm always profits from the cache that its predecessor filled.

    Parameters
    ----------
    arms
        Name of each arm and the collective call that is timed.
    repeat
        Number of rounds, >= 1.
    comm
        Communicator of the calls: a barrier stands before each, and a sample is the time of the slowest rank [s].

    Raises
    ------
    InputError
        If ``repeat`` is less than 1.

    Collective: yes.
    """
    if repeat < 1:
        raise InputError(f"repeat is {repeat}: at least one timed round is needed")
    results = {name: call() for name, call in arms.items()}
    samples: dict[str, list[float]] = {name: [] for name in arms}
    order = list(arms)
    for _ in range(repeat):
        for name in order:
            comm.Barrier()
            start = time.perf_counter()
            results[name] = arms[name]()
            samples[name].append(_slowest(time.perf_counter() - start, comm))
        order.reverse()
    return {name: Timing(tuple(samples[name]), results[name]) for name in arms}


def ratio(arm_a: Timing[object], arm_b: Timing[object]) -> float:
    """Return the median over the rounds of the time of ``arm_a`` divided by that of ``arm_b``.

    Both must come from the same call of `paired_times`: pairing removes what the machine did to both.

    Raises
    ------
    InputError
        If the arms have different numbers of samples, and so are not paired.

    Collective: no.
    """
    if len(arm_a.samples) != len(arm_b.samples):
        raise InputError(f"the arms have {len(arm_a.samples)} and {len(arm_b.samples)} samples: they are not paired")
    return statistics.median(a / b for a, b in zip(arm_a.samples, arm_b.samples, strict=True))


def peak_memory(comm: "MPI.Comm") -> float:
    """Return the peak resident memory of the job so far, summed over its ranks [MiB].

    The peak never falls again, so compare methods only between fresh processes (`pdeopt.bench.case.run_case`).
    Shared libraries count once per rank, some 100 MiB each.

    Collective: yes.
    """
    from mpi4py import MPI

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    mebibytes = peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # macOS counts bytes, Linux KiB
    return float(comm.allreduce(mebibytes, op=MPI.SUM))


def say(comm: "MPI.Comm", text: str) -> None:
    """Print a line of progress on rank 0, to stderr: stdout belongs to the table. Collective: no."""
    if comm.rank == 0:
        print(text, file=sys.stderr, flush=True)


def _slowest(seconds: float, comm: "MPI.Comm") -> float:
    from mpi4py import MPI

    return float(comm.allreduce(seconds, op=MPI.MAX))
