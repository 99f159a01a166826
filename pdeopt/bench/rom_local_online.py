"""Line 2, last sentence: local bases solved online with cubature, beside one basis with more modes."""

import dataclasses
import time
from collections.abc import Callable, Iterator

import numpy as np

from pdeopt.bench.harness import say
from pdeopt.bench.rom_local_cases import heat_snapshots
from pdeopt.bench.study import Study
from pdeopt.fem import forms
from pdeopt.parallel import random_stream
from pdeopt.problems.moving_source import NARROW, MovingSource
from pdeopt.reduced_order.basis import Basis
from pdeopt.reduced_order.certificate import FullResidual
from pdeopt.reduced_order.classifier import BasisClassifier, CheckedChoice
from pdeopt.reduced_order.cubature import empirical_cubature
from pdeopt.reduced_order.dissimilarity import Indices
from pdeopt.reduced_order.hyper_reduced import HyperReducedSystem
from pdeopt.reduced_order.inner_product import Array
from pdeopt.reduced_order.local import LocalBases
from pdeopt.reduced_order.newton import solve_reduced
from pdeopt.reduced_order.parametric import cluster_by_parameters
from pdeopt.reduced_order.pod import proper_orthogonal_decomposition
from pdeopt.reduced_order.snapshots import Snapshots
from pdeopt.reduced_order.start import CoordinateInterpolation

_TOLERANCE = 1e-3  # of the cubatures


def measure_online(study: Study, quick: bool) -> None:
    """Solve for unseen parameters by local and by global reduced models. Collective: yes."""
    cells, count, clusters, modes = (16, 50, 2, 5) if quick else (128, 200, 8, 12)
    unseen, calibration = (6, 6) if quick else (60, 20)
    stream = random_stream("bench.rom_local.online", study.settings.seed)
    parameters = NARROW.draw(count + unseen + calibration, stream)
    say(study.comm, "  online")
    case, snapshots = heat_snapshots(study.comm, cells, parameters[: count + unseen])
    training, truth = snapshots.subset(range(count)), snapshots.columns[:, count:]
    features = _features(training.parameters)
    clustering = cluster_by_parameters(training.gram(), features, clusters, modes, comm=study.comm)
    local = LocalBases(training, clustering, modes)
    models = [_Model(case, basis, training, clustering.members(label, at_least=2 * modes))
              for label, basis in enumerate(local.bases)]  # fmt: skip
    classifier = BasisClassifier(features, clustering.labels, comm=study.comm)
    choice = CheckedChoice(_Ranking(classifier), lambda label, parameter: models[label].checked(parameter))
    choice.calibrate(parameters[count + unseen :], coverage=0.8)

    def by_classifier(parameter: Array) -> tuple[Array, int]:
        label = int(classifier.ranking(_features(parameter[None])[0])[0])
        return models[label].field(parameter), 1

    def by_residual(parameter: Array) -> tuple[Array, int]:
        found = choice(parameter)
        return models[found.label].basis.expand(found.coordinates), len(found.tried)

    size = sum(model.cells for model in models) // clusters
    tests = parameters[count : count + unseen]
    classified = _row(study, f"local, {classifier.chosen}", modes, size, by_classifier, tests, truth, snapshots)
    checked = _row(study, "local, residual overrules", modes, size, by_residual, tests, truth, snapshots)
    errors = {}
    normalised = training.normalised()
    for factor in (1, 2, 4):
        basis = proper_orthogonal_decomposition(normalised, modes=factor * modes)
        model = _Model(case, basis, training, np.arange(count))
        name = f"one basis, {basis.size} modes"
        errors[factor] = _row(study, name, basis.size, model.cells, _alone(model.field), tests, truth, snapshots)
    _row(
        study, f"interpolation, {basis.size} modes", basis.size, 0, _alone(model.interpolated), tests, truth, snapshots
    )
    study.target("2e", "online: error of local bases over that of one basis with twice the modes, classifier alone",
                 classified / errors[2], 1.0)  # fmt: skip
    study.target("2f", "online: the same where the residual overrules the classifier", checked / errors[2], 1.0)


class _Model:
    """A hyper-reduced model in one basis, trained on some of the snapshots. Collective: yes."""

    def __init__(self, case: MovingSource, basis: Basis, snapshots: Snapshots, members: Indices) -> None:
        assert snapshots.parameters is not None
        self.case, self.basis = case, basis
        part, parameters = snapshots.subset(members), snapshots.parameters[members]
        coordinates = basis.coordinates(part.columns)

        def states() -> Iterator[None]:
            for parameter, column in zip(parameters, coordinates.T, strict=True):
                case.set_parameter(parameter)
                forms.set_function(case.u, basis.expand(column))
                yield

        cubature = empirical_cubature(case.residual, case.u, basis, states(), _TOLERANCE)
        self.cells = cubature.size
        self.system = HyperReducedSystem(case.residual, case.u, basis, cubature, bcs=case.bcs)
        self.residual = FullResidual(case.residual, case.u, basis, case.bcs)
        self.start = CoordinateInterpolation(_features(parameters), coordinates)

    def solve(self, parameter: Array) -> Array:
        self.case.set_parameter(parameter)
        self.system.update()
        found = solve_reduced(self.system, self.start(_features(parameter[None])[0]))
        return found.coordinates if found.converged else np.full(self.basis.size, np.nan)

    def field(self, parameter: Array) -> Array:
        return self.basis.expand(self.solve(parameter))

    def interpolated(self, parameter: Array) -> Array:
        return self.basis.expand(self.start(_features(parameter[None])[0]))

    def checked(self, parameter: Array) -> tuple[Array, float]:
        """Return coordinates and the dual norm of the full residual over the norm of the state."""
        coordinates = self.solve(parameter)
        return coordinates, self.residual(coordinates) / float(np.linalg.norm(coordinates))


@dataclasses.dataclass(frozen=True)
class _Ranking:
    """The classifier of scaled features, called with parameters."""

    classifier: BasisClassifier

    def ranking(self, parameter: Array) -> Indices:
        return self.classifier.ranking(_features(parameter[None])[0])


def _features(parameters: Array | None) -> Array:
    assert parameters is not None
    return np.column_stack([parameters[:, :2], np.log(parameters[:, 2])])


def _alone(solve: Callable[[Array], Array]) -> Callable[[Array], tuple[Array, int]]:
    return lambda parameter: (solve(parameter), 1)


def _row(
    study: Study,
    arm: str,
    modes: int,
    cells: int,
    solve: Callable[[Array], tuple[Array, int]],
    parameters: Array,
    truth: Array,
    snapshots: Snapshots,
) -> float:
    """Solve for all parameters, note errors and times, and return the mean error. Collective: yes."""
    fields, seconds, tried = np.empty_like(truth), [], []
    for column, parameter in enumerate(parameters):
        started = time.perf_counter()
        fields[:, column], solves = solve(parameter)
        seconds.append(time.perf_counter() - started)
        tried.append(solves)
    product = snapshots.inner_product
    errors = product.norms(fields - truth) / product.norms(truth)
    study.row(
        "local bases online with cubature, unseen parameters",
        {"arm": arm, "modes": modes, "cells": cells, "mean error": float(errors.mean()),
         "largest error": float(errors.max()), "ms a solve": 1e3 * float(np.median(seconds)),
         "bases tried": float(np.mean(tried))},
    )  # fmt: skip
    return float(errors.mean())
