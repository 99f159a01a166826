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

    Columns come in blocks and start from the weights found before, so that a few inner steps settle each block: all
    entries that reach zero leave at once. The normal equations, scaled to unit columns and with the equality as a
    further row (an augmented Lagrangian, which makes columns of zeros harmless), are refined with the residual of A
    itself, as in the corrected seminormal equations of Bjorck (1987).

    Parameters
    ----------
    target
        b, shape (k,).
    total
        V > 0.

    Attributes
    ----------
    outcome
        Labels, weights, residual and multiplier.
    columns, shares
        A, shape (k, n), and v, shape (n,).

    Collective: no.
    """

    def __init__(self, target: Array, total: float) -> None:
        self.target, self.total = target, total
        self.columns = np.empty((target.size, 0))
        self.shares = np.empty(0)
        self.outcome = FitOutcome(np.empty(0, dtype=np.int64), np.empty(0), target, 0.0)
        self._gram = np.empty((0, 0))

    def extended(self, labels: np.ndarray, columns: Array, shares: Array) -> "NonnegativeFit":
        """Return the fit with further columns, which may leave it again at once. Collective: no."""
        fit = NonnegativeFit(self.target, self.total)
        cross = self.columns.T @ columns
        fit._gram = np.block([[self._gram, cross], [cross.T, columns.T @ columns]])
        fit.columns = np.hstack([self.columns, columns])
        fit.shares = np.concatenate([self.shares, shares])
        fit._settle(np.concatenate([self.outcome.labels, labels]), np.pad(self.outcome.weights, (0, labels.size)))
        return fit

    def _settle(self, labels: npt.NDArray[np.int64], weights: Array) -> None:
        """Move towards the solution without signs until it has none but positive entries."""
        while True:
            wanted, multiplier = self._solve()
            negative = wanted <= 0.0
            if not np.any(negative):
                self.outcome = FitOutcome(labels, wanted, self.target - self.columns @ wanted, multiplier)
                return
            if np.any(weights):
                ratios = weights[negative] / (weights[negative] - wanted[negative])
                weights = np.maximum(weights + float(ratios.min()) * (wanted - weights), 0.0)
                kept = ~(negative & (weights <= 1e-14 * weights.max()))
            else:  # there are no feasible weights to move from yet
                kept = wanted > 0.5 * wanted.min()
            labels, weights = labels[kept], weights[kept]
            self.columns, self.shares = self.columns[:, kept], self.shares[kept]
            self._gram = self._gram[np.ix_(kept, kept)]

    def _solve(self) -> tuple[Array, float]:
        """Return the solution without signs and the multiplier of the equality."""
        algebra = require_package("scipy.linalg")
        row = self.shares / self.total
        gram = self._gram + np.outer(row, row)
        scale = 1.0 / np.sqrt(np.diag(gram))
        matrix = gram * np.outer(scale, scale)
        matrix[np.diag_indices_from(matrix)] += _RIDGE
        factor = algebra.cho_factor(matrix, check_finite=False)

        def solve(right: Array) -> Array:
            return np.asarray(scale * algebra.cho_solve(factor, scale * right, check_finite=False))

        toward = solve(row)
        unknown: Array = np.zeros_like(row)
        multiplier = 0.0
        for _ in range(3):
            gradient = self.columns.T @ (self.target - self.columns @ unknown) + multiplier * row
            step, lack = solve(gradient), 1.0 - row @ unknown
            change = (lack - row @ step) / (row @ toward)
            unknown += step + change * toward
            multiplier += float(change)
        return unknown, multiplier / self.total
