"""Errors that reach every rank, random streams, the launcher check, and jobs that end instead of hanging."""

import contextlib
import gc
import os
import pathlib
import subprocess
import sys
import textwrap
import time
import weakref

from mpi4py import MPI

import numpy as np
import pytest

from pdeopt import parallel
from pdeopt.parallel import CallbackErrors, check_launcher, collective_errors, on_root, raise_everywhere, random_stream
from pdeopt.report import LauncherError, MeshError, RankError

pytestmark = pytest.mark.alone

ROOT = pathlib.Path(__file__).resolve().parent.parent


def serial_environment(**extra: str) -> dict[str, str]:
    """Return an environment that no launcher has touched."""
    launchers = ("PMI", "HYD", "MPI", "OMPI", "MV2", "SLURM")
    return {name: value for name, value in os.environ.items() if not name.startswith(launchers)} | extra


def run_python(code: str, *, ranks: int = 0, seconds: float = 60, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own, or under the environment's mpiexec."""
    command = [sys.executable, "-c", textwrap.dedent(code)]
    if ranks:
        launcher = parallel.launcher_beside_interpreter()
        assert launcher is not None
        command = [str(launcher), "-n", str(ranks), *command]
    environment = serial_environment(**extra)
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=environment, cwd=ROOT)


def same_on_all_ranks(value: object) -> bool:
    """Whether all ranks hold an equal value."""
    return len(set(MPI.COMM_WORLD.allgather(value))) == 1


class ForeignError(Exception):
    """An error that no other rank can build from a message."""

    def __init__(self, code: int, place: str) -> None:
        super().__init__(code, place)

    def __str__(self) -> str:
        return "foreign failure"


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parallel([1, 2, 3])
def test_an_error_on_one_rank_is_raised_with_type_and_message_on_all():
    comm = MPI.COMM_WORLD
    cases = [
        MeshError("mesh.msh: node 7 is NaN; export it again"),
        ValueError("a message with 'quotes'"),
        KeyError("missing"),
        FileNotFoundError(2, "No such file or directory", "mesh.msh"),
        np.linalg.LinAlgError("singular"),
    ]
    for failing_rank in {0, comm.size - 1}:
        for original in cases:
            with pytest.raises(type(original)) as caught, collective_errors(comm):
                if comm.rank == failing_rank:
                    raise original
            assert type(caught.value) is type(original)
            assert str(caught.value) == str(original)
            assert same_on_all_ranks((type(caught.value).__name__, str(caught.value)))
            if comm.rank != failing_rank:
                assert caught.value.__notes__ == [f"(raised on rank {failing_rank})"]


@pytest.mark.parallel([2, 3])
def test_an_error_that_cannot_be_rebuilt_arrives_as_a_rank_error_that_quotes_it():
    comm = MPI.COMM_WORLD
    expected = ForeignError if comm.rank == 1 else RankError
    with pytest.raises(expected, match="foreign failure") as caught, collective_errors(comm):
        if comm.rank == 1:
            raise ForeignError(3, "here")
    if comm.rank != 1:
        assert "ForeignError" in str(caught.value)


@pytest.mark.parallel([1, 2, 3])
def test_the_lowest_failing_rank_speaks_for_all_and_the_own_error_is_chained():
    comm = MPI.COMM_WORLD
    with pytest.raises(ValueError, match="from rank 0") as caught:
        raise_everywhere(comm, ValueError(f"from rank {comm.rank}"))
    if comm.rank > 0:
        assert str(caught.value.__cause__) == f"from rank {comm.rank}"


@pytest.mark.parallel([1, 2, 3])
def test_without_an_error_nothing_is_raised_and_the_ranks_stay_together():
    comm = MPI.COMM_WORLD
    done = []
    with collective_errors(comm):
        done.append(comm.rank)
    raise_everywhere(comm, None)
    assert comm.allreduce(len(done)) == comm.size


@pytest.mark.parallel([1, 2, 3])
def test_on_root_hands_on_the_result_and_every_kind_of_failure():
    comm = MPI.COMM_WORLD
    calls = []

    def work() -> dict[str, int]:
        calls.append(comm.rank)
        return {"cells": 12}

    assert on_root(comm, work) == {"cells": 12}
    assert calls == ([0] if comm.rank == 0 else [])
    assert on_root(comm, lambda: None) is None

    def fail() -> None:
        raise MeshError("cube.msh: truncated")

    with pytest.raises(MeshError, match=r"^cube\.msh: truncated"):
        on_root(comm, fail)
    # A result that cannot travel must not leave the other ranks waiting for it.
    if comm.size > 1:
        with pytest.raises(Exception, match=r"pickle|serial|lambda"):
            on_root(comm, lambda: lambda: 1)
    assert comm.allreduce(1) == comm.size


@pytest.mark.parallel([1, 2, 3])
def test_callback_errors_wait_until_all_ranks_can_raise_them():
    comm = MPI.COMM_WORLD
    errors = CallbackErrors(comm)
    values = np.zeros(3)
    for attempt in ("first", "second"):
        with errors.guard(lambda: values.fill(np.nan)):
            if comm.rank == comm.size - 1:
                raise MeshError(f"{attempt} failure")
    assert bool(np.isnan(values).all()) == (comm.rank == comm.size - 1)
    with pytest.raises(MeshError, match=r"^first failure"):
        errors.raise_stored()
    errors.raise_stored()  # raised once, then forgotten


def test_a_caught_error_keeps_nothing_of_the_failed_call_alive():
    class Solver:
        pass

    def failing_call(observers: list[weakref.ref[Solver]]) -> None:
        solver = Solver()
        observers.append(weakref.ref(solver))
        with collective_errors(MPI.COMM_SELF):
            raise ValueError("no")

    observers: list[weakref.ref[Solver]] = []
    gc.collect()
    gc.disable()
    try:
        with contextlib.suppress(ValueError):
            failing_call(observers)
        assert observers[0]() is None
    finally:
        gc.enable()


# --- random numbers ---------------------------------------------------------------------------------------------------


@pytest.mark.parallel([1, 2, 3])
def test_random_streams_are_reproducible_and_belong_to_name_seed_and_rank():
    comm = MPI.COMM_WORLD

    def draw(*arguments: object) -> tuple[float, ...]:
        return tuple(random_stream(*arguments).random(4))

    common = draw("taylor_test.direction", 3)
    # The literal pins the stream across releases and rank counts: published seeds keep their meaning.
    assert common[0] == pytest.approx(0.9039776806756952, rel=1e-15)
    assert same_on_all_ranks(common)
    assert draw("taylor_test.direction", 3) == common
    assert draw("taylor_test.direction", 4) != common
    assert draw("other", 3) != common

    own = draw("taylor_test.direction", 3, comm)
    assert own == draw("taylor_test.direction", 3, comm)
    assert len({common, *comm.allgather(own)}) == comm.size + 1


# --- launchers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "size"),
    [
        ({}, 1),
        ({}, 4),
        ({"PMI_SIZE": "4"}, 4),
        ({"PMI_SIZE": ""}, 1),
        ({"PMI_SIZE": "many"}, 1),
        ({"SLURM_NTASKS": "8"}, 1),  # an allocation's shell, where nothing has been launched
        ({"SLURM_STEP_NUM_TASKS": "1", "PMI_SIZE": "4"}, 4),  # mpiexec inside a shell that srun started
    ],
)
def test_a_launcher_that_agrees_with_mpi_is_accepted(environment, size):
    check_launcher(environment, size)


@pytest.mark.parametrize(
    ("variable", "launcher"),
    [
        ("PMI_SIZE", "MPICH"),
        ("OMPI_COMM_WORLD_SIZE", "Open MPI"),
        ("MV2_COMM_WORLD_SIZE", "MVAPICH"),
        ("SLURM_STEP_NUM_TASKS", "srun"),
    ],
)
def test_a_launcher_that_disagrees_with_mpi_is_refused_by_name(variable, launcher):
    with pytest.raises(LauncherError, match=rf"{launcher}.*{variable}=3.*sees 1.*use ") as caught:
        check_launcher({variable: "3"}, 1)
    assert "\n" not in str(caught.value)


def test_a_program_started_by_a_foreign_launcher_fails_in_one_line_with_the_remedy():
    result = run_python("import pdeopt; print('went on')", PMI_SIZE="3")
    assert result.returncode != 0
    assert "went on" not in result.stdout
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert "started 3 ranks" in lines[0]
    assert "mpiexec" in lines[0]


def test_the_launcher_beside_the_interpreter_starts_one_job_of_the_right_size():
    # One write a line: print() writes its parts one by one where output is not buffered, and ranks would mix them.
    program = (
        "import os, pdeopt; from mpi4py import MPI; comm = MPI.COMM_WORLD; "
        "os.write(1, f'{comm.rank} {comm.size}\\n'.encode())"
    )
    result = run_python(program, ranks=2)
    assert result.returncode == 0, result.stderr
    assert sorted(result.stdout.split("\n")) == ["", "0 2", "1 2"]


# --- the end of a job -------------------------------------------------------------------------------------------------


def test_an_uncaught_error_on_one_rank_ends_the_job_with_its_message():
    code = """
    import pdeopt
    from mpi4py import MPI
    if MPI.COMM_WORLD.rank == 1:
        raise pdeopt.report.MeshError("plate.msh: cell 3 has no volume")
    MPI.COMM_WORLD.barrier()
    """
    start = time.monotonic()
    result = run_python(code, ranks=2, MPIEXEC_TIMEOUT="40")
    assert time.monotonic() - start < 10
    assert result.returncode != 0
    assert "[rank 1 of 2]" in result.stderr
    assert "MeshError: plate.msh: cell 3 has no volume" in result.stderr


def test_a_test_that_fails_on_one_rank_ends_the_others_and_shows_its_traceback(tmp_path):
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    (tmp_path / "pytest.ini").write_text("[pytest]\ntimeout = 60\n")
    (tmp_path / "test_one_rank.py").write_text(
        textwrap.dedent(
            """
            import pytest
            from mpi4py import MPI

            @pytest.mark.parallel(2)
            def test_hangs_without_help():
                assert MPI.COMM_WORLD.rank == 0, "the planted failure"
                MPI.COMM_WORLD.barrier()
            """
        )
    )
    start = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "test_one_rank.py"]
    environment = serial_environment(MPIEXEC_TIMEOUT="50")
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, env=environment)
    assert time.monotonic() - start < 20
    assert result.returncode == 1, result.stdout
    assert "[rank 1 of 2]" in result.stdout
    assert "the planted failure" in result.stdout


def test_options_left_behind_fail_the_test_that_left_them(tmp_path):
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    (tmp_path / "pytest.ini").write_text("[pytest]\ntimeout = 60\n")
    (tmp_path / "test_options.py").write_text(
        textwrap.dedent(
            """
            from petsc4py import PETSc

            def test_ours():
                PETSc.Options()["kkt_7_ksp_type"] = "cg"

            def test_foreign():
                assert not PETSc.Options().getAll()
                PETSc.Options()["dolfinx_ksp_type"] = "cg"

            def test_restored():
                assert not PETSc.Options().getAll()
            """
        )
    )
    command = [sys.executable, "-m", "pytest", "-q", "test_options.py"]
    environment = serial_environment(PETSC_OPTIONS="")
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, env=environment)
    assert "3 passed, 1 error" in result.stdout, result.stdout
    assert "kkt_7_ksp_type" in result.stdout


# --- threads ----------------------------------------------------------------------------------------------------------

_COUNT_THREADS = """
import numpy
import pdeopt, threadpoolctl
print(max(pool["num_threads"] for pool in threadpoolctl.threadpool_info()))
"""


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core has one thread in any case")
def test_blas_gets_one_thread_per_rank_also_when_numpy_came_first_unless_the_user_set_it(monkeypatch):
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    assert run_python(_COUNT_THREADS).stdout.split() == ["1"]
    assert run_python(_COUNT_THREADS, OPENBLAS_NUM_THREADS="2").stdout.split() == ["2"]


def test_print_root_prints_once(capsys):
    parallel.print_root(MPI.COMM_WORLD, "cells", 12)
    assert capsys.readouterr().out == "cells 12\n"
