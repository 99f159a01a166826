"""The integrands of all cells sum to the reduced residual, and few rows stand for those of many states."""

from mpi4py import MPI

import basix.ufl
import numpy as np
import pytest
import ufl
from cubature_cases import CASES, heat, set_state, square
from dolfinx import fem

from pdeopt.fem import forms
from pdeopt.reduced_order.compression import CompressedIntegrands, cell_volumes
from pdeopt.reduced_order.integrands import Integrands, integrand_blocks
from pdeopt.report import InputError


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("name", CASES)
def test_the_integrands_sum_to_the_reduced_residual(name):
    case = CASES[name]()
    block = Integrands(case.residual, case.u, case.basis).residual()
    total = MPI.COMM_WORLD.allreduce(block.sum(axis=0))
    vector = forms.assemble_vector(forms.compile_form(forms.fix_quadrature_degree(case.residual)))
    reduced = MPI.COMM_WORLD.allreduce(case.basis.modes.T @ vector.array_r)
    vector.destroy()
    assert np.linalg.norm(total - reduced) <= 1e-12 * max(1.0, np.linalg.norm(reduced))


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("name", ["bubble", "RT"])
def test_other_elements_are_broken_up_too(name):
    mesh = square(3)
    cell = mesh.basix_cell()
    if name == "bubble":
        bubble = basix.ufl.element("Bubble", cell, 3)
        element = basix.ufl.enriched_element([basix.ufl.element("Lagrange", cell, 1), bubble])
    else:
        element = basix.ufl.element(name, cell, 2)
    space = fem.functionspace(mesh, element)
    u, v = fem.Function(space), ufl.TestFunction(space)
    inner = random_basis_by_numbers(space)
    forms.set_function(u, inner.modes[:, 0])
    residual = ufl.inner((1.0 + ufl.inner(u, u)) * u, v) * ufl.dx(mesh) + ufl.inner(u, v) * ufl.ds(mesh)
    total = MPI.COMM_WORLD.allreduce(Integrands(residual, u, inner).residual().sum(axis=0))
    vector = forms.assemble_vector(forms.compile_form(residual))
    reduced = MPI.COMM_WORLD.allreduce(inner.modes.T @ vector.array_r)
    vector.destroy()
    assert np.linalg.norm(total - reduced) <= 1e-12 * np.linalg.norm(reduced)


def random_basis_by_numbers(space):
    """Fields that need no evaluation at points: the numbers of their degrees of freedom decide."""
    from pdeopt.reduced_order import Basis, InnerProduct

    inner = InnerProduct(space, "l2")
    first = space.dofmap.index_map.local_range[0] * space.dofmap.index_map_bs
    numbers = np.arange(first, first + inner.owned)
    return Basis(inner, np.cos(np.outer(numbers, [1.0, 2.3, 4.1])))


@pytest.mark.parallel([1, 2, 3])
def test_compressed_rows_keep_the_products_of_all_rows():
    case = heat(square(6))
    compressed = CompressedIntegrands(case.u.function_space.mesh, 1e-6)
    coordinates = np.cos(np.outer(np.arange(60), [1.0, 2.0, 3.0, 4.0]))
    everything = []

    def states():
        for row in coordinates:
            set_state(case, row)
            yield

    for residual, tangent in integrand_blocks(case.residual, case.u, case.basis, states()):
        compressed.append(residual, tangent)
        size = MPI.COMM_WORLD.allreduce(np.abs(residual).sum(axis=0) + np.abs(tangent).sum(axis=0)).max()
        everything += [residual.T / size, 0.1 * tangent.T / size]
    raw = np.concatenate(everything) / np.sqrt(len(coordinates))
    weights = np.cos(np.arange(raw.shape[1]))
    wanted = np.linalg.norm(MPI.COMM_WORLD.allreduce(raw @ weights))
    rows = compressed.rows()
    assert rows.shape[0] < raw.shape[0]
    assert abs(np.linalg.norm(MPI.COMM_WORLD.allreduce(rows @ weights)) - wanted) <= 1e-6


@pytest.mark.parallel([1, 2, 3])
def test_cell_volumes_add_up():
    assert MPI.COMM_WORLD.allreduce(cell_volumes(square(3)).sum()) == pytest.approx(1.0, rel=1e-13)


@pytest.mark.parallel([1, 2, 3])
def test_what_cannot_be_split_over_cells_is_refused():
    case = heat(square(3))
    v = ufl.TestFunction(case.u.function_space)
    with pytest.raises(InputError, match="interior_facet"):
        Integrands(case.residual + ufl.avg(v) * ufl.dS, case.u, case.basis)
    with pytest.raises(InputError, match="arguments"):
        Integrands(ufl.derivative(case.residual, case.u), case.u, case.basis)


@pytest.mark.parallel([1, 2, 3])
def test_values_that_are_not_finite_are_refused_on_all_ranks():
    compressed = CompressedIntegrands(square(3), 1e-3)
    block = np.ones((compressed.volumes.size, 2))
    if MPI.COMM_WORLD.rank == 0:
        block[0, 0] = np.nan
    with pytest.raises(InputError, match="state 0"):
        compressed.append(block, block)
