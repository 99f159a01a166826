"""The classical solvers that stand behind proposed directions: they go on from the iterate that was reached."""

import dataclasses
import math
import time

from petsc4py import PETSc

from pdeopt.conjugate_directions.task import Reason, Task
from pdeopt.fem import forms

# What is tried, in this order. The null pivots of a singular matrix are MUMPS's affair.
DEFINITE = {"ksp_type": "cg", "ksp_norm_type": "unpreconditioned", "pc_type": "gamg"}
DIRECT = {
    "ksp_type": "gmres",
    "ksp_pc_side": "right",
    "pc_type": "lu",
    "pc_factor_mat_solver_type": "mumps",
    "mat_mumps_icntl_24": 1,
}
# For matrices without entries.
PLAIN = {"ksp_type": "gmres", "ksp_pc_side": "right", "pc_type": "none"}
# Where a matrix is called symmetric: |u'Av - v'Au| over |u| |Av|.
_SYMMETRY = 1e-8
# Iterations of CG with GAMG; then as many again if they promise to be enough, else a factorisation.
_LIMIT = 500
# Corrections by one classical solver, as long as each halves the true residual.
_CORRECTIONS, _FALL = 5, 0.5


@dataclasses.dataclass(frozen=True)
class Rescue:
    """What the classical solvers did: PETSc's reason, their iterations, the last norm, and how the others ended."""

    reason: int
    iterations: int
    norm: float
    failed: str


class Fallback:
    """Corrects an iterate by classical solvers: CG with GAMG for definite matrices, then GMRES with MUMPS.

    Options under the prefix win over these; if one names a ``ksp_type`` or ``pc_type``, that solver alone is used.

    Parameters
    ----------
    prefix
        Of its options.

    Attributes
    ----------
    price
        Wall seconds of the last solve, with its set-up; NaN before the first.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._solvers: dict[str, PETSc.KSP] = {}
        self.price = math.nan

    def rescue(self, task: Task, norm: float, definite: bool, work: tuple[PETSc.Vec, PETSc.Vec]) -> Rescue:
        """Go on from the iterate, whose true residual has this norm, until a solver ends it. Collective: yes."""
        began, before = time.perf_counter(), task.iterations
        reason, failed = int(Reason.DIVERGED_BREAKDOWN), []
        stages = self._stages(task.P, definite and _symmetric(task, *work))
        for stage in stages:
            reason, norm, said = self._correct(task, stage, norm, work[1], stage is stages[-1])
            if reason > 0:
                break
            failed.append(said)
            if reason == Reason.DIVERGED_MAX_IT:
                break
        if reason > 0:
            self.price = time.perf_counter() - began
        return Rescue(reason, task.iterations - before, norm, "; ".join(failed))

    def _stages(self, P: PETSc.Mat, definite: bool) -> list[dict[str, object]]:
        """Return the options of what there is to try. Collective: no."""
        options = PETSc.Options(self._prefix)
        if options.hasName("ksp_type") or options.hasName("pc_type"):
            return [dict(DEFINITE if definite else DIRECT)]
        if "aij" not in P.getType():
            return [dict(PLAIN)]
        return [dict(DEFINITE), dict(DIRECT)] if definite else [dict(DIRECT)]

    def _correct(
        self, task: Task, stage: dict[str, object], norm: float, correction: PETSc.Vec, last: bool
    ) -> tuple[int, float, str]:
        """Correct the iterate by one classical solver; return reason, norm, and how it ended. Collective: yes."""
        reason, said = 0, ""
        for _ in range(_CORRECTIONS):
            limit = task.left if last else min(task.left, _LIMIT)
            try:
                ended, iterations = self._solve(task, stage, norm, correction, limit)
            except PETSc.Error as error:
                task.residual = task.residual.duplicate()  # the other one stays locked
                task.true_residual()
                return int(Reason.DIVERGED_PC_FAILED), norm, f"{stage['pc_type']}: error {error.ierr}"
            task.iterations += iterations
            said = f"{stage['ksp_type']} with {stage['pc_type']}: reason {ended}"
            former = norm
            if math.isfinite(correction.norm()):
                task.x.axpy(1.0, correction)
                norm = task.true_residual()
                if not norm < former:
                    task.x.axpy(-1.0, correction)
                    norm = task.true_residual()
            reason = task.judge(norm)
            if reason:
                return reason, norm, said
            reason = min(ended, 0)
            if not norm < _FALL * former:
                break
            # As many iterations again would not be enough.
            if ended == Reason.DIVERGED_MAX_IT and math.log(norm / task.target) > math.log(former / norm):
                break
        return reason if reason not in (0, Reason.DIVERGED_MAX_IT) else int(Reason.DIVERGED_BREAKDOWN), norm, said

    def _solve(
        self, task: Task, stage: dict[str, object], norm: float, correction: PETSc.Vec, limit: int
    ) -> tuple[int, int]:
        """Solve A e = r to a residual below the target; return reason and iterations. Collective: yes."""
        name = str(stage["pc_type"])
        solver = self._solvers.get(name)
        with forms.default_options(self._prefix, stage):
            if solver is None:
                solver = self._solvers[name] = PETSc.KSP().create(task.A.getComm())
                solver.setOptionsPrefix(self._prefix)
                solver.setOperators(task.A, task.P)
                solver.setFromOptions()
                solver.setErrorIfNotConverged(False)
            solver.setOperators(task.A, task.P)
            if solver.getNormType() == PETSc.KSP.NormType.UNPRECONDITIONED:
                solver.setTolerances(rtol=1e-300, atol=0.9 * task.target, divtol=1e8, max_it=limit)
            else:  # its own norm is another one: the caller looks at the true residual, and may come again
                solver.setTolerances(rtol=0.1 * task.target / norm, atol=0.0, divtol=1e8, max_it=limit)
            solver.solve(task.residual, correction)
        return int(solver.getConvergedReason()), solver.getIterationNumber()

    def release(self) -> None:
        """Free the solvers. Collective: yes."""
        for solver in self._solvers.values():
            solver.destroy()
        self._solvers.clear()


def _symmetric(task: Task, image: PETSc.Vec, twice: PETSc.Vec) -> bool:
    """Whether u'Av = v'Au for the residual u and v = A u. Collective: yes."""
    residual = task.residual
    task.A.mult(residual, image)
    task.A.mult(image, twice)
    skew = abs(float(image.dot(image)) - float(residual.dot(twice)))
    return skew <= _SYMMETRY * float(residual.norm()) * float(twice.norm())
