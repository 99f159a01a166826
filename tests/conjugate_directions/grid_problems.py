"""Diffusion on structured meshes, the same coefficients and right-hand sides on any number of ranks."""

from mpi4py import MPI
from petsc4py import PETSc

import dolfinx
import dolfinx.fem.petsc
import numpy as np
import ufl

CELLS = {
    "triangle": dolfinx.mesh.CellType.triangle,
    "quadrilateral": dolfinx.mesh.CellType.quadrilateral,
    "tetrahedron": dolfinx.mesh.CellType.tetrahedron,
    "hexahedron": dolfinx.mesh.CellType.hexahedron,
}


class Diffusion:
    """-div(K grad u) = f, u = 0 on the boundary if held; K is lognormal, or of one strong direction."""

    def __init__(self, cell, counts, strong=None, degree=1, held=True):
        comm, kind = MPI.COMM_WORLD, CELLS[cell]
        if len(counts) == 2:
            self.mesh = dolfinx.mesh.create_rectangle(comm, [[0.0, 0.0], [2.0, 1.0]], counts, kind)
        else:
            self.mesh = dolfinx.mesh.create_box(comm, [[0.0, 0.0, -1.0], [1.0, 1.0, 1.0]], counts, kind)
        self.space = dolfinx.fem.functionspace(self.mesh, ("Lagrange", degree))
        u, v = ufl.TrialFunction(self.space), ufl.TestFunction(self.space)
        x = ufl.SpatialCoordinate(self.mesh)
        if strong is None:
            tensor = ufl.exp(2.0 * ufl.sin(7.0 * x[0]) * ufl.cos(9.0 * x[1])) * ufl.Identity(len(counts))
        else:
            one = np.array(strong) / np.linalg.norm(strong)
            tensor = dolfinx.fem.Constant(self.mesh, 1e-3 * np.eye(len(counts)) + np.outer(one, one))
        dx = ufl.Measure("dx", domain=self.mesh, metadata={"quadrature_degree": 2})
        self.mesh.topology.create_connectivity(len(counts) - 1, len(counts))
        facets = dolfinx.mesh.exterior_facet_indices(self.mesh.topology)
        dofs = dolfinx.fem.locate_dofs_topological(self.space, len(counts) - 1, facets)
        self.condition = dolfinx.fem.dirichletbc(PETSc.ScalarType(0), dofs, self.space)
        form = dolfinx.fem.form(ufl.inner(tensor * ufl.grad(u), ufl.grad(v)) * dx)
        self.matrix = dolfinx.fem.petsc.assemble_matrix(form, bcs=[self.condition] if held else [])
        self.matrix.assemble()
        owned = self.space.dofmap.index_map.size_local
        self.places = self.space.tabulate_dof_coordinates()[:owned]
        self.right = self.matrix.createVecRight()
        self.right.array_w[:] = np.sin(1e3 * self.places @ [1.0, 2.0, 3.0])


class BodyAsPC:
    """What PETSc needs to use a body as a preconditioner."""

    def __init__(self, body):
        self.body = body

    def apply(self, pc, x, y):
        self.body.apply(x, y)


def solve(matrix, right, body):
    """Return the iterations of conjugate gradients to 1e-8, and the true relative residual."""
    solver = PETSc.KSP().create(matrix.getComm())
    solver.setOperators(matrix)
    solver.setType("cg")
    solver.setNormType(PETSc.KSP.NormType.UNPRECONDITIONED)
    solver.setTolerances(rtol=1e-8, max_it=100)
    solver.getPC().setType("python")
    solver.getPC().setPythonContext(BodyAsPC(body))
    solution, rest = right.duplicate(), right.duplicate()
    solver.solve(right, solution)
    matrix.mult(solution, rest)
    rest.aypx(-1.0, right)
    found = solver.getIterationNumber(), rest.norm() / right.norm()
    for thing in (solver, solution, rest):
        thing.destroy()
    return found
