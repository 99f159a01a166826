"""Classical solvers of the wheel's PETSc that stand against learned ones, each with the settings that are swept."""

import functools
from collections.abc import Callable, Mapping

from petsc4py import PETSc

from pdeopt.bench.linear_families import LinearCase
from pdeopt.bench.linear_outcome import MAX_IT, RTOL, Options, Outcome
from pdeopt.bench.linear_python import pyamg_arms, sine_transform
from pdeopt.bench.linear_worker import timed_solve

type Arm = Callable[[LinearCase], Outcome]

_RCM = {"pc_factor_mat_ordering_type": "rcm"}
_SHIFT = {"pc_factor_shift_type": "positive_definite"}  # an incomplete factor of an SPD matrix may meet a pivot <= 0
_SOR = {"mg_levels_ksp_type": "richardson", "mg_levels_pc_type": "sor"}
_CHEBYSHEV_SOR = {"mg_levels_ksp_type": "chebyshev", "mg_levels_pc_type": "sor"}
_UNSMOOTHED = {"pc_gamg_agg_nsmooths": "0"}
_OMEGAS = ("1", "1.4", "1.6", "1.7", "1.8", "1.9", "1.95")


def _gamg(threshold: str = "", aggressive: str = "", **options: str) -> Options:
    found = {"ksp_type": "cg", "pc_type": "gamg", **options}
    if threshold:
        found["pc_gamg_threshold"] = threshold
    if aggressive:
        found["pc_gamg_aggressive_coarsening"] = aggressive
    return found


GAMG: Mapping[str, Options] = {
    "default": _gamg(),
    "threshold 0.02": _gamg("0.02"),
    "threshold 0.05": _gamg("0.05"),
    "SOR": _gamg(**_SOR),
    "threshold 0.02, SOR": _gamg("0.02", **_SOR),
    "threshold 0.05, SOR": _gamg("0.05", **_SOR),
    "threshold 0.1, SOR": _gamg("0.1", **_SOR),
    "threshold 0.05 halved, aggressive 2, SOR": _gamg("0.05", "2", pc_gamg_threshold_scale="0.5", **_SOR),
    "aggressive 0": _gamg(aggressive="0"),
    "aggressive 0, SOR": _gamg(aggressive="0", **_SOR),
    "threshold 0.05, aggressive 0, SOR": _gamg("0.05", "0", **_SOR),
    "threshold 0.02, Chebyshev 3": _gamg("0.02", mg_levels_ksp_max_it="3"),
    "threshold 0.02, Chebyshev SOR": _gamg("0.02", **_CHEBYSHEV_SOR),
    "SOR 1": _gamg(mg_levels_ksp_max_it="1", **_SOR),
    "threshold 0.02, SOR 1": _gamg("0.02", mg_levels_ksp_max_it="1", **_SOR),
    "threshold 0.05, aggressive 2, SOR, unsmoothed": _gamg("0.05", "2", **_UNSMOOTHED, **_SOR),
    "threshold 0.05, aggressive 1, unsmoothed": _gamg("0.05", "1", **_UNSMOOTHED),
    "threshold 0.05 halved, aggressive 2": _gamg("0.05", "2", pc_gamg_threshold_scale="0.5"),
    "classical": _gamg(pc_gamg_type="classical"),
    "classical, SOR": _gamg(pc_gamg_type="classical", **_SOR),
}
"""Aggregation, unless it says classical; two steps of Chebyshev with Jacobi, or two sweeps of SOR, unless it says 1."""


def _incomplete(kind: str, levels: int) -> Options:
    return {"ksp_type": "cg", "pc_type": kind, "pc_factor_levels": str(levels), **_RCM, **_SHIFT}


_MUMPS = {"ksp_type": "cg", "pc_type": "cholesky", "pc_factor_mat_solver_type": "mumps"}


def _of_blocks(options: Options) -> Options:
    """Return incomplete factors of each rank's own block: the factors themselves exist on one rank only."""
    return {"ksp_type": "cg", "pc_type": "bjacobi"} | {
        f"sub_{name}": value for name, value in options.items() if name != "ksp_type"
    }


def petsc_arms(dimension: int) -> Mapping[str, Options]:
    """Return the settings by name for a problem in the plane or in space, on one rank. Collective: no."""
    levels = range(5) if dimension == 2 else range(3)
    return {
        **{f"GAMG: {name}": options for name, options in GAMG.items()},
        **{f"ICC: {level}": _incomplete("icc", level) for level in levels},
        **{f"ILU: {level}": _incomplete("ilu", level) for level in levels[1:4]},
        "Jacobi: CG": {"ksp_type": "cg", "pc_type": "jacobi"},
        **{f"SSOR: {omega}": {"ksp_type": "cg", "pc_type": "sor", "pc_sor_omega": omega} for omega in _OMEGAS},
        **{
            f"Eisenstat: {omega}": {"ksp_type": "cg", "pc_type": "eisenstat", "pc_eisenstat_omega": omega}
            for omega in _OMEGAS
        },
        "MUMPS: Cholesky": _MUMPS,
        "MUMPS: LDLT": _MUMPS,
    }


def solve_by_options(case: LinearCase, arm: str, options: Options) -> Outcome:
    """Solve a system by PETSc with these options, from 0 to the true relative residual `RTOL`. Collective: yes."""
    # MUMPS factors as L L^T what is flagged as positive definite, else as L D L^T.
    case.A.setOption(PETSc.Mat.Option.SPD, arm != "MUMPS: LDLT")
    try:
        return Outcome.of_record(arm, timed_solve(case.A, case.b, options, RTOL, MAX_IT))
    except PETSc.Error as error:
        return Outcome(arm, failed=f"PETSc's error {error.ierr}")
    finally:
        case.A.setOption(PETSc.Mat.Option.SPD, True)


def own_arms(case: LinearCase, dimension: int) -> Mapping[str, Arm]:
    """Return all solvers that run in this process, by name.

    On several ranks incomplete factors are those of the ranks' own blocks, and Eisenstat's way, PyAMG and the sine
    transform, which work on one, are missing.

    Collective: no.
    """
    serial = case.comm.size == 1
    arms: dict[str, Arm] = {}
    for name, options in petsc_arms(dimension).items():
        kind = name.partition(":")[0]
        # SOR on a coarse matrix with empty blocks gives NaN or ends the process (PETSc 3.25).
        if case.A.getBlockSize() > 1 and "aggressive 0" in name and "SOR" in name:
            continue
        # Eisenstat's way ends the process on blocks of unknowns (PETSc 3.25).
        if kind != "Eisenstat" or (serial and case.A.getBlockSize() == 1):
            blocks = not serial and kind in ("ICC", "ILU")
            arms[name] = functools.partial(
                solve_by_options, arm=name, options=_of_blocks(options) if blocks else options
            )
    if serial:
        arms |= pyamg_arms(case.A.getBlockSize() > 1)
        if case.family in ("square, constant", "cube, constant"):
            arms["Sine transform: SciPy"] = sine_transform
    return arms
