"""Certificates are bounds, indicators are near the error, calibration promises no more than its runs can."""

import dataclasses

from mpi4py import MPI

import dolfinx
import numpy as np
import pytest
import ufl
from newton_cases import heat, sines

from pdeopt.problems.moving_source import MovingSource, SourceInterpolation
from pdeopt.reduced_order import (
    Basis,
    Certificate,
    ExpandedResidual,
    FullResidual,
    HierarchicalIndicator,
    InnerProduct,
    Stability,
    calibrate,
    sampled_stability,
    solve_reduced,
)
from pdeopt.report import InputError

WORLD, SELF = MPI.COMM_WORLD, MPI.COMM_SELF


@pytest.mark.parallel([1, 2, 3])
def test_the_expanded_residual_bounds_the_full_one_closely_on_any_number_of_ranks():
    found, size = [], 4
    for comm in (SELF, WORLD):
        case = sines(comm)
        problem, basis = case.problem, case.basis.truncate(size)

        def training(problem=problem):
            for parameter in problem.parameters(4, "train"):
                problem.set_parameter(parameter)
                yield np.array([2.0, 0.3, 0.3, 0.0])  # the fourth seems to be unused

        source = SourceInterpolation(problem, 10)
        expansion = ExpandedResidual(
            problem.residual, problem.u, basis, source, training(), problem.bcs, tolerance=1e-4
        )
        assert expansion.kept < expansion.terms == 100 + 4 + 10 + 20
        full = FullResidual(problem.residual, problem.u, basis, problem.bcs)
        for parameter, last in (([0.42, 0.64, 5.0], 0.0), ([0.35, 0.55, 60.0], 0.1)):
            problem.set_parameter(np.array(parameter))
            coordinates = np.array([1.5, -0.1, 0.2, last])
            truth, bound = full(coordinates), expansion(coordinates)
            assert truth <= bound <= truth + (0.5 if last else 1e-3), (truth, bound)
            found.append(truth)
        problem.set_parameter(np.array([0.1, 0.5, 10.0]))  # outside of the nodes nothing is known
        assert expansion(coordinates) == np.inf
    np.testing.assert_allclose(found[2:], found[:2], rtol=1e-10)


def test_residuals_in_large_units_end_at_their_rounding_errors():
    case = sines(SELF)
    problem, basis = case.problem, case.basis.truncate(3)
    coordinates, source = np.array([2.0, 0.3, 0.3]), SourceInterpolation(problem, 3)
    source.remainder = lambda: 0.0
    problem.set_parameter(np.array([0.5, 0.5, 5.0]))  # where the interpolation is exact
    residual, scale = 1e10 * problem.residual, 1e10
    expansion = ExpandedResidual(residual, problem.u, basis, source, [coordinates], problem.bcs)
    assert expansion.size <= expansion.terms
    truth = FullResidual(residual, problem.u, basis, problem.bcs)(coordinates)
    assert truth - 1e-10 * scale <= expansion(coordinates) <= truth + 1e-8 * scale


def test_the_interpolated_source_is_within_its_proven_rest():
    mesh = dolfinx.mesh.create_unit_square(SELF, 8, 8)
    problem = MovingSource(mesh)
    product = InnerProduct(problem.space, "h1", problem.bcs)
    full = FullResidual(problem.residual, problem.u, Basis(product, np.zeros((product.owned, 1))), problem.bcs)
    errors = []
    for nodes in (3, 6):
        source = SourceInterpolation(problem, nodes)
        loads = np.array([full.vector(np.zeros(1)).array_r.copy() for _ in source.loads()]).T
        for parameter in (np.array([0.33, 0.61, 50.0]), np.array([0.5, 0.7, 50.0])):
            problem.set_parameter(parameter)
            rest = full.vector(np.zeros(1)).array_r - loads @ source.weights()
            errors.append(full.norms(rest[:, None])[0])
            assert errors[-1] <= source.remainder()
    assert max(errors[2:]) <= 0.05 * max(errors[:2])


def test_the_certified_error_is_never_below_the_true_one():
    case = heat(SELF, cells=8, snapshots=20)
    problem, size = case.problem, 10
    product, basis = case.basis.inner_product, case.basis.truncate(size)

    def states():
        for parameter in case.parameters[:3]:
            case.solve(parameter)
            yield

    stability = sampled_stability(problem.residual, problem.u, product, states(), problem.bcs, safety=1.05)
    assert 0.85 <= stability.constant <= 1.0
    full = FullResidual(problem.residual, problem.u, basis, problem.bcs)
    plain, kantorovich = Certificate(full, stability), Certificate(full, stability, lipschitz=20.0)
    for parameter in problem.parameters(12, "unseen"):
        truth = case.solve(parameter)
        coordinates = solve_reduced(case.galerkin(size), case.start(size)()).coordinates
        error = case.error(basis.expand(coordinates), truth)
        problem.set_parameter(parameter)
        bound = plain(coordinates)
        assert error <= bound.error <= 2.0 * error
        assert kantorovich(coordinates).error >= bound.error
    columns = np.array([full.vector(coordinates).array_r.copy() for _ in range(3)]).T
    np.testing.assert_allclose(full.norms(columns), full(coordinates), rtol=1e-10)
    assert kantorovich.bound(1.0) == np.inf
    assert plain.bound(np.nan) == np.inf
    problem.set_parameter(np.array([0.5, 0.5, np.nan]))
    assert plain(coordinates).error == np.inf


def test_the_stability_constant_of_a_linear_equation_is_its_coefficient():
    mesh = dolfinx.mesh.create_unit_square(SELF, 6, 6)
    problem = MovingSource(mesh)
    product = InnerProduct(problem.space, "h1_seminorm", problem.bcs)
    u, test = problem.u, ufl.TestFunction(problem.space)
    residual = 3.0 * ufl.inner(ufl.grad(u), ufl.grad(test)) * ufl.dx
    stability = sampled_stability(residual, u, product, [None], problem.bcs, safety=1.5)
    assert stability.constant == pytest.approx(2.0, rel=1e-6)
    with pytest.raises(InputError, match="no state"):
        sampled_stability(residual, u, product, [], problem.bcs)
    with pytest.raises(InputError, match="safety"):
        sampled_stability(residual, u, product, [None], problem.bcs, safety=0.9)
    with pytest.raises(InputError, match="other Dirichlet conditions"):
        sampled_stability(residual, u, product, [None])
    with pytest.raises(InputError, match="stability constant"):
        Stability(0.0)
    with pytest.raises(InputError, match="lipschitz"):
        Certificate(lambda coordinates: 1.0, stability, lipschitz=-1.0)


def test_residuals_that_are_no_cubic_polynomial_are_refused():
    case = heat(SELF, cells=4, snapshots=6)
    problem = case.problem
    quartic = problem.residual + problem.u**4 * ufl.TestFunction(problem.space) * ufl.dx
    source = SourceInterpolation(problem, 2)
    with pytest.raises(InputError, match="polynomial"):
        ExpandedResidual(quartic, problem.u, case.basis.truncate(2), source, [], problem.bcs)
    with pytest.raises(InputError, match="training"):
        ExpandedResidual(problem.residual, problem.u, case.basis.truncate(2), source, [], problem.bcs)
    with pytest.raises(InputError, match="other Dirichlet conditions"):
        ExpandedResidual(problem.residual, problem.u, case.basis.truncate(2), source, [])
    with pytest.raises(InputError, match="other Dirichlet conditions"):
        FullResidual(problem.residual, problem.u, case.basis)


def test_the_indicator_tends_to_the_error_where_the_larger_space_holds_the_solution():
    case = heat(SELF, cells=8, snapshots=20)
    product, departures = case.basis.inner_product, []
    truth = case.solve(np.array([0.4, 0.62, 60.0]))
    for size in (4, 10):
        modes = case.basis.modes[:, :size]
        rest = truth - modes @ case.basis.truncate(size).coordinates(truth[:, None])[:, 0]
        larger = Basis(product, np.column_stack([modes, rest / product.norms(rest[:, None])]))
        coordinates = solve_reduced(case.galerkin(size), np.zeros(size)).coordinates
        indicator = HierarchicalIndicator(dataclasses.replace(case, basis=larger).galerkin(size + 1), size)
        error = case.error(modes @ coordinates, truth)
        departures.append(abs(indicator(coordinates) / error - 1.0) / error)
        assert departures[-1] * error <= 0.05
    assert departures[1] <= 3.0 * departures[0]  # the remainder is quadratic in the error
    with pytest.raises(InputError, match="more"):
        HierarchicalIndicator(case.galerkin(4), 4)
    with pytest.raises(InputError, match="shape"):
        HierarchicalIndicator(case.galerkin(4), 3)(np.zeros(4))


def test_calibration_takes_the_right_order_statistic_and_promises_no_more():
    errors = np.arange(1.0, 20.0)
    assert calibrate(errors, np.ones(19), 0.95).factor == 19.0
    half = calibrate(errors, np.ones(19), 0.5)
    assert (half.factor, half.coverage, half.runs) == (10.0, 0.5, 19)
    with pytest.raises(InputError, match="99 runs"):
        calibrate(errors, np.ones(19), 0.99)
    trajectories = np.array([[1.0, 4.0], [3.0, 1.0], [0.0, 2.0]])
    assert calibrate(trajectories, np.ones((3, 2)), 0.75).factor == 4.0
    assert calibrate(np.array([0.0, 1.0]), np.array([0.0, 0.0]), 0.3).factor == 0.0
    assert calibrate(np.array([0.0, 1.0]), np.array([0.0, 0.0]), 0.6).factor == np.inf
    for bad in (errors[:3], np.full(19, np.nan), np.full(19, -1.0)):
        with pytest.raises(InputError):
            calibrate(errors, bad, 0.9)
    stream = np.random.default_rng(0)  # coverage over many draws of calibration and test runs
    kept = [draws[-1] <= calibrate(draws[:-1], np.ones(9), 0.9).factor for draws in stream.lognormal(size=(2000, 10))]
    assert 0.88 <= np.mean(kept) <= 0.92
