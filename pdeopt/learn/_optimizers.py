"""Optimisers and learning-rate schedules by name, with errors that name what is wrong."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pdeopt.learn._torch import torch
from pdeopt.report import MissingPackageError, OptionError

SCHEDULES = ("constant", "cosine", "one_cycle", "plateau")
# Schedules that need the number of steps, so that a run cannot be prolonged.
FINITE_SCHEDULES = ("cosine", "one_cycle")

type Schedule = torch.optim.lr_scheduler.LRScheduler


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a sentence on the known name that looks most like this one, and on some others."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    similar = [by_lower[match] for match in difflib.get_close_matches(name.lower(), by_lower, 3, 0.5)]
    return f"did you mean {' or '.join(map(repr, similar))}?" if similar else f"known are {', '.join(known)}"


def optimizer_class(name: str) -> Callable[..., torch.optim.Optimizer]:
    """Return an optimiser of torch, or else of pytorch_optimizer; case does not count.

    Raises
    ------
    OptionError
        If neither has it.
    MissingPackageError
        If torch has not, and pytorch_optimizer is not installed.
    """
    classes = {key.lower(): value for key, value in vars(torch.optim).items() if _is_optimizer(value)}
    if name.lower() in classes:
        return classes[name.lower()]
    try:
        import pytorch_optimizer
    except ImportError as error:
        raise MissingPackageError(
            f"torch has no optimiser {name!r}; others are in pytorch_optimizer: run "
            "`python -m pip install pytorch-optimizer`"
        ) from error
    others = pytorch_optimizer.get_supported_optimizers()
    if name.lower() not in others:
        own = [value.__name__ for value in classes.values()]
        raise OptionError(f"unknown optimiser {name!r}: {nearest(name, [*own, *others])}")
    try:
        found: type[torch.optim.Optimizer] = pytorch_optimizer.load_optimizer(name)
    except ImportError as error:
        raise MissingPackageError(str(error)) from error
    return found


def _is_optimizer(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer


def check_options(function: Any, options: Mapping[str, Any], reserved: Iterable[str], what: str) -> None:
    """Raise an `OptionError` for options that a constructor does not name, or that are set elsewhere."""
    parameters = inspect.signature(function).parameters.values()
    # Not **kwargs: many optimisers take them and never look.
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name != "self"]
    for name in options:
        if name in reserved:
            raise OptionError(f"{what}: option {name!r} is set by the trainer; use its own settings")
        if name not in named:
            known = [candidate for candidate in named if candidate not in reserved]
            raise OptionError(f"{what} has no option {name!r}: {nearest(name, known)}")


def make_optimizer(
    name: str, options: Mapping[str, Any], learning_rate: float, parameters: list[torch.nn.Parameter]
) -> torch.optim.Optimizer:
    """Build an optimiser. Raises an `OptionError` if it refuses its options."""
    kind = optimizer_class(name)
    check_options(kind, options, ("params", "lr"), f"optimiser {kind.__name__}")
    try:
        return kind(parameters, lr=learning_rate, **options)
    except (TypeError, ValueError, AttributeError, NotImplementedError, RuntimeError) as error:
        raise OptionError(f"optimiser {kind.__name__} cannot be built with options {dict(options)}: {error}") from error


def needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Tell whether an optimiser evaluates loss and gradient itself, as LBFGS does."""
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def switch_weights(optimizer: torch.optim.Optimizer, mode: str) -> None:
    """Switch to the weights to train with, or to evaluate with, where an optimiser tells them apart."""
    switch = getattr(optimizer, mode, None)
    if callable(switch):
        switch()


def check_schedule(name: str, options: Mapping[str, Any]) -> None:
    """Raise an `OptionError` if there is no such schedule, or it has no such option."""
    if name not in SCHEDULES:
        raise OptionError(f"unknown schedule {name!r}: {nearest(name, SCHEDULES)}")
    if name == "constant":
        if options:
            raise OptionError(f"the constant schedule has no options, but got {', '.join(options)}")
        return
    kinds: dict[str, type] = {
        "cosine": torch.optim.lr_scheduler.CosineAnnealingLR,
        "one_cycle": torch.optim.lr_scheduler.OneCycleLR,
        "plateau": torch.optim.lr_scheduler.ReduceLROnPlateau,
    }
    reserved = ("optimizer", "T_max", "max_lr", "total_steps", "epochs", "steps_per_epoch", "last_epoch", "mode")
    check_options(kinds[name], options, reserved, f"schedule {name}")


def make_schedule(
    name: str, options: Mapping[str, Any], optimizer: torch.optim.Optimizer, learning_rate: float, steps: int
) -> Schedule | None:
    """Build torch's schedule.

    Parameters
    ----------
    name, options
        Of the settings, already checked by `check_schedule`.
    optimizer
        Whose rate it sets.
    learning_rate
        The rate to begin with; for one_cycle the highest one.
    steps
        Steps of the whole run, >= 1.

    Returns
    -------
    Schedule or None
        To be stepped once a step, the plateau one once an epoch with the loss; None for a constant rate.
    """
    schedules = torch.optim.lr_scheduler
    try:
        if name == "cosine":
            return schedules.CosineAnnealingLR(optimizer, T_max=steps, **options)
        if name == "one_cycle":
            cycles = {"cycle_momentum": bool({"betas", "momentum"} & optimizer.defaults.keys())}
            return schedules.OneCycleLR(optimizer, max_lr=learning_rate, total_steps=steps, **(cycles | dict(options)))
        if name == "plateau":
            return schedules.ReduceLROnPlateau(optimizer, **options)
    except (KeyError, TypeError, ValueError) as error:  # a few optimisers have no rate
        raise OptionError(f"schedule {name} cannot be built with options {dict(options)}: {error}") from error
    return None
