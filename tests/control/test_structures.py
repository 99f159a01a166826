"""Boundary, partial, nonlinear, constrained, real-valued and several controls: all methods find one optimum."""

from mpi4py import MPI
from petsc4py import PETSc

import dolfinx
import numpy as np
import pytest
import ufl

from pdeopt.control import ControlProblem


def build(kind, cells=12, alpha=1e-4):
    mesh = dolfinx.mesh.create_unit_square(MPI.COMM_WORLD, cells, cells)
    space = dolfinx.fem.functionspace(mesh, ("Lagrange", 1))
    y, u, v = dolfinx.fem.Function(space), dolfinx.fem.Function(space), ufl.TestFunction(space)
    x, dx, ds = ufl.SpatialCoordinate(mesh), ufl.dx(mesh), ufl.ds(mesh)
    elliptic = ufl.inner(ufl.grad(y), ufl.grad(v)) * dx + y * v * dx
    misfit = 0.5 * (y - x[0] * (1 - x[0])) ** 2
    distributed = {
        "objective": misfit * dx + 0.5 * alpha * u**2 * dx,
        "state_equation": elliptic - u * v * dx,
        "state": y,
        "control": u,
    }
    if kind == "boundary":
        change = {
            "objective": misfit * dx + 0.5 * alpha * u**2 * ds,
            "state_equation": elliptic - u * v * ds,
        }
    elif kind == "partial observation":
        seen = ufl.conditional(ufl.lt(x[0], 0.5), 1.0, 0.0)
        change = {"objective": seen * misfit * dx + 0.5 * alpha * u**2 * dx}
    elif kind == "nonlinear":
        change = {"state_equation": elliptic + y**3 * v * dx - u * v * dx}
    elif kind == "constraint":
        change = {"constraints": [(y - 0.2) * dx]}
    elif kind == "real-valued":
        c = dolfinx.fem.Constant(mesh, np.zeros(2))
        change = {
            "control": c,
            "objective": misfit * dx + 0.5 * alpha * ufl.inner(c, c) * dx,
            "state_equation": elliptic - (c[0] + c[1] * x[0]) * v * dx,
        }
    else:
        w = dolfinx.fem.Function(dolfinx.fem.functionspace(mesh, ("DG", 0)))
        change = {
            "control": [u, w],
            "objective": misfit * dx + 0.5 * alpha * (u**2 + w**2) * dx,
            "state_equation": elliptic - (u + 2 * w) * v * dx,
        }
    return ControlProblem(**(distributed | change)), y, dx


KINDS = ("boundary", "partial observation", "nonlinear", "constraint", "real-valued", "several")


# On three ranks other tests have these structures: of the model problems, of reduced functionals, of tapes.
@pytest.mark.parallel([1, 2])
def test_every_structure_by_every_method():
    for kind in KINDS:
        values = []
        for method in ("direct", None, "reduced_hessian"):
            problem, y, dx = build(kind)
            report = problem.solve(method=method)
            assert report.quantities["relative KKT residual (Riesz)"] <= 1e-8, (kind, method)
            values.append(problem.objective_value())
            if kind == "constraint":
                mean = MPI.COMM_WORLD.allreduce(dolfinx.fem.assemble_scalar(dolfinx.fem.form(y * dx)))
                assert abs(mean - 0.2) <= 1e-10
        assert values == pytest.approx([values[0]] * 3, rel=1e-7), kind


def test_the_optimum_is_a_minimum_of_the_reduced_objective():
    """A small move of a real-valued control, the state solved again, must not lower the objective."""
    problem, y, _ = build("real-valued")
    problem.solve()
    best = problem.objective_value()
    control = problem.controls[0]
    optimum = control.coordinates()
    system = problem.system
    for move in ([1e-2, 0.0], [-1e-2, 0.0], [0.0, 1e-2], [0.0, -1e-2]):
        control.set_coordinates(optimum + np.array(move))
        residual = system.layout.create_vector()
        system.residual(residual)
        operator = system.assemble_state_operator()
        right, correction = operator.createVecs()
        right.array[:] = system.layout.read(residual, system.adjoint_field)
        solver = PETSc.KSP().create(MPI.COMM_WORLD)
        solver.setOperators(operator)
        solver.setType("preonly")
        solver.getPC().setType("lu")
        solver.solve(right, correction)
        y.x.array[:] -= correction.array_r
        assert problem.objective_value() > best
