# # Where to put the copper
#
# A square plate is heated evenly and cooled along its left and upper edge. There is copper for 40 % of it; the rest
# conducts a thousandth as well. Which share $a$ of copper at each point keeps the plate coolest?
#
# $$ \min \int f\,T + \alpha\,|\nabla a|^2\,dx \quad\text{subject to}\quad -\nabla\cdot(k\,\nabla T) = f, \quad
#    k = \epsilon + (1-\epsilon)\,a^p, \quad 0 \le a \le 1, \quad \int a\,dx = 0.4. $$
#
# The power p makes half-filled places a bad bargain, so that the copper gathers in veins. With p = 1 the problem is
# convex, with a large p it has many local minima: it begins at 1, and each minimum is the start for the next p. All
# quantities are dimensionless.
#
# Run it with `mpirun -n 2 python demos/topology.py`.

import itertools
import pathlib

from mpi4py import MPI

import dolfinx

from pdeopt.animate import Animation
from pdeopt.fem import output
from pdeopt.optimise import minimise
from pdeopt.parallel import print_root
from pdeopt.plot import plot_convergence, plot_fields
from pdeopt.problems import PoissonTopology

comm = MPI.COMM_WORLD
folder = pathlib.Path(__file__).resolve().parent.parent / "out_topology"
POWERS = (1.0, 1.5, 2.0, 2.25, 2.5, 2.75, 3.0)

# ## The plate
#
# In the published problem alpha is 1e-8 and p is 5: there every step finds another hollow of the landscape. With more
# smoothing Newton's method arrives at a minimum, with a KKT residual a millionth of that at the start.

case = PoissonTopology(dolfinx.mesh.create_unit_square(comm, 40, 40), power=POWERS[-1], alpha=1e-6)
problem = case.problem
functional = problem.reduced_functional()
evenly = functional.create_vector()
functional.get_control(evenly)
objective = functional.value(evenly)
print_root(comm, f"objective with the copper spread evenly: {objective:.4e}")

# ## From p = 1 to 3, and a film of it
#
# The interior point method keeps a between its bounds; where the Hessian is not positive, its factorisation says so,
# and the matrix is corrected.

designs, histories, frames, copper = {}, {}, itertools.count(), {"share of copper": case.control}
limits = {"share of copper": (0.0, 1.0)}
with Animation(copper, folder / "design.gif", title="Copper", limits=limits, time_unit="steps") as film:

    def observe(step, norm):
        """Make a frame of every fourth step."""
        if (frame := next(frames)) % 4 == 0:
            film.add(frame)

    for power in POWERS:
        case.penalty.value = power
        report = minimise(problem, rtol=1e-6, max_iterations=400, monitor=observe)
        histories[f"p = {power:g}"] = report.residuals
        print_root(comm, f"p = {power:g}: {report.iterations} steps, objective {report.quantities['objective']:.4e}")
        if power in (1.0, 2.0, 3.0):
            designs[f"share of copper, p = {power:g}"] = case.control.copy()
print_root(comm, report)

# ## Pictures, and files for ParaView

output.write_fields(folder / "fields", {"copper": case.control, "temperature": case.problem.state})
plot_fields(designs, folder / "design.png", limits=dict.fromkeys(designs, (0.0, 1.0)))
plot_fields({"temperature": case.problem.state}, folder / "a_temperature.png", colour_map="inferno")
plot_convergence(histories, folder / "convergence.png", "step", "KKT residual, Riesz norm", comm=comm)
print_root(
    comm, f"wrote {folder.name}/: design.gif, fields for ParaView, design.png, a_temperature.png, convergence.png"
)

assert report.converged
assert report.quantities["objective"] < 0.6 * objective
assert abs(case.problem.system.constraint_values()[0]) < 1e-6
