"""A conductivity law k(T) learned from boundary records, through the equation: a network beside its rivals."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

from mpi4py import MPI

import numpy as np
import numpy.typing as npt

from pdeopt.bench.harness import Row
from pdeopt.learn._torch import torch
from pdeopt.learn.collective import sum_over_ranks
from pdeopt.learn.layers import Normalise, Positive, mlp
from pdeopt.learn.network_coefficient import NetworkCoefficient
from pdeopt.learn.pde_layer import NoiseTolerance, PDELayer
from pdeopt.learn.trainer import Trainer, TrainerSettings
from pdeopt.problems.conductivity import ConductivityRecords, make_records, true_conductivity
from pdeopt.report import ConvergenceError, PdeoptError

Array = npt.NDArray[np.float64]

# Share of the readings at either end of their range that is left out of the range where the law is judged.
_TAIL = 0.005
# Loss where the equation has no solution [square of the temperature's unit].
_NO_STATE = 1e2
_ROUNDS = 5
# Of the network's one hidden layer.
_WIDTH = 6


class Spline(torch.nn.Module):
    """The exponential of a cubic B-spline with equal knots on an interval, continued by its end segments.

    Parameters
    ----------
    low, high
        The interval.
    coefficients
        Their number, >= 4.
    """

    def __init__(self, low: float, high: float, coefficients: int) -> None:
        super().__init__()
        self.low, self.cell = low, (high - low) / (coefficients - 3)
        self.coefficients = torch.nn.Parameter(torch.zeros(coefficients, dtype=torch.float64))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return k of shape (points, 1) at temperatures of shape (points, 1). Collective: no."""
        place = (values[:, 0] - self.low) / self.cell
        first = place.detach().floor().clamp(0, len(self.coefficients) - 4)
        t = place - first
        index = first.long()
        weights = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
        total = sum(weight * self.coefficients[index + k] for k, weight in enumerate(weights))
        return torch.exp(torch.as_tensor(total) / 6.0)[:, None]


class TrueShape(torch.nn.Module):
    """a + b / (1 + exp(-c (T - d))): the law itself with its four numbers unknown, the best that any learner can do."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = torch.nn.Parameter(torch.tensor([1.0, 0.5, 2.0, 1.5], dtype=torch.float64))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return k of shape (points, 1) at temperatures of shape (points, 1). Collective: no."""
        a, b, c, d = self.numbers
        return a + b * torch.sigmoid(c * (values - d))


class Offset(torch.nn.Module):
    """Adds one, so that training begins at a conductivity for which there is a state."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return values of the same shape. Collective: no."""
        return 1.0 + values


class Constant(torch.nn.Module):
    """The same conductivity everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.logarithm = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return k of shape (points, 1). Collective: no."""
        return torch.exp(self.logarithm).expand(values.shape[0], 1)


def networks(readings: Array, seed: int) -> dict[str, Callable[[], torch.nn.Module]]:
    """Return the learners by name: what is learned, its rivals, and the three arms. Collective: no."""
    low, high = float(readings.min()), float(readings.max())
    centre = Normalise(0.5 * (low + high), 0.5 * (high - low))

    def network(*last: torch.nn.Module) -> torch.nn.Module:
        return torch.nn.Sequential(centre, mlp(1, 1, width=_WIDTH, depth=1, seed=seed), *last)

    parameters = sum(parameter.numel() for parameter in network().parameters())
    return {
        "network, positive": lambda: network(Positive(0.01)),
        f"spline, {parameters} coefficients": lambda: Spline(low, high, parameters),
        "spline, 8 coefficients": lambda: Spline(low, high, 8),
        "network, unconstrained": lambda: network(Offset()),
        "learning off: best constant": Constant,
        "oracle: the law's own shape": TrueShape,
    }


@dataclasses.dataclass(frozen=True)
class LawFit:
    """A law that was learned.

    Parameters
    ----------
    network
        k(T), of shapes (points, 1).
    error, worst
        Relative L2 and maximum error over the range that readings visit.
    misfit
        Root mean square of the readings' misfit over the noise.
    row
        For a table.
    """

    network: torch.nn.Module
    error: float
    worst: float
    misfit: float
    row: Row


def learn_law(
    network: torch.nn.Module,
    comm: MPI.Comm,
    loads: Array,
    readings: Array,
    noise: float,
    *,
    cells: int = 16,
    iterations: int = 60,
    adjoint_rtol: float | NoiseTolerance = 1e-10,
    petsc_options: dict[str, object] | None = None,
    optimizer: str = "LBFGS",
    learning_rate: float = 1.0,
) -> LawFit:
    """Fit a network inside the equation to records.

    Parameters
    ----------
    network
        k(T).
    comm
        Communicator; all ranks work on every solve.
    loads, readings
        Of `make_records`.
    noise
        Standard deviation of the readings, in their unit.
    cells
        Of the mesh on which the law is learned, a multiple of 16.
    iterations
        Of the optimiser.
    adjoint_rtol, petsc_options
        Of the layer.
    optimizer, learning_rate
        By name.

    Collective: yes.
    """
    model = ConductivityRecords(comm, cells)
    k = NetworkCoefficient(network, model.temperature, quadrature_degree=4, name="conductivity")
    layer = PDELayer(
        model.residual(k),
        model.temperature,
        model.bcs,
        controls=[model.loads],
        adjoint_rtol=adjoint_rtol,
        petsc_options=petsc_options,
    )

    def loss(_: torch.nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        given, measured = batch
        try:
            states = layer(given)
        except ConvergenceError:
            # A trial of the line search for which there is no state: far worse than any other, so that it steps back.
            return sum((0.0 * parameter.sum() for parameter in network.parameters()), torch.tensor(_NO_STATE))
        own = states[:, model.sensors] - measured[:, model.owned]
        return sum_over_ranks((own**2).sum(), comm) / measured.numel()

    # In rounds, since a line search that fails ends one.
    rounds = min(_ROUNDS, iterations)
    options: dict[str, Any] = {}
    if optimizer == "LBFGS":
        options = {"max_iter": iterations // rounds, "line_search_fn": "strong_wolfe"}
    settings = TrainerSettings(
        optimizer=optimizer,
        optimizer_options=options,
        learning_rate=learning_rate,
        epochs=rounds if options else iterations,
        shuffle=False,
        progress=False,
    )
    began = time.perf_counter()
    samples = (torch.from_numpy(loads), torch.from_numpy(readings))
    trainer = Trainer(network, loss, settings, comm, mode="pde_parallel")
    trainer.fit(samples)
    with torch.no_grad():
        misfit = float(loss(network, samples)) ** 0.5 / noise
    error, worst = law_errors(network, readings)
    counts = layer.report
    row: Row = {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "error of the law": error,
        "greatest error": worst,
        "misfit / noise": misfit,
        "forward solves": counts.quantities["forward solves"],
        "Newton steps": counts.iterations,
        "adjoint Krylov iterations": counts.linear_iterations,
        "seconds": time.perf_counter() - began,
    }
    layer.destroy()
    return LawFit(network, error, worst, misfit, row)


def law_errors(network: torch.nn.Module, readings: Array) -> tuple[float, float]:
    """Return relative L2 and maximum errors over the range of 99 % of the readings. Collective: no."""
    low, high = (float(np.quantile(readings, share)) for share in (_TAIL, 1.0 - _TAIL))
    temperature = np.linspace(low, high, 400)
    truth = np.asarray(true_conductivity(temperature))
    with torch.no_grad():
        found = network(torch.from_numpy(temperature)[:, None])[:, 0].numpy()
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth)), float(np.max(np.abs(found - truth) / truth))


def compare_laws(
    comm: MPI.Comm, noise: float, seed: int, records: int = 20, iterations: int = 60
) -> list[tuple[str, Row]]:
    """Fit all learners to the same records; one that fails has a row that says how. Collective: yes."""
    loads, readings, visited = make_records(comm, records, noise, seed)
    found: list[tuple[str, Row]] = []
    for name, make in networks(readings, seed).items():
        try:
            row = learn_law(make(), comm, loads, readings, noise * (visited[1] - visited[0]), iterations=iterations).row
        except PdeoptError as error:
            row = {"failed": str(error).splitlines()[0][:100]}
        found.append((name, row))
    return found
