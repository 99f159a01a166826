"""Transposed solves with the preconditioner that a forward solve left, refined where that is stale."""

from petsc4py import PETSc

from pdeopt.report import KSP_ADVICE, ConvergenceError

# Krylov iterations after which factors of an earlier Newton step count as too old. Other preconditioners may need as
# many when they are fresh.
_STALE = 12
_MAX_IT = 1000


class AdjointSolver:
    """Solves J^T p = w, or J d = r, to a given relative residual, with the KSP of Newton's method.

    The preconditioner is that of the last Newton step, which stood at another state: a few Krylov iterations make up
    for that, and where they do not it is set up anew. ``preonly`` is replaced by GMRES on the right, whose residual is
    the true one.

    Parameters
    ----------
    ksp
        Of the forward solve; its preconditioner is shared.
    """

    def __init__(self, ksp: PETSc.KSP) -> None:
        self._forward = ksp
        self._direct: PETSc.KSP | None = None

    def let_go(self) -> None:
        """Let the forward solve renew its preconditioner again. Collective: no."""
        self._forward.getPC().setReusePreconditioner(False)

    def solve(self, right: PETSc.Vec, out: PETSc.Vec, rtol: float, transposed: bool) -> tuple[int, int]:
        """Solve, and return Krylov iterations and how often the preconditioner was set up.

        Raises
        ------
        ConvergenceError
            If the tolerance is not met with a fresh preconditioner.

        Collective: yes.
        """
        ksp = self._krylov()
        pc = self._forward.getPC()
        factors = ksp is not self._forward
        norm = right.norm()
        out.set(0.0)
        if norm == 0.0:
            return 0, 0
        before = self._forward.getTolerances()
        total = 0
        try:
            for fresh in (False, True):
                pc.setReusePreconditioner(not fresh)
                ksp.setTolerances(
                    rtol=rtol, atol=1e-300, divtol=1e10, max_it=_STALE if factors and not fresh else _MAX_IT
                )
                (ksp.solveTranspose if transposed else ksp.solve)(right, out)
                total += ksp.getIterationNumber()
                reason = int(ksp.getConvergedReason())
                if reason > 0:
                    return total, int(fresh)
        finally:
            pc.setReusePreconditioner(False)
            self._forward.setTolerances(*before)
        advice = KSP_ADVICE.get(reason, "see the options of the layer's KSP")
        raise ConvergenceError(
            f"the adjoint equation of the layer was not solved to {rtol:.1e} (reason {reason}): {advice}"
        )

    def _krylov(self) -> PETSc.KSP:
        forward = self._forward
        if forward.getType() != PETSc.KSP.Type.PREONLY:
            return forward
        if self._direct is None:
            self._direct = PETSc.KSP().create(forward.getComm())
            self._direct.setType(PETSc.KSP.Type.GMRES)
            self._direct.setPC(forward.getPC())
            self._direct.setPCSide(PETSc.PC.Side.RIGHT)
            self._direct.setNormType(PETSc.KSP.NormType.UNPRECONDITIONED)
        self._direct.setOperators(*forward.getOperators())
        return self._direct

    def destroy(self) -> None:
        """Free the KSP that is not the forward solve's. Collective: yes."""
        if self._direct is not None:
            self._direct.destroy()
