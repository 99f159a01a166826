"""IPOPT as the judge of nonlinear programs, the KKT residual, and performance profiles."""

import dataclasses

import numpy as np
import pytest

from pdeopt.bench.optimise_ipopt import kkt_residual, solve_by_ipopt, solve_set_by_ipopt
from pdeopt.bench.optimise_profile import draw_profile, performance_ratios, solved_within
from pdeopt.problems import PublishedPoissonControl, read_s2mpj
from pdeopt.report import InputError

# Equalities, inequalities with bounds, a system of equations, bounds alone, and nothing.
CASES = {"HS77": 0.24150513, "HS71": 17.0140173, "GOTTFR": 0.0, "HS5": -1.9132229549, "ROSENBR": 0.0}


@pytest.mark.parametrize("name", CASES)
def test_ipopt_finds_known_optima_with_multipliers_of_the_right_sign(name):
    row = solve_by_ipopt(read_s2mpj(name))
    assert row["converged"], row
    assert row["status"] == 0
    assert row["objective"] == pytest.approx(CASES[name], rel=1e-6, abs=1e-7)
    assert row["evaluations"] >= row["iterations"] > 0


def test_ipopt_solves_the_published_control_example_in_one_step():
    row = solve_by_ipopt(PublishedPoissonControl().program())
    assert row["converged"]
    assert row["iterations"] == 1
    assert row["objective"] == pytest.approx(row["known value"], rel=1e-12)


def test_one_bad_problem_does_not_end_the_run():
    def broken(x):
        raise RuntimeError("no constraint today")

    row = solve_by_ipopt(dataclasses.replace(read_s2mpj("HS6"), constraints=broken))
    assert not row["converged"]
    assert row["message"] == "RuntimeError: no constraint today"
    row = solve_by_ipopt(dataclasses.replace(read_s2mpj("HS6"), objective=lambda x: np.nan))
    assert not row["converged"]
    assert row["status"] == -13  # IPOPT's "invalid number"
    with pytest.raises(InputError, match="nonsense"):
        solve_by_ipopt(read_s2mpj("HS6"), nonsense=3)


def test_options_pass_through():
    rows = solve_set_by_ipopt(["HS6", "MANCINONE"], {"MANCINONE": (20,)}, max_iter=1)
    assert [row["iterations"] for row in rows] == [1, 1]
    assert rows[1]["unknowns"] == 20
    assert not rows[0]["converged"]


def test_kkt_residual_sees_each_kind_of_error():
    # min x^2 on [1, 3]: x = 1, z = -2 (a lower bound pushes up).
    x = np.array([1.0])
    program = dataclasses.replace(
        read_s2mpj("HS6"),
        start=x, lower=np.array([1.0]), upper=np.array([3.0]), constraint_lower=np.zeros(0),
        constraint_upper=np.zeros(0), objective=lambda x: float(x @ x), gradient=lambda x: 2.0 * x,
        constraints=lambda x: np.zeros(0), jacobian=lambda x: np.zeros((0, 1)),
    )  # fmt: skip
    none = np.zeros(0)
    assert kkt_residual(program, x, none, np.array([-2.0])).largest == 0.0
    assert kkt_residual(program, x, none).stationarity == pytest.approx(2.0)
    assert kkt_residual(program, x - 0.1, none, np.array([-1.8])).feasibility == pytest.approx(0.1)
    assert kkt_residual(program, x, none, np.array([2.0])).complementarity == pytest.approx(4.0)  # slack 2 at the upper
    unbounded = dataclasses.replace(program, upper=np.array([np.inf]))
    assert kkt_residual(unbounded, x, none, np.array([2.0])).complementarity == pytest.approx(2.0)
    undefined = dataclasses.replace(program, gradient=lambda x: x * np.nan)
    assert not kkt_residual(undefined, x, none).largest <= 1e300
    with pytest.raises(InputError, match="shapes"):
        kkt_residual(program, np.zeros(2), none)


def rows_of(method, costs):
    return [
        {"method": method, "problem": problem, "converged": cost is not None, "iterations": cost, "evaluations": cost}
        for problem, cost in costs.items()
    ]


ROWS = rows_of("A", {"p": 4, "q": 10, "r": 0, "s": None}) + rows_of("B", {"p": 8, "q": 5, "r": 3, "s": None})


def test_performance_ratios_are_those_of_the_definition():
    ratios = performance_ratios(ROWS)
    np.testing.assert_array_equal(ratios["A"], [1.0, 1.0, 2.0, np.inf])
    np.testing.assert_array_equal(ratios["B"], [1.0, 2.0, 3.0, np.inf])
    assert solved_within(ratios["A"], 1.0) == 0.5
    assert solved_within(ratios["B"], 2.0) == 0.5
    assert solved_within(ratios["B"], 1e9) == 0.75  # nobody solves s


@pytest.mark.parametrize(
    ("rows", "message"),
    [([], "none"), (ROWS[1:], "A has no row for p"), (ROWS + ROWS[:1], "two rows"), (rows_of("A", {"p": "x"}), "'x'")],
)
def test_performance_ratios_refuse_incomplete_rows(rows, message):
    with pytest.raises(InputError, match=message):
        performance_ratios(rows)


def test_profile_draws_the_shares(tmp_path):
    figure = draw_profile(ROWS, title="two methods")
    left, right = figure.axes
    for axes in (left, right):
        lines = {line.get_label(): line for line in axes.get_lines()}
        assert set(lines) == {"A (3 of 4)", "B (3 of 4)"}
        np.testing.assert_allclose(lines["B (3 of 4)"].get_ydata(), [0.25, 0.5, 0.75, 0.75])
        np.testing.assert_allclose(lines["B (3 of 4)"].get_xdata()[:3], [1.0, 2.0, 3.0])
    figure.savefig(tmp_path / "profile.png")
    assert (tmp_path / "profile.png").stat().st_size > 10_000
