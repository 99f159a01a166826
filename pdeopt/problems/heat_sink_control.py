"""The main job: optimal heating of a finned heat sink, on any refinement of its mesh."""

import os

from mpi4py import MPI

import dolfinx
import ufl

from pdeopt.control import ControlProblem
from pdeopt.fem.adapt import refine_mesh
from pdeopt.fem.mesh import read_mesh
from pdeopt.problems.linear import check_range
from pdeopt.report import InputError

_METRES_TO_10_MM = 100.0
_CONDUCTIVITY = {"aluminium": 1.0, "copper": 1.9}  # scaled by that of aluminium
_BIOT = 0.02  # heat transfer coefficient times 10 mm over the conductivity of aluminium
_TARGET = 1.0  # temperature rise above the air, in its own unit


class HeatSinkControl:
    """Heat the section of a heat sink so that its temperature rise y comes close to the target 1.

    Minimise |y - 1|^2 / 2 + alpha |u|^2 / 2 subject to

        -div(k grad y) = u,   -k grad y . n = h y on the fins,   k grad y . n = 0 on the rest of the boundary,

    with k = 1 in the aluminium and 1.9 in the copper, and the Biot number h = 0.02. Lengths are in units of 10 mm,
    temperatures in units of the target. No optimum is known in closed form.

    Parameters
    ----------
    comm
        Communicator to distribute the mesh over.
    mesh_file
        The mesh ``meshes/heat_sink.msh``, in metres, with the groups "aluminium", "copper" (cells) and "fins" (facets).
    refinements
        Uniform refinements of that mesh, >= 0: each makes four cells of one and keeps the tags. The rounded fins stay
        the polygons of the file.
    alpha
        Regularisation, > 0.
    degree
        Degree of state, control and adjoint.
    bounds
        (lower, upper) of the heating, or None.

    Attributes
    ----------
    problem
        The control problem.
    control
        The heating, set by ``problem.solve()``.
    mesh_data
        The refined mesh with its tags.

    Raises
    ------
    InputError
        If a number is out of range or the mesh cannot be used (`MeshError`).

    Collective: yes.
    """

    def __init__(
        self,
        comm: MPI.Comm,
        mesh_file: str | os.PathLike[str],
        *,
        refinements: int = 0,
        alpha: float = 1e-4,
        degree: int = 1,
        bounds: tuple[float, float] | None = None,
    ) -> None:
        check_range("alpha", alpha, 0.0)
        if refinements < 0:
            raise InputError(f"refinements = {refinements} is negative: the mesh of the file is the coarsest")
        data = read_mesh(mesh_file, comm)
        data.mesh.geometry.x[:] *= _METRES_TO_10_MM
        for _ in range(refinements):
            data = refine_mesh(data)
        self.mesh_data = data
        metadata = {"quadrature_degree": 2 * degree}  # exact: cells are straight, data piecewise constant
        dx = ufl.Measure("dx", data.mesh, subdomain_data=data.cell_tags, metadata=metadata)
        ds = ufl.Measure("ds", data.mesh, subdomain_data=data.facet_tags, metadata=metadata)
        space = dolfinx.fem.functionspace(data.mesh, ("Lagrange", degree))
        temperature = dolfinx.fem.Function(space, name="temperature")
        self.control = dolfinx.fem.Function(space, name="heating")
        test = ufl.TestFunction(space)
        state_equation = _BIOT * temperature * test * ds(data.tag("fins")) - self.control * test * dx
        for group, conductivity in _CONDUCTIVITY.items():
            state_equation += conductivity * ufl.inner(ufl.grad(temperature), ufl.grad(test)) * dx(data.tag(group))
        self.problem = ControlProblem(
            objective=0.5 * (temperature - _TARGET) ** 2 * dx + 0.5 * alpha * self.control**2 * dx,
            state_equation=state_equation,
            state=temperature,
            control=self.control,
            bounds=bounds,
        )
