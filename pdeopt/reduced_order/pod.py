"""Proper orthogonal decomposition: the modes that, for their number, approximate snapshots best in the mean square."""

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator
from typing import Literal

from petsc4py import PETSc

import numpy as np
from slepc4py import SLEPc

from pdeopt.fem.forms import log_event
from pdeopt.parallel import on_root, random_stream
from pdeopt.reduced_order.basis import Basis
from pdeopt.reduced_order.incremental import IncrementalDecomposition
from pdeopt.reduced_order.inner_product import Array
from pdeopt.reduced_order.orthonormal import combine, orthonormalise
from pdeopt.reduced_order.snapshots import Snapshots
from pdeopt.report import InputError

_EPSILON = float(np.finfo(float).eps)
# What is left of a snapshot after Gram-Schmidt, over the largest snapshot, below which it is rounding error.
_ROUNDING = 1e-14
# Of the incremental method, unless a tolerance asks for less.
_TRUNCATION = 1e-10


def proper_orthogonal_decomposition(
    snapshots: Snapshots,
    *,
    modes: int | None = None,
    tolerance: float | None = None,
    method: Literal["snapshots", "slepc", "incremental"] = "snapshots",
) -> Basis:
    r"""Return the first modes of snapshots X: the left singular vectors in the inner product M.

    .. math:: X = \Phi \Sigma V', \quad \Phi' M \Phi = I, \quad
        \sum_j | x_j - \Phi_r \Phi_r' M x_j |_M^2 = \sum_{i > r} \sigma_i^2

    Signs are such that the products with one random combination of the snapshots are positive: the same on any number
    of ranks.

    Parameters
    ----------
    snapshots
        The fields. For directions instead of sizes decompose ``snapshots.normalised()``.
    modes
        Largest number of modes, >= 1. There are fewer, and a warning if no tolerance was given, where the snapshots
        have no more: a mode counts if its singular value is above the method's rounding errors.
    tolerance
        As few modes as leave, in the root mean square, this part of the snapshots: the square root of the sum of the
        remaining squared singular values over that of all. Between 0 and 1. What the method cannot tell from rounding
        errors does not count.
    method
        "snapshots" (Sirovich, 1987): eigenvectors of the Gram matrix, then Cholesky-QR until the modes are orthonormal
        to rounding. The fastest by an order of magnitude; its singular values have the absolute error
        eps sigma_1^2 / sigma_i, so modes below about 1e-7 sigma_1 do not exist for it. "slepc": Gram-Schmidt of the
        snapshots by SLEPc, then the singular value decomposition of the triangular factor, with the error eps sigma_1.
        "incremental": as accurate, in blocks, and fast if the rank is small (`IncrementalDecomposition`, which also
        serves fields that are not kept).

    Returns
    -------
    Basis
        The modes, with all singular values that the method found.

    Raises
    ------
    InputError
        If there are no snapshots, all of them are zero, or an argument is out of range.

    Collective: yes.
    """
    if len(snapshots) == 0:
        raise InputError("there are no snapshots to decompose: append some first")
    if modes is None and tolerance is None:
        raise InputError("neither modes nor tolerance is given: say how many modes, or how small a remainder")
    if modes is not None and modes < 1:
        raise InputError(f"modes is {modes}: at least one has to be kept")
    if tolerance is not None and not 0.0 <= tolerance < 1.0:
        raise InputError(f"tolerance is {tolerance}: it is the part that may remain, at least 0 and less than 1")
    if method not in _METHODS:
        raise InputError(f"method {method!r} is unknown: choose {', '.join(_METHODS)}")
    with log_event(f"POD {method}"):
        return _METHODS[method](snapshots, modes, tolerance)


def energy_rank(singular_values: Array, tolerance: float, total: float | None = None) -> int:
    """Return the least r with sum_{i > r} s_i^2 <= tolerance^2 ``total``, which is the sum of all unless given."""
    squares = singular_values**2
    remaining = np.append(np.cumsum(squares[::-1])[::-1], 0.0)
    return int(np.argmax(remaining <= tolerance**2 * (squares.sum() if total is None else total)))


def _size(singular_values: Array, modes: int | None, tolerance: float | None, snapshots: Snapshots) -> int:
    """Return the number of modes to keep of those that a method found."""
    found = len(singular_values)
    if found == 0:
        raise InputError(f"all {len(snapshots)} snapshots are zero: there is no mode to be found in them")
    size = found if tolerance is None else max(1, min(found, energy_rank(singular_values, tolerance)))
    if modes is None:
        return size
    if tolerance is None and modes > found and snapshots.comm.rank == 0:
        warnings.warn(
            f"{modes} modes were asked for, and {len(snapshots)} snapshots have {found}: going on with these",
            stacklevel=4,
        )
    return min(modes, size)


def _signs(products: Array) -> Array:
    """Return the signs that make the products of modes with `_mixture` positive."""
    return np.where(products < 0.0, -1.0, 1.0)


def _mixture(count: int) -> Array:
    """Return the coefficients of a combination of snapshots that has a part in every mode, whatever their symmetry."""
    return random_stream("signs of modes").standard_normal(count)


def _by_snapshots(snapshots: Snapshots, modes: int | None, tolerance: float | None) -> Basis:
    gram = snapshots.gram()
    # On one rank: the last bits of an eigenvector depend on the processor that computes it.
    values, vectors = on_root(snapshots.comm, lambda: _falling_eigenpairs(gram))
    singular_values = np.sqrt(values)
    size = _size(singular_values, modes, tolerance, snapshots)
    factors = vectors[:, :size] / singular_values[:size] * _signs(_mixture(len(snapshots)) @ vectors[:, :size])
    inner = snapshots.inner_product
    return Basis(inner, orthonormalise(inner, combine(snapshots.columns, factors)), singular_values)


def _falling_eigenpairs(gram: Array) -> tuple[Array, Array]:
    """Return the eigenvalues above the rounding errors of the largest, and their vectors."""
    values, vectors = np.linalg.eigh(gram)
    values, vectors = values[::-1], vectors[:, ::-1]
    count = int(np.sum(values > len(values) * _EPSILON * max(values[0], 0.0)))
    return values[:count], vectors[:, :count]


def _by_slepc(snapshots: Snapshots, modes: int | None, tolerance: float | None) -> Basis:
    """Orthogonalise by SLEPc's basis vectors in the inner product M, X = Q R; with R = U S V' the modes are Q U."""
    inner, columns = snapshots.inner_product, snapshots.columns
    norms = snapshots.norms()
    template = inner.matrix.createVecRight()
    vectors = SLEPc.BV().create(snapshots.comm)
    vectors.setSizesFromVec(template, len(snapshots))
    vectors.setType(SLEPc.BV.Type.CONTIGUOUS)
    vectors.setMatrix(inner.matrix, False)
    found = 0
    for column in np.flatnonzero(norms > 0.0):
        vectors.setActiveColumns(0, found + 1)
        with _column(vectors, found) as target:
            target.array[:] = columns[:, column]
        left, _ = vectors.orthogonalizeColumn(found)
        if left > _ROUNDING * norms.max():
            vectors.scaleColumn(found, 1.0 / left)
            found += 1
    basis = np.empty((inner.owned, found), order="F")
    for place in range(found):
        with _column(vectors, place) as vector:
            basis[:, place] = vector.array_r
    vectors.destroy()
    template.destroy()
    triangle = inner.gram(basis, columns)
    left_vectors, values = on_root(snapshots.comm, lambda: np.linalg.svd(triangle, full_matrices=False)[:2])
    size = _size(values, modes, tolerance, snapshots)
    factors = left_vectors[:, :size] * _signs(triangle @ _mixture(len(snapshots)) @ left_vectors[:, :size])
    return Basis(inner, orthonormalise(inner, combine(basis, factors)), values)


@contextlib.contextmanager
def _column(vectors: SLEPc.BV, column: int) -> Iterator[PETSc.Vec]:
    vector = vectors.getColumn(column)
    yield vector
    vectors.restoreColumn(column, vector)


def _by_increments(snapshots: Snapshots, modes: int | None, tolerance: float | None) -> Basis:
    truncation = _TRUNCATION if tolerance is None else min(_TRUNCATION, 0.01 * tolerance)
    decomposition = IncrementalDecomposition(snapshots.inner_product, truncation)
    decomposition.update(snapshots.columns)
    size = _size(decomposition.singular_values, modes, tolerance, snapshots)
    basis = decomposition.basis(size)
    mixture = snapshots.columns @ _mixture(len(snapshots))
    return dataclasses.replace(basis, modes=basis.modes * _signs(basis.coordinates(mixture[:, None])[:, 0]))


_METHODS = {"snapshots": _by_snapshots, "slepc": _by_slepc, "incremental": _by_increments}
