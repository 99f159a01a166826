"""Fields and meshes of a run state: what is asked of io4dolfinx, and the checks around it."""

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from dolfinx import fem

from pdeopt.fem._checkpoint_store import ArrayStore
from pdeopt.fem.mesh import Mesh, MeshData
from pdeopt.parallel import collective_errors
from pdeopt.report import InputError, MissingPackageError

_BACKEND = "pdeopt.fem._checkpoint_backend"


def load_io4dolfinx() -> Any:
    """Import io4dolfinx, or raise the error that says how to install it. Collective: no."""
    try:
        return importlib.import_module("io4dolfinx")
    except ImportError as error:
        raise MissingPackageError(
            f"checkpoints need {error.name}: run `python -m pip install --no-deps -r requirements-nodeps.txt` "
            "(io4dolfinx and fenicsx-compat name requirements that pip would install a second time)"
        ) from error


@dataclasses.dataclass(frozen=True)
class _Part:
    """A function that can be stored, and where its values stand in the function that it is a part of, if any."""

    function: fem.Function[Any]
    whole: fem.Function[Any]
    positions: npt.NDArray[np.int32] | None

    @classmethod
    def of(cls, function: fem.Function[Any]) -> "_Part":
        """Collapse the view of a part of a mixed function. Collective: yes."""
        if not function.function_space.component():
            return cls(function, function, None)
        space, positions = function.function_space.collapse()
        return cls(fem.Function(space, dtype=function.x.array.dtype), function, np.asarray(positions))

    def pull(self) -> None:
        """Take the values from the whole."""
        self.whole.x.scatter_forward()
        if self.positions is not None:
            self.function.x.array[:] = self.whole.x.array[self.positions]

    def push(self) -> None:
        """Give the values, ghosts included, to the whole."""
        if self.positions is not None:
            self.whole.x.array[self.positions] = self.function.x.array


def write_fields(store: ArrayStore, fields: Mapping[str, fem.Function[Any]], data: MeshData | None) -> dict[str, Any]:
    """Write fields with their meshes; return what the manifest has to say about them.

    Raises
    ------
    InputError
        If a mesh has no numbering that another partition shares.

    Collective: yes.
    """
    io4dolfinx = load_io4dolfinx()
    meshes: dict[int, dict[str, Any]] = {}
    entries: dict[str, dict[str, Any]] = {}
    for name, function in fields.items():
        mesh = function.function_space.mesh
        key = id(mesh._cpp_object)
        if key not in meshes:
            _require_input_numbering(mesh, name)
            meshes[key] = {"name": f"mesh-{len(meshes)}"}
            arguments = {"store": store, "mesh": meshes[key]}
            io4dolfinx.write_mesh_input_order(store.folder, mesh, backend=_BACKEND, backend_args=arguments)
            if data is not None and data.mesh._cpp_object is mesh._cpp_object:
                _write_tags(store, meshes[key], data)
        part = _Part.of(function)
        part.pull()
        element = repr(part.function.function_space.ufl_element())
        entries[name] = {"mesh": meshes[key]["name"], "element": element, "type": str(part.function.x.array.dtype)}
        arguments = {"store": store, "mesh": meshes[key], "fields": entries}
        io4dolfinx.write_function_on_input_mesh(
            store.folder, part.function, name=name, backend=_BACKEND, backend_args=arguments
        )
    return {"meshes": list(meshes.values()), "fields": entries}


def read_fields(store: ArrayStore, saved: Mapping[str, Any], fields: Mapping[str, fem.Function[Any]]) -> None:
    """Fill fields with the values that were saved under their names; nothing is changed if one of them does not fit.

    Raises
    ------
    InputError
        If a field was not saved, or has another element or another mesh.

    Collective: yes.
    """
    io4dolfinx = load_io4dolfinx()
    meshes = {entry["name"]: entry for entry in saved["meshes"]}
    parts: dict[str, _Part] = {}
    checked: set[tuple[int, str]] = set()
    for name, function in fields.items():
        if name not in saved["fields"]:
            known = ", ".join(f"'{field}'" for field in saved["fields"]) or "no field"
            raise InputError(f"{store.folder} has no field '{name}'; it has {known}")
        entry, parts[name] = saved["fields"][name], _Part.of(function)
        element, dtype = repr(parts[name].function.function_space.ufl_element()), str(function.x.array.dtype)
        if (element, dtype) != (entry["element"], entry["type"]):
            raise InputError(
                f"{store.folder}: the field '{name}' was saved as {entry['type']} on {entry['element']}, and cannot be "
                f"read as {dtype} on {element}: read it on its own element and interpolate"
            )
        mesh = function.function_space.mesh
        if (id(mesh._cpp_object), entry["mesh"]) not in checked:
            _require_same_mesh(store, meshes[entry["mesh"]], mesh, name)
            checked.add((id(mesh._cpp_object), entry["mesh"]))
    for name, part in parts.items():
        arguments = {"store": store, "mesh": meshes[saved["fields"][name]["mesh"]], "fields": saved["fields"]}
        same_ranks = saved["ranks"] == store.comm.size
        if not (same_ranks and _read_as_written(store, arguments["mesh"], saved["fields"][name], part.function)):
            io4dolfinx.read_function(store.folder, part.function, name=name, backend=_BACKEND, backend_args=arguments)
        part.push()


def read_mesh_data(store: ArrayStore, entry: dict[str, Any]) -> MeshData:
    """Read a mesh with its tags. Collective: yes."""
    io4dolfinx = load_io4dolfinx()
    arguments = {"store": store, "mesh": entry}
    mesh = io4dolfinx.read_mesh(store.folder, store.comm, backend=_BACKEND, backend_args=arguments)
    tags = {
        tag["dimension"]: io4dolfinx.read_meshtags(store.folder, mesh, name, backend=_BACKEND, backend_args=arguments)
        for name, tag in entry.get("tags", {}).items()
    }
    groups = {name: (dimension, tag) for name, (dimension, tag) in entry.get("groups", {}).items()}
    dimension = mesh.topology.dim
    return MeshData(mesh, tags.get(dimension), tags.get(dimension - 1), groups)


def _write_tags(store: ArrayStore, entry: dict[str, Any], data: MeshData) -> None:
    io4dolfinx = load_io4dolfinx()
    entry["groups"] = {name: list(group) for name, group in data.physical_groups.items()}
    for tags, name in ((data.cell_tags, "cell_tags"), (data.facet_tags, "facet_tags")):
        if tags is not None:
            arguments = {"store": store, "mesh": entry}
            io4dolfinx.write_meshtags(
                store.folder, data.mesh, tags, name, backend=_BACKEND, backend_args=arguments, on_input_mesh=True
            )


def _read_as_written(
    store: ArrayStore, mesh: Mapping[str, Any], entry: Mapping[str, Any], function: fem.Function[Any]
) -> bool:
    """Read values as they lie in the file if this run numbers its degrees of freedom as the one before did.

    Between partitions io4dolfinx turns the values of RT, N1curl and the like to another orientation of the cells, and
    back: right to rounding, where a restart has to be right to the last bit.

    Collective: yes.
    """
    from io4dolfinx.original_checkpoint import create_function_data_on_original_mesh

    from pdeopt.fem._checkpoint_backend import dofmap_rows

    data = create_function_data_on_original_mesh(function)
    if not store.holds(mesh["permutations"], data.cell_permutations):
        return False
    if not store.holds(entry["dofmap"], dofmap_rows(data)):
        return False
    values = store.read_rows(entry["values"], slice(*data.dof_range))
    function.x.array[: len(values)] = values
    function.x.scatter_forward()
    return True


def _require_input_numbering(mesh: Mesh, field: str) -> None:
    """Refuse submeshes: DOLFINx remembers no order of their cells that does not depend on the partition."""
    try:
        _ = mesh.topology.original_cell_index
    except RuntimeError as error:
        raise InputError(
            f"the field '{field}' lives on a submesh, whose cells have no numbers that another run could find: "
            "save its extension to the parent mesh"
        ) from error


def _require_same_mesh(store: ArrayStore, entry: dict[str, Any], mesh: Mesh, field: str) -> None:
    """Refuse a mesh on which the saved numbers of the cells mean other cells."""
    remedy = f"build '{field}' on the mesh that RunState.read_mesh returns"
    _require_input_numbering(mesh, field)
    found = (mesh.topology.cell_name(), mesh.geometry.cmaps[0].degree, mesh.geometry.dim, _cell_count(mesh))
    saved = (entry["cell"], entry["degree"], entry["dimension"], entry["cells"])
    if found != saved:
        described = [
            f"{cells} {cell}s of degree {degree} in {dimension}D" for cell, degree, dimension, cells in (saved, found)
        ]
        raise InputError(f"{store.folder}: '{field}' was saved on {described[0]}, not on {described[1]}; {remedy}")
    with collective_errors(mesh.comm):
        cells = np.arange(mesh.topology.index_map(mesh.topology.dim).size_local)
        own = mesh.geometry.x[mesh.geometry.dofmaps[0][cells], : mesh.geometry.dim]
        rows = store.open(entry["topology"])[mesh.topology.original_cell_index[cells]]
        distance = float(np.abs(store.open(entry["nodes"])[rows] - own).max(initial=0.0))
        # Negated, so that NaN is refused, too.
        if not distance <= 1e-10 * float(np.abs(own).max(initial=0.0)):
            raise InputError(
                f"{store.folder}: '{field}' was saved on another mesh: nodes of equal cells are up to {distance:.3g} "
                f"apart (it was moved, or refined on another number of ranks, which numbers its cells otherwise); "
                f"{remedy}"
            )


def _cell_count(mesh: Mesh) -> int:
    return int(mesh.topology.index_map(mesh.topology.dim).size_global)
