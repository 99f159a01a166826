"""A reduced basis for each cluster of snapshots."""

from mpi4py import MPI

import numpy as np

from pdeopt.reduced_order.basis import Basis
from pdeopt.reduced_order.clustering import Clustering
from pdeopt.reduced_order.dissimilarity import Indices, check_groups
from pdeopt.reduced_order.inner_product import Array
from pdeopt.reduced_order.pod import proper_orthogonal_decomposition
from pdeopt.reduced_order.snapshots import Snapshots
from pdeopt.report import InputError


class LocalBases:
    """Proper orthogonal decompositions of the snapshots of each cluster.

    Parameters
    ----------
    snapshots
        The fields.
    clustering
        Clusters of the snapshots, or of the trajectories that they belong to.
    modes
        Modes of each basis. A cluster with fewer snapshots gets as many of the nearest ones outside as it lacks; a
        basis has fewer modes only where those are linearly dependent.
    overlap
        How many snapshots (trajectories) of other clusters are added to each cluster, as a share of its own.
    trajectories
        Number of the trajectory of each snapshot, shape (n,), if the clusters are those of trajectories.
    relative
        Whether each snapshot counts by its direction alone, so that relative errors are small; zero snapshots are then
        left out. Otherwise large snapshots count more.

    Attributes
    ----------
    clustering
        As given.
    bases
        One `Basis` for each cluster.

    Raises
    ------
    InputError
        If the clustering is one of another number of items, or an argument is out of range.

    Collective: yes.
    """

    def __init__(
        self,
        snapshots: Snapshots,
        clustering: Clustering,
        modes: int,
        *,
        overlap: float = 0.0,
        trajectories: Indices | None = None,
        relative: bool = True,
    ) -> None:
        groups = check_groups(trajectories, len(snapshots))
        if len(groups) != clustering.labels.size:
            name = "snapshots" if trajectories is None else "trajectories"
            raise InputError(
                f"{clustering.labels.size} items were clustered and there are {len(groups)} {name}: cluster these"
            )
        self.clustering = clustering
        nonzero = snapshots.norms() > 0.0 if relative else np.full(len(snapshots), True)
        bases = []
        for label in range(clustering.count):
            chosen = np.concatenate([groups[item] for item in clustering.members(label, overlap=overlap)])
            wanted = max(chosen.size, modes)
            if trajectories is None:  # from the nearest on, since zero snapshots may be among them
                chosen = clustering.members(label, at_least=len(snapshots))
            part = snapshots.subset(chosen[nonzero[chosen]][:wanted])
            bases.append(proper_orthogonal_decomposition(part.normalised() if relative else part, modes=modes))
        self.bases: tuple[Basis, ...] = tuple(bases)

    def __len__(self) -> int:
        return len(self.bases)

    def __getitem__(self, label: int) -> Basis:
        return self.bases[label]

    @property
    def comm(self) -> MPI.Comm:
        """Communicator of the space."""
        return self.bases[0].comm

    def errors(self, columns: Array) -> Array:
        """Return the relative projection errors of fields in each basis, shape (clusters, n). Collective: yes."""
        return np.array([basis.projection_errors(columns) for basis in self.bases])
