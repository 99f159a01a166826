"""Cases of `pdeopt bench time`: problems by name, and one for processes of its own."""

import statistics

from mpi4py import MPI
from petsc4py import PETSc

import dolfinx

from pdeopt import problems
from pdeopt.bench.harness import Row
from pdeopt.control import Checkpoints
from pdeopt.fem.time import TimeScheme
from pdeopt.problems.linear import Mesh


def square(comm: MPI.Comm, cells: int) -> Mesh:
    """Return (-1, 1)^2 with ``cells`` cells a side. Collective: yes."""
    return dolfinx.mesh.create_rectangle(comm, [[-1.0, -1.0], [1.0, 1.0]], [cells, cells])


def build(
    comm: MPI.Comm,
    name: str,
    cells: int,
    steps: int,
    scheme: TimeScheme,
    checkpoints: Checkpoints | None = None,
) -> problems.ManufacturedUnsteadyControl:
    """Return the problem "heat", "heat, bounds" or "Burgers". Collective: yes."""
    if name == "Burgers":
        mesh = dolfinx.mesh.create_unit_interval(comm, cells)
        return problems.BurgersControl(mesh, steps, scheme=scheme, checkpoints=checkpoints)
    bounds = (0.0, 80.0) if name == "heat, bounds" else None
    return problems.HeatControl(square(comm, cells), steps, scheme=scheme, bounds=bounds, checkpoints=checkpoints)


def sweeps(comm: MPI.Comm, cells: int, steps: int, repeat: int) -> Row:
    """Solve the heat problem all at once with both kinds of sweeps in turn. Collective: yes."""
    case = problems.HeatControl(square(comm, cells), steps)
    functional = case.problem.functional
    zero, options = functional.create_vector(), PETSc.Options()
    seconds: dict[str, list[float]] = {"sequential": [], "waveform": []}
    iterations = {}
    for number in range(repeat + 1):
        for sweep in sorted(seconds, reverse=bool(number % 2)):
            options["kkt_sweep"] = sweep
            functional.set_control(zero)
            report = case.problem.solve(method="all_at_once")
            iterations[sweep] = report.linear_iterations
            if number > 0:  # the first round warms up
                seconds[sweep].append(comm.allreduce(report.seconds["linear solves"], op=MPI.MAX))
    del options["kkt_sweep"]
    return {
        "n": cells,
        "steps": steps,
        "ranks": comm.size,
        **{f"iterations, {sweep}": iterations[sweep] for sweep in seconds},
        **{f"{sweep} [s]": statistics.median(seconds[sweep]) for sweep in seconds},
        "sequential / waveform": statistics.median(a / b for a, b in zip(*seconds.values(), strict=True)),
    }


def large(comm: MPI.Comm, cells: int, steps: int) -> Row:
    """Solve the heat problem all at once and report size, iterations, time and memory. Collective: yes."""
    case = problems.HeatControl(square(comm, cells), steps)
    report = case.problem.solve(method="all_at_once")
    return {
        "n": cells,
        "steps": steps,
        "unknowns": report.quantities["unknowns"],
        "iterations": report.linear_iterations,
        "residual": report.residuals[-1],
        "set-up + solve [s]": report.seconds["total"],
    }
