"""Families of solves on which guests are tried: a coarse and a fine problem that change together."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from mpi4py import MPI
from petsc4py import PETSc

import basix.ufl
import dolfinx
import numpy as np
import ufl
from dolfinx import fem
from dolfinx.fem import petsc as fem_petsc

from pdeopt import problems
from pdeopt.control import ControlProblem
from pdeopt.fem import forms
from pdeopt.fem._guess_norm import DualNorm
from pdeopt.fem._guess_transfer import Loader
from pdeopt.fem.estimate_velocity import VelocityNorm

Array = np.ndarray
_ATOL = 1e-9  # of nonlinear solves, so that all arms end equally accurate whatever they started from


@dataclasses.dataclass
class Family:
    """A sequence of solves on a fine mesh, each with its counterpart on a coarse one.

    Parameters
    ----------
    name
        What it is, for the tables.
    values
        The parameters of the sequence.
    target, coarse
        What a guess is attached to, and the coarse problem.
    set_value
        Sets the parameter of both.
    set_start
        Sets the unknowns of both to where a sequence starts.
    solve
        Solves the fine problem from its present unknowns; returns Newton steps and residual evaluations.
    solve_nested
        Nested iteration by hand, without a guest: coarse solve, interpolation, then ``solve``.
    unknowns
        Returns a copy of the owned unknowns of the fine problem, shape (owned,).
    size
        Number of unknowns of the fine problem.
    dual_norm
        The norm by which guesses are compared; the guest's own if None.
    destroy
        Frees what the problems hold.
    """

    name: str
    values: tuple[float, ...]
    target: Any
    coarse: Any
    set_value: Callable[[float], None]
    set_start: Callable[[], None]
    solve: Callable[[], tuple[int, int]]
    solve_nested: Callable[[], tuple[int, int]]
    unknowns: Callable[[], Array]
    size: int
    dual_norm: DualNorm | None = None
    destroy: Callable[[], None] = lambda: None


def bratu(mesh: dolfinx.mesh.Mesh, prefix: str, degree: int = 1) -> tuple[fem_petsc.NonlinearProblem, fem.Constant]:
    """Return -laplace u = lambda exp(u), u = 0 on the boundary, solved by Newton's method and MUMPS; and lambda.

    On the unit square there are two solutions for lambda below 6.808, and Newton's method finds the smaller one.
    Collective: yes.
    """
    space = fem.functionspace(mesh, ("Lagrange", degree))
    u, v = fem.Function(space), ufl.TestFunction(space)
    parameter = fem.Constant(mesh, 1.0)
    residual = ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx - parameter * ufl.exp(u) * v * ufl.dx
    problem = _newton(residual, u, [_boundary_condition(space)], prefix)
    return problem, parameter


def lid_driven_cavity(mesh: dolfinx.mesh.Mesh, prefix: str) -> tuple[fem_petsc.NonlinearProblem, fem.Constant]:
    """Return the lid-driven cavity on Taylor-Hood elements, and its Reynolds number; the pressure is fixed in a corner.

    Collective: yes.
    """
    cell = mesh.basix_cell()
    element = basix.ufl.mixed_element(
        [basix.ufl.element("Lagrange", cell, 2, shape=(2,)), basix.ufl.element("Lagrange", cell, 1)]
    )
    space = fem.functionspace(mesh, element)
    flow = fem.Function(space)
    velocity, pressure = ufl.split(flow)
    v, q = ufl.TestFunctions(space)
    reynolds = fem.Constant(mesh, 100.0)
    residual = (
        ufl.inner(ufl.grad(velocity), ufl.grad(v)) / reynolds
        + ufl.inner(ufl.dot(ufl.grad(velocity), velocity), v)
        - pressure * ufl.div(v)
        - q * ufl.div(velocity)
    ) * ufl.dx
    velocities, _ = space.sub(0).collapse()
    pressures, _ = space.sub(1).collapse()
    mesh.topology.create_connectivity(1, 2)
    walls, lid = fem.Function(velocities), fem.Function(velocities)
    lid.interpolate(lambda x: np.array([np.ones_like(x[0]), np.zeros_like(x[0])]))
    on_top = dolfinx.mesh.locate_entities_boundary(mesh, 1, lambda x: np.isclose(x[1], 1.0))
    others = np.setdiff1d(dolfinx.mesh.exterior_facet_indices(mesh.topology), on_top)
    zero = fem.Function(pressures)
    corner = fem.locate_dofs_geometrical(
        (space.sub(1), pressures), lambda x: np.isclose(x[0], 0.0) & np.isclose(x[1], 0.0)
    )
    spaces = (space.sub(0), velocities)
    conditions = [
        fem.dirichletbc(lid, fem.locate_dofs_topological(spaces, 1, on_top), space.sub(0)),
        fem.dirichletbc(walls, fem.locate_dofs_topological(spaces, 1, others), space.sub(0)),
        fem.dirichletbc(zero, corner, space.sub(1)),
    ]
    return _newton(residual, flow, conditions, prefix), reynolds


def unknown(problem: fem_petsc.NonlinearProblem) -> fem.Function:
    """Return the one unknown of a problem. Collective: no."""
    assert isinstance(problem.u, fem.Function)
    return problem.u


def set_parameter(parameter: fem.Constant, value: float) -> None:
    """Set a number of the forms. Collective: no."""
    parameter.value = np.asarray(value)


def _boundary_condition(space: fem.FunctionSpace) -> fem.DirichletBC:
    mesh = space.mesh
    dimension = mesh.topology.dim
    mesh.topology.create_connectivity(dimension - 1, dimension)
    facets = dolfinx.mesh.exterior_facet_indices(mesh.topology)
    return fem.dirichletbc(0.0, fem.locate_dofs_topological(space, dimension - 1, facets), space)


def _newton(
    residual: ufl.Form, u: fem.Function, bcs: Sequence[fem.DirichletBC], prefix: str
) -> fem_petsc.NonlinearProblem:
    options = {
        "snes_rtol": 1e-15,
        "snes_atol": _ATOL,
        "snes_stol": 0.0,
        "snes_error_if_not_converged": True,
        "ksp_type": "preonly",
        "pc_type": "lu",
        "pc_factor_mat_solver_type": "mumps",
        "mat_mumps_icntl_14": 60,
    }
    return fem_petsc.NonlinearProblem(residual, u, bcs=list(bcs), petsc_options_prefix=prefix, petsc_options=options)


def newton_family(
    name: str,
    build: Callable[[dolfinx.mesh.Mesh, str], tuple[fem_petsc.NonlinearProblem, fem.Constant]],
    meshes: tuple[dolfinx.mesh.Mesh, dolfinx.mesh.Mesh],
    values: tuple[float, ...],
    flow: bool = False,
) -> Family:
    """Return the family of a DOLFINx problem on a coarse and a fine mesh. Collective: yes.

    With ``flow`` the parameter is a Reynolds number, and guesses are compared by the velocity error that their residual
    stands for: in the norm of the whole space the corners of a driven cavity dominate, through the residual of the
    continuity equation.
    """
    (coarse, coarse_parameter), (fine, parameter) = (
        build(mesh, f"guests_{kind}_") for mesh, kind in zip(meshes, ("coarse", "fine"), strict=True)
    )
    space = unknown(fine).function_space
    loaders: list[Loader] = []
    norm = None
    if flow:
        conditions = fine.solver.getFunction()[1][2]["bcs"]
        norm = VelocityNorm(space, lambda: 1.0 / float(parameter.value), conditions)

    def set_value(value: float) -> None:
        set_parameter(parameter, value)
        set_parameter(coarse_parameter, value)

    def set_start() -> None:
        loaders[:] = [Loader([space])]  # searching the coarse mesh once belongs to a sequence, as with a guest
        for problem in (fine, coarse):
            unknown(problem).x.array[:] = 0.0

    def solve() -> tuple[int, int]:
        fine.solve()
        return fine.solver.getIterationNumber(), fine.solver.getFunctionEvaluations()

    def solve_nested() -> tuple[int, int]:
        loaders[0].load(coarse.solve(), fine.x)
        fem_petsc.assign(fine.x, fine.u)
        return solve()

    return Family(
        name=name,
        values=values,
        target=fine,
        coarse=coarse,
        set_value=set_value,
        set_start=set_start,
        solve=solve,
        solve_nested=solve_nested,
        unknowns=lambda: forms.owned_values(unknown(fine)).copy(),
        size=space.dofmap.index_map.size_global * space.dofmap.index_map_bs,
        dual_norm=norm,
        destroy=lambda: None if norm is None else norm.destroy(),
    )


def control_family(comm: MPI.Comm, cells: int) -> Family:
    """Return distributed control of a semilinear equation, solved once, from zero. Collective: yes."""
    coarse, fine = (
        problems.SemilinearControl(dolfinx.mesh.create_unit_square(comm, n, n)) for n in (cells // 2, cells)
    )
    target: ControlProblem = fine.problem
    layout = target.system.layout
    space = target.state.function_space
    loaders: list[Loader] = []
    vectors = [PETSc.Vec().createMPI((layout.sizes[0], PETSc.DETERMINE), comm=comm) for _ in range(3)]
    pairs = [
        (target.state, coarse.problem.state),
        (fine.control, coarse.control),
        (target.adjoint, coarse.problem.adjoint),
    ]

    def set_start() -> None:
        loaders[:] = [Loader([space]) for _ in range(3)]  # as above
        for problem in (target, coarse.problem):
            problem.system.set_unknowns(problem.system.layout.create_vector())

    def solve() -> tuple[int, int]:
        report = target.solve()
        return report.iterations, 0

    def solve_nested() -> tuple[int, int]:
        coarse.problem.solve()
        for loader, vector, (ours, theirs) in zip(loaders, vectors, pairs, strict=True):
            loader.load(theirs, vector)
            forms.set_function(ours, vector.array_r)
        return solve()

    def unknowns() -> Array:
        vector = layout.create_vector()
        target.system.get_unknowns(vector)
        return np.array(vector.array_r)

    def destroy() -> None:
        target.destroy()
        coarse.problem.destroy()

    return Family(
        name="semilinear control",
        values=(0.0,),
        target=target,
        coarse=coarse.problem,
        set_value=lambda value: None,
        set_start=set_start,
        solve=solve,
        solve_nested=solve_nested,
        unknowns=unknowns,
        size=layout.global_size,
        destroy=destroy,
    )
