"""Non-negative least squares on a growing set of columns, with one equality kept exactly."""

import dataclasses

import numpy as np
import numpy.typing as npt

from pdeopt.reduced_order._packages import require_package
from pdeopt.reduced_order.inner_product import Array

# Relative size of the ridge under dependent columns; refinement removes its effect where they are independent.
_RIDGE = 1e-13


@dataclasses.dataclass(frozen=True, eq=False)
class FitOutcome:
    """What a fit has found, without the columns.

    Parameters
    ----------
    labels, weights
        Labels of the columns with positive entries, and these entries x, shape (n,).
    residual
        b - A x, shape (k,).
    multiplier
        l with a_j' (b - A x) + l v_j = 0 for all columns; a further column with a larger sum lowers the error.
    """

    labels: npt.NDArray[np.int64]
    weights: Array
    residual: Array
    multiplier: float

    @property
    def error(self) -> float:
        """|A x - b|; infinite without columns, since the equality cannot hold then."""
        return float(np.linalg.norm(self.residual)) if self.labels.size else np.inf


class NonnegativeFit:
    """min |A x - b| over x >= 0 with v' x = V, by the active-set method of Lawson and Hanson (1974, chapter 23).

    Columns are offered; one after another those enter that lower the error most steeply, and those whose entries reach
    zero leave. Each step starts from the entries found before. The normal equations, scaled to unit columns and with
    the equality as a further row (an augmented Lagrangian, which makes columns of zeros harmless), are refined with the
    residual of A itself, as in the corrected seminormal equations of Bjorck (1987).

    Parameters
    ----------
    target
        b, shape (k,).
    total
        V > 0.

    Attributes
    ----------
    outcome
        Labels, weights, residual and multiplier of the columns that are in.

    Collective: no.
    """

    def __init__(self, target: Array, total: float) -> None:
        self._target, self._total = target, total
        # A and below it v / V: first the columns that are in, then those that are offered.
        self._columns = np.empty((target.size + 1, 0))
        self._gram = np.empty((0, 0))
        self._labels = np.empty(0, dtype=np.int64)
        self.outcome = FitOutcome(self._labels, np.empty(0), target, 0.0)

    def offer(self, labels: npt.NDArray[np.int64], columns: Array, shares: Array) -> None:
        """Let these columns, shape (k, n), take the place of those that were offered before and are not in."""
        self._select(np.arange(self.outcome.labels.size))
        new = np.vstack([columns, shares / self._total])
        cross = self._columns.T @ new
        self._gram = np.block([[self._gram, cross], [cross.T, new.T @ new]])
        self._columns = np.hstack([self._columns, new])
        self._labels = np.concatenate([self._labels, labels])

    def take_all(self, weights: Array) -> None:
        """Let all columns enter at once that are offered, from positive entries, shape (n,), up to a factor."""
        self._settle(weights * (1.0 / (self._columns[-1] @ weights)))

    def improve(self, count: int, tolerance: float) -> None:
        """Let at most so many columns enter, one after another, until the error reaches the tolerance."""
        for _ in range(count):
            inside = self.outcome.labels.size
            slopes = self.outcome.residual @ self._columns[:-1, inside:]
            slopes += self.outcome.multiplier * self._total * self._columns[-1, inside:]
            slopes /= np.sqrt(np.diag(self._gram)[inside:])
            if self.outcome.error <= tolerance or slopes.max(initial=0.0) <= 1e-12 * self.outcome.error:
                return
            best = inside + int(np.argmax(slopes))
            others = np.setdiff1d(np.arange(inside, self._labels.size), best)
            self._select(np.concatenate([np.arange(inside), [best], others]))
            self._settle(np.append(self.outcome.weights, 0.0))

    def prune(self, tolerance: float) -> None:
        """Let columns leave, the one whose absence costs least each time, while the error keeps the tolerance.

        Without column j the squared error rises by x_j^2 / (A' A)^-1_jj, signs left aside (Hassibi and Stork 1993).
        """
        while self.outcome.labels.size > 1:
            before = self._labels, self._columns, self._gram, self.outcome
            weights = self.outcome.weights
            scale, matrix = self._scaled(weights.size)
            rises = (weights / scale) ** 2 / np.diag(np.linalg.inv(matrix))
            kept = np.delete(np.arange(weights.size), int(np.argmin(rises)))
            self._select(kept)
            self._settle(weights[kept])
            if self.outcome.error > tolerance:
                self._labels, self._columns, self._gram, self.outcome = before
                return

    def _select(self, order: npt.NDArray[np.int64]) -> None:
        self._labels, self._columns = self._labels[order], self._columns[:, order]
        self._gram = self._gram[np.ix_(order, order)]

    def _settle(self, weights: Array) -> None:
        """Move from feasible weights of the first columns towards their best fit until it has no negative entry."""
        while True:
            wanted, multiplier = self._solve(weights.size)
            negative = wanted <= 0.0
            if not np.any(negative):
                residual = self._target - self._columns[:-1, : wanted.size] @ wanted
                self.outcome = FitOutcome(self._labels[: wanted.size], wanted, residual, multiplier)
                return
            ratios = weights[negative] / (weights[negative] - wanted[negative])
            weights = np.maximum(weights + float(ratios.min()) * (wanted - weights), 0.0)
            kept = ~(negative & (weights <= 1e-14 * weights.max()))
            self._select(np.concatenate([np.flatnonzero(kept), np.arange(weights.size, self._labels.size)]))
            weights = weights[kept]

    def _scaled(self, count: int) -> tuple[Array, Array]:
        """Return factors that scale the first columns to unit length, and the regular Gram matrix of these."""
        scale = 1.0 / np.sqrt(np.diag(self._gram)[:count])
        matrix = self._gram[:count, :count] * np.outer(scale, scale)
        matrix[np.diag_indices_from(matrix)] += _RIDGE
        return scale, matrix

    def _solve(self, count: int) -> tuple[Array, float]:
        """Return the best fit of the first columns without signs, and the multiplier of the equality."""
        algebra = require_package("scipy.linalg")
        columns, row = self._columns[:-1, :count], self._columns[-1, :count]
        scale, matrix = self._scaled(count)
        factor = algebra.cho_factor(matrix, check_finite=False)

        def solve(right: Array) -> Array:
            return np.asarray(scale * algebra.cho_solve(factor, scale * right, check_finite=False))

        toward = solve(row)
        unknown: Array = np.zeros_like(row)
        multiplier = 0.0
        for _ in range(3):
            gradient = columns.T @ (self._target - columns @ unknown) + multiplier * row
            step, lack = solve(gradient), 1.0 - row @ unknown
            change = (lack - row @ step) / (row @ toward)
            unknown += step + change * toward
            multiplier += float(change)
        return unknown, multiplier / self._total
