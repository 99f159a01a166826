"""A model on dolfinx-adjoint's tape, optimised and tested by pdeopt."""

from mpi4py import MPI

import dolfinx
import dolfinx_adjoint
import pyadjoint
import ufl

from pdeopt.control import TapedFunctional, minimise, taylor_test
from pdeopt.parallel import print_root

mesh = dolfinx.mesh.create_unit_square(MPI.COMM_WORLD, 16, 16)
space = dolfinx.fem.functionspace(mesh, ("Lagrange", 1))
dx = ufl.dx(mesh, metadata={"quadrature_degree": 6})
x = ufl.SpatialCoordinate(mesh)
direct = {"ksp_type": "preonly", "pc_type": "lu", "pc_factor_mat_solver_type": "mumps"}

# [model]
u, y = dolfinx_adjoint.Function(space), dolfinx_adjoint.Function(space)
trial, test = ufl.TrialFunction(space), ufl.TestFunction(space)
model = dolfinx_adjoint.LinearProblem(
    ufl.inner(ufl.grad(trial), ufl.grad(test)) * dx + trial * test * dx,
    u * test * dx,
    u=y,
    bcs=[],
    petsc_options=direct,
    adjoint_petsc_options=direct,
    tlm_petsc_options=direct,
)
model.solve()
objective = dolfinx_adjoint.assemble_scalar(0.5 * (y - x[0] * x[1]) ** 2 * dx + 0.5e-3 * u**2 * dx)
# [end]

# [optimise]
functional = TapedFunctional(pyadjoint.ReducedFunctional(objective, [pyadjoint.Control(u)]), bounds=(0.0, 0.5))
print_root(mesh.comm, taylor_test(functional))
print_root(mesh.comm, minimise(functional, "bqnls"))
# [end]
