# # A turbine blade under flights that nobody foresaw
#
# A cooled blade creeps where it is hot. How much, after a flight through take-off, cruise and landing, depends on nine
# numbers: the temperatures of the gas along three zones of the surface and of the coolant, what is left of them in
# cruise, and how long the take-off lasts. Each step of the full model solves the equilibrium of a viscoplastic alloy,
#
# $$ \int_\Omega \sigma(u, h) : \varepsilon(v)\,dx = 0, \qquad \dot p = \langle (\sigma_{eq}(\sigma - X) - R(p)) / K
#    \rangle^n, $$
#
# with a history $h$ at every quadrature point: plastic strain, its cumulated value $p$, and a back strain. The reduced
# model has few coordinates in place of $u$, and few cells in place of all. The whole body then follows its answer
# without a solve, and what is left of the equilibrium says how wrong the answer is. Where that is too much, the full
# model takes this one step, and the reduced model learns from it. Metres, seconds, kelvins and pascals.
#
# Run it with `mpirun -n 2 python demos/turbine_blade.py`.

import pathlib

from mpi4py import MPI

import numpy as np
from dolfinx import fem

from pdeopt.parallel import print_root
from pdeopt.plot import plot_convergence, plot_fields
from pdeopt.problems import BladeSection
from pdeopt.reduced_order import (
    Adaptive,
    Cubature,
    EnrichmentSettings,
    InnerProduct,
    InternalForces,
    ReducedEquilibrium,
    Snapshots,
    calibrate,
    proper_orthogonal_decomposition,
    replay,
    select_cells,
)

comm = MPI.COMM_WORLD
here = pathlib.Path(__file__).resolve().parent.parent
folder = here / "out_turbine_blade"
blade = BladeSection(comm, here / "meshes" / "blade_section.msh")
product = InnerProduct(blade.space, "h1_seminorm", blade.bcs)
TOLERANCE = 0.004

# ## Training
#
# Six flights of 24 steps give the modes; the states between them, and the forces in each cell, give a cubature: cells
# with weights that integrate the reduced equations as all cells do.

flights = blade.parameters(6, "training flights")
runs = [blade.solve_trajectory(flight) for flight in flights]
snapshots = Snapshots(product)
for run in runs:
    snapshots.extend(run.unknowns / np.maximum.accumulate(product.norms(run.unknowns)))
basis = proper_orthogonal_decomposition(snapshots, tolerance=3e-4)
forces = InternalForces(blade.residual, blade.u, basis, blade.internal.tangent(blade.residual), 7e-4)
for flight, run in zip(flights, runs, strict=True):
    blade.set_parameter(flight)
    blade.driver.reset()
    for _ in replay(blade.driver, run.times, basis.expand(basis.coordinates(run.unknowns))):
        forces.append()
forces.compress()
cubature = select_cells(forces, 1.5e-3)
cells = np.union1d(cubature.cells, select_cells(forces, start=cubature).cells)
pool = Cubature(cells, np.ones(cells.size), 0.0)
model = ReducedEquilibrium(blade.residual, blade.internal, basis, cubature, bcs=blade.bcs, pool=pool)
count = blade.mesh.topology.index_map(2).size_global
print_root(comm, f"{basis.size} modes, {cubature.size} of {count} cells")

# ## What the residual is worth
#
# Four further flights without learning calibrate the indicator: by the largest of their ratios of true error to
# residual, the error of another flight is bounded with a probability of 4/5.


def errors(states, truth):
    return product.norms(states - truth) / np.maximum.accumulate(product.norms(truth))


adaptive = Adaptive(blade.driver, model, forces, 1.5e-3, EnrichmentSettings(TOLERANCE, learn=False))
pairs = []
for flight in blade.parameters(4, "calibration flights"):
    truth = blade.solve_trajectory(flight)
    found = adaptive.march(truth.times)
    pairs.append((errors(found.unknowns, truth.unknowns).max(), found.estimates.max()))
factor = calibrate(*np.array(pairs).T, coverage=0.8).factor
adaptive.settings = EnrichmentSettings(TOLERANCE, factor)

# ## Unseen flights
#
# Five flights, one after another. What the model learns in one it knows in the next.

estimates, asked, worst = [], [], 0.0
for flight in blade.parameters(5, "unseen flights"):
    truth = blade.solve_trajectory(flight)
    found = adaptive.march(truth.times)
    worst = max(worst, errors(found.unknowns, truth.unknowns).max())
    estimates += list(found.estimates)
    asked += list(found.full_steps)
print_root(comm, f"{sum(asked)} of {len(asked)} steps were solved in full, {adaptive.reduced.basis.size} modes now")
print_root(comm, f"greatest error of all steps: {worst:.2%}")

# ## Pictures
#
# The estimated error of each step, with the steps that the full model solved, and the cumulated plastic strain after
# the last flight, which the whole body has kept.

strain = next(field for field in blade.internal.history if field.name == "cumulated plastic strain")
shown = fem.Function(fem.functionspace(blade.mesh, ("DG", 0)))
owned = blade.mesh.topology.index_map(2).size_local
means = strain.x.array[strain.function_space.dofmap.list[:owned]].mean(axis=1)
shown.x.array[shown.function_space.dofmap.list[:owned, 0]] = 100.0 * means
shown.x.scatter_forward()
plot_fields({"cumulated plastic strain (%)": shown}, folder / "fields.png", colour_map="inferno", length_unit="m")
full = [estimate if ask else 0.0 for estimate, ask in zip(estimates, asked, strict=True)]
plot_convergence(
    {"estimated error": estimates, "solved in full": full, "tolerance": [TOLERANCE] * len(full)},
    folder / "convergence.png", "step of the five flights", "relative error", comm=comm,
)  # fmt: skip
print_root(comm, f"wrote {folder.name}/: fields.png, convergence.png")

assert worst <= 2.0 * TOLERANCE
assert sum(asked) <= 0.2 * len(asked)
