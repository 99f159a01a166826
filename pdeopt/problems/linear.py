"""A linear model problem: its forms, its exact solution, and its PETSc matrix and right-hand side."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from mpi4py import MPI
from petsc4py import PETSc

import dolfinx
import dolfinx.fem.petsc
import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import fem
from ufl.core.expr import Expr

from pdeopt.report import InputError, MeshError

Mesh = dolfinx.mesh.Mesh[np.float64]
Marker = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.bool_]]
"""Tells from coordinates of shape (3, points) which points belong to a part of the boundary, shape (points,)."""


@dataclasses.dataclass(frozen=True, eq=False)
class LinearModelProblem:
    """Find u in V with a(u, v) = L(v) for all v, and u given on the Dirichlet boundary.

    All quantities are dimensionless; lengths are those of the mesh, as it is.

    Parameters
    ----------
    name
        The family ("poisson", "stokes").
    a, L
        Bilinear and linear form (UFL), with the quadrature degree fixed in their measures.
    space
        Function space of trial and test functions.
    bcs
        Dirichlet conditions; ``dataclasses.replace(problem, bcs=())`` gives the unconstrained operator.
    exact
        Exact solution of the continuous problem as a UFL expression with the space's value shape, or None.
    symmetric
        Whether the assembled matrix is symmetric.
    definite
        Whether it is also positive definite, so that conjugate gradients and Cholesky factorisation apply.
    fields
        Names of the subspaces of a mixed space, in order; one name for any other space.
    coefficients
        Cellwise data of the operator by name, which learned solvers take as their input.
    near_nullspace, nullspace
        Functions whose degree-of-freedom vectors are orthonormal: the near-nullspace that algebraic multigrid
        needs, and the kernel of the constrained matrix.
    """

    name: str
    a: ufl.Form
    L: ufl.Form
    space: fem.FunctionSpace[np.float64]
    bcs: Sequence[fem.DirichletBC[np.float64]]
    exact: Expr | None
    symmetric: bool
    definite: bool
    fields: tuple[str, ...] = ("solution",)
    coefficients: Mapping[str, fem.Function[np.float64]] = dataclasses.field(default_factory=dict)
    near_nullspace: Sequence[fem.Function[np.float64]] = ()
    nullspace: Sequence[fem.Function[np.float64]] = ()

    @property
    def mesh(self) -> Mesh:
        """The mesh of the problem."""
        return self.space.mesh

    def assemble(self) -> tuple[PETSc.Mat, PETSc.Vec]:
        """Assemble the matrix A and the right-hand side b of A x = b.

        Dirichlet rows and columns are replaced by the identity and b is lifted accordingly, so symmetry stays.
        Near-nullspace, nullspace and the symmetry flags are attached to A. A singular system is made consistent:
        b is projected onto the range of A, which the interpolated boundary data miss by their interpolation error.

        Returns
        -------
        A, b
            Owned by the caller, who should destroy them: on several ranks petsc4py does not when it collects them.
            Both hold a reference to this problem, since they are unusable once the mesh and space are collected.
            Copies and duplicates of them hold none: keep the problem as long as those.

        Collective: yes.
        """
        bilinear, linear = fem.form(self.a), fem.form(self.L)
        A = fem.petsc.assemble_matrix(bilinear, self.bcs)
        A.assemble()
        b = fem.petsc.assemble_vector(linear)
        fem.petsc.apply_lifting(b, [bilinear], [self.bcs])
        b.ghostUpdate(PETSc.InsertMode.ADD, PETSc.ScatterMode.REVERSE)
        fem.petsc.set_bc(b, self.bcs)

        if self.near_nullspace:
            with _petsc_nullspace(self.near_nullspace) as near_nullspace:
                A.setNearNullSpace(near_nullspace)
        if self.nullspace:
            with _petsc_nullspace(self.nullspace) as nullspace:
                A.setNullSpace(nullspace)
                A.setTransposeNullSpace(nullspace)
                nullspace.remove(b)
        if self.symmetric:
            A.setOption(PETSc.Mat.Option.SYMMETRIC, True)
            A.setOption(PETSc.Mat.Option.SPD, self.definite)
        A.setAttr("pdeopt_problem", self)
        b.setAttr("pdeopt_problem", self)
        return A, b

    def field_indices(self) -> dict[str, PETSc.IS]:
        """Return the rows of each field of a mixed space, as ``PC.setFieldSplitIS(*indices.items())`` takes them.

        Collective: yes.
        """
        dofmap = self.space.dofmap
        block_size = dofmap.index_map_bs
        owned = dofmap.index_map.size_local * block_size
        start = dofmap.index_map.local_range[0] * block_size
        if len(self.fields) == 1:
            return {self.fields[0]: PETSc.IS().createStride(owned, start, 1, self.mesh.comm)}
        indices = {}
        for number, field in enumerate(self.fields):
            rows = np.asarray(self.space.sub(number).collapse()[1], dtype=PETSc.IntType)
            indices[field] = PETSc.IS().createGeneral(np.sort(rows[rows < owned]) + start, comm=self.mesh.comm)
        return indices

    def to_function(self, vector: PETSc.Vec) -> fem.Function[np.float64]:
        """Return the finite element function with the degrees of freedom of a PETSc vector. Collective: yes."""
        function: fem.Function[np.float64] = fem.Function(self.space, name=self.name)
        function.x.array[: vector.getLocalSize()] = vector.array_r[: vector.getLocalSize()]
        function.x.scatter_forward()
        return function

    def l2_errors(self, solution: fem.Function[np.float64]) -> dict[str, float]:
        """Return the L2 norm of the error of each field against the exact solution.

        What the nullspace leaves open, such as the mean of the pressure, is projected out of the error first.

        Raises
        ------
        InputError
            If the problem has no exact solution.

        Collective: yes.
        """
        if self.exact is None:
            raise InputError(f"problem {self.name!r} has no exact solution to measure an error against")
        dx = fixed_measure(self.space, extra=4)
        errors = {}
        for field, error, modes in self._field_errors(solution):
            for mode in modes:
                mode_square = _integral(ufl.inner(mode, mode) * dx)
                if mode_square > 0.0:  # zero in the fields that a mode of a mixed space does not touch
                    error = error - fem.Constant(self.mesh, _integral(ufl.inner(error, mode) * dx) / mode_square) * mode
            errors[field] = math.sqrt(_integral(ufl.inner(error, error) * dx))
        return errors

    def _field_errors(self, solution: fem.Function[np.float64]) -> Iterator[tuple[str, Expr, Sequence[Expr]]]:
        """Yield name, error and parts of the nullspace modes, field by field."""
        if len(self.fields) == 1:
            yield self.fields[0], solution - self.exact, self.nullspace
            return
        offset = 0
        for number, (field, part) in enumerate(zip(self.fields, ufl.split(solution), strict=True)):
            size = math.prod(part.ufl_shape)
            components = [self.exact[offset + component] for component in range(size)]  # type: ignore[index]
            exact = ufl.as_vector(components) if part.ufl_shape else components[0]
            yield field, part - exact, [ufl.split(mode)[number] for mode in self.nullspace]
            offset += size


def fixed_measure(space: fem.FunctionSpace[np.float64], kind: str = "dx", extra: int = 2) -> ufl.Measure:
    """Return the measure whose quadrature degree is twice the space's polynomial degree plus ``extra``.

    The degree is fixed, since the automatic one differs between a form and its derivatives. On quadrilaterals and
    hexahedra it counts per direction, as their quadrature rules do. Collective: no.
    """
    element = space.ufl_element()
    degree = 2 * max(part.embedded_subdegree for part in element.sub_elements or [element]) + extra
    return ufl.Measure(kind, domain=space.mesh, metadata={"quadrature_degree": degree})


def smooth_scalar(x: Expr, phase: float = 0.0) -> Expr:
    r"""Return exp(x_0 - x_1/2 + x_2/4) sin(pi (x_0 + x_1/2 + x_2/3) + phase), in two or three dimensions.

    The exact solutions are built from it. On purpose it is no eigenfunction of the Laplacian: a right-hand side
    that is one makes conjugate gradients converge in a single iteration on a structured mesh.

    Parameters
    ----------
    x
        Point, shape (dimension,).
    phase
        Shift in radians; other shifts give linearly independent functions.

    Collective: no.
    """
    dimension = x.ufl_shape[0]
    growth = sum(weight * x[i] for i, weight in enumerate((1.0, -1 / 2, 1 / 4)[:dimension]))
    wave = sum(weight * x[i] for i, weight in enumerate((1.0, 1 / 2, 1 / 3)[:dimension]))
    value: Expr = ufl.exp(growth) * ufl.sin(math.pi * wave + phase)
    return value


def dirichlet_condition(
    space: fem.FunctionSpace[np.float64], value: Expr, where: Marker | None = None
) -> fem.DirichletBC[np.float64]:
    """Prescribe the interpolant of a UFL expression on the boundary or on a part of it.

    Parameters
    ----------
    space
        A space, or the subspace of a mixed space.
    value
        Boundary values as a UFL expression with the value shape of ``space``.
    where
        Marks the facets all of whose vertices it holds for; None means the whole boundary.

    Raises
    ------
    InputError
        If ``where`` marks no facet of the boundary.

    Collective: yes.
    """
    mesh = space.mesh
    facet_dimension = mesh.topology.dim - 1
    mesh.topology.create_connectivity(facet_dimension, mesh.topology.dim)
    if where is None:
        facets = dolfinx.mesh.exterior_facet_indices(mesh.topology)
    else:
        facets = dolfinx.mesh.locate_entities_boundary(mesh, facet_dimension, where)
    if mesh.comm.allreduce(facets.size, op=MPI.SUM) == 0:
        raise InputError("the marker holds on no facet of the boundary: compare its coordinates with the mesh's")

    is_subspace = bool(space.component())
    own_space = space.collapse()[0] if is_subspace else space
    boundary_values: fem.Function[np.float64] = fem.Function(own_space)
    boundary_values.interpolate(fem.Expression(value, own_space.element.interpolation_points))
    if is_subspace:
        dofs = fem.locate_dofs_topological((space, own_space), facet_dimension, facets)
        return fem.dirichletbc(boundary_values, dofs, space)
    return fem.dirichletbc(boundary_values, fem.locate_dofs_topological(space, facet_dimension, facets))


def check_mesh(mesh: Mesh) -> int:
    """Return the dimension of a mesh that the model problems can be posed on, 2 or 3.

    Raises
    ------
    MeshError
        If the mesh is a curve, a surface in space, or one-dimensional.

    Collective: no.
    """
    dimension = mesh.topology.dim
    if dimension not in (2, 3) or mesh.geometry.dim != dimension:
        raise MeshError(
            f"the model problems need a mesh of the plane or of space, not one of dimension {dimension} "
            f"in {mesh.geometry.dim} coordinates; read planar meshes with two coordinates"
        )
    return int(dimension)


def check_range(name: str, value: float, lower: float, upper: float = math.inf) -> None:
    """Raise `InputError` unless lower < value < upper. Collective: no."""
    if not lower < value < upper:
        raise InputError(f"{name} = {value} is out of range: it must lie strictly between {lower} and {upper}")


@contextlib.contextmanager
def _petsc_nullspace(basis: Sequence[fem.Function[np.float64]]) -> Iterator[PETSc.NullSpace]:
    """Hand out an orthonormal basis as a PETSc object, which lives on only in the matrix it is attached to.

    Without the explicit destruction petsc4py would stash the handles of a parallel run for ever. Collective: yes.
    """
    vectors = [mode.x.petsc_vec.copy() for mode in basis]
    nullspace = PETSc.NullSpace().create(vectors=vectors, comm=vectors[0].getComm())
    yield nullspace
    for handle in (nullspace, *vectors):
        handle.destroy()


def _integral(form: ufl.Form) -> float:
    """Integrate over the whole mesh. Collective: yes."""
    compiled = fem.form(form)
    return float(compiled.mesh.comm.allreduce(fem.assemble_scalar(compiled), op=MPI.SUM).real)
