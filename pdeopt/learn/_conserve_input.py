"""What is handed to projections, checked on all ranks together."""

from mpi4py import MPI

import dolfinx
import numpy as np
from dolfinx import fem

from pdeopt.parallel import raise_everywhere
from pdeopt.report import InputError


def check_values(comm: MPI.Comm, name: str, values: np.ndarray, size: int | None = None) -> None:
    """Raise on all ranks if any has values that are NaN or Inf, or another number of them than ``size``.

    Collective: yes.
    """
    error: Exception | None = None
    if size is not None and values.shape != (size,):
        error = InputError(f"{name} has shape {values.shape} on rank {comm.rank}, which owns {size} degrees of freedom")
    elif not np.all(np.isfinite(values)):
        error = InputError(
            f"{name} has NaN or Inf in {np.count_nonzero(~np.isfinite(values))} values of rank {comm.rank}"
        )
    raise_everywhere(comm, error)


def prescribed_facets(
    space: fem.FunctionSpace, prescribed: fem.Function | tuple[np.ndarray, fem.Function] | None
) -> tuple[np.ndarray, fem.Function | None]:
    """Return which facets (owned and ghosts, bool) have a prescribed flux, and the function that holds it.

    Collective: yes.
    """
    mesh = space.mesh
    topology = mesh.topology
    dim = topology.dim
    topology.create_connectivity(dim, dim - 1)
    topology.create_connectivity(dim - 1, dim)
    facet_map = topology.index_map(dim - 1)
    marks = dolfinx.la.vector(facet_map, dtype=np.int32)
    boundary = dolfinx.mesh.exterior_facet_indices(topology)
    function: fem.Function | None = None
    error: Exception | None = None
    if prescribed is not None:
        facets, function = prescribed if isinstance(prescribed, tuple) else (boundary, prescribed)
        facets = np.asarray(facets, dtype=np.int64)
        if function.function_space.element != space.element or function.function_space.mesh is not mesh:
            error = InputError("the prescribed flux has to be a function of the space that is projected in")
        elif facets.size and (facets.min() < 0 or facets.max() >= marks.array.size):
            error = InputError(
                f"prescribed facets go up to {facets.max()}, but this rank has {marks.array.size} facets"
            )
        else:
            # Facets of which this rank sees one side as a ghost cell are judged by their owner.
            owned = facets[facets < facet_map.size_local]
            inside = np.setdiff1d(owned, boundary)
            if inside.size:
                error = InputError(
                    f"{inside.size} prescribed facets are not on the boundary (the first is number {inside[0]} of rank "
                    f"{mesh.comm.rank}): take them from dolfinx.mesh.locate_entities_boundary"
                )
            marks.array[facets] = 1
    raise_everywhere(mesh.comm, error)
    marks.scatter_reverse(dolfinx.la.InsertMode.add)
    marks.scatter_forward()
    return marks.array > 0, function
