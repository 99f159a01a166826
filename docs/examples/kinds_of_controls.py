"""The examples of the page on control problems: every kind of control, bounds, a constraint."""

from mpi4py import MPI

import dolfinx
import numpy as np
import ufl

import pdeopt
from pdeopt.parallel import print_root

comm = MPI.COMM_WORLD
mesh = dolfinx.mesh.create_unit_square(comm, 32, 32)
space = dolfinx.fem.functionspace(mesh, ("Lagrange", 1))
y = dolfinx.fem.Function(space, name="state")
v = ufl.TestFunction(space)
x = ufl.SpatialCoordinate(mesh)
dx, ds, alpha, target = ufl.dx, ufl.ds, 1e-3, x[0] * x[1]

# [boundary]
flux = dolfinx.fem.Function(space, name="flux")
problem = pdeopt.ControlProblem(
    objective=0.5 * (y - target) ** 2 * dx + 0.5 * alpha * flux**2 * ds,
    state_equation=ufl.inner(ufl.grad(y), ufl.grad(v)) * dx + y * v * dx - flux * v * ds,
    state=y,
    control=flux,
)
print_root(comm, f"boundary control\n{problem.solve()}\n")
# [end]

y.x.array[:] = 0.0
# [real]
strengths = dolfinx.fem.Constant(mesh, np.zeros(2))
sources = ufl.as_vector([ufl.exp(-50 * ((x[0] - 0.3) ** 2 + x[1] ** 2)), ufl.sin(ufl.pi * x[0])])
problem = pdeopt.ControlProblem(
    objective=0.5 * (y - target) ** 2 * dx + 0.5 * alpha * ufl.inner(strengths, strengths) * dx,
    state_equation=ufl.inner(ufl.grad(y), ufl.grad(v)) * dx + y * v * dx - ufl.inner(strengths, sources) * v * dx,
    state=y,
    control=strengths,
)
print_root(comm, f"real-valued control\n{problem.solve()}")
print_root(comm, "strengths", strengths.value, "\n")
# [end]

y.x.array[:] = 0.0
# [several]
heating = dolfinx.fem.Function(dolfinx.fem.functionspace(mesh, ("DG", 0)), name="heating")
flux = dolfinx.fem.Function(space, name="flux")
problem = pdeopt.ControlProblem(
    objective=0.5 * (y - target) ** 2 * dx + 0.5 * alpha * heating**2 * dx + 0.5 * alpha * flux**2 * ds,
    state_equation=ufl.inner(ufl.grad(y), ufl.grad(v)) * dx + y * v * dx - heating * v * dx - flux * v * ds,
    state=y,
    control=[heating, flux],
    bounds=[(0.0, 1.0), None],  # the heating is bounded, the flux is free
    constraints=[(y - 0.25) * dx],  # the mean of the state is prescribed
)
print_root(comm, f"two controls, bounds and a constraint\n{problem.solve()}")
print_root(comm, "multipliers", problem.multipliers)
# [end]
