"""What a reduced control problem needs of the optimality system: its blocks seen by the modes."""

from petsc4py import PETSc

import numpy as np

from pdeopt.control.kkt import KKTSystem
from pdeopt.fem import forms
from pdeopt.reduced_order.basis import Basis
from pdeopt.reduced_order.inner_product import Array
from pdeopt.report import ConvergenceError


class ModeProducts:
    """Products of modes Z with covectors and matrices, the same on all ranks.

    Parameters
    ----------
    basis
        Z.
    """

    def __init__(self, basis: Basis) -> None:
        self._modes, self._comm = np.ascontiguousarray(basis.modes), basis.comm
        self._dense = PETSc.Mat().createDense(
            ((self._modes.shape[0], PETSc.DETERMINE), (PETSc.DECIDE, self._modes.shape[1])),
            array=np.asfortranarray(self._modes),
            comm=self._comm,
        )
        self._dense.assemble()

    def covector(self, values: Array) -> Array:
        """Return Z' r of a covector's owned values, shape (r,). Collective: yes."""
        return self.total(self._modes.T @ values)

    def total(self, local: Array) -> Array:
        """Return the sum over all ranks. Collective: yes."""
        mine = np.ascontiguousarray(local)
        summed = np.empty_like(mine)
        self._comm.Allreduce(mine, summed)
        return summed

    def matrix(self, matrix: PETSc.Mat) -> Array:
        """Return Z' C Z, shape (r, r). Collective: yes."""
        product = matrix.matMult(self._dense)
        projected = self.covector(np.array(product.getDenseArray(readonly=True)))
        product.destroy()
        return projected

    def rows(self, matrix: PETSc.Mat) -> Array:
        """Return the owned rows of C' Z, shape (owned columns of C, r). Collective: yes."""
        product = matrix.transposeMatMult(self._dense)
        values = np.array(product.getDenseArray(readonly=True))
        product.destroy()
        return values

    def destroy(self) -> None:
        """Free the matrix. Collective: yes."""
        self._dense.destroy()


class ProjectedHessian:
    """J_r'' at one control: two small solves an action.

    With A = L_py, B = L_pu, and everything between modes carrying a hat,

        a' = -A^-1 B u',   b' = -A^-T (L_yy a' + L_yu u'),   J_r'' u' = L_uu u' + L_uy a' + B' b'.

    Parameters
    ----------
    system
        The problem's KKT system, its unknowns at the model's answer.
    products
        Of the modes.
    """

    def __init__(self, system: KKTSystem, products: ModeProducts) -> None:
        self._products, self._idle = products, system.idle
        self._layout = forms.BlockLayout(system.comm, system.layout.sizes[1:-1])
        blocks = system.assemble_blocks()
        self._operator = products.matrix(blocks.state_operator)
        self._curvature = None if blocks.state_state is None else products.matrix(blocks.state_state)
        self._control_rows = [None if block is None else products.rows(block) for block in blocks.control_operators]
        self._mixed_rows = [None if block is None else products.rows(block) for block in blocks.state_control]
        self._blocks = blocks

    def mult(self, direction: PETSc.Vec, out: PETSc.Vec) -> None:
        """Set the covector J_r'' u'. Collective: yes."""
        state = -solve_small(self._operator, self._times(self._control_rows, direction))
        right = self._times(self._mixed_rows, direction)
        if self._curvature is not None:
            right = right + self._curvature @ state
        adjoint = -solve_small(self._operator.T, right)
        for j, idle in enumerate(self._idle):
            total = np.zeros(self._layout.sizes[j])
            for rows, coordinates in ((self._mixed_rows[j], state), (self._control_rows[j], adjoint)):
                if rows is not None:
                    total += rows @ coordinates
            for i in range(len(self._idle)):
                block = self._blocks.control_control[min(i, j)][max(i, j)]  # only the upper triangle is stored
                if block is not None:
                    total += _multiply(block, self._layout.read(direction, i), transpose=i < j)
            total[idle] = 0.0  # the blocks have ones there
            self._layout.write(out, j, total)

    def _times(self, rows: list[Array | None], direction: PETSc.Vec) -> Array:
        """Return sum_j (C_j' Z)' u'_j, shape (r,). Collective: yes."""
        local = np.zeros(self._operator.shape[0])
        for j, block in enumerate(rows):
            if block is not None:
                local += block.T @ self._layout.read(direction, j)
        return self._products.total(local)

    def destroy(self) -> None:
        """Free the blocks. Collective: yes."""
        self._blocks.destroy()


def solve_small(matrix: Array, right: Array) -> Array:
    """Return the solution of a small system that all ranks have. Collective: no.

    Raises
    ------
    ConvergenceError
        If the matrix is singular.
    """
    try:
        return np.asarray(np.linalg.solve(matrix, right))
    except np.linalg.LinAlgError as error:
        raise ConvergenceError(
            f"the state operator is singular on the {matrix.shape[0]} modes: enrich the basis, or start elsewhere"
        ) from error


def _multiply(matrix: PETSc.Mat, values: Array, transpose: bool) -> Array:
    given, out = matrix.createVecs()[::-1] if transpose else matrix.createVecs()
    given.array[:] = values
    (matrix.multTranspose if transpose else matrix.mult)(given, out)
    result = np.array(out.array_r)
    given.destroy()
    out.destroy()
    return result
