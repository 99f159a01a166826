"""The JSON file of a benchmark: sealed seeds, counted looks, written whole or not at all."""

import hashlib
import json
import math
import os
import pathlib
from typing import Any

import numpy as np

from pdeopt.bench.harness import BenchResult, BenchSettings, Target
from pdeopt.report import InputError

type Record = dict[str, Any]


def sealed_seed(bench: str, release: str, commit: str | None) -> int:
    """Return the test seed of a benchmark, which nobody chooses: a hash of bench, release and code commit.

    Parameters
    ----------
    bench
        Name of the benchmark.
    release
        Version of pdeopt.
    commit
        Commit of the code; None outside a checkout.

    Returns
    -------
    int
        A seed in [1, 2**32); 0 is kept for validation.

    Collective: no.
    """
    digest = hashlib.sha256("\n".join((bench, release, commit or "")).encode()).digest()
    return int.from_bytes(digest[:4], "big") or 1


def make_record(result: BenchResult, settings: BenchSettings, machine: Record, looks: int) -> Record:
    """Return what the JSON file holds: what was found, where, how, and how often the sealed cases were looked at.

    Collective: no.
    """
    return {
        "bench": result.bench,
        "quick": settings.quick,
        "repeat": settings.repeat,
        "seed": settings.seed,
        "looks": looks,
        "machine": machine,
        "rows": result.rows,
        "targets": [_target_entry(target) for target in result.targets],
    }


def previous_looks(path: pathlib.Path) -> int:
    """Return how often the sealed cases were looked at up to the file's last run; 0 without a file.

    Collective: no.
    """
    return int(read_record(path)["looks"]) if path.exists() else 0


def read_record(path: pathlib.Path) -> Record:
    """Read the JSON file of a benchmark.

    Raises
    ------
    InputError
        If the file is not such a JSON file: it must not be replaced silently, since it counts the looks.

    Collective: no.
    """
    try:
        record = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}): restore it from git, or remove it") from error
    missing = {"bench", "machine", "rows", "targets", "looks", "seed"} - set(record)
    if missing:
        raise InputError(f"{path} is not the record of a benchmark: it has no {', '.join(sorted(missing))}")
    return dict(record)


def write_record(path: pathlib.Path, record: Record) -> None:
    """Write the JSON file under a temporary name and rename it: a kill leaves the old file or the new one.

    Collective: no; call it on rank 0.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w") as file:
            file.write(as_json(record))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def as_json(value: Any) -> str:
    """Return strict JSON: numpy's scalars and arrays as Python's, NaN and infinities as null. Collective: no."""
    return json.dumps(_plain(value), indent=1, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _target_entry(target: Target) -> Record:
    return {
        "id": target.id,
        "claim": target.claim,
        "value": target.value,
        "sense": target.sense,
        "bound": target.bound,
        "holds": target.holds,
    }
