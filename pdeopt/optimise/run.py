"""Runs the methods on a program: AdaSketch-Newton, or the interior point method where there are bounds or it fails."""

import dataclasses
import math
from collections.abc import Callable
from typing import Protocol

from pdeopt.optimise.active_set import ActiveSet
from pdeopt.optimise.control_program import ControlProgram
from pdeopt.optimise.interior import InteriorPoint
from pdeopt.optimise.interior_state import InteriorPointSettings
from pdeopt.optimise.newton import AdaSketch
from pdeopt.optimise.program import Pair, Program
from pdeopt.optimise.regularisation import Counters, Failure
from pdeopt.optimise.settings import AdaSketchSettings, Tolerances
from pdeopt.report import TAO_ADVICE

_CONVERGED, _MAXIMUM_REACHED, _LINE_SEARCH, _USER = 3, -2, -6, -8
_SADDLES = 3  # stationary points that are no minima to be left, at most
_PATIENCE = 40  # steps within which the least residual must fall by a tenth


class Iteration(Protocol):
    """What a method shows while it runs."""

    counters: Counters

    @property
    def point(self) -> Pair:
        """The present point."""

    @property
    def objective(self) -> float:
        """Value of f at the present point."""

    @property
    def kkt_name(self) -> str:
        """The last solver's name."""


@dataclasses.dataclass
class Outcome:
    """What a run led to.

    Parameters
    ----------
    reason
        TAO's converged reason.
    advice
        Why it is negative.
    method
        What ran.
    history
        The KKT residual at the beginning and after every step, in the Riesz norm.
    counters
        What was spent by all methods together.
    objective, gradient, constraints, complementarity
        At the end.
    multipliers
        p at the end, None if there was no first point.
    """

    reason: int = 0
    advice: str = ""
    method: str = "AdaSketch-Newton"
    history: list[float] = dataclasses.field(default_factory=list)
    counters: Counters = dataclasses.field(default_factory=Counters)
    objective: float = math.nan
    gradient: float = math.nan
    constraints: float = math.nan
    complementarity: float = 0.0
    point: Pair | None = None
    penalties: str = ""


class Runner:
    """Runs on one program.

    Parameters
    ----------
    program
        The program; it stands at the result in the end.
    settings
        Numbers of AdaSketch-Newton.
    tolerances, limit
        When to stop.
    observe
        Called with (step, objective, gradient, constraints) at the beginning and after every step; what it returns, if
        not zero, is the reason to stop.
    bounds
        See `pdeopt.optimise.petsc.TaoSettings`.
    """

    def __init__(
        self,
        program: Program,
        settings: AdaSketchSettings,
        tolerances: Tolerances,
        limit: int,
        observe: Callable[[int, float, float, float], int],
        bounds: str = "auto",
    ) -> None:
        self._bounds = bounds
        self._program, self._settings, self._tolerances = program, settings, tolerances
        self._limit, self._observe = limit, observe
        self.outcome = Outcome()
        self._start, self._point = program.create(), program.create()
        program.get(self._start)

    def run(self) -> Outcome:
        """Run, with the interior point method behind AdaSketch-Newton. Collective: yes."""
        outcome = self.outcome
        bounded = self._program.bounds() is not None
        if not bounded:
            self._guard(self._newton)
        elif self._bounds == "active_set" or (self._bounds == "auto" and self._program.quadratic):
            self._guard(self._active_set)
            bounded = outcome.reason in (_LINE_SEARCH, _USER)
        stuck = outcome.reason in (_LINE_SEARCH, _USER) and not outcome.advice.endswith("no minimum")
        if bounded or stuck:
            before = (outcome.reason, outcome.advice)
            self._guard(self._interior)
            if stuck and outcome.reason < 0 and outcome.reason != _USER:
                outcome.reason, outcome.advice = before
        if outcome.reason < 0 and not outcome.advice:
            outcome.advice = TAO_ADVICE.get(outcome.reason, "see the converged reason")
        if outcome.reason < 0 and outcome.point is not None:
            self._program.move(outcome.point)  # not at the last trial
        return outcome

    def destroy(self) -> None:
        """Free the vectors, the outcome's point among them. Collective: yes."""
        self._start.destroy()
        self._point.destroy()

    def _guard(self, method: Callable[[], None]) -> None:
        try:
            method()
        except Failure as failure:
            self.outcome.reason, self.outcome.advice = failure.reason, str(failure)

    def _record(self, iteration: Iteration, gradient: float, constraints: float, complementarity: float) -> bool:
        """Record a point; say whether to stop there, for a reason other than convergence."""
        outcome = self.outcome
        outcome.history.append(math.sqrt(gradient**2 + constraints**2 + complementarity**2))
        self._point.assign(iteration.point)
        outcome.objective, outcome.point = iteration.objective, self._point
        outcome.gradient, outcome.constraints, outcome.complementarity = gradient, constraints, complementarity
        outcome.reason = self._observe(len(outcome.history) - 1, iteration.objective, gradient, constraints)
        if not outcome.reason and len(outcome.history) > self._limit:
            outcome.reason = _MAXIMUM_REACHED
        return outcome.reason != 0

    def _newton(self) -> None:
        tolerances, outcome = self._tolerances, self.outcome
        iteration = AdaSketch(self._program, self._settings)
        saddles, best, last_progress = 0, math.inf, 0
        try:
            while True:
                stop = self._record(iteration, iteration.gradient_norm, iteration.constraint_norm, 0.0)
                if tolerances.met(iteration.gradient_norm, iteration.constraint_norm):
                    if not stop and saddles < _SADDLES and iteration.leave_saddle():
                        saddles += 1
                        continue
                    outcome.reason = outcome.reason if stop and outcome.reason > 0 else _CONVERGED
                    return
                if stop:
                    return
                norm = outcome.history[-1]
                if norm < 0.9 * best:
                    best, last_progress = norm, len(outcome.history)
                elif len(outcome.history) - last_progress > _PATIENCE:
                    raise Failure(f"{_PATIENCE} steps brought the KKT residual no lower than {best:.1e}", _LINE_SEARCH)
                forcing = 0.5 * min(tolerances.gradient, tolerances.constraint) / norm
                iteration.step(tolerances, forcing)
        finally:
            _add(outcome.counters, iteration.counters)
            outcome.method = f"AdaSketch-Newton, {iteration.kkt_name or 'no step was needed'}"
            penalties = iteration.penalties
            outcome.penalties = f"{penalties.constraint:.3g}, {penalties.gradient:.3g}"
            iteration.destroy()

    def _active_set(self) -> None:
        outcome, tolerances = self.outcome, self._tolerances
        iteration = ActiveSet(self._program)
        try:
            while not self._record(iteration, iteration.gradient_norm, iteration.constraint_norm, 0.0):
                if tolerances.met(iteration.gradient_norm, iteration.constraint_norm):
                    outcome.reason = _CONVERGED
                    return
                iteration.step(tolerances, 0.3 * min(tolerances.gradient, tolerances.constraint) / outcome.history[-1])
        finally:
            _add(outcome.counters, iteration.counters)
            outcome.method = f"primal-dual active sets, {iteration.kkt_name}"
            iteration.destroy()

    def _interior(self) -> None:
        outcome = self.outcome
        tolerances = self._tolerances
        if outcome.point is not None:  # a point from which no step helps is no good start
            self._program.move(self._start)
        settings = InteriorPointSettings(even_multipliers=isinstance(self._program, ControlProgram))
        iteration = InteriorPoint(self._program, settings)
        name = f"{outcome.method}; then the interior point method" if outcome.history else "interior point method"
        try:
            while True:
                norms = iteration.norms
                stop = self._record(iteration, *dataclasses.astuple(norms))
                met = tolerances.met(norms.dual_infeasibility, norms.feasibility)
                if met and norms.complementarity <= tolerances.gradient and outcome.reason in (0, _MAXIMUM_REACHED):
                    outcome.reason, outcome.advice = _CONVERGED, ""
                    return
                if stop:
                    return
                iteration.step(tolerances)
        finally:
            _add(outcome.counters, iteration.counters)
            outcome.method = f"{name}, {iteration.kkt_name}"
            iteration.destroy()


def _add(total: Counters, part: Counters) -> None:
    for field in dataclasses.fields(Counters):
        setattr(total, field.name, getattr(total, field.name) + getattr(part, field.name))
