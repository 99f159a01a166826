"""The parts of the optimisers' benchmark at PDE scale, at small sizes."""

import math

from mpi4py import MPI

import dolfinx
import pytest

from pdeopt.bench import optimise_large
from pdeopt.bench.harness import BenchSettings
from pdeopt.bench.optimise_counts import Certificate
from pdeopt.bench.optimise_full_space import ipopt_full_space
from pdeopt.bench.study import Study
from pdeopt.problems import BratuControl, PoissonControl


@pytest.mark.parametrize(("kind", "steps"), [(PoissonControl, 2), (BratuControl, 6)])
def test_ipopt_in_full_space_finds_a_certified_optimum(kind, steps):
    mesh = dolfinx.mesh.create_unit_square(MPI.COMM_SELF, 8, 8)
    case = kind(mesh, alpha=1e-2)
    row = ipopt_full_space(case.problem)
    assert row["status"] == 0
    assert row["iterations"] <= steps
    assert Certificate(kind(mesh, alpha=1e-2)).judge(case.problem) <= 1e-8


def test_every_part_measures():
    study = Study("optimise", BenchSettings(quick=True, repeat=1), MPI.COMM_WORLD)
    optimise_large.run_large(study)
    assert not any("failed" in row for row in study.rows), study.rows
    assert all(target.value is not None and math.isfinite(target.value) for target in study.targets)
    values = {target.id.removeprefix("optimise."): target for target in study.targets}
    assert values["4a"].holds
    assert values["4e error"].holds
    assert all(row["certified"] for row in study.rows if row.get("method") == "AdaSketch-Newton")
