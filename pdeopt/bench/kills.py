"""Jobs that are killed at a random instant, as a power cut or a batch system does it."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Iterator

import numpy as np

from pdeopt._launchers import clean_environment
from pdeopt.bench.case import CaseError, launch_command
from pdeopt.bench.checkpoint_cases import STARTED


@dataclasses.dataclass(frozen=True)
class Kill:
    """What a killed job left.

    Parameters
    ----------
    states
        Number of the last state that it had saved, 0 for none.
    while_saving
        Whether the next one was being written.
    """

    states: int
    while_saving: bool


def kill_at_random(folder: pathlib.Path, steps: int, cells: int, ranks: int, random: np.random.Generator) -> Kill:
    """Start `pdeopt.bench.checkpoint_cases.burgers` as a job and kill all its processes at a random instant.

    Parameters
    ----------
    folder
        Folder of the run's states; what is there is gone on from.
    steps, cells
        As of `pdeopt.bench.checkpoint_cases.burgers`.
    ranks
        Number of ranks.
    random
        Stream from which the instant is drawn, evenly over the steps that are left but the last.

    Raises
    ------
    CaseError
        If the job ends before it can be killed.

    Collective: no.
    """
    case = "pdeopt.bench.checkpoint_cases:burgers"
    arguments = json.dumps({"folder": str(folder), "steps": steps, "cells": cells})
    command = [*launch_command(ranks), "-m", "pdeopt.bench.case", case, arguments, os.devnull]
    (folder / STARTED).unlink(missing_ok=True)
    instant = random.uniform(min(_last_state(folder), steps - 1), steps - 1)
    job = subprocess.Popen(
        command, env=clean_environment(os.environ), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        interval, last = 0.02, time.perf_counter()  # [s] between states
        reached = -1
        while reached < int(instant):
            if job.poll() is not None:
                raise CaseError(f"the job ended before it was killed:\n{job.stderr.read() if job.stderr else ''}")
            now = _last_state(folder) if (folder / STARTED).exists() else -1
            if now > max(reached, 0):
                interval, last = time.perf_counter() - last, time.perf_counter()
            reached = max(reached, now)
            time.sleep(0.001)
        time.sleep(min(interval, 0.5) * (instant % 1))
    finally:
        # The ranks first, and at once: the launcher would end those that outlive one of them in an orderly way.
        for process in [*reversed(list(_descendants(job.pid))), job.pid]:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        job.communicate()
    return Kill(_last_state(folder), any(folder.glob(".state-*.partial")))


def _last_state(folder: pathlib.Path) -> int:
    return max((int(path.name.removeprefix("state-")) for path in folder.glob("state-*")), default=0)


def _descendants(parent: int) -> Iterator[int]:
    """Yield the processes below one, parents before their children; only Linux has the table."""
    children: dict[int, list[int]] = {}
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        children.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found = [parent]
    while found:
        below = children.get(found.pop(0), [])
        yield from below
        found += below
