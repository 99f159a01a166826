"""The channel of the DFG benchmark with its cylinder, meshed by Gmsh."""

import contextlib
import math
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from mpi4py import MPI

from pdeopt.fem.mesh import MeshData, read_mesh
from pdeopt.parallel import on_root
from pdeopt.report import InputError, MissingPackageError

LENGTH, HEIGHT = 2.2, 0.41
CENTRE, DIAMETER = (0.2, 0.2), 0.1
# The unstructured mesh of the upper half of this disc is mirrored to the lower half: on a mesh without that symmetry
# the lift, a small difference of large forces, is wrong by the irregularity of the mesh.
_DISC_DIAMETER = 0.2
_GROWTH = 0.12  # of the edge length with the distance from the cylinder
# Edge lengths in units of those at the cylinder, up to which they grow: x from 0.1 to 1 around the cylinder's height,
# and everywhere else.
_WAKE_EDGE, _LARGEST_EDGE = 5.0, 10.0
_WAKE_BOX = {"XMin": 0.1, "XMax": 1.0, "YMin": 0.08, "YMax": 0.33, "Thickness": 0.3}
_OPTIONS = {
    "General.Terminal": 0.0,
    "Mesh.Algorithm": 6.0,  # frontal Delaunay: nearly equilateral triangles
    "Mesh.MeshSizeExtendFromBoundary": 0.0,
    "Mesh.MeshSizeFromPoints": 0.0,
    "Mesh.MeshSizeFromCurvature": 0.0,
}


def cylinder_mesh(comm: MPI.Comm, edges: int = 64) -> MeshData:
    """Mesh the channel [0, 2.2] x [0, 0.41] around the cylinder of diameter 0.1 with its centre at (0.2, 0.2).

    Triangles of degree 2, whose curved edges follow the circle. Gmsh makes the mesh on rank 0, so that it is the same
    on any number of ranks. Lengths are in metres.

    Parameters
    ----------
    comm
        Communicator to distribute the mesh over.
    edges
        Edges around the cylinder, a multiple of 4 and at least 16. All edge lengths are inversely proportional to it.
        Taylor-Hood elements have 6.6e3, 1.6e4 and 4.7e4 degrees of freedom at 32, 64 and 128.

    Returns
    -------
    MeshData
        The mesh with the groups "fluid" (cells), "inflow", "outflow", "walls" and "cylinder" (facets). The foremost
        and the rearmost point of the cylinder are vertices.

    Raises
    ------
    InputError
        If ``edges`` is no such number.
    MissingPackageError
        If Gmsh cannot be loaded.

    Collective: yes.

    References
    ----------
    Schaefer, Turek, Durst, Krause and Rannacher, Benchmark computations of laminar flow around a cylinder, Notes on
    Numerical Fluid Mechanics 52 (1996) 547-566, section 2.2.
    """
    if edges < 16 or edges % 4:
        raise InputError(f"edges = {edges} around the cylinder: choose a multiple of 4 that is at least 16")
    return mesh_by_gmsh(comm, lambda model: _generate(model, edges))


def mesh_by_gmsh(comm: MPI.Comm, generate: Callable[[Any], None]) -> MeshData:
    """Make a mesh with Gmsh on rank 0, so that it is the same on any number of ranks, and distribute it.

    Parameters
    ----------
    comm
        Communicator to distribute the mesh over.
    generate
        Fills an empty Gmsh model: geometry, physical groups and mesh.

    Raises
    ------
    MissingPackageError
        If Gmsh cannot be loaded.

    Collective: yes.
    """
    folder = pathlib.Path(on_root(comm, lambda: tempfile.mkdtemp(prefix="pdeopt_gmsh_")))
    try:
        on_root(comm, lambda: _write_mesh(folder / "mesh.msh", generate))
        return read_mesh(folder / "mesh.msh", comm)
    finally:
        if comm.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _gmsh_model() -> Iterator[Any]:
    """Hand out Gmsh with an empty model of its own; a session that the user has open is left as it was."""
    try:
        import gmsh
    except (ImportError, OSError) as error:  # the library itself may lack one of the system's
        raise MissingPackageError(
            f"this mesh is made by Gmsh ({error}): run `python -m pip install gmsh`, and install the system "
            "library that is named, if one is (libGLU comes as libglu1-mesa)"
        ) from error
    open_session = gmsh.isInitialized()
    if not open_session:
        gmsh.initialize(readConfigFiles=False, interruptible=False)
    current = gmsh.model.getCurrent() if open_session else ""
    before = {name: gmsh.option.getNumber(name) for name in _OPTIONS}
    try:
        for name, value in _OPTIONS.items():
            gmsh.option.setNumber(name, value)
        gmsh.model.add("pdeopt")
        yield gmsh
    finally:
        if open_session:
            gmsh.model.remove()
            gmsh.model.setCurrent(current)
            for name, value in before.items():
                gmsh.option.setNumber(name, value)
        else:
            gmsh.finalize()


def _write_mesh(path: pathlib.Path, generate: Callable[[Any], None]) -> None:
    """Make the mesh and write it, on this rank alone. Collective: no."""
    with _gmsh_model() as gmsh:
        generate(gmsh.model)
        gmsh.write(str(path))


def _generate(model: Any, edges: int) -> None:
    geometry, mesh = model.geo, model.mesh
    centre = geometry.addPoint(*CENTRE, 0.0)

    def add_circle(diameter: float) -> tuple[list[int], list[int]]:
        """Return the points at right, top, left and bottom, and the four arcs that start there."""
        angles = [quarter * math.pi / 2 for quarter in range(4)]
        offsets = [(diameter / 2 * math.cos(angle), diameter / 2 * math.sin(angle)) for angle in angles]
        points = [geometry.addPoint(CENTRE[0] + x, CENTRE[1] + y, 0.0) for x, y in offsets]
        return points, [geometry.addCircleArc(points[i], centre, points[(i + 1) % 4]) for i in range(4)]

    inner_points, cylinder = add_circle(DIAMETER)
    outer_points, disc = add_circle(_DISC_DIAMETER)
    rear, front = (geometry.addLine(inner_points[i], outer_points[i]) for i in (0, 2))
    upper = geometry.addPlaneSurface([geometry.addCurveLoop([*cylinder[:2], front, -disc[1], -disc[0], -rear])])
    lower = geometry.addPlaneSurface([geometry.addCurveLoop([*cylinder[2:], rear, -disc[3], -disc[2], -front])])
    corners = [geometry.addPoint(x, y, 0.0) for x, y in ((0, 0), (LENGTH, 0), (LENGTH, HEIGHT), (0, HEIGHT))]
    bottom, outflow, top, inflow = (geometry.addLine(corners[i], corners[(i + 1) % 4]) for i in range(4))
    outside = geometry.addPlaneSurface(
        [geometry.addCurveLoop([bottom, outflow, top, inflow]), geometry.addCurveLoop(disc)]
    )
    geometry.synchronize()

    for arc in cylinder:
        mesh.setTransfiniteCurve(arc, edges // 4 + 1)
    mirror = [1, 0, 0, 0, 0, -1, 0, 2 * CENTRE[1], 0, 0, 1, 0, 0, 0, 0, 1]  # y -> 2 * 0.2 - y, a matrix by rows
    halves = [cylinder, disc]
    mesh.setPeriodic(
        1, [arcs[i] for arcs in halves for i in (3, 2)], [arcs[i] for arcs in halves for i in (0, 1)], mirror
    )
    mesh.setPeriodic(2, [lower], [upper], mirror)

    edge = math.pi * DIAMETER / edges
    distance = f"Abs(Sqrt((x - {CENTRE[0]})^2 + (y - {CENTRE[1]})^2) - {DIAMETER / 2})"
    near = mesh.field.add("MathEval")
    mesh.field.setString(near, "F", f"{edge} + {_GROWTH} * {distance}")
    far = mesh.field.add("Box")
    for name, value in {"VIn": _WAKE_EDGE * edge, "VOut": _LARGEST_EDGE * edge, **_WAKE_BOX}.items():
        mesh.field.setNumber(far, name, value)
    smaller = mesh.field.add("Min")
    mesh.field.setNumbers(smaller, "FieldsList", [near, far])
    mesh.field.setAsBackgroundMesh(smaller)

    model.addPhysicalGroup(2, [outside, upper, lower], name="fluid")
    groups = {"inflow": [inflow], "outflow": [outflow], "walls": [bottom, top], "cylinder": cylinder}
    for group, curves in groups.items():
        model.addPhysicalGroup(1, curves, name=group)
    mesh.generate(2)
    mesh.setOrder(2)
