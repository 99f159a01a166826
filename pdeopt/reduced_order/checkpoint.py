"""Reduced bases on disk, and the small data that belong to them: written on some ranks, read on any number."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from mpi4py import MPI

import numpy as np
from dolfinx import fem

from pdeopt.fem import forms
from pdeopt.fem.checkpoint import RunState, Value, load_state, save_state
from pdeopt.fem.mesh import MeshData
from pdeopt.reduced_order.basis import Basis
from pdeopt.reduced_order.inner_product import InnerProduct
from pdeopt.report import InputError

_OWN = "basis."  # begins the names of what is stored beside the caller's values
# What is left of Phi' M Phi - I after the modes were moved between partitions.
_ORTHONORMAL = 1e-8


def save_basis(
    folder: str | os.PathLike[str],
    basis: Basis,
    values: Mapping[str, Value | np.generic] | None = None,
    mesh_data: MeshData | None = None,
) -> pathlib.Path:
    """Save a basis and reduced data, with the mesh.

    What was in the folder before is replaced at once when all is written and on the disk.

    Parameters
    ----------
    folder
        Folder of this basis alone, made if it is missing. All ranks must see it.
    basis
        Modes of any space that DOLFINx can renumber, but not of a submesh.
    values
        Arrays, numbers and texts by name, the same on all ranks: parameters, cells of a cubature by their original
        index and weights, a calibration.
    mesh_data
        Tags and groups to save with the mesh.

    Returns
    -------
    pathlib.Path
        Folder of the files.

    Raises
    ------
    InputError
        On all ranks, if something cannot be stored, or the folder cannot be written.
    MissingPackageError
        If io4dolfinx is not installed.

    Collective: yes.
    """
    values = values or {}
    taken = [name for name in values if name.startswith(_OWN)]
    if taken:
        raise InputError(f"the value '{taken[0]}' begins with '{_OWN}', as the basis' own do: choose another name")
    own: dict[str, Value] = {f"{_OWN}size": basis.size, f"{_OWN}singular_values": basis.singular_values}
    fields = {name: _field(basis, mode) for mode, name in enumerate(_names(basis.size))}
    return save_state(folder, fields, values={**values, **own}, mesh_data=mesh_data, keep=1)


def load_basis(folder: str | os.PathLike[str], inner_product: InnerProduct) -> tuple[Basis, dict[str, Any]]:
    """Read a basis and the values saved with it, on any number of ranks.

    Parameters
    ----------
    folder
        The folder that was given to `save_basis`.
    inner_product
        That of the basis. Its mesh is the one saved: made again, or read by `read_basis_mesh`.

    Returns
    -------
    (basis, values)
        Their numbers are those saved: to the last bit on as many ranks, to rounding on others.

    Raises
    ------
    InputError
        On all ranks, if there is nothing to read, a byte is not what was written, or the element, the mesh or the
        inner product is another one.
    MissingPackageError
        If io4dolfinx is not installed.

    Collective: yes.
    """
    state = _state(folder, inner_product.comm)
    size = state.values[f"{_OWN}size"]
    names = _names(size)
    fields = {name: fem.Function(inner_product.space) for name in names}
    state.restore(fields)
    modes = np.empty((inner_product.owned, size), order="F")
    for mode, name in enumerate(names):
        modes[:, mode] = forms.owned_values(fields[name])
    difference = float(np.abs(inner_product.gram(modes) - np.eye(size)).max())
    if not difference <= _ORTHONORMAL:
        raise InputError(
            f"{state.path}: the modes are not orthonormal in this inner product (off by {difference:.2g}): "
            "use the form and the boundary conditions that they were made with"
        )
    values = {name: value for name, value in state.values.items() if not name.startswith(_OWN)}
    return Basis(inner_product, modes, state.values[f"{_OWN}singular_values"]), values


def read_basis_mesh(folder: str | os.PathLike[str], comm: MPI.Comm = MPI.COMM_WORLD) -> MeshData:
    """Read the mesh of a saved basis, with its tags. Raises: as `load_basis`. Collective: yes."""
    return _state(folder, comm).read_mesh(_names(1)[0])


def _state(folder: str | os.PathLike[str], comm: MPI.Comm) -> RunState:
    state = load_state(folder, comm, strict=True)
    if state is None or f"{_OWN}size" not in state.values:
        raise InputError(f"the folder '{folder}' has no basis: give the one that save_basis wrote to")
    return state


def _names(size: int) -> list[str]:
    return [f"mode-{mode}" for mode in range(size)]


def _field(basis: Basis, mode: int) -> fem.Function[Any]:
    function = fem.Function(basis.space)
    forms.set_function(function, basis.modes[:, mode])
    return function
