"""Metrics: how large, and how stretched, the cells of the next mesh should be.

A metric is a symmetric positive definite tensor M at every vertex; an edge e of the mesh that it asks for has length
sqrt(e . M e) = 1. The integral of sqrt(det M) is the volume of the mesh in units of cells.
"""

import math

from mpi4py import MPI

import dolfinx
import numpy as np
import numpy.typing as npt
import ufl

from pdeopt.fem import forms
from pdeopt.fem.mesh import Mesh
from pdeopt.parallel import collective_errors
from pdeopt.report import InputError

Array = npt.NDArray[np.float64]
Function = dolfinx.fem.Function

# Volume of the triangle and the tetrahedron with unit edges.
UNIT_VOLUME = {2: math.sqrt(3.0) / 4.0, 3: math.sqrt(2.0) / 12.0}
_SMALLEST_SHARE = 1e-12  # of a cell's indicator in the largest
_FLATTEST = 1e-8  # smallest eigenvalue of a Hessian over the largest in the domain, so that metrics stay definite


def hessian_metric(function: Function, cells: int, *, norm: float = 2.0, stretching: float = 100.0) -> Function:
    """Return the metric for which a number of cells interpolates a function best, from its recovered Hessian.

    M = c det(|H|)^(-1 / (2 p + d)) |H| minimises the L^p norm of the error of linear interpolation in d dimensions
    (Loseille and Alauzet, SIAM J. Numer. Anal. 49 (2011) 38-60).

    Parameters
    ----------
    function
        Scalar function on a mesh of triangles or tetrahedra.
    cells
        Number of cells wanted: of unit edges in the metric. In space Mmg makes 1.3 to 2 times as many, since regular
        tetrahedra do not fill it; in the plane it meets the number within a few per cent.
    norm
        p >= 1; larger values resolve steep features at the cost of the rest.
    stretching
        Largest ratio of a cell's sides, >= 1.

    Returns
    -------
    dolfinx.fem.Function
        The metric, continuous and piecewise linear, shape (d, d).

    Raises
    ------
    InputError
        If a number is out of range, the function is not scalar, or it is not finite.

    Collective: yes.
    """
    _check(function, cells, stretching)
    if norm < 1.0:
        raise InputError(f"norm = {norm} is less than 1: 2 measures the error in L2")
    dimension = function.function_space.mesh.topology.dim
    hessian = _absolute_hessian(function, stretching)
    density = np.linalg.det(hessian) ** (norm / (2.0 * norm + dimension))
    return _scaled_metric(function, hessian, density, cells)


def goal_metric(indicators: Function, function: Function, cells: int, *, stretching: float = 100.0) -> Function:
    """Return the metric for which a number of cells reduces a goal-oriented error most.

    The indicators say how small cells have to be, the recovered Hessian says how they are stretched and turned
    (Carpio, Prieto and Bermejo, SIAM J. Sci. Comput. 35 (2013) A861-A885). A cell of volume V with indicator e, whose
    error goes like V^(1 + a) with a = 2 p / d for elements of degree p, is given the density of cells
    c e^(1 / (1 + a)) / V, which minimises the sum of all errors.

    Parameters
    ----------
    indicators
        Cellwise constant, >= 0: `GoalEstimate.indicators`.
    function
        The scalar solution whose Hessian gives the shape; its degree is p.
    cells
        Number of cells wanted: of unit edges in the metric. In space Mmg makes 1.3 to 2 times as many, since regular
        tetrahedra do not fill it; in the plane it meets the number within a few per cent.
    stretching
        Largest ratio of a cell's sides, >= 1; 1 makes them all equilateral.

    Returns
    -------
    dolfinx.fem.Function
        The metric, continuous and piecewise linear, shape (d, d).

    Raises
    ------
    InputError
        If a number is out of range, an indicator is negative or all are zero, or the function is not scalar.

    Collective: yes.
    """
    _check(function, cells, stretching)
    mesh = function.function_space.mesh
    dimension, comm = mesh.topology.dim, mesh.comm
    owned = mesh.topology.index_map(dimension).size_local
    values = indicators.x.array[indicators.function_space.dofmap.list[:owned, 0]]
    with collective_errors(comm):
        if not (values >= 0.0).all() or np.isinf(values).any():
            raise InputError("an indicator is negative or not finite: hand in those of a goal-oriented estimate")
    largest = comm.allreduce(float(values.max(initial=0.0)), op=MPI.MAX)
    if largest == 0.0:
        raise InputError("all indicators are zero: there is no error to reduce")
    exponent = 1.0 + 2.0 * function.function_space.ufl_element().degree / dimension
    density = dolfinx.fem.Function(indicators.function_space)
    shares = np.maximum(indicators.x.array / largest, _SMALLEST_SHARE) ** (1.0 / exponent)
    density.x.array[:] = shares / _cell_volumes(indicators.function_space)
    return _scaled_metric(function, _absolute_hessian(function, stretching), _recover(density, mesh)[:, 0], cells)


def _check(function: Function, cells: int, stretching: float) -> None:
    space = function.function_space
    if space.mesh.topology.cell_name() not in ("triangle", "tetrahedron"):
        raise InputError(f"a metric needs triangles or tetrahedra, not {space.mesh.topology.cell_name()}s")
    if space.value_shape or space.num_sub_spaces:
        raise InputError(f"'{function.name}' is not scalar: take a component or a norm of it")
    if cells < 1 or stretching < 1.0:
        raise InputError(f"cells = {cells} and stretching = {stretching} must both be at least 1")


def _cell_volumes(constants: dolfinx.fem.FunctionSpace) -> Array:
    """Return the volumes of the cells by degrees of freedom of a cellwise constant space. Collective: yes."""
    volumes = dolfinx.fem.Function(constants)
    vector = forms.assemble_vector(forms.compile_form(ufl.TestFunction(constants) * ufl.dx(constants.mesh)))
    forms.set_function(volumes, vector.array_r[: vector.getLocalSize()])
    vector.destroy()
    return np.asarray(volumes.x.array)


def _scaled_metric(function: Function, shape: Array, density: Array, cells: int) -> Function:
    """Give tensors of any size, shape (nodes, d, d), densities of cells, shape (nodes,). Collective: yes."""
    mesh = function.function_space.mesh
    dimension = mesh.topology.dim
    space = dolfinx.fem.functionspace(mesh, ("Lagrange", 1, (dimension, dimension)))
    scalar = dolfinx.fem.Function(dolfinx.fem.functionspace(mesh, ("Lagrange", 1)))
    scalar.x.array[:] = density
    total = forms.assemble_scalar(forms.compile_form(scalar * ufl.dx))
    wanted = density * (cells * UNIT_VOLUME[dimension] / total)  # sqrt(det M)
    metric = dolfinx.fem.Function(space, name="metric")
    factor = (wanted / np.sqrt(np.linalg.det(shape))) ** (2.0 / dimension)
    metric.x.array[:] = (factor[:, None, None] * shape).ravel()
    metric.x.scatter_forward()
    return metric


def _absolute_hessian(function: Function, stretching: float) -> Array:
    """Recover |H| at the vertices, eigenvalues no farther apart than the stretching allows, shape (nodes, d, d)."""
    mesh = function.function_space.mesh
    dimension, comm = mesh.topology.dim, mesh.comm
    gradients = dolfinx.fem.Function(dolfinx.fem.functionspace(mesh, ("Lagrange", 1, (dimension,))))
    gradients.x.array[:] = _recover(ufl.grad(function), mesh).ravel()
    rows = _recover(ufl.sym(ufl.grad(gradients)), mesh, inside=True)
    eigenvalues, vectors = np.linalg.eigh(rows.reshape(-1, dimension, dimension))
    sizes = np.abs(eigenvalues)
    largest = comm.allreduce(float(sizes.max(initial=0.0)), op=MPI.MAX)
    if not np.isfinite(largest):
        raise InputError(f"'{function.name}' is not finite: solve first")
    sizes = np.maximum(sizes, max(_FLATTEST * largest, np.finfo(float).tiny))
    # A cell's side goes like the inverse root of its eigenvalue.
    sizes = np.maximum(sizes, sizes.max(axis=1, keepdims=True) / stretching**2)
    return np.einsum("nij,nj,nkj->nik", vectors, sizes, vectors)


def _recover(expression: ufl.core.expr.Expr, mesh: Mesh, *, inside: bool = False) -> Array:
    """Average an expression around each vertex, weighted by volumes, shape (nodes with ghosts, components).

    ``inside`` replaces the averages on the boundary, which are one-sided, by those of the neighbours inside, where
    there are any. Collective: yes.
    """
    shape = expression.ufl_shape
    space = dolfinx.fem.functionspace(mesh, ("Lagrange", 1, shape) if shape else ("Lagrange", 1))
    sums = dolfinx.fem.Function(space)
    vector = forms.assemble_vector(forms.compile_form(ufl.inner(expression, ufl.TestFunction(space)) * ufl.dx))
    forms.set_function(sums, vector.array_r[: vector.getLocalSize()])
    vector.destroy()
    scalars = dolfinx.fem.functionspace(mesh, ("Lagrange", 1))
    weights = dolfinx.fem.Function(scalars)
    vector = forms.assemble_vector(forms.compile_form(ufl.TestFunction(scalars) * ufl.dx(mesh)))
    forms.set_function(weights, vector.array_r[: vector.getLocalSize()])
    vector.destroy()
    components = sums.x.array.reshape(weights.x.array.size, -1)
    averages = np.asarray(components / weights.x.array[:, None], dtype=np.float64)
    return _replace_on_boundary(averages, sums, scalars) if inside else averages


def _replace_on_boundary(values: Array, work: Function, scalars: dolfinx.fem.FunctionSpace) -> Array:
    """Give vertices on the boundary the mean of their neighbours inside. Collective: yes."""
    mesh = scalars.mesh
    dimension = mesh.topology.dim
    mesh.topology.create_connectivity(dimension - 1, dimension)
    facets = dolfinx.mesh.exterior_facet_indices(mesh.topology)
    marker = dolfinx.fem.Function(scalars)
    marker.x.array[dolfinx.fem.locate_dofs_topological(scalars, dimension - 1, facets)] = 1.0
    marker.x.scatter_forward()
    interior = marker.x.array == 0.0
    vertices = scalars.dofmap.list[: mesh.topology.index_map(dimension).size_local]
    known = np.where(interior[:, None], values, 0.0)
    counts = dolfinx.fem.Function(scalars)
    sums = work.x.array.reshape(values.shape)
    sums[:] = 0.0
    for column in range(vertices.shape[1]):
        np.add.at(sums, vertices[:, column], known[vertices].sum(axis=1))
        np.add.at(counts.x.array, vertices[:, column], interior[vertices].sum(axis=1))
    for function in (work, counts):
        function.x.scatter_reverse(dolfinx.la.InsertMode.add)
        function.x.scatter_forward()
    found = ~interior & (counts.x.array > 0.0)
    result = values.copy()
    result[found] = sums[found] / counts.x.array[found, None]
    return result
