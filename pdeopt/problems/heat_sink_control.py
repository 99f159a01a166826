"""The main job: optimal heating of a finned heat sink, on any refinement of its mesh."""

import dataclasses
import os

from mpi4py import MPI

import dolfinx
import numpy as np
import numpy.typing as npt
import ufl
from dolfinx.graph import adjacencylist
from dolfinx.io.utils import distribute_entity_data

from pdeopt.control import ControlProblem
from pdeopt.fem.mesh import MeshData, read_mesh
from pdeopt.problems.linear import Mesh, check_range
from pdeopt.report import InputError

_METRES_TO_10_MM = 100.0
_CONDUCTIVITY = {"aluminium": 1.0, "copper": 1.9}  # scaled by that of aluminium
_BIOT = 0.02  # heat transfer coefficient times 10 mm over the conductivity of aluminium
_TARGET = 1.0  # temperature rise above the air, in its own unit


_UNTAGGED = np.iinfo(np.int32).min
Integers = npt.NDArray[np.int32]


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
            data = _refine(data)
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


def _refine(data: MeshData) -> MeshData:
    """Refine a tagged mesh of triangles uniformly; parts of a cell or facet inherit its tag. Collective: yes."""
    coarse, dimension = data.mesh, data.mesh.topology.dim
    coarse.topology.create_entities(1)
    fine, parent_cells, parent_facets = dolfinx.mesh.refine(
        coarse, option=dolfinx.mesh.RefinementOption.parent_cell_and_facet
    )
    # DOLFINx lists the parents of a rank's cells in the order in which refinement made these cells.
    owned = fine.topology.index_map(dimension)
    made_as = np.asarray(fine.topology.original_cell_index[: owned.size_local]) - owned.local_range[0]
    parent_cells = parent_cells[made_as]
    cell_tags = facet_tags = None
    if data.cell_tags is not None:
        everything = np.arange(owned.size_local, dtype=np.int32)
        cell_tags = _distribute_tags(fine, dimension, everything, _values_of_entities(data.cell_tags)[parent_cells])
    if data.facet_tags is not None:
        # Row: owned cell; column: its facet; entry: the facet of the parent cell that this one is a part of, or -1.
        places = parent_facets.reshape(owned.size_local, -1)[made_as]
        cells, columns = np.nonzero(places >= 0)
        parents = _facets_of_cells(coarse)[parent_cells[cells], places[cells, columns]]
        facets, first = np.unique(_facets_of_cells(fine)[cells, columns], return_index=True)
        facet_tags = _distribute_tags(fine, dimension - 1, facets, _values_of_entities(data.facet_tags)[parents[first]])
    return dataclasses.replace(data, mesh=fine, cell_tags=cell_tags, facet_tags=facet_tags)


def _values_of_entities(tags: dolfinx.mesh.MeshTags) -> Integers:
    """Return the tag of every entity that this rank sees, `_UNTAGGED` where there is none. Collective: no."""
    entities = tags.topology.index_map(tags.dim)
    values = np.full(entities.size_local + entities.num_ghosts, _UNTAGGED, dtype=np.int32)
    values[tags.indices] = tags.values
    return values


def _facets_of_cells(mesh: Mesh) -> Integers:
    """Return the facets of every cell that this rank sees, shape (cells, facets of a cell). Collective: yes."""
    dimension = mesh.topology.dim
    mesh.topology.create_connectivity(dimension, dimension - 1)
    facets = mesh.topology.connectivity(dimension, dimension - 1)
    return facets.array.reshape(facets.num_nodes, -1)


def _distribute_tags(mesh: Mesh, dimension: int, entities: Integers, values: Integers) -> dolfinx.mesh.MeshTags:
    """Make tags from those of owned entities: the owners send them to the ranks that have these entities as ghosts.

    `dolfinx.mesh.transfer_meshtag` refuses meshes with ghosts. Collective: yes.
    """
    mesh.topology.create_connectivity(dimension, mesh.topology.dim)
    mine = (entities < mesh.topology.index_map(dimension).size_local) & (values != _UNTAGGED)
    nodes = dolfinx.mesh.entities_to_geometry(mesh, dimension, entities[mine])
    vertices = np.asarray(mesh.geometry.input_global_indices)[nodes]
    local_vertices, local_values = distribute_entity_data(mesh, dimension, vertices, values[mine])
    return dolfinx.mesh.meshtags_from_entities(mesh, dimension, adjacencylist(local_vertices), local_values)
