"""The rivals of the control benchmark find the optimum that `ControlProblem.solve` finds."""

import sys

from mpi4py import MPI

import dolfinx
import pytest

from pdeopt.bench import rivals
from pdeopt.problems import PoissonControl
from pdeopt.report import InputError, MissingPackageError

CASES = [(8, 1e-4), (16, 1e-4), (16, 1e-6)]
COLUMNS = {"method", "iterations", "evaluations", "seconds", "control error", "relative control error", "objective",
           "relative gradient", "converged"}  # fmt: skip


def check(row, cells, alpha):
    case = PoissonControl(dolfinx.mesh.create_unit_square(MPI.COMM_SELF, cells, cells), alpha=alpha)
    case.problem.solve()
    assert set(row) == COLUMNS
    assert row["converged"], row
    assert row["relative gradient"] <= 1.001e-8
    assert row["control error"] == pytest.approx(case.errors()["control"], rel=1e-4)
    assert row["objective"] == pytest.approx(case.problem.objective_value(), rel=1e-7)
    assert 1e-3 < row["relative control error"] < 0.2  # discretisation, O(h^2)
    assert row["seconds"] > 0.0


@pytest.mark.parametrize(("cells", "alpha"), CASES)
def test_ipopt(cells, alpha):
    pytest.importorskip("cyipopt")
    row = rivals.ipopt(MPI.COMM_SELF, cells, alpha)
    check(row, cells, alpha)
    assert row["iterations"] <= 2  # a quadratic program without inequalities


@pytest.mark.parametrize(("cells", "alpha"), CASES)
def test_dolfinx_adjoint(cells, alpha):
    pyadjoint = pytest.importorskip("pyadjoint")
    pytest.importorskip("dolfinx_adjoint")
    pyadjoint.pause_annotation()
    tape = pyadjoint.get_working_tape()
    rows = [rivals.dolfinx_adjoint_lbfgsb(MPI.COMM_SELF, cells, alpha, scaled=scaled) for scaled in (True, False)]
    for row in rows:
        check(row, cells, alpha)
        assert row["evaluations"] >= row["iterations"]
    assert rows[0]["iterations"] < rows[1]["iterations"]  # the mass scaling pays
    assert pyadjoint.get_working_tape() is tape
    assert not pyadjoint.annotate_tape()


@pytest.mark.parametrize(
    ("module", "rival", "extra"),
    [
        ("cyipopt", rivals.ipopt, "rivals"),
        ("scipy.sparse", rivals.ipopt, "rivals"),
        ("pyadjoint", rivals.dolfinx_adjoint_lbfgsb, "adjoint"),
        ("dolfinx_adjoint", rivals.dolfinx_adjoint_lbfgsb, "adjoint"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(monkeypatch, module, rival, extra):
    if module == "scipy.sparse":
        pytest.importorskip("cyipopt")
    if module == "dolfinx_adjoint":
        pytest.importorskip("pyadjoint")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingPackageError, match=rf"needs {module}: run .*pdeopt\[{extra}\]"):
        rival(MPI.COMM_SELF, 4, 1e-4)


@pytest.mark.parallel([2])
def test_more_than_one_rank_is_refused():
    pytest.importorskip("cyipopt")
    with pytest.raises(InputError, match="serial and was started on 2 ranks"):
        rivals.ipopt(MPI.COMM_WORLD, 4, 1e-4)
