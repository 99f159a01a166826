"""Gmsh's .msh files (2.2 and 4.1, text and binary) as plain arrays.

Gmsh's own reader is not used: on a damaged element block it writes past its arrays and ends the process, and
other ranks would wait for ever. Here every count is compared with what the file holds before anything is taken.
"""

import dataclasses
import pathlib
import re

from mpi4py import MPI  # noqa: F401  MPI must be loaded before DOLFINx

import numpy as np
import numpy.typing as npt
from dolfinx.io.gmsh import cell_perm_array
from dolfinx.mesh import CellType

from pdeopt.fem.mesh_arrays import SUPPORTED_CELLS, ElementBlock, Floats, Integers, MeshArrays, collect_mesh
from pdeopt.report import MeshError

# Gmsh's number of an element type -> shape, degree, number of nodes.
_ELEMENT_TYPES = {
    1: ("interval", 1, 2),
    2: ("triangle", 1, 3),
    3: ("quadrilateral", 1, 4),
    4: ("tetrahedron", 1, 4),
    5: ("hexahedron", 1, 8),
    8: ("interval", 2, 3),
    9: ("triangle", 2, 6),
    10: ("quadrilateral", 2, 9),
    11: ("tetrahedron", 2, 10),
    12: ("hexahedron", 2, 27),
    15: ("point", 1, 1),
}


@dataclasses.dataclass
class _Numbers:
    """The numbers of one section, taken in order from text or from bytes."""

    section: str
    text: npt.NDArray[np.number] | None
    data: bytes
    byte_order: str
    position: int = 0

    def take(self, count: int, kind: str) -> npt.NDArray[np.number]:
        """Return the next ``count`` numbers; ``kind`` is their type in a binary file ("i4", "u8", "f8")."""
        width = 1 if self.text is not None else int(kind[1])
        there = ((len(self.text) if self.text is not None else len(self.data)) - self.position) // width
        if not 0 <= count <= there:
            raise MeshError(f"its section ${self.section} announces {count} numbers where {there} are left: "
                            "the file is truncated or damaged; write it again")  # fmt: skip
        start, self.position = self.position, self.position + count * width
        if self.text is not None:
            return self.text[start : self.position]
        return np.frombuffer(self.data, self.byte_order + kind, count, start)

    def integer(self, kind: str) -> int:
        """Return the next number as an integer."""
        return int(self.take(1, kind)[0])


class _MshFile:
    """The sections of a .msh file."""

    def __init__(self, data: bytes) -> None:
        if not data.lstrip().startswith((b"$MeshFormat", b"$Comments")):
            raise MeshError("it does not start with $MeshFormat, so it is no Gmsh file; export it as MSH 4.1")
        self.sections = _split_sections(data)
        header = self.body("MeshFormat").split(b"\n", 1)
        version, binary, size = header[0].split()[:3]
        self.version = version.decode("ascii", "replace")
        if self.version not in ("2", "2.1", "2.2", "4.1"):
            raise MeshError(f"its format is MSH {self.version}; export it as MSH 4.1 (gmsh -save -format msh41)")
        if int(size) != 8:
            raise MeshError(f"its numbers have {int(size)} bytes; export it with 8")
        self.binary = int(binary) == 1
        self.byte_order = "<" if not self.binary or header[1][:4] == b"\x01\x00\x00\x00" else ">"

    def body(self, section: str) -> bytes:
        """Return the bytes of a section that must exist."""
        if section not in self.sections:
            raise MeshError(f"it has no section ${section}; write the mesh again")
        return self.sections[section]

    def numbers(self, section: str, body: bytes, kind: type[np.float64] | type[np.int64]) -> _Numbers:
        """Return a reader of the numbers of a section's bytes."""
        text = None if self.binary else np.array(body.split(), dtype=np.bytes_).astype(kind)
        return _Numbers(section, text, body, self.byte_order)


def read_msh(path: pathlib.Path) -> MeshArrays:
    """Read a Gmsh file.

    Raises
    ------
    MeshError
        If the file is damaged, or has elements that DOLFINx cannot use.

    Collective: no.
    """
    file = _MshFile(path.read_bytes())
    if file.version == "4.1":
        node_numbers, points = _nodes_of_version_4(file)
        elements = _elements_of_version_4(file)
    else:
        node_numbers, points = _nodes_of_version_2(file)
        elements = _elements_of_version_2(file)
    order = np.argsort(node_numbers, kind="stable")
    ordered = node_numbers[order]
    twice = np.flatnonzero(ordered[1:] == ordered[:-1])
    if len(twice):
        raise MeshError(f"it defines node {ordered[twice[0]]} twice; write the mesh again")
    blocks = []
    for number, nodes, tags in elements:
        shape, degree, _ = _ELEMENT_TYPES[number]
        place = np.minimum(np.searchsorted(ordered, nodes), max(len(ordered) - 1, 0))
        unknown = nodes[ordered[place] != nodes] if len(ordered) else nodes.ravel()
        if len(unknown):
            raise MeshError(f"an element refers to node {unknown[0]}, which is not defined; write the mesh again")
        rows = order[place]
        if shape not in ("point", "interval"):
            rows = rows[:, cell_perm_array(CellType[shape], rows.shape[1])]
        blocks.append(ElementBlock(shape, degree, rows, tags, tags != 0))  # Gmsh's tags start at 1
    return collect_mesh(points, blocks, _physical_names(file))


def _split_sections(data: bytes) -> dict[str, bytes]:
    sections: dict[str, bytes] = {}
    position = data.find(b"$")
    while position >= 0:
        line_end = data.find(b"\n", position)
        name = data[position + 1 : line_end].strip().decode("ascii", "replace") if line_end > 0 else ""
        end = data.find(b"$End" + name.encode(), line_end)
        if not name or end < 0:
            raise MeshError(f"its section ${name} has no end: the file is truncated; write it again")
        sections[name] = data[line_end + 1 : end]
        position = data.find(b"$", end + len(name) + 4)
    return sections


def _physical_names(file: _MshFile) -> list[tuple[str, int, int]]:
    text = file.sections.get("PhysicalNames", b"").decode()
    return [(name, int(dim), int(tag)) for dim, tag, name in re.findall(r'^\s*(\d)\s+(\d+)\s+"(.*)"', text, re.M)]


def _node_count_of(number: int) -> int:
    if number not in _ELEMENT_TYPES:
        raise MeshError(f"it has elements of Gmsh's type {number}; use {SUPPORTED_CELLS}")
    return _ELEMENT_TYPES[number][2]


def _check_total(section: str, found: int, announced: int) -> None:
    if found != announced:
        raise MeshError(f"its section ${section} announces {announced} entries and lists {found}; write it again")


def _nodes_of_version_4(file: _MshFile) -> tuple[Integers, Floats]:
    numbers = file.numbers("Nodes", file.body("Nodes"), np.float64)
    block_count, node_count = numbers.integer("u8"), numbers.integer("u8")
    numbers.take(2, "u8")  # smallest and largest node number
    all_numbers, points = [np.empty(0, dtype=np.int64)], [np.empty((0, 3))]
    for _ in range(block_count):
        dimension, _, parametric = (int(value) for value in numbers.take(3, "i4"))
        count = numbers.integer("u8")
        columns = 3 + (dimension if parametric else 0)
        all_numbers.append(numbers.take(count, "u8").astype(np.int64))
        points.append(numbers.take(columns * count, "f8").reshape(count, columns)[:, :3].astype(np.float64))
    _check_total("Nodes", sum(len(block) for block in points), node_count)
    return np.concatenate(all_numbers), np.concatenate(points)


def _elements_of_version_4(file: _MshFile) -> list[tuple[int, Integers, Integers]]:
    groups = _groups_of_entities(file)
    numbers = file.numbers("Elements", file.body("Elements"), np.int64)
    block_count, element_count = numbers.integer("u8"), numbers.integer("u8")
    numbers.take(2, "u8")  # smallest and largest element number
    elements = []
    for _ in range(block_count):
        dimension, entity, number = (int(value) for value in numbers.take(3, "i4"))
        count, columns = numbers.integer("u8"), 1 + _node_count_of(number)
        rows = numbers.take(columns * count, "u8").reshape(count, columns).astype(np.int64)
        tag = groups.get((dimension, entity), 0)
        elements.append((number, rows[:, 1:], np.full(count, tag)))
    _check_total("Elements", sum(len(block[2]) for block in elements), element_count)
    return elements


def _groups_of_entities(file: _MshFile) -> dict[tuple[int, int], int]:
    """Return (dimension, entity) -> physical tag; MeshTags have room for one."""
    if "Entities" not in file.sections:
        return {}
    numbers = file.numbers("Entities", file.body("Entities"), np.float64)
    counts = [int(count) for count in numbers.take(4, "u8")]
    groups: dict[tuple[int, int], int] = {}
    for dimension, count in enumerate(counts):
        for _ in range(count):
            entity = numbers.integer("i4")
            numbers.take(6 if dimension else 3, "f8")  # bounding box
            tags = [abs(int(tag)) for tag in numbers.take(numbers.integer("u8"), "i4")]
            if dimension:
                numbers.take(numbers.integer("u8"), "i4")  # entities of its boundary
            if len(set(tags)) > 1 and dimension >= 1:
                raise MeshError(f"its entity {entity} of dimension {dimension} belongs to the physical groups {tags}; "
                                "make the groups disjoint")  # fmt: skip
            groups[dimension, entity] = tags[0] if tags else 0
    return groups


def _counted_body(file: _MshFile, section: str) -> tuple[int, bytes]:
    """Return the count on a version-2 section's first line, which is text also in binary files, and the rest."""
    first, _, rest = file.body(section).partition(b"\n")
    return int(first), rest


def _nodes_of_version_2(file: _MshFile) -> tuple[Integers, Floats]:
    count, body = _counted_body(file, "Nodes")
    if not file.binary:
        table = file.numbers("Nodes", body, np.float64).take(4 * count, "f8").reshape(count, 4)
        return table[:, 0].astype(np.int64), table[:, 1:].astype(np.float64)
    record = np.dtype([("number", file.byte_order + "i4"), ("point", file.byte_order + "f8", (3,))])
    _check_total("Nodes", min(count, len(body) // record.itemsize), count)
    records = np.frombuffer(body, record, count)
    return records["number"].astype(np.int64), records["point"].astype(np.float64)


def _elements_of_version_2(file: _MshFile) -> list[tuple[int, Integers, Integers]]:
    """Return the elements of each type; their first tag is the physical one."""
    count, body = _counted_body(file, "Elements")
    numbers = file.numbers("Elements", body, np.int64)
    elements, found = [], 0
    rows_by_kind: dict[tuple[int, int], list[npt.NDArray[np.number]]] = {}
    while found < count:
        if file.binary:
            number, block, tag_count = (int(value) for value in numbers.take(3, "i4"))
            columns = 1 + tag_count + _node_count_of(number)
            rows = numbers.take(columns * block, "i4").reshape(block, columns)[:, 1:]
            if block < 1:
                raise MeshError(f"its section $Elements has a block of {block} elements; write it again")
        else:
            _, number, tag_count = (int(value) for value in numbers.take(3, "i4"))
            block, rows = 1, numbers.take(tag_count + _node_count_of(number), "i4")[None, :]
        found += block
        rows_by_kind.setdefault((number, tag_count), []).append(rows)
    _check_total("Elements", found, count)
    for (number, tag_count), parts in rows_by_kind.items():
        table = np.concatenate(parts).astype(np.int64)
        tags = np.abs(table[:, 0]) if tag_count else np.zeros(len(table), dtype=np.int64)
        elements.append((number, table[:, tag_count:], tags))
    return elements
