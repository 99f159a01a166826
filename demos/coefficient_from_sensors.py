# # A coefficient from 20 sensors, and how far to trust it
#
# Somewhere in a plate conducts badly. The plate is heated evenly, its edge is kept cold, and 20 sensors read its
# temperature $y$ with an error of 1 %. The logarithm $m$ of the conductivity is wanted at 1,089 nodes:
#
# $$ \min\ \frac{1}{2s} \sum_{i=1}^s (y(x_i) - d_i)^2 + \frac{\gamma}{2} \int |\nabla m|^2 + \epsilon\,(m - m_0)^2\,dx
#    \quad\text{subject to}\quad -\nabla\cdot(e^m\,\nabla y) = 1. $$
#
# The second term is a Gaussian prior, so that the minimum is the most probable $m$, and the Hessian there says how
# certain it is. Few readings make a Hessian that differs from the prior's in few directions: one for each sensor. All
# quantities are dimensionless.
#
# Run it with `mpirun -n 2 python demos/coefficient_from_sensors.py`.

import pathlib

from mpi4py import MPI

import dolfinx
import numpy as np

from pdeopt.fem import forms, output
from pdeopt.optimise import ControlProgram, minimise
from pdeopt.optimise.eigenpair_rules import sensor_wise
from pdeopt.optimise.low_rank import Metric, prior_matrix
from pdeopt.optimise.sensors import sensor_eigenpairs
from pdeopt.parallel import print_root
from pdeopt.plot import plot_convergence, plot_fields
from pdeopt.problems import CoefficientInversion

comm = MPI.COMM_WORLD
folder = pathlib.Path(__file__).resolve().parent.parent / "out_coefficient_from_sensors"
SENSORS, NOISE, GAMMA = 20, 0.01, 1e-9

# ## The most probable coefficient
#
# State, coefficient and adjoint move together: AdaSketch-Newton in the space of all three, from a constant.

mesh = dolfinx.mesh.create_unit_square(comm, 32, 32)
case = CoefficientInversion(mesh, SENSORS, gamma=GAMMA, epsilon=10.0, noise=NOISE)
problem, guess = case.problem, case.control.x.array.copy()
report = minimise(problem)
print_root(comm, report)
print_root(comm, f"error of m: {case.error():.1%} of that of the guess")

# ## How certain it is
#
# With the prior's Hessian R, one adjoint solve a sensor gives all directions v in which the readings add to it, and by
# how much: (H - R) v = l R v. The inverse of H, in units of the noise, is the covariance of m. Its diagonal is drawn as
# the share of the prior's standard deviation that is left where the sensors are, and are not.

functional = problem.reduced_functional(gauss_newton=True)
control = functional.create_vector()
functional.get_control(control)
prior = prior_matrix(case.problem.system)
metric = Metric(prior)
rows, weights = case.observations()
pairs = sensor_eigenpairs(functional.hessian(control), metric, rows, weights)
first, last = control.getOwnershipRange()
prior_variance = np.diagonal(metric.solve(np.eye(control.getSize())[first:last])[:, first:last])
variance = prior_variance - pairs.vectors**2 @ (pairs.values / (1.0 + pairs.values))
left = dolfinx.fem.Function(case.control.function_space, name="uncertainty left")
forms.set_function(left, np.sqrt(variance / prior_variance))
least = comm.allreduce(float(left.x.array.min()), op=MPI.MIN)
print_root(comm, f"{np.count_nonzero(pairs.values > 1.0)} of {SENSORS} directions say more than the prior does")
print_root(comm, f"uncertainty left: {least:.2f} of the prior's where the readings say most")

# ## The same without a factorisation of the whole
#
# Where the optimality system is too large to factorise, state and adjoint are eliminated, and conjugate gradients find
# the step of m: two solves with the state equation an iteration. With the sensors' directions as preconditioner, which
# cost a solve each and are renewed only when it pays, they take few.

estimate, spent = case.control.copy(), {}
for method, rule in (("reduced_hessian", None), ("low_rank", sensor_wise(rows, weights))):
    case.control.x.array[:] = guess
    for function in (case.state, case.problem.adjoint):
        function.x.array[:] = 0.0
    program = ControlProgram(problem, method, rule)
    row = minimise(program).quantities
    program.destroy()
    spent[method] = row["state solves"]
    print_root(comm, f"{method}: {spent[method]} state solves, objective {row['objective']:.8e}")

# ## Pictures, and files for ParaView

output.write_fields(folder / "fields", {"true m": case.truth, "m": estimate, "uncertainty left": left})
shown = {"true m": case.truth, f"m from {SENSORS} sensors": estimate}
limits = dict.fromkeys(shown, (0.3, 2.5)) | {"uncertainty left (prior = 1)": (0.0, 1.0)}
plot_fields({**shown, "uncertainty left (prior = 1)": left}, folder / "fields.png", limits=limits)
plot_convergence(
    {"AdaSketch-Newton": report.residuals}, folder / "convergence.png", "step", "KKT residual, Riesz norm", comm=comm
)
print_root(comm, f"wrote {folder.name}/: fields for ParaView, fields.png, convergence.png")

assert report.converged
assert spent["low_rank"] < 0.5 * spent["reduced_hessian"]
assert 0.0 < least < 0.9
