"""Preconditioners of a reduced Hessian H from few eigenvectors: H v = (1 + l) R v, R the Hessian of the regularisation.

What data say about a control is compact in the metric of R: few of the eigenvalues l of the pair (H - R, R) are not
small. With the leading ones and eigenvectors V'RV = I,

    H = R + R V diag(l) V' R + small,    H^-1 = R^-1 - V diag(l / (1 + l)) V' + small.

Blocks of vectors are NumPy arrays of the owned rows, shape (owned, count); products of two are summed over the ranks.
"""

import dataclasses
from collections.abc import Callable, Sequence

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np
import numpy.typing as npt

from pdeopt.control.hessian import ReducedHessian
from pdeopt.control.kkt import KKTSystem
from pdeopt.control.riesz import trace_ratio
from pdeopt.control.state_solvers import linear_state_solver
from pdeopt.fem import forms
from pdeopt.parallel import normal_numbers
from pdeopt.report import InputError

Array = npt.NDArray[np.float64]
Action = Callable[[PETSc.Vec, PETSc.Vec], None]
"""Sets the second vector to the Hessian times the first."""

_SMALLEST = 0.1  # of 1 + l: directions in which H is nearly singular or indefinite are left to the iteration
_DEPENDENT = 1e-12  # relative size below which a direction adds nothing to a basis
_PLACES = 2**24  # coordinates are rounded to this fraction of a unit before they become keys of random numbers


@dataclasses.dataclass(frozen=True)
class Eigenpairs:
    """Eigenvalues l, shape (count,), and R-orthonormal eigenvectors, shape (owned, count)."""

    values: Array
    vectors: Array


class Metric:
    """R, with solves and the products of blocks of vectors that it induces.

    Parameters
    ----------
    matrix
        R, symmetric positive definite; kept, not copied.
    dimension
        Topological dimension of the mesh, which decides whether R is factorised.
    """

    def __init__(self, matrix: PETSc.Mat, dimension: int = 2) -> None:
        self.matrix = matrix
        self.comm: MPI.Comm = matrix.comm.tompi4py()
        self._ksp = linear_state_solver(matrix, True, dimension, prefix="control_metric_")
        self._in, self._out = matrix.createVecs()

    def product(self, left: Array, right: Array) -> Array:
        """Return left' right, shape (columns, columns). Collective: yes."""
        return np.asarray(self.comm.allreduce(left.T @ right))

    def each(self, function: Action, block: Array) -> Array:
        """Return the block whose columns are the function of the columns. Collective: yes."""
        result = np.empty_like(block, order="F")
        for j in range(block.shape[1]):
            self._in.array[:] = block[:, j]
            function(self._in, self._out)
            result[:, j] = self._out.array_r
        return result

    def mult(self, block: Array) -> Array:
        """Return R times a block. Collective: yes."""
        return self.each(self.matrix.mult, block)

    def solve(self, block: Array) -> Array:
        """Return R^-1 times a block. Collective: yes."""
        return self.each(self._ksp.solve, block)

    def solve_vector(self, covector: PETSc.Vec, out: PETSc.Vec) -> None:
        """Set R^-1 times a vector. Collective: yes."""
        self._ksp.solve(covector, out)

    def orthonormal(self, block: Array) -> tuple[Array, Array]:
        """Return T with (block T)' R (block T) = I, dependent columns left out, and block T. Collective: yes."""
        gram = self.product(block, self.mult(block))
        scale = 1.0 / np.sqrt(np.maximum(np.diag(gram), np.finfo(float).tiny))
        values, turn = np.linalg.eigh(gram * scale[:, None] * scale)
        kept = values > _DEPENDENT * values[-1]
        change = scale[:, None] * turn[:, kept] / np.sqrt(values[kept])
        return change, block @ change

    def release(self) -> None:
        """Free the PETSc objects, not the matrix. Collective: yes."""
        for item in (self._ksp, self._in, self._out):
            item.destroy()


def prior_matrix(system: KKTSystem) -> PETSc.Mat:
    """Return the controls' inner products, each times the weight that it has in the objective; owned by the caller.

    For regularisations by the inner product, the usual ones, that is the second derivative of the regularisation.
    Collective: yes.
    """
    weighted = []
    for j, product in enumerate(system.control_products):
        second = system.lagrangian.second(system.lagrangian.objective, j + 1, j + 1)
        matrix = product.copy()
        if not forms.is_zero(second):
            compiled = forms.compile_form(second + system.zero_pattern(j + 1), system.lagrangian.entity_maps)
            objective = system.controls[j].restrict_both(forms.assemble_matrix(compiled))
            matrix.scale(trace_ratio(objective, product) or 1.0)
            objective.destroy()
        weighted.append(matrix)
    if len(weighted) == 1:
        return weighted[0]
    table = [[w if i == j else None for j in range(len(weighted))] for i, w in enumerate(weighted)]
    nest = PETSc.Mat().createNest(table, comm=system.comm)
    matrix = nest.convert("aij", PETSc.Mat())
    for item in (nest, *weighted):
        item.destroy()
    return matrix


def random_block(system: KKTSystem, columns: int, seed: int = 0, name: str = "optimise.low_rank") -> Array:
    """Return normal numbers for all controls, alike on every number of ranks, shape (owned, columns).

    Each belongs to the place and component of its degree of freedom; where several share both (discontinuous
    elements), they share the number. Collective: no.
    """
    parts = []
    for index, control in enumerate(system.controls):
        space = control.function.function_space
        if control.size == forms.owned_size(space):
            block_size = space.dofmap.index_map_bs
            places = space.tabulate_dof_coordinates()[: control.size // block_size]
            keys = np.repeat(np.round(places * _PLACES).astype(np.int64), block_size, axis=0)
            component = np.tile(np.arange(block_size), control.size // block_size)
        else:  # real numbers, all on rank 0
            keys, component = np.zeros((control.size, 3), dtype=np.int64), np.arange(control.size)
        keys = np.column_stack([keys, component, np.full(control.size, index)])
        parts.append(np.column_stack([normal_numbers(f"{name}.{j}", keys, seed) for j in range(columns)]))
    return np.concatenate(parts)


def randomised_eigenpairs(
    action: Action, metric: Metric, sample: Array, rank: int, *, threshold: float = 0.0
) -> Eigenpairs:
    """Return the leading eigenpairs of (H - R, R) by the randomised double pass; 2 actions a column of the sample.

    Parameters
    ----------
    action
        Applies H.
    metric
        R.
    sample
        Random block, shape (owned, rank + oversampling); 5 to 10 columns more than ``rank`` serve.
    rank
        Number of pairs, those of largest modulus.
    threshold
        Smaller moduli are left out.

    Raises
    ------
    InputError
        If the sample has fewer columns than ``rank``.

    Collective: yes.

    References
    ----------
    Halko, Martinsson and Tropp, SIAM Review 53 (2011) 217-288; Villa, Petra and Ghattas, ACM TOMS 47 (2021), alg. 5.
    """
    if not 1 <= rank <= sample.shape[1]:
        raise InputError(f"rank = {rank} eigenpairs from a sample of {sample.shape[1]} columns: take 1 to that many")
    image = metric.each(action, sample)
    _, basis = metric.orthonormal(metric.solve(image) - sample)
    pairs = rayleigh_ritz(metric, basis, metric.each(action, basis))
    return leading(pairs, rank, threshold)


def rayleigh_ritz(metric: Metric, block: Array, image: Array) -> Eigenpairs:
    """Return all Ritz pairs of (H - R, R) in the span of a block, from its image under H. Collective: yes."""
    change, basis = metric.orthonormal(block)
    projected = change.T @ metric.product(block, image) @ change
    values, turn = np.linalg.eigh(0.5 * (projected + projected.T))
    return Eigenpairs(values - 1.0, basis @ turn)


def leading(pairs: Eigenpairs, rank: int, threshold: float = 0.0) -> Eigenpairs:
    """Return the pairs of largest modulus, at most ``rank`` and none below a threshold. Collective: no."""
    order = np.argsort(-np.abs(pairs.values))[:rank]
    order = order[np.abs(pairs.values[order]) >= threshold]
    return Eigenpairs(pairs.values[order], pairs.vectors[:, order])


class LowRankPreconditioner:
    """y = R^-1 x - V diag(l / (1 + l)) V' x, symmetric positive definite: a context of PETSc's python PC.

    For `pdeopt.control.reduced_kkt.ReducedHessianPC`, or any other CG for H. Without eigenpairs it is R^-1.

    Parameters
    ----------
    metric
        R; kept, and not freed.
    pairs
        Eigenpairs to start with.

    Attributes
    ----------
    pairs
        The present ones.
    """

    def __init__(self, metric: Metric, pairs: Eigenpairs | None = None) -> None:
        self._metric = metric
        size = metric.matrix.getLocalSize()[0]
        self.pairs = pairs or Eigenpairs(np.empty(0), np.empty((size, 0)))

    @property
    def rank(self) -> int:
        """Number of eigenpairs."""
        return int(self.pairs.values.size)

    def prepare(self, hessian: ReducedHessian) -> None:
        """Nothing: the eigenpairs stay until others are given. Collective: no."""

    def apply(self, pc: PETSc.PC | None, covector: PETSc.Vec, out: PETSc.Vec) -> None:
        """Apply the approximate inverse. Collective: yes."""
        self._metric.solve_vector(covector, out)
        if self.rank:
            values = self.pairs.values
            weights = np.where(1.0 + values >= _SMALLEST, values / np.maximum(1.0 + values, _SMALLEST), 0.0)
            out.array[:] -= self.pairs.vectors @ (weights * self._metric.product(self.pairs.vectors, covector.array_r))

    def rotate(self, action: Action) -> None:
        """Renew eigenvalues and eigenvectors within their span for another H; one action a pair. Collective: yes."""
        if self.rank:
            self.pairs = rayleigh_ritz(self._metric, self.pairs.vectors, self._metric.each(action, self.pairs.vectors))

    def enrich(self, directions: Sequence[Array], images: Sequence[Array], rank: int) -> None:
        """Add the Ritz vectors of directions whose images under the present H are known, for instance from CG.

        That takes no action. The old vectors are taken as eigenvectors still: `rotate` first if H has changed much.

        Parameters
        ----------
        directions, images
            Vectors d and H d, shape (owned,) each.
        rank
            Largest number of pairs kept.

        Collective: yes.
        """
        if not directions:
            return
        block, image = np.column_stack(directions), np.column_stack(images)
        if self.rank:  # orthogonal to the old vectors in the metric, so that the projection is block diagonal
            old = self._metric.mult(self.pairs.vectors)
            part = self._metric.product(old, block)
            block = block - self.pairs.vectors @ part
            image = image - old @ ((1.0 + self.pairs.values)[:, None] * part)
        new = rayleigh_ritz(self._metric, block, image)
        joined = Eigenpairs(
            np.concatenate([self.pairs.values, new.values]), np.column_stack([self.pairs.vectors, new.vectors])
        )
        self.pairs = leading(joined, rank)
