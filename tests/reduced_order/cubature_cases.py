"""Weak forms with a basis of random fields, for what must hold for any residual."""

import dataclasses
from typing import Any

from mpi4py import MPI

import basix.ufl
import dolfinx
import numpy as np
import ufl
from dolfinx import fem

from pdeopt.fem import forms
from pdeopt.reduced_order import Basis, InnerProduct

WAVES = np.array([[1.3, 2.1, 0.4], [3.7, 1.9, 2.8], [0.7, 4.1, 1.2], [2.9, 3.3, 5.1]])


@dataclasses.dataclass
class Case:
    u: fem.Function
    residual: ufl.Form
    basis: Basis


def smooth(x, mode, components=1):
    """The same smooth field on any number of ranks."""
    wave, phase = WAVES[mode % 4], np.arange(components)[:, None] + mode
    values = np.sin(wave[: x.shape[0]] @ x + phase)
    return values[0] if components == 1 else values


def random_basis(space, modes, form="l2"):
    """An orthonormal basis of smooth fields, not zero on the boundary."""
    inner = InnerProduct(space, form)
    columns = np.empty((inner.owned, modes))
    for mode in range(modes):
        columns[:, mode] = forms.owned_values(field(space, mode))
    gram = np.linalg.cholesky(inner.gram(columns))
    return Basis(inner, np.linalg.solve(gram, columns.T).T)


def field(space, mode):
    function = fem.Function(space)
    element = space.ufl_element()
    if element.is_mixed:
        for part in range(space.num_sub_spaces):
            components = int(np.prod(space.sub(part).ufl_element().reference_value_shape))
            shift = mode + part
            function.sub(part).interpolate(lambda x, k=components, m=shift: smooth(x, m, k))
    else:
        components = int(np.prod(element.reference_value_shape))
        function.interpolate(lambda x: smooth(x, mode, components))
    function.x.scatter_forward()
    return function


def heat(mesh, degree=1, measure=None):
    """Heat conduction with all kinds of data: functions, constants, geometry, a boundary term."""
    space = fem.functionspace(mesh, ("Lagrange", degree))
    u, v = fem.Function(space, name="u"), ufl.TestFunction(space)
    conductivity = fem.Function(fem.functionspace(mesh, ("DG", 0)), name="conductivity")
    conductivity.interpolate(lambda x: 1.0 + 0.5 * np.sin(3.0 * x[0]))
    source = fem.Constant(mesh, 2.0)
    x, n, h = ufl.SpatialCoordinate(mesh), ufl.FacetNormal(mesh), ufl.CellVolume(mesh)
    dx, ds = ufl.dx(mesh), ufl.ds(mesh) if measure is None else measure
    residual = (conductivity + u**2) * ufl.inner(ufl.grad(u), ufl.grad(v)) * dx
    residual += (-source * ufl.sin(x[0]) + h * u) * v * dx + (u**3 + n[0] * x[1]) * v * ds
    return finish(u, residual)


def elasticity(mesh):
    """A compressible neo-Hookean solid, quadratic, with the energy differentiated by UFL."""
    space = fem.functionspace(mesh, ("Lagrange", 2, (mesh.geometry.dim,)))
    u, v = fem.Function(space, name="u"), ufl.TestFunction(space)
    gradient = ufl.variable(ufl.Identity(mesh.geometry.dim) + 0.1 * ufl.grad(u))
    jacobian = ufl.det(gradient)
    energy = 0.5 * (ufl.inner(gradient, gradient) - 2.0) - ufl.ln(jacobian) + ufl.ln(jacobian) ** 2
    dx = ufl.dx(mesh, metadata={"quadrature_degree": 4})
    return finish(u, ufl.inner(ufl.diff(energy, gradient), ufl.grad(v)) * dx + u[1] * v[0] * ufl.ds(mesh))


def flow(mesh):
    """Navier-Stokes in Taylor-Hood elements."""
    cell = mesh.basix_cell()
    velocity = basix.ufl.element("Lagrange", cell, 2, shape=(mesh.geometry.dim,))
    space = fem.functionspace(mesh, basix.ufl.mixed_element([velocity, basix.ufl.element("Lagrange", cell, 1)]))
    state = fem.Function(space, name="state")
    (u, p), (v, q) = ufl.split(state), ufl.TestFunctions(space)
    residual = ufl.inner(ufl.grad(u), ufl.grad(v)) + ufl.inner(ufl.grad(u) * u, v) - p * ufl.div(v) - q * ufl.div(u)
    return finish(state, residual * ufl.dx(mesh))


def finish(u, residual) -> Case:
    case = Case(u, residual, random_basis(u.function_space, 4))
    set_state(case)
    return case


def set_state(case: Case, coordinates: Any = (0.7, -0.4, 0.3, 0.2)) -> None:
    forms.set_function(case.u, case.basis.expand(np.asarray(coordinates)))


def square(cells=4, comm=MPI.COMM_WORLD):
    return dolfinx.mesh.create_unit_square(comm, cells, cells)


CASES = {
    "heat": lambda: heat(square()),
    "cubic": lambda: heat(square(3), degree=3),
    "elasticity": lambda: elasticity(square(3)),
    "flow": lambda: flow(square(3)),
}
