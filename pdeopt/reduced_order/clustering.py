"""Clusters of snapshots or of trajectories, for a reduced basis of each.

The clustering sees a kernel of `pdeopt.reduced_order.dissimilarity` alone, a small matrix that is the same on all
ranks, so it runs on rank 0. Needs the packages kmedoids and scikit-learn (extra ``reduced``).
"""

import dataclasses
import math
import warnings
from typing import Literal

from mpi4py import MPI

import numpy as np

from pdeopt.parallel import on_root
from pdeopt.reduced_order import dissimilarity
from pdeopt.reduced_order._packages import require_package
from pdeopt.reduced_order.dissimilarity import Indices
from pdeopt.reduced_order.inner_product import Array
from pdeopt.report import InputError


@dataclasses.dataclass(frozen=True, eq=False)
class Clustering:
    """Which cluster each item belongs to.

    Parameters
    ----------
    labels
        Number of the cluster of each item, 0, 1, ..., count - 1, shape (n,).
    medoids
        The item of each cluster whose distances to the others have the least sum, shape (count,).
    distances
        Distances of all pairs, shape (n, n).
    """

    labels: Indices
    medoids: Indices
    distances: Array

    @property
    def count(self) -> int:
        """Number of clusters."""
        return int(self.medoids.size)

    def members(self, label: int, *, overlap: float = 0.0, at_least: int = 1) -> Indices:
        """Return the items of one cluster and of its surroundings.

        Parameters
        ----------
        label
            Number of the cluster.
        overlap
            How many items of other clusters are added, as a share of the cluster's own: those that are nearest to any
            of its items.
        at_least
            More are added until so many are reached, or no others are left.

        Returns
        -------
        members
            The cluster's own items, then the added ones from the nearest on.

        Collective: no.
        """
        if not overlap >= 0.0:
            raise InputError(f"overlap is {overlap}: give a share >= 0 of the cluster's own items")
        inside, outside = np.flatnonzero(self.labels == label), np.flatnonzero(self.labels != label)
        if not inside.size:
            raise InputError(f"there is no cluster {label}: they are numbered from 0 to {self.count - 1}")
        added = max(math.ceil(overlap * inside.size), at_least - inside.size, 0)
        nearest = np.argsort(self.distances[np.ix_(outside, inside)].min(axis=1), kind="stable")[:added]
        return np.concatenate([inside, outside[nearest]])


def cluster(
    kernel: Array,
    count: int,
    *,
    method: Literal["means", "medoids"] = "means",
    starts: int = 20,
    seed: int = 0,
    comm: MPI.Comm = MPI.COMM_SELF,
) -> Clustering:
    """Divide items into clusters.

    "means" minimises the sum over the clusters of the squared distances to their mean in the space of the kernel
    (Lloyd); with the kernel "sine" the mean is that of the projectors u u', so neither signs nor scales matter.
    "medoids" minimises the sum of the distances to one item of each cluster (FasterPAM).

    Parameters
    ----------
    kernel
        What `pdeopt.reduced_order.dissimilarity.kernel` or ``subspace_kernel`` returns, shape (n, n).
    count
        Number of clusters K.
    method
        "means" (scikit-learn) or "medoids" (kmedoids).
    starts
        Random starts, of which the best result is taken.
    seed
        Of the random starts.
    comm
        Communicator; the same kernel is on all its ranks.

    Raises
    ------
    InputError
        If there are fewer distinct items than clusters, a number is not finite, or the method is unknown.
    MissingPackageError
        If kmedoids or scikit-learn is absent.

    Collective: yes. All ranks get the labels of rank 0.

    References
    ----------
    Schubert and Rousseeuw, Fast and eager k-medoids clustering, Information Systems 101 (2021), 101804.
    """
    return on_root(comm, lambda: _cluster(dissimilarity.check_gram(kernel), count, method, starts, seed))


def _cluster(kernel: Array, count: int, method: str, starts: int, seed: int) -> Clustering:
    size = kernel.shape[0]
    if not 1 <= count <= size:
        raise InputError(f"{count} clusters of {size} items: ask for 1 to {size}")
    if method not in ("means", "medoids"):
        raise InputError(f"clustering method {method!r} is unknown: choose 'means' or 'medoids'")
    distances = dissimilarity.distances(kernel)
    labels = (_means if method == "means" else _medoids)(kernel, distances, count, starts, seed)
    clustering = number_clusters(labels, distances)
    # Equal items are at distances of sqrt(rounding), so they may have come into different clusters.
    between = distances[np.ix_(clustering.medoids, clustering.medoids)]
    apart = between > 1e-6 * math.sqrt(max(np.diag(kernel).max(), 0.0))
    distinct = np.unique(np.argmin(apart, axis=1)).size
    if distinct < count:
        raise InputError(
            f"{count} clusters of {size} items of which only {distinct} differ: ask for at most {distinct} clusters"
        )
    return clustering


def number_clusters(labels: Indices, distances: Array) -> Clustering:
    """Return a clustering numbered by the first item of each cluster: by the partition alone. Collective: no."""
    first, labels = np.unique(labels, return_index=True, return_inverse=True)[1:]
    labels = np.argsort(np.argsort(first))[labels]
    members = [np.flatnonzero(labels == label) for label in range(first.size)]
    medoids = np.array([inside[np.argmin(distances[np.ix_(inside, inside)].sum(axis=0))] for inside in members])
    return Clustering(labels, medoids, distances)


def _means(kernel: Array, distances: Array, count: int, starts: int, seed: int) -> Indices:
    sklearn = require_package("sklearn.cluster")
    points = dissimilarity.coordinates(kernel)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fewer distinct points than clusters: the caller says so
        return np.asarray(sklearn.KMeans(count, n_init=starts, random_state=seed).fit(points).labels_)


def _medoids(kernel: Array, distances: Array, count: int, starts: int, seed: int) -> Indices:
    kmedoids = require_package("kmedoids")
    runs = [kmedoids.fasterpam(distances, count, random_state=seed + start, n_cpu=1) for start in range(starts)]
    return np.asarray(min(runs, key=lambda run: run.loss).labels)
