"""`pdeopt bench control`: solvers of the optimality system side by side, on the problem with a known optimum."""

import functools
import statistics

from mpi4py import MPI

import dolfinx

from pdeopt.bench.harness import BenchResult, BenchSettings, Row, Target, paired_times, say
from pdeopt.problems import PoissonControl
from pdeopt.report import SolveReport

ALPHAS = (1e-2, 1e-4, 1e-6, 1e-8)
METHODS = ("pearson_wathen", "matched_schur", "direct")


def run(settings: BenchSettings, comm: MPI.Comm) -> BenchResult:
    """Measure iterations over meshes and weights, and set-up and solve against MUMPS. Collective: yes."""
    meshes = (16, 32) if settings.quick else (64, 128, 256)
    rows: list[Row] = []
    worst, growth = 0, 0.0
    for alpha in ALPHAS:
        counts = []
        for cells in meshes:
            say(comm, f"alpha {alpha:g}, {cells} cells a side")
            mesh = dolfinx.mesh.create_unit_square(comm, cells, cells)
            for method in METHODS:
                case = PoissonControl(mesh, alpha=alpha)
                report = case.problem.solve(method=method)
                if method == "pearson_wathen":
                    counts.append(report.linear_iterations)
                residual = float(report.quantities["relative KKT residual (Riesz)"])
                rows.append(
                    {
                        "table": "iterations",
                        "method": method,
                        "alpha": alpha,
                        "n": cells,
                        "Krylov iterations": report.linear_iterations,
                        "Riesz residual": residual,
                        "control error": case.errors()["control"],
                    }
                )
        worst, growth = max(worst, *counts), max(growth, counts[-1] / counts[0] - 1.0)
    speed = _speed(settings, meshes[-1], comm, rows)
    targets = [
        Target("control.3a", "MINRES with Pearson-Wathen: iterations at every alpha and mesh", worst, 22),
        Target("control.3b", "their growth over the meshes", growth, 0.25),
        Target("control.3c", f"MUMPS / matched Schur, set-up and solve, n = {meshes[-1]}", speed, 3.0, ">="),
    ]
    return BenchResult("control", rows, targets)


def _speed(settings: BenchSettings, cells: int, comm: MPI.Comm, rows: list[Row]) -> float:
    """Time the methods in turn; return MUMPS over matched Schur in seconds of set-up and solve. Collective: yes."""
    samples: dict[str, list[float]] = {method: [] for method in METHODS}
    mesh = dolfinx.mesh.create_unit_square(comm, cells, cells)

    def solve(method: str) -> SolveReport:
        case = PoissonControl(mesh, alpha=1e-4)
        report = case.problem.solve(method=method)
        case.problem.destroy()
        samples[method].append(comm.allreduce(report.seconds["setup"] + report.seconds["solve"], op=MPI.MAX))
        return report

    times = paired_times({method: functools.partial(solve, method) for method in METHODS}, settings.repeat, comm)
    for method, timing in times.items():
        seconds = timing.result.seconds
        rows.append(
            {
                "table": "seconds",
                "method": method,
                "n": cells,
                "ranks": comm.size,
                "whole call, median": timing.median,
                "set-up + solve, median": statistics.median(samples[method][1:]),
                "set-up, last": seconds["setup"],
                "solve, last": seconds["solve"],
            }
        )
    pairs = zip(samples["direct"][1:], samples["matched_schur"][1:], strict=True)  # the first of each is a warm-up
    return statistics.median(slow / fast for slow, fast in pairs)
