"""Pieces of networks that more than one method uses."""

import math
from collections.abc import Callable

from pdeopt.learn._torch import torch
from pdeopt.parallel import random_stream
from pdeopt.report import InputError, OptionError

__all__ = ["Normalise", "Positive", "mlp"]

_ACTIVATIONS: dict[str, Callable[[], torch.nn.Module]] = {
    "elu": torch.nn.ELU,
    "gelu": torch.nn.GELU,
    "relu": torch.nn.ReLU,
    "sigmoid": torch.nn.Sigmoid,
    "silu": torch.nn.SiLU,
    "softplus": torch.nn.Softplus,
    "tanh": torch.nn.Tanh,
}
_POSITIVE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "softplus": torch.nn.functional.softplus,
    "exp": torch.exp,
}


def mlp(
    inputs: int,
    outputs: int,
    width: int = 32,
    depth: int = 3,
    activation: str = "tanh",
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> torch.nn.Sequential:
    r"""Return a multilayer perceptron $W_d\,\sigma(\ldots\sigma(W_0 x + b_0)\ldots) + b_d$.

    The weights are uniform in $\pm\sqrt{6 / (n_{in} + n_{out})}$ (Glorot and Bengio, 2010), the offsets are zero. They
    follow from the seed alone, and torch's global random numbers are left as they are.

    Parameters
    ----------
    inputs, outputs
        Length of what goes in and comes out, >= 1.
    width
        Length of each hidden layer, >= 1.
    depth
        Number of hidden layers, >= 0.
    activation
        elu, gelu, relu, sigmoid, silu, softplus or tanh.
    seed
        Of the initial weights, >= 0; the same network on all ranks.
    dtype
        Of the weights.

    Raises
    ------
    OptionError
        If the activation is unknown.
    InputError
        If a length is not positive.

    Collective: no.
    """
    if activation not in _ACTIVATIONS:
        raise OptionError(f"unknown activation {activation!r}: choose {', '.join(_ACTIVATIONS)}")
    if min(inputs, outputs, width) < 1 or depth < 0:
        raise InputError(f"a perceptron with {inputs=}, {outputs=}, {width=}, {depth=} does not exist")
    sizes = [inputs, *[width] * depth, outputs]
    random = random_stream("learn.mlp", seed)
    layers: list[torch.nn.Module] = []
    for rows, columns in zip(sizes[1:], sizes[:-1], strict=True):
        layer = torch.nn.utils.skip_init(torch.nn.Linear, columns, rows, dtype=dtype)
        bound = math.sqrt(6.0 / (rows + columns))
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(random.uniform(-bound, bound, (rows, columns))))
            layer.bias.zero_()
        layers += [layer, _ACTIVATIONS[activation]()]
    return torch.nn.Sequential(*layers[:-1])


class Positive(torch.nn.Module):
    r"""A last layer for coefficients: $y = \mathrm{floor} + \log(1 + e^x)$, or $\mathrm{floor} + e^x$.

    Parameters
    ----------
    floor
        What the output stays above, in the units of the coefficient, >= 0.
    function
        ``"softplus"``, which grows linearly, or ``"exp"``, for coefficients that vary over orders of magnitude.
    """

    def __init__(self, floor: float = 0.0, function: str = "softplus") -> None:
        super().__init__()
        if function not in _POSITIVE:
            raise OptionError(f"unknown function {function!r}: choose {', '.join(_POSITIVE)}")
        if not (math.isfinite(floor) and floor >= 0.0):
            raise InputError(f"{floor=} has to be finite and not negative")
        self.floor, self.function = floor, function

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return positive values of the same shape. Collective: no."""
        return self.floor + _POSITIVE[self.function](values)


class Normalise(torch.nn.Module):
    r"""A first layer that brings inputs to order one: $y = (x - \mathrm{mean}) / \mathrm{scale}$, both fixed.

    Parameters
    ----------
    mean, scale
        Shape of one input, or a number for all its entries; in the units of the input, scale without zeros. They are
        stored with the weights.
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, mean: torch.Tensor | float, scale: torch.Tensor | float) -> None:
        super().__init__()
        mean, scale = torch.as_tensor(mean, dtype=torch.float64), torch.as_tensor(scale, dtype=torch.float64)
        if not torch.isfinite(mean).all() or not torch.isfinite(scale).all() or (scale == 0.0).any():
            raise InputError("mean and scale have to be finite, and scale without zeros")
        self.register_buffer("mean", mean.clone())
        self.register_buffer("scale", scale.clone())

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return the inputs, brought to order one. Collective: no."""
        return (values - self.mean) / self.scale
