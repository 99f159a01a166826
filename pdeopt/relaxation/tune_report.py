"""From the ledger of a tuning run to a verdict per solver, the report, and the file that `pdeopt run --tuned` reads."""

import dataclasses
import json
import math
import os
import pathlib
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pdeopt.report import InputError

FORMAT = "pdeopt tuned solvers 1"
# A gain below this is none: what the clock of a quiet machine cannot tell from noise, and a script need not care about.
LEAST_GAIN = 1.1
# A solver that saves less than this share of the whole script's seconds is not advised: the script would not be faster.
LEAST_SHARE = 0.02
# Relative spread of seconds that is assumed where a solve was timed only once.
SPREAD = 0.1
# Option that keeps a preconditioner; `pdeopt run --tuned` compares the values of the matrix before it does.
REUSE = "ksp_reuse_preconditioner"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What is advised for one solver of the script.

    Parameters
    ----------
    entry
        What was seen of it (`tune_race.Entry`).
    arm
        The name of the advised solver; "" if the script's own stays.
    options
        Its PETSc options, without prefix.
    seconds
        Predicted wall seconds of all its solves.
    band
        Least and greatest gain, own seconds over predicted ones, with the slowest and the fastest of the arm's timings.
    why
        Why the script's own stays.
    """

    entry: Mapping[str, Any]
    arm: str
    options: Mapping[str, str]
    seconds: float
    band: tuple[float, float]
    why: str = ""

    @property
    def gain(self) -> float:
        """Own seconds over predicted ones."""
        return float(self.entry["seconds"] / self.seconds) if self.seconds > 0.0 else 1.0


def arm_seconds(
    entry: Mapping[str, Any], arm: Mapping[str, Any], of: Callable[[Sequence[float]], float] = statistics.median
) -> float:
    """Return the predicted wall seconds of all solves of a solver by an arm.

    It is set up once for each new set of values, as `pdeopt run --tuned` does, the first time with symbolic work. What
    was timed several times counts with the median, or with what ``of`` makes of it. Collective: no.
    """
    setup, solve = of(arm["setups"]), of(arm["solves"])
    update = of(arm["updates"]) if arm["updates"] else setup
    return float(setup + max(entry["values"] - 1, 0) * update + entry["solves"] * solve)


def judge(entry: Mapping[str, Any], script: float = 0.0) -> Verdict:
    """Return the verdict on one solver of a script that takes as many wall seconds without tuning. Collective: no."""

    def own(why: str) -> Verdict:
        return Verdict(entry, "", {}, float(entry["seconds"]), (1.0, 1.0), why)

    if entry["kept"]:
        return own(f"kept: {entry['kept']}")
    if not entry["samples"]:
        return own("too short to be tuned")
    good = {
        name: arm
        for name, arm in entry["arms"].items()
        if arm["state"] == "equal"
        and arm["setups"]
        and (entry["symmetric"] or not arm["symmetric"])
        and not _seen_once(entry, arm)
    }
    if entry["arms"] and all(arm["state"] == "skipped" for arm in entry["arms"].values()):
        return own("your solver is already the best: what else is safe for this matrix would take longer")
    if not entry["arms"]:
        return own("nothing could be tried in the time that --budget allows")
    if not good and any(arm["state"] == "wrong" and "solution differs" in arm["why"] for arm in entry["arms"].values()):
        return own(
            "your solver stays: others give other answers, by as much as is said above; if your tolerance is loose,"
            " tighten it and tune again"
        )
    if not good:
        return own("your solver is already the best: nothing that was tried is as accurate and as fast")
    name = min(good, key=lambda name: arm_seconds(entry, good[name]))
    arm, seconds = good[name], arm_seconds(entry, good[name])
    gain = entry["seconds"] / seconds
    once = len(arm["solves"]) < 2
    low, high = (1.0 + SPREAD, 1.0 - SPREAD) if once else (1.0, 1.0)
    band = (
        entry["seconds"] / (low * arm_seconds(entry, arm, max)),
        entry["seconds"] / (high * arm_seconds(entry, arm, min)),
    )
    if gain < LEAST_GAIN or band[0] < 1.0:
        return own("your solver is already the best")
    saved = entry["seconds"] - seconds
    if saved < LEAST_SHARE * script:
        return own(f"your solver is good enough: {name} would save {saved:.3f} s of {script:.2f} s")
    options = dict(arm["options"])
    if entry["values"] < entry["assemblies"] or (entry["values"] == 1 and entry["solves"] > 1):
        options[REUSE] = "1"
    return Verdict(entry, name, options, seconds, band)


def _seen_once(entry: Mapping[str, Any], arm: Mapping[str, Any]) -> bool:
    """Whether an iterative arm has solved one system of many, whose right-hand side may have been easy."""
    return bool(arm["kind"] != "factor" and arm["systems"] < min(entry["solves"] - entry["failed"], 2))


def report(verdicts: Sequence[Verdict], seconds: float, tuning: Mapping[str, float], command: str) -> Iterator[str]:
    """Yield the lines of the report.

    Parameters
    ----------
    verdicts
        One for each solver.
    seconds
        Wall seconds of the whole script, those of tuning included.
    tuning
        Of these, seconds by what they went into.
    command
        What the user may type next.

    Collective: no.
    """
    script = max(seconds - sum(tuning.values()), 0.0)
    own = sum(verdict.entry["seconds"] for verdict in verdicts)
    spent = ", ".join(f"{value:.2f} s {name}" for name, value in tuning.items())
    yield f"the script took {script:.2f} s without tuning ({spent}), {own:.2f} s of them in linear solves"
    for verdict in sorted(verdicts, key=lambda verdict: -verdict.entry["seconds"]):
        yield ""
        yield from _solver_lines(verdict)
    better = [verdict for verdict in verdicts if verdict.arm]
    yield ""
    if not better:
        yield "nothing to change: the script's own solvers are the best that was found"
        return
    saved = sum(verdict.entry["seconds"] - verdict.seconds for verdict in better)
    lows, highs = (
        sum(verdict.entry["seconds"] * (1.0 - 1.0 / verdict.band[which]) for verdict in better) for which in (0, 1)
    )
    yield (
        f"expected: {own - saved:.2f} s of linear solves instead of {own:.2f} s, the whole script"
        f" {script - saved:.2f} s instead of {script:.2f} s: {_ratio(script, saved):.2f}x"
        f" ({_ratio(script, lows):.2f}x to {_ratio(script, highs):.2f}x)"
    )
    if command:
        yield f"without changing the script: {command}"


def _ratio(seconds: float, saved: float) -> float:
    return seconds / max(seconds - saved, 1e-3)


def _solver_lines(verdict: Verdict) -> Iterator[str]:
    """Yield the part of the report on one solver."""
    entry = verdict.entry
    inside = f" inside {entry['inside']}" if entry["inside"] else ""
    name = f"prefix {entry['prefix']}" if entry["prefix"] else f"no prefix, first solved at {entry['site']}"
    yield f"solver ({name}){inside}: {entry['own']}"
    if entry["features"]:
        yield f"  {entry['features']}"
    failures = f", {entry['failed']} failed" if entry["failed"] else ""
    yield (
        f"  {entry['solves']} solves{failures}, {entry['iterations']} iterations, {entry['seconds']:.3f} s; the matrix"
        f" was assembled {entry['assemblies']} times, with new values {entry['values']} times"
    )
    if entry["failed"]:
        yield f"  {entry['failed']} of its solves did not converge: what the script goes on with is no solution"
    rows = [("own", f"{entry['seconds']:9.3f} s", "")] if entry["arms"] else []
    for arm_name, arm in entry["arms"].items():
        if arm["setups"] and arm["state"] == "equal":
            note = f"set-up {statistics.median(arm['setups']):.3f} s, solve {statistics.median(arm['solves']):.4f} s"
            if arm["symmetric"] and not entry["symmetric"]:
                note += ", but a later matrix is not symmetric"
            if _seen_once(entry, arm):
                note += ", but tried on one right-hand side only"
            rows.append((arm_name, f"{arm_seconds(entry, arm):9.3f} s", f"{note}, {arm['iterations']} iterations"))
        else:
            rows.append((arm_name, "          -", f"{arm['state']}: {arm['why']}"))
    width = max((len(row[0]) for row in rows), default=0)
    for arm_name, seconds, note in rows:
        yield f"    {arm_name:<{width}} {seconds}  {note}".rstrip()
    if not verdict.arm:
        yield f"  {verdict.why}"
        return
    low, high = verdict.band
    yield f"  {verdict.arm}: {verdict.gain:.2f}x ({low:.2f}x to {high:.2f}x) at equal accuracy"
    yield "    petsc_options = {"
    for option, value in verdict.options.items():
        yield f'        "{option}": {_python(value)},'
    yield "    }"
    if REUSE in verdict.options:
        yield "    (ksp_reuse_preconditioner only as long as the values of the matrix stay the same)"


def _python(value: str) -> str:
    """Return a value as one writes it in Python."""
    for kind in (int, float):
        try:
            return repr(kind(value))
        except ValueError:
            continue
    return f'"{value}"'


# --- the file ---------------------------------------------------------------------------------------------------------


def save(
    path: pathlib.Path, verdicts: Sequence[Verdict], seconds: float, tuning: Mapping[str, float], plain: bool = False
) -> None:
    """Write the advised solvers; whoever reads sees the old file or the new one, never a part.

    Parameters
    ----------
    path
        The file.
    verdicts, seconds, tuning
        As for `report`; the seconds are kept for the record.
    plain
        Whether the script runs without pdeopt: no type of its own had to be replaced.

    Raises
    ------
    InputError
        If the file cannot be written.

    Collective: no.
    """
    # Of two under one name, on other numbers of ranks, the one that saves more.
    worst_first = sorted(verdicts, key=lambda verdict: verdict.entry["seconds"] - verdict.seconds)
    advised = {verdict.entry["prefix"] or verdict.entry["site"]: verdict for verdict in worst_first if verdict.arm}
    solvers = [
        {
            "prefix": verdict.entry["prefix"],
            "site": verdict.entry["site"],
            "solver": verdict.arm,
            "options": dict(verdict.options),
            "gain": round(verdict.gain, 3),
            "ranks": verdict.entry["ranks"],
            "size": verdict.entry["size"],
        }
        for verdict in advised.values()
    ]
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        linear = sum(verdict.entry["seconds"] for verdict in verdicts)
        spent = {"script": seconds - sum(tuning.values()), "linear solves": linear, **tuning}
        content = {"format": FORMAT, "seconds": spent, "seen": len(verdicts), "plain": plain, "solvers": solvers}
        temporary.write_text(json.dumps(content, indent=2) + "\n")
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"--save {path} cannot be written ({error.strerror}): name another file") from error
    finally:
        temporary.unlink(missing_ok=True)


def load(path: pathlib.Path) -> list[dict[str, Any]]:
    """Return the solvers of a file that `save` wrote.

    Raises
    ------
    InputError
        If there is no such file, or it is another one.

    Collective: no.
    """
    advice = "write one with `pdeopt tune --save FILE -- python script.py`"
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"--tuned {path} cannot be read ({error.strerror}): {advice}") from error
    except ValueError as error:
        raise InputError(f"--tuned {path} is not JSON ({error}): {advice}") from error
    known = isinstance(content, dict) and content.get("format") == FORMAT and isinstance(content.get("solvers"), list)
    if not known or not all(_is_solver(solver) for solver in content["solvers"]):
        raise InputError(f"--tuned {path} does not hold tuned solvers: {advice}")
    return list(content["solvers"])


def is_plain(path: pathlib.Path) -> bool:
    """Whether a file that `save` wrote advises nothing, for a script that runs without pdeopt. Collective: no."""
    return not load(path) and json.loads(path.read_text()).get("plain") is True


def _is_solver(solver: object) -> bool:
    if not isinstance(solver, dict) or not isinstance(solver.get("options"), dict):
        return False
    texts = [solver.get("prefix"), solver.get("site"), *solver["options"], *solver["options"].values()]
    return all(isinstance(text, str) for text in texts) and math.isfinite(solver.get("gain", 1.0))
