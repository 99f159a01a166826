# # A flow over a step that does not turn back
#
# Behind a step a flow separates: a vortex turns below the jet, and along the lower wall the fluid runs backwards.
# Creeping flow hardly does so. Which force in the channel makes the flow at Reynolds number 200 look like creeping
# flow? With the velocity $u$, the pressure $p$ and the force $f$,
#
# $$ \min\ \tfrac12 \int |u - u_d|^2\,dx + \tfrac{\alpha}{2} \int |f|^2\,dx \quad\text{subject to}\quad
#    (u\cdot\nabla) u - \nu\,\Delta u + \nabla p = f, \quad \nabla\cdot u = 0, $$
#
# where $u_d$ is the Stokes flow in the same channel. Lengths are in units of the channel's height behind the step,
# velocities in units of the mean inflow.
#
# Run it with `mpirun -n 2 python demos/navier_stokes_control.py`.

import pathlib

from mpi4py import MPI

import basix.ufl
import dolfinx
import numpy as np
import ufl
from dolfinx import fem

import pdeopt
from pdeopt.fem import forms, output
from pdeopt.optimise import minimise
from pdeopt.parallel import print_root
from pdeopt.plot import plot_convergence, plot_fields

comm = MPI.COMM_WORLD
folder = pathlib.Path(__file__).resolve().parent.parent / "out_navier_stokes_control"
STEP, LENGTH, REYNOLDS, ALPHA = 0.5, 6.0, 200.0, 1.0  # the step's height; Re is that of the step

# ## The channel
#
# A rectangle of squares cut in two, without the cells under the upper left half. Taylor-Hood elements; the fluid
# enters as a parabola on the left and leaves on the right without stress.

rectangle = dolfinx.mesh.create_rectangle(comm, [[0.0, 0.0], [LENGTH, 1.0]], [72, 12])
behind = dolfinx.mesh.locate_entities(rectangle, 2, lambda x: (x[0] > 1.0 - 1e-8) | (x[1] > STEP - 1e-8))
mesh = dolfinx.mesh.create_submesh(rectangle, 2, behind)[0]
velocities = basix.ufl.element("Lagrange", "triangle", 2, shape=(2,))
space = fem.functionspace(mesh, basix.ufl.mixed_element([velocities, basix.ufl.element("Lagrange", "triangle", 1)]))
flow, target = fem.Function(space, name="flow"), fem.Function(space, name="creeping flow")
force = fem.Function(fem.functionspace(mesh, velocities), name="force")

collapsed = space.sub(0).collapse()[0]
inflow = fem.Function(collapsed)
parabola = 6.0 / (1.0 - STEP) ** 2  # of mean 1
inflow.interpolate(lambda x: np.stack([(x[0] < 1e-8) * parabola * (x[1] - STEP) * (1.0 - x[1]), 0.0 * x[0]]))
mesh.topology.create_connectivity(1, 2)
facets = dolfinx.mesh.exterior_facet_indices(mesh.topology)
walls = facets[dolfinx.mesh.compute_midpoints(mesh, 1, facets)[:, 0] < LENGTH - 1e-8]
dofs = fem.locate_dofs_topological((space.sub(0), collapsed), 1, walls)

# ## The problem in UFL
#
# Viscosity and convection are constants of the form: without convection the same equation is that of Stokes.

(u, p), (v, q), dx = ufl.split(flow), ufl.TestFunctions(space), ufl.dx(metadata={"quadrature_degree": 6})
viscosity, convection = fem.Constant(mesh, STEP / REYNOLDS), fem.Constant(mesh, 0.0)
equation = viscosity * ufl.inner(ufl.grad(u), ufl.grad(v)) * dx - (p * ufl.div(v) + q * ufl.div(u)) * dx
equation += ufl.inner(convection * ufl.dot(ufl.grad(u), u) - force, v) * dx
misfit = u - ufl.split(target)[0]
problem = pdeopt.ControlProblem(
    objective=0.5 * ufl.inner(misfit, misfit) * dx + 0.5 * ALPHA * ufl.inner(force, force) * dx,
    state_equation=equation,
    state=flow,
    control=force,
    bcs=[fem.dirichletbc(inflow, dofs, space.sub(0))],
)


def backflow():
    """Return the integral of the velocity against the stream, over the part where it runs backwards."""
    return forms.assemble_scalar(forms.compile_form(ufl.max_value(-u[0], 0.0) * dx))


def solve_flow(share):
    """Solve for the flow without force, with a share of the convection."""
    convection.value = share
    functional = problem.reduced_functional()
    functional.value(functional.create_vector())
    functional.destroy()


# ## Creeping flow, the flow as it is, and the flow with the best force

solve_flow(0.0)
target.x.array[:] = flow.x.array
creeping = backflow()
for share in (0.25, 0.5, 1.0):
    solve_flow(share)
resting, before, objective = flow.sub(0).collapse(), backflow(), problem.objective_value()
report = minimise(problem)
after = backflow()
print_root(comm, report)
print_root(comm, f"objective: {objective:.4f} without force, {report.quantities['objective']:.4f} with it")
print_root(comm, f"backward flow: {before:.4f} without force, {after:.4f} with it, {creeping:.4f} in creeping flow")

# ## Pictures, and files for ParaView

controlled = flow.sub(0).collapse()
output.write_fields(folder / "fields", {"velocity_without": resting, "velocity": controlled, "force": force})
speeds = {"speed without force (mean inflow = 1)": resting, "speed with the best force": controlled}
plot_fields(speeds, folder / "flow.png", limits=dict.fromkeys(speeds, (0.0, 1.5)))
plot_fields({"force": force}, folder / "a_force.png")
plot_convergence(
    {"AdaSketch-Newton": report.residuals}, folder / "convergence.png", "step", "KKT residual, Riesz norm", comm=comm
)
print_root(comm, f"wrote {folder.name}/: fields for ParaView, flow.png, a_force.png, convergence.png")

assert report.converged
assert report.quantities["objective"] < 0.2 * objective
assert after < 0.1 * before
