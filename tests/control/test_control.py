"""The control problem: orders of convergence, agreement of solvers and ranks, bounds, clear errors."""

from mpi4py import MPI

import dolfinx
import numpy as np
import pytest

from pdeopt.problems import PoissonControl


def unit_square(cells):
    return dolfinx.mesh.create_unit_square(MPI.COMM_WORLD, cells, cells)


@pytest.mark.parametrize(("degree", "order"), [(1, 1.95), (2, 2.9)])
def test_orders_of_convergence(degree, order):
    errors = []
    for cells in (16, 32, 64):
        case = PoissonControl(unit_square(cells), alpha=1e-6, degree=degree)
        case.problem.solve(method="direct")
        errors.append(case.errors())
    for name in errors[0]:
        rate = np.log2(errors[-2][name] / errors[-1][name])
        assert rate >= order, (name, rate)


def test_objective_is_the_published_one():
    case = PoissonControl(unit_square(32), alpha=1e-6, degree=2)
    case.problem.solve(method="direct")
    assert case.exact_objective == pytest.approx(1.2495131e-7, rel=1e-7)
    assert case.problem.objective_value() == pytest.approx(case.exact_objective, rel=1e-4)


@pytest.mark.parallel([1, 2, 3])
def test_solvers_agree_on_every_rank_count():
    """Four solvers give one optimum, and the same one on every rank count: the number stands here."""
    values = {}
    for method in ("direct", "matched_schur", "pearson_wathen", "reduced_hessian"):
        case = PoissonControl(unit_square(32), alpha=1e-4)
        report = case.problem.solve(method=method)
        assert report.quantities["relative KKT residual (Riesz)"] <= 1e-8
        values[method] = case.problem.objective_value(), case.errors()["control"]
    assert values["direct"][0] == pytest.approx(1.2087517e-05, rel=1e-7)  # to the digits that one rank printed
    for method, (objective, error) in values.items():
        assert objective == pytest.approx(values["direct"][0], rel=1e-8), method
        assert error == pytest.approx(values["direct"][1], rel=1e-5), method


@pytest.mark.parametrize("alpha", [1e-2, 1e-4, 1e-6, 1e-8])
def test_pearson_wathen_iterations_stay_low(alpha):
    counts = []
    for cells in (32, 64):
        case = PoissonControl(unit_square(cells), alpha=alpha)
        counts.append(case.problem.solve(method="pearson_wathen").linear_iterations)
    assert max(counts) <= 22


def test_bounds_hold_and_multipliers_have_their_sign():
    case = PoissonControl(unit_square(32), alpha=1e-4, bounds=(0.1, 0.6))
    case.problem.solve()
    values = case.control.x.array
    assert values.min() >= 0.1 - 1e-14
    assert values.max() <= 0.6 + 1e-14
    system = case.problem.system
    residual = system.layout.create_vector()
    system.residual(residual)
    gradient = system.layout.read(residual, 1)
    scale = np.abs(gradient).max()
    at_upper, at_lower = values >= 0.6 - 1e-12, values <= 0.1 + 1e-12
    assert at_upper.any()
    assert at_lower.any()
    assert gradient[at_upper].max() <= 1e-8 * scale
    assert gradient[at_lower].min() >= -1e-8 * scale
    assert np.abs(gradient[~at_upper & ~at_lower]).max() <= 1e-6 * scale
