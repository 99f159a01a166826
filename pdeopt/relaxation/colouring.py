"""Colouring of the graph of a parallel matrix: rows of one colour are not coupled, and so can be relaxed at once.

Jones and Plassmann (SIAM J. Sci. Comput. 14 (1993) 654-669): every row has a weight; in each round the rows that
outweigh all their uncoloured neighbours take the smallest colour that no neighbour has. The result is that of the
serial greedy algorithm in the order of falling weights, so it depends on the weights alone, not on how the rows are
spread over ranks. What is left is to find weights that do not depend on it either, for a mesh library that numbers the
rows differently for every number of ranks. Here they come from the graph itself, as its vertices can be told apart
by the shape of their neighbourhoods (Weisfeiler and Lehman, 1968), in integers, without rounding. Where
neighbourhoods agree, as inside a structured mesh, the row number decides.
"""

import dataclasses

from mpi4py import MPI
from mpi4py.util import dtlib
from petsc4py import PETSc

import numpy as np
import numpy.typing as npt

from pdeopt.report import InputError

Integers = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

# Rounds of telling neighbourhoods apart. One round costs about as much as one product with the matrix.
REFINEMENTS = 64
# A weight's leading bits are the degree of its row, the others tell rows of one degree apart.
DEGREE_BITS = 12
UNCOLOURED = -1
AIJ_TYPES = ("aij", "seqaij", "mpiaij")


@dataclasses.dataclass(frozen=True)
class Graph:
    """The symmetrised pattern of a matrix without its diagonal, as this rank sees it.

    Parameters
    ----------
    comm
        Communicator of the matrix.
    first
        Global number of the first owned row.
    owned
        Number of owned rows; local numbers are those of the owned rows and after them those of the ghosts.
    ghosts
        Global numbers of the rows of other ranks that owned ones are coupled to, rising, shape (ghosts,).
    offsets, neighbours
        The local numbers of the neighbours of owned row i are ``neighbours[offsets[i] : offsets[i + 1]]``.
    forest
        Brings values of owned rows to the ranks that have them as ghosts.
    """

    comm: MPI.Comm
    first: int
    owned: int
    ghosts: Integers
    offsets: Integers
    neighbours: Integers
    forest: PETSc.SF

    def local_numbers(self, columns: Integers) -> Integers:
        """Return the local numbers of rows with these global numbers, owned ones or ghosts. Collective: no."""
        return _local_numbers(columns.astype(np.int64), self.first, self.owned, self.ghosts)

    def update_ghosts(self, values: npt.NDArray[np.generic]) -> None:
        """Overwrite the ghosts of local values, shape (owned + ghosts,), by their owners' values. Collective: yes."""
        if self.comm.size == 1:
            return
        unit = dtlib.from_numpy_dtype(values.dtype)
        roots = np.ascontiguousarray(values[: self.owned])
        leaves = values[self.owned :]
        self.forest.bcastBegin(unit, roots, leaves, MPI.REPLACE)
        self.forest.bcastEnd(unit, roots, leaves, MPI.REPLACE)

    def over_neighbours[Number: np.generic](
        self, operation: np.ufunc, values: npt.NDArray[Number], empty: Number
    ) -> npt.NDArray[Number]:
        """Reduce what stands at the neighbours of each owned row, shape (owned,).

        Parameters
        ----------
        operation
            Such as ``np.maximum``.
        values
            One for each entry of `neighbours`.
        empty
            The result of rows without neighbours.

        Collective: no.
        """
        result = np.full(self.owned, empty, dtype=values.dtype)
        coupled = np.diff(self.offsets) > 0
        if values.size:
            # The starts of rows without neighbours would make reduceat return the next row's first value.
            result[coupled] = operation.reduceat(values, self.offsets[:-1][coupled])
        return result

    def destroy(self) -> None:
        """Free the PETSc object. Collective: yes."""
        self.forest.destroy()


def matrix_graph(matrix: PETSc.Mat) -> Graph:
    """Return the graph of a square matrix of type ``aij``.

    Raises
    ------
    InputError
        If the matrix is of another type, or not square.

    Collective: yes.
    """
    comm: MPI.Comm = matrix.getComm().tompi4py()
    if matrix.getSize()[0] != matrix.getSize()[1] or matrix.getType() not in AIJ_TYPES:
        raise InputError(
            f"a {matrix.getSize()[0]} x {matrix.getSize()[1]} matrix of type {matrix.getType()} cannot be coloured: "
            "a square one of type aij is needed (mat.convert('aij'))"
        )
    first, end = matrix.getOwnershipRange()
    offsets, columns, _ = matrix.getValuesCSR()
    rows = np.repeat(np.arange(first, end, dtype=np.int64), np.diff(offsets))
    columns = columns.astype(np.int64)
    rows, columns = _with_transpose(comm, np.asarray(matrix.getOwnershipRanges()), rows, columns)

    ghosts = np.unique(columns[(columns < first) | (columns >= end)])
    owned = end - first
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows - first, minlength=owned))])
    neighbours = _local_numbers(columns, first, owned, ghosts)
    return Graph(comm, first, owned, ghosts, offsets, neighbours, forest_of(matrix, ghosts))


def _local_numbers(columns: Integers, first: int, owned: int, ghosts: Integers) -> Integers:
    is_owned = (columns >= first) & (columns < first + owned)
    return np.where(is_owned, columns - first, owned + np.searchsorted(ghosts, columns))


def forest_of(matrix: PETSc.Mat, ghosts: Integers, places: Integers | None = None) -> PETSc.SF:
    """Return the star forest that brings values of owned rows to ghosts.

    Parameters
    ----------
    matrix
        Its rows.
    ghosts
        Global numbers of the ghosts.
    places
        Where their owner keeps the value of each; in the order of its rows if None.

    Collective: yes.
    """
    ranges = np.asarray(matrix.getOwnershipRanges(), dtype=np.int64)
    ranks = np.searchsorted(ranges, ghosts, side="right") - 1
    remote = np.column_stack([ranks, ghosts - ranges[ranks] if places is None else places])
    forest = PETSc.SF().create(comm=matrix.getComm())
    forest.setGraph(matrix.getLocalSize()[0], None, remote.astype(PETSc.IntType))
    forest.setUp()
    return forest


def _with_transpose(comm: MPI.Comm, ranges: Integers, rows: Integers, columns: Integers) -> tuple[Integers, Integers]:
    """Return the entries off the diagonal of the owned rows of A + A^T, in order. Collective: yes."""
    off = rows != columns
    rows, columns = rows[off], columns[off]
    owner = np.searchsorted(ranges, columns, side="right") - 1
    order = np.argsort(owner, kind="stable")
    sent = np.bincount(owner, minlength=comm.size)
    received = np.empty_like(sent)
    comm.Alltoall(sent, received)
    pairs = np.ascontiguousarray(np.column_stack([columns, rows])[order])
    transposed = np.empty((int(received.sum()), 2), dtype=np.int64)
    comm.Alltoallv([pairs, 2 * sent], [transposed, 2 * received])
    rows = np.concatenate([rows, transposed[:, 0]])
    columns = np.concatenate([columns, transposed[:, 1]])
    keys = np.unique(rows * np.int64(ranges[-1]) + columns)
    return np.divmod(keys, np.int64(max(ranges[-1], 1)))


def graph_weights(graph: Graph, labels: Integers | None = None) -> Words:
    """Return weights that do not change when the rows are numbered or spread over ranks differently.

    They start from the labels and are refined by those of the neighbours, round by round, until no two neighbours
    weigh the same or `REFINEMENTS` rounds are over.

    Parameters
    ----------
    graph
        The graph.
    labels
        Integers that tell owned rows apart whatever their numbers, shape (owned,), for instance
        ``mesh.geometry.input_global_indices`` of the vertices; the degrees if None.

    Returns
    -------
    Words
        Of owned rows and ghosts, shape (owned + ghosts,).

    Collective: yes.
    """
    weights = np.empty(graph.owned + graph.ghosts.size, dtype=np.uint64)
    degrees = np.diff(graph.offsets)
    weights[: graph.owned] = _mix((degrees if labels is None else labels).astype(np.uint64))
    graph.update_ghosts(weights)
    own = np.repeat(np.arange(graph.owned), degrees)
    zero = np.uint64(0)
    for _ in range(REFINEMENTS):
        tied = bool(np.any(weights[own] == weights[graph.neighbours]))
        if not graph.comm.allreduce(tied, op=MPI.LOR):
            break
        # The sum does not depend on the order of the neighbours, and wraps around without rounding.
        around = graph.over_neighbours(np.add, _mix(weights[graph.neighbours]), zero)
        weights[: graph.owned] = _mix(weights[: graph.owned] * np.uint64(3) + around)
        graph.update_ghosts(weights)
    # Rows of high degree first (Welsh and Powell, Comput. J. 10 (1967) 85-86): one to three colours fewer.
    high = np.minimum(degrees, 2**DEGREE_BITS - 1).astype(np.uint64) << np.uint64(64 - DEGREE_BITS)
    weights[: graph.owned] = high | (weights[: graph.owned] >> np.uint64(DEGREE_BITS))
    graph.update_ghosts(weights)
    return weights


def point_labels(comm: MPI.Comm, points: npt.NDArray[np.float64]) -> Integers:
    """Return labels that tell rows apart by where their degrees of freedom are.

    Parameters
    ----------
    comm
        Communicator of the rows.
    points
        Of the owned rows, shape (owned, dimension), for instance ``space.tabulate_dof_coordinates()[:owned]``.

    Returns
    -------
    Integers
        Equal for points that agree to one part in a million of the domain's extent, shape (owned,).

    Collective: yes.
    """
    low, high = np.full((2, points.shape[1]), np.inf)
    comm.Allreduce(points.min(axis=0, initial=np.inf), low, MPI.MIN)
    comm.Allreduce((-points).min(axis=0, initial=np.inf), high, MPI.MIN)
    extent = max(float(np.max(-high - low)), np.finfo(float).tiny)
    # An irrational shift, so that points of a structured grid, rounded one way or the other, stay off the borders.
    cells = np.floor((points - low) / extent * 2**20 + 0.5**0.5).astype(np.int64)
    return np.asarray(cells @ (1 << 21 * np.arange(points.shape[1], dtype=np.int64)))


def _mix(words: Words) -> Words:
    """Return well mixed words, one for each (the finaliser of Steele, Lea and Flood's SplitMix, 2014)."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def colour_graph(graph: Graph, weights: Words) -> Integers:
    """Return the colours that the greedy algorithm gives in the order of falling weights, from 0 on.

    Of two neighbours with the same weight a hash of the row numbers puts one first.

    Parameters
    ----------
    graph
        The graph.
    weights
        Of owned rows and ghosts, shape (owned + ghosts,).

    Returns
    -------
    Integers
        Of owned rows and ghosts, shape (owned + ghosts,).

    Collective: yes.
    """
    own = np.repeat(np.arange(graph.owned), np.diff(graph.offsets))
    numbers = _mix(np.concatenate([graph.first + np.arange(graph.owned), graph.ghosts]).astype(np.uint64))
    tied = weights[graph.neighbours] == weights[own]
    comes_first = (weights[graph.neighbours] > weights[own]) | (tied & (numbers[graph.neighbours] > numbers[own]))
    colours = np.full(weights.size, UNCOLOURED, dtype=np.int64)
    while graph.comm.allreduce(bool(np.any(colours[: graph.owned] == UNCOLOURED)), op=MPI.LOR):
        around = colours[graph.neighbours]
        waits = graph.over_neighbours(np.logical_or, comes_first & (around == UNCOLOURED), np.bool_(False))
        ready = (colours[: graph.owned] == UNCOLOURED) & ~waits
        colours[: graph.owned][ready] = _smallest_free(graph, around)[ready]
        graph.update_ghosts(colours)
    return colours


def _smallest_free(graph: Graph, around: Integers) -> Integers:
    """Return for each owned row the smallest colour that none of its neighbours has. Collective: no."""
    free = np.full(graph.owned, UNCOLOURED, dtype=np.int64)
    bits, start = 63, 0
    while np.any(free == UNCOLOURED):
        here = (around >= start) & (around < start + bits)
        flags = np.where(here, np.int64(1) << np.where(here, around - start, 0), 0)
        taken = graph.over_neighbours(np.bitwise_or, flags, np.int64(0))
        lowest = ~taken & (taken + 1)  # the lowest bit that is not set; 2^63 wraps to a negative number if none is
        found = (free == UNCOLOURED) & (lowest > 0)
        free[found] = start + np.round(np.log2(lowest[found])).astype(np.int64)
        start += bits
    return free


def two_colours(graph: Graph) -> Integers | None:
    """Return a colouring by two colours, or None where a circle of odd length forbids it.

    Every row appears twice, as of colour 0 and of colour 1, coupled to its neighbours of the other colour. A row whose
    two copies are connected lies on an odd circle; otherwise the component with the smaller number tells its colour.

    Returns
    -------
    Integers or None
        Of owned rows and ghosts, shape (owned + ghosts,).

    Collective: yes.
    """
    owned, total = graph.owned, graph.owned + graph.ghosts.size
    inside = graph.neighbours < owned
    own = np.repeat(np.arange(owned), np.diff(graph.offsets))
    tails = np.concatenate([2 * own[inside], 2 * own[inside] + 1])
    heads = np.concatenate([2 * graph.neighbours[inside] + 1, 2 * graph.neighbours[inside]])
    component = _components(2 * owned, tails, heads)

    # Across ranks the components of all ranks exchange their smallest members until nothing changes.
    labels = np.empty((total, 2), dtype=np.int64)
    smallest = 2 * graph.first + np.arange(2 * owned)
    rows = np.concatenate([2 * own[~inside], 2 * own[~inside] + 1])
    changed = True
    while graph.comm.allreduce(changed, op=MPI.LOR):
        for colour in (0, 1):
            column = np.empty(total, dtype=np.int64)
            column[:owned] = smallest[component][colour::2]
            graph.update_ghosts(column)
            labels[:, colour] = column
        outside = labels[graph.neighbours[~inside]]
        before = smallest.copy()
        np.minimum.at(smallest, component[rows], np.concatenate([outside[:, 1], outside[:, 0]]))
        changed = not np.array_equal(before, smallest)
    odd = bool(np.any(labels[:owned, 0] == labels[:owned, 1]))
    if graph.comm.allreduce(odd, op=MPI.LOR):
        return None
    return np.asarray(labels[:, 0] > labels[:, 1], dtype=np.int64)


def _components(size: int, tails: Integers, heads: Integers) -> Integers:
    """Return for each vertex the smallest one that it is connected to, by hooking and pointer jumping.

    Each edge stands in both directions (Shiloach and Vishkin, J. Algorithms 3 (1982) 57-67).

    Collective: no.
    """
    label = np.arange(size)
    while True:
        before = label.copy()
        np.minimum.at(label, before[tails], before[heads])
        while True:
            jumped = label[label]
            if np.array_equal(jumped, label):
                break
            label = jumped
        if np.array_equal(label, before):
            return label


def colour_matrix(matrix: PETSc.Mat, labels: Integers | None = None) -> tuple[Graph, Integers]:
    """Return the graph of a matrix, and its colours: two of them where that is possible, else the greedy ones.

    Equal on any number of ranks for matrices with the same global numbering. For a numbering of its own on each number
    of ranks, as DOLFINx has it, the colouring is the same too wherever labels or the shape of the graph tell
    neighbours apart; only the two colours of a bipartite graph may be exchanged.

    Parameters
    ----------
    matrix, labels
        See `matrix_graph` and `graph_weights`.

    Returns
    -------
    Graph, Integers
        The graph, owned by the caller, and the colours of owned rows and ghosts, shape (owned + ghosts,).

    Collective: yes.
    """
    graph = matrix_graph(matrix)
    colours = two_colours(graph)
    if colours is None:
        colours = colour_graph(graph, graph_weights(graph, labels))
    return graph, colours
