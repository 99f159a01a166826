"""Line 1: a heated plate, certified answers at a thousand unseen parameters, and what they cost; the indicator too.

Beside the hyper-reduced model stand interpolation of the same modes' coordinates in the parameter, the reduced model
by full assembly, and the full solve started by nested iteration.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np

from pdeopt.bench.harness import say
from pdeopt.bench.rom_heat_case import BEYOND, QUICK, Plate, Size
from pdeopt.bench.rom_heat_start import NestedIteration, measure_starts
from pdeopt.bench.study import Study
from pdeopt.parallel import random_stream
from pdeopt.reduced_order import calibrate, solve_reduced
from pdeopt.reduced_order.inner_product import Array

_CALIBRATION, _COVERAGE = 19, 0.95


def measure(study: Study, quick: bool) -> None:
    """Measure certified reduced answers, then starts of the full solve. Collective: yes."""
    size = QUICK if quick else Size()
    unseen, truths, beyond, rounds = (20, 6, 3, 1) if quick else (1000, 120, 30, study.settings.repeat)
    plate = Plate(study.comm, size)
    parameters = plate.problem.parameters(unseen, "bench.rom.heat", study.settings.seed)
    table = "heat, before"
    for name, seconds in plate.seconds.items():
        study.row(table, {"stage": name, "seconds": seconds})
    study.row(table, {"stage": "all", "seconds": sum(plate.seconds.values())})
    _certify(study, plate, parameters)
    _compare(study, plate, parameters[:truths], beyond)
    _time(study, plate, parameters[:rounds])
    measure_starts(study, plate, 4 if quick else 50)


def _certify(study: Study, plate: Plate, parameters: Array) -> None:
    """Certify the answers at all unseen parameters."""
    say(study.comm, f"  certified answers at {len(parameters)} parameters")
    bounds, steps = [], []
    for parameter in parameters:
        plate.problem.set_parameter(parameter)
        result = plate.model.propose()
        assert plate.model.certificate is not None
        bound = plate.model.certificate(result.coordinates)
        bounds.append(plate.model.relative(bound.error, result.coordinates) if result.converged else np.inf)
        steps.append(result.iterations)
    certificate = plate.full
    study.row("heat, certified", {
        "degrees of freedom": plate.problem.space.dofmap.index_map.size_global,
        "snapshots": len(plate.parameters), "modes": plate.basis.size, "cells": plate.cells["cubature"],
        "cells of the indicator": plate.cells["cubature of the indicator"],
        "terms of the residual": plate.expansion.terms, "kept": plate.expansion.kept,
        "representatives": plate.expansion.size, "stability constant": certificate.stability.constant,
        "Lipschitz constant": certificate.lipschitz, "parameters": len(parameters),
        "Newton steps, mean": float(np.mean(steps)), "bound, median": float(np.median(bounds)),
        "bound, greatest": float(np.max(bounds)),
    })  # fmt: skip
    study.target("1a", "greatest certified relative error over the unseen parameters", float(np.max(bounds)), 3e-3)
    study.target("1b", "share of answers with a certificate", float(np.mean(np.isfinite(bounds))), 1.0, True)


def _compare(study: Study, plate: Plate, parameters: Array, beyond: int) -> None:
    """Compare certified bounds, estimates and rivals with true errors, in range and beyond."""
    say(study.comm, f"  true errors at {len(parameters)} parameters and {beyond} out of range")
    for name, chosen in (
        ("in range", parameters),
        ("out of range", BEYOND.draw(beyond, random_stream("bench.rom.heat.beyond", study.settings.seed))),
    ):
        rows = [_errors(plate, parameter) for parameter in chosen]
        columns = {key: np.array([row[key] for row in rows]) for key in rows[0]}
        truth = columns["hyper-reduced"]
        for arm, values in columns.items():
            study.row(f"heat, relative errors {name}", {
                "arm": arm, "parameters": len(chosen), "mean": float(values.mean()), "greatest": float(values.max()),
                "least over true": float((values / truth).min()), "greatest over true": float((values / truth).max()),
            })  # fmt: skip
        ratios = columns["estimate of the indicator"] / truth
        low, high = (0.8, 1.25) if name == "in range" else (0.5, 2.0)
        study.target(f"3 heat, {name}, low", "effectivity of the indicator: least", float(ratios.min()), low, True)
        study.target(f"3 heat, {name}, high", "effectivity of the indicator: greatest", float(ratios.max()), high)
        certified = columns["bound by full assembly"]
        if name == "in range":
            certified = np.minimum(certified, columns["bound"])
            study.target("1c", "greatest true relative error where it was measured", float(truth.max()), 3e-3)
            _calibrate(study, truth, columns["estimate of the indicator"])
        bad = float((truth > certified).sum())
        study.target(f"1d {name}", "bounds below the true error", bad, 0.0)


def _errors(plate: Plate, parameter: Array) -> dict[str, float]:
    """Return relative errors, bounds and estimates at one parameter."""
    model = plate.model
    plate.problem.set_parameter(parameter)
    answer, galerkin = model.propose(), solve_reduced(plate.galerkin, plate.interpolation(plate.problem.parameter()))
    interpolated = plate.interpolation(plate.problem.parameter())
    assert model.certificate is not None
    found = {
        "bound": model.relative(model.certificate(answer.coordinates).error, answer.coordinates),
        "bound by full assembly": model.relative(plate.full(answer.coordinates).error, answer.coordinates),
        "estimate of the indicator": model.estimate(answer.coordinates),
    }
    truth = plate.solve(parameter, model.field(answer.coordinates))
    fields = {
        "hyper-reduced": answer.coordinates,
        "reduced by full assembly": galerkin.coordinates,
        "interpolation in the parameter": interpolated,
        "projection (the least possible)": plate.basis.coordinates(truth[:, None])[:, 0],
    }
    return {arm: plate.error(model.field(coordinates), truth) for arm, coordinates in fields.items()} | found


def _calibrate(study: Study, errors: Array, estimates: Array) -> None:
    """Calibrate the indicator by the first runs, and count how often the others keep to it."""
    if len(errors) <= _CALIBRATION:
        return
    found = calibrate(errors[:_CALIBRATION], estimates[:_CALIBRATION], _COVERAGE)
    kept = errors[_CALIBRATION:] <= found.factor * estimates[_CALIBRATION:]
    study.row("heat, calibrated indicator", {
        "runs": found.runs, "promised coverage": found.coverage, "factor": found.factor,
        "test runs": len(kept), "coverage": float(kept.mean()),
    })  # fmt: skip


def _time(study: Study, plate: Plate, parameters: Array) -> None:
    """Time all arms in turn, one parameter a round, and take medians."""
    say(study.comm, "  timings")
    arms = _arms(plate)
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    for parameter in np.concatenate([parameters[:1], parameters]):  # the first round warms up
        for arm, (call, calls) in arms.items():
            plate.problem.set_parameter(parameter)
            study.comm.barrier()
            started = time.perf_counter()
            for _ in range(calls):
                call()
            study.comm.barrier()
            seconds[arm].append((time.perf_counter() - started) / calls)
    full = seconds["full: SNES and MUMPS"][1:]
    gains = {}
    for arm, values in seconds.items():
        gains[arm] = statistics.median(f / v for f, v in zip(full, values[1:], strict=True))
        study.row("heat, seconds", {
            "arm": arm, "median": statistics.median(values[1:]), "least": min(values[1:]), "greatest": max(values[1:]),
            "full over this": gains[arm],
        })  # fmt: skip
    before = sum(plate.seconds.values())
    saved = statistics.median(full) - statistics.median(seconds["hyper-reduced, certified"][1:])
    study.row("heat, before", {"stage": "solves after which it has paid", "seconds": before / saved})
    study.target(
        "1e", "speed-up over SNES and MUMPS: certified coordinates", gains["hyper-reduced, certified"], 500, True
    )
    study.target(
        "1f",
        "speed-up: certified coordinates and the field",
        gains["hyper-reduced, certified, with the field"],
        500,
        True,
    )


def _arms(plate: Plate) -> dict[str, tuple[Callable[[], object], int]]:
    """Return what is timed, with how many calls make one timing."""
    problem, model = plate.problem, plate.model
    nested = NestedIteration(plate, (4,))

    def full(start: Callable[[], Array] | None = None) -> Array:
        parameter = np.array([*problem.centre.value, problem.amplitude.value])
        return plate.solve(parameter, None if start is None else start())

    def certified() -> Array:
        answer = model.propose().coordinates
        assert model.certificate is not None
        model.certificate(answer)
        return answer

    def by_full_assembly() -> None:
        plate.full(model.propose().coordinates)

    return {
        "full: SNES and MUMPS": (full, 1),
        "full, from the solution on a mesh 4 times coarser": (lambda: full(nested), 1),
        "reduced by full assembly": (
            lambda: solve_reduced(plate.galerkin, plate.interpolation(problem.parameter())), 1,
        ),
        "hyper-reduced, certified by full assembly": (by_full_assembly, 2),
        "hyper-reduced, certified, with the field in double precision": (
            lambda: plate.basis.expand(certified()), 20,
        ),
        "hyper-reduced, certified, with the field": (lambda: model.field(certified()), 20),
        "hyper-reduced, certified": (certified, 20),
        "hyper-reduced, not certified": (model.propose, 20),
        "interpolation in the parameter": (lambda: plate.interpolation(problem.parameter()), 200),
    }  # fmt: skip
