"""The one training loop: optimisers by name, schedules, exact resumption, all ranks in step."""

import contextlib
import dataclasses
import math
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mpi4py import MPI

import numpy as np

from pdeopt.learn._gradients import GradientEvaluator, Indices, Loss
from pdeopt.learn._optimizers import (
    FINITE_SCHEDULES,
    Schedule,
    make_optimizer,
    make_schedule,
    nearest,
    needs_closure,
    switch_weights,
)
from pdeopt.learn._random_numbers import generators_restored, seed_generators
from pdeopt.learn._samples import SampleSet
from pdeopt.learn._torch import torch
from pdeopt.learn._trainer_settings import TrainerSettings
from pdeopt.learn._training_report import TrainingReport
from pdeopt.learn._training_state import TrainingState, load_checkpoint, plain, save_checkpoint
from pdeopt.learn.collective import Replicated, broadcast_weights
from pdeopt.parallel import collective_errors, on_root, random_stream
from pdeopt.report import ConvergenceError, InputError, OptionError

__all__ = ["Trainer", "TrainerSettings", "TrainingReport"]

MODES = ("data_parallel", "pde_parallel")


class Trainer:
    r"""Minimise the mean loss of samples over the weights of a network.

    Parameters
    ----------
    network
        What is trained; its weights become those of rank 0.
    loss
        ``loss(network, batch)``: a tensor with one entry, the *mean* over the samples of the batch.
    settings
        How to train.
    comm
        The ranks.
    mode
        ``"data_parallel"``: each rank takes a share of every batch, and solves its equations on ``MPI.COMM_SELF``; a
        step is the one that a single rank would make with the whole batch, to rounding. ``"pde_parallel"``: all ranks
        work on all samples together; loss and gradients are those of `pdeopt.learn.collective`, the network is wrapped
        in `Replicated`, and this is checked in the first step.

    Raises
    ------
    InputError
        If there is nothing to train, or a `Replicated` network is to be trained in parallel over the samples.
    OptionError
        If the mode is unknown.

    Collective: yes.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        loss: Loss,
        settings: TrainerSettings | None = None,
        comm: MPI.Comm = MPI.COMM_WORLD,
        mode: str = "data_parallel",
    ) -> None:
        if mode not in MODES:
            raise OptionError(f"unknown mode {mode!r}: {nearest(mode, MODES)}")
        if mode == "data_parallel" and any(isinstance(m, Replicated) and m.comm.size > 1 for m in network.modules()):
            raise InputError(
                "a Replicated network is for mode='pde_parallel': in data_parallel hand in the one inside it"
            )
        broadcast_weights(network, comm)
        self.network, self.comm, self.mode = network, comm, mode
        self.settings = settings or TrainerSettings()
        self._gradients = GradientEvaluator(network, loss, comm, share_samples=mode == "data_parallel")

    def fit(self, samples: Any = None, validation: Any = None) -> TrainingReport:
        """Train, or go on where a checkpoint of the same training ended.

        Parameters
        ----------
        samples
            A tensor, or a tuple or dictionary of tensors, whose first axis counts the samples: a batch is the same
            with fewer rows. Or a sequence of anything: a batch is a list. Or None, for a loss without data: it is
            handed None. In data_parallel all ranks hand in all samples; a sequence may load them when asked.
        validation
            Samples that are not trained on. With them the network ends with the weights of the epoch whose loss on
            them was smallest.

        Returns
        -------
        TrainingReport
            What happened, the same on all ranks but for the seconds.

        Raises
        ------
        ConvergenceError
            On all ranks, if a loss or gradient is NaN or Inf: with epoch, step and sample.
        InputError
            On all ranks, if the samples differ between ranks that need equal ones, or if the checkpoint is damaged or
            of another training.
        OptionError
            If an optimiser refuses its options, or patience is set without validation samples.

        Collective: yes.
        """
        settings = self.settings
        with collective_errors(self.comm):
            training = SampleSet(samples)
            held_out = None if validation is None else SampleSet(validation)
            if settings.patience is not None and held_out is None:
                raise OptionError("patience needs validation samples: hand in fit(samples, validation)")
            steps = settings.epochs * math.ceil(len(training) / (settings.batch_size or len(training)))
            optimizer = make_optimizer(
                settings.optimizer, settings.optimizer_options, settings.learning_rate, self._gradients.parameters
            )
            schedule = make_schedule(
                settings.schedule, settings.schedule_options, optimizer, settings.learning_rate, max(steps, 1)
            )
            if settings.clip is not None and needs_closure(optimizer):
                raise OptionError(
                    f"clip does not go with {type(optimizer).__name__}, whose line search needs the gradient"
                )
        run = _Run(self, training, held_out, optimizer, schedule)
        try:
            return run.complete()
        except ConvergenceError as error:
            if error.report is None:
                error.report = run.report("error")
            raise


class _Run:
    """One call of `Trainer.fit`."""

    def __init__(
        self,
        trainer: Trainer,
        training: SampleSet,
        held_out: SampleSet | None,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule | None,
    ) -> None:
        self.network, self.comm, self.mode = trainer.network, trainer.comm, trainer.mode
        self.settings, self.gradients = trainer.settings, trainer._gradients
        self.training, self.held_out = training, held_out
        self.optimizer, self.schedule = optimizer, schedule
        self.devices = sorted({p.device.index for p in self.gradients.parameters if p.is_cuda})
        self.state = TrainingState()
        self.start = time.perf_counter()
        self.seconds = {"steps": 0.0, "validation": 0.0, "checkpoints": 0.0}

    def complete(self) -> TrainingReport:
        settings, state = self.settings, self.state
        configuration = plain(self.configuration())
        path = None if settings.checkpoint is None else pathlib.Path(settings.checkpoint)
        if path is not None and on_root(self.comm, path.exists):
            state = self.state = load_checkpoint(
                path, self.comm, configuration, self.network, self.optimizer, self.schedule
            )
            if state.stopped != "patience":  # the other limits may have been raised
                state.stopped = ""
        earlier, written, slowest = state.seconds, 0.0, 0.0
        switch_weights(self.optimizer, "train")
        with self.progress() as advance:
            while not state.stopped:
                begun = self.elapsed()
                if state.epoch >= settings.epochs:
                    state.stopped = "epochs"
                elif settings.time_limit is not None and begun + slowest > settings.time_limit:
                    state.stopped = "time limit"
                else:
                    self.epoch()
                    advance()
                    state.seconds = earlier + self.elapsed()
                    slowest = max(slowest, self.elapsed() - begun)
                    due = settings.checkpoint_epochs is not None and state.epoch % settings.checkpoint_epochs == 0
                    late = settings.checkpoint_seconds is not None and begun - written > settings.checkpoint_seconds
                    if path is not None and not state.stopped and (due or late):
                        self.save(path, configuration)
                        written = self.elapsed()
        if path is not None:
            self.save(path, configuration)
        switch_weights(self.optimizer, "eval")
        if state.best:
            self.network.load_state_dict(state.best)
        return self.report(state.stopped)

    def epoch(self) -> None:
        """Make the steps of one epoch, and validate. Collective: yes."""
        settings, state = self.settings, self.state
        where = f"epoch {state.epoch + 1}"
        begun = time.perf_counter()
        with generators_restored(self.devices):
            state.learning_rates.append(float(self.optimizer.param_groups[0].get("lr", math.nan)))
            self.network.train()
            mean = self.steps(where)
            state.training_losses.append(mean)
            self.gradients.check_weights()
            self.seconds["steps"] += time.perf_counter() - begun
            if self.held_out is not None:
                self.validate(self.held_out, where)
        if isinstance(self.schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
            self.schedule.step(state.validation_losses[-1] if self.held_out is not None else mean)
        state.epoch += 1
        if settings.patience is not None and state.epoch - state.best_epoch >= settings.patience:
            state.stopped = "patience"

    def steps(self, where: str) -> float:
        """Return the mean loss over the steps of an epoch. Collective: yes."""
        settings, state, count = self.settings, self.state, len(self.training)
        order: Indices = np.arange(count)
        if settings.shuffle:
            order = random_stream(f"learn.trainer.shuffle.{state.epoch}", settings.seed).permutation(count)
        size, mean = settings.batch_size or count, 0.0
        starts = range(0, count, size)
        for start, (of_loss, of_optimizer) in zip(starts, self.seeds(len(starts)), strict=True):
            indices = order[start : start + size]
            seed_generators(of_loss, self.devices)

            def evaluate(indices: Indices = indices) -> float:
                return self.gradients.evaluate(self.training, indices, f"{where}, step {state.steps + 1}")

            if needs_closure(self.optimizer):
                value = float(self.optimizer.step(evaluate))
            else:
                value = evaluate()
                if settings.clip is not None:
                    torch.nn.utils.clip_grad_norm_(self.gradients.parameters, settings.clip)
                seed_generators(of_optimizer, self.devices)
                self.optimizer.step()
            if self.schedule is not None and settings.schedule in FINITE_SCHEDULES:
                self.schedule.step()
            state.steps += 1
            mean += value * len(indices) / count
        return mean

    def validate(self, held_out: SampleSet, where: str) -> None:
        """Evaluate the held-out samples, and keep the weights if they are the best. Collective: yes."""
        state, begun = self.state, time.perf_counter()
        switch_weights(self.optimizer, "eval")
        self.network.eval()
        value = self.gradients.mean_loss(held_out, self.settings.batch_size or len(held_out), where)
        self.network.train()
        if value < state.best_loss:
            state.best_loss, state.best_epoch = value, state.epoch + 1
            state.best = {name: tensor.detach().clone() for name, tensor in self.network.state_dict().items()}
        switch_weights(self.optimizer, "train")
        state.validation_losses.append(value)
        self.seconds["validation"] += time.perf_counter() - begun

    def save(self, path: pathlib.Path, configuration: Mapping[str, Any]) -> None:
        """Write a checkpoint. Collective: yes."""
        begun = time.perf_counter()
        save_checkpoint(path, self.comm, configuration, self.state, self.network, self.optimizer, self.schedule)
        self.seconds["checkpoints"] += time.perf_counter() - begun

    def elapsed(self) -> float:
        """Return the wall time of this call on rank 0's clock [s]. Collective: yes."""
        elapsed: float = self.comm.bcast(time.perf_counter() - self.start)
        return elapsed

    def configuration(self) -> dict[str, Any]:
        """Return what has to be the same for a checkpoint to be gone on from. Collective: yes."""
        settings = dataclasses.asdict(self.settings)
        for name in ("checkpoint", "checkpoint_epochs", "checkpoint_seconds", "time_limit", "progress"):
            del settings[name]
        if self.settings.schedule not in FINITE_SCHEDULES:
            del settings["epochs"]  # such a training can be prolonged
        settings["optimizer"] = type(self.optimizer).__name__
        tensors = self.network.state_dict().items()
        network = {name: f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}" for name, tensor in tensors}
        configuration = {**settings, "mode": self.mode, "network": network}
        for name, samples in (("training", self.training), ("validation", self.held_out)):
            if samples is None:
                continue
            configuration[f"{name} samples"] = len(samples)
            known = self.comm.allgather((len(samples), samples.digest))
            alike = len(set(known)) == 1
            if len({length for length, _ in known}) > 1 or (self.mode == "data_parallel" and not alike):
                raise InputError(
                    f"the {name} samples differ between the ranks: all have to hand in the same number of them, and in "
                    "data_parallel the same samples"
                )
            if alike:
                configuration[f"{name} data"] = samples.digest
            else:
                configuration[f"{name} data on {self.comm.size} ranks"] = [digest for _, digest in known]
        return configuration

    def seeds(self, steps: int) -> list[tuple[int, int]]:
        """Return for each step of an epoch what seeds its loss, and what seeds its optimiser. Collective: no."""
        name, independent = (
            f"learn.trainer.step.{self.state.epoch}",
            self.comm if self.mode == "data_parallel" else None,
        )
        of_losses = random_stream(name, self.settings.seed, independent).integers(2**62, size=steps)
        of_optimiser = random_stream(f"{name}.optimizer", self.settings.seed).integers(2**62, size=steps)
        return list(zip(of_losses.tolist(), of_optimiser.tolist(), strict=True))

    @contextlib.contextmanager
    def progress(self) -> Iterator[Callable[[], None]]:
        """Show a bar on rank 0, and hand out what moves it on by an epoch. Collective: no."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        if not self.settings.progress or self.comm.rank != 0 or not console.is_terminal:
            yield lambda: None
            return
        columns = (
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
        )
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("", total=self.settings.epochs, completed=self.state.epoch)

            def advance() -> None:
                losses = [self.state.training_losses[-1], *self.state.validation_losses[-1:]]
                bar.update(
                    task, advance=1, description="loss " + ", validation ".join(f"{loss:.3e}" for loss in losses)
                )

            yield advance

    def report(self, stopped: str) -> TrainingReport:
        """Return what happened so far. Collective: no."""
        state = self.state
        ranks = f" on {self.comm.size} ranks" if self.comm.size > 1 else ""
        return TrainingReport(
            method=f"{type(self.optimizer).__name__}, {self.settings.schedule} rate, {self.mode}{ranks}",
            converged=stopped != "error",
            iterations=state.steps,
            residuals=tuple(state.training_losses),
            seconds={"total": state.seconds, **{name: value for name, value in self.seconds.items() if value}},
            quantities={
                "parameters": sum(parameter.numel() for parameter in self.gradients.parameters),
                "samples": len(self.training),
            },
            stopped=stopped,
            training_losses=np.array(state.training_losses),
            validation_losses=np.array(state.validation_losses),
            learning_rates=np.array(state.learning_rates),
            best_epoch=state.best_epoch or state.epoch,
            steps=state.steps,
            seed=self.settings.seed,
            training_data=self.training.digest,
            validation_data="" if self.held_out is None else self.held_out.digest,
        )
