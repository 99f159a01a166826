"""Boundary control through the flux, with a known optimum."""

import math

import dolfinx
import ufl

from pdeopt.control import ControlProblem
from pdeopt.problems.linear import Mesh, check_range
from pdeopt.problems.manufactured_control import ManufacturedControl, sine_mode, unit_cube_dimension


class BoundaryControl(ManufacturedControl):
    """Minimise |y - d|^2 / 2 + alpha |u|^2_b / 2 subject to -laplace y + y = f, grad y . n = u + g on the boundary.

    |.|_b is the L2 norm of the boundary, where the control acts and is measured; its degrees of freedom inside are
    idle. On the unit cube in n dimensions, with m = n pi^2, s = prod_i sin(pi x_i) and c = prod_i cos(pi x_i), choose

        y* = s,   u* = c,   p* = alpha c,

    so that L_u = alpha u* - p* vanishes on the boundary. The state equation gives f = (m + 1) s and
    g = grad s . n - c. The adjoint equation is y* - d - laplace p* + p* = 0 with grad p* . n = 0, which c fulfils
    without any observation on the boundary; so d = s + alpha (m + 1) c. All quantities are dimensionless.

    Parameters
    ----------
    mesh
        A mesh of the unit interval, square or cube.
    alpha
        Regularisation, > 0.
    degree
        Degree of state, control and adjoint.

    Raises
    ------
    InputError
        If ``alpha`` is not positive or the mesh is of another domain (`MeshError`).

    Collective: yes.
    """

    def __init__(self, mesh: Mesh, alpha: float = 1e-2, degree: int = 1) -> None:
        check_range("alpha", alpha, 0.0)
        dimension = unit_cube_dimension(mesh)
        space = dolfinx.fem.functionspace(mesh, ("Lagrange", degree))
        state, control = dolfinx.fem.Function(space, name="state"), dolfinx.fem.Function(space, name="control")
        test = ufl.TestFunction(space)
        x = ufl.SpatialCoordinate(mesh)
        sine, cosine = sine_mode(mesh, [1] * dimension), ufl.as_ufl(1)
        for axis in range(dimension):
            cosine = cosine * ufl.cos(ufl.pi * x[axis])
        factor = dimension * math.pi**2 + 1.0
        source, target = factor * sine, sine + alpha * factor * cosine
        flux = ufl.dot(ufl.grad(sine), ufl.FacetNormal(mesh)) - cosine
        metadata = {"quadrature_degree": 2 * degree + 4}
        dx, ds = ufl.dx(mesh, metadata=metadata), ufl.ds(mesh, metadata=metadata)
        problem = ControlProblem(
            objective=0.5 * (state - target) ** 2 * dx + 0.5 * alpha * control**2 * ds,
            state_equation=ufl.inner(ufl.grad(state), ufl.grad(test)) * dx
            + (state - source) * test * dx
            - (control + flux) * test * ds,
            state=state,
            control=control,
        )
        exact = {"state": sine, "control": cosine, "adjoint": alpha * cosine}
        super().__init__(problem, exact, dx, ds)
