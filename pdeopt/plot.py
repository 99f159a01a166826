"""Pictures of fields and of convergence histories, made on rank 0 without a screen.

A picture gathers its whole field to rank 0: it is meant for meshes of up to some 1e5 cells. Write larger results
with `pdeopt.fem.output.write_fields` and look at them in ParaView.
"""

import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mpi4py import MPI

import numpy as np

from pdeopt import _panels
from pdeopt.parallel import collective_errors, on_root
from pdeopt.report import InputError

if TYPE_CHECKING:
    import pyvista
    from dolfinx import fem


def gather_grid(function: "fem.Function[Any]") -> "pyvista.UnstructuredGrid | None":
    """Gather a field to rank 0 as a VTK grid.

    Every rank sends the cells and degrees of freedom that it owns, so that the grid has each of them once, whatever
    the number of ranks. Elements other than Lagrange are interpolated to the Lagrange space that contains them.

    Parameters
    ----------
    function
        Scalar or vector field. Its values become the active scalars or vectors, with the field's name: cell data
        ``(cells,)`` or ``(cells, 3)`` for cellwise constants, point data ``(nodes,)`` or ``(nodes, 3)`` otherwise.

    Returns
    -------
    pyvista.UnstructuredGrid or None
        The grid on rank 0, None on the others.

    Raises
    ------
    InputError
        If the field is mixed, a tensor, or has no nodal values.
    MissingPackageError
        If pyvista is not installed.

    Collective: yes. Ghost values of the field are updated.
    """
    from dolfinx.plot import vtk_mesh

    from pdeopt.fem.output import is_cellwise_constant, plain_fields

    name = function.name
    fields = [field for _, field in plain_fields(name, function)]
    if len(fields) != 1 or len(fields[0].function_space.value_shape) > 1:
        raise InputError(f"'{name}' is neither scalar nor vector: plot function.sub(i) or a norm of it")
    field = fields[0]
    space = field.function_space
    mesh = space.mesh
    own_cells = np.arange(mesh.topology.index_map(mesh.topology.dim).size_local, dtype=np.int32)
    cellwise = is_cellwise_constant(field)
    if cellwise:
        topology, cell_types, points = vtk_mesh(mesh, mesh.topology.dim, own_cells)
        nodes, nodes_per_cell = mesh.geometry.index_map(), mesh.geometry.dofmaps[0].shape[1]
        own_values = field.x.array.reshape(-1, space.dofmap.index_map_bs)[space.dofmap.list[own_cells, 0]]
    else:
        topology, cell_types, points = vtk_mesh(space, own_cells)  # type: ignore[arg-type]  # single dispatch
        nodes, nodes_per_cell = space.dofmap.index_map, space.dofmap.dof_layout.num_dofs
        own_values = field.x.array.reshape(-1, space.dofmap.index_map_bs)[: nodes.size_local]
    local = topology.reshape(-1, nodes_per_cell + 1)[:, 1:]
    # Ranks own contiguous ranges of nodes in rank order: global numbers index the concatenated points.
    cells = nodes.local_to_global(local.ravel().astype(np.int32)).reshape(local.shape)
    parts = mesh.comm.gather((cells, cell_types, points[: nodes.size_local], own_values))
    grid = None
    with collective_errors(mesh.comm):
        if parts is not None:
            cells, cell_types, points, values = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
            grid = _panels.make_grid(name, cells, cell_types, points, values, cellwise)
    return grid


def plot_fields(
    functions: "Mapping[str, fem.Function[Any]] | Sequence[tuple[str, fem.Function[Any]]]",
    path: str | pathlib.Path,
    *,
    title: str = "",
    colour_map: str | Mapping[str, str] = "viridis",
    diverging: Collection[str] = (),
    limits: Mapping[str, tuple[float, float]] | None = None,
    show_edges: bool = False,
    length_unit: str = "",
) -> pathlib.Path:
    """Draw fields side by side into a PNG file, each with its own colour bar.

    Plane domains are seen from above with coordinates on the axes, solid ones from an isometric direction, intervals
    as a graph. Vector fields are coloured by their magnitude; arrows show the direction in plane domains.

    Parameters
    ----------
    functions
        Scalar or vector fields by label; the label stands at the colour bar and should carry the unit
        ("temperature (K)"). Fields may live on different meshes.
    path
        The picture; ``.png`` is appended if missing. Panels are 800 pixels wide. An older picture is replaced.
    title
        Heading of the whole picture.
    colour_map
        Name of a matplotlib colour map, for all fields or by label ("viridis", "inferno", "cividis" are uniform to
        the eye; labels not named get "viridis").
    diverging
        Labels of signed fields: white at zero, blue below, red above, over a range symmetric about zero.
    limits
        (lowest, highest) value of the colour bar by label, to compare fields; the field's own range otherwise.
    show_edges
        Draw the edges of the mesh.
    length_unit
        Unit of the coordinates, for the axes of plane domains ("m").

    Returns
    -------
    pathlib.Path
        The file written.

    Raises
    ------
    InputError
        If there is no field, a label is unknown, a field is not finite or not drawable, or the file cannot be written.
    MissingPackageError
        If pyvista or matplotlib is not installed.

    Collective: yes.
    """
    labelled = list(functions.items()) if isinstance(functions, Mapping) else list(functions)
    limits = limits or {}
    colours = choose_colours([label for label, _ in labelled], colour_map, diverging, limits)
    comm = labelled[0][1].function_space.mesh.comm
    grids = [gather_grid(function) for _, function in labelled]

    def draw() -> pathlib.Path:
        panels = []
        for (label, function), grid in zip(labelled, grids, strict=True):
            dimension = function.function_space.mesh.geometry.dim
            panels.append(_panels.make_panel(label, grid, dimension, colours[label], limits.get(label)))
        return _panels.save_figure(_panels.draw_panels(panels, title, show_edges, length_unit), path)

    return on_root(comm, draw)


def choose_colours(
    labels: Sequence[str],
    colour_map: str | Mapping[str, str],
    diverging: Collection[str],
    limits: Mapping[str, tuple[float, float]],
) -> dict[str, str]:
    """Return the colour map of each label, after a check that no other labels are named.

    Raises
    ------
    InputError
        If there is no label, or one that no field has is named.

    Collective: no.
    """
    if not labels:
        raise InputError("there is no field to plot")
    by_label = colour_map if isinstance(colour_map, Mapping) else {}
    unknown = {*diverging, *limits, *by_label}.difference(labels)
    if unknown:
        raise InputError(f"no field is labelled {', '.join(repr(label) for label in sorted(unknown))}")
    sequential = {label: colour_map if isinstance(colour_map, str) else "viridis" for label in labels}
    return sequential | dict(by_label) | dict.fromkeys(diverging, _panels.DIVERGING)


def plot_convergence(
    histories: Mapping[str, Sequence[float]],
    path: str | pathlib.Path,
    xlabel: str = "iteration",
    ylabel: str = "residual norm",
    title: str = "",
    comm: MPI.Comm = MPI.COMM_WORLD,
) -> pathlib.Path:
    """Draw residual histories over the iteration number, on a logarithmic axis, into a PNG file.

    Parameters
    ----------
    histories
        Values >= 0 by label, the initial one first, the same on all ranks; zeros are left out of the curve.
    path
        The picture; ``.png`` is appended if missing. An older picture is replaced.
    xlabel, ylabel, title
        Texts at the axes and above them.
    comm
        Communicator whose rank 0 draws.

    Returns
    -------
    pathlib.Path
        The file written.

    Raises
    ------
    InputError
        If no history has a positive value, or the file cannot be written.
    MissingPackageError
        If matplotlib is not installed.

    Collective: yes.
    """

    def draw() -> pathlib.Path:
        if not any(value > 0 for history in histories.values() for value in history):
            raise InputError("the histories have no positive value to plot")
        figure = _panels.new_figure(5.6, 3.8)
        axes = figure.subplots()
        for index, (label, history) in enumerate(histories.items()):
            # Markers tell curves apart in print; at most some twenty of them, so that they stay apart themselves.
            every = max(1, sum(value > 0 for value in history) // 20)
            axes.plot(
                range(len(history)), history, marker="osv^Dx"[index % 6], markersize=4, markevery=every, label=label
            )
        axes.set_yscale("log", nonpositive="mask")
        axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
        axes.locator_params("x", integer=True)
        axes.grid(True, which="major", color="0.85")
        axes.spines[["top", "right"]].set_visible(False)
        _panels.add_legend(axes)
        return _panels.save_figure(figure, path)

    return on_root(comm, draw)
