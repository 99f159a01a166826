"""The line search of the interior point method: a filter, and second-order corrections."""

import dataclasses

import numpy as np

from pdeopt.optimise.barrier import BoundMultipliers, Bounds
from pdeopt.optimise.filter import Filter, Measures
from pdeopt.optimise.interior_state import State
from pdeopt.optimise.program import KKTSolver, Pair, Program
from pdeopt.optimise.regularisation import Counters

PROGRESS = 0.9999
_CORRECTIONS = 4


@dataclasses.dataclass(frozen=True)
class StepRule:
    """mu, the share of the way to the boundary that a step may go, and the accuracy of the KKT solves."""

    barrier: float
    boundary: float
    accuracy: float


class FilterSearch:
    """Finds steps that a filter accepts.

    Parameters
    ----------
    program, bounds
        The problem.
    counters
        Is kept up to date.

    Attributes
    ----------
    filter
        The points already met.
    """

    def __init__(self, program: Program, bounds: Bounds, counters: Counters) -> None:
        self.program, self.bounds, self.counters = program, bounds, counters
        self.filter = Filter(0.0)

    def evaluate(self, point: Pair, multipliers: BoundMultipliers) -> State:
        """Return the state at a point, which it takes over. Collective: yes."""
        self.counters.evaluations += 1
        return State(self.program, self.bounds, point, multipliers)

    def trial(
        self,
        state: State,
        direction: Pair,
        change: BoundMultipliers,
        length: float,
        dual_length: float,
        barrier: float,
    ) -> State:
        """Return the state after steps of these lengths. Collective: yes."""
        point = self.program.create()
        point.move(length, direction, state.point)
        x = np.array(point.primal.array_r)
        return self.evaluate(point, self.bounds.move(x, state.multipliers, change, dual_length, barrier))

    def _slope(self, state: State, direction: Pair, barrier: float) -> float:
        """Return the derivative of the barrier function along a direction; the program stands at the point."""
        product = state.point.dual.duplicate()
        self.program.jacobian_mult(direction.primal, product)
        constraints = float(state.point.dual.dot(product)) if product.getSize() else 0.0
        product.destroy()
        gradient = state.residual.primal.array_r + barrier * self.bounds.gradient(state.x)
        total = self.bounds.sum(float(gradient @ direction.primal.array_r))
        return total - constraints

    def search(
        self, state: State, kkt: KKTSolver, right: Pair, direction: Pair, rule: StepRule
    ) -> tuple[State, float] | None:
        """Return the state and the length of the first step that is accepted; None if there is none.

        Parameters
        ----------
        state
            Where to start, and where the program stands; afterwards it stands anywhere.
        kkt, right
            The KKT system, for corrections.
        direction
            Its solution.

        Collective: yes.
        """
        bounds, barrier = self.bounds, rule.barrier
        primal = np.array(direction.primal.array_r)
        slope, here = self._slope(state, direction, barrier), state.measures(barrier)
        change = bounds.step(state.x, state.multipliers, primal, (barrier, barrier))
        longest = length = bounds.longest(state.x, primal, rule.boundary)
        dual_length = bounds.longest_dual(state.multipliers, change, rule.boundary)
        shortest = self.filter.shortest(here, slope)
        best = state.subproblem_norm(bounds, barrier)
        soft: State | None = None
        while length >= shortest * longest:
            trial = self.trial(state, direction, change, length, dual_length, barrier)
            measures = trial.measures(barrier)
            if trial.finite and self.filter.accepts(here, measures, slope, length):
                if soft is not None:
                    soft.destroy()
                return trial, length
            if length == longest:
                if trial.finite and measures.infeasibility >= here.infeasibility:
                    corrected = self._correct(state, kkt, right, trial, here, slope, length, rule)
                    if corrected is not None:
                        trial.destroy()
                        return corrected, length
                if trial.finite and trial.subproblem_norm(bounds, barrier) <= PROGRESS * best:
                    soft, length = trial, 0.5 * length
                    continue
            trial.destroy()
            length *= 0.5
        if soft is None:
            return None
        # The residual of the barrier problem falls although the filter sees no progress: take the full step.
        return soft, longest

    def _correct(
        self,
        state: State,
        kkt: KKTSolver,
        right: Pair,
        trial: State,
        here: Measures,
        slope: float,
        length: float,
        rule: StepRule,
    ) -> State | None:
        """Return a state after second-order corrections: the constraints of the trial point added to Newton's."""
        bounds, program, barrier = self.bounds, self.program, rule.barrier
        corrected_right, direction = right.copy(), program.create()
        corrected_right.dual.scale(length)
        corrected_right.dual.axpy(-1.0, trial.residual.dual)
        last, found = trial.norms.feasibility, None
        for _ in range(_CORRECTIONS):
            self.counters.second_order_corrections += 1
            program.move(state.point)
            kkt.solve(corrected_right, direction, rule.accuracy)
            primal = np.array(direction.primal.array_r)
            if not np.isfinite(bounds.sum(float(primal @ primal))):
                break
            change = bounds.step(state.x, state.multipliers, primal, (barrier, barrier))
            own_length = bounds.longest(state.x, primal, rule.boundary)
            dual_length = bounds.longest_dual(state.multipliers, change, rule.boundary)
            candidate = self.trial(state, direction, change, own_length, dual_length, barrier)
            measures = candidate.measures(barrier)
            if candidate.finite and self.filter.accepts(here, measures, slope, own_length, length):
                found = candidate
                break
            stalled = not candidate.finite or measures.infeasibility > 0.99 * last
            last = measures.infeasibility
            corrected_right.dual.scale(own_length)
            corrected_right.dual.axpy(-1.0, candidate.residual.dual)
            candidate.destroy()
            if stalled:
                break
        corrected_right.destroy()
        direction.destroy()
        return found
