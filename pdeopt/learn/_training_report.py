"""What a training did, as the table that users see and as part of a model card."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from pdeopt.learn.weights import ModelCard, package_versions
from pdeopt.report import SolveReport


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingReport(SolveReport):
    """What a training did; printing it gives a table.

    Parameters
    ----------
    stopped
        ``"epochs"``, ``"patience"`` or ``"time limit"``: what ended it; ``"error"`` in an exception's report.
    training_losses
        Mean loss of each epoch's batches, shape ``(epochs,)``.
    validation_losses
        Loss on the held-out samples after each epoch; empty without them.
    learning_rates
        Rate of each epoch's first step.
    best_epoch
        Epoch, counted from 1, whose weights the network has now.
    steps
        Steps of the optimiser.
    seed, training_data, validation_data
        For the model card.
    """

    stopped: str = ""
    training_losses: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0))
    validation_losses: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0))
    learning_rates: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0))
    best_epoch: int = 0
    steps: int = 0
    seed: int = 0
    training_data: str = ""
    validation_data: str = ""

    def rows(self) -> list[tuple[str, str]]:
        """Return the (label, value) pairs of the printed table."""
        rows = [("method", self.method), ("stopped by", self.stopped)]
        rows += [(name, str(value)) for name, value in self.quantities.items()]
        rows += [("epochs", str(len(self.training_losses))), ("steps", str(self.steps))]
        for label, losses in (("training", self.training_losses), ("validation", self.validation_losses)):
            if len(losses):
                rows.append((f"{label} loss, first -> last", f"{losses[0]:.3e} -> {losses[-1]:.3e}"))
        if len(self.validation_losses) and self.best_epoch:
            best = self.validation_losses[self.best_epoch - 1]
            rows.append(("best validation loss", f"{best:.3e} (epoch {self.best_epoch}, restored)"))
        if len(self.learning_rates):
            rows.append(
                ("learning rate, first -> last", f"{self.learning_rates[0]:.3e} -> {self.learning_rates[-1]:.3e}")
            )
        rows += [(f"seconds {name}", f"{value:.3f}") for name, value in self.seconds.items()]
        if self.advice:
            rows.append(("advice", self.advice))
        return rows

    def card(
        self, name: str, architecture: Mapping[str, Any], command: str, metric: Mapping[str, float] | None = None
    ) -> ModelCard:
        """Return the model card of the trained weights.

        Parameters
        ----------
        name, architecture, command, metric
            As in `ModelCard`.

        Collective: no.
        """
        losses: dict[str, float] = {"epochs": len(self.training_losses)}
        if len(self.training_losses):
            losses |= {"first": float(self.training_losses[0]), "last": float(self.training_losses[-1])}
        if len(self.validation_losses):
            losses |= {"best validation": float(self.validation_losses.min()), "best epoch": self.best_epoch}
        return ModelCard(
            name,
            dict(architecture),
            command,
            self.seed,
            self.seconds.get("total", 0.0),
            dict(metric or {}),
            self.training_data,
            self.validation_data,
            package_versions(),
            losses,
        )
