"""The single cases of the saddle-point measurements: problems solved with the setups of `pdeopt.fem.saddle`."""

import math
import time
from collections.abc import Callable, Sequence

from mpi4py import MPI
from petsc4py import PETSc

import basix.ufl
import dolfinx
import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import fem
from dolfinx.fem.petsc import LinearProblem, NonlinearProblem

from pdeopt import problems
from pdeopt.bench.harness import Row
from pdeopt.fem import forms, saddle
from pdeopt.report import ConvergenceError

Array = npt.NDArray[np.float64]


def square(comm: MPI.Comm, cells: int) -> dolfinx.mesh.Mesh:
    """Return the unit square with a number of cells a side. Collective: yes."""
    return dolfinx.mesh.create_unit_square(comm, cells, cells)


def taylor_hood(mesh: dolfinx.mesh.Mesh) -> fem.FunctionSpace:
    """Return the space of quadratic vector fields and linear scalar ones. Collective: yes."""
    cell, dimension = mesh.basix_cell(), mesh.geometry.dim
    first = basix.ufl.element("Lagrange", cell, 2, shape=(dimension,))
    return fem.functionspace(mesh, basix.ufl.mixed_element([first, basix.ufl.element("Lagrange", cell, 1)]))


def prescribe(
    space: fem.FunctionSpace, where: Callable[[Array], npt.NDArray[np.bool_]], value: Callable[[Array], Array]
) -> fem.DirichletBC:
    """Return the condition that the first field of a mixed space has the interpolated value. Collective: yes."""
    dimension = space.mesh.topology.dim
    own, _ = space.sub(0).collapse()
    values = fem.Function(own)
    values.interpolate(value)
    facets = dolfinx.mesh.locate_entities_boundary(space.mesh, dimension - 1, where)
    dofs = fem.locate_dofs_topological((space.sub(0), own), dimension - 1, facets)
    return fem.dirichletbc(values, dofs, space.sub(0))


def nothing(x: Array) -> Array:
    """Return the zero vector field in the plane."""
    return np.zeros((2, x.shape[1]))


def stokes(comm: MPI.Comm, cells: int) -> Row:
    """Solve Stokes flow with a known solution, the velocity prescribed on the whole boundary. Collective: yes."""
    problem = problems.stokes(square(comm, cells))
    matrix, right = problem.assemble()
    ksp = PETSc.KSP().create(comm)
    ksp.setOperators(matrix)
    ksp.setOptionsPrefix("bench_stokes_")
    setup = saddle.stokes(problem.space)
    setup.options["ksp_rtol"] = 1e-10
    setup.attach(ksp)
    row = _solve(comm, ksp, right)
    solution = problem.to_function(ksp.getSolution())
    row["velocity error"] = problem.l2_errors(solution)["velocity"]
    row["size"] = _size(ufl.split(solution)[0])
    for item in (ksp, matrix, right):
        item.destroy()
    return row


def displacement(comm: MPI.Comm, cells: int, poisson_ratio: float = 0.3, degree: int = 2) -> Row:
    """Solve elasticity with a known solution, clamped on one side, in displacements. Collective: yes."""
    problem = problems.linear_elasticity(square(comm, cells), poisson_ratio, lambda x: x[0] < 1e-10, degree)
    matrix, right = problem.assemble()
    ksp = PETSc.KSP().create(comm)
    ksp.setOperators(matrix)
    ksp.setOptionsPrefix("bench_elasticity_")
    setup = saddle.elasticity(problem.space)
    setup.options["ksp_rtol"] = 1e-10
    setup.attach(ksp)
    row = _solve(comm, ksp, right)
    solution = problem.to_function(ksp.getSolution())
    row["displacement error"] = problem.l2_errors(solution)["solution"]
    row["size"] = _size(solution)
    for item in (ksp, matrix, right):
        item.destroy()
    return row


def mixed_displacement(comm: MPI.Comm, cells: int, poisson_ratio: float = 0.499) -> Row:
    """Solve for the same body with a pressure of its own, so that it does not lock. Collective: yes."""
    reference = problems.linear_elasticity(square(comm, cells), poisson_ratio, lambda x: x[0] < 1e-10, 2)
    exact, space = reference.exact, taylor_hood(reference.mesh)
    assert exact is not None
    shear = 0.5 / (1.0 + poisson_ratio)
    lame = poisson_ratio / ((1.0 + poisson_ratio) * (1.0 - 2.0 * poisson_ratio))

    def strain(u: ufl.core.expr.Expr) -> ufl.core.expr.Expr:
        return ufl.sym(ufl.grad(u))

    (u, p), (v, q) = ufl.TrialFunctions(space), ufl.TestFunctions(space)
    dx = ufl.dx(metadata={"quadrature_degree": 6})
    a = 2.0 * shear * ufl.inner(strain(u), strain(v)) * dx
    a -= (p * ufl.div(v) + q * ufl.div(u) + p * q / lame) * dx
    stress = 2.0 * shear * strain(exact) + lame * ufl.div(exact) * ufl.Identity(2)
    load = ufl.inner(-ufl.div(stress), v) * dx
    load += ufl.inner(stress * ufl.FacetNormal(space.mesh), v) * ufl.ds(metadata={"quadrature_degree": 6})
    own, _ = space.sub(0).collapse()
    values = fem.Function(own)
    values.interpolate(fem.Expression(exact, own.element.interpolation_points))
    facets = dolfinx.mesh.locate_entities_boundary(space.mesh, 1, lambda x: x[0] < 1e-10)
    condition = fem.dirichletbc(values, fem.locate_dofs_topological((space.sub(0), own), 1, facets), space.sub(0))
    setup = saddle.mixed_elasticity(space, shear, lame)
    row, solution = _linear_problem(a, load, condition, setup)
    row["displacement error"] = _size(ufl.split(solution)[0] - exact)
    row["size"] = _size(ufl.split(solution)[0])
    return row


def mixed_poisson(comm: MPI.Comm, cells: int, degree: int = 1) -> Row:
    """Solve Darcy flow with a coefficient between exp(-2) and exp(2), no flux through two sides. Collective: yes."""
    mesh = square(comm, cells)
    flux = basix.ufl.element("RT", mesh.basix_cell(), degree)
    potential = basix.ufl.element("DG", mesh.basix_cell(), degree - 1)
    space = fem.functionspace(mesh, basix.ufl.mixed_element([flux, potential]))
    x = ufl.SpatialCoordinate(mesh)
    permeability = ufl.exp(2.0 * ufl.sin(6.0 * x[0]) * ufl.cos(5.0 * x[1]))
    (s, u), (t, v) = ufl.TrialFunctions(space), ufl.TestFunctions(space)
    dx = ufl.dx(metadata={"quadrature_degree": 2 * degree + 2})
    a = (ufl.inner(s, t) / permeability - u * ufl.div(t) - v * ufl.div(s)) * dx
    condition = prescribe(space, lambda x: (x[1] < 1e-10) | (x[1] > 1.0 - 1e-10), nothing)
    row, solution = _linear_problem(a, -ufl.exp(x[0]) * v * dx, condition, saddle.mixed_poisson(space))
    row["size"] = _size(ufl.split(solution)[0])
    return row


def cavity(mesh: dolfinx.mesh.Mesh) -> tuple[fem.FunctionSpace, list[fem.DirichletBC]]:
    """Return space and conditions of the cavity under a lid with velocity 16 x^2 (1 - x)^2. Collective: yes."""
    space = taylor_hood(mesh)

    def velocity(x: Array) -> Array:
        lid = np.where(x[1] > 1.0 - 1e-10, 16.0 * (x[0] * (1.0 - x[0])) ** 2, 0.0)
        return np.vstack([lid, np.zeros(x.shape[1])])

    return space, [prescribe(space, lambda x: np.full(x.shape[1], True), velocity)]


def step(mesh: dolfinx.mesh.Mesh) -> tuple[fem.FunctionSpace, list[fem.DirichletBC]]:
    """Return space and conditions of a channel 4 x 1 that is fed through the upper half of one end. Collective: yes."""
    space = taylor_hood(mesh)

    def velocity(x: Array) -> Array:
        inflow = (x[0] < 1e-10) & (x[1] > 0.5)
        return np.vstack([np.where(inflow, 16.0 * (1.0 - x[1]) * (x[1] - 0.5), 0.0), np.zeros(x.shape[1])])

    walls = prescribe(space, lambda x: (x[0] < 1e-10) | (x[1] < 1e-10) | (x[1] > 1.0 - 1e-10), velocity)
    return space, [walls]


def flow_mesh(comm: MPI.Comm, flow: str, cells: int) -> dolfinx.mesh.Mesh:
    """Return the mesh of "cavity" with cells a side, or that of "step" with as many unknowns. Collective: yes."""
    if flow == "cavity":
        return square(comm, cells)
    across = round(cells / 2)
    return dolfinx.mesh.create_rectangle(comm, [[0.0, 0.0], [4.0, 1.0]], [4 * across, across])


def navier_stokes(
    comm: MPI.Comm, flow: str, reynolds: float, meshes: Sequence[int], method: str = "pcd", start: int = 16
) -> Row:
    """Apply Newton's method on a sequence of meshes, each from the interpolated solution of the one before.

    The Reynolds number is that of the largest velocity, one, and of the length one.

    Parameters
    ----------
    flow
        "cavity" or "step".
    reynolds
        1 / viscosity.
    meshes
        Cells a side (of the cavity), ascending.
    method
        A method of `saddle.navier_stokes`.
    start
        Cells of a first mesh that is not recorded.

    Returns
    -------
    dict
        For every mesh ``unknowns N``, ``Newton steps N``, ``iterations N`` (mean over the Newton steps), ``seconds N``
        (of Newton's method) and ``size N`` (L2 norm of the velocity).

    Collective: yes.
    """
    row: Row = {"flow": flow, "Reynolds": reynolds, "method": method}
    coarse: fem.Function | None = None
    for cells in (start, *meshes):
        solution, record = _newton(flow_mesh(comm, flow, cells), flow, reynolds, method, coarse)
        coarse = solution
        if cells != start:
            row |= {f"{name} {cells}": value for name, value in record.items()}
    return row


def _newton(
    mesh: dolfinx.mesh.Mesh, flow: str, reynolds: float, method: str, coarse: fem.Function | None
) -> tuple[fem.Function, Row]:
    space, conditions = (cavity if flow == "cavity" else step)(mesh)
    solution = fem.Function(space)
    if coarse is not None:
        _interpolate(coarse, solution)
    (u, p), (v, q) = ufl.split(solution), ufl.TestFunctions(space)
    viscosity = fem.Constant(mesh, 1.0 / reynolds)
    residual = viscosity * ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx
    residual += (ufl.inner(ufl.dot(ufl.grad(u), u), v) - p * ufl.div(v) - q * ufl.div(u)) * ufl.dx
    options: dict[str, object] = {"snes_atol": 1e-9, "snes_rtol": 1e-6, "snes_stol": 0.0, "snes_max_it": 20}
    problem = NonlinearProblem(
        residual, solution, bcs=conditions, petsc_options_prefix="bench_flow_", petsc_options=options
    )
    snes = problem.solver
    saddle.navier_stokes(space, u, viscosity, method=method).attach(snes)  # type: ignore[arg-type]
    started = time.perf_counter()
    problem.solve()
    seconds = mesh.comm.allreduce(time.perf_counter() - started, op=MPI.MAX)
    if snes.getConvergedReason() <= 0:
        raise ConvergenceError(f"{flow}, Re {reynolds:g}: Newton's method failed (reason {snes.getConvergedReason()})")
    record: Row = {
        "unknowns": int(space.dofmap.index_map.size_global),
        "Newton steps": snes.getIterationNumber(),
        "iterations": snes.getLinearSolveIterations() / max(snes.getIterationNumber(), 1),
        "seconds": seconds,
        "size": _size(u),
    }
    return solution, record


def _interpolate(coarse: fem.Function, fine: fem.Function) -> None:
    """Interpolate both fields between meshes of one domain. Collective: yes."""
    mesh = fine.function_space.mesh
    cells = np.arange(mesh.topology.index_map(mesh.topology.dim).size_local, dtype=np.int32)
    for index in range(2):
        source = coarse.sub(index).collapse()
        own, parents = fine.function_space.sub(index).collapse()
        values = fem.Function(own)
        data = fem.create_interpolation_data(own, source.function_space, cells, padding=1e-8)
        values.interpolate_nonmatching(source, cells, interpolation_data=data)
        values.x.scatter_forward()
        fine.x.array[np.ravel(parents)] = values.x.array
    fine.x.scatter_forward()


def _linear_problem(
    a: ufl.Form, load: ufl.Form, condition: fem.DirichletBC, setup: saddle.SolverSetup
) -> tuple[Row, fem.Function]:
    problem = LinearProblem(a, load, bcs=[condition], petsc_options_prefix="bench_mixed_")
    setup.options["ksp_rtol"] = 1e-10
    setup.attach(problem.solver)
    started = time.perf_counter()
    solution = problem.solve()
    assert isinstance(solution, fem.Function)
    seconds = problem.A.comm.tompi4py().allreduce(time.perf_counter() - started, op=MPI.MAX)
    return _record(problem.solver, seconds), solution


def _solve(comm: MPI.Comm, ksp: PETSc.KSP, right: PETSc.Vec) -> Row:
    solution = right.duplicate()
    started = time.perf_counter()
    ksp.solve(right, solution)
    return _record(ksp, comm.allreduce(time.perf_counter() - started, op=MPI.MAX))


def _record(ksp: PETSc.KSP, seconds: float) -> Row:
    if ksp.getConvergedReason() <= 0:
        raise ConvergenceError(f"{ksp.getOptionsPrefix()}: the solve failed (reason {ksp.getConvergedReason()})")
    return {
        "unknowns": ksp.getOperators()[0].getSize()[0],
        "iterations": ksp.getIterationNumber(),
        "seconds": seconds,
    }


def _size(field: ufl.core.expr.Expr) -> float:
    """Return the L2 norm of a field. Collective: yes."""
    form = ufl.inner(field, field) * ufl.dx(metadata={"quadrature_degree": 6})
    return math.sqrt(forms.assemble_scalar(forms.compile_form(form)))
