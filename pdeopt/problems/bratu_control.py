"""Distributed control of Bratu's equation (ignition of a solid fuel), with a known optimum."""

import math

import dolfinx
import ufl

from pdeopt.control import ControlProblem
from pdeopt.problems.linear import Mesh, check_range
from pdeopt.problems.manufactured_control import ManufacturedControl, sine_mode, unit_cube_dimension, zero_on_boundary


class BratuControl(ManufacturedControl):
    """Minimise |y - d|^2 / 2 + alpha |u|^2 / 2 subject to -laplace y - delta e^y = u + f, y = 0 on the boundary.

    On the unit cube in n dimensions, with s = prod_i sin(pi x_i), w = sin(2 pi x_0) prod_{i > 0} sin(pi x_i) and
    -laplace s = m s, m = n pi^2, -laplace w = k w, k = (n + 3) pi^2, choose

        y* = s,   u* = w,   p* = alpha w,

    so that L_u = alpha u* - p* vanishes. The state equation gives f = m s - delta e^s - w, the adjoint equation
    y* - d - laplace p* - delta e^(y*) p* = 0 gives d = s + alpha (k - delta e^s) w. For delta < m / e the linearised
    equation is coercive at y*, and for alpha < 1 / (e delta) L_yy = 1 - delta e^(y*) p* is positive: the stationary
    point is a strict local minimum. The equation has no solution for some controls and two for others, so steps from
    afar may fail. All quantities are dimensionless. No optimum of a Bratu control problem was found in the literature.

    Parameters
    ----------
    mesh
        A mesh of the unit interval, square or cube.
    alpha
        Regularisation, between 0 and 1 / (e delta).
    degree
        Degree of state, control and adjoint.
    delta
        Reaction, between 0 and n pi^2 / e, which is 3.63 for n = 1 and 7.26 for n = 2.

    Raises
    ------
    InputError
        If a number is out of range or the mesh is of another domain (`MeshError`).

    Collective: yes.
    """

    def __init__(self, mesh: Mesh, alpha: float = 1e-2, degree: int = 1, delta: float = 2.0) -> None:
        dimension = unit_cube_dimension(mesh)
        state_eigenvalue, adjoint_eigenvalue = dimension * math.pi**2, (dimension + 3) * math.pi**2
        check_range("delta", delta, 0.0, state_eigenvalue / math.e)
        check_range("alpha", alpha, 0.0, 1.0 / (math.e * delta))
        space = dolfinx.fem.functionspace(mesh, ("Lagrange", degree))
        state, control = dolfinx.fem.Function(space, name="state"), dolfinx.fem.Function(space, name="control")
        test = ufl.TestFunction(space)
        # As numbers in the forms they would be compiled anew for every value.
        weight, reaction = dolfinx.fem.Constant(mesh, alpha), dolfinx.fem.Constant(mesh, delta)
        sine, wave = sine_mode(mesh, [1] * dimension), sine_mode(mesh, [2] + [1] * (dimension - 1))
        source = state_eigenvalue * sine - reaction * ufl.exp(sine) - wave
        target = sine + weight * (adjoint_eigenvalue - reaction * ufl.exp(sine)) * wave
        dx = ufl.dx(mesh, metadata={"quadrature_degree": 4 * degree + 2})
        problem = ControlProblem(
            objective=0.5 * (state - target) ** 2 * dx + 0.5 * weight * control**2 * dx,
            state_equation=ufl.inner(ufl.grad(state), ufl.grad(test)) * dx
            - (reaction * ufl.exp(state) + control + source) * test * dx,
            state=state,
            control=control,
            bcs=[zero_on_boundary(space)],
        )
        super().__init__(problem, {"state": sine, "control": wave, "adjoint": weight * wave}, dx)
