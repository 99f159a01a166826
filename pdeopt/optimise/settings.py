"""The numbers of AdaSketch-Newton, and when an optimiser may stop."""

import dataclasses

from pdeopt.report import InputError


@dataclasses.dataclass(frozen=True)
class AdaSketchSettings:
    """The numbers of AdaSketch-Newton.

    Those of the publication are penalties of 1 and 0.1 and a share of 0.1; the others are its own. With these the 76
    problems of S2MPJ with equality constraints and an objective take fewer steps, and two more are solved.

    Parameters
    ----------
    constraint_penalty, gradient_penalty
        First eta_1 and eta_2, > 0.
    accuracy
        First delta, in (0, 1): relative residual of the KKT solves.
    growth
        nu > 1: on a failed descent test eta_1 grows by nu^2, eta_2 shrinks by nu, delta by nu^4.
    sharpen
        Exponent: the accuracy is at most (|b| / |b_0|)^sharpen; 0 keeps it, for a linear rate.
    armijo
        Share of the predicted decrease that a step must give, in (0, 1/2).
    least_squares_multipliers
        Start from the multipliers that fit best at the initial x, where those given are zero.

    Raises
    ------
    InputError
        If a number is out of its range.
    """

    constraint_penalty: float = 10.0
    gradient_penalty: float = 1e-3
    accuracy: float = 0.1
    growth: float = 1.5
    sharpen: float = 0.5
    armijo: float = 1e-4
    least_squares_multipliers: bool = True

    def __post_init__(self) -> None:
        for name in ("constraint_penalty", "gradient_penalty"):
            if not getattr(self, name) > 0.0:
                raise InputError(f"{name} is {getattr(self, name):g}: it must be positive")
        if not 0.0 < self.accuracy < 1.0:
            raise InputError(f"accuracy is {self.accuracy:g}: it must lie between 0 and 1")
        if not self.growth > 1.0:
            raise InputError(f"growth is {self.growth:g}: it must be above 1")
        if not self.sharpen >= 0.0:
            raise InputError(f"sharpen is {self.sharpen:g}: it must not be negative")
        if not 0.0 < self.armijo < 0.5:
            raise InputError(f"armijo is {self.armijo:g}: it must lie between 0 and 1/2")


@dataclasses.dataclass(frozen=True)
class Tolerances:
    """Absolute tolerances for |L_x| and |c|, in Riesz norms."""

    gradient: float = 1e-8
    constraint: float = 1e-8

    def met(self, gradient: float, constraint: float) -> bool:
        """Whether both norms are within them; never for NaN."""
        return gradient <= self.gradient and constraint <= self.constraint
