r"""Time-stepping schemes as coefficients of one-step residuals, with the quadrature in time that suits their adjoints.

For d/dt m(y; v) + F(y, u, t; v) = 0, step n from t_(n-1) to t_n = n tau has the residual

    a_0 m(y_n) + a_1 m(y_(n-1)) + a_2 m(y_(n-2)) + tau [b_0 F(y_n, u_n, t_n) + b_1 F(y_(n-1), u_n, t_(n-1))],

with one control u_n per step. Objectives are sums over the steps. Their weights are chosen so that the adjoint of the
discrete problem is itself a consistent scheme for the continuous adjoint equation: otherwise its first or last value,
and the control's, would be wrong at first order, however accurate the state is.
"""

import dataclasses
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pdeopt.report import InputError

Array = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class StepCoefficients:
    """The numbers in the residual of one step.

    Parameters
    ----------
    mass
        (a_0, a_1, a_2), of the mass form at t_n, t_(n-1), t_(n-2).
    stiffness
        (b_0, b_1), of the stationary residual at t_n and t_(n-1), to be multiplied by the step.
    """

    mass: tuple[float, float, float]
    stiffness: tuple[float, float]


class TimeScheme(Protocol):
    """A scheme with constant step."""

    @property
    def name(self) -> str:
        """Name for reports."""

    def coefficients(self, step: int) -> StepCoefficients:
        """Return the coefficients of step ``step`` = 1, 2, ... Collective: no."""

    def state_weights(self, steps: int) -> Array:
        """Return the weights, in units of the step, of a cost of the state at t_0, ..., t_N, shape (steps + 1,)."""

    def control_weights(self, steps: int) -> Array:
        """Return the weights, in units of the step, of a cost of u_1, ..., u_N, shape (steps,)."""

    def control_times(self, steps: int) -> Array:
        """Return the times, in units of the step, that u_1, ..., u_N and the adjoints belong to, shape (steps,)."""


@dataclasses.dataclass(frozen=True)
class Theta:
    """The theta-scheme: 1 is the implicit Euler scheme (order 1), 1/2 that of Crank and Nicolson (order 2).

    Control and adjoint of step n belong to t_n - (1 - theta) tau, for Crank-Nicolson the middle of the step (Apel and
    Flaig, SIAM J. Numer. Anal. 50 (2012) 1484-1512). The state's cost is integrated with weight theta at the end and
    1 - theta at the beginning: the trapezoidal rule for theta = 1/2.

    Parameters
    ----------
    theta
        Between 1/2 and 1: below, the scheme is stable for small steps only.

    Raises
    ------
    InputError
        If theta is outside [1/2, 1].
    """

    theta: float = 0.5

    def __post_init__(self) -> None:
        if not 0.5 <= self.theta <= 1.0:
            raise InputError(f"theta is {self.theta}: choose it between 0.5 (Crank-Nicolson) and 1 (implicit Euler)")

    @property
    def name(self) -> str:
        """Name for reports."""
        return {0.5: "Crank-Nicolson", 1.0: "implicit Euler"}.get(self.theta, f"theta = {self.theta:g}")

    def coefficients(self, step: int) -> StepCoefficients:
        """Return (1, -1, 0) and (theta, 1 - theta). Collective: no."""
        return StepCoefficients((1.0, -1.0, 0.0), (self.theta, 1.0 - self.theta))

    def state_weights(self, steps: int) -> Array:
        """Return 1 - theta, 1, ..., 1, theta. Collective: no."""
        weights = np.ones(steps + 1)
        weights[0], weights[-1] = 1.0 - self.theta, self.theta
        return weights

    def control_weights(self, steps: int) -> Array:
        """Return ones. Collective: no."""
        return np.ones(steps)

    def control_times(self, steps: int) -> Array:
        """Return n - 1 + theta. Collective: no."""
        return np.asarray(np.arange(steps) + self.theta, dtype=np.float64)


@dataclasses.dataclass(frozen=True)
class BDF2:
    """Backward differentiation of order 2, started by one step of the theta-scheme with theta = 2/3.

    The first step is multiplied by 3/2. Then columns 1, 2, ... of the discrete adjoint are exactly the BDF2 formula
    backwards in time, and with weights (1/2, 1, ..., 1, 3/2, 0) of the state's cost and (3/2, 1, ..., 1, 1/2) of the
    control's its end values are of order 2 too. A cost of the state at the final time makes the last adjoints wrong
    at order 1, as for every multistep method (Sandu, "Reverse automatic differentiation of linear multistep methods",
    2008); the gradient is exact all the same.
    """

    @property
    def name(self) -> str:
        """Name for reports."""
        return "BDF2"

    def coefficients(self, step: int) -> StepCoefficients:
        """Return (3/2, -2, 1/2) and (1, 0), in the first step (3/2, -3/2, 0) and (1, 1/2). Collective: no."""
        if step == 1:
            return StepCoefficients((1.5, -1.5, 0.0), (1.0, 0.5))
        return StepCoefficients((1.5, -2.0, 0.5), (1.0, 0.0))

    def state_weights(self, steps: int) -> Array:
        """Return 1/2, 1, ..., 1, 3/2, 0: the middle of the last 3/2 steps' mass, order 2. Collective: no."""
        if steps < 3:
            raise InputError(f"BDF2 needs at least 3 steps, not {steps}")
        weights = np.ones(steps + 1)
        weights[0], weights[-2], weights[-1] = 0.5, 1.5, 0.0
        return weights

    def control_weights(self, steps: int) -> Array:
        """Return 3/2, 1, ..., 1, 1/2. Collective: no."""
        weights = np.ones(steps)
        weights[0], weights[-1] = 1.5, 0.5
        return weights

    def control_times(self, steps: int) -> Array:
        """Return 1, ..., steps. Collective: no."""
        return np.arange(1.0, steps + 1.0)
