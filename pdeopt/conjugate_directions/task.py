"""One solve as PETSc sees it: operators, vectors, the true residual, and the convergence test."""

import dataclasses
import math

from petsc4py import PETSc

Reason = PETSc.KSP.ConvergedReason


@dataclasses.dataclass
class Task:
    """A solve under way.

    Parameters
    ----------
    ksp
        What PETSc's test and monitors are called with.
    A, P
        Its operators.
    b, x
        Right-hand side without its part in the null space, and iterate.
    residual
        b - A x, or what recursion has for it.
    null
        Null space that is attached to A.
    target
        Norm at which PETSc's default test ends the solve.
    iterations
        Done so far.
    """

    ksp: PETSc.KSP
    A: PETSc.Mat
    P: PETSc.Mat
    b: PETSc.Vec
    x: PETSc.Vec
    residual: PETSc.Vec
    null: PETSc.NullSpace | None
    target: float
    iterations: int = 0

    def true_residual(self) -> float:
        """Compute b - A x, and return its norm. Collective: yes."""
        self.A.mult(self.x, self.residual)
        self.residual.aypx(-1.0, self.b)
        return float(self.residual.norm())

    def judge(self, norm: float) -> int:
        """Let PETSc's monitors and convergence test see the norm of the residual. Collective: yes."""
        self.ksp.setIterationNumber(self.iterations)
        if not math.isfinite(norm):
            norm = math.inf
        self.ksp.setResidualNorm(norm)
        self.ksp.logConvergenceHistory(norm)
        self.ksp.monitor(self.iterations, norm)
        return self.test(norm)

    def test(self, norm: float) -> int:
        """Return PETSc's reason to end at this norm, or 0. Collective: yes."""
        if not math.isfinite(norm):  # PETSc takes no other number for a norm
            return int(Reason.DIVERGED_NANORINF)
        reason = int(self.ksp.callConvergenceTest(self.iterations, norm))
        if reason == 0 and self.iterations >= self.ksp.getTolerances()[3]:
            return int(Reason.DIVERGED_MAX_IT)
        return reason

    @property
    def left(self) -> int:
        """How many iterations the limit of the solver still allows, at least one."""
        return max(self.ksp.getTolerances()[3] - self.iterations, 1)
