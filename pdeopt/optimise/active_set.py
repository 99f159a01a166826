"""Primal-dual active set: a semismooth Newton method for bounds on x.

With z = -L_x / w, the value of the multiplier of the bounds, coordinates with z + c (x - b) > 0 are held at b, those
with z + c (x - l) < 0 at l, and a Newton step in the others follows. Where the objective is uniformly convex it
converges superlinearly, in function space too, and for quadratic problems it ends after finitely many steps
(Hintermueller, Ito, Kunisch, SIAM J. Optim. 13 (2003) 865-888). Nothing makes it converge from everywhere: it says when
it does not, and `pdeopt.optimise.interior` is there for such problems.
"""

import math

from mpi4py import MPI

import numpy as np
import numpy.typing as npt

from pdeopt.optimise.barrier import BoundMultipliers, Bounds
from pdeopt.optimise.interior import InteriorPoint
from pdeopt.optimise.interior_state import InteriorPointSettings
from pdeopt.optimise.program import Pair, Program
from pdeopt.optimise.regularisation import Counters, Failure, InertiaCorrection
from pdeopt.optimise.settings import Tolerances

Array = npt.NDArray[np.float64]
_PATIENCE = 8  # steps that may pass without a smaller residual
_ACCURACY = 1e-10
_POWER = 4


class ActiveSet:
    """Iterates on a program with bounds, from its present point projected onto them.

    Parameters
    ----------
    program
        The program; it stands at the present point after each `step`.
    scale
        The number c > 0; above the largest curvature, as estimated if None, a coordinate does not jump from bound to
        bound.

    Attributes
    ----------
    point
        The present (x, p).
    objective, gradient_norm, constraint_norm
        f; the norm of L_x with the multipliers of the right sign added, or of the violation of bounds where that is
        larger; |c|.
    bound_multipliers
        Values z at the bounds.
    active
        +1 for coordinates held at the upper bound, -1 at the lower one, 0 elsewhere.
    counters
        What was spent.

    Raises
    ------
    Failure
        If the functions are not finite at the first point.

    Collective: yes.
    """

    def __init__(self, program: Program, scale: float | None = None) -> None:
        self.program = program
        self.counters = Counters()
        self.bounds = Bounds(program)
        weights = program.weights()
        self.bounds.weights = np.array(weights.array_r)  # of the metric, in which the curvature is moderate
        weights.destroy()
        self._inertia = InertiaCorrection(program, self.counters)
        self.point = program.create()
        program.get(self.point)
        self.point.primal.array[:] = self.bounds.project(np.array(self.point.primal.array_r))
        self._residual = program.create()
        program.move(self.point)
        self.scale = scale or 2.0 * self._largest_curvature()
        self._evaluate()
        if not math.isfinite(self.norm):
            raise Failure("objective, gradient or constraints are NaN or Inf at the initial point: start elsewhere", -4)
        self._seen: set[bytes] = set()
        self._best, self._waited = self.norm, 0

    @property
    def kkt_name(self) -> str:
        """The last solver's name."""
        return self._inertia.kkt_name

    @property
    def norm(self) -> float:
        """Both norms together."""
        return math.hypot(self.gradient_norm, self.constraint_norm)

    def step(self, tolerances: Tolerances | None = None, forcing: float = 0.0) -> float:
        """Take one step and return its length, 1. Collective: yes.

        Parameters
        ----------
        tolerances
            Unused: a step is a step.
        forcing
            Relative accuracy below which no solve needs to go.

        Raises
        ------
        Failure
            If active sets repeat, the residual does not fall, or the Hessian is not definite on the free coordinates.
        """
        program, bounds = self.program, self.bounds
        x = np.array(self.point.primal.array_r)
        held = self.active != 0
        lift = program.create()
        lift.primal.array[:] = np.where(
            held, np.where(self.active > 0, bounds.upper, np.where(self.active < 0, bounds.lower, x)) - x, 0.0
        )
        right, direction = program.create(), program.create()
        program.hessian_mult(lift.primal, right.primal)
        program.jacobian_mult(lift.primal, right.dual)
        for part, residual in ((right.primal, self._residual.primal), (right.dual, self._residual.dual)):
            part.axpy(1.0, residual)
            part.scale(-1.0)
        right.primal.array[held] = 0.0
        accuracy = max(_ACCURACY, forcing)
        kkt, result = self._inertia.solve(right, direction, accuracy, 0.0, 0.0, 1e-8, None, held)
        usable = kkt is not None and result is not None and not result.negative_curvature
        if kkt is not None:
            kkt.destroy()
        if usable:
            direction.primal.array[held] = 0.0
            direction.primal.axpy(1.0, lift.primal)
            self.point.primal.axpy(1.0, direction.primal)
            self.point.dual.axpy(1.0, direction.dual)
            self._evaluate()
        for pair in (lift, right, direction):
            pair.destroy()
        if not usable:
            raise Failure(
                "the Hessian is not positive definite where no bound is active: use the interior point method",
                -8,
            )
        self.counters.unit_steps += 1
        self._check()
        return 1.0

    def solve(self, tolerances: Tolerances | None = None, limit: int = 50) -> int:
        """Step until the tolerances are met, and return the number of steps. Collective: yes.

        Raises
        ------
        Failure
            As `step`, or if the limit is reached.
        """
        tolerances = tolerances or Tolerances()
        for count in range(limit + 1):
            if tolerances.met(self.gradient_norm, self.constraint_norm):
                return count
            if count < limit:
                self.step(tolerances)
        raise Failure(
            f"{limit} steps left an optimality residual of {self.norm:.1e}: use the interior point method", -2
        )

    def _largest_curvature(self) -> float:
        """Return an estimate of the largest eigenvalue of M^-1 H by a few steps of power iteration. Collective: yes."""
        program, covector, representative = self.program, self.program.create(), self.program.create()
        program.residual(covector)
        curvature = 1.0
        for _ in range(_POWER):
            covector.dual.set(0.0)
            program.riesz(covector, representative)
            size = math.sqrt(max(covector.primal.dot(representative.primal), 0.0))
            if not 0.0 < size < math.inf:
                break
            representative.primal.scale(1.0 / size)
            program.hessian_mult(representative.primal, covector.primal)
            curvature = max(abs(float(covector.primal.dot(representative.primal))), 1e-8)
        covector.destroy()
        representative.destroy()
        return curvature

    def _evaluate(self) -> None:
        """Evaluate everything at the point, the next active set included. Collective: yes."""
        program, bounds = self.program, self.bounds
        self.counters.evaluations += 1
        program.move(self.point)
        self.objective = program.objective()
        program.residual(self._residual)
        x = np.array(self.point.primal.array_r)
        z = -self._residual.primal.array_r / bounds.weights
        above, below = x >= bounds.upper, x <= bounds.lower
        self.bound_multipliers = BoundMultipliers(
            np.where(below & bounds.has_lower, np.maximum(-z, 0.0), 0.0),
            np.where(above & bounds.has_upper, np.maximum(z, 0.0), 0.0),
        )
        covector, representative = self._residual.copy(), program.create()
        covector.primal.array[:] += bounds.covector(self.bound_multipliers)
        covector.primal.array[bounds.fixed] = 0.0
        program.riesz(covector, representative)
        gradient, constraint = covector.primal.dot(representative.primal), covector.dual.dot(representative.dual)
        covector.destroy()
        representative.destroy()
        violation = bounds.sum(float(bounds.weights @ (x - bounds.project(x)) ** 2))
        finite = math.isfinite(gradient + constraint + violation + self.objective)
        self.gradient_norm = math.sqrt(max(gradient, violation, 0.0)) if finite else math.inf
        self.constraint_norm = math.sqrt(max(constraint, 0.0)) if finite else math.inf
        with np.errstate(invalid="ignore"):
            upper = bounds.has_upper & (z + self.scale * (x - bounds.upper) > 0.0)
            lower = bounds.has_lower & (z + self.scale * (x - bounds.lower) < 0.0)
        self.active = upper.astype(np.int8) - lower.astype(np.int8)
        self.active[bounds.fixed] = 1

    def _check(self) -> None:
        """Raise if there is no progress. Collective: yes."""
        if not math.isfinite(self.norm):
            raise Failure("objective, gradient or constraints became NaN or Inf: use the interior point method", -4)
        if self.norm < 0.5 * self._best:
            self._best, self._waited = self.norm, 0
            self._seen.clear()
            return
        self._waited += 1
        key = self.active.tobytes()
        repeated = self.bounds.comm.allreduce(key in self._seen, op=MPI.LAND)
        self._seen.add(key)
        if (self.program.quadratic and repeated) or self._waited > _PATIENCE:
            raise Failure("the active sets go round in a circle: use the interior point method", -8)

    def destroy(self) -> None:
        """Free the vectors. Collective: yes."""
        self.point.destroy()
        self._residual.destroy()


def solve_bounded(
    program: Program,
    tolerances: Tolerances | None = None,
    settings: InteriorPointSettings | None = None,
    limit: int = 200,
) -> ActiveSet | InteriorPoint:
    """Solve by the active set method, and from the same first point by the interior point method where that fails.

    Raises
    ------
    Failure
        If both fail: the latter's.

    Collective: yes.
    """
    start: Pair = program.create()
    program.get(start)
    try:
        active = ActiveSet(program)
        try:
            active.solve(tolerances)
        except Failure:
            active.destroy()
            program.move(start)
        else:
            return active
        interior = InteriorPoint(program, settings)
        interior.solve(tolerances, limit)
        return interior
    finally:
        start.destroy()
