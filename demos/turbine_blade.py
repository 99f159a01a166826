# # A turbine blade under flights that nobody foresaw
#
# The metal of a cooled turbine blade creeps where it is hot: the rate of the plastic strain $p$ is
#
# $$ \dot p = \left(\frac{\sigma_{eq} - R(p)}{K(T)}\right)^{n(T)}, \qquad
#    \nabla\cdot\sigma = 0, \quad \sigma = C(T) : (\varepsilon(u) - \varepsilon_{th}(T) - \varepsilon_p), $$
#
# where $\sigma_{eq}$ is the equivalent stress without the back stress, and how much strain a flight leaves depends on
# the whole of its temperature history: 13 numbers here. A reduced model answers in few coordinates, with the internal
# variables at few points; it is trained with flights at four fifths of the thrust, and has to answer for full thrust.
# Where it cannot, the correction of its answer says so, and one step of the full model teaches it what it lacks.
#
# Run it with `mpirun -n 2 python demos/turbine_blade.py`.

import pathlib
import time

from mpi4py import MPI

import numpy as np
import ufl
from dolfinx import fem

from pdeopt.fem import output
from pdeopt.parallel import print_root
from pdeopt.plot import plot_convergence, plot_fields
from pdeopt.problems import BladeSection
from pdeopt.reduced_order import (
    Adaptive,
    EnrichmentSettings,
    InnerProduct,
    InternalForces,
    ReducedEquilibrium,
    Snapshots,
    proper_orthogonal_decomposition,
    replay,
    select_cells,
)

comm = MPI.COMM_WORLD
root = pathlib.Path(__file__).resolve().parent.parent
folder = root / "out_turbine_blade"

# ## Ten flights, and the modes that they share
#
# Displacements are measured by the elastic energy that they would have in a blade of 800 degrees. Each is divided by
# the largest of its flight so far.

case = BladeSection(comm, root / "meshes" / "blade_section.msh")


def energy(u, v):
    strain = ufl.sym(ufl.grad(u)), ufl.sym(ufl.grad(v))
    return 150e9 * (ufl.inner(*strain) / 1.3 + 0.3 / 0.52 * ufl.div(u) * ufl.div(v)) * ufl.dx


inner_product = InnerProduct(case.space, energy, case.bcs)
snapshots = Snapshots(inner_product)
training = case.parameters(10, "demo.training")
training[:, :4] *= 0.8
flights = [case.solve_trajectory(parameter) for parameter in training]
for flight in flights:
    snapshots.extend(flight.unknowns / np.maximum.accumulate(inner_product.norms(flight.unknowns)))
basis = proper_orthogonal_decomposition(snapshots, modes=20)
decay = basis.singular_values / basis.singular_values[0]
print_root(comm, f"singular values 5, 10, 20 of the first: {decay[4]:.1e}, {decay[9]:.1e}, {decay[19]:.1e}")

# ## Few cells for all, and some in reserve
#
# The body is led through the projections of its flights on the modes, so that the cells are chosen for the internal
# variables that the reduced model will see. Some more cells stand by, to get weights when modes are added.

accuracy = 5e-4
forces = InternalForces(case.residual, case.u, basis, case.internal.tangent(case.residual), accuracy / 4.0)
for parameter, flight in zip(training, flights, strict=True):
    case.set_parameter(parameter)
    case.driver.reset()
    for _ in replay(case.driver, flight.times, basis.expand(basis.coordinates(flight.unknowns))):
        forces.append()
forces.compress()
cubature = select_cells(forces, accuracy)
pool = select_cells(forces, accuracy / 4.0, start=cubature)
reduced = ReducedEquilibrium(case.residual, case.internal, basis, cubature, bcs=case.bcs, pool=pool)
cells = case.mesh.topology.index_map(2).size_global
print_root(comm, f"{basis.size} modes; cubature: {cubature.size} of {cells} cells, {reduced.pool.size} with reserve")

# ## Six flights at full thrust
#
# Each reduced answer is corrected twice by the full residual and an elastic matrix factorised once. How far this led is
# the estimate of the error. Where it exceeds a thousandth of the displacement, the full model solves this one step, and
# the part of its answer outside of the modes becomes a mode for all that follows. The plastic strain at the end of a
# flight is a harder test: it adds up what a steep function of the stress has left in 24 steps.

tolerance = 1e-3
adaptive = Adaptive(case.driver, reduced, forces, accuracy, EnrichmentSettings(tolerance))
errors, strain_errors, estimates, asked, seconds = [], [], [], [], {"full": 0.0, "reduced": 0.0}
name = "cumulated plastic strain"
for number, parameter in enumerate(case.parameters(6, "demo.unseen")):
    comm.Barrier()
    started = time.perf_counter()
    truth = case.solve_trajectory(parameter)
    seconds["full"] += time.perf_counter() - started
    answer = adaptive.march(truth.times)
    seconds["reduced"] += sum(answer.seconds.values())
    largest = np.maximum.accumulate(inner_product.norms(truth.unknowns))
    errors.append(inner_product.norms(answer.unknowns - truth.unknowns) / largest)
    strain, true_strain = case.internal.state()[name], truth.history[name][:, -1]
    peaks = [float(np.abs(values).max(initial=0.0)) for values in (strain - true_strain, true_strain)]
    strain_errors.append(comm.allreduce(peaks[0], MPI.MAX) / comm.allreduce(peaks[1], MPI.MAX))
    estimates.append(answer.estimates)
    asked.append(answer.full_steps)
    steps = ", ".join(str(step + 1) for step in np.flatnonzero(answer.full_steps)) or "none"
    model = adaptive.reduced
    print_root(
        comm,
        f"flight {number + 1}: error {errors[-1].max():.1e}, of the plastic strain {strain_errors[-1]:.1e}, "
        f"full steps: {steps}; {model.basis.size} modes, {model.cubature.size} cells",
    )
share, ratio = float(np.mean(asked)), seconds["reduced"] / seconds["full"]
print_root(comm, f"errors up to {np.max(errors):.1e}, of the plastic strain {max(strain_errors):.1e} of its peak")
print_root(comm, f"full model: {np.sum(asked)} of {np.size(asked)} steps; time {ratio:.2f} of what it needs for all")
print_root(comm, f"last of its solves: converged (reason {case.driver.solver.snes.getConvergedReason()})")

# ## Pictures, and files for ParaView


points = next(field for field in case.internal.history if field.name == name).function_space
owned = case.mesh.topology.index_map(2).size_local


def by_cell(values):
    """Return the field of one number a cell, shape (owned cells,)."""
    field = fem.Function(fem.functionspace(case.mesh, ("DG", 0)))
    field.x.array[field.function_space.dofmap.list[:owned, 0]] = values
    field.x.scatter_forward()
    return field


def mean_percent(values):
    """Return the means over the cells' points in per cent."""
    return by_cell(100.0 * values[points.dofmap.list[:owned]].mean(axis=1))


case.set_load(90.0)  # s, in the middle of the take-off
hot = fem.Function(case.influences[0].function_space)
hot.interpolate(fem.Expression(case.temperature, hot.function_space.element.interpolation_points))
chosen = np.isin(case.mesh.topology.original_cell_index[:owned], adaptive.reduced.cubature.cells)
strains = {"plastic strain": mean_percent(strain), "error": mean_percent(strain - true_strain)}
output.write_fields(folder / "fields", {"temperature": hot, **strains})
pictures = {
    "temperature at 90 s (K)": hot,
    "cumulated plastic strain (%)": strains["plastic strain"],
    "cells of the cubature": by_cell(chosen.astype(float)),
}
maps = {"temperature at 90 s (K)": "inferno", "cells of the cubature": "Greys"}
plot_fields(pictures, folder / "fields.png", colour_map=maps, length_unit="m")
curves = {"estimate": np.ravel(estimates), "error": np.ravel(errors)}
curves["solved by the full model"] = np.where(np.ravel(asked), curves["estimate"], 0.0)
curves["tolerance"] = np.full(np.size(asked), tolerance)
plot_convergence(curves, folder / "convergence.png", xlabel="steps of six flights, 24 each", ylabel="relative error")
print_root(comm, f"wrote {folder.name}/: fields for ParaView, fields.png, convergence.png")

assert np.max(errors) <= 2.0 * tolerance
assert max(strain_errors) <= 0.05
assert share <= 0.1
assert ratio <= 0.5
