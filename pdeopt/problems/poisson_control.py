"""Distributed control of Poisson's equation with a known optimum (the "mother problem")."""

import math

import dolfinx
import ufl

from pdeopt.control import ControlProblem
from pdeopt.problems.linear import Mesh, check_range
from pdeopt.problems.manufactured_control import ManufacturedControl, sine_mode, unit_cube_dimension, zero_on_boundary


class PoissonControl(ManufacturedControl):
    """Minimise |y - d|^2 / 2 + alpha |u|^2 / 2 subject to -laplace y = u on the unit cube, y = 0 on its boundary.

    In n dimensions s = prod_i sin(pi x_i) has -laplace s = m s with m = n pi^2. With d = s / m the optimum is
    u* = s / (1 + alpha m^2), y* = u* / m, p* = alpha u*; in the plane at alpha = 1e-6 the objective is 1.2495131e-7.
    All quantities are dimensionless.

    Parameters
    ----------
    mesh
        A mesh of the unit interval, square or cube.
    alpha
        Regularisation, > 0.
    degree
        Degree of state, control and adjoint.
    bounds
        Box bounds on the control, or None; where they cut u* the optimum is unknown.

    Raises
    ------
    InputError
        If ``alpha`` is not positive or the mesh is of another domain (`MeshError`).

    Collective: yes.
    """

    def __init__(
        self, mesh: Mesh, alpha: float = 1e-6, degree: int = 1, bounds: tuple[float, float] | None = None
    ) -> None:
        check_range("alpha", alpha, 0.0)
        self.alpha, self.dimension = alpha, unit_cube_dimension(mesh)
        eigenvalue = self.dimension * math.pi**2
        self._factor = 1.0 / (1.0 + alpha * eigenvalue**2)
        space = dolfinx.fem.functionspace(mesh, ("Lagrange", degree))
        state, control = dolfinx.fem.Function(space, name="state"), dolfinx.fem.Function(space, name="control")
        test = ufl.TestFunction(space)
        sine = sine_mode(mesh, [1] * self.dimension)
        dx = ufl.dx(mesh, metadata={"quadrature_degree": 2 * degree + 4})
        problem = ControlProblem(
            objective=0.5 * (state - sine / eigenvalue) ** 2 * dx + 0.5 * alpha * control**2 * dx,
            state_equation=ufl.inner(ufl.grad(state), ufl.grad(test)) * dx - control * test * dx,
            state=state,
            control=control,
            bcs=[zero_on_boundary(space)],
            bounds=bounds,
        )
        optimum = self._factor * sine
        exact = {"state": optimum / eigenvalue, "control": optimum, "adjoint": alpha * optimum}
        cut = bounds is not None and not (bounds[0] <= 0.0 and bounds[1] >= self._factor)
        super().__init__(problem, {} if cut else exact, dx)

    @property
    def exact_objective(self) -> float:
        """J at the optimum of the continuous problem.

        Raises
        ------
        InputError
            If bounds make the optimum unknown.

        Collective: no.
        """
        self._require_optimum()
        misfit = (self._factor - 1.0) / (self.dimension * math.pi**2)
        sine_squared = 0.5**self.dimension
        return 0.5 * sine_squared * (misfit**2 + self.alpha * self._factor**2)
