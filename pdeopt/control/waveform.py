"""Multigrid waveform relaxation: V-cycles in space that treat all time steps together.

A sweep through the steps waits for its neighbours at every step and every level. Here each operation of a V-cycle is
done for all steps before the next one starts (Lubich and Ostermann, BIT 27 (1987) 216-234; Horton and Vandewalle, SIAM
J. Sci. Comput. 16 (1995) 848-864), so that the number of messages does not depend on the number of steps and products
read each matrix once. The operator is block lower triangular in time,

    (T y)_n = S y_n + C_1 y_(n-1) + C_2 y_(n-2),

and the smoother is Jacobi's in space: its diagonal blocks are scalar recurrences in time, solved exactly, without which
information would travel one step a sweep.
"""

from collections.abc import Sequence

from petsc4py import PETSc

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
_LARGEST_COARSE_GRID = 1000  # solved densely on every rank
_SMOOTHINGS, _CYCLES = 2, 2
# Times the inverse of the largest eigenvalue. Products along time are not normal: 8/5, which a steady problem would
# take, lets V-cycles diverge on fine meshes.
_DAMPING = 1.2
_POWER_ITERATIONS = 15


class StackedMatrix:
    """A matrix that multiplies the vectors of all time steps at once.

    Parameters
    ----------
    matrix
        The matrix, not owned.
    steps
        Number of vectors.
    """

    def __init__(self, matrix: PETSc.Mat, steps: int) -> None:
        self.matrix, self._steps = matrix, steps
        self._right: PETSc.Mat | None = None
        sizes = matrix.getLocalSize()
        # PETSc 3.25 fails in products with dense matrices where a rank owns no column.
        if matrix.comm.tompi4py().allreduce(int(min(sizes) == 0)):
            self._vectors = matrix.createVecs()
            return
        columns = matrix.getSizes()[1]
        self._right = PETSc.Mat().createDense((columns, (PETSc.DECIDE, steps)), comm=matrix.comm)
        self._right.setUp()
        self._right.assemble()
        self._product = matrix.matMult(self._right)

    def __call__(self, values: Array) -> Array:
        """Return products, shape (steps, owned rows), with values of shape (steps, owned columns). Collective: yes.

        The array is read-only and valid until the next call.
        """
        if self._right is None:
            right, left = self._vectors
            out = np.empty((self._steps, left.getLocalSize()))
            for n in range(self._steps):
                right.array[:] = values[n]
                self.matrix.mult(right, left)
                out[n] = left.array_r
            return out
        self._right.getDenseArray().T[:] = values
        self._right.assemble()
        self.matrix.matMult(self._right, result=self._product)
        found: Array = self._product.getDenseArray(readonly=True).T
        return found

    def release(self) -> None:
        """Free the work space. Collective: yes."""
        for item in self._vectors if self._right is None else (self._right, self._product):
            item.destroy()


class WaveformMultigrid:
    """V-cycles for a block lower triangular matrix of all time steps, on the hierarchy of a PCMG.

    Parameters
    ----------
    pc
        Set up, of type "mg" or "gamg", for S; its smoothers are not used.
    couplings
        C_1 and, for two-step schemes, C_2. They are owned from here on.
    steps
        Number of steps.

    Raises
    ------
    ValueError
        If `suits` has not accepted the preconditioner.
    """

    def __init__(self, pc: PETSc.PC, couplings: Sequence[PETSc.Mat], steps: int) -> None:
        if not suits(pc):
            raise ValueError("the preconditioner has no multigrid hierarchy with a small coarsest level")
        self._levels: list[_Level] = []
        self._transfers: list[tuple[StackedMatrix, StackedMatrix]] = []
        for number in reversed(range(pc.getMGLevels())):
            operator = pc.getMGSmoother(number).getOperators()[0]
            if number == 0:
                self._coarsest = _CoarsestLevel(operator, couplings)
                for coupling in couplings:
                    coupling.destroy()
                break
            self._levels.append(_Level(operator, couplings, steps))
            prolongation = pc.getMGInterpolation(number)
            restriction = prolongation.transpose(PETSc.Mat())
            self._transfers.append((StackedMatrix(prolongation, steps), StackedMatrix(restriction, steps)))
            couplings = [coupling.ptap(prolongation) for coupling in couplings]

    def solve(self, right: Array) -> Array:
        """Return an approximation of T^-1 r, shape (steps, owned). Collective: yes."""
        values = self._cycle(0, right, None)
        for _ in range(_CYCLES - 1):
            values = self._cycle(0, right, values)
        return values

    def _cycle(self, number: int, right: Array, values: Array | None) -> Array:
        if number == len(self._levels):
            return self._coarsest.solve(right)
        level = self._levels[number]
        prolongation, restriction = self._transfers[number]
        smoothings = _SMOOTHINGS
        if values is None:
            values = level.smooth(right)
            smoothings -= 1
        for _ in range(smoothings):
            values += level.smooth(level.residual(right, values))
        values += prolongation(self._cycle(number + 1, restriction(level.residual(right, values)), None))
        for _ in range(_SMOOTHINGS):
            values += level.smooth(level.residual(right, values))
        return values

    def release(self) -> None:
        """Free matrices and work space. Collective: yes."""
        for level in self._levels:
            level.release()
        for prolongation, restriction in self._transfers:
            prolongation.release()
            restriction.release()
            restriction.matrix.destroy()


class _Level:
    """Products and smoothing on one level."""

    def __init__(self, operator: PETSc.Mat, couplings: Sequence[PETSc.Mat], steps: int) -> None:
        self._operator = StackedMatrix(operator, steps)
        self._couplings = [StackedMatrix(coupling, steps) for coupling in couplings]
        diagonal = _diagonal(operator)
        self._gain = _DAMPING / (_largest_eigenvalue(operator, diagonal) * diagonal)
        self._ratios = [_diagonal(coupling) / diagonal for coupling in couplings]
        self._work = np.empty_like(diagonal)

    def residual(self, right: Array, values: Array) -> Array:
        """Return r - T y. Collective: yes."""
        out = right - self._operator(values)
        for back, coupling in enumerate(self._couplings, start=1):
            out[back:] -= coupling(values)[:-back]
        return out

    def smooth(self, residual: Array) -> Array:
        """Return the damped solution of the scalar recurrences that T's diagonals make. Collective: no."""
        out = residual * self._gain
        for n in range(1, len(out)):
            for back, ratio in enumerate(self._ratios[:n], start=1):
                np.multiply(ratio, out[n - back], out=self._work)
                out[n] -= self._work
        return out

    def release(self) -> None:
        """Free matrices and work space; the operator is the preconditioner's. Collective: yes."""
        self._operator.release()
        for coupling in self._couplings:
            coupling.release()
            coupling.matrix.destroy()


class _CoarsestLevel:
    """The recurrence solved exactly, on every rank."""

    def __init__(self, operator: PETSc.Mat, couplings: Sequence[PETSc.Mat]) -> None:
        self._comm = operator.comm.tompi4py()
        self._inverse = np.linalg.inv(_dense(operator))
        self._couplings = [self._inverse @ _dense(coupling) for coupling in couplings]
        self._owned = slice(*operator.getOwnershipRange())

    def solve(self, right: Array) -> Array:
        """Return T^-1 r, shape (steps, owned). Collective: yes."""
        parts = self._comm.allgather(np.ascontiguousarray(right))
        out = np.concatenate(parts, axis=1) @ self._inverse.T
        for n in range(1, len(out)):
            for back, coupling in enumerate(self._couplings[:n], start=1):
                out[n] -= coupling @ out[n - back]
        return np.ascontiguousarray(out[:, self._owned])


def suits(pc: PETSc.PC) -> bool:
    """Return whether a preconditioner has a multigrid hierarchy with a small coarsest level. Collective: yes."""
    if pc.getType() not in (PETSc.PC.Type.MG, PETSc.PC.Type.GAMG):
        return False
    return bool(pc.getMGSmoother(0).getOperators()[0].getSize()[0] <= _LARGEST_COARSE_GRID)


def _diagonal(matrix: PETSc.Mat) -> Array:
    vector = matrix.getDiagonal()
    values = np.array(vector.array_r)
    vector.destroy()
    return values


def _largest_eigenvalue(matrix: PETSc.Mat, diagonal: Array) -> float:
    """Return an estimate of the largest eigenvalue of D^-1 A from power iterations. Collective: yes."""
    vector, product = matrix.createVecs()
    vector.array[:] = np.random.default_rng(matrix.comm.rank).standard_normal(diagonal.size)
    for _ in range(_POWER_ITERATIONS):
        vector.normalize()
        matrix.mult(vector, product)
        product.array[:] /= diagonal
        vector, product = product, vector
    value = float(vector.norm())
    vector.destroy()
    product.destroy()
    return value


def _dense(matrix: PETSc.Mat) -> Array:
    """Return all of a small matrix on every rank. Collective: yes."""
    out = np.zeros(matrix.getSize())
    for row in range(*matrix.getOwnershipRange()):
        columns, values = matrix.getRow(row)
        out[row, columns] = values
    whole: Array = matrix.comm.tompi4py().allreduce(out)
    return whole
