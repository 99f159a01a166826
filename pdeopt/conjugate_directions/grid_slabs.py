"""Layers of a lattice that is cut into slabs over the ranks: neighbours' layers, and the whole on every rank."""

import dataclasses
from typing import Any

from mpi4py import MPI

import numpy as np
import numpy.typing as npt

from pdeopt.conjugate_directions.grid_stencils import Array, Lattice

__all__ = ["Slabs"]


@dataclasses.dataclass(frozen=True)
class Slabs:
    """How a lattice is cut across its slowest direction.

    Parameters
    ----------
    comm
        All ranks; rank r has slab r.
    starts
        First layer of each slab, and the number of layers at the end.
    """

    comm: MPI.Comm
    starts: npt.NDArray[Any]

    @property
    def cut(self) -> bool:
        """Whether there is more than one slab."""
        return self.comm.size > 1

    def halved(self) -> "Slabs":
        """Return the cut of every second layer; all slabs have to begin at an even one."""
        return Slabs(self.comm, (self.starts + 1) // 2)

    def exchange(self, values: Array, axis: int = 0) -> None:
        """Fill the first and last layer of an axis with the neighbours' points. Collective: yes."""
        comm, rank = self.comm, self.comm.rank
        if not self.cut:
            return
        layers = np.moveaxis(values, axis, 0)
        below = rank - 1 if rank else MPI.PROC_NULL
        above = rank + 1 if rank + 1 < comm.size else MPI.PROC_NULL
        for target, source, sent, filled in ((above, below, -2, 0), (below, above, 1, -1)):
            arriving = np.zeros(layers.shape[1:], values.dtype)  # stays zero where the lattice ends
            comm.Sendrecv(np.ascontiguousarray(layers[sent]), target, recvbuf=arriving, source=source)
            layers[filled] = arriving

    def whole(self, lattice: Lattice) -> Lattice:
        """Return the uncut lattice of which one has a slab. Collective: no."""
        return Lattice((int(self.starts[-1]), *lattice.shape[1:]), lattice.kernels, lattice.used)

    def gather(self, values: Array, axis: int = 0) -> Array:
        """Return the uncut array on every rank. Collective: yes."""
        layers = np.ascontiguousarray(np.moveaxis(values, axis, 0)[1:-1])
        every = np.empty((int(self.starts[-1]), *layers.shape[1:]), values.dtype)
        counts = np.diff(self.starts) * (layers[0].size if len(layers) else every[0].size)
        self.comm.Allgatherv(layers, (every, counts))
        frame = np.zeros((1, *every.shape[1:]), values.dtype)
        return np.ascontiguousarray(np.moveaxis(np.concatenate([frame, every, frame]), 0, axis))

    def part(self, values: Array) -> Array:
        """Return this rank's layers of an uncut array, with the layers around them. Collective: no."""
        return values[self.starts[self.comm.rank] : self.starts[self.comm.rank + 1] + 2]
