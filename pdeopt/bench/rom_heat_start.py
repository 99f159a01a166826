"""Line 7: the full solve started by the reduced model, beside nested iteration: Newton steps and wall time.

All arms solve to the same residual, 1e-10 of that at zero, by the same SNES; what makes the start counts as wall time.
Nested iteration is tried with several ladders of meshes on parameters of their own, and the fastest one takes part
beside the mesh that is four times coarser. The reduced answer is corrected by the full residual and the factorised
inner product of its certificate, in as many steps as are fastest on those parameters. Such corrections are no Newton
steps, and are listed beside them. Nested iteration with the same corrections, which is a method of its own, stands
beside.
"""

import itertools
import time
from collections.abc import Callable

import dolfinx
import numpy as np

from pdeopt.bench.harness import say
from pdeopt.bench.rom_heat_case import Plate
from pdeopt.bench.study import Study
from pdeopt.fem import forms
from pdeopt.problems.moving_source import MovingSource
from pdeopt.reduced_order import ScaledCorrection
from pdeopt.reduced_order.inner_product import Array

# Meshes are coarser by these factors, the coarsest first.
LADDERS = ((2,), (4,), (8,), (8, 2), (8, 4, 2), (16, 4))
CORRECTIONS = (0, 1, 2, 3, 4)
_RTOL = 1e-10


class NestedIteration:
    """Starts a solve from the solution on a coarser mesh, which may start from one that is coarser still.

    Parameters
    ----------
    plate
        The full problem.
    ladder
        Factors by which the meshes are coarser, the coarsest first.

    Collective: yes.
    """

    def __init__(self, plate: Plate, ladder: tuple[int, ...]) -> None:
        self._plate = plate
        comm = plate.product.comm
        cells = [max(plate.size.cells // factor, 2) for factor in ladder]
        meshes = [dolfinx.mesh.create_unit_square(comm, count, count) for count in cells]
        self._levels = [MovingSource(mesh) for mesh in meshes]
        self._solvers = [level.solver(f"nested_{factor}_") for level, factor in zip(self._levels, ladder, strict=True)]
        spaces = [*(level.space for level in self._levels), plate.problem.space]
        self._transfers = []
        for lower, upper in itertools.pairwise(spaces):
            topology = upper.mesh.topology
            owned = np.arange(topology.index_map(topology.dim).size_local, dtype=np.int32)
            data = dolfinx.fem.create_interpolation_data(upper, lower, owned, padding=1e-8)
            self._transfers.append((owned, data))
        self._start = dolfinx.fem.Function(plate.problem.space)

    def __call__(self) -> Array:
        """Return the start's owned values at the plate's present parameters. Collective: yes."""
        problem = self._plate.problem
        parameter = np.array([*problem.centre.value, problem.amplitude.value])
        targets = [*(level.u for level in self._levels[1:]), self._start]
        self._levels[0].u.x.array[:] = 0.0
        for level, solver, target, (cells, data) in zip(
            self._levels, self._solvers, targets, self._transfers, strict=True
        ):
            level.set_parameter(parameter)
            solver.solve()
            target.interpolate_nonmatching(level.u, cells, data)
            target.x.scatter_forward()
        return np.array(forms.owned_values(self._start))


def measure_starts(study: Study, plate: Plate, count: int) -> None:
    """Compare starts of the full solve over unseen parameters. Collective: yes."""
    say(study.comm, f"  starts of the full solve at {count} parameters")
    validation = plate.problem.parameters(2 if count < 10 else 5, "bench.rom.heat.ladders", study.settings.seed)

    def reduced() -> Array:
        return plate.model.field(plate.model.propose().coordinates)

    ladders = {ladder: NestedIteration(plate, ladder) for ladder in LADDERS}
    costs = {"-".join(map(str, ladder)): _cost(plate, validation, start) for ladder, start in ladders.items()}
    for name, cost in costs.items():
        study.row("heat, ladders of nested iteration", {"times coarser": name, "seconds, mean": cost})
    best, nested = min(zip(costs, ladders.values(), strict=True), key=lambda item: costs[item[0]])
    chosen: dict[str, tuple[int, Callable[[], Array]]] = {}
    for name, start in (("nested iteration", nested), ("reduced model", reduced)):
        corrected = {number: _corrected(plate, start, number) for number in CORRECTIONS}
        by_number = {number: _cost(plate, validation, corrected[number]) for number in CORRECTIONS}
        for number, cost in by_number.items():
            study.row("heat, corrections of a start", {"start": name, "corrections": number, "seconds, mean": cost})
        fewest = min(by_number, key=lambda number: by_number[number])
        chosen[name] = fewest, corrected[fewest]

    arms: dict[str, tuple[int, Callable[[], Array] | None]] = {
        "zero": (0, None),
        "solution on a mesh 4 times coarser": (0, ladders[(4,)]),
        f"fastest nested iteration, {best} times coarser": (0, nested),
        "interpolation in the parameter": (
            0, lambda: plate.model.field(plate.interpolation(plate.problem.parameter())),
        ),
        "reduced model": (0, reduced),
        "fastest nested iteration, corrected": chosen["nested iteration"],
        "reduced model, corrected": chosen["reduced model"],
    }  # fmt: skip
    parameters = plate.problem.parameters(count, "bench.rom.heat.starts", study.settings.seed)
    found = np.array([[_run(plate, parameter, start) for _, start in arms.values()] for parameter in parameters])
    steps, seconds = found[:, :, 0], found[:, :, 1]
    for number, (arm, (corrections, _)) in enumerate(arms.items()):
        study.row("heat, starts of the full solve", {
            "start": arm, "corrections": corrections, "Newton steps, mean": float(steps[:, number].mean()),
            "most": int(steps[:, number].max()), "seconds, median": float(np.median(seconds[:, number])),
            "corrected model faster, share": float((seconds[:, -1] < seconds[:, number]).mean()),
            "corrected model over this, greatest": float((seconds[:, -1] / seconds[:, number]).max()),
        })  # fmt: skip
    rivals = slice(1, 3)
    fewer = (steps[:, -1] < steps[:, rivals].min(axis=1)) & (seconds[:, -1] < seconds[:, rivals].min(axis=1))
    ratios = seconds[:, -1] / seconds[:, rivals].min(axis=1)
    study.target("7a", "fewer Newton steps and less wall than nested iteration, share", float(fewer.mean()), 0.8, True)
    study.target("7b", "wall over that of nested iteration: greatest", float(ratios.max()), 1.05)


def _corrected(plate: Plate, start: Callable[[], Array], steps: int) -> Callable[[], Array]:
    """Return a start with corrections by the factorised inner product, which is there beforehand. Collective: yes."""
    if steps == 0:
        return start
    problem = plate.problem
    correction = ScaledCorrection(problem.residual, problem.u, plate.product, problem.bcs, steps)
    return lambda: correction(start())


def _cost(plate: Plate, parameters: Array, start: Callable[[], Array]) -> float:
    """Return mean wall seconds of solves from a start. Collective: yes."""
    return float(np.mean([_run(plate, parameter, start)[1] for parameter in parameters]))


def _run(plate: Plate, parameter: Array, start: Callable[[], Array] | None) -> tuple[int, float]:
    """Return Newton steps and wall seconds of one solve, its start included. Collective: yes."""
    problem, snes, comm = plate.problem, plate.solver.solver, plate.product.comm
    problem.set_parameter(parameter)
    problem.u.x.array[:] = 0.0
    vector, residual = plate.solver.x, plate.solver.b
    vector.set(0.0)
    snes.computeFunction(vector, residual)
    kept = snes.getTolerances()
    snes.setTolerances(rtol=1e-50, atol=_RTOL * residual.norm(), stol=0.0)
    comm.barrier()
    started = time.perf_counter()
    if start is not None:
        forms.set_function(problem.u, start())
    plate.solver.solve()
    comm.barrier()
    seconds = time.perf_counter() - started
    snes.setTolerances(rtol=kept[0], atol=kept[1], stol=kept[2])
    return snes.getIterationNumber(), seconds
