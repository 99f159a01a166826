"""Checks of derivatives that users run on their own layers."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

from mpi4py import MPI

import numpy as np

from pdeopt.learn._torch import torch
from pdeopt.parallel import random_stream

# Steps of the difference quotients along the direction; the best one counts.
_STEPS = (3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4)
_TAYLOR_STEPS = (4e-3, 2e-3, 1e-3, 5e-4)


@dataclasses.dataclass(frozen=True)
class DerivativeReport:
    """What a check of derivatives found.

    Parameters
    ----------
    error
        Relative difference between the derivative along a direction by backward and by differences of fourth order.
    rates
        Orders at which the remainder of first order falls as the step is halved: 2 for a right gradient.
    """

    error: float
    rates: tuple[float, ...]

    def __str__(self) -> str:
        rates = ", ".join(f"{rate:.3f}" for rate in self.rates)
        return f"relative error of the derivative {self.error:.1e}; Taylor orders {rates}"


def check_derivative(
    function: Callable[..., torch.Tensor],
    tensors: Sequence[torch.Tensor],
    comm: MPI.Comm,
    *,
    replicated: Sequence[bool] | None = None,
    parameters: Sequence[torch.nn.Parameter] = (),
    directions: Sequence[torch.Tensor] | None = None,
    weight: torch.Tensor | None = None,
    seed: int = 0,
) -> DerivativeReport:
    """Compare the derivative of <w, function(tensors)> along a direction, w fixed, with difference quotients.

    Parameters
    ----------
    function
        A layer, or anything made of layers.
    tensors
        Where to differentiate.
    comm
        Communicator whose ranks hold parts of the tensors.
    replicated
        For each tensor, whether it is equal on all ranks and not a part; by default those of up to 16 entries that are.
    parameters
        Parameters of networks inside the function, equal on all ranks: they are moved too, and put back.
    directions
        Along which to differentiate, one per tensor and one per parameter; random ones if None.
    weight
        w, this rank's part; random if None.
    seed
        Of the random w and directions.

    Returns
    -------
    report
        The error and the Taylor orders.

    Collective: yes.
    """
    same = random_stream("check_derivative", seed)
    own = random_stream("check_derivative", seed, comm)
    kinds = [_is_replicated(tensor, comm) for tensor in tensors] if replicated is None else list(replicated)
    kinds += [True] * len(parameters)
    points = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    starts = [tensor.detach().clone() for tensor in (*points, *parameters)]
    if directions is None:
        directions = [
            torch.from_numpy((same if kind else own).standard_normal(tuple(start.shape))).to(start)
            for kind, start in zip(kinds, starts, strict=True)
        ]
    output = function(*points)
    weights = torch.from_numpy(own.standard_normal(tuple(output.shape))) if weight is None else weight
    gradients = torch.autograd.grad((output * weights).sum(), (*points, *parameters), allow_unused=True)
    slope = 0.0
    for kind, gradient, direction in zip(kinds, gradients, directions, strict=True):
        part = 0.0 if gradient is None else float((gradient * direction).sum())
        slope += part if kind else comm.allreduce(part)

    def value(step: float) -> float:
        with torch.no_grad():
            moved = [start + step * direction for start, direction in zip(starts, directions, strict=True)]
            for parameter, there in zip(parameters, moved[len(points) :], strict=True):
                parameter.copy_(there)
            return float(comm.allreduce(float((function(*moved[: len(points)]) * weights).sum())))

    errors = []
    for step in _STEPS:
        quotient = (8.0 * (value(step) - value(-step)) - (value(2 * step) - value(-2 * step))) / (12.0 * step)
        errors.append(abs(quotient - slope) / max(abs(slope), 1e-300))
    start = value(0.0)
    remainders = [abs(value(step) - start - step * slope) for step in _TAYLOR_STEPS]
    rates = [float(np.log2(one / max(other, 1e-300))) for one, other in itertools.pairwise(remainders)]
    with torch.no_grad():
        for parameter, former in zip(parameters, starts[len(points) :], strict=True):
            parameter.copy_(former)
    return DerivativeReport(min(errors), tuple(rates))


def _is_replicated(tensor: torch.Tensor, comm: MPI.Comm) -> bool:
    """Whether a small tensor is the same on all ranks."""
    if comm.size == 1:
        return True
    values = tensor.detach().numpy().ravel() if tensor.numel() <= 16 else None
    everything = comm.allgather(None if values is None else values.tolist())
    return all(one is not None and one == everything[0] for one in everything)
