# # Heating a heat sink to a target temperature
#
# A finned aluminium heat sink with a copper slug stands on a chip. How must it be heated for its section to reach a
# target temperature? With the temperature rise y above the surrounding air, the conductivity k, the heat transfer
# coefficient h of the fins and the heating u, we minimise
#
# $$ J(y, u) = \tfrac12 \int (y - y_d)^2 \, dx + \tfrac{\alpha}{2} \int u^2 \, dx $$
#
# subject to $-\nabla \cdot (k \nabla y) = u$, with convection $-k \, \partial_n y = h y$ on the fins and insulation
# on the rest of the boundary. Lengths are scaled by 10 mm and the conductivity by that of aluminium, so that h is the
# Biot number.
#
# Run it with `mpirun -n 2 python demos/heat_sink_control.py`, and add `--bounds 0 0.05` to limit the heating.

import argparse
import pathlib
import sys

import petsc4py
from mpi4py import MPI

import pdeopt

parser = argparse.ArgumentParser(description="Optimal heating of a heat sink")
parser.add_argument("--bounds", type=float, nargs=2, metavar=("LOWER", "UPPER"), help="box bounds on the heating")
parser.add_argument("--alpha", type=float, default=1e-4, help="regularisation")
arguments, petsc_options = parser.parse_known_args()
petsc4py.init([sys.argv[0], *petsc_options])  # before anything loads PETSc, which reads its options only once

import dolfinx
import ufl

from pdeopt.fem import output
from pdeopt.parallel import print_root
from pdeopt.plot import plot_convergence, plot_fields

# ## The mesh, with its tags

comm = MPI.COMM_WORLD
here = pathlib.Path(__file__).resolve().parent
data = pdeopt.read_mesh(here.parent / "meshes" / "heat_sink.msh", comm)
mesh = data.mesh
mesh.geometry.x[:] *= 100.0  # metres to units of 10 mm
dx = ufl.Measure("dx", mesh, subdomain_data=data.cell_tags)
ds = ufl.Measure("ds", mesh, subdomain_data=data.facet_tags)
aluminium, copper, fins = data.tag("aluminium"), data.tag("copper"), data.tag("fins")

# ## The problem in UFL

space = dolfinx.fem.functionspace(mesh, ("Lagrange", 1))
temperature = dolfinx.fem.Function(space, name="temperature")
heating = dolfinx.fem.Function(space, name="heating")
adjoint = dolfinx.fem.Function(space, name="adjoint")
test = ufl.TestFunction(space)
conductivity = {aluminium: 1.0, copper: 1.9}
biot = 0.02
target, alpha = 1.0, arguments.alpha

objective = 0.5 * (temperature - target) ** 2 * dx + 0.5 * alpha * heating**2 * dx
state_equation = biot * temperature * test * ds(fins) - heating * test * dx
for tag, value in conductivity.items():
    state_equation += value * ufl.inner(ufl.grad(temperature), ufl.grad(test)) * dx(tag)

problem = pdeopt.ControlProblem(
    objective=objective,
    state_equation=state_equation,
    state=temperature,
    control=heating,
    adjoint=adjoint,
    bounds=tuple(arguments.bounds) if arguments.bounds else None,
)

# ## The optimum, and what it took

report = problem.solve()
print_root(comm, report)

# ## Pictures, and files for ParaView

folder = here.parent / "out_heat_sink_control"
output.write_fields(folder / "fields", {"temperature": temperature, "heating": heating, "adjoint": adjoint})
plot_fields(
    {"temperature rise (target 1)": temperature, "heating (scaled)": heating},
    folder / "heat_sink.png",
    title="Optimal heating of a heat sink",
    colour_map="inferno",
    length_unit="cm",
)
krylov = [norm / report.linear_residuals[0] for norm in report.linear_residuals]
kkt = [norm / report.residuals[0] for norm in report.residuals]
plot_convergence(
    {"Krylov method, last linear solve (Euclidean norm)": krylov, "KKT residual (Riesz norm)": kkt}
    if krylov
    else {"KKT residual (Riesz norm)": kkt},
    folder / "convergence.png",
    "iteration",
    "residual, relative",
    "Convergence",
    comm=comm,
)
print_root(comm, f"wrote {folder.name}/: fields for ParaView, heat_sink.png, convergence.png")

assert report.converged
assert report.quantities["relative KKT residual (Riesz)"] <= 1e-8
