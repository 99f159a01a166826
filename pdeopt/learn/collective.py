"""Torch operations that communicate, and the convention by which gradients are right under MPI.

Every tensor is one of two kinds. A *distributed* tensor has its own slice on each rank, for instance the degrees of
freedom that the rank owns. A *replicated* tensor is equal on all ranks; the weights of a network are, and so is the
loss. The gradient of each is the true gradient of the loss: a distributed tensor's is its slice, a replicated tensor's
is whole, and equal on all ranks.

Two operations change the kind, and each is the other's derivative:

=====================  =============================  =========================
operation              forward                        backward
=====================  =============================  =========================
`sum_over_ranks`       sum of what the ranks have     the same on each rank
`replicated`           the same on each rank          sum of what the ranks have
=====================  =============================  =========================

What is computed on a rank from replicated tensors alone, equally on all ranks, needs neither. Where a replicated tensor
meets a distributed one it passes through `replicated` first; a network does so in `Replicated`.

A backward pass communicates in the reverse order of the forward pass, so all ranks must build the same graph: the same
operations in the same order, on tensors that require gradients on all ranks or on none, also where a rank has no rows.
"""

import hashlib
from collections.abc import Iterable
from typing import Any

from mpi4py import MPI

import numpy as np

from pdeopt.learn._torch import torch
from pdeopt.report import InputError

__all__ = ["Replicated", "broadcast_weights", "check_replicated", "replicated", "sum_over_ranks"]


def sum_over_ranks(value: torch.Tensor, comm: MPI.Comm) -> torch.Tensor:
    r"""Sum a tensor over the ranks: $y = \sum_r x_r$, with $\partial L / \partial x_r = \partial L / \partial y$.

    Parameters
    ----------
    value
        This rank's part, any shape, the same on all ranks; the sum is taken in float64.
    comm
        The ranks.

    Returns
    -------
    torch.Tensor
        The sum, replicated. It can be differentiated twice.

    Raises
    ------
    InputError
        If the tensor is not of floating point.

    Collective: yes; its backward pass is not, the backward pass of that one is.
    """
    _check_floating(value, "sum_over_ranks")
    return _SumOverRanks.apply(value, comm)


def replicated(tensor: torch.Tensor, comm: MPI.Comm) -> torch.Tensor:
    r"""Hand a replicated tensor to what each rank computes for itself.

    $y_r = x$, with $\partial L / \partial x = \sum_r \partial L / \partial y_r$.

    Parameters
    ----------
    tensor
        Equal on all ranks, any shape; the gradient is summed in float64.
    comm
        The ranks.

    Raises
    ------
    InputError
        If the tensor is not of floating point.

    Collective: no; its backward pass is.
    """
    _check_floating(tensor, "replicated")
    return _Replicate.apply(tensor, comm)


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(value: torch.Tensor, comm: MPI.Comm) -> torch.Tensor:
        return summed(value, comm)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.comm = inputs[1]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _Replicate.apply(gradients[0], ctx.comm), None


class _Replicate(torch.autograd.Function):
    @staticmethod
    def forward(tensor: torch.Tensor, comm: MPI.Comm) -> torch.Tensor:
        return tensor.view_as(tensor)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.comm = inputs[1]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _SumOverRanks.apply(gradients[0], ctx.comm), None


def summed(tensor: torch.Tensor, comm: MPI.Comm) -> torch.Tensor:
    """Return the sum over the ranks, taken in float64, of a tensor that is no part of a graph. Collective: yes."""
    total = tensor.detach().to("cpu", torch.float64, copy=True).contiguous()
    if comm.size > 1:
        comm.Allreduce(MPI.IN_PLACE, total.numpy())
    return total.to(tensor.device, tensor.dtype)


def _check_floating(tensor: torch.Tensor, name: str) -> None:
    if not tensor.dtype.is_floating_point:
        raise InputError(f"{name} takes tensors of floating point, not {tensor.dtype}: convert it with .double()")


class Replicated(torch.nn.Module):
    """A network with replicated weights, evaluated by each rank on rows of its own.

    All parameters travel through `replicated` as one vector, so that the backward pass makes one reduction for each
    call, in the same order on all ranks, also on a rank whose input has no rows. The ranks call it equally often, and
    let the result enter the loss.

    Parameters
    ----------
    network
        The network; its parameters and buffers become those of rank 0.
    comm
        The ranks.

    Collective: yes, as are backward passes; a call is not.
    """

    def __init__(self, network: torch.nn.Module, comm: MPI.Comm) -> None:
        super().__init__()
        broadcast_weights(network, comm)
        self.network, self.comm = network, comm

    def forward(self, *arguments: Any, **options: Any) -> Any:
        """Evaluate the network on this rank's rows. Collective: no."""
        parameters = {name: value for name, value in self.network.named_parameters() if value.requires_grad}
        if not parameters or not torch.is_grad_enabled():
            return self.network(*arguments, **options)
        flat = replicated(torch.cat([value.reshape(-1) for value in parameters.values()]), self.comm)
        pieces = flat.split([value.numel() for value in parameters.values()])
        local = {
            name: piece.view(value.shape).to(value.dtype)
            for (name, value), piece in zip(parameters.items(), pieces, strict=True)
        }
        output = torch.func.functional_call(self.network, local, arguments, options)
        if isinstance(output, torch.Tensor) and output.dtype.is_floating_point:
            # A sum of nothing: where the network leaves its weights aside, on a rank without rows for instance, the
            # backward pass still comes by and the others do not wait for it.
            output = output + flat[:0].sum().to(output.dtype)
        return output


def broadcast_weights(network: torch.nn.Module, comm: MPI.Comm) -> None:
    """Give all ranks the parameters and buffers of rank 0.

    Raises
    ------
    InputError
        If the ranks have networks of different structure.

    Collective: yes.
    """
    tensors = [tensor for tensor in (*network.parameters(), *network.buffers()) if tensor.numel()]
    if comm.size == 1:
        return
    if _ranks_that_differ(_digest(f"{tensor.dtype} {tuple(tensor.shape)}" for tensor in tensors), comm):
        raise InputError("the ranks have networks of different structure: build the same one on each")
    content = np.concatenate([np.empty(0, np.uint8), *(content_of(tensor) for tensor in tensors)])
    comm.Bcast(content)
    start = 0
    with torch.no_grad():
        for tensor in tensors:
            stop = start + tensor.numel() * tensor.element_size()
            received = torch.from_numpy(content[start:stop].copy()).view(tensor.dtype).view(tensor.shape)
            tensor.copy_(received)
            start = stop


def check_replicated(tensor: torch.Tensor, comm: MPI.Comm, name: str) -> None:
    """Raise unless a tensor is equal on all ranks, bit for bit.

    Parameters
    ----------
    tensor
        Any shape and type.
    comm
        The ranks.
    name
        What the message calls it.

    Raises
    ------
    InputError
        On all ranks, if type, shape or values differ.

    Collective: yes.
    """
    ranks = _ranks_that_differ(_digest([f"{tensor.dtype} {tuple(tensor.shape)}", content_of(tensor)]), comm)
    if ranks:
        raise InputError(
            f"{name} has to be equal on all ranks, but on rank {', '.join(map(str, ranks))} it is not what it is on "
            "rank 0: compute it from the same data and seed, or broadcast it"
        )


def content_of(tensor: torch.Tensor) -> np.ndarray:
    """Return the bytes of a tensor, row by row, shape ``(bytes,)``. Collective: no."""
    if not tensor.numel():
        return np.empty(0, np.uint8)
    content: np.ndarray = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return content


def _digest(parts: Iterable[str | np.ndarray]) -> np.ndarray:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else np.ascontiguousarray(part).data)
        digest.update(b"\0")
    return np.frombuffer(digest.digest(), np.uint8)


def _ranks_that_differ(digest: np.ndarray, comm: MPI.Comm) -> list[int]:
    """Return the ranks whose digest is not that of rank 0. Collective: yes."""
    digests = np.empty((comm.size, digest.size), np.uint8)
    comm.Allgather(digest, digests)
    return [int(rank) for rank in np.flatnonzero((digests != digests[0]).any(axis=1))]
