"""`minimise` with bounds by either method, and with eigenpairs of the misfit Hessian as preconditioner."""

from mpi4py import MPI

import dolfinx
import numpy as np
import pytest

from pdeopt.optimise import ControlProgram, TaoSettings, minimise
from pdeopt.optimise.eigenpair_rules import randomised, sensor_wise
from pdeopt.problems import BoundedPoissonControl, CoefficientInversion, MaurerMittelmannControl
from pdeopt.report import InputError, OptionError


def square(cells):
    return dolfinx.mesh.create_unit_square(MPI.COMM_WORLD, cells, cells)


def settings(bounds):
    return TaoSettings(bounds=bounds, least_squares_multipliers=False)


@pytest.mark.parallel([1, 2])
def test_both_ways_to_keep_bounds_find_the_same_controls():
    controls, reports = [], {}
    for bounds in ("interior", "active_set"):
        case = BoundedPoissonControl(square(12))
        reports[bounds] = minimise(case.problem, rtol=1e-10, settings=settings(bounds))
        controls.append(case.control.x.array.copy())
    assert "active sets" in reports["active_set"].method
    assert "interior" in reports["interior"].method
    assert reports["active_set"].iterations <= 6
    difference = np.max(np.abs(controls[0] - controls[1]))
    assert MPI.COMM_WORLD.allreduce(difference, op=MPI.MAX) <= 1e-4 * np.max(np.abs(controls[1]))


def test_bounds_on_states_are_held_by_active_sets_or_by_what_stands_behind():
    values = []
    for bounds in ("interior", "active_set"):
        case = MaurerMittelmannControl(square(10))
        values.append(float(minimise(case.problem, settings=settings(bounds)).quantities["objective"]))
    assert values[0] == pytest.approx(values[1], rel=1e-6)


@pytest.mark.parallel([1, 2])
def test_eigenpairs_change_the_cost_and_not_the_optimum():
    rules = {
        "factorisation": lambda case: None,
        "sensor-wise": lambda case: sensor_wise(*case.observations()),
        "randomised": lambda case: randomised(case.problem.system, 5, first=2),
        "never": lambda case: lambda hessian, metric, last: None,
    }
    values, iterations = {}, {}
    for name, rule in rules.items():
        case = CoefficientInversion(square(8), 5, gamma=1e-9, epsilon=10.0, noise=0.01)
        report = minimise(ControlProgram(case.problem, name if name == "factorisation" else None, rule(case)))
        values[name], iterations[name] = float(report.quantities["objective"]), report.linear_iterations
    reference = values.pop("factorisation")
    assert all(value == pytest.approx(reference, rel=1e-6) for value in values.values()), values
    assert iterations["sensor-wise"] < iterations["never"]


def test_unfit_choices_are_refused():
    with pytest.raises(InputError, match="'auto', 'interior' or 'active_set'"):
        TaoSettings(bounds="penalty")
    problem = BoundedPoissonControl(square(2)).problem
    with pytest.raises(OptionError, match="low_rank"):
        ControlProgram(problem, "direct", lambda hessian, metric, last: None)
