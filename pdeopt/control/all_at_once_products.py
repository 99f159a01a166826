"""Products with the block matrices of all time steps: each reads one step's matrix once for all steps."""

from typing import TYPE_CHECKING

from petsc4py import PETSc

import numpy as np
import numpy.typing as npt

from pdeopt.control.all_at_once_matrices import SharedMatrices
from pdeopt.control.solvers import is_symmetric
from pdeopt.control.waveform import StackedMatrix

if TYPE_CHECKING:
    from pdeopt.control.unsteady import UnsteadyControlProblem

Array = npt.NDArray[np.float64]


class StepProducts:
    """K, Q, B and H of the optimality system, applied to values of all steps.

    States and adjoints have the shape (steps, owned); controls are coordinates of all steps, shape (owned,).

    Parameters
    ----------
    matrices
        The matrices that the steps share, kept.
    problem
        The problem that they come from.

    Attributes
    ----------
    mass, stiffness
        Factors of M at the steps n, n - 1 and n - 2, shape (steps, 3), and of A at n and n - 1, shape (steps, 2).
    symmetric
        Whether M and A are symmetric.
    """

    def __init__(self, matrices: SharedMatrices, problem: "UnsteadyControlProblem") -> None:
        grid = problem.grid
        self._grid, self._matrices, self._steps = grid, matrices, grid.steps
        coefficients = [grid.scheme.coefficients(step) for step in range(1, grid.steps + 1)]
        self.mass = np.array([c.mass for c in coefficients])
        self.stiffness = grid.size * np.array([c.stiffness for c in coefficients])
        self.control_factors: Array = self.stiffness.sum(axis=1)
        self.symmetric = is_symmetric(matrices.mass) and is_symmetric(matrices.stiffness)

        def stack(matrix: PETSc.Mat) -> StackedMatrix:
            return StackedMatrix(matrix, grid.steps)

        self._owned: list[PETSc.Mat] = []  # transposes
        self._pair = self._transposed = (stack(matrices.mass), stack(matrices.stiffness))
        if not self.symmetric:
            self._transposed = (stack(self._transpose(matrices.mass)), stack(self._transpose(matrices.stiffness)))
        self._observation = stack(matrices.observation)
        self.state_mass = stack(matrices.state_mass)
        self._controls = [(stack(matrix), stack(self._transpose(matrix))) for matrix in matrices.controls]
        self._regularisations = [stack(matrix) for matrix in matrices.regularisations]
        self._work = matrices.state_mass.createVecs()

    def _transpose(self, matrix: PETSc.Mat) -> PETSc.Mat:
        self._owned.append(matrix.transpose(PETSc.Mat()))
        return self._owned[-1]

    def state_equation(self, states: Array) -> Array:
        """Return K y. Collective: yes."""
        mass, stiffness = (product(states) for product in self._pair)
        out = self.mass[:, :1] * mass + self.stiffness[:, :1] * stiffness
        out[1:] += self.mass[1:, 1:2] * mass[:-1] + self.stiffness[1:, 1:2] * stiffness[:-1]
        out[2:] += self.mass[2:, 2:] * mass[:-2]
        return out

    def adjoint_equation(self, adjoints: Array) -> Array:
        """Return K' p. Collective: yes."""
        mass, stiffness = (product(adjoints) for product in self._transposed)
        out = self.mass[:, :1] * mass + self.stiffness[:, :1] * stiffness
        out[:-1] += self.mass[1:, 1:2] * mass[1:] + self.stiffness[1:, 1:2] * stiffness[1:]
        out[:-2] += self.mass[2:, 2:] * mass[2:]
        return out

    def observe(self, states: Array) -> Array:
        """Return Q y. Collective: yes."""
        out = self._grid.state_weights[1:, None] * self._observation(states)
        if self._matrices.terminal is not None:
            right, left = self._work
            right.array[:] = states[-1]
            self._matrices.terminal.mult(right, left)
            out[-1] += left.array_r
        return out

    def track(self, states: Array) -> Array:
        """Return Q y with the step for all the weights in time, and no terminal objective. Collective: yes."""
        return self._grid.size * self._observation(states)

    def _by_step(self, controls: Array) -> Array:
        """Return a view of coordinates, shape (steps, controls, owned): all controls are in the state's space."""
        return controls.reshape(self._steps, len(self._controls), -1)

    def from_controls(self, controls: Array) -> Array:
        """Return B u, shape (steps, owned). Collective: yes."""
        values = self._by_step(controls)
        parts = [product(values[:, j]) for j, (product, _) in enumerate(self._controls)]
        return self.control_factors[:, None] * np.sum(parts, axis=0)

    def to_controls(self, adjoints: Array) -> Array:
        """Return B' p. Collective: yes."""
        scaled = self.control_factors[:, None] * adjoints
        return np.stack([product(scaled) for _, product in self._controls], axis=1).ravel()

    def regularise(self, controls: Array) -> Array:
        """Return H u. Collective: yes."""
        values = self._by_step(controls)
        parts = [product(values[:, j]) for j, product in enumerate(self._regularisations)]
        return (self._grid.control_weights[:, None, None] * np.stack(parts, axis=1)).ravel()

    def regularisation_diagonal(self) -> Array:
        """Return the diagonal of H. Collective: yes."""
        diagonals = [matrix.getDiagonal().array_r for matrix in self._matrices.regularisations]
        return np.concatenate([weight * diagonal for weight in self._grid.control_weights for diagonal in diagonals])

    def release(self) -> None:
        """Free work space and transposes; the matrices are the caller's. Collective: yes."""
        transposed = [] if self._transposed is self._pair else list(self._transposed)
        controls = [product for pair in self._controls for product in pair]
        single = [self._observation, self.state_mass, *self._regularisations]
        for product in (*self._pair, *transposed, *controls, *single):
            product.release()
        for item in (*self._owned, *self._work):
            item.destroy()
