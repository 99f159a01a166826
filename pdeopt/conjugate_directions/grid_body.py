"""Multigrid for matrices whose unknowns lie on a lattice: from PETSc's vectors to the cycle and back."""

from petsc4py import PETSc

import numpy as np
import numpy.typing as npt

from pdeopt.conjugate_directions.grid_cycle import CycleSettings, GridCycle
from pdeopt.conjugate_directions.grid_kernels import load_kernels
from pdeopt.conjugate_directions.grid_layout import GridLayout
from pdeopt.conjugate_directions.grid_slabs import Slabs

__all__ = ["GridMultigrid"]


class GridMultigrid:
    """A symmetric positive definite preconditioner for linear elements on a structured mesh.

    Works in float32 by default: that costs the outer iteration nothing down to relative residuals of 1e-8, but the
    operator is symmetric only to rounding.

    Parameters
    ----------
    matrix
        Symmetric positive definite ``aij`` matrix, see `GridLayout`.
    coordinates
        Places of the owned unknowns, shape (rows, 2 or 3), in any unit of length.
    settings
        Constants of the cycle.
    dtype
        ``float32`` or ``float64``.

    Raises
    ------
    InputError
        If the unknowns do not lie on a lattice.
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
    ) -> None:
        self.layout = GridLayout(matrix, coordinates, load_kernels(matrix.getComm().tompi4py(), dtype))
        self.settings = settings or CycleSettings()
        self._take_values(matrix)

    def _take_values(self, matrix: PETSc.Mat) -> None:
        layout = self.layout
        slabs = Slabs(layout.comm, layout.starts)
        self.cycle = GridCycle(layout.lattice, *layout.stencils(matrix), slabs, layout.depth, self.settings)

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
        }

    def view(self, viewer: PETSc.Viewer) -> None:
        """Print the constants of the cycle. Collective: yes."""
        viewer.printfASCII(f"  cycle: {self.settings}\n")

    def release(self) -> None:
        """Nothing of PETSc is held. Collective: no."""
