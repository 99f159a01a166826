"""AdaSketch-Newton as a TAO type: callbacks on several ranks, options, monitor, view, bounds, errors."""

import gc
import pathlib
import sys
import time

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np
import pytest
from tao_cases import QuarticOnSphere, root_cause

from pdeopt.report import OptionError

comm = MPI.COMM_WORLD


def multiplier(context):
    vector = context.multipliers
    return comm.allreduce(float(vector.array_r[0]) if vector.local_size else 0.0)


@pytest.mark.parallel([1, 2, 3])
def test_callbacks_on_every_rank_count():
    for both in (True, False):
        case = QuarticOnSphere(both=both)
        context = case.solve()
        assert case.tao.getConvergedReason() > 0
        assert case.kkt(multiplier(context)) <= 1e-8
        objective = case.objective(case.tao, case.solution)
        assert objective == pytest.approx(1.081873793779978, rel=1e-10)  # what one rank printed
        assert context.report.quantities["objective"] == pytest.approx(objective, rel=1e-12)
        assert context.report.converged
        assert context.report.iterations <= 8
        case.destroy()


@pytest.mark.parallel([1, 2])
def test_without_constraints_and_with_bounds():
    case = QuarticOnSphere(constrained=False)
    context = case.solve()
    assert case.kkt(0.0) <= 1e-8
    assert context.multipliers.size == 0
    free = np.array(case.solution.array_r)
    lower, upper = case.solution.duplicate(), case.solution.duplicate()
    lower.set(-0.25)
    upper.set(0.5)
    case.tao.setVariableBounds((lower, upper))
    context = case.solve()
    assert context.report.method.startswith("interior point method")
    assert case.solution.array_r == pytest.approx(np.clip(free, -0.25, 0.5), abs=1e-7)
    case.destroy()
    for bound in (lower, upper):
        bound.destroy()


def test_every_direction_solver():
    for solver in ("factorisation", "ksp", "kaczmarz", "gaussian", "block", "history", "sgmres"):
        case = QuarticOnSphere()
        context = case.solve(adasketch_solver=solver, gatol=1e-7, catol=1e-7)
        assert case.kkt(multiplier(context)) <= 1e-7, solver
        assert solver in context.report.method
        assert (context.report.linear_iterations > 0) == (solver != "factorisation")


@pytest.mark.parallel([1, 2])
def test_options_of_the_kkt_solver():
    """A symmetric method, chosen under the KSP's own prefix, needs no option for its side."""
    case = QuarticOnSphere()
    options = {"adasketch_solver": "ksp", "adasketch_kkt_ksp_type": "minres", "adasketch_kkt_ksp_max_it": 40}
    context = case.solve(**options)
    assert case.kkt(multiplier(context)) <= 1e-8
    case.destroy()


def test_settings_are_read_and_mistakes_named():
    case = QuarticOnSphere()
    context = case.solve(adasketch_accuracy=0.3, adasketch_least_squares_multipliers="false", adasketch_armijo=1e-3)
    settings = context.settings
    assert (settings.accuracy, settings.least_squares_multipliers, settings.armijo) == (0.3, False, 1e-3)
    for options, message in (
        ({"adasketch_acuracy": 0.3}, "test_tao_adasketch_accuracy"),
        ({"adasketch_accuracy": 3}, "between 0 and 1"),
        ({"adasketch_sharpen": "fast"}, "type float"),
        ({"adasketch_solver": "gauss"}, "kaczmarz"),
    ):
        with pytest.raises(OptionError, match=message):
            QuarticOnSphere().solve(**options)


def test_what_is_missing_is_named():
    def without(name):
        tao = PETSc.TAO().create(comm)
        tao.setType("python")
        tao.setPythonType("pdeopt.AdaSketchNewton")
        case = QuarticOnSphere()
        tao.setSolution(case.solution)
        if name != "objective":
            tao.setObjectiveGradient(case.objective_gradient, case.gradient_vector)
        if name != "Hessian":
            tao.setHessian(case.hessian, case.matrix)
        tao.setEqualityConstraints(case.constraint, case.values)
        if name != "Jacobian":
            tao.setJacobianEquality(case.jacobian, case.row)
        if name == "inequality":
            tao.setInequalityConstraints(case.constraint, case.values)
        return tao

    for name, message in (
        ("objective", "setObjectiveGradient"),
        ("Hessian", "setHessian"),
        ("Jacobian", "setJacobianEquality"),
        ("inequality", "slack variables"),
    ):
        with pytest.raises(PETSc.Error) as caught:
            without(name).solve()
        assert isinstance(root_cause(caught.value), OptionError)
        assert message in str(root_cause(caught.value))


@pytest.mark.parallel([1, 2])
def test_monitor_view_tolerance_and_limit(shared_tmp_path):
    case = QuarticOnSphere()
    seen = []
    case.tao.setMonitor(lambda tao: seen.append(tao.getSolutionStatus()[:4]))
    case.tao.setTolerances(gatol=1e-3)
    case.tao.setConstraintTolerances(catol=1e-3)
    report = case.solve().report
    assert [line[0] for line in seen] == list(range(report.iterations + 1))
    assert seen[-1][1] == pytest.approx(report.quantities["objective"], rel=1e-12)
    assert np.hypot(*seen[-1][2:]) == pytest.approx(report.residuals[-1], rel=1e-12)
    assert max(seen[-2][2:]) > 1e-3 >= max(seen[-1][2:])
    path = shared_tmp_path / "view.txt"
    viewer = PETSc.Viewer().createASCII(str(path), comm=comm)
    case.tao.view(viewer)
    viewer.destroy()
    comm.barrier()
    text = path.read_text()
    for part in ("AdaSketch-Newton", "gradient_penalty: 0.001", "factorisation", "evaluations"):
        assert part in text
    case.destroy()
    short = QuarticOnSphere()
    report = short.solve(max_it=2).report
    assert (report.iterations, report.reason, report.converged) == (2, -2, False)
    assert short.tao.getConvergedReason() == -2
    assert report.advice
    short.destroy()


@pytest.mark.parallel([1, 2, 3])
def test_a_callback_that_fails_on_one_rank_ends_all():
    for name in ("objective", "gradient", "Hessian", "constraint", "Jacobian"):
        case = QuarticOnSphere(fails=name, both=False)
        started = time.perf_counter()
        with pytest.raises(ValueError, match=f"mistake in the {name}"):
            case.solve()
        assert time.perf_counter() - started <= 5.0
        case.destroy()


def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parallel([1, 2])
def test_repeated_solves_leave_nothing_behind():
    """200 solves, some with bounds, within 5 MiB; on two ranks fewer: there PETSc keeps what nobody destroys."""
    solves, bound = (200, 5.0) if comm.size == 1 else (30, 1.0)

    def sweep(count):
        for index in range(count):
            case = QuarticOnSphere()
            bounds = [case.solution.duplicate() for _ in range(2)]
            if index % 4 == 3:
                bounds[0].set(-1.0)
                bounds[1].set(0.6)
                case.tao.setVariableBounds(bounds)
            case.solve()
            for bound in bounds:
                bound.destroy()
            case.destroy()
        gc.collect()

    sweep(solves // 4)
    before = resident()
    sweep(solves)
    growth = comm.allreduce(resident() - before, op=MPI.MAX)
    assert growth <= bound, growth
