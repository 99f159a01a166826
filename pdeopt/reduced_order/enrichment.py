"""A reduced model with a history that knows its error at every step, and learns from single steps of the full model."""

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from pdeopt.fem import forms
from pdeopt.fem.quasi_static import NewtonEquilibrium, QuasiStatic
from pdeopt.reduced_order.basis import Basis
from pdeopt.reduced_order.cubature import Cubature, original_cells, select_cells
from pdeopt.reduced_order.history import ReducedEquilibrium
from pdeopt.reduced_order.inner_product import Array
from pdeopt.reduced_order.internal_forces import InternalForces
from pdeopt.report import ConvergenceError, InputError

# A new mode that is a smaller part of its field than this is rounding.
_INDEPENDENT = 1e-6


@dataclasses.dataclass(frozen=True)
class EnrichmentSettings:
    """When the full model is asked, and how well the cubature follows.

    Parameters
    ----------
    tolerance
        Of the estimated error of a step, relative to the largest state of the trajectory so far.
    factor
        What the indicator is multiplied with, from `pdeopt.reduced_order.conformal.calibrate`.
    correction_factor
        What the correction's norm is multiplied with, likewise.
    learn
        Whether the model may change; if not, steps above the tolerance are only reported.

    Raises
    ------
    InputError
        If a number is not positive.
    """

    tolerance: float
    factor: float = 1.0
    correction_factor: float = 1.0
    learn: bool = True

    def __post_init__(self) -> None:
        numbers = {name: getattr(self, name) for name in ("tolerance", "factor", "correction_factor")}
        if not min(numbers.values()) > 0.0:
            given = ", ".join(f"{name} = {number}" for name, number in numbers.items())
            raise InputError(f"{given}: give positive numbers")


@dataclasses.dataclass(frozen=True, eq=False)
class AdaptiveTrajectory:
    """What a body went through, and what is known of the error.

    Parameters
    ----------
    times
        Ends of the steps [s], shape (steps,).
    unknowns
        The state after each step, shape (owned, steps).
    indicators
        The residual's multiple at each step's reduced answer, shape (steps,).
    estimates
        Estimated relative error of each step's reduced answer: the correction's where there is one, else the
        indicator, shape (steps,).
    corrected_steps
        Which steps were corrected, shape (steps,).
    full_steps
        Which steps the full model solved, shape (steps,).
    seconds
        Wall time [s] by part.
    """

    times: Array
    unknowns: Array
    indicators: Array
    estimates: Array
    corrected_steps: npt.NDArray[np.bool_]
    full_steps: npt.NDArray[np.bool_]
    seconds: dict[str, float]


class Adaptive:
    """Step in the reduced model; lead the whole body through its answers; where the residual is too large, solve.

    The internal variables of the whole body follow the reduced answers without any solve, which costs one evaluation of
    the residual a step. Its Riesz representer in the basis' inner product measures the error of equilibrium:

        indicator = |F(u_k, h_k)|_{M^-1} / max_{j <= k} |u_j|,

    for the history h_k that the reduced answers left. Where its multiple exceeds the tolerance, the whole body takes
    one step d of Newton's method, whose |d| / max |u_j| is a closer estimate. Where the multiple of that is within the
    tolerance, the corrected state is the answer; where not, the full model solves this one step from there. Then the
    part of the answer outside of the basis becomes a mode, the cubature is fitted anew from its present weights among
    the cells of its pool, and the reduced model goes on from there.

    Parameters
    ----------
    full
        The body on the whole mesh, with a `NewtonEquilibrium`.
    reduced
        The reduced equilibrium, with a pool of cells to grow into.
    forces
        The training states, from which the cubature was chosen; compressed.
    cubature_tolerance
        Of the cubature after enrichment.
    settings
        When to ask the full model.

    Attributes
    ----------
    reduced
        The present reduced equilibrium.
    updates, rebuilds
        Enrichments so far, and how many of them had to make the reduced mesh anew.

    References
    ----------
    F. Casenave, N. Akkari, An error indicator-based adaptive reduced order model for nonlinear structural mechanics,
    Math. Comput. Appl. 24(2):41, 2019, whose indicator is another one.

    Collective: yes.
    """

    def __init__(
        self,
        full: QuasiStatic,
        reduced: ReducedEquilibrium,
        forces: InternalForces,
        cubature_tolerance: float,
        settings: EnrichmentSettings,
    ) -> None:
        if not isinstance(full.solver, NewtonEquilibrium):
            raise InputError("the whole body needs a NewtonEquilibrium, which can solve a step")
        self.full, self.reduced, self.forces = full, reduced, forces
        self.settings, self._cubature_tolerance = settings, cubature_tolerance
        self.updates = self.rebuilds = 0
        self._solver = full.solver
        self._form = forms.compile_form(self._solver.residual)
        self._fixed = forms.owned_dirichlet_dofs(self._solver.bcs)
        self._seconds: dict[str, float] = {}
        self._prepare_updates()

    def march(self, times: Array) -> AdaptiveTrajectory:
        """Go from the virgin body at rest through all times [s], which rise.

        Raises
        ------
        ConvergenceError
            On all ranks, if the full model fails at a step that it was asked for.

        Collective: yes.
        """
        full, low = self.full, self._stepper()
        full.reset()
        low.reset()
        self._seconds = dict.fromkeys(("reduced", "residual", "correction", "full", "update"), 0.0)
        unknowns, indicators, estimates, corrected, asked = [], [], [], [], []
        largest, learn, tolerance = 0.0, self.settings.learn, self.settings.tolerance
        for now in np.asarray(times, float):
            with self._clock("reduced"):
                found = self._reduced_step(low, float(now))
            with self._clock("residual"):
                state = self.reduced.basis.expand(self.reduced.coordinates)
                full.impose(float(now), state)
                norm = float(np.linalg.norm(self.reduced.coordinates))
                estimate = indicator = self._estimate(max(largest, norm)) if found else np.inf
            correct = found and indicator > tolerance
            if correct:
                with self._clock("correction"):
                    estimate = self._correct(max(largest, norm))
                    if not learn or not np.isfinite(estimate):
                        full.impose(float(now), state)
            ask = learn and estimate > tolerance
            if ask:
                with self._clock("full"):
                    self._solver.solve()
            if learn and indicator > tolerance:
                state = self._solver.unknown()
                with self._clock("update"):
                    if ask:
                        self._learn(state)
                    self.reduced.set_unknown(self.reduced.basis.coordinates(state[:, None])[:, 0])
                low = self._stepper(float(now))
                norm = float(np.linalg.norm(self.reduced.coordinates))
            with self._clock("residual"):
                full.accept(float(now))
            if learn and indicator > tolerance:
                self.reduced.take_history()
            largest = max(largest, norm)
            unknowns.append(state)
            indicators.append(indicator)
            estimates.append(estimate)
            corrected.append(correct)
            asked.append(ask)
        return AdaptiveTrajectory(
            np.asarray(times, float), np.column_stack(unknowns), np.array(indicators), np.array(estimates),
            np.array(corrected), np.array(asked), self._seconds,
        )  # fmt: skip

    def _stepper(self, time: float = 0.0) -> QuasiStatic:
        low = QuasiStatic(self.reduced, self.full.load, time_step=self.full.time_step)
        low.time = time
        return low

    def _reduced_step(self, low: QuasiStatic, now: float) -> bool:
        try:
            low.step(now)
        except ConvergenceError:
            # The answer of the last part of the step that succeeded stands: a start for the full model.
            low.time = now
            return False
        return True

    def _estimate(self, largest: float) -> float:
        """Return the estimated relative error at the state that was imposed on the whole body. Collective: yes."""
        vector = forms.assemble_vector(self._form)
        vector.array[self._fixed] = 0.0
        norm = self.reduced.basis.inner_product.dual_norm(vector)
        vector.destroy()
        return self.settings.factor * norm / largest if largest > 0.0 else 0.0

    def _correct(self, largest: float) -> float:
        """Let the whole body take one step of Newton's method; return the estimate by its length. Collective: yes."""
        try:
            step = self._solver.correct()
        except ConvergenceError:
            return np.inf
        norm = float(self.reduced.basis.inner_product.norms(step[:, None])[0])
        return self.settings.correction_factor * norm / largest if largest > 0.0 else np.inf

    def _learn(self, state: Array) -> None:
        """Take the part of a solved state outside of the basis as a mode; the whole body is at it. Collective: yes."""
        basis = self.reduced.basis
        mode = _remainder(basis, state)
        if mode is None:
            return
        enlarged = dataclasses.replace(basis, modes=np.hstack([basis.modes, mode[:, None]]))
        self.forces.enrich(mode)
        forms.set_function(self._solver.u, state)
        pool = self.reduced.pool
        try:
            cubature = select_cells(
                self.forces, self._cubature_tolerance, start=self.reduced.cubature, among=pool.cells
            )
            self.reduced.enrich(enlarged, cubature)
        except ConvergenceError:  # the pool is exhausted
            self._rebuild(enlarged)
            self.rebuilds += 1
        self.updates += 1

    def _rebuild(self, basis: Basis) -> None:
        """Choose among all cells, and make a reduced mesh for them and the present pool. Collective: yes."""
        old = self.reduced
        cubature = select_cells(self.forces, self._cubature_tolerance, start=old.cubature)
        # More than enough: the next modes shall not need another mesh again.
        finer = max(self.forces.tolerance, 0.5 * self._cubature_tolerance)
        more = select_cells(self.forces, finer, start=cubature)
        cells = np.union1d(old.pool.cells, more.cells)
        pool = Cubature(cells, np.ones(cells.size), cubature.error)
        self.reduced = old.rebuilt(basis, cubature, pool)
        self._prepare_updates()

    def _prepare_updates(self) -> None:
        """Let the forces keep their rows for the pool's cells, to which updates are confined. Collective: yes."""
        self.forces.columns(np.isin(original_cells(self.forces.mesh), self.reduced.pool.cells))

    @contextmanager
    def _clock(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._seconds[part] += time.perf_counter() - started


def _remainder(basis: Basis, state: Array) -> Array | None:
    """Return the normed part of a state outside of the basis, None if there is none. Collective: yes."""
    coordinates = basis.coordinates(state[:, None])
    rest = state[:, None] - basis.expand(coordinates)
    rest -= basis.expand(basis.coordinates(rest))  # again, since the first difference cancels digits
    norm = float(basis.inner_product.norms(rest)[0])
    if norm <= _INDEPENDENT * float(np.linalg.norm(coordinates)):
        return None
    return np.asarray(rest[:, 0] / norm)
