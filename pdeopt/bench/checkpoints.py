"""Checkpoints: kills, changes of the number of ranks, damaged files, and what a checkpoint costs."""

import pathlib
import shutil
import tempfile

from pdeopt.bench.harness import Row
from pdeopt.bench.kills import Kill, kill_at_random
from pdeopt.bench.study import Study, number
from pdeopt.parallel import on_root, random_stream

_CASES = "pdeopt.bench.checkpoint_cases:"
_RANKS = 2
_CELLS = 12


def measure(study: Study, quick: bool) -> None:
    """Fill the rows and targets of kills, numbers of ranks, damaged files and costs. Collective: yes."""
    folder = pathlib.Path(on_root(study.comm, lambda: tempfile.mkdtemp(prefix="pdeopt-checkpoints-")))
    try:
        _kills(study, folder, count=1 if quick else 50, steps=6 if quick else 40)
        _ranks(study, folder / "ranks", cells=2 if quick else 5, small=quick)
        _damage(study, folder, flips=50 if quick else 200, cuts=2 if quick else 10)
        if not quick:
            _cost(study, folder / "cost")
    finally:
        on_root(study.comm, lambda: shutil.rmtree(folder, ignore_errors=True))


def _kills(study: Study, folder: pathlib.Path, count: int, steps: int) -> None:
    random = random_stream("kills", study.settings.seed)
    same, while_saving, first_steps = 0, 0, []
    for index in range(count):
        place = folder / f"kill-{index}"

        def kill(place: pathlib.Path = place) -> Kill:
            place.mkdir()
            return kill_at_random(place, steps, _CELLS, _RANKS, random)

        killed = on_root(study.comm, kill)
        case = study.case(_CASES + "burgers", _RANKS, folder=str(place), steps=steps, cells=_CELLS, compare=True)
        # It has to go on from the last state that the kill left: passing over a complete one would not do.
        went_on = case.get("first step") == killed.states
        same += went_on and case.get("digest") == case.get("digest without checkpoints")
        while_saving += killed.while_saving
        first_steps.append(killed.states)
    row: Row = {"kills": count, "same to the last bit": same, "killed while saving": while_saving}
    study.row(
        "kills at random instants, two ranks", row | {"went on from step": f"{min(first_steps)}-{max(first_steps)}"}
    )
    study.target("6a", f"of {count} kills at random instants, bitwise the same answer", same, count, at_least=True)


def _ranks(study: Study, folder: pathlib.Path, cells: int, small: bool) -> None:
    case = study.case(_CASES + "move_between_ranks", 3, folder=str(folder), cells=cells, small=small)
    errors = {name: value for name, value in case.items() if " -> " in name}
    for name, error in errors.items():
        study.row(
            "largest error of a degree of freedom, from one number of ranks to another",
            {"mesh, ranks": name, "error": error},
        )
    largest = max((number(case, name) for name in errors), default=None)
    study.target("6b", "1 -> 2, 2 -> 3, 3 -> 1 ranks: largest error of a degree of freedom", largest, 1e-12)


def _damage(study: Study, folder: pathlib.Path, flips: int, cuts: int) -> None:
    found: list[Row] = []
    for ranks in (1,) if study.settings.quick else (1, 2):
        case = study.case(
            _CASES + "damage_files", ranks, folder=str(folder / f"damage-{ranks}"), flips=flips, cuts=cuts
        )
        study.row("damaged files", case)
        found.append(case)
    missed = [number(case, "bytes changed") - number(case, "changes found") for case in found]
    study.target("6c", f"of {flips} random bytes changed, not noticed", max(missed), 0)
    missed = [number(case, "files cut or removed") - number(case, "cuts found") for case in found]
    study.target("6d", "files cut or removed that did not end in an error on all ranks", max(missed), 0)


def _cost(study: Study, folder: pathlib.Path) -> None:
    for cells in (64, 256):
        case = study.case(
            _CASES + "cost", _RANKS, folder=f"{folder}-{cells}", cells=cells, repeat=study.settings.repeat
        )
        study.row("a checkpoint beside the plain values", case)
