"""A mesh as plain arrays on one rank: what every file reader produces and every check looks at."""

import dataclasses
from collections.abc import Mapping, Sequence

from mpi4py import MPI  # noqa: F401  MPI must be loaded before basix and DOLFINx

import basix
import numpy as np
import numpy.typing as npt

from pdeopt.report import MeshError

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

DIMENSION = {"point": 0, "interval": 1, "triangle": 2, "quadrilateral": 2, "tetrahedron": 3, "hexahedron": 3}
VERTEX_COUNT = {"point": 1, "interval": 2, "triangle": 3, "quadrilateral": 4, "tetrahedron": 4, "hexahedron": 8}
FACET_SHAPE = {
    "triangle": "interval",
    "quadrilateral": "interval",
    "tetrahedron": "triangle",
    "hexahedron": "quadrilateral",
}
# Nodes of the complete Lagrange elements that a mesh may consist of.
NODE_COUNT = {
    ("triangle", 1): 3,
    ("triangle", 2): 6,
    ("quadrilateral", 1): 4,
    ("quadrilateral", 2): 9,
    ("tetrahedron", 1): 4,
    ("tetrahedron", 2): 10,
    ("hexahedron", 1): 8,
    ("hexahedron", 2): 27,
}
SUPPORTED_CELLS = (
    "triangles, quadrilaterals, tetrahedra and hexahedra, linear or complete quadratic "
    "(in Gmsh: Mesh.ElementOrder 1 or 2, Mesh.SecondOrderIncomplete 0)"
)


@dataclasses.dataclass(frozen=True)
class ElementBlock:
    """Elements of one type as a file lists them.

    Parameters
    ----------
    shape
        DOLFINx's name of the cell ("point" and "interval" included).
    degree
        Polynomial degree of the geometry.
    nodes
        Rows of the point array, shape ``(elements, nodes per element)``, in DOLFINx's order.
    tags
        The tag of each element, shape ``(elements,)``.
    tagged
        Which elements have a tag at all, shape ``(elements,)``.
    """

    shape: str
    degree: int
    nodes: Integers
    tags: Integers
    tagged: npt.NDArray[np.bool_]

    @property
    def dimension(self) -> int:
        """Topological dimension of the elements."""
        return DIMENSION[self.shape]


@dataclasses.dataclass(frozen=True)
class TaggedEntities:
    """Cells or facets with a tag: ``vertices``, shape ``(n, vertices per entity)``, and ``values``, shape ``(n,)``."""

    vertices: Integers
    values: Integers


@dataclasses.dataclass(frozen=True)
class MeshArrays:
    """A whole mesh of one cell type.

    Parameters
    ----------
    points
        Node coordinates in the file's unit of length, shape ``(nodes, 3)``.
    shape, degree
        DOLFINx's name of the cell, and the degree of its geometry.
    cells
        Rows of ``points``, shape ``(cells, nodes per cell)``, in DOLFINx's order.
    cell_tags, facet_tags
        The entities that carry a tag; none gives zero rows.
    groups
        Name -> (dimension, tag) of the named groups that have cells or facets.
    """

    points: Floats
    shape: str
    degree: int
    cells: Integers
    cell_tags: TaggedEntities
    facet_tags: TaggedEntities
    groups: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)

    @property
    def topological_dimension(self) -> int:
        """Dimension of the cells: 2 or 3."""
        return DIMENSION[self.shape]

    @property
    def geometric_dimension(self) -> int:
        """Number of coordinates that the mesh needs: 2 for triangles and quadrilaterals in the plane z = 0."""
        extent = float(np.ptp(self.points, axis=0).max())
        flat = bool(np.abs(self.points[:, 2]).max() <= 1e-12 * extent)
        return 2 if self.topological_dimension == 2 and flat else 3

    @property
    def vertices(self) -> Integers:
        """Vertices of the cells, shape ``(cells, vertices per cell)``: a cell lists them before its other nodes."""
        return self.cells[:, : VERTEX_COUNT[self.shape]]


def coordinate_element(shape: str, degree: int) -> basix.finite_element.FiniteElement:
    """Return the Lagrange element that maps the reference cell to the cells of a mesh."""
    return basix.create_element(basix.ElementFamily.P, basix.CellType[shape], degree, basix.LagrangeVariant.equispaced)


def collect_mesh(
    points: npt.NDArray[np.floating], blocks: Sequence[ElementBlock], names: Sequence[tuple[str, int, int]]
) -> MeshArrays:
    """Keep the elements of the top dimension as cells, those one below as tagged facets, and drop the rest.

    Parameters
    ----------
    points
        Node coordinates, shape ``(nodes, 1 to 3)``.
    blocks
        All elements of the file.
    names
        (name, dimension, tag) of each named group.

    Raises
    ------
    MeshError
        If there are no cells, or cells of several types, or a name that stands for two groups.

    Collective: no.
    """
    blocks = [block for block in blocks if len(block.nodes)]
    dimension = max((block.dimension for block in blocks), default=0)
    if dimension < 2:
        found = ", ".join(sorted({f"{block.shape}s" for block in blocks})) or "no elements at all"
        raise MeshError(f"it has {found}; write the cells too: {SUPPORTED_CELLS}")
    top = [block for block in blocks if block.dimension == dimension]
    kinds = sorted({(block.shape, block.degree) for block in top})
    if len(kinds) > 1:
        listed = " and ".join(
            f"{sum(len(b.nodes) for b in top if (b.shape, b.degree) == kind)} {kind[0]}s of degree {kind[1]}"
            for kind in kinds
        )
        raise MeshError(f"it mixes {listed}; mesh it with one cell type (in Gmsh: Mesh.RecombineAll, or none of it)")
    shape, degree = kinds[0]
    facets = [block for block in blocks if block.shape == FACET_SHAPE[shape]]
    cell_tags, facet_tags = _tagged(top, shape), _tagged(facets, FACET_SHAPE[shape])
    present = {dimension: set(cell_tags.values.tolist()), dimension - 1: set(facet_tags.values.tolist())}
    groups: dict[str, tuple[int, int]] = {}
    for name, group_dimension, tag in names:
        if tag not in present.get(group_dimension, set()):
            continue
        if groups.setdefault(name, (group_dimension, tag)) != (group_dimension, tag):
            raise MeshError(f"the name '{name}' stands for the groups {groups[name]} and {(group_dimension, tag)} "
                            "(dimension, tag); give each its own name")  # fmt: skip
    padded = np.zeros((len(points), 3))
    padded[:, : points.shape[1]] = points
    return MeshArrays(padded, shape, degree, np.concatenate([b.nodes for b in top]), cell_tags, facet_tags, groups)


def _tagged(blocks: Sequence[ElementBlock], shape: str) -> TaggedEntities:
    """Return the elements of blocks of one shape that carry a tag."""
    count = VERTEX_COUNT[shape]
    vertices = [block.nodes[block.tagged, :count] for block in blocks]
    values = [block.tags[block.tagged] for block in blocks]
    return TaggedEntities(
        np.concatenate([np.empty((0, count), dtype=np.int64), *vertices]),
        np.concatenate([np.empty(0, dtype=np.int64), *values]),
    )


def drop_unused_nodes(arrays: MeshArrays) -> MeshArrays:
    """Renumber the nodes so that only those of cells remain; facets with another node go too.

    Collective: no.
    """
    used = np.zeros(len(arrays.points), dtype=bool)
    used[arrays.cells] = True
    number = np.cumsum(used) - 1
    facets = arrays.facet_tags
    kept = used[facets.vertices].all(axis=1)
    return dataclasses.replace(
        arrays,
        points=arrays.points[used],
        cells=number[arrays.cells],
        cell_tags=TaggedEntities(number[arrays.cell_tags.vertices], arrays.cell_tags.values),
        facet_tags=TaggedEntities(number[facets.vertices[kept]], facets.values[kept]),
    )
