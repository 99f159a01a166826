"""XDMF files as plain arrays, through DOLFINx on one rank."""

import contextlib
import dataclasses
import math
import os
import pathlib
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator

from mpi4py import MPI

import numpy as np
from dolfinx.io import XDMFFile
from dolfinx.mesh import Mesh, MeshTags, entities_to_geometry

from pdeopt.fem.mesh_arrays import (
    DIMENSION,
    NODE_COUNT,
    SUPPORTED_CELLS,
    VERTEX_COUNT,
    ElementBlock,
    MeshArrays,
    TaggedEntities,
    collect_mesh,
)
from pdeopt.fem.mesh_check import check_cells
from pdeopt.fem.mesh_meshio import choose_tag_data, read_with_meshio
from pdeopt.report import MeshError

_GRIDS = "/Xdmf/Domain"
# No file declares more numbers than this for each byte that it has, compressed or not.
_MOST_NUMBERS_PER_BYTE = 1000


def read_xdmf(path: pathlib.Path) -> MeshArrays:
    """Read the mesh of an XDMF file and the tags in it.

    Tags are integer cell attributes of the mesh's own grid, or grids of their own as DOLFINx writes them.

    Raises
    ------
    MeshError
        If the file is damaged, its HDF5 file is missing or damaged, or it has cells that DOLFINx cannot use.

    Collective: no.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise MeshError(f"its XML is broken ({error}); write it again") from error
    in_text = _check_data_items(path, root)
    grids = [grid for grid in root.findall("Domain/Grid") if grid.find("Topology") is not None]
    meshes = [grid for grid in grids if grid.find("Geometry") is not None]
    if len(meshes) != 1:
        raise MeshError(f"it has {len(meshes)} grids with topology and geometry of their own; keep one mesh in a file")
    encoding = XDMFFile.Encoding.ASCII if in_text else XDMFFile.Encoding.HDF5
    try:
        with _silent_hdf5(), XDMFFile(MPI.COMM_SELF, str(path), "r", encoding=encoding) as file:
            name = meshes[0].get("Name", "")
            arrays = _read_cells(file, name)
            attributes = _tag_attributes(file, grids, meshes[0], arrays.topological_dimension)
            if attributes:
                check_cells(arrays)  # DOLFINx is about to build a mesh of them
                arrays = _with_tags(file, file.read_mesh(name=name), arrays, attributes)
            return arrays
    except RuntimeError as error:
        if len(grids) > 1:
            raise MeshError(f"DOLFINx cannot read it ({error}); write it again") from error
    # What meshio writes is compressed by default, and an HDF5 library may lack the filter.
    return read_with_meshio(path)


def _check_data_items(path: pathlib.Path, root: ElementTree.Element) -> bool:
    """Check what the data items declare against the files there are; return whether all data are in the XML."""
    heavy = path.with_suffix(".h5")
    in_text = True
    for item in root.iter("DataItem"):
        size = path.stat().st_size
        if item.get("Format", "XML").upper() == "HDF":
            in_text = False
            named = (item.text or "").strip().partition(":")[0]
            if named != heavy.name:
                raise MeshError(f"it refers to the data file '{named}', but DOLFINx reads '{heavy.name}' beside it; "
                                "rename one of them")  # fmt: skip
            if not heavy.is_file() or heavy.stat().st_size == 0:
                raise MeshError(f"its data file {heavy.name} is missing or empty; copy it beside the XDMF file")
            size = heavy.stat().st_size
        declared = item.get("Dimensions", "0")
        if not all(part.isdigit() for part in declared.split()):
            raise MeshError(f'a data item has Dimensions="{declared}"; write it again')
        if math.prod(int(part) for part in declared.split()) > _MOST_NUMBERS_PER_BYTE * size:
            raise MeshError(f"a data item declares {declared} numbers, in a file of {size} bytes; write it again")
    return in_text


@contextlib.contextmanager
def _silent_hdf5() -> Iterator[None]:
    """Keep HDF5's error stack off the terminal: DOLFINx raises the error, and meshio may still read the file."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _read_cells(file: XDMFFile, name: str) -> MeshArrays:
    shape, degree = file.read_cell_type(name, _GRIDS)
    cells = file.read_topology_data(name, _GRIDS).astype(np.int64)
    points = file.read_geometry_data(name, _GRIDS)
    if cells.shape[1] != NODE_COUNT.get((shape.name, degree)):
        raise MeshError(f"its cells are of type {shape.name} with {cells.shape[1]} nodes; use {SUPPORTED_CELLS}")
    untagged = np.zeros(len(cells), dtype=np.int64)
    return collect_mesh(points, [ElementBlock(shape.name, degree, cells, untagged, untagged != 0)], [])


def _tag_attributes(
    file: XDMFFile, grids: list[ElementTree.Element], mesh_grid: ElementTree.Element, dimension: int
) -> list[tuple[str, str]]:
    """Return (grid, attribute) of the cell tags and of the facet tags, as far as there are any."""
    found: dict[int, dict[str, str]] = {dimension: {}, dimension - 1: {}}
    for grid in grids:
        shape, _ = file.read_cell_type(grid.get("Name", ""), _GRIDS)
        for attribute in grid.findall("Attribute"):
            item = attribute.find("DataItem")
            if attribute.get("Center") != "Cell" or item is None:
                continue
            # DOLFINx leaves the type of its tags out.
            kind = item.get("NumberType") or item.get("DataType") or ("Float" if grid is mesh_grid else "Int")
            if kind in ("Int", "UInt") and DIMENSION.get(shape.name) in found:
                found[DIMENSION[shape.name]][attribute.get("Name", "")] = grid.get("Name", "")
    chosen = [(tags, choose_tag_data(tags)) for tags in found.values()]
    return [(tags[name], name) for tags, name in chosen if name is not None]


def _with_tags(
    file: XDMFFile, mesh: Mesh[np.float64], arrays: MeshArrays, attributes: list[tuple[str, str]]
) -> MeshArrays:
    tagged: dict[int, TaggedEntities] = {}
    for grid, attribute in attributes:
        entities = file.read_topology_data(grid, _GRIDS)
        if entities.size and not 0 <= entities.min() <= entities.max() < len(arrays.points):
            raise MeshError(f"its tags '{attribute}' refer to node {entities.max()}, but there are nodes 0 to "
                            f"{len(arrays.points) - 1} only; write it again")  # fmt: skip
        dimension = DIMENSION[file.read_cell_type(grid, _GRIDS)[0].name]
        mesh.topology.create_entities(dimension)
        mesh.topology.create_connectivity(dimension, mesh.topology.dim)
        tags = file.read_meshtags(mesh, grid, attribute_name=attribute)
        tagged[dimension] = _entities_of(mesh, tags, arrays.shape)
    return dataclasses.replace(
        arrays,
        cell_tags=tagged.get(mesh.topology.dim, arrays.cell_tags),
        facet_tags=tagged.get(mesh.topology.dim - 1, arrays.facet_tags),
    )


def _entities_of(mesh: Mesh[np.float64], tags: MeshTags, shape: str) -> TaggedEntities:
    """Return tagged entities by the file's node numbers."""
    facet_vertices = {"triangle": 2, "quadrilateral": 2, "tetrahedron": 3, "hexahedron": 4}
    count = VERTEX_COUNT[shape] if tags.dim == mesh.topology.dim else facet_vertices[shape]
    nodes = entities_to_geometry(mesh, tags.dim, tags.indices)[:, :count]
    return TaggedEntities(mesh.geometry.input_global_indices[nodes].astype(np.int64), tags.values.astype(np.int64))
