"""The room for learning on grids: two levels are the grid body's own, descent has the right slope, and saves steps."""

from mpi4py import MPI

import numpy as np
import pytest

from pdeopt.bench import linear_oracle
from pdeopt.bench.harness import BenchSettings
from pdeopt.bench.linear_families import FAMILIES
from pdeopt.bench.linear_grid_weights import TwoLevels, descend, error_left, iterations, of_nodes, system
from pdeopt.bench.study import Study
from pdeopt.conjugate_directions import CycleSettings, GridMultigrid


@pytest.mark.parametrize(("name", "size", "coarse"), [("square, anisotropy", 8, 25), ("cube, checker", 4, 27)])
def test_two_levels_are_those_of_the_grid_body(name, size, coarse):
    case = FAMILIES[name].case(MPI.COMM_SELF, size, 1)
    of = system(case, 0.5)
    body = GridMultigrid(case.A, case.coordinates, CycleSettings(keep=0.5, coarsest=coarse), np.float64)
    r, z = case.A.createVecs()
    directions = np.array([-1.0, 1.0, 1.0]) if coarse == 25 else np.array([-1.0, -1.0, 1.0])
    assert body.layout.mirrored == (True, True)
    places = np.round(1e6 * case.coordinates * directions).astype(int).T
    numbered = np.lexsort(places[: 2 if coarse == 25 else 3])
    values = np.random.default_rng(0).standard_normal(of.b.size)
    r.array_w[numbered] = values
    body.apply(r, z)
    np.testing.assert_allclose(TwoLevels(of, of.values).run(values[:, None])[0].ravel(), z.array_r[numbered], atol=1e-9)
    case.destroy()


@pytest.mark.parametrize(("name", "size"), [("square, anisotropy", 8), ("square, checker", 16), ("cube, checker", 4)])
def test_slope_is_that_of_differences(name, size):
    case = FAMILIES[name].case(MPI.COMM_SELF, size, 3)
    of = system(case, 1.0)
    case.destroy()
    nodes, _ = of_nodes(of)
    generator, step = np.random.default_rng(0), 1e-6
    errors, direction = generator.standard_normal((of.b.size, 3)), nodes @ generator.standard_normal(nodes.shape[1])
    _, slope = error_left(of, of.values, errors, 2)
    after, before = (error_left(of, of.values + sign * step * direction, errors, 2)[0] for sign in (1.0, -1.0))
    assert slope @ direction == pytest.approx((after - before) / (2.0 * step), rel=1e-3)


def test_descent_saves_iterations_on_jumps():
    case = FAMILIES["square, checker"].case(MPI.COMM_SELF, 16, 0)
    of = system(case, 1.0)
    case.destroy()
    nodes, _ = of_nodes(of)
    _, (found,) = descend([of], [nodes], np.zeros(nodes.shape[1]), 30, 0.02)
    assert found <= 0.9 * iterations(of, of.values)


def test_quick_run_judges_operators_and_settings():
    study = Study("linear", BenchSettings(quick=True, repeat=1, seed=0), MPI.COMM_SELF)
    linear_oracle.measure(study, quick=True)
    kinds = ("square, anisotropy 32", "square, checker 32")
    assert [target.id for target in study.targets] == [f"linear.1{line} {kind}" for kind in kinds for line in "de"]
    assert all(np.isfinite(target.value) for target in study.targets)
