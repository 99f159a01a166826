"""Learners that choose among numbered arms from the costs of those they chose, with and without a context.

All follow one protocol: ``choose(context)`` returns an arm, ``learn(cost)`` takes its cost, ``forget()`` starts anew,
``state()`` returns all they know as JSON takes it, and ``restore(state)`` goes on from it, the same in every bit.
Costs are numbers >= 0 on any scale (iterations, seconds). Under MPI one rank chooses and tells the others: none of
these methods is collective.
"""

import copy
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from pdeopt.parallel import random_stream
from pdeopt.relaxation._learning import (
    check_arms,
    check_context,
    check_cost,
    check_floor,
    check_interval,
    draw,
    restored_array,
)
from pdeopt.relaxation.box import box_least_squares
from pdeopt.report import InputError

# Added to the normal equations of ChebCB, for arms that have been chosen less often than they have coefficients.
RIDGE = 1e-6
# Sweeps of coordinate descent after every cost: the fit of an arm goes on when the arm is chosen again.
SWEEPS = 2


def tsallis_probabilities(losses: npt.NDArray[np.float64], start: float = 1.0) -> tuple[npt.NDArray[np.float64], float]:
    """Return p_i = (w_i + u)^-2 with the u >= 1 for which they sum to 1, and u.

    They minimise sum_i (p_i w_i - 2 sqrt(p_i)) over the simplex: follow the leader, regularised by Tsallis's entropy of
    order 1/2 (Zimmert and Seldin, JMLR 22 (2021) 28, Algorithm 1). Newton's method runs on (sum_i p_i)^(-1/2) = 1,
    concave in u and linear for equal losses: wherever it starts, it rises to the root from its second step on.

    Parameters
    ----------
    losses
        w, times half the learning rate; the least of them is 0.
    start
        First guess of u.

    Collective: no.
    """
    u = max(start, 1.0)
    while True:
        root = 1.0 / (losses + u)
        probabilities = root * root
        total = float(root.dot(root))
        step = total * (math.sqrt(total) - 1.0) / float(probabilities.dot(root))
        moved = max(u + step, 1.0)
        if not abs(moved - u) > 1e-7 * u:
            # What is left is of the order of this step squared; so is what one term of Taylor's series neglects.
            probabilities *= 1.0 - 2.0 * (moved - u) * root
            return probabilities, moved
        u = moved


class TsallisINF:
    """Tsallis-INF: nearly as good as the best fixed arm, whoever makes the costs, without a tuned parameter.

    The loss k_i of the arm that was chosen rises by (cost - floor) / p_i, which is unbiased; the next arm is drawn from
    p_i = 4 / (eta (k_i / s - x))^2 with eta = 2 / sqrt(t) and s the mean of cost - floor so far (the anytime form of
    Khodak et al., Learning to relax, ICLR 2024, with their scaling).

    Parameters
    ----------
    arms
        Number of arms, >= 1.
    floor
        What no cost falls below (1 for iterations, 0 for seconds); closer is better.
    discount
        In (0, 1]; what was learned n rounds ago counts discount^n. Below 1 it follows costs that change, with a memory
        of 1 / (1 - discount) rounds, and stays as far from the best arm as so few rounds leave it.
    reduced_variance
        Give every arm with p_i >= eta^2 the mean cost so far, and divide by p_i only what the cost differs from it:
        still unbiased, less noise (Zimmert and Seldin, JMLR 22 (2021) 28, who have 1/2 for costs in [0, 1]). False:
        the form of Khodak et al.
    seed
        Of the random stream, >= 0.
    stream
        Its name; learners side by side need different ones.

    Raises
    ------
    InputError
        If an argument is out of its range; by `learn` if no arm was chosen or the cost is negative or not finite.
    """

    def __init__(
        self,
        arms: int,
        floor: float = 0.0,
        discount: float = 1.0,
        reduced_variance: bool = True,
        seed: int = 0,
        stream: str = "relaxation.tsallis",
    ) -> None:
        if not 0.0 < discount <= 1.0:
            raise InputError(f"discount is {discount}: it must be above 0 and at most 1")
        self.arms, self.floor, self.discount = check_arms(arms), check_floor(floor), float(discount)
        self.reduced_variance = reduced_variance
        self._random = random_stream(stream, seed)
        self.forget()

    def forget(self) -> None:
        """Start anew, with the random stream where it is. Collective: no."""
        self._losses = np.zeros(self.arms)
        self._rounds, self._total = 0.0, 0.0  # discounted
        self._start = 1.0
        self._arm: int | None = None
        self._probabilities = np.full(self.arms, 1.0 / self.arms)

    def probabilities(self) -> npt.NDArray[np.float64]:
        """Return the probabilities (arms) from which the next arm is drawn. Collective: no."""
        scale = self._total / max(self._rounds, 1.0) or 1.0
        losses = self._losses - self._losses[self._losses.argmin()]
        losses /= scale * math.sqrt(self._rounds + 1.0)
        probabilities, self._start = tsallis_probabilities(losses, self._start)
        return probabilities

    def choose(self, context: float | None = None) -> int:
        """Return an arm; the context plays no part. Collective: no."""
        self._probabilities = self.probabilities()
        self._arm = draw(self._probabilities, self._random)
        return self._arm

    def learn(self, cost: float) -> None:
        """Take the cost of the arm chosen last. Collective: no."""
        excess = max(check_cost(cost, self._arm) - self.floor, 0.0)
        arm, probabilities = self._arm, self._probabilities
        if self.discount < 1.0:
            self._losses *= self.discount
        known = 0.0
        if self.reduced_variance and self._rounds > 0.0:
            mean, often = self._total / self._rounds, probabilities >= 4.0 / (self._rounds + 1.0)
            self._losses += mean * often
            known = mean if often[arm] else 0.0
        self._losses[arm] += (excess - known) / float(probabilities[arm])
        self._rounds = self.discount * self._rounds + 1.0
        self._total = self.discount * self._total + excess
        self._arm = None

    def state(self) -> dict[str, Any]:
        """Return all it knows. Collective: no."""
        return {
            "losses": self._losses.tolist(),
            "rounds": self._rounds,
            "total": self._total,
            "start": self._start,
            "arm": self._arm,
            "probabilities": self._probabilities.tolist(),
            "random": self._random.bit_generator.state,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state of a learner with as many arms. Collective: no."""
        self._losses = restored_array(state, "losses", (self.arms,))
        self._rounds, self._total, self._start = state["rounds"], state["total"], state["start"]
        self._probabilities = restored_array(state, "probabilities", (self.arms,))
        self._arm = state["arm"]
        self._random.bit_generator.state = state["random"]


class BinnedTsallisINF:
    """One `TsallisINF` for each of the equal parts of the contexts' interval.

    Parameters
    ----------
    arms
        Number of arms, >= 1.
    interval
        Where the contexts lie; those outside go to the nearest bin.
    bins
        Number of parts, >= 1.
    floor, discount, reduced_variance, seed
        As in `TsallisINF`.

    Raises
    ------
    InputError
        If an argument is out of its range; by `choose` if the context is not a finite number.
    """

    def __init__(
        self,
        arms: int,
        interval: tuple[float, float],
        bins: int = 5,
        floor: float = 0.0,
        discount: float = 1.0,
        reduced_variance: bool = True,
        seed: int = 0,
    ) -> None:
        if bins < 1:
            raise InputError(f"{bins} bins: there must be at least one")
        self.arms, self.interval = arms, check_interval(interval)
        self.learners = [
            TsallisINF(arms, floor, discount, reduced_variance, seed, f"relaxation.tsallis.bin {number}")
            for number in range(bins)
        ]
        self._bin = 0

    def forget(self) -> None:
        """Start anew, with the random streams where they are. Collective: no."""
        for learner in self.learners:
            learner.forget()

    def choose(self, context: float | None = None) -> int:
        """Return an arm for a context. Collective: no."""
        low, high = self.interval
        place = (check_context(context) - low) / (high - low)
        self._bin = int(min(max(place, 0.0) * len(self.learners), len(self.learners) - 1))
        return self.learners[self._bin].choose()

    def learn(self, cost: float) -> None:
        """Take the cost of the arm chosen last. Collective: no."""
        self.learners[self._bin].learn(cost)

    def state(self) -> dict[str, Any]:
        """Return all it knows. Collective: no."""
        return {"bin": self._bin, "learners": [learner.state() for learner in self.learners]}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state of a learner with as many arms and bins. Collective: no."""
        states = state.get("learners", ())
        if len(states) != len(self.learners):
            raise InputError(f"state: {len(states)} bins, this learner has {len(self.learners)}: it is that of another")
        self._bin = state["bin"]
        for learner, part in zip(self.learners, states, strict=True):
            learner.restore(part)


class ChebCB:
    """ChebCB: a Chebyshev series in the context for every arm's cost, and arms drawn by their gap to the best.

    The series are fitted by least squares with coefficient j in +- K (j = 0) or +- 2 (K - k) / j, for k and K the least
    and largest cost - floor so far; an arm whose predicted cost exceeds the least by g is drawn with probability
    1 / (arms + eta g), the arm of the least with what is left. As in the code of Khodak et al. (Learning to relax, ICLR
    2024, Algorithm 3) eta = 2 t sqrt(arms t / (R + 2 a^2 t)) grows with the round t; R is the excess of the squared
    errors of the predictions made over those of the present fit, and
    a = (pi + 2 log(2 n + 1) / pi) (K - k) / (2 (n + 1)) bounds what n terms leave of a Lipschitz function.

    Parameters
    ----------
    arms
        Number of arms, >= 1.
    interval
        Where the contexts lie; those outside count as its nearest end.
    terms
        Terms n of the series, >= 1.
    floor, seed
        As in `TsallisINF`.

    Raises
    ------
    InputError
        If an argument is out of its range; by `choose` if the context is not a finite number; by `learn` as in
        `TsallisINF`.
    """

    _KNOWN = (
        *("gram", "moment", "squares", "misfits", "bound", "features", "errors", "eta", "rounds", "least", "largest"),
        *("arm", "predicted"),
    )

    def __init__(
        self, arms: int, interval: tuple[float, float], terms: int = 6, floor: float = 0.0, seed: int = 0
    ) -> None:
        if terms < 1:
            raise InputError(f"{terms} terms of the Chebyshev series: there must be at least one")
        self.arms, self.interval, self.terms = check_arms(arms), check_interval(interval), terms
        self.floor = check_floor(floor)
        self._remainder = (math.pi + 2.0 / math.pi * math.log(2 * terms + 1)) / (2 * (terms + 1))
        self._random = random_stream("relaxation.chebyshev", seed)
        self.forget()

    def forget(self) -> None:
        """Start anew, with the random stream where it is. Collective: no."""
        # Lists where single numbers are read: NumPy takes longer to hand one out than to add a row of them.
        self._gram = [(RIDGE * np.eye(self.terms)).tolist() for _ in range(self.arms)]
        self._moment = [[0.0] * self.terms for _ in range(self.arms)]
        self._squares, self._misfits = [0.0] * self.arms, [0.0] * self.arms
        self._series = np.zeros((self.arms, self.terms))
        self._bound = [0.0] * self.terms
        self._errors, self._eta, self._rounds = 0.0, 0.0, 0
        self._least, self._largest = math.inf, 0.0
        self._features = [0.0] * self.terms
        self._arm: int | None = None
        self._predicted = 0.0

    def _evaluate_features(self, context: float) -> list[float]:
        """Return the Chebyshev polynomials (terms) at a context. Collective: no."""
        low, high = self.interval
        x = min(max(2.0 * (context - low) / (high - low) - 1.0, -1.0), 1.0)
        values = [1.0, x]
        for _ in range(self.terms - 2):
            values.append(2.0 * x * values[-1] - values[-2])
        return values[: self.terms]

    def predict(self, context: float) -> npt.NDArray[np.float64]:
        """Return the expected costs (arms) at a context. Collective: no."""
        return self.floor + self._series @ self._evaluate_features(check_context(context))

    def choose(self, context: float | None = None) -> int:
        """Return an arm for a context. Collective: no."""
        self._features = self._evaluate_features(check_context(context))
        costs = self._series.dot(np.array(self._features))
        best = int(costs.argmin())
        least = float(costs[best])
        weights = 1.0 / (self.arms + self._eta * (costs - least))
        weights[best] = 0.0
        place, arm = self._random.random(), best
        # Nearly always the best arm; only else is it worth asking which.
        if place < weights.sum():
            arm = int(weights.cumsum().searchsorted(place, side="right"))
        self._arm, self._predicted = arm, float(costs[arm])
        return arm

    def learn(self, cost: float) -> None:
        """Take the cost of the arm chosen last. Collective: no."""
        excess = max(check_cost(cost, self._arm) - self.floor, 0.0)
        arm, features = self._arm, self._features
        assert arm is not None
        self._arm = None
        self._rounds += 1
        self._errors += (self._predicted - excess) ** 2
        self._squares[arm] += excess * excess
        moment, gram = self._moment[arm], self._gram[arm]
        for j, feature in enumerate(features):
            moment[j] += excess * feature
            row = gram[j]
            for k, other in enumerate(features):
                row[k] += feature * other
        if excess > self._largest or excess < self._least:
            self._largest, self._least = max(excess, self._largest), min(excess, self._least)
            spread = 2.0 * (self._largest - self._least)
            self._bound = [self._largest] + [spread / j for j in range(1, self.terms)]
        self._fit(arm)
        remainder = self._remainder * (self._largest - self._least)
        spread = max(self._errors - sum(self._misfits), 0.0) + 2.0 * remainder**2 * self._rounds
        self._eta = 2.0 * self._rounds * math.sqrt(self.arms * self._rounds / spread) if spread > 0.0 else 0.0

    def _fit(self, arm: int) -> None:
        """Improve an arm's series, and note its squared misfit. Collective: no."""
        gram, moment = self._gram[arm], self._moment[arm]
        series = box_least_squares(gram, moment, self._bound, self._series[arm].tolist(), SWEEPS)
        self._series[arm] = series
        curvature = math.sumprod(series, [math.sumprod(row, series) for row in gram])
        self._misfits[arm] = max(self._squares[arm] + curvature - 2.0 * math.sumprod(series, moment), 0.0)

    def state(self) -> dict[str, Any]:
        """Return all it knows. Collective: no."""
        known = {name: copy.deepcopy(getattr(self, f"_{name}")) for name in self._KNOWN}
        return {**known, "series": self._series.tolist(), "random": self._random.bit_generator.state}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state of a learner with as many arms and terms. Collective: no."""
        self._series = restored_array(state, "series", (self.arms, self.terms))
        for name in self._KNOWN:
            setattr(self, f"_{name}", copy.deepcopy(state[name]))
        self._random.bit_generator.state = state["random"]
