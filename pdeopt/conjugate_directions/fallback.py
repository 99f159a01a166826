"""The classical solvers that stand behind proposed directions: they go on from the iterate that was reached."""

import dataclasses
import time

from petsc4py import PETSc

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


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a classical solve did: PETSc's reason, iterations, and wall seconds with the set-up."""

    reason: int
    iterations: int
    seconds: float


class Fallback:
    """Corrects an iterate by classical solvers: CG with GAMG for definite matrices, then GMRES with MUMPS.

    Options under the prefix win over these; if one names a ``ksp_type`` or ``pc_type``, that solver alone is used.

    Parameters
    ----------
    prefix
        Of its options.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._solvers: dict[str, PETSc.KSP] = {}

    def stages(self, P: PETSc.Mat, definite: bool) -> list[dict[str, object]]:
        """Return the options of what there is to try. Collective: no."""
        options = PETSc.Options(self._prefix)
        assembled = "aij" in P.getType()
        if options.hasName("ksp_type") or options.hasName("pc_type"):
            return [dict(DEFINITE if definite else DIRECT)]
        if not assembled:
            return [dict(PLAIN)]
        return [dict(DEFINITE), dict(DIRECT)] if definite else [dict(DIRECT)]

    def correct(
        self,
        stage: dict[str, object],
        operators: tuple[PETSc.Mat, PETSc.Mat],
        residual: PETSc.Vec,
        correction: PETSc.Vec,
        target: float,
        limit: int,
    ) -> Outcome:
        """Solve A e = r to a residual below ``target``. Collective: yes."""
        began = time.perf_counter()
        name = str(stage["pc_type"])
        solver = self._solvers.get(name)
        with forms.default_options(self._prefix, stage):
            if solver is None:
                solver = self._solvers[name] = PETSc.KSP().create(operators[0].getComm())
                solver.setOptionsPrefix(self._prefix)
                solver.setOperators(*operators)
                solver.setFromOptions()
                solver.setErrorIfNotConverged(False)
            solver.setOperators(*operators)
            if solver.getNormType() == PETSc.KSP.NormType.UNPRECONDITIONED:
                solver.setTolerances(rtol=1e-300, atol=0.9 * target, divtol=1e8, max_it=limit)
            else:  # its own norm is another one: the caller looks at the true residual, and may come again
                solver.setTolerances(rtol=0.1 * target / residual.norm(), atol=0.0, divtol=1e8, max_it=limit)
            solver.solve(residual, correction)
        reason, iterations = int(solver.getConvergedReason()), solver.getIterationNumber()
        return Outcome(reason, iterations, time.perf_counter() - began)

    def release(self) -> None:
        """Free the solvers. Collective: yes."""
        for solver in self._solvers.values():
            solver.destroy()
        self._solvers.clear()
