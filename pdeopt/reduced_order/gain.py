"""Are local bases worth it? Their error beside that of one basis, predicted from snapshots of a coarse mesh.

The projection errors of held-out snapshots follow from the Gram matrix alone, so the prediction costs the coarse
snapshots and small eigenvalue problems. No reduced model is built.
"""

import dataclasses

from mpi4py import MPI

import numpy as np

from pdeopt.parallel import on_root, random_stream
from pdeopt.reduced_order.clustering import cluster
from pdeopt.reduced_order.dissimilarity import Indices, check_gram, check_groups, distances
from pdeopt.reduced_order.inner_product import Array
from pdeopt.report import InputError


@dataclasses.dataclass(frozen=True)
class Gain:
    """What local bases are predicted to bring.

    Parameters
    ----------
    clusters, modes
        Number of bases, and of modes in each and in the one basis of all that they are compared with.
    local_error, global_error
        Mean relative projection errors of held-out snapshots: in the basis of the nearest other snapshot, and in one
        basis of all.
    global_modes
        Modes with which one basis of all reaches ``local_error``; None if the snapshots have not so many.
    """

    clusters: int
    modes: int
    local_error: float
    global_error: float
    global_modes: int | None

    @property
    def ratio(self) -> float:
        """Local over global error at equal modes."""
        return self.local_error / self.global_error if self.global_error > 0.0 else 1.0

    @property
    def worthwhile(self) -> bool:
        """Whether one basis needs at least twice the modes: the solve of a dense reduced system costs their cube."""
        return self.global_modes is None or self.global_modes >= 2 * self.modes

    def __str__(self) -> str:
        reach = "has not so many" if self.global_modes is None else f"needs {self.global_modes} modes"
        verdict = "local bases are worth it" if self.worthwhile else "one basis with more modes is simpler"
        return (
            f"{self.clusters} local bases of {self.modes} modes: predicted error {self.local_error:.2e}, "
            f"{self.ratio:.2f} times that of one basis of {self.modes}; one basis {reach} to reach it: {verdict}"
        )


def predicted_gain(
    gram: Array,
    kernel: Array,
    clusters: int,
    modes: int,
    *,
    overlap: float = 0.0,
    trajectories: Indices | None = None,
    folds: int = 10,
    seed: int = 0,
    comm: MPI.Comm = MPI.COMM_SELF,
) -> Gain:
    """Predict by cross-validation how local bases and one global basis project unseen snapshots.

    Each fold of the snapshots (trajectories) is held out once; the others are clustered, their relative POD bases are
    those of `LocalBases`, and a held-out one is projected onto the basis of the item that is nearest to it.

    Parameters
    ----------
    gram
        Products of all pairs of snapshots, shape (n, n), on a mesh as coarse as still shows their shape; a quarter of
        the resolution is a good start.
    kernel
        Of the items that are clustered: `pdeopt.reduced_order.dissimilarity.kernel` or ``subspace_kernel`` of ``gram``.
    clusters, modes, overlap, trajectories
        As for `pdeopt.reduced_order.clustering.cluster` and `LocalBases`.
    folds
        Number of folds; with more of them the prediction is that for nearly as many snapshots as there are.
    seed
        Of folds and clustering.
    comm
        Communicator; the same matrices are on all its ranks.

    Raises
    ------
    InputError
        If sizes do not fit, or a fold leaves fewer distinct items than clusters.

    Collective: yes. It is computed on rank 0.
    """
    return on_root(
        comm,
        lambda: _predict(check_gram(gram), check_gram(kernel), clusters, modes, overlap, trajectories, folds, seed),
    )


def _predict(
    gram: Array,
    kernel: Array,
    clusters: int,
    modes: int,
    overlap: float,
    trajectories: Indices | None,
    folds: int,
    seed: int,
) -> Gain:
    groups = check_groups(trajectories, len(check_gram(gram)))
    if len(groups) != len(check_gram(kernel)):
        raise InputError(f"a kernel of {len(kernel)} items and {len(groups)} items: give the kernel of these")
    if not 2 <= folds <= len(groups):
        raise InputError(f"{folds} folds of {len(groups)} items: choose 2 to {len(groups)}")
    norms = np.sqrt(np.maximum(np.diag(gram), 0.0))
    if not np.all(norms > 0.0):
        raise InputError(f"snapshot {int(np.argmin(norms))} is zero and has no relative error: leave it out")
    relative = gram / np.outer(norms, norms)
    if not 1 <= modes <= len(gram):
        raise InputError(f"{modes} modes of {len(gram)} snapshots: choose 1 to {len(gram)}")
    separations = distances(kernel)
    local, whole = np.empty(len(gram)), np.empty((len(gram) + 1, len(gram)))
    order = random_stream("predicted_gain.folds", seed).permutation(len(groups))
    for held in np.array_split(order, folds):
        kept = np.setdiff1d(np.arange(len(groups)), held)
        clustering = cluster(kernel[np.ix_(kept, kept)], clusters, seed=seed)
        nearest = clustering.labels[np.argmin(separations[np.ix_(held, kept)], axis=1)]
        for label in np.unique(nearest):
            members = kept[clustering.members(label, overlap=overlap, at_least=modes if trajectories is None else 1)]
            targets = _join(groups, held[nearest == label])
            local[targets] = projection_errors(relative, _join(groups, members), targets)[modes]
        targets = _join(groups, held)
        whole[:, targets] = projection_errors(relative, _join(groups, kept), targets)
    local_error, curve = float(np.mean(local)), whole.mean(axis=1)
    reached = np.flatnonzero(curve <= local_error)
    return Gain(clusters, modes, local_error, float(curve[modes]), int(reached[0]) if reached.size else None)


def projection_errors(gram: Array, training: Indices, targets: Indices) -> Array:
    """Return the norms of what POD bases leave of snapshots, from their products alone.

    Parameters
    ----------
    gram
        Products of all pairs of snapshots, shape (n, n).
    training, targets
        The snapshots that the basis is of, and those that are projected.

    Returns
    -------
    errors
        Shape (n + 1, targets): with 0, 1, ..., n modes; the last one repeated where there are fewer. Below about 1e-8
        of a snapshot's norm they are rounding.

    Collective: no.
    """
    values, vectors = np.linalg.eigh(gram[np.ix_(training, training)])
    kept = np.flatnonzero(values > 1e-14 * len(values) * values[-1])[::-1]
    squares = ((vectors[:, kept] / np.sqrt(values[kept])).T @ gram[np.ix_(training, targets)]) ** 2
    remaining = np.diag(gram)[targets] - np.vstack([np.zeros(len(targets)), np.cumsum(squares, axis=0)])
    missing = len(gram) + 1 - len(remaining)
    return np.sqrt(np.maximum(np.vstack([remaining, np.repeat(remaining[-1:], missing, axis=0)]), 0.0))


def _join(groups: list[Indices], items: Indices) -> Indices:
    return np.concatenate([groups[item] for item in items])
