"""Interior point method: primal-dual Newton steps on a barrier problem, accepted by a filter.

Every step solves the program's KKT system with the barrier's Hessian w z / slack as added diagonal,

    [[H + D + s M, G'], [G, -e W]] (dx, dp) = -(L_x + mu (log barrier)', c),

keeps a share of every slack and multiplier, and is shortened until the filter takes it, with second-order corrections
(Waechter and Biegler, Math. Program. 106 (2006) 25-57). The barrier is weighted by the metric and all norms are Riesz
norms, so that iterations do not grow with the mesh (Weiser, Gaenzler, Schiela, Comput. Optim. Appl. 41 (2008) 127-145).
The barrier parameter follows Mehrotra's prediction while full steps reduce the optimality residual, and falls
monotonically, with the filter, while they do not (Nocedal, Waechter, Waltz, SIAM J. Optim. 19 (2009) 1674-1693).
"""

import numpy as np
import numpy.typing as npt

from pdeopt.optimise.barrier import BoundMultipliers, Bounds, Targets
from pdeopt.optimise.filter import Filter, Measures
from pdeopt.optimise.filter_search import PROGRESS, FilterSearch, StepRule
from pdeopt.optimise.interior_state import (
    LARGEST_MULTIPLIER,
    InteriorPointSettings,
    Norms,
    State,
    fit_multipliers,
)
from pdeopt.optimise.program import KKTSolver, Pair, Program
from pdeopt.optimise.regularisation import FIRST_SHIFT, Counters, Failure, InertiaCorrection
from pdeopt.optimise.restoration import restore
from pdeopt.optimise.settings import Tolerances

Array = npt.NDArray[np.float64]
_DUAL_SHIFT = 1e-8  # times mu^(1/4): where gradients of the constraints are linearly dependent
_SUBPROBLEM = 10.0  # a barrier problem is solved to this times mu
_BALANCE = 1e-2
_CORRECTED = 0.1  # length of the predicted step from which its second-order terms are worth correcting
_MEMORY = 4
_RUNAWAY = 1e8  # multipliers beyond this say that constraints depend on each other, not what they cost
_UNBOUNDED = -1e20
_LEAST_MULTIPLIER = 1e-8  # at the start, where that is a stationary point
_DIVERGED = 1e20


class InteriorPoint:
    """Iterates on a program with bounds, from its present point pushed inside them.

    Parameters
    ----------
    program
        The program; it stands at the last accepted point after each `step`.
    settings
        The numbers of the method.
    multipliers
        Values at the bounds to begin with: with ``barrier`` for a warm start, when the point is not pushed far.

    Attributes
    ----------
    barrier
        mu.
    bounds
        The bounds; ``bounds.covector(bound_multipliers)`` is what they add to L_x.
    counters
        What was spent.

    Raises
    ------
    Failure
        If the functions are not finite at the first point.

    Collective: yes.
    """

    def __init__(
        self,
        program: Program,
        settings: InteriorPointSettings | None = None,
        multipliers: BoundMultipliers | None = None,
    ) -> None:
        self.program, self.settings = program, settings or InteriorPointSettings()
        self.counters = Counters()
        self._aim, self._accuracy = Tolerances().gradient, self.settings.accuracy
        self.bounds = Bounds(program)
        self._inertia = InertiaCorrection(program, self.counters)
        self._search = FilterSearch(program, self.bounds, self.counters)
        point = program.create()
        program.get(point)
        x = np.array(point.primal.array_r)
        self.bounds.push_inside(x, 1e-2 if multipliers is None else min(1e-2, self.settings.barrier))
        point.primal.array[:] = x
        self.barrier, self._scale = self.settings.barrier, 1.0
        start = multipliers or self.bounds.start(x, self.barrier, 1.0)
        self._state = self._search.evaluate(point, start)
        if not self._state.finite:
            raise Failure("objective, gradient or constraints are NaN or Inf at the initial point: start elsewhere", -4)
        if multipliers is None:
            self._start_multipliers()
        self._search.filter = Filter(self._state.norms.feasibility)
        self._free = self.settings.adaptive and self.bounds.measure > 0.0
        self._history = [self._state.norms.largest]
        if self.bounds.measure == 0.0:
            self.barrier = self._least_barrier()

    # What callers see ------------------------------------------------------------------------------------------------

    @property
    def point(self) -> Pair:
        """The point (x, p)."""
        return self._state.point

    @property
    def bound_multipliers(self) -> BoundMultipliers:
        """Values z at the bounds."""
        return self._state.multipliers

    @property
    def norms(self) -> Norms:
        """The optimality residual."""
        return self._state.norms

    @property
    def objective(self) -> float:
        """The objective f(x)."""
        return self._state.objective

    @property
    def kkt_name(self) -> str:
        """The last solver's name."""
        return self._inertia.kkt_name

    @property
    def gradient_norm(self) -> float:
        """The larger one of dual infeasibility and complementarity."""
        return max(self.norms.dual_infeasibility, self.norms.complementarity)

    @property
    def constraint_norm(self) -> float:
        """Norm of the constraints."""
        return self.norms.feasibility

    def solve(self, tolerances: Tolerances | None = None, limit: int = 200) -> int:
        """Step until the tolerances are met, and return the number of steps. Collective: yes.

        Raises
        ------
        Failure
            If no step can be found, or the limit is reached.
        """
        tolerances = tolerances or Tolerances()
        for count in range(limit + 1):
            if tolerances.met(self.gradient_norm, self.constraint_norm):
                return count
            if count < limit:
                self.step(tolerances)
        raise Failure(f"{limit} steps left an optimality residual of {self.norms.largest:.1e}: allow more", -2)

    def refresh(self) -> None:
        """Evaluate the program anew at the present point, after a parameter in it has changed. Collective: yes."""
        state = self._state
        self._take(self._search.evaluate(state.point.copy(), state.multipliers.copy()))
        self._search.filter = Filter(self._state.norms.feasibility)
        self._history = [self._state.norms.largest]
        self._free = self.settings.adaptive and self.bounds.measure > 0.0

    def destroy(self) -> None:
        """Free the vectors. Collective: yes."""
        self._state.destroy()

    # One step --------------------------------------------------------------------------------------------------------

    def step(self, tolerances: Tolerances | None = None, forcing: float = 0.0) -> float:
        """Take one step and return its length, 0 for one that restored feasibility. Collective: yes.

        Parameters
        ----------
        tolerances
            What is aimed at: mu does not fall below a tenth of it.
        forcing
            Relative accuracy below which no solve needs to go.

        Raises
        ------
        Failure
            If no step can be found; the message says what that means for the problem.
        """
        tolerances = tolerances or Tolerances()
        self._aim = min(tolerances.gradient, tolerances.constraint)
        self._accuracy = max(self.settings.accuracy, forcing)
        length = self._free_step() if self._free else None
        if length is None:
            self._lower_barrier()
            length = self._filter_step()
        self.counters.unit_steps += length >= 1.0
        # Where bounds are active too, multipliers may rightly be unbounded at a solution.
        if self.bounds.measure == 0.0 and self.point.dual.norm() > _RUNAWAY * self._scale:
            self._reset_multipliers()
        self._check_diverged()
        self._history = [*self._history[1 - _MEMORY :], self.norms.largest]
        return length

    def _least_barrier(self) -> float:
        return 0.1 * self._aim / max(1.0, self.bounds.measure**0.5)

    def _fraction(self) -> float:
        return max(self.settings.boundary, 1.0 - self.barrier)

    def _take(self, state: State) -> None:
        self._state.destroy()
        self._state = state

    def _check_diverged(self) -> None:
        state = self._state
        size = self.bounds.sum(float(self.bounds.weights @ state.x**2)) ** 0.5
        feasible = state.norms.feasibility <= 1e-3 * (1.0 + size)  # what grows slower than x is a direction to infinity
        if (state.objective < _UNBOUNDED and feasible) or size > _DIVERGED:
            raise Failure(f"the objective fell to {state.objective:.1e}: the problem has no minimum", -8)

    def _start_multipliers(self) -> None:
        """Scale mu and z with the gradient, and set p to what fits best, unless that is very large."""
        program, state = self.program, self._state
        gradient, representative = program.create(), program.create()
        program.objective_gradient(gradient.primal)
        gradient.primal.array[self.bounds.fixed] = 0.0
        program.riesz(gradient, representative)
        self._scale = max(1.0, gradient.dot(representative) ** 0.5 / 100.0)
        gradient.destroy()
        representative.destroy()
        self.barrier *= self._scale
        multipliers = self.bounds.start(state.x, self.barrier, self._scale)
        point = state.point.copy()
        if point.dual.getSize() and point.dual.norm() == 0.0:
            fit_multipliers(program, self.bounds, state, point, multipliers, LARGEST_MULTIPLIER * self._scale)
        self._take(self._search.evaluate(point, multipliers))
        if self.settings.even_multipliers and self.bounds.measure > 0.0:
            self._even_multipliers()

    def _even_multipliers(self) -> None:
        bounds = self.bounds
        none = bounds.start(self._state.x, 0.0, 0.0)
        self._take(self._search.evaluate(self.point.copy(), none))
        value = max(self.norms.dual_infeasibility / bounds.measure**0.5, _LEAST_MULTIPLIER)
        even = BoundMultipliers(value * bounds.has_lower, value * bounds.has_upper)
        self._take(self._search.evaluate(self.point.copy(), even))

    def _reset_multipliers(self) -> None:
        """Begin anew with multipliers that ran away along nearly dependent constraints."""
        point, multipliers = self.point.copy(), self.bound_multipliers
        point.dual.set(0.0)
        self._take(self._search.evaluate(point.copy(), multipliers))
        fit_multipliers(self.program, self.bounds, self._state, point, multipliers, LARGEST_MULTIPLIER * self._scale)
        self._take(self._search.evaluate(point, multipliers))
        self._inertia.forget()
        self._search.filter.reset()

    # Directions ------------------------------------------------------------------------------------------------------

    def _right(self, targets: Targets) -> Pair:
        """Return the right-hand side for targets of slack z."""
        bounds, state = self.bounds, self._state
        right = state.residual.copy()
        right.primal.scale(-1.0)
        right.dual.scale(-1.0)
        right.primal.array[:] -= bounds.gradient(state.x, targets)
        right.primal.array[bounds.fixed] = 0.0
        return right

    def _factorise(self, right: Pair, out: Pair, least_shift: float) -> tuple[KKTSolver, float]:
        """Return a solver of the right inertia, and its shift, after a first solve."""
        bounds, state = self.bounds, self._state
        diagonal = state.point.primal.duplicate()
        diagonal.array[:] = bounds.diagonal(state.x, state.multipliers)
        fixed = bounds.fixed if bounds.any_fixed else None
        shift, dual_shift = least_shift, _DUAL_SHIFT * self.barrier**0.25
        while True:
            kkt, result = self._inertia.solve(
                right, out, self._accuracy, shift, dual_shift if least_shift > 0.0 else 0.0, dual_shift,
                diagonal, fixed,
            )  # fmt: skip
            if kkt is not None and result is not None and not result.negative_curvature:
                diagonal.destroy()
                return kkt, shift
            if kkt is not None:
                kkt.destroy()
            shift = self._inertia.increase(shift)

    # Free steps: mu by prediction ------------------------------------------------------------------------------------

    def _free_step(self) -> float | None:
        """Take a predictor-corrector step if it reduces the optimality residual; None if not."""
        bounds, state, program = self.bounds, self._state, self.program
        right, direction = self._right((0.0, 0.0)), program.create()
        kkt, shift = self._factorise(right, direction, 0.0)
        mean, _ = bounds.products(state.x, state.multipliers)
        if shift > 0.0:  # where the model is not convex the prediction drives mu to zero far from any minimum
            for item in (kkt, right, direction):
                item.destroy()
            self._end_free_steps(mean)
            return None
        affine = np.array(direction.primal.array_r)
        change = bounds.step(state.x, state.multipliers, affine, (0.0, 0.0))
        length, dual_length = (
            bounds.longest(state.x, affine, 1.0),
            bounds.longest_dual(state.multipliers, change, 1.0),
        )
        reached = BoundMultipliers(
            state.multipliers.lower + dual_length * change.lower, state.multipliers.upper + dual_length * change.upper
        )
        predicted, _ = bounds.products(state.x + length * affine, reached)
        least = self._least_barrier()
        # Products that fall far ahead of the other residuals leave the point at the boundary, away from the solution.
        floor = _BALANCE * min(max(state.norms.dual_infeasibility, state.norms.feasibility), mean)
        target = (max(predicted, 0.0) / mean) ** 3 * mean if mean > 0.0 else least
        self.barrier = min(max(target, floor, least), 1e5)
        right.destroy()
        targets: Targets = (self.barrier, self.barrier)
        if min(length, dual_length) > _CORRECTED:  # what the prediction leaves of the products, to second order
            limit = 10.0 * max(mean, self.barrier)
            targets = (
                np.clip(self.barrier - affine * change.lower, -limit, limit),
                np.clip(self.barrier + affine * change.upper, -limit, limit),
            )
        right = self._right(targets)
        kkt.solve(right, direction, self._accuracy)
        kkt.destroy()
        right.destroy()
        primal = np.array(direction.primal.array_r)
        change = bounds.step(state.x, state.multipliers, primal, targets)
        length = bounds.longest(state.x, primal, self._fraction())
        dual_length = bounds.longest_dual(state.multipliers, change, self._fraction())
        trial = self._search.trial(state, direction, change, length, dual_length, self.barrier)
        direction.destroy()
        program_norm = trial.norms.largest
        if trial.finite and program_norm <= PROGRESS * max(self._history):
            self._inertia.accept(shift)
            self._take(trial)
            return length
        trial.destroy()
        program.move(state.point)
        self._end_free_steps(mean)
        return None

    def _end_free_steps(self, mean: float) -> None:
        self._free = False
        self.barrier = max(0.8 * mean, self._least_barrier())
        self._search.filter.reset()

    # Filter steps ----------------------------------------------------------------------------------------------------

    def _lower_barrier(self) -> None:
        """Lower mu while its problem is solved; or let it go free again."""
        settings, least = self.settings, self._least_barrier()
        measure = max(1.0, self.bounds.measure**0.5)
        while (
            self.barrier > least
            and self._state.subproblem_norm(self.bounds, self.barrier) <= _SUBPROBLEM * self.barrier * measure
        ):
            self.barrier = max(
                least, min(settings.linear_decrease * self.barrier, self.barrier**settings.superlinear_decrease)
            )
            self._search.filter.reset()
            self._free = settings.adaptive and self.bounds.measure > 0.0

    def _filter_step(self) -> float:
        """Take a step that the filter accepts, or restore feasibility."""
        rule, least_shift = StepRule(self.barrier, self._fraction(), self._accuracy), 0.0
        for _ in range(3):
            right, direction = self._right((self.barrier, self.barrier)), self.program.create()
            kkt, shift = self._factorise(right, direction, least_shift)
            try:
                found = self._search.search(self._state, kkt, right, direction, rule)
            finally:
                kkt.destroy()
                right.destroy()
                direction.destroy()
            if found is not None:
                self._inertia.accept(shift)
                self._take(found[0])
                return found[1]
            self.program.move(self._state.point)
            if self.norms.feasibility > 0.1 * self._aim:
                self._restore()
                return 0.0
            least_shift = max(100.0 * FIRST_SHIFT, 10.0 * shift)
        raise Failure("no step reduces the barrier function: check derivatives, or start nearer", -6)

    def _restore(self) -> None:
        """Go to a point that the filter admits and that is nearer to the constraints."""
        state = self._state
        here = state.measures(self.barrier)
        self._search.filter.add(here)
        self.counters.restorations += 1
        goal = 0.9 * here.infeasibility

        def enough(infeasibility: float, x: Array, objective: float) -> bool:
            value = objective + self.barrier * self.bounds.value(x)
            return infeasibility <= goal and self._search.filter.admits(Measures(infeasibility, value))

        point = restore(self.program, self.bounds, state.point, self.barrier, enough, self.counters)
        x = np.array(point.primal.array_r)
        low, high = self.bounds.slacks(x)
        z = BoundMultipliers(
            np.clip(state.multipliers.lower, 0.1 * self.barrier / low, 10.0 * self.barrier / low),
            np.clip(state.multipliers.upper, 0.1 * self.barrier / high, 10.0 * self.barrier / high),
        )
        z = BoundMultipliers(
            self.bounds.has_lower * np.minimum(z.lower, LARGEST_MULTIPLIER * self._scale),
            self.bounds.has_upper * np.minimum(z.upper, LARGEST_MULTIPLIER * self._scale),
        )
        point.dual.set(0.0)
        self._take(self._search.evaluate(point.copy(), z))
        fit_multipliers(self.program, self.bounds, self._state, point, z, LARGEST_MULTIPLIER * self._scale)
        self._take(self._search.evaluate(point, z))
