"""The cases of the checkpoint measurements: a run to be killed, fields on several ranks, damaged files, times."""

import hashlib
import json
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from mpi4py import MPI

import basix.ufl
import dolfinx
import dolfinx.fem.petsc
import numpy as np
import ufl

from pdeopt.bench.control_cases import heat_sink_mesh
from pdeopt.bench.harness import Row, paired_times
from pdeopt.fem import read_mesh
from pdeopt.fem._checkpoint_store import push_to_disk
from pdeopt.fem.checkpoint import RunState, load_state, save_state
from pdeopt.fem.mesh import Mesh, MeshData
from pdeopt.parallel import on_root, random_stream
from pdeopt.report import InputError

STARTED = "started"  # an empty file that says that the time steps have begun


class BurgersRun:
    r"""Viscous Burgers equation under random forcing, in time by BDF2 with extrapolated convection.

    .. math:: u_t + u \, (u_x + u_y) = \nu \Delta u + f

    on the unit square, zero at the boundary and in the beginning, in elements of degree two. The forcing is a bump
    whose height all ranks draw from one stream, and noise that each rank draws from a stream of its own.

    Parameters
    ----------
    comm
        Communicator of the mesh.
    cells
        Cells a side.

    Attributes
    ----------
    u, u_old
        Solution now and one step ago.
    step
        Number of steps taken.
    """

    def __init__(self, comm: MPI.Comm, cells: int) -> None:
        mesh = dolfinx.mesh.create_unit_square(comm, cells, cells)
        space = dolfinx.fem.functionspace(mesh, ("Lagrange", 2))
        self.comm, self.step, self.time_step = comm, 0, 0.01
        self.u, self.u_old = (dolfinx.fem.Function(space, name=name) for name in ("u", "u_old"))
        self.forcing = dolfinx.fem.Function(dolfinx.fem.functionspace(mesh, ("DG", 0)))
        self.height = dolfinx.fem.Constant(mesh, 0.0)
        self.streams = {"height": random_stream("height", 1), "noise": random_stream("noise", 1, comm)}
        trial, test = ufl.TrialFunction(space), ufl.TestFunction(space)
        x = ufl.SpatialCoordinate(mesh)
        extrapolated = 2 * self.u - self.u_old
        bump = self.height * ufl.exp(-40 * ((x[0] - 0.3) ** 2 + (x[1] - 0.4) ** 2))
        residual = (3 * trial - 4 * self.u + self.u_old) / (2 * self.time_step) * test * ufl.dx
        residual += extrapolated * (trial.dx(0) + trial.dx(1)) * test * ufl.dx
        residual += 0.02 * ufl.inner(ufl.grad(trial), ufl.grad(test)) * ufl.dx - (bump + self.forcing) * test * ufl.dx
        mesh.topology.create_connectivity(1, 2)
        facets = dolfinx.mesh.exterior_facet_indices(mesh.topology)
        zero = dolfinx.fem.dirichletbc(0.0, dolfinx.fem.locate_dofs_topological(space, 1, facets), space)
        # The same bits in every run, where those of PETSc's GMRES depend on the addresses of its vectors (dgemv).
        options = {"ksp_type": "bcgs", "pc_type": "bjacobi", "sub_pc_type": "ilu", "ksp_rtol": 1e-10}
        self.problem = dolfinx.fem.petsc.LinearProblem(
            *ufl.system(residual), bcs=[zero], petsc_options_prefix="burgers_", petsc_options=options
        )

    @property
    def fields(self) -> dict[str, dolfinx.fem.Function]:
        """The fields that the next step depends on."""
        return {"u": self.u, "u_old": self.u_old}

    def advance(self) -> None:
        """Take a step. Collective: yes."""
        self.height.value[...] = 20.0 + 10.0 * self.streams["height"].standard_normal()
        own = self.forcing.function_space.dofmap.index_map.size_local
        self.forcing.x.array[:own] = self.streams["noise"].standard_normal(own)
        self.forcing.x.scatter_forward()
        solution = self.problem.solve()
        assert isinstance(solution, dolfinx.fem.Function)
        self.u_old.x.array[:] = self.u.x.array
        self.u.x.array[:] = solution.x.array
        self.step += 1

    def save(self, folder: str) -> None:
        """Save all that the next step depends on. Collective: yes."""
        save_state(folder, self.fields, values={"step": self.step}, streams=self.streams)

    def restore(self, folder: str) -> None:
        """Go on from the last state, if there is one. Collective: yes."""
        state = load_state(folder, self.comm)
        if state is not None:
            state.restore(self.fields, self.streams)
            self.step = state.values["step"]

    def digest(self) -> str:
        """Return the SHA-256 of every bit that the next step depends on. Collective: yes."""
        parts = [np.ascontiguousarray(field.x.array).tobytes() for field in self.fields.values()]
        parts += [json.dumps(stream.bit_generator.state).encode() for stream in self.streams.values()]
        return hashlib.sha256(b"".join(self.comm.allgather(b"".join(parts)))).hexdigest()


def burgers(comm: MPI.Comm, folder: str, steps: int, cells: int, compare: bool = False) -> Row:
    """Take the steps that are left since the last state in a folder, and save after each one. Collective: yes.

    Parameters
    ----------
    folder
        Folder of the states; empty to save nothing.
    steps
        Steps from the beginning to the end of the run.
    cells
        Cells a side.
    compare
        Afterwards make the whole run once more without a checkpoint, for its digest.
    """
    run = BurgersRun(comm, cells)
    if folder:
        run.restore(folder)
        if comm.rank == 0:
            pathlib.Path(folder).mkdir(exist_ok=True)
            pathlib.Path(folder, STARTED).touch()
    row: Row = {"first step": run.step}
    start = time.perf_counter()
    while run.step < steps:
        run.advance()
        if folder:
            run.save(folder)
    row |= {"stepping [s]": time.perf_counter() - start, "digest": run.digest()}
    if compare:
        row["digest without checkpoints"] = burgers(comm, "", steps, cells)["digest"]
    return row


def _smooth(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 + x[0] + 2 * x[1] ** 2 + np.sin(5 * x[0]) * x[1] + x[2])


def _smooth_vector(dimension: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: np.vstack([(axis + 1) * _smooth(x) + x[axis] ** 2 for axis in range(dimension)])


ELEMENTS = ("P1", "P2", "P3", "P2 vector", "DG0", "DG2", "RT2", "N1curl2", "Taylor-Hood")


def known_fields(mesh: Mesh, names: Sequence[str]) -> dict[str, dolfinx.fem.Function]:
    """Return fields on some of the `ELEMENTS` whose values follow from the mesh alone; the last is always among them.

    Collective: yes.
    """
    dimension, cell = mesh.geometry.dim, mesh.topology.cell_name()
    lagrange = [basix.ufl.element("P", cell, 2, shape=(dimension,)), basix.ufl.element("P", cell, 1)]
    elements: dict[str, Any] = {
        "P1": ("P", 1),
        "P2": ("P", 2),
        "P3": ("P", 3),
        "P2 vector": ("P", 2, (dimension,)),
        "DG0": ("DG", 0),
        "DG2": ("DG", 2),
        "RT2": ("RT", 2),
        "N1curl2": ("N1curl", 2),
        "Taylor-Hood": basix.ufl.mixed_element(lagrange),
    }
    fields = {}
    for name in dict.fromkeys([*names, "Taylor-Hood"]):  # a set has another order on every rank
        field = fields[name] = dolfinx.fem.Function(dolfinx.fem.functionspace(mesh, elements[name]), name=name)
        if name == "Taylor-Hood":
            field.sub(0).interpolate(_smooth_vector(dimension))
            field.sub(1).interpolate(_smooth)
        else:
            field.interpolate(_smooth_vector(dimension) if field.function_space.value_shape else _smooth)
        field.x.scatter_forward()
    return fields | {"pressure": fields["Taylor-Hood"].sub(1)}


def largest_error(state: RunState, mesh: Mesh, names: Sequence[str]) -> float:
    """Return how far the fields read from a state are from what they are on a mesh. Collective: yes."""
    expected = known_fields(mesh, names)
    found = {name: dolfinx.fem.Function(field.function_space) for name, field in expected.items() if name != "pressure"}
    flow = dolfinx.fem.Function(found["Taylor-Hood"].function_space)  # takes the pressure alone
    state.restore(found | {"pressure": flow.sub(1)})
    found["pressure"], expected["pressure"] = (part.sub(1).collapse() for part in (flow, expected["Taylor-Hood"]))
    errors = [np.abs(found[name].x.array - expected[name].x.array).max(initial=0.0) for name in expected]
    return float(state.comm.allreduce(float(max(errors)), op=MPI.MAX))


def tag_places(data: MeshData) -> np.ndarray:
    """Return for each tag of cells and facets their number and the sum of their midpoints, ``(tags, 4)``.

    Collective: yes.
    """
    places = []
    for tags in (data.cell_tags, data.facet_tags):
        if tags is None:
            continue
        own = tags.indices < data.mesh.topology.index_map(tags.dim).size_local
        for tag in np.unique(np.concatenate(data.mesh.comm.allgather(tags.values))):
            midpoints = dolfinx.mesh.compute_midpoints(data.mesh, tags.dim, tags.indices[own & (tags.values == tag)])
            places.append(data.mesh.comm.allreduce(np.append(len(midpoints), midpoints.sum(axis=0))))
    return np.array(places)


def move_between_ranks(comm: MPI.Comm, folder: str, cells: int, small: bool) -> Row:
    """Save fields on some of the ranks and read them on others: 1 -> 2, 2 -> 3, 3 -> 1. Collective: yes, three ranks.

    Every state is read twice: on the mesh that is made again, and on the one that is read from it. The largest error of
    any degree of freedom counts, and of the number and the summed midpoints of the cells and facets of a tag.

    Parameters
    ----------
    folder
        Folder to work in.
    cells
        Cells a side.
    small
        Only tetrahedra and three elements, instead of triangles, tetrahedra, the heat sink with its tags, and all
        elements.
    """
    makers: dict[str, Callable[[MPI.Comm], MeshData]] = {
        "triangles": lambda part: MeshData(dolfinx.mesh.create_unit_square(part, cells, cells), None, None, {}),
        "tetrahedra": lambda part: MeshData(dolfinx.mesh.create_unit_cube(part, cells, cells, cells), None, None, {}),
    }
    if small:
        del makers["triangles"]
    else:
        makers["Gmsh"] = lambda part: read_mesh(heat_sink_mesh(), part)
    names = ["DG2", "N1curl2"] if small else ELEMENTS
    row: Row = {}
    for kind, make in makers.items():
        for (writers, readers), error in errors_between_ranks(comm, f"{folder}/{kind}", make, names).items():
            row[f"{kind}, {writers} -> {readers}"] = error
    return row


def errors_between_ranks(
    comm: MPI.Comm, folder: str, make: Callable[[MPI.Comm], MeshData], names: Sequence[str]
) -> dict[tuple[int, int], float]:
    """Return the largest error after 1 -> 2, 2 -> 3, 3 -> 1 ranks on a mesh. Collective: yes, three ranks."""
    errors = {}
    for writers, readers in ((1, 2), (2, 3), (3, 1)):
        place = f"{folder}-{writers}-{readers}"
        part = comm.Split(int(comm.rank < writers))
        if comm.rank < writers:
            data = make(part)
            save_state(place, known_fields(data.mesh, names), mesh_data=data)
        comm.Barrier()
        part = comm.Split(int(comm.rank < readers))
        error = 0.0
        if comm.rank < readers:
            state = load_state(place, part)
            assert state is not None
            again, read = make(part), state.read_mesh()
            error = max(largest_error(state, again.mesh, names), largest_error(state, read.mesh, names))
            error = max(error, float(np.abs(tag_places(again) - tag_places(read)).max(initial=0.0)))
            assert again.physical_groups == read.physical_groups
        errors[writers, readers] = comm.bcast(error)
    return errors


def damage_files(comm: MPI.Comm, folder: str, flips: int, cuts: int) -> Row:
    """Damage each file of a state in turn and count what is noticed. Collective: yes.

    Parameters
    ----------
    folder
        Folder to work in.
    flips
        Number of random bytes to change, half of them in files and half of them in bytes chosen evenly.
    cuts
        Random lengths to which each file is cut; each is also emptied, shortened by one byte, and removed.
    """
    run = BurgersRun(comm, 4)
    for _ in range(2):
        run.advance()
        run.save(folder)
    state = load_state(folder, comm, strict=True)
    assert state is not None
    files = sorted(comm.bcast([file.name for file in state.path.iterdir()]))
    contents = {name: comm.bcast(_read(state.path / name) if comm.rank == 0 else b"") for name in files}
    random = random_stream("damage")
    row: Row = {"files": len(files), "bytes": sum(map(len, contents.values()))}
    found = 0
    for index in range(flips):
        weights = [len(contents[name]) if index % 2 else 1 for name in files]
        name = str(random.choice(files, p=np.array(weights) / sum(weights)))
        damaged = bytearray(contents[name])
        damaged[random.integers(len(damaged))] ^= int(random.integers(1, 256))
        found += _is_refused(comm, folder, state.path / name, bytes(damaged), contents[name])
    row |= {"bytes changed": flips, "changes found": found}
    tried = found = 0
    for name in files:
        lengths = {0, len(contents[name]) - 1, *random.integers(len(contents[name]), size=cuts).tolist()}
        for damaged in [*(contents[name][:length] for length in lengths), None]:
            found += _is_refused(comm, folder, state.path / name, damaged, contents[name])
            tried += 1
    run.restore(folder)  # all files are whole again
    return row | {"files cut or removed": tried, "cuts found": found}


def _is_refused(comm: MPI.Comm, folder: str, path: pathlib.Path, damaged: bytes | None, content: bytes) -> bool:
    """Tell whether all ranks get an error for a damaged file; the content is put back afterwards."""
    on_root(comm, lambda: _write(path, damaged))
    try:
        load_state(folder, comm, strict=True)
    except InputError:
        refused = True
    else:
        refused = False
    on_root(comm, lambda: _write(path, content))
    return bool(comm.allreduce(refused, op=MPI.LAND))


def _read(path: pathlib.Path) -> bytes:
    return path.read_bytes()


def _write(path: pathlib.Path, content: bytes | None) -> None:
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_bytes(content)


def cost(comm: MPI.Comm, folder: str, cells: int, repeat: int) -> Row:
    """Time a checkpoint of two fields of degree two, and the same values written plainly. Collective: yes.

    "plain" is one ``.npy`` file a rank and field, without digests, mesh, or a word to the disk; "plain, synchronised"
    waits until the disk has them, as a checkpoint does.
    """
    run = BurgersRun(comm, cells)
    place = pathlib.Path(folder)
    on_root(comm, lambda: place.mkdir(parents=True, exist_ok=True))

    def plain(synchronise: bool) -> None:
        for name, field in run.fields.items():
            with open(place / f"{name}-{comm.rank}.npy", "wb") as stream:
                np.save(stream, field.x.array)
                if synchronise:
                    push_to_disk(stream)

    def load() -> None:
        run.restore(folder)

    run.save(folder)
    arms: dict[str, Callable[[], None]] = {
        "save": lambda: run.save(folder),
        "plain": lambda: plain(False),
        "plain, synchronised": lambda: plain(True),
        "load": load,
    }
    timings = paired_times(arms, repeat, comm)
    state = load_state(folder, comm)
    assert state is not None
    size = on_root(comm, lambda: sum(file.stat().st_size for file in state.path.iterdir()))
    plain_size = comm.allreduce(sum(field.x.array.nbytes for field in run.fields.values()))
    row: Row = {"unknowns": 2 * run.u.function_space.dofmap.index_map.size_global}
    row |= {f"{name} [s]": timing.median for name, timing in timings.items()}
    return row | {"checkpoint [MB]": size / 1e6, "plain [MB]": plain_size / 1e6}
