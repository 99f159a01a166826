"""Forms rebuilt on a reduced mesh have the values of the weighted sum over its cells."""

import basix.ufl
import dolfinx
import numpy as np
import pytest
import ufl
from cubature_cases import square
from dolfinx import fem

from pdeopt.fem import forms
from pdeopt.reduced_order import Cubature, ReducedMesh
from pdeopt.report import InputError


def few_cells(mesh, part=4):
    """Every fourth cell, or so, of the mesh's input, with weights that differ."""
    count = mesh.topology.index_map(mesh.topology.dim).size_global
    cells = np.arange(1, count, part)
    return Cubature(cells, 1.0 + 0.1 * cells, 0.0)


def weighted(mesh, cubature, integral):
    """The sum over the cells of weights times a functional's contributions, assembled on the whole mesh."""
    space = fem.functionspace(mesh, ("DG", 0))
    values = fem.assemble_vector(forms.compile_form(integral(ufl.TestFunction(space)))).array
    owned = mesh.topology.index_map(mesh.topology.dim).size_local
    original = np.asarray(mesh.topology.original_cell_index[:owned])
    here = np.isin(original, cubature.cells)
    weights = cubature.weights[np.searchsorted(cubature.cells, original[here])]
    return mesh.comm.allreduce(weights @ values[space.dofmap.list[:owned, 0]][here])


def assert_same(mesh, integral, reduced=None, cubature=None):
    cubature = few_cells(mesh) if cubature is None else cubature
    reduced = ReducedMesh(mesh, cubature) if reduced is None else reduced
    form = forms.fix_quadrature_degree(integral(fem.Constant(mesh, 1.0)))
    value = forms.assemble_scalar(forms.compile_form(reduced.restrict(form)))
    degrees = {i.integral_type(): i.metadata()["quadrature_degree"] for i in form.integrals()}
    wanted = weighted(mesh, cubature, lambda test: with_degrees(integral(test), degrees))
    assert value == pytest.approx(wanted, rel=1e-11, abs=1e-13)
    return reduced


def with_degrees(form, degrees):
    """A test function of degree zero keeps the degree; written out so that both forms have the same."""
    return ufl.Form(
        [i.reconstruct(metadata={"quadrature_degree": degrees[i.integral_type()]}) for i in form.integrals()]
    )


@pytest.mark.parallel([1, 2, 3])
def test_geometric_quantities_are_those_of_the_same_cells():
    mesh = square(4)
    x, n = ufl.SpatialCoordinate(mesh), ufl.FacetNormal(mesh)
    sizes = ufl.CellVolume(mesh) + ufl.Circumradius(mesh) ** 2 + ufl.CellDiameter(mesh)
    assert_same(mesh, lambda one: (ufl.sin(3.0 * x[0]) * x[1] + sizes) * one * ufl.dx(mesh))
    assert_same(mesh, lambda one: abs(ufl.JacobianDeterminant(mesh)) * ufl.MinCellEdgeLength(mesh) * one * ufl.dx)
    on_facets = ufl.FacetArea(mesh) * (2.0 + n[0] + ufl.exp(x[1]) * n[1])
    assert_same(mesh, lambda one: on_facets * one * ufl.ds(mesh) + x[0] * one * ufl.dx(mesh))


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("name", ["cubic", "Nedelec", "vector", "mixed", "quadrature", "tensor"])
def test_functions_of_any_element_are_restricted_and_follow(name):
    mesh = square(4)
    cell = mesh.basix_cell()
    cubic = basix.ufl.element("Lagrange", cell, 3)
    nedelec = basix.ufl.element("N1curl", cell, 2)
    element = {
        "cubic": cubic,
        "Nedelec": nedelec,
        "vector": basix.ufl.element("Lagrange", cell, 2, shape=(2,)),
        "mixed": basix.ufl.mixed_element([nedelec, cubic]),
        "quadrature": basix.ufl.quadrature_element(cell, (2,), degree=3),
        "tensor": basix.ufl.element("DG", cell, 1, shape=(2, 2), symmetry=True),
    }[name]
    function = fem.Function(fem.functionspace(mesh, element))
    number_dofs(function, 1.0)
    dx = ufl.dx(mesh, metadata={"quadrature_degree": 3})
    x = ufl.SpatialCoordinate(mesh)
    square_of = ufl.inner(function, function) * (1.0 + x[0])
    reduced = assert_same(mesh, lambda one: square_of * one * dx)
    form = forms.compile_form(reduced.restrict(square_of * dx))
    number_dofs(function, 2.0)
    reduced.update()
    wanted = weighted(mesh, few_cells(mesh), lambda one: square_of * one * dx)
    assert forms.assemble_scalar(form) == pytest.approx(wanted, rel=1e-11)


def number_dofs(function, factor):
    """Values that depend on the degree of freedom, ghosts included."""
    index_map = function.function_space.dofmap.index_map
    block = function.function_space.dofmap.index_map_bs
    numbers = np.arange(index_map.local_range[0] * block, index_map.local_range[1] * block)
    forms.set_function(function, np.cos(factor * numbers))


@pytest.mark.parallel([1, 2, 3])
def test_subdomains_and_the_outer_boundary_are_kept():
    mesh = square(4)
    facet_dimension = mesh.topology.dim - 1
    left = dolfinx.mesh.locate_entities_boundary(mesh, facet_dimension, lambda x: np.isclose(x[0], 0.0))
    top = dolfinx.mesh.locate_entities_boundary(mesh, facet_dimension, lambda x: np.isclose(x[1], 1.0))
    lower = dolfinx.mesh.locate_entities(mesh, mesh.topology.dim, lambda x: x[1] <= 0.5 + 1e-12)
    facets, order = np.concatenate([left, top]), np.argsort(np.concatenate([left, top]))
    values = np.concatenate([np.full(left.size, 7), np.full(top.size, 9)]).astype(np.int32)
    _, first = np.unique(facets[order], return_index=True)
    marked = dolfinx.mesh.meshtags(mesh, facet_dimension, facets[order][first], values[order][first])
    cells = dolfinx.mesh.meshtags(mesh, mesh.topology.dim, np.sort(lower), 3)
    ds, dx = ufl.Measure("ds", mesh, subdomain_data=marked), ufl.Measure("dx", mesh, subdomain_data=cells)
    x = ufl.SpatialCoordinate(mesh)
    cubature = few_cells(mesh, 2)
    f = 1.0 + x[0] + 3.0 * x[1]
    assert_same(mesh, lambda one: f * one * ds(7) + 2.0 * f * one * ds((7, 9)) + f * one * ds, cubature=cubature)
    assert_same(mesh, lambda one: f * one * dx(3) + 5.0 * f * one * dx, cubature=cubature)
    reduced = ReducedMesh(mesh, cubature)
    inner = reduced.restrict(fem.Constant(mesh, 1.0) * ufl.ds(mesh))
    boundary = weighted(mesh, cubature, lambda one: one * ufl.ds(mesh))
    assert forms.assemble_scalar(forms.compile_form(inner)) == pytest.approx(boundary, rel=1e-12)


@pytest.mark.parallel([1, 2, 3])
def test_constants_follow_and_states_live_on():
    mesh = square(4)
    space = fem.functionspace(mesh, ("Lagrange", 1))
    given, state = fem.Function(space), fem.Function(space)
    constant = fem.Constant(mesh, np.array([1.0, 2.0]))
    reduced = ReducedMesh(mesh, few_cells(mesh))
    state.x.array[:] = 1.0
    kept = reduced.state(state)
    form = forms.compile_form(reduced.restrict((given + state * constant[1]) * ufl.dx(mesh)))
    area = weighted(mesh, few_cells(mesh), lambda one: one * ufl.dx(mesh))
    assert forms.assemble_scalar(form) == pytest.approx(2.0 * area, rel=1e-12)
    given.x.array[:], state.x.array[:], constant.value[1] = 4.0, 100.0, 3.0
    reduced.update()
    assert np.all(kept.x.array == 1.0)
    assert forms.assemble_scalar(form) == pytest.approx(7.0 * area, rel=1e-12)
    mesh.geometry.x[:, :2] *= 2.0
    reduced.update()
    assert forms.assemble_scalar(form) == pytest.approx(28.0 * area, rel=1e-12)
    expression = reduced.restrict(ufl.grad(given * constant[0]))
    assert ufl.domain.extract_unique_domain(expression) == reduced.submesh.ufl_domain()


@pytest.mark.parallel([1, 2])
def test_what_a_reduced_mesh_cannot_hold_is_refused():
    mesh, other = square(4), square(4)
    reduced = ReducedMesh(mesh, few_cells(mesh))
    function = fem.Function(fem.functionspace(mesh, ("Lagrange", 1)))
    with pytest.raises(InputError, match="interior_facet"):
        reduced.restrict(ufl.avg(function) * ufl.dS(mesh))
    with pytest.raises(InputError, match="another mesh"):
        reduced.restrict(fem.Function(fem.functionspace(other, ("Lagrange", 1))))
    with pytest.raises(InputError, match="another mesh"):
        reduced.restrict(ufl.SpatialCoordinate(other)[0])
    mixed = fem.functionspace(mesh, basix.ufl.mixed_element([basix.ufl.element("Lagrange", "triangle", 1)] * 2))
    with pytest.raises(InputError, match=r"ufl\.split"):
        reduced.function(fem.Function(mixed).sub(0))
