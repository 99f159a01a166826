# # Flow past a cylinder, and control of its wake
#
# A cylinder stands in a channel, slightly below its middle: the DFG benchmark of Schäfer and Turek (1996). At Reynolds
# number 20 the flow is steady, and drag, lift and pressure drop are known to many digits. At 40 a long wake W trails
# behind the cylinder; we move the surface S of the cylinder along itself, with the velocity g, to make it vanish:
#
# $$ J(u, g) = \frac{1}{2 U^2 D^2} \int_W |u - u_d|^2 \, dx + \frac{\alpha}{2 D} \int_S g^2 \, ds $$
#
# where $u_d$ is the flow that enters the channel, U its mean velocity and D the diameter. At 100 the wake sheds
# vortices.
#
# Run it with `mpirun -n 2 python demos/cylinder_flow.py`. Add `--full` for the vortex street at the accuracy of the
# benchmark, which takes minutes.

import argparse
import pathlib
import sys

import petsc4py
from mpi4py import MPI

import pdeopt  # noqa: F401  (caps the threads, checks the launcher)

parser = argparse.ArgumentParser(description="Flow past a cylinder, and control of its wake")
parser.add_argument("--full", action="store_true", help="five periods of the vortex street on a fine mesh")
arguments, petsc_options = parser.parse_known_args()
petsc4py.init([sys.argv[0], *petsc_options])  # before anything loads PETSc, which reads its options only once

import matplotlib.figure
import numpy as np

from pdeopt.fem import output
from pdeopt.parallel import on_root, print_root
from pdeopt.plot import plot_fields
from pdeopt.problems.cylinder_control import WakeControl
from pdeopt.problems.cylinder_flow import REFERENCE_RE20, CylinderFlow
from pdeopt.problems.cylinder_mesh import cylinder_mesh
from pdeopt.problems.cylinder_unsteady import UnsteadyCylinderFlow

comm = MPI.COMM_WORLD
folder = pathlib.Path(__file__).resolve().parent.parent / "out_cylinder_flow"

# ## Reynolds number 20: three numbers
#
# Taylor-Hood elements of degree 2 and 1 on a mesh that Gmsh makes, its edges curved along the cylinder; Newton's
# method with MUMPS. Drag and lift are the residual of the momentum equation at the cylinder.

steady = CylinderFlow(cylinder_mesh(comm, 64), reynolds=20.0)
newton = steady.solve()
forces = steady.forces()
errors = {name: abs(getattr(forces, name) / getattr(REFERENCE_RE20, name) - 1.0) for name in vars(forces)}
print_root(comm, f"Reynolds number 20, {newton.quantities['unknowns']} unknowns, {newton.iterations} Newton steps")
for name, error in errors.items():
    print_root(comm, f"  {name:13}  {getattr(forces, name):.8f}  {100.0 * error:.4f} % from the reference")

# ## Reynolds number 40: the wake, with and without control

case = WakeControl(cylinder_mesh(comm, 24), reynolds=40.0, alpha=1e-2)
objective, drag, resting_vorticity = case.problem.objective_value(), case.flow.forces().drag, case.flow.vorticity()
report = case.problem.solve()
print_root(comm, report)
change = f"objective {objective:.4f} -> {report.quantities['objective']:.4f}"
print_root(comm, f"{change}, drag {drag:.3f} -> {case.flow.forces().drag:.3f}")

# ## Reynolds number 100: the vortex street
#
# From rest it would take many periods to appear. Here the motion starts with the steady flow around a cylinder that
# rotates with 22 rad/s, and is stopped: that is about as far from the unstable symmetric flow as the street will be.

edges, step, duration = (96, 1 / 200, 1.6) if arguments.full else (32, 1 / 50, 1.04)
flow = CylinderFlow(cylinder_mesh(comm, edges), reynolds=100.0)
flow.rotate_cylinder(22.0)
flow.solve()
flow.rotate_cylinder(0.0)
street = UnsteadyCylinderFlow(flow, step)
street.advance(round(duration / step))
history = street.history()
shedding = history.shedding(periods=2 if arguments.full else 1)
print_root(comm, f"Reynolds number 100, {edges} edges around the cylinder, steps of {step:g} s:")
lift = f"lift from {shedding.lift_min:.3f} to {shedding.lift_max:.3f}"
print_root(comm, f"  largest drag {shedding.drag_max:.3f}, {lift}, Strouhal number {shedding.strouhal:.4f}")

# ## Pictures, and files for ParaView

resting, controlled = (solution.sub(0).collapse() for solution in (case.uncontrolled, case.flow.solution))
fields = {"velocity_at_rest": resting, "velocity": controlled, "surface_velocity": case.control}
output.write_fields(folder / "fields", fields)
speeds = {"speed, cylinder at rest (m/s)": resting, "speed, controlled (m/s)": controlled}
plot_fields(speeds, folder / "wake.png", limits=dict.fromkeys(speeds, (0.0, 1.2)), length_unit="m")
curls = {"vorticity, cylinder at rest (1/s)": resting_vorticity, "vorticity, controlled (1/s)": case.flow.vorticity()}
limits = dict.fromkeys(curls, (-25.0, 25.0))
plot_fields(curls, folder / "vorticity.png", diverging=curls, limits=limits, length_unit="m")
label = "vorticity at Reynolds number 100 (1/s)"
limits = {label: (-80.0, 80.0)}
plot_fields({label: flow.vorticity()}, folder / "street.png", diverging=[label], limits=limits, length_unit="m")
angles, surface_velocity = case.surface_velocity()


def draw_curves() -> None:
    """Draw the forces over time and the control around the cylinder, on rank 0."""
    figure = matplotlib.figure.Figure((8.0, 3.0), dpi=150, layout="constrained")
    over_time, around = figure.subplots(1, 2)
    over_time.plot(history.times, history.drag, label="drag")
    over_time.plot(history.times, history.lift, label="lift")
    over_time.set(xlabel="time (s)", ylabel="coefficient", title="Reynolds number 100", ylim=(-1.5, 4.5))
    over_time.legend(frameon=False, ncols=2)
    around.plot(np.degrees(angles), surface_velocity)
    around.set(xlabel="degrees from the rear, anticlockwise", ylabel="velocity / U", title="control of the surface")
    figure.savefig(folder / "forces.png")


on_root(comm, draw_curves)
print_root(comm, f"wrote {folder.name}/: fields for ParaView, wake.png, vorticity.png, street.png, forces.png")

assert max(errors.values()) <= 1e-3
assert report.converged
assert report.quantities["objective"] <= 0.1 * objective
assert shedding.lift_max - shedding.lift_min >= 1.5
