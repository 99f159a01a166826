"""Solvers that choose themselves, as PETSc types."""

import collections
import dataclasses
import math
import time

from petsc4py import PETSc

from pdeopt.fem.settings import read_settings
from pdeopt.relaxation._auto_solver import Automatic, Held, build, print_report, set_up
from pdeopt.relaxation._automatic_pc import AutoPC
from pdeopt.relaxation._verified_solve import Task, VerifiedSolve
from pdeopt.relaxation.features import MatrixFeatures, from_root, is_assembled, slowest
from pdeopt.relaxation.overlay_watch import Stopwatch
from pdeopt.relaxation.race import Race, Sample
from pdeopt.relaxation.rule import Choice, factor_pays, iteration_limit
from pdeopt.report import InputError, SolveReport

__all__ = ["AutoKSP", "AutoPC", "AutoSettings"]

Reason = PETSc.KSP.ConvergedReason


@dataclasses.dataclass(frozen=True)
class AutoSettings:
    """Settings of `AutoKSP`; its docstring says what they mean."""

    direct_rtol: float = 1e-12
    learn: bool = True
    solves: int = 0

    def __post_init__(self) -> None:
        if not 0.0 < self.direct_rtol < 1.0:
            raise InputError(f"direct_rtol is {self.direct_rtol}: it is a relative residual, between 0 and 1")
        if self.solves < 0:
            raise InputError(f"solves is {self.solves}: it is the number of solves that will follow, 0 if unknown")


class AutoKSP(Automatic):
    """A linear solver that looks at the matrix and chooses itself.

    Switched on by ``-ksp_type python -ksp_python_type pdeopt.AutoKSP``. From what the assembled matrix shows (size,
    symmetry, diagonal, entries per row, block size, null spaces, ranks, growth of its graph) a rule chooses the Krylov
    method and the preconditioner together (`pdeopt.relaxation.rule`). What was set up is kept while the values of the
    matrix are the same, or a multiple of the former ones, however often they are assembled; if they changed, old
    factors go on as a preconditioner while that is cheaper, and otherwise the symbolic work is kept. Once the solves
    with the same values have cost what a factorisation saves, the matrix is factored.

    Where the matrix changes from solve to solve, a bandit takes over once 30 solves are behind it: the rule's choice
    and at most two others, cheaper or stronger ones, compete in seconds (`pdeopt.relaxation.race`); with the extra
    ``multigrid``, from 50,000 unknowns on, `pdeopt.NeuralMultigrid` is one of them. Trying the others is paid from 2 %
    of the seconds so far; whoever takes too long is cut off, and the best one goes on from there.

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
    ``-ksp_auto_learn`` : true
        Whether others than the rule's choice are tried.
    ``-ksp_auto_solves`` : 0
        Number of solves that will follow, if it is known: from 30 on, others are tried after the third.

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
        Wall seconds on this rank: ``"features"``, ``"setup"``, ``"solve"``, ``"verify"``, and of these what trying
        others has lost, ``"exploring"``.

    Raises
    ------
    OptionError
        If an option is unknown or its value unfit.
    """

    def __init__(self, settings: AutoSettings | None = None) -> None:
        super().__init__()
        self.settings = settings or AutoSettings()
        self._solvers: dict[str, Held] = {}
        self._held: Held | None = None  # the one of the present choice
        self._race, self._racing = Race(self.settings.solves), False
        self._chosen_by_user = False
        self._own_type = ""
        self.reused = {"unchanged": 0, "scaled": 0, "lagged": 0}
        self.fallbacks = self.unsolved = self.solves = self.iterations = 0
        self.seconds = {"features": 0.0, "setup": 0.0, "solve": 0.0, "verify": 0.0, "exploring": 0.0}
        self._verified = VerifiedSolve(self.seconds)
        self._count = self._former_count = 0  # solves with these values, and with those before
        self._iterative_solves: collections.deque[float] = collections.deque(maxlen=3)  # their seconds, the last ones
        self._factored_to_pay = False
        self._reason, self._norms = 0, (math.nan, math.nan)

    # --- what PETSc calls ---------------------------------------------------------------------------------------------

    def setFromOptions(self, ksp: PETSc.KSP) -> None:
        """Read the options under the prefix of the solver. Collective: no."""
        self.settings = read_settings(self.settings, ksp.getOptionsPrefix(), "ksp_auto_")
        self._race = Race(self.settings.solves)
        inner = PETSc.Options((ksp.getOptionsPrefix() or "") + "auto_")
        self._chosen_by_user = inner.hasName("pc_type") or inner.hasName("ksp_type")

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
        if print_report(self.report, viewer) and self._held is not None:
            self._held.ksp.view(viewer)

    def destroy(self, ksp: PETSc.KSP) -> None:
        """Free the chosen solver. Collective: yes."""
        self._drop()
        self._verified.release()
        self._chooser.release()

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
                **self._quantities(),
                "kept: unchanged / scaled / lagged": " / ".join(str(count) for count in self.reused.values()),
                "race": self._race.standings,
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
        task = Task(ksp, A, P, b, x, start, norm, max(rtol * norm, atol), transposed, features.symmetric)
        total, reason, residual = 0, 0, math.nan
        direct = self._factor_pays(P, features)
        watch, go_on = Stopwatch(), False
        tried: set[str] = set()
        choice = first = self._pick(direct, features, P)
        while choice.name not in tried:
            challenges = self._challenges(choice)
            if not challenges:
                tried.add(choice.name)
            try:
                reason, iterations, residual = self._try(choice, task, go_on)
                total += iterations
                how = f"reason {reason}, residual {residual / norm:.1e}"
            except PETSc.Error as error:
                reason, how = Reason.DIVERGED_PCSETUP_FAILED, f"error {error.ierr}"
                self._verified.release()  # a solve that raised leaves its right-hand side locked for ever
            if reason > 0:
                break
            if challenges and reason == Reason.DIVERGED_MAX_IT:
                go_on = residual < norm  # it took too long, and what it reached is kept
                choice = self._race.best
                continue
            self.fallbacks += 1
            go_on = False  # not from what it left, perhaps NaN
            self._chooser.give_up(choice, reason, how)
            self._drop(choice.name)
            choice = self._chooser.candidates(direct)[0]
        self._note(first, reason > 0 and choice is first, watch.seconds(), P)
        if start is not None:
            start.destroy()
        self._conclude(ksp, reason, total, (norm, residual))

    def _pick(self, direct: bool, features: MatrixFeatures, matrix: PETSc.Mat) -> Choice:
        """Return what to solve with first: the rule's choice, or one that competes with it. Collective: yes."""
        best = self._chooser.candidates(direct)[0]
        self._racing = (
            self.settings.learn
            and self._chooser.change.kind in ("values", "pattern")
            and best.kind in ("incomplete", "multigrid")
            and not self._chosen_by_user
        )
        if not self._racing:
            return best
        product = from_root(matrix.getComm().tompi4py(), self._chooser.watch.product)
        return self._race.pick(best, features, product, self._chooser.failed)

    def _challenges(self, choice: Choice) -> bool:
        """Whether a choice is being tried against one that is known to be good."""
        return self._racing and choice is self._race.picked and self._race.limit() is not None

    def _note(self, choice: Choice, converged: bool, seconds: float, matrix: PETSc.Mat) -> None:
        """Tell the race what a solve took. Collective: yes."""
        if not self._racing:
            return
        held = self._solvers.get(choice.name)
        setup, solve, new = (held.setup_last, held.solve_last, held.setups < 2) if held else (0.0, seconds, True)
        setup, solve, seconds = slowest(matrix.getComm().tompi4py(), [setup, solve, seconds])
        self._race.learn(Sample(setup, solve, seconds, new, converged))
        self.seconds["exploring"] = self._race.exploring

    def _look(self, matrix: PETSc.Mat) -> None:
        """Note how the matrix changed. Collective: yes."""
        change = self._chooser.look(matrix)
        self.seconds["features"] = self._chooser.seconds
        if change.kind == "pattern":
            self._count = 0
            self._drop()
            self._verified.release()
        if change.fresh:
            self._verified.forget_values()
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
        self._factored_to_pay = bool(from_root(matrix.getComm().tompi4py(), pays))
        return self._factored_to_pay

    def _try(self, choice: Choice, task: Task, go_on: bool) -> tuple[int, int, float]:
        """Solve with one choice; return reason, iterations and the norm of the true residual. Collective: yes."""
        features = self._chooser.features
        limit = min(iteration_limit(features, choice.kind), task.ksp.getTolerances()[3])
        if self._challenges(choice):
            limit = min(limit, self._race.limit() or limit)
        change, used = self._chooser.change, 0
        held, former = self._solvers.get(choice.name), self._held
        if held is not None:
            held.setup_last = 0.0
        if held is None:
            held = self._make(choice, task)
        elif held is not former:
            self._set_up(held, task)
        elif change.kind == "none" or (change.kind == "scaled" and choice.kind in ("factor", "incomplete")):
            self.reused["unchanged" if change.kind == "none" else "scaled"] += 1
        else:
            budget = held.lagging.budget(choice.kind, self._chooser.watch.amount)
            if budget:
                reason, used, residual, held.solve_last = self._verified.iterate(held.ksp, task, budget, go_on)
                held.lagging.kept(used, reason > 0)
                if reason > 0:
                    self.reused["lagged"] += 1
                    return reason, used, residual
                go_on = residual < task.norm  # what it reached is kept
            self._set_up(held, task)
        self._held, self.choice = held, choice
        reason, iterations, residual, seconds = self._verified.iterate(held.ksp, task, limit, go_on)
        if held.setup_last:
            setup, solve = slowest(task.A.getComm().tompi4py(), [held.setup_last, seconds])
            held.lagging.made(setup, solve, iterations)
        held.solve_last = seconds
        self._count += 1
        if choice.kind != "factor":
            self._iterative_solves.append(seconds)
        return reason, used + iterations, residual

    def _make(self, choice: Choice, task: Task) -> Held:
        """Build and set up a solver. Collective: yes."""
        prefix = task.ksp.getOptionsPrefix() or ""
        ksp = build(choice, f"{prefix}auto_", prefix, task.P)
        held = self._solvers[choice.name] = Held(choice, ksp)
        if choice.kind == "own":
            ksp.setPC(task.ksp.getPC())
        elif task.A != task.P and choice.options["ksp_type"] == "cg":
            ksp.setType(PETSc.KSP.Type.FGMRES)  # what is known of P says nothing of A
            ksp.setPCSide(PETSc.PC.Side.RIGHT)
        self._set_up(held, task)
        return held

    def _set_up(self, held: Held, task: Task) -> None:
        """Take the present values, with the symbolic work of the former if there is some. Collective: yes."""
        self.setups["updated" if held.setups else "new"] += 1
        held.setups += 1
        began, watch = time.perf_counter(), Stopwatch()
        prefix = task.ksp.getOptionsPrefix() or ""
        set_up(held.ksp, held.choice, f"{prefix}auto_", prefix, task.A, task.P)
        self._chooser.accept()
        held.setup_last = watch.seconds()
        self.seconds["setup"] += time.perf_counter() - began

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

    def _drop(self, name: str = "") -> None:
        """Free a solver, or all of them. Collective: yes."""
        for known in [name] if name else list(self._solvers):
            held = self._solvers.pop(known, None)
            if held is not None:
                held.ksp.destroy()
            if held is self._held:
                self._held = None
