"""Fields over time, written for ParaView while they are computed."""

import contextlib
import math
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from mpi4py import MPI

import dolfinx
from dolfinx import fem

from pdeopt.fem._output_parts import LagrangeField, lagrange_fields
from pdeopt.fem._output_writers import FieldWriter, VTKHDFFile, VTXFile, XDMFFile
from pdeopt.fem._staging import staging_folder
from pdeopt.parallel import on_root, raise_everywhere
from pdeopt.report import InputError, MissingPackageError, PdeoptError

# What VTX itself stores under these names would be overwritten by a field of the same name.
_VTX_NAMES = frozenset(
    {"NumberOfEntities", "NumberOfNodes", "connectivity", "geometry", "step", "types", "vtkGhostType"}
    | {"vtkOriginalPointIds", "TIME"}
)
# Field names become XML attributes and HDF5 paths.
_FORBIDDEN_CHARACTERS = frozenset("/\\<>&\"'")

FORMATS: dict[str, Callable[[pathlib.Path, Sequence[LagrangeField]], FieldWriter]] = {
    ".bp": VTXFile,
    ".xdmf": XDMFFile,
    ".vtkhdf": VTKHDFFile,
}
type Fields = Mapping[str, fem.Function[Any]] | Sequence[fem.Function[Any]] | fem.Function[Any]


class FieldSeries:
    """Fields at many times in one file, a context manager.

    .. code-block:: python

        with FieldSeries("results/heat.bp", {"temperature": u}) as series:
            for step in range(100):
                ...
                series.write(time)

    The files are written in a hidden folder beside the target and renamed at the end. If the block ends in an error of
    pdeopt, which all ranks share, what was written so far is in the folder ``heat-incomplete``; after a kill it stays
    in the hidden one, ``.heat-*.partial``. In both cases the result of an earlier run is untouched.

    Parameters
    ----------
    path, functions
        As for `pdeopt.fem.output.write_fields`. Every `write` looks at the functions: go on computing in the same ones.

    Attributes
    ----------
    paths
        The files to open when the series is complete.

    Raises
    ------
    InputError
        As `pdeopt.fem.output.write_fields`.
    MissingPackageError
        If a ``.bp`` file is asked for and DOLFINx has no ADIOS2.

    Collective: yes, like its methods.
    """

    def __init__(self, path: str | pathlib.Path, functions: Fields) -> None:
        named = _named(functions)
        meshes: dict[int, list[tuple[str, fem.Function[Any]]]] = {}
        for name, function in named:
            meshes.setdefault(id(function.function_space.mesh._cpp_object), []).append((name, function))
        self._comm = named[0][1].function_space.mesh.comm
        self._target, self._staging = on_root(self._comm, lambda: _prepare(path, [name for name, _ in named]))
        self._writers: list[FieldWriter] = []
        self._last_time, self._is_open = -math.inf, True
        self.paths: list[pathlib.Path] = []
        with self._or_end():
            for number, fields in enumerate(meshes.values(), start=1):
                plain = [part for name, function in fields for part in lagrange_fields(name, function)]
                _require_distinct([field.name for field in plain])
                self._add_files(self._target, plain, number)

    def write(self, time: float) -> None:
        """Add the fields' present values.

        Parameters
        ----------
        time
            In the units of the problem, later than that of the values before.

        Raises
        ------
        InputError
            If the time is not later. The series stays open.

        Collective: yes. Ghost values of the fields are updated.
        """
        if not self._is_open:
            raise InputError(f"the series '{self._target}' is closed: write before its block ends")
        if not time > self._last_time:
            raise InputError(f"the time {time:g} is not later than {self._last_time:g}, which has been written")
        with self._or_end():
            for writer in self._writers:
                writer.write(time)
        self._last_time = time

    def close(self) -> None:
        """Complete the files and give them their names.

        Without a time there is no file, and one of an earlier run stays.

        Collective: yes.
        """
        if self._is_open:
            with self._or_end():
                for writer in self._writers:
                    writer.close()
            self._is_open = False
            if self._last_time == -math.inf:
                self.paths = []
            on_root(self._comm, lambda: _publish(self._staging, self.paths))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        # Another error may have come to this rank alone: ending the series would wait for the others.
        elif isinstance(error, PdeoptError) or self._comm.size == 1:
            self._end()

    def _add_files(self, target: pathlib.Path, fields: Sequence[LagrangeField], number: int) -> None:
        """Open the files of one mesh: one, or with VTKHDF one for each field. Collective: yes."""
        stem = target.stem if number == 1 else f"{target.stem}-{number}"
        groups = [(stem, fields)]
        if target.suffix == ".vtkhdf" and len(fields) > 1:
            groups = [(f"{stem}-{field.name}", [field]) for field in fields]
        for name, group in groups:
            self.paths.append(target.with_name(name + target.suffix))
            self._writers.append(FORMATS[target.suffix](self._staging / self.paths[-1].name, group))

    @contextlib.contextmanager
    def _or_end(self) -> Iterator[None]:
        """Do what may fail on one rank; its error ends the series on all of them. Collective: yes."""
        error: Exception | None = None
        try:
            yield
        except Exception as caught:
            error = caught
        try:
            if not self._comm.allreduce(error is None, op=MPI.LAND):
                self._end()
            raise_everywhere(self._comm, error)
        finally:
            error = None  # its traceback holds this frame, and with it the fields

    def _end(self) -> None:
        """Close what is open and keep the times written so far, if there are any, apart. Collective: yes."""
        if not self._is_open:
            return
        self._is_open = False
        for writer in self._writers:
            with contextlib.suppress(Exception):  # the error that led here is the one to be told
                writer.close()
        on_root(self._comm, self._set_apart)

    def _set_apart(self) -> None:
        if self._last_time > -math.inf:
            place = self._target.with_name(f"{self._target.stem}-incomplete")
            shutil.rmtree(place, ignore_errors=True)
            self._staging.rename(place)
        shutil.rmtree(self._staging, ignore_errors=True)


def _named(functions: Fields) -> list[tuple[str, fem.Function[Any]]]:
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
    if target.suffix not in FORMATS:
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
