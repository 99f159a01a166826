"""Storage for io4dolfinx: its meshes, tags and functions in an `ArrayStore`.

io4dolfinx moves values between partitions of a mesh and leaves their storage to a back end, a module named in the
call. Its own back ends for that need ADIOS2's Python package or an h5py built with MPI, which pip's wheels do not
have, and their readers crash on truncated files. This one works wherever numpy does.

Each call gets the `ArrayStore` as ``backend_args["store"]`` and, as ``backend_args["mesh"]``, the dictionary that
says which file holds what of the mesh in question; writing fills it in. All functions are collective.
"""

import pathlib
from typing import Any

from mpi4py import MPI

import numpy as np
import numpy.typing as npt
from dolfinx.graph import AdjacencyList, adjacencylist
from io4dolfinx.backends import FileMode, ReadMode
from io4dolfinx.structures import FunctionData, MeshData, MeshTagsData, ReadMeshData

read_mode = ReadMode.parallel
type Integers = npt.NDArray[np.int64]


def get_default_backend_args(arguments: dict[str, Any] | None) -> dict[str, Any]:
    """Return the arguments as they are: there is nothing to choose. Collective: no."""
    return arguments or {}


def write_mesh(
    filename: pathlib.Path,
    comm: MPI.Comm,
    mesh: MeshData,
    backend_args: dict[str, Any],
    mode: FileMode,
    time: float,
) -> None:
    """Write cells, nodes and coordinate element."""
    store, entry = backend_args["store"], backend_args["mesh"]
    entry |= {"cell": mesh.cell_type, "degree": int(mesh.degree), "variant": int(mesh.lagrange_variant)}
    entry |= {"dimension": mesh.local_geometry.shape[1], "cells": int(mesh.num_cells_global)}
    entry["topology"] = store.write(f"{entry['name']}-topology", _narrow(mesh.local_topology, mesh.num_nodes_global))
    entry["nodes"] = store.write(f"{entry['name']}-nodes", mesh.local_geometry)


def read_mesh_data(
    filename: pathlib.Path,
    comm: MPI.Comm,
    time: str | float | None,
    read_from_partition: bool,
    backend_args: dict[str, Any],
) -> ReadMeshData:
    """Read this rank's share of cells and nodes."""
    store, entry = backend_args["store"], backend_args["mesh"]
    cells, nodes = store.read(entry["topology"])[0].astype(np.int64), store.read(entry["nodes"])[0]
    return ReadMeshData(cells, entry["cell"], nodes, entry["variant"], entry["degree"])


def write_meshtags(filename: pathlib.Path, comm: MPI.Comm, data: MeshTagsData, backend_args: dict[str, Any]) -> None:
    """Write tagged entities, as nodes of the mesh, and their tags."""
    store, entry = backend_args["store"], backend_args["mesh"]
    prefix = f"{entry['name']}-tags-{data.dim}"
    assert data.num_dofs_per_entity is not None
    entities = data.indices.reshape(len(data.values), data.num_dofs_per_entity)
    entry.setdefault("tags", {})[data.name] = {
        "dimension": int(data.dim),
        "entities": store.write(f"{prefix}-entities", entities),
        "values": store.write(f"{prefix}-values", data.values),
    }


def read_meshtags_data(filename: pathlib.Path, comm: MPI.Comm, name: str, backend_args: dict[str, Any]) -> MeshTagsData:
    """Read this rank's share of the tagged entities."""
    store, tags = backend_args["store"], backend_args["mesh"]["tags"][name]
    values, entities = store.read(tags["values"])[0], store.read(tags["entities"])[0]
    return MeshTagsData(name=name, values=values, indices=entities, dim=tags["dimension"])


def write_function(
    filename: pathlib.Path,
    comm: MPI.Comm,
    u: FunctionData,
    time: float,
    mode: FileMode,
    backend_args: dict[str, Any],
) -> None:
    """Write the degrees of freedom of each cell, the cells' permutations, and the values."""
    store, entry = backend_args["store"], backend_args["mesh"]
    prefix = f"field-{len(backend_args['fields'])}"
    entry["permutations"] = store.write(f"{entry['name']}-permutations", u.cell_permutations)
    backend_args["fields"][u.name] |= {
        "dofmap": store.write(f"{prefix}-dofmap", dofmap_rows(u)),
        "values": store.write(f"{prefix}-values", u.values),
    }


def dofmap_rows(u: FunctionData) -> npt.NDArray[np.int32] | Integers:
    """Return the degrees of freedom of this rank's share of the cells, shape ``(cells, dofs per cell)``."""
    dofmap = u.dofmap_array.reshape(-1, u.global_dofs_in_dofmap // u.num_cells_global)
    return _narrow(dofmap, u.num_dofs_global)


def read_dofmap(filename: pathlib.Path, comm: MPI.Comm, name: str, backend_args: dict[str, Any]) -> AdjacencyList:
    """Read the degrees of freedom of this rank's share of the cells."""
    dofmap = backend_args["store"].read(backend_args["fields"][name]["dofmap"])[0].astype(np.int64)
    return adjacencylist(dofmap.reshape(-1), np.arange(len(dofmap) + 1, dtype=np.int32) * dofmap.shape[1])


def read_dofs(
    filename: pathlib.Path, comm: MPI.Comm, name: str, time: float, backend_args: dict[str, Any]
) -> tuple[npt.NDArray[Any], int]:
    """Read this rank's share of the values, and the number of its first one."""
    return backend_args["store"].read(backend_args["fields"][name]["values"])


def read_cell_perms(comm: MPI.Comm, filename: pathlib.Path, backend_args: dict[str, Any]) -> npt.NDArray[np.uint32]:
    """Read the permutations of this rank's share of the cells."""
    return backend_args["store"].read(backend_args["mesh"]["permutations"])[0]


def _narrow(indices: Integers, count: int) -> npt.NDArray[np.int32] | Integers:
    """Return indices below a bound in half the bytes, where they fit."""
    return indices.astype(np.int32) if count <= np.iinfo(np.int32).max else indices
