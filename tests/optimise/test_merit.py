"""The exact augmented Lagrangian: its gradient against differences, and what it is good for."""

from mpi4py import MPI

import dolfinx
import numpy as np
import pytest
from core_cases import equality_program, hs7

from pdeopt.optimise import ControlProgram, numpy_program
from pdeopt.optimise.merit import Evaluation, Penalties, slope
from pdeopt.problems import SemilinearControl

PENALTIES = Penalties(3.0, 0.2)


def gradient_error(program, point, direction, step):
    """Return the relative error of the directional derivative against central differences."""
    values = []
    for signed in (step, -step):
        moved = point.copy()
        moved.move(signed, direction, point)
        program.move(moved)
        evaluation = Evaluation(program, moved)
        values.append(evaluation.value(PENALTIES))
        evaluation.destroy()
    program.move(point)
    evaluation = Evaluation(program, point)
    gradient = program.create()
    evaluation.gradient(PENALTIES, gradient)
    derivative = gradient.dot(direction)
    assert slope(evaluation.slopes(direction), PENALTIES) == pytest.approx(derivative, rel=1e-12)
    return abs((values[0] - values[1]) / (2 * step) - derivative) / abs(derivative)


def without_curvature(program):
    """Plant the mistake of the published code: the Hessian of f in place of that of the Lagrangian."""
    right = program.hessian_mult

    def mistaken(direction, out):
        here, without = program.create(), program.create()
        program.get(here)
        here.primal.copy(without.primal)
        program.move(without)
        right(direction, out)
        program.move(here)

    program.hessian_mult = mistaken
    return program


def nonlinear():
    program = numpy_program(hs7((0.7, 1.2), (0.9,)))
    point, direction = program.create(), program.create()
    program.get(point)
    direction.primal.array[:], direction.dual.array[:] = (0.3, -0.8), 0.5
    return program, point, direction, 1e-5


def control():
    case = SemilinearControl(dolfinx.mesh.create_unit_square(MPI.COMM_WORLD, 6, 6), alpha=1e-2)
    program = ControlProgram(case.problem)
    point, direction = program.create(), program.create()
    inside = ~case.problem.system.dirichlet_mask()
    for pair, scale in ((point, 1.0), (direction, 0.5)):
        for vector in (pair.primal, pair.dual):
            first, last = vector.getOwnershipRange()
            vector.array[:] = scale * np.cos(np.arange(first, last) * (1.0 + scale))
            vector.array[: inside.size] *= inside
    return program, point, direction, 1e-4


@pytest.mark.parametrize("make", [nonlinear, control])
def test_the_gradient_is_that_of_the_merit_function(make):
    program, point, direction, step = make()
    assert gradient_error(program, point, direction, step) <= 1e-6
    assert gradient_error(without_curvature(program), point, direction, step) >= 1e-3


def test_its_minimum_is_the_solution_where_the_lagrangian_has_a_saddle():
    program = numpy_program(hs7((0.0, 3**0.5), (0.5 / 3**0.5,)))
    solution = program.create()
    program.get(solution)
    penalties = Penalties(10.0, 1e-3)
    evaluation = Evaluation(program, solution)
    assert evaluation.norm <= 1e-14
    least, generator = evaluation.value(penalties), np.random.default_rng(0)
    moved = program.create()
    for _ in range(20):
        for vector, base in ((moved.primal, solution.primal), (moved.dual, solution.dual)):
            vector.array[:] = base.array_r + 1e-3 * generator.standard_normal(vector.local_size)
        program.move(moved)
        assert Evaluation(program, moved).value(penalties) > least


def test_a_stationary_point_of_infeasibility_is_seen():
    """x^2 + 1 = 0 has its least violation at 0."""
    zero = (lambda x: 0.0, lambda x: np.zeros(1), lambda x: np.zeros((1, 1)))
    constraint = (lambda x: x**2 + 1, lambda x: [2 * x], lambda x, p: [[2 * p[0]]])
    for start, size in ((0.0, 0.0), (0.5, 1.25)):
        program = numpy_program(equality_program(zero, constraint, [start]))
        point = program.create()
        program.get(point)
        evaluation = Evaluation(program, point)
        assert evaluation.constraint_norm == pytest.approx(start**2 + 1)
        assert evaluation.infeasible_gradient_norm() == pytest.approx(size)
