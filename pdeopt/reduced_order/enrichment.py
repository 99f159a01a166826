"""A reduced model with a history that knows its error at every step, and learns from single steps of the full model."""

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from pdeopt.fem import forms
from pdeopt.fem.quasi_static import QuasiStatic
from pdeopt.reduced_order.basis import Basis
from pdeopt.reduced_order.cubature import Cubature, original_cells, select_cells
from pdeopt.reduced_order.elastic_correction import ElasticCorrection
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
        What the correction is multiplied with, from `pdeopt.reduced_order.conformal.calibrate`: of the error of the
        reduced answer where the model does not learn, and of the corrected one where it does.
    corrections
        Elastic corrections of a step. One more costs a residual and a solve with old factors.
    learn
        Whether the corrected states are the answer and the model may change; if not, reduced answers are reported on.

    Raises
    ------
    InputError
        If a number is not positive.
    """

    tolerance: float
    factor: float = 1.0
    corrections: int = 2
    learn: bool = True

    def __post_init__(self) -> None:
        numbers = {name: getattr(self, name) for name in ("tolerance", "factor", "corrections")}
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
    estimates
        Estimated relative error of each step's answer before the full model was asked, shape (steps,).
    full_steps
        Which steps the full model solved, shape (steps,).
    seconds
        Wall time [s] by part.
    """

    times: Array
    unknowns: Array
    estimates: Array
    full_steps: npt.NDArray[np.bool_]
    seconds: dict[str, float]


class Adaptive:
    """Step in the reduced model; correct the whole body elastically; where the correction is too large, solve.

    The whole body follows the reduced answers u_k. From the last step's correction d, which holds what the reduced
    model's errors have left in the history, it takes at each step some corrections

        d <- d - K^-1 F(u_k + d, h_k)

    with its tangent K at rest, factorised once: no tangent is assembled and no equilibrium solved. The internal
    variables of the whole body follow u_k + d. So |d| / max_{j <= k} |u_j + d_j| estimates the error of the reduced
    answer with all of its past, in the basis' inner product, and u_k + d is a better answer, whose error is a part of
    |d|. Where the estimate exceeds the tolerance and the model may learn, the full model solves this one step from
    there. Then the part of the answer outside of the basis becomes a mode, the cubature is fitted anew from its present
    weights among the cells of its pool, and the reduced model goes on from there.

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

    Raises
    ------
    InputError
        If the whole body has another solver.

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
        self._correction = ElasticCorrection(full)
        self.full, self.reduced, self.forces = full, reduced, forces
        self.settings, self._cubature_tolerance = settings, cubature_tolerance
        self.updates = self.rebuilds = 0
        self._solver = self._correction.solver
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
        full, low, settings = self.full, self._stepper(), self.settings
        full.reset()
        low.reset()
        self._seconds = dict.fromkeys(("reduced", "residual", "correction", "full", "update"), 0.0)
        norms = self.reduced.basis.inner_product.norms
        unknowns, estimates, asked = [], [], []
        correction, largest = np.zeros(self.reduced.basis.modes.shape[0]), 0.0
        for now in np.asarray(times, float):
            with self._clock("reduced"):
                found = self._reduced_step(low, float(now))
                reduced = self.reduced.basis.expand(self.reduced.coordinates)
            corrected = self._correct(float(now), reduced + correction)
            with self._clock("residual"):
                if corrected is None:  # the law has no answer there: from the reduced one
                    full.impose(float(now), reduced)
                    correction[:] = 0.0
                else:
                    correction = corrected - reduced
                state = reduced + correction if settings.learn else reduced
                length, norm = norms(np.column_stack([correction, reduced + correction]))
                largest = max(largest, float(norm))
                estimate = settings.factor * float(length) / largest if largest > 0.0 else 0.0
                if not found or corrected is None:
                    estimate = np.inf
            ask = settings.learn and estimate > settings.tolerance
            if ask:
                with self._clock("full"):
                    self._solver.solve()
                    state = self._solver.unknown()
                with self._clock("update"):
                    self._learn(state)
                    self.reduced.set_unknown(self.reduced.basis.coordinates(state[:, None])[:, 0])
                low = self._stepper(float(now))
                correction[:] = 0.0
            with self._clock("residual"):
                full.accept(float(now))
            if ask:
                self.reduced.take_history()
            unknowns.append(state)
            estimates.append(estimate)
            asked.append(ask)
        return AdaptiveTrajectory(
            np.asarray(times, float), np.column_stack(unknowns), np.array(estimates), np.array(asked), self._seconds
        )

    def destroy(self) -> None:
        """Free the factors of the corrections. Collective: yes."""
        self._correction.destroy()

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

    def _correct(self, now: float, state: Array) -> Array | None:
        """Return the corrected state, at which the whole body is, or None where the law has no answer. Collective: yes.

        The first correction is what an indicator by the residual would cost, and has its time counted apart.
        """
        try:
            with self._clock("residual"):
                state = self._correction(now, state)
            with self._clock("correction"):
                for _ in range(1, self.settings.corrections):
                    state = self._correction(now, state)
                self.full.impose(now, state)
        except ConvergenceError:
            return None
        return state

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
