"""Weights of a network and what is known about them, in one safetensors file with a model card in its header."""

import dataclasses
import importlib.metadata
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from mpi4py import MPI

from pdeopt.learn._tensor_file import read_tensors, write_tensors
from pdeopt.learn._torch import torch
from pdeopt.learn.collective import Replicated, broadcast_weights
from pdeopt.parallel import on_root
from pdeopt.report import InputError

__all__ = ["ModelCard", "load_weights", "package_versions", "save_weights"]


@dataclasses.dataclass(frozen=True)
class ModelCard:
    """What stands beside trained weights, so that they can be made again and judged.

    Parameters
    ----------
    name
        What the network is called.
    architecture
        What builds it, for instance ``{"inputs": 2, "width": 32}``.
    command
        The command that makes the weights again.
    seed
        Of initial weights and of shuffling.
    seconds
        Wall time of the training [s].
    metric
        Numbers on data that was not trained on, by name.
    training_data, validation_data
        SHA-256 of the samples; empty where they could not be hashed.
    versions
        Versions of the packages that took part.
    losses
        Summary of the history: epochs, first, last and best loss.
    """

    name: str
    architecture: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    command: str = ""
    seed: int = 0
    seconds: float = 0.0
    metric: Mapping[str, float] = dataclasses.field(default_factory=dict)
    training_data: str = ""
    validation_data: str = ""
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    losses: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        rows = {field.name.replace("_", " "): getattr(self, field.name) for field in dataclasses.fields(self)}
        shown = {
            label: ", ".join(f"{key} {item}" for key, item in value.items())
            if isinstance(value, Mapping)
            else str(value)
            for label, value in rows.items()
        }
        width = max(map(len, shown))
        return "\n".join(f"{label:<{width}}  {value}" for label, value in shown.items() if value)


def package_versions() -> dict[str, str]:
    """Return the versions of pdeopt and of what its networks rest on, of those that are installed."""
    found = {}
    for name in ("pdeopt", "torch", "pytorch_optimizer", "safetensors", "numpy", "mpi4py"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def save_weights(
    path: str | os.PathLike[str], network: torch.nn.Module, card: ModelCard, comm: MPI.Comm = MPI.COMM_WORLD
) -> None:
    """Write the parameters and buffers of rank 0, with the model card in the header.

    The file appears under its name when it is complete, and carries a SHA-256 of all that stands in it.

    Parameters
    ----------
    path
        The file, by convention ``.safetensors``; its folder exists.
    network
        The network; of a `Replicated` one, the network inside.
    card
        What is known about it.
    comm
        The ranks that call.

    Raises
    ------
    InputError
        On all ranks, if the file cannot be written or a part of the network is no tensor.

    Collective: yes.
    """

    def write() -> None:
        values = {"card": dataclasses.asdict(card)}
        try:
            write_tensors(pathlib.Path(path), _tensors(network), values)
        except TypeError as error:
            raise InputError(f"the model card has something that JSON cannot express: {error}") from error

    on_root(comm, write)


def load_weights(path: str | os.PathLike[str], network: torch.nn.Module, comm: MPI.Comm = MPI.COMM_WORLD) -> ModelCard:
    """Read weights into a network, on rank 0, and broadcast them.

    Parameters
    ----------
    path
        A file of `save_weights`.
    network
        A network of the same structure and types; it is left as it is if anything is wrong.
    comm
        The ranks that call.

    Returns
    -------
    ModelCard
        What is known about the weights.

    Raises
    ------
    InputError
        On all ranks, if the file is missing, cut off, damaged, or holds other tensors than the network has.

    Collective: yes.
    """

    def read() -> ModelCard:
        tensors, values = read_tensors(pathlib.Path(path))
        if "card" not in values:
            raise InputError(f"{path} has no model card: it is no file of save_weights")
        own = _tensors(network)
        check_same_tensors(tensors, own, str(path))
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(tensors[name])
        known = {field.name for field in dataclasses.fields(ModelCard)}
        return ModelCard(**{name: value for name, value in values["card"].items() if name in known})

    card = on_root(comm, read)
    broadcast_weights(network, comm)
    return card


def check_same_tensors(found: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor], where: str) -> None:
    """Raise an `InputError` that names the first tensor which is missing, unknown, or of another shape or type."""
    for name, tensor in own.items():
        if name not in found:
            raise InputError(f"{where} has no tensor {name!r}, which the network has: it belongs to another network")
        stored = found[name]
        if stored.shape != tensor.shape:
            raise InputError(
                f"{where}: tensor {name!r} has shape {tuple(stored.shape)}, in the network {tuple(tensor.shape)}: "
                "build the network as the model card's architecture says"
            )
        if stored.dtype != tensor.dtype:
            raise InputError(
                f"{where}: tensor {name!r} is {stored.dtype}, in the network {tensor.dtype}: "
                f"convert the network with .to({stored.dtype})"
            )
    unknown = sorted(found.keys() - own.keys())
    if unknown:
        raise InputError(
            f"{where} has a tensor {unknown[0]!r}, which the network has not: it belongs to another network"
        )


def _tensors(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return parameters and buffers by name; changing them in place changes the network."""
    inside = network.network if isinstance(network, Replicated) else network
    state = inside.state_dict()
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise InputError(f"{name!r} of the network is a {type(value).__name__}, and only tensors are stored")
    return dict(state)
