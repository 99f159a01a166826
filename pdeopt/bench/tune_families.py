"""Families of matrices: the first-solve rule and its reuse beside defaults and the best of a sweep."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from mpi4py import MPI
from petsc4py import PETSc

import dolfinx
import dolfinx.fem.petsc
import numpy as np
import ufl
from dolfinx import fem

from pdeopt import problems
from pdeopt.bench.harness import Timing, paired_times, ratio, say
from pdeopt.bench.study import Study
from pdeopt.problems.linear import LinearModelProblem, Mesh, dirichlet_condition, fixed_measure
from pdeopt.relaxation.automatic import AutoKSP

# Relative true residual of every solve; arms that miss it by more than a factor of three do not count.
RTOL = 1e-8
MAX_IT = 1000

type Options = dict[str, str]
type System = tuple[PETSc.Mat, PETSc.Vec]

_RCM = {"pc_factor_mat_ordering_type": "rcm"}
_SOR_SMOOTHER = {"mg_levels_ksp_type": "richardson", "mg_levels_pc_type": "sor"}
_MUMPS = {"pc_factor_mat_solver_type": "mumps"}
_FACTORS: dict[str, Options] = {
    "LU by MUMPS": {"ksp_type": "fgmres", "pc_type": "lu", **_MUMPS},
    "Cholesky by MUMPS": {"ksp_type": "fgmres", "pc_type": "cholesky", **_MUMPS},
}


def _cg(**options: str) -> Options:
    return {"ksp_type": "cg", **options}


SYMMETRIC: dict[str, Options] = {
    "default GAMG": _cg(pc_type="gamg"),
    **_FACTORS,
    "ICC(0)": _cg(pc_type="icc"),
    "ICC(2)": _cg(pc_type="icc", pc_factor_levels="2", **_RCM),
    "ICC(3)": _cg(pc_type="icc", pc_factor_levels="3", **_RCM),
    "SSOR(1.7)": _cg(pc_type="sor", pc_sor_omega="1.7"),
    "GAMG, threshold 0.05": _cg(pc_type="gamg", pc_gamg_threshold="0.05"),
    "GAMG, threshold 0.05, SOR": _cg(pc_type="gamg", pc_gamg_threshold="0.05", **_SOR_SMOOTHER),
}
_UNSMOOTHED = {"pc_type": "gamg", "pc_gamg_agg_nsmooths": "0", "pc_gamg_threshold": "0.05"}
ELASTIC: dict[str, Options] = {
    "default GAMG": _cg(pc_type="gamg"),
    **_FACTORS,
    "ICC(0)": _cg(pc_type="icc"),
    "ICC(1)": _cg(pc_type="icc", pc_factor_levels="1", **_RCM),
    "Jacobi": _cg(pc_type="jacobi"),
    "GAMG, aggressive": _cg(pc_type="gamg", pc_gamg_threshold="0.02", pc_gamg_aggressive_coarsening="2"),
    "GAMG, unsmoothed, SOR": _cg(**_UNSMOOTHED, pc_gamg_aggressive_coarsening="2", **_SOR_SMOOTHER),
    "GAMG, unsmoothed": _cg(**_UNSMOOTHED, pc_gamg_aggressive_coarsening="1"),
}
UNSYMMETRIC: dict[str, Options] = {
    "default GAMG": {"ksp_type": "gmres", "pc_type": "gamg"},
    "LU by MUMPS": _FACTORS["LU by MUMPS"],
    "BiCGStab + ILU(0)": {"ksp_type": "bcgs", "pc_type": "ilu"},
    "BiCGStab + ILU(1)": {"ksp_type": "bcgs", "pc_type": "ilu", "pc_factor_levels": "1"},
    "BiCGStab + ILU(2), RCM": {"ksp_type": "bcgs", "pc_type": "ilu", "pc_factor_levels": "2", **_RCM},
    "GMRES + ILU(1)": {"ksp_type": "gmres", "pc_type": "ilu", "pc_factor_levels": "1", "ksp_gmres_restart": "60"},
    "BiCGStab + Jacobi": {"ksp_type": "bcgs", "pc_type": "jacobi"},
    "BiCGStab + SOR": {"ksp_type": "bcgs", "pc_type": "sor"},
}


def measure(study: Study, quick: bool) -> None:
    """Lines 2 and 4: first solves of families of matrices, then sequences of matrices. Collective: yes."""
    _first_solves(study, quick)
    _sequences(study, quick)


def _first_solves(study: Study, quick: bool) -> None:
    found = {name: first_solve(study, name, *case) for name, case in _families(study, quick).items()}
    plane = [first.over_gamg for name, first in found.items() if "2D" in name and "convection" not in name]
    elastic = [first.over_gamg for name, first in found.items() if "elasticity" in name]
    shares = [min(first.share, 1.0) for first in found.values()]
    worst = min(first.over_lu for first in found.values())
    study.target("2a", "rule's gain over the best arm's, geometric mean", mean(shares), 0.75, at_least=True)
    study.target("2b", "2D scalar: default GAMG over the rule, geometric mean", mean(plane), 1.8, at_least=True)
    study.target("2c", "3D elasticity: default GAMG over the rule", mean(elastic), 2.5, at_least=True)
    study.target("2e", "LU by MUMPS over the rule, worst family", worst, 0.95, at_least=True)


class FirstSolve(NamedTuple):
    """Seconds of the best arm, default GAMG and LU by MUMPS over those of the rule; NaN for what has not solved."""

    share: float
    over_gamg: float
    over_lu: float


def first_solve(
    study: Study,
    name: str,
    problem: LinearModelProblem,
    arms: Mapping[str, Options],
    table: str = "First solve, set-up included",
) -> FirstSolve:
    """Solve a system by each arm and by the rule, and add a row. Collective: yes."""
    say(study.comm, f"  {name}")
    system = problem.assemble()
    rule = AutoKSP()
    calls: dict[str, Callable[[], float]] = {
        arm: _solver([system], options, study.comm) for arm, options in arms.items()
    }
    calls["rule"] = _solver([system], None, study.comm, rule)
    timings = paired_times(calls, 1 if study.settings.quick else study.settings.repeat, study.comm)
    solved = {arm: timing for arm, timing in timings.items() if timing.result <= 3.0 * RTOL}
    if "rule" not in solved:
        raise RuntimeError(f"{name}: the rule ended at a residual of {timings['rule'].result}")
    oracle = min((arm for arm in solved if arm != "rule"), key=lambda arm: solved[arm].median)
    first = FirstSolve(
        ratio(solved[oracle], solved["rule"]), _ratio(solved, "default GAMG"), _ratio(solved, "LU by MUMPS")
    )
    study.row(
        table,
        {
            "family": name,
            "unknowns": system[0].getSize()[0],
            "default GAMG [s]": solved["default GAMG"].median if "default GAMG" in solved else None,
            "LU by MUMPS [s]": solved["LU by MUMPS"].median if "LU by MUMPS" in solved else None,
            "rule [s]": timings["rule"].median,
            "rule spread [s]": timings["rule"].interquartile_range,
            "chosen": rule.report.method,
            "best arm": oracle,
            "best arm [s]": solved[oracle].median,
            "best / rule": first.share,
            "GAMG / rule": first.over_gamg,
            "LU / rule": first.over_lu,
            "arms solved": f"{len(solved) - 1} of {len(arms)}",
        },
    )
    for handle in system:
        handle.destroy()
    return first


def _sequences(study: Study, quick: bool) -> None:
    ratios = []
    for name, (systems, krylov) in _sequence_families(study, quick).items():
        say(study.comm, f"  {name}")
        rule = AutoKSP()
        kept: Options = {"ksp_type": krylov, "pc_type": "gamg", "pc_gamg_reuse_interpolation": "1"}
        incomplete = (
            {"ksp_type": "bcgs", "pc_type": "ilu"} if krylov == "gmres" else {"ksp_type": "cg", "pc_type": "icc"}
        )
        calls: dict[str, Callable[[], float]] = {
            "GAMG, fresh": _solver(systems, {"ksp_type": krylov, "pc_type": "gamg"}, study.comm, fresh=True),
            "GAMG, interpolation kept": _solver(systems, kept, study.comm),
            "LU by MUMPS, analysis kept": _solver(systems, _FACTORS["LU by MUMPS"], study.comm),
            "incomplete factors": _solver(systems, incomplete | {"pc_factor_levels": "2", **_RCM}, study.comm),
            "rule": _solver(systems, None, study.comm, rule),
        }
        timings = paired_times(calls, 1 if quick else study.settings.repeat, study.comm)
        solved = {arm: timing for arm, timing in timings.items() if timing.result <= 3.0 * RTOL}
        if "rule" not in solved:
            raise RuntimeError(f"{name}: the rule ended at a residual of {timings['rule'].result}")
        found = ratio(timings["rule"], timings["GAMG, fresh"])
        ratios.append(found)
        study.row(
            "Sequences of matrices in one pattern, seconds in all",
            {
                "sequence": name,
                "matrices": len(systems),
                **{f"{arm} [s]": timings[arm].median if arm in solved else None for arm in timings},
                "rule / fresh GAMG": found,
                "kept (unchanged/scaled/lagged)": "/".join(str(count) for count in rule.reused.values()),
                "set up (new/updated)": "/".join(str(count) for count in rule.setups.values()),
                "last choice": rule.report.method,
            },
        )
        for system in systems:
            for handle in system:
                handle.destroy()
    study.target("2d", "sequences: the rule with reuse over fresh GAMG, geometric mean", mean(ratios), 0.6)


# --- families ---------------------------------------------------------------------------------------------------------


def _families(study: Study, quick: bool) -> Mapping[str, tuple[LinearModelProblem, dict[str, Options]]]:
    seed, comm = study.settings.seed, study.comm
    fine = square(comm, 44 if quick else 220)
    coarse = square(comm, 22 if quick else 110)
    cells = 12 if quick else 32
    cube = dolfinx.mesh.create_unit_cube(comm, cells, cells, cells)
    rod = bar(comm, 5 if quick else 13)
    lognormal = problems.lognormal_diffusion
    return {
        "lognormal, 2D": (lognormal(fine, sigma=2.0, seed=seed), SYMMETRIC),
        "lognormal, 2D, quadratic": (
            lognormal(coarse, sigma=1.0, seed=seed, degree=2),
            SYMMETRIC,
        ),
        "checkerboard, 2D": (problems.checkerboard_diffusion(fine, contrast=1e6), SYMMETRIC),
        "rotated anisotropy, 2D": (problems.anisotropic_diffusion(fine, ratio=1e-3), SYMMETRIC),
        "Poisson, 3D": (problems.poisson(cube), SYMMETRIC),
        "lognormal, 3D": (lognormal(cube, sigma=2.0, correlation_length=0.3, seed=seed), SYMMETRIC),
        "elasticity, 3D bar": (problems.linear_elasticity(rod, clamped=at_left), ELASTIC),
        "convection-diffusion, 2D": (problems.convection_diffusion(fine, 1e-3, supg=True), UNSYMMETRIC),
        "convection-diffusion, 3D": (problems.convection_diffusion(cube, 1e-2, supg=True), UNSYMMETRIC),
    }


def square(comm: MPI.Comm, cells: int) -> Mesh:
    """Return a mesh of the unit square. Collective: yes."""
    return dolfinx.mesh.create_unit_square(comm, cells, cells)


def bar(comm: MPI.Comm, cells: int) -> Mesh:
    """Return a mesh of a bar, four times as long as wide. Collective: yes."""
    return dolfinx.mesh.create_box(comm, [[0.0, 0.0, 0.0], [4.0, 1.0, 1.0]], [4 * cells, cells, cells])


def at_left(x: "np.typing.NDArray[np.float64]") -> "np.typing.NDArray[np.bool_]":
    """Return which points lie on the left end. Collective: no."""
    return np.isclose(x[0], 0.0)


def _sequence_families(study: Study, quick: bool) -> Mapping[str, tuple[list[System], str]]:
    mesh = square(study.comm, 32 if quick else 200)
    loads = (1.0, 5.0) if quick else (1.0, 3.0, 10.0, 30.0)
    constant = problems.poisson(mesh)
    steps = 6 if quick else 15
    return {
        "nonlinear diffusion, fixed point": (nonlinear_diffusion(mesh, loads, newton=False), "cg"),
        "nonlinear diffusion, Newton": (nonlinear_diffusion(mesh, loads, newton=True), "gmres"),
        "time steps, assembled each time": ([constant.assemble() for _ in range(steps)], "cg"),
    }


def nonlinear_diffusion(mesh: Mesh, loads: Sequence[float], newton: bool) -> list[System]:
    """Return the systems of - div((1 + u^4) grad u) = load, u = 0 on the boundary, solved load after load.

    Parameters
    ----------
    mesh
        Of the plane.
    loads
        Right-hand sides; each starts from the solution of the one before.
    newton
        Whether the matrices are Newton's, which are unsymmetric but for the first, or those of the fixed-point
        iteration, which are symmetric; three of either for each load.

    Collective: yes.
    """
    space = fem.functionspace(mesh, ("Lagrange", 1))
    u, v, du = fem.Function(space), ufl.TestFunction(space), ufl.TrialFunction(space)
    load, dx = fem.Constant(mesh, 0.0), fixed_measure(space, extra=4)
    residual = (1.0 + u**4) * ufl.inner(ufl.grad(u), ufl.grad(v)) * dx - load * v * dx
    fixed_point = (1.0 + u**4) * ufl.inner(ufl.grad(du), ufl.grad(v)) * dx
    a = fem.form(ufl.derivative(residual, u, du) if newton else fixed_point)
    form = fem.form(residual)
    bcs = [dirichlet_condition(space, fem.Constant(mesh, 0.0))]
    systems: list[System] = []
    for value in loads:
        load.value = value  # type: ignore[assignment]
        for _ in range(3):
            A = fem.petsc.assemble_matrix(a, bcs)
            A.assemble()
            b = fem.petsc.assemble_vector(form)
            b.ghostUpdate(PETSc.InsertMode.ADD, PETSc.ScatterMode.REVERSE)
            fem.petsc.set_bc(b, bcs, alpha=0.0)
            A.setAttr("space", space)  # matrix and vector are dead once the space is collected
            b.setAttr("space", space)
            step = b.duplicate()
            ksp = PETSc.KSP().create(mesh.comm)
            ksp.setOperators(A)
            ksp.setType(PETSc.KSP.Type.PREONLY)
            ksp.getPC().setType(PETSc.PC.Type.LU)
            ksp.getPC().setFactorSolverType("mumps")
            ksp.solve(b, step)
            u.x.petsc_vec.axpy(-0.7, step)
            u.x.scatter_forward()
            for handle in (ksp, step):
                handle.destroy()
            systems.append((A, b))
    return systems


# --- arms -------------------------------------------------------------------------------------------------------------


def _solver(
    systems: Sequence[System],
    options: Options | None,
    comm: MPI.Comm,
    rule: AutoKSP | None = None,
    fresh: bool = False,
) -> Callable[[], float]:
    """Return a call that solves all systems with new objects, and returns the worst relative true residual.

    The systems' values are copied into one matrix, as assembly would write them.
    """
    database, prefix = PETSc.Options(), "pdeopt_bench_"

    def make(A: PETSc.Mat) -> PETSc.KSP:
        ksp = PETSc.KSP().create(comm)
        ksp.setOptionsPrefix(prefix)
        ksp.setOperators(A)
        ksp.setNormType(PETSc.KSP.NormType.UNPRECONDITIONED)
        ksp.setTolerances(rtol=RTOL, max_it=MAX_IT)
        if options is None:
            assert rule is not None
            rule.__init__()  # type: ignore[misc]
            ksp.setType(PETSc.KSP.Type.PYTHON)
            ksp.setPythonContext(rule)
        elif options["ksp_type"] != "cg":
            ksp.setPCSide(PETSc.PC.Side.RIGHT)
        ksp.setFromOptions()
        return ksp

    def call() -> float:
        for name, value in (options or {}).items():
            database[prefix + name] = value
        A = systems[0][0] if len(systems) == 1 else systems[0][0].copy()
        x, r = systems[0][1].duplicate(), systems[0][1].duplicate()
        ksp, worst = make(A), 0.0
        try:
            for number, (values, b) in enumerate(systems):
                if number:
                    values.copy(A, PETSc.Mat.Structure.SAME_NONZERO_PATTERN)
                    if fresh:
                        ksp.destroy()
                        ksp = make(A)
                ksp.solve(b, x)
                A.mult(x, r)
                r.aypx(-1.0, b)
                worst = max(worst, r.norm() / b.norm())
        except PETSc.Error:
            worst = math.inf
        finally:
            for name in options or {}:
                database.delValue(prefix + name)
            for handle in (ksp, x, r, *([] if len(systems) == 1 else [A])):
                handle.destroy()
        return worst if math.isfinite(worst) else math.inf

    return call


def _ratio(timings: Mapping[str, Timing[float]], arm: str) -> float:
    """Return the time of an arm over that of the rule; the limit of iterations costs more than is counted."""
    return ratio(timings[arm], timings["rule"]) if arm in timings else math.nan


def mean(values: Sequence[float]) -> float:
    """Return the geometric mean, NaN of nothing. Collective: no."""
    return math.exp(math.fsum(math.log(value) for value in values) / len(values)) if values else math.nan
