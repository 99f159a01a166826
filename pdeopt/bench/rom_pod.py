"""Line 6: proper orthogonal decomposition at size and on any number of ranks; what a basis is worth to a solver."""

from pdeopt.bench.rom_deflation import measure_deflation
from pdeopt.bench.study import Study, number

_CASES = "pdeopt.bench.rom_pod_cases:"


def measure(study: Study, quick: bool) -> None:
    """Decompose, compare, move between ranks, and deflate. Collective: yes."""
    seed, repeat = study.settings.seed, study.settings.repeat
    cells, count, modes = (40, 60, 20) if quick else (1000, 200, 50)
    times = {}
    methods = ("snapshots",) if quick else ("snapshots", "incremental", "slepc")
    for method in methods:
        for ranks in (2,) if quick or method != "snapshots" else (1, 2):
            row = study.case(
                f"{_CASES}speed",
                ranks,
                cells=cells,
                count=count,
                modes=modes,
                repeat=repeat if method == "snapshots" else 1,
                method=method,
                seed=seed,
            )
            study.row("POD at size", row)
            times[method, ranks] = row
    main = times["snapshots", 2]
    study.target("6a", "POD of 1e6 dofs x 200 snapshots, 50 modes, on 2 ranks [s]", number(main, "seconds"), 2.5)
    study.target("6b", "loss of orthogonality of its modes", number(main, "loss of orthogonality"), 1e-12)
    same = study.case(f"{_CASES}subspaces", 3, cells=20 if quick else 150, count=count, modes=modes, seed=seed)
    study.row("POD on 1, 2 and 3 ranks", same)
    angles = [number(same, f"1 and {ranks} ranks: largest angle") for ranks in (2, 3)]
    study.target("6c", "largest angle between the subspaces of 1, 2 and 3 ranks", max(angles), 1e-10)
    moved = study.case(f"{_CASES}between_ranks", 3, cells=12 if quick else 100, seed=seed)
    study.row("offline on 2 ranks, online on 1 and 3", moved)
    differences = [number(moved, f"{ranks} ranks: coordinates differ by") for ranks in (1, 3)]
    study.target("6d", "offline on 2 ranks, online on 1 and 3: coordinates differ by", max(differences), 1e-10)
    rival = study.case(
        f"{_CASES}beside_pymor", 1, cells=20 if quick else 300, modes=10 if quick else 40, repeat=repeat, seed=seed
    )
    study.row("POD beside pyMOR's", rival)
    ratio = number(rival, "ours: mean unseen error") / number(rival, "pyMOR: mean unseen error")
    study.target("6e", "mean unseen projection error over that of pyMOR's modes", ratio, 1.02)
    measure_deflation(study, quick)
