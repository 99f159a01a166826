"""A reduced model, ready to use: set the parameters, call ``solve()``, read the field and the report."""

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from dolfinx import fem

from pdeopt.fem import forms
from pdeopt.reduced_order.basis import Basis
from pdeopt.reduced_order.certificate import Certificate
from pdeopt.reduced_order.hierarchical import HierarchicalIndicator
from pdeopt.reduced_order.inner_product import Array
from pdeopt.reduced_order.newton import NewtonResult, NewtonSettings, solve_reduced
from pdeopt.reduced_order.single_precision import SinglePrecisionModes
from pdeopt.reduced_order.system import ReducedSystem
from pdeopt.report import InputError, SolveReport


class ReducedModel:
    """A reduced system with what is needed around it.

    Parameters
    ----------
    u
        The field that receives the answer.
    basis
        Phi.
    system
        The reduced system in Phi, by full assembly or hyper-reduced.
    start
        Returns the first coordinates for the present parameters, such as a `CoordinateInterpolation` called with them;
        zero if None.
    certificate
        Bounds the error; None if nobody asks.
    indicator
        Estimates the error; None if nobody asks.
    lifting
        u_0 in u = u_0 + Phi a; zero if None.
    single
        The modes in single precision, which write out fields in a fraction of the time; None for double precision.
        Certified bounds then have their rounding errors, too.
    settings
        Tolerances of the reduced Newton method.

    Raises
    ------
    InputError
        If the system or the indicator has another size than the basis.
    """

    def __init__(
        self,
        u: fem.Function[Any],
        basis: Basis,
        system: ReducedSystem,
        *,
        start: Callable[[], Array] | None = None,
        certificate: Certificate | None = None,
        indicator: HierarchicalIndicator | None = None,
        lifting: fem.Function[Any] | None = None,
        single: SinglePrecisionModes | None = None,
        settings: NewtonSettings | None = None,
    ) -> None:
        for name, size in (("system", system.size), ("indicator", indicator.size if indicator else basis.size)):
            if size != basis.size:
                raise InputError(
                    f"the {name} has {size} coordinates and the basis {basis.size} modes: build it on them"
                )
        self.u, self.basis, self.system = u, basis, system
        self.start, self.certificate, self.indicator = start, certificate, indicator
        self.lifting, self.single, self.settings = lifting, single, settings or NewtonSettings()

    def propose(self) -> NewtonResult:
        """Solve the reduced system at the present parameters; ``u`` is left as it may be. Collective: yes.

        Raises
        ------
        InputError
            If the start has NaN, which comes from the parameters, or another shape.
        """
        self.system.update()
        start = np.zeros(self.basis.size) if self.start is None else self.start()
        return solve_reduced(self.system, start, self.settings)

    def field(self, coordinates: Array) -> Array:
        """Return the owned values of u_0 + Phi a, shape (owned,). Collective: no."""
        values = (self.single or self.basis).expand(coordinates)
        return values if self.lifting is None else values + forms.owned_values(self.lifting)

    def norm(self, coordinates: Array) -> float:
        """Return |u_0 + Phi a|. Collective: yes."""
        if self.lifting is None:  # the modes are orthonormal
            return float(np.linalg.norm(coordinates))
        return self.basis.inner_product.norm_with_boundary(self.field(coordinates))

    def relative(self, bound: float, coordinates: Array) -> float:
        """Return a bound of |u - u_r| / |u| from one of |u - u_r|, for u_r as `field` rounds it. Collective: yes."""
        if self.single is not None:
            bound += self.single.error(coordinates)
        rest = self.norm(coordinates) - bound
        return bound / rest if rest > 0.0 else math.inf

    def estimate(self, coordinates: Array) -> float:
        """Return the indicator's estimate of the error, relative to the answer. Collective: yes.

        Raises
        ------
        InputError
            If there is no indicator.
        """
        if self.indicator is None:
            raise InputError("the model has no indicator: give it a HierarchicalIndicator")
        self.indicator.update()
        norm = self.norm(coordinates)
        return self.indicator(coordinates) / norm if norm > 0.0 else math.inf

    def solve(self) -> SolveReport:
        """Solve at the present parameters, set ``u``, and report what is known of the error.

        The report is converged where the reduced system was solved; its error stands in the quantities, as a certified
        bound where the model has a certificate, as an estimate where it has an indicator.

        Raises
        ------
        InputError
            If the parameters give a start with NaN.

        Collective: yes.
        """
        started = time.perf_counter()
        result = self.propose()
        seconds = {"reduced solve": result.seconds}
        quantities: dict[str, float | int | str] = {"modes": self.basis.size}
        if self.indicator is not None:
            quantities["relative error, estimated"] = self.estimate(result.coordinates)
        if self.certificate is not None:
            bound = self.certificate(result.coordinates)
            quantities["relative error, certified"] = self.relative(bound.error, result.coordinates)
            stability = self.certificate.stability
            quantities["stability constant"] = f"{stability.constant:.3g}, {stability.origin}"
            seconds["certificate"] = bound.seconds
        forms.set_function(self.u, self.field(result.coordinates))
        return SolveReport(
            method="reduced Newton",
            converged=result.converged,
            reason=3 if result.converged else -6,
            iterations=result.iterations,
            residuals=result.residuals,
            seconds=seconds | {"total": time.perf_counter() - started},
            quantities=quantities,
            advice=result.why,
        )


def as_guess(model: ReducedModel, correction: Callable[[Array], Array] | None = None) -> Callable[[], Array | None]:
    """Return a provider of initial guesses for `pdeopt.attach_guess`: the model's answer at the present parameters.

    It offers nothing where the reduced system has no solution. A correction of the field, such as a
    `pdeopt.reduced_order.ScaledCorrection`, may come after it. Collective: yes, each time that it is called.
    """

    def provide() -> Array | None:
        result = model.propose()
        if not result.converged:
            return None
        values = model.field(result.coordinates)
        return values if correction is None else correction(values)

    return provide
