"""Control of the heat equation over time with a known optimum: problem "mpdist2" of the collection OPTPDE."""

import math

import ufl
from ufl.core.expr import Expr

from pdeopt.control.sweep import Checkpoints
from pdeopt.control.unsteady import UnsteadyControlProblem
from pdeopt.fem.time import TimeScheme
from pdeopt.problems.linear import Mesh, check_range
from pdeopt.problems.manufactured_control import cube_dimension, zero_on_boundary
from pdeopt.problems.unsteady_manufactured import ManufacturedUnsteadyControl, clip


class HeatControl(ManufacturedUnsteadyControl):
    """Minimise half the integral over time of |y - y_d|^2 + beta |u|^2 subject to y' - laplace y = u + f on (-1, 1)^d.

    y vanishes on the boundary. With w = prod_i cos(pi x_i / 2) and l = d pi^2 / 4 the optimum is

        p = (e^T - e^t) w,   u = p / beta,   y = (e^T / l - e^t / (1 + l)) w / beta,

    with f = 0 and y_d = y + (e^t + l (e^T - e^t)) w: mpdist2. With bounds the optimal control is u projected to them,
    and f is what that takes away, so that y and p stay as they are. All quantities are dimensionless.

    Parameters
    ----------
    mesh
        A mesh of [-1, 1]^d.
    steps
        Number of time steps.
    beta
        Regularisation, > 0.
    end_time
        T > 0.
    scheme
        Crank-Nicolson if None.
    degree
        Degree of state, control and adjoint.
    bounds
        Box bounds on the control, or None.
    checkpoints
        See `UnsteadyControlProblem`.

    Raises
    ------
    InputError
        If a number is out of range or the mesh is of another domain (`MeshError`).

    Collective: yes.
    """

    def __init__(
        self,
        mesh: Mesh,
        steps: int,
        beta: float = 1e-2,
        end_time: float = 1.0,
        scheme: TimeScheme | None = None,
        degree: int = 1,
        bounds: tuple[float, float] | None = None,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        check_range("beta", beta, 0.0)
        check_range("end_time", end_time, 0.0)
        dimension = cube_dimension(mesh, -1.0, 1.0)
        eigenvalue, final = dimension * math.pi**2 / 4, math.exp(end_time)
        x = ufl.SpatialCoordinate(mesh)
        mode: Expr = ufl.as_ufl(1)
        for axis in range(dimension):
            mode = mode * ufl.cos(ufl.pi * x[axis] / 2)

        def exact(time: Expr) -> dict[str, Expr]:
            adjoint = (final - ufl.exp(time)) * mode
            state = (final / eigenvalue - ufl.exp(time) / (1 + eigenvalue)) * mode / beta
            return {"state": state, "control": clip(adjoint / beta, bounds), "adjoint": adjoint}

        super().__init__(mesh, degree, exact)
        y, u, time, dx = self.state, self.control, self.time, self.dx
        test = ufl.TestFunction(y.function_space)
        at = exact(time)
        target = at["state"] + (ufl.exp(time) + eigenvalue * (final - ufl.exp(time))) * mode
        equation = ufl.inner(ufl.grad(y), ufl.grad(test)) * dx - u * test * dx
        if bounds is not None:
            equation -= (at["adjoint"] / beta - at["control"]) * test * dx
        self.problem = UnsteadyControlProblem(
            state_equation=equation,
            mass=y * test * dx,
            state=y,
            control=u,
            adjoint=self.adjoint,
            interval=(0.0, end_time),
            steps=steps,
            scheme=scheme,
            time=time,
            running_objective=0.5 * (y - target) ** 2 * dx + 0.5 * beta * u**2 * dx,
            bcs=[zero_on_boundary(y.function_space)],
            bounds=bounds,
            checkpoints=checkpoints,
        )
