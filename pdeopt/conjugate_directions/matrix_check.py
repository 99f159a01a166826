"""Whether a matrix is one that multigrid is for: what can be told from its diagonal and three products."""

import dataclasses

from petsc4py import PETSc

import numpy as np

from pdeopt.report import InputError

__all__ = ["Checked", "check_matrix"]

# Part of A x that may differ from A^T x: above it one half of the matrix does not stand for the other.
_SKEW = 1e-8
# Of the diagonal, the part that A 1 may have if constants are in the kernel: what rounding leaves of row sums.
_ROUNDING = 1e-12
_OTHERS = "use another preconditioner, or let pdeopt.AutoKSP choose the solver"


@dataclasses.dataclass(frozen=True)
class Checked:
    """What the check has seen.

    Parameters
    ----------
    singular
        Whether a null space is attached to the matrix, or constants are in its kernel.
    """

    singular: bool


def check_matrix(matrix: PETSc.Mat) -> Checked:
    """Refuse what no symmetric cycle can solve with: other formats, NaN, unsymmetric and indefinite matrices.

    A matrix can be indefinite and pass; conjugate gradients then end with PETSc's own reason. A symmetric one that
    PETSc knows to be so (``Mat.Option.SYMMETRIC``) is not tested for it.

    Raises
    ------
    InputError
        On all ranks, with what was found and what to do.

    Collective: yes.
    """
    kind = matrix.getType()
    if kind not in ("seqaij", "mpiaij"):
        raise InputError(f"the matrix is of type {kind}: multigrid takes assembled matrices of type aij; {_OTHERS}")
    rows, columns = matrix.getSize()
    if rows != columns:
        raise InputError(f"the matrix has {rows} rows and {columns} columns: multigrid is for square matrices")
    diagonal = matrix.getDiagonal()
    _check_diagonal(matrix, diagonal)
    ones, image = matrix.createVecs()
    try:
        ones.set(1.0)
        matrix.mult(ones, image)
        energy, kernel = ones.dot(image), image.norm() <= _ROUNDING * diagonal.norm()
        if not np.isfinite(energy):
            raise InputError("the matrix has NaN or infinite values: look at the coefficients and what they depend on")
        if energy < -_ROUNDING * diagonal.sum():
            raise InputError(
                f"the matrix is indefinite: v A v = {energy:.3g} for v = 1, although the diagonal is positive; "
                f"multigrid is for positive definite matrices: {_OTHERS}"
            )
        if not all(matrix.isSymmetricKnown()):
            _check_symmetry(matrix, ones, image)
        return Checked(singular=kernel or bool(matrix.getNullSpace().handle))
    finally:
        for vector in (diagonal, ones, image):
            vector.destroy()


def _check_diagonal(matrix: PETSc.Mat, diagonal: PETSc.Vec) -> None:
    values = diagonal.array_r
    bad = np.flatnonzero(~((values > 0.0) & np.isfinite(values)))
    first = (matrix.getOwnershipRange()[0] + int(bad[0]), float(values[bad[0]])) if bad.size else (np.inf, 0.0)
    row, value = min(matrix.getComm().tompi4py().allgather(first), key=lambda found: found[0])
    if row < np.inf:
        raise InputError(
            f"the diagonal of the matrix is {value} in row {row}: multigrid is for definite matrices: {_OTHERS}"
        )


def _check_symmetry(matrix: PETSc.Mat, vector: PETSc.Vec, image: PETSc.Vec) -> None:
    vector.array_w[:] = np.random.default_rng(matrix.getComm().getRank()).standard_normal(vector.getLocalSize())
    transposed = image.duplicate()
    matrix.mult(vector, image)
    matrix.multTranspose(vector, transposed)
    size = image.norm()
    transposed.axpy(-1.0, image)
    skew = transposed.norm()
    transposed.destroy()
    if skew > _SKEW * size:
        raise InputError(
            f"the matrix is not symmetric: A v and A^T v differ by {skew / size:.1e} of their size; multigrid's cycle "
            f"is for symmetric matrices: {_OTHERS}"
        )
