"""One solve to the true residual, by iterative refinement where a method's own residual has drifted from it."""

import dataclasses
import math
import time

from petsc4py import PETSc

import numpy as np

from pdeopt.relaxation.features import is_assembled
from pdeopt.relaxation.overlay_watch import Stopwatch

Reason = PETSc.KSP.ConvergedReason

# Residuals of this many units of rounding, |r| <= c eps (|A| |x| + |b|), are as small as a factorisation makes them.
ROUNDING_UNITS = 4.0
# How often a solve may go on when its own residual says converged and the true one does not.
REFINEMENTS = 3


@dataclasses.dataclass(frozen=True)
class Task:
    """One solve: A x = b or its transpose, to a true residual of ``target``."""

    ksp: PETSc.KSP
    A: PETSc.Mat
    P: PETSc.Mat
    b: PETSc.Vec
    x: PETSc.Vec
    start: PETSc.Vec | None  # the initial guess, zero if None
    norm: float  # of b
    target: float
    transposed: bool
    symmetric: bool  # as far as its features tell


class VerifiedSolve:
    """Iterates by any KSP until the true residual meets the target.

    Parameters
    ----------
    seconds
        Gets the wall seconds of this rank under ``"solve"`` and ``"verify"``.
    """

    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds = seconds
        self._rhs: PETSc.Vec | None = None  # a copy, for PETSc locks it while it solves
        self._residual: PETSc.Vec | None = None
        self._step: PETSc.Vec | None = None
        self._norm = math.nan  # infinity norm of the present values, once it was needed

    def forget_values(self) -> None:
        """Take note that the values of the matrix are new. Collective: no."""
        self._norm = math.nan

    def iterate(self, inner: PETSc.KSP, task: Task, limit: int, go_on: bool) -> tuple[int, int, float, float]:
        """Iterate until the true residual meets the target.

        Parameters
        ----------
        inner
            Who iterates.
        task
            What to solve.
        limit
            Iterations allowed.
        go_on
            Whether ``task.x`` holds what another solver has reached.

        Returns
        -------
        reason, iterations, residual, seconds
            PETSc's reason, the norm of the true residual, and the seconds of this rank.

        Collective: yes.
        """
        x = task.x
        if self._rhs is None:
            self._rhs, self._residual, self._step = (task.b.duplicate() for _ in range(3))
        assert self._rhs is not None
        assert self._residual is not None
        total, reason, seconds, residual = 0, 0, 0.0, math.inf
        if not go_on and task.start is None:
            x.set(0.0)
            task.b.copy(self._rhs)
            self._project(task, self._rhs)
        else:
            if not go_on:
                assert task.start is not None
                task.start.copy(x)
            residual = self._true_residual(task)
            if residual <= task.target:
                return Reason.CONVERGED_RTOL, 0, residual, 0.0
            if not math.isfinite(residual):
                return Reason.DIVERGED_NANORINF, 0, residual, 0.0
        for _ in range(1 + REFINEMENTS):
            inner.setTolerances(rtol=1e-300, atol=0.9 * task.target, divtol=1e8, max_it=max(limit - total, 1))
            began, watch = time.perf_counter(), Stopwatch()
            solve = inner.solveTranspose if task.transposed else inner.solve
            if math.isinf(residual):
                solve(self._rhs, x)
            else:
                # For a correction, not from a guess: PETSc 3.25's BiCGStab, preconditioned on the right, adds a guess
                # that it was given once to all solutions that follow.
                self._residual.copy(self._rhs)
                solve(self._rhs, self._step)
                x.axpy(1.0, self._step)
            solved = time.perf_counter()
            total += inner.getIterationNumber()
            former, residual = residual, self._true_residual(task)
            self._seconds["solve"] += solved - began
            self._seconds["verify"] += time.perf_counter() - solved
            seconds += watch.seconds()
            reason = int(inner.getConvergedReason())
            if residual <= task.target:
                return Reason.CONVERGED_RTOL, total, residual, seconds
            # The method's own residual drifted from the true one: go on from here, as iterative refinement does.
            if not residual < 0.5 * former or reason < 0:
                break
        if math.isfinite(residual) and residual <= min(self._rounding(task), task.norm):
            return Reason.CONVERGED_RTOL, total, residual, seconds
        return reason if reason < 0 else Reason.DIVERGED_BREAKDOWN, total, residual, seconds

    def _true_residual(self, task: Task) -> float:
        """Return the norm of b - A x, without what a null space takes out of it. Collective: yes."""
        assert self._residual is not None
        (task.A.multTranspose if task.transposed else task.A.mult)(task.x, self._residual)
        self._residual.aypx(-1.0, task.b)
        self._project(task, self._residual)
        return float(self._residual.norm())

    def _project(self, task: Task, vector: PETSc.Vec) -> None:
        """Take out of a right-hand side what no x can reach, where the matrix says so. Collective: yes."""
        null = task.A.getNullSpace() if task.transposed else task.A.getTransposeNullSpace()
        if not null.handle and task.symmetric:
            null = task.A.getNullSpace()
        if null.handle:
            null.remove(vector)

    def _rounding(self, task: Task) -> float:
        """Return the residual that rounding leaves, as in a factorisation. Collective: yes."""
        if not is_assembled(task.A):
            return 0.0
        if math.isnan(self._norm):
            self._norm = task.A.norm(PETSc.NormType.INFINITY)
        return ROUNDING_UNITS * float(np.finfo(float).eps) * (self._norm * task.x.norm() + task.norm)

    def release(self) -> None:
        """Free the work vectors. Collective: yes."""
        for vector in (self._rhs, self._residual, self._step):
            if vector is not None:
                vector.destroy()
        self._rhs = self._residual = self._step = None
