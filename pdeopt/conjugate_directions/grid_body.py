"""Multigrid for matrices whose unknowns lie on a lattice: from PETSc's vectors to the cycle and back."""

import itertools

from petsc4py import PETSc

import numpy as np
import numpy.typing as npt

from pdeopt.conjugate_directions.grid_cycle import CycleSettings, GridCycle
from pdeopt.conjugate_directions.grid_kernels import load_kernels
from pdeopt.conjugate_directions.grid_layout import GridLayout
from pdeopt.conjugate_directions.grid_network import SmootherNetwork, load_network
from pdeopt.conjugate_directions.grid_slabs import Slabs
from pdeopt.conjugate_directions.grid_stencils import Array, Lattice

__all__ = ["GridMultigrid"]

# Couplings along diagonals, as a share of the matrix's diagonal, that are worth another direction of the lattice.
_WORTH = 0.01


class GridMultigrid:
    """A symmetric positive definite preconditioner for linear elements on a structured mesh.

    Works in float32 by default: that costs the outer iteration nothing down to relative residuals of 1e-8, but the
    operator is symmetric only to rounding.

    The directions of the lattice follow the matrix: incomplete factors in lexicographical order smooth well where
    couplings are strong along diagonals on which both coordinates grow, and badly on the others. Where all diagonals
    are weak, directions are against the coordinates but for the slowest: on DOLFINx's triangles what the factors would
    drop then falls on the diagonals that the mesh has.

    Parameters
    ----------
    matrix
        Symmetric positive definite ``aij`` matrix, see `GridLayout`.
    coordinates
        Places of the owned unknowns, shape (rows, 2 or 3), in any unit of length.
    settings
        Constants of the cycle, by default those of `CycleSettings.of`.
    dtype
        ``float32`` or ``float64``.
    turning
        Whether the directions follow the matrix.
    weights
        Of the settings, where none are given.

    Raises
    ------
    InputError
        If the unknowns do not lie on a lattice, or a file of weights cannot be used.
    PdeoptError
        If the C compiler fails.

    Collective: yes.
    """

    name = "multigrid on a lattice"

    def __init__(
        self,
        matrix: PETSc.Mat,
        coordinates: npt.NDArray[np.float64],
        settings: CycleSettings | None = None,
        dtype: npt.DTypeLike = np.float32,
        turning: bool = True,
        weights: str = "constant",
    ) -> None:
        self._kernels = load_kernels(matrix.getComm().tompi4py(), dtype)
        self._coordinates, self._turning = coordinates, turning
        self._layouts: dict[tuple[bool, ...], GridLayout] = {}  # of the directions that were wanted so far
        self.layout = self._layout(matrix, (True, True))
        self.settings = settings or CycleSettings.of(len(self.layout.shape), weights)
        self._network: SmootherNetwork | None = None
        self._loaded = "constant"  # whose weights the network has
        self._take_values(matrix)

    @property
    def safe(self) -> bool:
        """Whether the cycle is positive definite for every positive definite matrix."""
        return self._network is None and self.settings.keep == 1.0

    def _layout(self, matrix: PETSc.Mat, mirrored: tuple[bool, ...]) -> GridLayout:
        if mirrored not in self._layouts:
            self._layouts[mirrored] = GridLayout(matrix, self._coordinates, self._kernels, mirrored)
        return self._layouts[mirrored]

    def _take_values(self, matrix: PETSc.Mat) -> None:
        lattice, stencils, sums = self.layout.stencils(matrix)
        if self._turning:
            turns = self._wanted_turns(lattice, stencils)
            if any(turns):
                pairs = itertools.zip_longest(self.layout.mirrored, turns, fillvalue=False)
                self.layout = self._layout(matrix, tuple(before != turn for before, turn in pairs))
                lattice, stencils, sums = self.layout.stencils(matrix)
        layout, settings = self.layout, self.settings
        if settings.weights != self._loaded:
            self._network = load_network(layout.comm, settings.weights, len(layout.shape))
            self._loaded = settings.weights
        slabs = Slabs(layout.comm, layout.starts)
        self.cycle = GridCycle(lattice, stencils, sums, slabs, layout.depth, settings, self._network)

    def _wanted_turns(self, lattice: Lattice, stencils: Array) -> tuple[bool, ...]:
        """Return which directions but the slowest to turn, that strong couplings be along rising diagonals."""
        halves, axes = lattice.halves, range(len(lattice.shape))
        share, sums = 1.0 / lattice.inner(stencils[0]), []
        pairs = list(itertools.combinations(axes, 2))
        for a, b in pairs:
            rising, falling = (
                halves.index(tuple((axis == a) + sign * (axis == b) for axis in axes)) for sign in (1, -1)
            )
            if lattice.used >> rising & 1 or lattice.used >> falling & 1:
                sums.append(np.vdot(lattice.inner(stencils[falling]) - lattice.inner(stencils[rising]), share))
            else:
                sums.append(0.0)
        total = self.layout.comm.allreduce(np.array([*sums, share.size], dtype=np.float64))
        gains = total[:-1] / total[-1]
        best, wanted = gains.sum() + _WORTH, (False,) * (len(axes) - 1)
        for turns in itertools.product((False, True), repeat=len(axes) - 1):
            signs = [1.0, *(-1.0 if turn else 1.0 for turn in turns)]
            value = sum(signs[a] * signs[b] * gain for (a, b), gain in zip(pairs, gains, strict=True))
            if value > best:
                best, wanted = value, turns
        return wanted

    def update(self, matrix: PETSc.Mat) -> bool:
        """Take the values of a matrix if it has the same pattern; return whether it has. Collective: yes."""
        same = self.layout.fits(matrix)
        if same:
            self._take_values(matrix)
        return same

    def apply(self, x: PETSc.Vec, y: PETSc.Vec) -> None:
        """Set y to one cycle's answer to x. Collective: yes."""
        self.layout.to_lattice(x.array_r, self.cycle.right)
        self.cycle.apply()
        self.layout.from_lattice(self.cycle.solution, y.array_w)

    def quantities(self) -> dict[str, float | int | str]:
        """Return numbers worth printing. Collective: no."""
        layout = self.layout
        return {
            "lattice": " x ".join(str(count) for count in layout.shape[::-1]),
            "slabs": len(layout.starts) - 1,
            "precision": np.dtype(layout.lattice.kernels.dtype).name,
            "smoother": f"incomplete factors, keep {self._network or self.settings.keep}",
        }

    def view(self, viewer: PETSc.Viewer) -> None:
        """Print the constants of the cycle. Collective: yes."""
        predicted = "; keep is predicted at each point" if self._network else ""
        viewer.printfASCII(f"  cycle: {self.settings}{predicted}\n")

    def release(self) -> None:
        """Nothing of PETSc is held. Collective: no."""
