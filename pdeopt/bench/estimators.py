"""Dual-norm certificates: effectivities, constants, trajectories, cost, and agreement between rank counts."""

import math
from collections import defaultdict
from collections.abc import Callable
from functools import partial

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np
from dolfinx import fem

from pdeopt.bench import estimator_elliptic as elliptic
from pdeopt.bench import estimator_steps as steps
from pdeopt.bench.estimator_flows import Flow, coarse_solution, continue_to, errors
from pdeopt.bench.harness import Row, paired_times, ratio, say
from pdeopt.bench.study import Study, number
from pdeopt.fem import forms
from pdeopt.fem.estimate import (
    DualNorm,
    SolenoidalNorm,
    linearised_norm,
    noise_ratio,
    oseen_norm,
    poisson_norm,
    stokes_norm,
)  # fmt: skip
from pdeopt.parallel import random_stream

_ARMS = (
    "Poisson",
    "Stokes",
    "Oseen, coarse wind",
    "Oseen, proposal as wind",
    "linearised, coarse state",
)


def measure(study: Study, quick: bool) -> None:
    """Fill the tables and targets of the dual-norm estimators. Collective: yes."""
    for part in (_flows, _elliptic, _trajectories, _cost, _solvers, _ranks):
        say(study.comm, f"certificates: {part.__name__.strip('_')}")
        part(study, quick)


def _flows(study: Study, quick: bool) -> None:
    """4a, 4b: effectivity |.| / (nu^{1/2} |grad e|) by flow, Reynolds number, kind of error and estimator."""
    plan = [("cavity", 8, (100.0,))] if quick else [
        ("cavity", 32, (100.0, 400.0, 1000.0)), ("channel", 12, (100.0, 200.0, 400.0)),
    ]  # fmt: skip
    extremes: dict[tuple[str, str], list[float]] = defaultdict(list)
    for name, cells, numbers in plan:
        flow = Flow(study.comm, name, cells)
        for reynolds in numbers:
            exact = continue_to(flow, reynolds)
            norms, wind = _flow_norms(flow, coarse_solution(flow, reynolds))
            found: dict[str, list[list[float]]] = defaultdict(list)
            for kind, proposal in errors(flow, reynolds, study.settings.seed, quick):
                flow.set_fields(proposal)
                residual = flow.residual_vector()
                size = norms["Stokes"].error_norm(proposal - exact)
                found[kind].append([_flow_eta(flow, norms[arm], residual) / size for arm in _ARMS])
                residual.destroy()
            for kind, values in found.items():
                table = np.array(values)
                row: Row = {"flow": name, "cells": cells, "Re": reynolds, "error": kind, "cases": len(values)}
                for arm, column in zip(_ARMS, table.T, strict=True):
                    row |= {f"{arm}, min": float(column.min()), f"{arm}, max": float(column.max())}
                    extremes[name, arm] += [float(column.min()), float(column.max())]
                study.row("Effectivity in nu^{1/2} |grad e|", row)
            flow.set_fields(exact)
            for arm in ("Stokes", "Oseen, coarse wind", "linearised, coarse state"):
                constants = norms[arm].constants(flow.jacobian)
                columns: Row = {"flow": name, "cells": cells, "Re": reynolds, "estimator": arm}
                columns |= {"inf-sup (min)": constants.inf_sup, "continuity (max)": constants.continuity}
                study.row("Constants at the solution: extreme effectivities of infinitesimal errors", columns)
            for norm in norms.values():
                norm.destroy()
            del wind
    for (name, arm), reached in extremes.items():
        row = {"flow": name, "estimator": arm, "min": min(reached), "max": max(reached)}
        study.row("Effectivity over all Reynolds numbers", row | {"max / min": max(reached) / min(reached)})
    _flow_targets(study, extremes)


def _flow_targets(study: Study, extremes: dict[tuple[str, str], list[float]]) -> None:
    def values(estimator: str, *flows: str) -> list[float]:
        return [
            v for (flow, arm), found in extremes.items() if flow in flows and arm.startswith(estimator) for v in found
        ]

    oseen, channel, full = values("Oseen", "cavity"), values("Oseen", "channel"), values("linear", "cavity", "channel")
    study.target("4a", "Oseen effectivity, cavity, Re 100 to 1000, smallest", min(oseen), 0.7, at_least=True)
    study.target("4b", "Oseen effectivity, cavity, Re 100 to 1000, largest", max(oseen), 3.0)
    if channel:
        study.target("4o", "Oseen effectivity, channel, Re 100 to 400, smallest", min(channel), 0.7, at_least=True)
    study.target("4p", "linearised weight, all flows, smallest effectivity", min(full), 0.7, at_least=True)
    study.target("4q", "linearised weight, all flows, largest effectivity", max(full), 3.0)


def _flow_norms(flow: Flow, coarse: np.ndarray) -> tuple[dict[str, DualNorm], fem.Function]:
    wind = fem.Function(flow.spaces[0])
    forms.set_function(wind, coarse[: flow.space.offsets[1]])
    setting = (flow.spaces, flow.viscosity)
    norms: dict[str, DualNorm] = {
        "Poisson": poisson_norm(flow.spaces[0], flow.bcs, coefficient=flow.viscosity),
        "Stokes": stokes_norm(*setting, flow.bcs),
        "Oseen, coarse wind": oseen_norm(*setting, wind, flow.bcs),
        "Oseen, proposal as wind": oseen_norm(*setting, flow.velocity, flow.bcs),
        "linearised, coarse state": linearised_norm(*setting, wind, flow.bcs),
    }
    return norms, wind


def _flow_eta(flow: Flow, norm: DualNorm, residual: PETSc.Vec) -> float:
    if isinstance(norm, SolenoidalNorm):
        if norm.wind is flow.velocity:
            norm.update()
        return norm.norm(residual)
    velocity = norm.riesz_covector(np.zeros(flow.space.offsets[1]))
    velocity.array[:] = residual.array_r[: flow.space.offsets[1]]
    eta = norm.norm(velocity)
    velocity.destroy()
    return eta


def _elliptic(study: Study, quick: bool) -> None:
    """4c: diffusion and elasticity, against the discrete solution and, over a richer test space, the exact one."""
    worst = 1.0
    for name in elliptic.NONLINEAR:
        problem = elliptic.EllipticProblem(study.comm, name, 8 if quick else 32)
        exact = problem.solve()
        found: dict[str, list[float]] = defaultdict(list)
        for kind, proposal in problem.errors(study.settings.seed):
            forms.set_function(problem.state, proposal)
            residual = problem.norm.residual(problem.residual)
            found[kind].append(problem.norm.norm(residual) / problem.norm.error_norm(proposal - exact))
            residual.destroy()
        forms.set_function(problem.state, exact)
        constants = problem.norm.constants(problem.jacobian)
        for kind, values in found.items():
            row: Row = {"problem": name, "error": kind, "cases": len(values), "min": min(values), "max": max(values)}
            row |= {"inf-sup": constants.inf_sup, "continuity": constants.continuity}
            study.row("Effectivity in the energy norm, against the discrete solution", row)
            worst = max(worst, max(values), 1.0 / min(values))
        problem.norm.destroy()
    study.target("4c", "diffusion and elasticity: max(effectivity, 1 / effectivity)", worst, 2.0)
    farthest = 0.0
    for name in ("diffusion", "elasticity, nu = 0.3", "elasticity, nu = 0.4999"):
        for cells in (8, 16) if quick else (16, 32, 64):
            eta, error = elliptic.discretisation(study.comm, name, cells)
            row = {"problem": name, "cells": cells, "eta": eta, "error": error, "effectivity": eta / error}
            study.row("Discretisation error in the energy norm, test functions one degree higher", row)
            farthest = max(farthest, abs(eta / error - 1.0))
    study.target("4r", "richer test space: largest |effectivity - 1| of the discretisation error", farthest, 0.1)


def _trajectories(study: Study, quick: bool) -> None:
    """4d, 4e: slabs of theta schemes and BDF2 for the heat equation and the start of the cavity's flow; noise."""
    values: list[float] = []
    ratios: list[float] = []
    count = 10 if quick else 20
    schemes = [steps.Scheme("backward Euler", 0.5 / count), steps.Scheme("Crank-Nicolson", 0.5 / count, 0.5)]
    for scheme in (*schemes, steps.Scheme("BDF2", 0.5 / count)):
        heat = steps.Heat(study.comm, 8 if quick else 32, scheme)
        exact, proposals = steps.heat_errors(heat, count, study.settings.seed)
        values += _slabs(study, "heat", heat, exact, proposals)
        ratios.append(_noise(study, "heat", heat, exact))
    for reynolds in (100.0,) if quick else (100.0, 400.0):
        flow = Flow(study.comm, "cavity", 6 if quick else 16)
        for name in ("BDF2",) if quick else ("backward Euler", "BDF2"):
            count = 6 if quick else 20
            unsteady = steps.UnsteadyFlow(flow, steps.Scheme(name, 2.0 / count))
            flow.viscosity.value[...] = 1.0 / reynolds
            unsteady.norm.update()
            exact, proposals = steps.flow_errors(unsteady, count, reynolds, study.settings.seed)
            label = f"Navier-Stokes, Re = {reynolds:g}"
            values += _slabs(study, label, unsteady, exact, proposals)
            ratios.append(_noise(study, label, unsteady, exact))
    study.target("4d", "slabs: smallest effectivity", min(values), 0.7, at_least=True)
    study.target("4t", "slabs: largest effectivity", max(values), 3.0)
    study.target("4e", "random fields per time level over a converged trajectory", min(ratios), 1e6, at_least=True)
    for count in (10, 20) if quick else (10, 20, 40, 80, 160):
        heat = steps.Heat(study.comm, 8 if quick else 16, steps.Scheme("backward Euler", 0.5 / count))
        exact, proposals = steps.heat_errors(heat, count, study.settings.seed)
        _, error = steps.error_norms(heat, proposals[0][1], exact)
        energy = steps.score(heat, proposals[0][1]).total / error
        heat.norm = heat.step_norm
        step = steps.score(heat, proposals[0][1]).total / error
        row: Row = {"steps": count, "energy norm": energy, "mass / dt + stiffness": step}
        study.row("Effectivity (largest L2 and energy) as the step shrinks, heat, diffusivity 0.8", row)


def _slabs(
    study: Study, problem: str, evolution: steps.Evolution, exact: steps.Levels,
    proposals: list[tuple[str, list[steps.Field]]],
) -> list[float]:  # fmt: skip
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for kind, proposal in proposals:
        eta = steps.score(evolution, proposal).total
        with_rate, without = steps.error_norms(evolution, proposal, exact)
        found[kind].append((eta / with_rate, eta / without))
    for kind, values in found.items():
        first, second = zip(*values, strict=True)
        row: Row = {"problem": problem, "scheme": evolution.scheme.name, "error": kind, "cases": len(values)}
        row |= {
            "min": min(first),
            "max": max(first),
            "min, L2 and energy": min(second),
            "max, L2 and energy": max(second),
        }
        study.row("Effectivity of slabs: final L2, energy and dual norm of the rate; largest L2 and energy", row)
    return [value for values in found.values() for value, _ in values]


def _noise(study: Study, problem: str, evolution: steps.Evolution, exact: steps.Levels) -> float:
    generator = random_stream("certificates.trajectory noise", study.settings.seed, study.comm)
    found = noise_ratio(lambda levels: steps.score(evolution, levels).total, exact, generator, study.comm)
    row: Row = {"problem": problem, "scheme": evolution.scheme.name, "noise / converged": found}
    study.row("Noise test", row | {"eta, converged": steps.score(evolution, exact).total})
    return found


def _cost(study: Study, quick: bool) -> None:
    """4f: an estimate (residual, Riesz solve, cell contributions) beside one Newton step, paired and interleaved."""
    worst = 0.0
    for cells in (16,) if quick else (32, 64, 96):
        flow = Flow(study.comm, "cavity", cells)
        continue_to(flow, 100.0)
        norms, wind = _flow_norms(flow, flow.fields())
        arms = {
            arm: partial(norms[arm].estimate, flow.residual)
            for arm in ("Stokes", "Oseen, coarse wind", "linearised, coarse state")
        }
        calls: dict[str, Callable[[], object]] = {"Newton": flow.step, **arms}
        timings = paired_times(calls, study.settings.repeat, study.comm)
        update = paired_times({"update": norms["Oseen, coarse wind"].update}, 1, study.comm)["update"]  # type: ignore[attr-defined]
        unknowns = study.comm.allreduce(int(flow.space.offsets[-1]), op=MPI.SUM)
        row: Row = {"unknowns": unknowns, "Newton step [s]": timings["Newton"].median}
        for arm in arms:
            row[f"{arm} [s]"] = timings[arm].median
            row[f"{arm} / Newton"] = ratio(timings[arm], timings["Newton"])
            worst = max(worst, ratio(timings[arm], timings["Newton"]))
        study.row("Cost of an estimate", row | {"Oseen set-up [s]": update.median})
        for norm in norms.values():
            norm.destroy()
        del wind
    study.target("4f", "cost of an estimate over one Newton step, largest", worst, 0.1)


def _solvers(study: Study, quick: bool) -> None:
    """Count the iterations of iterative Riesz maps, and compare their eta with that of factorisations."""
    largest = 0.0
    for cells in (8,) if quick else (16, 32, 64):
        flow = Flow(study.comm, "cavity", cells)
        flow.start()
        flow.viscosity.value[...] = 1e-2
        flow.set_fields(flow.fields() + 0.1 * flow.random_velocity(4, study.settings.seed))
        row: Row = {"cells": cells}
        makers: list[tuple[str, PETSc.Vec, Callable[..., DualNorm]]] = [
            ("MINRES, Stokes", flow.residual_vector(), partial(stokes_norm, flow.spaces, flow.viscosity, flow.bcs))
        ]
        for name, label in zip(elliptic.NONLINEAR, ("CG, diffusion", "CG, elasticity"), strict=True):
            problem = elliptic.EllipticProblem(study.comm, name, cells)
            makers.append((label, problem.norm.residual(problem.residual), problem.make_norm))
        for label, residual, make in makers:
            with make(direct=True) as factorised, make(direct=False) as iterative:
                difference = abs(iterative.norm(residual) / factorised.norm(residual) - 1.0)
                row |= {label: iterative.iterations, f"{label}, difference": difference}
            residual.destroy()
            largest = max(largest, difference)
        study.row("Iterative Riesz maps", row)
    study.target("4s", "relative difference of iterative and direct eta, largest", largest, 1e-7)


def _ranks(study: Study, quick: bool) -> None:
    """4g: the same numbers on one, two and three ranks."""
    rows = [
        study.case("pdeopt.bench.estimator_cases:fingerprint", ranks, cells=8 if quick else 16)
        for ranks in ((1, 2) if quick else (1, 2, 3))
    ]
    names = [name for name in rows[0] if name.startswith("eta")]
    worst = math.nan
    for ranks, row in enumerate(rows, start=1):
        study.row("Agreement between rank counts", {"ranks": ranks, **{name: number(row, name) for name in names}})
    if names:
        worst = max(abs(number(row, name) / number(rows[0], name) - 1.0) for row in rows for name in names)
    study.target("4g", "relative difference between rank counts, largest", worst, 1e-10)
