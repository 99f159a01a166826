"""Topology optimisation of a Stokes flow, the double pipe of Borrvall and Petersson: an example of dolfin-adjoint."""

from mpi4py import MPI

import basix.ufl
import dolfinx
import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import fem

from pdeopt.control import ControlProblem
from pdeopt.problems.linear import check_range
from pdeopt.report import InputError

_LENGTH = 1.5
_WIDTH = 1.0 / 6.0  # of inlets and outlets
_MIDDLES = (0.25, 0.75)
_SOLID, _OPEN = 2.5 / 0.01**2, 2.5 / 100.0**2  # inverse permeabilities


class StokesDoublePipe:
    """Lead two streams through a box of which a third may be open, so that they lose little power.

    Minimise over velocity u, pressure p and the share of open space r, 0 <= r <= 1, in the box (0, 1.5) x (0, 1),

        1/2 int k |u|^2 dx + int |grad u|^2 dx   subject to   k u - laplace u + grad p = 0,   div u = 0,
        k = k_1 + (k_0 - k_1) r (1 + q) / (r + q),   int r dx = 1/2,

    with k_0 = 2.5e-4, k_1 = 2.5e4 and parabolic velocities of height 1 over a sixth of the left and right side around
    x_1 = 1/4 and 3/4, u = 0 on the rest of the boundary, and p = 0 in a corner. r starts as 1/3 everywhere.

    The published problem has int r dx <= 1/2. More open space lowers k; that the bound is reached shows in a multiplier
    that is positive, as it is here. The published objective is this one, although the text beside it has
    half of the second term, which would make it the power lost. The problem is not convex: according to Borrvall and
    Petersson q = 0.1 at once leads to two straight pipes, a worse local minimum than the streams joined, to which one
    comes by way of q = 0.01. All quantities are dimensionless.

    Parameters
    ----------
    comm
        Communicator to distribute the mesh over.
    cells
        Cells along both sides, cut in two triangles each; published 100.
    penalty
        q, > 0: the larger, the closer r comes to 0 or 1. Set ``penalty.value`` to change it.

    Attributes
    ----------
    problem
        The control problem; its state is the flow (u, p) of Taylor-Hood elements.
    control
        r, a function of degree 1.
    penalty
        q, a constant of the forms.
    CONTINUATION
        The published values of q, one after the other; the first was stopped after 20 iterations.
    PUBLISHED_OBJECTIVE
        For q = 0.1 where IPOPT without second derivatives stopped at its limit of 100 iterations, with a residual of
        2e-3. Lower is right.
    REPEATED_OBJECTIVE
        Where the same method, called in the same way on the same mesh for this class, arrives after the same 20 and 100
        iterations, with a residual of 1e-6: a local minimum. The multiplier of the volume is 211.

    Raises
    ------
    InputError
        If a number is out of range.

    Collective: yes.

    References
    ----------
    Farrell, Topology optimisation of fluids in Stokes flow, documentation of dolfin-adjoint; Borrvall and Petersson,
    Topology optimization of fluids in Stokes flow, Int. J. Numer. Meth. Fluids 41 (2003) 77-107, example 4.
    """

    CONTINUATION = (0.01, 0.1)
    PUBLISHED_OBJECTIVE = 45.944633030224409
    REPEATED_OBJECTIVE = 43.9709566

    def __init__(self, comm: MPI.Comm, cells: int = 100, penalty: float = 0.01) -> None:
        check_range("penalty", penalty, 0.0)
        if cells < 4:
            raise InputError(f"cells = {cells} cannot resolve the inlets: take 4 at least")
        corners = [np.array([0.0, 0.0]), np.array([_LENGTH, 1.0])]
        mesh = dolfinx.mesh.create_rectangle(comm, corners, (cells, cells))
        cell = mesh.basix_cell()
        element = basix.ufl.element("Lagrange", cell, 2, shape=(2,))
        space = fem.functionspace(mesh, basix.ufl.mixed_element([element, basix.ufl.element("Lagrange", cell, 1)]))
        flow = fem.Function(space, name="flow")
        self.control = fem.Function(fem.functionspace(mesh, ("Lagrange", 1)), name="open space")
        self.control.x.array[:] = 1.0 / 3.0
        self.penalty = fem.Constant(mesh, penalty)
        velocity, pressure = ufl.split(flow)
        velocity_test, pressure_test = ufl.TestFunctions(space)
        dx = ufl.dx(mesh, metadata={"quadrature_degree": 6})
        friction = _SOLID + (_OPEN - _SOLID) * self.control * (1.0 + self.penalty) / (self.control + self.penalty)
        gradient = ufl.grad(velocity)
        self.problem = ControlProblem(
            objective=0.5 * friction * ufl.inner(velocity, velocity) * dx + ufl.inner(gradient, gradient) * dx,
            state_equation=ufl.inner(gradient, ufl.grad(velocity_test)) * dx
            + friction * ufl.inner(velocity, velocity_test) * dx
            - (pressure * ufl.div(velocity_test) + pressure_test * ufl.div(velocity)) * dx,
            state=flow,
            control=self.control,
            bcs=_conditions(space),
            bounds=(0.0, 1.0),
            constraints=[(self.control - 1.0 / 3.0) * dx],
        )


def _streams(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the velocity on the boundary. Collective: no."""
    values = np.zeros((2, x.shape[1]))
    side = np.isclose(x[0], 0.0) | np.isclose(x[0], _LENGTH)
    for middle in _MIDDLES:
        values[0] += np.where(side, np.maximum(1.0 - (2.0 * (x[1] - middle) / _WIDTH) ** 2, 0.0), 0.0)
    return values


def _conditions(space: fem.FunctionSpace) -> list[fem.DirichletBC]:
    mesh = space.mesh
    mesh.topology.create_connectivity(1, 2)
    facets = dolfinx.mesh.exterior_facet_indices(mesh.topology)
    velocities, _ = space.sub(0).collapse()
    pressures, _ = space.sub(1).collapse()
    given = fem.Function(velocities)
    given.interpolate(_streams)
    corner = fem.locate_dofs_geometrical(
        (space.sub(1), pressures), lambda x: np.isclose(x[0], 0.0) & np.isclose(x[1], 0.0)
    )
    return [
        fem.dirichletbc(given, fem.locate_dofs_topological((space.sub(0), velocities), 1, facets), space.sub(0)),
        fem.dirichletbc(fem.Function(pressures), corner, space.sub(1)),
    ]
