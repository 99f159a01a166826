"""Weights and model cards: what is read is what was written, or an error on all ranks that says what is wrong."""

import json
import os

from mpi4py import MPI

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import safetensors.torch

from pdeopt.learn._torch import torch
from pdeopt.learn.collective import Replicated, check_replicated, content_of
from pdeopt.learn.layers import Normalise, mlp
from pdeopt.learn.weights import ModelCard, load_weights, package_versions, save_weights
from pdeopt.report import InputError

COMM = MPI.COMM_WORLD
SELF = MPI.COMM_SELF

CARD = ModelCard(
    name="flux of a checkerboard",
    architecture={"inputs": 2, "outputs": 1, "width": 4, "activation": "tanh"},
    command="pdeopt train flux --seed 3",
    seed=3,
    seconds=12.25,
    metric={"relative error": 1.25e-3, "worst": float("inf")},
    training_data="ab" * 32,
    validation_data="cd" * 32,
    versions={"torch": "2.6"},
    losses={"epochs": 7, "first": 0.5, "last": 0.1 + 0.2},
)
DTYPES = {
    torch.float64: np.float64,
    torch.float32: np.float32,
    torch.float16: np.float16,
    torch.bfloat16: np.int16,
    torch.int64: np.int64,
    torch.uint8: np.uint8,
}


class Bag(torch.nn.Module):
    """A network that is nothing but tensors."""

    def __init__(self, tensors):
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)


def network(seed=0, width=4):
    return torch.nn.Sequential(Normalise(torch.zeros(2), 2.0), mlp(2, 1, width=width, depth=1, seed=seed))


@pytest.mark.parallel([1, 2, 3])
def test_weights_and_card_come_back_on_all_ranks(shared_tmp_path):
    path = shared_tmp_path / "flux.safetensors"
    written = network(seed=5)
    save_weights(path, written, CARD, COMM)
    read = network(seed=COMM.rank)
    assert load_weights(path, read, COMM) == CARD
    assert all(torch.equal(a, b) for a, b in zip(read.parameters(), written.parameters(), strict=True))
    assert COMM.bcast([entry.name for entry in shared_tmp_path.iterdir()]) == ["flux.safetensors"]


@pytest.mark.parallel([1, 2, 3])
def test_only_the_weights_of_rank_0_are_written_and_a_wrapper_is_left_out(shared_tmp_path):
    path = shared_tmp_path / "weights.safetensors"
    save_weights(path, network(seed=COMM.rank), CARD, COMM)
    read = Replicated(network(seed=9), COMM)
    load_weights(path, read, COMM)
    assert torch.equal(read.network[1][0].weight, network(seed=0)[1][0].weight)
    check_replicated(read.network[1][0].weight, COMM, "weight")


@pytest.mark.parallel([1, 2, 3])
def test_what_is_wrong_is_said_on_all_ranks_and_the_network_stays_as_it_was(shared_tmp_path):
    path = shared_tmp_path / "weights.safetensors"
    with pytest.raises(InputError, match=r"missing/weights.safetensors cannot be written"):
        save_weights(shared_tmp_path / "missing" / "weights.safetensors", network(), CARD, COMM)
    with pytest.raises(InputError, match=r"weights.safetensors cannot be read: No such file"):
        load_weights(path, network(), COMM)
    save_weights(path, network(seed=1), CARD, COMM)

    own = network(seed=2, width=5)
    before = [tensor.clone() for tensor in own.state_dict().values()]
    with pytest.raises(InputError, match=r"tensor '1\.0\.weight' has shape \(4, 2\), in the network \(5, 2\)"):
        load_weights(path, own, COMM)
    with pytest.raises(InputError, match=r"tensor '1\.0\.weight' is torch\.float64, in the network torch\.float32"):
        load_weights(path, torch.nn.Sequential(network()[0], network()[1].float()), COMM)
    with pytest.raises(InputError, match=r"has no tensor '0\.0\.weight'"):
        load_weights(path, torch.nn.Sequential(mlp(2, 1, depth=0)), COMM)
    with pytest.raises(InputError, match=r"has a tensor '1\.0\.bias', which the network has not"):
        load_weights(path, torch.nn.Sequential(network()[0]), COMM)
    if COMM.rank == 0:
        path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match="is damaged, cut off"):
        load_weights(path, own, COMM)
    assert all(torch.equal(a, b) for a, b in zip(own.state_dict().values(), before, strict=True))


def test_any_flipped_bit_is_found(tmp_path):
    path, damaged = tmp_path / "weights.safetensors", tmp_path / "damaged.safetensors"
    save_weights(path, network(seed=1), CARD, SELF)
    content = path.read_bytes()
    own = network(seed=2)
    random = np.random.default_rng(0)
    header = 8 + int.from_bytes(content[:8], "little")
    places = [*range(8), *random.integers(8, header, 150), *random.integers(header, len(content), 60)]
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1 << random.integers(8)
        damaged.write_bytes(flipped)
        with pytest.raises(InputError):
            load_weights(damaged, own, SELF)
    for length in (0, 4, 8, 40, header, len(content) - 1):
        damaged.write_bytes(content[:length])
        with pytest.raises(InputError, match="damaged"):
            load_weights(damaged, own, SELF)
    assert torch.equal(own[1][0].weight, network(seed=2)[1][0].weight)


def test_files_of_other_programs_are_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(dict(network().state_dict()), path)
    with pytest.raises(InputError, match="was not written by pdeopt"):
        load_weights(path, network(), SELF)
    path.write_bytes(os.urandom(400))
    with pytest.raises(InputError, match="no safetensors file"):
        load_weights(path, network(), SELF)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_weights(path, network(seed=1), CARD, SELF)
    before = path.read_bytes()
    with pytest.raises(InputError, match="JSON cannot express"):
        save_weights(path, network(seed=2), ModelCard("x", architecture={"layer": object()}), SELF)
    with pytest.raises(InputError, match="cannot be written"):
        save_weights(tmp_path, network(seed=2), CARD, SELF)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(data=st.data())
def test_tensors_of_any_shape_and_type_come_back_bit_for_bit(tmp_path_factory, data):
    tensors = {}
    for number in range(data.draw(st.integers(0, 4))):
        dtype = data.draw(st.sampled_from(sorted(DTYPES, key=str)))
        shape = data.draw(st.lists(st.integers(0, 4), max_size=3))
        count = int(np.prod(shape)) * np.dtype(DTYPES[dtype]).itemsize
        content = data.draw(st.binary(min_size=count, max_size=count))
        values = np.frombuffer(content, DTYPES[dtype]).reshape(shape).copy()
        tensor = torch.from_numpy(values)
        tensors[f"t{number}"] = tensor.view(dtype) if dtype == torch.bfloat16 else tensor
        if len(shape) == 2 and data.draw(st.booleans()):
            tensors[f"t{number}"] = tensors[f"t{number}"].T  # not contiguous
    text = data.draw(st.text(max_size=20))
    path = tmp_path_factory.mktemp("weights") / "bag.safetensors"
    card = ModelCard(text, architecture={text: [1, None, text]}, seconds=data.draw(st.floats(allow_nan=False)))
    save_weights(path, Bag(tensors), card, SELF)
    own = Bag({name: torch.zeros_like(tensor) for name, tensor in tensors.items()})
    assert load_weights(path, own, SELF) == card
    for name, tensor in tensors.items():
        assert np.array_equal(content_of(own.get_buffer(name)), content_of(tensor))


def test_weights_that_are_shared_stay_shared(tmp_path):
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
            self.b.weight = self.a.weight

    written, read = Tied(), Tied()
    save_weights(tmp_path / "tied.safetensors", written, CARD, SELF)
    load_weights(tmp_path / "tied.safetensors", read, SELF)
    assert read.a.weight is read.b.weight
    assert torch.equal(read.b.weight, written.a.weight)


def test_the_header_is_plain_json_that_other_programs_can_read(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_weights(path, network(), CARD, SELF)
    with safetensors.safe_open(path, framework="np") as stream:
        assert set(stream.keys()) == set(network().state_dict())
        card = json.loads(stream.metadata()["pdeopt"])["card"]
    assert card["command"] == CARD.command
    assert card["metric"]["relative error"] == 1.25e-3


def test_the_card_prints_as_a_table_and_versions_are_those_installed():
    text = str(CARD)
    assert "command          pdeopt train flux --seed 3" in text
    assert "metric           relative error 0.00125, worst inf" in text
    assert "training data    abab" in text
    assert "versions" not in str(ModelCard("x"))
    assert package_versions()["torch"] == torch.__version__.partition("+")[0]
