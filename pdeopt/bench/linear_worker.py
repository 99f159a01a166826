"""Time one linear solve, set-up and solution apart; as a script, those of a file of jobs with another PETSc.

It is run by the PETSc of a Linux distribution, too, whose Python may be older and knows nothing of pdeopt: here stand
no imports but petsc4py and no younger syntax than Python 3.11's, so that both are timed by the same code.
"""

import json
import sys
import time
from typing import Any

from petsc4py import PETSc

# How often a solver may go on from where it has stopped, if that was by a residual which was not the true one.
_RESTARTS = 4
_PREFIX = "pdeopt_rival_"


def timed_solve(A: Any, b: Any, options: dict[str, str], rtol: float, max_it: int) -> dict[str, float | int]:
    """Solve A x = b from x = 0 until the true relative residual is small enough.

    The Krylov method is asked for its unpreconditioned residual norm. Where the recursion for it has drifted, or the
    preconditioner changes the norm (Eisenstat's), it goes on from what it reached, at its own expense.

    Parameters
    ----------
    A, b
        PETSc matrix and vector.
    options
        Options of the KSP and the PC without prefix.
    rtol
        Bound of |b - A x| / |b|.
    max_it
        Iterations allowed in all.

    Returns
    -------
    record
        "setup", "solve", "setup cpu", "solve cpu" in seconds of this rank (after a barrier), "iterations", "residual"
        (true and relative), "reason" (PETSc's last).

    Collective: yes.
    """
    database = PETSc.Options()
    for name, value in options.items():
        database[_PREFIX + name] = value
    ksp = PETSc.KSP().create(A.getComm())
    try:
        ksp.setOptionsPrefix(_PREFIX)
        ksp.setOperators(A)
        ksp.setNormType(PETSc.KSP.NormType.UNPRECONDITIONED)
        return timed_ksp_solve(ksp, b, rtol, max_it)
    finally:
        ksp.destroy()
        for name in options:
            database.delValue(_PREFIX + name)


def timed_ksp_solve(ksp: Any, b: Any, rtol: float, max_it: int) -> dict[str, float | int]:
    """Set up a KSP with its operators and solve, as `timed_solve` does; its options are read as part of the set-up.

    Collective: yes.
    """
    A, x, r = ksp.getOperators()[0], b.duplicate(), b.duplicate()
    x.set(0.0)
    b_norm = b.norm()
    A.getComm().barrier()
    start = (time.perf_counter(), time.process_time())
    ksp.setTolerances(rtol=rtol, atol=0.0, max_it=max_it)
    ksp.setFromOptions()
    ksp.setUp()
    ksp.setUpOnBlocks()
    middle = (time.perf_counter(), time.process_time())
    iterations, asked, residual = 0, rtol, 1.0
    for attempt in range(_RESTARTS):
        ksp.setInitialGuessNonzero(attempt > 0)
        ksp.setTolerances(rtol=asked, max_it=max(max_it - iterations, 1))
        ksp.solve(b, x)
        iterations += ksp.getIterationNumber()
        A.mult(x, r)
        r.aypx(-1.0, b)
        residual = r.norm() / b_norm
        # A NaN is not to be cured by going on, nor is an indefinite preconditioner.
        if residual <= rtol or not residual < 1e3 or iterations >= max_it or ksp.getConvergedReason() < -3:
            break
        asked *= 0.5 * rtol / residual
    end = (time.perf_counter(), time.process_time())
    x.destroy()
    r.destroy()
    return {
        "setup": middle[0] - start[0],
        "solve": end[0] - middle[0],
        "setup cpu": middle[1] - start[1],
        "solve cpu": end[1] - middle[1],
        "iterations": iterations,
        "residual": residual,
        "reason": int(ksp.getConvergedReason()),
    }


def _load(kind: Any, path: str) -> Any:
    viewer = PETSc.Viewer().createBinary(path, "r")
    found = kind.load(viewer)
    viewer.destroy()
    return found


def _main(jobs_path: str, results_path: str) -> None:
    """Run the jobs of a file and append one line of JSON for each, so that a crash loses none that is done."""
    with open(jobs_path) as file:
        jobs = json.load(file)
    A, b = _load(PETSc.Mat(), jobs["matrix"]), _load(PETSc.Vec(), jobs["right-hand side"])
    modes = [_load(PETSc.Vec(), path) for path in jobs["near-nullspace"]]
    if modes:
        for mode in modes:
            mode.setBlockSize(A.getBlockSize())
        A.setNearNullSpace(PETSc.NullSpace().create(vectors=modes, comm=A.getComm()))
    A.setOption(PETSc.Mat.Option.SYMMETRIC, True)
    A.setOption(PETSc.Mat.Option.SPD, True)
    for arm, options in jobs["arms"].items():
        record: dict[str, Any] = {"arm": arm}
        try:
            record.update(timed_solve(A, b, options, jobs["rtol"], jobs["max_it"]))
        except PETSc.Error as error:
            record["failed"] = str(error).splitlines()[-1]
        if A.getComm().getRank() == 0:
            with open(results_path, "a") as file:
                file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2])
