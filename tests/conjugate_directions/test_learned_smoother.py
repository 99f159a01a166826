"""The smoother that a network chooses: what it predicts, that ranks agree, files of weights, and what stands behind."""

import logging
import pathlib

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np
import pytest
import torch
from grid_problems import Diffusion, solve
from test_grid_smoother import HEXAHEDRA, TRIANGLES, random_matrix, slab

from pdeopt.conjugate_directions import CycleSettings, GridMultigrid, MultigridSettings, NeuralMultigrid
from pdeopt.conjugate_directions.grid_network import SmootherNetwork, load_network
from pdeopt.conjugate_directions.grid_smoother import Factors
from pdeopt.learn.weights import ModelCard, save_weights
from pdeopt.report import InputError


class Network(torch.nn.Module):
    """Random weights, or those of a constant."""

    def __init__(self, dimensions, constant=None, units=13):
        super().__init__()
        self.first = torch.nn.Linear(3**dimensions - 1, units)
        self.second = torch.nn.Linear(units, 1)
        generator = torch.Generator().manual_seed(2)
        for tensor in self.parameters():
            torch.nn.init.normal_(tensor, std=0.4, generator=generator)
        if constant is not None:
            torch.nn.init.zeros_(self.second.weight)
            torch.nn.init.constant_(self.second.bias, np.arctanh(constant))


def written(folder, network):
    """The path of a file with a network's weights, on all ranks."""
    path = MPI.COMM_WORLD.bcast(str(folder / "smoother.safetensors"))
    save_weights(path, network, ModelCard("a network for tests", metric={"iterations saved": 0.25}))
    return path


def tensors_of(network):
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize(("shape", "only"), [((9, 37), TRIANGLES), ((5, 4, 21), HEXAHEDRA)])
def test_prediction_is_the_networks(shape, only):
    lattice, stencils, _ = random_matrix(shape, only)
    lattice.inner(stencils[0])[2, 1] = 0.0  # no stencil to look at
    network = Network(len(shape))
    axes = tuple(range(len(shape)))
    ahead = [stencils[h] for h in range(1, len(lattice.halves))]
    behind = [np.roll(stencils[h], lattice.halves[h], axes) for h in range(1, len(lattice.halves))]
    diagonal = lattice.inner(stencils[0])
    inputs = lattice.inner(np.array([*ahead, *behind])) * np.divide(
        1.0, diagonal, where=diagonal > 0.0, out=np.zeros_like(diagonal)
    )
    with torch.no_grad():
        network.double()
        wanted = torch.tanh(network.second(torch.relu(network.first(torch.tensor(inputs).movedim(0, -1))))).squeeze(-1)
        network.float()
    found = SmootherNetwork(tensors_of(network)).predict(lattice, stencils)
    assert np.abs(lattice.inner(found) - wanted.numpy()).max() < 1e-12
    assert np.ptp(wanted.numpy()) > 0.1


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize(("shape", "only"), [((11, 5), TRIANGLES), ((9, 4, 3), HEXAHEDRA)])
def test_a_network_that_knows_one_number_is_that_constant(shape, only):
    whole, stencils, _ = random_matrix(shape, only)
    slabs, part, own = slab(whole, stencils)
    network = SmootherNetwork(tensors_of(Network(len(shape), constant=-0.5)))
    predicted, constant = Factors(part, own, slabs, network), Factors(part, own, slabs, -0.5)
    assert np.abs(predicted.values - constant.values).max() < 1e-6
    assert np.abs(predicted.inverse - constant.inverse).max() < 1e-6 * constant.inverse.max()
    share = Factors(part, own, slabs, 1.0)
    assert np.abs(share.inverse - constant.inverse).max() > 1e-2 * constant.inverse.max()


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize(("cell", "counts"), [("triangle", (60, 61)), ("tetrahedron", (12, 12, 23))])
def test_ranks_agree_and_the_cycle_stays_symmetric(cell, counts, tmp_path):
    problem = Diffusion(cell, counts, strong=(4.0, -1.0, 2.0)[: len(counts)])
    path = written(tmp_path, Network(len(counts)))
    body = GridMultigrid(problem.matrix, problem.places, CycleSettings(weights=path), dtype=np.float64)
    assert "a network for tests (iterations saved 0.25)" in body.quantities()["smoother"]
    iterations, residual = solve(problem.matrix, problem.right, body)
    assert residual < 1e-8
    assert iterations == pytest.approx({2: 4, 3: 6}[len(counts)], abs=1)  # of one rank
    x, y, image, other = (problem.right.duplicate() for _ in range(4))
    x.array_w[:], y.array_w[:] = np.sin(37.0 * problem.places @ [1.0, 3.0, 9.0]), problem.right.array_r
    body.apply(x, image)
    body.apply(y, other)
    assert abs(image.dot(y) - other.dot(x)) < 1e-12 * image.norm() * y.norm()
    assert image.dot(x) > 0.0


@pytest.mark.parallel([1, 2])
def test_files_that_cannot_be_used_are_named(make_ksp, tmp_path):
    comm, problem = MPI.COMM_WORLD, Diffusion("triangle", (12, 12))
    assert load_network(comm, "constant", 2) is None
    path = written(tmp_path, Network(2))
    assert load_network(comm, path, 2).dimensions == 2
    content = pathlib.Path(path).read_bytes()
    cases = {
        "missing": (None, "cannot be read"),
        "garbage": (b"weights", "damaged"),
        "short": (content[:-4], "damaged"),
        "flipped": (content[:-1] + bytes([content[-1] ^ 1]), "SHA-256"),
    }
    for name, (damaged, sentence) in cases.items():
        bad = comm.bcast(str(tmp_path / name))
        if damaged is not None and comm.rank == 0:
            pathlib.Path(bad).write_bytes(damaged)
        with pytest.raises(InputError, match=sentence) as caught:
            load_network(comm, bad, 2)
        assert bad in str(caught.value)
        context = NeuralMultigrid(MultigridSettings(weights=bad, small=0, coordinates=problem.space))
        ksp, x = make_ksp(problem, context), problem.right.duplicate()
        ksp.solve(problem.right, x)
        assert ksp.getConvergedReason() == PETSc.KSP.ConvergedReason.DIVERGED_PCSETUP_FAILED
        assert bad in context.report.advice
    with pytest.raises(InputError, match="in 3D the network has"):
        load_network(comm, path, 3)


@pytest.fixture
def make_ksp():
    """Conjugate gradients with a context as preconditioner, destroyed in the end."""
    made = []

    def make(problem, context, strict=False):
        ksp = PETSc.KSP().create(problem.matrix.getComm())
        made.append(ksp)
        ksp.setOperators(problem.matrix)
        ksp.setType("cg")
        ksp.setNormType(PETSc.KSP.NormType.UNPRECONDITIONED)
        ksp.setTolerances(rtol=1e-8, max_it=100)
        ksp.setErrorIfNotConverged(strict)
        ksp.getPC().setType("python")
        ksp.getPC().setPythonContext(context)
        return ksp

    yield make
    for ksp in made:
        ksp.destroy()


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("strict", [False, True])
def test_the_constant_stands_behind_weights_that_fail(strict, make_ksp, tmp_path, caplog):
    problem = Diffusion("tetrahedron", (14, 14, 14), jump=1e6)
    x, rest = problem.right.duplicate(), problem.right.duplicate()
    path = written(tmp_path, Network(3, constant=-0.99999))
    for weights, fallbacks in (("constant", "none"), (path, "2 x indefinite cycle")):
        context = NeuralMultigrid(MultigridSettings("grid", weights=weights, coordinates=problem.space))
        ksp = make_ksp(problem, context, strict)
        caplog.clear()
        for _ in range(4):
            problem.matrix.stateIncrease()  # new values, for all that PETSc knows
            with caplog.at_level(logging.INFO):
                ksp.solve(problem.right, x)
            assert ksp.getConvergedReason() > 0
            assert ksp.getErrorIfNotConverged() == strict
            assert not ksp.getInitialGuessNonzero()
            problem.matrix.mult(x, rest)
            rest.aypx(-1.0, problem.right)
            assert rest.norm() < 1e-8 * problem.right.norm()
        assert context.report.quantities["fallbacks"] == fallbacks
        assert caplog.text.count("going on with the constants") == (0 if weights == "constant" else 2)
    assert context.report.quantities["smoother"].endswith("keep 1.0")  # after two failures
    safe = GridMultigrid(problem.matrix, problem.places, CycleSettings())
    assert ksp.getIterationNumber() == solve(problem.matrix, problem.right, safe)[0]


@pytest.mark.parallel([1, 2])
def test_solves_that_fail_otherwise_are_said_to(make_ksp):
    problem = Diffusion("triangle", (24, 20))
    for weights, limit in (("learned", 1e-20), ("nowhere.safetensors", 1e5)):
        context = NeuralMultigrid(MultigridSettings("grid", weights=weights, coordinates=problem.space))
        ksp, x = make_ksp(problem, context, strict=True), problem.right.duplicate()
        ksp.setTolerances(divtol=limit)
        for _ in range(2):
            problem.matrix.stateIncrease()
            with pytest.raises(PETSc.Error):
                ksp.solve(problem.right, x)
            assert ksp.getErrorIfNotConverged()
