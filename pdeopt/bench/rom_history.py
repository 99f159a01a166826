"""Lines 3, 4 and 5: reduced models of bodies with a history, what they know of their error, and how they learn.

The error of a step is that of the state in the energy norm, relative to the largest state of the trajectory so far:
the load reverses, and the state at the reversal is nearly zero.

Detection and enrichment calibrate one factor each on n runs under the very settings that they use later, so that it
keeps to 1 - 1 / (n + 1); for a model that learns, until it first asks the full one.
"""

import dataclasses
import time

import numpy as np

from pdeopt.bench.harness import say
from pdeopt.bench.rom_history_case import Trained, train
from pdeopt.bench.study import Study
from pdeopt.fem.materials import LinearHardening, NortonViscosity, VonMisesMaterial
from pdeopt.fem.quasi_static import QuasiStatic
from pdeopt.problems import ThermoplasticPlate
from pdeopt.reduced_order._packages import require_package
from pdeopt.reduced_order.basis import Basis
from pdeopt.reduced_order.conformal import calibrate
from pdeopt.reduced_order.elastic_correction import ElasticCorrection
from pdeopt.reduced_order.enrichment import Adaptive, AdaptiveTrajectory, EnrichmentSettings
from pdeopt.reduced_order.hierarchical_history import HierarchicalHistory
from pdeopt.reduced_order.inner_product import Array
from pdeopt.reduced_order.start import CoordinateInterpolation

_VISCOUS = VonMisesMaterial(
    200e9, 0.3, 200e6, 250e6, hardening=LinearHardening(2e9), viscosity=NortonViscosity(300e6, 5.0)
)
_TOLERANCE = 0.05
# The training's highest amplitude [K].
_HOTTEST = 400.0
# Smaller errors are left out where effectivities of steps are compared: after the first steps they are rounding.
_VISIBLE = 0.1 * _TOLERANCE
# Runs with known errors.
_CALIBRATION = 19
# Corrections of a step where the reduced answer's error is to be told, and not the answer to be had soon.
_TO_DETECT = 3
# The full model is asked a little below what is promised: one in twenty runs is expected to exceed its estimate.
_ASK = 0.9
# The rival without a reduced model: corrections of a step from the line through the last two states.
_ALONE = 4


@dataclasses.dataclass(frozen=True)
class _Sizes:
    """How large everything is: cells along a side, trajectories, modes, tolerances of the cubature."""

    cells: int
    training: int
    unseen: int
    modes: int
    more_modes: int
    fine_cells: int
    fine_training: int
    fine_unseen: int
    hot: int
    cubature: float = 0.007
    strict: float = 0.002
    # Of a larger model that is to show a smaller one's error, and not its own cubature's.
    following: float = 0.0013
    rows: int = 1000
    following_rows: int = 1500
    more_rows: int = 2500


_FULL = _Sizes(40, 32, 200, 80, 200, 80, 32, 20, 4)
_QUICK = _Sizes(6, 2, 2, 8, 14, 6, 2, 2, 1)


def measure(study: Study, quick: bool) -> None:
    """Measure the kill-test, the indicators, detection and enrichment. Collective: yes."""
    sizes, seed = _QUICK if quick else _FULL, study.settings.seed
    _kill_test(
        study, "viscoplasticity", train(_plate(study, sizes.cells, _VISCOUS), max(2, sizes.training // 4), seed), sizes
    )
    trained = train(_plate(study, sizes.cells), sizes.training, seed)
    _kill_test(study, "J2 plasticity", trained, sizes)
    study.target("3b", "training error over projection error, greatest of both laws", _worst(study), 2.0)
    _indicators(study, trained, sizes)
    _detection(study, trained, sizes)
    fine = train(_plate(study, sizes.fine_cells), sizes.fine_training, seed)
    _enrichment(study, fine, sizes)


def _plate(study: Study, cells: int, material: VonMisesMaterial | None = None) -> ThermoplasticPlate:
    if material is None:
        return ThermoplasticPlate(study.comm, cells)
    return ThermoplasticPlate(study.comm, cells, material=material)


_KILL = "kill-test: reduced model on its training loads"


def _kill_test(study: Study, law: str, trained: Trained, sizes: _Sizes) -> None:
    say(study.comm, f"  kill-test, {law}")
    plate, basis = trained.plate, trained.basis(sizes.modes)
    # The last is strict and at most 0.7 of what the modes leave: else the modes are better than their cubature.
    last = min(sizes.strict, 0.7 * basis.remainder)
    for tolerance in sorted({sizes.cubature, sizes.strict, last}, reverse=True):
        rows = sizes.rows if tolerance >= sizes.strict else sizes.more_rows
        model, _, seconds = trained.model(basis, tolerance, rows=rows)
        driver = QuasiStatic(model, plate.set_load, time_step=plate.driver.time_step)
        errors, projections = [], []
        for parameter, states in zip(trained.parameters, trained.states, strict=True):
            plate.set_parameter(parameter)
            driver.reset()
            answer = basis.expand(driver.march(plate.times()).unknowns)
            errors.append(trained.relative(answer - states, states))
            projections.append(trained.relative(states - basis.expand(basis.coordinates(states)), states))
        e, p = np.array(errors), np.array(projections)
        study.row(
            _KILL,
            {"law": law, "modes": basis.size, "they leave": basis.remainder, "tolerance": tolerance,
             "cells": model.cubature.size, "of": plate.mesh.topology.index_map(2).size_global,
             "error mean": e.mean(), "error max": e.max(),
             "over projection: mean": e.mean() / p.mean(), "max": e.max() / p.max(),
             "seconds to build": seconds},
        )  # fmt: skip


def _worst(study: Study) -> float:
    last = {row["law"]: row for row in study.rows if row["table"] == _KILL}.values()
    return max(max(float(str(row["over projection: mean"])), float(str(row["max"]))) for row in last)


def _indicators(study: Study, trained: Trained, sizes: _Sizes) -> None:
    """Compare indicators step by step with true errors, in the range of the training and out of it."""
    say(study.comm, "  indicators")
    plate = trained.plate
    modes = trained.basis(sizes.more_modes)
    small, forces, _ = trained.model(modes.truncate(sizes.modes // 2), sizes.strict * 2.0)
    large, _, _ = trained.model(modes, sizes.following, rows=sizes.following_rows)
    follower = HierarchicalHistory(large, small.basis.size)
    gappy, local, values = trained.gappy(small, sizes.modes // 2)
    adaptive = Adaptive(plate.driver, small, forces, sizes.strict, EnrichmentSettings(np.inf, learn=False))
    driver = QuasiStatic(small, plate.set_load, time_step=plate.driver.time_step)
    ratios: dict[str, Array] = {}
    for where in ("in range", "out of range"):
        parameters = plate.parameters(min(24, sizes.unseen), "plate indicators", study.settings.seed)
        if where == "out of range":  # every load is hotter than all of the training
            parameters[:, 4] = _HOTTEST + 0.25 * parameters[:, 4]
        found: dict[str, list[Array]] = {name: [] for name in ("error", "correction", "hierarchical", "gappy misfit")}
        for parameter in parameters:
            states = plate.solve_trajectory(parameter).unknowns
            scale = np.maximum.accumulate(trained.inner_product.norms(states))
            answer = adaptive.march(plate.times())
            found["error"].append(trained.relative(answer.unknowns - states, states))
            found["correction"].append(answer.estimates)
            driver.reset()
            follower.reset()
            steps, misfits = [], []
            for now in plate.times():
                driver.step(float(now))
                steps.append(follower.step(small.coordinates))
                misfits.append(gappy.coordinates(values[local])[1])
            found["hierarchical"].append(np.array(steps) / scale)
            found["gappy misfit"].append(np.array(misfits))
        error = np.array(found["error"])
        for name in ("correction", "hierarchical", "gappy misfit"):
            indicator = np.array(found[name])
            effectivity = indicator.max(axis=1) / error.max(axis=1)
            ratios[f"{name}, {where}"] = effectivity
            spearman = require_package("scipy.stats").spearmanr(error.ravel(), indicator.ravel()).statistic
            study.row(
                "indicators of un-enriched models",
                {"indicator": name, "loads": where, "steps": error.size, "Spearman": float(spearman),
                 "effectivity of trajectories: least": effectivity.min(), "median": float(np.median(effectivity)),
                 "greatest": effectivity.max(), "error max": error.max()},
            )  # fmt: skip
            of_steps = (indicator / error)[error > _VISIBLE]
            study.row(
                f"effectivity of the steps with an error above {_VISIBLE:g}",
                {"indicator": name, "loads": where, "steps": of_steps.size,
                 **{f"{share:g} %": float(np.percentile(of_steps, share)) if of_steps.size else np.nan
                    for share in (0, 5, 50, 95, 100)}},
            )  # fmt: skip
            if (name, where) == ("hierarchical", "in range"):
                study.target(
                    "3c", "hierarchical indicator of all steps in range: Spearman", float(spearman), 0.95, True
                )
    for where, least, greatest in (("in range", 0.8, 1.25), ("out of range", 0.5, 2.0)):
        effectivity = ratios[f"hierarchical, {where}"]
        study.target(f"3d-least-{where.split()[0]}", f"hierarchical effectivity of trajectories, {where}: least",
                     float(effectivity.min()), least, True)  # fmt: skip
        study.target(f"3d-greatest-{where.split()[0]}", f"hierarchical effectivity of trajectories, {where}: greatest",
                     float(effectivity.max()), greatest)  # fmt: skip


def _observe(trained: Trained, adaptive: Adaptive, parameters: Array) -> tuple[Array, Array, float]:
    """Return errors and estimates of trajectories, shape (n, steps), and time over full solves. Collective: yes."""
    errors, estimates, seconds = [], [], np.zeros(2)
    for parameter in parameters:
        started = time.perf_counter()
        states = trained.plate.solve_trajectory(parameter).unknowns
        between = time.perf_counter()
        answer = adaptive.march(trained.plate.times())
        seconds += time.perf_counter() - between, between - started
        errors.append(trained.relative(answer.unknowns - states, states))
        estimates.append(answer.estimates)
    return np.array(errors), np.array(estimates), float(seconds[0] / seconds[1])


def _calibrate(trained: Trained, adaptive: Adaptive, runs: int, seed: int) -> None:
    """Give settings a factor that no run but the worst to come is expected to exceed. Collective: yes."""
    errors, estimates, _ = _observe(trained, adaptive, trained.plate.parameters(runs, "plate calibration", seed))
    # Trajectories by their greatest step: that is what is reported.
    calibration = calibrate(errors.max(axis=1), estimates.max(axis=1), runs / (runs + 1) - 1e-9)
    adaptive.settings = dataclasses.replace(adaptive.settings, tolerance=_TOLERANCE, factor=calibration.factor)


def _detection(study: Study, trained: Trained, sizes: _Sizes) -> None:
    """Count trajectories whose error was or was not reported after a conformal calibration."""
    say(study.comm, "  detection")
    plate, seed = trained.plate, study.settings.seed
    model, forces, _ = trained.model(trained.basis(sizes.modes), sizes.cubature)
    settings = EnrichmentSettings(np.inf, corrections=_TO_DETECT, learn=False)
    adaptive = Adaptive(plate.driver, model, forces, sizes.cubature, settings)
    runs = min(_CALIBRATION, sizes.unseen)
    _calibrate(trained, adaptive, runs, seed)
    errors, estimates, seconds = _observe(trained, adaptive, plate.parameters(sizes.unseen, "plate unseen", seed))
    adaptive.destroy()
    error, reported = errors.max(axis=1), estimates.max(axis=1) > _TOLERANCE
    far = (error > 2.0 * _TOLERANCE) & ~reported
    between = (error > _TOLERANCE) & (error <= 2.0 * _TOLERANCE)
    good = error <= _TOLERANCE
    missed = float(np.mean(~reported[between])) if between.any() else 0.0
    false = float(np.mean(reported[good])) if good.any() else 0.0
    study.row(
        "detection of trajectories with an error above 5 %",
        {"unseen": error.size, "calibration runs": runs, "factor": adaptive.settings.factor,
         "above 2x": int(np.sum(error > 2 * _TOLERANCE)),
         "of them missed": int(far.sum()), "between 1x and 2x": int(between.sum()), "missed": missed,
         "below": int(good.sum()), "false alarms": false, "time over full solves": seconds},
    )  # fmt: skip
    study.target("4a", "errors above twice the tolerance that went unreported", int(far.sum()), 0)
    study.target("4b", "errors between once and twice the tolerance that were missed, share", missed, 0.05)
    study.target("4c", "false alarms, share of the trajectories below the tolerance", false, 0.15)


def _enrichment(study: Study, trained: Trained, sizes: _Sizes) -> None:
    """Run unseen loads with enrichment beside full solves, interleaved."""
    say(study.comm, "  enrichment")
    plate, seed, times = trained.plate, study.settings.seed, trained.plate.times()
    basis = trained.basis(sizes.modes)
    model, forces, rebuild = trained.model(basis, sizes.cubature, sizes.cubature / 2.0)
    adaptive = Adaptive(plate.driver, model, forces, sizes.cubature, EnrichmentSettings(np.inf))
    _calibrate(trained, adaptive, min(_CALIBRATION, sizes.fine_unseen), seed)
    adaptive.settings = dataclasses.replace(adaptive.settings, tolerance=_ASK * _TOLERANCE)
    still = model.rebuilt(basis, model.cubature, model.cubature)
    driver = QuasiStatic(still, plate.set_load, time_step=plate.driver.time_step)
    interpolation = _interpolation(trained, basis)
    found: dict[str, list[float]] = {
        name: [] for name in
        ("enriched", "not enriched", "corrections alone", "interpolation", "every tenth step", "projection")
    }  # fmt: skip
    full_seconds, seconds, alone, answers = [], [], [], []
    correction = ElasticCorrection(plate.driver)
    for parameter in plate.parameters(sizes.fine_unseen, "plate unseen", seed):
        started = time.perf_counter()
        states = plate.solve_trajectory(parameter).unknowns
        full_seconds.append(time.perf_counter() - started)
        started = time.perf_counter()
        answer = adaptive.march(times)
        seconds.append(time.perf_counter() - started)
        answers.append(answer)
        started = time.perf_counter()
        led = _corrections_alone(plate, correction)
        alone.append(time.perf_counter() - started)
        driver.reset()
        plain = basis.expand(driver.march(times).unknowns)
        guess = basis.expand(interpolation(parameter).reshape(basis.size, -1))
        chosen = np.concatenate([[0.0], times[9::10]])
        kept = np.hstack([np.zeros((len(states), 1)), states[:, 9::10]])
        linear = np.array([np.interp(times, chosen, row) for row in kept])
        rest = states - basis.expand(basis.coordinates(states))
        for name, field in (("enriched", answer.unknowns - states), ("not enriched", plain - states),
                            ("corrections alone", led - states), ("interpolation", guess - states),
                            ("every tenth step", linear - states),
                            ("projection", rest)):  # fmt: skip
            found[name].append(float(trained.relative(field, states).max()))
    for name, worst in found.items():
        study.row(
            "unseen loads: greatest error of each trajectory",
            {"arm": name, "median": float(np.median(worst)), "greatest": max(worst)},
        )
    study.target("5a", "greatest error at any step of unseen loads, enriched", max(found["enriched"]), 0.05)
    _report(study, adaptive, np.array(full_seconds), np.array(seconds), np.array(alone), answers)
    # In range the full model is hardly asked: what learning takes is seen on hotter loads, at a tenth of the tolerance.
    adaptive.settings = dataclasses.replace(adaptive.settings, tolerance=0.1 * _TOLERANCE)
    hot = [_hot_load(study, trained, adaptive, parameter) for parameter in _hot_parameters(plate, sizes.hot, seed)]
    _report_updates(study, adaptive, [*answers, *hot], full_seconds, rebuild)
    adaptive.destroy()
    correction.destroy()


def _corrections_alone(plate: ThermoplasticPlate, correction: ElasticCorrection) -> Array:
    """Return what corrections make of the line through the last two states, shape (owned, steps). Collective: yes."""
    plate.driver.reset()
    states = [np.zeros_like(plate.solver.unknown())] * 2
    for now in plate.times():
        state = 2.0 * states[-1] - states[-2]
        for _ in range(_ALONE):
            state = correction(float(now), state)
        plate.driver.impose(float(now), state)
        plate.driver.accept(float(now))
        states.append(state)
    return np.column_stack(states[2:])


def _hot_parameters(plate: ThermoplasticPlate, count: int, seed: int) -> Array:
    """Return parameters of loads that are hotter than all of the training, shape (count, 5). Collective: no."""
    parameters = plate.parameters(count, "plate hot", seed)
    parameters[:, 4] = _HOTTEST + 0.25 * parameters[:, 4]
    return parameters


def _hot_load(study: Study, trained: Trained, adaptive: Adaptive, parameter: Array) -> AdaptiveTrajectory:
    states = trained.plate.solve_trajectory(parameter).unknowns
    before = adaptive.updates
    answer = adaptive.march(trained.plate.times())
    error = trained.relative(answer.unknowns - states, states)
    study.row(
        "loads hotter than the training, enriched at a tenth of the tolerance",
        {"amplitude [K]": float(parameter[4]), "error": float(error.max()), "full steps": int(answer.full_steps.sum()),
         "updates": adaptive.updates - before},
    )  # fmt: skip
    return answer


def _interpolation(trained: Trained, basis: Basis) -> CoordinateInterpolation:
    coordinates = np.array([basis.coordinates(states).ravel() for states in trained.states]).T
    return CoordinateInterpolation(trained.parameters, coordinates)


def _report(
    study: Study, adaptive: Adaptive, full_seconds: Array, seconds: Array, alone: Array,
    answers: list[AdaptiveTrajectory],
) -> None:  # fmt: skip
    share = float(np.mean([answer.full_steps for answer in answers]))
    parts = {name: sum(answer.seconds[name] for answer in answers) for name in answers[0].seconds}
    study.row(
        "enrichment along unseen loads",
        {"loads": len(answers), "full steps": share, "updates": adaptive.updates,
         "factor": adaptive.settings.factor, "full solve [s]": float(np.median(full_seconds)),
         "adaptive [s]": float(np.median(seconds)), "corrections alone [s]": float(np.median(alone)),
         **{f"{name} [s]": value for name, value in parts.items()}},
    )  # fmt: skip
    corrections = parts["correction"] / full_seconds.sum()
    study.target("5b", "share of full steps, corrections by the time they take", share + corrections, 0.10)
    study.target("5c", "time over full solves", float(seconds.sum() / full_seconds.sum()), 0.25)


def _report_updates(
    study: Study, adaptive: Adaptive, answers: list[AdaptiveTrajectory], full_seconds: list[float], rebuild: float
) -> None:
    """Compare an update with a full step and a rebuild, over all loads: in range they are few. Collective: no."""
    full_step = float(np.mean(full_seconds)) / answers[0].times.size
    update = sum(answer.seconds["update"] for answer in answers) / adaptive.updates if adaptive.updates else None
    study.row(
        "updates, hotter loads included",
        {"updates": adaptive.updates, "rebuilds": adaptive.rebuilds, "modes": adaptive.reduced.basis.size,
         "cells": adaptive.reduced.cubature.size, "pool": adaptive.reduced.pool.size,
         "one update [s]": np.nan if update is None else update, "full step [s]": full_step, "rebuild [s]": rebuild},
    )  # fmt: skip
    study.target("5f", "one update over one full step", None if update is None else update / full_step, 1.0)
    study.target("5g", "one update over building anew", None if update is None else update / rebuild, 0.2)
