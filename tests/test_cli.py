"""The command line, as a user calls it: what it prints, where, and with which exit status."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from pdeopt import cli
from pdeopt._launchers import clean_environment
from pdeopt.bench import BENCHES, case

pytestmark = pytest.mark.alone

TOY_BENCH = """
from pdeopt.bench.harness import BenchResult, Target, say

def run(settings, comm):
    from petsc4py import PETSc
    say(comm, "toy: 1 of 1")
    row = {"n": 8 if settings.quick else 64, "repeat": settings.repeat, "seed": settings.seed, "ranks": comm.size}
    row["option"] = PETSc.Options().getString("toy_option", "none")
    return BenchResult("toy", [row], [Target("toy.1", "it fails", 2.0, 1.0)])
"""

DEMO = """# # A small demo
import sys

from mpi4py import MPI

if MPI.COMM_WORLD.rank == 0:
    print(MPI.COMM_WORLD.size, "ranks", sys.argv[1:])
    sys.exit(3 if "--fail" in sys.argv else 0)
"""


def run(*words, cwd=None, program=("-m", "pdeopt"), **variables):
    return subprocess.run(
        [sys.executable, *program, *words],
        cwd=cwd,
        env=clean_environment(os.environ) | variables,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.fixture
def toy(tmp_path, monkeypatch):
    (tmp_path / "toy_bench.py").write_text(TOY_BENCH)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(BENCHES, "toy", "toy_bench")


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    (tmp_path / "demos").mkdir()
    (tmp_path / "demos" / "small.py").write_text(DEMO)
    monkeypatch.setattr("pdeopt.__file__", str(tmp_path / "pdeopt" / "__init__.py"))


def status_of(*words):
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    return stop.value.code


def test_commands_that_start_scripts_stay_light():
    job = run("-X", "importtime", "-m", "pdeopt", "run", "--", "true", program=())
    assert job.returncode == 0
    loaded = {line.rpartition("|")[2].strip() for line in job.stderr.splitlines()}
    assert "pdeopt.relaxation.launch" in loaded
    assert not loaded & {"mpi4py", "numpy", "rich", "cyclopts", "petsc4py"}


class TestInfo:
    def test_shows_versions_and_solves(self):
        job = run("info")
        assert job.returncode == 0, job.stdout + job.stderr
        for word in ("dolfinx", "mumps", "launcher", "C compiler", "cyipopt", "check ok"):
            assert word in job.stdout

    def test_works_without_dolfinx_and_says_how_to_get_it(self):
        code = "import sys; sys.modules['dolfinx'] = None; from pdeopt.cli import main; main(['info'])"
        job = run(program=("-c", code))
        assert job.returncode == 1
        assert "dolfinx is missing: pip install dolfinx-solver-real, or conda install" in job.stdout
        assert "check FAILED" in job.stdout
        assert "Traceback" not in job.stdout + job.stderr

    def test_names_a_foreign_launcher_and_a_missing_compiler(self, tmp_path, monkeypatch):
        foreign = tmp_path / "mpirun"
        foreign.write_text("#!/bin/sh\n")
        foreign.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setenv("CC", "no-such-compiler -O2")
        warnings = "\n".join(cli._problems())
        assert f"mpirun on the PATH is {foreign}" in warnings
        assert "no C compiler" in warnings

    def test_missing_optional_package_comes_with_both_ways_to_get_it(self, monkeypatch, capsys):
        absent = cli.OptionalPackage("no_such_module", "none", "nothing", "pip install 'pdeopt[learn]'", "conda-name")
        monkeypatch.setattr(cli, "OPTIONAL_PACKAGES", (absent,))
        assert status_of("info") == 0
        assert "missing  nothing  pip install 'pdeopt[learn]'; conda: conda-name" in capsys.readouterr().out


class TestUsage:
    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("bench", "contrl"), "no benchmark 'contrl': did you mean 'control'?"),
            (("bench", "zzz"), "no benchmark 'zzz': choose from control"),
            (("bench", "control", "--quikc"), "Did you mean --quick?"),
            (("bench", "control", "extra"), "options for PETSc stand after --"),
            (("bnch",), 'Did you mean "bench"?'),
        ],
    )
    def test_unknown_word_is_one_line_and_status_2(self, words, message, capsys):
        assert status_of(*words) == 2
        shown = capsys.readouterr()
        assert message in shown.err
        assert shown.err.startswith("pdeopt: ")
        assert shown.err.count("\n") == 1
        assert shown.out == ""

    def test_the_same_from_a_shell(self):
        job = run("bench", "contrl")
        assert (job.returncode, job.stdout) == (2, "")
        assert job.stderr == "pdeopt: no benchmark 'contrl': did you mean 'control'?\n"

    @pytest.mark.parametrize("command", [(), ("info",), ("demo",), ("bench",)])
    def test_help(self, command, capsys):
        assert not status_of(*command, "--help")
        assert "Usage: pdeopt" in capsys.readouterr().out


class TestDemo:
    def test_list_has_titles(self, checkout, capsys):
        assert status_of("demo") == 0
        assert capsys.readouterr().out.split() == ["small", "A", "small", "demo"]

    def test_unknown_demo(self, checkout, capsys):
        assert status_of("demo", "smal") == 2
        assert capsys.readouterr().err == "pdeopt: no demo 'smal': did you mean 'small'?\n"

    def test_no_demos_at_all(self, checkout, tmp_path, monkeypatch, capsys):
        (tmp_path / "demos" / "small.py").unlink()
        monkeypatch.chdir(tmp_path)
        assert status_of("demo", "small") == 2
        assert "source checkout" in capsys.readouterr().err

    def test_ranks_arguments_and_status_pass_through(self, checkout, capfd):
        assert status_of("demo", "small", "-n", "2", "--mesh", "32", "--", "-n", "5") == 0
        assert "2 ranks ['--mesh', '32', '-n', '5']" in capfd.readouterr().out
        assert status_of("demo", "small", "--fail") == 3


class TestBench:
    def test_prints_table_and_missed_target(self, toy, capsys):
        assert status_of("bench", "toy", "--quick") == 0
        shown = capsys.readouterr()
        assert "toy.1" in shown.out
        assert "NO" in shown.out
        assert shown.err == "toy: 1 of 1\n"

    def test_markdown(self, toy, capsys):
        assert status_of("bench", "toy", "--markdown", "--repeat", "7") == 0
        assert "| n | repeat | seed | ranks | option |\n| --- |" in capsys.readouterr().out

    def test_full_runs_that_are_kept_draw_the_sealed_seed_and_count_looks(self, toy, tmp_path):
        path = tmp_path / "toy.json"
        entries = []
        for quick in ([], ["--quick"], []):
            assert status_of("bench", "toy", "--json", str(path), *quick) == 0
            entries.append(json.loads(path.read_text()))
        assert [entry["looks"] for entry in entries] == [1, 1, 2]
        assert [entry["quick"] for entry in entries] == [False, True, False]
        assert [entry["repeat"] for entry in entries] == [5, 2, 5]
        assert entries[0]["seed"] == entries[2]["seed"] == entries[0]["rows"][0]["seed"] > 0
        assert entries[1]["seed"] == 0

    def test_damaged_record_is_one_line(self, toy, tmp_path, capsys):
        path = tmp_path / "toy.json"
        path.write_text("{")
        assert status_of("bench", "toy", "--json", str(path)) == 1
        assert "not JSON" in capsys.readouterr().err
        assert path.read_text() == "{"

    def test_two_ranks_print_once_and_petsc_reads_what_stands_after_the_dashes(self, tmp_path):
        (tmp_path / "toy_bench.py").write_text(TOY_BENCH)
        code = "from pdeopt import bench, cli; bench.BENCHES['toy'] = 'toy_bench'; cli.main()"
        words = ["bench", "toy", "--quick", "--markdown", "--", "-toy_option", "found"]
        job = subprocess.run(
            [*case.launch_command(2), "-c", code, *words],
            env=clean_environment(os.environ) | {"PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert job.returncode == 0, job.stderr
        assert job.stdout.count("**toy**") == 1
        assert "| 8 | 2 | 0 | 2 | found |" in job.stdout
        assert job.stderr == "toy: 1 of 1\n"


def test_listed_benchmarks_are_the_ones_that_exist():
    folder = pathlib.Path(cli.__file__).parent.parent
    assert all((folder / f"{module.replace('.', '/')}.py").exists() for module in BENCHES.values())
