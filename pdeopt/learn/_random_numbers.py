"""Global random numbers for the time of a training: what losses, dropout and some optimisers draw from.

Losses draw other numbers on each rank where the ranks have other samples. What an optimiser draws has to be equal on
all ranks, or their weights drift apart. So each is seeded anew before every step, and nothing has to be stored.
"""

import contextlib
import random
from collections.abc import Iterator, Sequence

import numpy as np

from pdeopt.learn._torch import torch


@contextlib.contextmanager
def generators_restored(devices: Sequence[int]) -> Iterator[None]:
    """Leave the generators of torch, NumPy and Python afterwards as they were. Collective: no."""
    of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)  # noqa: NPY002


def seed_generators(seed: int, devices: Sequence[int]) -> None:
    """Seed the generators of torch, NumPy and Python. Collective: no."""
    torch.default_generator.manual_seed(seed)  # torch.manual_seed formats a stack trace every time
    if devices:
        torch.cuda.manual_seed_all(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)
