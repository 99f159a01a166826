"""AdaSketch-Newton: inexact Newton steps in x and p together, accepted on the exact augmented Lagrangian.

The method of Hong, Na, Mahoney and Kolar (ICML 2023, PMLR 202:13174-13198). Each step solves the KKT system with b =
(L_x, c) to a relative accuracy delta, by any solver, and is taken if it descends,

    M'(x, p; z) <= -eta_2 / 2 |b|^2;

otherwise eta_1 grows, eta_2 and delta shrink, and the solve goes on from where it stood. Armijo's rule gives its
length. Differences to what was published: the merit function has its true gradient (the released code leaves out the
curvature of the constraints), norms are Riesz norms, the accuracy is a relative residual (the published bound, by
worst-case constants, was met in no solve of the published examples), it is sharpened near the solution for superlinear
convergence, and the inertia is corrected from the factorisation or from negative curvature instead of by dense
eigenvalues.
"""

import dataclasses
import math
from typing import NoReturn

from pdeopt.optimise.merit import Evaluation, Penalties, slope
from pdeopt.optimise.program import KKTResult, KKTSolver, Pair, Program, Restoring
from pdeopt.optimise.regularisation import FIRST_SHIFT, Counters, Failure, InertiaCorrection
from pdeopt.optimise.saddle import is_minimum, negative_curvature
from pdeopt.optimise.settings import AdaSketchSettings, Tolerances
from pdeopt.report import ConvergenceError

_DUAL_SHIFT = 1e-2  # times the residual norm where pivots vanish, so that the rate stays superlinear
_DUAL_SHIFTS = (1e-4, 1e-2, 1.0)  # to be tried where multipliers run away along nearly dependent constraints
_SHORTEST_STEP = 1e-3  # a direction that serves only for shorter ones is regularised
_ATTEMPTS = 12
_SADDLE_STEP = 0.1  # first length along a direction of negative curvature, of norm 1
_PARALLEL = 0.9  # cosine of successive steps from which they may be a geometric series
_FAR = 1e-2  # of the first residual: above it the constraints' curvature misleads where p is far from its limit
_UNBOUNDED = -1e13  # times the first objective, at least


class AdaSketch:
    """Iterates on a program without bounds, from its present point.

    Parameters
    ----------
    program
        The program; it stands at the last accepted point after each `step`.
    settings
        The numbers of the method.

    Attributes
    ----------
    point, evaluation
        The present point, and the merit function there.
    counters
        What was spent.
    """

    def __init__(self, program: Program, settings: AdaSketchSettings | None = None) -> None:
        self.program, self.settings = program, settings or AdaSketchSettings()
        self.penalties = Penalties(self.settings.constraint_penalty, self.settings.gradient_penalty)
        self.accuracy = self.settings.accuracy
        self.counters = Counters()
        self._inertia = InertiaCorrection(program, self.counters)
        self._last_step: Pair | None = None
        self._extrapolated_norm = math.inf
        self._linear_residual, self._nonlinearity = 0.0, math.inf
        self.point = program.create()
        program.get(self.point)
        self._restore(self.point)
        self.evaluation = self._evaluate(self.point)
        self._first_objective = self.evaluation.objective
        self._require_finite(self.evaluation)
        if self.settings.least_squares_multipliers and self.point.dual.getSize() and self.point.dual.norm() == 0.0:
            self._estimate_multipliers()
        self._first_norm = self.evaluation.norm

    def _restore(self, point: Pair) -> None:
        if isinstance(self.program, Restoring):
            self.counters.state_solves += self.program.restore(point)

    def _evaluate(self, point: Pair) -> Evaluation:
        self.counters.evaluations += 1
        self.program.move(point)
        return Evaluation(self.program, point)

    @staticmethod
    def _require_finite(evaluation: Evaluation) -> None:
        if not (math.isfinite(evaluation.objective) and math.isfinite(evaluation.norm)):
            raise Failure("objective, gradient or constraints are NaN or Inf at the initial point: start elsewhere", -4)

    def _estimate_multipliers(self) -> None:
        """Set p to the minimiser of |L_x|, unless that is no better or very large."""
        kkt = self.program.kkt_solver(shift=1.0, curvature=0.0)
        right, out = self.program.create(), self.program.create()
        try:
            self.evaluation.residual.primal.copy(right.primal)
            right.primal.scale(-1.0)
            kkt.solve(right, out, 1e-6)
            size = float(out.dual.norm())
            if size <= 1e3 * max(1.0, self.evaluation.gradient_norm):
                self._take_if_better(out)
        except ConvergenceError:
            pass  # linearly dependent constraints: zero will do
        finally:
            for item in (kkt, right, out):
                item.destroy()

    def _take_if_better(self, change: Pair) -> None:
        """Change the multipliers if that makes |L_x| smaller. Collective: yes."""
        trial = self.point.copy()
        trial.dual.axpy(1.0, change.dual)
        candidate = self._evaluate(trial)
        if candidate.gradient_norm <= self.evaluation.gradient_norm:
            self.point.assign(trial)
            self.evaluation.destroy()
            self.evaluation = candidate
        else:
            candidate.destroy()
            self.program.move(self.point)
        trial.destroy()

    @property
    def kkt_name(self) -> str:
        """The last solver's name."""
        return self._inertia.kkt_name

    @property
    def objective(self) -> float:
        """Value of f at the present point."""
        return self.evaluation.objective

    @property
    def gradient_norm(self) -> float:
        """|L_x| at the present point, in the Riesz norm."""
        return self.evaluation.gradient_norm

    @property
    def constraint_norm(self) -> float:
        """|c| at the present point, in the Riesz norm."""
        return self.evaluation.constraint_norm

    # One step --------------------------------------------------------------------------------------------------------

    def step(self, tolerances: Tolerances, forcing: float = 0.0) -> float:
        """Take one step and return its length. Collective: yes.

        Parameters
        ----------
        tolerances
            A full step that meets them is taken without further tests.
        forcing
            Relative accuracy below which no solve needs to go.

        Raises
        ------
        Failure
            If no step can be found; the message says what that means for the problem.
        """
        least_shift = 0.0
        for _ in range(_ATTEMPTS):
            direction, slopes, shift = self._direction(forcing, least_shift)
            length, candidate, trial = self._search(direction, slopes, tolerances)
            if candidate is not None:
                break
            direction.destroy()
            trial.destroy()
            least_shift = max(100.0 * FIRST_SHIFT, 10.0 * shift)
        else:
            self.program.move(self.point)
            self._give_up()
        self._inertia.accept(shift)
        self._measure_nonlinearity(length, candidate)
        self.counters.unit_steps += length >= 1.0
        self.point.assign(trial)
        trial.destroy()
        self._remember(direction, length)
        self.evaluation.destroy()
        self.evaluation = candidate
        if candidate.objective < _UNBOUNDED * max(1.0, abs(self._first_objective)):
            raise Failure(f"the objective fell to {candidate.objective:.1e}: the problem has no minimum", -8)
        return length

    def _search(
        self, direction: Pair, slopes: tuple[float, float, float], tolerances: Tolerances
    ) -> tuple[float, Evaluation | None, Pair]:
        """Return the first length that Armijo's rule takes, with the evaluation there; None for the latter if none."""
        predicted = slope(slopes, self.penalties)
        value = self.evaluation.value(self.penalties)
        rounding = 1e-14 * max(abs(value), abs(self.evaluation.objective), 1e-300)
        trial = self.program.create()
        length = self._extrapolation(direction)
        while length >= _SHORTEST_STEP:
            trial.move(length, direction, self.point)
            self._restore(trial)
            candidate = self._evaluate(trial)
            if math.isfinite(candidate.objective) and math.isfinite(candidate.norm):
                decrease = candidate.value(self.penalties) - value
                if length >= 1.0 and tolerances.met(candidate.gradient_norm, candidate.constraint_norm):
                    return length, candidate, trial
                enough = decrease <= self.settings.armijo * length * predicted + rounding
                if enough and (length <= 1.0 or candidate.norm <= self._extrapolated_norm):
                    return length, candidate, trial
            candidate.destroy()
            length = 1.0 if length > 1.0 else 0.5 * length
        return 0.0, None, trial

    def _extrapolation(self, direction: Pair) -> float:
        """Return the length at which to begin: beyond 1 where the steps look like a geometric series.

        At solutions with a singular KKT matrix Newton's steps shrink by a fixed ratio along one direction, and the sum
        of the series is the better point (Decker, Keller, Kelley, SIAM J. Numer. Anal. 20 (1983) 296-314).
        """
        last = self._last_step
        if last is None:
            return 1.0
        size, previous = direction.dot(direction) ** 0.5, last.dot(last) ** 0.5
        ratio = size / previous if previous > 0.0 else 0.0
        if not 0.2 < ratio < 0.9 or direction.dot(last) < _PARALLEL * size * previous:
            return 1.0
        self._extrapolated_norm = ratio * self.evaluation.norm
        return 1.0 / (1.0 - ratio)

    def _measure_nonlinearity(self, length: float, candidate: Evaluation) -> None:
        """Estimate C where a full step leaves C |b|^2 beside the residual of the linear solve."""
        if length == 1.0:
            left = max(candidate.norm**2 - self._linear_residual**2, candidate.constraint_norm**2)
            self._nonlinearity = math.sqrt(left) / self.evaluation.norm**2
        else:
            self._nonlinearity = math.inf

    def _remember(self, direction: Pair, length: float) -> None:
        """Keep a full step to compare the next one with; after another length the series starts anew."""
        if self._last_step is not None:
            self._last_step.destroy()
            self._last_step = None
        if length == 1.0:
            self._last_step = direction
        else:
            direction.destroy()

    def _direction(self, forcing: float, least_shift: float) -> tuple[Pair, tuple[float, float, float], float]:
        """Return a direction that passes the descent test, the slopes of the merit function's parts, and the shift."""
        program, evaluation, settings = self.program, self.evaluation, self.settings
        right, direction = program.create(), program.create()
        right.assign(evaluation.residual)
        right.primal.scale(-1.0)
        right.dual.scale(-1.0)
        if isinstance(program, Restoring):
            program.gauss_newton = program.restores and evaluation.norm > _FAR * self._first_norm
        sharpened = (evaluation.norm / self._first_norm) ** settings.sharpen if self._first_norm > 0.0 else 1.0
        accuracy = max(min(self.accuracy, sharpened), forcing, 1e-13)
        if program.quadratic or self._nonlinearity * evaluation.norm <= forcing:  # this step may well be the last
            accuracy = max(forcing, 1e-13)
        try:
            slopes, shift = self._descend(right, direction, accuracy, least_shift)
        except Failure:
            direction.destroy()
            raise
        finally:
            right.destroy()
        return direction, slopes, shift

    def _descend(
        self, right: Pair, direction: Pair, accuracy: float, shift: float
    ) -> tuple[tuple[float, float, float], float]:
        """Solve for a direction with growing shifts until it passes the descent test; return slopes and shift."""
        evaluation = self.evaluation
        dual_shift = _DUAL_SHIFT * min(1.0, evaluation.norm) if shift > 0.0 else 0.0
        larger = iter(_DUAL_SHIFTS if self.point.dual.getSize() else ())
        while True:
            kkt, result = self._solve(shift, dual_shift, right, direction, accuracy)
            try:
                if kkt is None or result is None:
                    shift = self._next_shift(shift)
                    continue
                found: tuple[float, float, float] | None
                if result.negative_curvature:  # what CG found before it may descend all the same
                    found = self.evaluation.slopes(direction)
                    if not slope(found, self.penalties) <= -0.5 * self.penalties.gradient * self.evaluation.norm**2:
                        shift = self._next_shift(shift)
                        continue
                else:
                    found = self._adapt(kkt, result, right, direction, accuracy)
            finally:
                if kkt is not None:
                    kkt.destroy()
            if found is not None:
                self._linear_residual = result.relative_residual * evaluation.norm
                return found, shift
            dual_shift = next(larger, math.inf)
            if math.isinf(dual_shift):
                dual_shift, shift = _DUAL_SHIFTS[-1], self._next_shift(shift)
            self.counters.corrections += 1

    def _solve(
        self, shift: float, dual_shift: float, right: Pair, direction: Pair, accuracy: float
    ) -> tuple[KKTSolver | None, KKTResult | None]:
        """Set up and solve; None where the inertia is known to be wrong."""
        regularised = _DUAL_SHIFT * min(1.0, self.evaluation.norm)
        return self._inertia.solve(right, direction, accuracy, shift, dual_shift, regularised)

    def _next_shift(self, shift: float) -> float:
        """Return a larger inertia correction, or say why none helps."""
        try:
            return self._inertia.increase(shift)
        except Failure:
            self._give_up()

    def _adapt(
        self, kkt: KKTSolver, result: KKTResult, right: Pair, direction: Pair, accuracy: float
    ) -> tuple[float, float, float] | None:
        """Adapt penalties and accuracy until the direction descends; None if they leave their range."""
        settings, penalties, norm = self.settings, dataclasses.replace(self.penalties), self.evaluation.norm
        slopes = self.evaluation.slopes(direction)
        while not slope(slopes, penalties) <= -0.5 * penalties.gradient * norm**2:
            if penalties.constraint > 1e8 or penalties.gradient < 1e-8:
                return None
            self.counters.penalty_updates += 1
            penalties.constraint *= settings.growth**2
            penalties.gradient /= settings.growth
            accuracy = max(accuracy / settings.growth**4, 1e-12)
            if result.relative_residual > accuracy:
                result = kkt.solve(right, direction, accuracy, improve=True)
                self.counters.inner_iterations += result.iterations
                self.counters.state_solves += result.state_solves
                slopes = self.evaluation.slopes(direction)
                self.accuracy = max(min(self.accuracy, accuracy), 1e-6)
        self.penalties = penalties
        return slopes

    def leave_saddle(self) -> bool:
        """Move off the present point if it is stationary but no minimum; say whether it did. Collective: yes.

        Only a factorisation knows: where none is at hand, or the matrix is singular, nothing is done.
        """
        if is_minimum(self.program) is not False:
            return False
        direction = negative_curvature(self.program)
        if direction is None:
            return False
        trial = self.program.create()
        moved = self._move_off(direction, trial)
        direction.destroy()
        trial.destroy()
        return moved

    def _move_off(self, direction: Pair, trial: Pair) -> bool:
        """Move along a direction of negative curvature as far as the merit function falls. Collective: yes."""
        value, length = self.evaluation.value(self.penalties), _SADDLE_STEP
        while abs(length) > _SHORTEST_STEP**3:
            for signed in (length, -length):
                trial.move(signed, direction, self.point)
                candidate = self._evaluate(trial)
                if candidate.value(self.penalties) < value - 1e-14 * abs(value):
                    self.point.assign(trial)
                    self.evaluation.destroy()
                    self.evaluation = candidate
                    return True
                candidate.destroy()
            length *= 0.1
        self.program.move(self.point)
        return False

    def destroy(self) -> None:
        """Free the vectors; the program stays. Collective: yes."""
        self.point.destroy()
        self.evaluation.destroy()
        if self._last_step is not None:
            self._last_step.destroy()
            self._last_step = None

    def _give_up(self) -> NoReturn:
        """Raise the failure that fits the point where no step helps."""
        evaluation = self.evaluation
        if not math.isfinite(sum(evaluation.slopes(evaluation.representative))):
            raise Failure("the second derivatives or the Jacobian are NaN or Inf: start elsewhere, or check them", -4)
        if evaluation.constraint_norm > 0.0:
            gradient = evaluation.infeasible_gradient_norm()
            if gradient <= 1e-3 * evaluation.constraint_norm * max(1.0, evaluation.constraint_norm):
                raise Failure(
                    f"the constraints ({evaluation.constraint_norm:.2e}) cannot be reduced from here: the problem is "
                    "infeasible, or this is a local minimum of the constraints; start elsewhere",
                    -8,
                )
        raise Failure("no step along the direction reduces the merit function: check derivatives, or start nearer", -6)
