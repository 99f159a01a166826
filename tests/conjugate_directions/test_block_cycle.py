"""The compiled cycle for blocks of unknowns: Galerkin products, a coarsest level that is exact, and new values."""

from mpi4py import MPI
from petsc4py import PETSc

import dolfinx
import dolfinx.fem.petsc
import numpy as np
import pytest
import scipy.sparse as sparse
import ufl

from pdeopt.bench.linear_families import FAMILIES
from pdeopt.conjugate_directions import MultigridSettings, NeuralMultigrid
from pdeopt.conjugate_directions.algebraic_hierarchy import Constants
from pdeopt.conjugate_directions.block_cycle import BlockCycle, fits
from pdeopt.problems import rigid_body_modes


@pytest.fixture(scope="module", params=["perforated plate", "bracket"])
def case(request):
    case = FAMILIES[f"{request.param}, inclusions, elasticity"].case(MPI.COMM_SELF, 400, 1)
    yield case
    case.destroy()


def as_scipy(blocks, rows, columns):
    data = blocks.values.reshape(-1, rows, columns)
    return sparse.bsr_matrix((data, blocks.columns, blocks.start))


def error_of_identity(case, cycle):
    """Return abs(x - M A x) / abs(x) for a random x."""
    x, image, back = (case.b.duplicate() for _ in range(3))
    x.array[:] = np.random.default_rng(0).standard_normal(x.getSize())
    case.A.mult(x, image)
    cycle.apply(image, back)
    return np.linalg.norm(back.array_r - x.array_r) / np.linalg.norm(x.array_r)


def test_coarse_matrices_are_galerkin_products(case):
    assert fits(case.A)
    cycle = BlockCycle(case.A, Constants(coarse_size=60), singular=False)
    assert len(cycle.sizes) >= 3
    for fine, coarse in zip(cycle._levels[:-1], cycle._levels[1:], strict=True):
        A, P = as_scipy(fine.matrix, fine.s, fine.s), as_scipy(fine.interpolation, fine.s, fine.m)
        A.resize(P.shape[0], P.shape[0])
        product = (P.T @ A @ P).tocsr()
        found = as_scipy(coarse.matrix, coarse.s, coarse.s).tocsr()
        difference = abs(product - found)
        unused = np.flatnonzero(product.diagonal() == 0.0)  # such unknowns got a one
        difference = difference.tolil()
        difference[unused, unused] = 0.0
        assert difference.tocsr().max() <= 1e-12 * abs(product).max()


@pytest.mark.parametrize("case", ["perforated plate"], indirect=True)
def test_one_level_is_the_inverse(case):
    """Up to single precision, in which the inverse is kept."""
    cycle = BlockCycle(case.A, Constants(coarse_size=10**6), singular=False)
    assert error_of_identity(case, cycle) <= 1e-2
    assert cycle.sizes == [case.A.getSize()[0]]


def test_new_values_keep_interpolations(case):
    """Of twice the matrix, the cycle with the same interpolations is half of the former."""
    cycle = BlockCycle(case.A, Constants(coarse_size=60), singular=False)
    before, after = case.b.duplicate(), case.b.duplicate()
    cycle.apply(case.b, before)
    case.A.scale(2.0)
    cycle.renew()
    cycle.apply(case.b, after)
    case.A.scale(0.5)
    np.testing.assert_allclose(2.0 * after.array_r, before.array_r, rtol=1e-10)


@pytest.mark.parametrize("cells", [(24, 24), (5, 5, 5)])
def test_floating_body_is_solved(cells):
    """Nothing is held: rotations and shifts are in the kernel, and rounding on the coarsest level does no harm."""
    mesh = (dolfinx.mesh.create_unit_square if len(cells) == 2 else dolfinx.mesh.create_unit_cube)(
        MPI.COMM_SELF, *cells
    )
    space = dolfinx.fem.functionspace(mesh, ("Lagrange", 1, (len(cells),)))
    u, v = ufl.TrialFunction(space), ufl.TestFunction(space)
    A = dolfinx.fem.petsc.assemble_matrix(
        dolfinx.fem.form(ufl.inner(ufl.sym(ufl.grad(u)), ufl.sym(ufl.grad(v))) * ufl.dx)
    )
    A.assemble()
    modes = rigid_body_modes(space)
    null = PETSc.NullSpace().create(vectors=[mode.x.petsc_vec for mode in modes], comm=mesh.comm)
    A.setNullSpace(null)
    A.setNearNullSpace(null)
    x, b = A.createVecs()
    b.array[:] = np.random.default_rng(0).standard_normal(b.getSize())
    null.remove(b)
    ksp = PETSc.KSP().create(mesh.comm)
    ksp.setOperators(A)
    ksp.setType("cg")
    ksp.setTolerances(rtol=1e-8, max_it=40)
    ksp.getPC().setType("python")
    context = NeuralMultigrid(MultigridSettings("algebraic", coarse_size=60))
    ksp.getPC().setPythonContext(context)
    ksp.solve(b, x)
    assert ksp.getConvergedReason() > 0
    assert (b - A * x).norm() <= 1e-6 * b.norm()
    ksp.destroy()


@pytest.mark.parametrize("case", ["bracket"], indirect=True)
def test_a_large_coarsest_level_is_left_to_petsc(case, caplog):
    """With nothing strong there are no aggregates, and a dense inverse of all unknowns would be dear."""
    caplog.set_level("INFO", logger="pdeopt")
    ksp = PETSc.KSP().create(case.comm)
    ksp.setOperators(case.A)
    ksp.setType("cg")
    ksp.setNormType(PETSc.KSP.NormType.UNPRECONDITIONED)
    ksp.setTolerances(rtol=1e-8)
    ksp.getPC().setType("python")
    ksp.getPC().setPythonContext(NeuralMultigrid(MultigridSettings("algebraic", threshold=0.999)))
    x = case.b.duplicate()
    ksp.solve(case.b, x)
    assert (case.b - case.A * x).norm() <= 2e-8 * case.b.norm()
    assert "too many for an inverse" in caplog.text
    ksp.destroy()
