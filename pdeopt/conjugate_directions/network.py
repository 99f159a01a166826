r"""The network of the learned smoother: from the stencil of a point to what its elimination drops.

Incomplete factors drop the couplings that leave the pattern of the matrix. A share of them, ``keep``, goes to the
diagonal: 1 is safe for every matrix, -1 preserves row sums (Gustafsson, BIT 18, 1978), which is best where couplings
along one direction are strong, and fails where the medium jumps. Which share is best depends on the matrix around the
point; that is all that there is to learn, and the cycle stays linear and symmetric.
"""

from pdeopt.learn._torch import torch
from pdeopt.report import InputError

__all__ = ["SmootherNetwork"]

_HIDDEN = 16
_FIRST = -0.25  # the best share for all families together, with which the training begins


class SmootherNetwork(torch.nn.Module):
    """One hidden layer from couplings to the share of the dropped couplings that goes to the diagonal.

    Parameters
    ----------
    dimension
        2 or 3.
    hidden
        Width of the hidden layer.

    Raises
    ------
    InputError
        If the dimension is another.
    """

    def __init__(self, dimension: int, hidden: int = _HIDDEN) -> None:
        super().__init__()
        if dimension not in (2, 3):
            raise InputError(f"dimension is {dimension}: the network is for lattices in 2 or 3 dimensions")
        self.first = torch.nn.Linear(3**dimension - 1, hidden)
        self.second = torch.nn.Linear(hidden, 1)
        with torch.no_grad():
            self.second.weight.mul_(0.1)
            self.second.bias.fill_(float(torch.atanh(torch.tensor(_FIRST))))

    def forward(self, couplings: torch.Tensor) -> torch.Tensor:
        """Return shares between -1 and 1, shape (...).

        Parameters
        ----------
        couplings
            Over the diagonal entry, shape (..., 8 or 26): with the points that are eliminated later, in lexicographical
            order of their offsets, then with those opposite to them.

        Collective: no.
        """
        result: torch.Tensor = torch.tanh(self.second(torch.relu(self.first(couplings))))[..., 0]
        return result
