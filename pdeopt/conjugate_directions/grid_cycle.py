"""A symmetric V-cycle on a lattice: operator-dependent coarsening, and incomplete factors as smoother."""

import dataclasses

from mpi4py import MPI

import numpy as np

from pdeopt.conjugate_directions.grid_coarsening import coarsen
from pdeopt.conjugate_directions.grid_slabs import Slabs
from pdeopt.conjugate_directions.grid_stencils import Array, Lattice
from pdeopt.report import InputError

__all__ = ["CycleSettings", "GridCycle"]


@dataclasses.dataclass(frozen=True)
class CycleSettings:
    """Constants of the cycle.

    Parameters
    ----------
    keep
        Share of what the incomplete factors drop that goes to the diagonal, between 0 and 1. With 1 the cycle is
        positive definite for every positive definite matrix.
    coarsest
        Number of points from which on the inverse is computed outright.
    """

    keep: float = 1.0
    coarsest: int = 100

    def __post_init__(self) -> None:
        if not 0.0 <= self.keep <= 1.0:
            raise InputError(f"keep = {self.keep} of the grid's cycle: take a share between 0 and 1")
        if self.coarsest < 8:
            raise InputError(f"coarsest = {self.coarsest} of the grid's cycle: take at least 8 points")


class _Level:
    """A lattice, its operators, and arrays to work in: ``right``, ``solution`` and ``rest`` of a linear system."""

    def __init__(self, lattice: Lattice, stencils: Array, slabs: Slabs, keep: float) -> None:
        self.lattice, self.slabs = lattice, slabs
        self._library, pointer = lattice.kernels.library, lattice.kernels.pointer
        self.right, self.solution, self.rest = lattice.values(), lattice.values(), lattice.values()
        factors, inverse = np.zeros_like(stencils), lattice.values()
        self._library.factorise(
            lattice.c, pointer(stencils), pointer(self._diagonal(stencils)), keep, pointer(factors), pointer(inverse)
        )
        self._system = [pointer(a) for a in (stencils, self.right, self.solution, self.rest)]
        self._factors = [pointer(a) for a in (factors, inverse)]
        self._scratch = [pointer(a) for a in (lattice.values(), lattice.values())]

    def _diagonal(self, stencils: Array) -> Array:
        """Add the moduli of the couplings that a cut severs: what the ranks invert then stays above the operator."""
        if not self.slabs.cut:
            return stencils[0]
        diagonal = stencils[0].copy()
        for offset, values in zip(self.lattice.halves, stencils, strict=True):
            if offset[0]:
                diagonal[-2] += np.abs(values[-2])
                # Of the layer below, whose points couple with those of the first layer.
                diagonal[1] += np.abs(np.roll(values[0], offset[1:], axis=tuple(range(values.ndim - 1))))
        return diagonal

    def presmooth(self) -> None:
        """Set the solution to the smoother's answer. Collective: yes."""
        _, right, solution, _ = self._system
        null = self.lattice.kernels.null
        if self.slabs.cut:  # each rank smooths within its slab
            self.solution[[0, -1]] = 0.0
        self._library.solve_factors(self.lattice.c, *self._factors, right, self._scratch[0], solution, null)
        self._subtract()

    def _subtract(self) -> None:
        """Compute what is left of the right-hand side."""
        self.slabs.exchange(self.solution)
        self._library.residual(self.lattice.c, *self._system)

    def postsmooth(self) -> None:
        """Add the smoother's answer to what is left. Collective: yes."""
        self._subtract()
        _, _, solution, rest = self._system
        self._library.solve_factors(self.lattice.c, *self._factors, rest, *self._scratch, solution)


class GridCycle:
    r"""One V-cycle, a symmetric linear operator that approximates the inverse of a symmetric positive definite one.

    Each smoothing step takes the residual through incomplete factors :math:`(D + L) D^{-1} (D + L^T)`, which are exact
    for couplings along one axis or diagonal of the lattice, however strong; each level is smoothed once before and once
    after its correction. On several ranks each one smooths within its slab. From where slabs can no longer be halved,
    every rank has the whole lattice and does the same.

    Parameters
    ----------
    lattice, stencils
        This rank's slab and the matrix on it, shape (5 or 14, padded shape), without the neighbours' values.
    slabs
        How the lattice is cut.
    depth
        How often the slabs can be halved.
    settings
        Constants of the cycle.

    Attributes
    ----------
    right, solution
        Where `apply` finds its argument and leaves its answer, padded shape.

    Collective: yes.
    """

    def __init__(
        self, lattice: Lattice, stencils: Array, slabs: Slabs, depth: int, settings: CycleSettings | None = None
    ) -> None:
        settings = settings or CycleSettings()
        self._levels: list[_Level] = []
        self._weights: list[Array] = []
        self._whole: GridCycle | None = None
        slabs.exchange(stencils, axis=1)
        while slabs.whole(lattice).points > settings.coarsest and (depth > 0 or not slabs.cut):
            self._levels.append(_Level(lattice, stencils, slabs, settings.keep))
            lattice, weights, stencils = coarsen(lattice, stencils, slabs)
            self._weights.append(weights)
            slabs, depth = slabs.halved(), depth - 1
        self._coarsest, self._slabs = lattice, slabs
        self._right, self._solution = lattice.values(), lattice.values()
        rights, solutions = [level.right for level in self._levels], [level.solution for level in self._levels]
        lattices = [*(level.lattice for level in self._levels), lattice]
        rights.append(self._right)
        solutions.append(self._solution)
        self.right, self.solution = rights[0], solutions[0]
        # Of each level: itself, the weights below it, and the lattice, right-hand side and solution of the next.
        self._steps = list(zip(self._levels, self._weights, lattices[1:], rights[1:], solutions[1:], strict=True))
        if slabs.cut:
            alone = Slabs(MPI.COMM_SELF, slabs.starts[[0, -1]])
            self._whole = GridCycle(slabs.whole(lattice), slabs.gather(stencils, axis=1), alone, 0, settings)
        else:
            dense = _dense(lattice, stencils)
            # Singular for pure Neumann conditions.
            self._inverse = np.linalg.pinv(dense, rcond=1e-10, hermitian=True).astype(lattice.kernels.dtype)

    def apply(self) -> None:
        """Replace the solution by the cycle's answer to the right-hand side. Collective: yes."""
        for level, weights, coarse, right, _ in self._steps:
            level.presmooth()
            level.slabs.exchange(level.rest)
            self._transfer("restrict_to", level, coarse, weights, level.rest, right)
        self._solve_coarsest()
        for level, weights, coarse, _, solution in reversed(self._steps):
            level.slabs.halved().exchange(solution)
            self._transfer("interpolate", level, coarse, weights, solution, level.solution)
            level.postsmooth()

    def _transfer(self, name: str, level: _Level, coarse: Lattice, weights: Array, start: Array, end: Array) -> None:
        pointer = level.lattice.kernels.pointer
        getattr(level.lattice.kernels.library, name)(
            level.lattice.c, coarse.c, pointer(weights), pointer(start), pointer(end)
        )

    def _solve_coarsest(self) -> None:
        if self._whole is not None:
            self._whole.right[...] = self._slabs.gather(self._right)
            self._whole.apply()
            self._solution[...] = self._slabs.part(self._whole.solution)
            return
        inner = self._coarsest.inner
        inner(self._solution)[...] = (self._inverse @ inner(self._right).ravel()).reshape(self._coarsest.shape)


def _dense(lattice: Lattice, stencils: Array) -> Array:
    """Return the matrix of stencils on a small lattice, in double precision."""
    number = np.full(lattice.padded, -1)
    lattice.inner(number)[...] = np.arange(lattice.points).reshape(lattice.shape)
    matrix = np.zeros((lattice.points, lattice.points))
    rows = lattice.inner(number).ravel()
    for offset, values in zip(lattice.halves, stencils, strict=True):
        columns = lattice.inner(np.roll(number, tuple(-o for o in offset), axis=tuple(range(number.ndim)))).ravel()
        inside = columns >= 0
        entries = lattice.inner(values).ravel()[inside]
        matrix[rows[inside], columns[inside]] = matrix[columns[inside], rows[inside]] = entries
    return matrix
