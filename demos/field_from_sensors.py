# # A field from 25 sensors
#
# How well does the ground conduct, and where? Four sources are switched on one after the other, and at 25 places the
# state that each of them makes is read, with an error of 1 %. The states satisfy
#
# $$-\nabla\cdot(e^m\,\nabla u_k) = f_k, \qquad u_k = 0 \text{ on the boundary},$$
#
# and the field $m$ is wanted: 100 numbers for 625 unknowns. Something has to fill the gap. Here $m$ is a network of
# the coordinates with two hidden layers, which prefers smooth fields; its weights are what is sought. `PDELayer` makes
# the four solves a function of $m$, and torch's optimiser sees through network and equation alike.
#
# Run it with `mpirun -n 2 python demos/field_from_sensors.py`.

import pathlib

from mpi4py import MPI

import dolfinx
import numpy as np
import torch

from pdeopt.fem import output
from pdeopt.learn import PDELayer, Replicated, Trainer, TrainerSettings, mlp, sum_over_ranks
from pdeopt.parallel import print_root
from pdeopt.plot import plot_fields
from pdeopt.problems import FieldRecovery

comm = MPI.COMM_WORLD
folder = pathlib.Path(__file__).resolve().parent.parent / "out_field_from_sensors"

# ## The readings
#
# A tensor of the layer holds the degrees of freedom that this rank owns; a leading axis is a batch, here of sources.

model = FieldRecovery(comm, cells=24)
layer = PDELayer(model.residual(), model.state, model.bcs, controls=[model.log_diffusivity, model.source])
truth, sources = torch.from_numpy(model.truth()), torch.from_numpy(model.source_values())
with torch.no_grad():
    exact = layer(truth, sources)[:, model.sensor_dofs]
readings = torch.from_numpy(model.add_noise(exact.numpy(), noise=0.01))
noise = 0.01 * float(readings.abs().max())

# ## The network and its training
#
# `Replicated` hands the same weights to every rank, each of which evaluates the field at its own vertices, and adds up
# their gradients. Losses are in units of the noise: at 1 the readings are explained as well as they deserve.

network = Replicated(mlp(2, 1, width=24, depth=2), comm)
vertices = torch.from_numpy(2.0 * model.coordinates - 1.0)


def loss(net, _):
    """Return the mean square misfit over the square of the noise."""
    states = layer(net(vertices)[:, 0], sources)
    misfit = (states[:, model.sensor_dofs] - readings[:, model.owned]) / noise
    return sum_over_ranks((misfit**2).sum(), comm) / readings.numel()


settings = TrainerSettings(
    optimizer="LBFGS",
    optimizer_options={"max_iter": 80, "line_search_fn": "strong_wolfe"},
    learning_rate=1.0,
    epochs=4,
)
training = Trainer(network, loss, settings, comm, mode="pde_parallel").fit()
print_root(comm, training)
print_root(comm, layer.report)

# ## What came out

with torch.no_grad():
    field = network(vertices)[:, 0].numpy()
    misfit = float(loss(network, None)) ** 0.5
error = model.error(field)
print_root(comm, f"misfit {misfit:.2f} of the noise, error of the field {error:.1%}")

fields = {}
for name, values in (("true m", model.truth()), ("m from 25 sensors", field)):
    function = dolfinx.fem.Function(model.space, name=name.replace(" ", "_"))
    function.x.array[: values.size] = values
    function.x.scatter_forward()
    fields[name] = function
output.write_fields(folder / "fields", {function.name: function for function in fields.values()})
plot_fields(fields, folder / "fields.png")
with torch.no_grad():
    layer(torch.from_numpy(field), sources[0])  # leaves its solution in the function
plot_fields({"state of the first source": model.state}, folder / "a_state.png")
print_root(comm, f"wrote {folder.name}/: fields for ParaView, fields.png, a_state.png")

# ## What must hold

assert misfit < 1.3
assert error < 0.5
assert np.all(np.isfinite(field))
