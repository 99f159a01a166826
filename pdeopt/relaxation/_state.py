"""What a learner knows, kept in a file between runs."""

import contextlib
import hashlib
import json
import os
import pathlib
import time
import weakref
from typing import Any

from pdeopt.relaxation._bandit_settings import Learner
from pdeopt.report import InputError

# The state is written at most this often [s], and once more in the end.
STATE_INTERVAL = 1.0


def write_state(path: pathlib.Path, state: dict[str, Any]) -> None:
    """Write a state in JSON with its checksum; whoever reads sees the old file or the new one, never a part.

    Raises
    ------
    InputError
        If the file cannot be written.

    Collective: no; one process writes.
    """
    text = json.dumps(state, sort_keys=True)
    whole = json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "state": text})
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(whole)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"a learner's state cannot be written to {path} ({error}): name another file") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def read_state(path: pathlib.Path) -> dict[str, Any] | None:
    """Return the state of a file, or None if there is no such file.

    Raises
    ------
    InputError
        If the file was not written by `write_state`, or has changed since.

    Collective: no.
    """
    try:
        whole = json.loads(path.read_text())
        text = whole["state"]
        if hashlib.sha256(text.encode()).hexdigest() != whole["sha256"]:
            raise ValueError("its checksum is wrong")
        state: dict[str, Any] = json.loads(text)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise InputError(f"{path} is no state of a learner ({error}): remove it or name another file") from error
    return state


class StateKeeper:
    """Keeps a learner's state in a file: at times, when it is closed, and when Python exits.

    Parameters
    ----------
    file
        Where; what it holds already is given to the learner.
    learner
        Whose state.
    omegas, cost
        What the state is about; written along.

    Raises
    ------
    InputError
        If the file is broken, about something else, or cannot be written.

    Collective: no; rank 0 has the learner.
    """

    def __init__(self, file: pathlib.Path, learner: Learner, omegas: list[float], cost: str) -> None:
        self._file, self._learner = file, learner
        self._about = {"learner": type(learner).__name__, "omegas": omegas, "cost": cost}
        found = read_state(file)
        if found is not None:
            about = {name: found.get(name) for name in self._about}
            if about != self._about:
                raise InputError(
                    f"{file} holds what {about['learner']} learned about {about['cost']} under omega = "
                    f"{about['omegas']}; now it is {self._about['learner']} about {cost}, omega = "
                    f"{omegas}: name another file, or remove it"
                )
            learner.restore(found["state"])
        else:
            _write_learner(file, self._about, learner)  # what cannot be written is told at once
        self._written = time.monotonic()
        self.close = weakref.finalize(self, _write_learner, file, self._about, learner)

    def write_at_times(self) -> None:
        """Write if the last time is long enough ago. Collective: no."""
        now = time.monotonic()
        if now - self._written > STATE_INTERVAL:
            _write_learner(self._file, self._about, self._learner)
            self._written = now


def _write_learner(file: pathlib.Path, about: dict[str, Any], learner: Learner) -> None:
    write_state(file, {**about, "state": learner.state()})
