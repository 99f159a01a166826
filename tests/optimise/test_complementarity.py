from mpi4py import MPI

import dolfinx
import numpy as np
import pytest
from program_cases import quadratic

from pdeopt.optimise.complementarity import ComplementaritySolver, ConstantPenalty, PairPenalty
from pdeopt.optimise.control_program import ControlProgram
from pdeopt.optimise.from_numpy import numpy_program
from pdeopt.optimise.regularisation import Failure
from pdeopt.problems.obstacle_control import ObstacleComplementarityControl
from pdeopt.report import InputError


def solver(program, first, second, comm=MPI.COMM_SELF, **options):
    return ComplementaritySolver(
        PairPenalty(numpy_program(program, comm), np.array(first), np.array(second)), **options
    )


def bard1():
    """MacMPEC's bard1 in x, y, three multipliers and their slacks: minimum 17 at x = 1, y = 0."""
    rows = [
        [-1.5, 2, 1, -0.5, 1, 0, 0, 0],
        [3, -1, 0, 0, 0, -1, 0, 0],
        [-1, 0.5, 0, 0, 0, 0, -1, 0],
        [-1, -1, 0, 0, 0, 0, 0, -1],
    ]
    matrix, linear = np.diag([2.0, 8, 0, 0, 0, 0, 0, 0]), [-10.0, 4, 0, 0, 0, 0, 0, 0]
    return quadratic(matrix, linear, rows, [2.0, 3, -4, -7], start=np.ones(8), lower=0.0, constant=26.0)


@pytest.mark.parallel([1, 2, 3])
def test_bard1_on_any_number_of_ranks():
    method = solver(bard1(), [2, 3, 4], [5, 6, 7], MPI.COMM_WORLD)
    report = method.solve()
    assert method.interior.objective == pytest.approx(17.0, abs=1e-6)
    assert report.largest_product <= 1e-7
    assert report.stationarity == "strong"
    assert report.iterations <= 25
    method.destroy()


def test_kth1_has_a_biactive_strongly_stationary_minimum():
    """Minimise x + y, 0 <= x perp y >= 0."""
    report = solver(quadratic(np.zeros((2, 2)), [1.0, 1.0], start=[1.0, 1.0], lower=0.0), [0], [1]).solve()
    assert (report.biactive, report.stationarity) == (1, "strong")


def test_scholtes3_finds_one_of_its_two_minima():
    """Minimise |(x, y) - (1, 1)|^2 / 2, 0 <= x perp y >= 0, from the saddle point of every penalty."""
    program = quadratic(np.eye(2), [-1.0, -1.0], start=[1.0, 1.1], lower=0.0, constant=1.0)
    method = solver(program, [0], [1])
    report = method.solve()
    assert method.interior.objective == pytest.approx(0.5, abs=1e-6)
    assert sorted(method.interior.point.primal.array_r) == pytest.approx([0.0, 1.0], abs=1e-6)
    assert report.penalty > 1.0  # the first one was no exact penalty


def test_ralph1_is_not_called_strongly_stationary():
    """Minimise 2 x - y, 0 <= y perp y - x >= 0, x >= 0: the minimum at zero has a multiplier of the wrong sign."""
    program = quadratic(np.zeros((3, 3)), [2.0, -1.0, 0.0], [[-1.0, 1.0, -1.0]], [0.0], start=np.ones(3), lower=0.0)
    method = solver(program, [1], [2])
    report = method.solve()
    assert method.interior.point.primal.array_r == pytest.approx(np.zeros(3), abs=1e-3)
    assert report.biactive == 1
    assert report.stationarity == "C"


def test_products_that_cannot_vanish_are_reported():
    """Both members of the pair are at least one by their equations: x = 1 + s, y = 1 + t."""
    rows = [[1.0, 0.0, -1.0, 0.0], [0.0, 1.0, 0.0, -1.0]]
    program = quadratic(np.eye(4), np.zeros(4), rows, [1.0, 1.0], start=np.full(4, 2.0), lower=0.0)
    with pytest.raises(Failure, match="complementary") as caught:
        solver(program, [0], [1]).solve()
    assert caught.value.reason == -8


def test_wrong_pairs_are_refused():
    program = quadratic(np.eye(2), np.zeros(2), lower=0.0)
    with pytest.raises(InputError, match="two lists"):
        solver(program, [0], [2])
    with pytest.raises(InputError, match="positive"):
        PairPenalty(numpy_program(program), np.array([0]), np.array([1]), np.array([0.0]))


@pytest.mark.parallel([1, 2])
def test_obstacle_control_with_the_penalty_in_its_form():
    """The membrane over an obstacle: force and height are complementary at every vertex; IPOPT finds 0.0114388."""
    mesh = dolfinx.mesh.create_unit_square(MPI.COMM_WORLD, 8, 8)
    case = ObstacleComplementarityControl(mesh)
    program = ControlProgram(case.problem, "factorisation")
    size = program.system.layout.sizes[0]
    inside = np.flatnonzero(~program.system.dirichlet_mask())
    weights = np.full(inside.size, 1.0 / 64.0)
    penalty = ConstantPenalty(program, case.penalty, inside, inside + 2 * size, weights)
    method = ComplementaritySolver(penalty, initial=0.01)
    report = method.solve()
    assert method.interior.objective == pytest.approx(0.0114388, abs=2e-7)
    assert report.largest_product <= 1e-7
    assert report.stationarity == "strong"
    assert report.penalty > 0.01
    assert report.iterations <= 40
    method.destroy()
    program.destroy()
