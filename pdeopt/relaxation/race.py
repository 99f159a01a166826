"""When to solve by another than the rule's choice: the bandit phase of `AutoKSP`, paid from what solves have cost."""

import collections
import dataclasses
import math
import statistics
from collections.abc import Collection

from pdeopt.relaxation.bounds import LowerConfidenceBounds
from pdeopt.relaxation.features import MatrixFeatures
from pdeopt.relaxation.restart import Restarting
from pdeopt.relaxation.rule import Choice, challengers, factor_products

# Solves by the rule's choice that come first; below about 30 exploring loses more than it finds. If as many solves are
# announced, a few give a mean to compare with.
FIRST, FEW = 30, 3
# Share of all seconds of solves that exploring may have lost.
SHARE = 0.02
# A challenger may iterate until it has taken about this multiple of the seconds of the best choice.
PATIENCE = 1.1
# Seconds of an update over those of the first set-up, which has symbolic work and interpolation in it, at best.
UPDATE = 0.5
# A choice that did not converge counts as this many times the best one.
FAILED = 2.0
# Least spread of the logarithm of seconds.
LEAST_SPREAD = 0.1
# Cumulative deviations that make the race begin anew, and solves before they count. A false alarm costs a few trials,
# which have to be paid for; a late one costs solves by what has become the wrong choice.
ALARM, WARM_UP = 12.0, 8
# Products with the matrix that take the time of one iteration, at least; of a set-up of multigrid, about.
_PRODUCTS = {"incomplete": 1.5, "multigrid": 6.0, "factor": math.inf, "own": math.inf}
_MULTIGRID_SETUP = 150.0
# Seconds in which a preconditioner written in Python loads what it needs, once.
_LOADING = 0.3


@dataclasses.dataclass(frozen=True)
class Sample:
    """What a solve took; equal on all ranks.

    Parameters
    ----------
    setup, solve
        Seconds of the set-up, if there was one, and of the iterations.
    total
        Seconds of all that was done for this solution, a rescue included.
    new
        Whether the set-up was the first one.
    converged
        Whether the choice has solved.
    """

    setup: float
    solve: float
    total: float
    new: bool
    converged: bool


class Race:
    """A bandit over the rule's choice and at most two others.

    Parameters
    ----------
    announced
        Number of solves that will follow, 0 if unknown.

    Attributes
    ----------
    choices
        Who takes part; empty before the race begins.
    picked
        Who was picked last.
    exploring
        Seconds that trying has lost.
    """

    def __init__(self, announced: int = 0) -> None:
        self._needed = FEW if announced >= FIRST else FIRST
        self._base = ""
        self._solves, self._seconds, self.exploring = 0, 0.0, 0.0
        self._setups: collections.deque[float] = collections.deque(maxlen=FIRST)
        self._totals: collections.deque[float] = collections.deque(maxlen=FIRST)
        self._product = math.inf
        self._bounds: LowerConfidenceBounds | None = None
        self._bandit: Restarting | None = None
        self._arm = 0
        self._owed = False  # whether the rule's choice is tried again, whatever exploring has lost
        self.choices: list[Choice] = []
        self.picked: Choice | None = None

    def pick(self, incumbent: Choice, features: MatrixFeatures, product: float, failed: Collection[str] = ()) -> Choice:
        """Return what to solve with.

        Parameters
        ----------
        incumbent
            The rule's choice.
        features
            Of the matrix.
        product
            Seconds of a product with the matrix, equal on all ranks.
        failed
            Names of choices that are not to be tried again.

        Collective: no; the same on all ranks.
        """
        self.picked = self._pick(incumbent, features, product, failed)
        return self.picked

    def _pick(self, incumbent: Choice, features: MatrixFeatures, product: float, failed: Collection[str]) -> Choice:
        if incumbent.name != self._base:  # the matrix is of another class
            self._base, self._bounds, self._bandit, self.choices = incumbent.name, None, None, []
            self._solves = 0
            self._setups.clear()
            self._totals.clear()
        self._product, self._arm = product, 0
        if any(choice.name in failed for choice in self.choices):
            self._bounds = self._bandit = None
        if self._bandit is None:
            if self._solves < self._needed:
                return incumbent
            others = [
                choice for choice in challengers(features, incumbent, self._setup_share) if choice.name not in failed
            ]
            self._begin([incumbent, *others])
        assert self._bandit is not None
        assert self._bounds is not None
        self._bounds.explore = True
        arm = self._bandit.choose()
        if arm != self._bounds.best and not (self._owed and arm == 0):
            if self._loss(arm, features) > SHARE * self._seconds - self.exploring:
                self._bounds.explore = False
                arm = self._bandit.choose()
        elif arm == 0:
            self._owed = False
        self._arm = arm
        return self.choices[arm]

    @property
    def _setup_share(self) -> float:
        return sum(self._setups) / max(sum(self._totals), 1e-12)

    def _begin(self, choices: list[Choice]) -> None:
        self.choices = choices
        logs = [math.log(max(total, 1e-9)) for total in self._totals]
        spread = max(statistics.stdev(logs), LEAST_SPREAD)
        self._bounds = LowerConfidenceBounds(len(self.choices), spread)
        self._bandit = Restarting(self._bounds, ALARM, WARM_UP)
        mean = math.exp(statistics.fmean(logs))
        self._bandit.choose()
        self._bandit.learn(mean)

    def _loss(self, arm: int, features: MatrixFeatures) -> float:
        """Return the seconds that trying an arm may lose at worst, as far as can be told before."""
        assert self._bounds is not None
        best, known, choice = self._bounds.mean(self._bounds.best), self._bounds.mean(arm), self.choices[arm]
        if not math.isnan(known):
            return known
        setup = {"factor": factor_products(features), "multigrid": _MULTIGRID_SETUP}.get(choice.kind, 0.0)
        loading = _LOADING if choice.options.get("pc_type") == "python" else 0.0
        return loading + setup * self._product + (0.0 if choice.kind == "factor" else PATIENCE * best)

    @property
    def best(self) -> Choice:
        """The choice that is the fastest so far."""
        assert self._bounds is not None
        return self.choices[self._bounds.best]

    def limit(self) -> int | None:
        """Return the iterations that the choice picked last may take; None if it is the best one. Collective: no."""
        if self._bounds is None or self._arm == self._bounds.best:
            return None
        best, products = self._bounds.mean(self._bounds.best), _PRODUCTS[self.choices[self._arm].kind]
        if math.isnan(best) or math.isinf(products):
            return None
        return max(5, int(PATIENCE * best / (products * self._product)))

    def learn(self, sample: Sample) -> None:
        """Take what the choice picked last has cost. Collective: no."""
        self._solves += 1
        self._seconds += sample.total
        self._setups.append(sample.setup)
        self._totals.append(sample.total)
        if self._bandit is None or self._bounds is None:
            return
        best = self._bounds.mean(self._bounds.best)
        trial = self._arm != self._bounds.best
        if trial and not math.isnan(best):
            self.exploring += max(sample.total - best, 0.0)
        cost = sample.solve + sample.setup * (UPDATE if trial and sample.new else 1.0)
        if not sample.converged:
            cost = max(cost, FAILED * best) if not math.isnan(best) else FAILED * cost
        restarts = self._bandit.restarts
        self._bandit.learn(cost)
        # When solves have become dearer for good, what was faster than the rule's choice may be so no longer, and
        # without a trial nobody would know until exploring can be afforded again.
        self._owed |= self._bandit.restarts > restarts and cost > best

    @property
    def standings(self) -> str:
        """Geometric means of the seconds of those that take part."""
        if self._bounds is None:
            return "no race"
        means = [self._bounds.mean(arm) for arm in range(len(self.choices))]
        parts = [
            f"{choice.name} {'untried' if math.isnan(mean) else f'{mean:.2g} s'}"
            for choice, mean in zip(self.choices, means, strict=True)
        ]
        restarts = self._bandit.restarts if self._bandit is not None else 0
        return ", ".join(parts) + (f"; begun anew {restarts} times" if restarts else "")
