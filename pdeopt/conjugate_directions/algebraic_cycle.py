"""A symmetric V-cycle of PETSc kernels over a hierarchy: forward SOR down, a factorisation, backward SOR up."""

from collections.abc import Sequence

from petsc4py import PETSc

from pdeopt.conjugate_directions.algebraic_hierarchy import Level, renew_values
from pdeopt.fem.forms import default_options

__all__ = ["AlgebraicCycle"]

# Coarse levels up to this size are factorised by PETSc, larger ones by MUMPS.
_SMALL = 1000


class AlgebraicCycle:
    """One V-cycle, as PETSc's ``mg`` preconditioner; owns the coarse matrices and the interpolations.

    The sweep up is the transpose of the one down, and both are local to a rank, so the cycle is symmetric on any number
    of ranks. On one rank it costs two and a half products with the matrix on each level.

    Parameters
    ----------
    levels
        As `build_hierarchy` returns them.
    prefix
        Of the options of the inner preconditioner, such as ``-<prefix>mg_levels_1_pc_sor_its``.
    singular
        Whether the matrices have a null space: the coarsest one's pseudo-inverse is taken then.

    Attributes
    ----------
    sizes
        Unknowns of the levels, finest first.
    complexity
        Entries of all matrices over those of the finest.

    Collective: yes.
    """

    def __init__(self, levels: Sequence[Level], prefix: str, singular: bool) -> None:
        entries = [level.matrix.getInfo(PETSc.Mat.InfoType.GLOBAL_SUM)["nz_used"] for level in levels]
        self.sizes = [level.matrix.getSize()[0] for level in levels]
        self.complexity = sum(entries) / max(entries[0], 1.0)
        self._levels, self._singular = list(levels), singular
        self._pc = PETSc.PC().create(levels[0].matrix.getComm())
        self._pc.setOptionsPrefix(prefix)
        self._pc.setOperators(levels[0].matrix)
        self._pc.setType("mg")
        self._pc.setMGLevels(len(levels))
        up = [f"mg_up_{number}_" for number in range(len(levels))]
        defaults: dict[str, str | None] = {"mg_coarse_" + name: value for name, value in self._coarse_options().items()}
        for number, level in enumerate(reversed(levels)):
            if level.interpolation is None:
                self._pc.getMGCoarseSolve().setOperators(level.matrix)
                continue
            self._pc.setMGInterpolation(number, level.interpolation)
            for smoother, direction in (
                (self._pc.getMGSmootherDown(number), "forward"),
                (self._pc.getMGSmootherUp(number), "backward"),
            ):
                if direction == "backward":
                    smoother.setOptionsPrefix(prefix + up[number])
                name = up[number] if direction == "backward" else f"mg_levels_{number}_"
                smoother.setOperators(level.matrix)
                smoother.setType("richardson")
                smoother.setTolerances(max_it=1)
                smoother.setNormType(PETSc.KSP.NormType.NONE)
                smoother.setInitialGuessNonzero(direction == "backward")
                smoother.getPC().setType("sor")
                defaults[f"{name}pc_sor_local_{direction}"] = None
        with default_options(prefix, defaults):
            self._pc.setFromOptions()
            for number in range(1, len(levels)):
                self._pc.getMGSmootherUp(number).setFromOptions()
                self._pc.getMGSmootherDown(number).setFromOptions()
            self._pc.setUp()

    def apply(self, r: PETSc.Vec, x: PETSc.Vec) -> None:
        """Apply the cycle to a residual. Collective: yes."""
        self._pc.apply(r, x)

    def renew(self) -> None:
        """Take new values of the finest matrix, with the same interpolations. Collective: yes."""
        renew_values(self._levels)
        self._pc.setOperators(self._levels[0].matrix)
        self._pc.setUp()

    def view(self, viewer: PETSc.Viewer) -> None:
        """Print the preconditioner. Collective: yes."""
        self._pc.view(viewer)

    def release(self) -> None:
        """Free all but the finest matrix. Collective: yes."""
        self._pc.destroy()
        for level in self._levels[1:]:
            level.matrix.destroy()
        for level in self._levels[:-1]:
            assert level.interpolation is not None
            level.interpolation.destroy()

    def _coarse_options(self) -> dict[str, str]:
        coarse = self._levels[-1].matrix
        if self._singular:
            return {"ksp_type": "preonly", "pc_type": "svd"}
        if coarse.getSize()[0] > _SMALL:
            return {"ksp_type": "preonly", "pc_type": "cholesky", "pc_factor_mat_solver_type": "mumps"}
        if coarse.getComm().getSize() == 1:
            return {"ksp_type": "preonly", "pc_type": "cholesky"}
        # On every rank: one exchange, where a distributed factorisation has many.
        return {"ksp_type": "preonly", "pc_type": "redundant", "redundant_pc_type": "cholesky"}
