"""Families and sequences of linear systems: symmetric, positive definite, seeded, and as different as they say."""

import math

from mpi4py import MPI
from petsc4py import PETSc

import dolfinx
import numpy as np
import pytest
import scipy.sparse
import ufl

from pdeopt.bench.linear_domains import DOMAINS, domain_mesh
from pdeopt.bench.linear_families import FAMILIES
from pdeopt.bench.linear_sequences import SEQUENCES
from pdeopt.report import InputError

COMM = MPI.COMM_WORLD
SMALL = {"square": 16, "cube": 8}
# One family of each domain and of each kind of equation; together they have every kind of coefficient.
CHOSEN = (
    "square, checker",
    "cube, anisotropy",
    "L-shape, lognormal, degree 2",
    "perforated plate, inclusions, elasticity",
    "heat sink, inclusions",
    "bracket, lognormal",
)


def small_case(name, seed=0):
    return FAMILIES[name].case(COMM, SMALL.get(FAMILIES[name].domain, 300), seed)


def dense(A):
    rows, columns, values = A.getValuesCSR()
    return scipy.sparse.csr_matrix((values, columns, rows), shape=A.getSize()).toarray()


@pytest.mark.parametrize("name", CHOSEN)
def test_matrices_are_symmetric_and_positive_definite(name):
    case = small_case(name)
    A = dense(case.A)
    assert np.abs(A - A.T).max() <= 1e-14 * np.abs(A).max()
    assert np.linalg.eigvalsh(A)[0] > 0.0
    assert case.A.isSymmetricKnown() == (True, True)
    assert len(case.coordinates) * case.A.getBlockSize() == case.tags["unknowns"]
    case.destroy()


def test_rigid_bodies_cost_no_energy_where_nothing_is_held():
    family = FAMILIES["perforated plate, inclusions, elasticity"]
    case = small_case(family.name)
    modes = np.column_stack([mode.array_r for mode in case.A.getNearNullSpace().getVecs()])
    assert modes.shape[1] == 3
    residual = dense(case.A) @ modes
    x = case.coordinates[:, 0]
    # Rows at the held side are the identity's; columns were removed in the rows of their neighbours.
    free = np.repeat(x > 0.15, 2)
    assert np.abs(residual[free]).max() <= 1e-12 * np.abs(dense(case.A)).max()
    case.destroy()


def test_checker_jumps_by_a_million_in_blocks():
    case = small_case("square, checker")
    values = case.assembler.coefficient.x.array
    assert set(np.round(np.log10(values), 12)) == {-3.0, 3.0}
    blocks = np.floor(16 * case.assembler.centres[:2]).astype(int)
    for block in np.unique(blocks, axis=1).T:
        assert len(set(values[np.all(blocks == block[:, None], axis=0)])) == 1
    case.destroy()


def test_anisotropy_has_the_ratio_and_the_direction_of_its_tags():
    for seed in range(4):
        case = small_case("square, anisotropy", seed)
        eigenvalues, vectors = np.linalg.eigh(case.assembler.tensor.value)
        ratio, angle = case.tags["ratio"], math.radians(case.tags["angle [degrees]"])
        assert 10.0 <= ratio <= 1e4
        np.testing.assert_allclose(eigenvalues, [1.0 / ratio, 1.0], rtol=1e-9)
        assert abs(vectors[:, 1] @ [math.cos(angle), math.sin(angle)]) == pytest.approx(1.0)
        case.destroy()


def test_lognormal_fields_have_the_variance_four():
    deviations = []
    for seed in range(6):
        case = small_case("square, lognormal", seed)
        deviations.append(np.log(case.assembler.coefficient.x.array))
        case.destroy()
    assert np.std(deviations) == pytest.approx(2.0, rel=0.3)


@pytest.mark.parametrize("name", [name for name in DOMAINS if name not in SMALL])
def test_meshes_by_gmsh_have_about_the_vertices_and_the_measure_asked_for(name):
    mesh = domain_mesh(name, 1000, COMM)
    assert 700 <= mesh.topology.index_map(0).size_global <= 2500
    domain = DOMAINS[name]
    volume = dolfinx.fem.assemble_scalar(dolfinx.fem.form(1.0 * ufl.dx(mesh)))
    assert volume == pytest.approx(domain.measure, rel=0.05)
    np.testing.assert_allclose([mesh.geometry.x.min(), mesh.geometry.x.max()], [0.0, 1.0], atol=1e-9)


@pytest.mark.parametrize("name", ["perforated plate, inclusions", "perforated plate, inclusions, elasticity"])
def test_rounding_leaves_room_below_the_residual_that_is_asked_for(name):
    """For noise, rounding in A x grows like the root of the unknowns: at 4e5 it must be below 1e-8 of b."""
    case = small_case(name)
    A, b = dense(case.A), np.array(case.b.array_r)
    x = np.linalg.solve(A, b)
    rounding = np.finfo(float).eps / 2.0 * np.linalg.norm(np.abs(A) @ np.abs(x)) / np.linalg.norm(b)
    assert rounding * np.sqrt(4e5 / len(b)) < 5e-9
    case.destroy()


def test_unknown_domains_and_sizes_are_refused():
    with pytest.raises(InputError, match="there is no domain 'disc': choose one of square"):
        domain_mesh("disc", 8, COMM)
    with pytest.raises(InputError, match="size = 0 of the domain 'cube'"):
        FAMILIES["cube, checker"].case(COMM, 0, 0)


@pytest.mark.parallel([1, 2, 3])
def test_a_seed_gives_one_matrix_on_any_number_of_ranks():
    norms = {}
    for comm, seed in ((COMM, 7), (MPI.COMM_SELF, 7), (COMM, 8)):
        for name, size in (("square, lognormal", 12), ("bracket, inclusions", 200)):
            case = FAMILIES[name].case(comm, size, seed)
            norms.setdefault((comm is COMM, seed), []).append([case.A.norm(), case.b.norm(), case.A.getSize()[0]])
            case.destroy()
    np.testing.assert_allclose(norms[True, 7], norms[False, 7], rtol=1e-9)
    assert np.abs(np.divide(norms[True, 8], norms[True, 7])[:, :2] - 1.0).min() > 1e-3


@pytest.mark.parallel([1, 2])
@pytest.mark.parametrize("name", list(SEQUENCES))
def test_sequences_change_one_symmetric_positive_definite_matrix(name):
    norms, last = [], None
    for A, b in SEQUENCES[name](COMM, 8, 4, 0):
        assert last is None or A.handle == last
        last = A.handle
        norms.append(A.norm())
        assert b.norm() > 0.0
        x, y = A.createVecs()
        x.setRandom()
        y.setRandom()
        Ax, Ay = x.duplicate(), x.duplicate()
        A.mult(x, Ax)
        A.mult(y, Ay)
        assert x.dot(Ay) == pytest.approx(y.dot(Ax), rel=1e-12)
        assert x.dot(Ax) > 0.0
        for vector in (x, y, Ax, Ay):
            vector.destroy()
    assert len(norms) == 4
    assert len({round(norm, 12) for norm in norms}) == 4


def test_newton_sequence_converges_within_a_load():
    norms = [b.norm() for _, b in SEQUENCES["Newton"](COMM, 16, 5, 0)]
    assert norms[4] < 1e-2 * norms[1]


def test_the_design_keeps_its_volume_and_cools():
    compliances = []
    generator = SEQUENCES["design"](COMM, 16, 12, 0)
    for A, b in generator:
        x = b.duplicate()
        ksp = PETSc.KSP().create(COMM)
        ksp.setOperators(A)
        ksp.setType("preonly")
        ksp.getPC().setType("cholesky")
        ksp.solve(b, x)
        compliances.append(b.dot(x))
        rho = generator.gi_frame.f_locals["rho"]
        assert np.mean(rho) == pytest.approx(0.4, rel=1e-6)
        for handle in (ksp, x):
            handle.destroy()
    assert compliances[-1] < 0.5 * compliances[0]
