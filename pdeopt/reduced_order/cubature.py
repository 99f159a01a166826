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

# Cells are added in blocks of this part of those chosen so far.
_GROWTH = 0.1


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


class Integrable(Protocol):
    """What a cubature has to integrate: `CompressedIntegrands`, or `InternalForces` that take further modes.

    Attributes
    ----------
    mesh, comm, tolerance, volumes, total_volume
        As in `CompressedIntegrands`.
    """

    mesh: dolfinx.mesh.Mesh
    comm: MPI.Comm
    tolerance: float
    volumes: Array
    total_volume: float

    def rows(self) -> Array:
        """Return A, shape (k, owned cells). Collective: yes."""


def all_cells(mesh: dolfinx.mesh.Mesh) -> Cubature:
    """Return the cubature without reduction: all cells with weight one. Collective: yes."""
    cells = np.sort(np.concatenate(mesh.comm.allgather(_original_cells(mesh))))
    return Cubature(cells, np.ones(cells.size), 0.0)


def select_cells(
    integrands: Integrable,
    tolerance: float | None = None,
    *,
    block: int | None = None,
    start: Cubature | None = None,
    among: npt.NDArray[np.int64] | None = None,
) -> Cubature:
    """Choose cells and weights w >= 0 with |A (w - 1)| <= tolerance and the exact volume, sum w_c |c| = |domain|.

    Non-negative orthogonal matching pursuit: the cells whose columns lower the error most steeply enter, then all
    weights are fitted anew by non-negative least squares (Hernandez, Caicedo and Ferrer 2017 for one cell at a time).
    Here they enter in blocks, a tenth of those chosen so far; the last block is halved until as few as possible of it
    reach the tolerance. Equal merits are told apart by the original index, so that the choice does not depend on the
    number of ranks.

    Parameters
    ----------
    integrands
        The training states' integrands.
    tolerance
        Relative error in the reduced residual; by default, and at least, that of the integrands' compression.
    block
        Largest number of cells that enter at once, unlimited by default; 1 is the plain method.
    start
        A cubature to start from, for integrands that have changed a little.
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
    chosen = pool.extend(pool.nothing(), pool.first() if start is None else start.cells)
    while (error := chosen.outcome.error) > tolerance:
        wanted = max(1, int(_GROWTH * chosen.outcome.labels.size))
        cells = pool.best(chosen.outcome, wanted if block is None else min(block, wanted))
        if cells.size == 0:
            raise ConvergenceError(
                f"no cell lowers the cubature's error of {error:.2e} any more, and {tolerance:.2e} was asked for: "
                "raise the tolerance"
            )
        chosen = _shortest(pool, chosen, cells, tolerance)
    order = np.argsort(chosen.outcome.labels)
    return Cubature(chosen.outcome.labels[order], chosen.outcome.weights[order], chosen.outcome.error)


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


@dataclasses.dataclass(frozen=True, eq=False)
class _Chosen:
    """What is chosen so far, known to all ranks, and the fit with its columns, which rank 0 has alone.

    One rank fits and hands on: another machine's rounding must not let the ranks choose differently.
    """

    outcome: FitOutcome
    fit: NonnegativeFit | None


def _shortest(pool: "_Candidates", chosen: _Chosen, cells: npt.NDArray[np.int64], tolerance: float) -> _Chosen:
    """Let cells enter; if all of them reach the tolerance, look for the fewest that do."""
    extended = pool.extend(chosen, cells)
    fewest, most = 0, cells.size
    while extended.outcome.error <= tolerance and most - fewest > 1:
        middle = (fewest + most) // 2
        candidate = pool.extend(chosen, cells[:middle])
        if candidate.outcome.error <= tolerance:
            extended, most = candidate, middle
        else:
            fewest = middle
    return extended


class _Candidates:
    """The columns of all cells, distributed as the cells are."""

    def __init__(self, integrands: Integrable, among: npt.NDArray[np.int64] | None) -> None:
        self.comm = integrands.comm
        self.rows = integrands.rows()
        self.volumes, self.total = integrands.volumes, integrands.total_volume
        self.original = _original_cells(integrands.mesh)
        self.target = self.rows.sum(axis=1)
        self.comm.Allreduce(MPI.IN_PLACE, self.target)
        if among is not None:
            inside = np.isin(self.original, among)
            self.rows, self.volumes, self.original = self.rows[:, inside], self.volumes[inside], self.original[inside]
        squares = np.einsum("kc,kc->c", self.rows, self.rows) + (self.volumes / self.total) ** 2
        self.norms = np.sqrt(squares)

    def first(self) -> npt.NDArray[np.int64]:
        """Return the cell that does best alone. Collective: yes."""
        alone = self.rows * (self.total / self.volumes) - self.target[:, None]
        return self._largest(-np.linalg.norm(alone, axis=0), 1)

    def best(self, outcome: FitOutcome, count: int) -> npt.NDArray[np.int64]:
        """Return at most so many cells that lower the error, those with the steepest descent first. Collective: yes."""
        slopes = (outcome.residual @ self.rows + outcome.multiplier * self.volumes) / self.norms
        slopes[slopes <= 1e-12 * outcome.error] = -np.inf
        slopes[np.isin(self.original, outcome.labels)] = -np.inf
        return self._largest(slopes, count)

    def nothing(self) -> _Chosen:
        """Return the empty choice. Collective: no."""
        fit = NonnegativeFit(self.target, self.total)
        return _Chosen(fit.outcome, fit)

    def extend(self, chosen: _Chosen, cells: npt.NDArray[np.int64]) -> _Chosen:
        """Let cells enter that any rank may own. Collective: yes."""
        local = np.zeros((self.target.size + 1, cells.size))
        order = np.argsort(cells)
        place = order[np.minimum(np.searchsorted(cells, self.original, sorter=order), cells.size - 1)]
        here = cells[place] == self.original
        local[:-1, place[here]] = self.rows[:, here]
        local[-1, place[here]] = self.volumes[here]
        packed = np.empty_like(local)
        self.comm.Reduce(local, packed)
        fits: list[NonnegativeFit] = []

        def fit() -> FitOutcome:
            if np.any(packed[-1] == 0.0):
                raise InputError("the cubature to start from has cells that this mesh lacks: choose anew")
            assert chosen.fit is not None
            fits.append(chosen.fit.extended(cells, packed[:-1], packed[-1]))
            return fits[0].outcome

        return _Chosen(on_root(self.comm, fit), fits[0] if fits else None)

    def _largest(self, merits: Array, count: int) -> npt.NDArray[np.int64]:
        """Return the cells with the largest merits, those equal to nine digits by their original index."""
        scale = np.array(np.abs(merits[np.isfinite(merits)]).max(initial=0.0))
        self.comm.Allreduce(MPI.IN_PLACE, scale, MPI.MAX)
        rounded = np.round(merits / max(float(scale), np.finfo(float).tiny), 9)
        local = np.flatnonzero(np.isfinite(rounded))
        local = local[np.lexsort((self.original[local], -rounded[local]))][:count]
        gathered = self.comm.allgather((rounded[local], self.original[local]))
        values = np.concatenate([pair[0] for pair in gathered])
        cells = np.concatenate([pair[1] for pair in gathered])
        return cells[np.lexsort((cells, -values))][:count]


def _original_cells(mesh: dolfinx.mesh.Mesh) -> npt.NDArray[np.int64]:
    owned = mesh.topology.index_map(mesh.topology.dim).size_local
    return np.asarray(mesh.topology.original_cell_index[:owned], dtype=np.int64)
