"""Guests at nonlinear solvers: PETSc's SNES and DOLFINx's NonlinearProblem."""

import functools
import math
import weakref
from collections.abc import Mapping, Sequence

from petsc4py import PETSc

import dolfinx
from dolfinx.fem import petsc as fem_petsc

from pdeopt.fem._guess_guest import PRESENT, Guest, Sources, make_guest
from pdeopt.fem._guess_judge import Judge, Offer
from pdeopt.fem._guess_norm import DualNorm
from pdeopt.fem._guess_report import GuessReport
from pdeopt.fem._guess_transfer import Loader, loader_for
from pdeopt.report import InputError, OptionError


class SNESGuest(Guest):
    """A guest at a SNES: it enters through the solver's initial-guess callback and follows by a monitor.

    PETSc compares the residual with rtol times its norm at the start that it gets. For the time of a solve the
    tolerances are therefore set so that they mean what they mean without guests. The residual of a DOLFINx problem at
    the chosen guess is not assembled a second time.
    """

    def __init__(self, snes: PETSc.SNES, sources: Sources, dual_norm: DualNorm | None) -> None:
        vector, context = snes.getFunction()
        if vector is None or vector.handle == 0:
            raise InputError("the SNES has no residual: call its setFunction before attach_guess")
        if (snes.getType() or "").startswith("vi"):
            raise OptionError(
                f"snes_type {snes.getType()} solves a variational inequality, whose residual does not vanish at the "
                "solution: guesses cannot be judged by it"
            )
        self._unknowns = _dolfinx_unknowns(context)
        loader = Loader() if self._unknowns is None else loader_for(self._unknowns, context[2]["bcs"])
        super().__init__(sources, dual_norm, loader)
        self._solver = weakref.ref(snes)  # a strong reference would be a cycle through PETSc, which never dies
        self._problem: weakref.ref[fem_petsc.NonlinearProblem] | None = None
        self._users_guess, self._users_function = snes.getInitialGuess(), (vector, context)
        # A residual function of the user's own may leave something behind that his Jacobian needs: let it run again.
        self._reuses = self._unknowns is not None and context[0] is fem_petsc.assemble_residual
        self._attached, self._open = True, False
        self._tolerances: tuple[tuple[float, float], tuple[float, float]] | None = None  # the user's, and ours
        self._reference = math.nan
        self._rival: PETSc.Vec | None = None  # of the proposal that was chosen
        self._resume: PETSc.Vec | None = None  # the rival, once the solver has failed from the proposal
        self._ready: tuple[PETSc.Vec, PETSc.Vec] | None = None  # the start and its residual
        self._last: PETSc.Vec | None = None
        self._last_parameter = 0.0
        self._residuals: list[float] = []
        if self._reuses:
            snes.setFunction(self._residual, vector, context[1], context[2])
        snes.setInitialGuess(self._start)
        snes.setMonitor(self._watch)

    @property
    def report(self) -> GuessReport:
        """What was on offer for the last solve, what was taken, and what came of it. Collective: yes."""
        self._finish()
        return super().report

    def detach(self) -> None:
        """Give the solver back as it was, and free the PETSc objects. Collective: yes."""
        snes, problem = self._solver(), self._problem() if self._problem is not None else None
        if snes is not None:
            self._restore_tolerances(snes)
            # PETSc ignores a null callback here, and petsc4py would leave it with a context that is gone.
            snes.setInitialGuess(*(self._users_guess or (lambda snes, x: None,)))
            if self._reuses:
                vector, (function, args, kargs) = self._users_function
                snes.setFunction(function, vector, args, kargs)
        if problem is not None:
            problem.__dict__.pop("solve", None)
        self._attached = False
        for item in (self._last, self._rival, self._resume, *(self._ready or ())):
            if item is not None:
                item.destroy()
        self._last = self._rival = self._resume = self._ready = None
        super().detach()

    def stand_behind(self, problem: fem_petsc.NonlinearProblem) -> None:
        """Let ``problem.solve()`` start again from the best rival where it fails from a proposal. Collective: no."""
        self._problem = weakref.ref(problem)
        problem.solve = functools.partial(_solve, self._problem, self)  # type: ignore[method-assign]

    def start_again(self) -> bool:
        """Whether there is a rival of a proposal, which the next solve then starts from. Collective: no."""
        self._resume, self._rival = self._rival, None
        return self._resume is not None

    def settle(self) -> None:
        """Take in how the solve ended, and give back the user's tolerances. Collective: yes."""
        snes = self._solver()
        self._finish()
        if snes is not None:
            self._restore_tolerances(snes)

    # Callbacks of PETSc ----------------------------------------------------------------------------------------------

    def _start(self, snes: PETSc.SNES, x: PETSc.Vec) -> None:
        """Set the initial guess: PETSc calls this before the first residual. Collective: yes."""
        self.settle()
        self._last_parameter, self._open = self.parameter(), True
        if self._users_guess is not None:
            function, args, kargs = self._users_guess
            function(snes, x, *args, **kargs)
        judge = self.judge(x, snes.computeFunction)
        if self._resume is not None:
            chosen = judge.add("second start", self._resume)
            judge.measure(chosen)
            self._resume.destroy()
            self._resume = None
        else:
            chosen = self.choose(
                f"SNES {snes.getType()}", judge, x, lambda o: self._meets(snes, judge, o), lambda: self._put(x)
            )
            self._reference = _reference(judge, chosen)
            self._keep_rival(judge, chosen)
        chosen.vector.copy(x)
        self._tie_tolerances(snes, chosen.euclidean)
        self._put(x)
        if self._reuses and chosen.residual is not None:
            self._ready = (chosen.vector.copy(), chosen.residual.copy())
        judge.destroy()

    def _residual(self, snes: PETSc.SNES, x: PETSc.Vec, out: PETSc.Vec, *args: object, **kargs: object) -> None:
        """Assemble the residual, or hand out the one that is known already. Collective: yes."""
        ready, self._ready = self._ready, None
        if ready is not None:
            known, residual = ready
            same = bool(known.equal(x))
            if same:
                residual.copy(out)
            known.destroy()
            residual.destroy()
            if same:
                return
        self._users_function[1][0](snes, x, out, *args, **kargs)

    def _watch(self, snes: PETSc.SNES, iteration: int, norm: float) -> None:
        """Keep residual norms and the last iterate: PETSc offers no callback after a solve. Collective: yes."""
        if not self._attached:
            return
        if iteration == 0:
            self._residuals = []
        self._residuals.append(norm)
        if self._sources.parameter is not None:
            solution = snes.getSolution()
            if self._last is None:
                self._last = solution.duplicate()
            solution.copy(self._last)

    def _finish(self) -> None:
        """Take in how the last solve ended, once it has: its reason stands until the next one begins."""
        snes = self._solver()
        if snes is None or not self._open or snes.getConvergedReason() == 0:
            return
        self._open = False
        self.conclude(snes.getIterationNumber(), snes.getConvergedReason(), self._residuals)
        if snes.getConvergedReason() > 0 and self._last is not None:
            self.remember(self._last, self._last_parameter)

    # Tolerances ------------------------------------------------------------------------------------------------------

    @staticmethod
    def _meets(snes: PETSc.SNES, judge: Judge, offer: Offer) -> bool:
        rtol, atol = snes.getTolerances()[:2]
        return offer.euclidean <= max(rtol * _reference(judge, offer), atol)

    def _tie_tolerances(self, snes: PETSc.SNES, start: float) -> None:
        """Make the relative tolerance mean what it means from the start without guests.

        At the start itself PETSc looks at atol alone, so that a guess within the tolerance takes no step.
        """
        rtol, atol = snes.getTolerances()[:2]
        target = rtol * self._reference
        if not (math.isfinite(start) and math.isfinite(target)) or start == self._reference or start == 0.0:
            return
        ours = (rtol, max(atol, target * (1.0 + 1e-12))) if start <= target else (target / start, atol)
        snes.setTolerances(rtol=ours[0], atol=ours[1])
        self._tolerances = ((rtol, atol), snes.getTolerances()[:2])
        self.note(tolerance=target)

    def _restore_tolerances(self, snes: PETSc.SNES) -> None:
        if self._tolerances is not None:
            users, ours = self._tolerances
            if snes.getTolerances()[:2] == ours:  # otherwise the user has set new ones since
                snes.setTolerances(rtol=users[0], atol=users[1])
            self._tolerances = None

    # ----------------------------------------------------------------------------------------------------------------

    def _put(self, x: PETSc.Vec) -> None:
        """Set the unknowns of a DOLFINx problem. Collective: yes."""
        if self._unknowns is not None:
            fem_petsc.assign(x, self._unknowns)
            for function in self._unknowns if isinstance(self._unknowns, Sequence) else [self._unknowns]:
                function.x.scatter_forward()

    def _keep_rival(self, judge: Judge, chosen: Offer) -> None:
        if self._rival is not None:
            self._rival.destroy()
            self._rival = None
        rival = judge.best(rivals_only=True)
        if self._problem is not None and chosen.is_proposal and rival is not None:
            self._rival = rival.vector.copy()


def _solve(
    handle: "weakref.ref[fem_petsc.NonlinearProblem]", guest: SNESGuest
) -> dolfinx.fem.Function | Sequence[dolfinx.fem.Function]:
    """Stand in for `NonlinearProblem.solve`. Collective: yes."""
    problem = handle()
    if problem is None:
        raise InputError("the problem of this guess is gone: keep a reference to it")
    try:
        solution = fem_petsc.NonlinearProblem.solve(problem)
        failed = problem.solver.getConvergedReason() < 0
    except PETSc.Error:
        failed = problem.solver.getConvergedReason() < 0
        if not (failed and guest.start_again()):
            raise
    else:
        failed = failed and guest.start_again()
    if failed:
        guest.note_second_start()
        solution = fem_petsc.NonlinearProblem.solve(problem)
    guest.settle()
    return solution


def _reference(judge: Judge, otherwise: Offer) -> float:
    """Return the Euclidean residual norm of the start without guests; of the best rival if that one is not sound."""
    start = next(offer for offer in judge.offers if offer.name == PRESENT)
    sound = start if math.isfinite(start.euclidean) else (judge.best(rivals_only=True) or otherwise)
    return sound.euclidean


def _dolfinx_unknowns(context: object) -> dolfinx.fem.Function | Sequence[dolfinx.fem.Function] | None:
    """Return the unknowns of a DOLFINx residual, or None for one of another kind."""
    kargs = context[2] if isinstance(context, tuple) and len(context) == 3 else None
    if not isinstance(kargs, Mapping) or not {"u", "residual", "bcs"} <= kargs.keys():
        return None
    return kargs["u"]


@make_guest.register
def _(solver: PETSc.SNES, sources: Sources, dual_norm: DualNorm | None) -> Guest:
    return SNESGuest(solver, sources, dual_norm)


@make_guest.register
def _(solver: fem_petsc.NonlinearProblem, sources: Sources, dual_norm: DualNorm | None) -> Guest:
    guest = SNESGuest(solver.solver, sources, dual_norm)
    guest.stand_behind(solver)
    return guest
