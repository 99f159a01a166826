"""Problems without a solution, or with NaN: a negative reason and a sentence; never "converged" without an answer."""

import dataclasses
import math

import numpy as np
import pytest
import scipy.sparse
from core_cases import equality_program, hs7, linear_constraints, quadratic_form, sphere

from pdeopt.optimise import minimise, numpy_program
from pdeopt.report import ConvergenceError

BOWL = quadratic_form(np.eye(2), [1.0, -1.0])
PLANE = quadratic_form(np.zeros((2, 2)), [1.0, 1.0])


def failure(problem):
    """Return the report of a solve that fails."""
    with pytest.raises(ConvergenceError) as caught:
        minimise(problem)
    report = caught.value.report
    assert report.reason < 0
    assert not report.converged
    assert report.advice
    assert report.advice in str(caught.value)
    return report


def solution(problem):
    """Return x, p and the report of a solve that succeeds."""
    program = numpy_program(problem)
    report = minimise(program, rtol=1e-8)
    point = program.create()
    program.get(point)
    assert report.converged
    return point.primal.array_r.copy(), point.dual.array_r.copy(), report


@pytest.mark.parametrize("start", [[0.5, 0.5], [3.0, -1.0], [-20.0, 7.0]])
def test_infeasible_constraints(start):
    """A negative radius: |c| has its least value 1 at the origin."""
    report = failure(equality_program(BOWL, sphere(-1.0), start))
    assert "infeasible" in report.advice


def test_inconsistent_linear_constraints():
    rows = [[1.0, 1.0], [1.0, 1.0]]
    report = failure(equality_program(BOWL, linear_constraints(rows, [0.0, 1.0]), [0.3, 0.1]))
    assert "infeasible" in report.advice


def test_redundant_linear_constraints_are_no_obstacle():
    rows = [[1.0, 1.0], [2.0, 2.0], [-1.0, -1.0]]
    x, _, report = solution(equality_program(BOWL, linear_constraints(rows, [2.0, 4.0, -2.0]), [5.0, 1.0]))
    assert x == pytest.approx([0.0, 2.0], abs=1e-7)
    assert report.iterations <= 8


@pytest.mark.parametrize(
    ("objective", "constraints"),
    [
        (PLANE, None),
        (PLANE, linear_constraints([[1.0, -1.0]], [0.0])),
        (quadratic_form(-np.eye(2), [0.1, 0.0]), None),
        (quadratic_form(np.diag([1.0, -1.0]), [0.0, 0.1]), linear_constraints([[1.0, 0.0]], [1.0])),
    ],
)
def test_unbounded_objectives(objective, constraints):
    report = failure(equality_program(objective, constraints, [0.2, 0.1]))
    assert "no minimum" in report.advice, report.advice


def with_nan(where, after=0, **changes):
    """Let a function of problem 7 be NaN from some call on."""
    problem, calls = hs7(), {"count": 0}
    right = getattr(problem, where)

    def wrong(*arguments):
        calls["count"] += 1
        value = right(*arguments)
        if calls["count"] <= after:
            return value
        if scipy.sparse.issparse(value):
            return scipy.sparse.csr_array(value * math.nan)
        return value * math.nan

    return dataclasses.replace(problem, **{where: wrong}, **changes)


@pytest.mark.parametrize("where", ["objective", "gradient", "constraints", "jacobian", "hessian"])
@pytest.mark.parametrize("after", [0, 3])
def test_nan_from_some_moment_on(where, after):
    report = failure(with_nan(where, after))
    assert all(math.isfinite(norm) for norm in report.residuals)


def test_a_region_without_values_is_avoided():
    """-log x + x from 20: Newton's full step leaves for x < 0, where the logarithm is NaN."""
    objective = (
        lambda x: float(np.sum(x - np.log(x))),
        lambda x: 1 - 1 / x,
        lambda x: np.diag(1 / x**2),
    )
    with np.errstate(invalid="ignore"):
        x, _, _ = solution(equality_program(objective, None, [20.0, 0.1]))
    assert x == pytest.approx([1.0, 1.0], abs=1e-6)


def test_no_random_start_is_called_converged_without_being_optimal():
    """Problem 7 from 20 starts: a solution satisfies the conditions as NumPy sees them, anything else is an error."""
    generator, solved = np.random.default_rng(7), 0
    for _ in range(20):
        problem = hs7(generator.uniform(-4.0, 4.0, 2))
        try:
            x, p, _ = solution(problem)
        except ConvergenceError:
            continue
        solved += 1
        stationarity = problem.gradient(x) + problem.jacobian(x).T @ p
        assert np.hypot(np.linalg.norm(stationarity), np.linalg.norm(problem.constraints(x))) <= 1.01e-8
        assert abs(problem.objective(x)) == pytest.approx(3**0.5, rel=1e-7)  # both are local minima
    assert solved >= 18
