"""Distributed control of Poisson's equation with given boundary values: examples of Rees, Dollar and Wathen."""

from collections.abc import Callable
from typing import ClassVar

import dolfinx
import numpy as np
import numpy.typing as npt
import ufl

from pdeopt.control import ControlProblem
from pdeopt.problems.linear import Mesh, check_range
from pdeopt.problems.manufactured_control import boundary_dofs, unit_cube_dimension
from pdeopt.report import InputError, MeshError

Array = npt.NDArray[np.float64]

_WEIGHTS = {1: 0.01, 2: 0.005}
_STATE_BOUND = 0.01


class ReesDollarWathenControl:
    """Minimise |y - d|^2 / 2 + beta |u|^2 subject to -laplace y = u, with y = d and u = 0 on the boundary.

    On the unit square. Example 5.1 has d = (2 x_0 - 1)^2 (2 x_1 - 1)^2 where both coordinates are at most 1/2 and d = 0
    elsewhere, example 5.2 d = exp(-64 |x - (1/2, 1/2)|^2); both are interpolated. With bounds inside the square

        (2 - x_0) exp(-|x|^2) / 10 <= u <= 0.6 for x_1 <= 1/2, 0.9 beyond,

    and with a bound on the state y <= 0.01 inside, which example 5.2 has in one of its published forms. All quantities
    are dimensionless.

    On n x n squares of bilinear elements these are the problems RDW2D51U (without bounds), RDW2D51F (on the control),
    RDW2D52U, RDW2D52F and RDW2D52B (on both) of the CUTEst collection with N = n.

    Parameters
    ----------
    mesh
        A mesh of the unit square; of an even number of cells along a side, for the jumps to be resolved.
    example
        1 or 2.
    beta
        Regularisation, > 0; 0.01 or 0.005, as in CUTEst, if None.
    bounded
        Impose the bounds on the control.
    state_bounded
        Impose the bound on the state.

    Attributes
    ----------
    problem, control
        The control problem, and its control. Where it is 0 bounds hold it.
    target
        The interpolated d.
    CUTEST_OBJECTIVES
        Least objectives for N = 8 by name in the collection, computed from its data: without bounds by a sparse solve,
        with bounds on the control by L-BFGS-B in its space, with both kinds by IPOPT.

    Raises
    ------
    InputError
        If a number is out of range or the mesh is of another domain (`MeshError`).

    Collective: yes.

    References
    ----------
    Rees, Dollar and Wathen, Optimal solvers for PDE-constrained optimization, SIAM Journal on Scientific Computing 32
    (2010) 271-298, Examples 5.1 and 5.2. The bounds: Stoll and Wathen, Preconditioning for PDE constrained optimization
    with control constraints, Oxford Centre for Collaborative Applied Mathematics (2009).
    """

    CUTEST_OBJECTIVES: ClassVar = {
        "RDW2D51U": 8.480653643529431e-4,
        "RDW2D51F": 1.1102902782311784e-3,
        "RDW2D52U": 8.589784476509515e-3,
        "RDW2D52F": 8.615910167065819e-3,
        "RDW2D52B": 9.03324929070e-3,
    }

    def __init__(
        self,
        mesh: Mesh,
        example: int = 1,
        beta: float | None = None,
        bounded: bool = False,
        state_bounded: bool = False,
    ) -> None:
        if example not in _WEIGHTS:
            raise InputError(f"example = {example} is unknown: choose 1 or 2")
        beta = _WEIGHTS[example] if beta is None else beta
        check_range("beta", beta, 0.0)
        if unit_cube_dimension(mesh) != 2:
            raise MeshError("the problem is posed on the unit square: make its mesh with create_unit_square")
        space = dolfinx.fem.functionspace(mesh, ("Lagrange", 1))
        state, self.control = dolfinx.fem.Function(space, name="state"), dolfinx.fem.Function(space, name="control")
        test = ufl.TestFunction(space)
        self.target = dolfinx.fem.Function(space, name="target")
        self.target.interpolate(_quarter if example == 1 else _bump)
        weight = dolfinx.fem.Constant(mesh, beta)
        boundary = boundary_dofs(space)
        dx = ufl.dx(mesh, metadata={"quadrature_degree": 4})  # exact on squares too
        self.problem = ControlProblem(
            objective=0.5 * (state - self.target) ** 2 * dx + weight * self.control**2 * dx,
            state_equation=ufl.inner(ufl.grad(state), ufl.grad(test)) * dx - self.control * test * dx,
            state=state,
            control=self.control,
            bcs=[dolfinx.fem.dirichletbc(self.target, boundary)],
            bounds=(
                _inside(space, boundary, _lower if bounded else _constant(-np.inf), 0.0),
                _inside(space, boundary, _upper if bounded else _constant(np.inf), 0.0),
            ),
            state_bounds=(None, _inside(space, boundary, _constant(_STATE_BOUND), np.inf)) if state_bounded else None,
        )


def _inside(
    space: dolfinx.fem.FunctionSpace, boundary: npt.NDArray[np.int32], inside: Callable[[Array], Array], on: float
) -> dolfinx.fem.Function:
    """Return a function of given nodal values inside and another on the boundary. Collective: yes."""
    function = dolfinx.fem.Function(space)
    function.interpolate(inside)
    function.x.array[boundary] = on
    return function


def _constant(value: float) -> Callable[[Array], Array]:
    return lambda x: np.full(x.shape[1], value)


def _quarter(x: Array) -> Array:
    inside = (x[0] <= 0.5 + 1e-12) & (x[1] <= 0.5 + 1e-12)
    return np.where(inside, (2 * x[0] - 1) ** 2 * (2 * x[1] - 1) ** 2, 0.0)


def _bump(x: Array) -> Array:
    return np.asarray(np.exp(-64.0 * ((x[0] - 0.5) ** 2 + (x[1] - 0.5) ** 2)))


def _lower(x: Array) -> Array:
    return np.asarray(0.1 * (2.0 - x[0]) * np.exp(-(x[0] ** 2) - x[1] ** 2))


def _upper(x: Array) -> Array:
    return np.where(x[1] <= 0.5 + 1e-12, 0.6, 0.9)
