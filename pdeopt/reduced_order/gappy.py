"""Snapshots with gaps, completed by the field of low rank that fits what is known of them."""

import dataclasses
import math

from mpi4py import MPI

import numpy as np
import numpy.typing as npt

from pdeopt.parallel import collective_errors, on_root
from pdeopt.reduced_order.inner_product import Array, InnerProduct
from pdeopt.report import InputError

type Mask = npt.NDArray[np.bool_]

_SWEEPS = 500
_FIRST_SWEEPS = 20  # of a rank that is only on the way to a larger one
_STAGNATION = 1e-4  # part by which a sweep has to lower the residual
_EXACT = 1e-13
_RIDGE = 1e-14  # of a system's trace: keeps those with too little data regular
_ROWS = 4096  # systems of rows solved at a time


@dataclasses.dataclass(frozen=True)
class Completion:
    """Snapshots without gaps.

    Parameters
    ----------
    columns
        Shape (owned, n): what was known, and the fit where nothing was.
    rank
        Rank of the fit.
    residual
        Norm of the fit's difference from what is known, over the norm of what is known (of degrees of freedom).
    sweeps
        Number of alternations.
    """

    columns: Array
    rank: int
    residual: float
    sweeps: int


def complete_snapshots(
    inner_product: InnerProduct,
    columns: Array,
    known: Mask,
    *,
    rank: int | None = None,
    tolerance: float | None = None,
) -> Completion:
    r"""Fill the gaps of snapshots by alternating least squares.

    .. math:: \min_{A, B} \sum_{(i, j) \text{ known}} (x_{ij} - (A B')_{ij})^2

    with A of shape (owned, r) and B of shape (n, r), in turn; the rank grows by one at a time, each starting from the
    last one's fit and the leading direction of its residual. Gaps of an exact low rank are filled to rounding if each
    snapshot and each degree of freedom is known often enough, and not only where the others are unknown.

    Parameters
    ----------
    inner_product
        Says how the fields are distributed.
    columns
        Shape (owned, n). Values in gaps are not looked at, and may be NaN.
    known
        Shape (owned, n), False in the gaps.
    rank
        Rank of the fit.
    tolerance
        In the place of a rank: the least rank whose residual is not above this.

    Returns
    -------
    Completion
        The snapshots with what is said about the fit.

    Raises
    ------
    InputError
        On all ranks, if shapes are wrong, something known is NaN or infinite, no rank reaches the tolerance, or a
        snapshot or a degree of freedom has fewer known values than the rank.

    Collective: yes.
    """
    if (rank is None) == (tolerance is None):
        raise InputError(f"rank is {rank} and tolerance {tolerance}: give one of them")
    comm = inner_product.comm
    with collective_errors(comm):
        shape = (inner_product.owned, known.shape[-1])
        if columns.shape != shape or known.shape != shape or known.dtype != np.bool_:
            raise InputError(
                f"columns have the shape {columns.shape} and known {known.shape} ({known.dtype}): both have to be "
                f"(owned, n), known of bool, and this rank owns {inner_product.owned}"
            )
        if not np.isfinite(columns[known]).all():
            raise InputError("some of the known values are NaN or infinite: mark them as unknown")
    fit = _Fit(comm, columns, known)
    most = fit.largest_rank()
    if most == 0:
        raise InputError("a snapshot or a degree of freedom is not known at all: leave it out")
    if rank is not None and not 1 <= rank <= most:
        raise InputError(f"rank is {rank}: the snapshot or degree of freedom that is known least determines {most}")
    for size in range(1, most + 1):
        fit.grow()
        fit.improve(_SWEEPS if rank is None or size == rank else _FIRST_SWEEPS)
        if size == rank or (tolerance is not None and fit.residual <= tolerance):
            return Completion(np.where(known, columns, fit.values()), size, fit.residual, fit.sweeps)
    raise InputError(
        f"tolerance is {tolerance}: the largest rank that the known values determine, {most}, leaves {fit.residual:.2g}"
    )


class _Fit:
    """A B' with B orthonormal, replicated, and A distributed."""

    def __init__(self, comm: MPI.Comm, columns: Array, known: Mask) -> None:
        self.comm, self.columns = comm, np.where(known, columns, 0.0)
        self.weights = known.astype(float)
        self.left, self.right = np.empty((len(columns), 0)), np.empty((columns.shape[1], 0))
        self.scale = math.sqrt(float(self._sum(np.array([np.sum(self.columns**2)]))[0])) or 1.0
        self.residual, self.sweeps = 1.0, 0

    def largest_rank(self) -> int:
        """Return the least number of values that are known of a snapshot or of a degree of freedom."""
        by_field = self._sum(self.weights.sum(axis=0))
        by_dof = self.comm.allreduce(float(self.weights.sum(axis=1).min(initial=np.inf)), op=MPI.MIN)
        return int(min(by_dof, by_field.min(initial=np.inf), self.columns.shape[1]))

    def values(self) -> Array:
        return self.left @ self.right.T

    def grow(self) -> None:
        """Add the leading direction of what is left."""
        rest = self.weights * (self.columns - self.values())
        gram = self._sum(rest.T @ rest)
        vector = on_root(self.comm, lambda: np.linalg.eigh(gram)[1][:, -1:])
        self.right = on_root(self.comm, lambda: np.linalg.qr(np.hstack([self.right, vector]))[0])
        self.left = self._fit_rows()

    def improve(self, sweeps: int) -> None:
        """Alternate until the residual stagnates."""
        for _ in range(sweeps):
            self.right = self._fit_fields()
            self.left = self._fit_rows()
            self.sweeps += 1
            rest = self.weights * (self.columns - self.values())
            before, self.residual = self.residual, math.sqrt(float(self._sum(np.array([np.sum(rest**2)]))[0]))
            self.residual /= self.scale
            if self.residual <= _EXACT or self.residual >= (1.0 - _STAGNATION) * before:
                return

    def _fit_rows(self) -> Array:
        """Return A for this B: one small system for each degree of freedom."""
        size = self.right.shape[1]
        squares = np.einsum("ja,jb->jab", self.right, self.right).reshape(len(self.right), size * size)
        left = np.empty((len(self.columns), size))
        for start in range(0, len(left), _ROWS):
            rows = slice(start, start + _ROWS)
            systems = (self.weights[rows] @ squares).reshape(-1, size, size)
            left[rows] = _solve(systems, self.columns[rows] @ self.right)
        return left

    def _fit_fields(self) -> Array:
        """Return B for this A, orthonormal: one small system for each snapshot, of sums over all ranks."""
        count, size = self.right.shape
        # With A orthonormal too the systems are as well-conditioned as the gaps allow.
        gram = self._sum(self.left.T @ self.left)
        scaling = on_root(self.comm, lambda: _inverse_root(gram))
        left = self.left @ scaling
        systems, sides = np.zeros((count, size * size)), self._sum(self.columns.T @ left)
        for start in range(0, len(left), _ROWS):
            part = left[start : start + _ROWS]
            squares = np.einsum("ia,ib->iab", part, part).reshape(len(part), size * size)
            systems += self.weights[start : start + _ROWS].T @ squares
        total = self._sum(systems).reshape(count, size, size)
        return on_root(self.comm, lambda: np.linalg.qr(_solve(total, sides))[0])

    def _sum(self, local: Array) -> Array:
        local = np.ascontiguousarray(local)
        total = np.empty_like(local)
        self.comm.Allreduce(local, total)
        return total


def _solve(systems: Array, sides: Array) -> Array:
    """Solve small symmetric systems, shapes (count, r, r) and (count, r)."""
    size = systems.shape[-1]
    ridge = _RIDGE * np.trace(systems, axis1=1, axis2=2) + np.finfo(float).tiny
    return np.linalg.solve(systems + ridge[:, None, None] * np.eye(size), sides[..., None])[..., 0]


def _inverse_root(gram: Array) -> Array:
    values, vectors = np.linalg.eigh(gram)
    return np.asarray(vectors / np.sqrt(np.maximum(values, 1e-30 * max(values[-1], np.finfo(float).tiny))))
