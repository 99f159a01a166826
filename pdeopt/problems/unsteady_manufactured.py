"""What the unsteady control problems with a known optimum share: their errors in space and time."""

import math
from collections.abc import Callable, Mapping

import dolfinx
import numpy as np
import ufl
from ufl.core.expr import Expr

from pdeopt.control.unsteady import UnsteadyControlProblem
from pdeopt.fem import forms
from pdeopt.problems.linear import Mesh


def clip(value: Expr, bounds: tuple[float, float] | None) -> Expr:
    """Return the projection of an expression to box bounds, or the expression if there are none. Collective: no."""
    lower, upper = bounds or (-math.inf, math.inf)
    if math.isfinite(upper):  # C knows no literal of infinity
        value = ufl.min_value(upper, value)
    return ufl.max_value(lower, value) if math.isfinite(lower) else value


class ManufacturedUnsteadyControl:
    """An unsteady control problem of one control together with its optimum.

    Parameters
    ----------
    mesh
        Where it is posed.
    degree
        Degree of state, control and adjoint, continuous Lagrange elements.
    exact
        Returns the optimum at a time as UFL expressions, by the names "state", "control" and "adjoint".

    Attributes
    ----------
    problem
        The control problem, set by the subclass.
    state, control, adjoint
        Its functions.
    time
        The constant of its forms.
    dx
        Measure with a quadrature that suits the data.
    """

    problem: UnsteadyControlProblem

    def __init__(self, mesh: Mesh, degree: int, exact: Callable[[Expr], Mapping[str, Expr]]) -> None:
        space = dolfinx.fem.functionspace(mesh, ("Lagrange", degree))
        self.state, self.control, self.adjoint = (
            dolfinx.fem.Function(space, name=name) for name in ("state", "control", "adjoint")
        )
        self.time = dolfinx.fem.Constant(mesh, 0.0)
        self.exact = exact
        self.dx = ufl.dx(mesh, metadata={"quadrature_degree": 2 * degree + 4})
        at = exact(self.time)
        unknowns = {"state": self.state, "control": self.control, "adjoint": self.adjoint}
        self._squares = {
            name: forms.compile_form((function - at[name]) ** 2 * self.dx) for name, function in unknowns.items()
        }
        self.state.interpolate(dolfinx.fem.Expression(at["state"], space.element.interpolation_points))

    def errors(self) -> dict[str, float]:
        """Return the L2 errors in space and time of state, control and adjoint, each at the times it belongs to.

        Two sweeps through time. Collective: yes.
        """
        grid = self.problem.grid
        squares = dict.fromkeys(self._squares, 0.0)

        def add(names: tuple[str, ...], time: float) -> None:
            self.time.value = np.asarray(time)
            for name in names:
                squares[name] += grid.size * forms.assemble_scalar(self._squares[name])

        self.problem.visit(lambda step, time: add(("state",) if step else (), time))
        self.problem.visit(
            lambda step, time: add(("control", "adjoint"), float(grid.control_times[step - 1])), adjoint=True
        )
        return {name: square**0.5 for name, square in squares.items()}
