"""Semismooth Newton on the optimality system: one loop for linear, nonlinear, bounded and constrained problems.

Bounds enter by the primal-dual active set strategy (Hintermueller, Ito, Kunisch, SIAM J. Optim. 13 (2002) 865-888):
with the gradient g = L_u by coordinates and c = diag(L_uu), a coordinate is held where u - g / c is beyond a bound, and

    r_u = c (u - clip(u - g / c, lower, upper)).

Extra constraints G_k = 0 border the KKT matrix and are eliminated by k further solves with it.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np
import numpy.typing as npt

from pdeopt import parallel
from pdeopt.control import solvers, structure
from pdeopt.control.interior import InteriorPoint
from pdeopt.control.kkt import Blocks, KKTSystem
from pdeopt.control.preconditioners import LinearContext
from pdeopt.fem import forms
from pdeopt.fem.saddle import SolverSetup
from pdeopt.report import ConvergenceError, SolveReport

Array = npt.NDArray[np.float64]
_SMALLEST_STEP = 2.0**-12
_ARMIJO = 1e-4
_STALL, _PATIENCE = 0.9, 4  # active sets that do not reduce the residual to this share in so many steps have stalled
_INTERIOR_STEPS = 40


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Box bounds on the coordinates of one control, shape (owned,) each; infinite where there is none."""

    lower: Array
    upper: Array


@dataclasses.dataclass
class _Point:
    """The residual at one point, with the active sets that belong to it."""

    residual: PETSc.Vec
    constraints: Array
    active: list[npt.NDArray[np.bool_]]
    targets: list[Array]
    norm: float
    parts: tuple[float, float, float]

    @property
    def merit(self) -> float:
        """The Riesz norm of the residual together with the constraint values."""
        return math.hypot(self.norm, float(np.linalg.norm(self.constraints)))


class NewtonSolver:
    """Solves the optimality system of a control problem.

    Parameters
    ----------
    system
        The KKT system.
    bounds
        One pair of bounds per control.
    method
        A name of `pdeopt.control.solvers.METHODS`, or None to choose by structure.
    state_setup
        Solver of the state equation in "reduced_hessian", see `pdeopt.control.state_solvers.state_solver`.
    """

    def __init__(
        self,
        system: KKTSystem,
        bounds: Sequence[Bounds],
        method: str | None = None,
        state_setup: SolverSetup | None = None,
    ) -> None:
        self.system, self._bounds, self._state_setup = system, bounds, state_setup
        finite = any(bool(np.isfinite(b.lower).any() or np.isfinite(b.upper).any()) for b in bounds)
        self._bounded = bool(system.comm.allreduce(finite, op=MPI.LOR))
        self._method, self._why = method, "asked for"
        self._seconds = {"assembly": 0.0, "setup": 0.0, "solve": 0.0}
        self._linear_iterations, self._linear_residuals = 0, tuple[float, ...]()
        self._solver_name = ""
        self._structure: structure.Structure | None = None
        self._solver: solvers.KKTSolver | None = None
        self._blocks: Blocks | None = None
        self._solver_active: list[npt.NDArray[np.bool_]] | None = None

    def solve(
        self,
        rtol: float = 1e-8,
        atol: float = 1e-14,
        max_iterations: int = 50,
        monitor: Callable[[int, float], None] | None = None,
    ) -> SolveReport:
        """Iterate until the Riesz norm of the KKT residual has fallen by ``rtol``. Collective: yes.

        Parameters
        ----------
        rtol
            Relative to the residual at zero state, control and adjoint (Dirichlet values and bounds respected).
        atol
            Absolute; for constraints too.
        max_iterations
            Newton or active-set steps.
        monitor
            Called on every rank with the iteration and the residual norm; an exception in it ends the solve on all.

        Raises
        ------
        ConvergenceError
            If a linear solve, the line search or the iteration limit fails.
        """
        self._prepare()
        try:
            return self._iterate(rtol, atol, max_iterations, monitor)
        finally:
            self._destroy_solver()
            self._state_mass.destroy()

    def _iterate(
        self, rtol: float, atol: float, max_iterations: int, monitor: Callable[[int, float], None] | None
    ) -> SolveReport:
        system = self.system
        callbacks = parallel.CallbackErrors(system.comm)
        unknowns = system.layout.create_vector()
        system.get_unknowns(unknowns)
        starts_at_zero = unknowns.norm() == 0.0
        reference = math.nan if starts_at_zero else self._reference(unknowns)
        system.impose_dirichlet()
        self._clip()
        system.get_unknowns(unknowns)
        point = self._evaluate()
        if starts_at_zero:
            reference = point.norm
        history = [point.norm]
        iteration, stalled, best = 0, 0, math.inf
        while True:
            if monitor is not None:
                with callbacks.guard():
                    monitor(iteration, point.norm)
                callbacks.raise_stored()
            feasible = not point.constraints.size or np.max(np.abs(point.constraints)) <= max(atol, 1e-12)
            if point.norm <= max(rtol * reference, atol) and feasible:
                break
            if not math.isfinite(point.norm):
                raise ConvergenceError("the KKT residual is NaN or Inf: check the coefficients and the initial guess")
            if iteration >= max_iterations:
                self._fail(
                    history,
                    f"{max_iterations} iterations did not reach the tolerance: raise max_iterations",
                )
            accuracy = 0.3 * rtol * reference / max(point.norm, 1e-300)
            if not system.linear_quadratic:
                accuracy = max(accuracy, min(1e-2, 0.1 * point.norm / reference))
            elif self._bounded:
                accuracy = max(accuracy, 1e-5)  # early active sets are guesses: solve them loosely
            stalled, best = (0, point.norm) if point.norm < _STALL * best else (stalled + 1, best)
            if stalled == _PATIENCE and self._bounded and system.linear_quadratic and not point.constraints.size:
                point = self._interior(unknowns, rtol * reference, history)
            else:
                step = self._step(point, min(max(accuracy, 1e-13), 0.1))
                point = self._advance(unknowns, step, point, history)
                history.append(point.norm)
            iteration = len(history) - 1
        seconds = {**self._seconds, "total": time.perf_counter() - self._started}
        quantities = {
            "unknowns": system.layout.global_size,
            "ranks": system.comm.size,
            "objective": system.objective(),
            "relative KKT residual (Riesz)": point.norm / reference if reference > 0 else 0.0,
        }
        if self._bounded:
            count = sum(int(np.count_nonzero(mask)) for mask in point.active)
            quantities["controls at a bound"] = int(system.comm.allreduce(count))
        return SolveReport(
            method=self._solver_name or "no solve was needed",
            why=self._why,
            converged=True,
            reason=2,
            iterations=iteration,
            linear_iterations=self._linear_iterations,
            residuals=tuple(history),
            linear_residuals=self._linear_residuals,
            seconds=seconds,
            quantities=quantities,
        )

    def _fail(self, history: list[float], message: str) -> None:
        report = SolveReport(
            self._solver_name, self._why, False, -5, len(history) - 1, self._linear_iterations, tuple(history)
        )
        raise ConvergenceError(f"{message} (residual {history[0]:.3e} -> {history[-1]:.3e})", report)

    def _prepare(self) -> None:
        """Assemble once without bounds, recognise the structure, choose the method, calibrate the norm."""
        system = self.system
        self._started = started = time.perf_counter()
        self._blocks = system.assemble_blocks()
        self._symmetric = solvers.state_operator_is_symmetric(system, self._blocks.state_operator)
        self._state_mass = solvers.state_mass_matrix(system)
        self._structure = structure.recognise(system, self._blocks, self._state_mass)
        system.calibrate_norm(self._blocks, self._state_mass)
        if self._method is None:
            self._method, self._why = structure.choose_method(self._structure, system, self._bounded)
        self._scales = [self._diagonal(self._blocks, j) for j in range(len(system.controls))]
        self._seconds["assembly"] += time.perf_counter() - started

    def _diagonal(self, blocks: Blocks, index: int) -> Array:
        """Return c = diag(L_uu) of a control, its inner product's diagonal where that is not positive."""
        block = blocks.control_control[index][index]
        fallback = np.array(self.system.control_products[index].getDiagonal().array_r)
        if block is None:
            return fallback
        diagonal = np.array(block.getDiagonal().array_r)
        return np.where(diagonal > 0.0, diagonal, fallback)

    def _clip(self) -> None:
        for control, bounds in zip(self.system.controls, self._bounds, strict=True):
            control.set_coordinates(np.clip(control.coordinates(), bounds.lower, bounds.upper))

    def _reference(self, unknowns: PETSc.Vec) -> float:
        """Return the residual norm at zero state, control and adjoint; the unknowns are put back."""
        system = self.system
        system.set_unknowns(system.layout.create_vector())
        system.impose_dirichlet()
        self._clip()
        norm = self._evaluate().norm
        system.set_unknowns(unknowns)
        return norm

    def _evaluate(self) -> _Point:
        """Assemble the semismooth residual at the present unknowns."""
        started = time.perf_counter()
        system = self.system
        residual = system.layout.create_vector()
        system.residual(residual)
        active, targets = [], []
        for j, (control, bounds) in enumerate(zip(system.controls, self._bounds, strict=True)):
            values, gradient, scale = control.coordinates(), system.layout.read(residual, j + 1), self._scales[j]
            predicted = values - gradient / scale
            below, above = predicted < bounds.lower, predicted > bounds.upper
            target = np.where(below, bounds.lower, np.where(above, bounds.upper, values))
            mask = (below | above) & ~system.idle[j]
            system.layout.write(residual, j + 1, np.where(mask, scale * (values - target), gradient))
            active.append(mask)
            targets.append(target)
        parts = system.norms(residual)
        constraints = system.constraint_values()
        self._seconds["assembly"] += time.perf_counter() - started
        return _Point(residual, constraints, active, targets, math.hypot(*parts), parts)

    def _step(self, point: _Point, rtol: float) -> tuple[PETSc.Vec, Array]:
        """Solve the (bordered) Newton system; returns the step and the change of the multipliers."""
        system = self.system
        right = system.layout.create_vector()
        point.residual.copy(right)
        right.scale(-1.0)
        held = [np.where(mask, target - c.coordinates(), 0.0)
                for mask, target, c in zip(point.active, point.targets, system.controls, strict=True)]  # fmt: skip
        self._update_solver(point, right, held)
        assert self._solver is not None
        started = time.perf_counter()
        step = system.layout.create_vector()
        self._linear_iterations += self._solver.solve(right, step, rtol, None if self._bounded else point.norm)
        self._linear_residuals = self._solver.residuals
        change = np.empty(0)
        if point.constraints.size:
            change = self._border(point, step, rtol)
        for j, (mask, values) in enumerate(zip(point.active, held, strict=True)):
            solved = system.layout.read(step, j + 1)
            system.layout.write(step, j + 1, np.where(mask, values, solved))
        self._seconds["solve"] += time.perf_counter() - started
        return step, change

    def _border(self, point: _Point, step: PETSc.Vec, rtol: float) -> Array:
        """Correct a step for the linearised constraints and return the change of their multipliers."""
        assert self._solver is not None
        gradients = self.system.constraint_gradients()
        for gradient in gradients:
            for j, mask in enumerate(point.active):
                values = np.where(mask, 0.0, self.system.layout.read(gradient, j + 1))
                self.system.layout.write(gradient, j + 1, values)
        responses = []
        for gradient in gradients:
            response = self.system.layout.create_vector()
            self._linear_iterations += self._solver.solve(gradient, response, rtol)
            responses.append(response)
        schur = np.array([[row.dot(column) for column in responses] for row in gradients])
        mismatch = np.array([row.dot(step) for row in gradients]) + point.constraints
        try:
            change = np.linalg.solve(schur, mismatch)
        except np.linalg.LinAlgError as error:
            raise ConvergenceError(
                f"the constraints are linearly dependent at this point ({error}): remove one"
            ) from error
        for response, factor in zip(responses, change, strict=True):
            step.axpy(-float(factor), response)
        return change

    def _interior(self, unknowns: PETSc.Vec, tolerance: float, history: list[float]) -> _Point:
        """Let the interior point method find the active sets that the steps so far did not settle on."""
        system = self.system
        self._destroy_solver()
        limit = structure.DIRECT_LIMIT[system.lagrangian.state.function_space.mesh.topology.dim]
        fallback = "direct" if system.layout.global_size <= limit else "reduced_hessian"
        method = self._method if self._method in ("direct", "reduced_hessian") else fallback
        free = [np.zeros(control.size, dtype=bool) for control in system.controls]

        def make_solver(blocks: Blocks) -> solvers.KKTSolver:
            solver = solvers.KKTSolver(method, self._context(blocks, free), self._state_setup)
            self._seconds["setup"] += solver.seconds_setup
            return solver

        idle = np.concatenate(system.idle)
        lower = np.where(idle, -np.inf, np.concatenate([bounds.lower for bounds in self._bounds]))
        upper = np.where(idle, np.inf, np.concatenate([bounds.upper for bounds in self._bounds]))
        interior = InteriorPoint(system, lower, upper, make_solver)
        for _ in range(_INTERIOR_STEPS):
            interior.step()
            point = self._evaluate()
            history.append(point.norm)
            if point.norm <= tolerance:
                break
        self._linear_iterations += interior.linear_iterations
        self._why += "; active sets cycled, so an interior point method found them"
        system.get_unknowns(unknowns)
        return point

    def _context(self, blocks: Blocks, active: Sequence[npt.NDArray[np.bool_]]) -> LinearContext:
        assert self._structure is not None
        return LinearContext(self.system, blocks, self._structure, active, self._state_mass, self._symmetric)

    def _update_solver(self, point: _Point, right: PETSc.Vec, held: Sequence[Array]) -> None:
        """Bring blocks and solver up to date, and move the held controls' known step to the right-hand side."""
        system, started = self.system, time.perf_counter()
        same = self._solver_active is not None and not system.comm.allreduce(
            any(bool(np.any(a != b)) for a, b in zip(point.active, self._solver_active, strict=True)), op=MPI.LOR
        )
        if self._solver is not None and same and system.linear_quadratic:
            self._shift_right(point, right, held, reassemble=True)
            return
        fresh = self._blocks if self._solver is None and self._blocks is not None else None
        if fresh is None:
            self._destroy_solver()
            fresh = system.assemble_blocks()
            self._scales = [self._diagonal(fresh, j) for j in range(len(system.controls))]
        self._blocks = fresh
        self._shift_right(point, right, held, reassemble=False)
        if self._bounded:
            system.fix_controls(fresh, point.active)
        self._seconds["assembly"] += time.perf_counter() - started
        assert self._method is not None
        context = self._context(fresh, point.active)
        with forms.log_event(f"pdeopt {self._method} set-up"):
            self._solver = solvers.KKTSolver(self._method, context, self._state_setup)
        self._solver_name = self._solver.name
        self._solver_active = [mask.copy() for mask in point.active]
        self._seconds["setup"] += self._solver.seconds_setup

    def _shift_right(self, point: _Point, right: PETSc.Vec, held: Sequence[Array], reassemble: bool) -> None:
        """Subtract the held controls' columns times their known step from the right-hand side."""
        system = self.system
        if not self._bounded or not system.comm.allreduce(any(bool(np.any(values)) for values in held), op=MPI.LOR):
            return
        blocks = system.assemble_blocks() if reassemble else self._blocks
        assert blocks is not None
        matrix = system.matrix(blocks)
        known, product = system.layout.create_vector(), system.layout.create_vector()
        for j, values in enumerate(held):
            system.layout.write(known, j + 1, values)
        matrix.mult(known, product)
        right.axpy(-1.0, product)
        for j, mask in enumerate(point.active):
            system.layout.write(right, j + 1, np.where(mask, 0.0, system.layout.read(right, j + 1)))
        if reassemble:
            blocks.destroy()

    def _advance(
        self, unknowns: PETSc.Vec, step: tuple[PETSc.Vec, Array], point: _Point, history: list[float]
    ) -> _Point:
        """Move by the step: in full for quadratic problems, with backtracking on the residual norm otherwise."""
        system = self.system
        direction, change = step
        multipliers = [float(m.value) for m in system.lagrangian.multipliers]
        length = 1.0
        trial = unknowns.duplicate()
        while True:
            trial.waxpy(length, direction, unknowns)
            system.set_unknowns(trial)
            for index, multiplier in enumerate(system.lagrangian.multipliers):
                multiplier.value = np.asarray(multipliers[index] + length * change[index])
            candidate = self._evaluate()
            accepted = candidate.merit <= (1.0 - _ARMIJO * length) * point.merit or candidate.merit <= 1e-13
            if system.linear_quadratic or accepted:
                trial.copy(unknowns)
                return candidate
            length *= 0.5
            if length < _SMALLEST_STEP:
                self._fail(
                    history, "the line search found no decrease: start nearer to the solution, or run taylor_test()"
                )

    def _destroy_solver(self) -> None:
        if self._solver is not None:
            self._solver.destroy()
            self._solver = None
        if self._blocks is not None:
            self._blocks.destroy()
            self._blocks = None
