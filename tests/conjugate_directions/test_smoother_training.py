"""The learned smoother's training: two-level cycles in torch beside the compiled ones, derivatives, files."""

import hashlib

from mpi4py import MPI

import numpy as np
import pytest

from pdeopt.bench import linear_grid_weights
from pdeopt.bench.linear_families import FAMILIES
from pdeopt.cli import UsageError, app
from pdeopt.conjugate_directions import GridMultigrid
from pdeopt.conjugate_directions.grid_coarsening import coarsen
from pdeopt.conjugate_directions.grid_slabs import Slabs
from pdeopt.conjugate_directions.training import smoother_weights, train, train_smoother
from pdeopt.conjugate_directions.training_systems import CELLS, SystemSource, interpolation
from pdeopt.conjugate_directions.two_levels import TwoLevels
from pdeopt.learn import TrainerSettings
from pdeopt.report import InputError

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("keep", [1.0, 0.0, -0.4])
@pytest.mark.parametrize(
    ("family", "cells"), [("square, anisotropy", 12), ("cube, anisotropy", 6), ("cube, checker", 6)]
)
def test_cycle_agrees_with_an_independent_one(family: str, cells: int, keep: float) -> None:
    case = FAMILIES[family].case(MPI.COMM_SELF, cells, 3)
    reference = linear_grid_weights.system(case, keep)
    layout = GridMultigrid(case.A, case.coordinates, dtype=np.float64).layout
    stencils, _ = layout.stencils(case.A)
    coarse, weights, _ = coarsen(layout.lattice, stencils, Slabs(MPI.COMM_SELF, layout.starts))
    case.destroy()
    levels = TwoLevels(layout.lattice.shape)
    r = np.random.default_rng(0).standard_normal((levels.points, 3))
    expected = linear_grid_weights.TwoLevels(reference, reference.values).run(r)[0]

    _, cycle, _ = levels.cycle(
        torch.from_numpy(stencils.reshape(1, len(stencils), -1)),
        torch.from_numpy(interpolation(layout.lattice, coarse, weights)[None]),
        torch.full((1, levels.points), keep, dtype=torch.float64),
    )

    np.testing.assert_allclose(
        cycle(torch.from_numpy(r)[None])[0].numpy(), expected, rtol=0, atol=1e-10 * abs(expected).max()
    )


@pytest.mark.parametrize("dimension", [2, 3])
def test_derivative_of_the_loss_is_of_second_order(dimension: int) -> None:
    levels = TwoLevels((CELLS[dimension] + 1,) * dimension)
    stencils, transfer = map(torch.from_numpy, SystemSource(dimension, 1).draw(2))
    generator = torch.Generator().manual_seed(0)
    keep = 0.5 + 0.3 * torch.rand(2, levels.points, generator=generator, dtype=torch.float64)
    direction = torch.randn(keep.shape, generator=generator, dtype=torch.float64)

    def loss(share: torch.Tensor) -> torch.Tensor:
        return levels.loss(stencils, transfer, share, 0).sum()

    keep.requires_grad_()
    value = loss(keep)
    value.backward()
    slope = float((keep.grad * direction).sum())
    with torch.no_grad():
        remainders = [abs(float(loss(keep + h * direction) - value) - h * slope) for h in (4e-3, 2e-3, 1e-3)]
    orders = np.log2(np.array(remainders[:-1]) / remainders[1:])
    assert orders.min() > 1.8


def test_training_lowers_the_loss_on_systems_that_it_has_not_seen(tmp_path) -> None:
    settings = TrainerSettings(learning_rate=2e-2, epochs=6, batch_size=5, seed=4, progress=False)
    path = tmp_path / "grid_2d.safetensors"

    report = train_smoother(2, path, settings, systems=20)

    assert report.validation_losses.min() < report.validation_losses[0] - 1e-3
    from safetensors.numpy import load_file

    tensors = load_file(path)
    assert {name: value.shape for name, value in tensors.items()} == {
        "first.weight": (16, 8), "first.bias": (16,), "second.weight": (1, 16), "second.bias": (1,),
    }  # fmt: skip


def test_training_and_held_out_systems_do_not_overlap() -> None:
    def hashes(purpose: str) -> set[str]:
        stencils, _ = SystemSource(2, 0, purpose).draw(30)
        return {hashlib.sha256(system.tobytes()).hexdigest() for system in stencils}

    training, held_out = hashes("training"), hashes("held out")
    assert len(training) == len(held_out) == 30
    assert not training & held_out


def test_train_needs_a_folder(tmp_path) -> None:
    with pytest.raises(InputError, match="no folder .*missing"):
        next(train(tmp_path / "missing"))


def test_command_line_names_what_can_be_trained(capsys) -> None:
    assert app(["train"]) == 0
    assert capsys.readouterr().out.strip() == "neural-multigrid"
    with pytest.raises(UsageError, match="did you mean 'neural-multigrid'"):
        app(["train", "neural-multigird"], exit_on_error=False)


@pytest.mark.parametrize("dimension", [2, 3])
def test_shipped_weights_beat_every_constant_on_held_out_systems(dimension: int) -> None:
    from pdeopt.conjugate_directions.network import SmootherNetwork
    from pdeopt.learn.weights import load_weights

    network = SmootherNetwork(dimension)
    card = load_weights(smoother_weights(dimension), network)
    levels = TwoLevels((CELLS[dimension] + 1,) * dimension)
    stencils, transfer = map(torch.from_numpy, SystemSource(dimension, 0, "test").draw(15))

    with torch.no_grad():
        learned = levels.loss(stencils, transfer, network(levels.couplings(stencils).float()).double(), 0).mean()
        constants = [
            levels.loss(stencils, transfer, torch.full((15, levels.points), keep, dtype=torch.float64), 0).mean()
            for keep in (1.0, 0.0, -0.25, -0.5)
        ]

    assert learned < min(constants)
    assert card.command == "pdeopt train neural-multigrid --seed 0"
    assert card.training_data != card.validation_data
