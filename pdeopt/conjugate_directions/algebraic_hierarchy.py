"""Hierarchies of coarse operators by aggregation, from the matrix alone: what the algebraic multigrid body solves with.

The set-up is what such a hierarchy is paid for (PETSc's GAMG spends twice the solve on it in the plane), so each step
is one or two passes over the rows that a rank owns. Aggregates stay on the rank; the Galerkin products, and the step
of interpolation across the ranks, are PETSc's.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np
import numpy.typing as npt

from pdeopt.conjugate_directions._packages import require_package
from pdeopt.parallel import collective_errors
from pdeopt.report import InputError

__all__ = [
    "Constants",
    "Level",
    "LocalRows",
    "build_hierarchy",
    "choose_constants",
    "near_nullspace",
    "renew_values",
]

type Array = npt.NDArray[np.float64]
type Flags = npt.NDArray[np.bool_]

# A coarse level larger than this part of the finer one is not worth its cost.
_LEAST_REDUCTION = 0.8
_MAX_LEVELS = 20
_LANCZOS_STEPS = 4


@dataclasses.dataclass(frozen=True)
class Constants:
    """How a hierarchy is made.

    Parameters
    ----------
    strength
        "symmetric": a_ij is strong if abs(a_ij) >= threshold sqrt(a_ii a_jj). "evolution": it is strong if a pulse at i
        reaches j within two Jacobi steps almost undamped, up to the threshold times the least damping in its row; only
        for one unknown a node.
    threshold
        See there, >= 0.
    damping
        Of the Jacobi step that smooths the interpolation, divided by the largest eigenvalue of D^-1 A; 0 leaves it
        piecewise constant.
    descents
        0 takes the whole Jacobi step; n > 0 takes n steps towards the least energy among the interpolations that keep
        the pattern of the strong couplings and the row sums.
    coarse_size
        Unknowns at which the coarsest level is factorised.

    Raises
    ------
    InputError
        If one is out of its range.
    """

    strength: str = "symmetric"
    threshold: float = 0.02
    damping: float = 4.0 / 3.0
    descents: int = 0
    coarse_size: int = 500

    def __post_init__(self) -> None:
        if self.strength not in ("symmetric", "evolution"):
            raise InputError(f"strength is {self.strength!r}: choose symmetric or evolution")
        for name, value in (("threshold", self.threshold), ("damping", self.damping), ("descents", self.descents)):
            if not 0.0 <= value < math.inf:
                raise InputError(f"{name} is {value!r}: give a number that is not negative")
        if self.coarse_size < 1:
            raise InputError(f"coarse_size is {self.coarse_size!r}: give a positive number of unknowns")


# The best of a sweep on validation seeds of pdeopt.bench.linear_families, one for each class.
_ISOTROPIC = Constants()
_SEVERAL = Constants()
# Entries a row, up to which this holds; share of positive values in the sum of the sizes of the off-diagonal ones, from
# which a matrix counts as anisotropic; and the constants then. Without anisotropy, linear triangles have next to none,
# quadratic triangles up to 0.06, tetrahedra 0.11; quadratic tetrahedra have 0.23, so there it cannot be told.
_ANISOTROPIC = (
    (9.0, 0.04, Constants("evolution", threshold=1.5, descents=2)),
    (20.0, 0.15, Constants(descents=2)),
)


@dataclasses.dataclass(frozen=True)
class Level:
    """An operator, and the interpolation to it from the next coarser one (None on the coarsest)."""

    matrix: PETSc.Mat
    interpolation: PETSc.Mat | None


def choose_constants(matrix: PETSc.Mat, rows: "LocalRows") -> tuple[str, Constants]:
    """Return the class of a matrix, and the constants of that class. Collective: yes.

    Classes: more than one unknown a node; anisotropic, told from large positive off-diagonal values, which linear
    elements have where the coefficient is anisotropic and not aligned with the mesh; and the rest.
    """
    if matrix.getBlockSize() > 1:
        return "several unknowns a node", _SEVERAL
    values, diagonal = rows.local.data, rows.diagonal.sum()
    sizes = np.abs(values).sum()
    sums = np.array([(values.sum() + sizes) / 2.0 - diagonal, sizes - diagonal, values.size, rows.diagonal.size])
    positive, total, entries, count = matrix.getComm().tompi4py().allreduce(sums)
    for limit, share, constants in _ANISOTROPIC:
        if entries <= limit * count:
            return ("anisotropic", constants) if positive > share * total else ("isotropic", _ISOTROPIC)
    return "isotropic", _ISOTROPIC


def build_hierarchy(matrix: PETSc.Mat, constants: Constants, rows: "LocalRows") -> list[Level]:
    """Coarsen until the rest is small enough to be factorised.

    Parameters
    ----------
    matrix
        Symmetric positive (semi)definite, of type aij; its near-nullspace, if one is attached, is interpolated
        exactly, else the constants in each component are.
    constants
        How.
    rows
        Of the matrix.

    Returns
    -------
    levels
        Finest first. The first matrix is the one given; the caller destroys the others.

    Raises
    ------
    InputError
        On all ranks, if a diagonal value is not positive and finite.

    Collective: yes.
    """
    comm = matrix.getComm().tompi4py()
    near, block_size = near_nullspace(matrix), matrix.getBlockSize()
    levels: list[Level] = []
    while matrix.getSize()[0] > constants.coarse_size and len(levels) < _MAX_LEVELS:
        rows = rows if not levels else LocalRows(matrix)
        with collective_errors(comm):
            bad = np.flatnonzero(~((rows.diagonal > 0.0) & np.isfinite(rows.diagonal)))
            if bad.size:
                row = matrix.getOwnershipRange()[0] + bad[0]
                raise InputError(
                    f"the diagonal of the matrix is {rows.diagonal[bad[0]]} in row {row}: multigrid by aggregation is "
                    "for positive definite matrices; use another preconditioner"
                )
        strong = _strong_couplings(rows, block_size, constants)
        aggregates = _aggregate(strong)
        tentative, coarse_near = _tentative(aggregates, near, block_size)
        size = comm.allreduce(tentative.shape[1])
        if size == 0 or size > _LEAST_REDUCTION * matrix.getSize()[0]:
            break
        lengths = _lengths(rows, constants, comm)
        local = _smooth(rows, tentative, strong, constants, lengths, scalar=block_size == 1 and near.shape[1] == 1)
        interpolation = _distributed(local, matrix, _interface_step(rows, tentative, matrix, lengths))
        levels.append(Level(matrix, interpolation))
        matrix = matrix.ptap(interpolation)
        block_size, near = near.shape[1], coarse_near
        matrix.setBlockSize(block_size)
        _mend_diagonal(matrix)
    return [*levels, Level(matrix, None)]


def renew_values(levels: Sequence[Level]) -> None:
    """Make the coarse matrices again, of a finest one with new values in the same pattern. Collective: yes."""
    for fine, coarse in itertools.pairwise(levels):
        fine.matrix.ptap(fine.interpolation, result=coarse.matrix)
        _mend_diagonal(coarse.matrix)


# --- one level --------------------------------------------------------------------------------------------------------


class LocalRows:
    """The rows of this rank: the square block of its own columns, and which rows have entries beyond it.

    Parameters
    ----------
    matrix
        Of type aij.

    Attributes
    ----------
    local
        The block, as scipy's csr_matrix, shape (owned, owned).
    diagonal
        Its diagonal, shape (owned,).
    coupled
        Which rows are coupled to rows of other ranks, shape (owned,).

    Collective: no.
    """

    def __init__(self, matrix: PETSc.Mat) -> None:
        sparse = require_package("scipy.sparse")
        count = matrix.getLocalSize()[0]
        start, columns, values = matrix.getDiagonalBlock().getValuesCSR()
        self.local = sparse.csr_matrix((values, columns, start), shape=(count, count))
        self.diagonal: Array = self.local.diagonal()
        parallel = matrix.getComm().getSize() > 1
        self.coupled: Flags = np.zeros(count, dtype=bool)  # to rows of other ranks
        if parallel:
            self.coupled = np.diff(matrix.getValuesCSR()[0]) != np.diff(start)


def _row_numbers(matrix: Any) -> npt.NDArray[np.int32]:
    return np.repeat(np.arange(matrix.shape[0], dtype=np.int32), np.diff(matrix.indptr))


def _kept(matrix: Any, keep: Flags) -> Any:
    """Return a matrix in compressed rows with only the entries that are kept."""
    start = np.concatenate([[0], np.cumsum(keep)])[matrix.indptr].astype(np.int32)
    return type(matrix)((matrix.data[keep], matrix.indices[keep], start), shape=matrix.shape)


def _strong_couplings(rows: LocalRows, block_size: int, constants: Constants) -> Any:
    """Return the local matrix, one row a node, of the strong couplings and the diagonal."""
    matrix = rows.local
    if block_size > 1:
        blocks = matrix.tobsr((block_size, block_size))
        norms = np.sqrt(np.einsum("kij,kij->k", blocks.data, blocks.data))
        count = matrix.shape[0] // block_size
        matrix = type(matrix)((norms, blocks.indices, blocks.indptr), shape=(count, count))
    if constants.strength == "evolution" and block_size == 1:
        row = _row_numbers(matrix)
        on_diagonal = row == matrix.indices
        keep = _evolves(matrix, row, on_diagonal, rows.diagonal, constants.threshold)
        strong = _kept(matrix, keep | on_diagonal)
        return (abs(strong) + abs(strong).T).tocsr()
    if constants.threshold == 0.0:
        return matrix
    start, indices, values = (np.empty_like(part) for part in (matrix.indptr, matrix.indices, matrix.data))
    core = require_package("pyamg.amg_core")
    core.symmetric_strength_of_connection(
        matrix.shape[0], constants.threshold, matrix.indptr, matrix.indices, matrix.data, start, indices, values
    )
    return type(matrix)((values[: start[-1]], indices[: start[-1]], start), shape=matrix.shape)


def _evolves(matrix: Any, row: npt.NDArray[np.int32], on_diagonal: Flags, diagonal: Array, threshold: float) -> Flags:
    """Say which entries are strong by the evolution of pulses under two Jacobi steps.

    Olson, Schroder and Tuminaro, A new perspective on strength measures in algebraic multigrid, Numerical Linear
    Algebra with Applications 17 (2010), for constants as the one near-nullspace vector.
    """
    core = require_package("pyamg.amg_core")
    step = matrix.copy()
    step.data = -matrix.data / diagonal[row] / _largest_eigenvalue(matrix, diagonal)
    step.data[on_diagonal] += 1.0
    step.sort_indices()
    transposed = step.T.tocsr()
    transposed.sort_indices()
    pulse = np.zeros_like(step.data)
    core.incomplete_mat_mult_csr(
        step.indptr, step.indices, step.data, transposed.indptr, transposed.indices, transposed.data,
        step.indptr, step.indices, pulse, matrix.shape[0],
    )  # fmt: skip
    at_centre = np.empty(matrix.shape[0])
    at_centre[row[on_diagonal]] = pulse[on_diagonal]
    damping = np.abs(1.0 - pulse / at_centre[row])
    damping[on_diagonal | (pulse <= 0.0)] = math.inf
    least = np.minimum.reduceat(damping, matrix.indptr[:-1])
    return (damping <= threshold * least[row]) & np.isfinite(damping)


def _aggregate(strong: Any) -> Any:
    """Return the matrix of ones that maps aggregates to nodes; nodes without strong neighbours are in none."""
    aggregation = require_package("pyamg.aggregation")
    if strong.shape[0] == 0:
        return type(strong)((0, 0))
    ones = aggregation.standard_aggregation(strong)[0]
    return type(strong)((ones.data.astype(float), ones.indices, ones.indptr), shape=ones.shape)


def _tentative(aggregates: Any, near: Array, block_size: int) -> tuple[Any, Array]:
    """Return an interpolation that has the near-nullspace in its range, and the latter's coarse values."""
    if aggregates.nnz == 0:
        return type(aggregates)((near.shape[0], 0)), np.empty((0, near.shape[1]))
    if block_size == 1 and near.shape[1] == 1 and np.all(near == 1.0):
        return aggregates, np.ones((aggregates.shape[1], 1))
    aggregation = require_package("pyamg.aggregation")
    blocks, coarse = aggregation.fit_candidates(aggregates, near)
    return type(aggregates)(blocks.tocsr()), coarse


def _largest_eigenvalue(matrix: Any, diagonal: Array) -> float:
    """Estimate the largest eigenvalue of D^-1 A by a few Lanczos steps; a few per cent low."""
    scale = 1.0 / np.sqrt(diagonal)
    vector = np.random.default_rng(0).standard_normal(len(scale))
    vector /= np.linalg.norm(vector)
    former, beta = np.zeros_like(vector), 0.0
    alphas, betas = [], []
    for _ in range(_LANCZOS_STEPS):
        image = scale * (matrix @ (scale * vector)) - beta * former
        alphas.append(image @ vector)
        image -= alphas[-1] * vector
        beta = float(np.linalg.norm(image))
        if beta <= 1e-12 * abs(alphas[0]):
            break
        betas.append(beta)
        former, vector = vector, image / beta
    off = betas[: len(alphas) - 1]
    return float(np.linalg.eigvalsh(np.diag(alphas) + np.diag(off, 1) + np.diag(off, -1))[-1])


def _lengths(rows: LocalRows, constants: Constants, comm: MPI.Comm) -> Array:
    """Return the lengths of a damped Jacobi step, shape (owned,). Collective: yes."""
    estimate = _largest_eigenvalue(rows.local, rows.diagonal) if rows.diagonal.size else 0.0
    largest = comm.allreduce(estimate, MPI.MAX)
    return constants.damping / (largest * rows.diagonal)


def _smooth(rows: LocalRows, tentative: Any, strong: Any, constants: Constants, lengths: Array, scalar: bool) -> Any:
    """Return the interpolation, smoothed where a row has all its couplings on this rank."""
    if constants.damping == 0.0:
        return tentative
    scale = np.where(rows.coupled, 0.0, lengths)
    if constants.descents == 0 or not scalar:
        step = (rows.local @ tentative).tocsr()
        step.data *= scale[_row_numbers(step)]
        return (tentative - step).tocsr()
    pattern = (strong @ tentative).tocsr()
    pattern.data[:] = 1.0
    counts = np.maximum(np.diff(pattern.indptr), 1)
    interpolation = tentative
    for _ in range(constants.descents):
        step = (rows.local @ interpolation).multiply(pattern).tocsr()
        row = _row_numbers(step)
        mean = np.bincount(row, step.data, minlength=len(counts)) / np.maximum(np.diff(step.indptr), 1)
        step.data = (step.data - mean[row]) * scale[row]
        interpolation = (interpolation - step).tocsr()
    return interpolation


# --- PETSc ------------------------------------------------------------------------------------------------------------


def near_nullspace(matrix: PETSc.Mat) -> Array:
    """Return the rows of this rank of the near-nullspace, shape (owned, vectors). Collective: no."""
    given = matrix.getNearNullSpace()
    vectors = given.getVecs() if given.handle else []
    owned, size = matrix.getLocalSize()[0], matrix.getBlockSize()
    columns = [vector.array_r.copy() for vector in vectors]
    if given.handle and given.hasConstant():
        columns.append(np.ones(owned))
    if not columns:
        return np.ascontiguousarray(np.tile(np.eye(size), (owned // size, 1)))
    return np.ascontiguousarray(np.stack(columns, axis=1))


def _interface_step(rows: LocalRows, tentative: Any, matrix: PETSc.Mat, lengths: Array) -> Any:
    """Return one Jacobi step of the rows that are coupled to other ranks, shape (owned, all columns), or None.

    Left unsmoothed, these few rows cost half as many iterations again. Collective: yes.
    """
    comm = matrix.getComm().tompi4py()
    if comm.size == 1 or not comm.allreduce(bool(lengths.any()), MPI.LOR):
        return None
    first, end = matrix.getOwnershipRange()
    coupled = np.flatnonzero(rows.coupled)
    taken = PETSc.IS().createGeneral((first + coupled).astype(PETSc.IntType), comm=comm)
    columns = PETSc.IS().createStride(end - first, first, 1, comm=comm)
    interpolation = _distributed(tentative, matrix)
    part = matrix.createSubMatrix(taken, columns)
    product = part.matMult(interpolation)
    start, indices, values = product.getValuesCSR()
    row = np.repeat(coupled, np.diff(start))
    step = type(tentative)((-lengths[row] * values, (row, indices)), shape=(end - first, product.getSize()[1]))
    for handle in (taken, columns, interpolation, part, product):
        handle.destroy()
    return step


def _distributed(local: Any, matrix: PETSc.Mat, step: Any = None) -> PETSc.Mat:
    """Return the block-diagonal matrix with these blocks, one a rank, plus a step of any columns. Collective: yes."""
    comm = matrix.getComm().tompi4py()
    owned = local.shape[1]
    first, total = comm.scan(owned) - owned, comm.allreduce(owned)
    rows = type(local)((local.data, local.indices + first, local.indptr), shape=(local.shape[0], total))
    if step is not None:
        rows = rows + step
    sizes = ((local.shape[0], matrix.getSize()[0]), (owned, total))
    csr = (rows.indptr.astype(PETSc.IntType), rows.indices.astype(PETSc.IntType), rows.data)
    result = PETSc.Mat().createAIJ(sizes, csr=csr, comm=comm)
    result.assemble()
    return result


def _mend_diagonal(matrix: PETSc.Mat) -> None:
    """Put a one where a coarse unknown stands for nothing, as of aggregates with few nodes. Collective: yes."""
    diagonal = matrix.getDiagonal()
    empty = diagonal.array_r == 0.0
    if matrix.getComm().tompi4py().allreduce(bool(empty.any()), MPI.LOR):
        diagonal.array[empty] = 1.0
        matrix.setOption(PETSc.Mat.Option.NEW_NONZERO_ALLOCATION_ERR, False)
        matrix.setDiagonal(diagonal)
    diagonal.destroy()
