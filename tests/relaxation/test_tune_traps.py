"""Eleven ways in which tuning linear solvers gave wrong answers or wrong seconds, each with its test.

Found when the solvers of about twenty scripts were replayed by others. A script with a solver for each trap runs once.
"""

import itertools
import sys
import time

from petsc4py import PETSc

import numpy as np
import pytest
import tune_scripts

from pdeopt.relaxation import overlay_watch, rule, tune, tune_replay, tune_report

pytestmark = pytest.mark.alone

SCRIPT = (
    tune_scripts.HEAD
    + """
lu = {"ksp_type": "preonly", "pc_type": "lu", "pc_factor_mat_solver_type": "petsc"}
slow_lu = {**lu, "pc_factor_mat_ordering_type": "natural"}  # anything is faster

# 1: A saddle point whose multiplier is known up to a constant, and a Neumann problem, without attached null spaces.
m = 40
rows, columns, values = five_point(m)
i = np.arange(m * m)
d = (i, i + m * m, np.ones(m * m)), (i, np.roll(i, 1) + m * m, -np.ones(m * m))
S = from_coo(
    2 * m * m,
    np.concatenate([rows, *[part for r, c, _ in d for part in (r, c)]]),
    np.concatenate([columns, *[part for r, c, _ in d for part in (c, r)]]),
    np.concatenate([values, *[v for _, _, v in d for _ in range(2)]]),
)
b, x = load(S)
b.array[m * m :] -= b.array[m * m :].mean()
solver("saddle_", S, ksp_type="minres", pc_type="none", ksp_rtol=1e-6, ksp_max_it=20000).solve(b, x)
values[: m * m] = np.bincount(rows, minlength=m * m)[: m * m] - 1.0
b, x = load(N := from_coo(m * m, rows, columns, values))
b.array[:] -= b.array.mean()
ksp = solver("neumann_", N, ksp_type="cg", pc_type="none", ksp_rtol=1e-8, ksp_max_it=20000)
solve_for_a_while(ksp, b, x)

# 3: Symmetric at first, and then not: conjugate gradients pass the first time. 7: New values.
for name, convections in ("later_", (0.0, 0.8, 0.5)), ("updates_", (0.0, 0.0)):
    L = from_coo(70**2, *five_point(70))
    b, x = load(L)
    ksp = solver(name, L, **slow_lu)
    for step, convection in enumerate(convections):
        L.setValuesCOO((1.0 + step / 10.0) * five_point(70, convection)[2])
        ksp.solve(b, x)

# 4: A null pivot, which MUMPS handles because it is told to.
rows, columns, values = five_point(120)
empty = np.arange(120**2, 120**2 + 60)
Z = from_coo(120**2 + 60, np.append(rows, empty), np.append(columns, empty), np.append(values, 0.0 * empty))
b, x = load(Z)
b.array[120**2 :] = 0.0
mumps = {**lu, "pc_factor_mat_solver_type": "mumps", "mat_mumps_icntl_24": 1}
ksp = solver("mumps_", Z, **mumps)
ksp.getPC().setFactorSetUpSolverType()
ksp.getPC().getFactorMatrix().setMumpsIcntl(14, 77)
ksp.solve(b, x)

# 5: One multigrid cycle leaves most of the residual: no solve that others could be compared with.
A = from_coo(70**2, *five_point(70))
b, x = load(A)
ksp = solver("cycle_", A, ksp_type="preonly", pc_type="gamg")
solve_for_a_while(ksp, b, x)

# 6: The set-up comes before the solve.
snes = PETSc.SNES().create()
snes.setType("vinewtonrsls")
snes.setOptionsPrefix("obstacle_")
snes.setFunction(lambda snes, x, f: (A.mult(x, f), f.shift(-0.002)), b.duplicate())
snes.setJacobian(lambda snes, x, J, P: None, A)
lower, upper = b.duplicate(), b.duplicate()
lower.set(0.0)
upper.set(0.5)
snes.setVariableBounds(lower, upper)
for name, value in slow_lu.items():
    PETSc.Options("obstacle_")[name] = value
snes.setFromOptions()
x.set(0.0)
snes.solve(None, x)
print("obstacle", snes.getConvergedReason(), x.max()[1])
for name in "ahead_", "together_":
    A.setValuesCOO(five_point(70)[2])
    ksp = solver(name, A, **slow_lu)
    if name == "ahead_":
        ksp.setUp()
    ksp.solve(b, x)

# 8: Assembled again with the same values.
ksp = solver("place_", A, **slow_lu)
for step in range(3):
    A.setValuesCOO(five_point(70)[2])
    ksp.solve(b, x)

# 9: Indefinite; the second one has three negative eigenvalues that constants do not tell of, nor the right-hand side.
def mode(m, j, k):
    t = np.pi * np.arange(1, m + 1) / (m + 1)
    return np.outer(np.sin(j * t), np.sin(k * t)).ravel()

for name, shift in ("helmholtz_", -0.5), ("hidden_", -0.01):
    H = from_coo(80**2, *five_point(80, shift=shift))
    b, x = load(H)
    if name == "hidden_":
        b.array[:] = mode(80, 5, 7)
    solver(name, H, **slow_lu).solve(b, x)

# 10: The monitor sleeps, as a process does that waits for its turn.
ksp = solver("sleepy_", A, ksp_type="cg", pc_type="jacobi", ksp_rtol=1e-8)
ksp.setMonitor(lambda ksp, iteration, norm: time.sleep(0.01) if iteration % 20 == 0 else None)
b, x = load(A)
began = time.perf_counter()
for _ in range(4):
    ksp.solve(b, x)
print("sleepy", time.perf_counter() - began, flush=True)

# 11: The first right-hand side is an eigenvector.
for name, solves in ("easy_", 16), ("once_", 1), ("twice_", 2):
    E = from_coo(90**2, *five_point(90))
    ksp = solver(name, E, **slow_lu)
    b, x = load(E)
    generic = b.copy()
    b.array[:] = mode(90, 5, 7)
    for _ in range(solves):
        ksp.solve(b, x)
        generic.copy(b)
"""
)


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """Run the script under `pdeopt tune`; return its verdicts and parts of the report by prefix, and stdout."""
    folder = tmp_path_factory.mktemp("traps")
    (folder / "script.py").write_text(SCRIPT)
    verdicts, judge = {}, tune_report.judge
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PYTHONPATH", str(folder))
        # The solvers share a script of seconds: each is judged as if it were alone.
        patch.setattr(tune_report, "judge", lambda entry, _: verdicts.setdefault(entry["prefix"], judge(entry)))
        command = ["sh", "-c", f"exec {sys.executable} script.py > out"]
        status = tune.tune_script(command, None, 5.0, None, folder / "report", tune_scripts.environment())
    assert status == 0
    words = {line.split()[0]: line.split()[1:] for line in (folder / "out").read_text().splitlines()}
    return verdicts, tune_scripts.parts((folder / "report").read_text()), words


def test_trap_01_singular_systems_differ_in_the_null_space(seen):
    verdicts, reports, _ = seen
    for name in "saddle_", "neumann_":
        assert verdicts[name].arm == ""
        assert "petsc_options" not in reports[f"prefix {name}"]
        arms = verdicts[name].entry["arms"]
        assert arms
        assert {arm["state"] for arm in arms.values()} <= {"wrong", "failed"}
    assert "its solution differs" in reports["prefix saddle_"]


def test_trap_02_mixed_systems_are_compared_field_by_field():
    # The second field is a millionth of the first, and 30 % wrong: neither residual nor the norm of the whole tells.
    entries = np.eye(4)
    entries[3, 3], entries[3, 0], entries[0, 3] = 0.0, 1.0, 1.0
    system = tune_scripts.system_of(tune_scripts.dense(entries), [1e6, 1e6, 1e6, 1.0])
    other = system.x.copy()
    other.setValue(3, 1.3)
    assert system.relative_residual(other) < 1e-6
    assert system.difference(other) == pytest.approx(0.3)
    assert [choice.options["pc_type"] for choice in tune_replay.arms(system.features)] == ["lu", "cholesky"]


def test_trap_03_symmetric_first_matrix(seen):
    verdicts, reports, _ = seen
    verdict, report = verdicts["later_"], reports["prefix later_"]
    assert "with new values 3 times" in report
    assert "but a later matrix is not symmetric" in report or "not for a later matrix" in report
    assert not tune_replay.needs_symmetry(verdict.options)
    assert verdict.entry["symmetric"] is False


def test_trap_04_what_the_script_tells_mumps_stays_in_force(seen, tmp_path):
    verdicts, _, _ = seen
    given = {"mat_mumps_icntl_24": "1", "mat_mumps_icntl_14": "77"}
    entry = verdicts["mumps_"].entry
    arms = entry["arms"]
    assert set(arms) == {"LU by MUMPS", "Cholesky by MUMPS"}
    for arm in arms.values():
        assert arm["options"].items() >= given.items()
    assert arms["LU by MUMPS"]["state"] == "equal"
    verdict = tune_report.judge(entry | {"seconds": 100.0})
    tune_report.save(tmp_path / "tuned.json", [verdict], 1.0, {})
    (saved,) = tune_report.load(tmp_path / "tuned.json")
    assert saved["options"].items() >= given.items()

    # By hand alone, and that it matters: with MUMPS's own settings the factorisation fails.
    options = {"unit_pc_type": "lu", "unit_pc_factor_mat_solver_type": "mumps"}
    database = PETSc.Options()
    try:
        for name, value in options.items():
            database[name] = value
        system = tune_scripts.system_of(tune_scripts.dense(np.diag([0.0, 1.0, 2.0, 3.0])), np.arange(4.0))
    finally:
        for name in options:
            database.delValue(name)
    assert attempt(tune_replay.Arm(rule.lu(""), tune_replay.options_for(rule.lu(""), system)), system).state == "failed"
    factors = system.ksp.getPC()
    factors.setFactorSetUpSolverType()
    factors.getFactorMatrix().setMumpsIcntl(24, 1)
    factors.getFactorMatrix().setMumpsCntl(5, 1e20)
    told = tune_replay.options_for(rule.lu(""), system)
    assert (told["mat_mumps_icntl_24"], float(told["mat_mumps_cntl_5"])) == ("1", 1e20)
    assert attempt(tune_replay.Arm(rule.lu(""), told), system).state == "equal"


def test_trap_05_a_part_of_another_iteration_is_no_solve(seen):
    verdicts, reports, _ = seen
    assert verdicts["cycle_"].entry["arms"] == {}
    assert "a step of another iteration" in reports["prefix cycle_"]


def test_trap_06_set_up_before_the_solve_is_part_of_it_or_said_to_be_unknown(seen):
    verdicts, reports, words = seen
    assert int(words["obstacle"][0]) > 0
    assert float(words["obstacle"][1]) == pytest.approx(0.5)  # some rows are fixed, so PETSc solves for the others
    entry = verdicts["obstacle_"].entry
    assert (entry["inside"], entry["arms"], verdicts["obstacle_"].arm) == ("SNES", {}, "")
    assert "kept: vinewtonrsls sets it up before the solve" in reports["prefix obstacle_"]
    ahead, together = (verdicts[name].entry["seconds"] for name in ("ahead_", "together_"))
    assert ahead > 0.3 * together  # the substitutions alone are a hundredth


def test_trap_07_arms_live_on_over_new_values(seen):
    verdicts, _, _ = seen
    arms = [arm for arm in verdicts["updates_"].entry["arms"].values() if arm["state"] == "equal"]
    assert any(arm["updates"] for arm in arms)
    for arm in verdicts["place_"].entry["arms"].values():  # one matrix: no set-up is an update
        assert arm["updates"] == []

    PETSc.Log.begin()

    def counts():
        names = {"analysis": "MatLUFactorSym", "factors": "MatLUFactorNum", "aggregates": "MatCoarsen"}
        return {name: PETSc.Log.Event(event).getPerfInfo()["count"] for name, event in names.items()}

    A = laplacian(30)
    for make, first, later in (
        (rule.lu, {"analysis": 1, "factors": 1}, {"factors": 1}),
        (None, {"aggregates": 1}, {}),
    ):
        system = tune_scripts.system_of(A, np.ones(900))
        choice = rule.gamg(system.features, "") if make is None else make("")
        arm = tune_replay.Arm(choice, tune_replay.options_for(choice, system))
        for values, factor, expected, fresh in ((1, 1.5, first, True), (2, 1.5, later, False), (2, 1.0, {}, False)):
            A.scale(factor)
            A.stateIncrease()
            A.mult(system.x, system.b)
            system.norm, system.values = system.b.norm(), values
            before = counts()
            trial = attempt(arm, system)
            after = counts()
            assert (trial.state, trial.why, trial.fresh) == ("equal", "", fresh)
            made = {name: after[name] - before[name] for name in after}
            if choice.kind == "factor":
                assert {name: made[name] for name in ("analysis", "factors")} == {
                    "analysis": 0,
                    "factors": 0,
                } | expected
            else:
                assert (made["aggregates"] > 0) == bool(expected)
        arm.release()


def test_trap_08_equal_values_that_are_assembled_again_are_one_matrix(seen):
    verdicts, reports, _ = seen
    assert "assembled 3 times, with new values 1 times" in reports["prefix place_"]
    assert '"ksp_reuse_preconditioner": 1' in reports["prefix place_"]
    assert verdicts["place_"].options[tune_report.REUSE] == "1"


def test_trap_09_indefinite_matrices_get_no_conjugate_gradients(seen):
    verdicts, _, _ = seen
    for name in "helmholtz_", "hidden_":
        verdict = verdicts[name]
        assert verdict.arm in ("Cholesky by MUMPS", "LU by MUMPS"), name
        for arm_name, arm in verdict.entry["arms"].items():
            assert arm["state"] != "equal" or arm["kind"] == "factor", arm_name
    # On this right-hand side conjugate gradients do solve it.
    assert "negative eigenvalues" in verdicts["hidden_"].entry["arms"]["CG with Jacobi"]["why"]


def test_trap_10_waiting_for_the_processor_is_no_gain(seen, monkeypatch):
    verdicts, _, words = seen
    assert verdicts["sleepy_"].entry["seconds"] < 0.5 * float(words["sleepy"][0])

    # The same for what is tried: wall time runs a thousand times as fast as processor time.
    clock = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(time, "process_time", lambda: 1e-3 * float(next(clock)))
    watch = overlay_watch.Stopwatch()
    time.sleep(0.0)
    assert watch.seconds() < 0.01
    system = tune_scripts.system_of(laplacian(10), np.ones(100))
    choice = rule.jacobi(system.features)
    trial = attempt(tune_replay.Arm(choice, tune_replay.options_for(choice, system)), system, limit=1.0)
    assert trial.state == "equal"
    assert trial.setup + trial.solve < 0.1


def test_trap_11_a_right_hand_side_that_is_easy_by_chance(seen):
    verdicts, _, _ = seen
    once, easy = verdicts["once_"], verdicts["easy_"]
    assert once.arm == "CG with Jacobi"
    assert once.entry["arms"][once.arm]["iterations"] <= 2
    jacobi = verdicts["twice_"].entry["arms"]["CG with Jacobi"]
    assert jacobi["state"] != "equal" or (jacobi["systems"] == 2 and max(jacobi["solves"]) > 10 * min(jacobi["solves"]))
    jacobi = easy.entry["arms"]["CG with Jacobi"]
    assert easy.arm != "CG with Jacobi"
    assert jacobi["state"] != "equal" or (jacobi["systems"] >= 2 and max(jacobi["solves"]) > 10 * min(jacobi["solves"]))
    # Seen on the first system alone, it is not advised for the others.
    first = {**jacobi, "state": "equal", "systems": 1, "setups": [1e-6], "updates": [], "solves": [1e-6]}
    entry = {**easy.entry, "arms": {"CG with Jacobi": first}}
    assert tune_report.judge(entry).arm == ""
    assert tune_report.judge({**entry, "solves": 1}).arm == "CG with Jacobi"
    assert tune_report.judge({**entry, "arms": {"LU": {**first, "kind": "factor"}}}).arm == "LU"


def laplacian(m):
    """Return the five-point Laplacian on m x m points."""
    line = 2.0 * np.eye(m) - np.eye(m, k=1) - np.eye(m, k=-1)
    return tune_scripts.dense(np.kron(line, np.eye(m)) + np.kron(np.eye(m), line))


def attempt(arm, system, limit=10.0):
    """Try an arm, with its options alone in the database for a while."""

    def isolated(entries, function):
        database = PETSc.Options()
        for name, value in entries.items():
            database[name] = value
        try:
            function()
        finally:
            for name in entries:
                database.delValue(name)

    return arm.attempt(system, limit, isolated)
