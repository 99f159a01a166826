"""Control of an exponential reaction with bounds on control and state: Example 4 of Maurer and Mittelmann."""

from typing import ClassVar

import dolfinx
import ufl

from pdeopt.control import ControlProblem
from pdeopt.problems.linear import Mesh, check_range
from pdeopt.problems.manufactured_control import unit_cube_dimension
from pdeopt.report import MeshError


class MaurerMittelmannControl:
    """Minimise |y - d|^2 / 2 + alpha |u|^2 / 2 with bounds on the control and on the state.

    On the unit square, subject to

        -laplace y - e^y = u,   grad y . n + y = 0 on the boundary,   lower <= u <= upper,   y <= ceiling.

    The target is d = sin(2 pi x_0) sin(2 pi x_1). Both bounds on the control are active. That on the state is not, save
    on the coarsest of the published grids: the greatest state is 0.3597, so without it (``ceiling`` = None) the optimum
    is the same and ``problem.solve()`` finds it; with a lower one the multiplier is a measure. All quantities are
    dimensionless.

    Parameters
    ----------
    mesh
        A mesh of the unit square.
    alpha
        Regularisation, > 0; published 0.001.
    bounds
        Bounds (lower, upper) on the control, or None.
    ceiling
        Upper bound on the state's degrees of freedom, published 0.371, or None.

    Attributes
    ----------
    problem, control
        The control problem, and its control.
    PUBLISHED_OBJECTIVES
        Least objectives of the published discretisation by its number of cells along a side: five-point differences,
        and one-sided ones of first order in the boundary condition, so that the error falls as the mesh size does.
    LEAST_OBJECTIVE
        Of the problem itself, extrapolated from linear elements on 25, 50 and 100 cells along a side, to 1e-6. (The
        published values extrapolate to 0.0788 too.)

    Raises
    ------
    InputError
        If ``alpha`` is not positive or the mesh is of another domain (`MeshError`).

    Collective: yes.

    References
    ----------
    Maurer and Mittelmann, Optimization techniques for solving elliptic control problems with control and state
    constraints, Part 2: Distributed control, Computational Optimization and Applications 18 (2001) 141-160, Table 4.
    """

    PUBLISHED_OBJECTIVES: ClassVar = {50: 0.0773888, 100: 0.0780638, 200: 0.0784259}
    LEAST_OBJECTIVE = 0.078803

    def __init__(
        self,
        mesh: Mesh,
        alpha: float = 1e-3,
        bounds: tuple[float, float] | None = (-8.0, 9.0),
        ceiling: float | None = 0.371,
    ) -> None:
        check_range("alpha", alpha, 0.0)
        if unit_cube_dimension(mesh) != 2:
            raise MeshError("the problem is posed on the unit square: make its mesh with create_unit_square")
        space = dolfinx.fem.functionspace(mesh, ("Lagrange", 1))
        state, self.control = dolfinx.fem.Function(space, name="state"), dolfinx.fem.Function(space, name="control")
        test = ufl.TestFunction(space)
        weight = dolfinx.fem.Constant(mesh, alpha)
        x = ufl.SpatialCoordinate(mesh)
        target = ufl.sin(2 * ufl.pi * x[0]) * ufl.sin(2 * ufl.pi * x[1])
        metadata = {"quadrature_degree": 6}
        dx, ds = ufl.dx(mesh, metadata=metadata), ufl.ds(mesh, metadata=metadata)
        self.problem = ControlProblem(
            objective=0.5 * (state - target) ** 2 * dx + 0.5 * weight * self.control**2 * dx,
            state_equation=ufl.inner(ufl.grad(state), ufl.grad(test)) * dx
            - (ufl.exp(state) + self.control) * test * dx
            + state * test * ds,
            state=state,
            control=self.control,
            bounds=bounds,
            state_bounds=None if ceiling is None else (None, ceiling),
        )
