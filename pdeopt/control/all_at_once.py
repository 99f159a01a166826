"""Newton's method on the optimality system of all time steps at once.

For linear problems with tracking and control in the whole domain: the system and its preconditioner are those of
`pdeopt.control.all_at_once_system`, one linear solve a Newton step, and one Newton step unless there are bounds.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from petsc4py import PETSc

import numpy as np

from pdeopt.control.all_at_once_matrices import SharedMatrices
from pdeopt.control.all_at_once_system import OptimalitySystem
from pdeopt.parallel import CallbackErrors
from pdeopt.report import ConvergenceError, SolveReport

if TYPE_CHECKING:
    from pdeopt.control.unsteady import UnsteadyControlProblem

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
        self._system = OptimalitySystem(self._matrices, problem)
        bounds = problem.functional.bounds()
        self.bounded = bounds is not None
        for vector in bounds or ():
            vector.destroy()
        self._setup = time.perf_counter() - started

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
        seconds = {"setup": self._setup, "linear solves": 0.0}
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
        callbacks = CallbackErrors(self._comm)
        for number in range(_ROUNDS):
            functional.derivative(control, gradient)
            held, shift = system.active(control, gradient, bounds)
            norm = system.residual_norm(gradient, held, shift) / reference
            residuals.append(norm)
            if monitor is not None:
                with callbacks.guard():
                    monitor(number, norm)
                callbacks.raise_stored()
            converged = norm <= rtol
            cycling = len(residuals) > _PATIENCE and norm > 0.5 * residuals[-1 - _PATIENCE]
            if converged or cycling or not np.isfinite(norm):
                break
            tolerance = system.accuracy * min(1e-3, rtol / norm)
            before = time.perf_counter()
            step, krylov = system.newton_step(gradient, held, shift, tolerance, max_iterations)
            seconds["linear solves"] += time.perf_counter() - before
            iterations += len(krylov) - 1
            control.array[:] += step
        seconds["total"] = time.perf_counter() - started + self._setup
        functional.set_control(control)
        report = SolveReport(
            method="FGMRES + PRESB on all time steps"
            + (", waveform" if system.sweep == "waveform" else "")
            + (", active sets" if bounds else ""),
            why="linear, tracking and control in the whole domain: the Schur complement can be matched",
            converged=converged,
            reason=2 if converged else -3,
            iterations=len(residuals) - 1,
            linear_iterations=iterations,
            residuals=tuple(residuals),
            linear_residuals=tuple(krylov),
            seconds=seconds,
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
