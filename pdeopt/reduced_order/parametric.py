"""Clusters of snapshots that are close in those parameters that local bases should be divided by.

Where the parameters of the snapshots are known, near parameters are a better reason to share a basis than near fields:
clusters that follow them hold snapshots that the parameter of a new one finds, and few numbers decide them, where
`pdeopt.reduced_order.subspaces` decides every label by the same few snapshots. But not all parameters count alike. A
load's place makes fields that no small basis holds together; its direction only mixes two of them. So k-means runs on
a sum of kernels, the products of each parameter and the squared cosines between the fields, and those weights of them
are searched that make the projection error of held-out snapshots least (features chosen by what they are for, as in
Kohavi and John, Artificial Intelligence 97, 1997). A weight is changed only where the errors fall by more than chance
would have them fall: the best of many partitions is mostly the luckiest.
"""

import math

from mpi4py import MPI

import numpy as np

from pdeopt.parallel import on_root
from pdeopt.reduced_order.clustering import Clustering, cluster, number_clusters
from pdeopt.reduced_order.dissimilarity import Indices, check_gram, check_groups, covariance_kernel, distances
from pdeopt.reduced_order.inner_product import Array
from pdeopt.reduced_order.subspaces import Items
from pdeopt.report import InputError

_WEIGHTS = (0.0, 0.03, 0.1, 0.3, 1.0)  # of the scaled parameters, in coordinates
_CERTAIN = 2.0  # standard errors by which the mean error must fall
_ROUNDS = 2  # of the search over all parameters; it ends when nothing changes
_STARTS = 10  # of k-means for each choice of weights


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
    angles = covariance_kernel(gram, trajectories)
    first = cluster(angles, count, starts=_STARTS, seed=seed)  # with all errors for what cannot be clustered
    if count == 1:
        return first
    varying = np.ptp(parameters, axis=0) > 1e-12 * np.abs(parameters).max(axis=0)
    points = (parameters - parameters.mean(axis=0))[:, varying]
    kernels = [np.outer(column, column) for column in points.T] + [angles]
    kernels = [products / float(np.mean(np.diag(products)) - np.mean(products)) for products in kernels]
    search = _Search(kernels, Items(gram, groups, modes), count, modes, seed, trajectories=trajectories is not None)
    return number_clusters(search.labels(), distances(angles))


class _Search:
    """Looks for the weights of kernels whose clusters have the least errors of held-out items."""

    def __init__(
        self, kernels: list[Array], items: Items, count: int, modes: int, seed: int, *, trajectories: bool
    ) -> None:
        self._kernels, self._items, self._trajectories = np.array(kernels), items, trajectories
        self._count, self._modes, self._seed = count, modes, seed
        self._known: dict[tuple[float, ...], tuple[Array, Indices]] = {}

    def labels(self) -> Indices:
        """Return the clusters of the weights that were found.

        Those of the parameters are searched first, from each of them alone and from all of them alike; then those of
        all kernels, from there if that is better than the angles alone: from these on, no small change finds the
        parameters. The angle between two trajectories, of many snapshots each, tells more than that between two
        snapshots, and there are fewer of them to judge by: there the parameters must be better for certain.
        """
        *alone, weights = np.eye(len(self._kernels))
        if alone:
            found = self._search(self._best([*alone, np.sum(alone, axis=0)]), range(len(alone)))
            start = self._better(found, weights) if self._trajectories else self._best([found, weights])
            weights = self._search(start, range(len(self._kernels)))
        return self._errors(weights)[1]

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
        return trial if change.mean() < -_CERTAIN * change.std() / math.sqrt(change.size) else weights

    def _errors(self, weights: Array) -> tuple[Array, Indices]:
        """Return the error of each item in the best basis of clusters that it is not in itself, and the labels."""
        key = tuple(np.round(weights, 6).tolist())
        if key not in self._known:
            try:
                joint = np.tensordot(weights**2, self._kernels, axes=1)
                labels = cluster(joint, self._count, starts=_STARTS, seed=self._seed).labels
            except InputError:  # fewer distinct values of these parameters than clusters
                labels = np.zeros(self._items.count, dtype=np.int64)
                self._known[key] = np.ones(self._items.count), labels
                return self._known[key]
            squares, _ = self._items.held_out(labels, self._count, self._modes)
            self._known[key] = np.sqrt(squares.min(axis=0)), labels
        return self._known[key]
