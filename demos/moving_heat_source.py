# # A heat source that moves over a plate, in a millisecond
#
# A plate with cold edges conducts better where it is hot, and a source of heat may stand anywhere in its middle:
#
# $$ -\nabla\cdot((1 + u^2)\,\nabla u) = A\, e^{-|x - c|^2 / (2 s^2)}, \qquad u = 0 \text{ on the edge}. $$
#
# Who wants the temperature for thousands of places $c$ and amplitudes $A$ need not solve the equation thousands of
# times. 60 solutions give a basis; few cells, weighted, stand for all; and the residual of the full equation says how
# far each answer can be wrong. All quantities are dimensionless.
#
# Run it with `mpirun -n 2 python demos/moving_heat_source.py`.

import pathlib
import time

from mpi4py import MPI

import dolfinx
import numpy as np
from dolfinx import fem

from pdeopt.fem import forms, output
from pdeopt.parallel import print_root
from pdeopt.plot import plot_convergence, plot_fields
from pdeopt.problems import MovingSource
from pdeopt.reduced_order import (
    Certificate,
    CoordinateInterpolation,
    FullResidual,
    HyperReducedSystem,
    InnerProduct,
    ReducedModel,
    Snapshots,
    empirical_cubature,
    proper_orthogonal_decomposition,
    sampled_stability,
)

comm = MPI.COMM_WORLD
folder = pathlib.Path(__file__).resolve().parent.parent / "out_moving_heat_source"

# ## 60 solutions, and the modes that they share

mesh = dolfinx.mesh.create_unit_square(comm, 96, 96)
case = MovingSource(mesh)
solver = case.solver()
inner_product = InnerProduct(case.space, "h1_seminorm", case.bcs)
snapshots = Snapshots(inner_product, parameter_size=3)
for parameter in case.parameters(60, "demo.training"):
    case.set_parameter(parameter)
    case.u.x.array[:] = 0.0
    solver.solve()
    snapshots.append(case.u, parameter)
basis = proper_orthogonal_decomposition(snapshots, modes=30)
decay = basis.singular_values / basis.singular_values[0]
print_root(comm, f"singular values 10, 20, 30 of the first: {decay[9]:.1e}, {decay[19]:.1e}, {decay[29]:.1e}")

# ## Few cells for all
#
# Weights are found such that the weighted sum over the chosen cells gives the reduced residual that all cells give, at
# every solution of the training set. They are positive, and they sum up to the area.


def training_states():
    for column, parameter in zip(snapshots.columns.T, snapshots.parameters, strict=True):
        case.set_parameter(parameter)
        forms.set_function(case.u, column)
        yield


cubature = empirical_cubature(case.residual, case.u, basis, training_states(), 1e-4)
cells = mesh.topology.index_map(2).size_global
print_root(comm, f"cubature: {cubature.size} of {cells} cells")

# ## Answers with a bound
#
# The reduced system costs the same on any mesh. The certificate is a residual of the full equation and a solve with a
# matrix factorised once; the stability constant that it needs comes from some of the training solutions.

samples = (state for number, state in enumerate(training_states()) if number % 12 == 0)
stability = sampled_stability(case.residual, case.u, inner_product, samples, case.bcs)
interpolation = CoordinateInterpolation(snapshots.parameters, basis.coordinates(snapshots.columns))
model = ReducedModel(
    case.u,
    basis,
    HyperReducedSystem(case.residual, case.u, basis, cubature, bcs=case.bcs),
    start=lambda: interpolation(np.append(case.centre.value, case.amplitude.value)),
    certificate=Certificate(FullResidual(case.residual, case.u, basis, case.bcs), stability),
)
errors, bounds, seconds = [], [], {"full": [], "reduced": []}
for parameter in case.parameters(20, "demo.unseen"):
    case.set_parameter(parameter)
    report = model.solve()
    seconds["reduced"].append(report.seconds["reduced solve"])
    bounds.append(report.quantities["relative error, certified"])
    answer = forms.owned_values(case.u).copy()
    case.u.x.array[:] = 0.0
    comm.Barrier()
    started = time.perf_counter()
    solver.solve()
    seconds["full"].append(time.perf_counter() - started)
    pair = np.column_stack([forms.owned_values(case.u) - answer, forms.owned_values(case.u)])
    errors.append(float(np.divide(*inner_product.norms(pair))))
print_root(comm, report)
median = {name: float(np.median(values)) for name, values in seconds.items()}
print_root(comm, f"20 unseen sources: errors up to {max(errors):.1e}, bounds up to {max(bounds):.1e}")
print_root(comm, f"full solve {median['full']:.3f} s, reduced solve {1e3 * median['reduced']:.2f} ms")

# ## Pictures, and files for ParaView

temperature, error, mode = case.u.copy(), fem.Function(case.space), fem.Function(case.space)
forms.set_function(error, forms.owned_values(case.u) - answer)
forms.set_function(mode, basis.modes[:, 5])
owned = mesh.topology.index_map(2).size_local
chosen = np.isin(mesh.topology.original_cell_index[:owned], cubature.cells)
nodes = fem.Function(case.space)
nodes.x.array[case.space.dofmap.list[:owned][chosen].ravel()] = 1.0
nodes.x.scatter_reverse(dolfinx.la.InsertMode.add)
nodes.x.array[:] = np.minimum(nodes.x.array, 1.0)
nodes.x.scatter_forward()
output.write_fields(folder / "fields", {"temperature": temperature, "error": error, "mode": mode, "nodes": nodes})
pictures = {"temperature (last source)": temperature, "sixth mode": mode, "nodes of the chosen cells": nodes}
signed = ("sixth mode", "error of the reduced answer")
plot_fields({**pictures, "error of the reduced answer": error}, folder / "fields.png", diverging=signed)
curves = {"certified bound": sorted(bounds), "true error": [errors[number] for number in np.argsort(bounds)]}
plot_convergence(
    curves, folder / "convergence.png", xlabel="unseen sources, by their bound", ylabel="relative error", comm=comm
)
print_root(comm, f"wrote {folder.name}/: fields for ParaView, fields.png, convergence.png")

assert all(error <= bound for error, bound in zip(errors, bounds, strict=True))
assert max(errors) < 0.02
assert median["full"] > 10.0 * median["reduced"]
