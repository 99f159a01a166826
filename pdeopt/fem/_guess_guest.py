"""A guest: the guesses on offer for one solver, what it keeps from solve to solve, and how the choice is made."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence

from petsc4py import PETSc

from pdeopt.fem._guess_judge import Judge, Offer, lagrange_weights
from pdeopt.fem._guess_norm import DualNorm, RieszNorm, scaled_norm
from pdeopt.fem._guess_report import GuessReport, steps_saved
from pdeopt.fem._guess_transfer import Loader
from pdeopt.report import InputError

PRESENT, NESTED = "present iterate", "nested iteration"
ORDERS = ("previous solution", "linear extrapolation", "quadratic extrapolation")
_LONGEST_REST = 15  # solves
# Of two guesses with the same residual the coarse solution takes fewer Newton steps: its error is rough, so it is small
# in the lower norms that the nonlinear remainder sees. Others have to beat it by this factor.
_BEAT_NESTED = 0.5


@dataclasses.dataclass(frozen=True)
class Sources:
    """Where guesses come from.

    Parameters
    ----------
    proposals
        The user's, by name.
    coarse
        Solves the coarse problem of nested iteration, or None.
    parameter
        Returns the number in which earlier solutions are extrapolated, or None to leave them alone.
    combine
        Whether the least-squares combination of the guesses is on offer.
    """

    proposals: Mapping[str, Callable[[], object]]
    coarse: Callable[[], object] | None = None
    parameter: Callable[[], float] | None = None
    combine: bool = False


class Guest:
    """What judges guesses for one solver, and keeps what it needs from earlier solves.

    A proposal that loses k times running is left out of the next 4^k - 1 solves, at most 15, so that a provider that
    is no good costs next to nothing in the long run, and one that has become good gets another chance.

    Parameters
    ----------
    sources
        Where guesses come from.
    dual_norm
        The norm of the comparison; from the loader's spaces if None.
    loader
        What brings guesses into the solver's layout.

    Attributes
    ----------
    solves, accepted
        How many solves were judged so far, and how many of them started from a proposal.
    seconds_setup
        Wall seconds to set up the norm, once [s].
    """

    def __init__(self, sources: Sources, dual_norm: DualNorm | None, loader: Loader) -> None:
        self._sources, self._loader = sources, loader
        started = time.perf_counter()
        self._own_norm = RieszNorm(loader.spaces, loader.bcs) if dual_norm is None and loader.spaces else None
        self.seconds_setup = time.perf_counter() - started
        self._norm: DualNorm = dual_norm or self._own_norm or scaled_norm
        self._history: list[tuple[float, PETSc.Vec]] = []  # the last solutions, of different parameters
        self._losses, self._rest = dict.fromkeys(sources.proposals, 0), dict.fromkeys(sources.proposals, 0)
        self._report: GuessReport | None = None
        self._contraction = math.nan
        self.solves = self.accepted = 0

    @property
    def report(self) -> GuessReport:
        """What was on offer for the last solve, what was taken, and what came of it. Collective: yes.

        Raises
        ------
        InputError
            If nothing was solved yet.
        """
        if self._report is None:
            raise InputError("there is no report yet: solve first")
        return self._report

    def detach(self) -> None:
        """Give the solver back as it was, and free the PETSc objects. Collective: yes."""
        for _, vector in self._history:
            vector.destroy()
        self._history = []
        if self._own_norm is not None:
            self._own_norm.destroy()
            self._own_norm = None

    # For the guests at each kind of solver ---------------------------------------------------------------------------

    def judge(self, template: PETSc.Vec, residual: Callable[[PETSc.Vec, PETSc.Vec], None]) -> Judge:
        """Return a judge of guesses for the solve at hand. Collective: no."""
        if self._own_norm is None:
            return Judge(template, residual, self._norm, self._loader.load)
        return Judge(template, residual, self._norm, self._loader.load, self._own_norm.lower_bound)

    def choose(
        self,
        name: str,
        judge: Judge,
        present: PETSc.Vec,
        good_enough: Callable[[Offer], bool],
        restore: Callable[[], None] = lambda: None,
    ) -> Offer:
        """Put all guesses on offer, measure them and return the best; the present iterate if none is sound.

        Parameters
        ----------
        name
            The solver's name, for the report.
        judge
            Measures guesses.
        present
            What the solver would have started from.
        good_enough
            Whether a guess meets the solver's tolerance already: then the dearer rivals are left out.
        restore
            Puts the present iterate back into the user's functions, which measuring changes.

        Collective: yes.
        """
        seconds = {}
        started = time.perf_counter()
        for label, provider in self._sources.proposals.items():
            if self._rest[label] > 0:
                judge.leave_out(
                    label, f"at rest: losses running {self._losses[label]}, solves to go {self._rest[label]}"
                )
                self._rest[label] -= 1
            else:
                judge.make(label, provider, True)
        seconds["proposals"] = time.perf_counter() - started
        start = judge.add(PRESENT, present)
        self._offer_extrapolations(judge)
        started = time.perf_counter()
        for offer in sorted(judge.offers, key=lambda offer: offer.is_proposal):
            judge.measure(offer)
        seconds["judging"] = time.perf_counter() - started
        settled = any(offer.in_race and good_enough(offer) for offer in judge.offers)
        if self._sources.coarse is not None and not settled:
            restore()
            nested = judge.make(NESTED, self._sources.coarse, False)
            seconds["coarse solve"] = nested.seconds
            judge.measure(nested)
            seconds["judging"] += nested.seconds - seconds["coarse solve"]
        combination = judge.combine() if self._sources.combine and not settled else None
        if combination is not None:
            judge.measure(combination)
            seconds["judging"] += combination.seconds
        best = judge.best() or start
        nested_offer = next((offer for offer in judge.offers if offer.name == NESTED and offer.in_race), None)
        if nested_offer is not None and best.norm > _BEAT_NESTED * nested_offer.norm:
            best = nested_offer
        self._learn(judge, best)
        self._report = GuessReport(
            solver=name,
            candidates=tuple(offer.candidate() for offer in judge.offers),
            chosen=best.name,
            residual_evaluations=judge.evaluations,
            seconds=seconds,
        )
        return best

    def parameter(self) -> float:
        """Return the parameter of the solve under way. Collective: no."""
        return 0.0 if self._sources.parameter is None else float(self._sources.parameter())

    def remember(self, solution: PETSc.Vec, parameter: float) -> None:
        """Keep a copy of a solution for the extrapolations to come. Collective: yes."""
        if self._sources.parameter is None:
            return
        kept = [entry for entry in self._history if entry[0] != parameter][-(len(ORDERS) - 1) :]
        for entry in self._history:
            if entry not in kept:
                entry[1].destroy()
        self._history = [*kept, (parameter, solution.copy())]

    def conclude(self, iterations: int, reason: int, residuals: Sequence[float], steps: int = 1) -> None:
        """Complete the report with what the solve came to. Collective: no.

        Parameters
        ----------
        iterations, reason, residuals
            As in `GuessReport`.
        steps
            Over how many of the first steps the contraction is measured: Newton's method has its slowest step first.
        """
        if self._report is None:
            return
        if len(residuals) > steps > 0 and 0.0 < residuals[steps] < residuals[0]:
            self._contraction = (residuals[steps] / residuals[0]) ** (1.0 / steps)
        report = dataclasses.replace(self._report, iterations=iterations, reason=reason, residuals=tuple(residuals))
        self._report = dataclasses.replace(report, steps_saved=steps_saved(report, self._contraction))

    def note(self, **changes: float | str) -> None:
        """Change fields of the report. Collective: no."""
        if self._report is not None:
            self._report = dataclasses.replace(self._report, **changes)  # type: ignore[arg-type]

    def note_second_start(self) -> None:
        """Note that the solver failed from a proposal and started again from its best rival. Collective: no."""
        self.note(advice=f"from {self.report.chosen!r} the solver failed; it started again from the best rival")
        self.accepted -= 1

    def _learn(self, judge: Judge, best: Offer) -> None:
        """Count who won, and let proposals rest that lose again and again."""
        self.solves += 1
        self.accepted += best.is_proposal
        for offer in judge.offers:
            if offer.name not in self._losses or offer.left_out:
                continue
            if offer is best or (best.name == "combination" and offer.in_race):
                self._losses[offer.name] = 0
            elif offer.note != judge.NOTHING:
                self._losses[offer.name] += 1
                self._rest[offer.name] = min(4 ** self._losses[offer.name] - 1, _LONGEST_REST)

    def _offer_extrapolations(self, judge: Judge) -> None:
        point = self.parameter()
        recent = self._history[::-1]
        for order, name in enumerate(ORDERS[: len(recent)]):
            nodes = [node for node, _ in recent[: order + 1]]
            weights = lagrange_weights(nodes, point)
            vector = recent[0][1].duplicate()
            vector.set(0.0)
            vector.maxpy(weights, [solution for _, solution in recent[: order + 1]])
            judge.add(name, vector)
            vector.destroy()


@functools.singledispatch
def make_guest(solver: object, sources: Sources, dual_norm: DualNorm | None) -> Guest:
    """Attach a guest to a solver of a kind that has been registered. Collective: yes."""
    raise InputError(
        f"a guess cannot be attached to a {type(solver).__name__}: give a PETSc SNES or KSP, a DOLFINx "
        "NonlinearProblem or LinearProblem, or a ControlProblem (for that one, take attach_guess from pdeopt itself)"
    )
