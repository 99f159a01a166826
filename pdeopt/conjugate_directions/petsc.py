"""Deep conjugate directions as a KSP type: any preconditioner or network proposes, the true residual decides."""

import dataclasses
import logging
import math
import sys
import time

from petsc4py import PETSc

from pdeopt.conjugate_directions.directions import Directions
from pdeopt.conjugate_directions.fallback import Fallback
from pdeopt.conjugate_directions.progress import PlainStep, Progress
from pdeopt.conjugate_directions.recycling import RecycledSpace
from pdeopt.conjugate_directions.task import Reason, Task
from pdeopt.fem.settings import read_settings
from pdeopt.report import KSP_ADVICE, InputError, OptionError, SolveReport

__all__ = ["DeepConjugateDirections", "DirectionSettings"]

_LOGGER = logging.getLogger(__name__)
# No classical solve is taken to cost less than these seconds.
_LEAST_SECONDS = 0.05


@dataclasses.dataclass(frozen=True)
class DirectionSettings:
    """Settings of `DeepConjugateDirections`; its docstring says what they mean.

    Raises
    ------
    InputError
        If one is out of its range.
    """

    truncate: int = 2
    recycle: int = 0
    true_residual: int = 0
    gain: float = 0.1
    window: int = 1000
    price: float = 1000.0

    def __post_init__(self) -> None:
        for name in ("truncate", "recycle", "true_residual", "gain", "window", "price"):
            least = 1 if name == "window" else 0
            if not getattr(self, name) >= least:
                raise InputError(f"{name} is {getattr(self, name)}: it has to be {least} or more")


class DeepConjugateDirections:
    r"""Conjugate directions from any proposal, linear or not, for symmetric positive definite systems A x = b.

    .. math:: q = \text{proposal}(r / |r|) \text{ made A-orthogonal to former directions}, \quad
        x \leftarrow x + \frac{q' r}{q' A q} q

    Switched on by ``-ksp_type python -ksp_python_type pdeopt.DeepConjugateDirections``; the proposal is the
    preconditioner of the KSP, which may be a network and change from iteration to iteration. The norm is that of the
    residual, and convergence is declared by the true one, b - A x in float64. Null spaces attached to the matrix are
    taken out of right-hand side and directions.

    A classical solver takes over inside the same solve, from the iterate that was reached, if a proposal has NaN or
    Inf, has no part that the former directions do not have, or shows that the matrix is not positive definite; if a
    step gains less than a tenth of what the plainest one, along the residual over the diagonal, would gain; if the
    rest is forecast to cost more than the classical solver from there; or if the residual does not halve within a
    window. It is conjugate gradients with GAMG for definite matrices and, where that fails or the matrix is not, GMRES
    with MUMPS. The method is that of Kaneda et al., "A deep conjugate direction method for iteratively solving linear
    systems", ICML 2023; with a linear symmetric positive definite proposal it is ``-ksp_type fcg
    -ksp_fcg_truncation_type standard -ksp_fcg_mmax 2``.

    Options, under the prefix of the KSP
    ------------------------------------
    ``-ksp_dcd_truncate`` : 2
        Former directions to which a new one is made A-orthogonal.
    ``-ksp_dcd_recycle`` : 0
        Slow directions that are kept for the next solve, whose matrix may be another one, and deflated there. They cost
        two products with a dense matrix in each iteration, and one with A each when it changes: they pay where
        proposals are dear, or a few slow modes stand apart, as with high contrast (there 10 to 20).
    ``-ksp_dcd_true_residual`` : 0
        The residual is computed anew, b - A x, every so many iterations, as published in each one (1), for a product
        with the matrix each; 0: only where convergence is claimed.
    ``-ksp_dcd_gain`` : 0.1
        Part of the energy that a step along the residual over the diagonal would take from the error, which a proposed
        one has to take. This is asked, for a product with the matrix, in some of the iterations that do not halve the
        residual: the first four of them, the 8th, 16th and so on; 0: never.
    ``-ksp_dcd_window`` : 1000
        Iterations within which the residual has to halve.
    ``-ksp_dcd_price`` : 1000
        Cost of a classical solve in searches, each a product with the matrix and an orthogonalisation, until one has
        been timed; 0: seconds do not count.

    The classical solver has the prefix ``dcd_fallback_``: ``-dcd_fallback_ksp_type minres -dcd_fallback_pc_type none``
    puts another one in the place of both; its tolerances are those of the KSP.

    Parameters
    ----------
    settings
        The same from Python: ``ksp.setPythonContext(DeepConjugateDirections(DirectionSettings(truncate=5)))``.

    Attributes
    ----------
    solves, proposals, accepted
        Number of solves; of directions that were proposed and used in all of them.
    fallbacks
        Why a classical solver took over, and how often.
    unsolved
        Solves that failed in the end.
    seconds
        Wall seconds on this rank: ``"proposals"``, ``"fallback"`` with its set-up, and of whole solves.
    error
        An exception that ended the last solve.

    Raises
    ------
    OptionError
        If an option is unknown or its value unfit.
    """

    def __init__(self, settings: DirectionSettings | None = None) -> None:
        self.settings = settings or DirectionSettings()
        self.error: Exception | None = None
        self.solves = self.proposals = self.accepted = self.unsolved = 0
        self.fallbacks: dict[str, int] = {}
        self.seconds = {"proposals": 0.0, "fallback": 0.0, "solve": 0.0}
        self._directions: Directions | None = None
        self._space: RecycledSpace | None = None
        self._plain: PlainStep | None = None
        self._vectors: list[PETSc.Vec] = []  # right-hand side, residual, normalised residual, correction
        self._fallback: Fallback | None = None
        self._reason, self._iterations, self._classical_iterations = 0, 0, 0
        self._norms: tuple[float, ...] = ()
        self._why = self._advice = ""

    # --- what PETSc calls ---------------------------------------------------------------------------------------------

    def setFromOptions(self, ksp: PETSc.KSP) -> None:
        """Read the options under the prefix of the solver. Collective: no."""
        prefix = ksp.getOptionsPrefix() or ""
        settings = read_settings(self.settings, prefix, "ksp_dcd_")
        norm = PETSc.Options(prefix).getString("ksp_norm_type", "unpreconditioned")
        if norm != "unpreconditioned":
            raise OptionError(
                f"option -{prefix}ksp_norm_type is {norm!r}: the norm is that of the residual, unpreconditioned; to do "
                f"without a test set -{prefix}ksp_convergence_test skip"
            )
        if settings != self.settings:
            self.settings = settings
            self._free()

    def setUp(self, ksp: PETSc.KSP) -> None:
        """Set the norm. Collective: yes."""
        ksp.setNormType(PETSc.KSP.NormType.UNPRECONDITIONED)

    def solve(self, ksp: PETSc.KSP, b: PETSc.Vec, x: PETSc.Vec) -> None:
        """Solve A x = b. Collective: yes."""
        began = time.perf_counter()
        self.error = None
        try:
            self._solve(ksp, b, x)
        except Exception as error:
            self.error = error  # PETSc hands on no more than a number
            self._free()  # a solver that raised leaves its right-hand side locked for ever
            raise
        self.seconds["solve"] += time.perf_counter() - began

    def view(self, ksp: PETSc.KSP, viewer: PETSc.Viewer) -> None:
        """Print the settings, the counts, and the report of the last solve. Collective: yes."""
        if viewer.getType() != PETSc.Viewer.Type.ASCII:
            return
        for label, value in self.report.rows():
            viewer.printfASCII(f"  {label}: {value}\n")

    def reset(self, ksp: PETSc.KSP | None = None) -> None:
        """Free the vectors. Collective: yes."""
        self._free()

    def destroy(self, ksp: PETSc.KSP | None = None) -> None:
        """Free the vectors and the classical solvers. Collective: yes."""
        self._free()
        if self._fallback is not None:
            self._fallback.release()
            self._fallback = None

    @property
    def report(self) -> SolveReport:
        """What was done; reason, iterations and residuals are those of the last solve."""
        return SolveReport(
            method="deep conjugate directions",
            why=self._why,
            converged=self._reason > 0,
            reason=self._reason,
            linear_iterations=self._iterations,
            residuals=self._norms,
            seconds=dict(self.seconds),
            quantities={
                **dataclasses.asdict(self.settings),
                "solves": self.solves,
                "proposals": self.proposals,
                "directions used": self.accepted,
                "classical iterations, last solve": self._classical_iterations,
                "fallbacks": "; ".join(f"{count} x {why}" for why, count in self.fallbacks.items()) or "none",
                "not solved": self.unsolved,
                **({} if self._space is None else {"recycled, renewed": f"{self._space.rank}, {self._space.renewals}"}),
            },
            advice=self._advice,
        )

    # --- one solve ----------------------------------------------------------------------------------------------------

    def _solve(self, ksp: PETSc.KSP, b: PETSc.Vec, x: PETSc.Vec) -> None:
        task, norm = self._begin(ksp, b, x)
        self.solves += 1
        self._classical_iterations = 0
        self._why = self._advice = ""
        self._norms = (norm,)
        reason = task.judge(norm)
        if reason == 0:
            reason, fault, definite = self._propose(task, norm)
            if reason > 0 and self._space is not None:
                self._space.finish(task.P, task.iterations)
            if fault:
                self.fallbacks[fault] = self.fallbacks.get(fault, 0) + 1
                self._why = f"classical solver: {fault}"
                _LOGGER.info("deep conjugate directions: %s; a classical solver goes on", fault)
                reason = self._fall_back(task, definite)
        self._reason, self._iterations = reason, task.iterations
        if reason < 0:
            self.unsolved += 1
            self._advice = self._advice or KSP_ADVICE.get(reason, "")
        ksp.setConvergedReason(reason)

    def _begin(self, ksp: PETSc.KSP, b: PETSc.Vec, x: PETSc.Vec) -> tuple[Task, float]:
        """Return the task, and the norm of its first residual. Collective: yes."""
        A, P = ksp.getOperators()
        if not self._vectors:
            self._vectors = [b.duplicate() for _ in range(4)]
            self._directions, self._plain = Directions(b, self.settings.truncate), PlainStep(b)
            self._space = RecycledSpace(self.settings.recycle, b) if self.settings.recycle else None
        rhs, residual = self._vectors[:2]
        b.copy(rhs)
        null: PETSc.NullSpace | None = A.getNullSpace()
        if null is not None and not null.handle:
            null = None
        if null is not None:
            null.remove(rhs)
        if ksp.getInitialGuessNonzero():
            A.mult(x, residual)
            residual.aypx(-1.0, rhs)
        else:
            x.set(0.0)
            rhs.copy(residual)
        norm = float(residual.norm())
        rtol, atol = ksp.getTolerances()[:2]
        target = max(rtol * (float(rhs.norm()) or norm), atol, sys.float_info.min)
        return Task(ksp, A, P, rhs, x, residual, null, target), norm

    def _propose(self, task: Task, norm: float) -> tuple[int, str, bool]:
        """Iterate on proposals; return reason, why they ended early, and if A may be definite. Collective: yes."""
        assert self._directions is not None
        assert self._plain is not None
        directions, residual, unit = self._directions, task.residual, self._vectors[2]
        pc, every, search_seconds = task.ksp.getPC(), self.settings.true_residual, math.inf
        directions.forget()
        self._plain.forget()
        if self._space is not None:
            self._space.prepare(task.A, task.x, residual)
            norm = task.true_residual()
            if norm <= task.target:  # the test, asked again for iteration 0, would take this norm for the first one
                task.ksp.setResidualNorm(norm)
                self._norms += (norm,)
                return int(Reason.CONVERGED_RTOL), "", True
        progress = Progress(norm, task.target, self.settings.window)
        while True:
            if norm == 0.0:  # nothing is left, though a test of the user's goes on
                self._norms += (norm,)
                return int(Reason.CONVERGED_ATOL), "", True
            unit.axpby(1.0 / norm, 0.0, residual)
            proposal = directions.new[0]
            began = time.perf_counter()
            pc.apply(unit, proposal)
            self.seconds["proposals"] += time.perf_counter() - began
            self.proposals += 1
            if task.null is not None:
                task.null.remove(proposal)
            if self._space is not None:
                self._space.deflate(proposal)
            began = time.perf_counter()
            search = directions.search(task.A, residual)
            search_seconds = min(search_seconds, time.perf_counter() - began)
            if search.fault and norm <= task.target:  # rounding is left, though a test of the user's goes on
                self._norms += (norm,)
                return int(Reason.CONVERGED_RTOL), "", True
            if search.fault:
                return self._explain(search.fault, proposal)
            direction, image = directions.new
            if self._space is not None:
                self._space.note(direction, search.curvature)
            task.x.axpy(search.step, direction)
            task.iterations += 1
            anew = every > 0 and task.iterations % every == 0
            if anew:
                task.true_residual()
            else:
                residual.axpy(-search.step, image)
            norm = float(residual.norm())
            self.accepted += 1
            directions.keep(search.curvature)
            reason = task.judge(norm)
            if reason > 0 and not anew:
                norm = task.true_residual()
                task.ksp.setResidualNorm(norm)
                reason = task.test(norm)
            if reason == Reason.DIVERGED_DTOL:
                return reason, "the residual grew beyond the divergence tolerance", True
            if reason:
                self._norms += (norm,)
                return reason, "", True
            progress.note(norm)
            why = self._doubt(task, progress, search.gain, search_seconds)
            if why:
                return 0, why, True

    def _doubt(self, task: Task, progress: Progress, gain: float, search_seconds: float) -> str:
        """Say why a classical solver should go on after a step that gained this energy, if so. Collective: yes."""
        assert self._plain is not None
        settings = self.settings
        if progress.stagnates:
            return f"the residual did not halve in {settings.window} iterations"
        # As residuals change little where they do not halve, the new one will do for the plain step.
        if settings.gain and progress.doubtful:
            plain = self._plain.gain(task.A, task.P, task.residual)
            if gain < settings.gain * plain:
                return "a proposal gained less than the residual over the diagonal"
        if settings.price and progress.due:
            price = self._fallback.price if self._fallback is not None else math.nan
            if math.isnan(price):
                price = settings.price * search_seconds
            if task.A.getComm().tompi4py().bcast(progress.too_dear(max(price, _LEAST_SECONDS))):
                return "the proposals cost more than a classical solve"
        return ""

    def _explain(self, fault: str, proposal: PETSc.Vec) -> tuple[int, str, bool]:
        """Say what a search without a step means. Collective: yes."""
        if fault == "not positive":
            return 0, "the matrix is not positive definite", False
        if fault == "not finite":
            if math.isfinite(proposal.norm()):
                self._advice = KSP_ADVICE[-9]
                return int(Reason.DIVERGED_NANORINF), "", True
            return 0, "a proposal has NaN or Inf", True
        return 0, "a proposal brought nothing new", True

    def _fall_back(self, task: Task, definite: bool) -> int:
        """Go on from the iterate by classical solvers. Collective: yes."""
        began = time.perf_counter()
        if self._fallback is None:
            self._fallback = Fallback(f"{task.ksp.getOptionsPrefix() or ''}dcd_fallback_")
        norm = task.true_residual()
        rescue = self._fallback.rescue(task, norm, definite, (self._vectors[2], self._vectors[3]))
        self._vectors[1] = task.residual
        self._norms += (norm, rescue.norm)
        self._classical_iterations = rescue.iterations
        self.seconds["fallback"] += time.perf_counter() - began
        if rescue.reason <= 0 and rescue.reason != Reason.DIVERGED_MAX_IT:
            self._advice = f"no classical solver helped either ({rescue.failed}): check that the system has a solution"
        return rescue.reason

    def _free(self) -> None:
        """Free what has the layout of the unknowns. Collective: yes."""
        for vector in self._vectors:
            vector.destroy()
        self._vectors = []
        for owner in (self._directions, self._plain, self._space):
            if owner is not None:
                owner.release()
        self._directions = self._plain = self._space = None
