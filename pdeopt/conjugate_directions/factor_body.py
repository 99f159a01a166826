"""What stands for multigrid while a matrix is small: its factors, incomplete ones where they are near the true ones."""

from petsc4py import PETSc

from pdeopt.conjugate_directions.algebraic_hierarchy import LocalRows, choose_constants
from pdeopt.fem.forms import default_options
from pdeopt.report import InputError

__all__ = ["Factors"]

# Entries of a node with those of its own component: up to this value matrices are of the plane.
_NARROW = 9.0
# Levels of fill of incomplete factors, in the plane and in space. Swept on unseen systems of 1,000 to 20,000 unknowns:
# a third of GAMG's total in the median, half of it at the worst decile.
_LEVELS = {True: 4, False: 1}
# Unknowns in space above which multigrid is cheaper than complete factors.
_MOST = 5000


class Factors:
    """Factors of a small matrix on one rank: a symmetric positive definite preconditioner, or the inverse itself.

    Incomplete Cholesky factors for one unknown a node and couplings of one sign, MUMPS otherwise: with anisotropy and
    several unknowns a node incomplete factors meet negative pivots, and mend them beyond use.

    Parameters
    ----------
    matrix
        Symmetric positive definite, of type seqaij.
    prefix
        Of the options of the inner preconditioner.

    Raises
    ------
    InputError
        If there are too many unknowns for complete factors, or they do not exist.

    Collective: no.
    """

    name = "factors of a small matrix"

    def __init__(self, matrix: PETSc.Mat, prefix: str) -> None:
        self._kind = choose_constants(matrix, LocalRows(matrix))[0]
        self._made_of = _identity(matrix)
        rows, entries = matrix.getSize()[0], matrix.getInfo()["nz_used"]
        plane = entries <= _NARROW * rows * matrix.getBlockSize()
        if self._kind == "isotropic":
            defaults = {"pc_type": "icc", "pc_factor_levels": _LEVELS[plane], "pc_factor_mat_ordering_type": "rcm"}
        elif plane or rows <= _MOST:
            defaults = {"pc_type": "cholesky", "pc_factor_mat_solver_type": "mumps"}
        else:
            raise InputError(f"{rows} unknowns in space are too many for complete factors")
        self._pc = PETSc.PC().create(matrix.getComm())
        self._pc.setOptionsPrefix(prefix)
        self._pc.setOperators(matrix)
        with default_options(prefix, defaults):
            self._pc.setFromOptions()
        if not self._factorise():
            self._pc.destroy()
            raise InputError("the factorisation of the matrix failed: is it positive definite?")

    def update(self, matrix: PETSc.Mat) -> bool:
        """Factorise new values of the same matrix in the same order; return whether they are. Collective: no."""
        if _identity(matrix) != self._made_of:
            return False
        self._pc.setOperators(matrix)
        return self._factorise()

    def apply(self, x: PETSc.Vec, y: PETSc.Vec) -> None:
        """Set y to the answer of the factors to x. Collective: no."""
        self._pc.apply(x, y)

    def quantities(self) -> dict[str, float | int | str]:
        """Return numbers worth printing. Collective: no."""
        return {"class of the matrix": self._kind, "factors": self._pc.getType()}

    def view(self, viewer: PETSc.Viewer) -> None:
        """Print PETSc's preconditioner. Collective: no."""
        self._pc.view(viewer)

    def release(self) -> None:
        """Free the factors. Collective: no."""
        self._pc.destroy()

    def _factorise(self) -> bool:
        """Factorise the present values; return whether factors exist. Collective: no."""
        self._pc.setUp()
        return self._pc.getFailedReason() == PETSc.PC.FailedReason.NOERROR


def _identity(matrix: PETSc.Mat) -> tuple[int, float]:
    """Return what stays as long as only values of a matrix change. Collective: no."""
    return matrix.getId(), matrix.getInfo()["nz_used"]
