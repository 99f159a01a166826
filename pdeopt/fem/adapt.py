"""Adaptive meshes: cells marked alike on any number of ranks, refined with their tags, and functions carried over."""

import dataclasses
import math

from mpi4py import MPI

import basix.ufl
import dolfinx
import numpy as np
import numpy.typing as npt
import ufl
from dolfinx.graph import adjacencylist
from dolfinx.io.utils import distribute_entity_data

from pdeopt.fem.mesh import Mesh, MeshData
from pdeopt.parallel import collective_errors
from pdeopt.report import InputError, MeshError

Integers = npt.NDArray[np.int32]

_UNTAGGED = np.iinfo(np.int32).min
_TIE = 1e-6  # indicators that differ by less, relatively, are marked together: symmetric meshes stay symmetric
_LARGEST_IMBALANCE = 1.2  # most cells of a rank over the mean, before cells move


def mark_doerfler(indicators: dolfinx.fem.Function, fraction: float) -> Integers:
    """Mark the fewest cells that carry a fraction of the whole error (Doerfler, SIAM J. Numer. Anal. 33 (1996)).

    The cells with the largest indicators are taken, down to one threshold for all ranks. Cells whose indicators equal
    the threshold within 1e-6 are all taken, so that the choice depends neither on the partition nor on rounding.

    Parameters
    ----------
    indicators
        Cellwise constant function, >= 0: how much a cell contributes to the error.
    fraction
        Share of the sum of all indicators, in (0, 1]; 0.5 is usual, and less makes more and smaller steps.

    Returns
    -------
    numpy.ndarray
        Owned cells to refine, ascending, shape (marked,); none at all if every indicator is zero.

    Raises
    ------
    InputError
        If the fraction is out of range, or an indicator is negative or not finite.

    Collective: yes.
    """
    if not 0.0 < fraction <= 1.0:
        raise InputError(f"fraction = {fraction} is not in (0, 1]: it is the share of the error to mark")
    space = indicators.function_space
    mesh, comm = space.mesh, space.mesh.comm
    owned = mesh.topology.index_map(mesh.topology.dim).size_local
    if space.dofmap.list.shape[1] != 1 or space.dofmap.index_map_bs != 1:
        raise InputError(f"the indicators '{indicators.name}' are not cellwise constant: use a space ('DG', 0)")
    values = indicators.x.array[space.dofmap.list[:owned, 0]]
    with collective_errors(comm):
        wrong = np.flatnonzero(~(values >= 0.0) | np.isinf(values))
        if len(wrong):
            raise InputError(f"the indicator of cell {wrong[0]} is {values[wrong[0]]:g}: it must be finite and >= 0")
    total, count = comm.allreduce(float(values.sum())), comm.allreduce(owned)
    if total == 0.0:
        return np.empty(0, dtype=np.int32)
    high = comm.allreduce(float(values.max(initial=0.0)), op=MPI.MAX)
    # The cells below the mean of the part to leave out cannot make up that part: the threshold is not below it.
    low = (1.0 - fraction) * total / count
    if low == 0.0:
        return np.flatnonzero(values >= 0.0).astype(np.int32)
    while high > low * (1.0 + 0.1 * _TIE):
        middle = math.sqrt(low * high)
        enough = comm.allreduce(float(values[values >= middle].sum())) >= fraction * total
        low, high = (middle, high) if enough else (low, middle)
    return np.flatnonzero(values >= low * (1.0 - _TIE)).astype(np.int32)


def refine_mesh(data: MeshData, cells: Integers | None = None) -> MeshData:
    """Refine a mesh of triangles or tetrahedra; parts of a cell or facet inherit its tag.

    Marked cells are divided by Plaza's algorithm (longest edge first, as many neighbours as it takes), so that angles
    stay bounded. If a rank then has more than 1.2 times the mean number of cells, the cells are distributed anew.

    Parameters
    ----------
    data
        The mesh with its tags; ``MeshData(mesh, None, None, {})`` for one without.
    cells
        Owned cells to refine, shape (marked,), as `mark_doerfler` returns them; None refines all.

    Returns
    -------
    MeshData
        The refined mesh, with ghost cells shared over facets, its tags, and the same names.

    Raises
    ------
    MeshError
        If the cells are not straight triangles or tetrahedra.
    InputError
        If a cell is not an owned one.

    Collective: yes.
    """
    coarse, dimension = data.mesh, data.mesh.topology.dim
    shape, degree = coarse.topology.cell_name(), coarse.geometry.cmaps[0].degree
    if shape not in ("triangle", "tetrahedron") or degree != 1:
        raise MeshError(f"cells of shape {shape} and degree {degree} cannot be refined: "
                        "mesh with straight triangles or tetrahedra")  # fmt: skip
    coarse.topology.create_entities(1)
    edges = None
    if cells is not None:
        owned = coarse.topology.index_map(dimension).size_local
        with collective_errors(coarse.comm):
            if len(cells) and not (np.min(cells) >= 0 and np.max(cells) < owned):
                raise InputError(f"cells reach from {np.min(cells)} to {np.max(cells)}, but this rank owns 0 to "
                                 f"{owned - 1}: mark owned cells only")  # fmt: skip
        coarse.topology.create_connectivity(dimension, 1)
        coarse.topology.create_connectivity(1, dimension)
        edges = dolfinx.mesh.compute_incident_entities(coarse.topology, np.asarray(cells, dtype=np.int32), dimension, 1)
    fine, parent_cells, parent_facets = dolfinx.mesh.refine(
        coarse, edges, option=dolfinx.mesh.RefinementOption.parent_cell_and_facet
    )
    # DOLFINx lists the parents of a rank's cells in the order in which refinement made these cells.
    owned_cells = fine.topology.index_map(dimension)
    made_as = np.asarray(fine.topology.original_cell_index[: owned_cells.size_local]) - owned_cells.local_range[0]
    parent_cells = parent_cells[made_as]
    cell_tags = facet_tags = None
    if data.cell_tags is not None:
        everything = np.arange(owned_cells.size_local, dtype=np.int32)
        cell_tags = _distribute_tags(fine, dimension, everything, _values_of_entities(data.cell_tags)[parent_cells])
    if data.facet_tags is not None:
        # Row: owned cell; column: its facet; entry: the facet of the parent cell that this one is a part of, or -1.
        places = parent_facets.reshape(owned_cells.size_local, -1)[made_as]
        rows, columns = np.nonzero(places >= 0)
        parents = _facets_of_cells(coarse)[parent_cells[rows], places[rows, columns]]
        facets, first = np.unique(_facets_of_cells(fine)[rows, columns], return_index=True)
        facet_tags = _distribute_tags(fine, dimension - 1, facets, _values_of_entities(data.facet_tags)[parents[first]])
    refined = dataclasses.replace(data, mesh=fine, cell_tags=cell_tags, facet_tags=facet_tags)
    return _rebalance(refined) if cells is not None else refined


def transfer(function: dolfinx.fem.Function, space: dolfinx.fem.FunctionSpace) -> dolfinx.fem.Function:
    """Interpolate a function into a space on another mesh of the same domain.

    Exact where the new space contains the function (a refined mesh, the same or a higher degree). Points outside the
    function's mesh, as on curved boundaries, take the polynomial of the nearest cell.

    Parameters
    ----------
    function
        Function to carry over; its mesh may be distributed in any other way.
    space
        Where the result lives: a space with interpolation points, of the same value shape.

    Returns
    -------
    dolfinx.fem.Function
        The interpolant, with the function's name.

    Raises
    ------
    MeshError
        If a point of the new mesh lies farther from the old mesh than a tenth of its extent.

    Collective: yes.
    """
    target, source = space.mesh, function.function_space.mesh
    owned = np.arange(target.topology.index_map(target.topology.dim).size_local, dtype=np.int32)
    extent = _extent(source)
    padding = 1e-10 * extent
    while True:
        found = dolfinx.fem.create_interpolation_data(space, function.function_space, owned, padding=padding)
        missing = target.comm.allreduce(int(np.count_nonzero(np.asarray(found.src_owner) < 0)))
        if missing == 0:
            break
        padding *= 100.0
        if padding > 0.1 * extent:
            raise MeshError(f"{missing} points of the new mesh are farther than {0.1 * extent:.3g} from the old one: "
                            "both must cover the same domain")  # fmt: skip
    result = dolfinx.fem.Function(space, name=function.name)
    result.interpolate_nonmatching(function, owned, found)
    result.x.scatter_forward()
    return result


def _extent(mesh: Mesh) -> float:
    """Return the longest side of a mesh's bounding box. Collective: yes."""
    points = mesh.geometry.x
    lower, upper = np.full(3, np.inf), np.full(3, -np.inf)
    mesh.comm.Allreduce(points.min(axis=0, initial=np.inf), lower, op=MPI.MIN)
    mesh.comm.Allreduce(points.max(axis=0, initial=-np.inf), upper, op=MPI.MAX)
    return float((upper - lower).max())


def _rebalance(data: MeshData) -> MeshData:
    """Distribute the cells anew if a rank has far more than its share. Collective: yes."""
    mesh, dimension = data.mesh, data.mesh.topology.dim
    cells = mesh.topology.index_map(dimension)
    most = mesh.comm.allreduce(cells.size_local, op=MPI.MAX)
    if most * mesh.comm.size <= _LARGEST_IMBALANCE * cells.size_global:
        return data
    nodes = mesh.geometry.index_map()
    local = mesh.geometry.dofmaps[0][: cells.size_local]
    everywhere = nodes.local_to_global(np.ascontiguousarray(local.ravel())).reshape(local.shape)
    points = np.ascontiguousarray(mesh.geometry.x[: nodes.size_local, : mesh.geometry.dim])
    # The dispatching overload hides its second signature from mypy.
    partitioner = dolfinx.mesh.create_cell_partitioner(  # type: ignore[call-arg]
        dolfinx.mesh.GhostMode.shared_facet, max_facet_to_cell_links=2
    )
    element = basix.ufl.element("Lagrange", mesh.topology.cell_name(), 1, shape=(mesh.geometry.dim,), dtype=np.float64)
    balanced = dolfinx.mesh.create_mesh(mesh.comm, everywhere, ufl.Mesh(element), points, partitioner)
    moved: list[dolfinx.mesh.MeshTags | None] = []
    for tags in (data.cell_tags, data.facet_tags):
        if tags is None:
            moved.append(None)
            continue
        owned = tags.indices < mesh.topology.index_map(tags.dim).size_local
        mesh.topology.create_connectivity(tags.dim, dimension)
        vertices = dolfinx.mesh.entities_to_geometry(mesh, tags.dim, tags.indices[owned])
        numbers = nodes.local_to_global(np.ascontiguousarray(vertices.ravel())).reshape(vertices.shape)
        moved.append(_tags_by_nodes(balanced, tags.dim, numbers, tags.values[owned]))
    return dataclasses.replace(data, mesh=balanced, cell_tags=moved[0], facet_tags=moved[1])


def _values_of_entities(tags: dolfinx.mesh.MeshTags) -> Integers:
    """Return the tag of every entity that this rank sees, `_UNTAGGED` where there is none. Collective: no."""
    entities = tags.topology.index_map(tags.dim)
    values = np.full(entities.size_local + entities.num_ghosts, _UNTAGGED, dtype=np.int32)
    values[tags.indices] = tags.values
    return values


def _facets_of_cells(mesh: Mesh) -> Integers:
    """Return the facets of every cell that this rank sees, shape (cells, facets of a cell). Collective: yes."""
    dimension = mesh.topology.dim
    mesh.topology.create_connectivity(dimension, dimension - 1)
    facets = mesh.topology.connectivity(dimension, dimension - 1)
    return facets.array.reshape(facets.num_nodes, -1)


def _distribute_tags(mesh: Mesh, dimension: int, entities: Integers, values: Integers) -> dolfinx.mesh.MeshTags:
    """Make tags from those of owned entities: the owners send them to the ranks that have these entities as ghosts.

    `dolfinx.mesh.transfer_meshtag` refuses meshes with ghosts. Collective: yes.
    """
    mesh.topology.create_connectivity(dimension, mesh.topology.dim)
    mine = (entities < mesh.topology.index_map(dimension).size_local) & (values != _UNTAGGED)
    nodes = dolfinx.mesh.entities_to_geometry(mesh, dimension, entities[mine])
    return _tags_by_nodes(mesh, dimension, np.asarray(mesh.geometry.input_global_indices)[nodes], values[mine])


def _tags_by_nodes(mesh: Mesh, dimension: int, nodes: npt.NDArray[np.int64], values: Integers) -> dolfinx.mesh.MeshTags:
    """Make tags from entities given by the input numbers of their vertices, on any rank. Collective: yes."""
    vertices, local_values = distribute_entity_data(mesh, dimension, nodes, values)
    mesh.topology.create_connectivity(dimension, mesh.topology.dim)
    tags = dolfinx.mesh.meshtags_from_entities(mesh, dimension, adjacencylist(vertices), local_values)
    tags.name = "cell_tags" if dimension == mesh.topology.dim else "facet_tags"
    return tags
