# # Heating a plate along a moving target
#
# A square plate starts cold. Its temperature y is to follow a warm spot that walks once around the plate; where and
# when must it be heated? With the heating u we minimise
#
# $$ J(y, u) = \tfrac12 \int_0^T \int (y - y_d)^2 \, dx \, dt + \tfrac{\beta}{2} \int_0^T \int u^2 \, dx \, dt $$
#
# subject to $\partial_t y - \kappa \Delta y = u$, with the edge kept cold. Time is cut into steps of the scheme of
# Crank and Nicolson, and the optimality system of all steps is solved at once: some twenty iterations, however many
# steps.
#
# Run it with `mpirun -n 2 python demos/unsteady_heat_control.py`, and add `--bounds 0 8` to forbid cooling.

import argparse
import math
import pathlib
import sys

import petsc4py
from mpi4py import MPI

import pdeopt

parser = argparse.ArgumentParser(description="Optimal heating along a moving target")
parser.add_argument("--bounds", type=float, nargs=2, metavar=("LOWER", "UPPER"), help="box bounds on the heating")
parser.add_argument("--beta", type=float, default=1e-3, help="regularisation")
parser.add_argument("--steps", type=int, default=32, help="time steps")
arguments, petsc_options = parser.parse_known_args()
petsc4py.init([sys.argv[0], *petsc_options])  # before anything loads PETSc, which reads its options only once

import dolfinx
import ufl

from pdeopt.animate import Animation
from pdeopt.fem.output import FieldSeries
from pdeopt.parallel import print_root
from pdeopt.plot import plot_convergence, plot_fields
from pdeopt.problems.manufactured_control import zero_on_boundary

# ## The plate and its target

comm = MPI.COMM_WORLD
mesh = dolfinx.mesh.create_rectangle(comm, [[-1.0, -1.0], [1.0, 1.0]], [32, 32])
space = dolfinx.fem.functionspace(mesh, ("Lagrange", 1))
temperature = dolfinx.fem.Function(space, name="temperature")
heating = dolfinx.fem.Function(space, name="heating")
time = dolfinx.fem.Constant(mesh, 0.0)
test = ufl.TestFunction(space)
x = ufl.SpatialCoordinate(mesh)
period, conductivity = 2.0, 0.1
angle = 2 * math.pi * time / period
centre = ufl.as_vector((0.5 * ufl.cos(angle), 0.5 * ufl.sin(angle)))
target = ufl.exp(-ufl.inner(x - centre, x - centre) / 0.08)

# ## The problem in UFL
#
# The equation is written without its time derivative, which the problem adds; `time` is the time in the forms.

problem = pdeopt.UnsteadyControlProblem(
    state_equation=conductivity * ufl.inner(ufl.grad(temperature), ufl.grad(test)) * ufl.dx - heating * test * ufl.dx,
    state=temperature,
    control=heating,
    time=time,
    interval=(0.0, period),
    steps=arguments.steps,
    running_objective=0.5 * (temperature - target) ** 2 * ufl.dx + 0.5 * arguments.beta * heating**2 * ufl.dx,
    bcs=[zero_on_boundary(space)],
    bounds=tuple(arguments.bounds) if arguments.bounds else None,
)
uncontrolled = problem.objective_value()

# ## The optimum, and what it took

report = problem.solve()
print_root(comm, report)
print_root(comm, f"objective: {uncontrolled:.5f} without heating, {report.quantities['objective']:.5f} with it")

# ## An animation, pictures, and files for ParaView

folder = pathlib.Path(__file__).resolve().parent.parent / "out_unsteady_heat_control"
goal = dolfinx.fem.Function(space, name="target")
goal_at_time = dolfinx.fem.Expression(target, space.element.interpolation_points)
fields = {"target": goal, "temperature": temperature, "heating": heating}
shown = {}

with (
    Animation(fields, folder / "heat.gif", title="Heating along a moving target", diverging=["heating"]) as film,
    FieldSeries(folder / "fields", fields) as series,
):

    def record(step, now):
        time.value = now
        goal.interpolate(goal_at_time)
        series.write(now)
        if step > 0:  # there is no heating before the first step
            film.add(now)
        if step == arguments.steps // 2:
            shown.update({f"{name} at t = {now:g}": field.copy() for name, field in fields.items()})

    problem.visit(record)

plot_fields(shown, folder / "heat.png", title="Halfway round", diverging=[name for name in shown if "heating" in name])
krylov = report.linear_residuals
plot_convergence(
    {"FGMRES on all time steps": [norm / krylov[0] for norm in krylov]}
    if krylov
    else {"projected gradient": [norm / report.residuals[0] for norm in report.residuals]},
    folder / "convergence.png",
    "iteration",
    "residual, relative",
    "Convergence",
    comm=comm,
)
print_root(comm, f"wrote {folder.name}/: heat.gif, fields for ParaView, heat.png, convergence.png")

assert report.converged
assert report.quantities["objective"] < 0.1 * uncontrolled
