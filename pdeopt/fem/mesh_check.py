"""The verdict on a mesh, reached on one rank from plain arrays before any collective call is made.

DOLFINx trusts its input: an index out of range ends the process, a NaN coordinate or an inverted cell gives a
wrong answer without a word.
"""

import basix
import numpy as np
import numpy.typing as npt

from pdeopt.fem.mesh_arrays import Floats, Integers, MeshArrays, TaggedEntities, coordinate_element
from pdeopt.report import MeshError

# A Jacobian determinant below this fraction of (cell extent)^dimension is rounding, not volume:
# boundary layers of aspect ratio 1e6 stay well above it.
_SMALLEST_RELATIVE_VOLUME = 1e-13
_CELLS_AT_A_TIME = 100_000  # bounds the memory of the Jacobians


def check_cells(arrays: MeshArrays) -> None:
    """Check that the cells form a mesh that can be computed on.

    Raises
    ------
    MeshError
        If a coordinate is NaN or Inf, a node index is out of range, two nodes coincide, or a cell is degenerate,
        tangled, listed twice, folded over its neighbour, or the third on one facet.

    Collective: no.
    """
    _check_coordinates(arrays.points)
    for entities in (arrays.cells, arrays.facet_tags.vertices):
        _check_node_range(entities, len(arrays.points))
    _check_repeated_nodes(arrays.cells)
    pair = _first_equal_rows(np.sort(arrays.vertices, axis=1))
    if pair is not None:
        raise MeshError(f"cells {pair[0]} and {pair[1]} have the same vertices {_where(arrays, pair[0])}; delete one "
                        "(a cell in two physical groups is written twice: make the groups disjoint)")  # fmt: skip
    _check_coincident_nodes(arrays)
    for first in range(0, len(arrays.cells), _CELLS_AT_A_TIME):
        _check_jacobians(arrays, first)
    _check_neighbours(arrays)


def check_tags(arrays: MeshArrays) -> None:
    """Check that tags fit DOLFINx's MeshTags: 32-bit integers, one per cell or facet.

    Raises
    ------
    MeshError
        If a tag is too large, or an entity carries two different tags.

    Collective: no.
    """
    for kind, entities in (("cell", arrays.cell_tags), ("facet", arrays.facet_tags)):
        if len(entities.values) and np.abs(entities.values).max() > np.iinfo(np.int32).max:
            raise MeshError(f"a {kind} tag is {np.abs(entities.values).max()}; use tags below 2^31")
        clash = _first_clash(entities)
        if clash is not None:
            raise MeshError(f"a {kind} with the nodes {clash[0].tolist()} carries the tags {clash[1]} and {clash[2]}; "
                            "make the groups disjoint")  # fmt: skip


def _check_coordinates(points: Floats) -> None:
    bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if len(bad):
        raise MeshError(f"node {bad[0]} (counted from 0) has the coordinates {points[bad[0]].tolist()} "
                        f"({len(bad)} nodes are not finite); write the mesh again")  # fmt: skip
    if len(points) == 0 or np.ptp(points, axis=0).max() == 0.0:
        raise MeshError(f"its {len(points)} nodes span no area; write the mesh again")


def _check_node_range(entities: Integers, node_count: int) -> None:
    if entities.size and (entities.min() < 0 or entities.max() >= node_count):
        worst = entities.min() if entities.min() < 0 else entities.max()
        raise MeshError(f"an element refers to node {worst}, but there are nodes 0 to {node_count - 1} only; "
                        "write the mesh again with all its nodes")  # fmt: skip


def _check_repeated_nodes(cells: Integers) -> None:
    ordered = np.sort(cells, axis=1)
    bad = np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(axis=1))
    if len(bad):
        raise MeshError(f"cell {bad[0]} lists a node twice: {cells[bad[0]].tolist()}; remove the degenerate cell")


def _check_coincident_nodes(arrays: MeshArrays) -> None:
    """Two nodes in one place tear the mesh along the cells that meet there: the answer would be silently wrong."""
    used = np.unique(arrays.cells)
    points = arrays.points[used]
    shifted = points - points.min(axis=0)
    pair = _first_equal_rows(np.round(shifted / (1e-11 * shifted.max())).astype(np.int64))
    if pair is not None:
        place = points[pair[0]].tolist()
        raise MeshError(f"nodes {used[pair[0]]} and {used[pair[1]]} (counted from 0) are both at {place}, so the mesh "
                        "is torn there; merge them (in Gmsh: gmsh.model.mesh.removeDuplicateNodes)")  # fmt: skip


def _check_jacobians(arrays: MeshArrays, first: int) -> None:
    """Check the map from the reference cell at quadrature points, where forms will evaluate it."""
    cells = arrays.cells[first : first + _CELLS_AT_A_TIME]
    dimension = arrays.geometric_dimension
    element = coordinate_element(arrays.shape, arrays.degree)
    quadrature = np.asarray(basix.make_quadrature(element.cell_type, 2 * arrays.degree)[0])
    gradients: Floats = np.asarray(element.tabulate(1, quadrature))[1:, :, :, 0]
    points = arrays.points[cells][:, :, :dimension]
    jacobians = np.einsum("dqn,cng->cqgd", gradients, points)
    volumes: Floats
    if dimension == arrays.topological_dimension:
        volumes = np.linalg.det(jacobians)
    else:
        volumes = np.sqrt(np.maximum(np.linalg.det(np.einsum("cqgd,cqge->cqde", jacobians, jacobians)), 0.0))
    scale = np.ptp(points, axis=1).max(axis=1) ** arrays.topological_dimension
    flat = np.flatnonzero(np.abs(volumes).max(axis=1) <= _SMALLEST_RELATIVE_VOLUME * scale)
    if len(flat):
        raise MeshError(f"cell {first + flat[0]} has no volume {_where(arrays, first + flat[0])} "
                        f"({len(flat)} such cells); remove it or mesh again")  # fmt: skip
    tangled = np.flatnonzero((volumes.min(axis=1) < 0) & (volumes.max(axis=1) > 0) | (np.abs(volumes).min(axis=1) == 0))
    if len(tangled):
        raise MeshError(f"cell {first + tangled[0]} is inverted in part {_where(arrays, first + tangled[0])} "
                        f"({len(tangled)} such cells): its nodes are in the wrong order or its sides cross; "
                        "mesh again, for curved cells with Mesh.HighOrderOptimize in Gmsh")  # fmt: skip


def _check_neighbours(arrays: MeshArrays) -> None:
    """Check that a facet has at most two cells, one on either side."""
    vertices, dimension = arrays.vertices, arrays.topological_dimension
    local_facets = np.array(basix.topology(basix.CellType[arrays.shape])[dimension - 1])
    facets = np.sort(vertices[:, local_facets], axis=2).reshape(-1, local_facets.shape[1])
    owner = np.repeat(np.arange(len(vertices)), len(local_facets))
    order = np.lexsort(facets.T)
    equal = (facets[order[1:]] == facets[order[:-1]]).all(axis=1)
    crowded = np.flatnonzero(equal[1:] & equal[:-1])
    if len(crowded):
        three = owner[order[crowded[0] : crowded[0] + 3]]
        raise MeshError(f"cells {three.tolist()} share one facet {_where(arrays, three[0])}; "
                        "a facet has two sides: remove the overlapping cells")  # fmt: skip
    if arrays.geometric_dimension != dimension:
        return  # a surface in space has no sides to compare
    corners = arrays.points[facets[:, :dimension], :dimension]
    centres = arrays.points[vertices, :dimension].mean(axis=1)[owner]
    edges = np.concatenate([corners[:, 1:], centres[:, None]], axis=1) - corners[:, :1]
    side = np.sign(np.linalg.det(edges))
    left, right = order[:-1][equal], order[1:][equal]
    folded = np.flatnonzero(side[left] * side[right] > 0)
    if len(folded):
        pair = owner[left[folded[0]]], owner[right[folded[0]]]
        raise MeshError(f"cells {pair[0]} and {pair[1]} lie on the same side of their common facet "
                        f"{_where(arrays, pair[0])}: one of them is inverted; mesh again")  # fmt: skip


def _where(arrays: MeshArrays, cell: int | np.int64) -> str:
    centre = arrays.points[arrays.vertices[cell]].mean(axis=0)
    return "at (" + ", ".join(f"{value:.6g}" for value in centre[: arrays.geometric_dimension]) + ")"


def _first_equal_rows(rows: Integers) -> tuple[int, int] | None:
    """Return the indices of two equal rows, if there are any."""
    order: npt.NDArray[np.intp] = np.lexsort(rows.T)
    equal = np.flatnonzero((rows[order[1:]] == rows[order[:-1]]).all(axis=1))
    return (int(order[equal[0]]), int(order[equal[0] + 1])) if len(equal) else None


def _first_clash(entities: TaggedEntities) -> tuple[Integers, int, int] | None:
    """Return the vertices and the two tags of an entity that is tagged twice, if there is one."""
    rows = np.sort(entities.vertices, axis=1)
    order = np.lexsort((entities.values, *rows.T))
    rows, values = rows[order], entities.values[order]
    clash = np.flatnonzero((rows[1:] == rows[:-1]).all(axis=1) & (values[1:] != values[:-1]))
    return (rows[clash[0]], int(values[clash[0]]), int(values[clash[0] + 1])) if len(clash) else None
