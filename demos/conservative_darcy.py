# # A network that conserves mass
#
# Ground water flows from a well in one corner of a square to another in the opposite corner; nothing crosses the
# boundary. Darcy's law gives the flux, the permeability $k$ is another one each time:
#
# $$q = -k\,\nabla p, \qquad \operatorname{div} q = f, \qquad q\cdot n = 0 \text{ on the boundary}.$$
#
# A network learns the flux from 24 permeability fields, and predicts it for fields that it has not seen. Its prediction
# is not exact, and neither is the balance of any cell: water gets lost, or comes from nowhere. `pdeopt.conserve` puts
# the *nearest* flux in its place that balances in every cell, to rounding. That is a torch layer, so that the network
# can also be trained with the projection behind it. Then it need not learn what the projection knows.
#
# Run it with `mpirun -n 2 python demos/conservative_darcy.py`.

import pathlib

from mpi4py import MPI

import dolfinx
import matplotlib.colors
import matplotlib.figure
import numpy as np
import torch
import ufl

from pdeopt import conserve
from pdeopt.fem import output
from pdeopt.learn import Replicated, Trainer, TrainerSettings, mlp, sum_over_ranks
from pdeopt.parallel import on_root, print_root, random_stream
from pdeopt.plot import gather_grid

comm = MPI.COMM_WORLD
folder = pathlib.Path(__file__).resolve().parent.parent / "out_conservative_darcy"

# ## Permeability fields, and the flux through each
#
# The logarithm of $k$ is a sum of five waves with random amplitudes. The flux, in the Raviart-Thomas space of lowest
# order, is the one with the least dissipation $\int k^{-1} |q|^2$ among those that balance: with the weight $1/k$ the
# projection of zero is Darcy's flow itself, and computes what is learned from.

mesh = dolfinx.mesh.create_unit_square(comm, 20, 20)
fluxes, cellwise = (dolfinx.fem.functionspace(mesh, element) for element in (("RT", 1), ("DG", 0)))
owned = fluxes.dofmap.index_map.size_local
well, k, no_flux, flux = (dolfinx.fem.Function(space) for space in (cellwise, cellwise, fluxes, fluxes))
well.interpolate(lambda x: 25.0 * ((x[0] < 0.2) & (x[1] < 0.2)) - 25.0 * ((x[0] > 0.8) & (x[1] > 0.8)))
waves = [(1, 0), (0, 1), (1, 1), (2, 1), (1, 2)]


def log_permeability(amplitudes, x):
    """Return log k at points, shape (points,)."""
    return sum(
        a * np.cos(i * np.pi * x[0]) * np.cos(j * np.pi * x[1]) for a, (i, j) in zip(amplitudes, waves, strict=True)
    )


def solve(amplitudes):
    """Return the degrees of freedom of the flux that this rank owns."""
    k.interpolate(lambda x: np.exp(log_permeability(amplitudes, x)))
    darcy = conserve.FluxProjection(fluxes, source=well, inverse_permeability=1 / k, prescribed=no_flux)
    darcy.project(no_flux, out=flux)
    darcy.destroy()
    return flux.x.array[:owned].copy()


stream = random_stream("demos.conservative_darcy")
fields = stream.normal(size=(32, len(waves))) * 0.6
truth = torch.from_numpy(np.array([solve(amplitudes) for amplitudes in fields]))
amplitudes, training, test = torch.from_numpy(fields), slice(0, 24), slice(24, 32)

# ## The network
#
# One part sees where a facet is, another the amplitudes; the flux density there is a sum of products. A degree of
# freedom is the flux through a facet: the density's product with the facet's normal, as long as the facet, which the
# interpolation of constant fluxes reveals.

mesh.topology.create_connectivity(2, 1)
facet_of_dof = np.empty(flux.x.array.size, dtype=np.int32)
facet_of_dof[fluxes.dofmap.list] = mesh.topology.connectivity(2, 1).array.reshape(-1, 3)
middle = torch.from_numpy(dolfinx.mesh.compute_midpoints(mesh, 1, facet_of_dof[:owned])[:, :2])
normals = []
for direction in ([1.0], [0.0]), ([0.0], [1.0]):
    flux.interpolate(lambda x, d=direction: np.array(d) @ np.ones((1, x.shape[1])))
    normals.append(torch.from_numpy(flux.x.array[:owned].copy()))
normal = torch.stack(normals, dim=1)


class FluxNetwork(torch.nn.Module):
    """Flux through the facets that this rank owns, shape (fields, owned), from amplitudes, shape (fields, waves)."""

    def __init__(self, products=24):
        super().__init__()
        self.place = mlp(2, 2 * products, width=48, depth=3, seed=1)
        self.field = mlp(len(waves), products, width=48, depth=2, seed=2)

    def forward(self, amplitudes):
        places = self.place(2.0 * middle - 1.0).view(owned, 2, -1)
        density = torch.einsum("fp,dcp->fdc", self.field(amplitudes), places)
        return (density * normal).sum(-1)


# ## Training, without the projection and through it
#
# Everything else is the same: first weights, samples, steps. The projection has no weight here, so that one serves all
# fields: its matrices and its multigrid hierarchy are made once. Each rank evaluates the network at its own facets;
# `Replicated` adds up the gradients.

projection = conserve.FluxProjection(fluxes, source=well, prescribed=no_flux)
size = float(sum_over_ranks((truth[training] ** 2).sum(), comm)) / 24


def train(last):
    """Train a network whose prediction goes through ``last``, and return it with the report."""

    def loss(net, batch):
        given, flux_of_given = batch
        return sum_over_ranks(((last(net(given)) - flux_of_given) ** 2).sum(), comm) / (len(given) * size)

    settings = TrainerSettings(learning_rate=4e-3, schedule="one_cycle", epochs=80, batch_size=8)
    network = Replicated(FluxNetwork(), comm)
    samples = (amplitudes[training], truth[training])
    report = Trainer(network, loss, settings, comm, mode="pde_parallel").fit(samples)
    return network, report


network, without = train(torch.nn.Identity())
network_through, through = train(projection.layer())
print_root(comm, projection.report)

# ## How good they are on fields that they have not seen
#
# The projection of zero knows nothing of the permeability: what it misses is left to be learned. A projection can only
# bring a flux nearer to the true one, since the true one balances.


def norm(values):
    """Return the L2 norm of a flux, given the values that this rank owns."""
    flux.x.array[:owned] = values
    flux.x.scatter_forward()
    return comm.allreduce(dolfinx.fem.assemble_scalar(dolfinx.fem.form(ufl.inner(flux, flux) * ufl.dx))) ** 0.5


def error(values):
    """Return the mean relative error over the test fields."""
    pairs = zip(values.numpy(), truth[test].numpy(), strict=True)
    return np.mean([norm(one - exact) / norm(exact) for one, exact in pairs])


def largest_imbalance(values):
    """Return the largest imbalance of a cell over the test fields."""
    defects = []
    for one in values.numpy():
        flux.x.array[:owned] = one
        flux.x.scatter_forward()
        defects.append(projection.defect(flux).absolute)
    return max(defects)


with torch.no_grad():
    predicted = network(amplitudes[test])
    fluxes_by = {
        "projection of zero": projection(torch.zeros_like(predicted)),
        "network": predicted,
        "network, then projected": projection(predicted),
        "network trained through the projection": projection(network_through(amplitudes[test])),
    }
errors = {name: error(values) for name, values in fluxes_by.items()}
imbalances = {name: largest_imbalance(values) for name, values in fluxes_by.items()}
for name in fluxes_by:
    print_root(comm, f"{name:40} error {errors[name]:6.1%}, largest imbalance of a cell {imbalances[name]:.0e}")

# ## Pictures, and a file for ParaView
#
# A cell's balance counts what flows out of it less what its well gives; the well gives 1 in all.

imbalance = {name: dolfinx.fem.Function(cellwise) for name in ("network", "network, then projected")}
for name, function in imbalance.items():
    flux.x.array[:owned] = fluxes_by[name][0]
    flux.x.scatter_forward()
    function.x.array[cellwise.dofmap.list[: mesh.topology.index_map(2).size_local, 0]] = projection.imbalance(flux)
    function.x.scatter_forward()
k.interpolate(lambda x: np.exp(log_permeability(fields[test][0], x)))
arrows = dolfinx.fem.Function(dolfinx.fem.functionspace(mesh, ("DG", 0, (2,))), name="flux")
flux.x.array[:owned] = fluxes_by["network trained through the projection"][0]
flux.x.scatter_forward()
arrows.interpolate(flux)
output.write_fields(folder / "fields", {"permeability": k, "flux": arrows, "imbalance": imbalance["network"]})
grids = [gather_grid(function) for function in (k, arrows, *imbalance.values())]


def draw_fields():
    """Draw permeability and flux, and the imbalance of each cell before and after, on rank 0."""
    figure = matplotlib.figure.Figure((11.0, 3.6), dpi=150, layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    x, y, _ = grids[0].points.T
    (triangles,) = grids[0].cells_dict.values()
    values = [grid.active_scalars for grid in (grids[0], *grids[2:])]
    titles = ("permeability k, and the flux", "imbalance of each cell: network", "... after the projection")
    for axis, value, title in zip(axes, values, titles, strict=True):
        balance = axis is not axes[0]
        shades = matplotlib.colors.LogNorm(1e-17, 1e-1) if balance else matplotlib.colors.LogNorm()
        picture = axis.tripcolor(
            x, y, triangles, np.maximum(np.abs(value), 1e-17), norm=shades, cmap="inferno" if balance else "viridis"
        )
        axis.set(title=title, xlabel="x", aspect="equal")
        if axis is not axes[1]:
            figure.colorbar(picture, ax=axis, label="|outflow - source| (of 1 in all)" if balance else "k (no unit)")
    centres = np.stack([x[triangles].mean(1), y[triangles].mean(1)])
    axes[0].quiver(*centres[:, ::3], *grids[1].active_vectors[::3, :2].T, color="white", scale=40.0)
    axes[0].set_ylabel("y")
    figure.savefig(folder / "imbalance.png")


def draw_training():
    """Draw the error during both trainings, on rank 0."""
    figure = matplotlib.figure.Figure((5.5, 3.4), dpi=150, layout="constrained")
    axis = figure.subplots()
    for report, label in ((without, "network alone"), (through, "through the projection")):
        axis.semilogy(np.arange(1, 81), 100.0 * np.sqrt(report.training_losses), label=label)
    axis.set(xlabel="epoch", ylabel="error of the flux on training fields (%)")
    axis.legend(frameon=False)
    figure.savefig(folder / "convergence.png")


on_root(comm, draw_fields)
on_root(comm, draw_training)
print_root(comm, f"wrote {folder.name}/: fields for ParaView, imbalance.png, convergence.png")

# ## What must hold

assert imbalances["network"] > 1e-4
assert imbalances["network trained through the projection"] < 1e-14
assert errors["network, then projected"] < errors["network"]
assert errors["network trained through the projection"] < errors["network, then projected"]
