"""The bandit phase of AutoKSP: what trying others may cost, that it finds what is faster, and that nothing breaks."""

import dataclasses
import itertools
import math

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np
import pytest

from pdeopt.relaxation import automatic, race, rule
from pdeopt.relaxation.automatic import AutoKSP, AutoSettings
from pdeopt.relaxation.bounds import LowerConfidenceBounds
from pdeopt.relaxation.features import MatrixFeatures
from pdeopt.relaxation.race import FAILED, FEW, FIRST, SHARE, Race, Sample
from pdeopt.relaxation.rule import Choice, challengers
from pdeopt.report import InputError

PLANE = MatrixFeatures(True, 20_000, 1, 1, 7.0, 2, True, "positive")
PRODUCT = 1e-4


def test_an_arm_of_twice_the_cost_is_played_as_often_as_the_theory_says():
    spread, rounds = 0.2, 200
    plays, regrets = [], []
    for seed in range(40):
        stream = np.random.default_rng(seed)
        bandit = LowerConfidenceBounds(3, spread)
        arms = []
        for _ in range(rounds):
            arm = bandit.choose()
            bandit.learn((1.0, 2.0, 1.3)[arm] * math.exp(spread * stream.standard_normal()))
            arms.append(arm)
        plays.append([arms.count(arm) for arm in range(3)])
        regrets.append(plays[-1][1] + 0.3 * plays[-1][2])
    bounds = [1.0 + 2.0 * spread**2 * math.log(rounds) / math.log(r) ** 2 for r in (2.0, 1.3)]
    assert np.mean(plays, axis=0)[1] <= 1.5 * bounds[0]
    assert np.mean(plays, axis=0)[2] <= 1.5 * bounds[1]
    assert np.mean(regrets) < 0.04 * rounds
    assert bandit.best == 0


def test_state_goes_on_exactly_and_what_is_wrong_is_named():
    first, second = LowerConfidenceBounds(3, 0.1), LowerConfidenceBounds(3, 0.1)
    for cost in (1.0, 1.5, 0.9, 1.2):
        first.choose()
        first.learn(cost)
    second.restore(first.state())
    for cost in (0.8, 1.0, 1.1):
        assert first.choose() == second.choose()
        first.learn(cost)
        second.learn(cost)
    assert first.state() == second.state()
    best = first.best
    first.forget()
    assert first.choose() == best  # the one that was best comes first again
    with pytest.raises(InputError, match="spread is 0"):
        LowerConfidenceBounds(2, 0.0)
    with pytest.raises(InputError, match="that of another"):
        LowerConfidenceBounds(2, 0.1).restore(first.state())


def test_unaffordable_exploring_does_not_happen():
    bandit = LowerConfidenceBounds(2, 0.1)
    bandit.explore = False
    for _ in range(10):
        assert bandit.choose() == 0
        bandit.learn(1.0)
    bandit.explore = True
    assert bandit.choose() == 1


def run(seconds, solves, announced=0, incumbent="CG with ICC(3)"):
    """Let a race pick, with seconds(step, name) for what a solve costs; return names, what trying lost, all seconds."""
    contest = Race(announced)
    first = Choice(incumbent, "incomplete", {}, "")
    names, total = [], 0.0
    for step in range(solves):
        choice = contest.pick(first, PLANE, PRODUCT)
        cost, limit = seconds(step, choice.name), contest.limit()
        best = seconds(step, contest.best.name) if contest.choices else cost
        # As AutoKSP does it: whoever takes too long is cut off, and the best one goes on.
        cut = limit is not None and cost > race.PATIENCE * best
        spent = race.PATIENCE * best + best if cut else cost
        contest.learn(Sample(0.5 * cost, race.PATIENCE * best if cut else 0.5 * cost, spent, False, not cut))
        names.append(choice.name)
        total += spent
    return names, contest, total


def test_nobody_is_tried_before_thirty_solves_unless_they_are_announced():
    others = {choice.name for choice in challengers(PLANE, Choice("CG with ICC(3)", "incomplete", {}, ""), 0.5)}
    assert 1 <= len(others) <= 2
    names, _, _ = run(lambda step, name: 0.1, 90)
    assert set(names[:FIRST]) == {"CG with ICC(3)"}
    assert set(names) - {"CG with ICC(3)"} <= others
    assert set(names[FIRST:]) - {"CG with ICC(3)"}
    names, _, _ = run(lambda step, name: 0.1, 90, announced=200)
    assert set(names[:FEW]) == {"CG with ICC(3)"}
    assert set(names[FEW:]) - {"CG with ICC(3)"}


@pytest.mark.parametrize("ratio", [1.0, 1.2, 3.0, 50.0])
def test_trying_what_is_slower_loses_a_small_share_at_most(ratio):
    stream = np.random.default_rng(3)
    noise = np.exp(0.1 * stream.standard_normal(300))
    names, contest, total = run(lambda step, name: 0.1 * noise[step] * (1.0 if "ICC(3)" in name else ratio), 300)
    assert contest.exploring <= SHARE * total + 0.1 * (1.0 + race.PATIENCE) * 1.4
    assert names[-20:].count("CG with ICC(3)") >= 17 or ratio < 1.5
    assert total <= 1.1 * 0.1 * noise.sum()


def test_what_is_faster_is_found_and_a_change_of_regime_is_noticed():
    stream = np.random.default_rng(4)
    noise = np.exp(0.1 * stream.standard_normal(300))

    def seconds(step, name):
        jacobi_is_better = step < 150
        return 0.1 * noise[step] * (1.0 if ("Jacobi" in name) == jacobi_is_better else 2.5)

    names, contest, total = run(seconds, 300)
    assert names[60:140].count("CG with Jacobi") >= 70
    assert names[200:].count("CG with Jacobi") <= 10
    hindsight = 0.1 * noise.sum()
    # The first thirty cost 1.5 times as much more, before anything is tried.
    assert total - 30 * 0.15 <= 1.2 * hindsight
    assert "begun anew" in contest.standings


def test_the_rule_s_choice_comes_back_soon_where_what_was_faster_has_become_slow():
    stream = np.random.default_rng(5)
    noise = np.exp(0.05 * stream.standard_normal(300))

    def seconds(step, name):
        cheap = step % 100 < 50
        return 0.1 * noise[step] * (1.0 if "ICC(3)" in name else 0.6 if cheap else 4.0)

    names, _, total = run(seconds, 300)
    for start in (150, 250):
        assert names[start + 15 : start + 50].count("CG with ICC(3)") >= 33
    assert total <= 1.15 * 0.1 * noise.sum()


def test_a_choice_that_fails_leaves_the_race():
    contest, first = Race(), Choice("CG with ICC(3)", "incomplete", {}, "")
    for _ in range(FIRST + 1):
        contest.pick(first, PLANE, PRODUCT)
        contest.learn(Sample(0.0, 0.1, 0.1, False, True))
    loser = contest.choices[1].name
    for _ in range(50):
        assert contest.pick(first, PLANE, PRODUCT, {loser}).name != loser
        contest.learn(Sample(0.0, 0.1, 0.1, False, True))
    assert loser not in contest.standings
    # Another class of matrix: the rule's choice for it alone counts.
    other = Choice("BiCGStab with ILU(2)", "incomplete", {}, "")
    assert contest.pick(other, PLANE, PRODUCT) is other
    assert not contest.choices or contest.choices[0] is other
    assert FAILED > 1.0


# --- in AutoKSP -------------------------------------------------------------------------------------------------------


def laplacian(side, comm):
    """Return the five-point matrix, and a function that assembles it with another shift."""
    A = PETSc.Mat().createAIJ((side * side, side * side), nnz=5, comm=comm)

    def fill(shift):
        for row in range(*A.getOwnershipRange()):
            i, j = divmod(row, side)
            A[row, row] = 4.0 + shift
            for di, dj in ((1, 0), (-1, 0), (0, 1), (0, -1)):
                if 0 <= i + di < side and 0 <= j + dj < side:
                    A[row, (i + di) * side + j + dj] = -1.0 - 0.01 * shift
        A.assemble()

    return A, fill


BROKEN = Choice("broken", "incomplete", {"ksp_type": "cg", "pc_type": "no_such_type"}, "")
DIVERGING = Choice("diverging", "incomplete", {"ksp_type": "richardson", "pc_type": "none"}, "")
# One megabyte is not enough for these factors: MUMPS says so on all ranks.
STARVED = Choice(
    "starved", "factor",
    {"ksp_type": "fgmres", "pc_type": "lu", "pc_factor_mat_solver_type": "mumps", "mat_mumps_icntl_23": "1"}, "",
)  # fmt: skip
SLOW = Choice("slow", "incomplete", {"ksp_type": "cg", "pc_type": "none"}, "")


@pytest.mark.parallel([1, 2, 3])
def test_arms_that_fail_cost_one_retry_and_all_ranks_play_the_same(monkeypatch):
    comm = MPI.COMM_WORLD
    side, solves = 60, 48
    for bad in ([BROKEN, SLOW], [DIVERGING, STARVED]):
        monkeypatch.setattr(race, "challengers", lambda *arguments, bad=bad: bad)
        # On a busy machine solves take so long that a factorisation seems to pay for each: then nobody races.
        monkeypatch.setattr(automatic, "factor_pays", lambda *arguments: False)
        monkeypatch.setattr(race, "SHARE", 10.0)  # times are short here, and a set-up that fails takes many of them
        A, fill = laplacian(side, comm)
        ksp, context = PETSc.KSP().create(comm), AutoKSP(AutoSettings(solves=200))
        ksp.setOperators(A)
        ksp.setType("python")
        ksp.setPythonContext(context)
        ksp.setTolerances(rtol=1e-9)
        ksp.setErrorIfNotConverged(True)
        b, x = A.createVecs()
        r = b.duplicate()
        played = []
        for step in range(solves):
            fill(0.1 + (step % 7))
            b.array_w[:] = np.sin(np.arange(*b.getOwnershipRange()) * (1.0 + 0.1 * step))
            ksp.solve(b, x)
            A.mult(x, r)
            r.axpy(-1.0, b)
            assert r.norm() <= 1e-9 * b.norm() * (1.0 + 1e-6)
            played.append((context.choice.name, context._race.picked.name, ksp.getIterationNumber()))
        names = {picked for _, picked, _ in played}
        assert names > {"CG with ICC(3)"}
        assert context.unsolved == 0
        for name in ("broken", "starved"):
            assert sum(picked == name for _, picked, _ in played) <= 1
            assert (name in context.failed) == (name in names)
        if bad[0] is BROKEN:
            assert "broken" in context.failed
            assert "slow" not in context.failed  # it was only slow
            assert context.fallbacks == 1
        assert all(other == played for other in comm.allgather(played))
        for handle in (ksp, A, b, x, r):
            handle.destroy()


@pytest.mark.parallel([1, 2])
def test_neural_multigrid_takes_part_and_solves(monkeypatch):
    arm = rule.neural_multigrid("")
    monkeypatch.setattr(race, "challengers", lambda *arguments: [arm])
    monkeypatch.setattr(automatic, "factor_pays", lambda *arguments: False)
    monkeypatch.setattr(race, "SHARE", 1e6)
    comm = MPI.COMM_WORLD
    A, fill = laplacian(40, comm)
    ksp, context = PETSc.KSP().create(comm), AutoKSP(AutoSettings(solves=200))
    ksp.setOperators(A)
    ksp.setType("python")
    ksp.setPythonContext(context)
    b, x = A.createVecs()
    b.set(1.0)
    played = set()
    for step in range(FEW + 4):
        fill(0.1 + step)
        ksp.solve(b, x)
        assert ksp.getConvergedReason() > 0
        played.add(context._race.picked.name)
    assert arm.name in played
    assert not context.failed
    for handle in (ksp, A, b, x):
        handle.destroy()


def test_without_learning_the_rule_alone_chooses():
    A, fill = laplacian(20, MPI.COMM_SELF)
    ksp, context = PETSc.KSP().create(MPI.COMM_SELF), AutoKSP(AutoSettings(learn=False))
    ksp.setOperators(A)
    ksp.setType("python")
    ksp.setPythonContext(context)
    b, x = A.createVecs()
    b.set(1.0)
    for step in range(FIRST + 10):
        fill(0.1 * step)
        ksp.solve(b, x)
    assert context.setups["new"] == 1
    assert context.report.quantities["race"] == "no race"
    ksp.destroy()


def test_challengers_are_cheap_where_set_up_dominates_and_strong_where_it_does_not():
    incumbent = rule.icc(PLANE, 3, "")
    cheap, strong = (challengers(PLANE, incumbent, share) for share in (0.8, 0.1))
    assert [choice.kind for choice in cheap] == ["incomplete", "incomplete"]
    assert strong[0].kind == "multigrid"
    for features, share in itertools.product(
        [
            MatrixFeatures(True, 100, 1, 1, 7.0, 2, True, "zero"),
            MatrixFeatures(True, 100, 1, 1, 7.0, 2, True, "positive", "constants"),
            MatrixFeatures(False, 100, 1),
        ],
        (0.1, 0.9),
    ):
        assert challengers(features, incumbent, share) == []


def test_neural_multigrid_stands_for_multigrid_where_matrices_are_large(monkeypatch):
    large = dataclasses.replace(PLANE, size=rule.NEURAL_UNKNOWNS)
    for installed, features, name in (
        (True, large, "CG with NeuralMultigrid"),
        (True, PLANE, "CG with GAMG"),
        (False, large, "CG with GAMG"),
    ):
        monkeypatch.setattr(rule, "_has_multigrid_extra", lambda installed=installed: installed)
        assert challengers(features, rule.icc(features, 3, ""), 0.1)[0].name == name
    monkeypatch.setattr(rule, "_has_multigrid_extra", lambda: True)
    for share in (0.1, 0.8):
        assert challengers(large, rule.gamg(large, ""), share)[0].name == "CG with NeuralMultigrid"
    unsymmetric = dataclasses.replace(large, symmetric=False)
    assert all("Neural" not in choice.name for choice in challengers(unsymmetric, rule.ilu(unsymmetric, 2, ""), 0.1))
