"""Distributed control of Poisson's equation between bounds, with a known optimum."""

import math

import dolfinx
import ufl

from pdeopt.control import ControlProblem
from pdeopt.problems.linear import Mesh, check_range
from pdeopt.problems.manufactured_control import ManufacturedControl, sine_mode, unit_cube_dimension, zero_on_boundary
from pdeopt.report import InputError

# The clipped control has a kink inside cells, where no quadrature is exact: a high degree keeps its error far below
# that of the elements.
_KINK_DEGREE = 12


class BoundedPoissonControl(ManufacturedControl):
    """Minimise |y - d|^2 / 2 + alpha |u|^2 / 2 subject to -laplace y = u + f and lower <= u <= upper.

    The state vanishes on the boundary. On the unit cube in n dimensions, with s = prod_i sin(pi x_i),
    w = sin(2 pi x_0) prod_{i > 0} sin(pi x_i) and -laplace s = m s, m = n pi^2, -laplace w = k w, k = (n + 3) pi^2,
    choose

        y* = s / m,   p* = alpha w,   u* = clip(p* / alpha, lower, upper) = clip(w, lower, upper).

    Then L_u = alpha u* - p* vanishes between the bounds and has the right sign on them; the state equation gives
    f = s - u*, the adjoint equation y* - d - laplace p* = 0 gives d = y* + alpha k w. Since w takes all values between
    -1 and 1, both bounds hold the control on sets of positive measure if -1 < lower < upper < 1. The control has kinks,
    so elements of any degree find it to order 3/2 in L2 at best. All quantities are dimensionless.

    Parameters
    ----------
    mesh
        A mesh of the unit interval, square or cube.
    alpha
        Regularisation, > 0.
    degree
        Degree of state, control and adjoint. Bounds hold at the nodes, so beyond degree 1 not quite in between.
    bounds
        (lower, upper).

    Raises
    ------
    InputError
        If ``alpha`` is not positive, ``bounds`` are not as above, or the mesh is of another domain (`MeshError`).

    Collective: yes.
    """

    def __init__(
        self, mesh: Mesh, alpha: float = 1e-2, degree: int = 1, bounds: tuple[float, float] = (-0.4, 0.6)
    ) -> None:
        check_range("alpha", alpha, 0.0)
        lower, upper = bounds
        if not -1.0 < lower < upper < 1.0:
            raise InputError(
                f"bounds are {bounds}: take -1 < lower < upper < 1, so that both hold the control somewhere"
            )
        dimension = unit_cube_dimension(mesh)
        state_eigenvalue, adjoint_eigenvalue = dimension * math.pi**2, (dimension + 3) * math.pi**2
        space = dolfinx.fem.functionspace(mesh, ("Lagrange", degree))
        state, control = dolfinx.fem.Function(space, name="state"), dolfinx.fem.Function(space, name="control")
        test = ufl.TestFunction(space)
        sine, wave = sine_mode(mesh, [1] * dimension), sine_mode(mesh, [2] + [1] * (dimension - 1))
        optimum = ufl.max_value(lower, ufl.min_value(upper, wave))
        target = sine / state_eigenvalue + alpha * adjoint_eigenvalue * wave
        dx = ufl.dx(mesh, metadata={"quadrature_degree": 2 * degree + 4})
        kink_dx = ufl.dx(mesh, metadata={"quadrature_degree": _KINK_DEGREE})
        problem = ControlProblem(
            objective=0.5 * (state - target) ** 2 * dx + 0.5 * alpha * control**2 * dx,
            state_equation=ufl.inner(ufl.grad(state), ufl.grad(test)) * dx
            - control * test * dx
            - (sine - optimum) * test * kink_dx,
            state=state,
            control=control,
            bcs=[zero_on_boundary(space)],
            bounds=(lower, upper),
        )
        exact = {"state": sine / state_eigenvalue, "control": optimum, "adjoint": alpha * wave}
        super().__init__(problem, exact, dx, kink_dx)
