"""Saddle points and elasticity: iterations over meshes and Reynolds numbers, and on several ranks."""

import importlib
import math

from pdeopt.bench.harness import Row
from pdeopt.bench.study import Study, number

_CASES = "pdeopt.bench.saddle_cases"
_GROWTH = 0.3
_TABLE = "Saddle points: iterations from 1e4 to 3e5 unknowns"


def measure(study: Study, quick: bool) -> None:
    """Fill the rows and targets of Stokes, Navier-Stokes, elasticity, mixed Poisson and ranks. Collective: yes."""
    _linear(study, quick)
    _navier_stokes(study, quick)
    if not quick:
        _methods(study)
    _ranks(study, quick)


def _run(study: Study, quick: bool, function: str, ranks: int, **arguments: object) -> Row:
    """Run a case in processes of its own, or, in the quick variant, in this one. Collective: yes."""
    if quick and ranks == 1:
        return dict(getattr(importlib.import_module(_CASES), function)(study.comm, **arguments))
    return study.case(f"{_CASES}:{function}", ranks, **arguments)


def _growth(counts: list[float]) -> float:
    """Return by how much the largest count exceeds that of the coarsest mesh, as a share of it."""
    return max(counts) / counts[0] - 1.0 if all(math.isfinite(count) for count in counts) else math.nan


def _linear(study: Study, quick: bool) -> None:
    plan: list[tuple[str, str, str, dict[str, object], tuple[int, ...]]] = [
        ("3d", "Stokes", "stokes", {}, (33, 105, 182)),
        ("3f", "elasticity, nu = 0.3, quadratic", "displacement", {}, (35, 112, 194)),
        ("3f", "elasticity, nu = 0.3, linear", "displacement", {"degree": 1}, (70, 224, 388)),
        ("3g", "elasticity, nu = 0.499, mixed", "mixed_displacement", {}, (33, 105, 182)),
        ("3h", "mixed Poisson, RT1 x DG0", "mixed_poisson", {}, (45, 142, 245)),
        ("3h", "mixed Poisson, RT2 x DG1", "mixed_poisson", {"degree": 2}, (25, 79, 137)),
    ]
    claims = {
        "3d": "Stokes iterations, growth over meshes",
        "3f": "elasticity, nu = 0.3, iterations, growth over meshes",
        "3g": "elasticity, nu = 0.499, iterations, growth over meshes",
        "3h": "mixed Poisson, iterations, growth over meshes",
    }
    growth: dict[str, list[float]] = {identifier: [] for identifier in claims}
    for identifier, name, function, arguments, meshes in plan:
        counts = []
        for cells in (16, 32) if quick else meshes:
            row = _run(study, quick, function, 1, cells=cells, **arguments)
            study.row(_TABLE, {"problem": name, "n": cells, **row})
            counts.append(number(row, "iterations"))
        growth[identifier].append(_growth(counts))
    for identifier, claim in claims.items():
        worst = max(growth[identifier]) if all(map(math.isfinite, growth[identifier])) else math.nan
        study.target(identifier, claim, worst, _GROWTH)


def _navier_stokes(study: Study, quick: bool) -> None:
    meshes = (12, 24) if quick else (33, 105, 182)
    worst = []
    for flow in ("step",) if quick else ("cavity", "step"):
        smallest, largest = math.inf, 0.0
        for reynolds in (100.0,) if quick else (1.0, 10.0, 100.0, 200.0):
            row = _run(
                study, quick, "navier_stokes", 1 if quick else 2, flow=flow, reynolds=reynolds, meshes=meshes,
                start=8 if quick else 16,
            )  # fmt: skip
            counts = [number(row, f"iterations {cells}") for cells in meshes]
            for cells in meshes:
                _flow_row(study, "Navier-Stokes, PCD: mean iterations of a Newton step", flow, reynolds, cells, row)
            worst.append(_growth(counts))
            smallest, largest = min(smallest, *counts), max(largest, *counts)
        study.row("Navier-Stokes, PCD: growth with the Reynolds number", {
            "flow": flow, "fewest": smallest, "most": largest, "ratio": largest / smallest,
        })  # fmt: skip
    value = max(worst) if all(map(math.isfinite, worst)) else math.nan
    study.target("3e", "Navier-Stokes iterations a Newton step, growth over meshes, worst flow and Re", value, _GROWTH)


def _flow_row(study: Study, table: str, flow: str, reynolds: float, cells: int, row: Row) -> None:
    names = ("unknowns", "Newton steps", "iterations", "seconds")
    columns: Row = {name: row.get(f"{name} {cells}") for name in names}
    study.row(table, {"flow": flow, "Re": reynolds, "n": cells, **columns, "ranks": row.get("ranks")})


def _methods(study: Study) -> None:
    """Put the iterations of the other preconditioners beside those of PCD."""
    for method in ("pcd", "lsc", "augmented_lagrangian"):
        row = study.case(
            f"{_CASES}:navier_stokes", 2, flow="cavity", reynolds=100.0, meshes=(33, 66), method=method, start=16
        )
        for cells in (33, 66):
            columns: Row = {name: row.get(f"{name} {cells}") for name in ("unknowns", "iterations", "seconds")}
            study.row("Navier-Stokes, cavity, Re = 100: methods", {"method": method, "n": cells, **columns})


def _ranks(study: Study, quick: bool) -> None:
    """Compare iterations and solutions on one rank and on two."""
    plan: list[tuple[str, dict[str, object]]] = [
        ("navier_stokes", {"flow": "step", "reynolds": 100.0, "meshes": (12 if quick else 33,), "start": 8})
    ]
    if not quick:
        plan += [("stokes", {"cells": 33}), ("displacement", {"cells": 33})]
        plan += [("mixed_displacement", {"cells": 33}), ("mixed_poisson", {"cells": 45})]
    excess, apart = 0.0, 0.0
    for function, arguments in plan:
        rows = [_run(study, quick, function, ranks, **arguments) for ranks in (1, 2)]
        suffix = f" {arguments['meshes'][0]}" if "meshes" in arguments else ""  # type: ignore[index]
        counts = [number(row, f"iterations{suffix}") for row in rows]
        sizes = [number(row, f"size{suffix}") for row in rows]
        difference = abs(sizes[0] - sizes[1]) / sizes[0]
        study.row("Saddle points on one rank and on two", {
            "problem": function, "iterations, 1 rank": counts[0], "2 ranks": counts[1], "difference": difference,
        })  # fmt: skip
        excess = max(excess, abs(counts[0] - counts[1]) / max(2.0, 0.1 * counts[0]))
        apart = max(apart, difference)
    study.target("3i", "iterations on 1 and 2 ranks, difference over max(2, 10 %)", excess, 1.0)
    study.target("3i'", "solutions on 1 and 2 ranks, relative difference of their norms", apart, 1e-6)
