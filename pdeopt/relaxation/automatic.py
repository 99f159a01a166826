"""Solvers that choose themselves, as PETSc types."""

import collections
import dataclasses
import math
import time

from petsc4py import PETSc

import numpy as np

from pdeopt.relaxation._auto_solver import Chooser, build, set_up
from pdeopt.relaxation._automatic_pc import AutoPC
from pdeopt.relaxation._options import read_settings
from pdeopt.relaxation.features import MatrixFeatures, is_assembled
from pdeopt.relaxation.reuse import Lagging
from pdeopt.relaxation.rule import Choice, factor_pays, iteration_limit
from pdeopt.report import InputError, SolveReport

__all__ = ["AutoKSP", "AutoPC", "AutoSettings"]

Reason = PETSc.KSP.ConvergedReason

# Residuals of this many units of rounding, |r| <= c eps (|A| |x| + |b|), are as small as a factorisation makes them.
ROUNDING_UNITS = 4.0
# How often a solve may go on when its own residual says converged and the true one does not.
REFINEMENTS = 3


@dataclasses.dataclass(frozen=True)
class AutoSettings:
    """Settings of `AutoKSP`; its docstring says what they mean."""

    direct_rtol: float = 1e-12

    def __post_init__(self) -> None:
        if not 0.0 < self.direct_rtol < 1.0:
            raise InputError(f"direct_rtol is {self.direct_rtol}: it is a relative residual, between 0 and 1")


@dataclasses.dataclass(frozen=True)
class _Task:
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


class AutoKSP:
    """A linear solver that looks at the matrix and chooses itself.

    Switched on by ``-ksp_type python -ksp_python_type pdeopt.AutoKSP``. From what the assembled matrix shows (size,
    symmetry, diagonal, entries per row, block size, null spaces, ranks, growth of its graph) a rule chooses the Krylov
    method and the preconditioner together (`pdeopt.relaxation.rule`). What was set up is kept while the values of the
    matrix are the same, or a multiple of the former ones, however often they are assembled; if they changed, old
    factors go on as a preconditioner while that is cheaper, and otherwise the symbolic work is kept. Once the solves
    with the same values have cost what a factorisation saves, the matrix is factored.

    The choice does not change the answer. The tolerance of the KSP is met by the *true* residual, computed after each
    solve; a choice that breaks down, stagnates or raises is given up within the same solve, for the next one and in
    the end for LU by MUMPS, and not tried again on this matrix. Saddle-point, indefinite and singular systems are left
    to factorisations, since a small residual is not a small error there.

    If the options still name ``-pc_type lu`` or ``cholesky``, the script expects the accuracy of a factorisation: then
    the relative residual is brought to 1e-12, or as far down as rounding allows. Options of MUMPS that the script
    gives (``-mat_mumps_icntl_...``) are kept wherever MUMPS is chosen. Any other preconditioner is only used for
    matrices without entries (nest, shell), where there is nothing to look at.

    Options, under the prefix of the KSP
    ------------------------------------
    ``-ksp_auto_direct_rtol`` : 1e-12
        Relative residual that stands for a factorisation.

    The chosen solver has the prefix ``auto_``: ``-auto_ksp_monitor`` watches it, and ``-auto_pc_type gamg`` or any
    other option wins over the rule, but for tolerances, which are those of the KSP.

    Parameters
    ----------
    settings
        The same from Python: ``ksp.setPythonContext(AutoKSP(AutoSettings(direct_rtol=1e-10)))``.

    Attributes
    ----------
    choice
        What solves at present.
    features
        What it was chosen from.
    setups
        Preconditioners made: ``"new"``, and ``"updated"`` with the symbolic work of the former.
    reused
        Solves with the preconditioner of before: ``"unchanged"`` values, ``"scaled"``, or ``"lagged"`` behind them.
    failed
        Choices that were given up on this pattern, and how they failed.
    fallbacks, unsolved
        How often a choice was given up, and solves that failed in the end.
    seconds
        Wall seconds on this rank: ``"features"``, ``"setup"``, ``"solve"``, ``"verify"``.

    Raises
    ------
    OptionError
        If an option is unknown or its value unfit.
    """

    def __init__(self, settings: AutoSettings | None = None) -> None:
        self.settings = settings or AutoSettings()
        self._chooser = Chooser()
        self._inner: PETSc.KSP | None = None
        self._rhs: PETSc.Vec | None = None  # a copy, for PETSc locks it while it solves
        self._residual: PETSc.Vec | None = None
        self._own_type = ""
        self.choice: Choice | None = None
        self.setups = {"new": 0, "updated": 0}
        self.reused = {"unchanged": 0, "scaled": 0, "lagged": 0}
        self.fallbacks = self.unsolved = self.solves = self.iterations = 0
        self.seconds = {"features": 0.0, "setup": 0.0, "solve": 0.0, "verify": 0.0}
        self._lagging = Lagging()
        self._norm = math.nan  # infinity norm of the present values, once it was needed
        self._count = self._former_count = 0  # solves with these values, and with those before
        self._iterative_solves: collections.deque[float] = collections.deque(maxlen=3)  # their seconds, the last ones
        self._setup_seconds = 0.0  # of a set-up just made
        self._factored_to_pay = False
        self._reason, self._norms = 0, (math.nan, math.nan)

    # --- what PETSc calls ---------------------------------------------------------------------------------------------

    def setFromOptions(self, ksp: PETSc.KSP) -> None:
        """Read the options under the prefix of the solver. Collective: no."""
        self.settings = read_settings(self.settings, ksp.getOptionsPrefix(), "ksp_auto_")

    def setUp(self, ksp: PETSc.KSP) -> None:
        """Keep PETSc from setting up the preconditioner that is not used. Collective: yes."""
        ksp.setNormType(PETSc.KSP.NormType.UNPRECONDITIONED)
        pc = ksp.getPC()
        if is_assembled(ksp.getOperators()[1]) and pc.getType() != PETSc.PC.Type.NONE:
            self._own_type = pc.getType() or ""
            pc.setType(PETSc.PC.Type.NONE)

    def solve(self, ksp: PETSc.KSP, b: PETSc.Vec, x: PETSc.Vec) -> None:
        """Solve A x = b. Collective: yes."""
        self._solve(ksp, b, x, transposed=False)

    def solveTranspose(self, ksp: PETSc.KSP, b: PETSc.Vec, x: PETSc.Vec) -> None:
        """Solve A^T x = b, with the same preconditioner. Collective: yes."""
        self._solve(ksp, b, x, transposed=True)

    def view(self, ksp: PETSc.KSP, viewer: PETSc.Viewer) -> None:
        """Print what was chosen and why, and what was reused. Collective: yes."""
        if viewer.getType() != PETSc.Viewer.Type.ASCII:
            return
        for label, value in self.report.rows():
            viewer.printfASCII(f"  {label}: {value}\n")
        if self._inner is not None:
            self._inner.view(viewer)

    def destroy(self, ksp: PETSc.KSP) -> None:
        """Free the chosen solver. Collective: yes."""
        self._drop()
        self._free_vectors()
        self._chooser.release()

    @property
    def features(self) -> MatrixFeatures | None:
        """What the present choice was made from."""
        return self._chooser.features

    @property
    def failed(self) -> dict[str, str]:
        """Choices that failed on this pattern, and how."""
        return dict(self._chooser.failed)

    @property
    def report(self) -> SolveReport:
        """What was done so far; reason and residuals are those of the last solve."""
        choice = self.choice
        return SolveReport(
            method=choice.name if choice else "nothing chosen yet",
            why=choice.why if choice else "",
            converged=self._reason > 0,
            reason=self._reason,
            iterations=self.solves,
            linear_iterations=self.iterations,
            residuals=self._norms if self.solves else (),
            seconds=dict(self.seconds),
            quantities={
                "matrix": str(self._chooser.features),
                "set-ups, new / updated": f"{self.setups['new']} / {self.setups['updated']}",
                "kept: unchanged / scaled / lagged": " / ".join(str(count) for count in self.reused.values()),
                "given up": "; ".join(f"{name} ({how})" for name, how in self._chooser.failed.items()) or "nothing",
                "not solved": self.unsolved,
            },
        )

    # --- one solve ----------------------------------------------------------------------------------------------------

    def _solve(self, ksp: PETSc.KSP, b: PETSc.Vec, x: PETSc.Vec, transposed: bool) -> None:
        self.setUp(ksp)  # options read again bring the script's preconditioner back
        A, P = ksp.getOperators()
        rtol, atol = ksp.getTolerances()[:2]
        if self._own_type in (PETSc.PC.Type.LU, PETSc.PC.Type.CHOLESKY):
            rtol = min(rtol, self.settings.direct_rtol)
        norm = b.norm()
        self.solves += 1
        if not math.isfinite(norm):
            self._conclude(ksp, Reason.DIVERGED_NANORINF, 0, (norm, norm))
            return
        if norm == 0.0:
            x.set(0.0)
            self._conclude(ksp, Reason.CONVERGED_ATOL, 0, (0.0, 0.0))
            return
        self._look(P)
        features = self._chooser.features
        assert features is not None
        if A == P and features.symmetric:
            transposed = False
        start = x.copy() if ksp.getInitialGuessNonzero() else None
        task = _Task(ksp, A, P, b, x, start, norm, max(rtol * norm, atol), transposed)
        total, reason, residual = 0, 0, math.nan
        direct = self._factor_pays(P, features)
        tried: set[str] = set()
        while (choice := self._chooser.candidates(direct)[0]).name not in tried:
            tried.add(choice.name)
            try:
                reason, iterations, residual = self._try(choice, task)
                total += iterations
                how = f"reason {reason}, residual {residual / norm:.1e}"
            except PETSc.Error as error:
                reason, how = Reason.DIVERGED_PCSETUP_FAILED, f"error {error.ierr}"
                self._free_vectors()  # a solve that raised leaves its right-hand side locked for ever
            if reason > 0:
                break
            self.fallbacks += 1
            self._chooser.give_up(choice, reason, how)
            self._drop()
        if start is not None:
            start.destroy()
        self._conclude(ksp, reason, total, (norm, residual))

    def _look(self, matrix: PETSc.Mat) -> None:
        """Note how the matrix changed. Collective: yes."""
        change = self._chooser.look(matrix)
        self.seconds["features"] = self._chooser.seconds
        if change.kind == "pattern":
            self._lagging = Lagging()
            self._count = 0
            self._drop()
            self._free_vectors()
        if change.fresh:
            self._norm = math.nan
            if change.kind in ("values", "pattern"):
                self._former_count, self._count = self._count, 0

    def _factor_pays(self, matrix: PETSc.Mat, features: MatrixFeatures) -> bool:
        """Whether a factorisation pays, as far as solves with these values and those before tell. Collective: yes."""
        if self._factored_to_pay and self._chooser.change.kind in ("none", "scaled"):
            return True
        pays = False
        if features.assembled and len(self._iterative_solves) > 1:
            products = min(self._iterative_solves) / self._chooser.watch.product
            pays = factor_pays(features, max(self._count, self._former_count), products)
        self._factored_to_pay = bool(matrix.getComm().tompi4py().bcast(pays))
        return self._factored_to_pay

    def _try(self, choice: Choice, task: _Task) -> tuple[int, int, float]:
        """Solve with one choice; return reason, iterations and the norm of the true residual. Collective: yes."""
        features = self._chooser.features
        limit = min(iteration_limit(features, choice.kind), task.ksp.getTolerances()[3])
        change, used, go_on = self._chooser.change, 0, False
        if self._inner is None or self.choice is None or self.choice.name != choice.name:
            self._make(choice, task)
        elif change.kind == "none" or (change.kind == "scaled" and choice.kind in ("factor", "incomplete")):
            self.reused["unchanged" if change.kind == "none" else "scaled"] += 1
        else:
            budget = task.A.getComm().tompi4py().bcast(self._lagging.budget(choice.kind, change))
            if budget:
                reason, used, residual, _ = self._iterate(task, budget)
                self._lagging.kept(used, reason > 0)
                if reason > 0:
                    self.reused["lagged"] += 1
                    return reason, used, residual
                go_on = residual < task.norm  # what it reached is kept
            self._update(choice, task)
        self.choice = choice
        reason, iterations, residual, seconds = self._iterate(task, limit, go_on)
        if self._setup_seconds:
            self._lagging.made(self._setup_seconds, seconds, iterations)
            self._setup_seconds = 0.0
        self._count += 1
        if choice.kind != "factor":
            self._iterative_solves.append(seconds)
        return reason, used + iterations, residual

    def _make(self, choice: Choice, task: _Task) -> None:
        """Build and set up a solver. Collective: yes."""
        self._drop()
        prefix = task.ksp.getOptionsPrefix() or ""
        self._inner = build(choice, f"{prefix}auto_", prefix, task.P)
        if choice.kind == "own":
            self._inner.setPC(task.ksp.getPC())
        elif task.A != task.P and choice.options["ksp_type"] == "cg":
            self._inner.setType(PETSc.KSP.Type.FGMRES)  # what is known of P says nothing of A
            self._inner.setPCSide(PETSc.PC.Side.RIGHT)
        self.setups["new"] += 1
        self._set_up(choice, task)

    def _update(self, choice: Choice, task: _Task) -> None:
        """Take the new values, with the symbolic work of the former. Collective: yes."""
        self.setups["updated"] += 1
        self._set_up(choice, task)

    def _set_up(self, choice: Choice, task: _Task) -> None:
        assert self._inner is not None
        began = time.perf_counter()
        prefix = task.ksp.getOptionsPrefix() or ""
        set_up(self._inner, choice, f"{prefix}auto_", prefix, task.A, task.P)
        self._chooser.accept()
        self._setup_seconds = time.perf_counter() - began
        self.seconds["setup"] += self._setup_seconds

    def _iterate(self, task: _Task, limit: int, go_on: bool = False) -> tuple[int, int, float, float]:
        """Iterate until the true residual meets the target; also return the seconds. Collective: yes."""
        assert self._inner is not None
        inner, x = self._inner, task.x
        if self._rhs is None:
            self._rhs, self._residual = task.b.duplicate(), task.b.duplicate()
        rhs = self._rhs
        task.b.copy(rhs)
        if not go_on:
            if task.start is None:
                x.set(0.0)
            else:
                task.start.copy(x)
        inner.setInitialGuessNonzero(go_on or task.start is not None)
        total, residual, seconds = 0, math.inf, 0.0
        for _ in range(1 + REFINEMENTS):
            inner.setTolerances(rtol=1e-300, atol=0.9 * task.target, divtol=1e8, max_it=max(limit - total, 1))
            began = time.perf_counter()
            (inner.solveTranspose if task.transposed else inner.solve)(rhs, x)
            solved = time.perf_counter()
            total += inner.getIterationNumber()
            former, residual = residual, self._true_residual(task)
            self.seconds["solve"] += solved - began
            self.seconds["verify"] += time.perf_counter() - solved
            seconds += time.perf_counter() - began
            reason = int(inner.getConvergedReason())
            if residual <= task.target:
                return Reason.CONVERGED_RTOL, total, residual, seconds
            if not residual < 0.5 * former or reason < 0:
                break
            # The method's own residual drifted from the true one: go on from here, as iterative refinement does.
            inner.setInitialGuessNonzero(True)
        if math.isfinite(residual) and residual <= self._rounding(task):
            return Reason.CONVERGED_RTOL, total, residual, seconds
        return reason if reason < 0 else Reason.DIVERGED_BREAKDOWN, total, residual, seconds

    def _true_residual(self, task: _Task) -> float:
        """Return the norm of b - A x, without what a null space takes out of it. Collective: yes."""
        assert self._residual is not None
        (task.A.multTranspose if task.transposed else task.A.mult)(task.x, self._residual)
        self._residual.aypx(-1.0, task.b)
        return float(self._residual.norm())

    def _rounding(self, task: _Task) -> float:
        """Return the residual that rounding leaves, as in a factorisation. Collective: yes."""
        if not is_assembled(task.A):
            return 0.0
        if math.isnan(self._norm):
            self._norm = task.A.norm(PETSc.NormType.INFINITY)
        return ROUNDING_UNITS * float(np.finfo(float).eps) * (self._norm * task.x.norm() + task.norm)

    def _conclude(self, ksp: PETSc.KSP, reason: int, iterations: int, norms: tuple[float, float]) -> None:
        """Tell PETSc what came out. Collective: yes."""
        self._reason, self._norms = int(reason), norms
        self.unsolved += reason <= 0
        self.iterations += iterations
        ksp.setIterationNumber(iterations)
        residual = norms[1] if math.isfinite(norms[1]) else math.inf
        ksp.setResidualNorm(residual)
        ksp.monitor(iterations, residual)
        ksp.setConvergedReason(reason)

    def _free_vectors(self) -> None:
        """Free the work vectors. Collective: yes."""
        for vector in (self._rhs, self._residual):
            if vector is not None:
                vector.destroy()
        self._rhs = self._residual = None

    def _drop(self) -> None:
        """Free the chosen solver. Collective: yes."""
        if self._inner is not None:
            self._inner.destroy()
            self._inner = None
