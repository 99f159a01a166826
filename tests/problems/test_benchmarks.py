"""The benchmark problems of the literature: optima that are known, published values, and independent figures."""

import math

from mpi4py import MPI

import dolfinx
import numpy as np
import pytest
import ufl

from pdeopt import problems
from pdeopt.control import verify
from pdeopt.fem import forms
from pdeopt.optimise import minimise
from pdeopt.parallel import random_stream
from pdeopt.report import InputError, MeshError, OptionError

WORLD = MPI.COMM_WORLD


def square(cells, kind="triangle"):
    return dolfinx.mesh.create_unit_square(WORLD, cells, cells, getattr(dolfinx.mesh.CellType, kind))


def corner_mesh(angle, cells):
    return square(cells) if angle < 2.0 else problems.l_shape_mesh(WORLD, cells).mesh


def order(coarse, fine):
    return float(np.log2(coarse / fine))


def roughen(function, low, high):
    """Fill a function with noise, so that nothing cancels by symmetry."""
    function.x.array[:] = random_stream("benchmarks", 0, WORLD).uniform(low, high, function.x.array.size)
    function.x.scatter_forward()


# --- known optima -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("degree", "meshes", "bound"), [(1, (16, 32), 1.95), (2, (8, 16), 2.9)])
def test_bratu_converges_to_its_optimum(degree, meshes, bound):
    errors = []
    for cells in meshes:
        case = problems.BratuControl(square(cells), degree=degree)
        case.problem.solve(method="direct")
        errors.append(case.errors())
    for field in errors[0]:
        assert order(errors[0][field], errors[1][field]) >= bound, field


def residual_at_optimum(case, disturb=1.0):
    case.exact = {**case.exact, "adjoint": disturb * case.exact["adjoint"]}
    case.set_optimum()
    return case.problem.solve(method="direct").residuals[0]


def test_the_optima_solve_the_optimality_systems():
    """Residuals at the interpolated optima fall with the mesh size; at 1.5 times the right adjoint they do not."""
    for build, bound in (
        (lambda cells: problems.BratuControl(square(cells), delta=3.0), 1.9),
        (lambda cells: problems.BoundedBoundaryControl(square(cells)), 1.2),
    ):
        right = [residual_at_optimum(build(cells)) for cells in (16, 32)]
        wrong = [residual_at_optimum(build(cells), 1.5) for cells in (16, 32)]
        assert order(*right) >= bound
        assert order(*wrong) <= 0.3
        assert wrong[1] >= 5.0 * right[1]


@pytest.mark.parametrize(
    ("angle", "meshes", "adjoint_order"), [(math.pi / 2, (16, 32), 1.95), (3 * math.pi / 2, (8, 16), 1.3)]
)
def test_boundary_control_between_bounds_at_a_corner(angle, meshes, adjoint_order):
    """The singular exponent 2/3 of the L-shape shows in the order 4/3 of the adjoint; both bounds are active."""
    errors = []
    for cells in meshes:
        case = problems.BoundedBoundaryControl(corner_mesh(angle, cells), angle)
        case.problem.solve(method="direct")
        errors.append(case.errors())
    assert order(errors[0]["adjoint"], errors[1]["adjoint"]) >= adjoint_order
    assert order(errors[0]["control"], errors[1]["control"]) >= min(1.4, adjoint_order - 0.3)
    if angle > math.pi:
        assert order(errors[0]["adjoint"], errors[1]["adjoint"]) <= 1.4
        assert order(errors[0]["state"], errors[1]["state"]) >= 1.2
    values = case.control.x.array
    assert values.min() == -0.5
    assert values.max() == 0.5


# --- published values -------------------------------------------------------------------------------------------------


def test_maurer_and_mittelmann():
    """Linear elements converge to the least objective by order 2; bounds on the control hold it, the state's do not."""
    values = []
    for cells in (16, 32):
        case = problems.MaurerMittelmannControl(square(cells), ceiling=None)
        case.problem.solve(method="direct")
        values.append(case.problem.objective_value())
    assert (4.0 * values[1] - values[0]) / 3.0 == pytest.approx(case.LEAST_OBJECTIVE, rel=3e-5)
    assert (case.control.x.array.min(), case.control.x.array.max()) == (-8.0, 9.0)
    assert case.problem.state.x.array.max() <= 0.371
    published = case.PUBLISHED_OBJECTIVES
    assert 2 * published[200] - published[100] == pytest.approx(case.LEAST_OBJECTIVE, rel=3e-4)


def test_bounds_on_the_state_are_kept_and_refused_by_solve():
    case = problems.MaurerMittelmannControl(square(4), ceiling=0.3)
    bounds = case.problem.state_bounds
    assert np.all(bounds.upper == 0.3)
    assert np.all(np.isneginf(bounds.lower))
    for method in (None, "direct", "bqnls"):
        with pytest.raises(OptionError, match=r"pdeopt\.optimise\.minimise"):
            case.problem.solve(method=method)
    assert problems.MaurerMittelmannControl(square(4), ceiling=None).problem.state_bounds is None


def test_the_obstacle_problem_to_the_published_digits():
    """On the published mesh: 13 digits of the objective, and what is published of the norms."""
    case = problems.ObstacleControl(square(128))
    case.problem.solve(method="direct", rtol=1e-10)
    assert case.problem.objective_value() == pytest.approx(case.PUBLISHED_OBJECTIVE, rel=1e-13)
    squares = {case.problem.state: 0.00232945325255, case.control: 0.0217167930891}
    for function, norm in squares.items():
        assert forms.assemble_scalar(forms.compile_form(function**2 * ufl.dx)) ** 0.5 == pytest.approx(norm, rel=1e-6)


def test_the_stokes_flow_around_the_obstacle():
    """With as many vertices as the published mesh had, between the published values of both ways to impose g."""
    data = problems.obstacle_mesh(WORLD)
    assert abs(data.mesh.topology.index_map(0).size_global - 2047) <= 60
    case = problems.StokesDirichletControl(data)
    report = case.problem.solve(method="direct")
    assert report.iterations <= 2  # linear-quadratic
    value = case.problem.objective_value()
    assert case.PUBLISHED_NITSCHE_OBJECTIVE < value < case.PUBLISHED_OBJECTIVE
    assert value == pytest.approx(case.LEAST_OBJECTIVE, rel=3e-3)


# --- independent figures ----------------------------------------------------------------------------------------------


@pytest.mark.parallel([1, 2, 3])
def test_the_examples_of_rees_dollar_and_wathen_are_those_of_cutest():
    mesh = square(8, "quadrilateral")
    for example in (1, 2):
        for bounded in (False, True):
            case = problems.ReesDollarWathenControl(mesh, example, bounded=bounded)
            case.problem.solve(method="direct")
            name = f"RDW2D5{example}{'F' if bounded else 'U'}"
            assert case.problem.objective_value() == pytest.approx(case.CUTEST_OBJECTIVES[name], rel=1e-9), name
    bounds = problems.ReesDollarWathenControl(mesh, 2, bounded=True, state_bounded=True).problem.state_bounds
    assert WORLD.allreduce(int(np.sum(bounds.upper == 0.01))) == 49  # the vertices inside
    assert WORLD.allreduce(int(np.sum(np.isinf(bounds.upper)))) == 32


def test_the_temperature_of_a_uniform_conductor():
    """By symmetry it is a quarter of the torsion function of a square of side 2: of integral 16 * 0.0351443."""
    values = []
    for cells in (16, 32):
        case = problems.PoissonTopology(square(cells))
        functional = case.problem.reduced_functional()
        control = functional.create_vector()
        functional.get_control(control)
        values.append(functional.value(control))
        control.destroy()
        functional.destroy()
    exact = 1e-4 * 4.0 * 0.03514425 / (1e-3 + (1.0 - 1e-3) * 0.4**5)
    assert (4.0 * values[1] - values[0]) / 3.0 == pytest.approx(exact, rel=1e-4)
    assert abs(case.problem.system.constraint_values()[0]) <= 1e-14


def test_the_streams_of_the_double_pipe():
    """Each brings 1/9, and what flows in flows out; a third of the box is open."""
    case = problems.StokesDoublePipe(WORLD, 12)
    functional = case.problem.reduced_functional()
    control = functional.create_vector()
    functional.get_control(control)
    functional.value(control)
    velocity, x = ufl.split(case.problem.state)[0], ufl.SpatialCoordinate(case.control.function_space.mesh)
    right = ufl.conditional(ufl.gt(x[0], 0.75), 1.0, 0.0)
    flux = ufl.dot(velocity, ufl.FacetNormal(case.control.function_space.mesh))
    for share, total in ((right, 2.0 / 9.0), (1.0 - right, -2.0 / 9.0)):
        assert forms.assemble_scalar(forms.compile_form(share * flux * ufl.ds)) == pytest.approx(total, rel=1e-10)
    assert abs(case.problem.system.constraint_values()[0]) <= 1e-14
    control.destroy()
    functional.destroy()


# By IPOPT in the space of states and controls, with exact second derivatives, to 1e-6 and better.
IPOPT = {
    "bound on the state": (lambda: problems.MaurerMittelmannControl(square(12), ceiling=0.3), 0.0803881073734914),
    "bounds on both": (
        lambda: problems.ReesDollarWathenControl(square(8, "quadrilateral"), 2, bounded=True, state_bounded=True),
        problems.ReesDollarWathenControl.CUTEST_OBJECTIVES["RDW2D52B"],
    ),
    "bounds and a constraint": (lambda: problems.StokesDoublePipe(WORLD, 6), 28.721892743805217),
}


@pytest.mark.parametrize("name", IPOPT)
def test_optima_between_bounds_are_those_of_ipopt(name):
    build, value = IPOPT[name]
    case = build()
    minimise(case.problem)
    assert case.problem.objective_value() == pytest.approx(value, rel=1e-6)
    for bounds in case.problem.bounds:
        assert np.all(case.control.x.array <= bounds.upper + 1e-6)
        assert np.all(case.control.x.array >= bounds.lower - 1e-6)
    if case.problem.state_bounds is not None:
        excess = np.max(case.problem.state.x.array - case.problem.state_bounds.upper)
        assert -1e-4 <= excess <= 1e-6  # active, and kept


# --- derivatives ------------------------------------------------------------------------------------------------------


def taylor_report(problem):
    """Steps are not so small that the tolerance of the state equation shows."""
    functional = problem.reduced_functional()
    try:
        return verify.taylor_test(functional, steps=0.5 * 0.25 ** np.arange(7))
    finally:
        functional.destroy()


def bratu():
    case = problems.BratuControl(square(6))
    roughen(case.control, -1.0, 1.0)
    return case.problem


def maurer_mittelmann():
    case = problems.MaurerMittelmannControl(square(6))
    roughen(case.control, -1.0, 1.0)
    return case.problem


def poisson_topology():
    case = problems.PoissonTopology(square(6))
    roughen(case.control, 0.2, 0.6)
    return case.problem


def double_pipe():
    case = problems.StokesDoublePipe(WORLD, 6, penalty=0.1)
    roughen(case.control, 0.2, 0.4)
    return case.problem


def complementarity():
    case = problems.ObstacleComplementarityControl(square(6))
    roughen(case.control, 0.01, 0.03)
    roughen(case.force, 0.0, 0.1)
    return case.problem


@pytest.mark.parametrize("build", [bratu, maurer_mittelmann, poisson_topology, double_pipe, complementarity])
def test_taylor_remainders(build):
    report = taylor_report(build())
    assert report.passed, str(report)
    assert report.gradient_order <= 2.05  # not a vacuous test at rounding


def test_taylor_remainders_of_the_smoothed_obstacle():
    """The maximum is smooth but once: the Hessian jumps, and only between its jumps is the order 3."""
    case = problems.ObstacleControl(square(8))
    roughen(case.control, 0.01, 0.03)
    functional = case.problem.reduced_functional()
    assert verify.taylor_test(functional, hessian=False).gradient_order >= 1.99
    assert verify.taylor_test(functional, steps=[4e-5, 1e-5, 2.5e-6]).hessian_order >= 2.9
    functional.destroy()


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: problems.BratuControl(square(2), delta=7.5), InputError, "delta = 7.5"),
        (lambda: problems.BratuControl(square(2), alpha=0.2), InputError, "alpha = 0.2"),
        (lambda: problems.BoundedBoundaryControl(square(2), math.pi), MeshError, "area 1, the domain .* has 2"),
        (lambda: problems.ReesDollarWathenControl(square(2), 3), InputError, "example = 3"),
        (lambda: problems.StokesDoublePipe(WORLD, 2), InputError, "cells = 2"),
        (lambda: problems.PoissonTopology(dolfinx.mesh.create_unit_cube(WORLD, 1, 1, 1)), MeshError, "unit square"),
        (lambda: problems.obstacle_mesh(WORLD, 0.0), InputError, "edge = 0.0"),
    ],
)
def test_mistakes(build, error, message):
    with pytest.raises(error, match=message):
        build()
