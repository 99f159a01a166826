"""BoomerAMG of hypre and ML, which the wheel's PETSc lacks, through the PETSc of a Debian system.

Debian's package ``python3-petsc4py-real`` carries both. The matrix travels as a PETSc binary file to a process of that
Python, which times many solves inside; where the package is absent, every arm's row says so.
"""

import json
import os
import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping

from petsc4py import PETSc

from pdeopt.bench import linear_worker
from pdeopt.bench.linear_families import LinearCase
from pdeopt.bench.linear_outcome import MAX_IT, RTOL, Options, Outcome
from pdeopt.report import InputError

_PYTHON = pathlib.Path("/usr/bin/python3")
_PETSC_FOLDERS = pathlib.Path("/usr/lib/petscdir")
NOT_PRESENT = "not present: apt-get install python3-petsc4py-real"


def _hypre(**options: str) -> Options:
    return {"ksp_type": "cg", "pc_type": "hypre"} | {
        f"pc_hypre_boomeramg_{name}": value for name, value in options.items()
    }


def _ml(**options: str) -> Options:
    return {"ksp_type": "cg", "pc_type": "ml"} | {
        (name if name.startswith("mg_") else f"pc_ml_{name}"): value for name, value in options.items()
    }


_HMIS = {"coarsen_type": "HMIS", "interp_type": "ext+i-cc"}
_SCALAR: dict[str, Options] = {
    "default": _hypre(),
    "HMIS": _hypre(**_HMIS),
    "HMIS, aggressive": _hypre(**_HMIS, agg_nl="1"),
    "HMIS, threshold 0.5": _hypre(**_HMIS, strong_threshold="0.5"),
    "HMIS, threshold 0.5, aggressive": _hypre(**_HMIS, strong_threshold="0.5", agg_nl="1"),
    "HMIS, threshold 0.7": _hypre(**_HMIS, strong_threshold="0.7"),
    "HMIS, 4 a row": _hypre(**_HMIS, P_max="4"),
    "HMIS, 4 a row, threshold 0.5": _hypre(**_HMIS, P_max="4", strong_threshold="0.5"),
    "HMIS, Chebyshev": _hypre(**_HMIS, relax_type_all="Chebyshev"),
    "PMIS, aggressive": _hypre(coarsen_type="PMIS", interp_type="ext+i-cc", agg_nl="1"),
    "Falgout, threshold 0.5": _hypre(strong_threshold="0.5"),
    "HMIS, aggressive, two sweeps": _hypre(**_HMIS, agg_nl="1", grid_sweeps_all="2"),
}
_NODAL = {"nodal_coarsen": "4", "vec_interp_variant": "2", "interp_type": "ext+i"}
_ELASTIC: dict[str, Options] = {
    "default": _hypre(),
    "HMIS, threshold 0.5": _hypre(**_HMIS, strong_threshold="0.5"),
    "HMIS, threshold 0.5, aggressive": _hypre(**_HMIS, strong_threshold="0.5", agg_nl="1"),
    "HMIS, threshold 0.7": _hypre(**_HMIS, strong_threshold="0.7"),
    "HMIS, threshold 0.9": _hypre(**_HMIS, strong_threshold="0.9"),
    "nodal, threshold 0.25": _hypre(**_NODAL, coarsen_type="HMIS", strong_threshold="0.25"),
    "nodal, threshold 0.5": _hypre(**_NODAL, coarsen_type="HMIS", strong_threshold="0.5"),
    "nodal, threshold 0.5, 4 a row": _hypre(**_NODAL, coarsen_type="HMIS", strong_threshold="0.5", P_max="4"),
}
_CHEBYSHEV = {"mg_levels_ksp_type": "chebyshev", "mg_levels_pc_type": "jacobi"}
_ML: dict[str, Options] = {
    "default": _ml(),
    "threshold 0.02": _ml(Threshold="0.02"),
    "threshold 0.08": _ml(Threshold="0.08"),
    "MIS": _ml(CoarsenScheme="MIS"),
    "MIS, threshold 0.05": _ml(CoarsenScheme="MIS", Threshold="0.05"),
    "energy minimisation": _ml(EnergyMinimization="2"),
    "unsmoothed": _ml(DampingFactor="0"),
    "SOR 1": _ml(mg_levels_ksp_max_it="1"),
    "Chebyshev": _ml(**_CHEBYSHEV),
    "threshold 0.05, Chebyshev": _ml(Threshold="0.05", **_CHEBYSHEV),
}


def debian_arms(elastic: bool) -> Mapping[str, Options]:
    """Return the settings of BoomerAMG and ML that are swept, by name. Collective: no."""
    hypre = _ELASTIC if elastic else _SCALAR
    return {f"BoomerAMG: {name}": arm for name, arm in hypre.items()} | {
        f"ML: {name}": arm for name, arm in _ML.items()
    }


def petsc_folder() -> pathlib.Path | None:
    """Return where Debian's PETSc with petsc4py for real numbers lies, or None. Collective: no."""
    found = sorted(_PETSC_FOLDERS.glob("petsc*/*-real/lib/python3/dist-packages/petsc4py"))
    return found[-1].parents[3] if found and _PYTHON.exists() else None


def solve_by_debian(case: LinearCase, arms: Iterable[str], ranks: int = 1, timeout: float = 600.0) -> list[Outcome]:
    """Solve a system by some settings of BoomerAMG and ML, one after another in one process.

    Parameters
    ----------
    case
        The system, on one rank.
    arms
        Names among those of `debian_arms`.
    ranks
        Processes of Debian's MPI to solve on; the rows are cut into as many parts of equal size.
    timeout
        Seconds for all; what is not done by then has failed.

    Raises
    ------
    InputError
        If the case lies on more than one rank, since the others would wait on the processors that are timed.

    Collective: one rank only.
    """
    folder, names = petsc_folder(), list(arms)
    if case.comm.size > 1:
        raise InputError(f"the system lies on {case.comm.size} ranks: assemble it on one, and give `ranks` instead")
    if folder is None:
        return [Outcome(name, failed=NOT_PRESENT) for name in names]
    known = debian_arms(case.A.getBlockSize() > 1)
    with tempfile.TemporaryDirectory(prefix="pdeopt_debian_") as name:
        place = pathlib.Path(name)
        jobs = _write_case(case, place) | {"arms": {arm: known[arm] for arm in names}, "rtol": RTOL, "max_it": MAX_IT}
        (place / "jobs.json").write_text(json.dumps(jobs))
        complaint = _run(folder, place, ranks, timeout)
        results = place / "results.json"
        records = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    found = {record.pop("arm"): record for record in records}
    return [
        Outcome(arm, failed=complaint)
        if arm not in found
        else Outcome(arm, failed=found[arm]["failed"])
        if "failed" in found[arm]
        else Outcome.of_record(arm, found[arm])
        for arm in names
    ]


def _write_case(case: LinearCase, place: pathlib.Path) -> dict[str, object]:
    """Write matrix, right-hand side and near-nullspace as PETSc's binary files."""

    def write(thing: PETSc.Mat | PETSc.Vec, name: str) -> str:
        viewer = PETSc.Viewer().createBinary(str(place / name), "w", comm=case.comm)
        thing.view(viewer)
        viewer.destroy()
        return str(place / name)

    nullspace = case.A.getNearNullSpace()
    modes = nullspace.getVecs() if nullspace.handle else []
    return {
        "matrix": write(case.A, "matrix"),
        "right-hand side": write(case.b, "b"),
        "near-nullspace": [write(mode, f"mode{number}") for number, mode in enumerate(modes)],
    }


def _run(folder: pathlib.Path, place: pathlib.Path, ranks: int, timeout: float) -> str:
    """Run the jobs in Debian's Python, and return why some may be missing."""
    command = [str(_PYTHON), linear_worker.__file__, str(place / "jobs.json"), str(place / "results.json")]
    if ranks > 1:
        launcher = shutil.which("mpiexec.openmpi", path="/usr/bin")
        if launcher is None:
            return "not present: apt-get install openmpi-bin"
        command = [launcher, "--allow-run-as-root", "--oversubscribe", "-n", str(ranks), *command]
    # Nothing of our own Python or MPI may reach the other's.
    environment = {"PATH": "/usr/bin:/bin", "HOME": os.environ.get("HOME", "/"), "OMP_NUM_THREADS": "1"}
    environment["PETSC_DIR"] = str(folder)
    try:
        done = subprocess.run(command, env=environment, cwd=place, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return f"not done after {timeout:g} s"
    complaint = done.stderr.strip().splitlines()
    return f"exit status {done.returncode}: {complaint[-1] if complaint else 'no message'}"
