"""Scripts that other people wrote: `pdeopt tune` and `pdeopt run --tuned` beside each script as it is.

They are not part of pdeopt. The environment variable ``PDEOPT_BENCH_SCRIPTS`` names a folder of them. Each prints lines
``ANSWER name value``, which have to agree; one that steps in time takes their number from the variable ``STEPS``.
"""

import functools
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from pdeopt._launchers import clean_environment
from pdeopt.bench.case import launch_command
from pdeopt.bench.harness import Row, say
from pdeopt.bench.study import Study, number
from pdeopt.parallel import on_root

FOLDER = "PDEOPT_BENCH_SCRIPTS"
STEPS = (1, 5, 30, 200)
# As many of those that step, the quickest ones, run with these numbers of steps.
STEPPING = 5
# Scripts that take longer than this are ended, and leave a row without numbers.
LIMIT_SECONDS = 120.0
_TABLE = "scripts of other people"


def measure(study: Study, quick: bool) -> None:
    """Line 3: whole scripts on one rank, with few and many solves, and on two ranks. Collective: yes."""
    folder = os.environ.get(FOLDER, "")
    scripts = sorted(path for path in pathlib.Path(folder).glob("[a-z]*_*.py")) if folder else []
    if not scripts:
        say(study.comm, f"  none: {FOLDER} names no folder of scripts")
        return
    repeat = 1 if quick else min(study.settings.repeat, 3)
    alone = [_row(study, script, 1, None, repeat) for script in scripts]
    seconds = {str(row["script"]): number(row, "script s") for row in alone if "script s" in row}
    stepping = [script for script in scripts if '"STEPS"' in script.read_text() and script.stem in seconds]
    stepping = sorted(stepping, key=lambda script: seconds[script.stem])[:STEPPING]
    two = [_row(study, script, 2, None, 1) for script in scripts]
    counts = [_row(study, script, 1, steps, 1) for steps in (STEPS if not quick else (1,)) for script in stepping]
    give_targets(study, alone, counts, two)


def give_targets(study: Study, alone: Sequence[Row], counts: Sequence[Row], two: Sequence[Row]) -> None:
    """Add the claims of line 3, from rows of one rank, of given numbers of steps, and of two ranks. Collective: no."""
    gains = _gains(alone)
    study.target("3a", f"{len(gains)} scripts: script / tuned, geometric mean", _mean(gains), 1.4, at_least=True)
    study.target("3b", "scripts that gain a half or more", sum(gain >= 1.5 for gain in gains), 8, at_least=True)
    study.target("3c", "the least of these", min(gains), 0.95, at_least=True)
    study.target(
        "3d", "the least with 1, 5, 30 and 200 steps", min(_gains(counts), default=math.nan), 0.95, at_least=True
    )
    pairs = _gains(two)
    study.target("3e", f"two ranks, {len(pairs)} scripts, geometric mean", _mean(pairs), 1.15, at_least=True)
    study.target("3f", "two ranks, the least", min(pairs, default=math.nan), 0.95, at_least=True)
    everything = [*alone, *counts, *two]
    # A script whose own answers differ from run to run, by a random mesh or a solver that stagnates, tells nothing.
    same = [row for row in everything if number(row, "own runs differ") <= 1e-6]
    differences = [number(row, "tuned differs") for row in same]
    study.target("3g", "greatest relative difference of an answer", max(differences, default=math.nan), 1e-6)
    nothing_to_gain = [row for row in alone if number(row, "script / tuned") < 1.05]
    said = sum(row["tuned solvers"] == "own is best" for row in nothing_to_gain)
    share = said / len(nothing_to_gain) if nothing_to_gain else math.nan
    study.target("3h", "told so, where nothing is gained", share, 0.9, at_least=True)
    failed = sum("failed" in row for row in everything)
    study.target("3i", "scripts that ran alone and failed under tune or run --tuned", failed, 0)


def _row(study: Study, script: pathlib.Path, ranks: int, steps: int | None, repeat: int) -> Row:
    say(study.comm, f"  {script.stem} on {ranks} ranks, steps {steps}")
    row = on_root(study.comm, functools.partial(run_pair, script, ranks, steps, repeat))
    study.row(_TABLE, row)
    return row


def run_pair(script: pathlib.Path, ranks: int, steps: int | None, repeat: int) -> Row:
    """Tune a script, then time it as it is and tuned in turn.

    Parameters
    ----------
    script
        Its path; it runs in its own folder.
    ranks
        Number of MPI ranks.
    steps
        Value of ``STEPS``; None leaves it to the script.
    repeat
        Timed runs of either.

    Returns
    -------
    row
        With ``"failed"`` if the script runs alone and not with pdeopt, and without numbers if it does not run alone.

    Collective: no.
    """
    row: Row = {"script": script.stem, "ranks": ranks, "steps": steps or "own"}
    command = [sys.executable, script.name]
    own = [*launch_command(ranks), script.name] if ranks > 1 else command
    on = ["-n", str(ranks)] if ranks > 1 else []
    with tempfile.TemporaryDirectory(prefix="pdeopt-bench-") as folder:
        saved = pathlib.Path(folder, "tuned.json")
        run = functools.partial(_run, folder=script.parent, steps=steps)
        pdeopt = [sys.executable, "-m", "pdeopt"]
        first = run(own)
        if isinstance(first, str):
            return {**row, "note": f"does not run alone: {first}"}
        report = pathlib.Path(folder, "report")
        tuning = run([*pdeopt, "tune", *on, "--save", str(saved), "--report", str(report), "--", *command])
        if isinstance(tuning, str):
            return {**row, "failed": tuning}
        content = json.loads(saved.read_text())
        seconds: dict[str, list[float]] = {"own": [], "tuned": []}
        differs = {"own": 0.0, "tuned": _difference(first[1], tuning[1])}
        for _ in range(repeat):
            for arm, words in (("own", own), ("tuned", [*pdeopt, "run", *on, "--tuned", str(saved), "--", *command])):
                result = run(words)
                if isinstance(result, str):
                    return {**row, "failed": result}
                seconds[arm].append(result[0])
                differs[arm] = max(differs[arm], _difference(first[1], result[1]))
    script_seconds, tuned_seconds = (statistics.median(seconds[arm]) for arm in ("own", "tuned"))
    spent, solvers = content["seconds"], content["solvers"]
    return {
        **row,
        "script s": script_seconds,
        "tuned s": tuned_seconds,
        "script / tuned": script_seconds / tuned_seconds,
        "tuned solvers": ", ".join(f"{one['solver']} ({one['gain']:.1f}x)" for one in solvers) or "own is best",
        "of": content["seen"],
        "linear solves s": spent["linear solves"],
        "trying s": spent["trying"],
        "own runs differ": differs["own"],
        "tuned differs": differs["tuned"],
    }


def _run(words: Sequence[str], folder: pathlib.Path, steps: int | None) -> tuple[float, dict[str, float]] | str:
    """Return wall seconds, start-up included, and the answers; or what went wrong."""
    environment = clean_environment(os.environ) | {"OMP_NUM_THREADS": "1"}
    if steps is not None:
        environment["STEPS"] = str(steps)
    began = time.perf_counter()
    try:
        job = subprocess.run(
            words, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"more than {LIMIT_SECONDS:.0f} s"
    elapsed = time.perf_counter() - began
    if job.returncode:
        return f"status {job.returncode}: {(job.stderr.strip().splitlines() or [''])[-1][:100]}"
    lines = [line.split() for line in job.stdout.splitlines() if line.startswith("ANSWER ")]
    return elapsed, {name: float(value) for _, name, value in lines}


def _difference(one: dict[str, float], other: dict[str, float]) -> float:
    if set(one) != set(other):
        return math.inf
    return max((abs(one[name] - other[name]) / max(abs(one[name]), 1e-300) for name in one), default=0.0)


def _gains(rows: Sequence[Row]) -> list[float]:
    return [number(row, "script / tuned") for row in rows if "script / tuned" in row]


def _mean(values: Sequence[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, values))) if values else math.nan
