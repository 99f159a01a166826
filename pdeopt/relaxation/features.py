"""What a matrix shows of itself: the features from which a solver is chosen."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np
import numpy.typing as npt

from pdeopt.parallel import on_root, random_stream

# Formats whose entries can be looked at and factored. Others keep the solver that they came with.
ASSEMBLED = ("seqaij", "mpiaij", "seqbaij", "mpibaij", "seqsbaij", "mpisbaij")

# Relative differences of A x and A^T x below this are rounding: assembled forms reach 1e-15.
SYMMETRY_TOLERANCE = 1e-12
# A row whose diagonal entry is this much smaller than what the row adds up to has none.
ZERO_DIAGONAL = 1e-10
# p.Ap / p.Dp of constants p, D the diagonal of A; the mesh width to the power d - 1 for Dirichlet problems.
NEARLY_SINGULAR = 1e-12
# Rows that a ball in the matrix graph may hold at most: what measuring the dimension costs.
BALL_ROWS = 1000
# Rows from which balls are worth their time; below, the number of entries has to do: a node of linear tetrahedra has
# more neighbours than one of quadratic triangles.
FEWEST_ROWS, ENTRIES_IN_SPACE = 4000, 11.8
# Growth from which a graph counts as three-dimensional: the largest of several rows, as boundaries flatten spheres.
# Measured: up to 2.47 for elements of degree 1 to 4 in the plane, from 2.6 on for degrees 1 and 2 in space.
THREE_DIMENSIONAL = 2.5


@dataclasses.dataclass(frozen=True)
class MatrixFeatures:
    """Features of a square matrix A; equal on all ranks.

    Parameters
    ----------
    assembled
        Whether A has entries to look at. If not, the following ones from ``block_size`` on mean nothing.
    size
        Number of unknowns.
    ranks
        Number of MPI ranks.
    block_size
        Unknowns per node.
    entries_per_row
        Mean number of stored entries.
    dimension
        1, 2 or 3: how spheres in the graph of A grow. That is what fill depends on; a thin bar is one-dimensional.
    symmetric
        Whether A = A^T up to rounding.
    diagonal
        ``"positive"``, ``"negative"``, ``"mixed"`` signs, or ``"zero"`` entries in it, as in saddle-point problems.
    kernel
        ``"none"`` known; ``"attached"``: A has a null space that PETSc knows of; ``"constants"``: constants are in the
        kernel of A, or nearly so, and PETSc knows nothing of it.
    indefinite
        Whether a vector p with p.Ap < 0 was seen although the diagonal is positive.
    near_nullspace
        Whether vectors for multigrid are attached.
    """

    assembled: bool
    size: int
    ranks: int
    block_size: int = 1
    entries_per_row: float = 0.0
    dimension: int = 0
    symmetric: bool = False
    diagonal: Literal["positive", "negative", "mixed", "zero"] = "zero"
    kernel: Literal["none", "attached", "constants"] = "none"
    indefinite: bool = False
    near_nullspace: bool = False

    def __str__(self) -> str:
        if not self.assembled:
            return f"{self.size} unknowns on {self.ranks} ranks, not assembled"
        parts = [
            f"{self.size} unknowns on {self.ranks} ranks",
            f"block size {self.block_size}",
            f"{self.entries_per_row:.1f} entries per row",
            f"{self.dimension}D",
            "symmetric" if self.symmetric else "unsymmetric",
            f"diagonal {self.diagonal}",
        ]
        if self.indefinite:
            parts.append("indefinite")
        if self.kernel != "none":
            parts.append({"attached": "null space attached", "constants": "singular"}[self.kernel])
        if self.near_nullspace:
            parts.append("near-nullspace attached")
        return ", ".join(parts)


def is_assembled(matrix: PETSc.Mat) -> bool:
    """Whether the entries of a matrix can be looked at. Collective: no."""
    return matrix.getType() in ASSEMBLED


def sum_over_ranks(comm: MPI.Comm, values: Sequence[float]) -> npt.NDArray[np.float64]:
    """Return the sums over all ranks; as a buffer, since pickling takes longer than a product with a small matrix.

    Collective: yes.
    """
    sums = np.array(values, dtype=float)
    comm.Allreduce(MPI.IN_PLACE, sums)
    return sums


def slowest(comm: MPI.Comm, seconds: Sequence[float]) -> list[float]:
    """Return the most seconds that each thing took on any rank. Collective: yes."""
    values = np.array(seconds, dtype=float)
    if comm.size > 1:
        comm.Allreduce(MPI.IN_PLACE, values, MPI.MAX)
    return [float(value) for value in values]


def from_root(comm: MPI.Comm, value: float) -> float:
    """Return the value of rank 0 on all ranks: for decisions that follow from clocks. Collective: yes."""
    if comm.size == 1:
        return value
    shared = np.array([value], dtype=float)
    comm.Bcast(shared)
    return float(shared[0])


def probe(matrix: PETSc.Mat) -> PETSc.Vec:
    """Return a vector without small entries, the same for every matrix of the layout. Collective: yes."""
    vector = matrix.createVecRight()
    stream = random_stream("relaxation.probe", comm=matrix.getComm().tompi4py())
    entries = stream.uniform(0.5, 1.5, vector.getLocalSize())
    vector.array_w[:] = np.where(stream.random(entries.size) < 0.5, entries, -entries)
    return vector


class FeatureReader:
    """Measures the features of a matrix; those of its pattern once, those of its values each time.

    Reading the values costs two products with A or its transpose, beside the one that it is given. If they change
    often, most of the time only symmetry and the signs of the diagonal are looked at, which takes one product: all of
    it again after the 1st, 2nd, 4th, 8th, ... change, and where one of these two differs.
    """

    def __init__(self) -> None:
        self._pattern: tuple[tuple[int, int], float, int] | None = None
        self._features: MatrixFeatures | None = None
        self._weights: PETSc.Vec | None = None  # one over the square root of the diagonal, of earlier values
        self._work: PETSc.Vec | None = None
        self._changes = 0

    def forget_pattern(self) -> None:
        """Measure the pattern anew the next time. Collective: yes."""
        self._pattern = self._features = None
        self._changes = 0
        for handle in (self._weights, self._work):
            if handle is not None:
                handle.destroy()
        self._weights = self._work = None

    def read(self, matrix: PETSc.Mat, vector: PETSc.Vec, image: PETSc.Vec) -> MatrixFeatures:
        """Return the features.

        Parameters
        ----------
        matrix
            A.
        vector, image
            A probe (`probe`) and its product with A.

        Collective: yes.
        """
        size, ranks = matrix.getSize()[0], matrix.getComm().getSize()
        if not is_assembled(matrix):
            return MatrixFeatures(False, size, ranks)
        key = (matrix.getId(), size)
        if self._pattern is not None and self._pattern[0] != key:
            self.forget_pattern()
        self._changes += 1
        if self._changes & (self._changes - 1) and self._is_alike(matrix, vector, image):
            assert self._features is not None
            return self._features
        if self._pattern is None:
            entries = float(matrix.getInfo(PETSc.Mat.InfoType.GLOBAL_SUM)["nz_used"])
            entries_per_row = entries / max(size, 1)
            self._pattern = key, entries_per_row, _dimension(matrix, entries_per_row / matrix.getBlockSize())
        self._features = self._read_values(matrix, vector, image, size, ranks)
        return self._features

    def _is_alike(self, matrix: PETSc.Mat, vector: PETSc.Vec, image: PETSc.Vec) -> bool:
        """Whether symmetry and the signs of the diagonal are those of before."""
        assert self._features is not None
        assert self._weights
        assert self._work
        work, weights = self._work, self._weights
        known = self._features.diagonal == "positive", self._features.kernel, self._features.near_nullspace
        attached = "attached" if matrix.getNullSpace().handle else "none"
        if known != (True, attached, bool(matrix.getNearNullSpace().handle)):
            return False
        matrix.getDiagonal(work)
        if not work.min()[1] > 0.0:
            return False
        work.pointwiseMult(weights, image)
        magnitude = work.norm()
        matrix.multTranspose(vector, work)
        work.axpy(-1.0, image)
        work.pointwiseMult(weights, work)
        return bool(work.norm() <= SYMMETRY_TOLERANCE * magnitude) == self._features.symmetric

    def _read_values(
        self, matrix: PETSc.Mat, vector: PETSc.Vec, image: PETSc.Vec, size: int, ranks: int
    ) -> MatrixFeatures:
        assert self._pattern is not None
        _, entries_per_row, dimension = self._pattern
        comm = matrix.getComm().tompi4py()
        constants, sums, diagonal = matrix.createVecRight(), matrix.createVecLeft(), matrix.createVecLeft()
        transposed = matrix.createVecRight()
        constants.set(1.0)
        matrix.mult(constants, sums)
        matrix.getDiagonal(diagonal)
        matrix.multTranspose(vector, transposed)
        d, row_sums, image_values = diagonal.array_r, sums.array_r, image.array_r
        magnitudes = np.abs(d)
        zero = magnitudes <= ZERO_DIAGONAL * np.abs(image_values)
        # Entries of a definite matrix are bounded by the diagonal: scaled by it, regions of small values count too.
        weights = np.where(zero, 1.0, magnitudes)
        difference = image_values - transposed.array_r
        # Rows that Dirichlet conditions made trivial are coupled to nothing: leave them out of p.
        coupled = row_sums != d
        local = [
            np.count_nonzero(zero),
            np.count_nonzero(d > 0.0),
            np.count_nonzero(d < 0.0),
            difference @ (difference / weights),
            image_values @ (image_values / weights),
            row_sums @ coupled,
            magnitudes @ coupled,
        ]
        if self._weights is None:
            self._weights, self._work = diagonal.duplicate(), diagonal.duplicate()
        self._weights.array_w[:] = 1.0 / np.sqrt(weights)
        for handle in (constants, sums, diagonal, transposed):
            handle.destroy()
        zeros, positive, negative, asymmetry, magnitude, curvature, trace = sum_over_ranks(comm, local)
        symmetric = bool(math.sqrt(asymmetry) <= SYMMETRY_TOLERANCE * math.sqrt(magnitude))
        sign: Literal["positive", "negative", "mixed", "zero"] = "mixed"
        if zeros:
            sign = "zero"
        elif not negative:
            sign = "positive"
        elif not positive:
            sign = "negative"
        nullspace = matrix.getNullSpace()
        kernel: Literal["none", "attached", "constants"] = "none"
        if nullspace.handle:
            kernel = "attached"
        elif abs(curvature) <= NEARLY_SINGULAR * trace and trace > 0.0:  # no row is coupled in a diagonal matrix
            kernel = "constants"
        return MatrixFeatures(
            assembled=True,
            size=size,
            ranks=ranks,
            block_size=matrix.getBlockSize(),
            entries_per_row=entries_per_row,
            dimension=dimension,
            symmetric=symmetric,
            diagonal=sign,
            kernel=kernel,
            indefinite=bool(sign == "positive" and kernel == "none" and curvature < 0.0),
            near_nullspace=bool(matrix.getNearNullSpace().handle),
        )


def _dimension(matrix: PETSc.Mat, neighbours: float) -> int:
    """Return how spheres grow in the graph of rank 0's part: 1, 2 or 3. Collective: yes."""
    block = matrix.getDiagonalBlock() if matrix.getComm().getSize() > 1 else matrix

    def measure() -> int:
        if not block.getType().endswith("seqaij") or block.getSize()[0] < FEWEST_ROWS:
            return 3 if neighbours > ENTRIES_IN_SPACE else 2
        pointers, columns = block.getRowIJ()
        rows = len(pointers) - 1
        growth = max(_growth(pointers, columns, rows * part // 12) for part in (3, 5, 6, 7, 9))
        return 3 if growth > THREE_DIMENSIONAL else 2 if growth > 1.5 else 1

    return on_root(matrix.getComm().tompi4py(), measure)


def _growth(pointers: npt.NDArray[np.int32], columns: npt.NDArray[np.int32], seed: int) -> float:
    """Return d such that spheres around a row of the graph grow like r^(d-1), from radius h to 2h.

    Shells tell more than balls: of the latter, those of elements of high degree begin with a large neighbourhood.
    """
    rows = len(pointers) - 1
    seen, last = np.zeros(rows, dtype=bool), np.empty(rows, dtype=np.intp)
    seen[seed] = True
    front = np.array([seed])
    sizes = [1]
    while sum(sizes) < min(rows // 8, BALL_ROWS):
        counts = pointers[front + 1] - pointers[front]
        places = np.repeat(pointers[front] - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
        neighbours = columns[places + np.arange(places.size)]
        neighbours = neighbours[~seen[neighbours]]
        order = np.arange(neighbours.size)
        last[neighbours] = order
        front = neighbours[last[neighbours] == order]  # each once, without sorting
        if front.size == 0:
            break
        seen[front] = True
        sizes.append(front.size)
    half = (len(sizes) - 1) // 2
    return 1.0 + math.log2(sizes[2 * half] / sizes[half]) if half else 3.0
