"""Sequences of changing matrices: the solver that learns while it solves beside the best fixed solver in hindsight.

Every arm solves every system of a sequence, one after another in turning order, so that all meet the same matrices on
the same machine in the same minutes.
"""

import math
import statistics
import time
from collections.abc import Mapping

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np

from pdeopt.bench.harness import say
from pdeopt.bench.study import Study
from pdeopt.bench.tune_families import MAX_IT, RTOL, Options
from pdeopt.bench.tune_sequences import Change, Sequence, families, regime_change, systems
from pdeopt.relaxation.automatic import AutoKSP, AutoSettings

_RCM = {"pc_factor_mat_ordering_type": "rcm"}
_KEPT = {"pc_type": "gamg", "pc_gamg_reuse_interpolation": "1"}
_MUMPS = {"ksp_type": "fgmres", "pc_factor_mat_solver_type": "mumps"}
SYMMETRIC: Mapping[str, Options] = {
    "GAMG": {"ksp_type": "cg", **_KEPT},
    "Cholesky by MUMPS": {**_MUMPS, "pc_type": "cholesky"},
    "ICC(0)": {"ksp_type": "cg", "pc_type": "icc"},
    "ICC(3)": {"ksp_type": "cg", "pc_type": "icc", "pc_factor_levels": "3", **_RCM},
    "SSOR(1.7)": {"ksp_type": "cg", "pc_type": "sor", "pc_sor_omega": "1.7"},
    "Jacobi": {"ksp_type": "cg", "pc_type": "jacobi"},
}
UNSYMMETRIC: Mapping[str, Options] = {
    "GMRES with GAMG": {"ksp_type": "gmres", **_KEPT},
    "LU by MUMPS": {**_MUMPS, "pc_type": "lu"},
    "BiCGStab with ILU(0)": {"ksp_type": "bcgs", "pc_type": "ilu"},
    "BiCGStab with ILU(2)": {"ksp_type": "bcgs", "pc_type": "ilu", "pc_factor_levels": "2", **_RCM},
    "BiCGStab with Jacobi": {"ksp_type": "bcgs", "pc_type": "jacobi"},
}
# A fixed arm that takes this many times the seconds of the best one so far leaves the race after some solves.
_HOPELESS, _TRIALS = 4.0, 20


def measure(study: Study, quick: bool) -> None:
    """Line 4: total seconds over those of the best arm in hindsight. Collective: yes."""
    cells, steps = (24, 12) if quick else (150, 200)
    seeds = range(study.settings.seed, study.settings.seed + (1 if quick else 3))
    chosen = families(study.comm, cells, steps)
    if quick:
        chosen = dict(list(chosen.items())[:2])
    found = {"rule": [], "learning": []}  # type: dict[str, list[float]]
    for name, (make, change) in chosen.items():
        for seed in seeds[:2]:
            say(study.comm, f"  {name}, seed {seed}")
            seconds, learner = replay(make(), change, steps, seed)
            best = min((arm for arm in seconds if arm not in found), key=lambda arm: float(np.sum(seconds[arm])))
            hindsight = float(np.sum(seconds[best]))
            ratios = {arm: float(np.sum(seconds[arm])) / hindsight for arm in found}
            for arm, ratio in ratios.items():
                found[arm].append(ratio)
            study.row(
                f"Sequences of {steps} matrices: seconds over those of the best arm in hindsight",
                {
                    "sequence": name,
                    "seed": seed,
                    "best arm": best,
                    "best arm [s]": hindsight,
                    "rule / best": ratios["rule"],
                    "learning / best": ratios["learning"],
                    "oracle of each step / best": _oracle(seconds) / hindsight,
                    "exploring / all": learner.report.seconds["exploring"] / float(np.sum(seconds["learning"])),
                    "race": str(learner.report.quantities["race"]),
                },
            )
    for arm in ("rule", "learning"):
        values = sorted(found[arm])
        word = "" if arm == "learning" else ", learning off"
        label = "4a" if arm == "learning" else "4a.off"
        study.target(
            label, f"{steps} changing matrices{word}: over the best arm, median", statistics.median(values), 1.1
        )
        high = float(np.quantile(values, 0.9))
        label = "4b" if arm == "learning" else "4b.off"
        study.target(label, f"{steps} changing matrices{word}: over the best arm, 90th percentile", high, 1.25)
    _regime(study, cells, steps, list(seeds))


def _regime(study: Study, cells: int, steps: int, seeds: list[int]) -> None:
    make, change = regime_change(study.comm, cells, steps)
    ratios: dict[str, list[float]] = {"rule": [], "learning": []}
    for seed in seeds:
        seconds, learner = replay(make(), change, steps, seed)
        half = steps // 2
        fixed = [arm for arm in seconds if arm not in ratios]
        parts = [
            min(fixed, key=lambda arm, part=part: float(np.sum(seconds[arm][part])))  # type: ignore[misc]
            for part in (slice(None, half), slice(half, None))
        ]
        hindsight = float(np.sum(seconds[parts[0]][:half]) + np.sum(seconds[parts[1]][half:]))
        for arm in ratios:
            ratios[arm].append(float(np.sum(seconds[arm])) / hindsight)
        study.row(
            "An abrupt change half way: seconds over those of the hindsight that switches once",
            {
                "seed": seed,
                "best before": parts[0],
                "best after": parts[1],
                "hindsight [s]": hindsight,
                "rule / hindsight": ratios["rule"][-1],
                "learning / hindsight": ratios["learning"][-1],
                "last choice": learner.report.method,
            },
        )
    value = statistics.median(ratios["learning"])
    study.target("4c", "one abrupt change: over the hindsight that switches once, median", value, 1.2)


def replay(
    problem: Sequence, change: Change, steps: int, seed: int
) -> tuple[dict[str, "np.typing.NDArray[np.float64]"], AutoKSP]:
    """Solve each system of a sequence by every arm.

    Parameters
    ----------
    problem, change, steps, seed
        As for `tune_sequences.systems`.

    Returns
    -------
    seconds
        Wall seconds of each arm's solves, the slowest rank's; infinite from where an arm left the race.
    learner
        The solver that learned.

    Collective: yes.
    """
    comm = problem.space.mesh.comm
    learner = AutoKSP(AutoSettings(learn=True))
    contexts = {"rule": AutoKSP(AutoSettings(learn=False)), "learning": learner}
    solvers: dict[str, PETSc.KSP] = {}
    seconds: dict[str, np.typing.NDArray[np.float64]] = {}
    for step, (A, b) in enumerate(systems(problem, change, steps, seed)):
        if not solvers:
            arms = SYMMETRIC if A.isSymmetric(1e-12) else UNSYMMETRIC
            solvers = {name: _fixed(A, options) for name, options in arms.items()}
            solvers |= {name: _automatic(A, context) for name, context in contexts.items()}
            seconds = {name: np.full(steps, math.inf) for name in solvers}
        names = list(solvers)
        for name in names[step % len(names) :] + names[: step % len(names)]:
            seconds[name][step] = _timed(solvers[name], A, b, comm)
        totals = {name: float(np.sum(seconds[name][: step + 1])) for name in names}
        for name in names:
            late = step + 1 >= _TRIALS and totals[name] > _HOPELESS * min(totals.values())
            if name not in contexts and comm.bcast(late or not math.isfinite(totals[name])):
                solvers.pop(name).destroy()
                seconds[name][step + 1 :] = math.inf
            elif not math.isfinite(totals[name]):
                raise RuntimeError(f"{name} has not solved step {step}")
    for ksp in solvers.values():
        ksp.destroy()
    return seconds, learner


def _oracle(seconds: Mapping[str, "np.typing.NDArray[np.float64]"]) -> float:
    """Return the seconds of whoever knows the best fixed arm of each step."""
    fixed = [values for name, values in seconds.items() if name not in ("rule", "learning")]
    return float(np.sum(np.min(fixed, axis=0)))


def _fixed(A: PETSc.Mat, options: Options) -> PETSc.KSP:
    database, prefix = PETSc.Options(), "pdeopt_bench_"
    ksp = PETSc.KSP().create(A.getComm())
    ksp.setOptionsPrefix(prefix)
    for name, value in options.items():
        database[prefix + name] = value
    ksp.setOperators(A)
    ksp.setNormType(PETSc.KSP.NormType.UNPRECONDITIONED)
    ksp.setTolerances(rtol=RTOL, max_it=MAX_IT)
    if options["ksp_type"] != "cg":
        ksp.setPCSide(PETSc.PC.Side.RIGHT)
    ksp.setFromOptions()
    ksp.setUp()  # nested objects read their options now
    for name in options:
        database.delValue(prefix + name)
    return ksp


def _automatic(A: PETSc.Mat, context: AutoKSP) -> PETSc.KSP:
    ksp = PETSc.KSP().create(A.getComm())
    ksp.setOperators(A)
    ksp.setType(PETSc.KSP.Type.PYTHON)
    ksp.setPythonContext(context)
    ksp.setTolerances(rtol=RTOL, max_it=MAX_IT)
    return ksp


def _timed(ksp: PETSc.KSP, A: PETSc.Mat, b: PETSc.Vec, comm: MPI.Comm) -> float:
    """Return the seconds of a solve with zero initial guess, infinite if its true residual misses the tolerance."""
    x, r = b.duplicate(), b.duplicate()
    comm.barrier()
    began = time.perf_counter()
    ksp.solve(b, x)
    elapsed = time.perf_counter() - began
    A.mult(x, r)
    r.aypx(-1.0, b)
    good = r.norm() <= 3.0 * RTOL * b.norm()
    for handle in (x, r):
        handle.destroy()
    return float(comm.allreduce(elapsed, MPI.MAX)) if good else math.inf
