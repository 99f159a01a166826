r"""Training of the learned smoother: two-level cycles of random media, and what conjugate gradients leave with them.

The loss is that of deep conjugate directions (Kaneda et al., ICML 2023), what exact line searches along the proposed
directions leave of an error, over several steps and in the norm of the matrix, so that the residuals of the Krylov
method itself are the data; no labels are needed.
"""

import dataclasses
import hashlib
import math
import os
import pathlib
from collections.abc import Iterator, Sequence

from mpi4py import MPI

import numpy as np

from pdeopt.conjugate_directions.grid_kernels import load_kernels
from pdeopt.conjugate_directions.grid_stencils import Lattice
from pdeopt.conjugate_directions.network import SmootherNetwork
from pdeopt.conjugate_directions.training_systems import CELLS, SystemSource
from pdeopt.conjugate_directions.two_levels import TwoLevels, TwoLevelSystem
from pdeopt.learn._torch import torch
from pdeopt.learn.trainer import Trainer, TrainerSettings, TrainingReport
from pdeopt.learn.weights import save_weights
from pdeopt.parallel import on_root
from pdeopt.report import InputError

__all__ = ["learned_shares", "smoother_weights", "train", "train_smoother", "two_levels"]

_DIMENSIONS = (3,)  # in the plane constants need as few iterations
_SYSTEMS = 480
_RATE, _EPOCHS, _BATCH = 2e-2, 12, 8
_CONSTANTS = (1.0, 0.5, 0.0, -0.25, -0.5, -0.75)  # swept for the model card


def smoother_weights(dimension: int) -> pathlib.Path:
    """Return where the weights for lattices of a dimension ship. Collective: no."""
    return pathlib.Path(__file__).with_name("weights") / f"grid_{dimension}d.safetensors"


def train(
    folder: str | os.PathLike[str], seed: int = 0, comm: MPI.Comm = MPI.COMM_WORLD
) -> Iterator[tuple[pathlib.Path, TrainingReport]]:
    """Train the weights that ship, one file after the other: what ``pdeopt train neural-multigrid`` does.

    Parameters
    ----------
    folder
        Where to write them.
    seed
        Of systems and first weights.
    comm
        Ranks, each of which takes a share of every batch.

    Yields
    ------
    path, report
        A file, and what its training did.

    Raises
    ------
    InputError
        If there is no such folder.

    Collective: yes.
    """
    if not on_root(comm, lambda: pathlib.Path(folder).is_dir()):
        raise InputError(f"no folder {os.fspath(folder)!r}: create it first, or give another with --output")
    settings = TrainerSettings(
        learning_rate=_RATE, schedule="cosine", epochs=_EPOCHS, batch_size=_BATCH, clip=1.0, seed=seed
    )
    for dimension in _DIMENSIONS:
        path = pathlib.Path(folder) / smoother_weights(dimension).name
        command = f"pdeopt train neural-multigrid --seed {seed}"
        yield path, train_smoother(dimension, path, settings, comm=comm, command=command)


def train_smoother(
    dimension: int,
    path: str | os.PathLike[str],
    settings: TrainerSettings,
    systems: int = _SYSTEMS,
    comm: MPI.Comm = MPI.COMM_WORLD,
    command: str = "",
) -> TrainingReport:
    """Train the learned smoother for lattices of a dimension, and write its weights with a model card.

    Parameters
    ----------
    dimension
        2 or 3.
    path
        The file to write; its folder exists.
    settings
        Of the training.
    systems
        How many matrices to train on; a quarter as many are held out.
    comm
        Ranks, each of which takes a share of every batch.
    command
        For the model card: what makes the file anew; by default this call.

    Collective: yes.
    """
    torch.manual_seed(settings.seed)
    network = SmootherNetwork(dimension)
    # Drawn by every rank alike, as systems hold factorisations that cannot be sent.
    training = SystemSource(dimension, settings.seed, "training").draw(systems)
    held_out = SystemSource(dimension, settings.seed, "held out").draw(max(systems // 4, 1))
    levels = two_levels(dimension)

    def loss(network: torch.nn.Module, batch: list[TwoLevelSystem]) -> torch.Tensor:
        return levels.loss(batch, learned_shares(network, levels, batch)).mean()

    report = Trainer(network, loss, settings, comm).fit(training, held_out)
    report = dataclasses.replace(report, training_data=_hash(training), validation_data=_hash(held_out))
    metric = on_root(comm, lambda: _metric(network, levels, held_out))
    architecture = {"dimension": dimension, "hidden": network.first.out_features}
    command = command or f"train_smoother({dimension}, path, {settings}, {systems})"
    save_weights(path, network, report.card("smoother of multigrid on lattices", architecture, command, metric), comm)
    return report


def two_levels(dimension: int) -> TwoLevels:
    """Return the cycles of lattices as they are trained on. Collective: no."""
    kernels = load_kernels(MPI.COMM_SELF, np.float64)
    return TwoLevels(Lattice((CELLS[dimension] + 1,) * dimension, kernels))


def learned_shares(network: torch.nn.Module, levels: TwoLevels, systems: Sequence[TwoLevelSystem]) -> torch.Tensor:
    """Return what the network makes of systems, shape (systems, points). Collective: no."""
    stencils = torch.from_numpy(np.stack([system.stencils for system in systems]))
    result: torch.Tensor = network(levels.couplings(stencils).float()).double()
    return result


def _hash(systems: Sequence[TwoLevelSystem]) -> str:
    return hashlib.sha256(b"".join(system.stencils.tobytes() for system in systems)).hexdigest()


def _metric(network: torch.nn.Module, levels: TwoLevels, systems: Sequence[TwoLevelSystem]) -> dict[str, float]:
    """Return the geometric means of the steps to reduce an error by e: by the network, by constants, by an oracle."""
    found = {}
    with torch.no_grad():
        shares = learned_shares(network, levels, systems)
        learned = float(levels.loss(systems, shares).mean())
        for constant in _CONSTANTS:
            found[constant] = levels.loss(systems, torch.full_like(shares, constant)).numpy()
    means = {constant: float(values.mean()) for constant, values in found.items()}
    best = min(means, key=lambda constant: means[constant])
    return {
        "steps, learned": math.exp(learned),
        "best constant": best,
        "steps, best constant": math.exp(means[best]),
        "steps, best constant of each matrix": math.exp(np.min(list(found.values()), axis=0).mean()),
    }
