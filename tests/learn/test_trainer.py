"""The training loop: the same steps on any number of ranks, limits, schedules, and what is left of it."""

import dataclasses
import gc
import pathlib
import random
import resource

from mpi4py import MPI

import numpy as np
import pytest
from training_cases import Scalar, flat, mean_square, regression_data, small_network

from pdeopt.learn._torch import torch
from pdeopt.learn.collective import Replicated, sum_over_ranks
from pdeopt.learn.trainer import Trainer, TrainerSettings
from pdeopt.learn.weights import load_weights, save_weights
from pdeopt.report import InputError

COMM = MPI.COMM_WORLD
SELF = MPI.COMM_SELF


def everywhere(condition):
    return COMM.allreduce(bool(condition), MPI.LAND)


# --- the same on any number of ranks ----------------------------------------------------------------------------------


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize(
    ("count", "settings"),
    [
        (11, TrainerSettings(epochs=3, batch_size=4, learning_rate=0.01, schedule="cosine", clip=0.5)),
        (7, TrainerSettings(epochs=4, batch_size=3, optimizer="SGD", learning_rate=0.05)),  # the last batch has one
        (2, TrainerSettings(epochs=5, optimizer="LBFGS", learning_rate=0.5)),  # fewer samples than ranks
        (8, TrainerSettings(epochs=6, batch_size=4, optimizer="kron", learning_rate=0.01)),  # draws random numbers
    ],
)
def test_a_step_is_the_one_that_a_single_rank_makes_with_the_whole_batch(count, settings):
    data, held_out = regression_data(count), regression_data(5, "test.held_out")
    reference = small_network()
    expected = Trainer(reference, mean_square, settings, SELF).fit(data, held_out)
    network = small_network(seed=COMM.rank)  # becomes that of rank 0
    report = Trainer(network, mean_square, settings, COMM).fit(data, held_out)
    assert everywhere(torch.allclose(flat(network), flat(reference), rtol=1e-12, atol=1e-12))
    assert report.steps == expected.steps
    assert everywhere(abs(report.validation_losses - expected.validation_losses).max() < 1e-12)
    assert len(set(COMM.allgather(flat(network).numpy().tobytes()))) == 1
    assert len(set(COMM.allgather(report.training_losses.tobytes()))) == 1


@pytest.mark.parallel([2, 3])
def test_a_step_makes_one_reduction():
    class CountingComm(MPI.Intracomm):
        reductions = 0

        def Allreduce(self, *arguments):
            self.reductions += 1
            return super().Allreduce(*arguments)

    def reductions(epochs):
        comm = CountingComm(COMM)
        settings = TrainerSettings(epochs=epochs, batch_size=5)
        Trainer(small_network(), mean_square, settings, comm).fit(regression_data(20))
        return comm.reductions

    assert reductions(3) - reductions(2) == 4 + 1  # one more compares the weights after the epoch


@pytest.mark.parallel([1, 2, 3])
def test_with_all_ranks_on_each_sample_the_steps_are_those_of_one_rank():
    """Each sample is a field of 12 values, spread over the ranks."""
    settings = TrainerSettings(epochs=4, batch_size=2, learning_rate=0.02)
    points, values = (part.reshape(5, 12) for part in regression_data(60))

    def loss(comm):
        def spread(network, batch):
            own_points, own_values = batch
            found = network(own_points.reshape(-1, 1)).reshape(own_points.shape)
            return sum_over_ranks(((found - own_values) ** 2).sum(), comm) / (12 * len(own_points))

        return spread

    reference = small_network()
    expected = Trainer(reference, loss(SELF), settings, SELF, mode="pde_parallel").fit((points, values))
    own = slice(12 * COMM.rank // COMM.size, 12 * (COMM.rank + 1) // COMM.size)
    network = small_network()
    trainer = Trainer(Replicated(network, COMM), loss(COMM), settings, COMM, mode="pde_parallel")
    report = trainer.fit((points[:, own], values[:, own]))
    assert everywhere(torch.allclose(flat(network), flat(reference), rtol=1e-12, atol=1e-12))
    assert everywhere(abs(report.training_losses - expected.training_losses).max() < 1e-13)


@pytest.mark.parallel([2, 3])
def test_gradients_that_differ_between_ranks_are_found_in_the_first_step():
    def loss(network, batch):
        return sum_over_ranks(mean_square(network, batch), COMM)

    own = regression_data(4, f"test.rank{COMM.rank}")
    network = small_network()
    before = flat(network)
    with pytest.raises(InputError, match=r"the gradient of '0\.weight' has to be equal.* wrap the network in pdeopt"):
        Trainer(network, loss, comm=COMM, mode="pde_parallel").fit(own)
    with pytest.raises(InputError, match=r"loss has to be equal .* sum_over_ranks"):
        Trainer(Replicated(network, COMM), mean_square, comm=COMM, mode="pde_parallel").fit(own)
    with pytest.raises(InputError, match="in data_parallel hand in the one inside"):
        Trainer(Replicated(network, COMM), mean_square, comm=COMM)
    with pytest.raises(InputError, match="training samples differ between the ranks"):
        Trainer(network, mean_square, comm=COMM).fit(own)
    with pytest.raises(InputError, match="training samples differ between the ranks"):
        Trainer(network, mean_square, comm=COMM, mode="pde_parallel").fit(regression_data(4 + COMM.rank))
    assert everywhere(torch.equal(flat(network), before))


@pytest.mark.parallel([2, 3])
def test_weights_that_drift_apart_are_found():
    network = small_network()

    def loss(network, batch):
        if COMM.rank == 1:
            with torch.no_grad():
                network[0].bias += 1e-6
        return mean_square(network, batch)

    with pytest.raises(InputError, match=r"'0\.bias' has to be equal on all ranks"):
        Trainer(network, loss, TrainerSettings(epochs=1), COMM).fit(regression_data(6))


# --- what a step does -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["tuple", "dict", "tensor", "list", "none"])
def test_samples_come_in_several_forms(form):
    points, values = regression_data(6)
    forms = {
        "tuple": ((points, values), mean_square),
        "dict": ({"x": points, "y": values}, lambda network, b: mean_square(network, (b["x"], b["y"]))),
        "tensor": (torch.cat([points, values], 1), lambda network, b: mean_square(network, b.split(1, 1))),
        "list": (
            [{"x": x, "y": y} for x, y in zip(points, values, strict=True)],
            lambda network, batch: sum(mean_square(network, (b["x"], b["y"])) for b in batch) / len(batch),
        ),
        "none": (None, lambda network, batch: mean_square(network, (points, values)) if batch is None else None),
    }
    samples, loss = forms[form]
    settings = TrainerSettings(epochs=3, batch_size=None if form == "none" else 4, shuffle=False)
    reference, network = small_network(), small_network()
    Trainer(network, loss, settings, SELF).fit(samples)
    Trainer(reference, mean_square, dataclasses.replace(settings), SELF).fit((points, values))
    assert torch.allclose(flat(network), flat(reference), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize(
    ("schedule", "options"),
    [
        ("constant", {}),
        ("cosine", {"eta_min": 1e-3}),
        ("one_cycle", {"pct_start": 0.4}),
        ("plateau", {"patience": 0, "threshold": 0.4}),
    ],
)
def test_rates_and_weights_are_those_of_a_loop_by_hand(schedule, options):
    data, epochs, rate = regression_data(8), 8, 0.3
    settings = TrainerSettings(
        "SGD", {"momentum": 0.8}, rate, schedule, options, epochs=epochs, batch_size=4, shuffle=False
    )
    network = small_network()
    report = Trainer(network, mean_square, settings, SELF).fit(data)

    reference = small_network()
    optimizer = torch.optim.SGD(reference.parameters(), lr=rate, momentum=0.8)
    schedules = torch.optim.lr_scheduler
    by_hand = {
        "constant": lambda: None,
        "cosine": lambda: schedules.CosineAnnealingLR(optimizer, 2 * epochs, **options),
        "one_cycle": lambda: schedules.OneCycleLR(optimizer, rate, total_steps=2 * epochs, **options),
        "plateau": lambda: schedules.ReduceLROnPlateau(optimizer, **options),
    }[schedule]()
    rates = []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        losses = []
        for start in (0, 4):
            optimizer.zero_grad()
            loss = mean_square(reference, tuple(part[start : start + 4] for part in data))
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if schedule in ("cosine", "one_cycle"):
                by_hand.step()
        if schedule == "plateau":
            by_hand.step(sum(losses) / 2)
    assert report.learning_rates.tolist() == rates
    assert schedule == "constant" or len(set(rates)) > 1
    assert torch.equal(flat(network), flat(reference))


def test_clipping_bounds_the_step():
    settings = TrainerSettings("SGD", learning_rate=1.0, clip=0.25, epochs=1)
    for slope, expected in ((100.0, 0.25), (0.1, 0.1)):
        network = Scalar(0.0)
        Trainer(network, lambda network, _, slope=slope: -slope * network(), settings, SELF).fit()
        assert network.value.item() == pytest.approx(expected, rel=1e-5)


def test_lbfgs_reaches_the_minimiser_of_a_quadratic():
    random = torch.Generator().manual_seed(3)
    root = torch.randn(6, 6, generator=random, dtype=torch.float64)
    matrix, right = root @ root.T + torch.eye(6), torch.randn(6, generator=random, dtype=torch.float64)
    network = torch.nn.Linear(6, 1, bias=False, dtype=torch.float64)
    options = {"tolerance_grad": 1e-13, "tolerance_change": 0.0}
    settings = TrainerSettings("lbfgs", options, 1.0, epochs=5)

    def quadratic(network, batch):
        x = network.weight[0]
        return 0.5 * x @ matrix @ x - right @ x

    report = Trainer(network, quadratic, settings, SELF).fit()
    exact = torch.linalg.solve(matrix, right)
    assert float((network.weight[0].detach() - exact).abs().max()) < 1e-10
    assert report.training_losses[-1] == pytest.approx(float(-0.5 * right @ exact), rel=1e-12)


def test_every_epoch_uses_each_sample_once_in_another_order():
    seen = []

    def loss(network, batch):
        seen.append(batch.reshape(-1).tolist())
        return network() ** 2 + 0.0 * batch.sum()

    samples = torch.arange(7.0)[:, None]
    Trainer(Scalar(1.0), loss, TrainerSettings(epochs=2, batch_size=3), SELF).fit(samples)
    first, second = seen[0] + seen[1] + seen[2], seen[3] + seen[4] + seen[5]
    assert [len(batch) for batch in seen] == [3, 3, 1, 3, 3, 1]
    assert sorted(first) == sorted(second) == samples.reshape(-1).tolist()
    assert first != second


def test_dropout_follows_from_the_seed_and_leaves_global_random_numbers_alone():
    def loss(network, batch):
        noise = random.random() + np.random.random()  # noqa: NPY002
        return mean_square(network, batch) * (1.0 + noise)

    def train(seed):
        states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
        network = small_network(dropout=0.5)
        Trainer(network, loss, TrainerSettings(epochs=2, seed=seed, shuffle=False), SELF).fit(regression_data(6))
        assert torch.equal(torch.get_rng_state(), states[0])
        assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]  # noqa: NPY002
        torch.rand(3)
        random.random()
        np.random.random()  # noqa: NPY002
        return flat(network)

    assert torch.equal(train(1), train(1))
    assert not torch.equal(train(1), train(2))


@pytest.mark.parallel([2, 3])
def test_ranks_drop_other_neurons_for_their_own_samples():
    masks = []

    def loss(network, batch):
        masks.append(torch.nn.functional.dropout(torch.ones(40), 0.5).tolist())
        return mean_square(network, batch)

    settings = TrainerSettings(epochs=2, batch_size=6)
    Trainer(small_network(), loss, settings, COMM).fit(regression_data(6))
    everyones = [tuple(mask) for of_rank in COMM.allgather(masks) for mask in of_rank]
    assert len(set(everyones)) == 2 * COMM.size


# --- when it stops ----------------------------------------------------------------------------------------------------


@pytest.mark.parallel([1, 2])
@pytest.mark.parametrize("optimizer", ["SGD", "ScheduleFreeAdamW"])
def test_training_stops_when_the_validation_loss_no_longer_falls_and_restores_the_best_weights(optimizer):
    network = Scalar(0.0)
    settings = TrainerSettings(optimizer, learning_rate=0.02, epochs=400, patience=5)

    def distance(network, batch):
        return ((network() - batch) ** 2).mean()

    target, held_out = torch.tensor([[1.0], [1.0]]), torch.tensor([[0.25], [0.75]])  # passes 0.5 on the way to 1
    report = Trainer(network, distance, settings, COMM).fit(target, held_out)
    assert report.stopped == "patience"
    losses = report.validation_losses
    assert len(losses) == report.best_epoch + 5
    assert losses[report.best_epoch - 1] == losses.min()
    value = distance(network, held_out).item()
    assert everywhere(value == pytest.approx(losses.min(), rel=1e-13))
    assert abs(network.value.item() - 0.5) < 0.03
    assert "(epoch" in str(report)


def test_a_time_limit_stops_before_the_epoch_that_would_exceed_it():
    import time

    def slow(network, batch):
        time.sleep(0.1)
        return network() ** 2

    report = Trainer(Scalar(1.0), slow, TrainerSettings(epochs=100, time_limit=0.55), SELF).fit()
    assert report.stopped == "time limit"
    assert 1 <= len(report.training_losses) <= 5
    assert report.seconds["total"] < 0.55


def test_no_epochs_leave_the_network_as_it_is():
    network = small_network()
    before = flat(network)
    report = Trainer(network, mean_square, TrainerSettings(epochs=0), SELF).fit(regression_data(3))
    assert torch.equal(flat(network), before)
    assert report.stopped == "epochs"
    assert report.steps == 0
    assert "epochs" in str(report)


# --- what is left of it -----------------------------------------------------------------------------------------------


def test_the_report_prints_as_a_table_and_becomes_a_model_card(tmp_path):
    network, data = small_network(), regression_data(10)
    settings = TrainerSettings(epochs=4, batch_size=5, seed=2, learning_rate=0.01)
    report = Trainer(network, mean_square, settings, SELF).fit(data, regression_data(4, "test.held_out"))
    text = str(report)
    for line in ("Adam, constant rate, data_parallel", "stopped by", "training loss, first -> last", "seconds total"):
        assert line in text
    card = report.card("sine", {"width": 6}, "pdeopt train sine", {"error": 0.5})
    save_weights(tmp_path / "sine.safetensors", network, card, SELF)
    assert load_weights(tmp_path / "sine.safetensors", small_network(1), SELF) == card
    assert card.seed == 2
    assert card.losses["best validation"] == report.validation_losses.min()
    assert len(card.training_data) == len(card.validation_data) == 64
    assert card.training_data != card.validation_data
    again = Trainer(small_network(), mean_square, settings, SELF).fit(regression_data(10))
    assert again.training_data == card.training_data


def test_a_terminal_gets_a_bar_and_a_file_does_not(monkeypatch, capsys):
    settings = TrainerSettings(epochs=3)
    Trainer(small_network(), mean_square, settings, SELF).fit(regression_data(3))
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")
    Trainer(small_network(), mean_square, settings, SELF).fit(regression_data(3))
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "training" in shown.err
    assert "3/3" in shown.err
    Trainer(small_network(), mean_square, dataclasses.replace(settings, progress=False), SELF).fit(regression_data(3))
    assert capsys.readouterr() == ("", "")


def resident_megabytes():
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def test_memory_does_not_grow_with_trainings(tmp_path):
    data = regression_data(40)

    def train(number):
        settings = TrainerSettings(epochs=3, batch_size=10, checkpoint=tmp_path / f"{number}", checkpoint_epochs=1)
        Trainer(small_network(), mean_square, settings, SELF).fit(data, data)

    for number in range(5):
        train(number)
    gc.collect()
    before = resident_megabytes()
    for number in range(5, 25):
        train(number)
    gc.collect()
    assert resident_megabytes() - before < 2.0
