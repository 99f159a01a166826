"""`pdeopt bench control` at its quick sizes: every part runs, and its rows and targets are what tables need."""

import math

from mpi4py import MPI

import pytest

from pdeopt.bench import control, control_cases
from pdeopt.bench.harness import BenchSettings
from pdeopt.bench.study import number
from pdeopt.report import InputError


@pytest.fixture
def bench():
    return control._Bench(BenchSettings(quick=True, repeat=1), MPI.COMM_WORLD)


def targets(bench):
    return {target.id.removeprefix("control."): target for target in bench.targets}


def test_orders(bench):
    control._orders(bench)
    found = targets(bench)
    assert found.keys() == {"1a", "1b", "1c", "1d", "1e", "1f", "1g"}
    assert all(found[name].holds for name in ("1b", "1c", "1e", "1f", "1g"))
    assert {row["problem"] for row in bench.rows} == {"distributed", "bounds", "boundary", "nonlinear", "constraint"}


def test_derivatives(bench):
    control._derivatives(bench)
    assert all(target.holds for target in bench.targets)
    assert len(bench.targets) == 4


def test_iterations(bench):
    control._iterations(bench)
    found = targets(bench)
    assert all(found[name].holds for name in ("3a", "3b", "3c", "3d", "3e", "3f"))
    assert len(bench.rows) == len(control.ALPHAS) * len(bench.sizes.iterations) * 2


def test_cases_in_processes_of_their_own(bench):
    control._ranks(bench)
    assert all(target.holds for target in bench.targets)
    row = control_cases.compete(MPI.COMM_WORLD, 8, 1e-4, "bntr")
    assert row["converged"]
    assert row["seconds"] > 0.0
    assert control_cases.compete(MPI.COMM_WORLD, 8, 1e-4, "bqnls")["objective"] == pytest.approx(row["objective"])


def test_speed_compares_with_the_faster_factorisation():
    row = control_cases.speed(MPI.COMM_WORLD, "distributed", 8, 1e-4, 1, ["matched_schur"])
    assert row["unknowns"] == 3 * 81
    assert row["MUMPS / matched_schur"] > 0.0
    assert {"symmetric [s]", "direct [s]", "matched_schur [s]"} <= row.keys()


def test_a_case_that_fails_leaves_a_row_and_no_number(bench):
    row = bench.run_in_processes("solve", 1, problem="distributed", cells=8, alpha=-1.0)
    assert "alpha" in row["failed"]
    assert math.isnan(number(row, "objective"))


def test_the_heat_sink_needs_its_mesh(monkeypatch, tmp_path):
    monkeypatch.setattr("pdeopt.__file__", str(tmp_path / "pdeopt" / "__init__.py"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"heat_sink\.msh is not here"):
        control_cases.heat_sink_mesh()
