"""The L-shaped domain: a harmonic function and a control problem whose gradients are infinite at its inner corner."""

import math
from collections.abc import Mapping, Sequence

from mpi4py import MPI
from petsc4py import PETSc

import basix.ufl
import dolfinx
import numpy as np
import ufl
from ufl.core.expr import Expr

from pdeopt.control import ControlProblem
from pdeopt.fem import forms
from pdeopt.fem.mesh import MeshData, tag_boundary
from pdeopt.problems.linear import check_range
from pdeopt.report import InputError

# Tags of the mesh, and their names.
_REST, _BOX = 1, 2
_SOUTH, _EAST, _OUTER = 1, 2, 3
_GROUPS = {"rest": (2, _REST), "box": (2, _BOX), "lower edge": (1, _SOUTH), "right edge": (1, _EAST),
           "outer": (1, _OUTER)}  # fmt: skip
_BOX_SIDE = 0.25

REFERENCE_OBJECTIVE = 0.5038970703
"""Least objective of `LShapeControl` for alpha = 1e-3, within 1e-9, from twenty adaptive steps of cubic elements."""


def l_shape_mesh(comm: MPI.Comm, cells: int = 4) -> MeshData:
    """Return a uniform mesh of right-angled triangles of (-1, 1)^2 without [0, 1) x (-1, 0].

    Parameters
    ----------
    comm
        Communicator to distribute the mesh over.
    cells
        Cells along a unit of length, a multiple of 4.

    Returns
    -------
    MeshData
        The mesh with the groups "box" (cells of (-1/4, 0) x (0, 1/4), at the inner corner) and "rest" of cells, and
        "right edge" (y = 0, x > 0), "lower edge" (x = 0, y < 0), which meet in the inner corner, and "outer" of facets.

    Raises
    ------
    InputError
        If the number of cells is not a positive multiple of 4.

    Collective: yes.
    """
    if cells < 4 or cells % 4:
        raise InputError(f"cells = {cells} must be a positive multiple of 4, for the box at the corner to be resolved")
    points, triangles = np.empty((0, 2)), np.empty((0, 3), dtype=np.int64)
    if comm.rank == 0:
        side = 2 * cells + 1
        rows, columns = np.divmod(np.arange(side * side), side)
        left, below = np.meshgrid(np.arange(2 * cells), np.arange(2 * cells))
        first = (below * side + left)[(left < cells) | (below >= cells)]  # lower left corner of each square
        lower = np.column_stack([first, first + 1, first + side + 1])
        upper = np.column_stack([first, first + side, first + side + 1])
        numbers, renumbered = np.unique(np.concatenate([lower, upper]), return_inverse=True)
        triangles = renumbered.reshape(-1, 3).astype(np.int64)
        points = np.column_stack([columns, rows])[numbers] / cells - 1.0
    element = basix.ufl.element("Lagrange", "triangle", 1, shape=(2,), dtype=np.float64)
    # The dispatching overload hides its second signature from mypy.
    partitioner = dolfinx.mesh.create_cell_partitioner(  # type: ignore[call-arg]
        dolfinx.mesh.GhostMode.shared_facet, max_facet_to_cell_links=2
    )
    mesh = dolfinx.mesh.create_mesh(comm, triangles, ufl.Mesh(element), points, partitioner)
    cell_map = mesh.topology.index_map(2)
    every = np.arange(cell_map.size_local + cell_map.num_ghosts, dtype=np.int32)
    x, y, _ = dolfinx.mesh.compute_midpoints(mesh, 2, every).T
    inside = (x > -_BOX_SIDE) & (x < 0.0) & (y > 0.0) & (y < _BOX_SIDE)
    cell_tags = dolfinx.mesh.meshtags(mesh, 2, every, np.where(inside, _BOX, _REST).astype(np.int32))
    cell_tags.name = "cell_tags"
    facet_tags = tag_boundary(
        mesh,
        {
            _SOUTH: lambda x: np.isclose(x[0], 0.0) & (x[1] < 1e-9),
            _EAST: lambda x: np.isclose(x[1], 0.0) & (x[0] > -1e-9),
            _OUTER: lambda x: np.isclose(np.maximum(np.abs(x[0]), np.abs(x[1])), 1.0),
        },
    )
    return MeshData(mesh, cell_tags, facet_tags, dict(_GROUPS))


class LShapePoisson:
    """Find the harmonic function u = r^(2/3) sin(2 theta / 3) on the L-shape, and numbers that depend on it.

    The angle theta runs from 0 on the "right edge" to 3 pi / 2 on the "lower edge". There u = 0; on the outer boundary
    its normal derivative is given. The gradient grows like r^(-1/3) at the inner corner, so that uniform refinement
    gains no more than h^(4/3) in these numbers, whatever the degree. All quantities are dimensionless.

    Parameters
    ----------
    data
        A mesh of the L-shape with the groups of `l_shape_mesh`: itself, refined or remeshed.
    degree
        Degree of the Lagrange elements, >= 1.

    Attributes
    ----------
    solution
        u_h, set by `solve`.
    residual
        F(u_h; v) in UFL, linear in its test function.
    bcs
        The Dirichlet conditions.
    goals
        Functionals of u_h in UFL by name: "box mean" over the box at the corner, "mean" and "mean square" (which is not
        linear) over the domain, and "flux", the first moment of the normal derivative over the right edge, written by
        the weak form and therefore as accurate as the others.
    exact_goals
        Their values for u.

    Raises
    ------
    InputError
        If the degree is not positive.

    Collective: yes.
    """

    def __init__(self, data: MeshData, degree: int = 1) -> None:
        check_range("degree", degree, 0.0)
        mesh = data.mesh
        self.mesh_data = data
        self.space = dolfinx.fem.functionspace(mesh, ("Lagrange", degree))
        self.solution = dolfinx.fem.Function(self.space, name="solution")
        test = ufl.TestFunction(self.space)
        dx = ufl.Measure("dx", mesh, subdomain_data=data.cell_tags)
        ds = ufl.Measure("ds", mesh, subdomain_data=data.facet_tags, metadata={"quadrature_degree": 2 * degree + 6})
        outer = ds(data.tag("outer"))
        x = ufl.SpatialCoordinate(mesh)
        flux = ufl.inner(ufl.grad(singular_function(x)), ufl.FacetNormal(mesh))
        self.residual = ufl.inner(ufl.grad(self.solution), ufl.grad(test)) * dx - flux * test * outer
        self.bcs = [_zero_on(self.space, data, ("right edge", "lower edge"))]
        area = 3.0
        self.goals: Mapping[str, ufl.Form] = {
            "box mean": self.solution / _BOX_SIDE**2 * dx(data.tag("box")),
            "mean": self.solution / area * dx,
            "mean square": self.solution**2 / area * dx,
            # Tested with x, which vanishes on the lower edge, the equation leaves the moment over the right edge.
            "flux": ufl.grad(self.solution)[0] * dx - flux * x[0] * outer,
        }
        whole, box = (0.0, 1.5 * math.pi, 1.0), (0.5 * math.pi, math.pi, _BOX_SIDE)
        self.exact_goals: Mapping[str, float] = {
            "box mean": _polar_integral(1, *box) / _BOX_SIDE**2,
            "mean": _polar_integral(1, *whole) / area,
            "mean square": _polar_integral(2, *whole) / area,
            "flux": -2.0 / 5.0,
        }

    def solve(self) -> dolfinx.fem.Function:
        """Solve by MUMPS (or by PETSc options under ``l_shape_``) and return u_h. Collective: yes."""
        bilinear = ufl.derivative(self.residual, self.solution)
        self.solution.x.array[:] = 0.0
        matrix = forms.assemble_matrix(forms.compile_form(bilinear), self.bcs)
        vector = forms.assemble_vector(forms.compile_form(-self.residual))
        vector.array[forms.owned_dirichlet_dofs(self.bcs)] = 0.0
        solver = PETSc.KSP().create(matrix.getComm())
        solver.setOptionsPrefix("l_shape_")
        solver.setOperators(matrix)
        solver.setErrorIfNotConverged(True)
        direct = {"ksp_type": "preonly", "pc_type": "lu", "pc_factor_mat_solver_type": "mumps"}
        unknowns = vector.duplicate()
        with forms.default_options("l_shape_", direct):
            solver.setFromOptions()
            solver.solve(vector, unknowns)
        forms.set_function(self.solution, unknowns.array_r)
        for item in (solver, matrix, vector, unknowns):
            item.destroy()
        return self.solution


class LShapeControl:
    """Minimise |y - 1|^2 / 2 + alpha |u|^2 / 2 subject to -laplace y = u on the L-shape, y = 0 on its boundary.

    State and adjoint have the singularity of `LShapePoisson` at the inner corner. No optimum is known in closed form;
    `REFERENCE_OBJECTIVE` has the least objective for alpha = 1e-3. All quantities are dimensionless.

    Parameters
    ----------
    data
        A mesh of the L-shape with the groups of `l_shape_mesh`.
    alpha
        Regularisation, > 0.
    degree
        Degree of state, control and adjoint, >= 1.
    bounds
        (lower, upper) of the control, or None.

    Attributes
    ----------
    problem
        The control problem.
    control
        The control's function, set by ``problem.solve()``.
    box_mean
        Mean of the state over the box at the corner, a functional in UFL.

    Raises
    ------
    InputError
        If a number is out of range.

    Collective: yes.
    """

    def __init__(
        self,
        data: MeshData,
        alpha: float = 1e-3,
        degree: int = 1,
        bounds: tuple[float, float] | None = None,
    ) -> None:
        check_range("alpha", alpha, 0.0)
        check_range("degree", degree, 0.0)
        self.mesh_data = data
        space = dolfinx.fem.functionspace(data.mesh, ("Lagrange", degree))
        state = dolfinx.fem.Function(space, name="state")
        self.control = dolfinx.fem.Function(space, name="control")
        test = ufl.TestFunction(space)
        dx = ufl.Measure("dx", data.mesh, subdomain_data=data.cell_tags)
        self.box_mean = state / _BOX_SIDE**2 * dx(data.tag("box"))
        self.problem = ControlProblem(
            objective=0.5 * (state - 1.0) ** 2 * dx + 0.5 * alpha * self.control**2 * dx,
            state_equation=ufl.inner(ufl.grad(state), ufl.grad(test)) * dx - self.control * test * dx,
            state=state,
            control=self.control,
            bcs=[_zero_on(space, data, ("right edge", "lower edge", "outer"))],
            bounds=bounds,
        )


def singular_function(x: Expr) -> Expr:
    """Return r^(2/3) sin(2 theta / 3) in UFL, from the coordinates of a mesh of the L-shape. Collective: no."""
    # The angle from the bisector of the domain has its jump in the quadrant that is missing.
    angle = ufl.atan2(-x[0] - x[1], x[1] - x[0]) + 0.75 * ufl.pi
    return (x[0] ** 2 + x[1] ** 2) ** (1.0 / 3.0) * ufl.sin(2.0 / 3.0 * angle)


def _polar_integral(power: int, start: float, stop: float, side: float) -> float:
    """Integrate a power of the singular function over the part of a square of half width ``side`` between two angles.

    The radial integral is exact; the angular integrand is smooth between multiples of pi / 4. Collective: no.
    """
    nodes, weights = np.polynomial.legendre.leggauss(30)
    exponent = 2.0 * power / 3.0 + 2.0
    total = 0.0
    for left in np.arange(start, stop - 1e-9, 0.25 * math.pi):
        angle = left + 0.125 * math.pi * (nodes + 1.0)
        radius = side / np.maximum(np.abs(np.cos(angle)), np.abs(np.sin(angle)))
        values = radius**exponent / exponent * np.sin(2.0 / 3.0 * angle) ** power
        total += 0.125 * math.pi * float(weights @ values)
    return total


def _zero_on(space: dolfinx.fem.FunctionSpace, data: MeshData, groups: Sequence[str]) -> dolfinx.fem.DirichletBC:
    """Return the condition that a scalar function vanishes on groups of facets. Collective: yes."""
    assert data.facet_tags is not None
    facets = np.unique(np.concatenate([data.facet_tags.find(data.tag(group)) for group in groups]))
    data.mesh.topology.create_connectivity(1, 2)
    return dolfinx.fem.dirichletbc(0.0, dolfinx.fem.locate_dofs_topological(space, 1, facets), space)
