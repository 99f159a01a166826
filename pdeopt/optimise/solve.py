"""One call for every kind of problem: `minimise`."""

import math
from collections.abc import Callable

from mpi4py import MPI
from petsc4py import PETSc

from pdeopt import parallel
from pdeopt.control import ControlProblem, Functional, UnsteadyControlProblem
from pdeopt.fem import forms
from pdeopt.optimise.control_program import ControlProgram
from pdeopt.optimise.from_numpy import numpy_program
from pdeopt.optimise.petsc import AdaSketchNewton, TaoSettings
from pdeopt.optimise.program import Program, norm
from pdeopt.optimise.reduced_program import ReducedProgram
from pdeopt.optimise.start import solve_state_first
from pdeopt.problems.nonlinear_program import NonlinearProgram
from pdeopt.report import ConvergenceError, OptionError, SolveReport


def minimise(
    problem: ControlProblem | UnsteadyControlProblem | Functional | NonlinearProgram | Program,
    *,
    method: str | None = None,
    rtol: float = 1e-8,
    max_iterations: int = 100,
    settings: TaoSettings | None = None,
    monitor: Callable[[int, float], None] | None = None,
) -> SolveReport:
    """Find a minimum by AdaSketch-Newton, bounds by an interior point method; collective.

    The result stands where the problem keeps it: in state, controls, adjoint and multipliers of a control problem, in
    the controls of a functional, in a program's point. PETSc options under ``optimise_`` override what is given here
    (``-optimise_tao_adasketch_...``, ``-optimise_tao_monitor``, ``-optimise_tao_view``), those of the KKT solvers under
    ``kkt_`` and ``state_`` hold as in `ControlProblem.solve`.

    Parameters
    ----------
    problem
        A steady control problem is solved in the full space of states, controls and adjoints; an unsteady one and a
        functional in the space of the controls.
    method
        KKT solver: for control problems one of `pdeopt.optimise.control_kkt.METHODS`, for NumPy programs one of
        `pdeopt.optimise.matrix_kkt.DirectionSettings`; chosen by structure if None.
    rtol
        Tolerance for the Riesz norms of the Lagrangian's gradient and of the constraints together: relative to that at
        zero state, control and adjoint for control problems, to the initial gradient for functionals, and absolute for
        other programs.
    max_iterations
        Steps.
    settings
        The numbers of the method.
    monitor
        Called on every rank with (iteration, norm of the KKT residual); an exception in it ends the solve on all.

    Raises
    ------
    ConvergenceError
        If the tolerance is not reached; it carries the report, and says what stood in the way.
    OptionError
        If the method or an option does not fit the problem.
    """
    program, own = _program(problem, method)
    settings = settings or TaoSettings(least_squares_multipliers=not isinstance(program, ControlProgram))
    try:
        tolerance = rtol * _reference(program)
        context = AdaSketchNewton(settings, program)
        callbacks = parallel.CallbackErrors(program.comm)
        tao = PETSc.TAO().create(program.comm)
        point = program.create()
        program.get(point)

        def observe(tao: PETSc.TAO) -> None:
            iteration, _, gradient, constraints = tao.getSolutionStatus()[:4]
            if monitor is not None:
                with callbacks.guard():
                    monitor(int(iteration), math.hypot(gradient, constraints))
                if callbacks.any_stored():
                    tao.setConvergedReason(PETSc.TAO.ConvergedReason.DIVERGED_USER)

        try:
            tao.setOptionsPrefix("optimise_")
            tao.setType("python")
            tao.setPythonContext(context)
            tao.setSolution(point.primal)
            tao.setMonitor(observe)
            each = tolerance / math.sqrt(2.0)
            defaults = {"tao_gatol": each, "tao_grtol": 0.0, "tao_gttol": 0.0, "tao_catol": each, "tao_crtol": 0.0}
            with forms.default_options("optimise_", defaults | {"tao_max_it": max_iterations}):
                tao.setFromOptions()
                try:
                    tao.solve()
                except PETSc.Error:
                    if context.error is not None:
                        raise context.error from None
                    raise
            callbacks.raise_stored()
        finally:
            tao.destroy()
            point.destroy()
            context.release()
        report = context.report
        assert report is not None
        if isinstance(program, ReducedProgram):
            final = program.create()
            program.get(final)
            program.functional.set_control(final.primal)
            final.destroy()
    finally:
        if own:
            program.destroy()
    if not report.converged:
        last = report.residuals[-1] if report.residuals else math.nan
        raise ConvergenceError(
            f"the optimisation stopped at a KKT residual of {last:.3e}, tolerance {tolerance:.3e} (reason "
            f"{report.reason}): {report.advice}",
            report,
        )
    return report


def _program(problem: object, method: str | None) -> tuple[Program, bool]:
    """Return a problem as a program, and whether it was made here."""
    if isinstance(problem, ControlProblem):
        solve_state_first(problem)
        return ControlProgram(problem, method), True
    if isinstance(problem, NonlinearProgram):
        from pdeopt.optimise.matrix_kkt import DirectionSettings

        return numpy_program(problem, MPI.COMM_SELF, DirectionSettings(method or "factorisation")), True
    if isinstance(problem, UnsteadyControlProblem):
        problem = problem.functional
    if method is not None:
        raise OptionError(f"method {method!r} has no meaning for a {type(problem).__name__}: leave it out")
    if hasattr(problem, "kkt_solver"):
        return problem, False  # type: ignore[return-value]
    return ReducedProgram(problem), True  # type: ignore[arg-type]


def _reference(program: Program) -> float:
    """Return what the tolerance is relative to. Collective: yes."""
    if isinstance(program, ReducedProgram):
        residual = program.create()
        program.residual(residual)
        size = norm(program, residual)
        residual.destroy()
        return size or 1.0
    if not isinstance(program, ControlProgram):
        return 1.0
    return program.reference_norm() or 1.0
