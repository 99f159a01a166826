"""How much snapshots differ, from their Gram matrix alone.

Each dissimilarity is the distance of a positive semidefinite kernel, d(i, j)^2 = k(i, i) + k(j, j) - 2 k(i, j), up to a
factor. k-medoids needs the distances alone, and k-means runs on coordinates whose dot products are the kernel.

- "euclidean": |u - v| of snapshots.
- "normalised": |u / |u| - v / |v||, blind to scale.
- "aligned": the same after signs were flipped so that the snapshots agree.
- "sine": the sine of the angle between snapshots, sqrt(1 - cos^2), blind to scale and sign.
- Of trajectories, by `subspace_kernel`: the root mean square of the sines of the principal angles between subspaces.

- Of trajectories, by `covariance_kernel`: the sine of the angle between covariances, blind to signs of snapshots and to
  the scale of a trajectory. It weighs directions by how much of the trajectory they hold, and cuts nothing off.

The sine is the relative error of v projected onto the span of u, and 1 / sqrt(2) times the Frobenius distance of the
orthogonal projectors onto u and v, whose products are cos^2. So are the sines of principal angles between subspaces.
A zero snapshot has the projector 0, and the distance sqrt(1/2) from every other one.

Angles of simulation data as dissimilarity of local bases: Daniel, Casenave, Akkari, Ketata and Ryckelynck, Journal of
Computational Physics 458 (2022), 111120. Projectors: Edelman, Arias and Smith, SIAM J. Matrix Anal. Appl. 20 (1998).
"""

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from pdeopt.reduced_order.inner_product import Array
from pdeopt.report import InputError

type Indices = npt.NDArray[np.int64]
SnapshotKind = Literal["euclidean", "normalised", "aligned", "sine"]


def kernel(gram: Array, kind: SnapshotKind = "sine") -> Array:
    """Return the kernel of snapshots.

    Parameters
    ----------
    gram
        Products of all pairs of snapshots, shape (n, n).
    kind
        "euclidean", "normalised", "aligned" or "sine", see the table of the module.

    Returns
    -------
    kernel
        Shape (n, n), positive semidefinite.

    Raises
    ------
    InputError
        If the matrix is not square, or has numbers that are not finite, or the kind is unknown.

    Collective: no.
    """
    gram = check_gram(gram)
    if kind not in get_args(SnapshotKind):
        raise InputError(f"dissimilarity {kind!r} is unknown: choose {', '.join(get_args(SnapshotKind))}")
    if kind == "euclidean":
        return gram
    cosines = _cosines(gram)
    if kind == "sine":
        return cosines**2
    if kind == "aligned":
        signs = align_signs(gram)
        return np.outer(signs, signs) * cosines
    return cosines


def subspace_kernel(gram: Array, trajectories: Indices, modes: int) -> Array:
    """Return the kernel |Q_s' Q_t|_F^2 / modes of the subspaces of trajectories.

    Parameters
    ----------
    gram
        Products of all pairs of snapshots, shape (n, n).
    trajectories
        Number 0, 1, ... of the trajectory that each snapshot belongs to, shape (n,).
    modes
        Dimension of the subspace that stands for a trajectory: its leading POD modes. A trajectory with fewer
        independent snapshots is represented by as many as it has.

    Returns
    -------
    kernel
        Shape (trajectories, trajectories). With ``modes`` dimensions each, the distance is the root mean square of the
        sines of the principal angles: sum of cos^2 = |Q_s' Q_t|_F^2.

    Raises
    ------
    InputError
        If the Gram matrix or the numbers of the trajectories are not usable.

    Collective: no.
    """
    gram = check_gram(gram)
    groups = check_groups(trajectories, gram.shape[0])
    if modes < 1:
        raise InputError(f"subspaces of {modes} modes: choose at least 1")
    # Columns of each block are the coefficients of a trajectory's modes in its own snapshots.
    blocks = []
    for group in groups:
        values, vectors = np.linalg.eigh(gram[np.ix_(group, group)])
        kept = [index for index in range(len(group))[::-1][:modes] if values[index] > 1e-14 * values[-1] > 0.0]
        blocks.append(vectors[:, kept] / np.sqrt(values[kept]))
    products = np.empty((len(groups), len(groups)))
    for row, left in enumerate(groups):
        half = blocks[row].T @ gram[left]
        for column, right in enumerate(groups):
            products[row, column] = np.sum((half[:, right] @ blocks[column]) ** 2)
    return 0.5 * (products + products.T) / modes


def covariance_kernel(gram: Array, trajectories: Indices | None = None) -> Array:
    """Return the kernel <C_s, C_t> / (|C_s| |C_t|) of the covariances C = sum u u' of trajectories.

    For single snapshots it is cos^2, the kernel "sine". Among trajectories it is high where the directions that hold
    most of one hold most of the other.

    Parameters
    ----------
    gram
        Products of all pairs of snapshots, shape (n, n).
    trajectories
        Number 0, 1, ... of the trajectory that each snapshot belongs to, shape (n,); None: each is one by itself.

    Returns
    -------
    kernel
        Shape (trajectories, trajectories), with Frobenius products: <u u', v v'> = (u'v)^2.

    Raises
    ------
    InputError
        If the Gram matrix or the numbers of the trajectories are not usable.

    Collective: no.
    """
    squares = check_gram(gram) ** 2
    groups = check_groups(trajectories, len(gram))
    sums = np.array([squares[group].sum(axis=0) for group in groups])
    products = np.column_stack([sums[:, group].sum(axis=1) for group in groups])
    lengths = np.sqrt(np.diag(products))
    inverse = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0.0)
    return 0.5 * (products + products.T) * np.outer(inverse, inverse)


def distances(kernel: Array) -> Array:
    """Return sqrt((k_ii + k_jj) / 2 - k_ij), shape (n, n): the sines, for their kernels. Collective: no."""
    diagonal = np.diag(kernel)
    squares = 0.5 * (diagonal[:, None] + diagonal[None, :]) - kernel
    np.fill_diagonal(squares, 0.0)
    return np.sqrt(np.maximum(squares, 0.0))


def coordinates(kernel: Array) -> Array:
    """Return points whose dot products are the kernel, shape (n, rank). Collective: no."""
    values, vectors = np.linalg.eigh(kernel)
    kept = values > 1e-12 * max(values[-1], 0.0)
    kept[-1] = True  # one coordinate even if all items are zero
    return vectors[:, kept] * np.sqrt(np.maximum(values[kept], 0.0))


def align_signs(gram: Array) -> Array:
    """Return signs, shape (n,), that make the snapshots agree.

    The signs s raise sum s_i s_j cos_ij: first those of the leading eigenvector, then changed one by one while that
    helps. Where signs exist that make all products positive, they are found, up to one common sign, by Perron's
    theorem. The first snapshot keeps its sign.

    Collective: no.
    """
    cosines = _cosines(check_gram(gram))
    np.fill_diagonal(cosines, 0.0)
    signs = np.where(np.linalg.eigh(cosines)[1][:, -1] < 0.0, -1.0, 1.0)
    # Each flip raises the sum, so this ends; rounding must not make it flip to and fro.
    agreement = cosines @ signs * signs
    while (worst := int(np.argmin(agreement))) >= 0 and agreement[worst] < -1e-10:
        signs[worst] *= -1.0
        agreement = cosines @ signs * signs
    return signs * signs[0]


def check_gram(gram: Array) -> Array:
    """Return a Gram matrix, or raise `InputError` if it is none. Collective: no."""
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or gram.shape[0] == 0:
        raise InputError(
            f"a Gram matrix of the shape {gram.shape}: give the products of all pairs of snapshots, (n, n)"
        )
    faulty = np.flatnonzero(~np.isfinite(np.diag(gram)) | ~np.all(np.isfinite(gram), axis=1))
    if faulty.size:
        raise InputError(f"the Gram matrix has NaN or Inf in row {faulty[0]}: remove that snapshot")
    return gram


def check_groups(groups: Indices | None, count: int) -> list[Indices]:
    """Return the snapshots of each group 0, 1, ..., each one alone if no groups are given. Collective: no.

    Raises
    ------
    InputError
        If there is not one number for each snapshot, or a number below the greatest is missing.
    """
    if groups is None:
        return list(np.arange(count)[:, None])
    numbers = np.asarray(groups)
    if numbers.shape != (count,) or not np.issubdtype(numbers.dtype, np.integer):
        raise InputError(f"trajectories have the shape {numbers.shape}: give one integer for each of {count} snapshots")
    present = np.unique(numbers)
    if not np.array_equal(present, np.arange(present.size)):
        raise InputError(f"trajectories {present.tolist()} are not 0, 1, ... without a gap: number them so")
    return [np.flatnonzero(numbers == number) for number in present]


def normalised_gram(gram: Array) -> Array:
    """Return the products of snapshots of norm one, of which zero ones stay zero. Collective: no."""
    norms = np.sqrt(np.maximum(np.diag(gram), 0.0))
    inverse = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0.0)
    return gram * np.outer(inverse, inverse)


def _cosines(gram: Array) -> Array:
    return np.clip(normalised_gram(gram), -1.0, 1.0)
