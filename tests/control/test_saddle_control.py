"""Control of flows: state and adjoint solves by the setups of `pdeopt.fem.saddle`."""

from mpi4py import MPI

import numpy as np
import pytest
import ufl
from dolfinx import fem

from pdeopt.bench import saddle_cases as cases
from pdeopt.control import ControlProblem
from pdeopt.fem import saddle
from pdeopt.report import ConvergenceError


def flow_control(cells, viscosity, setup=None, convection=1.0, flow="step", **options):
    """A body force that calms the flow behind a step, or in a cavity."""
    space, conditions = (cases.step if flow == "step" else cases.cavity)(cases.flow_mesh(MPI.COMM_WORLD, flow, cells))
    state = fem.Function(space)
    force = fem.Function(fem.functionspace(space.mesh, ("Lagrange", 1, (2,))))
    (u, p), (v, q) = ufl.split(state), ufl.TestFunctions(space)
    equation = viscosity * ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx
    equation += (-p * ufl.div(v) - q * ufl.div(u) - ufl.inner(force, v)) * ufl.dx
    if convection:
        equation += ufl.inner(ufl.dot(ufl.grad(u), u), v) * ufl.dx
    solver = None
    if setup == "stokes":
        solver = saddle.stokes(space, viscosity)
    elif setup is not None:
        solver = saddle.navier_stokes(space, u, viscosity, method=setup)
    if solver is not None:
        solver.options.update(options)
    return ControlProblem(
        objective=0.5 * ufl.inner(u, u) * ufl.dx + 0.5e-2 * ufl.inner(force, force) * ufl.dx,
        state_equation=equation,
        state=state,
        control=force,
        bcs=conditions,
        state_solver=solver,
    )


@pytest.mark.parallel(2)
def test_gradient_on_two_ranks():
    """Newton's state solves and the adjoint ones, on two ranks."""
    assert flow_control(4, 0.05, "pcd").taylor_test(hessian=False).gradient_order >= 1.99


def test_hessian():
    assert flow_control(4, 0.05, "pcd").taylor_test().hessian_order >= 2.95


@pytest.mark.parametrize("setup", ["pcd", "lsc", "augmented_lagrangian"])
def test_second_derivatives_solve_in_both_directions(setup):
    """A wrong adjoint preconditioner does not converge, and a wrong solve is not symmetric."""
    assert flow_control(4, 0.05, setup).check_symmetry() <= 1e-10


def test_enclosed_flow_has_a_gradient_too():
    """The state operator is singular there, which a factorisation does not survive."""
    assert flow_control(4, 0.05, "pcd", flow="cavity").taylor_test(hessian=False).gradient_order >= 1.99


def test_the_optimum_is_that_of_factorisations():
    """Linear flow: reduced Hessian and quasi-Newton with block preconditioners against MUMPS on the KKT system."""
    reference = flow_control(4, 1.0, convection=0.0)
    wanted = reference.solve(method="direct").quantities["objective"]
    for method in ("reduced_hessian", "bqnls"):
        problem = flow_control(4, 1.0, "stokes", convection=0.0)
        assert problem.solve(method=method).quantities["objective"] == pytest.approx(wanted, rel=1e-8), method
        difference = problem.given_controls[0].x.array - reference.given_controls[0].x.array
        assert np.linalg.norm(difference) <= 1e-4 * np.linalg.norm(reference.given_controls[0].x.array), method


@pytest.mark.parametrize("convection", [0.0, 1.0])
def test_a_state_solve_that_fails_is_an_error(convection):
    problem = flow_control(4, 0.05, "pcd" if convection else "stokes", convection=convection, ksp_max_it=2)
    with pytest.raises(ConvergenceError, match="could not be solved"):
        problem.solve(method="bqnls")
