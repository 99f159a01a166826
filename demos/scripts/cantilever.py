"""A cantilever under its weight, in three positions: a DOLFINx script that has never heard of pdeopt."""

import sys

from mpi4py import MPI

import numpy as np
import ufl
from dolfinx import default_scalar_type, fem, io, la, mesh
from dolfinx.fem.petsc import LinearProblem

cells = int(sys.argv[1])
beam = mesh.create_box(MPI.COMM_WORLD, [[0, 0, 0], [3, 1, 1]], [3 * cells, cells, cells])
space = fem.functionspace(beam, ("Lagrange", 1, (3,)))
u, v = ufl.TrialFunction(space), ufl.TestFunction(space)
E, nu, rho_g = 1.0e5, 0.3, 1.0
mu, lmbda = E / (2 * (1 + nu)), E * nu / ((1 + nu) * (1 - 2 * nu))


def strain(w):
    """Return the strain of a displacement."""
    return ufl.sym(ufl.grad(w))


def stress(w):
    """Return the stress of a displacement."""
    return 2 * mu * strain(w) + lmbda * ufl.tr(strain(w)) * ufl.Identity(3)


weight = fem.Constant(beam, default_scalar_type((0, 0, -rho_g)))
facets = mesh.locate_entities_boundary(beam, 2, lambda x: np.isclose(x[0], 0))
clamped = fem.dirichletbc(np.zeros(3), fem.locate_dofs_topological(space, 2, facets), space)
problem = LinearProblem(
    ufl.inner(stress(u), strain(v)) * ufl.dx,
    ufl.inner(weight, v) * ufl.dx,
    bcs=[clamped],
    petsc_options_prefix="cantilever_",
    petsc_options={"ksp_type": "preonly", "pc_type": "lu"},
)
for angle in (0, 45, 90):
    weight.value = -rho_g * np.array([0, np.sin(np.radians(angle)), np.cos(np.radians(angle))])
    displacement = problem.solve()
    deflection = la.norm(displacement.x, la.Norm.linf)
    if beam.comm.rank == 0:
        print(f"turned by {angle:2d} degrees: deflection {deflection:.8e}")
displacement.name = "displacement"
with io.XDMFFile(beam.comm, "cantilever.xdmf", "w") as file:
    file.write_mesh(beam)
    file.write_function(displacement)
