"""What every room needs under MPI: errors that reach all ranks, random streams, verdicts, threads."""

import ast
import contextlib
import hashlib
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pdeopt._launchers import LAUNCHER_SIZES, announced_sizes
from pdeopt.report import LauncherError, RankError

if TYPE_CHECKING:
    from mpi4py import MPI

# An error as it travels between ranks: module and name of its type, and its message.
_Verdict = tuple[str, str, str]


def launcher_beside_interpreter() -> pathlib.Path | None:
    """Return the ``mpiexec`` that belongs to this interpreter's environment, if it has one."""
    for name in ("mpiexec", "mpirun"):
        candidate = pathlib.Path(sys.prefix, "bin", name)
        if candidate.exists():
            return candidate
    return None


def check_launcher(environment: Mapping[str, str], size: int) -> None:
    """Refuse to run when the launcher started another number of ranks than MPI sees.

    Without this check a foreign ``mpirun -n 4`` runs four serial copies that overwrite each other's files.

    Parameters
    ----------
    environment
        The process environment.
    size
        Size of ``MPI.COMM_WORLD``.

    Raises
    ------
    LauncherError
        If a launcher announced a size different from ``size``.
    """
    announced = announced_sizes(environment)
    # One that agrees is enough: inside a shell that srun started, mpiexec's ranks carry both variables.
    if not announced or size in announced.values():
        return
    variable, count = next(iter(announced.items()))
    ours = launcher_beside_interpreter()
    remedy = f"use {ours}" if ours else "use the mpiexec of the environment that mpi4py was installed in"
    raise LauncherError(
        f"{LAUNCHER_SIZES[variable]} started {count} ranks ({variable}={count}), but MPI of this Python sees {size}: "
        f"the launcher belongs to another MPI; {remedy}"
    )


def _describe_error(error: Exception) -> _Verdict:
    """Return what another rank needs to raise the same error: the type's module, its name, and the message."""
    return type(error).__module__, type(error).__qualname__, str(error)


def _rebuild_error(verdict: _Verdict, rank: int) -> Exception:
    """Return the exception of another rank as the same type and message, or a `RankError` that quotes it."""
    module, name, message = verdict
    error_type = getattr(sys.modules.get(module), name, None)
    rebuilt: Exception | None = None
    if isinstance(error_type, type) and issubclass(error_type, Exception):
        with contextlib.suppress(Exception):  # types with other constructors, such as UnicodeDecodeError
            # KeyError prints its argument quoted, and the message to repeat already has those quotes.
            argument = ast.literal_eval(message) if issubclass(error_type, KeyError) else message
            candidate = error_type(argument)
            rebuilt = candidate if str(candidate) == message else None
    if rebuilt is None:
        rebuilt = RankError(f"{name}: {message}")
    rebuilt.add_note(f"(raised on rank {rank})")
    return rebuilt


def raise_everywhere(comm: "MPI.Comm", error: Exception | None) -> None:
    """Raise on all ranks the error of the lowest rank that has one.

    Parameters
    ----------
    comm
        Communicator over which the verdict is shared.
    error
        This rank's error, or None.

    Collective: yes.
    """
    verdicts = comm.allgather(None if error is None else _describe_error(error))
    try:
        for rank, verdict in enumerate(verdicts):
            if verdict is None:
                continue
            if error is not None and rank == comm.rank:
                raise error
            raise _rebuild_error(verdict, rank) from error
    finally:
        # The traceback holds this frame: without the cut it would keep the solvers of the failed call alive until
        # the garbage collector runs, which it does at another moment on every rank.
        del error


@contextlib.contextmanager
def collective_errors(comm: "MPI.Comm") -> Iterator[None]:
    """Run rank-local work; an exception on one rank becomes the same exception on every rank.

    The body must not communicate: a rank that fails never reaches the others' collective call.

    Collective: yes, at the end of the block.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as caught:
        error = caught
    try:
        raise_everywhere(comm, error)
    finally:
        error = None  # see raise_everywhere


def on_root[Result](comm: "MPI.Comm", function: Callable[[], Result]) -> Result:
    """Call ``function`` on rank 0 and hand its result, or its exception, to all ranks.

    Collective: yes. The result travels by mpi4py's object broadcast: keep it small.
    """
    if comm.rank != 0:
        verdict, result = comm.bcast(None)
        if verdict is not None:
            raise _rebuild_error(verdict, 0)
        return result
    try:
        result = function()
        # A result that cannot be serialised fails here before anything is sent, so the others still wait for a verdict.
        comm.bcast((None, result))
    except Exception as error:
        comm.bcast((_describe_error(error), None))
        raise
    return result


class CallbackErrors:
    """Exceptions of user callbacks, kept until all ranks can raise them together.

    A callback that raises inside PETSc on one rank leaves the others waiting in its next reduction. Wrapped by
    `guard` it stores the error and poisons its local result instead; PETSc then stops on all ranks, and
    `raise_stored` must be called after *every* solve, since a line search can absorb the NaN.
    """

    def __init__(self, comm: "MPI.Comm") -> None:
        self.comm = comm
        self._error: Exception | None = None

    @contextlib.contextmanager
    def guard(self, poison: Callable[[], object] | None = None) -> Iterator[None]:
        """Run a callback's body; on an exception store it and call ``poison``. Collective: no."""
        try:
            yield
        except Exception as caught:
            if self._error is None:
                self._error = caught
            if poison is not None:
                poison()

    def any_stored(self) -> bool:
        """Whether any rank has stored an error. Collective: yes."""
        return any(self.comm.allgather(self._error is not None))

    def raise_stored(self) -> None:
        """Raise the stored error of any rank on every rank. Collective: yes."""
        error, self._error = self._error, None
        try:
            raise_everywhere(self.comm, error)
        finally:
            error = None  # see raise_everywhere


def random_stream(name: str, seed: int = 0, comm: "MPI.Comm | None" = None) -> np.random.Generator:
    """Return the random generator that belongs to a name.

    Parameters
    ----------
    name
        What the numbers are for ("taylor_test.direction"); other names give independent streams.
    seed
        The run's seed, >= 0.
    comm
        None gives the same stream on all ranks; a communicator gives one independent stream per rank.

    Collective: no.
    """
    key = [int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")]
    if comm is not None:
        key.append(comm.rank + 1)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def normal_numbers(name: str, keys: npt.NDArray[np.int64], seed: int = 0) -> npt.NDArray[np.float64]:
    """Return standard normal numbers that depend on name, seed and keys alone: alike on every number of ranks.

    Parameters
    ----------
    name
        What the numbers are for, as in `random_stream`.
    keys
        Integers that tell the numbers apart, such as rounded coordinates, shape (count, columns); equal rows get equal
        numbers.
    seed
        The run's seed, >= 0.

    Returns
    -------
    numbers
        Shape (count,), by Box and Muller from two uniform numbers, each a hash of its row (finaliser of SplitMix64).

    Collective: no.
    """
    start = random_stream(name, seed).integers(2**63, dtype=np.uint64)
    hashed = np.full(keys.shape[0], start, dtype=np.uint64)
    for column in keys.T:
        hashed = _scramble(hashed ^ column.astype(np.uint64))
    first, second = (_scramble(hashed + np.uint64(number)) / 2.0**64 for number in (1, 2))
    radius = np.sqrt(-2.0 * np.log1p(-first * (1.0 - 2.0**-53)))
    return np.asarray(radius * np.cos(2.0 * np.pi * second))


def _scramble(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    values = values + np.uint64(0x9E3779B97F4A7C15)  # arrays of integers wrap around silently
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def limit_threads(count: int = 1) -> None:
    """Cap the BLAS threads of this rank, unless the user set ``OMP_NUM_THREADS`` to something else.

    Collective: no.
    """
    import threadpoolctl

    if os.environ.get("OMP_NUM_THREADS", "1") == "1":
        threadpoolctl.threadpool_limits(count)


def print_root(comm: "MPI.Comm", *parts: object) -> None:
    """Print on rank 0 and flush, so that lines of a parallel run appear in order. Collective: no."""
    if comm.rank == 0:
        print(*parts, flush=True)
