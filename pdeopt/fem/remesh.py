"""New meshes from a metric by Mmg: the cells of a given size and shape, with the boundary, its tags and the subdomains.

Mmg works on one rank: rank 0 gathers the mesh, and the result is checked like a mesh from a file and distributed.
Needs the package mmgpy (extra ``remesh``).
"""

import dataclasses
import importlib
import math
from typing import Any

from mpi4py import MPI  # noqa: F401  MPI must be loaded before DOLFINx

import basix
import dolfinx
import numpy as np
import numpy.typing as npt

from pdeopt.fem.mesh import MeshData, _distribute_mesh, _distribute_tags, _Verdict
from pdeopt.fem.mesh_arrays import MeshArrays, TaggedEntities, drop_unused_nodes
from pdeopt.fem.mesh_check import check_cells, check_tags
from pdeopt.fem.metric import UNIT_VOLUME
from pdeopt.parallel import on_root
from pdeopt.report import InputError, MeshError, MissingPackageError

Array = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

_UNTAGGED = np.iinfo(np.int64).min
_MOST_CELLS = 1e8
_ROUNDING = 1e-3  # how far Mmg may move a curved boundary, over the extent of the domain


def remesh(data: MeshData, metric: dolfinx.fem.Function, *, gradation: float = 1.5) -> MeshData:
    """Make a mesh of the same domain whose cells have unit size in a metric.

    Straight parts of the boundary, corners sharper than 45 degrees, the interfaces between cells of different tags and
    the tags of cells and facets are kept. Where a polygonal boundary stands for a curve, Mmg rounds it: new nodes there
    lie up to a thousandth of the domain's extent off the old facets. Carry functions over with
    `pdeopt.fem.adapt.transfer`.

    Parameters
    ----------
    data
        A mesh of straight triangles in the plane, or of tetrahedra, with its tags. Its tagged facets must lie on the
        boundary or between cells of different tags.
    metric
        Symmetric positive definite tensors, continuous and piecewise linear on the mesh, shape (d, d), in the inverse
        square of the unit of length: `pdeopt.fem.metric.hessian_metric` or `goal_metric`.
    gradation
        Largest ratio of the lengths of two edges that meet, > 1.

    Returns
    -------
    MeshData
        The new mesh, with ghost cells shared over facets, its tags, and the same names.

    Raises
    ------
    MissingPackageError
        On all ranks, if mmgpy is not installed.
    MeshError
        If the mesh cannot be treated, or Mmg fails or returns a mesh that cannot be computed on.
    InputError
        If the metric is of another space or not positive definite, or the gradation is out of range.

    Collective: yes.
    """
    mesh = data.mesh
    dimension, shape = mesh.topology.dim, mesh.topology.cell_name()
    straight = mesh.geometry.cmaps[0].degree == 1 and mesh.geometry.dim == dimension
    if shape not in ("triangle", "tetrahedron") or not straight:
        raise MeshError(
            f"cells of shape {shape} and degree {mesh.geometry.cmaps[0].degree} in {mesh.geometry.dim} coordinates "
            "cannot be remeshed: use straight triangles in the plane, or tetrahedra"
        )
    if gradation <= 1.0:
        raise InputError(f"gradation = {gradation} must be greater than 1, the ratio of neighbouring sizes")
    element = metric.function_space.ufl_element()
    if metric.function_space.value_shape != (dimension, dimension) or element.degree != 1 or element.discontinuous:
        raise InputError(f"the metric must be continuous, piecewise linear and of shape ({dimension}, {dimension}), "
                         f"but its element is {element}")  # fmt: skip
    gathered = _gather(data, metric)
    arrays: MeshArrays | None = None

    def work() -> _Verdict:
        nonlocal arrays
        assert gathered is not None
        arrays = _remesh_on_root(*gathered, gradation)
        return _Verdict(shape, 1, dimension, data.cell_tags is not None, data.facet_tags is not None, {})

    shared = on_root(mesh.comm, work)
    fine = _distribute_mesh(arrays, shared, mesh.comm)
    cell_tags = facet_tags = None
    if data.cell_tags is not None:
        cell_tags = _distribute_tags(fine, dimension, arrays.cell_tags if arrays else None, dimension + 1)
        cell_tags.name = data.cell_tags.name
    if data.facet_tags is not None:
        facet_tags = _distribute_tags(fine, dimension - 1, arrays.facet_tags if arrays else None, dimension)
        facet_tags.name = data.facet_tags.name
    return dataclasses.replace(data, mesh=fine, cell_tags=cell_tags, facet_tags=facet_tags)


def _load_mmg() -> Any:
    try:
        return importlib.import_module("mmgpy")
    except ImportError as error:
        raise MissingPackageError("remeshing needs mmgpy: pip install 'pdeopt[remesh]'") from error


def _gather(data: MeshData, metric: dolfinx.fem.Function) -> tuple[MeshArrays, Array] | None:
    """Gather mesh, tags and metric, shape (nodes, d, d), to rank 0; None on the others. Collective: yes."""
    mesh, space = data.mesh, metric.function_space
    dimension = mesh.topology.dim
    nodes, owned_cells = space.dofmap.index_map, mesh.topology.index_map(dimension).size_local
    # The nodes of the metric's space are the vertices; the mesh numbers them in another way.
    of_geometry = np.empty(len(mesh.geometry.x), dtype=np.int32)
    of_geometry[mesh.geometry.dofmaps[0].ravel()] = space.dofmap.list.ravel()

    def everywhere(local: npt.NDArray[np.int32]) -> Integers:
        return nodes.local_to_global(np.ascontiguousarray(local.ravel())).reshape(local.shape)

    def tagged(tags: dolfinx.mesh.MeshTags | None, dim: int) -> tuple[Integers, Integers]:
        if tags is None:
            return np.empty((0, dim + 1), dtype=np.int64), np.empty(0, dtype=np.int64)
        own = tags.indices < mesh.topology.index_map(dim).size_local
        mesh.topology.create_connectivity(dim, dimension)
        geometry = dolfinx.mesh.entities_to_geometry(mesh, dim, tags.indices[own])
        return everywhere(of_geometry[geometry]), tags.values[own].astype(np.int64)

    mine = (
        space.tabulate_dof_coordinates()[: nodes.size_local],
        metric.x.array.reshape(-1, dimension, dimension)[: nodes.size_local],
        everywhere(space.dofmap.list[:owned_cells]),
        *tagged(data.cell_tags, dimension),
        *tagged(data.facet_tags, dimension - 1),
    )
    parts = mesh.comm.gather(mine)
    if parts is None:
        return None
    points, tensors, cells, cell_vertices, cell_values, facet_vertices, facet_values = (
        np.concatenate(arrays) for arrays in zip(*parts, strict=True)
    )
    cell_tags, facet_tags = TaggedEntities(cell_vertices, cell_values), TaggedEntities(facet_vertices, facet_values)
    return MeshArrays(points, mesh.topology.cell_name(), 1, cells, cell_tags, facet_tags), tensors


def _remesh_on_root(old: MeshArrays, metric: Array, gradation: float) -> MeshArrays:
    """Run Mmg and check what it returns. Collective: no."""
    dimension = old.topological_dimension
    if not np.isfinite(metric).all() or not np.linalg.eigvalsh(metric).min() > 0.0:
        raise InputError("the metric is not finite and positive definite everywhere: make it by hessian_metric() or "
                         "goal_metric(), or add a multiple of the identity")  # fmt: skip
    _check_size(old, metric)
    tags, references = _reference_of_cells(old)
    _check_facets(old, references)
    facet_tags, facet_references = np.unique(old.facet_tags.values, return_inverse=True)
    first = len(tags) + 1  # Mmg gives facets without a tag zero or the number of a cell beside them
    mmg = _load_mmg()
    plane = dimension == 2
    worker = mmg.MmgMesh2D() if plane else mmg.MmgMesh3D()
    cell_kind, facet_kind = ("triangles", "edges") if plane else ("tetrahedra", "triangles")
    worker.set_mesh_size(**{"vertices": len(old.points), cell_kind: len(old.cells), facet_kind: len(facet_references)})
    worker.set_vertices(np.ascontiguousarray(old.points[:, :dimension]))
    getattr(worker, f"set_{cell_kind}")(old.cells.astype(np.int32), references)
    if len(facet_references):
        facets = old.facet_tags.vertices.astype(np.int32)
        getattr(worker, f"set_{facet_kind}")(facets, facet_references.astype(np.int64) + first)
    rows, columns = np.triu_indices(dimension)
    worker.set_field("tensor", np.ascontiguousarray(metric[:, rows, columns]))
    extent = float(np.ptp(old.points, axis=0).max())
    try:
        worker.remesh(hgrad=gradation, hausd=_ROUNDING * extent, verbose=-1)
    except RuntimeError as error:
        raise MeshError(f"Mmg could not remesh {len(old.cells)} cells ({error}): ask for a metric that changes less "
                        "from one step to the next")  from error  # fmt: skip
    points = np.zeros((len(worker.get_vertices()), 3))
    points[:, :dimension] = worker.get_vertices()
    cells, references = getattr(worker, f"get_{cell_kind}_with_refs")()
    facets, facet_references = getattr(worker, f"get_{facet_kind}_with_refs")()
    cell_values = tags[references - 1]
    tagged_cells, tagged_facets = cell_values != _UNTAGGED, facet_references >= first
    new = MeshArrays(
        points,
        old.shape,
        1,
        cells.astype(np.int64),
        TaggedEntities(cells[tagged_cells].astype(np.int64), cell_values[tagged_cells]),
        TaggedEntities(facets[tagged_facets].astype(np.int64), facet_tags[facet_references[tagged_facets] - first]),
    )
    check_cells(new)
    check_tags(new)
    return drop_unused_nodes(new)


def _check_size(old: MeshArrays, metric: Array) -> None:
    """Refuse a metric whose mesh no rank could hold; Mmg would fill the memory first. Collective: no."""
    dimension = old.topological_dimension
    corners = old.points[old.cells][:, :, :dimension]
    volumes = np.abs(np.linalg.det(corners[:, 1:] - corners[:, :1])) / math.factorial(dimension)
    density = np.sqrt(np.linalg.det(metric))[old.cells].mean(axis=1)
    wanted = float(volumes @ density) / UNIT_VOLUME[dimension]
    if wanted > _MOST_CELLS:
        raise MeshError(f"the metric asks for {wanted:.2g} cells, more than {_MOST_CELLS:.2g} on one rank: it is the "
                        "inverse square of a length, in the mesh's unit")  # fmt: skip


def _reference_of_cells(old: MeshArrays) -> tuple[Integers, Integers]:
    """Return the tags that occur, and the position of each cell's tag among them counted from 1. Collective: no."""
    values = np.full(len(old.cells), _UNTAGGED, dtype=np.int64)
    rows = np.sort(np.concatenate([old.cells, old.cell_tags.vertices]), axis=1)
    _, number = np.unique(rows, axis=0, return_inverse=True)
    cell_of_row = np.empty(number.max() + 1, dtype=np.int64)
    cell_of_row[number[: len(old.cells)]] = np.arange(len(old.cells))
    values[cell_of_row[number[len(old.cells) :]]] = old.cell_tags.values
    tags, references = np.unique(values, return_inverse=True)
    return tags, references.astype(np.int64) + 1


def _check_facets(old: MeshArrays, references: Integers) -> None:
    """Refuse tagged facets inside a subdomain, which Mmg does not keep. Collective: no."""
    dimension = old.topological_dimension
    corners = np.array(basix.topology(basix.CellType[old.shape])[dimension - 1])
    rows = np.sort(np.concatenate([old.cells[:, corners].reshape(-1, dimension), old.facet_tags.vertices]), axis=1)
    _, number = np.unique(rows, axis=0, return_inverse=True)
    sides = len(old.cells) * len(corners)
    beside = np.repeat(references, len(corners))
    lowest, highest = np.full(number.max() + 1, np.iinfo(np.int64).max), np.zeros(number.max() + 1, dtype=np.int64)
    np.minimum.at(lowest, number[:sides], beside)
    np.maximum.at(highest, number[:sides], beside)
    count = np.bincount(number[:sides], minlength=number.max() + 1)
    lost = (count == 2) & (lowest == highest)
    inside = np.flatnonzero(lost[number[sides:]])
    if len(inside):
        place = old.points[old.facet_tags.vertices[inside[0]]].mean(axis=0)[:dimension]
        raise MeshError(
            f"{len(inside)} facets with a tag ({old.facet_tags.values[inside[0]]} at {place.tolist()}) lie between "
            "cells of the same tag and would be lost: tag the cells on either side differently, or leave the facets out"
        )
