"""The objective of the controls alone: derivatives by Taylor remainders, optimisation by TAO."""

import time

from mpi4py import MPI

import dolfinx
import numpy as np
import pytest
import ufl
from test_structures import KINDS, build

from pdeopt.control import ControlProblem, check_symmetry, minimise, taylor_test
from pdeopt.parallel import random_stream
from pdeopt.problems import PoissonControl
from pdeopt.report import ConvergenceError, InputError, OptionError


def unit_square(cells):
    return dolfinx.mesh.create_unit_square(MPI.COMM_WORLD, cells, cells)


def set_generic_control(problem):
    for control in problem.controls:
        stream = random_stream("generic control", 1, problem.comm)
        control.set_coordinates(0.7 + 0.2 * stream.uniform(-1.0, 1.0, control.size))


@pytest.mark.parallel([1, 3])
def test_taylor_remainders_of_every_structure():
    """Order 2 with the gradient; with the Hessian order 3, or nothing but rounding where the objective is quadratic."""
    for kind in KINDS if MPI.COMM_WORLD.size < 3 else KINDS[2:5]:  # three ranks on two cores are slow
        problem, _, _ = build(kind)
        set_generic_control(problem)
        report = problem.taylor_test()
        assert report.gradient_order >= 1.99, (kind, report)
        assert report.passed, (kind, str(report))
        if kind == "nonlinear":
            assert 2.95 <= report.hessian_order <= 3.05
        else:
            assert np.isinf(report.hessian_order), (kind, str(report))
        assert problem.check_symmetry() <= 1e-12, kind


def test_nonlinear_control_boundary_and_constraint_multipliers():
    """Everything at once: control inside the operator, a nonlinear boundary term, a constraint with a multiplier."""
    mesh = unit_square(8)
    space = dolfinx.fem.functionspace(mesh, ("Lagrange", 1))
    y, u, v = dolfinx.fem.Function(space), dolfinx.fem.Function(space), ufl.TestFunction(space)
    x = ufl.SpatialCoordinate(mesh)
    problem = ControlProblem(
        objective=0.5 * (y - x[0]) ** 4 * ufl.dx + 1e-2 * ufl.inner(ufl.grad(u), ufl.grad(u)) * ufl.dx + u**2 * ufl.ds,
        state_equation=(ufl.exp(u) * ufl.inner(ufl.grad(y), ufl.grad(v)) + ufl.sinh(y) * v - x[1] * v) * ufl.dx
        + (y**3 + u * y) * v * ufl.ds,
        state=y,
        control=u,
        constraints=[(y**2 - 0.1) * ufl.dx],
    )
    set_generic_control(problem)
    problem._lagrangian.multipliers[0].value = 0.3
    report = problem.taylor_test()
    assert report.passed, str(report)
    assert 2.95 <= report.hessian_order <= 3.05
    assert problem.check_symmetry() <= 1e-12


class Mistaken:
    """A functional with one planted mistake."""

    def __init__(self, functional, mistake):
        self._functional, self._mistake = functional, mistake
        self.comm = functional.comm

    def __getattr__(self, name):
        return getattr(self._functional, name)

    def derivative(self, control, out):
        self._functional.derivative(control, out)
        if self._mistake == "gradient":
            out.scale(1.0 + 1e-4)

    def hessian_action(self, control, direction, out):
        self._functional.hessian_action(control, direction, out)
        if self._mistake == "Hessian":
            out.scale(1.0 + 1e-3)
        if self._mistake == "asymmetry":
            out.array[:] *= 1.0 + 1e-6 * np.arange(out.getLocalSize())


@pytest.mark.parametrize(("kind", "mistake"), [(k, m) for k in KINDS for m in ("gradient", "Hessian", "asymmetry")])
def test_planted_mistakes_are_found(kind, mistake):
    problem, _, _ = build(kind)
    set_generic_control(problem)
    functional = Mistaken(problem.reduced_functional(), mistake)
    if mistake == "asymmetry":
        if kind != "real-valued":  # two numbers only: the planted factor is hardly there
            assert check_symmetry(functional) > 1e-10
        return
    report = taylor_test(functional)
    assert not report.passed, str(report)
    assert "FAILED" in str(report)
    if mistake == "gradient":
        assert report.gradient_order < 1.9, str(report)
        assert not taylor_test(functional, hessian=False).passed


def test_gauss_newton_is_no_full_hessian_but_positive():
    """Its Taylor remainder has order 2 where the state equation is nonlinear, and it is exact where it is not."""
    problem, _, _ = build("nonlinear")
    set_generic_control(problem)
    functional = problem.reduced_functional(gauss_newton=True)
    report = taylor_test(functional)
    assert report.gradient_order >= 1.99
    assert report.hessian_order == pytest.approx(2.0, abs=0.05)
    control, direction, product = (functional.create_vector() for _ in range(3))
    functional.get_control(control)
    for index in range(5):
        direction.array[:] = random_stream(f"gauss_newton {index}", 0, problem.comm).normal(size=direction.local_size)
        functional.hessian_action(control, direction, product)
        assert product.dot(direction) > 0.0
    problem, _, _ = build("boundary")
    assert taylor_test(problem.reduced_functional(gauss_newton=True)).passed


def test_gradient_is_the_riesz_representative():
    """On the unit square j'(u) d is the control's inner product of gradient and d, and the gradient is alpha u - p."""
    case = PoissonControl(unit_square(16), alpha=1e-2)
    functional = case.problem.reduced_functional()
    control, gradient = functional.create_vector(), functional.create_vector()
    control.array[:] = np.linspace(0.0, 1.0, control.getLocalSize())
    functional.gradient(control, gradient)
    expected = 1e-2 * control.array_r - case.problem.adjoint.x.array
    assert np.abs(gradient.array_r - expected).max() <= 1e-8 * np.abs(expected).max()


@pytest.mark.parallel([1, 2, 3])
def test_tao_finds_the_optimum_of_the_kkt_system():
    """All four methods, with and without bounds, agree with the full-space solve."""
    for bounds in (None, (0.1, 0.6)):
        case = PoissonControl(unit_square(16), alpha=1e-4, bounds=bounds)
        case.problem.solve(method="direct")
        best, objective = case.control.x.array.copy(), case.problem.objective_value()
        for method in ("bqnls", "blmvm", "bntr", "bnls") if MPI.COMM_WORLD.size < 3 else ("bqnls", "bntr"):
            case = PoissonControl(unit_square(16), alpha=1e-4, bounds=bounds)
            report = case.problem.solve(method=method)
            assert report.converged, method
            assert case.problem.objective_value() == pytest.approx(objective, rel=1e-9), (method, bounds)
            assert np.abs(case.control.x.array - best).max() <= 1e-5 * np.abs(best).max(), (method, bounds)
            if bounds:
                assert case.control.x.array.min() >= 0.1 - 1e-12
                assert case.control.x.array.max() <= 0.6 + 1e-12


@pytest.mark.parametrize(("method", "limit"), [("bqnls", 20), ("bntr", 6), ("bnls", 4)])
def test_tao_iterations_do_not_grow_with_refinement(method, limit):
    counts = []
    for cells in (8, 16, 32, 64):
        case = PoissonControl(unit_square(cells), alpha=1e-4)
        report = case.problem.solve(method=method)
        counts.append(report.iterations)
        if method != "bqnls":
            assert report.quantities["Hessian actions"] <= 40
    assert max(counts) <= limit, counts
    assert counts[-1] <= counts[0] + 2, counts


def test_minimise_with_a_gauss_newton_hessian():
    problem, _, _ = build("nonlinear")
    problem.solve(method="direct")
    optimum = problem.objective_value()
    problem, _, _ = build("nonlinear")
    report = minimise(problem.reduced_functional(gauss_newton=True), "bnls")
    assert report.quantities["objective"] == pytest.approx(optimum, rel=1e-9)


def test_mistakes_in_the_calls_are_named():
    problem, _, _ = build("constraint")
    with pytest.raises(OptionError, match="cannot keep extra constraints"):
        problem.solve(method="bqnls")
    problem, _, _ = build("boundary")
    functional = problem.reduced_functional()
    with pytest.raises(OptionError, match="'lbfgs' is no method"):
        minimise(functional, "lbfgs")
    with pytest.raises(InputError, match="decreasing lengths"):
        taylor_test(functional, steps=[0.1, 0.2])
    with pytest.raises(ConvergenceError, match="iteration limit") as caught:
        problem.solve(method="bqnls", max_iterations=3)
    assert caught.value.report.iterations == 3
    assert not caught.value.report.converged


@pytest.mark.parallel([1, 2, 3])
def test_an_exception_in_a_monitor_on_one_rank_ends_all():
    """Newton on the KKT system and TAO alike, within seconds, with the message of the rank that raised."""
    last = MPI.COMM_WORLD.size - 1

    def monitor(iteration, norm):
        if iteration == 1 and MPI.COMM_WORLD.rank == last:
            raise ValueError("the user's own mistake")

    for method in ("direct", "bqnls", "bntr"):
        case = PoissonControl(unit_square(8), alpha=1e-4)
        started = time.perf_counter()
        with pytest.raises(ValueError, match="the user's own mistake"):
            case.problem.solve(method=method, monitor=monitor)
        assert time.perf_counter() - started <= 10.0
