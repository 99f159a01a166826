"""Control of the cylinder's wake by the motion of its surface."""

import math

import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import fem

from pdeopt.control import ControlProblem
from pdeopt.fem import forms
from pdeopt.fem.mesh import MeshData
from pdeopt.problems.cylinder_flow import VISCOSITY, CylinderFlow
from pdeopt.problems.cylinder_mesh import CENTRE, DIAMETER
from pdeopt.problems.linear import check_range

_WAKE = (CENTRE[0] + 0.6 * DIAMETER, CENTRE[0] + 10.0 * DIAMETER)  # from x to x [m]
_PENALTY = 20.0  # of Nitsche's method, times viscosity over edge length


class WakeControl:
    """Move the surface of the cylinder along itself so that the flow behind it is as if there were no cylinder.

    Minimise over the flow (u, p) and the tangential surface velocity g, in units of the mean inflow U,

        1 / (2 U^2 D^2) int_wake |u - d|^2 dx + alpha / (2 D) int_cylinder g^2 ds

    subject to the steady flow of `CylinderFlow` with u = U g t on the cylinder, where t is the anticlockwise unit
    tangent; d is the parabola of the inflow. The wake is the cells with midpoints 0.26 < x < 1.2. The velocity on the
    cylinder is imposed by Nitsche's method, so that the control stands in the forms,

        - (nu du/dn - p n, v) - (nu dv/dn - q n, u - U g t) + 20 nu / h (u - U g t, v)   on the cylinder.

    No mass passes through the surface; a constant g is a rotation.

    Parameters
    ----------
    mesh_data
        `cylinder_mesh`, or another mesh of that channel with the same groups.
    reynolds
        > 0. Up to 60 Newton's method for the optimum starts near enough, at the flow around the cylinder at rest; at 80
        it does not, and ``problem.solve(method="bqnls")`` finds the optimum (100 was tried).
    alpha
        Regularisation, > 0.

    Attributes
    ----------
    problem
        The control problem. Its state starts as the uncontrolled flow.
    control
        g, a function of degree 1: of degree 2 it would zigzag between vertices and midpoints, as the traction of the
        adjoint flow does that drives it. Only its degrees of freedom on the cylinder act.
    flow
        The flow, set by ``problem.solve()``; its ``forces()`` are those on the moving surface.
    uncontrolled
        The flow around the cylinder at rest.

    Raises
    ------
    InputError
        If a number is out of range or the mesh lacks a group (`MeshError`).
    ConvergenceError
        If the uncontrolled flow is not found.

    Collective: yes.

    References
    ----------
    Nitsche's method for the Stokes equations: Freund and Stenberg, Proc. 9th Int. Conf. Finite Elements in Fluids
    (1995) 327-336.
    """

    def __init__(self, mesh_data: MeshData, reynolds: float = 40.0, alpha: float = 1e-2) -> None:
        check_range("alpha", alpha, 0.0)
        self.flow = flow = CylinderFlow(mesh_data, reynolds)
        flow.solve()
        self.uncontrolled = flow.solution.copy()
        self.uncontrolled.name = "uncontrolled flow"
        mesh = mesh_data.mesh
        # As numbers in the forms they would be compiled anew for every value.
        speed, weight = fem.Constant(mesh, flow.mean_inflow), fem.Constant(mesh, alpha / DIAMETER)
        self.control = fem.Function(fem.functionspace(mesh, ("Lagrange", 1)), name="surface velocity")
        metadata = {"quadrature_degree": 6}
        ds = ufl.ds(mesh, subdomain_data=mesh_data.facet_tags, metadata=metadata)(mesh_data.tag("cylinder"))
        normal = ufl.FacetNormal(mesh)
        tangent = ufl.as_vector([normal[1], -normal[0]])
        velocity, pressure = ufl.split(flow.solution)
        velocity_test, pressure_test = ufl.TestFunctions(flow.space)
        slip = velocity - speed * self.control * tangent
        traction = VISCOSITY * ufl.dot(ufl.grad(velocity), normal) - pressure * normal
        traction_test = VISCOSITY * ufl.dot(ufl.grad(velocity_test), normal) - pressure_test * normal
        penalty = fem.Constant(mesh, _PENALTY * VISCOSITY / _edge_length(mesh_data))
        state_equation = (
            flow.residual
            + (
                penalty * ufl.inner(slip, velocity_test)
                - ufl.inner(traction, velocity_test)
                - ufl.inner(traction_test, slip)
            )
            * ds
        )
        wake = fem.Function(fem.functionspace(mesh, ("DG", 0)))
        wake.interpolate(lambda x: np.where((x[0] > _WAKE[0]) & (x[0] < _WAKE[1]), 1.0, 0.0))
        deviation = velocity - flow.undisturbed(ufl.SpatialCoordinate(mesh))
        tracking = 0.5 / (speed * DIAMETER) ** 2 * wake * ufl.inner(deviation, deviation) * flow.dx
        self._tracking = forms.compile_form(tracking)
        self.problem = ControlProblem(
            objective=tracking + 0.5 * weight * self.control**2 * ds,
            state_equation=state_equation,
            state=flow.solution,
            control=self.control,
            bcs=[flow.bcs["inflow"], flow.bcs["walls"]],
        )

    def tracking(self) -> float:
        """Return the first term of the objective at the present flow. Collective: yes."""
        return forms.assemble_scalar(self._tracking)

    def surface_velocity(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return the control around the cylinder, on all ranks.

        Returns
        -------
        angles, values
            Shape (nodes,) each: the angle from the rearmost point, anticlockwise, increasing in [-pi, pi), and g there.

        Collective: yes.
        """
        space, data = self.control.function_space, self.flow.mesh_data
        assert data.facet_tags is not None
        dofs = fem.locate_dofs_topological(space, 1, data.facet_tags.find(data.tag("cylinder")))
        dofs = dofs[dofs < forms.owned_size(space)]
        points = space.tabulate_dof_coordinates()[dofs]
        angles = np.arctan2(points[:, 1] - CENTRE[1], points[:, 0] - CENTRE[0])
        angles[angles > math.pi - 1e-9] = -math.pi
        parts = space.mesh.comm.allgather((angles, self.control.x.array[dofs]))
        angles, values = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        order = np.argsort(angles)
        return angles[order], values[order]


def _edge_length(data: MeshData) -> float:
    """Return the mean length of the edges on the cylinder [m]. Collective: yes."""
    assert data.facet_tags is not None
    facets = data.facet_tags.find(data.tag("cylinder"))
    owned = int(np.count_nonzero(facets < data.mesh.topology.index_map(1).size_local))
    return math.pi * DIAMETER / float(data.mesh.comm.allreduce(owned))
