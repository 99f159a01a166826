"""Multigrid by aggregation for blocks of unknowns, on one rank: hierarchy and cycle by compiled kernels.

It is what `pdeopt.conjugate_directions.algebraic_hierarchy` and `algebraic_cycle` make of PETSc's kernels, with two
differences: the sweeps solve for the unknowns of a node at once, and the cycle reads
matrices in single precision, but computes in double.
"""

import dataclasses
import pathlib
from types import ModuleType
from typing import Any

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np
import numpy.typing as npt

from pdeopt.conjugate_directions._packages import require_package
from pdeopt.conjugate_directions.algebraic_hierarchy import Constants, near_nullspace
from pdeopt.conjugate_directions.compiled import build, load_module
from pdeopt.report import InputError

__all__ = ["BlockCycle", "fits"]

type Array = npt.NDArray[Any]

_LARGEST = 8  # unknowns a node, as in the kernels
_LEAST_REDUCTION = 0.8
_MAX_LEVELS = 20
_LANCZOS_STEPS = 4
# Part of the largest eigenvalue up to which one of a singular coarsest matrix is rounding.
_NULL = 1e-12
# Unknowns up to which the coarsest matrix is inverted, unless the constants say more.
_MOST_DENSE = 2000
_SOURCE = pathlib.Path(__file__).with_name("block_kernels.c")
_DECLARATIONS = """
typedef struct {
    int n, s, m, count;
    const int *start, *col, *where, *pstart, *pcol;
    const float *a, *inverse, *p;
    double *b, *x;
} Level;
void norms(long blocks, int s, const double *a, double *out);
int invert_diagonal(int n, int s, const int *start, const int *col, double *a, int *where, double *inverse);
void multiply(int n, int s, const int *start, const int *col, const double *a, const double *x, double *y);
int aggregate(int n, const int *start, const int *col, const int *where, const double *size, double threshold,
              int *of_node);
void tentative(int n, int s, int m, int count, const int *of_node, const double *near, double *T, double *coarse);
long pattern(int n, int count, const int *start, const int *col, const int *of_node, int *pstart, int *pcol);
void smooth(int n, int s, int m, int count, const int *start, const int *col, const double *a, const double *inverse,
            double omega, const int *of_node, const double *T, const int *pstart, const int *pcol, double *p);
long product(int n, int s, int m, int count, const int *start, const int *col, const double *a, const int *pstart,
             const int *pcol, const double *p, int *cstart, int *ccol, double *c);
void transpose(int n, int count, const int *pstart, const int *pcol, int *tstart, int *trow, int *tentry);
long galerkin(int s, int m, int count, const int *tstart, const int *trow, const int *tentry, const double *p,
              const int *cstart, const int *ccol, const double *c, int *dstart, int *dcol, double *d);
void shorten(int n, int s, const int *start, const int *col, const int *where, const double *a, float *out);
void cycle(const Level *levels, int count, const float *dense, const double *b, double *x);
"""
_KINDS = {np.dtype(np.float64): "double[]", np.dtype(np.float32): "float[]", np.dtype(np.int32): "int[]"}


@dataclasses.dataclass
class _Blocks:
    """A matrix of blocks in compressed rows: start, columns, and the blocks one after the other."""

    start: Array
    columns: Array
    values: Array


@dataclasses.dataclass
class _Level:
    """A matrix with s unknowns a node, its inverted diagonal, and the interpolation to it with m unknowns an aggregate.

    The interpolation is missing on the coarsest level.
    """

    s: int
    matrix: _Blocks
    where: Array
    inverse: Array
    m: int = 0
    aggregates: int = 0
    interpolation: _Blocks | None = None

    @property
    def nodes(self) -> int:
        return len(self.matrix.start) - 1


def fits(matrix: PETSc.Mat) -> bool:
    """Return whether a matrix is one for `BlockCycle`: of few unknowns a node, more than one, on one rank.

    Collective: no.
    """
    given = matrix.getNearNullSpace()
    vectors = len(given.getVecs()) + given.hasConstant() if given.handle else 0
    return matrix.getComm().getSize() == 1 and 1 < matrix.getBlockSize() <= _LARGEST and vectors <= _LARGEST


class BlockCycle:
    """One V-cycle: a sweep of block Gauss-Seidel down, the inverse of the coarsest matrix, a sweep backward up.

    Parameters
    ----------
    matrix
        Symmetric positive (semi)definite, one for which `fits` holds; its near-nullspace is interpolated exactly.
    constants
        How the hierarchy is made; the strength is symmetric, and the interpolation takes one Jacobi step.
    singular
        Whether the matrix has a null space: the coarsest one's pseudo-inverse is taken then.

    Raises
    ------
    InputError
        If a diagonal block is not positive definite.

    Collective: yes.
    """

    def __init__(self, matrix: PETSc.Mat, constants: Constants, singular: bool) -> None:
        module = load_module(*build(MPI.COMM_SELF, _SOURCE, _DECLARATIONS))
        self._kernels = _Kernels(module)
        self._constants, self._singular, self._matrix = constants, singular, matrix
        self._levels = self._coarsen(_blocks(matrix), near_nullspace(matrix))
        self._prepare()

    @property
    def sizes(self) -> list[int]:
        """Unknowns of the levels, finest first."""
        return [level.nodes * level.s for level in self._levels]

    @property
    def complexity(self) -> float:
        """Entries of all matrices over those of the finest."""
        return sum(level.matrix.values.size for level in self._levels) / max(self._levels[0].matrix.values.size, 1)

    def apply(self, r: PETSc.Vec, x: PETSc.Vec) -> None:
        """Apply the cycle to a residual. Collective: yes."""
        run = self._kernels
        right, found = (run.module.ffi.from_buffer("double[]", array) for array in (r.array_r, x.array_w))
        run.module.lib.cycle(self._c, len(self._levels), run.pointer(self._dense), right, found)

    def renew(self) -> None:
        """Take new values of the matrix, with the same interpolations. Collective: yes."""
        matrix = _blocks(self._matrix)
        for number, level in enumerate(self._levels):
            self._levels[number] = dataclasses.replace(self._level(level.s, matrix), m=level.m)
            self._levels[number].aggregates, self._levels[number].interpolation = level.aggregates, level.interpolation
            if level.interpolation is not None:
                matrix = self._galerkin(self._levels[number])
        self._prepare()

    def view(self, viewer: PETSc.Viewer) -> None:
        """Print how it relaxes. Collective: yes."""
        viewer.printfASCII("  block Gauss-Seidel, forward down and backward up, matrices in single precision\n")

    def release(self) -> None:
        """Do nothing: arrays free themselves. Collective: no."""

    # ------------------------------------------------------------------------------------------------------------------

    def _level(self, s: int, matrix: _Blocks) -> _Level:
        """Return a level with its diagonal inverted."""
        nodes = len(matrix.start) - 1
        where, inverse = np.empty(nodes, np.int32), np.empty(nodes * s * s)
        bad = self._kernels.invert_diagonal(nodes, s, matrix.start, matrix.columns, matrix.values, where, inverse)
        if bad:
            raise InputError(
                f"the diagonal of the matrix is not positive definite in the rows of node {bad - 1}: multigrid by "
                "aggregation is for positive definite matrices; use another preconditioner"
            )
        return _Level(s, matrix, where, inverse)

    def _coarsen(self, matrix: _Blocks, near: Array) -> list[_Level]:
        """Return the levels, finest first."""
        run, s, m = self._kernels, self._matrix.getBlockSize(), near.shape[1]
        levels = [self._level(s, matrix)]
        while levels[-1].nodes * s > self._constants.coarse_size and len(levels) < _MAX_LEVELS:
            level = levels[-1]
            nodes, columns = level.nodes, level.matrix.columns
            rows = (level.matrix.start, columns)
            size, of_node = np.empty(columns.size), np.empty(nodes, np.int32)
            run.norms(columns.size, s, level.matrix.values, size)
            count = run.aggregate(nodes, *rows, level.where, size, self._constants.threshold, of_node)
            if count == 0 or count * m > _LEAST_REDUCTION * nodes * s:
                break
            T, coarse = np.empty(nodes * s * m), np.empty((count * m, m))
            run.tentative(nodes, s, m, count, of_node, near, T, coarse)
            start = np.empty(nodes + 1, np.int32)
            entries = run.pattern(nodes, count, *rows, of_node, start, None)
            P = _Blocks(start, np.empty(entries, np.int32), np.empty(entries * s * m))
            run.pattern(nodes, count, *rows, of_node, P.start, P.columns)
            omega = self._constants.damping / self._largest_eigenvalue(level)
            run.smooth(
                nodes, s, m, count, *rows, level.matrix.values, level.inverse, omega, of_node, T,
                P.start, P.columns, P.values,
            )  # fmt: skip
            level.m, level.aggregates, level.interpolation = m, count, P
            levels.append(self._level(m, self._galerkin(level)))
            s, near = m, coarse
        left = levels[-1].nodes * levels[-1].s
        if left > max(_MOST_DENSE, self._constants.coarse_size):
            raise InputError(f"the coarsest level has {left} unknowns, too many for an inverse")
        return levels

    def _galerkin(self, level: _Level) -> _Blocks:
        """Return the product of the matrix with the interpolation on both sides."""
        run, A, P, s, m = self._kernels, level.matrix, level.interpolation, level.s, level.m
        assert P is not None
        nodes, count = level.nodes, level.aggregates
        factors = (A.start, A.columns, A.values, P.start, P.columns, P.values)
        start = np.empty(nodes + 1, np.int32)
        entries = run.product(nodes, s, m, count, *factors, start, None, None)
        AP = _Blocks(start, np.empty(entries, np.int32), np.empty(entries * s * m))
        run.product(nodes, s, m, count, *factors, AP.start, AP.columns, AP.values)
        turned = (np.empty(count + 1, np.int32), *(np.empty(P.columns.size, np.int32) for _ in range(2)))
        run.transpose(nodes, count, P.start, P.columns, *turned)
        halves = (*turned, P.values, AP.start, AP.columns, AP.values)
        start = np.empty(count + 1, np.int32)
        entries = run.galerkin(s, m, count, *halves, start, None, None)
        product = _Blocks(start, np.empty(entries, np.int32), np.empty(entries * m * m))
        run.galerkin(s, m, count, *halves, product.start, product.columns, product.values)
        return product

    def _largest_eigenvalue(self, level: _Level) -> float:
        """Estimate the largest eigenvalue of D^-1 A by a few Lanczos steps in D's inner product; a few per cent low."""
        shape = (level.nodes, level.s)
        inverse = level.inverse.reshape(*shape, level.s)

        def to_primal(vector: Array) -> Array:
            return np.ascontiguousarray(np.einsum("nij,nj->ni", inverse, vector.reshape(shape))).ravel()

        dual = np.random.default_rng(0).standard_normal(level.nodes * level.s)
        former, beta = np.zeros_like(dual), 0.0
        alphas: list[float] = []
        betas: list[float] = []
        for _ in range(_LANCZOS_STEPS):
            primal = to_primal(dual)
            length = float(np.sqrt(dual @ primal))
            betas.append(length)
            if length <= 1e-12 * abs(alphas[0] if alphas else 0.0):
                break
            dual, primal, beta = dual / length, primal / length, length if alphas else 0.0
            image = np.empty_like(dual)
            self._kernels.multiply(*shape, level.matrix.start, level.matrix.columns, level.matrix.values, primal, image)
            image -= beta * former
            alphas.append(float(image @ primal))
            former, dual = dual, image - alphas[-1] * dual
        off = betas[1 : len(alphas)]
        return float(np.linalg.eigvalsh(np.diag(alphas) + np.diag(off, 1) + np.diag(off, -1))[-1])

    def _prepare(self) -> None:
        """Copy what the cycle needs to single precision, and invert the coarsest matrix."""
        run, last = self._kernels, self._levels[-1]
        sparse = require_package("scipy.sparse")
        data = last.matrix.values.reshape(-1, last.s, last.s)
        full = sparse.bsr_matrix((data, last.matrix.columns, last.matrix.start)).toarray()
        dense = np.linalg.pinv(full, rcond=_NULL, hermitian=True) if self._singular else np.linalg.inv(full)
        self._dense = np.ascontiguousarray((dense + dense.T) / 2.0, np.float32)
        described, self._alive = [], []
        for level in self._levels:
            A, s = level.matrix, level.s
            short = np.empty(A.values.size, np.float32)
            run.shorten(level.nodes, s, A.start, A.columns, level.where, A.values, short)
            inverse = level.inverse.reshape(-1, s, s)
            inverse = ((inverse + inverse.transpose(0, 2, 1)) / 2.0).astype(np.float32)
            vectors = [np.zeros(level.nodes * s) for _ in range(2)]
            arrays: dict[str, Array] = dict(zip(("b", "x"), vectors, strict=True))
            arrays |= {"start": A.start, "col": A.columns, "where": level.where, "a": short, "inverse": inverse}
            if level.interpolation is not None:
                P = level.interpolation
                arrays |= {"pstart": P.start, "pcol": P.columns, "p": P.values.astype(np.float32)}
            self._alive.append(arrays)
            pointers = {name: run.pointer(array) for name, array in arrays.items()}
            self._alive.append(pointers)
            described.append({"n": level.nodes, "s": level.s, "m": level.m, "count": level.aggregates, **pointers})
        self._c = run.module.ffi.new("Level[]", described)


class _Kernels:
    """The compiled functions, called with numbers, arrays, and None for no array."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module

    def pointer(self, array: Array | None) -> Any:
        ffi = self.module.ffi
        return ffi.NULL if array is None else ffi.from_buffer(_KINDS[array.dtype], array)

    def __getattr__(self, name: str) -> Any:
        function = getattr(self.module.lib, name)
        return lambda *given: function(
            *(part if isinstance(part, int | float) else self.pointer(part) for part in given)
        )


def _blocks(matrix: PETSc.Mat) -> _Blocks:
    """Return a PETSc matrix as blocks, columns in ascending order."""
    start, columns, values = matrix.getValuesCSR()
    s = matrix.getBlockSize()
    found = require_package("scipy.sparse").csr_matrix((values, columns, start), shape=matrix.getSize()).tobsr((s, s))
    found.sort_indices()
    return _Blocks(found.indptr.astype(np.int32), found.indices.astype(np.int32), found.data.ravel())
