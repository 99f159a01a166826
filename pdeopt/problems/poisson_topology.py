"""Topology optimisation of a heat conductor: an example of dolfin-adjoint."""

import dolfinx
import numpy as np
import ufl

from pdeopt.control import ControlProblem
from pdeopt.problems.linear import Mesh, check_range
from pdeopt.problems.manufactured_control import unit_cube_dimension
from pdeopt.report import MeshError

_SOURCE = 1e-2
_POOR_CONDUCTIVITY = 1e-3


class PoissonTopology:
    """Spread a conductor over 40 % of the unit square so that it is as cool as possible under uniform heating.

    Minimise over the temperature T and the share of material a, 0 <= a <= 1,

        int f T dx + alpha int |grad a|^2 dx   subject to   - div(k grad T) = f,   k = e + (1 - e) a^p,   int a dx = V

    with f = 0.01, e = 0.001, T = 0 on the left and the upper side and no flux through the others. a starts as V
    everywhere. The published problem has int a dx <= V. That is the same: adding a constant to a, cut off at 1, raises
    k and lowers |grad a|, so that material left over would always lower the objective. The problem is not convex
    and has many local minima, the more the finer the mesh. All quantities are dimensionless.

    Parameters
    ----------
    mesh
        A mesh of the unit square; published with 250 x 250 squares cut in two.
    volume
        V, between 0 and 1.
    power
        p, >= 1. At 1 the problem is convex but for its regularisation, which may serve for a start; set
        ``penalty.value`` to change it.
    alpha
        Regularisation, > 0.

    Attributes
    ----------
    problem, control
        The control problem, and its control a.
    penalty
        p, a constant of the forms.
    PUBLISHED_OBJECTIVE
        By IPOPT without second derivatives after 30 iterations, stopped at its "acceptable" tolerance 1e-3: on the way
        to a local minimum. Lower is right, too.
    REPEATED_OBJECTIVE
        Where the same method, called in the same way on the same mesh for this class, stops after 30 iterations, with a
        positive multiplier of the volume.

    Raises
    ------
    InputError
        If a number is out of range or the mesh is of another domain (`MeshError`).

    Collective: yes.

    References
    ----------
    Farrell, Topology optimisation of heat conduction problems governed by the Poisson equation, documentation of
    dolfin-adjoint; Gersborg-Hansen, Bendsoe and Sigmund, Structural and Multidisciplinary Optimization 31 (2006)
    251-259.
    """

    PUBLISHED_OBJECTIVE = 1.3911443093658383e-4
    REPEATED_OBJECTIVE = 1.0510536e-4

    def __init__(self, mesh: Mesh, volume: float = 0.4, power: float = 5.0, alpha: float = 1e-8) -> None:
        check_range("volume", volume, 0.0, 1.0)
        check_range("power", power, 1.0 - 1e-12)
        check_range("alpha", alpha, 0.0)
        if unit_cube_dimension(mesh) != 2:
            raise MeshError("the problem is posed on the unit square: make its mesh with create_unit_square")
        space = dolfinx.fem.functionspace(mesh, ("Lagrange", 1))
        temperature, self.control = (dolfinx.fem.Function(space, name=name) for name in ("temperature", "material"))
        self.control.x.array[:] = volume
        self.penalty = dolfinx.fem.Constant(mesh, float(power))
        share, regularisation = dolfinx.fem.Constant(mesh, volume), dolfinx.fem.Constant(mesh, alpha)
        test = ufl.TestFunction(space)
        conductivity = _POOR_CONDUCTIVITY + (1.0 - _POOR_CONDUCTIVITY) * self.control**self.penalty
        gradient = ufl.grad(self.control)
        dx = ufl.dx(mesh, metadata={"quadrature_degree": 5})  # exact for p = 5
        mesh.topology.create_connectivity(1, 2)
        cold = dolfinx.mesh.locate_entities_boundary(mesh, 1, lambda x: np.isclose(x[0], 0.0) | np.isclose(x[1], 1.0))
        dofs = dolfinx.fem.locate_dofs_topological(space, 1, cold)
        self.problem = ControlProblem(
            objective=_SOURCE * temperature * dx + regularisation * ufl.inner(gradient, gradient) * dx,
            state_equation=conductivity * ufl.inner(ufl.grad(temperature), ufl.grad(test)) * dx - _SOURCE * test * dx,
            state=temperature,
            control=self.control,
            bcs=[dolfinx.fem.dirichletbc(0.0, dofs, space)],
            bounds=(0.0, 1.0),
            constraints=[(self.control - share) * dx],
        )
