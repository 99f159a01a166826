"""Control of Burgers' equation over time with a known optimum: the nonlinear unsteady test problem."""

import math

import ufl
from ufl.core.expr import Expr

from pdeopt.control.sweep import Checkpoints
from pdeopt.control.unsteady import UnsteadyControlProblem
from pdeopt.fem.time import TimeScheme
from pdeopt.problems.linear import Mesh, check_range
from pdeopt.problems.manufactured_control import cube_dimension, zero_on_boundary
from pdeopt.problems.unsteady_manufactured import ManufacturedUnsteadyControl
from pdeopt.report import MeshError


class BurgersControl(ManufacturedUnsteadyControl):
    """Minimise half the integral of |y - y_d|^2 + beta |u|^2 subject to y' + y y_x - nu y_xx = u + f on (0, 1).

    y vanishes at both ends. The optimum is y = e^-t sin(pi x), p = (e^T - e^t) sin(2 pi x) / 10, u = p / beta; the
    source f and the target y_d = y - p' - y p_x - nu p_xx follow. All quantities are dimensionless.

    Parameters
    ----------
    mesh
        A mesh of the unit interval.
    steps
        Number of time steps.
    viscosity
        nu > 0.
    beta
        Regularisation, > 0.
    end_time
        T > 0.
    scheme
        Crank-Nicolson if None.
    degree
        Degree of state, control and adjoint.
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
        viscosity: float = 0.05,
        beta: float = 1e-1,
        end_time: float = 1.0,
        scheme: TimeScheme | None = None,
        degree: int = 1,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        for name, value in (("viscosity", viscosity), ("beta", beta), ("end_time", end_time)):
            check_range(name, value, 0.0)
        if cube_dimension(mesh, 0.0, 1.0) != 1:
            raise MeshError("Burgers' equation is posed on the unit interval: use dolfinx.mesh.create_unit_interval")
        final, x = math.exp(end_time), ufl.SpatialCoordinate(mesh)[0]

        def exact(time: Expr) -> dict[str, Expr]:
            adjoint = (final - ufl.exp(time)) * ufl.sin(2 * ufl.pi * x) / 10
            return {
                "state": ufl.exp(-time) * ufl.sin(ufl.pi * x),
                "control": adjoint / beta,
                "adjoint": adjoint,
            }

        super().__init__(mesh, degree, exact)
        y, u, time, dx = self.state, self.control, self.time, self.dx
        test = ufl.TestFunction(y.function_space)
        at = exact(time)
        state, adjoint = at["state"], at["adjoint"]
        adjoint_change = -ufl.exp(time) * ufl.sin(2 * ufl.pi * x) / 10
        source = -state + state * state.dx(0) - viscosity * state.dx(0).dx(0) - at["control"]
        target = state - adjoint_change - state * adjoint.dx(0) - viscosity * adjoint.dx(0).dx(0)
        self.problem = UnsteadyControlProblem(
            state_equation=(y * y.dx(0) - u - source) * test * dx + viscosity * y.dx(0) * test.dx(0) * dx,
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
            checkpoints=checkpoints,
        )
