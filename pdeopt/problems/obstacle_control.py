"""Control of a membrane over an obstacle, a variational inequality: an example of dolfin-adjoint, in two forms."""

import dolfinx
import numpy as np
import numpy.typing as npt
import ufl
from ufl.core.expr import Expr

from pdeopt.control import ControlProblem
from pdeopt.problems.linear import Mesh, check_range
from pdeopt.problems.manufactured_control import boundary_dofs, unit_cube_dimension, zero_on_boundary
from pdeopt.report import MeshError

_WEIGHT = 0.01
_BOUNDS = (0.01, 0.03)
_SMOOTHING = 1e-4
_CURVATURE = 1e-8


class ObstacleControl:
    """Minimise |y - f|^2 / 2 + nu |u|^2 / 2 where y >= 0 is the membrane under the load f + u, with a soft obstacle.

    The membrane on the unit square, y = 0 on its boundary, fulfils (grad y, grad (v - y)) >= (f + u, v - y) for all
    v >= 0, with f = 1/4 - |x_0 x_1 - 1/2|, nu = 0.01 and 0.01 <= u <= 0.03. Here y may become negative at a price,

        -laplace y - m(-y) / alpha = f + u,   m(r) = 0 for r < 0, r^2 / (2 s) for r < s = 1e-4, r - s / 2 beyond.

    For alpha -> 0 its optima approach those with the inequality. f is interpolated. All quantities are dimensionless.

    Parameters
    ----------
    mesh
        A mesh of the unit square; published with 128 x 128 squares cut in two.
    alpha
        Penalty parameter, > 0: set ``penalty.value`` to change it.

    Attributes
    ----------
    problem, control
        The control problem, and its control u.
    penalty
        alpha, a constant of the forms.
    CONTINUATION
        The published values of alpha, one after the other.
    PUBLISHED_OBJECTIVE
        At the last of these, on the published mesh, by L-BFGS-B to a projected gradient of 6e-13.

    Raises
    ------
    InputError
        If ``alpha`` is not positive or the mesh is of another domain (`MeshError`).

    Collective: yes.

    References
    ----------
    Funke, Mathematical programs with equilibrium constraints, documentation of dolfin-adjoint; Hintermueller and
    Kopacka, A smooth penalty approach and a nonlinear multigrid algorithm for elliptic MPECs, Computational
    Optimization and Applications 50 (2011) 111-145, example 5.2.
    """

    CONTINUATION = (0.005, 0.0025, 0.00125, 0.000625)
    PUBLISHED_OBJECTIVE = 1.2064186622885919e-2

    def __init__(self, mesh: Mesh, alpha: float = 0.000625) -> None:
        check_range("alpha", alpha, 0.0)
        space, load = _space_and_load(mesh)
        state, self.control = dolfinx.fem.Function(space, name="state"), dolfinx.fem.Function(space, name="control")
        test = ufl.TestFunction(space)
        self.penalty = dolfinx.fem.Constant(mesh, alpha)
        dx = ufl.dx(mesh, metadata={"quadrature_degree": 3})
        self.problem = ControlProblem(
            objective=0.5 * (state - load) ** 2 * dx + 0.5 * _WEIGHT * self.control**2 * dx,
            state_equation=ufl.inner(ufl.grad(state), ufl.grad(test)) * dx
            - (_smooth_max(-state) / self.penalty + load + self.control) * test * dx,
            state=state,
            control=self.control,
            bcs=[zero_on_boundary(space)],
            bounds=_BOUNDS,
        )


class ObstacleComplementarityControl:
    """The same with the inequality itself: the force w >= 0 of the obstacle is a second control, and y >= 0.

    Minimise |y - f|^2 / 2 + nu |u|^2 / 2 + rho int y w dx subject to -laplace y = f + u + w, 0.01 <= u <= 0.03, w >= 0
    and y >= 0. The last term is the exact l1 penalty of the complementarity y w = 0: for rho large enough minima have
    y w = 0 and then y is the membrane under f + u. y w and w are integrated by values at the vertices, so that
    complementarity holds at each of them. An optimiser for bounds on the state has to solve it: on 8 x 8 squares cut in
    two IPOPT finds 0.0114388, near the 0.0114377 of `ObstacleControl` for alpha = 1e-5.

    Parameters
    ----------
    mesh
        A mesh of the unit square.
    rho
        Weight of the complementarity, > 0: set ``penalty.value`` to change it. 0.1 is too small, 1 and 10 are exact.

    Attributes
    ----------
    problem
        The control problem. Its objective has 1e-8 |w|^2 / 2 too, for it to be curved in every control.
    control, force
        u and w.
    penalty
        rho, a constant of the forms.

    Raises
    ------
    InputError
        If ``rho`` is not positive or the mesh is of another domain (`MeshError`).

    Collective: yes.

    References
    ----------
    Leyffer, Lopez-Calva and Nocedal, Interior methods for mathematical programs with complementarity constraints, SIAM
    Journal on Optimization 17 (2006) 52-77.
    """

    def __init__(self, mesh: Mesh, rho: float = 1.0) -> None:
        check_range("rho", rho, 0.0)
        space, load = _space_and_load(mesh)
        state, self.control, self.force = (
            dolfinx.fem.Function(space, name=name) for name in ("state", "control", "force")
        )
        test = ufl.TestFunction(space)
        self.penalty = dolfinx.fem.Constant(mesh, rho)
        dx = ufl.dx(mesh, metadata={"quadrature_degree": 3})
        vertices = ufl.dx(mesh, metadata={"quadrature_rule": "vertex", "quadrature_degree": 1})
        self.problem = ControlProblem(
            objective=0.5 * (state - load) ** 2 * dx
            + 0.5 * _WEIGHT * self.control**2 * dx
            + (self.penalty * state * self.force + 0.5 * _CURVATURE * self.force**2) * vertices,
            state_equation=ufl.inner(ufl.grad(state), ufl.grad(test)) * dx
            - (load + self.control) * test * dx
            - self.force * test * vertices,
            state=state,
            control=[self.control, self.force],
            bcs=[zero_on_boundary(space)],
            bounds=[_BOUNDS, (0.0, _free_inside(space))],
            state_bounds=(0.0, None),
        )


def _space_and_load(mesh: Mesh) -> tuple[dolfinx.fem.FunctionSpace, dolfinx.fem.Function]:
    if unit_cube_dimension(mesh) != 2:
        raise MeshError("the problem is posed on the unit square: make its mesh with create_unit_square")
    space = dolfinx.fem.functionspace(mesh, ("Lagrange", 1))
    load = dolfinx.fem.Function(space, name="load")
    load.interpolate(_load)
    return space, load


def _free_inside(space: dolfinx.fem.FunctionSpace) -> dolfinx.fem.Function:
    """Return an upper bound that is 0 on the boundary, where no force has an effect. Collective: yes."""
    bound = dolfinx.fem.Function(space)
    bound.x.array[:] = np.inf
    bound.x.array[boundary_dofs(space)] = 0.0
    return bound


def _load(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(0.25 - np.abs(x[0] * x[1] - 0.5))


def _smooth_max(r: Expr) -> Expr:
    parabola = ufl.conditional(ufl.lt(r, 0.0), 0.0, r**2 / (2.0 * _SMOOTHING))
    return ufl.conditional(ufl.gt(r, _SMOOTHING), r - _SMOOTHING / 2.0, parabola)
