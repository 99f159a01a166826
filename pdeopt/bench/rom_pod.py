"""Line 6: proper orthogonal decomposition at size and on any number of ranks; what a basis is worth to a solver."""

from mpi4py import MPI

from pdeopt.bench import rom_pod_cases
from pdeopt.bench.harness import Row
from pdeopt.bench.rom_deflation import measure_deflation
from pdeopt.bench.study import Study, number

_CASES = "pdeopt.bench.rom_pod_cases:"


def measure(study: Study, quick: bool) -> None:
    """Decompose, compare, move between ranks, and deflate. Collective: yes."""
    rows = [_speed(study, "snapshots", 1, 24)] if quick else [_speed(study, *arm) for arm in _ARMS]
    for row in rows:
        study.row("POD at size", row)
    # The first is the one that counts.
    study.target("6a", "POD of 1e6 dofs x 200 snapshots, 50 modes, on 2 ranks [s]", number(rows[0], "seconds"), 2.5)
    study.target("6b", "loss of orthogonality of its modes", number(rows[0], "loss of orthogonality"), 1e-12)
    size = {"cells": 12, "count": 20, "modes": 5, "saved_cells": 8, "saved_modes": 4} if quick else _ON_THREE
    ranks = study.case(f"{_CASES}on_three_ranks", 3, **size, seed=study.settings.seed)
    study.row("POD on 1, 2 and 3 ranks; offline on 2 ranks, online on 1 and 3", ranks)
    angles = [number(ranks, f"1 and {other} ranks: largest angle") for other in (2, 3)]
    study.target("6c", "largest angle between the subspaces of 1, 2 and 3 ranks", max(angles), 1e-10)
    differences = [number(ranks, f"2 -> {other} ranks: coordinates differ by") for other in (1, 3)]
    study.target("6d", "offline on 2 ranks, online on 1 and 3: coordinates differ by", max(differences), 1e-10)
    rival = _beside_pymor(study, quick)
    study.row("POD beside pyMOR's", rival)
    ratio = number(rival, "ours: mean unseen error") / number(rival, "pyMOR: mean unseen error")
    study.target("6e", "mean unseen projection error over that of pyMOR's modes", ratio, 1.02)
    measure_deflation(study, quick)


# Method, ranks, and cells a side: the methods are compared where the slowest takes less than a minute.
_ARMS = (
    ("snapshots", 2, 1000),
    ("snapshots", 1, 1000),
    ("snapshots", 2, 400),
    ("incremental", 2, 400),
    ("slepc", 2, 400),
)
_ON_THREE = {"cells": 150, "count": 200, "modes": 50, "saved_cells": 100, "saved_modes": 20}


def _speed(study: Study, method: str, ranks: int, cells: int) -> Row:
    settings = study.settings
    if settings.quick:
        return rom_pod_cases.speed(MPI.COMM_SELF, cells, 30, 10, 1, method, settings.seed)
    size = {"cells": cells, "count": 200, "modes": 50, "repeat": settings.repeat}
    return study.case(f"{_CASES}speed", ranks, **size, method=method, seed=settings.seed)


def _beside_pymor(study: Study, quick: bool) -> Row:
    settings = study.settings
    if quick:
        return rom_pod_cases.beside_pymor(MPI.COMM_SELF, 16, 8, 1, settings.seed)
    return study.case(f"{_CASES}beside_pymor", 1, cells=300, modes=40, repeat=settings.repeat, seed=settings.seed)
