"""Fields written for ParaView: VTX (``.bp``) where DOLFINx was built with ADIOS2, XDMF elsewhere."""

import contextlib
import math
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mpi4py import MPI

import dolfinx
import dolfinx.io
from dolfinx import fem

from pdeopt.parallel import on_root, raise_everywhere
from pdeopt.report import InputError, MissingPackageError

# What VTX itself stores under these names would be overwritten by a field of the same name.
_VTX_NAMES = frozenset(
    {"NumberOfEntities", "NumberOfNodes", "connectivity", "geometry", "step", "types", "vtkGhostType"}
    | {"vtkOriginalPointIds", "TIME"}
)
# Field names become XML attributes and HDF5 paths.
_FORBIDDEN_CHARACTERS = frozenset("/\\<>&\"'")


def write_fields(
    path: str | pathlib.Path,
    functions: Mapping[str, fem.Function[Any]] | Sequence[fem.Function[Any]] | fem.Function[Any],
    *,
    time: float = 0.0,
) -> list[pathlib.Path]:
    """Write fields so that ParaView shows them.

    All fields of one mesh go into one file. VTX holds cellwise constants as cell data and everything else as
    nodal data in the smallest Lagrange space that contains all the nodal fields, so that nothing is lost (but for
    vector-valued elements on curved cells, which are interpolated). XDMF knows only nodal fields of the mesh's own
    degree and cellwise constants: continuous fields are interpolated to the first, discontinuous ones to the second.
    Mixed fields are split into ``name_0``, ``name_1``, ...

    The files are written in a hidden folder beside the target and renamed when complete. A result of an earlier run
    is replaced.

    Parameters
    ----------
    path
        ``"results/heat.bp"`` or ``"results/heat.xdmf"``; without a suffix the better format that this DOLFINx can
        write; an existing folder takes a file named ``fields``. Missing folders are made.
    functions
        Fields by the name under which ParaView lists them, or fields that carry their names (``function.name``).
        They may live on several meshes (a control on a boundary mesh): each further mesh gets a file of its own,
        named ``heat-2.bp``, ``heat-3.bp``, ... in the order of first appearance.
    time
        Time stamp, in the units of the problem.

    Returns
    -------
    list of pathlib.Path
        The files to open, one per mesh.

    Raises
    ------
    InputError
        If the folder cannot be written, a name cannot be stored or occurs twice, or a field has no nodal values.
    MissingPackageError
        If a ``.bp`` file is asked for and DOLFINx has no ADIOS2.

    Collective: yes. Ghost values of the fields are updated.
    """
    named = _named(functions)
    meshes: dict[int, list[tuple[str, fem.Function[Any]]]] = {}
    for name, function in named:
        meshes.setdefault(id(function.function_space.mesh._cpp_object), []).append((name, function))
    comm = named[0][1].function_space.mesh.comm
    target, staging = on_root(comm, lambda: _prepare(path, [name for name, _ in named]))
    targets = [target, *(target.with_name(f"{target.stem}-{i + 2}{target.suffix}") for i in range(len(meshes) - 1))]
    write = _write_vtx if target.suffix == ".bp" else _write_xdmf
    error: Exception | None = None
    try:
        for file, fields in zip(targets, meshes.values(), strict=True):
            plain = [part for name, function in fields for part in plain_fields(name, function)]
            _require_distinct([name for name, _ in plain])
            write(staging / file.name, plain, time)
    except Exception as caught:
        error = caught
    try:
        complete = comm.allreduce(error is None, op=MPI.LAND)
        on_root(comm, lambda: _publish(staging, targets if complete else ()))
        raise_everywhere(comm, error)
    finally:
        error = None  # its traceback holds this frame, and with it the fields
    return targets


def staging_folder(target: pathlib.Path) -> pathlib.Path:
    """Make a target's folder and, in it, a hidden folder on the same file system in which to write first.

    Parameters
    ----------
    target
        The file that is to appear.

    Raises
    ------
    InputError
        If a folder cannot be made.

    Collective: no; call it on rank 0 through `pdeopt.parallel.on_root`.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return pathlib.Path(tempfile.mkdtemp(prefix=f".{target.stem}-", suffix=".partial", dir=target.parent))
    except OSError as error:
        raise InputError(
            f"cannot write to the folder '{target.parent}': {error.strerror}; choose one that you may write to"
        ) from error


def plain_fields(name: str, function: fem.Function[Any]) -> Iterator[tuple[str, fem.Function[Any]]]:
    """Yield the scalar, vector and tensor fields that a function is made of, each on a Lagrange space.

    Other elements are interpolated to the Lagrange space that contains them: continuous if they are H1-conforming,
    discontinuous otherwise.

    Parameters
    ----------
    name
        Name of the field; parts of a mixed field are named ``name_0``, ``name_1``, ...
    function
        Any field with nodal values.

    Raises
    ------
    InputError
        If the element cannot be interpolated, as quadrature elements.

    Collective: yes.
    """
    if function.function_space.component():
        function = function.collapse()
    space = function.function_space
    element, shape = space.ufl_element(), tuple(space.value_shape)
    storable = len(shape) <= 2 and all(extent <= 3 for extent in shape)
    # The block size differs from the number of components in mixed elements and in symmetric tensors.
    if space.num_sub_spaces and not (storable and space.dofmap.index_map_bs == math.prod(shape)):
        for index in range(space.num_sub_spaces):
            yield from plain_fields(f"{name}_{index}", function.sub(index))
        return
    if element.family_name == "quadrature":
        raise InputError(f"the field '{name}' has values at quadrature points only: project it to a space with nodes")
    function.x.scatter_forward()
    degree = element.degree if is_nodal(function) else element.embedded_superdegree
    yield name, lagrange_interpolant(function, degree, continuous=element.basix_sobolev_space.name == "H1")


def is_nodal(function: fem.Function[Any]) -> bool:
    """Tell whether a function is (possibly discontinuous) Lagrange. Collective: no."""
    return function.function_space.ufl_element().family_name in {"P", "Q", "DP", "DQ"}


def is_cellwise_constant(function: fem.Function[Any]) -> bool:
    """Tell whether a function has one value per cell. Collective: no."""
    return is_nodal(function) and function.function_space.ufl_element().degree == 0


def lagrange_interpolant(function: fem.Function[Any], degree: int, *, continuous: bool) -> fem.Function[Any]:
    """Return a function in the Lagrange space of a degree; the function itself if it lives there.

    Collective: yes.
    """
    space = function.function_space
    family = "P" if continuous and degree > 0 else "DG"
    wanted = fem.functionspace(space.mesh, (family, degree, tuple(space.value_shape)))
    if wanted.ufl_element() == space.ufl_element():
        return function
    result = fem.Function(wanted, dtype=function.x.array.dtype)
    result.interpolate(function)
    result.x.scatter_forward()
    return result


def _named(
    functions: Mapping[str, fem.Function[Any]] | Sequence[fem.Function[Any]] | fem.Function[Any],
) -> list[tuple[str, fem.Function[Any]]]:
    if isinstance(functions, Mapping):
        named = list(functions.items())
    else:
        sequence = [functions] if isinstance(functions, fem.Function) else functions
        named = [(function.name, function) for function in sequence]
    if not named:
        raise InputError("there is no field to write")
    return named


def _require_distinct(names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two fields are named '{name}': hand in a dictionary with distinct names")


def _prepare(path: str | pathlib.Path, names: Sequence[str]) -> tuple[pathlib.Path, pathlib.Path]:
    """Return the target and the staging folder, on rank 0, after all checks that need no mesh."""
    target = pathlib.Path(path)
    if target.suffix not in {".bp", ".xdmf"}:
        stem = target / "fields" if target.is_dir() else target
        target = stem.with_name(stem.name + (".bp" if dolfinx.has_adios2 else ".xdmf"))
    if target.suffix == ".bp" and not dolfinx.has_adios2:
        raise MissingPackageError(
            f"this DOLFINx was built without ADIOS2 and cannot write '{target}': "
            f"ask for '{target.with_suffix('.xdmf')}'"
        )
    for name in names:
        if not name or _FORBIDDEN_CHARACTERS.intersection(name):
            raise InputError(f"a field cannot be named {name!r}: use at least one character and none of /\\<>&\"'")
        if target.suffix == ".bp" and name in _VTX_NAMES:
            raise InputError(f"the name '{name}' is taken by the VTX format: rename the field")
    if target.suffix == ".bp" and target.is_dir() and any(target.iterdir()) and not (target / "md.idx").exists():
        raise InputError(f"'{target}' is a folder with something other than results: it will not be replaced")
    return target, staging_folder(target)


def _publish(staging: pathlib.Path, targets: Sequence[pathlib.Path]) -> None:
    """Give complete files their final names, and remove the staging folder with all that they replace."""
    try:
        for target in targets:
            if target.exists():
                target.rename(staging / f"replaced-{target.name}")
            # XDMF's own file names the HDF5 file: it comes last, so that it never stands without its numbers.
            data = target.with_suffix(".h5")
            with contextlib.suppress(FileNotFoundError):
                (staging / data.name).replace(data)
            (staging / target.name).replace(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _write_vtx(path: pathlib.Path, fields: Sequence[tuple[str, fem.Function[Any]]], time: float) -> None:
    nodal = [function for _, function in fields if not is_cellwise_constant(function)]
    degree = max((function.function_space.ufl_element().degree for function in nodal), default=0)
    continuous = not any(function.function_space.ufl_element().discontinuous for function in nodal)
    output = []
    for name, function in fields:
        if not is_cellwise_constant(function):
            function = lagrange_interpolant(function, degree, continuous=continuous)
        output.append(_renamed(function, name))
    with dolfinx.io.VTXWriter(_comm(fields), path, output) as writer:
        writer.write(time)


def _write_xdmf(path: pathlib.Path, fields: Sequence[tuple[str, fem.Function[Any]]], time: float) -> None:
    mesh = fields[0][1].function_space.mesh
    with dolfinx.io.XDMFFile(_comm(fields), path, "w") as writer:
        writer.write_mesh(mesh)
        for name, function in fields:
            continuous = not function.function_space.ufl_element().discontinuous
            degree = mesh.geometry.cmaps[0].degree if continuous else 0
            writer.write_function(_renamed(lagrange_interpolant(function, degree, continuous=continuous), name), time)


def _renamed(function: fem.Function[Any], name: str) -> fem.Function[Any]:
    """Return a function with the same values under another name, since the caller's keeps its own."""
    return fem.Function(function.function_space, function.x, name=name)


def _comm(fields: Sequence[tuple[str, fem.Function[Any]]]) -> MPI.Comm:
    return fields[0][1].function_space.mesh.comm
