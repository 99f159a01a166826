"""The optimality system of all time steps, the controls eliminated, its preconditioner and the norm of the gradient.

Blocks running over the time steps, it reads

    [[Q, K'], [K, -C]] (dy, dp) = (0, B H^-1 j'(u)),   C = B H^-1 B',   du = -H^-1 (j'(u) + B' dp),

where K is block lower triangular. Q and C are near tau q L and tau c L with the mass matrix L of the state space; with
the regularisation robust scaling of Pearson, Stoll and Wathen (SIAM J. Matrix Anal. Appl. 33 (2012) 1126-1152) both are
near tau q L.
"""

from typing import TYPE_CHECKING

from petsc4py import PETSc

import numpy as np
import numpy.typing as npt

from pdeopt.control.all_at_once_matrices import SharedMatrices
from pdeopt.control.all_at_once_presb import Presb
from pdeopt.control.all_at_once_products import StepProducts
from pdeopt.fem import forms
from pdeopt.report import KSP_ADVICE, ConvergenceError

if TYPE_CHECKING:
    from pdeopt.control.unsteady import UnsteadyControlProblem

Array = npt.NDArray[np.float64]


class OptimalitySystem:
    """The operator (as a python matrix) in coordinates where L's diagonal is one.

    Rows of the state equation and adjoints are scaled by s = sqrt(q / c), which makes both diagonal blocks tau q L.

    Parameters
    ----------
    matrices
        What the steps share, kept.
    problem
        The problem that it comes from.

    Attributes
    ----------
    accuracy
        Tolerance for FGMRES relative to that of the gradient.
    sweep
        How the preconditioner treats the steps.
    """

    def __init__(self, matrices: SharedMatrices, problem: "UnsteadyControlProblem") -> None:
        grid = problem.grid
        self._comm, self._steps, self._layout = problem.comm, grid.steps, problem.functional.layout
        self._size = matrices.state_mass.getLocalSize()[0]
        observation, coupling = matrices.weights()
        self._scale = float(np.sqrt(observation / coupling))
        # The gradient sees errors of the state enlarged by up to the inverse of this.
        self.accuracy = 0.3 * min(1.0, self._scale / (grid.size * grid.steps))
        diagonal = matrices.state_mass.getDiagonal()
        self._free = diagonal.array_r > 0.0
        self._root = np.sqrt(np.where(self._free, grid.size * observation * diagonal.array_r, 1.0))
        diagonal.destroy()
        self._products = StepProducts(matrices, problem)
        self._coupling = coupling * self._products.control_factors**2 / grid.control_weights
        self._presb = Presb(matrices, self._products, self._scale, grid.size, self._free)
        self.sweep = self._presb.sweep
        self._held: npt.NDArray[np.bool_] | None = None
        self._create_solvers()

    def _create_solvers(self) -> None:
        comm, local = self._comm, 2 * self._steps * self._size
        total = comm.allreduce(local)
        self._matrix = PETSc.Mat().createPython(((local, total), (local, total)), context=self, comm=comm)
        self._matrix.setUp()
        self._ksp = PETSc.KSP().create(comm)
        self._ksp.setOptionsPrefix("kkt_")
        self._ksp.setOperators(self._matrix)
        defaults: dict[str, object] = {"ksp_type": "fgmres", "ksp_gmres_restart": 60, "pc_type": "python"}
        with forms.default_options("kkt_", defaults):
            self._ksp.getPC().setType("python")
            self._ksp.getPC().setPythonContext(_Preconditioner(self))
            self._ksp.setFromOptions()
        self._right, self._solution = self._matrix.createVecs()
        sizes = (self._layout.offsets[-1], self._layout.global_size)
        self._regularisation = PETSc.Mat().createPython((sizes, sizes), context=_Regularisation(self), comm=comm)
        self._regularisation.setOption(PETSc.Mat.Option.SPD, True)
        self._regularisation.setUp()
        self._control_ksp = PETSc.KSP().create(comm)
        self._control_ksp.setOptionsPrefix("kkt_mass_")
        self._control_ksp.setOperators(self._regularisation)
        with forms.default_options("kkt_mass_", {"ksp_type": "cg", "ksp_rtol": 1e-13, "pc_type": "jacobi"}):
            self._control_ksp.setFromOptions()
        self._controls = [self._layout.create_vector() for _ in range(2)]

    def mult(self, matrix: PETSc.Mat, vector: PETSc.Vec, out: PETSc.Vec) -> None:
        """Apply the scaled system. Collective: yes."""
        values = vector.array_r.reshape(2, self._steps, self._size) / self._root
        states, adjoints = values[0], self._scale * values[1]
        result = np.empty_like(values)
        result[0] = self._products.observe(states) + self._products.adjoint_equation(adjoints)
        result[1] = self._scale * (self._products.state_equation(states) - self._control_term(adjoints))
        result *= self._free
        out.array[:] = (result / self._root).ravel()

    def precondition(self, vector: PETSc.Vec, out: PETSc.Vec) -> None:
        """Apply the preconditioner. Collective: yes."""
        residual = vector.array_r.reshape(2, self._steps, self._size) * self._root * self._free
        out.array[:] = (self._presb.apply(residual) * self._root).ravel()

    def _control_term(self, adjoints: Array) -> Array:
        """Return B H^-1 B' p. Collective: yes."""
        if self._held is not None:
            return self._products.from_controls(self.solve_regularisation(self._products.to_controls(adjoints)))
        return self._coupling[:, None] * self._products.state_mass(adjoints)

    def solve_regularisation(self, right: Array) -> Array:
        """Return H^-1 r on the free controls and zero on the held ones. Collective: yes."""
        vector, solution = self._controls
        vector.array[:] = right if self._held is None else np.where(self._held, 0.0, right)
        self._control_ksp.solve(vector, solution)
        return np.array(solution.array_r)

    def regularise(self, controls: Array) -> Array:
        """Return H u on the free controls and u on the held ones. Collective: yes."""
        if self._held is None:
            return self._products.regularise(controls)
        return np.where(self._held, controls, self._products.regularise(np.where(self._held, 0.0, controls)))

    def regularisation_diagonal(self) -> Array:
        """Return the diagonal of H. Collective: yes."""
        return self._products.regularisation_diagonal()

    def newton_step(
        self, gradient: PETSc.Vec, held: npt.NDArray[np.bool_], shift: Array, rtol: float, max_iterations: int
    ) -> tuple[Array, list[float]]:
        """Return the change of the controls, shape (owned,), and the residuals of FGMRES. Collective: yes.

        Parameters
        ----------
        gradient
            j'(u), state and adjoint equation solved.
        held
            Controls at a bound.
        shift
            Their distance to it, zero elsewhere.
        rtol, max_iterations
            For FGMRES.

        Raises
        ------
        ConvergenceError
            If FGMRES fails.
        """
        self._held = held if self._comm.allreduce(bool(held.any())) else None
        right = np.array(gradient.array_r)
        moved = shift
        if self._held is not None:
            right += self._products.regularise(shift)
        moved = shift - self.solve_regularisation(right)  # the step if the adjoint did not change
        load = np.zeros((2, self._steps, self._size))
        load[1] = -self._scale * self._products.from_controls(moved) * self._free
        self._right.array[:] = (load / self._root).ravel()
        self._solution.set(0.0)
        self._ksp.setTolerances(rtol=rtol, atol=0.0, max_it=max_iterations)
        self._ksp.setConvergenceHistory()
        self._ksp.solve(self._right, self._solution)
        reason = self._ksp.getConvergedReason()
        if reason < 0:
            raise ConvergenceError(
                f"FGMRES failed on the optimality system of all steps (reason {reason}): {KSP_ADVICE.get(reason, '')}"
            )
        values = self._solution.array_r.reshape(2, self._steps, self._size) / self._root
        step = moved - self.solve_regularisation(self._products.to_controls(self._scale * values[1]))
        return step, [float(norm) for norm in self._ksp.getConvergenceHistory()]

    # Norms and active sets -------------------------------------------------------------------------------------------

    def active(
        self, control: PETSc.Vec, gradient: PETSc.Vec, bounds: tuple[PETSc.Vec, PETSc.Vec] | None
    ) -> tuple[npt.NDArray[np.bool_], Array]:
        """Return which controls a bound holds, and their distance to it (zero elsewhere). Collective: yes."""
        values = control.array_r
        if bounds is None:
            return np.zeros(values.size, dtype=bool), np.zeros(values.size)
        lower, upper = bounds[0].array_r, bounds[1].array_r
        predicted = values - gradient.array_r / self.regularisation_diagonal()
        below, above = predicted < lower, predicted > upper
        shift = np.where(below, lower - values, np.where(above, upper - values, 0.0))
        return below | above, shift

    def gradient_norm(self, gradient: PETSc.Vec) -> float:
        """Return the norm of a covector of the controls in the dual of the regularisation's. Collective: yes."""
        nothing = np.zeros(gradient.getLocalSize(), dtype=bool)
        return self.residual_norm(gradient, nothing, np.zeros(nothing.size))

    def residual_norm(self, gradient: PETSc.Vec, held: npt.NDArray[np.bool_], shift: Array) -> float:
        """Return the norm of the gradient by the free controls and of the held ones' distance. Collective: yes."""
        diagonal = self.regularisation_diagonal()
        free = np.where(held, 0.0, gradient.array_r)
        local = float(np.sum(free**2 / diagonal) + np.sum(diagonal * shift**2))
        return float(np.sqrt(self._comm.allreduce(local)))

    def release(self) -> None:
        """Free the PETSc objects. Collective: yes."""
        self._presb.release()
        self._products.release()
        objects = (self._ksp, self._control_ksp, self._matrix, self._regularisation, self._right, self._solution)
        for item in (*objects, *self._controls):
            item.destroy()


class _Preconditioner:
    """The preconditioner as PETSc calls it."""

    def __init__(self, system: OptimalitySystem) -> None:
        self._system = system

    def apply(self, pc: PETSc.PC, vector: PETSc.Vec, out: PETSc.Vec) -> None:
        """Apply it. Collective: yes."""
        self._system.precondition(vector, out)


class _Regularisation:
    """H on the free controls and the identity on the held ones, as PETSc calls it."""

    def __init__(self, system: OptimalitySystem) -> None:
        self._system = system

    def mult(self, matrix: PETSc.Mat, vector: PETSc.Vec, out: PETSc.Vec) -> None:
        """Apply H. Collective: yes."""
        out.array[:] = self._system.regularise(vector.array_r)

    def getDiagonal(self, matrix: PETSc.Mat, out: PETSc.Vec) -> None:
        """Set the diagonal. Collective: yes."""
        out.array[:] = self._system.regularisation_diagonal()
