"""A symmetric V-cycle on a lattice: operator-dependent coarsening, and incomplete factors as smoother."""

import dataclasses
from typing import Any

from mpi4py import MPI

import numpy as np

from pdeopt.conjugate_directions.grid_coarsening import coarsen
from pdeopt.conjugate_directions.grid_network import SmootherNetwork
from pdeopt.conjugate_directions.grid_slabs import Slabs
from pdeopt.conjugate_directions.grid_smoother import Factors
from pdeopt.conjugate_directions.grid_stencils import Array, Lattice
from pdeopt.report import InputError

__all__ = ["CycleSettings", "GridCycle"]


@dataclasses.dataclass(frozen=True)
class CycleSettings:
    """Constants of the cycle.

    Parameters
    ----------
    keep
        The incomplete factors drop couplings that leave the pattern of the matrix, and add moduli to the diagonal
        instead: of those of one sign all, as smooth errors do not feel it, of the others this share. With 1 the cycle
        is positive definite for every positive definite matrix; less is often faster, above all in 3D. Without positive
        couplings even 0 is safe, as the splitting is regular then. Negative shares go towards the factors that preserve
        row sums, -1 (Gustafsson, BIT 18, 1978): the fastest on anisotropy, and on other matrices indefinite.
    weights
        ``constant``: the share is ``keep`` everywhere. ``learned``: a network predicts it from the stencil of each
        point, on each level, with the weights that come with the package for lattices of so many dimensions; where none
        do, it is constant. Otherwise the path of a file of weights.
    visits
        How often a level corrects from the next one, at a time. 1 gives the V-cycle.
    least
        Coarse cycles reduce the error as if all eigenvalues of the cycle times the operator lay between this and 1: the
        steps of the visits have the lengths of Chebyshev's semi-iteration, as in the algebraic multilevel iteration of
        Axelsson and Vassilevski (Numer. Math. 56, 1989). 1 gives equal steps, the W-cycle; 0.3 overshoots more from
        level to level, and may end indefinite.
    coarsest
        Number of points from which on the inverse is computed outright.
    """

    keep: float = 1.0
    weights: str = "constant"
    visits: int = 2
    least: float = 0.5
    coarsest: int = 100

    def __post_init__(self) -> None:
        if not -1.0 <= self.keep <= 1.0:
            raise InputError(f"keep = {self.keep} of the grid's cycle: take a share between -1 and 1")
        if self.visits < 1:
            raise InputError(f"visits = {self.visits} of the grid's cycle: take at least 1")
        if not 0.0 < self.least <= 1.0:
            raise InputError(f"least = {self.least} of the grid's cycle: take a share of 1")
        if self.coarsest < 8:
            raise InputError(f"coarsest = {self.coarsest} of the grid's cycle: take at least 8 points")

    @classmethod
    def of(cls, dimension: int, weights: str = "constant") -> "CycleSettings":
        """Return the best constants in the plane or in space. Collective: no."""
        return cls(weights=weights) if dimension == 2 else cls(keep=0.0, weights=weights, visits=1)

    def lengths(self) -> Array:
        """Return the lengths of the steps of the visits, shape (visits,)."""
        if self.visits == 1:
            return np.ones(1)
        angles = np.pi * (np.arange(self.visits) + 0.5) / self.visits
        return 2.0 / (1.0 + self.least + (1.0 - self.least) * np.cos(angles))


class _Level:
    """A lattice, its operators, and arrays to work in: ``right``, ``solution`` and ``rest`` of a linear system."""

    def __init__(
        self,
        lattice: Lattice,
        stencils: Array,
        sums: Array,
        slabs: Slabs,
        settings: CycleSettings,
        network: SmootherNetwork | None,
    ) -> None:
        self.lattice, self.slabs, kernels = lattice, slabs, lattice.kernels
        self._kernels = kernels
        self.right, self.solution, self.rest = lattice.values(), lattice.values(), lattice.values()
        self._factors = Factors(lattice, stencils, slabs, network or settings.keep)
        self._stencils, self._sums = stencils, sums
        self._half_way, self._step = lattice.values(), lattice.values()
        self.coarse, self._weights, self.coarse_stencils = coarsen(lattice, stencils, slabs)
        self.lengths = settings.lengths().astype(kernels.dtype)
        self._before = lattice.values()

    def structure(self) -> dict[str, Any]:
        """Return what the kernels need to know of the level, while the level lives."""
        arrays = {
            "stencils": self._stencils, "sums": self._sums, "weights": self._weights,
            "factors": self._factors.values, "inverse": self._factors.inverse,
            "right": self.right, "solution": self.solution, "rest": self.rest, "before": self._before,
            "lengths": self.lengths,
        }  # fmt: skip
        pointers = {name: self._kernels.pointer(array) for name, array in arrays.items()}
        return {"lattice": self.lattice.c, "visits": len(self.lengths), **pointers}

    def smooth(self, again: bool) -> None:
        """Smooth the solution, from zero unless ``again``. Collective: yes."""
        if again:
            self.subtract()
            self._factors.solve(self.rest, self._half_way, self._step, self.solution)
        else:
            self._factors.solve(self.right, self._half_way, self.solution)

    def subtract(self) -> None:
        """Compute what is left of the right-hand side. Collective: yes."""
        self.slabs.exchange(self.solution)
        self._residual(self.right)

    def _residual(self, right: Array | None) -> None:
        pointer = self._kernels.pointer
        given = self._kernels.null if right is None else pointer(right)
        operator, arrays = map(pointer, (self._stencils, self._sums)), map(pointer, (self.solution, self.rest))
        self._kernels.library.residual(self.lattice.c, 0, self.lattice.shape[0], *operator, given, *arrays)

    def coarse_sums(self) -> Array:
        """Return the row sums of the coarse stencils: P^T A P times one. Collective: yes."""
        self.interpolate(np.ones(self.coarse.padded, dtype=self.solution.dtype))
        # Weights that should add up to one do so but for rounding, which strong couplings would blow up.
        rounded = np.abs(self.solution - 1.0) < 16.0 * np.finfo(self.solution.dtype).eps
        self.solution[rounded] = 1.0
        self.slabs.exchange(self.solution)
        self._residual(None)
        sums = self.coarse.values()
        self.restrict(sums)
        self.solution[...] = 0.0
        return sums

    def restrict(self, right: Array) -> None:
        """Set the next level's right-hand side. Collective: yes."""
        self.slabs.exchange(self.rest)
        self._transfer("restrict_to", self.coarse.shape[0], self.rest, right)

    def interpolate(self, solution: Array) -> None:
        """Add the next level's solution. Collective: yes."""
        self.slabs.halved().exchange(solution)
        self._transfer("interpolate", self.lattice.shape[0], solution, self.solution)

    def _transfer(self, name: str, layers: int, *arrays: Array) -> None:
        pointers = map(self._kernels.pointer, (self._weights, *arrays))
        getattr(self._kernels.library, name)(self.lattice.c, self.coarse.c, 0, layers, *pointers)


class GridCycle:
    r"""One multigrid cycle: a symmetric linear operator that approximates a positive definite matrix's inverse.

    Each smoothing step takes the residual through incomplete factors :math:`(D + L) D^{-1} (D + L^T)`, which are exact
    for couplings along one axis or diagonal of the lattice, however strong; each level is smoothed once before and once
    after its correction. The first few levels are cut over the ranks; below, where messages would cost more than they
    save, every rank has the whole lattice and does the same.

    Parameters
    ----------
    lattice, stencils, sums
        This rank's slab, the matrix on it, shape (5 or 14, padded shape), without the neighbours' values, and its row
        sums.
    slabs
        How the lattice is cut.
    depth
        How often the slabs can be halved.
    settings
        Constants of the cycle, by default those of `CycleSettings.of`.
    network
        What predicts the shares that are kept, instead of the constant.

    Attributes
    ----------
    right, solution
        Where `apply` finds its argument and leaves its answer, padded shape.

    Collective: yes.
    """

    def __init__(
        self,
        lattice: Lattice,
        stencils: Array,
        sums: Array,
        slabs: Slabs,
        depth: int,
        settings: CycleSettings | None = None,
        network: SmootherNetwork | None = None,
    ) -> None:
        settings = settings or CycleSettings.of(len(lattice.shape))
        self._levels: list[_Level] = []
        slabs.exchange(stencils, axis=1)
        while slabs.whole(lattice).points > settings.coarsest and (depth > 0 or not slabs.cut):
            level = _Level(lattice, stencils, sums, slabs, settings, network)
            self._levels.append(level)
            lattice, stencils, sums = level.coarse, level.coarse_stencils, level.coarse_sums()
            slabs, depth = slabs.halved(), depth - 1
        self._slabs, kernels = slabs, lattice.kernels
        self._library = kernels.library
        right, solution = lattice.values(), lattice.values()
        self._rights = [*(level.right for level in self._levels), right]
        self._solutions = [*(level.solution for level in self._levels), solution]
        self.right, self.solution = self._rights[0], self._solutions[0]
        if slabs.cut:
            alone = Slabs(MPI.COMM_SELF, slabs.starts[[0, -1]])
            gathered = slabs.gather(stencils, axis=1), slabs.gather(sums)
            self._whole = GridCycle(slabs.whole(lattice), *gathered, alone, 0, settings, network)
            return
        self._inverse = kernels.pointer(np.ascontiguousarray(_invert(lattice, stencils, sums), dtype=kernels.dtype))
        last = {"lattice": lattice.c, "right": kernels.pointer(right), "solution": kernels.pointer(solution)}
        self._described = [*(level.structure() for level in self._levels), last]  # owns the pointers
        self._structures = kernels.new("Level[]", self._described)

    def apply(self) -> None:
        """Replace the solution by the cycle's answer to the right-hand side. Collective: yes."""
        self._descend(0, again=False)

    def _descend(self, number: int, again: bool) -> None:
        if not self._slabs.cut:
            self._library.cycle(self._structures, len(self._structures), self._inverse, again)
        elif number == len(self._levels):
            self._whole.right[...] = self._slabs.gather(self._rights[number])
            if again:
                self._whole.solution[...] = self._slabs.gather(self._solutions[number])
            self._whole._descend(0, again)
            self._solutions[number][...] = self._slabs.part(self._whole.solution)
        else:
            level = self._levels[number]
            level.smooth(again)
            level.subtract()
            level.restrict(self._rights[number + 1])
            solution = self._solutions[number + 1]
            for visit, length in enumerate(level.lengths):
                before = solution.copy() if visit else 0.0
                self._descend(number + 1, again=visit > 0)
                solution[...] = before + length * (solution - before)
            level.interpolate(solution)
            level.smooth(again=True)


def _dense(lattice: Lattice, stencils: Array, sums: Array) -> Array:
    """Return the matrix of stencils on a small lattice, in double precision."""
    number = np.full(lattice.padded, -1)
    lattice.inner(number)[...] = np.arange(lattice.points).reshape(lattice.shape)
    matrix = np.zeros((lattice.points, lattice.points))
    rows = lattice.inner(number).ravel()
    for offset, values in zip(lattice.halves[1:], stencils[1:], strict=True):
        columns = lattice.inner(np.roll(number, tuple(-o for o in offset), axis=tuple(range(number.ndim)))).ravel()
        inside = columns >= 0
        entries = lattice.inner(values).ravel()[inside]
        matrix[rows[inside], columns[inside]] = matrix[columns[inside], rows[inside]] = entries
    # In double precision the sums are exact still.
    np.fill_diagonal(matrix, lattice.inner(sums).ravel() - matrix.sum(axis=1))
    return matrix


def _invert(lattice: Lattice, stencils: Array, sums: Array) -> Array:
    """Return the inverse of a small lattice's matrix, on all but the null space that pure Neumann conditions leave."""
    matrix = _dense(lattice, stencils, sums)
    if not np.isfinite(matrix).all():
        return np.full_like(matrix, np.nan)  # PETSc stops at NaN and says so
    scale = 1.0 / np.sqrt(np.maximum(np.diag(matrix), np.finfo(np.float32).tiny))
    # Thanks to the row sums a zero eigenvalue is one to far more than single precision, and an island's is kept.
    least = 1e-11
    return scale[:, None] * np.linalg.pinv(scale[:, None] * matrix * scale, rcond=least, hermitian=True) * scale
