"""Line 4: unseen systems, multigrid proposing and a classical solver behind it; and what bad proposals cost.

No network ships, so nothing has been trained: where a solve is cheaper than GAMG's, the first one breaks even.
"""

import collections
import math
import statistics
from collections.abc import Callable
from typing import Any

from petsc4py import PETSc

import numpy as np

from pdeopt.bench.harness import say
from pdeopt.bench.linear_arms import GAMG
from pdeopt.bench.linear_bodies import BODIES, multigrid, solver
from pdeopt.bench.linear_families import FAMILIES
from pdeopt.bench.linear_outcome import MAX_IT, RTOL, Outcome
from pdeopt.bench.linear_unseen import UnseenSystem, batches
from pdeopt.bench.linear_worker import timed_ksp_solve, timed_solve
from pdeopt.bench.study import Study
from pdeopt.conjugate_directions import DeepConjugateDirections
from pdeopt.parallel import random_stream

_TRAINING = 0.0  # seconds
_LIMIT = 10_000  # iterations, PETSc's own limit: the last that stands behind the proposals is a factorisation


def measure(study: Study, quick: bool) -> None:
    """Solve unseen systems, then systems with spoilt proposals. Collective: one rank only."""
    _warm_up(study)
    _unseen(study, 18 if quick else 1000, 1 if quick else 20, 300 if quick else 20_000)
    _spoilt(study, 2 if quick else 10, 16 if quick else 128)


def _warm_up(study: Study) -> None:
    """Load libraries and compile kernels, which a process does once."""
    case = FAMILIES["square, anisotropy"].case(study.comm, 8, study.settings.seed)
    for body in ("auto", *BODIES):
        _propose(case.A, case.b, multigrid(body, case.coordinates))
    timed_solve(case.A, case.b, GAMG["default"], RTOL, MAX_IT)
    case.destroy()


def _unseen(study: Study, systems: int, batch: int, most: int) -> None:
    """Solve by directions from multigrid and by GAMG, add a row for each kind of system, and the claims."""
    say(study.comm, f"  {systems} unseen systems")
    found = collections.defaultdict[tuple[str, str], list[tuple[Outcome, Outcome, str]]](list)
    for system in batches(study.comm, systems, study.settings.seed, batch, most):
        context = multigrid("auto", system.coordinates)
        own, why = _propose(system.A, system.b, context)
        classical = Outcome.of_record("GAMG", timed_solve(system.A, system.b, GAMG["default"], RTOL, MAX_IT))
        found[system.shape.label, system.kind].append((own, classical, why))
        if why or not own.solved:
            study.row("unseen systems, fallbacks and failures", {**_label(system), **own.row(), "why": why})
    everything = [entry for entries in found.values() for entry in entries]
    for (shape, kind), entries in found.items():
        study.row("unseen systems", {"domain": shape, "coefficients": kind, **_summary(entries)})
    study.row("unseen systems", {"domain": "all", "coefficients": "all", **_summary(everything)})
    alone = sum(own.solved and not why for own, _, why in everything) / len(everything)
    study.target("4a", "unseen systems solved without fallback, share", alone, 0.97, at_least=True)
    solved = sum(own.solved for own, _, _ in everything) / len(everything)
    study.target("4b", "unseen systems that reach the true 1e-8, share", solved, 1.0, at_least=True)
    ratio = float(_summary(everything)["total over GAMG, median"])
    study.target("4e", "unseen systems, total over GAMG's, median", ratio, 1.0)


def _label(system: UnseenSystem) -> dict[str, str | int]:
    return {"domain": system.shape.label, "coefficients": system.kind, "unknowns": system.A.getSize()[0]}


def _summary(entries: list[tuple[Outcome, Outcome, str]]) -> dict[str, float | int | str]:
    """Return the columns for the systems of a kind."""
    ratios = [own.total_cpu / classical.total_cpu for own, classical, _ in entries if classical.solved]
    ratio = statistics.median(ratios) if ratios else math.nan
    return {
        "systems": len(entries),
        "solved": sum(own.solved for own, _, _ in entries),
        "without fallback": sum(own.solved and not why for own, _, why in entries),
        "solved by GAMG": sum(classical.solved for _, classical, _ in entries),
        "iterations": statistics.median(own.iterations for own, _, _ in entries),
        "GAMG's iterations": statistics.median(classical.iterations for _, classical, _ in entries),
        "worst true residual": max(own.residual for own, _, _ in entries),
        "total over GAMG, median": ratio,
        "worst decile": float(np.quantile(ratios, 0.9)) if ratios else math.nan,
        "training [s]": _TRAINING,
        "break-even solves": "1" if ratio < 1.0 else "never",
    }


def _propose(A: PETSc.Mat, b: PETSc.Vec, context: Any) -> tuple[Outcome, str]:
    """Solve by directions from a preconditioner; return the outcome and why the fallback took over, if it did."""
    loop = DeepConjugateDirections()
    ksp = solver(A, context, loop)
    outcome = Outcome.of_record("directions: multigrid", timed_ksp_solve(ksp, b, RTOL, _LIMIT))
    why = "; ".join(loop.fallbacks)
    ksp.destroy()
    return outcome, why


class _Spoilt:
    """Proposals that are bad from some application on; ``bad`` changes what multigrid has proposed."""

    def __init__(self, context: Any, bad: Callable[[PETSc.Vec], None], after: int) -> None:
        self._context, self._bad, self._left = context, bad, after

    def setUp(self, pc: PETSc.PC) -> None:
        self._context.setUp(pc)

    def apply(self, pc: PETSc.PC, x: PETSc.Vec, y: PETSc.Vec) -> None:
        self._context.apply(pc, x, y)
        if self._left <= 0:
            self._bad(y)
        self._left -= 1


def _spoilt(study: Study, systems: int, size: int) -> None:
    """Compare solves with spoilt proposals, the fallback's included, with GAMG alone."""
    say(study.comm, f"  spoilt proposals, {size} cells along a side")
    ratios: list[float] = []
    for name, (after, spoil) in _SPOILERS.items():
        costs, residuals, reasons = [], [], collections.Counter[str]()
        for seed in range(systems):
            family = ("square, lognormal", "square, checker")[seed % 2]
            case = FAMILIES[family].case(study.comm, size, study.settings.seed + seed)
            stream = random_stream("bench.linear_systems.spoilt", seed)
            context = _Spoilt(multigrid("grid", case.coordinates), lambda y, s=stream, f=spoil: f(y, s), after)  # type: ignore[misc]
            own, why = _propose(case.A, case.b, context)
            classical = Outcome.of_record("GAMG", timed_solve(case.A, case.b, GAMG["default"], RTOL, MAX_IT))
            costs.append(own.total_cpu / classical.total_cpu)
            residuals.append(own.residual)
            reasons[why or "none"] += 1
            case.destroy()
        ratios.extend(costs)
        study.row("spoilt proposals", {
            "proposals": name, "systems": systems, "fallback": reasons.most_common(1)[0][0],
            "total over GAMG, median": statistics.median(costs), "worst": max(costs),
            "worst true residual": max(residuals),
        })  # fmt: skip
    claim = "spoilt proposals: total with the fallback over GAMG alone"
    study.target("4c", f"{claim}, median", statistics.median(ratios), 1.3)
    study.target("4d", f"{claim}, worst", max(ratios), 2.0)


def _not_a_number(y: PETSc.Vec, stream: np.random.Generator) -> None:
    y.array_w[0] = np.nan


def _noise(y: PETSc.Vec, stream: np.random.Generator) -> None:
    y.array_w[:] = stream.standard_normal(y.getLocalSize())


def _turned(y: PETSc.Vec, stream: np.random.Generator) -> None:
    y.array_w[:] = np.roll(y.array_r, 1)


_SPOILERS: dict[str, tuple[int, Callable[[PETSc.Vec, np.random.Generator], None]]] = {
    "NaN at once": (0, _not_a_number),
    "NaN after 3": (3, _not_a_number),
    "noise": (0, _noise),
    "every entry its neighbour's": (0, _turned),
}
"""After how many good applications, and what then."""
