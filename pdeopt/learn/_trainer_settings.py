"""How to train: what `Trainer` is told, checked when it is written down."""

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

from pdeopt.learn._optimizers import check_options, check_schedule, optimizer_class
from pdeopt.report import OptionError


@dataclasses.dataclass(frozen=True)
class TrainerSettings:
    """How to train.

    Parameters
    ----------
    optimizer
        Name of an optimiser of torch (``"Adam"``, ``"LBFGS"``) or of pytorch_optimizer (``"prodigy"``); case does not
        count.
    optimizer_options
        Its options by name, without the learning rate.
    learning_rate
        > 0; what the schedule begins with, for one_cycle the highest.
    schedule
        ``"constant"``, ``"cosine"`` (down to 0 at the last step), ``"one_cycle"``, or ``"plateau"``: lower when the
        validation loss, or without validation samples the loss, no longer falls.
    schedule_options
        Options of torch's schedule, for instance ``{"patience": 5}``.
    epochs
        How often all samples are used, >= 0.
    batch_size
        Samples of a step, over all ranks, >= 1; None takes all.
    shuffle
        Whether the order of the samples changes every epoch.
    clip
        Largest norm of the gradient, > 0.
    seed
        Of shuffling and of layers such as dropout, >= 0.
    patience
        Epochs without a smaller validation loss after which the training stops, >= 1.
    checkpoint
        File from which an interrupted training goes on; its folder exists.
    checkpoint_epochs, checkpoint_seconds
        It is written after so many epochs, and at the first end of an epoch after so many seconds [s]; always at the
        end of the training.
    time_limit
        Wall time of a call [s]; the training stops before an epoch that would exceed it, judged by the slowest so far.
    progress
        Whether rank 0 shows a bar, if its standard error is a terminal.

    Raises
    ------
    OptionError
        If a name is unknown or a value out of range.
    """

    optimizer: str = "Adam"
    optimizer_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    learning_rate: float = 1e-3
    schedule: str = "constant"
    schedule_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    epochs: int = 100
    batch_size: int | None = None
    shuffle: bool = True
    clip: float | None = None
    seed: int = 0
    patience: int | None = None
    checkpoint: str | os.PathLike[str] | None = None
    checkpoint_epochs: int | None = None
    checkpoint_seconds: float | None = 30.0
    time_limit: float | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        kind = optimizer_class(self.optimizer)
        check_options(kind, self.optimizer_options, ("params", "lr"), f"optimiser {kind.__name__}")
        check_schedule(self.schedule, self.schedule_options)
        for name in ("epochs", "seed"):
            if getattr(self, name) < 0:
                raise OptionError(f"{name} has to be >= 0, not {getattr(self, name)}")
        for name in ("batch_size", "patience", "checkpoint_epochs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise OptionError(f"{name} has to be >= 1 or None, not {value}")
        for name in ("learning_rate", "clip", "checkpoint_seconds", "time_limit"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0.0):
                raise OptionError(f"{name} has to be positive and finite, not {value}")
