"""Mesh files for the tests: a domain of known measures in every format, and the same files damaged in every way."""

import contextlib
import io
import pathlib
import struct

from mpi4py import MPI

import dolfinx.io
import gmsh
import meshio
import numpy as np

from pdeopt.fem import read_mesh

# The domain: [0, 2] x [0, 1] (x [0, 1]), cut at x = 1; "wall" is x = 0 and "rest" all else of the boundary.
LEFT, RIGHT, WALL, REST = 1, 2, 3, 4
GROUPS = {"left": LEFT, "right": RIGHT, "wall": WALL, "rest": REST}
MESHIO_TYPES = {  # cell and facet, by shape and degree
    ("triangle", 1): ("triangle", "line"),
    ("triangle", 2): ("triangle6", "line3"),
    ("quadrilateral", 1): ("quad", "line"),
    ("quadrilateral", 2): ("quad9", "line3"),
    ("tetrahedron", 1): ("tetra", "triangle"),
    ("tetrahedron", 2): ("tetra10", "triangle6"),
    ("hexahedron", 1): ("hexahedron", "quad"),
    ("hexahedron", 2): ("hexahedron27", "quad9"),
}


@contextlib.contextmanager
def gmsh_model():
    """Open a silent Gmsh with an empty model."""
    gmsh.initialize(readConfigFiles=False, interruptible=False)
    gmsh.option.setNumber("General.Terminal", 0)
    try:
        yield gmsh.model
    finally:
        gmsh.finalize()


def write_gmsh(folder: pathlib.Path, shape: str, degree: int, versions=((4.1, 1),)) -> list[pathlib.Path]:
    """Mesh the domain and write it as .msh; a version is (format, 1 for binary)."""
    three_d = shape in ("tetrahedron", "hexahedron")
    tensor = shape in ("quadrilateral", "hexahedron")
    paths = []
    with gmsh_model() as model:
        occ = model.occ
        if three_d:
            parts = [(3, occ.addBox(x, 0, 0, 1, 1, 1)) for x in (0, 1)]
        else:
            parts = [(2, occ.addRectangle(x, 0, 0, 1, 1)) for x in (0, 1)]
        occ.fragment(parts[:1], parts[1:])
        occ.synchronize()
        top = model.getDimension()
        boundary = [tag for _, tag in model.getBoundary(model.getEntities(top), oriented=False)]
        wall = [tag for tag in boundary if abs(occ.getCenterOfMass(top - 1, tag)[0]) < 1e-9]
        volumes = sorted((occ.getCenterOfMass(top, tag)[0], tag) for _, tag in model.getEntities(top))
        model.addPhysicalGroup(top, [volumes[0][1]], LEFT, "left")
        model.addPhysicalGroup(top, [volumes[1][1]], RIGHT, "right")
        model.addPhysicalGroup(top - 1, wall, WALL, "wall")
        model.addPhysicalGroup(top - 1, sorted(set(boundary) - set(wall)), REST, "rest")
        model.mesh.setSize(model.getEntities(0), 0.5)
        if tensor:
            for _, tag in model.getEntities(1):
                model.mesh.setTransfiniteCurve(tag, 4)
            for _, tag in model.getEntities(2):
                model.mesh.setTransfiniteSurface(tag)
                model.mesh.setRecombine(2, tag)
            for _, tag in model.getEntities(3):
                model.mesh.setTransfiniteVolume(tag)
        model.mesh.generate(top)
        model.mesh.setOrder(degree)
        for version, binary in versions:
            gmsh.option.setNumber("Mesh.MshFileVersion", version)
            gmsh.option.setNumber("Mesh.Binary", binary)
            paths.append(folder / f"{shape}{degree}_{version}_{binary}.msh")
            gmsh.write(str(paths[-1]))
    return paths


def write_disc(folder: pathlib.Path) -> pathlib.Path:
    """A unit disc of quadratic triangles, untagged."""
    with gmsh_model() as model:
        model.occ.addDisk(0, 0, 0, 1, 1)
        model.occ.synchronize()
        gmsh.option.setNumber("Mesh.MeshSizeMax", 0.2)
        model.mesh.generate(2)
        model.mesh.setOrder(2)
        gmsh.write(str(folder / "disc.msh"))
    return folder / "disc.msh"


def write_sphere(folder: pathlib.Path) -> pathlib.Path:
    """The surface of the unit sphere."""
    with gmsh_model() as model:
        sphere = model.occ.addSphere(0, 0, 0, 1)
        model.occ.synchronize()
        model.addPhysicalGroup(2, [tag for _, tag in model.getBoundary([(3, sphere)])], 1, "shell")
        gmsh.option.setNumber("Mesh.MeshSizeMax", 0.3)
        model.mesh.generate(2)
        gmsh.write(str(folder / "sphere.msh"))
    return folder / "sphere.msh"


def to_meshio(path: pathlib.Path, shape: str, degree: int) -> tuple[np.ndarray, list, list]:
    """Read one of our .msh files with meshio: points, [(type, nodes)] for cells and facets, and their tags."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        content = meshio.read(path)
    blocks, tags = [], []
    for kind in MESHIO_TYPES[shape, degree]:
        blocks.append((kind, np.concatenate([b.data for b in content.cells if b.type == kind])))
        parts = zip(content.cells, content.cell_data["gmsh:physical"], strict=True)
        tags.append(np.concatenate([tag for block, tag in parts if block.type == kind]).astype(np.int64))
    return content.points, blocks, tags


def write_with_meshio(path: pathlib.Path, shape: str, degree: int, target: pathlib.Path) -> pathlib.Path:
    """Write one of our .msh files in the format of ``target``'s extension, tags as that format has them."""
    points, blocks, tags = to_meshio(path, shape, degree)
    if shape in ("triangle", "quadrilateral") and target.suffix in (".med", ".xdmf"):
        points = points[:, :2]
    data: dict = {"cell_data": {"gmsh:physical": tags}}
    families: dict[int, list[str]] = {}
    if target.suffix == ".inp":
        sets = {name: [np.flatnonzero(part == tag) for part in tags] for name, tag in GROUPS.items()}
        data = {"cell_sets": sets}
    elif target.suffix == ".med":
        data = {"cell_data": {"cell_tags": [-part for part in tags]}}
        families = {-tag: [name] for name, tag in GROUPS.items()}
    elif target.suffix == ".xdmf":  # one topology in a file, and meshio compresses it
        blocks, data = blocks[:1], {"cell_data": {"gmsh:physical": tags[:1]}}
    mesh = meshio.Mesh(points, blocks, **data)
    mesh.cell_tags = families
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        mesh.write(target)
    return target


def write_xdmf(path: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
    """Write one of our .msh files as DOLFINx does."""
    data = read_mesh(path, MPI.COMM_SELF)
    with dolfinx.io.XDMFFile(MPI.COMM_SELF, target, "w") as file:
        file.write_mesh(data.mesh)
        for tags in (data.cell_tags, data.facet_tags):
            assert tags is not None
            file.write_meshtags(tags, data.mesh.geometry)
    return target


def msh2(nodes: str, elements: str) -> bytes:
    """A text of MSH 2.2 from its node and element lines."""
    count = [len(part.strip().splitlines()) for part in (nodes, elements)]
    return (
        f"$MeshFormat\n2.2 0 8\n$EndMeshFormat\n$Nodes\n{count[0]}\n{nodes.strip()}\n$EndNodes\n"
        f"$Elements\n{count[1]}\n{elements.strip()}\n$EndElements\n"
    ).encode()


SQUARE = "1 0 0 0\n2 1 0 0\n3 1 1 0\n4 0 1 0\n"
TWO_TRIANGLES = "1 2 2 7 1 1 2 3\n2 2 2 7 1 1 3 4\n"


def write_malformed(folder: pathlib.Path) -> list[pathlib.Path]:
    """Write one file for each kind of damage; the name says which."""
    made: list[pathlib.Path] = [folder / "missing.msh", folder / "missing.xdmf", folder / "missing.vtu"]

    def add(name: str, content: bytes | str) -> None:
        made.append(folder / name)
        made[-1].write_bytes(content.encode() if isinstance(content, str) else content)

    (folder / "directory.msh").mkdir()
    made.append(folder / "directory.msh")
    for suffix in ("msh", "xdmf", "vtu", "inp"):
        add(f"empty.{suffix}", b"")
        add(f"garbage.{suffix}", bytes(range(256)) * 8)
    add("unknown_extension.mush", "1 2 3")
    add("script.msh", 'SystemCall "true";')
    add("old_version.msh", "$MeshFormat\n4 0 8\n$EndMeshFormat\n")

    # Gmsh, whole formats cut short
    versions = ((2.2, 0), (2.2, 1), (4.1, 0), (4.1, 1))
    good = {
        version: p.read_bytes()
        for version, p in zip(versions, write_gmsh(folder, "triangle", 1, versions), strict=True)
    }
    for (version, binary), data in good.items():
        for percent in (3, 30, 60, 90, 99):
            add(f"truncated_{version}_{binary}_{percent}.msh", data[: len(data) * percent // 100])
    text, binary = good[4.1, 0], good[4.1, 1]
    count = text.split(b"$Nodes\n")[1].split()[1]
    add("huge_count_2.2.msh", good[2.2, 0].replace(b"$Nodes\n" + count, b"$Nodes\n999999999999"))
    add("huge_count_2.2_binary.msh", good[2.2, 1].replace(b"$Nodes\n" + count, b"$Nodes\n999999999999"))
    start = binary.index(b"$Nodes\n") + 7
    add("huge_count_4.1_binary.msh", binary[:start] + struct.pack("<QQ", 10**15, 10**15) + binary[start + 16 :])
    start = text.index(b"$Elements\n") + 10
    head, block, rest = text[start:].split(b"\n", 2)
    block = b" ".join([*block.split()[:3], b"100000000"])
    add("huge_block_4.1.msh", text[:start] + b"\n".join([head, block, rest]))  # ends Gmsh's own reader by SIGABRT

    # Gmsh, one thing wrong
    add("nan.msh", msh2(SQUARE.replace("3 1 1 0", "3 nan 1 0"), TWO_TRIANGLES))
    add("inf.msh", msh2(SQUARE.replace("3 1 1 0", "3 1 inf 0"), TWO_TRIANGLES))
    add("word_for_number.msh", msh2(SQUARE.replace("3 1 1 0", "3 one 1 0"), TWO_TRIANGLES))
    add("unknown_node.msh", msh2(SQUARE, TWO_TRIANGLES.replace("1 3 4", "1 3 99")))
    add("node_zero.msh", msh2(SQUARE, TWO_TRIANGLES.replace("1 3 4", "1 3 0")))
    add("node_defined_twice.msh", msh2(SQUARE + "4 0.5 1 0\n", TWO_TRIANGLES))
    add("coincident_nodes.msh", msh2(SQUARE + "5 0 0 0\n", TWO_TRIANGLES.replace("1 3 4", "5 3 4")))
    add("duplicate_cell.msh", msh2(SQUARE, TWO_TRIANGLES + "3 2 2 8 1 3 1 2\n"))
    add("repeated_node.msh", msh2(SQUARE, TWO_TRIANGLES.replace("1 3 4", "1 3 3")))
    add("no_area.msh", msh2(SQUARE + "5 0.5 0 0\n", TWO_TRIANGLES + "3 2 2 7 1 1 5 2\n"))
    add("folded.msh", msh2(SQUARE.replace("4 0 1 0", "4 0.9 0.1 0"), TWO_TRIANGLES))
    add("third_cell_on_facet.msh", msh2(SQUARE + "5 0.2 0.9 0\n", TWO_TRIANGLES + "3 2 2 7 1 1 3 5\n"))
    add("bow_tie.msh", msh2(SQUARE, "1 3 2 7 1 1 2 4 3\n"))
    add("mixed_cells.msh", msh2(SQUARE + "5 2 0 0\n", "1 3 2 7 1 1 2 3 4\n2 2 2 7 1 2 5 3\n"))
    add("lines_only.msh", msh2(SQUARE, "1 1 2 7 1 1 2\n2 1 2 7 1 2 3\n"))
    add("no_elements.msh", msh2(SQUARE, ""))
    add("no_nodes.msh", msh2("", TWO_TRIANGLES))
    add("prism.msh", msh2(SQUARE + "5 0 0 1\n6 1 0 1\n", "1 6 2 7 1 1 2 3 4 5 6\n"))
    add("unknown_element_type.msh", msh2(SQUARE, "1 4711 2 7 1 1 2 3\n"))
    add("facet_in_two_groups.msh", msh2(SQUARE, TWO_TRIANGLES + "3 1 2 8 1 1 2\n4 1 2 9 1 2 1\n"))
    add("nothing_but_format.msh", "$MeshFormat\n2.2 0 8\n$EndMeshFormat\n")

    # XDMF
    xdmf = write_xdmf(folder / "triangle1_4.1_0.msh", folder / "good.xdmf")
    xml, heavy = xdmf.read_text(), xdmf.with_suffix(".h5").read_bytes()

    def add_xdmf(name: str, content: str, data: bytes | None = heavy) -> None:
        add(f"{name}.xdmf", content.replace("good.h5", f"{name}.h5"))
        if data is not None:
            (folder / f"{name}.h5").write_bytes(data)

    add_xdmf("without_h5", xml, None)
    add_xdmf("empty_h5", xml, b"")
    add_xdmf("garbage_h5", xml, b"garbage" * 100)
    add_xdmf("truncated_h5", xml, heavy[: len(heavy) // 2])
    add_xdmf("broken_xml", xml[: len(xml) // 2])
    add_xdmf("no_such_dataset", xml.replace("/Mesh/mesh/geometry", "/Mesh/mesh/nothing"))
    add_xdmf("no_such_tags", xml.replace("/MeshTags/facet_tags/Values", "/MeshTags/facet_tags/nothing"))
    cells = xml.split('NumberOfElements="')[1].split('"')[0]
    add_xdmf("huge_dimensions", xml.replace(f'Dimensions="{cells} 3"', 'Dimensions="900000000000 3"'))
    add_xdmf("no_grid", "<Xdmf><Domain/></Xdmf>")
    inline = ('<Xdmf Version="3.0"><Domain><Grid Name="mesh"><Geometry GeometryType="XY"><DataItem Dimensions="3 2" '
              'Format="XML">0 0 1 0 0 {y}</DataItem></Geometry><Topology TopologyType="Triangle" NumberOfElements="1" '
              'NodesPerElement="3"><DataItem Dimensions="1 3" NumberType="Int" Format="XML">0 1 {node}</DataItem>'
              "</Topology></Grid></Domain></Xdmf>")  # fmt: skip
    add("xdmf_index_out_of_range.xdmf", inline.format(y=1, node=7))
    add("xdmf_negative_index.xdmf", inline.format(y=1, node=-1))
    add("xdmf_no_area.xdmf", inline.format(y=0, node=2))

    # meshio's formats
    vtu = write_with_meshio(folder / "triangle1_4.1_0.msh", "triangle", 1, folder / "good.vtu").read_bytes()
    add("truncated.vtu", vtu[: len(vtu) // 2])
    start = vtu.index(b">", vtu.index(b"<Points>") + 10) + 5
    add("bad_base64.vtu", vtu[:start] + b"!!!!" + vtu[start + 4 :])
    inp = write_with_meshio(folder / "triangle1_4.1_0.msh", "triangle", 1, folder / "good.inp").read_bytes()
    add("truncated.inp", inp[: len(inp) // 3])
    add("ambiguous_sets.inp", "*NODE\n1,0,0\n2,1,0\n3,1,1\n4,0,1\n*ELEMENT,TYPE=CPS3,ELSET=A\n1,1,2,3\n"
                              "*ELEMENT,TYPE=CPS3,ELSET=A\n2,1,3,4\n")  # fmt: skip
    add("overlapping_sets.inp", "*NODE\n1,0,0\n2,1,0\n3,1,1\n4,0,1\n*ELEMENT,TYPE=CPS3\n1,1,2,3\n2,1,3,4\n"
                                "*ELSET,ELSET=all\n1,2\n*ELSET,ELSET=half\n1\n")  # fmt: skip
    corners = np.array([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    meshes = {
        "nan.vtu": (np.where(corners == 0, corners, np.nan), [("triangle", [[0, 1, 2]])], {}),
        "index_out_of_range.vtk": (corners, [("triangle", [[0, 1, 99]])], {}),
        "serendipity.vtu": (
            np.vstack([corners, 0.5 * (corners + np.roll(corners, -1, 0))]),
            [("quad8", [range(8)])],
            {},
        ),
        "two_integer_data.vtu": (corners, [("triangle", [[0, 1, 2]])], {"a": [np.array([1])], "b": [np.array([2])]}),
        "huge_tag.vtu": (corners, [("triangle", [[0, 1, 2]])], {"cell_tags": [np.array([2**40])]}),
    }
    for name, (points, blocks, cell_data) in meshes.items():
        made.append(folder / name)
        mesh = meshio.Mesh(points, [(kind, np.array(nodes)) for kind, nodes in blocks], cell_data=cell_data)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            mesh.write(made[-1])
    return made
