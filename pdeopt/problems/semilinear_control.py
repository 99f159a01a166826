"""Distributed control of a semilinear equation, with a known optimum."""

import math

import dolfinx
import ufl

from pdeopt.control import ControlProblem
from pdeopt.problems.linear import Mesh, check_range
from pdeopt.problems.manufactured_control import ManufacturedControl, sine_mode, unit_cube_dimension, zero_on_boundary


class SemilinearControl(ManufacturedControl):
    """Minimise |y - d|^2 / 2 + alpha |u|^2 / 2 subject to -laplace y + y^3 = u + f, y = 0 on the boundary.

    On the unit cube in n dimensions, with s = prod_i sin(pi x_i), w = sin(2 pi x_0) prod_{i > 0} sin(pi x_i) and
    -laplace s = m s, m = n pi^2, -laplace w = k w, k = (n + 3) pi^2, choose

        y* = s,   u* = w,   p* = alpha w,

    so that L_u = alpha u* - p* vanishes. The state equation gives f = m s + s^3 - w, the adjoint equation
    y* - d - laplace p* + 3 y*^2 p* = 0 gives d = s + alpha (k + 3 s^2) w. The Hessian by the state is
    L_yy = 1 + 6 y* p* >= 1 - 6 alpha, so for alpha < 1/6 the stationary point is a strict local minimum. All quantities
    are dimensionless.

    Parameters
    ----------
    mesh
        A mesh of the unit interval, square or cube.
    alpha
        Regularisation, between 0 and 1/6.
    degree
        Degree of state, control and adjoint.

    Raises
    ------
    InputError
        If ``alpha`` is out of range or the mesh is of another domain (`MeshError`).

    Collective: yes.
    """

    def __init__(self, mesh: Mesh, alpha: float = 1e-2, degree: int = 1) -> None:
        check_range("alpha", alpha, 0.0, 1.0 / 6.0)
        dimension = unit_cube_dimension(mesh)
        state_eigenvalue, adjoint_eigenvalue = dimension * math.pi**2, (dimension + 3) * math.pi**2
        space = dolfinx.fem.functionspace(mesh, ("Lagrange", degree))
        state, control = dolfinx.fem.Function(space, name="state"), dolfinx.fem.Function(space, name="control")
        test = ufl.TestFunction(space)
        sine, wave = sine_mode(mesh, [1] * dimension), sine_mode(mesh, [2] + [1] * (dimension - 1))
        source = state_eigenvalue * sine + sine**3 - wave
        target = sine + alpha * (adjoint_eigenvalue + 3 * sine**2) * wave
        dx = ufl.dx(mesh, metadata={"quadrature_degree": 4 * degree + 2})  # exact for y^3 v
        problem = ControlProblem(
            objective=0.5 * (state - target) ** 2 * dx + 0.5 * alpha * control**2 * dx,
            state_equation=ufl.inner(ufl.grad(state), ufl.grad(test)) * dx + (state**3 - control - source) * test * dx,
            state=state,
            control=control,
            bcs=[zero_on_boundary(space)],
        )
        super().__init__(problem, {"state": sine, "control": wave, "adjoint": alpha * wave}, dx)
