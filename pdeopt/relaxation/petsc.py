"""Relaxation as PETSc types: SSOR whose omega a bandit chooses; SOR by colours is handed on."""

import math
import pathlib
import time
import warnings
from array import array

from mpi4py import MPI
from petsc4py import PETSc

from pdeopt.fem.settings import read_settings
from pdeopt.parallel import on_root, raise_everywhere
from pdeopt.relaxation._bandit_settings import BanditSettings, Learner
from pdeopt.relaxation._state import StateKeeper
from pdeopt.relaxation.contexts import StiffnessRatio
from pdeopt.relaxation.petsc_multicolour import MulticolourSettings, MulticolourSOR
from pdeopt.report import InputError, OptionError, SolveReport

__all__ = ["BanditSOR", "BanditSettings", "MulticolourSOR", "MulticolourSettings"]

# A failed solve costs this many times the dearest one that converged: finite, or no learner could go on.
FAILURE_FACTOR = 10.0


class BanditSOR:
    """Symmetric relaxation (PETSc's ``sor``) whose omega a bandit chooses before each solve of a sequence.

    Switched on by ``-pc_type python -pc_python_type pdeopt.BanditSOR``, for any Krylov method, at its best conjugate
    gradients: the preconditioner is symmetric and definite for every omega. Across ranks PETSc relaxes locally, with
    the neighbours' values of the last sweep. All ranks use the same omega: rank 0 draws it and learns. After a solve
    that failed under another omega than 1 the solve is repeated once with omega = 1, from zero or, if the first one
    only ran out of iterations, from where it ended. The failure costs ten times the dearest solve so far. `attach`
    keeps Python out of the iterations.

    What counts as solved is up to the Krylov method's test. PETSc's default for ``cg`` looks at the preconditioned
    residual, whose norm is another one for every omega: set ``-ksp_norm_type unpreconditioned`` to ask the same of all.

    The published method is that of Khodak, Chow, Balcan and Talwalkar, "Learning to relax", ICLR 2024.

    Options, under the prefix of the preconditioner
    -----------------------------------------------
    ``-pc_bandit_learner`` : tsallis (default), binned, chebyshev or fixed
        Tsallis-INF; one of them in each bin of the context; Chebyshev regression on the context; no learning.
    ``-pc_bandit_low``, ``-pc_bandit_high``, ``-pc_bandit_count`` : 1, 1.95, 20
        The omegas to choose from, equally spaced.
    ``-pc_bandit_omega`` : 1
        That of the learner ``fixed``.
    ``-pc_bandit_cost`` : iterations (default) or seconds
        What is to be small: the iterations of a solve, or its wall seconds on the slowest rank.
    ``-pc_bandit_context`` : auto (default), matrix, or a key of petsctools' application context
        What the contextual learners see: `StiffnessRatio` of the matrix (auto: for them only), or what a callable
        without arguments returns, called on all ranks before each solve; rank 0's value counts.
    ``-pc_bandit_context_low``, ``-pc_bandit_context_high`` : -10, 10
        Interval of the context.
    ``-pc_bandit_state`` : FILE
        Rank 0 keeps what was learned in this file, and begins with what it holds.
    ``-pc_bandit_seed`` : 0
        Seed of the draws.

    Options of the relaxation itself have the prefix ``bandit_``, for instance ``-bandit_pc_sor_lits 2``.

    Parameters
    ----------
    settings
        The same from Python: ``pc.setPythonContext(BanditSOR(BanditSettings(learner="binned", context=kappa)))``.
    learner
        A learner of your own, for as many arms as the settings have omegas.

    Attributes
    ----------
    omegas, counts, costs
        The arms, how often each was chosen, and the sum of its costs.
    chosen, paid
        Index of the arm, and the cost, of each solve.
    failures, repeated, unsolved
        Solves that failed under the chosen omega, those repeated with omega = 1, and those that failed in the end.
    seconds
        Wall seconds on this rank in ``"learning"`` (choosing, learning, setting omega), ``"context"`` and ``"solve"``.

    Raises
    ------
    OptionError
        If an option is unknown or its value unfit, or the Krylov method is ``preonly``, which has nothing to tell.
    InputError
        If the state file is broken, or of other arms.
    """

    def __init__(self, settings: BanditSettings | None = None, learner: Learner | None = None) -> None:
        self.settings = settings or BanditSettings()
        self._given = learner
        self._learner: Learner | None = None  # on rank 0 only
        self._relaxation: PETSc.PC | None = None
        self._database, self._option, self._omega = PETSc.Options(), "", 0.0
        self._ratio: StiffnessRatio | None = None
        self._keeper: StateKeeper | None = None
        self._error: Exception | None = None
        self._attached = self._repeating = False
        self._event = PETSc.Log.Event("BanditSOR learn")
        self._forget()

    def _forget(self) -> None:
        self.omegas = self.settings.omegas()
        self._omegas: list[float] = self.omegas.tolist()
        self.counts = [0] * len(self._omegas)
        self.costs = [0.0] * len(self._omegas)
        self.chosen, self.paid = array("i"), array("d")
        self.failures = self.repeated = self.unsolved = 0
        self.seconds = {"learning": 0.0, "context": 0.0, "solve": 0.0}
        self._dearest = 0.0
        self._iterations = 0
        self._begun = False

    # --- what PETSc calls ---------------------------------------------------------------------------------------------

    def setFromOptions(self, pc: PETSc.PC) -> None:
        """Read the options under the prefix of the preconditioner. Collective: no."""
        prefix = pc.getOptionsPrefix() or ""
        settings = read_settings(self.settings, prefix, "pc_bandit_")
        if PETSc.Options().hasName(f"{prefix}bandit_pc_sor_omega"):
            raise OptionError(
                f"option -{prefix}bandit_pc_sor_omega: the bandit sets omega; fix it by -{prefix}pc_bandit_learner "
                f"fixed -{prefix}pc_bandit_omega"
            )
        if settings != self.settings:
            self.settings = settings
            self._forget()

    def setUp(self, pc: PETSc.PC) -> None:
        """Hand the matrix to the relaxation. Collective: yes."""
        if self._relaxation is None:
            self._make_relaxation(pc.getOptionsPrefix(), pc.getComm())
        assert self._relaxation is not None
        self._relaxation.setOperators(*pc.getOperators())

    def apply(self, pc: PETSc.PC, x: PETSc.Vec, y: PETSc.Vec) -> None:
        """Relax. Collective: yes."""
        assert self._relaxation is not None
        self._relaxation.apply(x, y)

    def applyTranspose(self, pc: PETSc.PC, x: PETSc.Vec, y: PETSc.Vec) -> None:
        """Relax with the transpose. Collective: yes."""
        assert self._relaxation is not None
        self._relaxation.applyTranspose(x, y)

    def preSolve(self, pc: PETSc.PC, ksp: PETSc.KSP, b: PETSc.Vec, x: PETSc.Vec) -> None:
        """Choose omega. Collective: yes."""
        if self._repeating:
            return
        kind = ksp.getType()
        if kind == PETSc.KSP.Type.PREONLY or (kind == PETSc.KSP.Type.RICHARDSON and self._attached):
            raise OptionError(f"ksp_type {kind} with PETSc's sor tests no convergence, so there is no cost: choose cg")
        if not self._begun:
            self._begin(pc.getComm().tompi4py())
        began = time.perf_counter()
        context = self._context(pc.getOperators()[1])
        chosen = time.perf_counter()
        self._event.begin()
        self._arm = self._choose(context)
        self._set_omega(self._omegas[self._arm])
        self._event.end()
        # Otherwise PETSc raises at a NaN before anyone can repeat the solve.
        self._strict = bool(ksp.getErrorIfNotConverged())
        ksp.setErrorIfNotConverged(False)
        self._clock = time.perf_counter()
        self.seconds["context"] += chosen - began
        self.seconds["learning"] += self._clock - chosen

    def postSolve(self, pc: PETSc.PC, ksp: PETSc.KSP, b: PETSc.Vec, x: PETSc.Vec) -> None:
        """Learn from the solve, and repeat it if it failed. Collective: yes."""
        if self._repeating:
            return
        failed = ksp.getConvergedReason() < 0
        iterations = ksp.getIterationNumber()
        if failed:
            self.failures += 1
            if self._omegas[self._arm] != 1.0:
                self._repeat(ksp, b, x)
                iterations += ksp.getIterationNumber()
        ksp.setErrorIfNotConverged(self._strict)
        self._iterations += iterations
        now = time.perf_counter()
        elapsed = now - self._clock
        cost = elapsed if self.settings.cost == "seconds" else float(iterations)
        if self.settings.cost == "seconds" and self._comm.size > 1:
            cost = float(self._comm.allreduce(cost, op=MPI.MAX))
        if ksp.getConvergedReason() > 0:
            self._dearest = max(self._dearest, cost)
        else:
            self.unsolved += 1
        if failed:
            cost = FAILURE_FACTOR * (self._dearest or cost)
        self.counts[self._arm] += 1
        self.costs[self._arm] += cost
        self.chosen.append(self._arm)
        self.paid.append(cost)
        self._event.begin()
        self._learn(cost)
        self._event.end()
        self.seconds["solve"] += elapsed
        self.seconds["learning"] += time.perf_counter() - now

    def view(self, pc: PETSc.PC, viewer: PETSc.Viewer) -> None:
        """Print the arms, how often each was chosen, and its mean cost. Collective: yes."""
        if viewer.getType() != PETSc.Viewer.Type.ASCII:
            return
        for label, value in self.report.rows():
            viewer.printfASCII(f"  {label}: {value}\n")
        viewer.printfASCII(f"  omega, solves, mean {self.settings.cost}\n")
        for omega, count, cost in zip(self.omegas, self.counts, self.costs, strict=True):
            if count:
                viewer.printfASCII(f"    {omega:.4g}  {count}  {cost / count:.4g}\n")

    def reset(self, pc: PETSc.PC | None = None) -> None:
        """Free what belongs to a matrix; what was learned stays. Collective: yes."""
        for handle in (self._relaxation, self._ratio):
            if handle is not None:
                handle.destroy()
        self._relaxation = self._ratio = None

    def destroy(self, pc: PETSc.PC | None = None) -> None:
        """Free the relaxation, and write the state. Collective: yes."""
        self.reset()
        if self._keeper is not None:
            try:
                self._keeper.close()
            except InputError as error:  # on one rank only: to raise would leave the others waiting
                warnings.warn(str(error), stacklevel=1)
            self._keeper = None

    # --- what is left -------------------------------------------------------------------------------------------------

    def attach(self, ksp: PETSc.KSP) -> None:
        """Work at a KSP without Python inside its iterations: some per cent less time for 1e4 unknowns.

        The KSP's preconditioner becomes PETSc's ``sor`` itself, and its pre-solve and post-solve callbacks those of the
        bandit. Options of the relaxation have the KSP's prefix and ``bandit_``; those of the bandit are not read.

        Parameters
        ----------
        ksp
            With its operators set; any type but ``richardson``, which with PETSc's own ``sor`` tests no convergence.

        Raises
        ------
        OptionError
            By the next solve, if the type is ``richardson`` or ``preonly``.

        Collective: yes.
        """
        operators = ksp.getOperators()
        self._make_relaxation(ksp.getOptionsPrefix(), ksp.getComm())
        relaxation = self._relaxation
        assert relaxation is not None
        relaxation.setOperators(*operators)
        self._attached = True
        ksp.setPC(relaxation)
        ksp.setPreSolve(lambda ksp, b, x: self.preSolve(relaxation, ksp, b, x))
        ksp.setPostSolve(lambda ksp, b, x: self.postSolve(relaxation, ksp, b, x))

    @property
    def report(self) -> SolveReport:
        """What it has done so far; the reason is that of a converged solve if all solves converged in the end."""
        solves = sum(self.counts)
        return SolveReport(
            method=f"SSOR, omega by {self.settings.learner if self._given is None else type(self._given).__name__}",
            converged=self.unsolved == 0,
            reason=2 if self.unsolved == 0 else -3,
            linear_iterations=self._iterations,
            seconds=dict(self.seconds),
            quantities={
                "solves": solves,
                "failed under their omega": self.failures,
                "repeated with omega = 1": self.repeated,
                "learning per solve [us]": 1e6 * self.seconds["learning"] / max(solves, 1),
                "mean cost": sum(self.costs) / max(solves, 1),
            },
        )

    def _make_relaxation(self, prefix: str | None, comm: PETSc.Comm) -> None:
        """Make PETSc's relaxation. Collective: yes."""
        inner = f"{prefix or ''}bandit_"
        self._relaxation = PETSc.PC().create(comm=comm)
        self._relaxation.setOptionsPrefix(inner)
        self._relaxation.setType(PETSc.PC.Type.SOR)
        self._option, self._omega = f"{inner}pc_sor_omega", 0.0

    def _begin(self, comm: MPI.Comm) -> None:
        """Make the learner on rank 0, and let it go on from the state file. Collective: yes."""
        self._comm = comm
        file = pathlib.Path(self.settings.state) if self.settings.state else None

        def begin() -> None:
            if self._keeper is not None:
                self._keeper.close()
                self._keeper = None
            learner = self._given or self.settings.make_learner()
            if file is not None:
                self._keeper = StateKeeper(file, learner, self._omegas, self.settings.cost)
            self._learner = learner

        on_root(comm, begin)
        self._begun = True

    def _context(self, matrix: PETSc.Mat) -> float | None:
        """Return what the learner sees; on several ranks rank 0's value counts. Collective: yes."""
        source = self.settings.source
        if source == "matrix":
            if self._ratio is None:
                self._ratio = StiffnessRatio(matrix)
            return self._ratio(matrix)
        if not callable(source):
            return None
        if self._comm.size == 1:
            return float(source())
        value, failure = math.nan, None
        try:
            value = float(source())
        except Exception as error:
            failure = error
        raise_everywhere(self._comm, failure)
        return value

    def _choose(self, context: float | None) -> int:
        """Return the arm that rank 0 draws. Collective: yes."""
        if self._comm.size == 1:
            return self._draw(context)
        return on_root(self._comm, lambda: self._draw(context))

    def _draw(self, context: float | None) -> int:
        if self._error is not None:
            raise self._error
        assert self._learner is not None
        return int(self._learner.choose(context))

    def _learn(self, cost: float) -> None:
        """Let rank 0 learn; what goes wrong there stops all ranks at the next choice. Collective: no."""
        if self._learner is None:
            return
        try:
            self._learner.learn(cost)
            if self._keeper is not None:
                self._keeper.write_at_times()
        except Exception as error:
            self._error = error

    def _set_omega(self, omega: float) -> None:
        """Set omega the only way there is from Python; the database is then as it was. Collective: no."""
        assert self._relaxation is not None
        if omega == self._omega:
            return
        self._database[self._option] = omega
        self._relaxation.setFromOptions()
        self._database.delValue(self._option)
        self._omega = omega

    def _repeat(self, ksp: PETSc.KSP, b: PETSc.Vec, x: PETSc.Vec) -> None:
        """Solve again with omega = 1; from the iterate if only the iterations ran out, else from zero."""
        starts_at_x = bool(ksp.getInitialGuessNonzero())
        ran_out = ksp.getConvergedReason() == PETSc.KSP.ConvergedReason.DIVERGED_MAX_IT
        ksp.setInitialGuessNonzero(ran_out and math.isfinite(x.norm()))
        self._set_omega(1.0)
        self._repeating = True
        try:
            ksp.solve(b, x)
        finally:
            self._repeating = False
            ksp.setInitialGuessNonzero(starts_at_x)
        self.repeated += 1
