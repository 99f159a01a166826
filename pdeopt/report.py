"""What a solve has to say for itself: the exception tree, sentences of advice, and `SolveReport`."""

import dataclasses
import math
from collections.abc import Mapping


class PdeoptError(Exception):
    """Root of every error that pdeopt raises on purpose."""


class InputError(PdeoptError, ValueError):
    """Something handed in is wrong; the message names the thing, its value and the remedy."""


class MeshError(InputError):
    """A mesh file or a mesh cannot be used as it is."""


class ProblemError(InputError):
    """A control problem is ill-posed as written."""


class OptionError(InputError):
    """An option is unknown or has a value of the wrong type."""


class ConvergenceError(PdeoptError, RuntimeError):
    """A solver stopped before it reached its tolerance; carries the report of what it did."""

    def __init__(self, message: str, report: "SolveReport | None" = None) -> None:
        super().__init__(message)
        self.report = report


class LauncherError(PdeoptError, RuntimeError):
    """The program was started by a launcher of another MPI than the one it uses."""


class MissingPackageError(PdeoptError, ImportError):
    """An optional package is needed and absent; the message says how to install it."""


class RankError(PdeoptError, RuntimeError):
    """Another rank failed with an exception whose type cannot be rebuilt here."""


# PETSc's reasons, as what they mean for the user. The keys are the numbers of KSP, SNES and TAO.
KSP_ADVICE = {
    -2: "the Krylov solver found a null vector: check the boundary conditions",
    -3: "the iteration limit was reached: raise ksp_max_it, or choose a stronger preconditioner (pc_type)",
    -4: "the residual grew beyond the divergence tolerance: the preconditioner does not fit the matrix",
    -5: "the Krylov method broke down: try ksp_type fgmres, or another preconditioner",
    -6: "the biconjugate method broke down: try ksp_type fgmres",
    -7: "the operator is not symmetric although the method requires it: try ksp_type fgmres",
    -8: "the preconditioner is indefinite: choose a definite one, or ksp_type fgmres",
    -9: "the operator or right-hand side has NaN or Inf: look at the coefficients and the initial guess",
    -10: "the operator is indefinite: use minres or fgmres instead of cg",
    -11: "the preconditioner could not be set up: a zero pivot, or too little memory for a factorisation",
}
SNES_ADVICE = {
    -1: "the residual cannot be evaluated there: start nearer to the solution",
    -2: "the limit of residual evaluations was reached: raise snes_max_funcs",
    -3: "the linear solve inside Newton's method failed: see its own reason with ksp_converged_reason",
    -4: "the residual is NaN or Inf: start nearer to the solution, or check the coefficients",
    -5: "the iteration limit was reached: raise snes_max_it, or start nearer to the solution",
    -6: "the line search failed: start nearer to the solution, or check the derivatives with taylor_test()",
    -7: "the inner solve of the nonlinear preconditioner failed: see its own reason with npc_snes_converged_reason",
    -8: "the line search is stuck in a local minimum of the residual: start nearer to the solution",
    -9: "the residual grew beyond the divergence tolerance: start nearer to the solution",
    -10: "the Jacobian cannot be evaluated there: start nearer to the solution",
    -11: "the trust region shrank to nothing: check the derivatives with taylor_test()",
    -13: "the objective cannot be evaluated there: start nearer to the solution",
    -14: "the objective is NaN or Inf: start nearer to the solution, or check the coefficients",
}
TAO_ADVICE = {
    -2: "the iteration limit was reached: raise tao_max_it",
    -4: "the objective or gradient is NaN or Inf: start nearer to the solution",
    -5: "the limit of function evaluations was reached: raise tao_max_funcs",
    -6: "the line search failed: check the gradient with taylor_test()",
    -7: "the trust region shrank to nothing: check the gradient with taylor_test()",
}


@dataclasses.dataclass(frozen=True)
class SolveReport:
    """What a solver did; printing it gives the table that users see.

    Parameters
    ----------
    method
        What ran, in PETSc's words where it has some ("minres + Pearson-Wathen").
    why
        Why this method was taken for this problem, in one sentence.
    converged
        Whether the tolerance was reached, by the verified residual.
    reason
        PETSc's converged reason (positive: converged).
    iterations
        Outer iterations (Newton, active set, optimiser).
    linear_iterations
        Krylov iterations summed over the outer ones; 0 for direct solvers.
    residuals
        Residual norm after each outer iteration, the initial one first.
    linear_residuals
        The Krylov method's own residual norms in the last linear solve, in the norm that it uses; empty without one.
    seconds
        Wall seconds by stage, for instance ``{"assembly": ..., "setup": ..., "solve": ...}``.
    quantities
        Other numbers worth printing (objective, degrees of freedom, ranks).
    advice
        A sentence for the user where something deserves attention.
    """

    method: str
    why: str = ""
    converged: bool = True
    reason: int = 0
    iterations: int = 0
    linear_iterations: int = 0
    residuals: tuple[float, ...] = ()
    linear_residuals: tuple[float, ...] = ()
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    quantities: Mapping[str, float | int | str] = dataclasses.field(default_factory=dict)
    advice: str = ""

    @property
    def relative_residual(self) -> float:
        """Last residual norm over the first; NaN when none was recorded."""
        if not self.residuals:
            return math.nan
        first, last = self.residuals[0], self.residuals[-1]
        if first == 0.0:
            return 0.0 if last == 0.0 else math.inf
        return last / first

    def rows(self) -> list[tuple[str, str]]:
        """Return the (label, value) pairs of the printed table."""
        rows: list[tuple[str, str]] = [("method", self.method)]
        if self.why:
            rows.append(("chosen because", self.why))
        state = "converged" if self.converged else "NOT converged"
        rows.append(("state", f"{state} (reason {self.reason})"))
        for name, value in self.quantities.items():
            rows.append((name, f"{value:.8g}" if isinstance(value, float) else str(value)))
        if self.iterations or not self.linear_iterations:  # a linear solver has no outer ones
            rows.append(("iterations", str(self.iterations)))
        rows.append(("Krylov iterations", str(self.linear_iterations)))
        if self.residuals:
            rows.append(("residual, first -> last", f"{self.residuals[0]:.3e} -> {self.residuals[-1]:.3e}"))
        for name, value in self.seconds.items():
            rows.append((f"seconds {name}", f"{value:.3f}"))
        if self.advice:
            rows.append(("advice", self.advice))
        return rows

    def __str__(self) -> str:
        rows = self.rows()
        width = max(len(label) for label, _ in rows)
        return "\n".join(f"{label:<{width}}  {value}" for label, value in rows)
