"""The learned smoother's training: two-level cycles in torch beside independent ones, derivatives, files."""

import hashlib
import pathlib

from mpi4py import MPI

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from pdeopt.bench import linear_grid_weights
from pdeopt.bench.linear_families import FAMILIES
from pdeopt.cli import UsageError, app
from pdeopt.conjugate_directions import GridMultigrid
from pdeopt.conjugate_directions.grid_slabs import Slabs
from pdeopt.conjugate_directions.network import SmootherNetwork
from pdeopt.conjugate_directions.training import learned_shares, smoother_weights, train, train_smoother, two_levels
from pdeopt.conjugate_directions.training_systems import SystemSource, two_level_system
from pdeopt.conjugate_directions.two_levels import TwoLevels
from pdeopt.learn import TrainerSettings
from pdeopt.learn.weights import load_weights
from pdeopt.report import InputError

CASES = [("square, anisotropy", 12), ("cube, anisotropy", 6), ("cube, checker", 6)]


@pytest.mark.parametrize("keep", [1.0, 0.0, -0.4])
@pytest.mark.parametrize(("family", "cells"), CASES)
def test_cycle_agrees_with_an_independent_one(family: str, cells: int, keep: float) -> None:
    case = FAMILIES[family].case(MPI.COMM_SELF, cells, 3)
    reference = linear_grid_weights.system(case, keep)
    layout = GridMultigrid(case.A, case.coordinates, dtype=np.float64).layout
    lattice, stencils, _ = layout.stencils(case.A)
    case.destroy()
    r = np.random.default_rng(0).standard_normal((lattice.points, 3))
    expected = linear_grid_weights.TwoLevels(reference, reference.values).run(r)[0]

    levels = TwoLevels(lattice)
    slabs = Slabs(MPI.COMM_SELF, layout.starts)
    system = two_level_system(lattice, stencils, slabs, np.random.default_rng(0))
    shares = torch.full((1, lattice.points), keep, dtype=torch.float64)
    upper, inverse = levels.factorise([system], shares)
    padded = torch.zeros(3, system.stencils.shape[1], dtype=torch.float64)
    padded[:, levels.inner] = torch.from_numpy(r.T)
    _, cycle = levels.cycle(system, upper[0], inverse[0])
    found = cycle(padded)[:, levels.inner].numpy().T

    np.testing.assert_allclose(found, expected, rtol=0.0, atol=1e-10 * np.abs(expected).max())


@pytest.mark.parametrize("dimension", [2, 3])
def test_remainder_of_the_derivative_is_of_second_order(dimension: int) -> None:
    levels, systems = two_levels(dimension), SystemSource(dimension, 0).draw(5)[4:]  # errors stay above rounding
    generator = torch.Generator().manual_seed(0)
    keep = 0.5 + 0.3 * torch.rand(1, len(levels.inner), generator=generator, dtype=torch.float64)
    direction = torch.randn(keep.shape, generator=generator, dtype=torch.float64)
    keep.requires_grad_()
    value = levels.loss(systems, keep).sum()
    value.backward()
    slope = float((keep.grad * direction).sum())

    with torch.no_grad():
        values = [float(levels.loss(systems, keep + h * direction).sum() - value) for h in (4e-2, 2e-2, 1e-2)]
    remainders = [abs(change - h * slope) for change, h in zip(values, (4e-2, 2e-2, 1e-2), strict=True)]
    assert np.log2(np.array(remainders[:-1]) / remainders[1:]).min() > 1.8


def test_training_lowers_the_loss_on_systems_that_it_has_not_seen(tmp_path) -> None:
    settings = TrainerSettings(learning_rate=1e-2, epochs=3, batch_size=4, seed=4, progress=False)
    path = tmp_path / "grid_2d.safetensors"

    report = train_smoother(2, path, settings, systems=20)

    assert report.validation_losses.min() < report.validation_losses[0]
    assert {name: value.shape for name, value in load_file(path).items()} == {
        "first.weight": (16, 8), "first.bias": (16,), "second.weight": (1, 16), "second.bias": (1,),
    }  # fmt: skip


@pytest.mark.parallel([1, 2, 3])
def test_ranks_share_the_training(tmp_path) -> None:
    settings = TrainerSettings(learning_rate=1e-2, epochs=2, batch_size=6, progress=False)
    own, common = tmp_path / "own.safetensors", pathlib.Path(MPI.COMM_WORLD.bcast(str(tmp_path / "common.safetensors")))

    train_smoother(2, own, settings, systems=6, comm=MPI.COMM_SELF)
    train_smoother(2, common, settings, systems=6)

    MPI.COMM_WORLD.barrier()
    alone, shared = load_file(own), load_file(common)
    for name in alone:
        np.testing.assert_allclose(shared[name], alone[name], rtol=1e-4, atol=1e-5)


def test_training_and_held_out_systems_do_not_overlap() -> None:
    def hashes(purpose: str) -> set[str]:
        systems = SystemSource(2, 0, purpose).draw(30)
        return {hashlib.sha256(system.stencils.tobytes()).hexdigest() for system in systems}

    training, held_out = hashes("training"), hashes("held out")
    assert len(training) == len(held_out) == 30
    assert not training & held_out


def test_train_needs_a_folder(tmp_path) -> None:
    with pytest.raises(InputError, match=r"'.*missing': create it first"):
        next(train(tmp_path / "missing"))


def test_command_line_names_what_can_be_trained(capsys) -> None:
    assert app(["train"], result_action="return_value") == 0
    assert capsys.readouterr().out.strip() == "neural-multigrid"
    with pytest.raises(UsageError, match="did you mean 'neural-multigrid'"):
        app(["train", "neural-multigird"], exit_on_error=False)


@pytest.mark.parametrize("dimension", [3])
def test_shipped_weights_beat_every_constant_on_systems_that_nobody_has_seen(dimension: int) -> None:
    network = SmootherNetwork(dimension)
    card = load_weights(smoother_weights(dimension), network)
    levels, systems = two_levels(dimension), SystemSource(dimension, 0, "test").draw(15)

    with torch.no_grad():
        shares = learned_shares(network, levels, systems)
        learned = float(levels.loss(systems, shares).mean())
        constants = [float(levels.loss(systems, torch.full_like(shares, keep)).mean()) for keep in (1, 0, -0.25, -0.5)]

    assert learned < min(constants)
    assert card.command == "pdeopt train neural-multigrid --seed 0"
    assert len(card.training_data) == len(card.validation_data) == 64
    assert card.training_data != card.validation_data
