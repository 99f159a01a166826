"""Meshes: every format with its tags, every kind of damage as an error on all ranks, tags by place."""

import importlib.util
import math
import pathlib
import time

from mpi4py import MPI

import dolfinx.io.gmsh
import dolfinx.mesh
import mesh_files
import numpy as np
import pytest
import ufl
from dolfinx import fem

from pdeopt.fem import MeshData, read_mesh, tag_boundary
from pdeopt.parallel import on_root
from pdeopt.report import MeshError

ROOT = pathlib.Path(__file__).resolve().parents[2]
WORLD = MPI.COMM_WORLD
SECONDS_TO_REFUSE = 10.0
has_h5py = importlib.util.find_spec("h5py") is not None


def measure_of(mesh: dolfinx.mesh.Mesh, tags: dolfinx.mesh.MeshTags, value: int) -> float:
    """Return the volume of the cells, or the area of the boundary facets, with a tag."""
    found = tags.find(value)  # renumbered, so that one compiled form serves all tags
    marked = dolfinx.mesh.meshtags(mesh, tags.dim, found, np.ones(len(found), dtype=np.int32))
    measure = ufl.Measure("dx" if tags.dim == mesh.topology.dim else "ds", domain=mesh, subdomain_data=marked)
    local = fem.assemble_scalar(fem.form(fem.Constant(mesh, 1.0) * measure(1)))
    return mesh.comm.allreduce(local)


def volume_of(mesh: dolfinx.mesh.Mesh) -> float:
    """Return the volume of the mesh."""
    count = mesh.topology.index_map(mesh.topology.dim).size_local
    cells = np.arange(count, dtype=np.int32)
    return measure_of(mesh, dolfinx.mesh.meshtags(mesh, mesh.topology.dim, cells, np.ones(count, dtype=np.int32)), 1)


def check_domain(data: MeshData, shape: str, degree: int, *, tags: tuple[int, ...], label: str) -> None:
    """Compare with the known measures of the test domain; ``tags`` are those of left, right, wall and rest."""
    flat = shape in ("triangle", "quadrilateral")
    mesh = data.mesh
    assert mesh.topology.cell_name() == shape, label
    assert mesh.geometry.dim == (2 if flat else 3), label
    assert mesh.geometry.cmaps[0].degree == degree, label
    assert volume_of(mesh) == pytest.approx(2.0, rel=1e-12), label
    expected = (1.0, 1.0, 1.0, 5.0 if flat else 9.0)
    for place, tag in enumerate(tags):
        where, size = data.cell_tags if place < 2 else data.facet_tags, expected[place]
        assert where is not None, label
        assert measure_of(mesh, where, tag) == pytest.approx(size, rel=1e-12), (label, tag)


TAGS = (mesh_files.LEFT, mesh_files.RIGHT, mesh_files.WALL, mesh_files.REST)


@pytest.mark.parallel([1, 2, 3])
def test_formats_keep_shapes_and_tags(shared_tmp_path: pathlib.Path) -> None:
    for shape, degree in mesh_files.MESHIO_TYPES:
        every = (shape, degree) == ("triangle", 1)
        versions = ((2.2, 0), (2.2, 1), (4.1, 0), (4.1, 1)) if every else ((2.2, 1), (4.1, 0))
        paths = on_root(WORLD, lambda s=shape, d=degree, v=versions: mesh_files.write_gmsh(shared_tmp_path, s, d, v))
        for path in paths:
            data = read_mesh(path)
            check_domain(data, shape, degree, tags=TAGS, label=path.name)
            assert [data.tag(name) for name in mesh_files.GROUPS] == list(TAGS)
        suffixes = [".vtu", ".vtk"]
        if degree == 1 and shape in ("triangle", "tetrahedron", "hexahedron"):
            suffixes.append(".inp")
        if has_h5py:
            suffixes += [".xdmf", ".med"] if degree == 1 else [".xdmf"]
        for suffix in suffixes:
            target = shared_tmp_path / f"{shape}{degree}{suffix}"
            on_root(WORLD, lambda p=paths[-1], s=shape, d=degree, t=target: mesh_files.write_with_meshio(p, s, d, t))
            data = read_mesh(target)
            tags = tuple(data.tag(name) for name in mesh_files.GROUPS) if suffix in (".inp", ".med") else TAGS
            if suffix == ".xdmf":
                tags = tags[:2]
            check_domain(data, shape, degree, tags=tags, label=target.name)
        if degree == 1:
            target = shared_tmp_path / f"dolfinx_{shape}.xdmf"
            on_root(WORLD, lambda p=paths[-1], t=target: mesh_files.write_xdmf(p, t))
            check_domain(read_mesh(target), shape, degree, tags=TAGS, label=target.name)


@pytest.mark.parallel([1, 2, 3])
def test_malformed_files_are_refused_on_every_rank(shared_tmp_path: pathlib.Path) -> None:
    paths = on_root(WORLD, lambda: mesh_files.write_malformed(shared_tmp_path))
    assert len(paths) >= 25
    faults = []
    for path in paths:
        start = time.perf_counter()
        try:
            read_mesh(path)
            faults.append(f"{path.name}: read without an error")
        except MeshError as error:
            if path.name not in str(error):
                faults.append(f"{path.name}: the message does not name the file: {error}")
        except Exception as error:
            faults.append(f"{path.name}: {type(error).__name__}: {error}")
        if time.perf_counter() - start > SECONDS_TO_REFUSE:
            faults.append(f"{path.name}: took {time.perf_counter() - start:.1f} s")
    assert WORLD.allgather(faults) == [[]] * WORLD.size
    leftovers = on_root(WORLD, lambda: sorted(p.name for p in shared_tmp_path.iterdir() if p.name.startswith("tmp")))
    assert leftovers == []


@pytest.mark.parallel([1, 2])
def test_curved_meshes(shared_tmp_path: pathlib.Path) -> None:
    disc = read_mesh(on_root(WORLD, lambda: mesh_files.write_disc(shared_tmp_path)))
    assert disc.cell_tags is None
    assert disc.physical_groups == {}
    assert disc.mesh.geometry.dim == 2
    # a polygon with sides of 0.2 would be off by 7e-3
    assert volume_of(disc.mesh) == pytest.approx(math.pi, rel=1e-4)
    sphere = read_mesh(on_root(WORLD, lambda: mesh_files.write_sphere(shared_tmp_path)))
    assert sphere.mesh.geometry.dim == 3
    assert sphere.mesh.topology.dim == 2
    assert volume_of(sphere.mesh) == pytest.approx(4 * math.pi, rel=0.02)


@pytest.mark.parallel([1, 2])
def test_leftovers_are_dropped(shared_tmp_path: pathlib.Path) -> None:
    path = shared_tmp_path / "leftovers.msh"
    # an orphan node among the others, a tagged point, a tagged line to the orphan, a line inside, no dense numbering
    nodes = "10 0 0 0\n20 1 0 0\n25 9 9 9\n30 1 1 0\n40 0 1 0\n"
    elements = "1 15 2 3 1 10\n2 1 2 5 1 10 25\n3 1 2 6 1 10 20\n4 2 2 7 1 10 20 30\n5 2 2 0 1 10 30 40\n"
    on_root(WORLD, lambda: path.write_bytes(mesh_files.msh2(nodes, elements)))
    data = read_mesh(path)
    assert data.mesh.geometry.index_map().size_global == 4
    assert data.mesh.geometry.dim == 2
    assert data.facet_tags is not None
    assert data.cell_tags is not None
    assert set().union(*WORLD.allgather(data.facet_tags.values.tolist())) == {6}
    assert measure_of(data.mesh, data.facet_tags, 6) == pytest.approx(1.0)
    assert measure_of(data.mesh, data.cell_tags, 7) == pytest.approx(0.5)


def test_agrees_with_dolfinx(tmp_path: pathlib.Path) -> None:
    (path,) = mesh_files.write_gmsh(tmp_path, "triangle", 1)
    theirs = dolfinx.io.gmsh.read_from_msh(path, MPI.COMM_SELF, gdim=2)
    ours = read_mesh(path, MPI.COMM_SELF)
    assert ours.physical_groups == dict(theirs.physical_groups)
    for name in ("cell_tags", "facet_tags"):
        mine, other = getattr(ours, name), getattr(theirs, name)
        places = []
        for mesh, tags in ((ours.mesh, mine), (theirs.mesh, other)):
            middle = dolfinx.mesh.compute_midpoints(mesh, tags.dim, tags.indices)
            rows = np.column_stack([tags.values, middle])
            places.append(rows[np.lexsort(np.round(rows, 9).T)])
        np.testing.assert_allclose(places[0], places[1], atol=1e-14)


def test_unknown_group_lists_the_known(tmp_path: pathlib.Path) -> None:
    (path,) = mesh_files.write_gmsh(tmp_path, "triangle", 1)
    data = read_mesh(path, MPI.COMM_SELF)
    with pytest.raises(MeshError, match=r"'fins'.*'left', 'right'|'fins'.*'wall'"):
        data.tag("fins")


@pytest.mark.parallel([1, 2, 3])
def test_heat_sink() -> None:
    data = read_mesh(ROOT / "meshes" / "heat_sink.msh")
    nodes = data.mesh.geometry.index_map().size_global
    assert 4000 <= nodes <= 5000
    assert sorted(data.physical_groups) == ["aluminium", "chip", "copper", "fins", "sides"]
    assert data.cell_tags is not None
    assert data.facet_tags is not None
    size = {name: measure_of(data.mesh, data.cell_tags, data.tag(name)) for name in ("aluminium", "copper")}
    slug = 22e-3 * 4e-3 - (2 - math.pi / 2) * 1e-6  # two rounded corners of 1 mm
    assert size["copper"] == pytest.approx(slug, rel=1e-3)
    assert sum(size.values()) == pytest.approx(volume_of(data.mesh), rel=1e-12)
    assert measure_of(data.mesh, data.facet_tags, data.tag("chip")) == pytest.approx(16e-3, rel=1e-12)
    assert measure_of(data.mesh, data.facet_tags, data.tag("sides")) == pytest.approx(60e-3, rel=1e-12)
    assert measure_of(data.mesh, data.facet_tags, data.tag("fins")) == pytest.approx(0.353, rel=1e-2)


@pytest.mark.parallel([1, 2])
def test_tag_boundary() -> None:
    mesh = dolfinx.mesh.create_unit_square(WORLD, 4, 3)
    tags = tag_boundary(mesh, {1: lambda x: np.isclose(x[0], 0.0), 5: lambda x: np.isclose(x[1], 1.0)})
    assert measure_of(mesh, tags, 1) == pytest.approx(1.0)
    assert measure_of(mesh, tags, 5) == pytest.approx(1.0)
    with pytest.raises(MeshError, match="tag 3 finds no boundary facet"):
        tag_boundary(mesh, {3: lambda x: x[0] > 2.0})
    with pytest.raises(MeshError, match="disjoint"):
        tag_boundary(mesh, {1: lambda x: np.isclose(x[0], 0.0), 2: lambda x: x[0] < 0.5})

    def failing(x: np.ndarray) -> np.ndarray:
        if WORLD.rank == WORLD.size - 1:
            raise RuntimeError("a locator that fails on the last rank")
        return np.isclose(x[0], 0.0)

    with pytest.raises(RuntimeError, match="fails on the last rank"):
        tag_boundary(mesh, {1: failing})
