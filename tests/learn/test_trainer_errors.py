"""What goes wrong in a training: every error is raised on all ranks, and says what and where."""

from mpi4py import MPI

import pytest
from training_cases import Scalar, flat, mean_square, regression_data, small_network

from pdeopt.learn._torch import torch
from pdeopt.learn.trainer import Trainer, TrainerSettings
from pdeopt.report import ConvergenceError, InputError, OptionError, SolveReport

COMM = MPI.COMM_WORLD
SELF = MPI.COMM_SELF


def everywhere(condition):
    return COMM.allreduce(bool(condition), MPI.LAND)


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("mode", ["data_parallel", "pde_parallel"])
def test_an_error_of_the_loss_on_one_rank_is_raised_on_all(mode):
    calls = 0

    def loss(network, batch):
        nonlocal calls
        calls += 1
        if COMM.rank == COMM.size - 1 and calls > 2:
            raise FileNotFoundError(2, "No such file or directory", "sample.bin")
        return mean_square(network, batch)

    settings = TrainerSettings(epochs=3, batch_size=4)
    with pytest.raises(FileNotFoundError, match=r"sample\.bin"):
        Trainer(small_network(), loss, settings, COMM, mode).fit(regression_data(8))


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("optimizer", ["Adam", "LBFGS"])
@pytest.mark.parametrize("mode", ["data_parallel", "pde_parallel"])
def test_nan_in_a_sample_is_named_and_the_weights_are_the_last_good_ones(optimizer, mode):
    points, values = regression_data(12)
    values[7] = torch.nan
    seen = []

    def loss(network, batch):
        seen.append(flat(network).clone())
        return mean_square(network, batch)

    network = small_network()
    settings = TrainerSettings(optimizer, epochs=3, batch_size=4, shuffle=False, learning_rate=0.05)
    with pytest.raises(ConvergenceError, match="epoch 1, step 2, sample 7: loss or gradient is NaN") as caught:
        Trainer(network, loss, settings, COMM, mode).fit((points, values))
    assert everywhere(torch.isfinite(flat(network)).all())
    assert everywhere(any(torch.equal(flat(network), weights) for weights in seen))
    assert isinstance(caught.value.report, SolveReport)
    assert caught.value.report.stopped == "error"


@pytest.mark.parallel([1, 2])
def test_a_gradient_that_is_not_finite_and_a_run_that_blows_up_end_in_finite_weights():
    def root(network, batch):
        return torch.sqrt(network()) + 0.0 * batch.sum()  # finite at 0, with an infinite slope

    network = Scalar(0.0)
    with pytest.raises(ConvergenceError, match="epoch 1, step 1, sample 0"):
        Trainer(network, root, comm=COMM).fit(torch.ones(2, 1))
    assert everywhere(network.value.item() == 0.0)

    network = Scalar(1.0)
    settings = TrainerSettings("SGD", learning_rate=10.0, epochs=500)
    with pytest.raises(ConvergenceError, match=r"epoch \d+, step \d+, sample 0"):
        Trainer(network, lambda network, batch: network() ** 4 + 0.0 * batch.sum(), settings, COMM).fit(
            torch.ones(2, 1)
        )
    assert everywhere(torch.isfinite(network.value) and abs(network.value.item()) > 1.0)


def test_a_validation_loss_that_is_not_finite_is_an_error():
    points, values = regression_data(4)
    bad = values.clone()
    bad[2] = torch.inf
    with pytest.raises(ConvergenceError, match="epoch 1, validation, sample 2"):
        Trainer(small_network(), mean_square, comm=SELF).fit((points, values), (points, bad))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "Adm"}, "unknown optimiser 'Adm': did you mean 'adam'"),
        ({"optimizer_options": {"beta": (0.9, 0.99)}}, "Adam has no option 'beta': did you mean 'betas'"),
        ({"optimizer_options": {"lr": 0.1}}, "'lr' is set by the trainer"),
        ({"optimizer": "lion", "optimizer_options": {"bettas": 1}}, "Lion has no option 'bettas'"),
        ({"schedule": "cosin"}, "unknown schedule 'cosin': did you mean 'cosine'"),
        ({"schedule": "cosine", "schedule_options": {"etamin": 0.0}}, "cosine has no option 'etamin'"),
        ({"schedule": "one_cycle", "schedule_options": {"max_lr": 1.0}}, "'max_lr' is set by the trainer"),
        ({"schedule_options": {"eta_min": 0.0}}, "constant schedule has no options"),
        ({"batch_size": 0}, "batch_size has to be >= 1"),
        ({"learning_rate": float("nan")}, "learning_rate has to be positive and finite"),
        ({"clip": -1.0}, "clip has to be positive"),
        ({"epochs": -1}, "epochs has to be >= 0"),
    ],
)
def test_settings_that_are_wrong_are_named(options, message):
    with pytest.raises(OptionError, match=message):
        TrainerSettings(**options)


def test_what_does_not_fit_together_is_named():
    data = regression_data(4)
    cases = [
        (OptionError, "patience needs validation samples", {"patience": 2}),
        (OptionError, "clip does not go with LBFGS", {"optimizer": "LBFGS", "clip": 1.0}),
        (OptionError, "Adam cannot be built .* Invalid beta", {"optimizer_options": {"betas": (2.0, 0.9)}}),
        (OptionError, "one_cycle cannot be built", {"schedule": "one_cycle", "schedule_options": {"pct_start": 3.0}}),
    ]
    for error, message, options in cases:
        with pytest.raises(error, match=message):
            Trainer(small_network(), mean_square, TrainerSettings(**options), SELF).fit(data)
    with pytest.raises(OptionError, match="unknown mode 'data_paralel': did you mean 'data_parallel'"):
        Trainer(small_network(), mean_square, comm=SELF, mode="data_paralel")
    with pytest.raises(InputError, match="nothing to train"):
        Trainer(small_network().requires_grad_(False), mean_square, comm=SELF)
    losses = {
        "does not depend on the network": lambda network, batch: torch.tensor(1.0),
        r"one entry, not \(4, 1\)": lambda network, batch: network(batch[0]),
        "one entry, not float": lambda network, batch: 1.0,
    }
    for message, loss in losses.items():
        with pytest.raises(InputError, match=message):
            Trainer(small_network(), loss, comm=SELF).fit(data)
    samples = {
        "need the same length": (torch.zeros(3, 1), torch.zeros(4, 1)),
        "no samples": torch.zeros(0, 1),
        "not generator": (x for x in data),
    }
    for message, given in samples.items():
        with pytest.raises(InputError, match=message):
            Trainer(small_network(), mean_square, comm=SELF).fit(given)
