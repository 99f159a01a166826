# # A thin plate that radiates: a nonlinear control problem, solved in three ways
#
# A thin plate loses heat by radiation from its faces. With the absolute temperature y relative to the surroundings', a
# conduction number k and a radiation number s, its steady temperature obeys
#
# $$ -\nabla \cdot (k \nabla y) + s (y^4 - 1) = u $$
#
# with insulated edges. We look for the heating u, between 0 and a maximum, that brings a disc of the plate to 1.5 times
# the temperature of the surroundings and leaves the rest as cold as it can be:
#
# $$ J(y, u) = \tfrac12 \int (y - y_d)^2 \, dx + \tfrac{\alpha}{2} \int u^2 \, dx . $$
#
# Nothing but J and the state equation is written down below. pdeopt derives the adjoint equation, gradient and Hessian;
# the Taylor test at the start shows that they belong together. Then three methods look for the same optimum: Newton's
# method on the whole optimality system, and two methods of PETSc's TAO that move the heating alone.
#
# Run it with `mpirun -n 2 python demos/radiating_plate.py`.

import pathlib

from mpi4py import MPI

import dolfinx
import numpy as np
import ufl

import pdeopt
from pdeopt.fem import output
from pdeopt.parallel import print_root
from pdeopt.plot import plot_convergence, plot_fields

# ## The problem in UFL

comm = MPI.COMM_WORLD
mesh = dolfinx.mesh.create_unit_square(comm, 40, 40, diagonal=dolfinx.mesh.DiagonalType.crossed)
space = dolfinx.fem.functionspace(mesh, ("Lagrange", 1))
conduction, radiation, alpha, largest_heating = 0.05, 0.5, 1e-3, 3.0


def radiating_plate():
    """Return the control problem, its temperature and its heating, at the temperature of the surroundings."""
    temperature = dolfinx.fem.Function(space, name="temperature")
    heating = dolfinx.fem.Function(space, name="heating")
    temperature.x.array[:] = 1.0
    test = ufl.TestFunction(space)
    x = ufl.SpatialCoordinate(mesh)
    in_disc = ufl.conditional(ufl.lt((x[0] - 0.5) ** 2 + (x[1] - 0.5) ** 2, 0.25**2), 1.0, 0.0)
    target = 1.0 + 0.5 * in_disc
    dx = ufl.dx(metadata={"quadrature_degree": 6})
    problem = pdeopt.ControlProblem(
        objective=0.5 * (temperature - target) ** 2 * dx + 0.5 * alpha * heating**2 * dx,
        state_equation=conduction * ufl.inner(ufl.grad(temperature), ufl.grad(test)) * dx
        + (radiation * (temperature**4 - 1.0) - heating) * test * dx,
        state=temperature,
        control=heating,
        bounds=(0.0, largest_heating),
    )
    return problem, temperature, heating


# ## Are the derivatives right?
#
# The remainder of j(u + h d) after the gradient must fall like h squared, after the Hessian like h cubed.

problem, temperature, heating = radiating_plate()
heating.x.array[:] = 1.0
taylor = problem.taylor_test()
print_root(comm, taylor)
assert taylor.passed

# ## Three ways to the optimum
#
# Newton's method on the optimality system treats the bounds by active sets. "bntr" is Newton's method with a trust
# region on the heating, its Hessian applied by two linearised solves; "bqnls" needs gradients alone.

residuals, objectives = {}, {}
for label, method in {
    "Newton on the optimality system": "direct",
    "TAO bntr (Hessian actions)": "bntr",
    "TAO bqnls (gradients)": "bqnls",
}.items():
    problem, temperature, heating = radiating_plate()
    report = problem.solve(method=method)
    print_root(comm, f"\n{label}\n{report}")
    residuals[label] = [residual / report.residuals[0] for residual in report.residuals]
    objectives[label] = report.quantities["objective"]
    assert report.converged

assert np.ptp(list(objectives.values())) <= 1e-8 * max(objectives.values())

# ## Pictures, and files for ParaView

folder = pathlib.Path(__file__).resolve().parent.parent / "out_radiating_plate"
output.write_fields(folder / "fields", {"temperature": temperature, "heating": heating})
plot_fields(
    {"temperature (surroundings: 1)": temperature, "heating (scaled, at most 3)": heating},
    folder / "radiating_plate.png",
    title="Heating a radiating plate",
    colour_map="inferno",
)
plot_convergence(
    residuals, folder / "convergence.png", "iteration", "KKT residual or projected gradient, relative", comm=comm
)
print_root(comm, f"\nwrote {folder.name}/: fields for ParaView, radiating_plate.png, convergence.png")
