"""The autograd functions of a PDE layer: torch's side of forward, adjoint and second-order adjoint."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pdeopt.learn._torch import torch
from pdeopt.report import InputError

if TYPE_CHECKING:
    from pdeopt.learn.pde_layer import PDELayer

Array = npt.NDArray[np.float64]


def _arrays(tensors: Sequence[torch.Tensor]) -> list[Array]:
    return [tensor.detach().contiguous().numpy() for tensor in tensors]


def _tensors(arrays: Sequence[Array | None]) -> list[torch.Tensor | None]:
    return [None if array is None else torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]


class Solve(torch.autograd.Function):
    """A steady solve."""

    @staticmethod
    def forward(ctx: Any, layer: "PDELayer", *tensors: torch.Tensor) -> torch.Tensor:
        count = len(layer._inputs)
        state = torch.from_numpy(layer._steady(_arrays(tensors[:count]), None))
        ctx.layer = layer
        ctx.save_for_backward(state, *tensors)
        return state

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        state, *tensors = ctx.saved_tensors
        result: tuple[torch.Tensor | None, ...] = _Adjoint.apply(
            ctx.layer, ctx.needs_input_grad[1:], state.detach(), cotangents[0], *tensors
        )
        return (None, *result)


class _Adjoint(torch.autograd.Function):
    """The backward pass of `Solve`, a function of cotangent and controls."""

    @staticmethod
    def forward(
        ctx: Any,
        layer: "PDELayer",
        wanted: Sequence[bool],
        state: torch.Tensor,
        cotangent: torch.Tensor,
        *tensors: torch.Tensor,
    ) -> tuple[torch.Tensor | None, ...]:
        count = len(layer._inputs)
        values = _arrays(tensors[:count])
        adjoint, gradients, by_parameters = layer._adjoint_pass(
            values, state.numpy(), cotangent.contiguous().numpy(), wanted[:count], any(wanted[count:])
        )
        ctx.layer, ctx.count, ctx.wanted = layer, count, wanted
        ctx.save_for_backward(state, torch.from_numpy(adjoint), *tensors)
        empty: list[torch.Tensor | None] = [None] * (len(tensors) - count)
        return (*_tensors(gradients), *(by_parameters or empty))

    @staticmethod
    def backward(ctx: Any, *directions: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        state, adjoint, *tensors = ctx.saved_tensors
        layer, count = ctx.layer, ctx.count
        # Second derivatives of the state are not asked for by torch alone: a direction is missing where the first
        # derivative was not wanted or not used.
        result = _SecondAdjoint.apply(layer, state, adjoint, *directions[:count], *tensors)
        return (None, None, None, *result, *[None] * (len(tensors) - count))


class _SecondAdjoint(torch.autograd.Function):
    """The backward pass of `_Adjoint`; what follows it is third order."""

    @staticmethod
    def forward(
        ctx: Any, layer: "PDELayer", state: torch.Tensor, adjoint: torch.Tensor, *rest: torch.Tensor | None
    ) -> tuple[torch.Tensor, ...]:
        count = len(layer._inputs)
        directions = [
            np.zeros(one.size) if tensor is None else tensor.detach().contiguous().numpy()
            for one, tensor in zip(layer._inputs, rest[:count], strict=True)
        ]
        values = _arrays([tensor for tensor in rest[count : 2 * count] if tensor is not None])
        second = layer._second_order()
        layer._steady(values, state.numpy())
        change = second.tangent(directions, layer.adjoint_rtol)
        by_inputs = second.by_inputs(adjoint.numpy(), layer.adjoint_rtol)
        return (torch.from_numpy(change), *(torch.from_numpy(part) for part in by_inputs))

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor) -> None:
        raise InputError("the layer has no third derivatives: differentiate it twice at most")


class TakeSteps(torch.autograd.Function):
    """Time steps."""

    @staticmethod
    def forward(ctx: Any, layer: "PDELayer", *tensors: torch.Tensor) -> torch.Tensor:
        march = layer._march(_arrays(tensors[: len(layer._inputs)]))
        ctx.layer, ctx.march = layer, march
        march.forward_sweep()
        ctx.save_for_backward(*tensors)
        if not any(ctx.needs_input_grad):
            march.release()
        return torch.from_numpy(march.states)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, cotangent: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        tensors = ctx.saved_tensors
        layer, march = ctx.layer, ctx.march
        if march is None:  # asked for once more: the schedule of checkpoints is spent
            march = layer._march(_arrays(tensors[: len(layer._inputs)]))
            march.forward_sweep()
        ctx.march = None
        gradients, by_parameters = layer._march_back(
            march, cotangent.contiguous().numpy(), ctx.needs_input_grad[1 : 1 + len(layer._inputs)]
        )
        empty: list[torch.Tensor | None] = [None] * (len(tensors) - len(layer._inputs))
        return (None, *_tensors(gradients), *(by_parameters or empty))
