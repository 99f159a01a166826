"""Distributed arrays in a folder of ``.npy`` files, and the digests by which a damaged file is found."""

import hashlib
import io
import os
import pathlib
from collections.abc import Mapping
from typing import Any, BinaryIO, cast

from mpi4py import MPI

import numpy as np
import numpy.typing as npt

from pdeopt.parallel import collective_errors, on_root
from pdeopt.report import InputError

type Array = npt.NDArray[np.generic]
# Length [bytes] and SHA-256 digest of a file's consecutive pieces: its header, then what each rank wrote.
type Pieces = list[list[Any]]


class ArrayStore:
    """Arrays whose rows are spread over the ranks, one ``.npy`` file for each.

    No file is opened together: every rank writes, or reads, its own rows with plain system calls. So a failure on one
    rank becomes an error on all of them, and never a wait. All ranks must see the same file system.

    Parameters
    ----------
    folder
        Existing folder of the files.
    comm
        Communicator over which the rows are spread.
    pieces
        Lengths and digests by file name, of files that are there already.

    Attributes
    ----------
    pieces
        The same of all files, the same on all ranks.
    """

    def __init__(self, folder: pathlib.Path, comm: MPI.Comm, pieces: Mapping[str, Pieces] | None = None) -> None:
        self.folder, self.comm = folder, comm
        self.pieces = dict(pieces or {})

    def write(self, name: str, rows: Array) -> str:
        """Write an array, rank 0's rows first, then rank 1's, and so on, and push it to the disk.

        An array equal to one that this store has written is not written again.

        Parameters
        ----------
        name
            File name without suffix.
        rows
            This rank's rows, shape ``(n, ...)``; type and trailing shape are the same on all ranks.

        Returns
        -------
        str
            Name of the file that holds the array.

        Collective: yes.
        """
        content = np.ascontiguousarray(rows).tobytes()
        header, pieces, start = self._layout(rows, content)
        for known, others in self.pieces.items():
            if others == pieces:
                return known
        file = f"{name}.npy"
        with collective_errors(self.comm), _open_write_only(self.folder / file) as stream:
            if self.comm.rank == 0:
                stream.write(header)
            stream.seek(start)
            stream.write(content)
            push_to_disk(stream)
        self.pieces[file] = pieces
        return file

    def write_bytes(self, file: str, content: bytes) -> None:
        """Write a file of rank 0's, whose content the other ranks hand in as empty, and push it to the disk.

        Collective: yes.
        """

        def write() -> Pieces:
            with open(self.folder / file, "wb") as stream:
                stream.write(content)
                push_to_disk(stream)
            return [[len(content), _digest(content)]]

        self.pieces[file] = on_root(self.comm, write)

    def holds(self, file: str, rows: Array) -> bool:
        """Tell whether a file holds these rows, written by the same ranks. Collective: yes."""
        return self._layout(rows, np.ascontiguousarray(rows).tobytes())[1] == self.pieces[file]

    def read(self, file: str) -> tuple[Array, int]:
        """Read this rank's share of an array's rows: as many as the others have, one more on the first ranks.

        Returns
        -------
        (array, int)
            The rows, shape ``(n, ...)``, and the number of the first one.

        Collective: yes.
        """
        with collective_errors(self.comm):
            least, left = divmod(len(self.open(file)), self.comm.size)
            start = self.comm.rank * least + min(self.comm.rank, left)
        return self.read_rows(file, slice(start, start + least + (self.comm.rank < left))), start

    def read_rows(self, file: str, rows: slice) -> Array:
        """Read rows that this rank chooses. Collective: yes."""
        with collective_errors(self.comm):
            chosen = np.array(self.open(file)[rows])
        return chosen

    def open(self, file: str) -> Array:
        """Return an array of which the parts that are looked at are read. Collective: no."""
        return cast(Array, np.load(self.folder / file, mmap_mode="r", allow_pickle=False))

    def _layout(self, rows: Array, content: bytes) -> tuple[bytes, Pieces, int]:
        """Return an array's header, its pieces, and where this rank's one begins [bytes]. Collective: yes."""
        parts = self.comm.allgather((len(rows), len(content), _digest(content)))
        header = _header(rows.dtype, (sum(count for count, _, _ in parts), *rows.shape[1:]))
        pieces = [[len(header), _digest(header)], *([length, digest] for _, length, digest in parts if length)]
        return header, pieces, len(header) + sum(length for _, length, _ in parts[: self.comm.rank])


def damage(folder: pathlib.Path, files: Mapping[str, Pieces]) -> str:
    """Return what is wrong with the first damaged file of a folder, or nothing.

    Parameters
    ----------
    folder
        Where the files are.
    files
        File name -> lengths and digests, as `ArrayStore.pieces`.

    Collective: no; call it on rank 0.
    """
    for name, pieces in files.items():
        path = folder / name
        if not path.is_file():
            return f"the file '{name}' is missing"
        expected, found = sum(length for length, _ in pieces), path.stat().st_size
        if found != expected:
            return f"the file '{name}' has {found} bytes instead of {expected}"
        with open(path, "rb") as stream:
            for length, digest in pieces:
                if _digest(stream.read(length)) != digest:
                    return f"the file '{name}' is not what was written (wrong SHA-256)"
    return ""


def push_to_disk(stream: BinaryIO) -> None:
    """Hand what was written to the device, so that a rename afterwards cannot overtake it. Collective: no."""
    stream.flush()
    os.fsync(stream.fileno())


def push_folder_to_disk(folder: pathlib.Path) -> None:
    """Make the names in a folder as durable as its files. Collective: no."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _open_write_only(path: pathlib.Path) -> BinaryIO:
    """Open a file that other ranks open at the same time, the first of them to make it.

    It is not emptied, and not read: a network file system must not read a page here and write a neighbour's rows back
    with it.
    """
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o666), "wb")


def _header(dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> bytes:
    if dtype.hasobject:
        raise InputError(f"an array of type {dtype} holds Python objects, which are not stored: convert it to numbers")
    stream = io.BytesIO()
    description = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, description)
    return stream.getvalue()
