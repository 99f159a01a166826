"""Deep conjugate directions as a KSP type: any preconditioner or network proposes, the true residual decides."""

import dataclasses
import logging
import math
import time

from petsc4py import PETSc

from pdeopt.conjugate_directions.directions import Directions
from pdeopt.conjugate_directions.fallback import Fallback
from pdeopt.conjugate_directions.progress import Progress
from pdeopt.conjugate_directions.recycling import RecycledSpace
from pdeopt.fem.settings import read_settings
from pdeopt.report import KSP_ADVICE, InputError, OptionError, SolveReport

__all__ = ["DeepConjugateDirections", "DirectionSettings"]

_LOGGER = logging.getLogger(__name__)
Reason = PETSc.KSP.ConvergedReason
# Where a matrix is called symmetric: |u'Av - v'Au| over |u| |Av|.
_SYMMETRY = 1e-8
# No classical solve is taken to cost less than these seconds.
_LEAST_SECONDS = 0.02
# Iterations of CG with GAMG before a factorisation is tried.
_CLASSICAL_LIMIT = 500
# Corrections by one classical solver, as long as each halves the true residual.
_CORRECTIONS, _FALL = 5, 0.5


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
    window: int = 100
    price: float = 1000.0

    def __post_init__(self) -> None:
        for name, least in (("truncate", 0), ("recycle", 0), ("true_residual", 0), ("window", 1), ("price", 0.0)):
            if not getattr(self, name) >= least:
                raise InputError(f"{name} is {getattr(self, name)}: it has to be {least} or more")


@dataclasses.dataclass(frozen=True)
class _Task:
    """One solve; ``target`` is the norm at which PETSc's default test ends it."""

    ksp: PETSc.KSP
    A: PETSc.Mat
    P: PETSc.Mat
    b: PETSc.Vec
    x: PETSc.Vec
    null: PETSc.NullSpace | None
    target: float


class DeepConjugateDirections:
    r"""Conjugate directions from any proposal, linear or not, for symmetric positive definite systems A x = b.

    .. math:: q = \text{proposal}(r / |r|) \text{ made A-orthogonal to former directions}, \quad
        x \leftarrow x + \frac{q' r}{q' A q} q

    Switched on by ``-ksp_type python -ksp_python_type pdeopt.DeepConjugateDirections``; the proposal is the
    preconditioner of the KSP, which may be a network and change from iteration to iteration. The norm is that of the
    residual, and convergence is declared by the true one, b - A x in float64. Null spaces attached to the matrix are
    taken out of right-hand side and directions.

    A classical solver takes over inside the same solve, from the iterate that was reached, if a proposal has NaN or
    Inf, has no part that the former directions do not have, or shows that the matrix is not positive definite; if the
    residual does not halve within a window; or if the rest would cost more than the classical solver from the start.
    It is conjugate gradients with GAMG for definite matrices and, where that fails or the matrix is not, GMRES with
    MUMPS. The method is that of Kaneda et al., "A deep conjugate direction method for iteratively solving linear
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
    ``-ksp_dcd_window`` : 100
        Iterations within which the residual has to halve.
    ``-ksp_dcd_price`` : 1000
        Cost of a classical solve in products with the matrix, until one has been timed; 0: seconds do not count.

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
        self._vectors: list[PETSc.Vec] = []  # right-hand side, residual, normalised residual, correction
        self._fallback: Fallback | None = None
        self._classical = math.nan  # seconds of the last classical solve
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
        A, P = ksp.getOperators()
        if not self._vectors:
            self._vectors = [b.duplicate() for _ in range(4)]
            self._directions = Directions(b, self.settings.truncate)
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
        task = _Task(ksp, A, P, rhs, x, null, max(rtol * (float(rhs.norm()) or norm), atol))
        self.solves += 1
        self._iterations = self._classical_iterations = 0
        self._why = self._advice = ""
        self._norms = (norm,)
        reason = self._judge(task, norm)
        if reason == 0:
            reason, fault, definite = self._propose(task, norm)
            if reason > 0 and self._space is not None:
                self._space.finish(P, self._iterations)
            if fault:
                self.fallbacks[fault] = self.fallbacks.get(fault, 0) + 1
                self._why = f"classical solver: {fault}"
                _LOGGER.info("deep conjugate directions: %s; a classical solver goes on", fault)
                reason = self._fall_back(task, definite)
        self._reason = reason
        if reason < 0:
            self.unsolved += 1
            self._advice = self._advice or KSP_ADVICE.get(reason, "")
        ksp.setConvergedReason(reason)

    def _judge(self, task: _Task, norm: float) -> int:
        """Let PETSc's monitors and convergence test see the norm of the residual. Collective: yes."""
        ksp = task.ksp
        ksp.setIterationNumber(self._iterations)
        if not math.isfinite(norm):
            norm = math.inf
        ksp.setResidualNorm(norm)
        ksp.logConvergenceHistory(norm)
        ksp.monitor(self._iterations, norm)
        return self._test(ksp, norm)

    def _test(self, ksp: PETSc.KSP, norm: float) -> int:
        if not math.isfinite(norm):  # PETSc takes no other number for a norm
            return int(Reason.DIVERGED_NANORINF)
        reason = int(ksp.callConvergenceTest(self._iterations, norm))
        if reason == 0 and self._iterations >= ksp.getTolerances()[3]:
            return int(Reason.DIVERGED_MAX_IT)
        return reason

    def _propose(self, task: _Task, norm: float) -> tuple[int, str, bool]:
        """Iterate on proposals; return reason, why they ended early, and if A may be definite. Collective: yes."""
        assert self._directions is not None
        directions, (_, residual, unit, _) = self._directions, self._vectors
        pc, every = task.ksp.getPC(), self.settings.true_residual
        progress: Progress | None = None
        directions.forget()
        if self._space is not None:
            self._space.prepare(task.A, task.x, residual)
            norm = float(residual.norm())
        while True:
            residual.copy(unit)
            unit.scale(1.0 / norm)
            proposal = directions.new[0]
            began = time.perf_counter()
            pc.apply(unit, proposal)
            proposed = time.perf_counter()
            self.seconds["proposals"] += proposed - began
            self.proposals += 1
            if task.null is not None:
                task.null.remove(proposal)
            if self._space is not None:
                self._space.deflate(proposal)
            search = directions.search(task.A, residual)
            if progress is None:
                progress = self._watch(task, norm, proposed)
            if search.fault:
                return self._explain(search.fault, proposal)
            step = search.step
            direction, image = directions.new
            if self._space is not None:
                self._space.note(direction, search.curvature)
            task.x.axpy(step, direction)
            anew = every > 0 and (self._iterations + 1) % every == 0
            if anew:
                self._true_residual(task)
            else:
                residual.axpy(-step, image)
            norm = float(residual.norm())
            self._iterations += 1
            self.accepted += 1
            directions.keep(search.curvature)
            reason = self._judge(task, norm)
            if reason > 0 and not anew:
                norm = self._true_residual(task)
                task.ksp.setResidualNorm(norm)
                reason = self._test(task.ksp, norm)
            if reason == Reason.DIVERGED_DTOL:
                return reason, "the residual grew beyond the divergence tolerance", True
            if reason:
                self._norms += (norm,)
                return reason, "", True
            progress.note(norm)
            if progress.stagnates:
                return 0, f"the residual did not halve in {self.settings.window} iterations", True
            if progress.due and task.A.getComm().tompi4py().bcast(progress.too_dear):
                return 0, "the proposals cost more than a classical solve", True

    def _watch(self, task: _Task, norm: float, began: float) -> Progress:
        """Return what watches the progress; ``began`` is when the first product with A began. Collective: no."""
        price = math.inf
        if self.settings.price:
            guessed = self.settings.price * (time.perf_counter() - began)
            price = max(guessed if math.isnan(self._classical) else self._classical, _LEAST_SECONDS)
        progress = Progress(task.target, self.settings.window, price)
        progress.note(norm)
        return progress

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

    def _true_residual(self, task: _Task) -> float:
        """Compute b - A x, and return its norm. Collective: yes."""
        residual = self._vectors[1]
        task.A.mult(task.x, residual)
        residual.aypx(-1.0, task.b)
        return float(residual.norm())

    # --- the classical solver -----------------------------------------------------------------------------------------

    def _fall_back(self, task: _Task, definite: bool) -> int:
        """Go on from the iterate by classical solvers. Collective: yes."""
        began = time.perf_counter()
        if self._fallback is None:
            self._fallback = Fallback(f"{task.ksp.getOptionsPrefix() or ''}dcd_fallback_")
        first = norm = self._true_residual(task)
        reason, how = int(Reason.DIVERGED_BREAKDOWN), []
        for stage in self._fallback.stages(task.P, definite and self._symmetric(task)):
            reason, norm, said = self._correct(task, stage, norm)
            if reason > 0 or reason == Reason.DIVERGED_MAX_IT:
                break
            how.append(said)
        self._norms += (first, norm)
        seconds = time.perf_counter() - began
        self.seconds["fallback"] += seconds
        if reason > 0:
            self._classical = seconds
        else:
            self._advice = f"no classical solver helped either ({'; '.join(how)}): check that the system has a solution"
        return reason

    def _correct(self, task: _Task, stage: dict[str, object], norm: float) -> tuple[int, float, str]:
        """Correct the iterate by one classical solver; return reason, norm, and how it ended. Collective: yes."""
        assert self._fallback is not None
        reason, said = 0, ""
        for _ in range(_CORRECTIONS):
            _, residual, _, correction = self._vectors
            limit = max(task.ksp.getTolerances()[3] - self._iterations, 1)
            if stage["pc_type"] == "gamg":
                limit = min(limit, _CLASSICAL_LIMIT)
            try:
                outcome = self._fallback.correct(stage, (task.A, task.P), residual, correction, task.target, limit)
            except PETSc.Error as error:
                self._vectors[1] = residual.duplicate()  # the other one stays locked
                self._true_residual(task)
                return int(Reason.DIVERGED_PC_FAILED), norm, f"{stage['pc_type']}: error {error.ierr}"
            self._iterations += outcome.iterations
            self._classical_iterations += outcome.iterations
            said = f"{stage['ksp_type']} with {stage['pc_type']}: reason {outcome.reason}"
            former = norm
            if math.isfinite(correction.norm()):
                task.x.axpy(1.0, correction)
                norm = self._true_residual(task)
                if not norm < former:
                    task.x.axpy(-1.0, correction)
                    norm = self._true_residual(task)
            reason = self._judge(task, norm)
            if reason:
                return reason, norm, said
            reason = min(outcome.reason, 0)
            if not norm < _FALL * former:
                break
        return reason or int(Reason.DIVERGED_BREAKDOWN), norm, said

    def _symmetric(self, task: _Task) -> bool:
        """Whether u'Av = v'Au for the residual u and v = A u. Collective: yes."""
        _, residual, image, twice = self._vectors
        task.A.mult(residual, image)
        task.A.mult(image, twice)
        skew = abs(float(image.dot(image)) - float(residual.dot(twice)))
        return skew <= _SYMMETRY * float(residual.norm()) * float(twice.norm())

    def _free(self) -> None:
        """Free what has the layout of the unknowns. Collective: yes."""
        for vector in self._vectors:
            vector.destroy()
        self._vectors = []
        if self._directions is not None:
            self._directions.release()
            self._directions = None
        if self._space is not None:
            self._space.release()
            self._space = None
