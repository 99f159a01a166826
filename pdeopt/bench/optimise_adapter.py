"""A control problem as a nonlinear program in NumPy and SciPy, for other codes to solve; serial, small meshes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pdeopt.control import ControlProblem
from pdeopt.control.kkt import Blocks
from pdeopt.optimise.control_program import ControlProgram
from pdeopt.problems.nonlinear_program import NonlinearProgram
from pdeopt.report import InputError

if TYPE_CHECKING:
    from petsc4py import PETSc

    import scipy.sparse

Array = npt.NDArray[np.float64]


class ControlAdapter:
    """The discrete problem min J(y, u) with F(y, u) = 0, G(y, u) = 0 and bounds, in the nodal values x = (y, u).

    Objective and its derivatives are multiplied by a factor that makes the largest entry of its gradient 1 at the
    start, since tolerances of other codes are absolute. Values that Dirichlet conditions fix, and controls that act
    nowhere, are fixed by equal bounds; their equations are left out.

    Parameters
    ----------
    problem
        The control problem, on one rank. Every evaluation moves it.
    name
        For tables.

    Attributes
    ----------
    program
        The program.
    scale
        The factor.

    Raises
    ------
    InputError
        If the problem is spread over several ranks.
    """

    def __init__(self, problem: ControlProblem, name: str) -> None:
        if problem.comm.size > 1:
            raise InputError(f"the problem is spread over {problem.comm.size} ranks: other codes take it from one")
        self._control = control = ControlProgram(problem, "factorisation")
        self._pair, self._residual = control.create(), control.create()
        control.get(self._pair)
        start = np.array(self._pair.primal.array_r)
        fixed = np.concatenate([control.system.dirichlet_mask(), *control.system.idle])
        self._equations = np.flatnonzero(~control.system.dirichlet_mask())
        bounds = control.bounds()
        lower = np.full(start.size, -np.inf) if bounds is None else np.array(bounds[0].array_r)
        upper = np.full(start.size, np.inf) if bounds is None else np.array(bounds[1].array_r)
        lower[fixed] = upper[fixed] = start[fixed]
        self.scale = 1.0
        self._at: tuple[Array, Array] | None = None
        self._count = self._equations.size + len(control.system.lagrangian.constraints)
        self.scale = 1.0 / max(float(np.max(np.abs(self._gradient(start)), initial=0.0)), 1e-300)
        self.program = NonlinearProgram(
            name=name,
            start=start,
            lower=lower,
            upper=upper,
            constraint_lower=np.zeros(self._count),
            constraint_upper=np.zeros(self._count),
            objective=self._objective,
            gradient=self._gradient,
            constraints=self._constraints,
            jacobian=self._jacobian,
            hessian=self._hessian,
        )

    def _move(self, x: Array, multipliers: Array | None = None) -> None:
        """Let the problem stand at a point; the multipliers belong to the objective without its factor."""
        dual = np.zeros(self._count) if multipliers is None else multipliers / self.scale
        if self._at is not None and np.array_equal(x, self._at[0]) and np.array_equal(dual, self._at[1]):
            return
        self._at = np.array(x), np.array(dual)
        self._pair.primal.array[:] = x
        self._pair.dual.array[:] = 0.0
        self._pair.dual.array[self._equations] = dual[: self._equations.size]
        self._pair.dual.array[self._pair.dual.getSize() - self._count + self._equations.size :] = dual[
            self._equations.size :
        ]
        self._control.move(self._pair)

    def _objective(self, x: Array) -> float:
        self._move(x)
        return self.scale * self._control.objective()

    def _gradient(self, x: Array) -> Array:
        self._move(x)
        self._control.residual(self._residual)
        return self.scale * np.array(self._residual.primal.array_r)

    def _constraints(self, x: Array) -> Array:
        self._move(x)
        self._control.residual(self._residual)
        values = np.array(self._residual.dual.array_r)
        extra = values.size - (self._count - self._equations.size)
        return np.concatenate([values[self._equations], values[extra:]])

    def _jacobian(self, x: Array) -> "scipy.sparse.csr_array":
        import scipy.sparse as sparse

        self._move(x)
        blocks = self._control.blocks()
        sizes = self._control.system.layout.sizes
        row = [_csr(blocks.state_operator, (sizes[0], sizes[0]))]
        row += [_csr(block, (sizes[0], sizes[1 + j])) for j, block in enumerate(blocks.control_operators)]
        matrix = sparse.hstack(row, format="csr")[self._equations]
        gradients = [gradient.array_r[: x.size] for gradient in self._control.constraint_gradients()]
        if gradients:
            rows, columns = np.indices((len(gradients), x.size)).reshape(2, -1)
            dense = sparse.coo_array((np.concatenate(gradients), (rows, columns)), shape=(len(gradients), x.size))
            matrix = sparse.vstack([matrix, dense], format="csr")
        return sparse.csr_array(matrix)

    def _hessian(self, x: Array, multipliers: Array) -> "scipy.sparse.csr_array":
        import scipy.sparse as sparse

        self._move(x, multipliers)
        return sparse.csr_array(self.scale * _hessian(self._control.blocks(), self._control.system.layout.sizes))

    def destroy(self) -> None:
        """Free the PETSc objects; the problem stays at the last point. Collective: no."""
        self._pair.destroy()
        self._residual.destroy()
        self._control.destroy()


def _hessian(blocks: Blocks, sizes: Sequence[int]) -> "scipy.sparse.csr_array":
    """Return L_xx from its blocks, of which those below the diagonal are not stored."""
    import scipy.sparse as sparse

    count = len(blocks.control_operators) + 1
    table: list[list[sparse.csr_array]] = [[None] * count for _ in range(count)]
    for i in range(count):
        for j in range(i, count):
            if i == 0:
                block = blocks.state_state if j == 0 else blocks.state_control[j - 1]
            else:
                block = blocks.control_control[i - 1][j - 1]
            table[i][j] = _csr(block, (sizes[i], sizes[j]))
            table[j][i] = table[i][j].T if i != j else table[i][j]
    return sparse.csr_array(sparse.block_array(table, format="csr"))


def _csr(matrix: "PETSc.Mat | None", shape: tuple[int, int]) -> "scipy.sparse.csr_array":
    """Return a copy of a matrix on one rank, stored zeros included; an empty one for None."""
    import scipy.sparse as sparse

    if matrix is None:
        return sparse.csr_array(shape)
    pointers, columns, values = matrix.getValuesCSR()
    return sparse.csr_array((values, columns, pointers), shape=shape)
