"""Numbers that tell a learner which system of a sequence it has before it."""

import math

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np

# The context of a matrix lies within +- this.
CONTEXT_BOUND = 10.0
# Rows of each rank that are looked at: always the same ones, so that equal matrices have equal contexts.
SAMPLES = 64


class StiffnessRatio:
    """The mean over sampled rows of log((2 - r) / r), with r the row's sum over its diagonal entry.

    For M + c K with a lumped mass matrix M and a stiffness matrix K it is nearly log(1 + 8 c / h^2) in the plane: it
    tells how far the step is from the identity, on a scale that resolves both ends. r is clipped to the interval where
    the logarithm is within +- `CONTEXT_BOUND`. To look at all rows would cost as much as an iteration; across ranks
    each looks at its own diagonal block.

    Parameters
    ----------
    matrix
        An assembled matrix of the pattern of those to come.

    Attributes
    ----------
    rows
        Local numbers of the sampled rows, shape (samples,).

    Raises
    ------
    PETSc.Error
        If rows cannot be extracted from matrices of this type.

    Collective: yes.
    """

    def __init__(self, matrix: PETSc.Mat) -> None:
        self._comm: MPI.Comm = matrix.getComm().tompi4py()
        block = matrix.getDiagonalBlock()
        owned = block.getSize()[0]
        self.rows = np.unique(np.linspace(0, max(owned - 1, 0), SAMPLES).astype(PETSc.IntType))[:owned]
        self._row_set = PETSc.IS().createGeneral(self.rows, comm=MPI.COMM_SELF)
        self._columns = PETSc.IS().createStride(owned, 0, 1, comm=MPI.COMM_SELF)
        self._sample = block.createSubMatrix(self._row_set, self._columns)
        self._margin = 2.0 / (1.0 + math.exp(CONTEXT_BOUND))

    def __call__(self, matrix: PETSc.Mat) -> float:
        """Return the context of a matrix. Collective: yes."""
        matrix.getDiagonalBlock().createSubMatrix(self._row_set, self._columns, self._sample)
        offsets, columns, values = self._sample.getValuesCSR()
        total = np.zeros(2)
        if self.rows.size:
            sums = np.add.reduceat(values, offsets[:-1])
            diagonal = values[columns == np.repeat(self.rows, np.diff(offsets))]
            ratio = np.minimum(np.maximum(sums / diagonal, self._margin), 2.0 - self._margin)
            total[:] = np.log(2.0 / ratio - 1.0).sum(), ratio.size
        if self._comm.size > 1:
            self._comm.Allreduce(MPI.IN_PLACE, total)
        return float(total[0] / max(total[1], 1.0))

    def destroy(self) -> None:
        """Free the PETSc objects. Collective: no."""
        for handle in (self._sample, self._row_set, self._columns):
            handle.destroy()
