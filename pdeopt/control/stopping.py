"""When a Krylov method for the KKT system may stop: by the Riesz norm of the true residual, looked at seldom."""

import math
from collections.abc import Callable

from petsc4py import PETSc

_FIRST_LOOK = 8
_STRIDE = 4  # iterations after which it looks in any case: its own norm need not fall as the Riesz norm does
_DIVERGED = 1e8  # growth of the Krylov method's own residual norm


class RieszStopping:
    """A KSP convergence test in the Riesz norm.

    The Euclidean norm of a KKT residual says little about the error of the optimum, so a tolerance for it is too tight
    or too loose by orders of magnitude. The Riesz norm costs about as much as half an iteration. It is therefore taken
    only once the method's own norm has fallen by what was missing at the last look, or when the rate between the last
    two looks lets expect the target, and after a few iterations in any case.

    Parameters
    ----------
    norm
        The Riesz norm of a residual.

    Attributes
    ----------
    history
        Riesz norms where it looked in the present solve, that of the right-hand side first.
    own_history
        The Krylov method's own norms, one per iteration.
    """

    def __init__(self, norm: Callable[[PETSc.Vec], float]) -> None:
        self._norm = norm
        self._target = self._first = self._own_target = 0.0
        self._last_look, self._next_look = 0, _FIRST_LOOK
        self.history: list[float] = []
        self.own_history: list[float] = []

    def start(self, right: PETSc.Vec, rtol: float, norm: float | None = None) -> None:
        """Aim at a fraction of the norm of the right-hand side, which a caller may know already. Collective: yes."""
        initial = self._norm(right) if norm is None else norm
        self._target = rtol * initial
        self._last_look, self._next_look = 0, _FIRST_LOOK
        self.history, self.own_history = [initial], []

    def __call__(self, ksp: PETSc.KSP, iteration: int, own_norm: float) -> int:
        """Return the reason to stop, or 0. Collective: yes."""
        reasons = PETSc.KSP.ConvergedReason
        self.own_history.append(own_norm)
        if not math.isfinite(own_norm):
            return int(reasons.DIVERGED_NANORINF)
        if iteration == 0:
            self._first, self._own_target = own_norm, self._target / self.history[0] * own_norm
            return int(reasons.CONVERGED_ATOL) if own_norm == 0.0 else 0
        if own_norm > _DIVERGED * self._first:
            return int(reasons.DIVERGED_DTOL)
        if own_norm == 0.0:
            return int(reasons.CONVERGED_ATOL)
        if own_norm > self._own_target and iteration < self._next_look:
            return 0
        residual = ksp.buildResidual()
        norm = self._norm(residual)
        residual.destroy()
        self.history.append(norm)
        if norm <= self._target:
            return int(reasons.CONVERGED_RTOL)
        rate = math.log(norm / self.history[-2]) / (iteration - self._last_look)
        steps = math.log(self._target / norm) / rate if rate < 0.0 else _STRIDE
        self._last_look, self._next_look = iteration, iteration + min(max(math.ceil(steps), 1), _STRIDE)
        self._own_target = self._target / norm * own_norm
        return 0
