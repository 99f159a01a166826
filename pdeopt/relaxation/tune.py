"""`pdeopt tune`: run a script as it is, find better solvers for its linear systems; `pdeopt run --tuned`: use them."""

import json
import os
import pathlib
import shlex
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

from pdeopt.relaxation import launch, tune_apply, tune_report, tune_watch
from pdeopt.report import InputError


def tune_script(
    command: Sequence[str],
    ranks: int | None = None,
    budget: float = 1.0,
    save: pathlib.Path | None = None,
    report: pathlib.Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> int:
    """Run a command, try other solvers on some of its linear systems, and report which are faster.

    Parameters
    ----------
    command, ranks, environment
        As for `launch.run_script`.
    budget
        Wall seconds that trying may take, over those of the script's own linear solves so far; per solver, one second
        and three times its first solve are counted in addition. > 0.
    save
        File for `run_tuned`.
    report
        File for the report, by default stderr.

    Returns
    -------
    int
        The exit status of the script.

    Raises
    ------
    InputError
        As `launch.run_script` does, for a budget that is not positive, or if a file cannot be written.

    Collective: no.
    """
    if not budget > 0.0:
        raise InputError(f"--budget is {budget}: it is a share of the script's own solver seconds, above 0")
    for path in (save, report):
        if path is not None and not path.absolute().parent.is_dir():
            raise InputError(f"{path} cannot be written: there is no folder {path.absolute().parent}")
    with tempfile.TemporaryDirectory(prefix="pdeopt-tune-") as folder:
        settings = {tune_watch.SETTINGS: json.dumps({"folder": folder, "budget": budget})}
        began = time.perf_counter()
        status = launch.run_script(
            command, {}, ranks, "pdeopt.relaxation.tune_watch:start",
            {**(os.environ if environment is None else environment), **settings},
        )  # fmt: skip
        seconds = time.perf_counter() - began
        ledgers = [json.loads(path.read_text()) for path in sorted(pathlib.Path(folder).glob("*.json"))]
    names = ("looking", "trying")
    tuning = {name: max((ledger["seconds"][name] for ledger in ledgers), default=0.0) for name in names}
    verdicts = [tune_report.judge(entry, seconds - sum(tuning.values())) for entry in _merged(ledgers)]
    lines = ["no linear solve was seen"]
    if verdicts:
        words = ["pdeopt", "run", "--tuned", str(save), *([] if ranks is None else ["-n", str(ranks)]), "--", *command]
        again = shlex.join(words) if save is not None else ""
        lines = list(tune_report.report(verdicts, seconds, tuning, again))
    unreached = sorted({name for ledger in ledgers for name in ledger["unreached"]})
    if unreached:
        lines.append("seen but not tuned: " + ", ".join(unreached))
    if status != 0:
        lines.append(f"the script ended with status {status}: what it did until then is all that was seen")
    _publish(lines, report)
    if save is not None:
        plain = not any(ledger["replaced"] for ledger in ledgers)
        tune_report.save(save, verdicts, seconds, tuning, plain)
    return status


def run_tuned(
    command: Sequence[str],
    tuned: pathlib.Path,
    options: Mapping[str, str],
    ranks: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> int:
    """Run a command with the solvers that `tune_script` saved.

    A solver is recognised by its prefix, or without one by the place in the script where it first solves. If there is
    nothing to replace, the command runs as if pdeopt were not there.

    Parameters
    ----------
    command, ranks, environment
        As for `launch.run_script`.
    tuned
        The file.
    options
        Options that win over those of the file.

    Returns
    -------
    int
        The exit status of the script.

    Raises
    ------
    InputError
        As `launch.run_script` does, or if the file is not one of `tune_script`.

    Collective: no.
    """
    if not options and tune_report.is_plain(tuned):
        return launch.run_plain(command, ranks, environment)
    laid: dict[str, str] = {}
    sites: dict[str, dict[str, str]] = {}
    names, kept = [], []
    for solver in tune_report.load(tuned):
        own = dict(solver["options"])
        names.append(solver["prefix"] or solver["site"])
        if own.pop(tune_report.REUSE, None):
            kept.append(names[-1])
        if solver["prefix"]:
            laid |= {solver["prefix"] + name: value for name, value in own.items()}
        else:
            sites[solver["site"]] = own
    settings = {tune_apply.SETTINGS: json.dumps({"sites": sites, "tuned": names, "kept": kept})}
    watcher = "pdeopt.relaxation.tune_apply:start" if names else ""
    return launch.run_script(
        command, {**laid, **options}, ranks, watcher,
        {**(os.environ if environment is None else environment), **settings},
    )  # fmt: skip


def _merged(ledgers: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return one entry for each solver; if several processes had one of the same name, that which took longest."""
    entries: dict[tuple[str, int], Mapping[str, Any]] = {}
    for ledger in ledgers:
        for entry in ledger["entries"]:
            name = entry["key"], entry["ranks"]
            known = entries.get(name)
            if known is None or entry["seconds"] > known["seconds"]:
                entries[name] = entry
    return list(entries.values())


def _publish(lines: Sequence[str], path: pathlib.Path | None) -> None:
    """Write the report to a file, or to stderr."""
    if path is None:
        sys.stderr.write("".join(f"pdeopt tune: {line}".rstrip() + "\n" for line in lines))
        return
    try:
        path.write_text("".join(f"{line}\n" for line in lines))
    except OSError as error:
        raise InputError(f"--report {path} cannot be written ({error.strerror}): name another file") from error
