"""The classical rivals reach the true residual they claim, in this PETSc and in Debian's, and say when they do not."""

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np
import pytest

from pdeopt.bench import linear_debian, linear_rivals
from pdeopt.bench.linear_arms import own_arms, petsc_arms
from pdeopt.bench.linear_constants import CONSTANTS
from pdeopt.bench.linear_debian import debian_arms, solve_by_debian
from pdeopt.bench.linear_families import FAMILIES
from pdeopt.bench.linear_outcome import RTOL, Outcome
from pdeopt.bench.linear_python import sine_transform
from pdeopt.bench.linear_rivals import all_arms, best_classical, solve
from pdeopt.bench.linear_sequence_arms import classical_arms, replay
from pdeopt.bench.linear_sequences import SEQUENCES
from pdeopt.bench.linear_worker import timed_solve
from pdeopt.report import InputError

pytestmark = pytest.mark.alone

COMM = MPI.COMM_WORLD


@pytest.fixture
def checker():
    case = FAMILIES["square, checker"].case(COMM, 24, 1)
    yield case
    case.destroy()


def options_left():
    return [name for name in PETSc.Options().getAll() if name.startswith(("pdeopt_rival", "pdeopt_sequence"))]


def test_every_arm_in_this_process_reaches_the_true_residual(checker):
    arms = own_arms(checker, 2)
    kinds = {name.partition(":")[0] for name in arms}
    assert kinds == {"GAMG", "ICC", "ILU", "Jacobi", "SSOR", "Eisenstat", "MUMPS", "PyAMG"}
    for outcome in (arm(checker) for arm in arms.values()):
        assert outcome.failed == ""
        assert 0.0 < outcome.residual <= RTOL
        assert outcome.iterations > 0
        assert min(outcome.setup, outcome.solve, outcome.setup_cpu, outcome.solve_cpu) > 0.0
    assert not options_left()


@pytest.mark.parametrize("name", ["square, constant", "cube, constant"])
def test_the_sine_transform_is_exact_where_it_applies(name):
    case = FAMILIES[name].case(COMM, 9, 0)
    assert sine_transform(case).residual <= 1e-13
    case.destroy()


def test_the_sine_transform_refuses_other_equations(checker):
    with pytest.raises(InputError, match="not 'square, checker'"):
        sine_transform(checker)


def test_a_solve_goes_on_until_the_recomputed_residual_is_small(checker):
    # Eisenstat's preconditioner transforms the system, so that the residual which the method sees is another one.
    options = petsc_arms(2)["Eisenstat: 1.9"]
    strict = timed_solve(checker.A, checker.b, options, 1e-8, 1000)
    loose = timed_solve(checker.A, checker.b, options, 1e-4, 1000)
    assert strict["residual"] <= 1e-8 < loose["residual"] <= 1e-4


def test_a_solver_that_stops_early_has_not_solved(checker):
    record = timed_solve(checker.A, checker.b, {"ksp_type": "cg", "pc_type": "jacobi"}, 1e-8, 3)
    outcome = Outcome.of_record("Jacobi: CG", record)
    assert outcome.iterations == 3
    assert not outcome.solved
    assert outcome.total == outcome.total_cpu == np.inf


def test_a_matrix_that_is_not_a_number_ends_at_once(checker):
    checker.A.shift(np.nan)
    record = timed_solve(checker.A, checker.b, {"ksp_type": "cg", "pc_type": "jacobi"}, 1e-8, 1000)
    assert record["reason"] < 0
    assert not record["residual"] <= 1e-8


def test_unknown_arms_are_named(checker):
    with pytest.raises(InputError, match="no arm 'AMGX: default' for 'square, checker'"):
        solve(checker, ["AMGX: default"])


@pytest.mark.parametrize("name", ["square, checker", "perforated plate, inclusions, elasticity"])
def test_debian_solves_the_same_system(name):
    case = FAMILIES[name].case(COMM, 24 if name.startswith("square") else 300, 1)
    arms = debian_arms(FAMILIES[name].elastic)
    outcomes = solve_by_debian(case, arms)
    assert [outcome.arm for outcome in outcomes] == list(arms)
    if linear_debian.petsc_folder() is None:
        # The package is not installed: then every row says so, and none has numbers.
        assert {outcome.failed for outcome in outcomes} == {linear_debian.NOT_PRESENT}
        assert not any(outcome.solved for outcome in outcomes)
    else:
        for outcome in outcomes:
            assert outcome.failed == ""
            assert outcome.residual <= RTOL
            assert 0 < outcome.iterations < 400
    case.destroy()


def test_debian_counts_the_iterations_of_this_petsc(checker, monkeypatch):
    """The same conjugate gradients with Jacobi on the matrix that travelled: only that PETSc differs."""
    options = {"ksp_type": "cg", "pc_type": "jacobi"}
    monkeypatch.setattr(linear_debian, "debian_arms", lambda elastic: {"Jacobi: CG": options})
    (there,) = solve_by_debian(checker, ["Jacobi: CG"])
    here = timed_solve(checker.A, checker.b, options, RTOL, 1000)
    if linear_debian.petsc_folder() is None:
        assert there.failed == linear_debian.NOT_PRESENT
    else:
        assert abs(there.iterations - here["iterations"]) <= 2
        assert there.residual <= RTOL


def test_a_crash_in_debians_process_is_told(checker, monkeypatch, tmp_path):
    monkeypatch.setattr(linear_debian, "petsc_folder", lambda: tmp_path)
    (outcome,) = solve_by_debian(checker, ["ML: default"])
    assert outcome.failed.startswith(("exit status 1: ModuleNotFoundError", "exit status 1: ImportError"))
    assert not outcome.solved


def test_constants_exist_for_every_group_and_name_arms():
    assert set(CONSTANTS) == {family.group for family in FAMILIES.values()}
    for family in FAMILIES.values():
        known = [*petsc_arms(family.dimension), *debian_arms(family.elastic)]
        for arm in CONSTANTS[family.group]:
            assert arm in known or arm.startswith(("PyAMG: ", "Sine transform: "))


def test_the_best_is_the_fastest_that_solved(checker):
    best, outcomes = best_classical(checker)
    assert best.solved
    assert {outcome.arm for outcome in outcomes} == set(CONSTANTS["square, checker"])
    assert best.total_cpu == min(outcome.total_cpu for outcome in outcomes)


def test_the_sweep_keeps_the_best_of_each_kind(monkeypatch):
    seconds = {"GAMG: a": 3.0, "GAMG: b": 2.0, "ICC: 0": 1.0, "SSOR: 1": 1.5, "ML: c": 9.0, "MUMPS: d": np.inf}
    asked = []

    def pretend(case, arms):
        asked.append(list(arms))
        return [
            Outcome(arm, 0.0, seconds[arm], 0.0, seconds[arm], 1, 1e-9 if seconds[arm] < 9e9 else 1.0) for arm in arms
        ]

    monkeypatch.setattr(linear_rivals, "all_arms", lambda case: list(seconds))
    monkeypatch.setattr(linear_rivals, "solve", pretend)
    found = linear_rivals.sweep("square, constant", 4, 6, (0, 1, 2), COMM)
    assert found == ("ICC: 0", "SSOR: 1", "GAMG: b")
    assert asked[0] == list(seconds)
    assert set(asked[1]) == set(seconds) - {"MUMPS: d"}


@pytest.mark.parallel([1, 2])
def test_solvers_of_a_sequence_reach_the_true_residual():
    arms = classical_arms(2)
    if COMM.size > 1:
        arms = {name: make for name, make in arms.items() if "ICC" not in name}
    outcomes = replay(SEQUENCES["samples"](COMM, 16, 4, 0), arms)
    for name, found in outcomes.items():
        assert len(found) == (2 if "fresh" in name else 4), name
        assert all(outcome.residual <= RTOL for outcome in found), name
    assert not options_left()


def test_a_rescaled_lag_is_exact_where_the_matrix_is_rescaled():
    """S A S with the lagged preconditioner of A, rescaled, takes as many iterations as A itself."""
    case = FAMILIES["square, lognormal"].case(COMM, 24, 0)
    arm = classical_arms(2)["GAMG, rescaled lag"]()
    first = arm.solve(case.A, case.b)
    scale = case.b.duplicate()
    scale.array = np.exp(np.sin(40.0 * case.coordinates[:, 0]))
    case.A.diagonalScale(scale, scale)
    case.b.pointwiseMult(case.b, scale)
    second = arm.solve(case.A, case.b)
    assert second.solved
    assert abs(second.iterations - first.iterations) <= 2
    assert second.setup_cpu < 0.5 * first.setup_cpu
    arm.destroy()
    case.destroy()


def test_a_lag_that_takes_too_long_is_given_up_at_its_own_expense():
    first = FAMILIES["square, lognormal"].case(COMM, 24, 0)
    other = FAMILIES["square, checker"].case(COMM, 24, 0)
    arm = classical_arms(2)["GAMG, rescaled lag"]()
    arm.solve(first.A, first.b)
    outcome = arm.solve(other.A, other.b)
    again = arm.solve(other.A, other.b)
    assert outcome.solved
    assert again.solved
    assert outcome.iterations > 2 * again.iterations
    arm.destroy()
    first.destroy()
    other.destroy()


def test_the_worker_reads_no_python_of_ours():
    import ast
    import pathlib

    from pdeopt.bench import linear_worker

    tree = ast.parse(pathlib.Path(linear_worker.__file__).read_text(), feature_version=(3, 11))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names | modules <= {"json", "sys", "time", "typing", "petsc4py"}


def test_all_arms_count_those_of_both_petscs(checker):
    names = all_arms(checker)
    assert len(names) == len(set(names))
    assert {"GAMG: default", "BoomerAMG: default", "ML: default", "PyAMG: classical"} <= set(names)
