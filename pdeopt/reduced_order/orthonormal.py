"""Fields made orthonormal in an inner product, by matrix products of blocks alone."""

import functools
import math

import numpy as np

from pdeopt.parallel import on_root
from pdeopt.reduced_order.inner_product import Array, InnerProduct
from pdeopt.report import InputError

# Eigenvalues of a Gram matrix below this part of the largest are left to the next pass. By rounding, the directions of
# those kept are orthogonal to four digits, from which Cholesky-QR reaches the others.
_KEPT = 1e-12
# A pass of Cholesky-QR leaves the square of this loss of orthogonality: a loss that stays after one is rounding.
_SMALL = 1e-8


def combine(fields: Array, factors: Array) -> Array:
    """Return combinations of fields, shape (owned, r) column by column in memory, by factors (n, r). Collective: no."""
    return np.asarray((factors.T @ fields.T).T)


def orthonormalise(inner: InnerProduct, fields: Array) -> Array:
    """Return fields with the same span, one after the other, and Phi' M Phi = I to rounding.

    Cholesky-QR, repeated until its result passes its own check. One pass turns a loss of orthogonality d into about
    max(eps, d^2) (Yamamoto, Nakatsukasa, Yanagisawa and Fukaya, ETNA 44, 2015). Where M sees little of the fields, as
    an energy does of motions that are nearly rigid, products have larger rounding errors than eps, and the pass after
    which d no longer falls is the last.

    Parameters
    ----------
    inner
        Inner product M.
    fields
        Shape (owned, r), linearly independent, with a condition number below about 1e7.

    Raises
    ------
    InputError
        If the fields are dependent to rounding.

    Collective: yes.
    """
    accepted = 20.0 * np.finfo(float).eps * math.sqrt(fields.shape[1])
    before = np.inf
    for _ in range(5):
        gram = inner.gram(fields)
        lost = float(np.abs(gram - np.eye(len(gram))).max(initial=0.0))
        if lost <= accepted or (before <= _SMALL and lost <= _SMALL):
            return fields
        before = lost
        scale = 1.0 / np.sqrt(np.diag(gram))
        factor = on_root(inner.comm, functools.partial(_inverse_factor, gram * np.outer(scale, scale)))
        fields = combine(fields, scale[:, None] * factor)
    raise InputError(f"{fields.shape[1]} fields are linearly dependent, or nearly so: leave some of them out")


def extend_orthonormal(inner: InnerProduct, basis: Array, fields: Array, floor: float) -> Array:
    """Return an orthonormal basis followed by the directions that fields add to it.

    What is left of the fields is taken in by its leading directions, the largest first, pass after pass, so that small
    ones are as orthogonal as large ones.

    Parameters
    ----------
    inner
        Inner product M.
    basis
        Orthonormal, shape (owned, k); k may be 0.
    fields
        Shape (owned, n).
    floor
        Norm below which what is left of a field counts as nothing; not below the fields' own rounding errors.

    Collective: yes.
    """
    remainder = fields
    for _ in range(8):
        for _ in range(2):  # what the first projection leaves by rounding goes with the second
            remainder = remainder - combine(basis, inner.gram(basis, remainder))
            remainder = remainder[:, inner.norms(remainder) > floor]
            if remainder.shape[1] == 0:
                return basis
        gram = inner.gram(remainder)
        values, vectors = on_root(inner.comm, functools.partial(_eigenpairs, gram))
        kept = np.flatnonzero(values > max(_KEPT * values[-1], floor**2))[::-1]
        new = combine(remainder, vectors[:, kept] / np.sqrt(values[kept]))
        new = orthonormalise(inner, new - combine(basis, inner.gram(basis, new)))
        basis = np.asfortranarray(np.hstack([basis, new]))
    raise InputError(f"what is left of the fields stays above {floor:.3g}: it is below their rounding errors; raise it")


def _eigenpairs(gram: Array) -> tuple[Array, Array]:
    values, vectors = np.linalg.eigh(gram)
    return values, vectors


def _inverse_factor(gram: Array) -> Array:
    """Return U with U' G U = I, U upper triangular; without G's factor where rounding made it indefinite."""
    try:
        return np.asarray(np.linalg.inv(np.linalg.cholesky(gram)).T)
    except np.linalg.LinAlgError as error:
        raise InputError(f"{len(gram)} fields are linearly dependent to rounding: leave some of them out") from error
