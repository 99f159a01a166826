"""Multigrid from the matrix alone: the hierarchy of its class, and a cycle over it."""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

from petsc4py import PETSc

from pdeopt.conjugate_directions.algebraic_cycle import AlgebraicCycle
from pdeopt.conjugate_directions.algebraic_hierarchy import LocalRows, build_hierarchy, choose_constants
from pdeopt.conjugate_directions.block_cycle import BlockCycle, fits
from pdeopt.report import InputError

__all__ = ["AlgebraicMultigrid"]

_LOGGER = logging.getLogger(__name__)


class AlgebraicMultigrid:
    """A symmetric preconditioner for any positive definite matrix of type aij.

    Parameters
    ----------
    matrix
        See `build_hierarchy`.
    constants
        Fields of `Constants` that are set in place of those of the matrix's class.
    prefix
        Of the options of PETSc's inner preconditioner.
    singular
        Whether the matrix has a null space.
    keeps
        Whether new values of the same matrix keep the interpolations of the former ones.

    Raises
    ------
    InputError
        If a coarse matrix has a diagonal value that is not positive.
    MissingPackageError
        Without the extra ``multigrid``.

    Collective: yes.
    """

    name = "multigrid by aggregation"

    def __init__(
        self,
        matrix: PETSc.Mat,
        constants: Mapping[str, Any],
        prefix: str,
        singular: bool = False,
        keeps: bool = False,
    ) -> None:
        self._keeps, self._made_of = keeps, _identity(matrix)
        rows = LocalRows(matrix)
        self._kind, chosen = choose_constants(matrix, rows)
        chosen = dataclasses.replace(chosen, **constants)
        self._cycle: AlgebraicCycle | BlockCycle
        if fits(matrix):
            try:
                self._cycle = BlockCycle(matrix, chosen, singular)
                return
            except InputError as error:  # PETSc's kernels factorise a large coarsest level, or say what is wrong
                _LOGGER.info("multigrid by aggregation: %s: not compiled, but by PETSc's kernels", error)
        self._cycle = AlgebraicCycle(build_hierarchy(matrix, chosen, rows), prefix, singular)

    def update(self, matrix: PETSc.Mat) -> bool:
        """Take new values of the same matrix where interpolations are kept; return whether they are. Collective: yes.

        Else nothing is: which couplings are strong, and with them all that follows, depends on the values.
        """
        if not self._keeps or _identity(matrix) != self._made_of:
            return False
        self._cycle.renew()
        return True

    def apply(self, x: PETSc.Vec, y: PETSc.Vec) -> None:
        """Set y to the cycle's answer to x. Collective: yes."""
        self._cycle.apply(x, y)

    def quantities(self) -> dict[str, float | int | str]:
        """Return numbers worth printing. Collective: no."""
        return {
            "class of the matrix": self._kind,
            "levels": len(self._cycle.sizes),
            "unknowns": "/".join(str(size) for size in self._cycle.sizes),
            "operator complexity": self._cycle.complexity,
        }

    def view(self, viewer: PETSc.Viewer) -> None:
        """Print PETSc's preconditioner. Collective: yes."""
        self._cycle.view(viewer)

    def release(self) -> None:
        """Free the hierarchy. Collective: yes."""
        self._cycle.release()


def _identity(matrix: PETSc.Mat) -> tuple[int, float]:
    """Return what stays as long as only values of a matrix change. Collective: yes."""
    return matrix.getId(), matrix.getInfo(PETSc.Mat.InfoType.GLOBAL_SUM)["nz_used"]
