"""Programs in plain NumPy and SciPy as PETSc programs, inequalities by slack variables.

A constraint L <= c_i(x) <= B that is no equality becomes c_i(x) - s_i = 0 with L <= s_i <= B.
"""

from typing import TYPE_CHECKING

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np
import numpy.typing as npt

from pdeopt.optimise.matrices import MatrixProgram, vector
from pdeopt.optimise.matrix_kkt import DirectionSettings
from pdeopt.optimise.program import Pair
from pdeopt.problems.nonlinear_program import NonlinearProgram

if TYPE_CHECKING:
    import scipy.sparse

Array = npt.NDArray[np.float64]


class _NumPyFunctions:
    """Calls the serial functions on every rank with the whole vector; each rank keeps its rows."""

    def __init__(self, program: NonlinearProgram) -> None:
        self._program = program
        self._slacks = np.flatnonzero(~program.equalities)
        self._matrices: dict[str, PETSc.Mat] = {}

    def _whole(self, values: PETSc.Vec) -> Array:
        comm = values.comm.tompi4py()
        if comm.size == 1:
            return np.array(values.array_r)
        return np.concatenate(comm.allgather(np.array(values.array_r)))

    def _split(self, values: PETSc.Vec) -> tuple[Array, Array]:
        whole = self._whole(values)
        return whole[: self._program.size], whole[self._program.size :]

    @staticmethod
    def _fill(values: Array, out: PETSc.Vec) -> None:
        first, last = out.getOwnershipRange()
        out.array[:] = values[first:last]

    def objective(self, x: PETSc.Vec) -> float:
        """Return f(x)."""
        with np.errstate(all="ignore"):
            return float(self._program.objective(self._split(x)[0]))

    def gradient(self, x: PETSc.Vec, out: PETSc.Vec) -> None:
        """Set f'(x), zero for slacks."""
        with np.errstate(all="ignore"):
            values = self._program.gradient(self._split(x)[0])
        self._fill(np.concatenate([values, np.zeros(self._slacks.size)]), out)

    def constraints(self, x: PETSc.Vec, out: PETSc.Vec) -> None:
        """Set c(x), the slacks subtracted."""
        unknowns, slacks = self._split(x)
        with np.errstate(all="ignore"):
            values = np.array(self._program.constraints(unknowns))
        values[self._slacks] -= slacks
        self._fill(values, out)

    def jacobian(self, x: PETSc.Vec) -> PETSc.Mat:
        """Return c'(x) with a column for every slack."""
        import scipy.sparse as sparse

        with np.errstate(all="ignore"):
            matrix = sparse.csr_array(self._program.jacobian(self._split(x)[0]))
        count = self._slacks.size
        if count:
            shape = (self._program.constraint_count, count)
            columns = sparse.csr_array((-np.ones(count), (self._slacks, np.arange(count))), shape=shape)
            matrix = sparse.csr_array(sparse.hstack([matrix, columns]))
        return self._distribute("jacobian", matrix, x.comm.tompi4py())

    def hessian(self, x: PETSc.Vec, multipliers: PETSc.Vec) -> PETSc.Mat:
        """Return the Hessian of the Lagrangian, zero for slacks."""
        import scipy.sparse as sparse

        with np.errstate(all="ignore"):
            matrix = sparse.csr_array(self._program.hessian(self._split(x)[0], self._whole(multipliers)))
        count = self._slacks.size
        # Every diagonal entry is there, zero or not: inertia corrections are added to it.
        size = self._program.size + count
        matrix = sparse.csr_array(sparse.block_diag([matrix, sparse.csr_array((count, count))]))
        entries = matrix.tocoo()
        rows = np.concatenate([entries.row, np.arange(size)])
        columns = np.concatenate([entries.col, np.arange(size)])
        data = np.concatenate([entries.data, np.zeros(size)])
        matrix = sparse.csr_array((data, (rows, columns)), shape=(size, size))
        return self._distribute("hessian", matrix, x.comm.tompi4py())

    def destroy(self) -> None:
        """Free the matrices. Collective: yes."""
        for matrix in self._matrices.values():
            matrix.destroy()
        self._matrices.clear()

    def _distribute(self, name: str, matrix: "scipy.sparse.csr_array", comm: MPI.Comm) -> PETSc.Mat:
        """Return this rank's rows as a PETSc matrix; the last one of the name is freed."""
        if name in self._matrices:
            self._matrices.pop(name).destroy()
        matrix.sort_indices()
        rows, columns = (_local_size(size, comm) for size in matrix.shape)
        first = int(comm.scan(rows, op=MPI.SUM)) - rows  # type: ignore[attr-defined]
        own = matrix[first : first + rows]
        index = PETSc.IntType
        csr = (own.indptr.astype(index), own.indices.astype(index), own.data)
        sizes = ((rows, matrix.shape[0]), (columns, matrix.shape[1]))
        self._matrices[name] = PETSc.Mat().createAIJ(sizes, csr=csr, comm=comm)
        return self._matrices[name]


def _local_size(size: int, comm: MPI.Comm) -> int:
    """Return this rank's share of so many rows, as PETSc distributes them."""
    return size // comm.size + (comm.rank < size % comm.size)


def numpy_program(
    program: NonlinearProgram,
    comm: MPI.Comm = MPI.COMM_SELF,
    settings: DirectionSettings | None = None,
    prefix: str = "",
) -> MatrixProgram:
    """Return a program of NumPy functions as one for the optimisers; its first unknowns are x, slacks follow.

    The functions are called with the whole x on every rank, so this is for problems that one rank can hold.

    Parameters
    ----------
    program
        Values and derivatives.
    comm
        Communicator over which the linear algebra is distributed.
    settings, prefix
        The solver of the KKT systems, and the prefix of its options.

    Collective: yes.
    """
    slack = ~program.equalities
    lower = np.concatenate([program.lower, program.constraint_lower[slack]])
    upper = np.concatenate([program.upper, program.constraint_upper[slack]])
    start = np.array(program.start)
    with np.errstate(all="ignore"):
        values = np.asarray(program.constraints(start))[slack] if slack.any() else np.empty(0)
    start = np.concatenate([start, np.clip(values, program.constraint_lower[slack], program.constraint_upper[slack])])
    multipliers = program.start_multipliers
    dual = np.zeros(program.constraint_count) if multipliers is None else multipliers
    bounded = bool(np.isfinite(lower).any() or np.isfinite(upper).any())
    bounds = (vector(comm, lower), vector(comm, upper)) if bounded else None
    pair = Pair(vector(comm, start), vector(comm, dual))
    result = MatrixProgram(_NumPyFunctions(program), pair, bounds, None, settings, prefix)
    pair.destroy()
    return result
