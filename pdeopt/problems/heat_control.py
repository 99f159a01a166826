"""Control of the heat equation over time with a known optimum: problem "mpdist2" of the collection OPTPDE."""

import math

import dolfinx
import numpy as np
import ufl
from ufl.core.expr import Expr

from pdeopt.control.sweep import Checkpoints
from pdeopt.control.unsteady import UnsteadyControlProblem
from pdeopt.fem import forms
from pdeopt.fem.time import TimeScheme
from pdeopt.problems.linear import Mesh, check_range
from pdeopt.problems.manufactured_control import cube_dimension, zero_on_boundary
from pdeopt.report import InputError


class HeatControl:
    """Minimise half the integral over time of |y - y_d|^2 + beta |u|^2 subject to y' - laplace y = u on (-1, 1)^d.

    y vanishes on the boundary. With f = prod_i cos(pi x_i / 2) and l = d pi^2 / 4 the optimum is

        p = (e^T - e^t) f,   u = p / beta,   y = (e^T / l - e^t / (1 + l)) f / beta,

    and y_d = y + (e^t + l (e^T - e^t)) f, y_0 = y(0) follow. All quantities are dimensionless. Bounds make it the
    problem `bounded`: the optimum is then unknown, but its control is everywhere the projection of p / beta.

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
        self.beta, self.end_time, self.dimension = beta, end_time, cube_dimension(mesh, -1.0, 1.0)
        self.bounded = bounds is not None
        space = dolfinx.fem.functionspace(mesh, ("Lagrange", degree))
        self.state, self.control = dolfinx.fem.Function(space, name="state"), dolfinx.fem.Function(space, name="control")
        self.adjoint = dolfinx.fem.Function(space, name="adjoint")
        self._time = dolfinx.fem.Constant(mesh, 0.0)
        test = ufl.TestFunction(space)
        self._dx = ufl.dx(mesh, metadata={"quadrature_degree": 2 * degree + 4})
        dx = self._dx
        self._exact_time = dolfinx.fem.Constant(mesh, 0.0)
        exact = self.exact(self._exact_time)
        self._errors = {
            name: forms.compile_form((function - exact[name]) ** 2 * dx)
            for name, function in (("state", self.state), ("control", self.control), ("adjoint", self.adjoint))
        }
        self.state.interpolate(dolfinx.fem.Expression(exact["state"], space.element.interpolation_points))
        self.problem = UnsteadyControlProblem(
            state_equation=ufl.inner(ufl.grad(self.state), ufl.grad(test)) * dx - self.control * test * dx,
            mass=self.state * test * dx,
            state=self.state,
            control=self.control,
            adjoint=self.adjoint,
            interval=(0.0, end_time),
            steps=steps,
            scheme=scheme,
            time=self._time,
            running_objective=0.5 * (self.state - self._target(self._time)) ** 2 * dx
            + 0.5 * beta * self.control**2 * dx,
            bcs=[zero_on_boundary(space)],
            bounds=bounds,
            checkpoints=checkpoints,
        )

    @property
    def _eigenvalue(self) -> float:
        return self.dimension * math.pi**2 / 4

    def _mode(self) -> Expr:
        x = ufl.SpatialCoordinate(self.state.function_space.mesh)
        mode: Expr = ufl.as_ufl(1)
        for axis in range(self.dimension):
            mode = mode * ufl.cos(ufl.pi * x[axis] / 2)
        return mode

    def exact(self, time: Expr) -> dict[str, Expr]:
        """Return state, control and adjoint of the continuous problem without bounds at a time, in UFL."""
        final, now, eigenvalue, mode = math.exp(self.end_time), ufl.exp(time), self._eigenvalue, self._mode()
        return {
            "state": (final / eigenvalue - now / (1 + eigenvalue)) * mode / self.beta,
            "control": (final - now) * mode / self.beta,
            "adjoint": (final - now) * mode,
        }

    def _target(self, time: Expr) -> Expr:
        final, now, eigenvalue = math.exp(self.end_time), ufl.exp(time), self._eigenvalue
        return self.exact(time)["state"] + (now + eigenvalue * (final - now)) * self._mode()

    def errors(self) -> dict[str, float]:
        """Return the L2 errors in space and time of state, control and adjoint, each at the times it belongs to.

        Raises
        ------
        InputError
            If bounds make the optimum unknown.

        Collective: yes.
        """
        if self.bounded:
            raise InputError("the optimum is unknown with bounds: leave them out")
        grid = self.problem.grid
        squares = dict.fromkeys(self._errors, 0.0)

        def add(names: tuple[str, ...], step: int, time: float) -> None:
            self._exact_time.value = time
            for name in names:
                squares[name] += grid.size * forms.assemble_scalar(self._errors[name])

        self.problem.visit(lambda step, time: add(("state",) if step else (), step, time))
        self.problem.visit(
            lambda step, time: add(("control", "adjoint"), step, float(grid.control_times[step - 1])), adjoint=True
        )
        return {name: float(np.sqrt(square)) for name, square in squares.items()}
