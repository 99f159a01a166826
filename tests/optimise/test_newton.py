"""AdaSketch-Newton: rates, penalties, singular solutions, dependent constraints, saddle points."""

import numpy as np
import pytest
from core_cases import chain, equality_program, hs7, iterate, linear_constraints, quadratic_form, sphere

from pdeopt.optimise import AdaSketchSettings, numpy_program
from pdeopt.optimise.newton import AdaSketch
from pdeopt.optimise.saddle import is_minimum
from pdeopt.optimise.settings import Tolerances
from pdeopt.report import InputError


def test_exact_steps_converge_quadratically_with_full_length():
    iteration, norms, lengths = iterate(hs7())
    assert iteration.objective == pytest.approx(-(3**0.5), rel=1e-12)
    assert iteration.point.dual.array_r == pytest.approx([0.5 / 3**0.5], rel=1e-8)
    assert (lengths[-3:] == 1.0).all()
    before, after = norms[-4:-2], norms[-3:-1]
    assert (after <= 10.0 * before**2).all(), norms


def test_sharpened_accuracy_gives_the_superlinear_rate():
    ratios = {}
    for sharpen in (0.0, 1.0):
        iteration, norms, lengths = iterate(chain(), AdaSketchSettings(sharpen=sharpen), "ksp", 1e-9)
        assert iteration.evaluation.norm <= 2e-9
        assert (lengths[-2:] == 1.0).all()
        ratios[sharpen] = norms[1:] / norms[:-1]
    assert ratios[0.0][-4:].min() >= 1e-2, ratios  # linear: each solve gains one digit
    assert ratios[0.0][-4:].max() <= 0.3
    assert ratios[1.0][-1] <= 1e-3, ratios
    assert len(ratios[1.0]) < len(ratios[0.0])


@pytest.mark.parametrize("settings", [{"gradient_penalty": 100.0}, {"constraint_penalty": 1e-6}])
def test_penalties_adapt_until_the_direction_descends(settings):
    settings = AdaSketchSettings(**settings)
    iteration, _, _ = iterate(hs7((0.2, 0.3), (2.0,)), settings)
    assert iteration.objective == pytest.approx(-(3**0.5), rel=1e-10)
    assert iteration.counters.penalty_updates > 0
    assert iteration.penalties.gradient < settings.gradient_penalty
    assert iteration.penalties.constraint > settings.constraint_penalty
    growth = iteration.penalties.constraint / settings.constraint_penalty
    assert growth == pytest.approx((settings.gradient_penalty / iteration.penalties.gradient) ** 2, rel=1e-10)


def test_steps_that_form_a_geometric_series_are_extrapolated():
    """At the minimum of x^4 Newton's steps shrink by 2/3: without extrapolation 22 of them reach the tolerance."""
    objective = (
        lambda x: x[0] ** 4 + x[1] ** 2,
        lambda x: np.array([4 * x[0] ** 3, 2 * x[1]]),
        lambda x: np.diag([12 * x[0] ** 2, 2.0]),
    )
    iteration, _, lengths = iterate(equality_program(objective, None, [1.0, 1.0]), tolerance=1e-10)
    assert iteration.gradient_norm <= 1e-10
    assert lengths.max() == pytest.approx(3.0, rel=0.05)
    assert len(lengths) <= 12


def test_linearly_dependent_constraints_do_not_spoil_the_rate():
    problem = equality_program(quadratic_form(np.zeros((2, 2)), [1.0, 1.0]), sphere(2.0, copies=2), [-0.5, -1.6])
    iteration, norms, lengths = iterate(problem)
    assert iteration.point.primal.array_r == pytest.approx([-1.0, -1.0], abs=1e-8)
    assert np.abs(iteration.point.dual.array_r).max() <= 10.0
    assert len(lengths) <= 12
    assert norms[-1] <= 1e-2 * norms[-2]


@pytest.mark.parametrize(
    ("problem", "least"),
    [
        (
            equality_program(
                (
                    lambda x: 0.25 * x[0] ** 4 - 0.5 * x[0] ** 2 + x[1] ** 2,
                    lambda x: np.array([x[0] ** 3 - x[0], 2 * x[1]]),
                    lambda x: np.diag([3 * x[0] ** 2 - 1, 2.0]),
                ),
                None,
                [0.0, 1.0],
            ),
            -0.25,
        ),
        (equality_program(quadratic_form(np.diag([-2.0, -4.0]), [0.0, 0.0]), sphere(), [1.0, 0.0]), -2.0),
    ],
)
def test_a_stationary_point_that_is_no_minimum_is_left(problem, least):
    iteration, _, _ = iterate(problem)
    assert is_minimum(iteration.program) is False
    assert iteration.objective > least + 0.1
    assert iteration.leave_saddle()
    for _ in range(20):
        if iteration.evaluation.norm > 1e-9:
            iteration.step(Tolerances(1e-9, 1e-9))
    assert iteration.objective == pytest.approx(least, abs=1e-9)
    assert is_minimum(iteration.program)
    assert not iteration.leave_saddle()


def test_multipliers_are_estimated_unless_they_are_given():
    """At the solution's x the best multipliers make the gradient of the Lagrangian vanish."""
    problem = hs7((0.0, 3**0.5))
    assert AdaSketch(numpy_program(problem)).evaluation.norm <= 1e-14
    plain = AdaSketch(numpy_program(problem), AdaSketchSettings(least_squares_multipliers=False))
    assert plain.gradient_norm == pytest.approx(1.0)
    given = AdaSketch(numpy_program(hs7((0.0, 3**0.5), (2.0,))))
    assert given.point.dual.array_r == [2.0]


def test_linear_quadratic_programs_take_one_step():
    matrix = np.diag([1.0, 2.0, 5.0]) + 0.5
    rows, values = [[1.0, 1.0, 0.0], [0.0, 1.0, -1.0]], [1.0, 2.0]
    linear = np.array([1.0, -1.0, 0.5])
    problem = equality_program(quadratic_form(matrix, linear), linear_constraints(rows, values), np.zeros(3))
    iteration, _, lengths = iterate(problem)
    kkt = np.block([[matrix, np.transpose(rows)], [np.array(rows), np.zeros((2, 2))]])
    exact = np.linalg.solve(kkt, np.concatenate([-linear, values]))
    assert lengths == [1.0]
    assert np.concatenate([iteration.point.primal.array_r, iteration.point.dual.array_r]) == pytest.approx(exact)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("constraint_penalty", 0.0),
        ("gradient_penalty", -1.0),
        ("accuracy", 1.0),
        ("accuracy", float("nan")),
        ("growth", 1.0),
        ("sharpen", -0.1),
        ("armijo", 0.5),
    ],
)
def test_settings_out_of_range_are_named(field, value):
    with pytest.raises(InputError, match=field):
        AdaSketchSettings(**{field: value})
