"""From a PETSc matrix and the places of its unknowns to stencils on a lattice, cut into slabs over the ranks."""

import dataclasses
import math
from typing import Any

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np
import numpy.typing as npt

from pdeopt.conjugate_directions.grid_kernels import Kernels
from pdeopt.conjugate_directions.grid_stencils import Array, Lattice
from pdeopt.parallel import collective_errors
from pdeopt.report import InputError

__all__ = ["GridLayout"]

Integers = npt.NDArray[Any]

# Two coordinates closer than this share of the extent are one.
_TOLERANCE = 1e-7
# Points of the lattice for each unknown, at most: a domain may have holes and steps, but has to fill half its box.
_EMPTY = 2.0


class GridLayout:
    """Where the entries of a matrix lie in the stencils of a lattice, whatever the numbering and the partition.

    The lattice has a point wherever coordinates of unknowns cross; steps need not be equal. Each rank gets a slab of
    it, cut across the slowest direction at multiples of a power of two. A point without an unknown gets a row of the
    identity. What depends on the pattern is found once; `stencils` then only moves values.

    Parameters
    ----------
    matrix
        Symmetric ``aij`` matrix, one unknown per point, that couples nearest neighbours only (diagonals included):
        linear elements on triangles, quadrilaterals, tetrahedra or hexahedra. Only one of a_ij and a_ji is read.
    coordinates
        Coordinates of the owned unknowns, in the matrix's order, shape (rows, 2 or 3), in any unit of length.
    kernels
        What computes on the lattice.

    Attributes
    ----------
    shape
        Numbers of points in the two or three directions, slowest (last coordinate) first, of all ranks together.
    starts
        First layer of each rank's slab in the slowest direction, and their number at the end.
    lattice
        This rank's slab.
    depth
        How often the slabs can be halved before their first layers are no longer even.

    Raises
    ------
    InputError
        If the unknowns do not lie on a lattice of two or three directions, two lie at one place, or an entry couples
        unknowns that are no neighbours.

    Collective: yes.
    """

    def __init__(self, matrix: PETSc.Mat, coordinates: npt.NDArray[np.float64], kernels: Kernels) -> None:
        self.comm: MPI.Comm = matrix.getComm().tompi4py()
        first, last = matrix.getOwnershipRange()
        with collective_errors(self.comm):
            if len(coordinates) != last - first:
                raise InputError(
                    f"grid: {len(coordinates)} coordinates for {last - first} rows; give one place for each owned row"
                )
        index = self._locate(coordinates)
        self.starts, self.depth = _cut(self.shape[0], self.comm.size)
        rank = self.comm.rank
        self.lattice = Lattice((int(self.starts[rank + 1] - self.starts[rank]), *self.shape[1:]), kernels)
        self._vector = _Plan(self.comm, *self._places(index))
        with collective_errors(self.comm):
            if self._vector.places.size != np.unique(self._vector.places).size:
                raise InputError("grid: two unknowns lie at one place; use the algebraic body for blocks of unknowns")
        self._plan_entries(matrix, index)

    def _locate(self, coordinates: npt.NDArray[np.float64]) -> Integers:
        """Return the lattice index of each owned unknown, slowest direction first."""
        found = []
        for values in coordinates.T[::-1]:
            axis = self._axis(values)
            if axis.size > 1:
                found.append((axis.size, np.searchsorted(0.5 * (axis[1:] + axis[:-1]), values)))
        self.shape = tuple(count for count, _ in found)
        unknowns = self.comm.allreduce(len(coordinates))
        if len(found) not in (2, 3) or math.prod(self.shape) > _EMPTY * unknowns:
            raise InputError(
                f"grid: {unknowns} unknowns lie on {' x '.join(map(str, self.shape))} different coordinates, which is "
                "no filled lattice of two or three directions; use the algebraic body"
            )
        return np.stack([index for _, index in found], axis=1)

    def _axis(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the different values of one coordinate on all ranks, in order."""
        everywhere = np.sort(np.concatenate(self.comm.allgather(np.unique(values.round(12)))))
        if everywhere.size == 0:
            return everywhere
        new = np.diff(everywhere, prepend=-np.inf) > _TOLERANCE * (everywhere[-1] - everywhere[0])
        return everywhere[new]

    def _places(self, index: Integers) -> tuple[Integers, Integers]:
        """Return the rank that has each lattice point, and its place in an array of that rank's slab."""
        owner = np.searchsorted(self.starts, index[:, 0], side="right") - 1
        place = index[:, 0] - self.starts[owner] + 1
        for axis, count in enumerate(self.shape[1:], start=1):
            place = place * (count + 2) + index[:, axis] + 1
        return owner, place

    def _plan_entries(self, matrix: PETSc.Mat, index: Integers) -> None:
        """Find the place of each entry of the positive half."""
        indptr, columns, _ = matrix.getValuesCSR()
        rows = np.repeat(np.arange(len(index)), np.diff(indptr))
        step = self._remote(matrix, index, columns) - index[rows]
        with collective_errors(self.comm):
            far = np.flatnonzero(np.abs(step).max(axis=1, initial=0) > 1)
            if far.size:
                raise InputError(
                    f"grid: row {matrix.getOwnershipRange()[0] + rows[far[0]]} couples with column {columns[far[0]]}, "
                    f"{np.abs(step[far[0]]).max()} lattice steps away; only linear elements couple nearest neighbours: "
                    "use the algebraic body"
                )
        half = np.zeros(len(step), dtype=np.int64)
        for axis in range(step.shape[1]):
            half = half * 3 + step[:, axis]
        kept = np.flatnonzero(half >= 0)
        owner, place = self._places(index[rows[kept]])
        # A slab's arrays are as large as the slab: the owner knows how far apart its stencils' arrays lie.
        sizes = np.array([math.prod((n + 2, *(m + 2 for m in self.shape[1:]))) for n in np.diff(self.starts)])
        bits = self.comm.allreduce(sum(1 << int(h) for h in np.unique(half[kept])), op=MPI.BOR)
        self.lattice = dataclasses.replace(self.lattice, used=bits)
        self._entries = _Plan(self.comm, owner, half[kept] * sizes[owner] + place, kept)
        self._empty = np.ones(self.lattice.padded, dtype=bool)
        self._empty.ravel()[self._vector.places] = False

    def _remote(self, matrix: PETSc.Mat, index: Integers, columns: Integers) -> Integers:
        """Return the lattice index of each column, also of those that other ranks own."""
        if self.comm.size == 1:
            return index[columns]
        wanted, inverse = np.unique(columns, return_inverse=True)
        numbered = matrix.createVecRight()
        numbered.array_w[:] = np.ravel_multi_index(tuple(index.T), self.shape)
        here = PETSc.Vec().createSeq(wanted.size)
        rows = PETSc.IS().createGeneral(wanted.astype(PETSc.IntType), comm=PETSc.COMM_SELF)
        scatter = PETSc.Scatter().create(numbered, rows, here, None)
        scatter.scatter(numbered, here)
        found = here.array_r.astype(np.int64)
        for thing in (scatter, rows, here, numbered):
            thing.destroy()
        return np.stack(np.unravel_index(found, self.shape), axis=1)[inverse]

    def stencils(self, matrix: PETSc.Mat) -> Array:
        """Return the matrix's stencils on this rank's slab, shape (5 or 14, padded shape). Collective: yes."""
        stencils = self.lattice.stencils(len(self.lattice.halves))
        self._entries.forward(self.lattice.kernels, matrix.getValuesCSR()[2], stencils)
        centre = self.lattice.inner(stencils[0])
        centre[self.lattice.inner(self._empty)] = 1.0
        return stencils

    def to_lattice(self, values: npt.NDArray[np.float64], out: Array) -> None:
        """Copy the owned entries of a vector to this rank's slab. Collective: yes."""
        self._vector.forward(self.lattice.kernels, values, out)

    def from_lattice(self, values: Array, out: npt.NDArray[np.float64]) -> None:
        """Copy this rank's slab to the owned entries of a vector. Collective: yes."""
        self._vector.backward(self.lattice.kernels, values, out)


def _cut(layers: int, ranks: int) -> tuple[Integers, int]:
    """Cut layers into slabs that begin at multiples of the greatest power of two up to a quarter of their thickness."""
    if ranks == 1:
        return np.array([0, layers]), layers.bit_length()
    depth = max(0, (layers // (4 * ranks)).bit_length() - 1)
    unit = 2**depth
    cuts = np.round(np.arange(1, ranks) * layers / ranks / unit).astype(np.int64) * unit
    return np.concatenate([[0], cuts, [layers]]), depth


class _Plan:
    """Moves entries from where PETSc has them to where the lattice wants them, and back.

    Parameters
    ----------
    comm
        All ranks.
    owner, place
        The rank that wants each entry, and its place in an array there.
    source
        Its index here; by default they are in order.
    """

    def __init__(self, comm: MPI.Comm, owner: Integers, place: Integers, source: Integers | None = None) -> None:
        self.comm = comm
        source = np.arange(len(owner)) if source is None else source
        with collective_errors(comm):
            if place.size and place.max() > np.iinfo(np.int32).max:
                raise InputError(f"grid: {place.max()} entries of stencils on one rank are too many: use more ranks")
        if comm.size == 1:
            self.sources, self.places = source.astype(np.int32), place.astype(np.int32)
            return
        order = np.argsort(owner, kind="stable")
        self.sent = [int(count) for count in np.bincount(owner, minlength=comm.size)]
        self.received = comm.alltoall(self.sent)
        self.order = source[order]
        self.places = np.empty(sum(self.received), dtype=np.int32)
        comm.Alltoallv((place[order].astype(np.int32), self.sent), (self.places, self.received))
        self.sources = np.arange(self.places.size, dtype=np.int32)

    def forward(self, kernels: Kernels, values: npt.NDArray[np.float64], out: Array) -> None:
        """Round and place. Collective: yes."""
        if self.comm.size > 1:
            here = np.empty(self.places.size)
            self.comm.Alltoallv((values[self.order], self.sent), (here, self.received))
            values = here
        self._move(kernels, "gather", values, out)

    def backward(self, kernels: Kernels, values: Array, out: npt.NDArray[np.float64]) -> None:
        """Bring back. Collective: yes."""
        if self.comm.size == 1:
            self._move(kernels, "scatter", values, out)
            return
        here, there = np.empty(self.places.size), np.empty(self.order.size)
        self._move(kernels, "scatter", values, here)
        self.comm.Alltoallv((here, self.received), (there, self.sent))
        out[self.order] = there

    def _move(self, kernels: Kernels, name: str, start: Array, end: Array) -> None:
        pointer = kernels.pointer
        getattr(kernels.library, name)(
            self.places.size, pointer(self.sources), pointer(self.places), pointer(start), pointer(end)
        )
