"""The published network and its data: sizes, spectra, no overlap, and what it proposes is verified by the loop."""

from mpi4py import MPI
from petsc4py import PETSc

import dolfinx
import numpy as np
import pytest
import scipy.sparse

import pdeopt
from pdeopt.conjugate_directions import DirectionSettings
from pdeopt.problems.diffusion import poisson
from pdeopt.report import InputError

torch = pytest.importorskip("torch")

from pdeopt.conjugate_directions import NetworkProposal, published  # noqa: E402
from pdeopt.learn.trainer import TrainerSettings  # noqa: E402


def laplacian(*shape):
    """Return the five- or seven-point Laplacian on a grid."""
    total = scipy.sparse.csr_matrix((1, 1))
    for size in shape:
        line = scipy.sparse.diags([-1.0, 2.0, -1.0], [-1, 0, 1], (size, size))
        total = scipy.sparse.kronsum(line, total, format="csr")
    return total


@pytest.mark.parametrize(("shape", "weights"), [((8, 8, 8), 97_457), ((7, 10), None)])
def test_the_network_has_the_published_size_and_keeps_the_grid(shape, weights):
    network = published.PublishedNetwork(len(shape))
    found = network(torch.ones((2, *shape)))
    assert found.shape == (2, *shape)
    assert weights is None or sum(p.numel() for p in network.parameters()) == weights


def test_ritz_vectors_are_orthonormal_and_right_hand_sides_rich_in_low_modes():
    matrix = laplacian(10, 12)
    values, vectors = published.lanczos(matrix, 60)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(60), atol=1e-12)
    np.testing.assert_allclose(vectors.T @ (matrix @ vectors), np.diag(values), atol=1e-10)
    exact = np.linalg.eigvalsh(matrix.toarray())
    np.testing.assert_allclose(values[[0, -1]], exact[[0, -1]], rtol=1e-4)
    sides = published.right_hand_sides(values, vectors, 500)
    np.testing.assert_allclose(np.linalg.norm(sides, axis=1), 1.0, rtol=1e-6)
    shares = ((sides @ vectors) ** 2).mean(axis=0)
    assert shares[:33].mean() == pytest.approx(81 * shares[33:].mean(), rel=0.2)
    with pytest.raises(InputError, match="121 Lanczos steps"):
        published.lanczos(matrix, 121)


@pytest.mark.alone
def test_training_lowers_the_loss_on_samples_it_has_not_seen():
    matrix, shape = laplacian(10, 10), (10, 10)
    sides = published.right_hand_sides(*published.lanczos(matrix, 60), 80)
    assert len({side.tobytes() for side in sides}) == 80
    settings = TrainerSettings(learning_rate=1e-3, batch_size=10, epochs=6, progress=False)
    _, report = published.train_published(matrix, shape, sides, settings)
    assert report.training_data != report.validation_data
    assert report.quantities["samples"] == 72
    assert report.validation_losses[-1] < 0.8 * report.validation_losses[0]


def test_the_order_of_unknowns_is_found_from_their_places():
    places = np.stack(np.meshgrid(np.linspace(0, 1, 3), np.linspace(0, 1, 4), [0.0], indexing="ij"), -1).reshape(-1, 3)
    shuffled = np.random.default_rng(0).permutation(12)
    shape, order = published.lattice_order(places[shuffled])
    assert shape == (3, 4)
    np.testing.assert_array_equal(places[shuffled][order], places)
    with pytest.raises(InputError, match="fill no grid"):
        published.lattice_order(places[:-1])


@pytest.mark.parametrize("dimension", [2, 3])
def test_whatever_a_network_proposes_the_answer_is_right(dimension):
    cells = (12,) * dimension
    make = dolfinx.mesh.create_unit_square if dimension == 2 else dolfinx.mesh.create_unit_cube
    problem = poisson(make(MPI.COMM_SELF, *cells))
    A, b = problem.assemble()
    proposal = NetworkProposal(published.PublishedNetwork(dimension), problem.space.tabulate_dof_coordinates())
    context = pdeopt.DeepConjugateDirections(DirectionSettings(window=10))
    ksp = PETSc.KSP().create(MPI.COMM_SELF)
    ksp.setOperators(A)
    ksp.setTolerances(rtol=1e-8)
    ksp.setType("python")
    ksp.setPythonContext(context)
    ksp.getPC().setType("python")
    ksp.getPC().setPythonContext(proposal)
    x = b.duplicate()
    ksp.solve(b, x)
    assert ksp.getConvergedReason() > 0
    assert (b - A * x).norm() <= 1e-8 * b.norm()
    assert proposal.applications == context.proposals > 0
    assert sum(context.fallbacks.values()) == 1
