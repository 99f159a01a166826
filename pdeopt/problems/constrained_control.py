"""Distributed control of Poisson's equation with the integral of the state prescribed, and a known optimum."""

import math

import dolfinx
import numpy as np
import ufl

from pdeopt.control import ControlProblem
from pdeopt.problems.linear import Mesh, check_range
from pdeopt.problems.manufactured_control import ManufacturedControl, sine_mode, unit_cube_dimension, zero_on_boundary

_MULTIPLIER = 0.1  # l*, chosen


class ConstrainedControl(ManufacturedControl):
    """Minimise |y - d|^2 / 2 + alpha |u|^2 / 2 subject to -laplace y = u, y = 0 on the boundary, and int y dx = c.

    On the unit cube in n dimensions, with s = prod_i sin(pi x_i) and -laplace s = m s, m = n pi^2, choose

        u* = s,   y* = s / m,   p* = alpha s,   l* = 0.1,

    so that the state equation and L_u = alpha u* - p* = 0 hold, and c = int y* dx = (2 / pi)^n / m. The adjoint
    equation y* - d - laplace p* + l* = 0 gives d = y* + alpha m s + l*. All quantities are dimensionless.

    Parameters
    ----------
    mesh
        A mesh of the unit interval, square or cube.
    alpha
        Regularisation, > 0.
    degree
        Degree of state, control and adjoint.

    Attributes
    ----------
    exact_multiplier
        l*.
    mean
        c, the prescribed integral (mean) of the state.

    Raises
    ------
    InputError
        If ``alpha`` is not positive or the mesh is of another domain (`MeshError`).

    Collective: yes.
    """

    def __init__(self, mesh: Mesh, alpha: float = 1e-2, degree: int = 1) -> None:
        check_range("alpha", alpha, 0.0)
        dimension = unit_cube_dimension(mesh)
        eigenvalue = dimension * math.pi**2
        self.exact_multiplier = _MULTIPLIER
        self.mean = (2.0 / math.pi) ** dimension / eigenvalue
        space = dolfinx.fem.functionspace(mesh, ("Lagrange", degree))
        state, control = dolfinx.fem.Function(space, name="state"), dolfinx.fem.Function(space, name="control")
        test = ufl.TestFunction(space)
        sine = sine_mode(mesh, [1] * dimension)
        target = sine / eigenvalue + alpha * eigenvalue * sine + self.exact_multiplier
        dx = ufl.dx(mesh, metadata={"quadrature_degree": 2 * degree + 4})
        problem = ControlProblem(
            objective=0.5 * (state - target) ** 2 * dx + 0.5 * alpha * control**2 * dx,
            state_equation=ufl.inner(ufl.grad(state), ufl.grad(test)) * dx - control * test * dx,
            state=state,
            control=control,
            bcs=[zero_on_boundary(space)],
            constraints=[(state - self.mean) * dx],
        )
        super().__init__(problem, {"state": sine / eigenvalue, "control": sine, "adjoint": alpha * sine}, dx)

    def errors(self) -> dict[str, float]:
        """Return the L2 errors of state, control and adjoint, and the absolute error of the multiplier.

        Collective: yes.
        """
        error = abs(float(self.problem.multipliers[0]) - self.exact_multiplier)
        return {**super().errors(), "multiplier": error}

    def set_optimum(self) -> None:
        """Set state, control and adjoint to the interpolants of the optimum, and the multiplier. Collective: yes."""
        super().set_optimum()
        self.problem.system.lagrangian.multipliers[0].value = np.asarray(self.exact_multiplier)
