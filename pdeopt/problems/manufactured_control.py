"""What the control problems with a known optimum share: their errors, the optimum as starting point, their data.

Each is manufactured: state, control and adjoint are chosen as smooth functions, and the data of the problem follow
from the optimality system, with Lagrangian L(y, u, p) = J(y, u) + F(y, u; p) as everywhere in pdeopt.
"""

from collections.abc import Mapping, Sequence

from mpi4py import MPI

import dolfinx
import numpy as np
import numpy.typing as npt
import ufl
from ufl.core.expr import Expr

from pdeopt.control import ControlProblem
from pdeopt.fem import forms
from pdeopt.problems.linear import Mesh
from pdeopt.report import InputError, MeshError


class ManufacturedControl:
    """A control problem of one control together with its optimum.

    Parameters
    ----------
    problem
        The control problem.
    exact
        The optimum of the continuous problem as UFL expressions, by the names "state", "control" and "adjoint"; empty
        if it is unknown.
    measure
        Where and by which quadrature the errors are integrated.
    control_measure
        The same for the control; ``measure`` if None.

    Attributes
    ----------
    problem, exact
        As given.
    control
        The control's function, set by ``problem.solve()``.
    """

    def __init__(
        self,
        problem: ControlProblem,
        exact: Mapping[str, Expr],
        measure: ufl.Measure,
        control_measure: ufl.Measure | None = None,
    ) -> None:
        control = problem.given_controls[0]
        assert isinstance(control, dolfinx.fem.Function)
        self.problem, self.control, self.exact = problem, control, exact
        self._unknowns = {"state": problem.state, "control": control, "adjoint": problem.adjoint}
        self._measures = {"state": measure, "control": control_measure or measure, "adjoint": measure}

    def errors(self) -> dict[str, float]:
        """Return the L2 errors of state, control (where it acts) and adjoint.

        Raises
        ------
        InputError
            If the optimum is unknown.

        Collective: yes.
        """
        self._require_optimum()
        return {
            name: forms.assemble_scalar(forms.compile_form((function - self.exact[name]) ** 2 * self._measures[name]))
            ** 0.5
            for name, function in self._unknowns.items()
        }

    def set_optimum(self) -> None:
        """Set state, control and adjoint to the interpolants of the optimum, for instance as initial guess.

        Raises
        ------
        InputError
            If the optimum is unknown.

        Collective: yes.
        """
        self._require_optimum()
        for name, function in self._unknowns.items():
            points = function.function_space.element.interpolation_points
            function.interpolate(dolfinx.fem.Expression(self.exact[name], points))
            function.x.scatter_forward()

    def _require_optimum(self) -> None:
        if not self.exact:
            raise InputError("the optimum is unknown with these bounds: leave them out, or use BoundedPoissonControl")


def unit_cube_dimension(mesh: Mesh) -> int:
    """Return the dimension d of a mesh of the unit cube [0, 1]^d; see `cube_dimension`. Collective: yes."""
    return cube_dimension(mesh, 0.0, 1.0)


def cube_dimension(mesh: Mesh, low: float, high: float) -> int:
    """Return the dimension d of a mesh of the cube [low, high]^d.

    Raises
    ------
    MeshError
        On all ranks, if the mesh is a surface or curve in space, or does not reach from ``low`` to ``high`` everywhere.

    Collective: yes.
    """
    dimension = mesh.topology.dim
    if mesh.geometry.dim != dimension:
        raise MeshError(f"a mesh of dimension {dimension} in {mesh.geometry.dim} coordinates is no mesh of a cube")
    points = mesh.geometry.x[:, :dimension]
    lower, upper = np.full(dimension, np.inf), np.full(dimension, -np.inf)
    mesh.comm.Allreduce(points.min(axis=0, initial=np.inf), lower, op=MPI.MIN)
    mesh.comm.Allreduce(points.max(axis=0, initial=-np.inf), upper, op=MPI.MAX)
    if not (np.allclose(lower, low, atol=1e-12) and np.allclose(upper, high, atol=1e-12)):
        raise MeshError(
            f"the problem is posed on the cube [{low:g}, {high:g}]^{dimension}, but the mesh reaches from {lower} to "
            f"{upper}: make it with dolfinx.mesh.create_interval, create_rectangle or create_box"
        )
    return int(dimension)


def sine_mode(mesh: Mesh, frequencies: Sequence[int]) -> Expr:
    """Return the product of sin(k_i pi x_i) over the axes with k_i > 0.

    It is an eigenfunction of -laplace, with eigenvalue pi^2 sum_i k_i^2. Collective: no.
    """
    x = ufl.SpatialCoordinate(mesh)
    mode: Expr = ufl.as_ufl(1)
    for axis, frequency in enumerate(frequencies):
        if frequency > 0:
            mode = mode * ufl.sin(frequency * ufl.pi * x[axis])
    return mode


def boundary_dofs(space: dolfinx.fem.FunctionSpace[np.float64]) -> npt.NDArray[np.int32]:
    """Return the degrees of freedom on the whole boundary that this rank sees. Collective: yes."""
    mesh = space.mesh
    facet_dimension = mesh.topology.dim - 1
    mesh.topology.create_connectivity(facet_dimension, mesh.topology.dim)
    facets = dolfinx.mesh.exterior_facet_indices(mesh.topology)
    return dolfinx.fem.locate_dofs_topological(space, facet_dimension, facets)


def zero_on_boundary(space: dolfinx.fem.FunctionSpace[np.float64]) -> dolfinx.fem.DirichletBC[np.float64]:
    """Return the condition that a scalar function vanishes on the whole boundary. Collective: yes."""
    return dolfinx.fem.dirichletbc(0.0, boundary_dofs(space), space)
