"""Unsteady control: orders in space and time, exact derivatives, checkpoints, the all-at-once solver, mistakes."""

import math

from mpi4py import MPI

import dolfinx
import numpy as np
import pytest
import ufl

from pdeopt.control import Checkpoints, UnsteadyControlProblem
from pdeopt.fem.time import BDF2, Theta
from pdeopt.problems import BurgersControl, HeatControl
from pdeopt.problems.manufactured_control import zero_on_boundary
from pdeopt.report import ConvergenceError, InputError, OptionError, ProblemError

comm = MPI.COMM_WORLD


def interval(cells):
    return dolfinx.mesh.create_interval(comm, cells, [-1.0, 1.0])


def orders(make):
    """Return the orders of state, control and adjoint when space and time are refined together."""
    coarse, fine = (make(cells) for cells in (16, 32))
    return {name: math.log2(coarse[name] / fine[name]) for name in coarse}


class HeatOrders:
    """Expected order in space and time together: a scheme each."""

    crank_nicolson = (Theta(0.5), 2.0)
    implicit_euler = (Theta(1.0), 1.0)
    bdf2 = (BDF2(), 2.0)


@pytest.mark.parametrize("name", ["crank_nicolson", "implicit_euler", "bdf2"])
def test_orders_of_state_control_and_adjoint(name):
    scheme, expected = getattr(HeatOrders, name)

    def errors(cells):
        case = HeatControl(interval(cells), cells, scheme=scheme)
        report = case.problem.solve()
        assert report.method.startswith("FGMRES + PRESB")
        found = case.errors()
        case.problem.destroy()
        return found

    found = orders(errors)
    # With the implicit Euler scheme the state is better than its order on coarse meshes.
    assert min(found.values()) > expected - 0.1
    assert found["control"] < expected + 0.2


def test_second_order_needs_the_quadrature_that_suits_the_adjoint(monkeypatch):
    # BDF2 with the trapezoidal rule: state fine, adjoint wrong in the last step.
    monkeypatch.setattr(BDF2, "state_weights", Theta.state_weights)
    monkeypatch.setattr(BDF2, "theta", 0.5, raising=False)

    def errors(cells):
        case = HeatControl(interval(cells), cells, scheme=BDF2())
        case.problem.solve()
        return case.errors()

    assert orders(errors)["control"] < 1.8


def test_burgers_orders():
    def errors(cells):
        case = BurgersControl(dolfinx.mesh.create_unit_interval(comm, cells), cells)
        case.problem.solve()
        return case.errors()

    assert min(orders(errors).values()) > 1.9


@pytest.mark.parametrize("scheme", [Theta(0.5), Theta(1.0), BDF2()], ids=lambda scheme: scheme.name)
def test_taylor_orders_and_symmetry_of_a_nonlinear_problem(scheme):
    case = BurgersControl(dolfinx.mesh.create_unit_interval(comm, 12), 8, scheme=scheme)
    report = case.problem.taylor_test()
    assert report.gradient_order >= 1.99
    assert report.hessian_order >= 2.95
    assert case.problem.check_symmetry() <= 1e-12


EXPECTED = (0.3049858540647649, -0.18504496246986638, 0.5909804156781008)  # cost, slope and curvature at 0.5


def everything(checkpoints=None):
    """A nonlinear problem with a field, a number and the initial state as controls, and all kinds of objectives."""
    mesh = dolfinx.mesh.create_unit_square(comm, 6, 6)
    space = dolfinx.fem.functionspace(mesh, ("Lagrange", 1))
    y, u = dolfinx.fem.Function(space), dolfinx.fem.Function(space)
    inflow, time = dolfinx.fem.Constant(mesh, 0.5), dolfinx.fem.Constant(mesh, 0.0)
    x, v = ufl.SpatialCoordinate(mesh), ufl.TestFunction(space)
    y.interpolate(lambda x: x[0] * (1 - x[0]) * np.sin(np.pi * x[1]))
    source = ufl.sin(3 * time) * x[0]
    return UnsteadyControlProblem(
        state_equation=ufl.inner((1 + y**2) * ufl.grad(y), ufl.grad(v)) * ufl.dx + (y**3 - u - source) * v * ufl.dx
        - inflow * x[1] * v * ufl.ds,
        mass=(1 + x[0]) * y * v * ufl.dx,
        state=y,
        control=[u, inflow],
        interval=(0.2, 1.0),
        steps=6,
        time=time,
        running_objective=0.5 * (y - ufl.cos(time)) ** 2 * ufl.dx + 0.05 * u**2 * ufl.dx + 0.1 * inflow**2 * ufl.dx,
        terminal_objective=(y - 1) ** 4 * ufl.dx,
        initial_objective=0.3 * (y - x[0]) ** 2 * ufl.dx,
        control_initial_state=True,
        bcs=[zero_on_boundary_left(space)],
        scheme=BDF2(),
        checkpoints=checkpoints,
    )  # fmt: skip


def zero_on_boundary_left(space):
    mesh = space.mesh
    facets = dolfinx.mesh.locate_entities_boundary(mesh, 1, lambda x: np.isclose(x[0], 0.0))
    return dolfinx.fem.dirichletbc(0.0, dolfinx.fem.locate_dofs_topological(space, 1, facets), space)


def test_all_kinds_of_controls_and_objectives():
    problem = everything()
    report = problem.taylor_test()
    assert report.gradient_order >= 1.99
    assert report.hessian_order >= 2.95
    assert problem.check_symmetry() <= 1e-11
    before = problem.objective_value()
    after = problem.solve(method="bntr").quantities["objective"]
    assert after < 0.8 * before
    problem.destroy()


@pytest.mark.parallel([1, 2, 3])
def test_derivatives_do_not_depend_on_the_rank_count_or_on_checkpoints(shared_tmp_path):
    problem = everything()
    functional = problem.functional
    control, gradient, product = (functional.create_vector() for _ in range(3))
    control.array[:] = 0.5  # a field that needs no numbering
    functional.derivative(control, gradient)
    functional.hessian_action(control, control, product)
    found = (functional.value(control), gradient.dot(control), product.dot(control))
    assert found == pytest.approx(EXPECTED, rel=1e-10)
    other = everything(Checkpoints(1, 1, shared_tmp_path)).functional
    again, action = other.create_vector(), other.create_vector()
    other.derivative(control, again)
    sweep = other.sweep
    other.hessian_action(control, control, action)
    # From three ranks on, sums arrive in another order each time, with checkpoints or without.
    allowed = 0.0 if comm.size < 3 else 1e-15
    assert np.abs(again.array_r - gradient.array_r).max(initial=0.0) <= allowed
    assert np.abs(action.array_r - product.array_r).max(initial=0.0) <= allowed
    assert (sweep.peak_in_memory, sweep.peak_on_disk) == (1, 1)
    assert sweep.forward_steps > 6
    problem.destroy()
    other.destroy()
    assert list(shared_tmp_path.iterdir()) == []


def test_checkpoints_bound_the_memory():
    steps, cells = 40, 32
    size = (cells + 1) * 8
    peaks = {}
    for checkpoints in (None, Checkpoints(4)):
        case = BurgersControl(dolfinx.mesh.create_unit_interval(comm, cells), steps, checkpoints=checkpoints)
        functional = case.problem.functional
        control, gradient = functional.create_vector(), functional.create_vector()
        functional.derivative(control, gradient)
        peaks[checkpoints] = functional.sweep.peak_bytes / size
        assert functional.sweep.peak_in_memory == (4 if checkpoints else 0)
        case.problem.destroy()
    assert peaks[None] == steps + 1
    assert peaks[Checkpoints(4)] <= 2 * 4 + 3  # a checkpoint is two states, the running step three


@pytest.mark.parallel([1, 2])
def test_all_at_once_and_trust_region_find_the_same_optimum():
    mesh = dolfinx.mesh.create_rectangle(comm, [[-1, -1], [1, 1]], [8, 8])
    iterations = []
    for bounds in (None, (-np.inf, 60.0)):
        found = []
        for method in ("all_at_once", "bntr"):
            case = HeatControl(mesh, 8, bounds=bounds)
            report = case.problem.solve(method=method)
            found.append((report.quantities["objective"], case.problem.functional.values.copy()))
            iterations.append(report.linear_iterations)
            case.problem.destroy()
        assert found[0][0] == pytest.approx(found[1][0], rel=1e-10)
        assert np.abs(found[0][1] - found[1][1]).max(initial=0.0) <= 1e-4
    assert 8 <= iterations[0] <= 22


def test_iterations_do_not_grow_with_the_number_of_steps():
    mesh = dolfinx.mesh.create_rectangle(comm, [[-1, -1], [1, 1]], [8, 8])
    counts = []
    for steps in (8, 64):
        case = HeatControl(mesh, steps)
        counts.append(case.problem.solve(method="all_at_once").linear_iterations)
        case.problem.destroy()
    assert counts[1] <= 1.25 * counts[0]


def test_active_sets_that_cycle_leave_the_work_to_the_trust_region():
    mesh = dolfinx.mesh.create_rectangle(comm, [[-1, -1], [1, 1]], [8, 8])
    case = HeatControl(mesh, 4, bounds=(20.0, 100.0))
    with pytest.raises(ConvergenceError, match="all time steps"):
        case.problem.solve(method="all_at_once")
    report = case.problem.solve()
    assert report.method.startswith("TAO bntr")
    values = case.problem.functional.values
    assert values.min() >= 20.0 - 1e-9
    assert values.max() <= 100.0 + 1e-9
    case.problem.destroy()


def test_mistakes_are_named():
    mesh = dolfinx.mesh.create_unit_interval(comm, 4)
    space = dolfinx.fem.functionspace(mesh, ("Lagrange", 1))
    y, u, v = dolfinx.fem.Function(space), dolfinx.fem.Function(space), ufl.TestFunction(space)
    dx = ufl.dx
    good = {
        "state_equation": ufl.inner(ufl.grad(y), ufl.grad(v)) * dx - u * v * dx, "state": y, "control": u,
        "interval": (0.0, 1.0), "steps": 4, "running_objective": y**2 * dx + u**2 * dx,
        "bcs": [zero_on_boundary(space)],
    }  # fmt: skip
    bad = [
        ({"steps": 0}, "0 steps"),
        ({"interval": (1.0, 1.0)}, "start < end"),
        ({"interval": (0.0, math.inf)}, "start < end"),
        ({"running_objective": None}, "no objective"),
        ({"running_objective": (y + u) ** 2 * dx}, "contains state and control"),
        ({"running_objective": y**2 * dx}, "not curved in control 0"),
        ({"control": []}, "no control"),
        ({"control_initial_state": True}, "initial_objective"),
        ({"mass": y * dx}, "mass has neither"),
        ({"mass": 3.0}, "mass is a float"),
        ({"bounds": (1.0, 0.0)}, "exceeds"),
        ({"bcs": [None]}, "bcs"),
    ]
    for change, words in bad:
        with pytest.raises(ProblemError, match=words):
            UnsteadyControlProblem(**(good | change))
    for make, words in (
        (lambda: Theta(0.3), "theta is 0.3"),
        (lambda: Checkpoints(0), "at least one"),
        (lambda: UnsteadyControlProblem(**(good | {"scheme": BDF2(), "steps": 2})), "at least 3 steps"),
    ):
        with pytest.raises(InputError, match=words):
            make()
    problem = UnsteadyControlProblem(**good)
    with pytest.raises(OptionError, match="unknown"):
        problem.solve(method="guess")
    boundary = UnsteadyControlProblem(**(good | {"state_equation": ufl.inner(ufl.grad(y), ufl.grad(v)) * dx
                                                 - u * v * ufl.ds, "bcs": []}))  # fmt: skip
    with pytest.raises(OptionError, match="whole domain"):
        boundary.solve(method="all_at_once")
