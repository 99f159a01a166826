"""Meshes: read from files with their tags, after a check that all ranks share, and tagged by place."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping

from mpi4py import MPI

import basix.ufl
import dolfinx.mesh
import numpy as np
import numpy.typing as npt
import ufl
from dolfinx.graph import adjacencylist
from dolfinx.io.utils import distribute_entity_data

from pdeopt.fem.mesh_arrays import FACET_SHAPE, NODE_COUNT, VERTEX_COUNT, MeshArrays, TaggedEntities, drop_unused_nodes
from pdeopt.fem.mesh_check import check_cells, check_tags
from pdeopt.fem.mesh_gmsh import read_msh
from pdeopt.fem.mesh_meshio import read_with_meshio
from pdeopt.fem.mesh_xdmf import read_xdmf
from pdeopt.parallel import collective_errors, on_root, raise_everywhere
from pdeopt.report import MeshError, MissingPackageError

Mesh = dolfinx.mesh.Mesh[np.float64]
Locator = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.bool_]]


@dataclasses.dataclass(frozen=True)
class MeshData:
    """A mesh and what its file says about its parts.

    Parameters
    ----------
    mesh
        The distributed mesh, in the file's unit of length.
    cell_tags, facet_tags
        Tags of cells and of facets; None if the file has none.
    physical_groups
        Name -> (dimension, tag) of the named groups of cells and facets.
    """

    mesh: Mesh
    cell_tags: dolfinx.mesh.MeshTags | None
    facet_tags: dolfinx.mesh.MeshTags | None
    physical_groups: Mapping[str, tuple[int, int]]

    def tag(self, name: str) -> int:
        """Return the tag of a named group.

        Raises
        ------
        MeshError
            If the mesh has no group of that name; the message lists those it has.

        Collective: no.
        """
        if name not in self.physical_groups:
            known = ", ".join(f"'{group}'" for group in self.physical_groups) or "no named groups at all"
            raise MeshError(f"the mesh has no group '{name}'; it has {known}")
        return self.physical_groups[name][1]


@dataclasses.dataclass(frozen=True)
class _Verdict:
    """What all ranks must know before the mesh is made together."""

    shape: str
    degree: int
    geometric_dimension: int
    has_cell_tags: bool
    has_facet_tags: bool
    groups: dict[str, tuple[int, int]]


def read_mesh(path: str | os.PathLike[str], comm: MPI.Comm = MPI.COMM_WORLD) -> MeshData:
    """Read a mesh of any common format, with the tags of its cells and facets.

    Gmsh's .msh (2.2 and 4.1), XDMF, and everything that meshio reads (.vtu, .vtk, .med, .inp, ...). Rank 0 reads and
    checks the whole mesh, and holds it in memory meanwhile; only a mesh that passes is distributed. Nodes without
    cells and elements other than cells and facets are dropped. Triangles and quadrilaterals in the plane z = 0 give
    a mesh with two coordinates.

    Parameters
    ----------
    path
        The file, as rank 0 sees it.
    comm
        Communicator to distribute the mesh over.

    Returns
    -------
    MeshData
        Mesh, tags and names. Ghost cells are shared over facets.

    Raises
    ------
    MeshError
        On all ranks, if the file cannot be read or the mesh cannot be computed on.
    MissingPackageError
        On all ranks, if the format needs a package that is absent (h5py for MED and compressed XDMF).

    Collective: yes.
    """
    arrays: MeshArrays | None = None

    def verdict() -> _Verdict:
        nonlocal arrays
        arrays = _read_and_check(pathlib.Path(path))
        return _Verdict(
            arrays.shape,
            arrays.degree,
            arrays.geometric_dimension,
            len(arrays.cell_tags.values) > 0,
            len(arrays.facet_tags.values) > 0,
            dict(arrays.groups),
        )

    shared = on_root(comm, verdict)
    mesh = _distribute_mesh(arrays, shared, comm)
    dimension = mesh.topology.dim
    cell_tags = facet_tags = None
    if shared.has_cell_tags:
        count = VERTEX_COUNT[shared.shape]
        cell_tags = _distribute_tags(mesh, dimension, arrays.cell_tags if arrays else None, count)
        cell_tags.name = "cell_tags"
    if shared.has_facet_tags:
        count = VERTEX_COUNT[FACET_SHAPE[shared.shape]]
        facet_tags = _distribute_tags(mesh, dimension - 1, arrays.facet_tags if arrays else None, count)
        facet_tags.name = "facet_tags"
    return MeshData(mesh, cell_tags, facet_tags, shared.groups)


def _read_and_check(path: pathlib.Path) -> MeshArrays:
    """Read and check on this rank alone; whatever goes wrong is a `MeshError` that names the file."""
    try:
        if not path.exists():
            raise MeshError("there is no such file; check the path (it is relative to the working directory)")
        if not path.is_file():
            raise MeshError("it is not a file; give the mesh file itself")
        if path.stat().st_size == 0:
            raise MeshError("it is empty; write the mesh again")
        readers = {".msh": read_msh, ".xdmf": read_xdmf, ".xmf": read_xdmf}
        arrays = readers.get(path.suffix.lower(), read_with_meshio)(path)
        check_cells(arrays)
        check_tags(arrays)
        return drop_unused_nodes(arrays)
    except MeshError as error:
        raise MeshError(f"mesh file {path}: {error}") from error
    except ImportError as error:
        raise MissingPackageError(
            f"mesh file {path}: reading '{path.suffix}' needs {error.name}; install it"
        ) from error
    except Exception as error:  # readers meet damage in too many ways to list
        kind = type(error).__name__
        raise MeshError(f"mesh file {path}: it cannot be read ({kind}: {error}); write it again") from error


def _distribute_mesh(arrays: MeshArrays | None, shared: _Verdict, comm: MPI.Comm) -> Mesh:
    """Make the distributed mesh from the arrays of rank 0; the other ranks have none. Collective: yes."""
    dimension = shared.geometric_dimension
    points = np.empty((0, dimension))
    cells = np.empty((0, NODE_COUNT[shared.shape, shared.degree]), dtype=np.int64)
    if arrays is not None:
        points, cells = np.ascontiguousarray(arrays.points[:, :dimension]), arrays.cells
    element = basix.ufl.element("Lagrange", shared.shape, shared.degree, shape=(dimension,), dtype=np.float64)
    # The dispatching overload hides its second signature from mypy.
    partitioner = dolfinx.mesh.create_cell_partitioner(  # type: ignore[call-arg]
        dolfinx.mesh.GhostMode.shared_facet, max_facet_to_cell_links=2
    )
    return dolfinx.mesh.create_mesh(comm, cells, ufl.Mesh(element), points, partitioner)


def _distribute_tags(
    mesh: Mesh, dimension: int, entities: TaggedEntities | None, vertex_count: int
) -> dolfinx.mesh.MeshTags:
    """Hand the tags of rank 0 to the ranks that have the entities. Collective: yes."""
    vertices, values = np.empty((0, vertex_count), dtype=np.int64), np.empty(0, dtype=np.int32)
    if entities is not None:
        vertices, values = entities.vertices, entities.values.astype(np.int32)
    local_vertices, local_values = distribute_entity_data(mesh, dimension, vertices, values)
    mesh.topology.create_connectivity(dimension, mesh.topology.dim)
    return dolfinx.mesh.meshtags_from_entities(mesh, dimension, adjacencylist(local_vertices), local_values)


def tag_boundary(mesh: Mesh, locators: Mapping[int, Locator]) -> dolfinx.mesh.MeshTags:
    """Tag the boundary facets of a mesh by where they are.

    Parameters
    ----------
    mesh
        A mesh, for instance a generated one.
    locators
        Tag -> function of points, shape ``(3, n)``, that says which of them belong, shape ``(n,)``. A facet gets the
        tag if all its vertices belong.

    Returns
    -------
    MeshTags
        Tags of the facets found; other facets have none.

    Raises
    ------
    MeshError
        On all ranks, if a locator finds no facet, or two find the same one.

    Collective: yes.
    """
    dimension = mesh.topology.dim - 1
    mesh.topology.create_entities(dimension)
    mesh.topology.create_connectivity(dimension, mesh.topology.dim)
    found: dict[int, npt.NDArray[np.int32]] = {}
    with collective_errors(mesh.comm):
        for tag, locator in locators.items():
            found[tag] = dolfinx.mesh.locate_entities_boundary(mesh, dimension, locator)
    totals = mesh.comm.allreduce(np.array([len(facets) for facets in found.values()], dtype=np.int64))
    for tag, total in zip(found, totals, strict=True):
        if total == 0:
            raise MeshError(f"the locator of tag {tag} finds no boundary facet; compare with a tolerance (np.isclose)")
    facets = np.concatenate([np.empty(0, dtype=np.int32), *found.values()])
    tag_of_facet = [np.full(len(facets_of_tag), tag, dtype=np.int32) for tag, facets_of_tag in found.items()]
    values = np.concatenate([np.empty(0, dtype=np.int32), *tag_of_facet])
    order = np.argsort(facets, kind="stable")
    facets, values = facets[order], values[order]
    twice = np.flatnonzero(facets[1:] == facets[:-1])
    clash = None
    if len(twice):
        clash = MeshError(f"the locators of tags {values[twice[0]]} and {values[twice[0] + 1]} find the same facet; "
                          "make them disjoint")  # fmt: skip
    raise_everywhere(mesh.comm, clash)
    tags = dolfinx.mesh.meshtags(mesh, dimension, facets, values)
    tags.name = "facet_tags"
    return tags
