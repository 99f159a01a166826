"""Tests of derivatives for users: Taylor remainders and the symmetry of the Hessian."""

import dataclasses
import math

from petsc4py import PETSc

import numpy as np
import numpy.typing as npt

from pdeopt import parallel
from pdeopt.control.reduced import Functional
from pdeopt.report import InputError

GRADIENT_ORDER = 1.99
"""Order of the first Taylor remainder below which a gradient counts as wrong; exactly 2 is expected."""
HESSIAN_ORDER = 2.95
"""Order of the second Taylor remainder below which a Hessian counts as wrong; exactly 3 is expected."""
_ROUNDING = 1e4 * np.finfo(np.float64).eps
"""Remainders below this fraction of the objective's terms are rounding: orders are not read off them."""


@dataclasses.dataclass(frozen=True)
class TaylorReport:
    """Taylor remainders of an objective along one direction.

    Parameters
    ----------
    steps
        The lengths h.
    first_remainders
        |j(u + h d) - j(u) - h j'(u) d|, one per step.
    second_remainders
        The same less h^2/2 j''(u)(d, d); empty if Hessians were not asked for.
    rounding
        Size below which a remainder is rounding.
    """

    steps: tuple[float, ...]
    first_remainders: tuple[float, ...]
    second_remainders: tuple[float, ...]
    rounding: float

    @property
    def gradient_order(self) -> float:
        """Order of the first remainder at the smallest steps above rounding; infinite if all are rounding."""
        return _order(self.steps, self.first_remainders, self.rounding)

    @property
    def hessian_order(self) -> float:
        """Order of the second remainder likewise: infinite for a quadratic objective; NaN if not asked for."""
        return _order(self.steps, self.second_remainders, self.rounding) if self.second_remainders else math.nan

    @property
    def passed(self) -> bool:
        """Whether the orders are at least `GRADIENT_ORDER`, and `HESSIAN_ORDER` if the Hessian was asked for."""
        return self.gradient_order >= GRADIENT_ORDER and (
            not self.second_remainders or self.hessian_order >= HESSIAN_ORDER
        )

    def __str__(self) -> str:
        second = self.second_remainders or (math.nan,) * len(self.steps)
        lines = ["        step  first remainder  second remainder"]
        lines += [f"{h:12.3e}  {r1:15.6e}  {r2:16.6e}"
                  for h, r1, r2 in zip(self.steps, self.first_remainders, second, strict=True)]  # fmt: skip
        lines.append(f"order with the gradient: {_describe(self.gradient_order)}")
        if self.second_remainders:
            lines.append(f"order with the Hessian: {_describe(self.hessian_order)}")
        lines.append("passed" if self.passed else "FAILED: a derivative is wrong")
        return "\n".join(lines)


def _describe(order: float) -> str:
    return "remainder at rounding" if math.isinf(order) else f"{order:.3f}"


def _order(steps: tuple[float, ...], remainders: tuple[float, ...], rounding: float) -> float:
    """Return the order between the two smallest steps whose remainders are above rounding."""
    kept = [(h, r) for h, r in zip(steps, remainders, strict=True) if not r <= rounding]  # NaN stays, and fails
    if not kept:
        return math.inf
    if len(kept) == 1:  # the next smaller step was rounding already: the order is at least this
        index = steps.index(kept[0][0])
        if index + 1 == len(steps):
            return math.nan
        kept.append((steps[index + 1], rounding))
    (h1, r1), (h2, r2) = kept[-2:]
    return math.log(r1 / r2) / math.log(h1 / h2)


def random_direction(functional: Functional, name: str, seed: int) -> PETSc.Vec:
    """Return a direction that is the same on every rank count only in distribution: smooth part 1, rough part 1/2.

    White noise alone would hardly see a wrong gradient that is smooth, and less so the finer the mesh.

    Collective: yes.
    """
    direction = functional.create_vector()
    stream = parallel.random_stream(name, seed, functional.comm)
    direction.array[:] = 1.0 + stream.uniform(-0.5, 0.5, direction.getLocalSize())
    return direction


def taylor_test(
    functional: Functional,
    *,
    hessian: bool = True,
    direction: PETSc.Vec | None = None,
    steps: npt.ArrayLike | None = None,
    seed: int = 0,
) -> TaylorReport:
    """Measure Taylor remainders at the present control, which is put back afterwards. Collective: yes.

    Parameters
    ----------
    functional
        The objective as a function of the controls.
    hessian
        Measure the remainder with the Hessian too.
    direction
        Direction d in control coordinates; random if None.
    steps
        Decreasing lengths h; ten if None, from one at which h d is as large as the control (or as 1),
        each a quarter of the one before: a gradient that is wrong by 1e-5 is found.
    seed
        Seed of the random direction.

    Raises
    ------
    InputError
        If fewer than two steps are given, or they do not decrease.
    """
    control = functional.create_vector()
    functional.get_control(control)
    if direction is None:
        direction = random_direction(functional, "taylor_test", seed)
    length = max(control.norm(PETSc.NormType.INFINITY), 0.0) or 1.0
    scale = length / direction.norm(PETSc.NormType.INFINITY)
    lengths = scale * 0.25 ** np.arange(10.0) if steps is None else np.asarray(steps, dtype=np.float64).ravel()
    if lengths.size < 2 or not np.all(np.diff(lengths) < 0.0) or lengths[-1] <= 0.0:
        raise InputError(f"steps are {lengths.tolist()}: give at least two positive, decreasing lengths")
    covector = functional.create_vector()
    value = functional.value(control)
    functional.derivative(control, covector)
    slope = covector.dot(direction)
    curvature = 0.0
    if hessian:
        functional.hessian_action(control, direction, covector)
        curvature = covector.dot(direction)
    first, second, largest = [], [], abs(value)
    moved = functional.create_vector()
    for h in lengths:
        moved.waxpy(h, direction, control)
        there = functional.value(moved)
        largest = max(largest, abs(there), abs(h * slope))
        remainder = there - value - h * slope
        first.append(abs(remainder))
        second.append(abs(remainder - 0.5 * h**2 * curvature))
    functional.set_control(control)
    for vector in (control, covector, moved):
        vector.destroy()
    return TaylorReport(
        tuple(float(h) for h in lengths), tuple(first), tuple(second) if hessian else (), _ROUNDING * largest
    )


def check_symmetry(functional: Functional, *, pairs: int = 3, seed: int = 0) -> float:
    """Return the largest relative asymmetry |d'Hc - c'Hd| / (|d'Hc| + |c'Hd|) of the Hessian over random pairs.

    About 1e-12 with direct state solves, about their tolerance with iterative ones; more means that a derivative, an
    adjoint or a transposed solve is wrong.

    Collective: yes.
    """
    control = functional.create_vector()
    functional.get_control(control)
    product = functional.create_vector()
    worst = 0.0
    for index in range(pairs):
        first = random_direction(functional, f"check_symmetry {index} a", seed)
        second = random_direction(functional, f"check_symmetry {index} b", seed)
        functional.hessian_action(control, first, product)
        one = product.dot(second)
        functional.hessian_action(control, second, product)
        other = product.dot(first)
        worst = max(worst, abs(one - other) / max(abs(one) + abs(other), 1e-300))
        first.destroy()
        second.destroy()
    functional.set_control(control)
    return worst
