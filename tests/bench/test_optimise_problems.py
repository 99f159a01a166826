"""The benchmark problems of the optimiser: what other codes are given, and what is certified."""

import numpy as np
import pytest

from pdeopt import problems
from pdeopt.bench.optimise_adapter import ControlAdapter
from pdeopt.bench.optimise_problem_cases import cases, extrapolate, solve, square
from pdeopt.bench.optimise_starts import certify, random_starts
from pdeopt.optimise import minimise
from pdeopt.optimise.start import solve_state_first


def named(name):
    return next(case for case in cases() if case.name == name)


@pytest.mark.parametrize(
    "build", [lambda: problems.PoissonTopology(square(4)), lambda: problems.BratuControl(square(4))]
)
def test_other_codes_are_given_the_right_derivatives(build):
    adapter = ControlAdapter(build().problem, "case")
    program, random = adapter.program, np.random.default_rng(0)
    free = program.lower < program.upper
    x = program.start + 0.1 * random.standard_normal(program.size) * free
    direction = random.standard_normal(program.size) * free
    multipliers = random.standard_normal(program.constraint_count)
    step = 1e-5

    def lagrangian_gradient(x):
        return (program.gradient(x) + program.jacobian(x).T @ multipliers)[free]

    for function, derivative in (
        (program.objective, program.gradient(x) @ direction),
        (program.constraints, program.jacobian(x) @ direction),
        (lagrangian_gradient, (program.hessian(x, multipliers) @ direction)[free]),
    ):
        difference = (function(x + step * direction) - function(x - step * direction)) / (2.0 * step)
        assert np.linalg.norm(difference - derivative) <= 1e-6 * np.linalg.norm(difference)
    adapter.destroy()


def test_richardson_finds_the_limit_and_bounds_its_error():
    limit, uncertainty = extrapolate([1.0 + 0.3 * 0.25**k + 0.01 * 0.06**k for k in range(3)])
    assert abs(limit - 1.0) <= 0.1 * uncertainty
    assert extrapolate([1.0, 1.2, 1.1]) == (1.1, pytest.approx(0.1))


def test_certificate_holds_at_minima_only():
    case = named("obstacle, soft")
    instance = case.build(8)
    solve(case, instance)
    assert certify(instance.problem).holds(1e-8)
    instance.control.x.array[:] = 0.02
    solve_state_first(instance.problem)
    assert not certify(instance.problem).holds(1e-8)


def test_random_starts_are_solved_and_certified():
    row = random_starts(named("Maurer-Mittelmann"), 6, 2)
    assert (row["solved"], row["failed"], row["false"], row["at other minima"]) == (2, 0, 0, 0)


def test_steps_between_bounds_do_not_grow_with_the_mesh():
    counts = [minimise(problems.ObstacleControl(square(cells)).problem).iterations for cells in (8, 16, 32)]
    assert max(counts) <= 12
    assert max(np.diff(counts)) <= 1


def test_topology_far_from_convex_reaches_a_minimum():
    case = problems.PoissonTopology(square(8))
    assert minimise(case.problem).converged
    assert certify(case.problem).holds(1e-8)
    assert case.problem.objective_value() < case.PUBLISHED_OBJECTIVE
