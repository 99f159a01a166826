"""Learners against root finds, bounded least squares and brute force of other codes; what they gain on made costs."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdeopt.bench import relax_curves, relax_sor
from pdeopt.relaxation.bandit import BinnedTsallisINF, ChebCB, TsallisINF, tsallis_probabilities
from pdeopt.relaxation.box import box_least_squares
from pdeopt.relaxation.regret import (
    best_fixed,
    best_per_round,
    best_switching,
    cumulated_regret,
    growth_exponent,
    replay,
)
from pdeopt.relaxation.restart import Restarting
from pdeopt.report import ConvergenceError, InputError

INTERVAL = (-1.0, 1.0)
MAKERS = {
    "Tsallis-INF": lambda: TsallisINF(4, seed=3),
    "published": lambda: TsallisINF(4, floor=1.0, reduced_variance=False, seed=3),
    "discounted": lambda: TsallisINF(4, discount=0.9, seed=3),
    "bins": lambda: BinnedTsallisINF(4, INTERVAL, bins=3, seed=3),
    "ChebCB": lambda: ChebCB(4, INTERVAL, seed=3),
    "restarting": lambda: Restarting(TsallisINF(4, seed=3), threshold=5.0, warm_up=5),
    "restarting ChebCB": lambda: Restarting(ChebCB(4, INTERVAL, seed=3)),
}


def stochastic_costs(rounds: int, seed: int) -> np.ndarray:
    """Eight arms of mean 60 to 95 with uniform noise of +-20: the first is the best."""
    generator = np.random.default_rng(seed)
    return np.linspace(60.0, 95.0, 8) + generator.uniform(-20.0, 20.0, (rounds, 8))


def contextual_costs(rounds: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The best of eight arms follows the context, and no fixed arm is good everywhere."""
    generator = np.random.default_rng(seed)
    contexts = generator.uniform(*INTERVAL, rounds)
    places = np.linspace(-1.0, 1.0, 8)
    return 40.0 + 50.0 * (places - contexts[:, None]) ** 2 + generator.uniform(-4.0, 4.0, (rounds, 8)), contexts


@pytest.mark.parametrize("start", [1.0, 1.7, 100.0])
def test_tsallis_probabilities_are_those_of_a_root_find(start):
    brentq = pytest.importorskip("scipy.optimize").brentq
    generator = np.random.default_rng(0)
    for arms in (1, 2, 20, 200):
        for scale in (0.0, 1e-3, 1.0, 1e6):
            losses = scale * generator.exponential(size=arms)
            losses -= losses.min()
            root = brentq(lambda u, w=losses: ((w + u) ** -2).sum() - 1.0, 1.0, math.sqrt(arms) + 1.0, xtol=1e-15)
            found, multiplier = tsallis_probabilities(losses, start)
            np.testing.assert_allclose(found, (losses + root) ** -2, rtol=1e-10)
            assert multiplier == pytest.approx(root, rel=1e-10)
            assert found.sum() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("discount", [1.0, 0.8])
def test_tsallis_inf_is_the_published_one(discount):
    # Newton's method on the sum of p_i = 4 / (eta (k_i / s - x))^2, from where the largest is 1; eta = 2 / sqrt(t).
    learner = TsallisINF(3, floor=1.0, discount=discount, reduced_variance=False, seed=1)
    estimates, costs = [], []
    for number in range(30):
        weights = discount ** np.arange(number)[::-1]
        losses = weights @ np.array(estimates) if estimates else np.zeros(3)
        scale = np.average(costs, weights=weights) - 1.0 if costs else 1.0
        eta = 2.0 / math.sqrt(1.0 + weights.sum())
        x = (losses / scale).min() - 2.0 / eta
        for _ in range(20):
            expected = 4.0 * (eta * (losses / scale - x)) ** -2.0
            x -= (expected.sum() - 1.0) / (eta * (expected**1.5).sum())
        np.testing.assert_allclose(learner.probabilities(), expected, rtol=1e-8)
        arm = learner.choose()
        cost = 20.0 + 3.0 * arm + number % 5
        learner.learn(cost)
        costs.append(cost)
        estimates.append(np.where(np.arange(3) == arm, (cost - 1.0) / expected, 0.0))


@pytest.mark.parametrize("reduced_variance", [False, True])
def test_estimates_of_the_losses_are_unbiased(reduced_variance):
    # The expectation over the arm, summed exactly: differences between arms are those of their costs.
    costs = np.array([5.0, 7.0, 30.0])
    learner = TsallisINF(3, reduced_variance=reduced_variance)
    for _ in range(40):
        learner.learn(costs[learner.choose()])
    state, probabilities = learner.state(), learner.probabilities()
    assert probabilities.min() < 4.0 / 41.0 < probabilities.max()  # arms of both kinds
    expected = np.zeros(3)
    for arm in range(3):
        learner.restore({**state, "arm": arm, "probabilities": probabilities.tolist()})
        learner.learn(costs[arm])
        expected += probabilities[arm] * np.array(learner.state()["losses"])
    gained = expected - state["losses"]
    np.testing.assert_allclose(gained - gained[0], costs - costs[0], rtol=1e-9)


def test_box_least_squares_is_that_of_scipy():
    lsq_linear = pytest.importorskip("scipy.optimize").lsq_linear
    generator = np.random.default_rng(2)
    active = 0
    for _ in range(40):
        matrix, side = generator.standard_normal((30, 6)), 3.0 * generator.standard_normal(30)
        bound = generator.uniform(0.05, 1.0) / np.maximum(np.arange(6), 1)
        expected = lsq_linear(matrix, side, (-bound, bound), method="bvls", tol=1e-14).x
        active += int((np.abs(expected) > 0.999 * bound).sum())
        found = box_least_squares(
            (matrix.T @ matrix).tolist(), (matrix.T @ side).tolist(), bound.tolist(), [0.0] * 6, sweeps=500
        )
        np.testing.assert_allclose(found, expected, atol=1e-9)
    assert 40 < active < 200  # both kinds of coefficients were there


def test_chebyshev_series_find_the_costs():
    costs, contexts = contextual_costs(4000, 4)
    learner = ChebCB(8, INTERVAL, seed=5)
    replay(learner, costs, contexts)
    lost = []
    for context in np.linspace(-0.9, 0.9, 19):
        exact = 40.0 + 50.0 * (np.linspace(-1.0, 1.0, 8) - context) ** 2
        found = learner.predict(context)
        best = found.argmin()
        assert found[best] == pytest.approx(exact[best], abs=1.0)
        lost.append(exact[best] - exact.min())
    assert np.mean(lost) < 3.0  # of 60 for an arm taken at random


def test_regret_against_the_best_arm_grows_slower_than_the_rounds():
    exponents, shares, plain = [], [], []
    for seed in range(4):
        costs = stochastic_costs(2000, seed)
        uniform = costs.mean(axis=1).sum() - costs[:, best_fixed(costs)].sum()
        for reduced_variance, found in ((True, shares), (False, plain)):
            learner = TsallisINF(8, reduced_variance=reduced_variance, seed=seed)
            regret = cumulated_regret(replay(learner, costs).incurred, costs, best_fixed(costs))
            exponents.append(growth_exponent(regret))
            found.append(regret[-1] / uniform)
    assert np.median(exponents) < 0.75
    assert max(shares + plain) < 0.6
    assert np.mean(shares) < np.mean(plain)


@pytest.mark.parametrize(
    "make", [lambda: BinnedTsallisINF(8, INTERVAL, bins=4, seed=6), lambda: ChebCB(8, INTERVAL, seed=6)]
)
def test_contextual_learners_beat_every_fixed_arm(make):
    costs, contexts = contextual_costs(2500, 7)
    # The context alone makes the difference: shuffled, it is worth nothing.
    shuffled = np.random.default_rng(0).permutation(contexts)
    paid, blind = replay(make(), costs, contexts).incurred.mean(), replay(make(), costs, shuffled).incurred.mean()
    assert costs.min(axis=1).mean() < paid < costs.mean(axis=0).min() < blind


@pytest.mark.parametrize(
    "follow", [lambda seed: Restarting(TsallisINF(8, seed=seed)), lambda seed: TsallisINF(8, discount=0.99, seed=seed)]
)
def test_following_a_change_beats_remembering(follow):
    gains = []
    for seed in range(3):
        costs = np.concatenate([stochastic_costs(1200, seed), stochastic_costs(1200, seed + 10)[:, ::-1]])
        plain, following = TsallisINF(8, seed=seed), follow(seed)
        after = [replay(learner, costs).incurred[1200:].mean() for learner in (plain, following)]
        gains.append(after[0] - after[1])
    assert min(gains) > 2.0


def test_restarts_come_with_changes_only():
    quiet = Restarting(TsallisINF(8, seed=0))
    replay(quiet, stochastic_costs(5000, 1))
    assert quiet.restarts == 0
    for shift in (50.0, 0.0):
        before = quiet.restarts
        replay(quiet, stochastic_costs(100, 2) + shift)
        assert quiet.restarts == before + 1
    # A cost that stands out once is no change; costs without noise that move are one.
    steady = Restarting(TsallisINF(2, seed=0))
    costs = np.full((400, 2), 7.0)
    costs[200] = 7e6
    replay(steady, costs)
    assert steady.restarts == 0
    exact = Restarting(TsallisINF(2, seed=0))
    replay(exact, np.repeat([[7.0, 8.0], [7.5, 8.5]], 100, axis=0))
    assert exact.restarts == 1


@pytest.mark.parametrize("name", MAKERS)
def test_a_restored_learner_goes_on_the_same_in_every_bit(name):
    generator = np.random.default_rng(8)
    contexts, costs = generator.uniform(-1.2, 1.2, 300), generator.exponential(30.0, (300, 4))
    costs[150:] += 200.0
    whole, first, second = MAKERS[name](), MAKERS[name](), MAKERS[name]()
    expected = replay(whole, costs, contexts)
    replay(first, costs[:170], contexts[:170])
    arm = first.choose(contexts[170])
    # Through JSON, between a choice and its cost.
    second.restore(json.loads(json.dumps(first.state())))
    first.learn(costs[170, arm])
    second.learn(costs[170, arm])
    found = replay(second, costs[171:], contexts[171:])
    np.testing.assert_array_equal(found.choices, expected.choices[171:])
    assert second.state() == whole.state()
    assert first.state() != whole.state()


COSTS = st.one_of(st.floats(0.0, 1e308), st.sampled_from([0.0, 5e-324, 1.0, 1e100, 1.7e308]), st.floats(0.5, 200.0))


@settings(deadline=None, max_examples=60)
@given(st.lists(COSTS, max_size=60), st.sampled_from(sorted(MAKERS)))
def test_any_costs_leave_probabilities(costs, name):
    learner = MAKERS[name]()
    for number, cost in enumerate(costs):
        assert 0 <= learner.choose(math.sin(number)) < 4
        learner.learn(cost)
    inner = learner.learner if isinstance(learner, Restarting) else learner
    if isinstance(inner, ChebCB):
        assert np.isfinite(inner.predict(0.3)).all()
        assert math.isfinite(inner.state()["eta"])
        return
    for part in getattr(inner, "learners", [inner]):
        probabilities = part.probabilities()
        assert (probabilities > 0.0).all()
        assert probabilities.sum() == pytest.approx(1.0, abs=1e-12)


def test_equal_costs_keep_the_arms_equal():
    learner = TsallisINF(5, floor=30.0)
    replay(learner, np.full((50, 5), 30.0))
    np.testing.assert_allclose(learner.probabilities(), 0.2, rtol=1e-12)


def test_oracles_in_hindsight():
    generator = np.random.default_rng(9)
    costs = generator.integers(1, 9, (9, 3)).astype(float)
    assert costs[:, best_fixed(costs)].sum() == costs.sum(axis=0).min()
    assert costs[np.arange(9), best_per_round(costs)].sum() == costs.min(axis=1).sum()
    for switches in (0, 1, 2, 8):
        paths = np.stack(np.meshgrid(*[np.arange(3)] * 9, indexing="ij"), axis=-1).reshape(-1, 9)
        allowed = paths[(np.diff(paths, axis=1) != 0).sum(axis=1) <= switches]
        least = costs[np.arange(9), allowed].sum(axis=1).min()
        path = best_switching(costs, switches)
        assert (np.diff(path) != 0).sum() <= switches
        assert costs[np.arange(9), path].sum() == least
    np.testing.assert_allclose(growth_exponent(np.arange(1.0, 1001.0) ** 0.6), 0.6, rtol=1e-12)
    assert math.isnan(growth_exponent(-np.ones(100)))


def test_sor_takes_the_iterations_of_the_plain_method(monkeypatch):
    systems = relax_sor.draw_systems(3, (0.5, 1.5), np.random.default_rng(10))
    omegas = np.column_stack([np.broadcast_to(relax_sor.OMEGAS[6::6], (3, 3)), relax_sor.young_omega(systems.shifts)])
    found = relax_sor.sor_iterations(systems, omegas)
    line = 2.0 * np.eye(10) - np.eye(10, k=1) - np.eye(10, k=-1)
    laplacian = np.kron(line, np.eye(10)) + np.kron(np.eye(10), line)
    for number, shift in enumerate(systems.shifts):
        matrix, side = laplacian + shift * np.eye(100), systems.sides[:, :, number].ravel()
        assert np.linalg.norm(side) <= 10.0
        for arm, omega in enumerate(omegas[number]):
            step = np.linalg.inv(np.diag(np.diag(matrix)) / omega + np.tril(matrix, -1))
            radius = np.abs(np.linalg.eigvals(np.eye(100) - step @ matrix)).max()
            # A double eigenvalue moves by the square root of the rounding errors.
            assert relax_sor.sor_radius(shift, omega) == pytest.approx(radius, abs=1e-6 if arm < 3 else 1e-2)
            x, residual, count = np.zeros(100), side.copy(), 0
            while np.linalg.norm(residual) >= 1e-8 * np.linalg.norm(side):
                x += step @ residual
                residual, count = side - matrix @ x, count + 1
            assert found[number, arm] == count
    monkeypatch.setattr(relax_sor, "ITERATION_LIMIT", 20)
    with pytest.raises(ConvergenceError, match="more than 20"):
        relax_sor.sor_iterations(systems, np.full((3, 1), 1.9))


def test_curves_keep_their_identities():
    costs = np.random.default_rng(11).integers(10, 90, (30, relax_curves.ARMS)).astype(float)
    pool = relax_curves.Pool(np.linspace(-0.15, 0.45, 30), costs, costs.min(axis=1) - 1.0)
    found = relax_curves.curves(pool, trials=2, rounds=60, seed=1)
    for name in found.incurred:
        fixed, each = found.regret(name), found.regret(name, "instance")
        np.testing.assert_allclose(each - fixed, found.fixed - np.cumsum(found.instance, axis=1))
    assert (found.regret("Young's omega for each system", "instance")[:, -1] == -60.0).all()
    again = relax_curves.curves(pool, trials=2, rounds=60, seed=1)
    np.testing.assert_array_equal(again.incurred["ChebCB"], found.incurred["ChebCB"])


WRONG_INPUT = [
    (lambda: TsallisINF(0), "0 arms"),
    (lambda: TsallisINF(2, discount=1.5), "discount is 1.5"),
    (lambda: TsallisINF(2, floor=math.nan), "floor of the costs is nan"),
    (lambda: BinnedTsallisINF(2, (1.0, 0.0)), "interval"),
    (lambda: BinnedTsallisINF(2, INTERVAL, bins=0), "0 bins"),
    (lambda: ChebCB(2, INTERVAL, terms=0), "0 terms"),
    (lambda: ChebCB(2, INTERVAL).choose(), "context is None"),
    (lambda: BinnedTsallisINF(2, INTERVAL).choose(math.nan), "context is nan"),
    (lambda: TsallisINF(2).learn(1.0), "no arm"),
    (lambda: replay(TsallisINF(2), [[1.0, 2.0]], [0.0, 1.0]), "2 contexts for 1 rounds"),
    (lambda: replay(TsallisINF(2), [[1.0, math.inf]]), "not finite"),
    (lambda: best_fixed([1.0]), "shape"),
    (lambda: best_switching([[1.0]], -1), "-1 switches"),
    (lambda: TsallisINF(2).restore(TsallisINF(3).state()), "another"),
    (lambda: BinnedTsallisINF(2, INTERVAL).restore(BinnedTsallisINF(2, INTERVAL, 2).state()), "2 bins"),
    (lambda: ChebCB(2, INTERVAL).restore(ChebCB(2, INTERVAL, 3).state()), "another"),
    (lambda: Restarting(TsallisINF(2)).restore(Restarting(TsallisINF(3)).state()), "3 arms"),
    (lambda: Restarting(TsallisINF(2), threshold=0.0), "threshold"),
    (lambda: Restarting(TsallisINF(2), warm_up=1), "warm_up"),
]


def test_wrong_input_is_named():
    for call, match in WRONG_INPUT:
        with pytest.raises(InputError, match=match):
            call()


@pytest.mark.parametrize("cost", [-1.0, math.nan, math.inf])
def test_costs_that_are_none_are_refused(cost):
    for make in MAKERS.values():
        learner = make()
        learner.choose(0.0)
        with pytest.raises(InputError, match="cost is"):
            learner.learn(cost)
