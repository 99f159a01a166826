"""What every test gets: launchers that fit, no hangs, an untouched option database, one directory for all ranks.

A test marked ``parallel([1, 2, 3])`` runs in this process for 1, and for 2 and 3 mpi-pytest starts pytest again
under ``mpiexec``, with this file but without the command line's flags. Under ``mpiexec -n 2 pytest -m "parallel[2]"``
all tests for two ranks run in one launch.
"""

import faulthandler
import gc
import os
import pathlib
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parent.parent
TEST_SECONDS = 300

# Before the first import of anything that reads them. mpi-pytest calls plain `mpiexec`, and the first one on PATH may
# belong to another MPI.
os.environ["PATH"] = os.pathsep.join([str(pathlib.Path(sys.prefix, "bin")), os.environ.get("PATH", "")])
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
os.environ.setdefault("MPIEXEC_TIMEOUT", str(TEST_SECONDS - 20))
os.environ.setdefault("PYVISTA_OFF_SCREEN", "true")
os.environ.setdefault("MPLBACKEND", "Agg")

from mpi4py import MPI  # noqa: E402

if MPI.COMM_WORLD.size > 1:
    # Ranks that share pytest's temporary root race to delete its links at the end of the session.
    os.environ["PYTEST_DEBUG_TEMPROOT"] = tempfile.mkdtemp(prefix=f"pdeopt_rank_{MPI.COMM_WORLD.rank}_")

import pytest  # noqa: E402
import pytest_timeout  # noqa: E402

import pdeopt  # noqa: E402, F401  (caps the threads, checks the launcher)

# Prefixes of pdeopt's own objects. DOLFINx's LinearProblem leaves its options behind; that is not ours to mend.
PDEOPT_PREFIXES = ("kkt_", "state_", "adjoint_", "reduced_", "pdeopt_")

_stderr_key = pytest.StashKey[int]()
_tests = 0  # that this process has run


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Keep a standard error that output capturing does not redirect, and let one rank report."""
    import dolfinx.jit

    # Two processes may want one form at the same time: the second waits for the first one's compiler.
    dolfinx.jit.DOLFINX_DEFAULT_JIT_OPTIONS["timeout"] = (TEST_SECONDS // 2, "Timeout for JIT compilation")
    config.stash[_stderr_key] = os.dup(2)
    if MPI.COMM_WORLD.rank > 0:  # failures are shown by the rank that fails, see `_end_all_ranks`
        config.pluginmanager.unregister(name="terminalreporter")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse what mpi-pytest would silently run as another test, or not at all; keep training in one process.

    A worker of pytest-xdist that began to train after hundreds of other tests died without a word, twice.
    """
    for item in items:
        if item.path.parent.name == "learn":
            item.add_marker("alone")
        if item.get_closest_marker("parallel") and getattr(item, "cls", None) is not None:
            raise pytest.UsageError(f"{item.nodeid}: a parallel test has to be a function of its module, not a method")


# --- no hangs ---------------------------------------------------------------------------------------------------------


def _end_all_ranks(text: str) -> None:
    """Show this rank's failure and end the others, which may wait for it in a collective call."""
    world = MPI.COMM_WORLD
    sys.stderr.write(f"\n[rank {world.rank} of {world.size}] {text}\n")
    sys.stderr.flush()
    sys.stdout.flush()
    time.sleep(1.0)  # a failure on all ranks is shown by all of them
    world.Abort(1)


def pytest_exception_interact(
    node: pytest.Item | pytest.Collector,
    call: pytest.CallInfo[object],
    report: pytest.TestReport | pytest.CollectReport,
) -> None:
    """End all ranks when a test, a fixture or the collection fails on this one."""
    if MPI.COMM_WORLD.size > 1 and call.excinfo is not None:
        error = call.excinfo.value
        _end_all_ranks(f"{node.nodeid} ({report.when})\n{''.join(traceback.format_exception(error))}")


def pytest_internalerror(excrepr: object) -> None:
    """End all ranks when pytest itself fails on this one."""
    if MPI.COMM_WORLD.size > 1:
        _end_all_ranks(str(excrepr))


def pytest_timeout_set_timer(item: pytest.Item, settings: pytest_timeout.Settings) -> bool | None:
    """Arm a watchdog that works while the process waits inside MPI, where Python's signal handlers do not run."""
    in_parallel = MPI.COMM_WORLD.size > 1
    # Ranks come first, to show where they wait before the process that launched them loses patience. In a single
    # process pytest-timeout's own signal comes first, which fails this test and goes on with the next.
    seconds = max(settings.timeout - 10, settings.timeout / 2) if in_parallel else settings.timeout + 30
    faulthandler.dump_traceback_later(seconds, exit=True, file=item.config.stash[_stderr_key])
    return True if in_parallel else None


def pytest_timeout_cancel_timer(item: pytest.Item) -> bool | None:
    """Disarm the watchdog."""
    faulthandler.cancel_dump_traceback_later()
    return True if MPI.COMM_WORLD.size > 1 else None


# --- a clean process before and after each test -----------------------------------------------------------------------


@pytest.fixture(autouse=True)
def clean_process() -> Iterator[None]:
    """Restore PETSc's option database, complain about options that pdeopt left, and collect garbage now and then."""
    from petsc4py import PETSc

    options = PETSc.Options()
    before = options.getAll()
    yield
    after = options.getAll()
    for name in after.keys() - before.keys():
        options.delValue(name)
    for name, value in before.items():
        if after.get(name) != value:
            options.setValue(name, value)
    global _tests
    _tests += 1
    if MPI.COMM_WORLD.size > 1 or _tests % 20 == 0:
        # The garbage collector runs at another moment on every rank, and destroying PETSc's objects is collective. On
        # one rank time counts, and MPI's 2,000 communicators.
        gc.collect()
        PETSc.garbage_cleanup(PETSc.COMM_WORLD)
        MPI.COMM_WORLD.barrier()
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    left = [name for name in changed if name.startswith(PDEOPT_PREFIXES)]
    if left:
        pytest.fail(f"options left in PETSc's database: {', '.join(left)}")


@pytest.fixture
def shared_tmp_path(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """One empty directory for all ranks; `tmp_path` is another one on every rank."""
    yield MPI.COMM_WORLD.bcast(tmp_path)
    MPI.COMM_WORLD.barrier()  # rank 0 removes it afterwards
