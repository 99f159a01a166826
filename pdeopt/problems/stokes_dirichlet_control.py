"""Control of Stokes flow by the velocity on the surface of an obstacle: an example of dolfin-adjoint."""

from typing import Any

from mpi4py import MPI

import basix.ufl
import ufl
from dolfinx import fem

from pdeopt.control import ControlProblem
from pdeopt.fem.mesh import MeshData
from pdeopt.problems.cylinder_mesh import mesh_by_gmsh
from pdeopt.problems.linear import check_range
from pdeopt.report import MeshError

_LENGTH, _HEIGHT = 30.0, 10.0
_CENTRE, _RADIUS = (10.0, 5.0), 2.5
_PENALTY = 10.0  # of Nitsche's method, times viscosity over the diameter of the cell


def obstacle_mesh(comm: MPI.Comm, edge: float = 0.415) -> MeshData:
    """Mesh the channel [0, 30] x [0, 10] around the disc of radius 2.5 with its centre at (10, 5), by Gmsh.

    Parameters
    ----------
    comm
        Communicator to distribute the mesh over.
    edge
        Length of the edges, everywhere alike, > 0. With the default there are about as many vertices as in the mesh of
        the published example, 2047, whose triangles have straight sides too.

    Returns
    -------
    MeshData
        Triangles with the groups "fluid" (cells), "inflow", "outflow", "walls" and "circle" (facets).

    Raises
    ------
    InputError
        If the length is not positive.
    MissingPackageError
        If Gmsh cannot be loaded.

    Collective: yes.
    """
    check_range("edge", edge, 0.0)

    def generate(model: Any) -> None:
        geometry = model.geo
        centre = geometry.addPoint(*_CENTRE, 0.0, edge)
        around = [(_RADIUS, 0.0), (0.0, _RADIUS), (-_RADIUS, 0.0), (0.0, -_RADIUS)]
        points = [geometry.addPoint(_CENTRE[0] + x, _CENTRE[1] + y, 0.0, edge) for x, y in around]
        arcs = [geometry.addCircleArc(points[i], centre, points[(i + 1) % 4]) for i in range(4)]
        ends = ((0.0, 0.0), (_LENGTH, 0.0), (_LENGTH, _HEIGHT), (0.0, _HEIGHT))
        corners = [geometry.addPoint(x, y, 0.0, edge) for x, y in ends]
        bottom, outflow, top, inflow = (geometry.addLine(corners[i], corners[(i + 1) % 4]) for i in range(4))
        surface = geometry.addPlaneSurface(
            [geometry.addCurveLoop([bottom, outflow, top, inflow]), geometry.addCurveLoop(arcs)]
        )
        geometry.synchronize()
        model.mesh.setSize(model.getEntities(0), edge)
        size = model.mesh.field.add("MathEval")
        model.mesh.field.setString(size, "F", f"{edge}")
        model.mesh.field.setAsBackgroundMesh(size)
        model.addPhysicalGroup(2, [surface], name="fluid")
        groups = {"inflow": [inflow], "outflow": [outflow], "walls": [bottom, top], "circle": arcs}
        for group, curves in groups.items():
            model.addPhysicalGroup(1, curves, name=group)
        model.mesh.generate(2)

    return mesh_by_gmsh(comm, generate)


class StokesDirichletControl:
    """Suck and blow on an obstacle in Stokes flow so that little energy is dissipated.

    Minimise over the velocity u, the pressure p and the velocity g on the circle

        1/2 int |grad u|^2 dx + alpha / 2 int_circle |g|^2 ds

    subject to -laplace u + grad p = 0, div u = 0 with u = (x_1 (10 - x_1) / 25, 0) at the inflow, u = 0 on the walls,
    u = g on the circle and grad u n = p n at the outflow. The velocity on the circle is imposed by Nitsche's method, so
    that the control stands in the forms,

        - (grad u n - p n, v) - (grad v n - q n, u - g) + 10 / h (u - g, v)   on the circle,

    with the cell's diameter h. The problem is linear-quadratic. All quantities are dimensionless.

    Parameters
    ----------
    mesh_data
        `obstacle_mesh`, or another mesh of that channel with the same groups.
    alpha
        Regularisation, > 0; published 10.

    Attributes
    ----------
    problem
        The control problem; its state is the flow (u, p) of Taylor-Hood elements.
    control
        g, of the velocity's elements. Only its degrees of freedom on the circle act.
    PUBLISHED_OBJECTIVE
        Of the published example, which sets u = g on the circle in the degrees of freedom, on a mesh of its own with
        2047 vertices; L-BFGS-B stopped there by its tolerance for the objective, after 21 iterations.
    PUBLISHED_NITSCHE_OBJECTIVE
        The same with Nitsche's method as here, on another mesh (of 14384 instead of 15708 unknowns of velocity), after
        11 iterations. The meshes were made by a program no longer maintained, and their circles are polygons.
    LEAST_OBJECTIVE
        Extrapolated from 19.9378, 19.9694 and 19.9770 here with edges of 0.415, 0.2 and 0.1, to 1e-3.

    Raises
    ------
    InputError
        If ``alpha`` is not positive or the mesh lacks a group (`MeshError`).

    Collective: yes.

    References
    ----------
    Funke and Massing, Dirichlet BC control of the Stokes equations, documentation of dolfin-adjoint.
    """

    PUBLISHED_OBJECTIVE = 19.980459647407621
    PUBLISHED_NITSCHE_OBJECTIVE = 19.890932240156282
    LEAST_OBJECTIVE = 19.9795

    def __init__(self, mesh_data: MeshData, alpha: float = 10.0) -> None:
        check_range("alpha", alpha, 0.0)
        mesh, tags = mesh_data.mesh, mesh_data.facet_tags
        if tags is None:
            raise MeshError("the mesh has no facet tags: it needs the groups 'inflow', 'walls' and 'circle'")
        cell = mesh.basix_cell()
        element = basix.ufl.element("Lagrange", cell, 2, shape=(2,))
        space = fem.functionspace(mesh, basix.ufl.mixed_element([element, basix.ufl.element("Lagrange", cell, 1)]))
        velocities, _ = space.sub(0).collapse()
        flow, self.control = fem.Function(space, name="flow"), fem.Function(velocities, name="surface velocity")
        inflow = fem.Function(velocities)
        inflow.interpolate(lambda x: (x[1] * (10.0 - x[1]) / 25.0, 0.0 * x[1]))
        bcs = []
        for group, value in {"inflow": inflow, "walls": fem.Function(velocities)}.items():
            dofs = fem.locate_dofs_topological((space.sub(0), velocities), 1, tags.find(mesh_data.tag(group)))
            bcs.append(fem.dirichletbc(value, dofs, space.sub(0)))

        velocity, pressure = ufl.split(flow)
        velocity_test, pressure_test = ufl.TestFunctions(space)
        metadata = {"quadrature_degree": 4}
        dx = ufl.dx(mesh, metadata=metadata)
        circle = ufl.ds(mesh, subdomain_data=tags, metadata=metadata)(mesh_data.tag("circle"))
        normal, slip = ufl.FacetNormal(mesh), velocity - self.control
        traction = ufl.dot(ufl.grad(velocity), normal) - pressure * normal
        traction_test = ufl.dot(ufl.grad(velocity_test), normal) - pressure_test * normal
        weight = fem.Constant(mesh, alpha)
        gradient = ufl.grad(velocity)
        self.problem = ControlProblem(
            objective=0.5 * ufl.inner(gradient, gradient) * dx
            + 0.5 * weight * ufl.inner(self.control, self.control) * circle,
            state_equation=ufl.inner(gradient, ufl.grad(velocity_test)) * dx
            - (pressure * ufl.div(velocity_test) + pressure_test * ufl.div(velocity)) * dx
            - (ufl.inner(traction, velocity_test) + ufl.inner(traction_test, slip)) * circle
            + _PENALTY / ufl.CellDiameter(mesh) * ufl.inner(slip, velocity_test) * circle,
            state=flow,
            control=self.control,
            bcs=bcs,
        )
