"""Tensors and plain values in one safetensors file: no pickle, a checksum over everything, an atomic rename."""

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from mpi4py import MPI

import numpy as np

from pdeopt.fem._checkpoint_store import push_folder_to_disk, push_to_disk
from pdeopt.learn._torch import torch
from pdeopt.learn.collective import content_of
from pdeopt.parallel import on_root
from pdeopt.report import InputError, MissingPackageError

try:
    import safetensors.torch
except ImportError as error:
    raise MissingPackageError(
        "pdeopt.learn needs safetensors: run `python -m pip install pdeopt[learn]`, or with conda "
        "`conda install -c conda-forge safetensors`"
    ) from error

_KEY = "pdeopt"


def write_tensors(path: pathlib.Path, tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any]) -> None:
    """Write tensors, and what JSON can express, into one file; it appears when it is complete.

    Parameters
    ----------
    path
        The file; its folder exists.
    tensors
        By name; they may share memory.
    values
        What stands in the header.

    Raises
    ------
    InputError
        If the file cannot be written.

    Collective: no; call it on rank 0.
    """
    text = json.dumps(values, ensure_ascii=False)
    header = {_KEY: text, "sha256": _digest(text, tensors)}
    # safetensors refuses tensors that share memory or are not contiguous.
    content = safetensors.torch.save(
        {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}, header
    )
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as stream:
            stream.write(content)
            push_to_disk(stream)
        os.replace(temporary, path)
        push_folder_to_disk(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(f"{path} cannot be written: {error.strerror}") from error


def read_tensors(path: pathlib.Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote, and verify its checksum.

    Raises
    ------
    InputError
        If the file is missing, damaged, or of another origin.

    Collective: no; call it on rank 0.
    """
    return _parse(_content(path), path)


def read_tensors_everywhere(path: pathlib.Path, comm: MPI.Comm) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a file as `read_tensors` does, on rank 0, and hand it to all ranks. Collective: yes."""
    content = b""

    def read() -> int:
        nonlocal content
        content = _content(path)
        _parse(content, path)
        return len(content)

    size = on_root(comm, read)
    received = np.frombuffer(bytearray(content), np.uint8) if comm.rank == 0 else np.empty(size, np.uint8)
    comm.Bcast(received)
    return _parse(received.tobytes(), path)


def _content(path: pathlib.Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def _parse(content: bytes, path: pathlib.Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the tensors and values of a file's bytes, verified."""
    try:
        tensors = safetensors.torch.load(content)
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length]).get("__metadata__") or {}
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise InputError(
            f"{path} is damaged, cut off or no safetensors file ({error}): write or fetch it again"
        ) from error
    if _KEY not in header or "sha256" not in header:
        raise InputError(f"{path} was not written by pdeopt, or its header is damaged: it has no checksum")
    if _digest(header[_KEY], tensors) != header["sha256"]:
        raise InputError(f"{path} is not what was written (wrong SHA-256): write or fetch it again")
    return tensors, json.loads(header[_KEY])


def _digest(text: str, tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(content_of(tensor).data)
    return digest.hexdigest()


def encode(value: Any, tensors: dict[str, torch.Tensor], name: str) -> Any:
    """Return a nested value as JSON can express it, and put the tensors in it aside.

    Parameters
    ----------
    value
        Dictionaries, lists, tuples, tensors, types of tensors, numbers, strings, None.
    tensors
        Receives the tensors, by names that begin with ``name``.
    name
        What the value is called, also in messages.

    Raises
    ------
    InputError
        If something else stands in it.
    """
    if isinstance(value, torch.Tensor):
        tensors[name] = value
        # The order in memory decides how products with it are rounded, and what is read goes on bit for bit.
        strides = value.stride()
        by_stride = sorted(range(value.ndim), key=lambda axis: -strides[axis])
        layout = [] if value.is_contiguous() or not value.permute(by_stride).is_contiguous() else list(strides)
        return {"tensor": name, "device": str(value.device), "stride": layout}
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, Mapping):
        return {
            "dict": [[encode(key, {}, name), encode(item, tensors, f"{name}.{key}")] for key, item in value.items()]
        }
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [encode(item, tensors, f"{name}.{number}") for number, item in enumerate(value)]}
    raise InputError(
        f"{name} is a {type(value).__name__}, which cannot be stored: choose another one, or no checkpoint"
    )


def decode(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Return what `encode` was given."""
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        tensor = tensors[value["tensor"]].to(value["device"])
        if not value["stride"]:
            return tensor
        return torch.empty_strided(tensor.shape, value["stride"], dtype=tensor.dtype, device=tensor.device).copy_(
            tensor
        )
    if "dtype" in value:
        return getattr(torch, value["dtype"])
    if "dict" in value:
        return {decode(key, tensors): decode(item, tensors) for key, item in value["dict"]}
    items = [decode(item, tensors) for item in next(iter(value.values()))]
    return tuple(items) if "tuple" in value else items
