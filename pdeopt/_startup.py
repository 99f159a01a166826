"""What must happen before anything else in the process: threads, MPI, the launcher check, no hangs."""

import importlib.util
import os
import sys
import traceback
from collections.abc import Sequence
from types import TracebackType

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")


def prepare_process() -> None:
    """Cap threads, load MPI, check its launcher, and make an uncaught error end every rank.

    Nothing is done in a process that is ``pdeopt run`` or ``pdeopt tune``: it only starts another one. Collective: no
    (MPI_Init apart).
    """
    if _only_starts_a_script(sys.orig_argv):
        return
    # A library that is already in the process has read these variables, and has to be told by other means.
    tell_loaded_libraries = "numpy" in sys.modules and not any(name in os.environ for name in _THREAD_VARIABLES)
    for variable in _THREAD_VARIABLES:
        os.environ.setdefault(variable, "1")
    if importlib.util.find_spec("mpi4py") is None:
        return  # `pdeopt info` still has to be able to say that it is missing
    from mpi4py import MPI

    from pdeopt.parallel import check_launcher, limit_threads

    if tell_loaded_libraries:
        limit_threads()
    _end_all_ranks_on_uncaught_errors()
    check_launcher(os.environ, MPI.COMM_WORLD.size)


def _only_starts_a_script(words: Sequence[str]) -> bool:
    """Whether a process with this command line is ``pdeopt run`` or ``pdeopt tune``."""
    ours = list(words[1:])
    while ours and ours[0].startswith("-") and ours[0] != "-m":  # options of the interpreter, and their values
        del ours[: 2 if ours[0] in ("-X", "-W") else 1]
    if ours[:2] == ["-m", "pdeopt"]:
        return ours[2:3] in (["run"], ["tune"])
    return bool(ours) and os.path.basename(ours[0]) == "pdeopt" and ours[1:2] in (["run"], ["tune"])


def _end_all_ranks_on_uncaught_errors() -> None:
    """Install the hook that ends all ranks where one dies of an exception and the others would wait for ever."""
    previous_hook = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        from mpi4py import MPI

        from pdeopt.report import LauncherError

        if issubclass(kind, LauncherError):
            # Nothing in the program is wrong: its traceback would only hide the one line that helps.
            sys.stderr.write(f"pdeopt: {error}\n")
            return
        if MPI.COMM_WORLD.size == 1 or MPI.Is_finalized():
            previous_hook(kind, error, trace)
            return
        if issubclass(kind, KeyboardInterrupt):
            previous_hook(kind, error, trace)
        else:
            text = "".join(traceback.format_exception(kind, error, trace))
            sys.stderr.write(f"[rank {MPI.COMM_WORLD.rank} of {MPI.COMM_WORLD.size}]\n{text}")
        sys.stderr.flush()
        sys.stdout.flush()
        MPI.COMM_WORLD.Abort(1)

    sys.excepthook = hook
