"""Line 5, hyper-reduction: what few cells cost in accuracy, what they save, and how fast they are chosen."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator

import dolfinx
import numpy as np

from pdeopt.bench.rivals import require_package
from pdeopt.bench.study import Study
from pdeopt.fem import forms
from pdeopt.parallel import on_root, random_stream
from pdeopt.problems import MovingSource
from pdeopt.reduced_order import (
    Basis,
    CompressedIntegrands,
    Cubature,
    GalerkinSystem,
    HyperReducedSystem,
    InnerProduct,
    ReducedSystem,
    Snapshots,
    all_cells,
    proper_orthogonal_decomposition,
    select_cells,
)
from pdeopt.reduced_order.inner_product import Array
from pdeopt.reduced_order.integrands import integrand_blocks
from pdeopt.reduced_order.newton import solve_reduced

_TABLE = "Cubature of the heat problem"


@dataclasses.dataclass(frozen=True)
class Size:
    """How large the benchmark is."""

    cells: int
    training: int
    unseen: int
    modes: tuple[int, ...]
    tolerances: tuple[float, ...]


_FULL = Size(128, 100, 30, (20, 40), (1e-3, 3e-4, 1e-4, 2e-5))
_QUICK = Size(12, 12, 4, (5,), (1e-2, 1e-3))


class Heat:
    """Snapshots of the wide moving source, and what a reduced system makes of their parameters."""

    def __init__(self, study: Study, size: Size) -> None:
        self.size = size
        mesh = dolfinx.mesh.create_unit_square(study.comm, size.cells, size.cells)
        self.problem = MovingSource(mesh)
        self.inner = InnerProduct(self.problem.space, bcs=self.problem.bcs)
        seed = study.settings.seed
        self.parameters = np.vstack(
            [
                self.problem.parameters(count, f"rom.cubature.{name}", seed)
                for name, count in (("training", size.training), ("unseen", size.unseen))
            ]
        )
        solver = self.problem.solver("rom_cubature_")
        self.fields = np.empty((self.inner.owned, len(self.parameters)))
        self.seconds = []
        for column, parameter in enumerate(self.parameters):
            self.problem.set_parameter(parameter)
            self.problem.u.x.array[:] = 0.0
            started = time.perf_counter()
            solver.solve()
            self.seconds.append(time.perf_counter() - started)
            self.fields[:, column] = forms.owned_values(self.problem.u)

    def basis(self, modes: int) -> Basis:
        """Return modes of the training snapshots. Collective: yes."""
        snapshots = Snapshots(self.inner)
        snapshots.extend(self.fields[:, : self.size.training])
        return proper_orthogonal_decomposition(snapshots, modes=modes)

    def states(self) -> Iterator[None]:
        """Set one training state at a turn. Collective: yes."""
        for parameter, field in zip(self.parameters[: self.size.training], self.fields.T, strict=False):
            self.problem.set_parameter(parameter)
            forms.set_function(self.problem.u, field)
            yield

    def integrands(self, basis: Basis, tolerance: float) -> CompressedIntegrands:
        """Return what a cubature has to integrate. Collective: yes."""
        compressed = CompressedIntegrands(self.problem.space.mesh, tolerance)
        for blocks in integrand_blocks(self.problem.residual, self.problem.u, basis, self.states()):
            compressed.append(*blocks)
        return compressed

    def hyper_reduced(self, basis: Basis, cubature: Cubature) -> HyperReducedSystem:
        """Return the reduced system on few cells. Collective: yes."""
        return HyperReducedSystem(self.problem.residual, self.problem.u, basis, cubature, bcs=self.problem.bcs)

    def errors(self, system: ReducedSystem, basis: Basis) -> tuple[Array, float, float, int]:
        """Return relative errors, ms and Newton steps (medians) and failures of a reduced system."""
        errors, seconds, steps, failures = [], [], [], 0
        for parameter, field in zip(self.parameters, self.fields.T, strict=True):
            self.problem.set_parameter(parameter)
            started = time.perf_counter()
            system.update()
            result = solve_reduced(system, np.zeros(basis.size))
            seconds.append(time.perf_counter() - started)
            steps.append(result.iterations)
            failures += not result.converged
            rest = basis.expand(result.coordinates) - field
            errors.append(float(self.inner.norms(rest[:, None])[0] / self.inner.norms(field[:, None])[0]))
        return np.array(errors), 1e3 * statistics.median(seconds), statistics.median(steps), failures


def measure(study: Study, quick: bool) -> None:
    """Print the kill-test, then the tables. Collective: yes."""
    size = _QUICK if quick else _FULL
    heat = Heat(study, size)
    worst = []
    for modes in size.modes:
        basis = heat.basis(modes)
        started = time.perf_counter()
        integrands = heat.integrands(basis, size.tolerances[-1])
        rows = integrands.rows().shape[0]
        compression = time.perf_counter() - started
        for tolerance in size.tolerances:
            started = time.perf_counter()
            cubature = select_cells(integrands, tolerance)
            seconds = time.perf_counter() - started
            arm = {"tolerance": tolerance, "cells": cubature.size, "rows": rows,
                   "compression [s]": compression, "choice [s]": seconds}  # fmt: skip
            ratio = _row(study, heat, basis, "cubature", heat.hyper_reduced(basis, cubature), arm)
        worst.append(ratio)
        random = _random_cells(study, heat, cubature.size)
        _row(study, heat, basis, "random cells", heat.hyper_reduced(basis, random), {"cells": random.size})
        galerkin = GalerkinSystem(heat.problem.residual, heat.problem.u, basis, heat.problem.bcs)
        _row(study, heat, basis, "POD-Galerkin, all cells", galerkin, {"cells": _count(heat)})
    study.target("5k", "kill-test, heat: mean error on training parameters over the projection error", max(worst), 2.0)
    _choice(study, heat, integrands)


def _row(
    study: Study, heat: Heat, basis: Basis, arm: str, system: ReducedSystem, columns: dict[str, float | int]
) -> float:
    """Add what a reduced system shows; return the mean training error over the mean projection error."""
    errors, milliseconds, steps, failures = heat.errors(system, basis)
    projection = basis.projection_errors(heat.fields)
    training = heat.size.training
    seen, unseen = slice(None, training), slice(training, None)
    ratio = float(errors[seen].mean() / projection[seen].mean())
    study.row(
        _TABLE,
        {
            "modes": basis.size, "arm": arm, **columns,
            "training: mean error / projection": ratio,
            "unseen: mean error": float(errors[unseen].mean()), "unseen: largest error": float(errors[unseen].max()),
            "unseen: mean error / projection": float(errors[unseen].mean() / projection[unseen].mean()),
            "ms a solve": milliseconds, "Newton steps": steps, "not solved": failures,
            "speed-up over SNES + MUMPS": 1e3 * statistics.median(heat.seconds) / milliseconds,
        },
    )  # fmt: skip
    return ratio


def _count(heat: Heat) -> int:
    topology = heat.problem.space.mesh.topology
    return int(topology.index_map(topology.dim).size_global)


def _random_cells(study: Study, heat: Heat, count: int) -> Cubature:
    """Return the trivial rival: as many cells drawn at random, with equal weights. Collective: yes."""
    total = _count(heat)
    drawn = random_stream("rom.cubature.random", study.settings.seed).choice(total, count, replace=False)
    return Cubature(np.sort(all_cells(heat.problem.space.mesh).cells[drawn]), np.full(count, total / count), np.nan)


def _choice(study: Study, heat: Heat, integrands: CompressedIntegrands) -> None:
    """Choose cells in blocks, one by one from the weights before, and as published; on the same rows, interleaved."""
    gathered = study.comm.gather((integrands.rows(), integrands.volumes))

    def published() -> int:
        assert gathered is not None
        rows, volumes = (np.concatenate(parts, axis=-1) for parts in zip(*gathered, strict=True))
        return plain_pursuit(rows, volumes, integrands.tolerance)

    arms: dict[str, Callable[[], int]] = {
        "blocks": lambda: select_cells(integrands).size,
        "one by one, from the weights before": lambda: select_cells(integrands, block=1).size,
        "one by one, fitted from zero (published)": lambda: on_root(study.comm, published),
    }
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    cells = {}
    for _ in range(1 if heat.size is _QUICK else study.settings.repeat):
        for arm, choose in arms.items():
            started = time.perf_counter()
            cells[arm] = choose()
            seconds[arm].append(time.perf_counter() - started)
    times = {arm: statistics.median(samples) for arm, samples in seconds.items()}
    for arm in arms:
        study.row(
            "Choice of cells",
            {"rows": integrands.rows().shape[0], "of cells": _count(heat), "arm": arm, "cells": cells[arm],
             "seconds": times[arm]},
        )  # fmt: skip
    first, _, last = arms
    study.target("5d", "choice of cells in blocks: time over that of plain NNOMP", times[first] / times[last], 0.5)
    study.target("5e", "choice of cells in blocks: cells over those of plain NNOMP", cells[first] / cells[last], 1.05)


def plain_pursuit(rows: Array, volumes: Array, tolerance: float) -> int:
    """Return the cells that non-negative orthogonal matching pursuit needs: one enters, all are fitted from zero."""
    optimise = require_package("scipy.optimize", "rivals")
    share = volumes / volumes.sum()
    matrix, target = np.vstack([rows, share]), np.append(rows.sum(axis=1), 1.0)
    norms = np.linalg.norm(matrix, axis=0)
    chosen: list[int] = []
    residual = target
    while np.linalg.norm(residual) > tolerance:
        slopes = (residual @ matrix) / norms
        slopes[chosen] = -np.inf
        chosen.append(int(np.argmax(slopes)))
        weights, _ = optimise.nnls(matrix[:, chosen], target)
        chosen = [cell for cell, weight in zip(chosen, weights, strict=True) if weight > 0.0]
        residual = target - matrix[:, chosen] @ weights[weights > 0.0]
    return len(chosen)
