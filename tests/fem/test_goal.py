"""Dual-weighted residuals: the identities they rest on, checked against solutions of their own, and effectivities."""

from mpi4py import MPI

import basix.ufl
import dolfinx
import dolfinx.fem.petsc
import numpy as np
import pytest
import ufl

from pdeopt.fem import forms
from pdeopt.fem.adapt import mark_doerfler, refine_mesh
from pdeopt.fem.goal import GoalEstimate, estimate_goal_error
from pdeopt.problems.l_shape import LShapePoisson, l_shape_mesh
from pdeopt.report import InputError

DIRECT = {"ksp_type": "preonly", "pc_type": "lu", "pc_factor_mat_solver_type": "mumps"}


def value_of(form: ufl.Form) -> float:
    """Assemble a functional."""
    return forms.assemble_scalar(forms.compile_form(form))


def newton(residual: ufl.Form, solution: dolfinx.fem.Function, bcs: list[dolfinx.fem.DirichletBC]) -> None:
    """Solve by DOLFINx's own Newton method."""
    problem = dolfinx.fem.petsc.NonlinearProblem(
        residual, solution, bcs=bcs, petsc_options_prefix="test_goal_", petsc_options={**DIRECT, "snes_rtol": 1e-13}
    )
    problem.solve()
    assert problem.solver.getConvergedReason() > 0


# Effectivity and cells of the third mesh of each loop. The tests of control problems repeat one of them on two ranks.
LOOPS = {"box mean": (0.8421145590, 172), "flux": (0.8777828950, 185), "mean square": (0.8886843729, 204)}


def test_effectivity_on_the_l_shape() -> None:
    for goal, (expected, cells) in LOOPS.items():
        data = l_shape_mesh(MPI.COMM_SELF)
        effectivities = []
        for step in range(3):
            problem = LShapePoisson(data)
            problem.solve()
            estimate = estimate_goal_error(problem.goals[goal], problem.residual, problem.solution, problem.bcs)
            effectivities.append(estimate.error / (problem.exact_goals[goal] - estimate.value))
            total = float(estimate.indicators.x.array.sum())
            assert abs(estimate.error) <= total * (1.0 + 1e-12)
            assert total <= 2.0 * abs(estimate.error)  # hardly any cancellation: the cells are blamed for what they do
            if step < 2:
                data = refine_mesh(data, mark_doerfler(estimate.indicators, 0.5))
        assert 0.5 <= min(effectivities) <= max(effectivities) <= 2.0, (goal, effectivities)
        assert data.mesh.topology.index_map(2).size_global == cells
        assert effectivities[-1] == pytest.approx(expected, rel=1e-6), goal


def test_a_wrong_equation_or_solution_is_seen() -> None:
    data = l_shape_mesh(MPI.COMM_SELF, 8)
    problem = LShapePoisson(data)
    problem.solve()
    goal, exact = problem.goals["mean"], problem.exact_goals["mean"]

    def effectivity(estimate: GoalEstimate) -> float:
        return estimate.error / (exact - estimate.value)

    def estimate(residual: ufl.Form, bcs: list[dolfinx.fem.DirichletBC]) -> GoalEstimate:
        return estimate_goal_error(goal, residual, problem.solution, bcs)

    right = estimate(problem.residual, problem.bcs)
    assert 0.5 <= effectivity(right) <= 2.0
    assert estimate(-3.0 * problem.residual, problem.bcs).error == pytest.approx(right.error)  # the same equation
    facets = data.facet_tags.find(data.tag("right edge"))
    dofs = dolfinx.fem.locate_dofs_topological(problem.space, 1, facets)
    half = [dolfinx.fem.dirichletbc(0.0, dofs, problem.space)]
    assert not 0.5 <= effectivity(estimate(problem.residual, half)) <= 2.0
    reaction = problem.residual + 30.0 * problem.solution * ufl.TestFunction(problem.space) * ufl.dx
    assert not 0.5 <= effectivity(estimate(reaction, problem.bcs)) <= 2.0
    problem.solution.x.array[:] *= 1.1
    assert not 0.5 <= effectivity(estimate(problem.residual, problem.bcs)) <= 2.0


def test_linear_problems_get_the_enriched_solution_s_value() -> None:
    """J(u_h) + estimate = J(u+), where u+ is solved by DOLFINx one degree higher: here Stokes flow, mixed elements."""
    mesh = dolfinx.mesh.create_unit_square(MPI.COMM_SELF, 5, 4)
    x = ufl.SpatialCoordinate(mesh)
    walls = dolfinx.mesh.locate_entities_boundary(mesh, 1, lambda x: np.isclose(x[1], 0.0) | np.isclose(x[1], 1.0))
    inlet = dolfinx.mesh.locate_entities_boundary(mesh, 1, lambda x: np.isclose(x[0], 0.0))

    def flow(degree: int) -> tuple[ufl.Form, ufl.Form, dolfinx.fem.Function, list[dolfinx.fem.DirichletBC]]:
        elements = [
            dolfinx.fem.functionspace(mesh, ("Lagrange", degree, (2,))),
            dolfinx.fem.functionspace(mesh, ("Lagrange", degree - 1)),
        ]
        space = dolfinx.fem.functionspace(mesh, basix.ufl.mixed_element([part.ufl_element() for part in elements]))
        unknown = dolfinx.fem.Function(space)
        (u, p), (v, q) = ufl.split(unknown), ufl.TestFunctions(space)
        source = ufl.as_vector([ufl.sin(5.0 * x[1]), 20.0 * x[0] ** 3])
        measure = ufl.dx(metadata={"quadrature_degree": 12})
        residual = (
            ufl.inner(ufl.grad(u), ufl.grad(v)) - p * ufl.div(v) - q * ufl.div(u) - ufl.dot(source, v)
        ) * measure
        velocity, _ = space.sub(0).collapse()
        profile = dolfinx.fem.Function(velocity)
        profile.interpolate(lambda x: np.array([x[1] * (1.0 - x[1]), 0.0 * x[0]]))
        dofs = [dolfinx.fem.locate_dofs_topological((space.sub(0), velocity), 1, facets) for facets in (walls, inlet)]
        bcs = [dolfinx.fem.dirichletbc(profile, both, space.sub(0)) for both in dofs]
        goal = (u[0] * x[1] ** 2 + 0.3 * p) * measure
        return goal, residual, unknown, bcs

    goal, residual, unknown, bcs = flow(2)
    newton(residual, unknown, bcs)
    estimate = estimate_goal_error(goal, residual, unknown, bcs)
    enriched_goal, enriched_residual, enriched, enriched_bcs = flow(3)
    newton(enriched_residual, enriched, enriched_bcs)
    difference = value_of(enriched_goal) - value_of(goal)
    assert abs(difference) > 1e-5
    assert estimate.value == pytest.approx(value_of(goal), rel=1e-14)
    assert estimate.error == pytest.approx(difference, rel=1e-8)


def test_nonlinear_problems_leave_a_remainder_of_third_order() -> None:
    """-laplace u + u^3 = f and J = int u^4: the estimate misses J(u+) - J(u_h) by less than the error's own order."""
    remainders, differences = [], []
    for cells in (4, 8):
        mesh = dolfinx.mesh.create_unit_square(MPI.COMM_SELF, cells, cells)
        x = ufl.SpatialCoordinate(mesh)
        source = 40.0 * ufl.sin(3.0 * x[0]) * (1.0 + x[1])
        values = []
        for degree in (1, 2):
            space = dolfinx.fem.functionspace(mesh, ("Lagrange", degree))
            u, v = dolfinx.fem.Function(space), ufl.TestFunction(space)
            measure = ufl.dx(metadata={"quadrature_degree": 10})
            residual = (ufl.inner(ufl.grad(u), ufl.grad(v)) + u**3 * v - source * v) * measure
            facets = dolfinx.mesh.locate_entities_boundary(mesh, 1, lambda x: np.isclose(x[0], 0.0))
            zero = dolfinx.fem.dirichletbc(0.0, dolfinx.fem.locate_dofs_topological(space, 1, facets), space)
            newton(residual, u, [zero])
            goal = u**4 * measure
            values.append(value_of(goal))
            if degree == 1:
                estimate = estimate_goal_error(goal, residual, u, [zero])
        differences.append(values[1] - values[0])
        remainders.append(abs(differences[-1] - estimate.error))
    assert 1.7 <= np.log2(abs(differences[0] / differences[1])) <= 2.3
    assert np.log2(remainders[0] / remainders[1]) >= 3.5, (remainders, differences)


def test_mistakes_are_named() -> None:
    problem = LShapePoisson(l_shape_mesh(MPI.COMM_SELF))
    test = ufl.TestFunction(problem.space)
    goal, residual, solution = problem.goals["mean"], problem.residual, problem.solution
    with pytest.raises(InputError, match="the goal must be a functional"):
        estimate_goal_error(solution * test * ufl.dx, residual, solution)
    with pytest.raises(InputError, match="in one test function"):
        estimate_goal_error(goal, goal, solution)
    with pytest.raises(InputError, match="must appear both in the goal and in the residual"):
        estimate_goal_error(goal, residual, dolfinx.fem.Function(problem.space))
    other = dolfinx.fem.functionspace(problem.space.mesh, ("Lagrange", 2))
    with pytest.raises(InputError, match="another space than the solution"):
        estimate_goal_error(goal, solution * ufl.TestFunction(other) * ufl.dx, solution)
