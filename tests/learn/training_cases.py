"""Networks, data and losses that the tests of the trainer share."""

from pdeopt.learn._torch import torch
from pdeopt.learn.layers import mlp
from pdeopt.parallel import random_stream


def regression_data(count, name="test.regression"):
    """Return points of the unit interval and the values of a sine there, both of shape ``(count, 1)``."""
    points = torch.from_numpy(random_stream(name).uniform(-1, 1, (count, 1)))
    return points, torch.sin(3.0 * points)


def mean_square(network, batch):
    points, values = batch
    return ((network(points) - values) ** 2).mean()


def small_network(seed=0, dropout=0.0):
    layers = list(mlp(1, 1, width=6, depth=1, seed=seed))
    if dropout:
        layers.insert(2, torch.nn.Dropout(dropout))
    return torch.nn.Sequential(*layers)


class Scalar(torch.nn.Module):
    """A network that is one number."""

    def __init__(self, value=0.0):
        super().__init__()
        self.value = torch.nn.Parameter(torch.tensor(value, dtype=torch.float64))

    def forward(self):
        return self.value


def flat(network):
    return torch.cat([parameter.detach().reshape(-1) for parameter in network.parameters()])
