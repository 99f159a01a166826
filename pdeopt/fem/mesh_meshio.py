"""Mesh files of other programs (VTK, MED, Abaqus, Medit, SU2, ...) as plain arrays, through meshio."""

import contextlib
import io
import itertools
import pathlib
import re
from collections.abc import Iterable, Sequence

from mpi4py import MPI  # noqa: F401  MPI must be loaded before DOLFINx

import meshio
import numpy as np
import numpy.typing as npt
from dolfinx.io.utils import cell_perm_vtk
from dolfinx.mesh import CellType

from pdeopt.fem.mesh_arrays import SUPPORTED_CELLS, ElementBlock, Integers, MeshArrays, collect_mesh
from pdeopt.report import MeshError

# meshio's name of an element type -> shape and degree.
_ELEMENT_TYPES = {
    "vertex": ("point", 1),
    "line": ("interval", 1),
    "line3": ("interval", 2),
    "triangle": ("triangle", 1),
    "triangle6": ("triangle", 2),
    "quad": ("quadrilateral", 1),
    "quad9": ("quadrilateral", 2),
    "tetra": ("tetrahedron", 1),
    "tetra10": ("tetrahedron", 2),
    "hexahedron": ("hexahedron", 1),
    "hexahedron27": ("hexahedron", 2),
}
# Integer data that numbers the elements or says how they were made; none of it is a material or a boundary.
_BOOKKEEPING = (
    "gmsh:geometrical",
    "gmsh:dim_tags",
    "vtkGhostType",
    "vtkOriginalCellIds",
    "GlobalIds",
    "GlobalElementId",
)
_USUAL_TAG_NAMES = ("gmsh:physical", "medit:ref", "cell_tags", "facet_tags", "mesh_tags")


def choose_tag_data(names: Iterable[str]) -> str | None:
    """Return the name of the integer data that holds the tags, or None if there is none.

    Raises
    ------
    MeshError
        If several may be meant.

    Collective: no.
    """
    candidates = sorted(set(names) - set(_BOOKKEEPING))
    for usual in _USUAL_TAG_NAMES:
        if usual in candidates:
            return usual
    if len(candidates) > 1:
        raise MeshError(f"any of its integer data {candidates} may be the tags; name the one that is 'cell_tags'")
    return candidates[0] if candidates else None


def read_with_meshio(path: pathlib.Path) -> MeshArrays:
    """Read any file that meshio can read, with its tags.

    Tags are integer cell data (gmsh:physical, medit:ref, cell_tags, or the only one there is), the families of a
    MED file, or named cell sets, which are numbered from 1 in each dimension.

    Raises
    ------
    MeshError
        If meshio cannot read the file, its sets overlap, or it has elements that DOLFINx cannot use.

    Collective: no.
    """
    if not any(suffix.lower() in meshio.extension_to_filetypes for suffix in path.suffixes):
        raise MeshError(f"the extension '{path.suffix}' is unknown; use .msh, .xdmf or one of "
                        f"{' '.join(sorted(meshio.extension_to_filetypes))}")  # fmt: skip
    if path.suffix.lower() == ".inp":
        _check_abaqus_sets(path)
    content = _read_quietly(path)
    tags, tagged, names = _tags_of(content)
    blocks = []
    for block, block_tags, block_tagged in zip(content.cells, tags, tagged, strict=True):
        if block.type not in _ELEMENT_TYPES:
            if block.dim >= 2:
                raise MeshError(f"it has elements of type '{block.type}'; use {SUPPORTED_CELLS}")
            continue
        shape, degree = _ELEMENT_TYPES[block.type]
        nodes = np.asarray(block.data, dtype=np.int64)
        if shape not in ("point", "interval"):
            nodes = nodes[:, cell_perm_vtk(CellType[shape], nodes.shape[1])]
        blocks.append(ElementBlock(shape, degree, nodes, block_tags, block_tagged))
    return collect_mesh(np.asarray(content.points, dtype=np.float64), blocks, names)


def _read_quietly(path: pathlib.Path) -> meshio.Mesh:
    """Let meshio read; it prints its reasons and ends the process when it cannot."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            return meshio.read(path)
    except SystemExit as stop:
        raise MeshError(f"meshio cannot read it: {' '.join(said.getvalue().split())}; write the mesh again") from stop


_Names = list[tuple[str, int, int]]
_PerBlock = list[npt.NDArray[np.bool_]]


def _is_integer_column(values: npt.ArrayLike) -> bool:
    return np.ndim(values) == 1 and np.issubdtype(np.asarray(values).dtype, np.integer)


def _tags_of(content: meshio.Mesh) -> tuple[list[Integers], _PerBlock, _Names]:
    """Return the tags, the mask of tagged elements, and (name, dimension, tag), block by block."""
    integer_data = [name for name, parts in content.cell_data.items() if all(map(_is_integer_column, parts))]
    families: dict[int, list[str]] = getattr(content, "cell_tags", {})
    name = choose_tag_data(integer_data)
    if name is None:
        return _tags_of_sets(content)
    tags = [np.asarray(part, dtype=np.int64) for part in content.cell_data[name]]
    zero_is_none = bool(families) or name == "gmsh:physical"
    tagged = [part != 0 if zero_is_none else np.ones(len(part), dtype=bool) for part in tags]
    if families:
        return tags, tagged, _names_of_families(content, tags, families)
    names = [(key, int(value[1]), int(value[0])) for key, value in content.field_data.items() if np.size(value) == 2]
    return tags, tagged, names


def _names_of_families(content: meshio.Mesh, tags: Sequence[Integers], families: dict[int, list[str]]) -> _Names:
    """Name the families of a MED file: sets of elements with the same groups, so that a group may need several."""
    names: _Names = []
    for block, part in zip(content.cells, tags, strict=True):
        for family in np.unique(part).tolist():
            names += [(group.strip("\x00 "), block.dim, family) for group in families.get(family, [])]
    names = sorted(set(names))
    for first, second in itertools.pairwise(names):
        if first[:2] == second[:2]:
            raise MeshError(f"its group '{first[0]}' overlaps another (families {first[2]} and {second[2]}); "
                            "make the groups disjoint")  # fmt: skip
    return names


def _tags_of_sets(content: meshio.Mesh) -> tuple[list[Integers], _PerBlock, _Names]:
    """Return numbers for the cell sets of each dimension; sets with the same elements share theirs."""
    tags = [np.zeros(len(block.data), dtype=np.int64) for block in content.cells]
    owner: dict[tuple[int, int], str] = {}
    names: _Names = []
    for name, parts in content.cell_sets.items():
        members = [(block, np.asarray(part, dtype=np.int64)) for block, part in enumerate(parts) if np.size(part)]
        for dimension in sorted({content.cells[block].dim for block, _ in members}):
            here = [(block, part) for block, part in members if content.cells[block].dim == dimension]
            found = {int(tag) for block, part in here for tag in np.unique(tags[block][part])}
            tag = max((t for _, d, t in names if d == dimension), default=0) + 1
            if found == {0}:
                for block, part in here:
                    tags[block][part] = tag
            elif len(found) == 1 and sum(len(part) for _, part in here) == sum(
                int((tags[b] == min(found)).sum()) for b, cells in enumerate(content.cells) if cells.dim == dimension
            ):
                tag = min(found)
            else:
                other = owner[dimension, max(found)]
                raise MeshError(f"its cell sets '{other}' and '{name}' overlap; make them disjoint, or delete one")
            owner.setdefault((dimension, tag), name)
            names.append((name, dimension, tag))
    return tags, [part != 0 for part in tags], names


def _check_abaqus_sets(path: pathlib.Path) -> None:
    """Refuse the two layouts of *ELEMENT lines for which meshio attaches a set to the wrong elements."""
    lines = re.findall(r"^\*ELEMENT\b[^\n]*", path.read_text(errors="replace"), re.M | re.I)
    sets = [match.group(1).strip() for line in lines if (match := re.search(r"ELSET\s*=\s*([^,\n]+)", line, re.I))]
    if sets and (len(sets) != len(lines) or len(set(sets)) != len(sets)):
        raise MeshError(f"its {len(lines)} *ELEMENT lines name the sets {sets}; give each line a set of its own, "
                        "or use *ELSET for all")  # fmt: skip
