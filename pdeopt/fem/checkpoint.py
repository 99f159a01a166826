"""The state of a run in one folder, so that a kill at any instant costs only the work since the last one.

A state is a folder ``state-000007`` of ``.npy`` files and a manifest with the SHA-256 digests of all of them. It is
written under a hidden name, pushed to the disk, and renamed when it is complete; the newest complete state counts.
"""

import dataclasses
import io
import os
import pathlib
import shutil
import warnings
from collections.abc import Mapping
from typing import Any

from mpi4py import MPI

import dolfinx
import numpy as np
from dolfinx import fem

import pdeopt
from pdeopt.fem._checkpoint_fields import load_io4dolfinx, read_fields, read_mesh_data, write_fields
from pdeopt.fem._checkpoint_folder import newest_state, publish
from pdeopt.fem._checkpoint_store import Array, ArrayStore
from pdeopt.fem._checkpoint_streams import find_streams, gather_streams
from pdeopt.fem._staging import staging_folder
from pdeopt.fem.mesh import MeshData
from pdeopt.parallel import on_root
from pdeopt.report import InputError

type Value = bool | int | float | str | Array | None


@dataclasses.dataclass(frozen=True)
class RunState:
    """A complete state of a run, verified.

    Parameters
    ----------
    path
        Its folder.
    values
        What was saved as values: numbers and texts as they were, arrays with their type and shape.
    ranks
        Number of ranks that saved it.
    comm
        Communicator of the run that reads it.
    content
        The manifest.
    """

    path: pathlib.Path
    values: dict[str, Any]
    ranks: int
    comm: MPI.Comm
    content: Mapping[str, Any] = dataclasses.field(repr=False)

    def read_mesh(self, field: str | None = None) -> MeshData:
        """Read the mesh of a field, with the tags that were saved with it.

        Parameters
        ----------
        field
            Name of the field; None if all fields live on one mesh.

        Raises
        ------
        InputError
            If there is no such field, or several meshes and no name.

        Collective: yes.
        """
        fields, meshes = self.content["fields"], {mesh["name"]: mesh for mesh in self.content["meshes"]}
        if (field is None and len(meshes) != 1) or (field is not None and field not in fields):
            known = ", ".join(f"'{name}'" for name in fields) or "no fields"
            raise InputError(f"{self.path}: name the field whose mesh is to be read; there are {known}")
        name = next(iter(meshes)) if field is None else fields[field]["mesh"]
        return read_mesh_data(self._store(), meshes[name])

    def restore(
        self,
        fields: Mapping[str, fem.Function[Any]] | None = None,
        streams: Mapping[str, np.random.Generator] | None = None,
    ) -> None:
        """Give fields and random streams the values that they had.

        On the number of ranks that saved the state, and on a mesh made in the same way, the values are the same to the
        last bit; elsewhere to rounding. Nothing is changed unless everything fits.

        Parameters
        ----------
        fields
            Fields by the name under which they were saved, on the same elements. Their mesh is the one saved: made
            again, or read by `read_mesh`.
        streams
            Random generators by name. One that had a state of its own on every rank needs the same number of ranks.

        Raises
        ------
        InputError
            On all ranks, if one of them was not saved, or was something else.
        MissingPackageError
            If io4dolfinx is not installed.

        Collective: yes.
        """
        streams = streams or {}
        states = find_streams(self.comm, self.content["streams"], streams)
        read_fields(self._store(), self.content, fields or {})
        for name, generator in streams.items():
            generator.bit_generator.state = states[name]

    def _store(self) -> ArrayStore:
        return ArrayStore(self.path, self.comm, self.content["files"])


def save_state(
    folder: str | os.PathLike[str],
    fields: Mapping[str, fem.Function[Any]],
    *,
    values: Mapping[str, Value | np.generic] | None = None,
    streams: Mapping[str, np.random.Generator] | None = None,
    mesh_data: MeshData | None = None,
    keep: int = 2,
) -> pathlib.Path:
    """Save the state of a run.

    Parameters
    ----------
    folder
        Folder of the states of one run, made if it is missing. All ranks must see it; no two runs may share it.
    fields
        Functions by name, on any elements and meshes but submeshes; also parts of mixed functions
        (``flow.sub(0)``). Their meshes are saved with them.
    values
        Numbers, texts and numpy arrays by name (time, step, state of an optimiser), the same on all ranks: those of
        rank 0 are saved.
    streams
        Random generators by name.
    mesh_data
        Tags and named groups to save with the mesh that they belong to.
    keep
        Number of states to keep, >= 1. With two or more, a state that is damaged later has one to fall back on.

    Returns
    -------
    pathlib.Path
        Folder of the new state. It is on the disk.

    Raises
    ------
    InputError
        On all ranks, if something cannot be stored, or the folder cannot be written.
    MissingPackageError
        If io4dolfinx is not installed.

    Collective: yes. Ghost values of the fields are updated.
    """
    if keep < 1:
        raise InputError(f"keep is {keep}: at least one state must be kept")
    io4dolfinx = load_io4dolfinx()
    comm = next((function.function_space.mesh.comm for function in fields.values()), MPI.COMM_WORLD)
    scalars, arrays = on_root(comm, lambda: _sorted_values(values or {}))
    saved_streams = gather_streams(comm, streams or {})
    staging = on_root(comm, lambda: staging_folder(pathlib.Path(folder, "state")))
    try:
        store = ArrayStore(staging, comm)
        content = {
            "versions": {
                "pdeopt": pdeopt.__version__,
                "dolfinx": dolfinx.__version__,
                "io4dolfinx": io4dolfinx.__version__,
                "numpy": np.__version__,
            },
            "ranks": comm.size,
            "values": scalars,
            "arrays": {name: _write_value(store, number, array) for number, (name, array) in enumerate(arrays.items())},
            "streams": saved_streams,
            **write_fields(store, fields, mesh_data),
            "files": store.pieces,
        }
        return on_root(comm, lambda: publish(staging, content, keep))
    except OSError as error:
        raise InputError(
            f"the checkpoint in '{folder}' could not be written: {error}; free some space, or choose another folder "
            "(older states are as they were)"
        ) from error
    finally:
        if comm.rank == 0:  # without a word to the other ranks, which may wait elsewhere if this one alone failed
            shutil.rmtree(staging, ignore_errors=True)


def load_state(
    folder: str | os.PathLike[str], comm: MPI.Comm = MPI.COMM_WORLD, *, strict: bool = False
) -> RunState | None:
    """Find the newest complete state of a run.

    Rank 0 compares every byte with its digest before any other rank opens a file. Where the newest state is damaged,
    the one before it is taken, and a warning says so.

    Parameters
    ----------
    folder
        The folder that was given to `save_state`.
    comm
        Communicator of the run, of any number of ranks.
    strict
        Raise an error instead of falling back.

    Returns
    -------
    RunState or None
        None if the folder has no state, or is not there: the run starts from the beginning.

    Raises
    ------
    InputError
        On all ranks, if all states are damaged, or the newest is and ``strict`` is set.

    Collective: yes.
    """

    def find() -> tuple[pathlib.Path, dict[str, Any], dict[str, Any]] | None:
        found = newest_state(pathlib.Path(folder), strict)
        if found is None:
            return None
        path, content, damaged = found
        for text in damaged:
            warnings.warn(f"{text}; going on from {path}", stacklevel=5)
        arrays = {name: np.load(path / file, allow_pickle=False) for name, file in content["arrays"].items()}
        return path, content, content["values"] | arrays

    found = on_root(comm, find)
    if found is None:
        return None
    path, content, values = found
    return RunState(path, values, content["ranks"], comm, content)


def _sorted_values(
    values: Mapping[str, Value | np.generic],
) -> tuple[dict[str, bool | int | float | str | None], dict[str, Array]]:
    """Tell what JSON keeps exactly from arrays."""
    scalars: dict[str, bool | int | float | str | None] = {}
    arrays: dict[str, Array] = {}
    for name, given in values.items():
        value = given.item() if isinstance(given, np.generic) else given
        if isinstance(value, np.ndarray) and not (value.dtype.hasobject or value.dtype.names):
            arrays[name] = value
        elif value is None or isinstance(value, bool | int | float | str):
            scalars[name] = value
        else:
            raise InputError(
                f"the value '{name}' is a {type(given).__name__} and cannot be stored: hand in numbers, texts, or "
                "numpy arrays of them"
            )
    return scalars, arrays


def _write_value(store: ArrayStore, number: int, array: Array) -> str:
    """Write an array of rank 0's as ``.npy``."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asanyarray(array), allow_pickle=False)
    file = f"value-{number}.npy"
    store.write_bytes(file, stream.getvalue())
    return file
