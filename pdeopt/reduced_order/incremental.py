"""Proper orthogonal decomposition of fields that come block by block and need not be kept."""

import math

import numpy as np

from pdeopt.parallel import collective_errors, on_root
from pdeopt.reduced_order.basis import Basis
from pdeopt.reduced_order.inner_product import Array, InnerProduct
from pdeopt.reduced_order.orthonormal import combine, extend_orthonormal, orthonormalise
from pdeopt.report import InputError

BLOCK = 32  # fields in an update: enough for matrix products at full speed
# Part of the largest field below which a remainder is rounding error.
_ROUNDING = 1e-14


class IncrementalDecomposition:
    """Singular value decomposition in an inner product, updated by blocks of new fields.

    With Phi S V' of the fields so far and a block B, Phi is extended to an orthonormal basis Q of both, and the small
    matrix (diag(S) Q'MB) is decomposed anew (Brand, Lin. Alg. Appl. 415, 2006; in weighted inner products Fareed,
    Singler, Zhang and Shen, Comput. Math. Appl. 75, 2018). V is not kept.

    Parameters
    ----------
    inner_product
        Inner product M.
    truncation
        After each block the trailing directions that hold together at most this part of the root of the sum of all
        squares are dropped.

    Attributes
    ----------
    modes, singular_values
        Phi, shape (owned, r), and S, shape (r,), falling.
    energy
        Sum of the squared norms of all fields so far.
    dropped
        Bound of the Frobenius norm of all that was dropped.
    """

    def __init__(self, inner_product: InnerProduct, truncation: float = 1e-10) -> None:
        if not 0.0 <= truncation < 1.0:
            raise InputError(f"truncation is {truncation}: it is a part, at least 0 and less than 1")
        self.inner_product, self.truncation = inner_product, truncation
        self.modes: Array = np.empty((inner_product.owned, 0), order="F")
        self.singular_values: Array = np.empty(0)
        self.energy = self.dropped = 0.0

    def update(self, columns: Array) -> None:
        """Take in fields, shape (owned, n).

        Raises
        ------
        InputError
            On all ranks, with nothing taken in, if the shape is wrong or a value is NaN or infinite.

        Collective: yes.
        """
        with collective_errors(self.inner_product.comm):
            owned = self.inner_product.owned
            if columns.ndim != 2 or len(columns) != owned:
                raise InputError(f"fields have the shape {columns.shape}: give (owned, n), and this rank owns {owned}")
            if not np.isfinite(columns).all():
                raise InputError("the fields have NaN or infinite values: look at the solves that they are from")
        for start in range(0, columns.shape[1], BLOCK):
            self._update(columns[:, start : start + BLOCK])

    def basis(self, size: int | None = None) -> Basis:
        """Return the first modes, all of them by default. Collective: yes."""
        count = len(self.singular_values) if size is None else size
        if not 0 < count <= len(self.singular_values):
            raise InputError(f"{count} modes were asked for: there are {len(self.singular_values)}")
        return Basis(
            self.inner_product, orthonormalise(self.inner_product, self.modes[:, :count]), self.singular_values
        )

    def _update(self, block: Array) -> None:
        inner, known = self.inner_product, len(self.singular_values)
        norms = inner.norms(block)
        self.energy += float(norms @ norms)
        floor = _ROUNDING * max(float(norms.max()), float(self.singular_values.max(initial=0.0)))
        basis = extend_orthonormal(inner, self.modes, block, floor)
        small = np.zeros((basis.shape[1], known + block.shape[1]))
        small[np.arange(known), np.arange(known)] = self.singular_values
        small[:, known:] = inner.gram(basis, block)
        vectors, values = on_root(inner.comm, lambda: np.linalg.svd(small, full_matrices=False)[:2])
        # The square roots of what the last directions hold together.
        tails = np.sqrt(np.append(np.cumsum(values[::-1] ** 2)[::-1], 0.0))
        kept = int(np.argmax(tails <= self.truncation * math.sqrt(self.energy)))
        self.dropped += float(tails[kept])
        self.modes = combine(basis, vectors[:, :kept])
        self.singular_values = values[:kept]
