"""The compiled cycle for blocks of unknowns: Galerkin products, a coarsest level that is exact, and new values."""

from mpi4py import MPI

import numpy as np
import pytest
import scipy.sparse as sparse

from pdeopt.bench.linear_families import FAMILIES
from pdeopt.conjugate_directions.algebraic_hierarchy import Constants
from pdeopt.conjugate_directions.block_cycle import BlockCycle, fits


@pytest.fixture(scope="module", params=["perforated plate", "bracket"])
def case(request):
    case = FAMILIES[f"{request.param}, inclusions, elasticity"].case(MPI.COMM_SELF, 800, 1)
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
