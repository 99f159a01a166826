"""Marking, refinement and transfer are the same on any number of ranks, and exact where they can be."""

import math
from collections.abc import Callable

from mpi4py import MPI

import dolfinx
import numpy as np
import pytest
import ufl

from pdeopt.fem import MeshData, forms, tag_boundary
from pdeopt.fem.adapt import mark_doerfler, refine_mesh, transfer
from pdeopt.report import InputError, MeshError

WORLD = MPI.COMM_WORLD
SHARED = dolfinx.mesh.GhostMode.shared_facet


def indicators_on(mesh: dolfinx.mesh.Mesh, values: Callable[[np.ndarray], np.ndarray]) -> dolfinx.fem.Function:
    """Return a cellwise constant function of the cells' midpoints."""
    result = dolfinx.fem.Function(dolfinx.fem.functionspace(mesh, ("DG", 0)))
    result.interpolate(values)
    return result


def tagged_mesh(dimension: int) -> MeshData:
    """Return a square or cube: cells with x < 1/2 have tag 1 and others 5; side x = 0 has tag 3, side y = 1 tag 8."""
    cells = 8 if dimension == 2 else 4
    make = dolfinx.mesh.create_unit_square if dimension == 2 else dolfinx.mesh.create_unit_cube
    mesh = make(WORLD, *[cells] * dimension, ghost_mode=SHARED)
    cell_map = mesh.topology.index_map(dimension)
    every = np.arange(cell_map.size_local + cell_map.num_ghosts, dtype=np.int32)
    left = dolfinx.mesh.compute_midpoints(mesh, dimension, every)[:, 0] < 0.5
    cell_tags = dolfinx.mesh.meshtags(mesh, dimension, every, np.where(left, 1, 5).astype(np.int32))
    sides = {3: lambda x: np.isclose(x[0], 0.0), 8: lambda x: np.isclose(x[1], 1.0)}
    return MeshData(mesh, cell_tags, tag_boundary(mesh, sides), {"left": (dimension, 1)})


def measures(data: MeshData) -> list[float]:
    """Return the volumes of the cells of tags 1 and 5 and the areas of the facets of tags 3 and 8."""
    dx = ufl.Measure("dx", data.mesh, subdomain_data=data.cell_tags)
    ds = ufl.Measure("ds", data.mesh, subdomain_data=data.facet_tags)
    one = dolfinx.fem.Constant(data.mesh, 1.0)
    return [forms.assemble_scalar(forms.compile_form(one * part)) for part in (dx(1), dx(5), ds(3), ds(8))]


def best_subset(values: np.ndarray, fraction: float) -> int:
    """Return how many of the largest values make up a fraction of the sum."""
    ordered = np.sort(values)[::-1]
    return int(np.searchsorted(np.cumsum(ordered), fraction * ordered.sum() * (1.0 - 1e-12))) + 1


def check_doerfler_marks_the_fewest_cells() -> None:
    mesh = dolfinx.mesh.create_unit_square(WORLD, 12, 10, ghost_mode=SHARED)
    owned = mesh.topology.index_map(2).size_local
    for spread, fractions in ((1.0, (0.1, 0.9)), (40.0, (0.5, 0.999, 1.0))):  # over one decade and over seventeen
        indicators = indicators_on(mesh, lambda x, s=spread: np.exp(-s * (x[0] + 0.37 * x[1] + 0.1 * np.sin(9 * x[0]))))
        values = np.concatenate(WORLD.allgather(indicators.x.array[:owned]))
        for fraction in fractions:
            marked = mark_doerfler(indicators, fraction)
            assert np.all(np.diff(marked) > 0)
            count = WORLD.allreduce(len(marked))
            carried = WORLD.allreduce(indicators.x.array[marked].sum())
            assert carried >= fraction * values.sum() * (1.0 - 1e-12)
            assert count == (best_subset(values, fraction) if fraction < 1.0 else len(values))
    # equal indicators up to rounding are one tie: all or none
    noise = 1e-13 * np.random.default_rng(WORLD.rank).standard_normal(len(indicators.x.array))
    indicators.x.array[:] = 0.7 + noise
    assert WORLD.allreduce(len(mark_doerfler(indicators, 0.3))) == len(values)
    indicators.x.array[:] = 0.0
    assert len(mark_doerfler(indicators, 0.5)) == 0


def check_doerfler_refuses_what_is_no_indicator() -> None:
    mesh = dolfinx.mesh.create_unit_square(WORLD, 4, 4)
    indicators = indicators_on(mesh, lambda x: 1.0 + x[0])
    with pytest.raises(InputError, match=r"fraction = 1\.5"):
        mark_doerfler(indicators, 1.5)
    if WORLD.rank == WORLD.size - 1:  # wrong on one rank, refused on all
        indicators.x.array[0] = -1.0
    with pytest.raises(InputError, match="must be finite and >= 0"):
        mark_doerfler(indicators, 0.5)
    linear = dolfinx.fem.Function(dolfinx.fem.functionspace(mesh, ("Lagrange", 1)))
    with pytest.raises(InputError, match="not cellwise constant"):
        mark_doerfler(linear, 0.5)


# Cells after local refinements of the square and the cube towards a corner.
CELLS = {2: [168, 268, 568], 3: [576, 1656]}


def check_refinement_keeps_tags_and_shares_the_cells() -> None:
    for dimension in (2, 3):
        data = tagged_mesh(dimension)
        expected = [0.5, 0.5, 1.0, 1.0]
        np.testing.assert_allclose(measures(data), expected, rtol=1e-12)
        counts = []
        for _ in range(3 if dimension == 2 else 2):
            indicators = indicators_on(data.mesh, lambda x: np.exp(-20.0 * np.sum(x**2, axis=0)))
            data = refine_mesh(data, mark_doerfler(indicators, 0.8))
            np.testing.assert_allclose(measures(data), expected, rtol=1e-12)
            cells = data.mesh.topology.index_map(dimension)
            counts.append(cells.size_global)
            assert cells.num_ghosts > 0 or WORLD.size == 1
            assert WORLD.allreduce(cells.size_local, op=MPI.MAX) <= 1.2 * cells.size_global / WORLD.size
        assert counts == CELLS[dimension]
        assert data.tag("left") == 1
        finer = refine_mesh(data)
        assert finer.mesh.topology.index_map(dimension).size_global == 2**dimension * counts[-1]
        np.testing.assert_allclose(measures(finer), expected, rtol=1e-12)


def check_refinement_refuses_what_it_cannot_divide() -> None:
    squares = dolfinx.mesh.create_unit_square(WORLD, 3, 3, cell_type=dolfinx.mesh.CellType.quadrilateral)
    with pytest.raises(MeshError, match="quadrilateral"):
        refine_mesh(MeshData(squares, None, None, {}))
    data = tagged_mesh(2)
    ghost = data.mesh.topology.index_map(2).size_local if WORLD.rank == WORLD.size - 1 else 0
    with pytest.raises(InputError, match="mark owned cells only"):
        refine_mesh(data, np.array([ghost], dtype=np.int32))


def check_transfer_is_exact_where_the_space_contains_the_function() -> None:
    for dimension in (2, 3):
        data = tagged_mesh(dimension)
        refined = refine_mesh(data, mark_doerfler(indicators_on(data.mesh, lambda x: np.exp(-9.0 * x[0])), 0.6))
        other = dolfinx.mesh.create_unit_square(WORLD, 7, 5) if dimension == 2 else refined.mesh
        for degree, mesh in ((1, refined.mesh), (2, other)):
            old = dolfinx.fem.Function(dolfinx.fem.functionspace(data.mesh, ("Lagrange", degree, (2,))), name="field")
            old.interpolate(lambda x, d=degree: np.array([(x[0] - 2.0 * x[1]) ** d, x[1] ** d + x[2]]))
            space = dolfinx.fem.functionspace(mesh, ("Lagrange", degree, (2,)))
            expected = dolfinx.fem.Function(space)
            expected.interpolate(lambda x, d=degree: np.array([(x[0] - 2.0 * x[1]) ** d, x[1] ** d + x[2]]))
            new = transfer(old, space)
            assert new.name == "field"
            np.testing.assert_allclose(new.x.array, expected.x.array, atol=1e-11)


def check_transfer_reaches_over_curved_boundaries_only() -> None:
    def disc(sides: int) -> dolfinx.mesh.Mesh:
        mesh = dolfinx.mesh.create_unit_square(WORLD, sides, sides)
        square = 2.0 * mesh.geometry.x[:, :2] - 1.0
        length = np.linalg.norm(square, axis=1)
        scale = np.where(length > 0.0, np.abs(square).max(axis=1) / np.maximum(length, 1e-300), 1.0)
        mesh.geometry.x[:, :2] = square * scale[:, None]
        return mesh

    coarse, fine = disc(6), disc(24)  # nodes of the finer polygon lie up to 1 - cos(pi / 24) outside the coarser one
    old = dolfinx.fem.Function(dolfinx.fem.functionspace(coarse, ("Lagrange", 1)))
    old.interpolate(lambda x: 1.0 + x[0] - 3.0 * x[1])
    space = dolfinx.fem.functionspace(fine, ("Lagrange", 1))
    expected = dolfinx.fem.Function(space)
    expected.interpolate(lambda x: 1.0 + x[0] - 3.0 * x[1])
    np.testing.assert_allclose(transfer(old, space).x.array, expected.x.array, atol=1e-10)
    fine.geometry.x[:, 0] += 0.5 * math.pi
    with pytest.raises(MeshError, match="must cover the same domain"):
        transfer(old, dolfinx.fem.functionspace(fine, ("Lagrange", 1)))


@pytest.mark.parallel([1, 3])
def test_on_any_number_of_ranks() -> None:
    # one launch for all: starting the ranks takes longer than the checks
    check_doerfler_marks_the_fewest_cells()
    check_doerfler_refuses_what_is_no_indicator()
    check_refinement_keeps_tags_and_shares_the_cells()
    check_refinement_refuses_what_it_cannot_divide()
    check_transfer_is_exact_where_the_space_contains_the_function()
    check_transfer_reaches_over_curved_boundaries_only()
