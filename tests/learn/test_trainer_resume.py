"""An interrupted training goes on exactly: the same losses and weights, bit for bit, as one that was not."""

import dataclasses

from mpi4py import MPI

import pytest
from training_cases import flat, mean_square, regression_data, small_network

from pdeopt.learn._torch import torch
from pdeopt.learn.trainer import Trainer, TrainerSettings
from pdeopt.report import InputError

COMM = MPI.COMM_WORLD
SELF = MPI.COMM_SELF
EPOCHS = 6


class Killed(Exception):
    """Ends a training at some step."""


def killing_loss(calls, rank=0):
    """Return a loss that raises after so many calls, on one rank."""

    def loss(network, batch):
        nonlocal calls
        calls -= 1
        if calls < 0 and rank == COMM.rank:
            raise Killed
        return mean_square(network, batch)

    return loss


def train(settings, comm, loss=mean_square, dtype=torch.float64, validation=True):
    network = small_network(dropout=0.2).to(dtype)
    data, held_out = (
        tuple(part.to(dtype) for part in regression_data(count, name)) for count, name in ((10, "a"), (4, "b"))
    )
    report = Trainer(network, loss, settings, comm).fit(data, held_out if validation else None)
    return network, report


def same(first, second):
    """Whether two trainings have the same weights and history, bit for bit."""
    histories = ("training_losses", "validation_losses", "learning_rates")
    return (
        torch.equal(flat(first[0]), flat(second[0]))
        and all(getattr(first[1], name).tobytes() == getattr(second[1], name).tobytes() for name in histories)
        and (first[1].steps, first[1].best_epoch, first[1].stopped)
        == (second[1].steps, second[1].best_epoch, second[1].stopped)
    )


CASES = {
    "adam, cosine": TrainerSettings("Adam", {"amsgrad": True}, 0.02, "cosine", batch_size=4),
    "momentum, one_cycle": TrainerSettings("SGD", {"momentum": 0.9}, 0.1, "one_cycle", batch_size=4, clip=0.3),
    "adamw, plateau": TrainerSettings("AdamW", {}, 0.2, "plateau", {"patience": 0}, batch_size=5),
    "lbfgs": TrainerSettings("LBFGS", {"max_iter": 3, "line_search_fn": "strong_wolfe"}, 1.0),
    "prodigy": TrainerSettings("prodigy", {}, 1.0, batch_size=4),
    "schedule free": TrainerSettings("ScheduleFreeAdamW", {}, 0.02, batch_size=4),
    "soap, whose matrices are stored by columns": TrainerSettings("soap", {}, 0.01, batch_size=4),
    "kron, which draws random numbers": TrainerSettings("kron", {}, 0.01, batch_size=4),
    "lion": TrainerSettings("lion", {}, 0.01, "cosine", batch_size=4),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", CASES)
def test_a_training_killed_in_any_epoch_goes_on_exactly(name, dtype, tmp_path):
    settings = dataclasses.replace(CASES[name], epochs=EPOCHS, checkpoint_epochs=1)
    whole = train(settings, SELF, dtype=dtype)
    calls = [0]

    def counting(network, batch):
        calls[0] += 1
        return mean_square(network, batch)

    train(settings, SELF, counting, dtype)
    for kill in range(1, calls[0], 4):
        resumable = dataclasses.replace(settings, checkpoint=tmp_path / f"{kill}.safetensors")
        with pytest.raises(Killed):
            train(resumable, SELF, killing_loss(kill), dtype)
        assert same(train(resumable, SELF, dtype=dtype), whole)
        assert same(train(resumable, SELF, dtype=dtype), whole)  # a finished training is only looked up


def test_the_comparison_notices_another_seed(tmp_path):
    settings = dataclasses.replace(CASES["adam, cosine"], epochs=EPOCHS)
    assert same(train(settings, SELF), train(settings, SELF))
    assert not same(train(settings, SELF), train(dataclasses.replace(settings, seed=1), SELF))


@pytest.mark.parallel([1, 2, 3])
def test_a_training_killed_on_one_rank_goes_on_exactly(shared_tmp_path):
    settings = dataclasses.replace(CASES["adam, cosine"], epochs=EPOCHS, checkpoint_epochs=2)
    whole = train(settings, COMM)
    resumable = dataclasses.replace(settings, checkpoint=shared_tmp_path / "checkpoint.safetensors")
    with pytest.raises(Killed):
        train(resumable, COMM, killing_loss(13, rank=COMM.size - 1))
    resumed = train(resumable, COMM)
    assert all(COMM.allgather(same(resumed, whole)))
    alone = train(dataclasses.replace(resumable), SELF)  # and on another number of ranks: here it is only looked up
    assert all(COMM.allgather(torch.equal(flat(alone[0]), flat(whole[0]))))


def test_early_stopping_counts_over_an_interruption(tmp_path):
    settings = TrainerSettings("Adam", {}, 0.3, epochs=60, batch_size=5, patience=4, checkpoint_epochs=1)
    whole = train(settings, SELF)
    assert whole[1].stopped == "patience"
    resumable = dataclasses.replace(settings, checkpoint=tmp_path / "c.safetensors")
    with pytest.raises(Killed):
        train(resumable, SELF, killing_loss(3 * (len(whole[1].training_losses) - 1)))
    assert same(train(resumable, SELF), whole)
    assert same(train(resumable, SELF), whole)


def test_a_training_at_a_constant_rate_can_be_prolonged(tmp_path):
    settings = TrainerSettings("Adam", {}, 0.02, epochs=8, batch_size=4)
    whole = train(settings, SELF)
    path = tmp_path / "c.safetensors"
    train(dataclasses.replace(settings, epochs=3, checkpoint=path), SELF)
    assert same(train(dataclasses.replace(settings, checkpoint=path), SELF), whole)
    cosine = dataclasses.replace(settings, schedule="cosine", checkpoint=tmp_path / "d.safetensors")
    train(cosine, SELF)
    with pytest.raises(InputError, match="epochs 8 in the checkpoint, 9 now"):
        train(dataclasses.replace(cosine, epochs=9), SELF)


@pytest.mark.parallel([1, 2])
def test_a_checkpoint_of_another_training_or_a_damaged_one_is_refused(shared_tmp_path):
    path = shared_tmp_path / "c.safetensors"
    settings = TrainerSettings(epochs=2, batch_size=4, checkpoint=path)
    train(settings, COMM)
    changes = [
        ({"learning_rate": 0.5}, "learning_rate 0.001 in the checkpoint, 0.5 now"),
        ({"optimizer": "SGD"}, "optimizer Adam in the checkpoint, SGD now"),
        ({"optimizer_options": {"amsgrad": True}}, "optimizer_options: amsgrad nothing in the checkpoint, True now"),
        ({"seed": 4, "batch_size": 5}, "batch_size 4 in the checkpoint, 5 now; seed 0 in the checkpoint, 4 now"),
    ]
    for change, message in changes:
        with pytest.raises(InputError, match=message):
            train(dataclasses.replace(settings, **change), COMM)
    with pytest.raises(
        InputError, match=r"network: 0\.weight float64 \[6, 1\] in the checkpoint, float32 \[6, 1\] now"
    ):
        train(settings, COMM, dtype=torch.float32)
    with pytest.raises(InputError, match="validation samples 4 in the checkpoint, nothing now"):
        train(settings, COMM, validation=False)
    with pytest.raises(InputError, match="training data is not what it was"):
        Trainer(small_network(dropout=0.2), mean_square, settings, COMM).fit(regression_data(10, "other"))
    if COMM.rank == 0:
        content = bytearray(path.read_bytes())
        content[-3] ^= 16
        path.write_bytes(content)
    with pytest.raises(InputError, match="is not what was written"):
        train(settings, COMM)


def test_a_state_that_cannot_be_stored_is_named(tmp_path):
    class Odd(torch.optim.SGD):
        def step(self, closure=None):
            super().step()
            for group in self.param_groups:
                group["odd"] = object()

    import pdeopt.learn.trainer as module

    settings = TrainerSettings("SGD", epochs=1, checkpoint=tmp_path / "c.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "make_optimizer", lambda name, options, rate, parameters: Odd(parameters, lr=rate))
        with pytest.raises(InputError, match=r"state of optimiser Odd\.param_groups\.0\.odd is a object"):
            train(settings, SELF)
    assert list(tmp_path.iterdir()) == []
