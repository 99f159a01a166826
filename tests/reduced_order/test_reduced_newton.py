"""Reduced Newton: against the full solution, Newton's rate, bad input, and alike on any number of ranks."""

from mpi4py import MPI

import numpy as np
import pytest
from newton_cases import heat, logarithmic, sines

from pdeopt.fem import forms
from pdeopt.reduced_order import Basis, CoordinateInterpolation, GalerkinSystem, NewtonSettings, solve_reduced
from pdeopt.report import ConvergenceError, InputError

WORLD, SELF = MPI.COMM_WORLD, MPI.COMM_SELF


@pytest.mark.parallel([1, 2, 3])
def test_a_basis_that_holds_the_solution_gives_it_on_any_number_of_ranks():
    found = []
    for comm in (SELF, WORLD):
        case = sines(comm)
        truth = case.solve(np.array([0.55, 0.45, 40.0]))
        product = case.basis.inner_product
        mode = truth / product.norms(truth[:, None])
        system = GalerkinSystem(case.problem.residual, case.problem.u, Basis(product, mode[:, None]), case.problem.bcs)
        result = solve_reduced(system, np.zeros(1))
        assert result.converged
        assert case.error(mode * result.coordinates, truth) <= 1e-9 * result.coordinates[0]
        few = solve_reduced(case.galerkin(6), np.full(6, 0.1 * comm.rank))  # rank 0's counts
        assert few.converged
        assert comm.allreduce(float(np.abs(few.coordinates - comm.bcast(few.coordinates)).max())) == 0.0
        found.append(few.coordinates)
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=1e-10)


def test_the_jacobian_is_the_derivative_and_steps_converge_quadratically():
    case = heat(SELF, cells=8, snapshots=12)
    case.problem.set_parameter(np.array([0.4, 0.6, 90.0]))
    system = case.galerkin(6)
    point, direction = case.coordinates[:6, 0], np.linspace(1.0, -1.0, 6)
    _, jacobian = system.evaluate(point)
    remainders = []
    for step in (1e-2, 5e-3):
        up, down = (system.evaluate(point + sign * step * direction, jacobian=False)[0] for sign in (1, -1))
        remainders.append(np.linalg.norm((up - down) / (2 * step) - jacobian @ direction))
    assert remainders[1] == pytest.approx(remainders[0] / 4.0, rel=1e-3)  # the residual is a cubic polynomial
    result = solve_reduced(system, np.zeros(6), NewtonSettings(rtol=1e-14))
    norms = np.array(result.residuals)
    before, after = norms[-4:-2], norms[-3:-1]
    assert (after <= before**2).all(), norms


def test_interpolated_coordinates_save_steps_and_meet_the_training_data():
    case = heat(SELF, cells=8, snapshots=24)
    interpolation = CoordinateInterpolation(logarithmic(case.parameters), case.coordinates)
    for parameter, expected in zip(case.parameters, case.coordinates.T, strict=True):
        np.testing.assert_allclose(interpolation(logarithmic(parameter[None])[0]), expected, atol=1e-9)
    case.problem.set_parameter(np.array([0.45, 0.55, 30.0]))
    system, start = case.galerkin(8), case.start(8)
    warm, cold = solve_reduced(system, start()), solve_reduced(system, np.zeros(8))
    assert warm.residuals[0] <= 0.1 * cold.residuals[0]
    assert warm.iterations < cold.iterations
    np.testing.assert_allclose(warm.coordinates, cold.coordinates, atol=1e-9)
    few = CoordinateInterpolation(case.parameters[:2], case.coordinates[:, :2])
    np.testing.assert_array_equal(few(case.parameters[1]), case.coordinates[:, 1])


class Scalar:
    """A system of one unknown from a function and its derivative."""

    comm, size = SELF, 1

    def __init__(self, function, derivative):
        self._function, self._derivative = function, derivative

    def update(self):
        pass

    def evaluate(self, coordinates, *, jacobian=True):
        matrix = np.array([[self._derivative(coordinates[0])]]) if jacobian else None
        return np.array([self._function(coordinates[0])]), matrix


def _law_of_small_arguments(argument):
    if abs(argument) > 4.0:
        raise ConvergenceError("the local equation was not solved")
    return np.arctan(argument)


def test_backtracking_rescues_newton_and_failures_say_why():
    system = Scalar(np.arctan, lambda a: 1.0 / (1.0 + a * a))
    result = solve_reduced(system, np.array([3.0]))  # full steps diverge from |a| > 1.39
    assert result.converged
    assert abs(result.coordinates[0]) <= 1e-12
    assert "NaN" in solve_reduced(Scalar(lambda a: np.nan, lambda a: 1.0), np.zeros(1)).why
    for derivative in (np.nan, np.inf):  # of a law with a kink: the residual is finite
        broken = solve_reduced(Scalar(lambda a: 1.0, lambda a, d=derivative: d), np.ones(1))
        assert not broken.converged
        assert "NaN" in broken.why
    assert "singular" in solve_reduced(Scalar(lambda a: 1.0, lambda a: 0.0), np.zeros(1)).why
    assert "no step" in solve_reduced(Scalar(lambda a: 1.0 + a * a, lambda a: 2.0 * a), np.array([1e-3])).why
    bounded = solve_reduced(Scalar(_law_of_small_arguments, lambda a: 1.0 / (1.0 + a * a)), np.array([3.0]))
    assert bounded.converged
    assert abs(bounded.coordinates[0]) <= 1e-12
    short = solve_reduced(system, np.array([3.0]), NewtonSettings(max_iterations=1))
    assert not short.converged
    assert "1 steps" in short.why


@pytest.mark.parallel([1, 2])
def test_modes_of_a_wrong_shape_on_one_rank_are_an_error_on_all():
    product = heat(cells=4, snapshots=8).basis.inner_product
    rows = product.owned + (MPI.COMM_WORLD.rank == MPI.COMM_WORLD.size - 1)
    with pytest.raises(InputError, match="modes have the shape"):
        Basis(product, np.zeros((rows, 2)))


def test_bad_input_is_named():
    case = heat(SELF, cells=4, snapshots=8)
    problem, product = case.problem, case.basis.inner_product
    with pytest.raises(InputError, match=r"shape \(3,\)"):
        solve_reduced(case.galerkin(2), np.zeros(3))
    with pytest.raises(InputError, match="NaN"):
        solve_reduced(case.galerkin(2), np.array([np.nan, 0.0]))
    with pytest.raises(InputError, match="Dirichlet"):
        ones = np.ones((product.owned, 1)) / product.norms(np.ones((product.owned, 1)))
        GalerkinSystem(problem.residual, problem.u, Basis(product, ones), problem.bcs)
    with pytest.raises(InputError, match="lifting"):
        other = heat(SELF, cells=4, snapshots=8).problem.u
        GalerkinSystem(problem.residual, problem.u, case.basis, problem.bcs, other)
    interpolation = CoordinateInterpolation(case.parameters, case.coordinates)
    for parameter, message in (([0.5, 0.5], "shape"), ([0.5, np.nan, 1.0], "NaN")):
        with pytest.raises(InputError, match=message):
            interpolation(np.array(parameter))
    with pytest.raises(InputError, match="shape"):
        CoordinateInterpolation(case.parameters, case.coordinates.T)
    with pytest.raises(InputError, match="repeat"):
        CoordinateInterpolation(np.ones((9, 3)), np.ones((2, 9)))
    with pytest.raises(InputError, match="rtol"):
        NewtonSettings(rtol=2.0)
    assert forms.owned_values(problem.u).size == product.owned
