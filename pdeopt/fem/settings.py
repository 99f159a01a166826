"""Settings of a PETSc type, read from the options under its prefix."""

import dataclasses
import difflib
from collections.abc import Sequence
from typing import Any

from petsctools.options import Options

from pdeopt.report import InputError, OptionError

_TRUTH = (
    {"": True} | dict.fromkeys(("1", "true", "yes", "on"), True) | dict.fromkeys(("0", "false", "no", "off"), False)
)


def read_settings[Settings](given: Settings, prefix: str | None, group: str, inner: tuple[str, ...] = ()) -> Settings:
    """Return settings with what the options say in the place of what was given.

    Parameters
    ----------
    given
        An instance of a frozen dataclass; option ``-<prefix><group><field>`` sets its field, with the type that the
        field has in ``given``. A field of type ``object`` also takes an object of petsctools' application context.
    prefix
        The PETSc object's prefix.
    group
        What the names of the options begin with, such as ``"pc_bandit_"``.
    inner
        What follows the group in names that belong to inner solvers, such as ``"kkt_"``.

    Raises
    ------
    OptionError
        If an option of the group has no field, or a value that does not fit.

    Collective: no.
    """
    options = Options(prefix or "")
    fields = [field.name for field in dataclasses.fields(given)]  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for name in options.getAll():
        if not name.startswith(group) or name.removeprefix(group).startswith(inner):
            continue
        full, field = f"-{prefix or ''}{name}", name.removeprefix(group)
        if field not in fields:
            nearest = difflib.get_close_matches(field, fields, n=1, cutoff=0.0)[0]
            raise OptionError(f"option {full} is unknown: did you mean -{prefix or ''}{group}{nearest}?")
        kind = type(getattr(given, field))
        value = options[name]  # this also tells PETSc that the option is used
        try:
            values[field] = _converted(value, kind) if isinstance(value, str) else value
        except (ValueError, KeyError) as error:
            raise OptionError(f"option {full} is {value!r}: give it a value of type {kind.__name__}") from error
    try:
        return dataclasses.replace(given, **values)  # type: ignore[type-var]
    except InputError as error:
        raise OptionError(f"options -{prefix or ''}{group}...: {error}") from error


def check_choice(settings: object, name: str, known: Sequence[str]) -> None:
    """Raise `InputError` if a field of settings is none of the words that are known. Collective: no."""
    value = getattr(settings, name)
    if value not in known:
        raise InputError(f"{name} is {value!r}: choose {', '.join(known[:-1])} or {known[-1]}")


def _converted(value: str, kind: type) -> Any:
    """Return a text as a value of a type; truth as PETSc writes it."""
    if kind is bool:
        return _TRUTH[value.lower()]
    return kind(value)
