"""The plate under a moving source with all that reduced solves need: snapshots, bases, cubature, certificates."""

import dataclasses
import itertools
import math
import time
from collections.abc import Iterator
from typing import Any

from mpi4py import MPI

import dolfinx
import numpy as np
from dolfinx.fem import petsc as fem_petsc

from pdeopt.bench.harness import say
from pdeopt.bench.rivals import require_package
from pdeopt.fem import forms
from pdeopt.problems.moving_source import WIDE, MovingSource, SourceInterpolation, SourceRange
from pdeopt.reduced_order import (
    Basis,
    Certificate,
    CoordinateInterpolation,
    ExpandedResidual,
    FullResidual,
    GalerkinSystem,
    HierarchicalIndicator,
    HyperReducedSystem,
    InnerProduct,
    ReducedModel,
    SinglePrecisionModes,
    Snapshots,
    empirical_cubature,
    proper_orthogonal_decomposition,
    sampled_stability,
)
from pdeopt.reduced_order.inner_product import Array

# Beyond the training range: hotter, and with the centre nearer to the boundary.
BEYOND = SourceRange(WIDE.width, (0.25, 0.75), (100.0, 200.0))


@dataclasses.dataclass(frozen=True)
class Size:
    """How large everything is.

    Parameters
    ----------
    cells, snapshots, modes
        Cells in each direction, training parameters, modes of the model.
    extra
        Further modes of the indicator.
    states
        How many of the training states the cubature is fitted to.
    nodes
        Chebyshev nodes of the source, in each direction.
    cubature, expansion
        Tolerances, see `empirical_cubature` and `ExpandedResidual`.
    indicator
        Tolerance of the cubature of the indicator, whose own error has to stay below the one that it shows.
    """

    cells: int = 320
    snapshots: int = 100
    modes: int = 45
    extra: int = 55
    states: int = 50
    nodes: int = 14
    cubature: float = 5e-5
    expansion: float = 1e-4
    indicator: float = 1e-4


QUICK = Size(
    cells=12, snapshots=60, modes=20, extra=10, states=24, nodes=10, cubature=1e-3, expansion=1e-3, indicator=1e-3
)


class Plate:
    """The full problem and its reduced models.

    Attributes
    ----------
    problem, solver
        The full problem and SNES with MUMPS.
    basis, model, galerkin, full, interpolation
        The modes, the certified hyper-reduced model, the reduced system by full assembly, the certificate by full
        assembly, and coordinates interpolated in the parameter.
    seconds, cells
        Wall time of each stage beforehand [s], and the cells of each cubature.

    Collective: yes.
    """

    def __init__(self, comm: MPI.Comm, size: Size) -> None:
        self.size = size
        self.seconds: dict[str, float] = {}
        self.cells: dict[str, int] = {}
        mesh = dolfinx.mesh.create_unit_square(comm, size.cells, size.cells)
        self.problem = problem = MovingSource(mesh)
        self.solver: fem_petsc.NonlinearProblem = problem.solver()
        self.product = product = InnerProduct(problem.space, "h1", problem.bcs)
        self.parameters = training_parameters(size.snapshots)
        with self._stage(comm, "snapshots"):
            self._take_snapshots()
        with self._stage(comm, "modes"):
            # Weights between those of absolute and of relative errors: the greatest relative error is least.
            weighted = Snapshots(product)
            weighted.extend(self.columns / np.sqrt(product.norms(self.columns)))
            larger = proper_orthogonal_decomposition(weighted, modes=size.modes + size.extra)
            self.basis: Basis = larger.truncate(size.modes)
        coordinates = larger.coordinates(self.columns)
        self.coordinates = coordinates[: size.modes]
        self.interpolation = CoordinateInterpolation(logarithmic(self.parameters), self.coordinates)
        arguments = (problem.residual, problem.u)
        systems = []
        for stage, modes, tolerance in (
            ("cubature", self.basis, size.cubature),
            ("cubature of the indicator", larger, size.indicator),
        ):
            with self._stage(comm, stage):
                states = itertools.islice(self._states(modes, coordinates[: modes.size]), size.states)
                cubature = empirical_cubature(*arguments, modes, states, tolerance)
            systems.append(HyperReducedSystem(*arguments, modes, cubature, bcs=problem.bcs))
            self.cells[stage] = cubature.size
        system, indicator = systems
        self.galerkin = GalerkinSystem(*arguments, self.basis, problem.bcs)
        with self._stage(comm, "stability constants"):
            stability = sampled_stability(*arguments, product, self._extremes(), problem.bcs, safety=1.02)
            lipschitz = self._lipschitz()
        with self._stage(comm, "expanded residual"):
            source = SourceInterpolation(problem, size.nodes)
            training = self._states(self.basis, self.coordinates)
            self.expansion = ExpandedResidual(
                *arguments, self.basis, source, training, problem.bcs, tolerance=size.expansion
            )
        self.full = Certificate(FullResidual(*arguments, self.basis, problem.bcs), stability, lipschitz)
        self.model = ReducedModel(
            problem.u,
            self.basis,
            system,
            start=lambda: self.interpolation(problem.parameter()),
            certificate=Certificate(self.expansion, stability, lipschitz),
            indicator=HierarchicalIndicator(indicator, size.modes),
            single=SinglePrecisionModes(self.basis),
        )

    def solve(self, parameter: Array, start: Array | None = None) -> Array:
        """Return the owned values of the full solution, from zero or a given start. Collective: yes."""
        self.problem.set_parameter(parameter)
        forms.set_function(self.problem.u, np.zeros(self.product.owned) if start is None else start)
        self.solver.solve()
        return np.array(forms.owned_values(self.problem.u))

    def error(self, values: Array, truth: Array) -> float:
        """Return the relative error. Collective: yes."""
        difference, norm = self.product.norms(np.column_stack([values - truth, truth]))
        return float(difference / norm)

    def _stage(self, comm: MPI.Comm, name: str) -> "_Stage":
        say(comm, f"  {name}")
        return _Stage(name, self.seconds)

    def _take_snapshots(self) -> None:
        self.columns = np.empty((self.product.owned, len(self.parameters)), order="F")
        for number, parameter in enumerate(self.parameters):
            self.columns[:, number] = self.solve(parameter)

    def _states(self, basis: Basis, coordinates: Array) -> Iterator[Array]:
        """Set the parameters and the projected state of each snapshot in turn."""
        for parameter, column in zip(self.parameters, coordinates.T, strict=True):
            self.problem.set_parameter(parameter)
            forms.set_function(self.problem.u, basis.expand(column))
            yield column

    def _extremes(self) -> Iterator[None]:
        """Set the states with the least, the middle and the greatest amplitude."""
        order = np.argsort(self.parameters[:, 2])
        for number in order[[0, len(order) // 2, -1]]:
            self.problem.set_parameter(self.parameters[number])
            forms.set_function(self.problem.u, self.columns[:, number])
            yield

    def _lipschitz(self) -> float:
        """Return a Lipschitz constant of the Jacobian near the training states.

        With d = u - w and s = u + w the difference of the Jacobians is the form of grad(d s e) and grad v, and

            |grad(d s e)| <= (2 rho |s|_max + rho^2 |grad s|) |d| |e|

        with the constant rho of |v|_max <= rho |v| on the discrete space. It is the square root of the greatest value
        of Green's function on its diagonal, which is in the centre of the square.
        """
        comm = self.product.comm
        points = self.problem.space.tabulate_dof_coordinates()[: self.product.owned]
        distances = np.linalg.norm(points[:, :2] - 0.5, axis=1)
        _, owner = comm.allreduce((float(distances.min(initial=math.inf)), comm.rank), op=MPI.MINLOC)
        load = np.zeros((self.product.owned, 1))
        if comm.rank == owner:
            load[np.argmin(distances)] = 1.0
        green = comm.allreduce(float((load * self.product.riesz_columns(load)).sum()))
        largest = comm.allreduce(float(np.abs(self.columns).max()), op=MPI.MAX)
        margin = 1.2  # from training to unseen states, and over the ball around them
        return margin * (4.0 * math.sqrt(green) * largest + 2.0 * green * float(self.product.norms(self.columns).max()))


def training_parameters(count: int) -> Array:
    """Return parameters, shape (count, 3): the four hottest corners of the box and Sobol points.

    The points are denser towards the faces of the box, as Chebyshev's are: errors are greatest there.
    """
    sobol = require_package("scipy.stats", "reduced").qmc.Sobol(3, seed=1)
    inner = sobol.random(2 ** math.ceil(math.log2(count)))[: count - 4]
    corners = [[x, y, 1.0] for x in (0.0, 1.0) for y in (0.0, 1.0)]
    points = np.vstack([corners, 0.5 - 0.5 * np.cos(np.pi * inner)])
    low, high = np.array([*[WIDE.centre] * 2, np.log(WIDE.amplitude)]).T
    scaled = low + (high - low) * points
    return np.column_stack([scaled[:, :2], np.exp(scaled[:, 2])])


def logarithmic(parameters: Array) -> Array:
    """Return (x, y, log amplitude), shape (n, 3)."""
    return np.column_stack([parameters[:, :2], np.log(parameters[:, 2])])


class _Stage:
    """Adds the wall time of a block to a dictionary."""

    def __init__(self, name: str, seconds: dict[str, float]) -> None:
        self._name, self._seconds = name, seconds

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *_: Any) -> None:
        self._seconds[self._name] = time.perf_counter() - self._started
