"""Domains of the families of linear systems: grids of the unit square and cube, and four parts meshed by Gmsh."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

from mpi4py import MPI

import dolfinx
import numpy as np
import numpy.typing as npt

from pdeopt.problems.cylinder_mesh import mesh_by_gmsh
from pdeopt.problems.linear import Marker, Mesh
from pdeopt.report import InputError

_HOLES = [(0.125 + 0.25 * i, 0.125 + 0.25 * j) for i in range(4) for j in range(2)]
_HOLE_RADIUS = 0.06
_FINS, _FIN, _BASE = 7, 0.05, 0.15
# Vertices of a mesh of triangles or tetrahedra with edges of length h: this number over h^d times the measure.
_DENSITY = {2: 2.0 / math.sqrt(3.0), 3: 1.2}


def _left(x: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    return np.isclose(x[0], 0.0)


def _bottom(x: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    return np.isclose(x[1], 0.0)


@dataclasses.dataclass(frozen=True)
class Domain:
    """A domain whose longest side is 1, with a corner of its bounding box in the origin.

    Parameters
    ----------
    dimension
        2 or 3.
    measure
        Area or volume, a little rounded: it only sets the edge length.
    draw
        Adds the domain to Gmsh's kernel OpenCASCADE and returns the numbers of its surfaces or volumes; None for a
        grid of the unit square or cube.
    held
        Marks the facets where the solution is 0; None means the whole boundary. On the rest the flux is 0.
    """

    dimension: int
    measure: float = 1.0
    draw: Callable[[Any], list[int]] | None = None
    held: Marker | None = None


def _l_shape(kernel: Any) -> list[int]:
    return _cut(kernel, 2, [kernel.addRectangle(0, 0, 0, 1, 1)], [kernel.addRectangle(0.5, 0, 0, 0.5, 0.5)])


def _plate(kernel: Any) -> list[int]:
    holes = [kernel.addDisk(x, y, 0, _HOLE_RADIUS, _HOLE_RADIUS) for x, y in _HOLES]
    return _cut(kernel, 2, [kernel.addRectangle(0, 0, 0, 1, 0.5)], holes)


def _heat_sink(kernel: Any) -> list[int]:
    pitch = (1.0 - _FIN) / (_FINS - 1)
    fins = [kernel.addRectangle(i * pitch, 0, 0, _FIN, 0.6 - 0.02 * abs(i - _FINS // 2)) for i in range(_FINS)]
    return _join(kernel, 2, [kernel.addRectangle(0, 0, 0, 1, _BASE)], fins)


def _bracket(kernel: Any) -> list[int]:
    foot, wall = kernel.addBox(0, 0, 0, 1, 0.5, 0.15), kernel.addBox(0, 0, 0, 0.15, 0.5, 0.5)
    # Windows, not bores: moved to a curved surface, vertices of a refinement may turn tetrahedra inside out.
    windows = [kernel.addBox(x, y, -0.1, 0.14, 0.14, 0.4) for x in (0.38, 0.73) for y in (0.06, 0.3)]
    return _cut(kernel, 3, _join(kernel, 3, [foot], [wall]), windows)


def _cut(kernel: Any, dimension: int, bodies: list[int], tools: list[int]) -> list[int]:
    return _numbers(kernel.cut([(dimension, body) for body in bodies], [(dimension, tool) for tool in tools]))


def _join(kernel: Any, dimension: int, bodies: list[int], tools: list[int]) -> list[int]:
    return _numbers(kernel.fuse([(dimension, body) for body in bodies], [(dimension, tool) for tool in tools]))


def _numbers(result: tuple[list[tuple[int, int]], Any]) -> list[int]:
    return [number for _, number in result[0]]


DOMAINS = {
    "square": Domain(2),
    "cube": Domain(3),
    "L-shape": Domain(2, 0.75, _l_shape),
    "perforated plate": Domain(2, 0.41, _plate, _left),
    "heat sink": Domain(2, 0.296, _heat_sink, _bottom),
    "bracket": Domain(3, 0.09, _bracket, _left),
}


def domain_mesh(name: str, size: int, comm: MPI.Comm) -> Mesh:
    """Mesh a domain; the last two meshes are kept.

    Parameters
    ----------
    name
        One of `DOMAINS`.
    size
        Cells along a side of the square or cube, else the number of vertices wanted, roughly.
    comm
        Communicator to distribute the mesh over.

    Raises
    ------
    InputError
        If there is no such domain, or the size is not positive.

    Collective: yes.
    """
    if name not in DOMAINS:
        raise InputError(f"there is no domain {name!r}: choose one of {', '.join(DOMAINS)}")
    if size < 1:
        raise InputError(f"size = {size} of the domain {name!r}: at least 1 is needed")
    return _mesh(name, size, comm.py2f())  # communicators have no hash


@functools.lru_cache(maxsize=2)
def _mesh(name: str, size: int, communicator: int) -> Mesh:
    comm, domain = MPI.Comm.f2py(communicator), DOMAINS[name]
    if domain.draw is None:
        if domain.dimension == 2:
            return dolfinx.mesh.create_unit_square(comm, size, size)
        return dolfinx.mesh.create_unit_cube(comm, size, size, size)
    edge = 2.0 * (domain.measure * _DENSITY[domain.dimension] / size) ** (1.0 / domain.dimension)

    def generate(model: Any) -> None:
        assert domain.draw is not None
        parts = domain.draw(model.occ)
        model.occ.synchronize()
        model.addPhysicalGroup(domain.dimension, parts, name="domain")
        field = model.mesh.field.add("MathEval")
        model.mesh.field.setString(field, "F", repr(edge))
        model.mesh.field.setAsBackgroundMesh(field)
        model.mesh.generate(domain.dimension)
        model.mesh.refine()  # halves the edges, many times faster than to mesh with half the edge length

    return mesh_by_gmsh(comm, generate).mesh
