"""Empirical cubature: few cells and positive weights that integrate a reduced residual as all cells do."""

import dataclasses
from collections.abc import Iterable
from typing import Any, Protocol

from mpi4py import MPI

import dolfinx
import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import fem

from pdeopt.parallel import on_root
from pdeopt.reduced_order.basis import Basis
from pdeopt.reduced_order.compression import CompressedIntegrands
from pdeopt.reduced_order.inner_product import Array
from pdeopt.reduced_order.integrands import integrand_blocks
from pdeopt.reduced_order.nonnegative import FitOutcome, NonnegativeFit
from pdeopt.report import ConvergenceError, InputError

# Cells enter in blocks of this part of those chosen so far, but of so many at least, from so many times as many
# candidates, which are the best of so many times as many groups of cells.
_GROWTH, _LEAST = 0.2, 8
_POOL, _GROUPS = 2, 2
_BEYOND = 0.7


@dataclasses.dataclass(frozen=True, eq=False)
class Cubature:
    """Cells with weights: the integral over all cells is replaced by the weighted sum of those over few.

    Parameters
    ----------
    cells
        Indices of the cells in the mesh's input (``mesh.topology.original_cell_index``), rising, the same on all ranks.
    weights
        Factor of each cell's integrals, > 0, shape (n,).
    error
        Root mean square over the training states of the error in the reduced residual, relative to the internal forces.

    Raises
    ------
    InputError
        If the cells are not rising or the weights not positive.
    """

    cells: npt.NDArray[np.int64]
    weights: Array
    error: float

    def __post_init__(self) -> None:
        if self.cells.shape != self.weights.shape or np.any(np.diff(self.cells) <= 0):
            raise InputError(
                f"a cubature with {self.cells.shape} cells and {self.weights.shape} weights: give one weight per cell "
                "and cells in rising order without repetition"
            )
        if not np.all(np.isfinite(self.weights) & (self.weights > 0.0)):
            raise InputError("a cubature's weights must be positive: leave out the other cells")

    @property
    def size(self) -> int:
        """Number of cells."""
        return int(self.cells.size)


class Integrated(Protocol):
    """What a cubature has to integrate, such as `CompressedIntegrands`.

    Attributes
    ----------
    mesh, comm
        The mesh and its communicator.
    tolerance
        The smallest error that a cubature may be asked for.
    volumes, total_volume
        Measure of each owned cell, and of all.
    """

    mesh: dolfinx.mesh.Mesh
    comm: MPI.Comm
    tolerance: float
    volumes: Array
    total_volume: float

    def columns(self, inside: npt.NDArray[np.bool_]) -> tuple[Array, Array]:
        """Return A in the given owned cells, shape (k, n), and this rank's part of its sum over all cells, shape (k,).

        Weights w have the error |A (w - 1)|. Collective: yes.
        """


def all_cells(mesh: dolfinx.mesh.Mesh) -> Cubature:
    """Return the cubature without reduction: all cells with weight one. Collective: yes."""
    cells = np.sort(np.concatenate(mesh.comm.allgather(original_cells(mesh))))
    return Cubature(cells, np.ones(cells.size), 0.0)


def select_cells(
    integrands: Integrated,
    tolerance: float | None = None,
    *,
    block: int | None = None,
    start: Cubature | None = None,
    among: npt.NDArray[np.int64] | None = None,
) -> Cubature:
    """Choose cells and weights w >= 0 with |A (w - 1)| <= tolerance and the exact volume, sum w_c |c| = |domain|.

    Non-negative orthogonal matching pursuit: the cells whose columns lower the error most steeply enter, then all
    weights are fitted anew by non-negative least squares (Hernandez, Caicedo and Ferrer 2017 for one cell at a time).
    Here the search over all cells gives a pool of candidates, from which a block of cells, a fifth of those chosen so
    far, enters one by one with exact fits before all cells are searched again. In the end those cells leave whose
    absence costs least. Equal merits are told apart by the original index, so that the choice does not depend on the
    number of ranks.

    Parameters
    ----------
    integrands
        The training states' integrands.
    tolerance
        Relative error in the reduced residual; by default, and at least, that of the integrands' compression.
    block
        Largest number of cells between two searches, unlimited by default; 1 is the plain method.
    start
        A cubature of the same mesh to start from, for integrands of further states or modes.
    among
        Original indices of the cells to choose from; all by default.

    Raises
    ------
    InputError
        If the tolerance is below that of the compression.
    ConvergenceError
        If no cell lowers the error any more and it is above the tolerance.

    Collective: yes.
    """
    tolerance = integrands.tolerance if tolerance is None else tolerance
    if tolerance < integrands.tolerance:
        raise InputError(
            f"tolerance = {tolerance:g} is below that of the compressed integrands, {integrands.tolerance:g}: "
            "compress them anew for it"
        )
    pool = _Candidates(integrands, among)
    found = pool.first() if start is None else pool.take(start.cells, start.weights)
    # Beyond the tolerance first, and back by leaving out what matters least: some 6 % fewer cells. Not so from a start:
    # that would take most of the time of an update.
    goal = tolerance if start is not None else _BEYOND * tolerance
    while found.error > goal:
        many = max(_LEAST, int(_GROWTH * found.labels.size))
        before = found.error
        found = pool.improve(found, many if block is None else min(block, many), goal)
        if not found.error < before:
            if found.error <= tolerance:
                break
            raise ConvergenceError(
                f"no cell lowers the cubature's error of {before:.2e} any more, and {tolerance:.2e} was asked for: "
                "raise the tolerance"
            )
    if start is None:
        found = pool.prune(tolerance)
    order = np.argsort(found.labels)
    return Cubature(found.labels[order], found.weights[order], found.error)


def empirical_cubature(
    residual: ufl.Form,
    u: fem.Function[Any],
    basis: Basis,
    states: Iterable[Any],
    tolerance: float,
    *,
    jacobian: ufl.Form | None = None,
) -> Cubature:
    """Return the cubature of a residual from training states.

    Parameters
    ----------
    residual, u, basis, jacobian
        As for `Integrands`.
    states
        Anything to iterate over that sets ``u`` and all other coefficients and constants before it yields.
    tolerance
        As for `select_cells`.

    Collective: yes.
    """
    integrands = CompressedIntegrands(basis.space.mesh, tolerance)
    for blocks in integrand_blocks(residual, u, basis, states, jacobian):
        integrands.append(*blocks)
    return select_cells(integrands)


class _Candidates:
    """The columns of all cells, distributed as the cells are.

    Rank 0 alone fits the weights and hands them on: another machine's rounding must not let the ranks choose
    differently.
    """

    def __init__(self, integrands: Integrated, among: npt.NDArray[np.int64] | None) -> None:
        self.comm = integrands.comm
        original = original_cells(integrands.mesh)
        inside = np.ones(original.size, dtype=bool) if among is None else np.isin(original, among)
        self.rows, sums = integrands.columns(inside)
        self.volumes, self.original = integrands.volumes[inside], original[inside]
        self.total = integrands.total_volume
        self.target = np.empty_like(sums, order="C")
        self.comm.Allreduce(np.ascontiguousarray(sums), self.target)
        squares = np.einsum("kc,kc->c", self.rows, self.rows) + (self.volumes / self.total) ** 2
        self.norms = np.sqrt(squares)
        self.all_cells = integrands.mesh.topology.index_map(integrands.mesh.topology.dim).size_global
        self._fit = NonnegativeFit(self.target, self.total)

    def first(self) -> FitOutcome:
        """Let the cell enter that does best alone. Collective: yes."""
        scale = self.total / self.volumes
        squares = np.einsum("kc,kc->c", self.rows, self.rows)
        cell = self._largest(2.0 * scale * (self.target @ self.rows) - scale**2 * squares, 1)
        return self.take(cell, np.ones(1))

    def take(self, cells: npt.NDArray[np.int64], weights: Array) -> FitOutcome:
        """Let cells enter all at once, with weights to start from. Collective: yes."""
        self._offer(cells)

        def fit() -> FitOutcome:
            self._fit.take_all(weights)
            return self._fit.outcome

        return on_root(self.comm, fit)

    def improve(self, found: FitOutcome, count: int, tolerance: float) -> FitOutcome:
        """Let so many of the cells with steep descent enter, one after another. Collective: yes."""
        slopes = (found.residual @ self.rows + found.multiplier * self.volumes) / self.norms
        slopes[slopes <= 1e-12 * found.error] = -np.inf
        slopes[np.isin(self.original, found.labels)] = -np.inf
        self._offer(self._largest(slopes, _POOL * count if count > 1 else 1))

        def fit() -> FitOutcome:
            self._fit.improve(count, tolerance)
            return self._fit.outcome

        return on_root(self.comm, fit)

    def prune(self, tolerance: float) -> FitOutcome:
        """Let cells leave as long as the error keeps the tolerance. Collective: yes."""

        def fit() -> FitOutcome:
            self._fit.prune(tolerance)
            return self._fit.outcome

        return on_root(self.comm, fit)

    def _offer(self, cells: npt.NDArray[np.int64]) -> None:
        local = np.zeros((self.target.size + 1, cells.size))
        if cells.size:
            order = np.argsort(cells)
            place = order[np.minimum(np.searchsorted(cells, self.original, sorter=order), cells.size - 1)]
            here = cells[place] == self.original
            local[:-1, place[here]] = self.rows[:, here]
            local[-1, place[here]] = self.volumes[here]
        packed = np.empty_like(local)
        self.comm.Reduce(local, packed)

        def offer() -> None:
            if np.any(packed[-1] == 0.0):
                raise InputError("the cubature to start from has cells that this mesh lacks: choose anew")
            self._fit.offer(cells, packed[:-1], packed[-1])

        on_root(self.comm, offer)

    def _largest(self, merits: Array, count: int) -> npt.NDArray[np.int64]:
        """Return cells with the largest merits, at most one of each group of cells that follow each other in the input.

        Neighbours have nearly the same integrands: where one has entered, the others are of no use. Merits equal to
        nine digits are told apart by the original index. Collective: yes.
        """
        scale = np.array(np.abs(merits[np.isfinite(merits)]).max(initial=0.0))
        self.comm.Allreduce(MPI.IN_PLACE, scale, MPI.MAX)
        rounded = np.round(merits / max(float(scale), np.finfo(float).tiny), 9)
        finite = np.flatnonzero(np.isfinite(rounded))
        groups = self.original * (_GROUPS * count) // self.all_cells if count > 1 else np.zeros_like(self.original)
        local = finite[_first_of_each(groups[finite], rounded[finite], self.original[finite])]
        gathered = self.comm.allgather((groups[local], rounded[local], self.original[local]))
        groups, values, cells = (np.concatenate(parts) for parts in zip(*gathered, strict=True))
        chosen = _first_of_each(groups, values, cells)
        return cells[chosen][np.lexsort((cells[chosen], -values[chosen]))][:count]


def _first_of_each(groups: npt.NDArray[np.int64], values: Array, cells: npt.NDArray[np.int64]) -> npt.NDArray[np.intp]:
    """Return where each group has its largest value, the lowest cell where there are several."""
    order = np.lexsort((cells, -values, groups))
    return order[np.unique(groups[order], return_index=True)[1]]


def original_cells(mesh: dolfinx.mesh.Mesh) -> npt.NDArray[np.int64]:
    """Return the index in the mesh's input of each owned cell, shape (owned cells,). Collective: no.

    Raises
    ------
    InputError
        If the mesh is a submesh, which has no input of its own.
    """
    owned = mesh.topology.index_map(mesh.topology.dim).size_local
    try:
        return np.asarray(mesh.topology.original_cell_index[:owned], dtype=np.int64)
    except RuntimeError as error:  # what DOLFINx says of it would mislead
        raise InputError(
            "a cubature's cells are told apart by their place in the mesh's input, and a submesh has none: build the "
            "model on a mesh that was generated or read"
        ) from error
