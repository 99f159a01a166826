"""Successive over-relaxation in the order of a colouring: the same iteration on any number of ranks.

With the rows ordered by colours A = D + L + U, where L couples a colour to earlier ones. From zero, one sweep over a
residual r gives the correction M^-1 r, with

    M = D / omega + L                                                forward,
    M = D / omega + U                                                backward,
    M = omega / (2 - omega) (D / omega + L) D^-1 (D / omega + U)     symmetric,

so that x + M^-1 (b - A x) is the next iterate of SOR or SSOR. Rows of one colour are not coupled: they are relaxed at
once, and across ranks it takes one exchange of the ghosts of each colour.
"""

import itertools

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np
import numpy.typing as npt

from pdeopt.parallel import collective_errors
from pdeopt.relaxation.colouring import Integers, colour_matrix, forest_of
from pdeopt.report import InputError

Array = npt.NDArray[np.float64]

SWEEPS = ("forward", "backward", "symmetric")


class MulticolourSweep:
    """Sweeps over the colours of a matrix.

    Parameters
    ----------
    matrix
        A square matrix of type ``aij``.
    labels
        See `pdeopt.relaxation.colouring.graph_weights`.

    Attributes
    ----------
    colours
        Of the owned rows, shape (owned,).
    count
        Number of colours on all ranks.

    Raises
    ------
    InputError
        If the matrix cannot be coloured, or its diagonal has a zero.

    Collective: yes.
    """

    def __init__(self, matrix: PETSc.Mat, labels: Integers | None = None) -> None:
        graph, colours = colour_matrix(matrix, labels)
        self._owned = owned = graph.owned
        self._comm, self.colours = graph.comm, colours[:owned]
        self.count = 1 + int(graph.comm.allreduce(int(colours.max(initial=-1)), op=MPI.MAX))

        # Sorted by colour, owned rows before ghosts, the rows of a colour and its ghosts are slices.
        self._order = np.argsort(colours[:owned], kind="stable")
        ghost_order = np.argsort(colours[owned:], kind="stable")
        place = np.empty(colours.size, dtype=np.int64)
        place[self._order] = np.arange(owned)
        graph.update_ghosts(place)
        place_at_owner = place[owned:][ghost_order]
        place[owned + ghost_order] = owned + np.arange(ghost_order.size)
        limits = np.arange(self.count + 1)
        self._rows = _slices(np.searchsorted(colours[:owned][self._order], limits))
        self._ghosts = _slices(np.searchsorted(colours[owned:][ghost_order], limits))
        self._forests = []
        if self._comm.size > 1:
            ghosts = graph.ghosts[ghost_order]
            self._forests = [forest_of(matrix, ghosts[part], place_at_owner[part]) for part in self._ghosts]

        self._values = np.zeros(colours.size)
        self._vector = PETSc.Vec().createWithArray(self._values, comm=MPI.COMM_SELF)
        self._offsets, self._columns, _ = matrix.getValuesCSR()
        own = np.repeat(np.arange(owned), np.diff(self._offsets))
        neighbour = graph.local_numbers(self._columns)
        graph.destroy()
        self._diagonal_entries = np.flatnonzero(neighbour == own)
        self._diagonal_rows = own[self._diagonal_entries]
        self._lower = self._blocks(place[own], place[neighbour], colours[neighbour] < colours[own])
        self._upper = self._blocks(place[own], place[neighbour], colours[neighbour] > colours[own])
        self._load(matrix.getValuesCSR()[2])

    def _blocks(self, rows: Integers, columns: Integers, wanted: npt.NDArray[np.bool_]) -> "_Blocks":
        entries = np.flatnonzero(wanted)
        entries = entries[np.argsort(rows[entries], kind="stable")]
        return _Blocks(entries, rows[entries], columns[entries], self._rows, self._values.size)

    def update(self, matrix: PETSc.Mat) -> bool:
        """Take new values of the matrix, unless its pattern has changed: then return False. Collective: yes."""
        offsets, columns, values = matrix.getValuesCSR()
        same = np.array_equal(offsets, self._offsets) and np.array_equal(columns, self._columns)
        if not self._comm.allreduce(same, op=MPI.LAND):
            return False
        self._load(values)
        return True

    def _load(self, values: Array) -> None:
        diagonal = np.zeros(self._owned)
        diagonal[self._diagonal_rows] = values[self._diagonal_entries]
        with collective_errors(self._comm):
            zeros = np.flatnonzero(diagonal == 0.0)
            if zeros.size:
                raise InputError(
                    f"the diagonal has {zeros.size} zeros on a rank, the first in its row {zeros[0]}: relaxation "
                    "divides by the diagonal; choose another preconditioner, for instance pc_type fieldsplit"
                )
        self._diagonal = diagonal[self._order]
        self._lower.load(values)
        self._upper.load(values)

    def apply(self, residual: Array, omega: float, sweep: str = "forward") -> Array:
        """Return M^-1 r.

        Parameters
        ----------
        residual
            r on the owned rows, shape (owned,).
        omega
            Between 0 and 2.
        sweep
            One of `SWEEPS`.

        Returns
        -------
        Array
            The correction on the owned rows, shape (owned,).

        Collective: yes.
        """
        right = residual[self._order]
        values = self._values[: self._owned]
        if sweep != "backward":
            self._relax(self._lower, range(self.count), right, omega)
        if sweep == "symmetric":
            right = (2.0 - omega) / omega * self._diagonal * values
        if sweep != "forward":
            self._relax(self._upper, range(self.count - 1, -1, -1), right, omega)
        correction = np.empty(self._owned)
        correction[self._order] = values
        return correction

    def _relax(self, blocks: "_Blocks", colours: range, right: Array, omega: float) -> None:
        """Solve with D / omega + L or with D / omega + U, colour by colour. Collective: yes."""
        values, last = self._values, colours[-1] if colours else -1
        scale = omega / self._diagonal
        for colour in colours:
            rows = self._rows[colour]
            coupled = blocks.multiply(colour, self._vector)
            values[rows] = scale[rows] * (right[rows] - coupled)
            if self._forests and colour != last:
                leaves = values[self._owned :][self._ghosts[colour]]
                self._forests[colour].bcastBegin(MPI.DOUBLE, values[: self._owned], leaves, MPI.REPLACE)
                self._forests[colour].bcastEnd(MPI.DOUBLE, values[: self._owned], leaves, MPI.REPLACE)

    def destroy(self) -> None:
        """Free the PETSc objects. Collective: yes."""
        self._lower.destroy()
        self._upper.destroy()
        self._vector.destroy()
        for forest in self._forests:
            forest.destroy()


class _Blocks:
    """The strictly lower or upper part of a matrix sorted by colours, as one sequential matrix for each colour."""

    def __init__(self, entries: Integers, rows: Integers, columns: Integers, parts: list[slice], size: int) -> None:
        self._entries = entries
        self._values = np.zeros(entries.size)
        self._matrices, self._products = [], []
        for part in parts:
            offsets = np.searchsorted(rows, np.arange(part.start, part.stop + 1))
            inside = slice(offsets[0], offsets[-1])
            compressed = (
                (offsets - offsets[0]).astype(PETSc.IntType),
                columns[inside].astype(PETSc.IntType),
                self._values[inside],
            )
            shape = (part.stop - part.start, size)
            self._matrices.append(PETSc.Mat().createAIJWithArrays(shape, compressed, comm=MPI.COMM_SELF))
            self._products.append(PETSc.Vec().createSeq(shape[0]))

    def load(self, values: Array) -> None:
        """Take the values of the whole matrix in compressed form. Collective: no."""
        np.take(values, self._entries, out=self._values)
        for matrix in self._matrices:
            matrix.assemble()

    def multiply(self, colour: int, vector: PETSc.Vec) -> Array:
        """Return what the rows of a colour get from a vector. Collective: no."""
        product = self._products[colour]
        self._matrices[colour].mult(vector, product)
        return product.array_r

    def destroy(self) -> None:
        """Free the PETSc objects. Collective: no."""
        for handle in (*self._matrices, *self._products):
            handle.destroy()


def _slices(limits: Integers) -> list[slice]:
    return [slice(int(start), int(end)) for start, end in itertools.pairwise(limits)]
