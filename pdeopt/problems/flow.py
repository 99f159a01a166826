"""Stokes flow on Taylor-Hood elements: a symmetric saddle point."""

import basix.ufl
import dolfinx
import numpy as np
import ufl
from dolfinx import fem
from ufl.core.expr import Expr

from pdeopt.problems.linear import (
    LinearModelProblem,
    Marker,
    Mesh,
    check_mesh,
    check_range,
    dirichlet_condition,
    fixed_measure,
    smooth_scalar,
)


def stokes(
    mesh: Mesh, viscosity: float = 1.0, inflow_and_walls: Marker | None = None, degree: int = 2
) -> LinearModelProblem:
    r"""Return - viscosity div grad u + grad p = f, div u = 0, as one symmetric system for (u, p).

        a((u, p), (v, q)) = viscosity (grad u, grad v) - (p, div v) - (q, div u)

    The exact velocity is the curl of a smooth potential. It is prescribed on the whole boundary, where the pressure
    is fixed up to a constant, which is attached as nullspace; or on a part of it, with the exact pseudo-traction
    viscosity du/dn - p n on the rest, and then the pressure is unique.

    Parameters
    ----------
    mesh
        Any mesh of the plane or of space, of any cell type, with at least three cells.
    viscosity
        Kinematic viscosity, > 0.
    inflow_and_walls
        Marks the facets with prescribed velocity; None means the whole boundary.
    degree
        Degree of the velocity, >= 2; the pressure has one degree less.

    Raises
    ------
    InputError
        If ``viscosity`` or ``degree`` is out of range, the marker marks nothing, or the mesh is one-dimensional or a
        surface (`MeshError`).

    Collective: yes.

    References
    ----------
    Elman, Silvester and Wathen, Finite Elements and Fast Iterative Solvers, 2nd ed., Oxford 2014, chapter 3.
    """
    dimension = check_mesh(mesh)
    check_range("viscosity", viscosity, 0.0)
    check_range("degree", degree, 1)
    nu = fem.Constant(mesh, float(viscosity))
    cell = mesh.basix_cell()
    velocity_element = basix.ufl.element("Lagrange", cell, degree, shape=(dimension,))
    pressure_element = basix.ufl.element("Lagrange", cell, degree - 1)
    space = fem.functionspace(mesh, basix.ufl.mixed_element([velocity_element, pressure_element]))
    velocity, pressure = ufl.TrialFunctions(space)
    velocity_test, pressure_test = ufl.TestFunctions(space)

    exact_velocity, exact_pressure = _exact_flow(ufl.SpatialCoordinate(mesh))
    force = -nu * ufl.div(ufl.grad(exact_velocity)) + ufl.grad(exact_pressure)
    dx = fixed_measure(space)
    a = nu * ufl.inner(ufl.grad(velocity), ufl.grad(velocity_test)) * dx
    a -= (ufl.inner(pressure, ufl.div(velocity_test)) + ufl.inner(ufl.div(velocity), pressure_test)) * dx
    L = ufl.inner(force, velocity_test) * dx
    if inflow_and_walls is not None:
        # Over the whole boundary: elsewhere it only enters rows that the Dirichlet condition replaces.
        normal = ufl.FacetNormal(mesh)
        pseudo_traction = nu * ufl.dot(ufl.grad(exact_velocity), normal) - exact_pressure * normal
        L += ufl.inner(pseudo_traction, velocity_test) * fixed_measure(space, "ds")
    return LinearModelProblem(
        name="stokes",
        a=a,
        L=L,
        space=space,
        bcs=[dirichlet_condition(space.sub(0), exact_velocity, inflow_and_walls)],
        exact=ufl.as_vector([*(exact_velocity[i] for i in range(dimension)), exact_pressure]),
        symmetric=True,
        definite=False,
        fields=("velocity", "pressure"),
        nullspace=[_constant_pressure(space)] if inflow_and_walls is None else [],
    )


def _exact_flow(x: Expr) -> tuple[Expr, Expr]:
    """Return a velocity without divergence and a pressure, both smooth."""
    if x.ufl_shape == (2,):
        stream = ufl.grad(smooth_scalar(x))
        velocity = ufl.as_vector([stream[1], -stream[0]])
    else:
        velocity = ufl.curl(ufl.as_vector([smooth_scalar(x, phase) for phase in (0.0, 1.0, 2.0)]))
    return velocity, smooth_scalar(x, 0.5)


def _constant_pressure(space: fem.FunctionSpace[np.float64]) -> fem.Function[np.float64]:
    """Return the normalised function (0, constant) of a velocity-pressure space."""
    mode: fem.Function[np.float64] = fem.Function(space)
    mode.x.array[space.sub(1).collapse()[1]] = 1.0
    dolfinx.la.orthonormalize([mode.x])
    mode.x.scatter_forward()
    return mode
