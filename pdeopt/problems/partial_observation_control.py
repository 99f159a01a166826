"""Distributed control of Poisson's equation, its state seen in half of the domain, with a known optimum."""

import math

import dolfinx
import ufl

from pdeopt.control import ControlProblem
from pdeopt.parallel import collective_errors
from pdeopt.problems.linear import Mesh, check_mesh, check_range
from pdeopt.problems.manufactured_control import ManufacturedControl, sine_mode, unit_cube_dimension, zero_on_boundary
from pdeopt.report import MeshError


class PartialObservationControl(ManufacturedControl):
    """Minimise |y - d|^2_h / 2 + alpha |u|^2 / 2 subject to -laplace y = u + f, y = 0 on the boundary.

    |.|_h is the L2 norm over x_0 < 1/2 alone. On the unit cube in n >= 2 dimensions, with s = prod_i sin(pi x_i),
    -laplace s = m s, m = n pi^2, t = prod_{i > 0} sin(pi x_i) and k^2 = (n - 1) pi^2, choose

        y* = s / m,   u* = q(x_0) t,   p* = alpha u*,
        q = sinh(k (1 - x_0)) / sinh(k / 2) for x_0 >= 1/2,   q = a x_0 + b x_0^2 for x_0 < 1/2,

    so that L_u = alpha u* - p* vanishes and p* is harmonic where nothing is seen, as the adjoint equation
    -laplace p* = 0 asks there. With a = 4 + r, b = -4 - 2 r, r = k coth(k / 2), values and slopes of q agree at 1/2, so
    p* has a weak Laplacian without a part on the interface. Where the state is seen, y* - d - laplace p* = 0 gives
    d = y* + alpha (k^2 q - 2 b) t; the state equation gives f = s - u*. All quantities are dimensionless.

    Parameters
    ----------
    mesh
        A mesh of the unit square or cube with no cell on both sides of x_0 = 1/2.
    alpha
        Regularisation, > 0.
    degree
        Degree of state, control and adjoint.

    Raises
    ------
    InputError
        If ``alpha`` is not positive, or the mesh is of another domain or has cells on both sides (`MeshError`).

    Collective: yes.
    """

    def __init__(self, mesh: Mesh, alpha: float = 1e-2, degree: int = 1) -> None:
        check_range("alpha", alpha, 0.0)
        check_mesh(mesh)
        _check_halves(mesh)
        dimension = unit_cube_dimension(mesh)
        eigenvalue, k = dimension * math.pi**2, math.sqrt(dimension - 1) * math.pi
        slope = k / math.tanh(k / 2)
        space = dolfinx.fem.functionspace(mesh, ("Lagrange", degree))
        state, control = dolfinx.fem.Function(space, name="state"), dolfinx.fem.Function(space, name="control")
        test = ufl.TestFunction(space)
        x = ufl.SpatialCoordinate(mesh)[0]
        sine, transverse = sine_mode(mesh, [1] * dimension), sine_mode(mesh, [0] + [1] * (dimension - 1))
        parabola = (4 + slope) * x - (4 + 2 * slope) * x**2
        profile = ufl.conditional(ufl.lt(x, 0.5), parabola, ufl.sinh(k * (1 - x)) / math.sinh(k / 2))
        optimum = profile * transverse
        target = sine / eigenvalue + alpha * (k**2 * parabola + 2 * (4 + 2 * slope)) * transverse
        seen = ufl.conditional(ufl.lt(x, 0.5), 1.0, 0.0)
        dx = ufl.dx(mesh, metadata={"quadrature_degree": 2 * degree + 4})
        problem = ControlProblem(
            objective=0.5 * seen * (state - target) ** 2 * dx + 0.5 * alpha * control**2 * dx,
            state_equation=ufl.inner(ufl.grad(state), ufl.grad(test)) * dx - (control + sine - optimum) * test * dx,
            state=state,
            control=control,
            bcs=[zero_on_boundary(space)],
        )
        super().__init__(problem, {"state": sine / eigenvalue, "control": optimum, "adjoint": alpha * optimum}, dx)


def _check_halves(mesh: Mesh) -> None:
    """Raise `MeshError` on all ranks if a cell lies on both sides of x_0 = 1/2. Collective: yes."""
    first = mesh.geometry.x[:, 0][mesh.geometry.dofmaps[0]]
    across = (first < 0.5 - 1e-9).any(axis=1) & (first > 0.5 + 1e-9).any(axis=1)
    with collective_errors(mesh.comm):
        if across.any():
            raise MeshError("cells lie on both sides of x_0 = 1/2: take an even number of cells along the first axis")
