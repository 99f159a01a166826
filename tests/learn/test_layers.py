"""Pieces of networks: sizes, seeds, ranges, and errors that name the choices."""

import math

import pytest

from pdeopt.learn._torch import torch
from pdeopt.learn.layers import Normalise, Positive, mlp
from pdeopt.report import InputError, OptionError


def test_weights_follow_from_the_seed_and_leave_torchs_random_numbers_alone():
    state = torch.get_rng_state()
    first, second, other = mlp(3, 2, seed=1), mlp(3, 2, seed=1), mlp(3, 2, seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first[0].weight, other[0].weight)


def test_sizes_and_range_of_the_weights():
    network = mlp(3, 2, width=200, depth=2, activation="silu", dtype=torch.float32)
    shapes = [tuple(layer.weight.shape) for layer in network if isinstance(layer, torch.nn.Linear)]
    assert shapes == [(200, 3), (200, 200), (2, 200)]
    bound = math.sqrt(6 / 400)
    weight = network[2].weight.detach()
    assert float(weight.abs().max()) <= bound
    assert float(weight.std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)  # of the uniform distribution
    assert weight.dtype == torch.float32
    assert len(mlp(1, 1, depth=0)) == 1


def test_mistakes_are_named():
    with pytest.raises(OptionError, match="'tan': choose elu, gelu, relu, sigmoid, silu, softplus, tanh"):
        mlp(1, 1, activation="tan")
    with pytest.raises(InputError, match="width=0"):
        mlp(1, 1, width=0)
    with pytest.raises(OptionError, match="'square': choose softplus, exp"):
        Positive(function="square")
    with pytest.raises(InputError, match="floor=-1"):
        Positive(-1.0)
    with pytest.raises(InputError, match="scale without zeros"):
        Normalise(0.0, torch.tensor([1.0, 0.0]))


@pytest.mark.parametrize(("function", "at_zero"), [("softplus", math.log(2)), ("exp", 1.0)])
def test_coefficients_stay_above_the_floor(function, at_zero):
    layer = Positive(0.25, function)
    values = torch.tensor([-50.0, 0.0, 3.0], dtype=torch.float64)
    found = layer(values)
    assert float(found.min()) >= 0.25
    assert float(found[1]) == pytest.approx(0.25 + at_zero, rel=1e-15)
    assert torch.autograd.gradcheck(layer, values[1:].requires_grad_())


def test_inputs_are_brought_to_order_one_and_the_numbers_are_stored_with_the_weights():
    random = torch.Generator().manual_seed(0)
    samples = 3.0 + torch.tensor([1e-3, 1e4]) * torch.randn(500, 2, generator=random, dtype=torch.float64)
    layer = Normalise(samples.mean(0), samples.std(0))
    found = layer(samples)
    assert float(found.mean(0).abs().max()) < 1e-9
    assert float((found.std(0) - 1).abs().max()) < 1e-12
    assert set(layer.state_dict()) == {"mean", "scale"}
