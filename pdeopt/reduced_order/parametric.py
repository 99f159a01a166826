"""Clusters of snapshots that are close in those parameters that local bases should be divided by.

Where the parameters of the snapshots are known, near parameters are a better reason to share a basis than near fields:
clusters that follow them hold snapshots that the parameter of a new one finds, and few numbers decide them, where
`pdeopt.reduced_order.subspaces` decides every label by the same few snapshots. But not all parameters count alike. A
load's place makes fields that no small basis holds together; its direction only mixes two of them. So k-means runs on a
sum of kernels, the products of each parameter and two of the fields, by aligned signs and by squared cosines, and those
weights of them are searched that make the projection error of held-out snapshots least (features chosen by what they
are for, as in Kohavi and John, Artificial Intelligence 97, 1997). The search begins from the fields with aligned signs
alone, and leaves what it has only where Student's test says that the errors fall by more than chance would make them
fall: the best of many partitions is mostly the luckiest, the more so the fewer snapshots there are. With few of them
the clusters are those of the fields, unless a parameter is clearly better.
"""

import math

from mpi4py import MPI

import numpy as np
from scipy.special import stdtrit

from pdeopt.parallel import on_root
from pdeopt.reduced_order.clustering import Clustering, cluster, number_clusters
from pdeopt.reduced_order.dissimilarity import (
    Indices,
    check_gram,
    check_groups,
    covariance_kernel,
    distances,
    kernel,
    normalised_gram,
)
from pdeopt.reduced_order.inner_product import Array
from pdeopt.reduced_order.subspaces import Items
from pdeopt.report import InputError

_WEIGHTS = (0.0, 0.03, 0.1, 0.3, 1.0)  # of the scaled parameters, in coordinates
_CERTAIN = 0.99  # probability, in Student's test, that the mean error falls
_ROUNDS = 2  # of the search over all parameters; it ends when nothing changes


def cluster_by_parameters(
    gram: Array,
    parameters: Array,
    count: int,
    modes: int,
    *,
    trajectories: Indices | None = None,
    seed: int = 0,
    comm: MPI.Comm = MPI.COMM_SELF,
) -> Clustering:
    """Divide snapshots, or trajectories, by the parameters, and by their angles, so that projection errors are small.

    Signs and scales of the snapshots do not matter, nor do units of the parameters.

    Parameters
    ----------
    gram
        Products of all pairs of snapshots, shape (n, n).
    parameters
        Parameters of the snapshots (trajectories), or features that are as cheap, shape (items, p). Those whose
        logarithm is what varies evenly should come as that. Angles between -pi and pi should come as sine and cosine.
    count
        Number of clusters K.
    modes
        Modes m that the basis of each cluster will have.
    trajectories
        Number of the trajectory of each snapshot, shape (n,), if whole trajectories are to be clustered.
    seed
        Of the random starts of k-means.
    comm
        Communicator; the same arrays are on all its ranks.

    Returns
    -------
    Clustering
        Its distances are the sines, of trajectories those between their covariances.

    Raises
    ------
    InputError
        If there are fewer distinct items than clusters, shapes do not fit, or a number is not finite.

    Collective: yes. All ranks get the labels of rank 0.
    """
    return on_root(comm, lambda: _cluster(gram, parameters, count, modes, trajectories, seed))


def _cluster(
    gram: Array, parameters: Array, count: int, modes: int, trajectories: Indices | None, seed: int
) -> Clustering:
    if modes < 1:
        raise InputError(f"{modes} modes: give at least one")
    groups = check_groups(trajectories, len(check_gram(gram)))
    if parameters.ndim != 2 or len(parameters) != len(groups) or not np.all(np.isfinite(parameters)):
        raise InputError(
            f"parameters of the shape {parameters.shape} for {len(groups)} items: give one row of finite numbers for "
            "each snapshot, or for each trajectory if these are clustered"
        )
    covariances = covariance_kernel(gram, trajectories)
    fields = [covariances, *_aligned(gram, groups)]
    first = cluster(fields[-1], count, seed=seed)  # with all errors for what cannot be clustered
    if count == 1:
        return number_clusters(first.labels, distances(covariances))
    varying = np.ptp(parameters, axis=0) > 1e-12 * np.abs(parameters).max(axis=0)
    points = (parameters - parameters.mean(axis=0))[:, varying]
    kernels = []
    for products in [*(np.outer(column, column) for column in points.T), *fields]:
        spread, size = float(np.mean(np.diag(products)) - np.mean(products)), float(np.mean(np.diag(products)))
        if spread > 1e-12 * size:  # trajectories may have equal covariances
            kernels.append(products / spread)
    # The bases will be those of snapshots of norm one.
    search = _Search(kernels, Items(normalised_gram(gram), groups, modes), count, modes, seed)
    return number_clusters(search.labels(points.shape[1]), distances(covariances))


def _aligned(gram: Array, groups: list[Indices]) -> list[Array]:
    """Return the cosines with aligned signs, of trajectories as one long vector each; none if their lengths differ."""
    if len({group.size for group in groups}) > 1:
        return []
    steps = np.array(groups).T
    return [kernel(np.sum([gram[np.ix_(step, step)] for step in steps], axis=0), "aligned")]


class _Search:
    """Looks for the weights of kernels whose clusters have the least errors of held-out items."""

    def __init__(self, kernels: list[Array], items: Items, count: int, modes: int, seed: int) -> None:
        self._kernels, self._items = np.array(kernels), items
        self._count, self._modes, self._seed = count, modes, seed
        self._known: dict[tuple[float, ...], tuple[Array, Indices]] = {}

    def labels(self, parameters: int) -> Indices:
        """Return the clusters of the weights that were found.

        The last kernel alone is left for the best of the first ones, the parameters, or for one before it, if that is
        better: from the fields on, no small change finds the parameters. Then all weights are searched from there.
        """
        alone = np.eye(len(self._kernels))
        weights, others = alone[-1], list(alone[parameters:-1])
        if parameters:
            few = alone[:parameters]
            others.append(self._search(self._best([*few, np.sum(few, axis=0)]), range(parameters)))
        for trial in others:
            weights = self._better(trial, weights)
        return self._errors(self._search(weights, range(len(self._kernels))))[1]

    def _search(self, weights: Array, indices: range) -> Array:
        """Return the weights after one after the other of some was changed where that is better."""
        for _ in range(_ROUNDS):
            before = weights
            for index in indices:
                trials = [np.where(np.arange(weights.size) == index, weight, weights) for weight in _WEIGHTS]
                best = self._best([trial / trial.max() for trial in trials if trial.max() > 0.0])
                weights = self._better(best, weights)
            if np.array_equal(weights, before):
                break
        return weights

    def _best(self, trials: list[Array]) -> Array:
        return min(trials, key=lambda trial: float(self._errors(trial)[0].mean()))

    def _better(self, trial: Array, weights: Array) -> Array:
        """Return the trial if its errors are smaller by more than chance would make them, or the weights."""
        change = self._errors(trial)[0] - self._errors(weights)[0]
        quantile = float(stdtrit(change.size - 1, _CERTAIN))
        return trial if change.mean() < -quantile * change.std(ddof=1) / math.sqrt(change.size) else weights

    def _errors(self, weights: Array) -> tuple[Array, Indices]:
        """Return the error of each item in the best basis of clusters that it is not in itself, and the labels."""
        key = tuple(np.round(weights, 6).tolist())
        if key not in self._known:
            try:
                joint = np.tensordot(weights**2, self._kernels, axes=1)
                labels = cluster(joint, self._count, seed=self._seed).labels
            except InputError:  # fewer distinct values of these parameters than clusters
                labels = np.zeros(self._items.count, dtype=np.int64)
                self._known[key] = np.ones(self._items.count), labels
                return self._known[key]
            squares, _ = self._items.held_out(labels, self._count, self._modes)
            self._known[key] = np.sqrt(squares.min(axis=0)), labels
        return self._known[key]
