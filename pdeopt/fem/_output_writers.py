"""One file of fields in one format, kept open while the time goes on."""

import contextlib
import pathlib
from collections.abc import Sequence
from typing import Any, Protocol

import dolfinx.io
import dolfinx.io.vtkhdf
import numpy as np
from dolfinx import fem

from pdeopt.fem._output_parts import LagrangeField, is_cellwise_constant
from pdeopt.parallel import on_root


class FieldWriter(Protocol):
    """Writes the present values of fields of one mesh again and again."""

    def write(self, time: float) -> None:
        """Add the values at a time, later than the times before. Collective: yes."""

    def close(self) -> None:
        """Complete the file. Collective: yes."""


class VTXFile:
    """VTX: cellwise constants as cell data, all else in the smallest Lagrange space that contains all nodal fields."""

    def __init__(self, path: pathlib.Path, fields: Sequence[LagrangeField]) -> None:
        nodal = [field.function for field in fields if not is_cellwise_constant(field.function)]
        degree = max((function.function_space.ufl_element().degree for function in nodal), default=0)
        continuous = not any(function.function_space.ufl_element().discontinuous for function in nodal)
        self._fields = [
            field if is_cellwise_constant(field.function) else field.on_degree(degree, continuous=continuous)
            for field in fields
        ]
        mesh = fields[0].function.function_space.mesh
        self._writer = dolfinx.io.VTXWriter(mesh.comm, path, [_renamed(field) for field in self._fields])

    def write(self, time: float) -> None:
        """Add the values at a time. Collective: yes."""
        for field in self._fields:
            field.refresh()
        self._writer.write(time)

    def close(self) -> None:
        """Complete the file. Collective: yes."""
        self._writer.close()


class XDMFFile:
    """XDMF: nodal fields of the mesh's own degree, and cellwise constants; the others are interpolated to these."""

    def __init__(self, path: pathlib.Path, fields: Sequence[LagrangeField]) -> None:
        self._fields = [_on_mesh_nodes(field) for field in fields]
        self._output = [_renamed(field) for field in self._fields]
        mesh = fields[0].function.function_space.mesh
        self._writer = dolfinx.io.XDMFFile(mesh.comm, path, "w")
        self._writer.write_mesh(mesh)

    def write(self, time: float) -> None:
        """Add the values at a time. Collective: yes."""
        for field, function in zip(self._fields, self._output, strict=True):
            field.refresh()
            self._writer.write_function(function, time)

    def close(self) -> None:
        """Complete the file. Collective: yes."""
        self._writer.close()


class VTKHDFFile:
    """VTKHDF: one field, interpolated as for XDMF, on a mesh that does not move."""

    def __init__(self, path: pathlib.Path, fields: Sequence[LagrangeField]) -> None:
        (field,) = fields
        self._path, self._field = path, _on_mesh_nodes(field)
        self._mesh = field.function.function_space.mesh
        self._cellwise = is_cellwise_constant(self._field.function)
        self._rows = self._mesh_rows()
        dolfinx.io.vtkhdf.write_mesh(path, self._mesh)

    def write(self, time: float) -> None:
        """Add the values at a time. Collective: yes."""
        self._field.refresh()
        function = self._field.function
        values = function.x.array.reshape(-1, function.function_space.dofmap.index_map_bs)[self._rows]
        if 1 < values.shape[1] <= 3:  # VTK's vectors have three components
            values = np.pad(values, [(0, 0), (0, 3 - values.shape[1])])
        write = dolfinx.io.vtkhdf.write_cell_data if self._cellwise else dolfinx.io.vtkhdf.write_point_data
        write(self._path, self._mesh, np.ascontiguousarray(values).reshape(-1), time)

    def close(self) -> None:
        """Complete the file. Collective: yes."""
        on_root(self._mesh.comm, self._name_values)

    def _mesh_rows(self) -> "np.ndarray[Any, np.dtype[np.int32]]":
        """Return the degree of freedom of each cell, or of each node of the mesh, that this rank owns."""
        mesh, dofmap = self._mesh, self._field.function.function_space.dofmap
        cells = mesh.topology.index_map(mesh.topology.dim).size_local
        if self._cellwise:
            return np.asarray(dofmap.list[:cells, 0])
        rows = np.empty(mesh.geometry.x.shape[0], dtype=np.int32)
        # Ghost cells, too: an owned node need not belong to an owned cell.
        rows[mesh.geometry.dofmaps[0]] = dofmap.list
        return rows[: mesh.geometry.index_map().size_local]

    def _name_values(self) -> None:
        """Give the values the field's name: DOLFINx calls them "u"."""
        with contextlib.suppress(ImportError):
            import h5py

            kind = "CellData" if self._cellwise else "PointData"
            with h5py.File(self._path, "r+") as file:
                for group in (file[f"VTKHDF/{kind}"], file["VTKHDF/Steps"].get(f"{kind}Offsets", {})):
                    if "u" in group and self._field.name != "u":
                        group.move("u", self._field.name)


def _on_mesh_nodes(field: LagrangeField) -> LagrangeField:
    """Return a continuous field in the mesh's own degree, and a discontinuous one cell by cell. Collective: yes."""
    space = field.function.function_space
    continuous = not space.ufl_element().discontinuous
    return field.on_degree(space.mesh.geometry.cmaps[0].degree if continuous else 0, continuous=continuous)


def _renamed(field: LagrangeField) -> fem.Function[Any]:
    """Return a function with the same values under the field's name, since the user's keeps its own."""
    return fem.Function(field.function.function_space, field.function.x, name=field.name)
