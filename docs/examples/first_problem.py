"""The first example of the documentation: distributed control of Poisson's equation."""

from mpi4py import MPI

import dolfinx
import ufl

import pdeopt
from pdeopt.parallel import print_root

mesh = dolfinx.mesh.create_unit_square(MPI.COMM_WORLD, 64, 64)
space = dolfinx.fem.functionspace(mesh, ("Lagrange", 1))
y = dolfinx.fem.Function(space, name="state")
u = dolfinx.fem.Function(space, name="control")
v = ufl.TestFunction(space)

# y = 0 on the boundary
mesh.topology.create_connectivity(1, 2)
facets = dolfinx.mesh.exterior_facet_indices(mesh.topology)
bc = dolfinx.fem.dirichletbc(0.0, dolfinx.fem.locate_dofs_topological(space, 1, facets), space)

x = ufl.SpatialCoordinate(mesh)
target = ufl.sin(ufl.pi * x[0]) * ufl.sin(ufl.pi * x[1])
alpha = 1e-4
dx = ufl.dx

problem = pdeopt.ControlProblem(
    objective=0.5 * (y - target) ** 2 * dx + 0.5 * alpha * u**2 * dx,
    state_equation=ufl.inner(ufl.grad(y), ufl.grad(v)) * dx - u * v * dx,
    state=y,
    control=u,
    bcs=[bc],
)
print_root(mesh.comm, problem.solve())
