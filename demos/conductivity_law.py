# # A conductivity law from boundary records
#
# How well a material conducts heat often depends on its temperature, and the law $k(T)$ is what one would like to know.
# Inside the body nothing can be measured; at its surface, heaters and thermometers can be attached. Here a square is
# cooled at the bottom and heated on its other sides, with another pattern of heat flux in each of eight records, and 47
# thermometers on the heated sides read the temperature with an error of 0.5 % of its range:
#
# $$-\nabla\cdot(k(T)\,\nabla T) = 0, \qquad T = 0 \text{ at the bottom}, \qquad k(T)\,\partial_n T = g
# \text{ on the other sides}.$$
#
# A small network takes the place of $k$ *inside* the equation. DOLFINx assembles and PETSc solves as ever; `PDELayer`
# makes the solve a function of torch, whose gradient by the network's weights comes from the adjoint equation. So the
# network is trained on what was measured, the temperatures at the surface, although it is never shown a value of $k$.
#
# Run it with `mpirun -n 2 python demos/conductivity_law.py`.

import pathlib

from mpi4py import MPI

import matplotlib.figure
import numpy as np
import torch

from pdeopt.fem import output
from pdeopt.learn import NetworkCoefficient, PDELayer, Trainer, TrainerSettings, mlp, save_weights, sum_over_ranks
from pdeopt.learn.layers import Normalise, Positive
from pdeopt.parallel import on_root, print_root
from pdeopt.plot import plot_fields
from pdeopt.problems import ConductivityRecords, make_records, true_conductivity

comm = MPI.COMM_WORLD
folder = pathlib.Path(__file__).resolve().parent.parent / "out_conductivity_law"

# ## The records
#
# They are computed on a finer mesh of higher degree, and spoiled with noise.

loads, readings, visited = make_records(comm, 8, noise=0.005)
print_root(comm, f"{readings.size} readings of temperatures between {readings.min():.2f} and {readings.max():.2f}")

# ## The network in the form
#
# One hidden layer, and an output that cannot become negative. `NetworkCoefficient` stands in the form like any other
# coefficient; Newton's method gets its derivative by $T$.

model = ConductivityRecords(comm, cells=16)
centre, half_range = 0.5 * (readings.max() + readings.min()), 0.5 * np.ptp(readings)
network = torch.nn.Sequential(Normalise(centre, half_range), mlp(1, 1, width=6, depth=1), Positive(0.01))
k = NetworkCoefficient(network, model.temperature, quadrature_degree=4)
layer = PDELayer(model.residual(k), model.temperature, model.bcs, controls=[model.loads])


# ## Training
#
# The loss is the mean square of what the thermometers disagree about. Each rank owns some of them; `sum_over_ranks`
# makes one number of it.


def loss(_, batch):
    """Return the mean square misfit of some records."""
    given, measured = batch
    misfit = layer(given)[:, model.sensors] - measured[:, model.owned]
    return sum_over_ranks((misfit**2).sum(), comm) / measured.numel()


records = (torch.from_numpy(loads), torch.from_numpy(readings))
settings = TrainerSettings(
    optimizer="LBFGS",
    optimizer_options={"max_iter": 15, "line_search_fn": "strong_wolfe"},
    learning_rate=1.0,
    epochs=4,
    shuffle=False,
)
training = Trainer(network, loss, settings, comm, mode="pde_parallel").fit(records)
print_root(comm, training)
print_root(comm, layer.report)

# ## The law
#
# It is judged where 99 % of the readings lie.

temperature = np.linspace(*np.quantile(readings, [0.005, 0.995]), 400)
with torch.no_grad():
    learned = network(torch.from_numpy(temperature)[:, None])[:, 0].numpy()
truth = true_conductivity(temperature)
error = np.linalg.norm(learned - truth) / np.linalg.norm(truth)
misfit = training.training_losses[-1] ** 0.5 / np.ptp(readings)
print_root(comm, f"misfit of the readings {misfit:.2%} of their range, error of the law {error:.2%}")

# ## Weights, pictures, and a file for ParaView
#
# The weights are kept with a card that says where they come from.

with torch.no_grad():
    layer(records[0][0])  # leaves its solution in the function
folder.mkdir(exist_ok=True)
architecture = {"inputs": 1, "outputs": 1, "width": 6, "depth": 1, "output": "softplus"}
card = training.card("conductivity law", architecture, "python demos/conductivity_law.py", {"error of the law": error})
save_weights(folder / "law.safetensors", network, card, comm)
output.write_fields(folder / "fields", {"temperature": model.temperature})
plot_fields({"temperature": model.temperature}, folder / "first_record.png")


def draw_law():
    """Draw the law that was learned beside the true one, on rank 0."""
    figure = matplotlib.figure.Figure((6.0, 3.6), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.plot(temperature, truth, color="black", label="true law")
    axes.plot(temperature, learned, "--", color="tab:orange", linewidth=2.0, label="learned from the boundary")
    axes.hist(readings.ravel(), bins=60, weights=np.full(readings.size, 8.0 / readings.size), color="0.85",
              label="readings (frequency)")  # fmt: skip
    axes.set(xlabel="temperature", ylabel="conductivity k", ylim=(0.0, 2.6), xlim=(temperature[0], temperature[-1]))
    axes.legend(frameon=False, loc="upper left")
    figure.savefig(folder / "law.png")


on_root(comm, draw_law)
print_root(comm, f"wrote {folder.name}/: fields for ParaView, law.safetensors, first_record.png, law.png")

# ## What must hold

assert error < 0.05
assert misfit < 0.006
