"""Metrics say what they should, and Mmg's meshes have it: sizes, tags, subdomains, boundaries."""

import math
import sys

from mpi4py import MPI

import dolfinx
import numpy as np
import pytest
import ufl

from pdeopt.fem import MeshData, forms, tag_boundary
from pdeopt.fem.adapt import transfer
from pdeopt.fem.goal import estimate_goal_error
from pdeopt.fem.metric import goal_metric, hessian_metric
from pdeopt.fem.remesh import remesh
from pdeopt.problems.l_shape import LShapePoisson, l_shape_mesh
from pdeopt.report import InputError, MeshError, MissingPackageError

WORLD = MPI.COMM_WORLD


def measure(data: MeshData, kind: str, tag: int) -> float:
    """Return the volume of the cells, or the area of the boundary or interior facets, with a tag."""
    tags = data.cell_tags if kind == "dx" else data.facet_tags
    one = dolfinx.fem.Constant(data.mesh, 1.0)
    form = one * ufl.Measure(kind, data.mesh, subdomain_data=tags)(tag)
    return forms.assemble_scalar(forms.compile_form(form))


def unit_box(comm: MPI.Comm, dimension: int, cells: int) -> dolfinx.mesh.Mesh:
    """Return a square or a cube whose ghost cells are shared over facets."""
    make = dolfinx.mesh.create_unit_square if dimension == 2 else dolfinx.mesh.create_unit_cube
    return make(comm, *[cells] * dimension, ghost_mode=dolfinx.mesh.GhostMode.shared_facet)


def metric_lengths(data: MeshData, eigenvalues: list[float]) -> np.ndarray:
    """Return the lengths of all edges in a diagonal metric."""
    data.mesh.topology.create_entities(1)
    data.mesh.topology.create_connectivity(1, data.mesh.topology.dim)
    edges = np.arange(data.mesh.topology.index_map(1).size_local, dtype=np.int32)
    ends = data.mesh.geometry.x[dolfinx.mesh.entities_to_geometry(data.mesh, 1, edges)]
    vectors = (ends[:, 1] - ends[:, 0])[:, : len(eigenvalues)]
    return np.concatenate(WORLD.allgather(np.sqrt(vectors**2 @ np.array(eigenvalues))))


def diagonal_metric(mesh: dolfinx.mesh.Mesh, eigenvalues: list[float]) -> dolfinx.fem.Function:
    """Return a constant metric."""
    dimension = len(eigenvalues)
    metric = dolfinx.fem.Function(dolfinx.fem.functionspace(mesh, ("Lagrange", 1, (dimension, dimension))))
    metric.interpolate(lambda x: np.tile(np.diag(eigenvalues).ravel()[:, None], x.shape[1]))
    return metric


@pytest.mark.parametrize(("dimension", "rtol"), [(2, 1e-9), (3, 1e-9)])
def test_hessian_metric_of_a_quadratic_function(dimension: int, rtol: float) -> None:
    mesh = unit_box(MPI.COMM_SELF, dimension, 6)
    curvatures = np.array([2.0, -18.0, 8.0][:dimension])
    function = dolfinx.fem.Function(dolfinx.fem.functionspace(mesh, ("Lagrange", 2)))
    function.interpolate(lambda x: 0.5 * curvatures @ x[:dimension] ** 2)
    metric = hessian_metric(function, 1000, norm=2.0)
    values = metric.x.array.reshape(-1, dimension, dimension)
    # eigenvectors along the axes, and ratios of the eigenvalues those of |H|, away from the boundary
    centre = metric.function_space.tabulate_dof_coordinates()[:, :dimension]
    inside = (np.abs(centre - 0.5) < 0.2).all(axis=1)
    assert inside.sum() >= 2**dimension
    shape = values[inside] / values[inside][:, :1, :1]
    np.testing.assert_allclose(shape, np.tile(np.diag(np.abs(curvatures) / 2.0), (len(shape), 1, 1)), atol=rtol * 10)
    # the unit of volume of an equilateral cell: 1000 of them fill the domain
    scalar = dolfinx.fem.Function(dolfinx.fem.functionspace(mesh, ("Lagrange", 1)))
    scalar.x.array[:] = np.sqrt(np.linalg.det(values))
    complexity = forms.assemble_scalar(forms.compile_form(scalar * ufl.dx))
    unit = math.sqrt(3.0) / 4.0 if dimension == 2 else math.sqrt(2.0) / 12.0
    assert complexity / unit == pytest.approx(1000.0, rel=1e-10)
    limited = hessian_metric(function, 1000, stretching=1.0).x.array.reshape(-1, dimension, dimension)
    np.testing.assert_allclose(limited, limited[:, :1, :1] * np.eye(dimension), atol=1e-8 * limited.max())


def test_metrics_refuse_what_they_cannot_use() -> None:
    mesh = unit_box(MPI.COMM_SELF, 2, 3)
    function = dolfinx.fem.Function(dolfinx.fem.functionspace(mesh, ("Lagrange", 1)), name="heat")
    function.interpolate(lambda x: x[0] ** 2)
    indicators = dolfinx.fem.Function(dolfinx.fem.functionspace(mesh, ("DG", 0)))
    with pytest.raises(InputError, match="cells = 0"):
        hessian_metric(function, 0)
    with pytest.raises(InputError, match=r"norm = 0\.5"):
        hessian_metric(function, 10, norm=0.5)
    with pytest.raises(InputError, match="all indicators are zero"):
        goal_metric(indicators, function, 10)
    indicators.x.array[0] = -1.0
    with pytest.raises(InputError, match="negative"):
        goal_metric(indicators, function, 10)
    vector = dolfinx.fem.Function(dolfinx.fem.functionspace(mesh, ("Lagrange", 1, (2,))), name="flow")
    with pytest.raises(InputError, match="'flow' is not scalar"):
        hessian_metric(vector, 10)
    function.x.array[2] = np.nan
    with pytest.raises(InputError, match="'heat' is not finite"):
        hessian_metric(function, 10)


def test_without_mmg_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mmgpy", None)
    mesh = unit_box(MPI.COMM_SELF, 2, 2)
    with pytest.raises(MissingPackageError, match=r"pdeopt\[remesh\]"):
        remesh(MeshData(mesh, None, None, {}), diagonal_metric(mesh, [9.0, 9.0]))


@pytest.mark.parallel([2])
def test_on_two_ranks() -> None:
    pytest.importorskip("mmgpy")
    check_l_shape()
    check_cube()
    check_refusals()


def check_l_shape() -> None:
    """A goal-oriented metric: the wanted number of cells, all tags, an error well below that of a uniform mesh."""
    data = l_shape_mesh(WORLD)
    cells = data.mesh.topology.index_map(2).size_global
    errors = []
    for step in range(4):
        problem = LShapePoisson(data)
        problem.solve()
        estimate = estimate_goal_error(problem.goals["mean"], problem.residual, problem.solution, problem.bcs)
        errors.append(abs(problem.exact_goals["mean"] - estimate.value))
        effectivity = estimate.error / (problem.exact_goals["mean"] - estimate.value)
        assert 0.5 <= effectivity <= 2.0
        if step < 3:
            cells *= 2
            new = remesh(data, goal_metric(estimate.indicators, problem.solution, cells))
            assert 0.8 * cells <= new.mesh.topology.index_map(2).size_global <= 1.2 * cells
            carried = transfer(problem.solution, dolfinx.fem.functionspace(new.mesh, ("Lagrange", 1)))
            difference = forms.assemble_scalar(forms.compile_form(carried * ufl.dx)) / 3.0 - estimate.value
            assert abs(difference) <= 0.5 * errors[-1]  # the transfer costs less than the discretisation
            data = new
    for kind, group, size in (
        ("dx", "box", 0.0625), ("dx", "rest", 3.0 - 0.0625), ("ds", "right edge", 1.0), ("ds", "lower edge", 1.0),
        ("ds", "outer", 6.0),
    ):  # fmt: skip
        assert measure(data, kind, data.tag(group)) == pytest.approx(size, rel=1e-10), group
    # four times fewer unknowns than a uniform mesh of this error has
    assert errors[-1] <= 0.5 * 2.75e-3  # uniform, 833 unknowns, twice as many as here
    assert LShapePoisson(data).space.dofmap.index_map.size_global <= 450


def check_cube() -> None:
    """A stretched metric in space, with two subdomains and a tagged interface: lengths, volume and areas."""
    mesh = unit_box(WORLD, 3, 4)
    cell_map = mesh.topology.index_map(3)
    every = np.arange(cell_map.size_local + cell_map.num_ghosts, dtype=np.int32)
    low = dolfinx.mesh.compute_midpoints(mesh, 3, every)[:, 2] < 0.5
    cell_tags = dolfinx.mesh.meshtags(mesh, 3, every, np.where(low, 0, 9).astype(np.int32))
    interface = dolfinx.mesh.locate_entities(mesh, 2, lambda x: np.isclose(x[2], 0.5))
    side = tag_boundary(mesh, {7: lambda x: np.isclose(x[0], 0.0)}).indices
    facets = np.concatenate([interface, side])
    values = np.concatenate([np.full(len(interface), 2), np.full(len(side), 7)]).astype(np.int32)
    order = np.argsort(facets)
    data = MeshData(mesh, cell_tags, dolfinx.mesh.meshtags(mesh, 2, facets[order], values[order]), {})
    eigenvalues = [64.0, 16.0, 16.0]
    new = remesh(data, diagonal_metric(mesh, eigenvalues))
    assert measure(new, "dx", 0) == pytest.approx(0.5, rel=1e-10)
    assert measure(new, "dx", 9) == pytest.approx(0.5, rel=1e-10)
    assert measure(new, "ds", 7) == pytest.approx(1.0, rel=1e-10)
    assert measure(new, "dS", 2) == pytest.approx(1.0, rel=1e-10)
    lengths = metric_lengths(new, eigenvalues)
    before = metric_lengths(data, eigenvalues)
    assert np.mean((lengths > 0.5) & (lengths < 2.0)) >= 0.95
    assert np.mean((before > 0.5) & (before < 2.0)) < 0.6  # the mesh before does not conform
    wanted = math.sqrt(math.prod(eigenvalues)) / (math.sqrt(2.0) / 12.0)
    # regular tetrahedra do not fill space, and Mmg's edges are a little shorter than asked for
    assert wanted <= new.mesh.topology.index_map(3).size_global <= 2.2 * wanted


def check_refusals() -> None:
    """Every rank gets the same error."""
    mesh = unit_box(WORLD, 2, 4)
    inside = dolfinx.mesh.locate_entities(mesh, 1, lambda x: np.isclose(x[1], 0.5))
    tags = dolfinx.mesh.meshtags(mesh, 1, inside, np.full(len(inside), 6, dtype=np.int32))
    metric = diagonal_metric(mesh, [25.0, 25.0])
    with pytest.raises(MeshError, match=r"4 facets with a tag .6 at .* would be lost"):
        remesh(MeshData(mesh, None, tags, {}), metric)
    with pytest.raises(InputError, match="gradation = 1"):
        remesh(MeshData(mesh, None, None, {}), metric, gradation=1.0)
    with pytest.raises(MeshError, match=r"metric asks for 2\.3e.20 cells"):
        remesh(MeshData(mesh, None, None, {}), diagonal_metric(mesh, [1e20, 1e20]))
    if WORLD.rank == WORLD.size - 1:
        metric.x.array[0] = -1.0
    with pytest.raises(InputError, match="not finite and positive definite"):
        remesh(MeshData(mesh, None, None, {}), metric)
    vector = dolfinx.fem.Function(dolfinx.fem.functionspace(mesh, ("Lagrange", 1, (2,))))
    with pytest.raises(InputError, match=r"of shape \(2, 2\)"):
        remesh(MeshData(mesh, None, None, {}), vector)
    squares = dolfinx.mesh.create_unit_square(WORLD, 2, 2, cell_type=dolfinx.mesh.CellType.quadrilateral)
    with pytest.raises(MeshError, match="quadrilateral"):
        remesh(MeshData(squares, None, None, {}), metric)
