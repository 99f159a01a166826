"""How far a training has come, and the checkpoints from which it goes on exactly."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from mpi4py import MPI

from pdeopt.learn._optimizers import Schedule
from pdeopt.learn._tensor_file import decode, encode, read_tensors_everywhere, write_tensors
from pdeopt.learn._torch import torch
from pdeopt.parallel import on_root
from pdeopt.report import InputError

_FORMAT = 1


@dataclasses.dataclass
class TrainingState:
    """How far a training has come.

    Attributes
    ----------
    epoch, steps
        Completed ones.
    training_losses, validation_losses, learning_rates
        One entry for each epoch.
    best_loss, best_epoch, best
        Smallest validation loss, its epoch counted from 1, and the network's tensors by name then.
    seconds
        Wall time of all calls so far [s].
    stopped
        What ended it, or nothing.
    """

    epoch: int = 0
    steps: int = 0
    training_losses: list[float] = dataclasses.field(default_factory=list)
    validation_losses: list[float] = dataclasses.field(default_factory=list)
    learning_rates: list[float] = dataclasses.field(default_factory=list)
    best_loss: float = math.inf
    best_epoch: int = 0
    best: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    stopped: str = ""


def save_checkpoint(
    path: pathlib.Path,
    comm: MPI.Comm,
    configuration: Mapping[str, Any],
    state: TrainingState,
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule | None,
) -> None:
    """Write all that a training needs to go on. Collective: yes."""

    def write() -> None:
        tensors: dict[str, torch.Tensor] = {}
        fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
        values = {
            "format": _FORMAT,
            "configuration": configuration,
            "state": encode(fields, tensors, "state"),
            "network": encode(network.state_dict(), tensors, "network"),
            "optimizer": encode(optimizer.state_dict(), tensors, f"state of optimiser {type(optimizer).__name__}"),
            "schedule": encode(schedule.state_dict() if schedule else None, tensors, "schedule"),
        }
        write_tensors(path, tensors, values)

    on_root(comm, write)


def load_checkpoint(
    path: pathlib.Path,
    comm: MPI.Comm,
    configuration: Mapping[str, Any],
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule | None,
) -> TrainingState:
    """Put network, optimiser and schedule into the state of a checkpoint.

    Raises
    ------
    InputError
        On all ranks, if the file is damaged, no checkpoint, or of another configuration.

    Collective: yes.
    """
    tensors, values = read_tensors_everywhere(path, comm)
    if values.get("format") != _FORMAT:
        raise InputError(f"{path} is no checkpoint of a training of this version: choose another name, or remove it")
    different = differences(values["configuration"], configuration)
    if different:
        raise InputError(
            f"{path} is a checkpoint of another training: {'; '.join(different)}. Go on with the old settings, choose "
            "another name, or remove it"
        )
    with torch.no_grad():
        network.load_state_dict(decode(values["network"], tensors))
    saved = decode(values["optimizer"], tensors)
    optimizer.load_state_dict(saved)
    # torch has converted the state to the type of the weights; it goes on exactly with what was saved.
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, entries in saved.get("state", {}).items():
        if isinstance(number, int) and number < len(parameters):
            optimizer.state[parameters[number]] = entries
    if schedule is not None:
        schedule.load_state_dict(decode(values["schedule"], tensors))
    return TrainingState(**decode(values["state"], tensors))


def plain(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration as it looks after it was stored."""
    stored: dict[str, Any] = json.loads(json.dumps(configuration, default=str))
    return stored


def differences(stored: Mapping[str, Any], present: Mapping[str, Any]) -> list[str]:
    """Return what differs between two configurations, in words.

    Hashes of distributed samples can be compared only between equal numbers of ranks, and are named after it.
    """
    found = []
    for key in dict.fromkeys((*stored, *present)):
        old, new = stored.get(key, "nothing"), present.get(key, "nothing")
        on_other_ranks = key.endswith(" ranks") and "nothing" in (old, new)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += [f"{key}: {line}" for line in differences(old, new)]
        elif old != new and " data" in key and not on_other_ranks:
            found.append(f"{key} is not what it was")
        elif old != new and not on_other_ranks:
            found.append(f"{key} {old} in the checkpoint, {new} now")
    return found
