"""Dual-weighted residuals of optimality systems: the identities they rest on, and effectivities on the L-shape."""

from collections.abc import Callable

from mpi4py import MPI

import dolfinx
import numpy as np
import pytest
import ufl

from pdeopt import problems
from pdeopt.control import ControlProblem
from pdeopt.control.goal import estimate_objective_error, estimate_quantity_error
from pdeopt.fem import MeshData, forms
from pdeopt.fem.adapt import mark_doerfler, refine_mesh
from pdeopt.fem.goal import GoalEstimate, estimate_goal_error
from pdeopt.problems.l_shape import REFERENCE_OBJECTIVE, LShapeControl, LShapePoisson, l_shape_mesh
from pdeopt.report import ProblemError

WORLD = MPI.COMM_WORLD
RTOL = 1e-11


def value_of(form: ufl.Form) -> float:
    """Assemble a functional."""
    return forms.assemble_scalar(forms.compile_form(form))


def square(cells: int = 5) -> dolfinx.mesh.Mesh:
    """Return the unit square on this rank alone."""
    return dolfinx.mesh.create_unit_square(MPI.COMM_SELF, cells, cells)


def plate(degree: int) -> ControlProblem:
    """Return a problem with a bounded field, a boundary field, two bounded numbers, and a constraint."""
    mesh = square()
    space = dolfinx.fem.functionspace(mesh, ("Lagrange", degree))
    y, v, x = dolfinx.fem.Function(space), ufl.TestFunction(space), ufl.SpatialCoordinate(mesh)
    heating = dolfinx.fem.Function(dolfinx.fem.functionspace(mesh, ("DG", degree - 1)))
    flux, strengths = dolfinx.fem.Function(space), dolfinx.fem.Constant(mesh, np.zeros(2))
    metadata = {"quadrature_degree": 8}
    dx, ds, alpha = ufl.dx(metadata=metadata), ufl.ds(metadata=metadata), 1e-3
    source = heating + ufl.dot(strengths, ufl.as_vector([x[0] ** 3, x[1] * (1.0 - x[1])]))
    return ControlProblem(
        objective=0.5 * (y - x[0] * x[1]) ** 2 * dx
        + 0.5 * alpha * (heating**2 + ufl.dot(strengths, strengths)) * dx
        + 0.5 * alpha * flux**2 * ds,
        state_equation=(ufl.inner(ufl.grad(y), ufl.grad(v)) + y * v - source * v) * dx - flux * v * ds,
        state=y,
        control=[heating, flux, strengths],
        bounds=[(0.0, 0.1), None, (-1.0, 0.02)],
        constraints=[(y - 0.25) * dx],
    )


def l_shape(degree: int, bounds: tuple[float, float] | None) -> ControlProblem:
    """Return the problem on the L-shape, on this rank alone."""
    return LShapeControl(l_shape_mesh(MPI.COMM_SELF), degree=degree, bounds=bounds).problem


@pytest.mark.parametrize(
    "make", [lambda degree: l_shape(degree, (1.0, 12.0)), plate], ids=["bounds", "three controls, bounds, a constraint"]
)
def test_linear_quadratic_problems_get_the_enriched_optimum_s_objective(make: Callable[[int], ControlProblem]) -> None:
    """J(x_h) + estimate = J(x+): here x+ is the optimum of a problem written with elements one degree higher."""
    objectives = []
    for degree in (1, 2):
        problem = make(degree)
        problem.solve(method="direct", rtol=RTOL)
        objectives.append(problem.objective_value())
        if degree == 1:
            unknowns = [function.x.array.copy() for function in problem.system.lagrangian.unknowns]
            estimate = estimate_objective_error(problem)
            assert estimate.value == objectives[0]
            for before, function in zip(unknowns, problem.system.lagrangian.unknowns, strict=True):
                np.testing.assert_array_equal(function.x.array, before)  # the problem stays at its optimum
            assert estimate.indicators.x.array.min() >= 0.0
            assert estimate.indicators.x.array.sum() >= abs(estimate.error) * (1.0 - 1e-9)
    difference = objectives[1] - objectives[0]
    assert abs(difference) > 1e-4 * abs(objectives[0])
    assert estimate.error == pytest.approx(difference, rel=2e-6)


def test_quantities_of_linear_quadratic_problems_are_those_of_the_enriched_optimum() -> None:
    values = []
    for degree in (1, 2):
        case = LShapeControl(l_shape_mesh(MPI.COMM_SELF), degree=degree)
        case.problem.solve(method="direct", rtol=RTOL)
        quantity = case.box_mean + 0.1 * case.control * ufl.dx
        values.append(value_of(quantity))
        if degree == 1:
            estimate = estimate_quantity_error(case.problem, quantity)
            doubled = estimate_quantity_error(case.problem, 2.0 * quantity)
    assert abs(values[1] - values[0]) > 1e-3 * abs(values[0])
    assert estimate.error == pytest.approx(values[1] - values[0], rel=1e-7)
    assert doubled.error == pytest.approx(2.0 * estimate.error, rel=1e-10)


def test_nonlinear_problems_leave_a_remainder_of_higher_order() -> None:
    remainders, differences = [], []
    for cells in (4, 8):
        objectives = []
        for degree in (1, 2):
            case = problems.SemilinearControl(square(cells), degree=degree)
            case.problem.solve(method="direct", rtol=RTOL)
            objectives.append(case.problem.objective_value())
            if degree == 1:
                estimate = estimate_objective_error(case.problem)
        differences.append(abs(objectives[1] - objectives[0]))
        remainders.append(abs(objectives[1] - objectives[0] - estimate.error))
    # the objective of this problem converges with order 4 already
    order, remainder_order = np.log2(differences[0] / differences[1]), np.log2(remainders[0] / remainders[1])
    assert 3.5 <= order <= 4.5, differences
    assert remainder_order >= order + 1.0, remainders
    assert remainders[1] <= 0.01 * differences[1]


def test_a_point_that_is_no_optimum_is_seen() -> None:
    case = LShapeControl(l_shape_mesh(MPI.COMM_SELF, 8))
    case.problem.solve(method="direct")
    right = estimate_objective_error(case.problem)
    assert 0.5 <= right.error / (REFERENCE_OBJECTIVE - right.value) <= 2.0
    case.control.x.array[:] *= 1.2
    wrong = estimate_objective_error(case.problem)
    assert not 0.9 <= wrong.error / (REFERENCE_OBJECTIVE - wrong.value) <= 1.1


# Cells and effectivity of the third mesh of a loop on one rank: for the objective, and for a functional of a state.
LOOPS = {"objective": (332, 0.9787977), "mean square": (204, 0.8886844)}


def objective(data: MeshData) -> tuple[GoalEstimate, float]:
    """Return the estimate for the least objective, and its reference value."""
    case = LShapeControl(data)
    case.problem.solve(method="direct")
    estimate = estimate_objective_error(case.problem)
    case.problem.destroy()
    return estimate, REFERENCE_OBJECTIVE


def mean_square(data: MeshData) -> tuple[GoalEstimate, float]:
    """Return the estimate for a functional of a state, and its exact value."""
    case = LShapePoisson(data)
    case.solve()
    goal = case.goals["mean square"]
    return estimate_goal_error(goal, case.residual, case.solution, case.bcs), case.exact_goals["mean square"]


@pytest.mark.parallel([2])  # the numbers above are those of one rank
def test_effectivity_on_the_l_shape() -> None:
    for name, estimator in (("objective", objective), ("mean square", mean_square)):
        data = l_shape_mesh(WORLD)
        for step in range(3):
            estimate, exact = estimator(data)
            effectivity = estimate.error / (exact - estimate.value)
            assert 0.5 <= effectivity <= 2.0, name
            if step < 2:
                data = refine_mesh(data, mark_doerfler(estimate.indicators, 0.5))
        cells, expected = LOOPS[name]
        assert data.mesh.topology.index_map(2).size_global == cells
        assert effectivity == pytest.approx(expected, rel=1e-6), name


def test_mistakes_are_named() -> None:
    problem = l_shape(1, (0.0, 5.0))
    with pytest.raises(ProblemError, match="without bounds and extra constraints only"):
        estimate_quantity_error(problem, problem.state * ufl.dx)
    problem = l_shape(1, None)
    with pytest.raises(ProblemError, match="must be a functional"):
        estimate_quantity_error(problem, problem.state * ufl.TestFunction(problem.state.function_space) * ufl.dx)
    elsewhere = dolfinx.fem.Function(problem.state.function_space)
    with pytest.raises(ProblemError, match="neither on the state nor on a control"):
        estimate_quantity_error(problem, elsewhere * ufl.dx)
