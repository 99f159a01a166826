"""Clusters of snapshots that share a subspace: k-means for what local bases are made for, the projection error.

k-means by angles puts snapshots together that resemble each other. A basis of m modes can do more: fields that are
orthogonal, such as the answers to a horizontal and a vertical force at one place, belong into one cluster if others are
combinations of them. k-subspaces alternates between the leading modes of each cluster and the assignment of each
snapshot to the modes that represent it best (Bradley and Mangasarian, Journal of Global Optimization 16, 2000; of
snapshots as in Amsallem and Haasdonk, Advanced Modeling and Simulation in Engineering Sciences 3:6, 2016). Its local
minima are many, so it starts from k-means by angles and from random clusters, in subspaces of several dimensions, and
the result is taken that represents held-out snapshots best with the m modes in the end.
"""

from mpi4py import MPI

import numpy as np

from pdeopt.parallel import on_root, random_stream
from pdeopt.reduced_order.clustering import Clustering, cluster, number_clusters
from pdeopt.reduced_order.dissimilarity import Indices, check_gram, check_groups, distances, kernel, subspace_kernel
from pdeopt.reduced_order.inner_product import Array
from pdeopt.report import InputError

_FOLDS = 10  # in which a cluster's own items are held out
_STEPS = 40  # of Lloyd's iteration; it ends when the error rises, mostly within ten
_SMALLEST = 2  # items more than dimensions that a cluster keeps


def cluster_subspaces(
    gram: Array,
    count: int,
    modes: int,
    *,
    trajectories: Indices | None = None,
    starts: int = 24,
    seed: int = 0,
    comm: MPI.Comm = MPI.COMM_SELF,
) -> Clustering:
    """Divide snapshots, or trajectories, into clusters with small projection errors. Signs and scales do not matter.

    Parameters
    ----------
    gram
        Products of all pairs of snapshots, shape (n, n).
    count
        Number of clusters K.
    modes
        Modes m that the basis of each cluster will have.
    trajectories
        Number of the trajectory of each snapshot, shape (n,), if whole trajectories are to be clustered. Each is
        represented by its leading m modes.
    starts
        Half of them are k-means by angles, the others random.
    seed
        Of the starts.
    comm
        Communicator; the same Gram matrix is on all its ranks.

    Returns
    -------
    Clustering
        Its distances are the sines.

    Raises
    ------
    InputError
        If there are fewer distinct items than clusters, or a number is not usable.

    Collective: yes. All ranks get the labels of rank 0.
    """
    return on_root(comm, lambda: _cluster(gram, count, modes, trajectories, starts, seed))


def _cluster(gram: Array, count: int, modes: int, trajectories: Indices | None, starts: int, seed: int) -> Clustering:
    if modes < 1 or starts < 1:
        raise InputError(f"{modes} modes and {starts} starts: give at least one of each")
    groups = check_groups(trajectories, len(check_gram(gram)))
    sines = kernel(gram) if trajectories is None else subspace_kernel(gram, trajectories, max(1, modes // 3))
    # Of k-means by angles that with aligned signs is the best start for snapshots.
    angles = kernel(gram, "aligned") if trajectories is None else sines
    first = cluster(angles, count, seed=seed)  # with all the errors that it has for what cannot be clustered
    separations = distances(sines)
    if count == 1:
        return number_clusters(first.labels, separations)
    items = Items(gram, groups, modes)
    stream = random_stream("cluster_subspaces.starts", seed)
    few, more = max(1, modes // 6), max(min(2, modes), modes // 3)
    best: tuple[float, Indices] = items.held_out(first.labels, count, modes)[1], first.labels
    for start in range(starts):
        if start % 2:
            labels = stream.permutation(np.arange(len(groups)) % count)
        else:
            labels = cluster(angles, count, starts=1, seed=seed + start).labels
        labels = items.alternate(labels, count, few if start % 4 < 2 else more)
        error = items.held_out(labels, count, modes)[1]
        if error < best[0]:
            best = error, labels
    return number_clusters(best[1], separations)


class Items:
    """Items of norm one, each of one or more columns, by the products of all columns."""

    def __init__(self, gram: Array, groups: list[Indices], modes: int) -> None:
        # Of a trajectory the leading modes times their singular values, which have the same covariance.
        blocks = []
        for group in groups:
            values, vectors = np.linalg.eigh(gram[np.ix_(group, group)])
            total = max(float(values.sum()), np.finfo(float).tiny)
            block = np.zeros((len(gram), min(modes, group.size)))
            block[group] = vectors[:, ::-1][:, : block.shape[1]] / np.sqrt(total)
            blocks.append(block)
        sizes = np.array([block.shape[1] for block in blocks])
        columns = np.hstack(blocks)
        self.gram = columns.T @ gram @ columns
        self.offsets = np.cumsum(sizes) - sizes
        self.owners = np.repeat(np.arange(len(groups)), sizes)
        self.count = len(groups)

    def remainders(self, members: Indices, size: int) -> Array:
        """Return the squared error of every item in the leading modes of some, shape (items,)."""
        chosen = np.flatnonzero(np.isin(self.owners, members))
        values, vectors = np.linalg.eigh(self.gram[np.ix_(chosen, chosen)])
        kept = [index for index in range(chosen.size)[::-1][:size] if values[index] > 1e-13 * values[-1]]
        products = (vectors[:, kept] / np.sqrt(values[kept])).T @ self.gram[chosen]
        squares = np.maximum(np.diag(self.gram) - np.sum(products**2, axis=0), 0.0)
        return np.add.reduceat(squares, self.offsets)

    def held_out(self, labels: Indices, count: int, size: int) -> tuple[Array, float]:
        """Return squared errors in the modes of each cluster, shape (count, items), and the mean error in the own one.

        An item of the cluster is projected onto the modes of the others.
        """
        errors = np.empty((count, self.count))
        for label in range(count):
            inside = np.flatnonzero(labels == label)
            errors[label] = self.remainders(inside, size)
            folds = min(inside.size, _FOLDS)
            for fold in range(folds):
                part = inside[fold::folds]
                rest = np.setdiff1d(inside, part)
                errors[label, part] = self.remainders(rest, size)[part] if rest.size else 1.0
        return errors, float(np.mean(np.sqrt(errors[labels, np.arange(self.count)])))

    def alternate(self, labels: Indices, count: int, size: int) -> Indices:
        """Return the clusters of Lloyd's iteration with ``size`` modes each, before the error rises."""
        least, best = np.inf, labels
        for _ in range(_STEPS):
            errors, _ = self.held_out(labels, count, size)
            present = float(np.mean(errors[labels, np.arange(self.count)]))
            if present >= least * (1.0 - 1e-6):
                break
            least, best = present, labels
            labels = _keep_large(np.argmin(errors, axis=0), labels, errors, min(size + _SMALLEST, self.count // count))
        return best


def _keep_large(found: Indices, labels: Indices, errors: Array, smallest: int) -> Indices:
    """Leave as many items where they were as keep every cluster at its smallest size, those that lose least."""
    for label in range(len(errors)):
        lacking = smallest - int(np.sum(found == label))
        if lacking > 0:
            leaving = np.flatnonzero((labels == label) & (found != label))
            losses = errors[label, leaving] - errors[found[leaving], leaving]
            found[leaving[np.argsort(losses, kind="stable")[:lacking]]] = label
    return found
