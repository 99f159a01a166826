"""Optimisers at the scale of PDEs: solves beside the strongest rivals, and seconds beside IPOPT and dolfinx-adjoint."""

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

from mpi4py import MPI

import dolfinx

from pdeopt import problems
from pdeopt.bench import rivals
from pdeopt.bench.case import run_case
from pdeopt.bench.harness import Row, say
from pdeopt.bench.optimise_counts import METHODS, PROBLEMS, TOLERANCE, Certificate, count
from pdeopt.bench.optimise_full_space import ipopt_full_space
from pdeopt.bench.study import Study, number
from pdeopt.optimise import minimise
from pdeopt.parallel import on_root
from pdeopt.report import PdeoptError

ALPHA = 1e-4
TAPED_ALPHA = 1e-6  # of the problem that dolfin-adjoint's documentation solves
_LIMIT = 300.0  # seconds for IPOPT
_LIMITED = (-4, -5, -102)  # its statuses for processor time, wall time and memory
_BUILDERS: dict[str, Callable[..., problems.ManufacturedControl]] = {
    "Poisson": problems.PoissonControl,
    "semilinear": problems.SemilinearControl,
}


def run_large(study: Study) -> None:
    """Measure line 4 of what the optimiser must show. Collective: yes."""
    for name, part in (("PDE solves", _solves), ("IPOPT", _full_space), ("dolfinx-adjoint", _taped)):
        say(study.comm, f"optimise, large: {name}")
        part(study)


def _solves(study: Study) -> None:
    """Line 4a: PDE solves to a certified optimum."""
    ratios: list[float] = []
    quick = study.settings.quick
    for name, kind in PROBLEMS.items():
        if quick and name not in ("Bratu", "inversion, seen everywhere"):
            continue
        for cells in (12,) if quick else kind.meshes:
            for weight in kind.weights[:1] if quick else kind.weights:
                rows = {method: count(study.comm, name, cells, weight, method) for method in METHODS}
                for row in rows.values():
                    study.row(
                        "PDE solves to a certified KKT residual of 1e-8, nonlinear problems",
                        {"problem": name, "n": cells, "weight": weight, **row},
                    )
                ours, *others = (
                    number(rows[method], "PDE solves") if rows[method]["certified"] else math.nan
                    for method in (METHODS[0], *METHODS[2:])
                )
                best = min((other for other in others if math.isfinite(other)), default=math.inf)
                # Ours failing counts as infinitely many solves; where both rivals fail there is nothing to compare.
                if math.isfinite(best):
                    ratios.append(ours / best if math.isfinite(ours) else math.inf)
                    study.row(
                        "Ratios of PDE solves",
                        {"problem": name, "n": cells, "weight": weight, "ours / better rival": ratios[-1]},
                    )
    median = statistics.median(ratios) if ratios else math.nan
    study.target("4a", "PDE solves, ours / the better of TAO BNTR and inexact Newton-CG, median", median, 0.7)


def race(comm: MPI.Comm, problem: str, dimension: int, cells: int, method: str) -> Row:
    """Solve once, after a small problem that compiles and loads what is needed. Collective: yes.

    Seconds are those from the function spaces on, without the mesh and without the certificate.
    """
    row: Row = {}
    for size in (4, cells):
        build = _BUILDERS[problem]
        if dimension == 2:
            mesh = dolfinx.mesh.create_unit_square(comm, size, size)
        else:
            mesh = dolfinx.mesh.create_unit_cube(comm, size, size, size)
        started, worked = time.perf_counter(), time.process_time()
        case = build(mesh, alpha=ALPHA)
        if method == "pdeopt":
            report = minimise(case.problem)
            row = {"method": report.method, "iterations": report.iterations, "Krylov": report.linear_iterations}
        else:
            row = ipopt_full_space(case.problem, limit=_LIMIT) | {"method": "IPOPT, MUMPS, full space"}
        row |= {"seconds": time.perf_counter() - started, "CPU seconds": time.process_time() - worked}
        certificate = Certificate(build(mesh, alpha=ALPHA))
        row |= {"unknowns": case.problem.system.layout.global_size, "KKT residual": certificate.judge(case.problem)}
        row |= {"objective": certificate.objective, "control error": float(case.errors()["control"])}
        case.problem.destroy()
    return row


def _full_space(study: Study) -> None:
    """Lines 4b to 4d: whole calls beside IPOPT on the same discretisation, processes alternating."""
    quick = study.settings.quick
    plan: list[tuple[str | None, str, int, int, float, int]] = [
        ("4b", "Poisson", 2, 16 if quick else 256, 1.5, 5),
        ("4c", "Poisson", 3, 4 if quick else 32, 5.0, 3),
        ("4d", "Poisson", 3, 6 if quick else 48, 5.0, 1),
        (None, "semilinear", 2, 8 if quick else 256, 1.5, 3),
    ]
    if quick:
        plan = plan[:2]
    for identifier, problem, dimension, cells, bound, repeat in plan:
        times: dict[str, list[float]] = {"pdeopt": [], "ipopt": []}
        rows: dict[str, Row] = {}
        for turn in range(1 if quick else min(repeat, study.settings.repeat)):
            for method in ("pdeopt", "ipopt") if turn % 2 == 0 else ("ipopt", "pdeopt"):
                arguments = {"problem": problem, "dimension": dimension, "cells": cells, "method": method}
                rows[method] = row = _case(study, "race", arguments)
                times[method].append(number(row, "seconds"))
        medians = {method: statistics.median(values) for method, values in times.items()}
        for method, row in rows.items():
            study.row(
                "Whole calls beside IPOPT, one rank",
                {"problem": f"{problem}, {dimension}D", "n": cells, **row, "seconds": medians[method],
                 "repeats": len(times[method])},
            )  # fmt: skip
        gain = _rival_seconds(rows["ipopt"], medians["ipopt"]) / medians["pdeopt"]
        study.row("Gains over IPOPT", {"problem": f"{problem}, {dimension}D", "n": cells, "IPOPT / pdeopt": gain})
        if identifier is not None:
            claim = f"IPOPT / pdeopt, whole call, {dimension}D, n = {cells}"
            study.target(identifier, claim, gain, bound, at_least=True)


def _rival_seconds(row: Row, seconds: float) -> float:
    """Return IPOPT's seconds: at its limit of time or memory, a lower bound; after any other failure, not a number."""
    if "failed" not in row:
        return seconds
    limited = row.get("status") in _LIMITED or "did not end within" in str(row["failed"])
    return _LIMIT if limited else math.nan


def tape(comm: MPI.Comm, cells: int, method: str, alpha: float = TAPED_ALPHA) -> Row:
    """Solve the Poisson control problem twice, the first time to warm up. Collective: yes."""
    row: Row = {}
    for _ in range(2):
        worked = time.process_time()
        if method == "pdeopt":
            mesh = dolfinx.mesh.create_unit_square(comm, cells, cells)
            started = time.perf_counter()
            case = problems.PoissonControl(mesh, alpha=alpha)
            report = minimise(case.problem)
            row = {"method": report.method, "seconds": time.perf_counter() - started, "iterations": report.iterations}
            row |= {"CPU seconds": time.process_time() - worked, "converged": report.converged}
            row["control error"] = case.errors()["control"]
            case.problem.destroy()
        else:
            row = rivals.dolfinx_adjoint_lbfgsb(comm, cells, alpha, scaled=method == "scaled")
            row["CPU seconds"] = time.process_time() - worked
    return row


def _taped(study: Study) -> None:
    """Line 4e: whole calls beside dolfinx-adjoint with L-BFGS-B, as pyadjoint runs it and in better coordinates."""
    worst, scaled, apart = math.inf, math.inf, 0.0
    for cells in (8,) if study.settings.quick else (64, 128):
        alpha = ALPHA if study.settings.quick else TAPED_ALPHA
        arguments = {"cells": cells, "alpha": alpha}
        rows = {m: _case(study, "tape", arguments | {"method": m}) for m in ("pdeopt", "scaled", "unscaled")}
        for row in rows.values():
            study.row("Whole calls beside dolfinx-adjoint, L-BFGS-B, one rank", {"n": cells, **row})
        own = number(rows["pdeopt"], "seconds")
        worst = min(worst, number(rows["unscaled"], "seconds") / own)
        scaled = min(scaled, number(rows["scaled"], "seconds") / own)
        errors = [number(row, "control error") for row in rows.values()]
        apart = max(apart, max(errors) / min(errors) - 1.0)
    study.target("4e", "dolfinx-adjoint, L-BFGS-B / pdeopt, whole call", worst, 50.0, at_least=True)
    study.target("4e scaled", "the same with the control's metric given to L-BFGS-B", scaled, 50.0, at_least=True)
    study.target("4e error", "their control errors apart, relative", apart, 1e-3)


def _case(study: Study, function: str, arguments: dict[str, Any]) -> Row:
    """Run one case in a process of its own, within the limit. Collective: yes."""
    name = f"pdeopt.bench.optimise_large:{function}"
    say(study.comm, f"  {function}: {arguments}")
    try:
        if study.settings.quick:  # a launch takes seconds, more than these sizes
            row = race(MPI.COMM_SELF, **arguments) if function == "race" else tape(MPI.COMM_SELF, **arguments)
        else:
            row = on_root(study.comm, lambda: run_case(name, arguments, 1, timeout=_LIMIT + 60.0))
    except PdeoptError as error:
        say(study.comm, f"  FAILED: {error}")
        return {"method": str(arguments["method"]), "failed": str(error).splitlines()[-1][:120]}
    residual = row.get("KKT residual")
    if isinstance(residual, float) and not residual <= 10.0 * TOLERANCE:
        row["failed"] = f"KKT residual {residual:.1e}"
    return {name: value for name, value in row.items() if name not in ("ranks", "case seconds", "job seconds")}
