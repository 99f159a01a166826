"""Conservation inside torch: linear maps on distributed vectors that are each other's derivative."""

from typing import Any, Protocol

from mpi4py import MPI

import numpy as np

from pdeopt.learn._torch import torch
from pdeopt.learn.collective import replicated, sum_over_ranks


class AffineProjection(Protocol):
    """What `project_in_torch` needs of a projection: both directions, on the values that this rank owns."""

    def _forward(self, guess: np.ndarray, source: np.ndarray | None, homogeneous: bool) -> np.ndarray:
        """Return the projected flux; ``homogeneous`` leaves out what does not depend on guess and source."""

    def _adjoint(self, cotangent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the cotangents of guess and source."""


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().to(device="cpu", dtype=torch.float64).numpy()


def _like(array: np.ndarray, tensor: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(array).to(device=tensor.device)


class _Forward(torch.autograd.Function):
    """The affine map (guess, source) -> flux; its derivative is the adjoint map."""

    @staticmethod
    def forward(
        guess: torch.Tensor, source: torch.Tensor | None, projection: AffineProjection, homogeneous: bool
    ) -> torch.Tensor:
        return _like(
            projection._forward(_to_numpy(guess), None if source is None else _to_numpy(source), homogeneous), guess
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.projection = inputs[2]

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        guess, source = _Adjoint.apply(cotangents[0], ctx.projection)
        return guess, source if ctx.needs_input_grad[1] else None, None, None


class _Adjoint(torch.autograd.Function):
    """The transpose of the linear part of `_Forward`, whose transpose in turn is that linear part."""

    @staticmethod
    def forward(cotangent: torch.Tensor, projection: AffineProjection) -> tuple[torch.Tensor, torch.Tensor]:
        guess, source = projection._adjoint(_to_numpy(cotangent))
        return _like(guess, cotangent), _like(source, cotangent)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
        ctx.projection = inputs[1]

    @staticmethod
    def backward(ctx: Any, *directions: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return _Forward.apply(directions[0], directions[1], ctx.projection, True), None


def project_in_torch(
    projection: AffineProjection, guess: torch.Tensor, source: torch.Tensor | None = None
) -> torch.Tensor:
    """Project tensors of owned values, shape (owned,) or (batch, owned); the result is in double precision.

    Collective: yes, forward, backward and when differentiated twice.
    """
    guess = guess.to(torch.float64)
    source = None if source is None else source.to(torch.float64)
    if guess.dim() == 1:
        return _Forward.apply(guess, source, projection, False)
    sources = [None] * len(guess) if source is None else source.expand(len(guess), source.shape[-1]).unbind()
    return torch.stack(
        [
            _Forward.apply(one, its_source, projection, False)
            for one, its_source in zip(guess.unbind(), sources, strict=True)
        ]
    )


class _Symmetric(torch.autograd.Function):
    """A linear map that equals its transpose."""

    @staticmethod
    def forward(values: torch.Tensor, apply: Any) -> torch.Tensor:
        return _like(apply(_to_numpy(values)), values)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.map = inputs[1]

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return _Symmetric.apply(cotangents[0], ctx.map), None


def symmetric_map(values: torch.Tensor, apply: Any) -> torch.Tensor:
    """Apply a symmetric distributed matrix, given as a callable on owned values, to (..., owned). Collective: yes."""
    if values.dim() == 1:
        return _Symmetric.apply(values, apply)
    return torch.stack([_Symmetric.apply(one, apply) for one in values.unbind()])


def sum_of_parts(values: torch.Tensor, comm: MPI.Comm) -> torch.Tensor:
    """Add up what the ranks have, for use with what each rank owns. Collective: yes, forward and backward."""
    return replicated(sum_over_ranks(values, comm), comm)
