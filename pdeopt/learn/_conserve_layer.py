"""Projections as torch modules."""

from collections.abc import Callable

from pdeopt.learn._torch import torch


class ProjectionLayer(torch.nn.Module):
    """A projection as the last module of a network.

    Parameters
    ----------
    projection
        Anything that maps tensors of owned values to such tensors.
    """

    def __init__(self, projection: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.projection = projection

    def forward(self, values: torch.Tensor, *more: torch.Tensor) -> torch.Tensor:
        """Project. Collective: yes."""
        return self.projection(values, *more)
