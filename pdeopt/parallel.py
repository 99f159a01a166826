"""What every room needs under MPI: errors that reach all ranks, random streams, verdicts, threads."""

import builtins
import contextlib
import hashlib
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from pdeopt import report
from pdeopt.report import LauncherError, RankError

if TYPE_CHECKING:
    from mpi4py import MPI

# Number of ranks that each launcher announces to the processes it starts. SLURM_NTASKS is left out
# on purpose: it is set in an allocation's shell, where nothing has been launched yet.
_LAUNCHER_SIZES = {
    "PMI_SIZE": "MPICH's mpiexec",
    "OMPI_COMM_WORLD_SIZE": "Open MPI's mpirun",
    "MV2_COMM_WORLD_SIZE": "MVAPICH's mpirun",
    "SLURM_STEP_NUM_TASKS": "srun",
}


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
    for variable, launcher in _LAUNCHER_SIZES.items():
        announced = environment.get(variable, "")
        if announced.isdigit() and int(announced) != size:
            ours = launcher_beside_interpreter()
            remedy = f"use {ours}" if ours else "use the mpiexec of the environment that mpi4py was installed in"
            raise LauncherError(
                f"{launcher} started {announced} ranks ({variable}={announced}), but MPI of this Python sees {size}: "
                f"the launcher belongs to another MPI; {remedy}"
            )


def _rebuild_error(kind: str, message: str, rank: int, own_rank: int) -> Exception:
    """Return the exception of another rank as the same type here, or a `RankError` that quotes it."""
    error_type = getattr(report, kind, None) or getattr(builtins, kind, None)
    text = message if rank == own_rank else f"{message} [on rank {rank}]"
    if isinstance(error_type, type) and issubclass(error_type, Exception):
        with contextlib.suppress(TypeError):  # types with other constructors, such as UnicodeDecodeError
            return error_type(text)
    return RankError(f"{kind}: {text}")


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
    verdicts = comm.allgather(None if error is None else (type(error).__name__, str(error)))
    failed = [rank for rank, verdict in enumerate(verdicts) if verdict is not None]
    if not failed:
        return
    if error is not None and failed[0] == comm.rank:
        raise error
    raise _rebuild_error(*verdicts[failed[0]], failed[0], comm.rank) from error


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
    raise_everywhere(comm, error)


def on_root[Result](comm: "MPI.Comm", function: Callable[[], Result]) -> Result:
    """Call ``function`` on rank 0 and hand its result, or its exception, to all ranks.

    Collective: yes. The result travels by mpi4py's object broadcast: keep it small.
    """
    error: Exception | None = None
    result: Result | None = None
    if comm.rank == 0:
        try:
            result = function()
        except Exception as caught:
            error = caught
    verdict = comm.bcast(None if error is None else (type(error).__name__, str(error)))
    if error is not None:
        raise error
    if verdict is not None:
        raise _rebuild_error(*verdict, 0, 0)
    return comm.bcast(result)  # type: ignore[no-any-return]


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
            self._error = self._error or caught
            if poison is not None:
                poison()

    def raise_stored(self) -> None:
        """Raise the stored error of any rank on every rank. Collective: yes."""
        error, self._error = self._error, None
        raise_everywhere(self.comm, error)


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
