"""Distributed control of the steady Navier-Stokes equations, with a known optimum."""

import math

import basix.ufl
import dolfinx
import numpy as np
import ufl
from dolfinx import fem
from ufl.core.expr import Expr

from pdeopt.control import ControlProblem
from pdeopt.fem import forms
from pdeopt.problems.linear import Mesh, check_range
from pdeopt.problems.manufactured_control import ManufacturedControl, unit_cube_dimension
from pdeopt.report import InputError


class NavierStokesControl(ManufacturedControl):
    r"""Minimise |y - d|^2 / 2 + alpha |u|^2 / 2 subject to the steady Navier-Stokes equations with force u + f.

    On the unit square, y = 0 on its boundary, with velocity y, pressure p, the multipliers z, q and nu = 1 / Re,

        -nu laplace y + (y . grad) y + grad p = u + f,    div y = 0.

    With the curls of two stream functions, curl s = (ds/dx_1, -ds/dx_0), choose

        y* = curl(sin^2(pi x_0) sin^2(pi x_1)) / pi,    p* = (cos(pi x_0) cos(pi x_1) - 1) / 2,
        u* = curl(sin^2(pi x_0) sin^2(2 pi x_1)) / 2 pi,    z* = alpha u*,    q* = 0,

    so that alpha u - z vanishes. The state equation gives f; the adjoint equation gives the target

        d = y* - nu laplace z* + (grad y*)' z* - (y* . grad) z*.

    All speeds are at most about 1, so Re is the Reynolds number of the flow. The second derivative of convection adds
    to the Hessian by the state a term of the size of z*, so for small alpha the stationary point is a strict local
    minimum. The pressures are fixed by their value at the origin. All quantities are dimensionless.

    Parameters
    ----------
    mesh
        A mesh of the unit square.
    alpha
        Regularisation, > 0.
    reynolds
        Re, > 0.
    degree
        Degree of the velocity and the control, >= 2; the pressure has one degree less.

    Attributes
    ----------
    problem
        The control problem; its state is velocity and pressure on Taylor-Hood elements.
    control
        The force u, set by ``problem.solve()``.

    Raises
    ------
    InputError
        If a number is out of range or the mesh is of another domain (`MeshError`).

    Collective: yes.
    """

    def __init__(self, mesh: Mesh, alpha: float = 1e-4, reynolds: float = 100.0, degree: int = 2) -> None:
        check_range("alpha", alpha, 0.0)
        check_range("reynolds", reynolds, 0.0)
        check_range("degree", degree, 1)
        if unit_cube_dimension(mesh) != 2:
            raise InputError("the problem is posed on the unit square: make its mesh with create_unit_square")
        cell = mesh.basix_cell()
        velocity_element = basix.ufl.element("Lagrange", cell, degree, shape=(2,))
        pressure_element = basix.ufl.element("Lagrange", cell, degree - 1)
        space = fem.functionspace(mesh, basix.ufl.mixed_element([velocity_element, pressure_element]))
        state = fem.Function(space, name="flow")
        control = fem.Function(fem.functionspace(mesh, velocity_element), name="force")
        # As numbers in the forms they would be compiled anew for every value.
        viscosity, weight = fem.Constant(mesh, 1.0 / reynolds), fem.Constant(mesh, float(alpha))
        x = ufl.SpatialCoordinate(mesh)
        sine = [ufl.sin(ufl.pi * x[i]) ** 2 for i in range(2)]
        exact_velocity = _curl(sine[0] * sine[1] / ufl.pi)
        exact_control = _curl(sine[0] * ufl.sin(2 * ufl.pi * x[1]) ** 2 / (2 * ufl.pi))
        exact_pressure = 0.5 * (ufl.cos(ufl.pi * x[0]) * ufl.cos(ufl.pi * x[1]) - 1.0)
        multiplier = weight * exact_control
        force = _convection(exact_velocity, exact_velocity) - viscosity * _laplacian(exact_velocity)
        force += ufl.grad(exact_pressure) - exact_control
        target = exact_velocity - viscosity * _laplacian(multiplier)
        target += ufl.grad(exact_velocity).T * multiplier - _convection(exact_velocity, multiplier)
        dx = ufl.dx(mesh, metadata={"quadrature_degree": 3 * degree})  # exact for the convection, data to its order
        velocity, pressure = ufl.split(state)
        velocity_test, pressure_test = ufl.TestFunctions(space)
        equation = viscosity * ufl.inner(ufl.grad(velocity), ufl.grad(velocity_test)) * dx
        equation += ufl.inner(_convection(velocity, velocity) - control - force, velocity_test) * dx
        equation -= (pressure * ufl.div(velocity_test) + pressure_test * ufl.div(velocity)) * dx
        misfit, given = velocity - target, control
        problem = ControlProblem(
            objective=0.5 * ufl.inner(misfit, misfit) * dx + 0.5 * weight * ufl.inner(given, given) * dx,
            state_equation=equation,
            state=state,
            control=control,
            bcs=_conditions(space),
        )
        exact = {
            "state": ufl.as_vector([exact_velocity[0], exact_velocity[1], exact_pressure]),
            "control": exact_control,
            "adjoint": ufl.as_vector([multiplier[0], multiplier[1], fem.Constant(mesh, 0.0)]),
        }
        super().__init__(problem, exact, ufl.dx(mesh, metadata={"quadrature_degree": 2 * degree + 3}))

    def errors(self) -> dict[str, float]:
        """Return the L2 errors of velocity, pressure (mean removed), control, and adjoint velocity. Collective: yes."""
        dx, exact = self._measures["state"], self.exact
        velocity, pressure = ufl.split(self.problem.state)
        adjoint, _ = ufl.split(self.problem.adjoint)

        def integral(integrand: Expr) -> float:
            return forms.assemble_scalar(forms.compile_form(integrand * dx))

        def components(name: str) -> Expr:
            return ufl.as_vector([exact[name][0], exact[name][1]])

        differences = {
            "velocity": velocity - components("state"),
            "control": self.control - components("control"),
            "adjoint": adjoint - components("adjoint"),
        }
        errors = {name: math.sqrt(integral(ufl.inner(error, error))) for name, error in differences.items()}
        error = pressure - exact["state"][2]
        return errors | {"pressure": math.sqrt(max(integral(error**2) - integral(error) ** 2, 0.0))}

    def set_optimum(self) -> None:
        """Set state, control and adjoint to the interpolants of the optimum. Collective: yes."""
        for name in ("state", "adjoint"):
            function = self._unknowns[name]
            for number, values in enumerate(
                (ufl.as_vector([self.exact[name][i] for i in (0, 1)]), self.exact[name][2])
            ):
                collapsed, dofs = function.function_space.sub(number).collapse()
                part = fem.Function(collapsed)
                part.interpolate(fem.Expression(values, collapsed.element.interpolation_points))
                function.x.array[dofs] = part.x.array
            function.x.scatter_forward()
        points = self.control.function_space.element.interpolation_points
        self.control.interpolate(fem.Expression(self.exact["control"], points))
        self.control.x.scatter_forward()


def _curl(stream: Expr) -> Expr:
    """Return a velocity without divergence."""
    slope = ufl.grad(stream)
    return ufl.as_vector([slope[1], -slope[0]])


def _convection(by: Expr, of: Expr) -> Expr:
    """Return (by . grad) of."""
    return ufl.dot(ufl.grad(of), by)


def _laplacian(field: Expr) -> Expr:
    return ufl.div(ufl.grad(field))


def _conditions(space: fem.FunctionSpace[np.float64]) -> list[fem.DirichletBC[np.float64]]:
    """Return the conditions that the velocity is zero on the boundary and the pressure at the origin."""
    mesh = space.mesh
    mesh.topology.create_connectivity(1, 2)
    velocities, _ = space.sub(0).collapse()
    pressures, _ = space.sub(1).collapse()
    facets = dolfinx.mesh.exterior_facet_indices(mesh.topology)
    walls = fem.locate_dofs_topological((space.sub(0), velocities), 1, facets)
    corner = fem.locate_dofs_geometrical(
        (space.sub(1), pressures), lambda x: np.isclose(x[0], 0.0) & np.isclose(x[1], 0.0)
    )
    return [
        fem.dirichletbc(fem.Function(velocities), walls, space.sub(0)),
        fem.dirichletbc(fem.Function(pressures), corner, space.sub(1)),
    ]
