"""Torch operations that communicate: first and second derivatives are those of one process that has all slices."""

from mpi4py import MPI

import numpy as np
import pytest

from pdeopt.learn._torch import torch
from pdeopt.learn.collective import Replicated, broadcast_weights, check_replicated, replicated, sum_over_ranks
from pdeopt.learn.layers import mlp
from pdeopt.parallel import random_stream
from pdeopt.report import InputError

COMM = MPI.COMM_WORLD


class CountingComm(MPI.Intracomm):
    """A communicator that counts the reductions of torch's operations."""

    reductions = 0

    def Allreduce(self, *arguments):
        self.reductions += 1
        return super().Allreduce(*arguments)


def slices(sizes, columns, name="test.slices"):
    """Return the slices of all ranks, the same on each."""
    random = random_stream(name)
    return [torch.from_numpy(random.standard_normal((size, columns))) for size in sizes]


def agree(a, b, tolerance=1e-13):
    a, b = a.detach(), b.detach()
    return float((a - b).abs().max()) <= tolerance * max(1.0, float(b.abs().max()))


def sizes_of_ranks(empty=None):
    return [0 if rank == empty else 3 + rank for rank in range(COMM.size)]


def distributed_loss(slice_, weights, comm):
    """A loss of a distributed tensor and a replicated one, nonlinear in both and in the sum."""
    local = torch.sin(slice_ @ replicated(weights, comm))
    total = sum_over_ranks((local**2).sum(0), comm)
    return (torch.log1p(total) * torch.cos(weights).sum(0)).sum()


def whole_loss(parts, weights):
    """The same by one process."""
    total = sum((torch.sin(part @ weights) ** 2).sum(0) for part in parts)
    return (torch.log1p(total) * torch.cos(weights).sum(0)).sum()


@pytest.mark.parallel([1, 2, 3])
def test_first_and_second_derivatives_are_those_of_one_process():
    parts = [part.requires_grad_() for part in slices(sizes_of_ranks(), 4)]
    start = slices([4], 2, "test.weights")[0]
    directions = slices(sizes_of_ranks(), 4, "test.directions")
    weight_direction = slices([4], 2, "test.weight_direction")[0]

    reference_weights = start.clone().requires_grad_()
    loss = whole_loss(parts, reference_weights)
    expected = torch.autograd.grad(loss, [*parts, reference_weights], create_graph=True)
    slope = sum((g * d).sum() for g, d in zip(expected, [*directions, weight_direction], strict=True))
    expected_second = torch.autograd.grad(slope, [*parts, reference_weights])

    own, weights = parts[COMM.rank].detach().clone().requires_grad_(), start.clone().requires_grad_()
    found_loss = distributed_loss(own, weights, COMM)
    found = torch.autograd.grad(found_loss, [own, weights], create_graph=True)
    slope = sum_over_ranks((found[0] * directions[COMM.rank]).sum(), COMM) + (found[1] * weight_direction).sum()
    found_second = torch.autograd.grad(slope, [own, weights])

    checks = [agree(found_loss.detach(), loss.detach())]
    checks += [agree(found[0], expected[COMM.rank]), agree(found[1], expected[-1])]
    checks += [agree(found_second[0], expected_second[COMM.rank]), agree(found_second[1], expected_second[-1])]
    assert COMM.allgather(checks) == [[True] * 5] * COMM.size
    check_replicated(found[1], COMM, "the gradient")
    check_replicated(found_second[1], COMM, "the second derivative")


@pytest.mark.parallel([2, 3])
def test_the_check_of_derivatives_notices_a_missing_reduction():
    parts = slices(sizes_of_ranks(), 4)
    start = slices([4], 2, "test.weights")[0]
    reference = start.clone().requires_grad_()
    whole_loss(parts, reference).backward()
    weights = start.clone().requires_grad_()
    local = torch.sin(parts[COMM.rank] @ weights)  # not through replicated()
    total = sum_over_ranks((local**2).sum(0), COMM)
    (torch.log1p(total) * torch.cos(weights).sum(0)).sum().backward()
    assert not any(COMM.allgather(agree(weights.grad, reference.grad, 1e-3)))
    with pytest.raises(InputError, match="the gradient has to be equal on all ranks"):
        check_replicated(weights.grad, COMM, "the gradient")


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_network_on_rows_of_each_rank_has_the_gradient_of_all_rows(dtype):
    empty = COMM.size - 1 if COMM.size > 1 else None
    parts = [part.to(dtype) for part in slices(sizes_of_ranks(empty), 3)]
    reference = mlp(3, 2, width=5, depth=2, seed=4, dtype=dtype)
    (torch.cat([reference(part) for part in parts]) ** 2).sum().backward()

    comm = CountingComm(COMM)
    wrapped = Replicated(mlp(3, 2, width=5, depth=2, seed=4, dtype=dtype), comm)
    comm.reductions = 0
    first = wrapped(parts[COMM.rank])
    second = wrapped(parts[COMM.rank] + 1.0)  # enters with weight zero: its reduction is made all the same
    (sum_over_ranks((first**2).sum(), COMM) + 0.0 * sum_over_ranks(second.sum(), COMM)).backward()
    assert comm.reductions == (2 if COMM.size > 1 else 0)
    tolerance = 1e-13 if dtype == torch.float64 else 1e-5
    pairs = zip(wrapped.network.parameters(), reference.parameters(), strict=True)
    close = [agree(own.grad, expected.grad, tolerance) for own, expected in pairs]
    assert all(COMM.allgather(all(close)))
    assert all(own.grad.dtype == dtype for own in wrapped.parameters())
    for name, parameter in wrapped.named_parameters():
        check_replicated(parameter.grad, COMM, name)


@pytest.mark.parallel([1, 2, 3])
def test_a_network_that_leaves_its_weights_aside_on_a_rank_without_rows_keeps_nobody_waiting():
    class Shortcut(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = mlp(2, 1, seed=1)

        def forward(self, rows):
            return self.inside(rows) if len(rows) else rows.new_zeros(0, 1)

    parts = slices(sizes_of_ranks(empty=0), 2)
    wrapped = Replicated(Shortcut(), COMM)
    sum_over_ranks(wrapped(parts[COMM.rank]).sum(), COMM).backward()
    reference = mlp(2, 1, seed=1)
    sum(reference(part).sum() for part in parts).backward()
    if COMM.size > 1:
        pairs = zip(wrapped.parameters(), reference.parameters(), strict=True)
        assert all(COMM.allgather(all(agree(own.grad, expected.grad) for own, expected in pairs)))


@pytest.mark.parallel([1, 2, 3])
def test_derivatives_with_respect_to_the_input_of_a_replicated_network():
    """The residual of a differential equation: the loss has second derivatives in it."""
    points = slices(sizes_of_ranks(), 1)

    def residual(network, rows):
        rows = rows.clone().requires_grad_()
        (slope,) = torch.autograd.grad(network(rows).sum(), rows, create_graph=True)
        return ((slope - torch.cos(rows)) ** 2).sum()

    reference = mlp(1, 1, width=4, depth=1)
    sum(residual(reference, rows) for rows in points).backward()
    network = mlp(1, 1, width=4, depth=1)
    wrapped = Replicated(network, COMM)
    sum_over_ranks(residual(wrapped, points[COMM.rank]), COMM).backward()
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in network.parameters()]
    expected = [torch.zeros_like(p) if p.grad is None else p.grad for p in reference.parameters()]
    assert all(COMM.allgather(all(agree(a, b) for a, b in zip(found, expected, strict=True))))


@pytest.mark.parallel([1, 2, 3])
def test_networks_become_that_of_rank_0():
    class Mixed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            value = COMM.rank + 1
            self.a = torch.nn.Parameter(torch.full((2, 3), 0.1 * value, dtype=torch.float32))
            self.b = torch.nn.Parameter(torch.full((), 0.1 * value, dtype=torch.float64))
            self.c = torch.nn.Parameter(torch.full((0,), 1.0, dtype=torch.float64))
            self.register_buffer("d", torch.tensor([value, 2], dtype=torch.int64))
            self.register_buffer("e", torch.tensor([COMM.rank == 0, False]))
            self.register_buffer("f", torch.full((3,), 0.1 * value, dtype=torch.bfloat16))

    network = Mixed()
    broadcast_weights(network, COMM)
    for name, tensor in network.state_dict().items():
        check_replicated(tensor, COMM, name)
    assert network.b.item() == 0.1
    assert network.d.tolist() == [1, 2]
    assert network.e.tolist() == [True, False]


@pytest.mark.parallel([2, 3])
def test_networks_of_other_shapes_are_refused_on_all_ranks():
    with pytest.raises(InputError, match="different structure"):
        broadcast_weights(mlp(1, 1, width=4 + (COMM.rank == 1)), COMM)


@pytest.mark.parallel([2, 3])
def test_the_message_names_the_ranks_that_differ():
    values = torch.arange(4.0, dtype=torch.float64)
    check_replicated(values, COMM, "values")
    last = COMM.size - 1
    changed = torch.nextafter(values, values + 1) if COMM.rank == last else values
    with pytest.raises(InputError, match=rf"^values has .* on rank {last} "):
        check_replicated(changed, COMM, "values")
    with pytest.raises(InputError, match="on rank 1"):
        check_replicated(values[: 4 - (COMM.rank == 1)], COMM, "values")


def test_integers_have_no_gradient():
    for operation in (sum_over_ranks, replicated):
        with pytest.raises(InputError, match=r"torch\.int64"):
            operation(torch.arange(3), COMM)


def test_a_frozen_network_and_evaluation_without_gradients_work():
    network = mlp(2, 1)
    rows = torch.from_numpy(np.ones((3, 2)))
    expected = network(rows).detach()
    wrapped = Replicated(network, COMM)
    with torch.no_grad():
        assert torch.equal(wrapped(rows), expected)
    network.requires_grad_(False)
    assert torch.equal(wrapped(rows), expected)
    assert not wrapped(rows).requires_grad
