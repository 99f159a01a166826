"""Guests at linear solvers: PETSc's KSP and DOLFINx's LinearProblem."""

import weakref

from petsc4py import PETSc

from dolfinx.fem import petsc as fem_petsc

from pdeopt.fem._guess_guest import Guest, Sources, make_guest
from pdeopt.fem._guess_norm import DualNorm
from pdeopt.fem._guess_transfer import Loader, loader_for
from pdeopt.report import OptionError


class KSPGuest(Guest):
    """A guest at a KSP: it enters before each solve, in the place of PETSc's pre-solve and post-solve callbacks.

    PETSc's default test compares with the right-hand side whatever the start, so the tolerance stays what it is.
    """

    def __init__(self, ksp: PETSc.KSP, sources: Sources, dual_norm: DualNorm | None, loader: Loader) -> None:
        if ksp.getType() == PETSc.KSP.Type.PREONLY:
            raise OptionError(
                "ksp_type preonly applies its preconditioner once, whatever the initial guess: choose a Krylov method"
            )
        super().__init__(sources, dual_norm, loader)
        self._solver = weakref.ref(ksp)  # a strong reference would be a cycle through PETSc, which never dies
        self._starts_at_x = bool(ksp.getInitialGuessNonzero())
        self._attached = True
        self._last_parameter = 0.0
        self._residuals: list[float] = []
        ksp.setInitialGuessNonzero(True)
        ksp.setPreSolve(self._start)
        ksp.setPostSolve(self._finish)
        ksp.setMonitor(self._watch)

    def detach(self) -> None:
        """Give the solver back as it was, and free the PETSc objects. Collective: yes."""
        ksp = self._solver()
        if ksp is not None:
            ksp.setInitialGuessNonzero(self._starts_at_x)
        self._attached = False
        super().detach()

    def _start(self, ksp: PETSc.KSP, b: PETSc.Vec, x: PETSc.Vec) -> None:
        if not self._attached:
            return
        matrix = ksp.getOperators()[0]
        if not self._starts_at_x:
            x.set(0.0)

        def residual(point: PETSc.Vec, out: PETSc.Vec) -> None:
            matrix.mult(point, out)
            out.aypx(-1.0, b)

        self._last_parameter = self.parameter()
        rtol, atol = ksp.getTolerances()[:2]
        target = max(rtol * b.norm(), atol)
        judge = self.judge(x, residual)
        chosen = self.choose(f"KSP {ksp.getType()}", judge, x, lambda offer: offer.euclidean <= target)
        chosen.vector.copy(x)
        judge.destroy()

    def _watch(self, ksp: PETSc.KSP, iteration: int, norm: float) -> None:
        if self._attached:
            self._residuals = [norm] if iteration == 0 else [*self._residuals, norm]

    def _finish(self, ksp: PETSc.KSP, b: PETSc.Vec, x: PETSc.Vec) -> None:
        if not self._attached:
            return
        self.conclude(ksp.getIterationNumber(), ksp.getConvergedReason(), self._residuals, len(self._residuals) - 1)
        if ksp.getConvergedReason() > 0:
            self.remember(x, self._last_parameter)


@make_guest.register
def _(solver: PETSc.KSP, sources: Sources, dual_norm: DualNorm | None) -> Guest:
    return KSPGuest(solver, sources, dual_norm, Loader())


@make_guest.register
def _(solver: fem_petsc.LinearProblem, sources: Sources, dual_norm: DualNorm | None) -> Guest:
    return KSPGuest(solver.solver, sources, dual_norm, loader_for(solver.u, solver.bcs or []))
