"""AdaSketch-Newton as a TAO type."""

import dataclasses
import time

from petsc4py import PETSc

from pdeopt.fem.settings import read_settings
from pdeopt.optimise.matrix_kkt import DirectionSettings
from pdeopt.optimise.program import Program
from pdeopt.optimise.run import Outcome, Runner
from pdeopt.optimise.settings import AdaSketchSettings, Tolerances
from pdeopt.optimise.tao_program import TaoFunctions, tao_program
from pdeopt.report import InputError, SolveReport

_TOLERANCE, _ITERATIONS = 1e-8, 200


@dataclasses.dataclass(frozen=True)
class TaoSettings(AdaSketchSettings):
    """The numbers of the method, and the solver of its KKT systems.

    Parameters
    ----------
    solver
        See `pdeopt.optimise.matrix_kkt.DirectionSettings`.
    bounds
        "interior", or "active_set": active sets first, the interior point method behind them; "auto" takes these where
        the objective is quadratic and the constraints are linear.

    Raises
    ------
    InputError
        If a number is out of its range, or a name is unknown.
    """

    solver: str = "factorisation"
    bounds: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bounds not in ("auto", "interior", "active_set"):
            raise InputError(f"bounds is {self.bounds!r}: choose 'auto', 'interior' or 'active_set'")
        DirectionSettings(self.solver)


class AdaSketchNewton:
    """Inexact Newton for min f(x), c(x) = 0, l <= x <= b, on the exact augmented Lagrangian in x and multipliers.

    Switched on by ``-tao_type python -tao_python_type pdeopt.AdaSketchNewton``. The TAO needs objective, gradient,
    Hessian, and, with constraints, ``setEqualityConstraints`` and ``setJacobianEquality``. The Hessian is that of
    f(x) + p'c(x); its callback finds p as ``tao.getPythonContext().multipliers``. Reference: Hong, Na, Mahoney, Kolar,
    ICML 2023, PMLR 202:13174-13198; what differs stands in `pdeopt.optimise.newton`.

    Options, under the prefix of the TAO
    ------------------------------------
    ``-tao_adasketch_solver`` : factorisation (default), ksp, kaczmarz, gaussian, block, history or sgmres
        Solver of the KKT systems; options of the KSP have the prefix ``tao_adasketch_kkt_``. The factorisation, by
        MUMPS, knows the inertia; kaczmarz and gaussian are the published sketches, for small systems.
    ``-tao_adasketch_bounds`` : auto (default), interior or active_set
        How bounds are kept: by the interior point method, or by primal-dual active sets with that method behind them,
        which auto takes for linear-quadratic control problems.
    ``-tao_adasketch_constraint_penalty``, ``-tao_adasketch_gradient_penalty`` : 10, 1e-3
        First penalties eta_1, eta_2 (published: 1, 0.1).
    ``-tao_adasketch_accuracy`` : 0.1
        First relative residual of the KKT solves.
    ``-tao_adasketch_sharpen`` : 0.5
        Exponent by which it follows the residual of the problem; 0 keeps it.
    ``-tao_adasketch_growth`` : 1.5
        nu: eta_1 grows by nu^2, eta_2 shrinks by nu, the accuracy by nu^4 when a direction does not descend.
    ``-tao_adasketch_armijo`` : 1e-4
        Share of the predicted decrease that a step must give.
    ``-tao_adasketch_least_squares_multipliers`` : true
        Start from the multipliers that fit best, where none are given.

    ``-tao_gatol`` and ``-tao_catol`` (1e-8) bound the norms of the Lagrangian's gradient and of the constraints,
    ``-tao_max_it`` (200) the steps.

    Parameters
    ----------
    settings
        The same from Python.
    program
        The program to solve in place of the TAO's callbacks, for instance a `pdeopt.optimise.ControlProgram`.

    Attributes
    ----------
    multipliers
        p, where the Hessian is wanted and at the end.
    report
        What the last solve did; its advice says why one did not converge.
    error
        An exception that ended it.
    """

    def __init__(self, settings: TaoSettings | None = None, program: Program | None = None) -> None:
        self.settings, self._program = settings or TaoSettings(), program
        self.report: SolveReport | None = None
        self.error: Exception | None = None
        self._functions: TaoFunctions | None = None
        self._multipliers: PETSc.Vec | None = None

    @property
    def multipliers(self) -> PETSc.Vec:
        """Multipliers of the constraints."""
        functions = self._functions
        found = self._multipliers if functions is None else functions.multipliers
        if found is None:
            raise InputError("there are no multipliers before the first solve")
        return found

    # --- what PETSc calls ---------------------------------------------------------------------------------------------

    def setFromOptions(self, tao: PETSc.TAO) -> None:
        """Read the options under the prefix of the TAO. Collective: no."""
        self.settings = read_settings(self.settings, tao.getOptionsPrefix(), "tao_adasketch_", inner=("kkt_",))

    def solve(self, tao: PETSc.TAO) -> None:
        """Solve from the TAO's solution vector, and leave the result there. Collective: yes."""
        started, self.error = time.perf_counter(), None
        program = self._program
        if program is None:
            self._functions = TaoFunctions(tao)
            program = tao_program(tao, self._functions, DirectionSettings(self.settings.solver))
        gradient, _, _ = tao.getTolerances()
        constraint, _ = tao.getConstraintTolerances()
        tolerances = Tolerances(gradient or _TOLERANCE, constraint or _TOLERANCE)

        def observe(step: int, objective: float, gradient: float, constraints: float) -> int:
            tao.setIterationNumber(step)
            tao.monitor(its=step, f=objective, res=gradient, cnorm=constraints)
            return int(tao.getConvergedReason())  # a monitor of the user's may stop it

        limit = tao.getMaximumIterations() or _ITERATIONS
        runner = Runner(program, self.settings, tolerances, limit, observe, self.settings.bounds)
        try:
            outcome = runner.run()
            self._keep(outcome, tao)
        except Exception as error:
            self.error = error  # PETSc hands on no more than a number
            raise
        finally:
            runner.destroy()
            self._functions = None  # it knows the TAO, which knows this object
            if self._program is None:
                program.destroy()
        tao.setConvergedReason(outcome.reason)
        self.report = _report(outcome, time.perf_counter() - started)

    def _keep(self, outcome: Outcome, tao: PETSc.TAO) -> None:
        """Keep the multipliers, and give the TAO its solution. Collective: yes."""
        self.release()
        if outcome.point is None:
            return
        self._multipliers = outcome.point.dual.copy()
        if self._program is None:
            outcome.point.primal.copy(tao.getSolution())

    def release(self) -> None:
        """Free the multipliers of the last solve. Collective: yes."""
        if self._multipliers is not None:
            self._multipliers.destroy()
            self._multipliers = None

    def view(self, tao: PETSc.TAO, viewer: PETSc.Viewer) -> None:
        """Print the settings, and the report of the last solve. Collective: yes."""
        lines = [f"{field.name}: {getattr(self.settings, field.name)}" for field in dataclasses.fields(self.settings)]
        if self.report is not None:
            lines += str(self.report).splitlines()
        for line in ["AdaSketch-Newton", *(f"  {line}" for line in lines)]:
            viewer.printfASCII(line + "\n")


def _report(outcome: Outcome, seconds: float) -> SolveReport:
    """Return the report of a run."""
    counters = outcome.counters
    quantities: dict[str, float | int | str] = {
        "objective": outcome.objective,
        "gradient of the Lagrangian": outcome.gradient,
        "constraints": outcome.constraints,
    }
    if outcome.complementarity:
        quantities["complementarity"] = outcome.complementarity
    quantities |= {
        "evaluations": counters.evaluations,
        "KKT matrices": counters.setups,
        "inertia corrections": counters.corrections,
        "full steps": counters.unit_steps,
    }
    if counters.state_solves:
        quantities["state solves"] = counters.state_solves
    if outcome.penalties:
        quantities["penalties"] = outcome.penalties
    return SolveReport(
        method=outcome.method,
        converged=outcome.reason > 0,
        reason=outcome.reason,
        iterations=max(len(outcome.history) - 1, 0),
        linear_iterations=counters.inner_iterations,
        residuals=tuple(outcome.history),
        seconds={"total": seconds},
        quantities=quantities,
        advice=outcome.advice,
    )
