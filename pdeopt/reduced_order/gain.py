"""Are local bases worth it? Their error beside that of one basis, predicted from snapshots of a coarse mesh.

The projection errors of held-out snapshots follow from the Gram matrix alone, so the prediction costs the coarse
snapshots and small eigenvalue problems. No reduced model is built.
"""

import dataclasses

from mpi4py import MPI

import numpy as np

from pdeopt.parallel import on_root, random_stream
from pdeopt.reduced_order.clustering import Clustering
from pdeopt.reduced_order.dissimilarity import Indices, check_gram, check_groups
from pdeopt.reduced_order.inner_product import Array
from pdeopt.reduced_order.parametric import cluster_by_parameters
from pdeopt.reduced_order.subspaces import cluster_subspaces
from pdeopt.report import InputError


@dataclasses.dataclass(frozen=True)
class Gain:
    """What local bases are predicted to bring.

    Parameters
    ----------
    clusters, modes
        Number of bases, and of modes in each and in the one basis of all that they are compared with.
    local_error, global_error
        Mean relative projection errors of held-out snapshots: in the best of the local bases, which `CheckedChoice`
        finds, and in one basis of all.
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
    clusters: int,
    modes: int,
    *,
    parameters: Array | None = None,
    trajectories: Indices | None = None,
    folds: int = 5,
    starts: int = 8,
    seed: int = 0,
    comm: MPI.Comm = MPI.COMM_SELF,
) -> Gain:
    """Predict by cross-validation how local bases and one global basis project unseen snapshots.

    Each fold of the snapshots (trajectories) is held out once; the others are clustered by `cluster_by_parameters`, or
    by `cluster_subspaces` where no parameters are given, and their bases are those of `LocalBases`.

    Parameters
    ----------
    gram
        Products of all pairs of snapshots, shape (n, n), on a mesh as coarse as still shows their shape; a quarter of
        the resolution is a good start.
    clusters, modes
        Number of clusters K, and of modes m of each basis.
    parameters
        Parameters of the snapshots (trajectories), shape (items, p), if these are to be clustered by them.
    trajectories
        Number of the trajectory of each snapshot, shape (n,), if whole trajectories are clustered and held out.
    folds
        Number of folds; with more of them the prediction is that for nearly as many snapshots as there are.
    starts
        Of `cluster_subspaces`; fewer than for the bases themselves are enough.
    seed
        Of folds and clustering.
    comm
        Communicator; the same Gram matrix is on all its ranks.

    Raises
    ------
    InputError
        If sizes do not fit, a snapshot is zero, or a fold leaves fewer distinct items than clusters.

    Collective: yes. It is computed on rank 0.
    """
    return on_root(comm, lambda: _predict(gram, clusters, modes, parameters, trajectories, folds, starts, seed))


def _predict(
    gram: Array,
    clusters: int,
    modes: int,
    parameters: Array | None,
    trajectories: Indices | None,
    folds: int,
    starts: int,
    seed: int,
) -> Gain:
    groups = check_groups(trajectories, len(check_gram(gram)))
    if not 2 <= folds <= len(groups):
        raise InputError(f"{folds} folds of {len(groups)} items: choose 2 to {len(groups)}")
    norms = np.sqrt(np.maximum(np.diag(gram), 0.0))
    if not np.all(norms > 0.0):
        raise InputError(f"snapshot {int(np.argmin(norms))} is zero and has no relative error: leave it out")
    if parameters is not None and len(parameters) != len(groups):
        raise InputError(f"{len(parameters)} rows of parameters for {len(groups)} items: give one for each")
    if not 1 <= modes <= len(gram):
        raise InputError(f"{modes} modes of {len(gram)} snapshots: choose 1 to {len(gram)}")
    relative = gram / np.outer(norms, norms)
    local, whole = np.empty(len(groups)), np.empty((len(gram) + 1, len(gram)))
    order = random_stream("predicted_gain.folds", seed).permutation(len(groups))
    for held in np.array_split(order, folds):
        kept = np.setdiff1d(np.arange(len(groups)), held)
        sizes = [groups[item].size for item in kept]
        training, targets = (np.concatenate([groups[item] for item in items]) for items in (kept, held))
        part = None if trajectories is None else np.repeat(np.arange(kept.size), sizes)
        products = relative[np.ix_(training, training)]
        if parameters is None:
            clustering = cluster_subspaces(products, clusters, modes, trajectories=part, starts=starts, seed=seed)
        else:
            known = parameters[kept]
            clustering = cluster_by_parameters(products, known, clusters, modes, trajectories=part, seed=seed)
        local[held] = local_projection_errors(relative, clustering, modes, groups, kept, held).min(axis=0)
        whole[:, targets] = projection_errors(relative, training, targets)
    local_error, curve = float(np.mean(local)), whole.mean(axis=1)
    reached = np.flatnonzero(curve <= local_error)
    return Gain(clusters, modes, local_error, float(curve[modes]), int(reached[0]) if reached.size else None)


def local_projection_errors(
    gram: Array, clustering: Clustering, modes: int, groups: list[Indices], training: Indices, targets: Indices
) -> Array:
    """Return the mean error over the snapshots of each target item in the basis of each cluster.

    Parameters
    ----------
    gram
        Products of all pairs of snapshots of norm one, shape (n, n).
    clustering, modes
        Clusters of the training items, and modes of each basis.
    groups
        The snapshots of each item.
    training, targets
        Numbers of items.

    Returns
    -------
    errors
        Shape (clusters, targets), as of `LocalBases` without overlap.

    Collective: no.
    """
    errors = np.empty((clustering.count, len(targets)))
    projected = np.concatenate([groups[item] for item in targets])
    sizes = np.array([groups[item].size for item in targets])
    for label in range(clustering.count):
        members = clustering.members(label, at_least=modes if len(groups) == len(gram) else 1)
        basis = np.concatenate([groups[training[member]] for member in members])
        found = projection_errors(gram, basis, projected)[modes]
        errors[label] = np.add.reduceat(found, np.cumsum(sizes) - sizes) / sizes
    return errors


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
