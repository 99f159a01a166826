"""The optimality system of all time steps at once, for linear problems with tracking and control in the whole domain.

With the controls eliminated it reads, blocks running over the time steps,

    [[Q, K'], [K, -C]] (dy, dp) = (0, B H^-1 j'(u)),   C = B H^-1 B',   du = -H^-1 (j'(u) + B' dp),

where K is block lower triangular. Q and C are near tau q L and tau c L with the mass matrix L of the state space. The
preconditioner PRESB (Axelsson, Neytcheva, Ahmad, Numer. Algorithms 66 (2014) 811-841), here with the regularisation
robust scaling of Pearson, Stoll and Wathen (SIAM J. Matrix Anal. Appl. 33 (2012) 1126-1152), needs one sweep forward
and one backward through the steps, with V-cycles for tau Q + s (a_0 M + tau b_0 A): one matrix for all steps.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from petsc4py import PETSc

import numpy as np
import numpy.typing as npt

from pdeopt.control.all_at_once_matrices import SharedMatrices
from pdeopt.control.preconditioners import ShiftedSolver
from pdeopt.control.solvers import is_symmetric
from pdeopt.fem import forms
from pdeopt.report import KSP_ADVICE, ConvergenceError, SolveReport

if TYPE_CHECKING:
    from pdeopt.control.unsteady import UnsteadyControlProblem

Array = npt.NDArray[np.float64]
_PATIENCE = 6  # Newton steps within which the residual must have halved
_ROUNDS = 30  # Newton steps: one or two without bounds, as many as there are active sets to try with them


class AllAtOnce:
    """Newton's method, with active sets where there are bounds, on the optimality system of all time steps.

    Parameters
    ----------
    problem
        A problem for which `pdeopt.control.all_at_once_matrices.unfit` has nothing to say.

    Attributes
    ----------
    bounded
        Whether any control has a bound.
    """

    def __init__(self, problem: "UnsteadyControlProblem") -> None:
        started = time.perf_counter()
        self._functional, self._grid, self._comm = problem.functional, problem.grid, problem.comm
        self._matrices = SharedMatrices(problem)
        self._system = _System(self._matrices, problem)
        bounds = problem.functional.bounds()
        self.bounded = bounds is not None
        for vector in bounds or ():
            vector.destroy()
        self._seconds = {"setup": time.perf_counter() - started}

    def solve(
        self, *, rtol: float, max_iterations: int, monitor: Callable[[int, float], None] | None = None
    ) -> SolveReport:
        """Solve, and leave the optimal controls in the functional. Collective: yes.

        Raises
        ------
        ConvergenceError
            If the tolerance is not reached.
        """
        started = time.perf_counter()
        functional, system = self._functional, self._system
        control, gradient = functional.create_vector(), functional.create_vector()
        bounds = functional.bounds()
        residuals: list[float] = []
        krylov: list[float] = []
        iterations = 0
        self._project(control, bounds)  # zero, moved to the bounds
        functional.derivative(control, gradient)
        reference = system.gradient_norm(gradient)
        if reference == 0.0:
            reference = 1.0
        functional.get_control(control)
        self._project(control, bounds)
        converged = False
        for number in range(_ROUNDS):
            functional.derivative(control, gradient)
            held, shift = system.active(control, gradient, bounds)
            norm = system.residual_norm(gradient, held, shift) / reference
            residuals.append(norm)
            if monitor is not None:
                monitor(number, norm)
            converged = norm <= rtol
            cycling = len(residuals) > _PATIENCE and norm > 0.5 * residuals[-1 - _PATIENCE]
            if converged or cycling or not np.isfinite(norm):
                break
            tolerance = system.accuracy * min(1e-3, rtol / norm)
            step, krylov = system.newton_step(gradient, held, shift, tolerance, max_iterations)
            iterations += len(krylov) - 1
            control.array[:] += step
        self._seconds["total"] = time.perf_counter() - started + self._seconds["setup"]
        functional.set_control(control)
        report = SolveReport(
            method="FGMRES + PRESB on all time steps" + (", active sets" if bounds else ""),
            why="linear, tracking and control in the whole domain: the Schur complement can be matched",
            converged=converged,
            reason=2 if converged else -3,
            iterations=len(residuals) - 1,
            linear_iterations=iterations,
            residuals=tuple(residuals),
            linear_residuals=tuple(krylov),
            seconds=self._seconds,
            quantities={
                "unknowns": 2 * self._grid.steps * self._matrices.state_mass.getSize()[0] + control.getSize(),
                "time steps": self._grid.steps,
                "ranks": self._comm.size,
                "objective": functional.value(control),
            },
        )
        for vector in (control, gradient, *(bounds or ())):
            vector.destroy()
        if not converged:
            raise ConvergenceError(
                f"the optimality system of all time steps stands at a relative residual of {residuals[-1]:.2e} after "
                f"{len(residuals) - 1} Newton steps, above {rtol:.1e}: choose method 'bntr'",
                report,
            )
        return report

    @staticmethod
    def _project(control: PETSc.Vec, bounds: tuple[PETSc.Vec, PETSc.Vec] | None) -> None:
        if bounds is not None:
            control.pointwiseMax(control, bounds[0])
            control.pointwiseMin(control, bounds[1])

    def destroy(self) -> None:
        """Free the PETSc objects. Collective: yes."""
        self._system.release()
        self._matrices.destroy()


class _System:
    """The operator (as a python matrix), its preconditioner, and the norm, in coordinates where L's diagonal is one.

    Rows of the state equation and adjoints are scaled by s = sqrt(q / c), which makes both diagonal blocks tau q L.

    Attributes
    ----------
    accuracy
        Tolerance for FGMRES relative to that of the gradient.
    """

    def __init__(self, matrices: SharedMatrices, problem: "UnsteadyControlProblem") -> None:
        self._matrices, self._grid, self._comm = matrices, problem.grid, problem.comm
        grid = problem.grid
        self._steps, self._count = grid.steps, len(problem.controls)
        self._size = matrices.state_mass.getLocalSize()[0]
        self._observation, coupling = matrices.weights()
        self._scale = float(np.sqrt(self._observation / coupling))
        # The gradient sees errors of the state enlarged by up to the inverse of this.
        self.accuracy = 0.3 * min(1.0, self._scale / (grid.size * grid.steps))
        coefficients = [grid.scheme.coefficients(step) for step in range(1, grid.steps + 1)]
        self._mass_factors = np.array([c.mass for c in coefficients])
        self._stiffness_factors = grid.size * np.array([c.stiffness for c in coefficients])
        self._control_factors = self._stiffness_factors.sum(axis=1)
        self._symmetric = is_symmetric(matrices.mass) and is_symmetric(matrices.stiffness)
        diagonal = matrices.state_mass.getDiagonal()
        self._free = diagonal.array_r > 0.0
        weight = grid.size * self._observation * diagonal.array_r
        self._root = np.sqrt(np.where(self._free, weight, 1.0))
        diagonal.destroy()
        shifted = matrices.observation.copy()
        shifted.scale(grid.size)
        different = PETSc.Mat.Structure.DIFFERENT_NONZERO_PATTERN
        shifted.axpy(self._scale * self._mass_factors[0, 0], matrices.mass, structure=different)
        shifted.axpy(self._scale * self._stiffness_factors[0, 0], matrices.stiffness, structure=different)
        whole = shifted.getDiagonal()
        whole.array[~self._free] = 1.0
        shifted.setDiagonal(whole)
        whole.destroy()
        self._shifted = ShiftedSolver(shifted, self._symmetric, accurate=False)
        self._work, self._product = matrices.state_mass.createVecs()
        self._held: npt.NDArray[np.bool_] | None = None
        self._create_solvers(problem)

    def _create_solvers(self, problem: "UnsteadyControlProblem") -> None:
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
            self._ksp.getPC().setPythonContext(_Presb(self))
            self._ksp.setFromOptions()
        self._right, self._solution = self._matrix.createVecs()
        layout = problem.functional.layout
        sizes = (layout.offsets[-1], layout.global_size)
        self._layout = layout
        self._regularisation = PETSc.Mat().createPython((sizes, sizes), context=_Regularisation(self), comm=comm)
        self._regularisation.setOption(PETSc.Mat.Option.SPD, True)
        self._regularisation.setUp()
        self._control_ksp = PETSc.KSP().create(comm)
        self._control_ksp.setOptionsPrefix("kkt_mass_")
        self._control_ksp.setOperators(self._regularisation)
        with forms.default_options("kkt_mass_", {"ksp_type": "cg", "ksp_rtol": 1e-13, "pc_type": "jacobi"}):
            self._control_ksp.setFromOptions()
        self._controls = [layout.create_vector() for _ in range(2)]

    # Products with the steps' matrices -------------------------------------------------------------------------------

    def _apply(self, matrix: PETSc.Mat, values: Array, transpose: bool = False) -> Array:
        """Return the product of a state matrix with values of shape (owned,). Collective: yes."""
        self._work.array[:] = values
        (matrix.multTranspose if transpose else matrix.mult)(self._work, self._product)
        return np.array(self._product.array_r)

    def _pair(self, values: Array, transpose: bool) -> tuple[Array, Array]:
        """Return M and A, or their transposes, times values. Collective: yes."""
        transpose = transpose and not self._symmetric
        matrices = self._matrices
        return self._apply(matrices.mass, values, transpose), self._apply(matrices.stiffness, values, transpose)

    def state_equation(self, states: Array) -> Array:
        """Return K y, shape (steps, owned). Collective: yes."""
        out = np.empty_like(states)
        mass, stiffness = self._mass_factors, self._stiffness_factors
        before, earlier = (np.zeros(self._size), np.zeros(self._size)), np.zeros(self._size)
        for n in range(self._steps):
            pair = self._pair(states[n], transpose=False)
            out[n] = mass[n, 0] * pair[0] + mass[n, 1] * before[0] + mass[n, 2] * earlier
            out[n] += stiffness[n, 0] * pair[1] + stiffness[n, 1] * before[1]
            earlier, before = before[0], pair
        return out

    def adjoint_equation(self, adjoints: Array) -> Array:
        """Return K' p, shape (steps, owned). Collective: yes."""
        out = np.zeros_like(adjoints)
        mass, stiffness = self._mass_factors, self._stiffness_factors
        for n in range(self._steps):
            pair = self._pair(adjoints[n], transpose=True)
            for back in range(min(n, 2) + 1):
                out[n - back] += mass[n, back] * pair[0]
            out[n] += stiffness[n, 0] * pair[1]
            if n > 0:
                out[n - 1] += stiffness[n, 1] * pair[1]
        return out

    def observe(self, states: Array) -> Array:
        """Return Q y, shape (steps, owned). Collective: yes."""
        out = np.empty_like(states)
        for n in range(self._steps):
            out[n] = self._grid.state_weights[n + 1] * self._apply(self._matrices.observation, states[n])
        if self._matrices.terminal is not None:
            out[-1] += self._apply(self._matrices.terminal, states[-1])
        return out

    def from_controls(self, controls: Array) -> Array:
        """Return B u, shape (steps, owned), from coordinates of all controls. Collective: yes."""
        out = np.zeros((self._steps, self._size))
        for n in range(self._steps):
            for j, matrix in enumerate(self._matrices.controls):
                part = controls[self._layout.slice(n * self._count + j)]
                out[n] += self._control_factors[n] * self._apply(matrix, part)
        return out

    def to_controls(self, adjoints: Array) -> Array:
        """Return B' p over the coordinates of all controls. Collective: yes."""
        out = np.empty(self._layout.offsets[-1])
        for n in range(self._steps):
            for j, matrix in enumerate(self._matrices.controls):
                values = self._control_factors[n] * self._apply(matrix, adjoints[n], transpose=True)
                out[self._layout.slice(n * self._count + j)] = values
        return out

    def regularise(self, controls: Array) -> Array:
        """Return H u. Collective: yes."""
        out = np.empty_like(controls)
        for n in range(self._steps):
            for j, matrix in enumerate(self._matrices.regularisations):
                place = self._layout.slice(n * self._count + j)
                out[place] = self._grid.control_weights[n] * self._apply(matrix, controls[place])
        return out

    def regularisation_diagonal(self) -> Array:
        """Return the diagonal of H. Collective: yes."""
        diagonals = [matrix.getDiagonal().array_r for matrix in self._matrices.regularisations]
        return np.concatenate([weight * diagonal for weight in self._grid.control_weights for diagonal in diagonals])

    def solve_regularisation(self, right: Array) -> Array:
        """Return H^-1 r on the free controls and zero on the held ones. Collective: yes."""
        vector, solution = self._controls
        vector.array[:] = right if self._held is None else np.where(self._held, 0.0, right)
        self._control_ksp.solve(vector, solution)
        return np.array(solution.array_r)

    # The reduced system ----------------------------------------------------------------------------------------------

    def mult(self, matrix: PETSc.Mat, vector: PETSc.Vec, out: PETSc.Vec) -> None:
        """Apply the scaled optimality system. Collective: yes."""
        values = vector.array_r.reshape(2, self._steps, self._size) / self._root
        states, adjoints = values[0], self._scale * values[1]
        result = np.empty_like(values)
        result[0] = self.observe(states) + self.adjoint_equation(adjoints)
        result[1] = self._scale * (self.state_equation(states) - self._control_term(adjoints))
        result *= self._free
        out.array[:] = (result / self._root).ravel()

    def _control_term(self, adjoints: Array) -> Array:
        """Return B H^-1 B' p. Collective: yes."""
        if self._held is not None:
            return self.from_controls(self.solve_regularisation(self.to_controls(adjoints)))
        coupling = self._observation / self._scale**2
        factors = coupling * self._control_factors**2 / self._grid.control_weights
        return np.stack([
            factor * self._apply(self._matrices.state_mass, values)
            for factor, values in zip(factors, adjoints, strict=True)
        ])  # fmt: skip

    def precondition(self, vector: PETSc.Vec, out: PETSc.Vec) -> None:
        """Apply PRESB: a sweep forward with W + V, one backward with W + V'. Collective: yes."""
        residual = vector.array_r.reshape(2, self._steps, self._size) * self._root * self._free
        scale, tau = self._scale, self._grid.size
        mass, stiffness = scale * self._mass_factors, scale * self._stiffness_factors
        difference = np.empty((self._steps, self._size))
        pair, earlier = (np.zeros(self._size), np.zeros(self._size)), np.zeros(self._size)
        for n in range(self._steps):
            right = residual[0, n] + residual[1, n]
            right -= mass[n, 1] * pair[0] + stiffness[n, 1] * pair[1] + mass[n, 2] * earlier
            difference[n] = self._cycle(right, transpose=False)
            earlier = pair[0]
            if n + 1 < self._steps:
                pair = self._pair(difference[n], transpose=False)
        result = np.empty((2, self._steps, self._size))
        later: list[tuple[Array, Array]] = []  # products with the adjoints of the next steps, the next one first
        for n in reversed(range(self._steps)):
            right = residual[0, n] - tau * self._apply(self._matrices.observation, difference[n])
            if later:
                right -= mass[n + 1, 1] * later[0][0] + stiffness[n + 1, 1] * later[0][1]
            if len(later) > 1:
                right -= mass[n + 2, 2] * later[1][0]
            result[1, n] = self._cycle(right, transpose=True)
            later = [self._pair(result[1, n], transpose=True), *later[:1]]
        result[0] = difference + result[1]
        out.array[:] = (result * self._root).ravel()

    def _cycle(self, right: Array, transpose: bool) -> Array:
        self._work.array[:] = right
        (self._shifted.solve_transpose if transpose else self._shifted.solve)(self._work, self._product)
        return np.where(self._free, self._product.array_r, 0.0)

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
            right += self.regularise(shift)
        moved = shift - self.solve_regularisation(right)  # the step if the adjoint did not change
        load = np.zeros((2, self._steps, self._size))
        load[1] = -self._scale * self.from_controls(moved) * self._free
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
        step = moved - self.solve_regularisation(self.to_controls(self._scale * values[1]))
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
        self._shifted.release()
        objects = (self._ksp, self._control_ksp, self._matrix, self._regularisation, self._right, self._solution)
        for item in (*objects, self._work, self._product, *self._controls):
            item.destroy()


class _Presb:
    """The preconditioner as PETSc calls it."""

    def __init__(self, system: _System) -> None:
        self._system = system

    def apply(self, pc: PETSc.PC, vector: PETSc.Vec, out: PETSc.Vec) -> None:
        """Apply PRESB. Collective: yes."""
        self._system.precondition(vector, out)


class _Regularisation:
    """H on the free controls and the identity on the held ones, as PETSc calls it."""

    def __init__(self, system: _System) -> None:
        self._system = system

    def mult(self, matrix: PETSc.Mat, vector: PETSc.Vec, out: PETSc.Vec) -> None:
        """Apply H. Collective: yes."""
        values, held = vector.array_r, self._system._held
        if held is None:
            out.array[:] = self._system.regularise(values)
            return
        out.array[:] = np.where(held, values, self._system.regularise(np.where(held, 0.0, values)))

    def getDiagonal(self, matrix: PETSc.Mat, out: PETSc.Vec) -> None:
        """Set the diagonal. Collective: yes."""
        out.array[:] = self._system.regularisation_diagonal()
