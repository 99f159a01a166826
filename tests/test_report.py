"""The exception tree, the advice and the table that a `SolveReport` prints."""

import dataclasses
import math

from petsc4py import PETSc

import pytest

from pdeopt import report
from pdeopt.report import ConvergenceError, InputError, PdeoptError, SolveReport


def test_report_prints_an_aligned_table_of_what_happened():
    solve = SolveReport(
        method="minres + Pearson-Wathen",
        why="the control acts everywhere",
        converged=True,
        reason=2,
        iterations=3,
        linear_iterations=41,
        residuals=(2.0, 1e-3, 5e-9),
        seconds={"assembly": 0.25, "solve": 1.5},
        quantities={"objective": 0.123456789012, "ranks": 2},
        advice="use more ranks",
    )
    lines = str(solve).splitlines()
    table = dict(line.split("  ", 1) for line in lines)
    table = {label.strip(): value.strip() for label, value in table.items()}
    assert table == {
        "method": "minres + Pearson-Wathen",
        "chosen because": "the control acts everywhere",
        "state": "converged (reason 2)",
        "objective": "0.12345679",
        "ranks": "2",
        "iterations": "3",
        "Krylov iterations": "41",
        "residual, first -> last": "2.000e+00 -> 5.000e-09",
        "seconds assembly": "0.250",
        "seconds solve": "1.500",
        "advice": "use more ranks",
    }
    column = lines[0].index("minres")
    assert all(line[column - 2 : column] == "  " and line[column] != " " for line in lines)


def test_report_says_so_when_a_solve_has_not_converged():
    text = str(SolveReport(method="cg", converged=False, reason=-3, advice=report.KSP_ADVICE[-3]))
    assert "NOT converged (reason -3)" in text
    assert "raise ksp_max_it" in text


def test_report_leaves_out_what_it_does_not_know():
    labels = [label for label, _ in SolveReport(method="lu").rows()]
    assert labels == ["method", "state", "iterations", "Krylov iterations"]


def test_relative_residual():
    assert math.isnan(SolveReport(method="lu").relative_residual)
    assert SolveReport(method="cg", residuals=(4.0, 1.0)).relative_residual == 0.25
    assert SolveReport(method="cg", residuals=(0.0, 0.0)).relative_residual == 0.0
    assert SolveReport(method="cg", residuals=(0.0, 1.0)).relative_residual == math.inf
    # A residual that was never a number must not read as a perfect solve.
    assert math.isnan(SolveReport(method="cg", residuals=(math.nan, 1.0)).relative_residual)


def test_report_cannot_be_edited_afterwards():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SolveReport(method="lu").converged = True


def test_every_error_is_a_pdeopt_error_and_the_builtin_that_users_expect():
    errors = [kind for kind in vars(report).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert len(errors) >= 9
    assert all(issubclass(kind, PdeoptError) for kind in errors)
    assert all(kind.__doc__ for kind in errors)
    assert issubclass(InputError, ValueError)
    assert issubclass(report.OptionError, InputError)
    assert issubclass(report.MissingPackageError, ImportError)


def test_convergence_error_carries_its_report():
    solve = SolveReport(method="cg", converged=False, reason=-3)
    error = ConvergenceError("no convergence", solve)
    assert str(error) == "no convergence"
    assert error.report is solve
    assert ConvergenceError("no convergence").report is None


@pytest.mark.parametrize(
    ("reasons", "advice"),
    [
        (PETSc.KSP.ConvergedReason, report.KSP_ADVICE),
        (PETSc.SNES.ConvergedReason, report.SNES_ADVICE),
        (PETSc.TAO.ConvergedReason, report.TAO_ADVICE),
    ],
)
def test_every_reason_that_petsc_gives_for_a_failure_has_its_advice(reasons, advice):
    numbers = {
        value
        for name, value in vars(reasons).items()
        if isinstance(value, int) and value < 0 and name != "DIVERGED_USER"
    }
    assert set(advice) == numbers
    assert len(set(advice.values())) >= len(advice) - 2
