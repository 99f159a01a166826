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
# Couplings this many times the unit of rounding, as a share of a diagonal entry, are none.
_ROUNDING = 10.0
# Points in the fastest direction, at most: the kernels keep a few rows on the stack.
_LONGEST = 2**17
# Points of a lattice that is not cut though there are several ranks, at most: each of them works on the whole.
_WHOLE = 200_000


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
    mirrored
        Whether the lattice runs against the coordinate in each direction but the slowest.

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

    def __init__(
        self,
        matrix: PETSc.Mat,
        coordinates: npt.NDArray[np.float64],
        kernels: Kernels,
        mirrored: tuple[bool, ...] = (False, False),
    ) -> None:
        self.comm: MPI.Comm = matrix.getComm().tompi4py()
        self.mirrored = mirrored
        first, last = matrix.getOwnershipRange()
        with collective_errors(self.comm):
            if np.ndim(coordinates) != 2 or np.shape(coordinates)[1] not in (2, 3):
                raise InputError(f"grid: coordinates of shape {np.shape(coordinates)}: give an array (rows, 2 or 3)")
            if len(coordinates) != last - first:
                raise InputError(
                    f"grid: {len(coordinates)} coordinates for {last - first} rows; give one place for each owned row"
                )
        layer, position = self._locate(coordinates)
        self.starts, self.depth = _cut(self.shape[0], self.comm.size)
        if self.comm.size > 1 and self.depth == 0 and math.prod(self.shape) > _WHOLE:
            most = max(self.shape[0] // 8, 1)
            raise InputError(
                f"grid: {self.shape[0]} layers are too few for {self.comm.size} ranks: use {most} at most, or the "
                "algebraic body"
            )
        rank = self.comm.rank
        self.lattice = Lattice((int(self.starts[rank + 1] - self.starts[rank]), *self.shape[1:]), kernels)
        owner = np.searchsorted(self.starts[1:], layer, side="right")
        self._vector = _Plan(self.comm, owner, position - self.starts[owner] * self._layer)
        self._empty = np.ones(self.lattice.padded, dtype=bool)
        self._empty.ravel()[self._vector.places] = False
        with collective_errors(self.comm):
            if np.count_nonzero(self._empty) + self._vector.places.size > self._empty.size:
                raise InputError("grid: two unknowns lie at one place; use the algebraic body for blocks of unknowns")
        self._plan_entries(matrix, owner, position)

    def _locate(self, coordinates: npt.NDArray[np.float64]) -> tuple[Integers, Integers]:
        """Return the layer of each owned unknown, and its place in an array of the whole lattice with a frame."""
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
        if self.shape[-1] > _LONGEST:
            raise InputError(
                f"grid: {self.shape[-1]} points in the direction of the first coordinate, and {_LONGEST} are the most: "
                "exchange the coordinates, or use the algebraic body"
            )
        self._layer = math.prod(count + 2 for count in self.shape[1:])
        place = np.zeros(len(coordinates), dtype=np.int64)
        for (count, index), against in zip(found, (False, *self.mirrored), strict=False):
            place = place * (count + 2) + (count - index if against else index + 1)
        return found[0][1], place

    def _axis(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the different values of one coordinate on all ranks, in order."""
        everywhere = np.sort(np.concatenate(self.comm.allgather(np.unique(values))))
        if everywhere.size == 0:
            return everywhere
        new = np.diff(everywhere, prepend=-np.inf) > _TOLERANCE * (everywhere[-1] - everywhere[0])
        return everywhere[new]

    def _plan_entries(self, matrix: PETSc.Mat, owner: Integers, position: Integers) -> None:
        """Find the place of each entry of the positive half."""
        indptr, columns, _ = matrix.getValuesCSR()
        self._pattern = indptr, columns
        # The frame keeps steps to neighbours apart from all others.
        shifts = [np.dot(offset, self._strides()) for offset in self.lattice.halves]
        half = np.full(max(shifts) + 1, -1, dtype=np.int32)
        half[shifts] = np.arange(len(shifts))
        # A slab's arrays are as large as the slab: this is how far apart they lie at the owner.
        size = ((np.diff(self.starts) + 2) * self._layer)[owner]
        entries, places = np.empty(columns.size, dtype=np.int32), np.empty(columns.size, dtype=np.int64)
        used, kernels = np.zeros(1, dtype=np.int32), self.lattice.kernels
        start = position - self.starts[owner] * self._layer
        there = self._remote(matrix, position, columns)
        arrays = (indptr.astype(np.int32, copy=False), position, there, half, start, size, entries, places, used)
        pointers = [kernels.pointer(array) for array in arrays]
        count = kernels.library.find_entries(len(position), *pointers[:3], half.size, *pointers[3:])
        with collective_errors(self.comm):
            if count < 0:
                row = np.searchsorted(indptr, -1 - count, side="right") - 1
                raise InputError(
                    f"grid: row {matrix.getOwnershipRange()[0] + row} couples with column {columns[-1 - count]}, "
                    "more than one lattice step away; only linear elements couple nearest neighbours: use the "
                    "algebraic body"
                )
        bits = self.comm.allreduce(int(used[0]), op=MPI.BOR)
        self.lattice = dataclasses.replace(self.lattice, used=bits)
        entries = entries[:count]
        if self.comm.size > 1:
            owner = np.repeat(owner, np.diff(indptr))[entries]
        self._entries = _Plan(self.comm, owner, places[:count], entries)

    def _strides(self) -> list[int]:
        """Return the steps between neighbours in an array with a frame, slowest direction first."""
        return [math.prod(count + 2 for count in self.shape[axis:]) for axis in range(1, len(self.shape) + 1)]

    def _remote(self, matrix: PETSc.Mat, position: Integers, columns: Integers) -> Integers:
        """Return the place of each column, also of those that other ranks own."""
        if self.comm.size == 1:
            return position[columns]
        wanted, inverse = np.unique(columns, return_inverse=True)
        numbered = matrix.createVecRight()
        numbered.array_w[:] = position
        here = PETSc.Vec().createSeq(wanted.size)
        rows = PETSc.IS().createGeneral(wanted.astype(PETSc.IntType), comm=PETSc.COMM_SELF)
        scatter = PETSc.Scatter().create(numbered, rows, here, None)
        scatter.scatter(numbered, here)
        found = here.array_r.astype(np.int64)[inverse]
        for thing in (scatter, rows, here, numbered):
            thing.destroy()
        return found

    def fits(self, matrix: PETSc.Mat) -> bool:
        """Return whether a matrix has its entries where that of the layout has. Collective: yes."""
        indptr, columns = matrix.getRowIJ() if matrix.getType() == "seqaij" else matrix.getValuesCSR()[:2]
        same = np.array_equal(indptr, self._pattern[0]) and np.array_equal(columns, self._pattern[1])
        return bool(self.comm.allreduce(same, op=MPI.LAND))

    def stencils(self, matrix: PETSc.Mat) -> tuple[Lattice, Array, Array]:
        """Return this rank's slab, and the matrix's stencils and row sums on it.

        The stencils have the shape (5 or 14, padded shape), the sums the padded shape: from couplings and sums the
        operator is known more precisely than from couplings and the diagonal. The lattice says which arrays have more
        than rounding: linear elements on tetrahedra couple along axes only, where the medium is isotropic.

        Collective: yes.
        """
        stencils, sums = self.lattice.stencils(len(self.lattice.halves)), self.lattice.values()
        indptr, _, values = matrix.getValuesCSR()
        self._entries.forward(self.lattice.kernels, values, stencils)
        self._vector.forward(self.lattice.kernels, np.add.reduceat(values, indptr[:-1]), sums)
        for array in (stencils[0], sums):
            self.lattice.inner(array)[self.lattice.inner(self._empty)] = 1.0
        kernels, least = self.lattice.kernels, _ROUNDING * float(np.finfo(stencils.dtype).eps)
        used = kernels.library.find_used(self.lattice.c, kernels.pointer(stencils), least)
        return dataclasses.replace(self.lattice, used=self.comm.allreduce(used, op=MPI.BOR)), stencils, sums

    def to_lattice(self, values: npt.NDArray[np.float64], out: Array) -> None:
        """Copy the owned entries of a vector to this rank's slab. Collective: yes."""
        self._vector.forward(self.lattice.kernels, values, out)

    def from_lattice(self, values: Array, out: npt.NDArray[np.float64]) -> None:
        """Copy this rank's slab to the owned entries of a vector. Collective: yes."""
        self._vector.backward(self.lattice.kernels, values, out)


def _cut(layers: int, ranks: int) -> tuple[Integers, int]:
    """Cut layers into slabs that begin at multiples of a power of two, and say how often they can be halved.

    Visits double from level to level, and with them the messages. So only the first levels are cut, as many as leave
    the rest that every rank does a small share of its work.
    """
    if ranks == 1:
        return np.array([0, layers]), layers.bit_length()
    depth = min(ranks.bit_length(), max(0, (layers // (4 * ranks)).bit_length() - 1))
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
