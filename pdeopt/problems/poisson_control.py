"""Distributed control of Poisson's equation with a known optimum (the "mother problem")."""

import dataclasses

import dolfinx
import ufl

from pdeopt.control import ControlProblem
from pdeopt.fem import forms
from pdeopt.problems.linear import Mesh


@dataclasses.dataclass(frozen=True, eq=False)
class PoissonControl:
    """Minimise |y - d|^2 / 2 + alpha |u|^2 / 2 subject to -laplace y = u on the unit square, y = 0 on its boundary.

    With s = sin(pi x) sin(pi y) and d = s / (2 pi^2) the optimum is u* = s / (1 + 4 alpha pi^4), y* = u* / (2 pi^2),
    p* = alpha u*; at alpha = 1e-6 the objective is 1.2495131e-7. All quantities are dimensionless.

    Parameters
    ----------
    mesh
        A mesh of the unit square.
    alpha
        Regularisation, > 0.
    degree
        Degree of state, control and adjoint.
    bounds
        Box bounds on the control, or None.

    Collective: yes.
    """

    mesh: Mesh
    alpha: float = 1e-6
    degree: int = 1
    bounds: tuple[float, float] | None = None
    problem: ControlProblem = dataclasses.field(init=False)
    control: dolfinx.fem.Function = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        mesh, facet_dimension = self.mesh, self.mesh.topology.dim - 1
        space = dolfinx.fem.functionspace(mesh, ("Lagrange", self.degree))
        state, control = dolfinx.fem.Function(space, name="state"), dolfinx.fem.Function(space, name="control")
        test = ufl.TestFunction(space)
        mesh.topology.create_connectivity(facet_dimension, mesh.topology.dim)
        facets = dolfinx.mesh.exterior_facet_indices(mesh.topology)
        dofs = dolfinx.fem.locate_dofs_topological(space, facet_dimension, facets)
        target = self._sine() / (2 * ufl.pi**2)
        dx = self._measure()
        problem = ControlProblem(
            objective=0.5 * (state - target) ** 2 * dx + 0.5 * self.alpha * control**2 * dx,
            state_equation=ufl.inner(ufl.grad(state), ufl.grad(test)) * dx - control * test * dx,
            state=state,
            control=control,
            bcs=[dolfinx.fem.dirichletbc(0.0, dofs, space)],
            bounds=self.bounds,
        )
        object.__setattr__(self, "problem", problem)
        object.__setattr__(self, "control", control)

    def _measure(self) -> ufl.Measure:
        return ufl.dx(self.mesh, metadata={"quadrature_degree": 2 * self.degree + 4})

    def _sine(self) -> ufl.core.expr.Expr:
        x = ufl.SpatialCoordinate(self.mesh)
        return ufl.sin(ufl.pi * x[0]) * ufl.sin(ufl.pi * x[1])

    @property
    def exact_objective(self) -> float:
        """J at the optimum of the continuous problem."""
        pi = 3.141592653589793
        factor = 1.0 / (1.0 + 4.0 * self.alpha * pi**4)
        misfit = (factor - 1.0) / (2.0 * pi**2)
        return 0.125 * misfit**2 + 0.125 * self.alpha * factor**2

    def errors(self) -> dict[str, float]:
        """Return the L2 errors of state, control and adjoint. Collective: yes."""
        control = self._sine() / (1 + 4 * self.alpha * ufl.pi**4)
        pairs = {
            "state": (self.problem.state, control / (2 * ufl.pi**2)),
            "control": (self.control, control),
            "adjoint": (self.problem.adjoint, self.alpha * control),
        }
        dx = self._measure()
        return {
            name: forms.assemble_scalar(forms.compile_form((function - exact) ** 2 * dx)) ** 0.5
            for name, (function, exact) in pairs.items()
        }
