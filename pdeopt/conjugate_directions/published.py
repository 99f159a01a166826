r"""The published network for deep conjugate directions, its training data, and what makes it a preconditioner.

Kaneda et al., "A deep conjugate direction method for iteratively solving linear systems", ICML 2023: a convolutional
network that sees the residual alone, trained for one matrix without labels. A reference: on a processor one of its
applications costs more than a whole classical solve.
"""

import itertools
import time
from collections.abc import Sequence

from petsc4py import PETSc

import numpy as np
import numpy.typing as npt
import scipy.sparse

from pdeopt.learn._torch import torch
from pdeopt.learn.trainer import Trainer, TrainerSettings, TrainingReport
from pdeopt.parallel import random_stream
from pdeopt.report import InputError

__all__ = ["NetworkProposal", "PublishedNetwork", "lanczos", "lattice_order", "right_hand_sides", "train_published"]

type Array = npt.NDArray[np.float64]

_CHANNELS = 16
# Residual blocks of two convolutions each on the coarse level, and on the fine one after it.
_COARSE, _FINE = 3, 2
# Weight of the lower half of the Ritz vectors and some more, 500 of 10,000; eigenvalues below this are zero.
_WEIGHT, _MORE, _ZERO = 9.0, 0.05, 1e-8
# Part of the samples that is held out.
_HELD_OUT = 0.1


class PublishedNetwork(torch.nn.Module):
    """Convolutions of width 3 with 16 channels on a grid and on one of half its resolution, from residual to direction.

    In space it has 97,457 weights, those of the published network for 64^3 points. Not linear, not symmetric.

    Parameters
    ----------
    dimension
        2 or 3.
    """

    def __init__(self, dimension: int) -> None:
        super().__init__()
        if dimension not in (2, 3):
            raise InputError(f"dimension is {dimension}: the network is for grids in 2 or 3 dimensions")
        convolution = torch.nn.Conv2d if dimension == 2 else torch.nn.Conv3d
        pool = torch.nn.AvgPool2d if dimension == 2 else torch.nn.AvgPool3d

        def layers(count: int) -> torch.nn.ModuleList:
            return torch.nn.ModuleList(convolution(_CHANNELS, _CHANNELS, 3, padding=1) for _ in range(count))

        self.first = convolution(1, _CHANNELS, 3, padding=1)
        self.down, self.coarse, self.up = layers(4), layers(2 * _COARSE), layers(2 * _FINE)
        self.pool = pool(2, ceil_mode=True, count_include_pad=False)
        self.last = torch.nn.Linear(_CHANNELS, 1)

    def forward(self, residual: torch.Tensor) -> torch.Tensor:
        """Return directions for residuals, both of shape ``(count, *grid)``. Collective: no."""
        value = torch.relu(self.down[0](self.first(residual[:, None])))
        value = _block(self.down[1], self.down[2], value)
        fine = torch.relu(self.down[3](value))
        value = self.pool(fine)
        for one, two in itertools.batched(self.coarse, 2):
            value = _block(one, two, value)
        value = torch.nn.functional.interpolate(value, scale_factor=2.0, mode="nearest")
        for axis, size in enumerate(residual.shape[1:], start=2):
            value = value.narrow(axis, 0, size)
        value = value + fine
        for one, two in itertools.batched(self.up, 2):
            value = _block(one, two, value)
        result: torch.Tensor = self.last(value.movedim(1, -1))[..., 0]
        return result


def _block(one: torch.nn.Module, two: torch.nn.Module, value: torch.Tensor) -> torch.Tensor:
    """Return what two convolutions make of a value, and the value."""
    return torch.relu(two(torch.relu(one(value)))) + value


def lanczos(matrix: scipy.sparse.csr_matrix, count: int, seed: int = 0) -> tuple[Array, Array]:
    """Return Ritz values, rising, and Ritz vectors of a symmetric matrix by Lanczos' method.

    Every vector is made orthogonal to all before it, twice, as rounding would otherwise bring copies of the first ones
    that converge.

    Parameters
    ----------
    matrix
        Symmetric, shape (n, n).
    count
        Steps, at most n; fewer are made where the Krylov space ends.
    seed
        Of the random vector whose image it begins with.

    Returns
    -------
    values, vectors
        Shapes (steps,) and (n, steps).

    Raises
    ------
    InputError
        If the count is out of range.

    Collective: no.
    """
    size = matrix.shape[0]
    if not 1 <= count <= size:
        raise InputError(f"{count} Lanczos steps for a matrix of {size} rows: give 1 to {size}")
    vector = matrix @ random_stream("conjugate_directions.lanczos", seed).standard_normal(size)
    basis = np.empty((size, count), order="F")
    diagonal, beside = np.zeros(count), np.zeros(count)
    norm = scale = float(np.linalg.norm(vector))
    steps = 0
    while steps < count and norm > 1e-12 * scale:
        basis[:, steps] = vector / norm
        vector = matrix @ basis[:, steps]
        diagonal[steps] = basis[:, steps] @ vector
        known = basis[:, : steps + 1]
        for _ in range(2):
            vector -= known @ (known.T @ vector)
        norm = beside[steps] = float(np.linalg.norm(vector))
        steps += 1
    tridiagonal = np.diag(diagonal[:steps]) + np.diag(beside[: steps - 1], 1) + np.diag(beside[: steps - 1], -1)
    values, combinations = np.linalg.eigh(tridiagonal)
    return values, basis[:, :steps] @ combinations


def right_hand_sides(values: Array, vectors: Array, samples: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Return random right-hand sides of unit norm, rich in the lower half of the spectrum, shape (samples, n).

    Gaussian combinations of the Ritz vectors, the lowest 55 % with nine times the weight, zero modes left out: as
    published for 10,000 vectors and 20,000 samples.

    Collective: no.
    """
    kept = values > _ZERO * values[-1]
    weights = np.where(np.arange(kept.sum()) < (0.5 + _MORE) * len(values), _WEIGHT, 1.0)
    stream = random_stream("conjugate_directions.right_hand_sides", seed)
    found = (stream.standard_normal((samples, len(weights))) * weights) @ vectors[:, kept].T
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def train_published(
    matrix: scipy.sparse.csr_matrix,
    shape: Sequence[int],
    sides: npt.NDArray[np.float32],
    settings: TrainerSettings | None = None,
) -> tuple[PublishedNetwork, TrainingReport]:
    r"""Train the published network for one matrix, by :math:`|b - \alpha A f(b)|^2, \alpha = f(b)'b / f(b)'A f(b)`.

    The published script validates on samples that it trains on too; here the last tenth is held out.

    Parameters
    ----------
    matrix
        Of unknowns on a grid, the last direction fastest.
    shape
        The grid's points in each direction.
    sides
        Right-hand sides of unit norm, shape (samples, unknowns).
    settings
        Of the training; without them the published ones, Adam at 1e-4 with batches of 10, but 10 epochs.

    Collective: yes (over all ranks of the world, by `pdeopt.learn.Trainer`).
    """
    settings = settings or TrainerSettings(learning_rate=1e-4, batch_size=10, epochs=10)
    torch.manual_seed(settings.seed)
    network = PublishedNetwork(len(shape))
    entries = scipy.sparse.coo_matrix(matrix)
    places = torch.from_numpy(np.stack([entries.row, entries.col]).astype(np.int64))
    values = torch.from_numpy(entries.data.astype(np.float32))
    operator = torch.sparse_coo_tensor(places, values, entries.shape, check_invariants=True).coalesce()

    def loss(network: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
        found = network(batch.reshape(-1, *shape)).flatten(1)
        images = (operator @ found.T).T
        steps = (found * batch).sum(1) / (found * images).sum(1)
        return ((batch - steps[:, None] * images) ** 2).sum(1).mean()

    trained = len(sides) - max(round(_HELD_OUT * len(sides)), 1)
    samples = torch.from_numpy(sides)
    report = Trainer(network, loss, settings).fit(samples[:trained], samples[trained:])
    return network, report


def lattice_order(coordinates: Array) -> tuple[tuple[int, ...], npt.NDArray[np.intp]]:
    """Return the shape of the grid that points fill, and their numbers in its order, the last direction fastest.

    Parameters
    ----------
    coordinates
        Shape (points, 2 or 3); coordinates that are constant do not count.

    Raises
    ------
    InputError
        If the points do not fill a grid.

    Collective: no.
    """
    axes = [axis.round(10) for axis in coordinates.T]
    counts = [len(np.unique(axis)) for axis in axes]
    used = [axis for axis, count in zip(axes, counts, strict=True) if count > 1]
    shape = tuple(count for count in counts if count > 1)
    if len(shape) not in (2, 3) or np.prod(shape) != len(coordinates):
        raise InputError(
            f"{len(coordinates)} points with {' x '.join(map(str, counts))} coordinates fill no grid in 2 or 3 "
            "dimensions: the published network is for those"
        )
    return shape, np.lexsort(used[::-1])


class NetworkProposal:
    """A network as preconditioner, for `DeepConjugateDirections` or any flexible Krylov method; on one rank.

    Set it by ``ksp.getPC().setType("python")`` and ``ksp.getPC().setPythonContext(NetworkProposal(network, places))``.

    Parameters
    ----------
    network
        From residuals on the grid, shape ``(1, *grid)``, float32, to directions of that shape.
    coordinates
        Of the unknowns in their order, shape (unknowns, 2 or 3).

    Attributes
    ----------
    applications, seconds
        How often it was applied, and wall seconds of these.
    error
        An exception that ended the last application.

    Raises
    ------
    InputError
        If the unknowns fill no grid, or, in an application, are spread over several ranks.
    """

    def __init__(self, network: torch.nn.Module, coordinates: Array) -> None:
        self.network = network.eval()
        self.shape, self._order = lattice_order(coordinates)
        self.applications, self.seconds = 0, 0.0
        self.error: Exception | None = None

    def setUp(self, pc: PETSc.PC) -> None:
        """Check the layout. Collective: no."""
        unknowns = pc.getOperators()[0].getSize()[0]
        if pc.getComm().size > 1 or unknowns != len(self._order):
            self.error = InputError(
                f"the network is for {len(self._order)} unknowns on one rank, and the matrix has {unknowns} on "
                f"{pc.getComm().size}"
            )
            raise self.error

    def apply(self, pc: PETSc.PC, x: PETSc.Vec, y: PETSc.Vec) -> None:
        """Propose a direction. Collective: no."""
        began = time.perf_counter()
        self.error = None
        try:
            with torch.inference_mode():
                grid = torch.from_numpy(x.array_r[self._order].astype(np.float32))
                found = self.network(grid.reshape(1, *self.shape))
            with y as values:
                values[self._order] = found.ravel().numpy()
        except Exception as error:
            self.error = error  # PETSc hands on no more than a number
            raise
        self.applications += 1
        self.seconds += time.perf_counter() - began

    def view(self, pc: PETSc.PC, viewer: PETSc.Viewer) -> None:
        """Print its size and what it took. Collective: yes."""
        if viewer.getType() == PETSc.Viewer.Type.ASCII:
            weights = sum(parameter.numel() for parameter in self.network.parameters())
            viewer.printfASCII(f"  network: {weights} weights on {' x '.join(map(str, self.shape))} points\n")
            viewer.printfASCII(f"  applications: {self.applications}, {self.seconds:.3g} s\n")
