"""The single cases of `pdeopt bench control`: problems by name, and what is measured in processes of their own."""

import functools
import pathlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from mpi4py import MPI

import dolfinx
import numpy as np

import pdeopt
from pdeopt import problems
from pdeopt.bench import rivals
from pdeopt.bench.harness import Row, paired_times
from pdeopt.control import ControlProblem
from pdeopt.fem import forms
from pdeopt.report import ConvergenceError, InputError, SolveReport


class Case(Protocol):
    """A model problem of `pdeopt.problems`."""

    problem: ControlProblem
    control: dolfinx.fem.Function


def square(comm: MPI.Comm, cells: int) -> dolfinx.mesh.Mesh:
    """Return the unit square with a number of cells a side. Collective: yes."""
    return dolfinx.mesh.create_unit_square(comm, cells, cells)


def heat_sink_mesh() -> pathlib.Path:
    """Return the heat sink's mesh in the source checkout that this package, or the working directory, belongs to.

    Raises
    ------
    InputError
        If it is in neither.

    Collective: no.
    """
    for root in (pathlib.Path(pdeopt.__file__).resolve().parent.parent, pathlib.Path.cwd()):
        if (root / "meshes" / "heat_sink.msh").exists():
            return root / "meshes" / "heat_sink.msh"
    raise InputError("meshes/heat_sink.msh is not here: run the benchmark in a source checkout of pdeopt")


def build(comm: MPI.Comm, problem: str, cells: int, alpha: float) -> Case:
    """Return a model problem by name; for the heat sink ``cells`` is the number of refinements. Collective: yes."""
    if problem == "heat sink":
        return problems.HeatSinkControl(comm, heat_sink_mesh(), refinements=cells, alpha=alpha)
    if problem == "distributed, 3D":
        return problems.PoissonControl(dolfinx.mesh.create_unit_cube(comm, cells, cells, cells), alpha=alpha)
    kinds: dict[str, Callable[..., Case]] = {
        "distributed": problems.PoissonControl,
        "partial observation": problems.PartialObservationControl,
        "boundary": problems.BoundaryControl,
        "bounds": problems.BoundedPoissonControl,
        "nonlinear": problems.SemilinearControl,
        "constraint": problems.ConstrainedControl,
    }
    return kinds[problem](square(comm, cells), alpha=alpha)


def relative_difference(one: dolfinx.fem.Function, other: dolfinx.fem.Function) -> float:
    """Return the L2 norm of the difference over that of ``other``. Collective: yes."""
    import ufl

    size = forms.assemble_scalar(forms.compile_form(other**2 * ufl.dx))
    difference = forms.assemble_scalar(forms.compile_form((one - other) ** 2 * ufl.dx))
    return float(np.sqrt(difference / size))


def solve(comm: MPI.Comm, problem: str, cells: int, alpha: float, method: str | None = None) -> Row:
    """Solve once: iterations, verified residual, objective, size. Collective: yes."""
    case = build(comm, problem, cells, alpha)
    report = case.problem.solve(method=method)
    row: Row = {
        "unknowns": int(report.quantities["unknowns"]),
        "method": report.method,
        "outer iterations": report.iterations,
        "Krylov iterations": report.linear_iterations,
        "set-up + solve [s]": comm.allreduce(report.seconds["setup"] + report.seconds["solve"], op=MPI.MAX),
        "Riesz residual": float(report.quantities["relative KKT residual (Riesz)"]),
        "objective": float(report.quantities["objective"]),
    }
    case.problem.destroy()
    return row


# LDL^T of MUMPS at its best on KKT matrices: its default ordering takes ten times as long on some of them.
_SYMMETRIC: dict[str, object] = {
    "kkt_pc_type": "cholesky",
    "kkt_mat_mumps_icntl_12": 1,
    "kkt_mat_mumps_icntl_7": 2,
}


def speed(comm: MPI.Comm, problem: str, cells: int, alpha: float, repeat: int, methods: Sequence[str | None]) -> Row:
    """Time set-up and solve of several methods in turn, MUMPS' two factorisations with them. Collective: yes.

    Every call builds, assembles and solves a new problem; assembly is the same for all and is not counted.
    "symmetric" is MUMPS' LDL^T with the best ordering of a sweep, "direct" its LU with the rows in a better order; the
    faster of the two, round by round, is the one to beat.
    """
    methods = [*methods, "symmetric", "direct"]
    names = [method or "default" for method in methods]
    samples: dict[str, list[float]] = {name: [] for name in names}

    def call(method: str | None, name: str) -> SolveReport:
        case = build(comm, problem, cells, alpha)
        with forms.default_options("", _SYMMETRIC if method == "symmetric" else {}):
            report = case.problem.solve(method="direct" if method == "symmetric" else method)
        case.problem.destroy()
        samples[name].append(comm.allreduce(report.seconds["setup"] + report.seconds["solve"], op=MPI.MAX))
        return report

    arms = {name: functools.partial(call, method, name) for method, name in zip(methods, names, strict=True)}
    timings = paired_times(arms, repeat, comm)
    row: Row = {"unknowns": 0}
    for name, timing in timings.items():
        row["unknowns"] = int(timing.result.quantities["unknowns"])
        kept = samples[name][1:]  # the first is the warm-up
        row[f"{name} [s]"] = statistics.median(kept)
        row[f"{name} iterations"] = timing.result.linear_iterations
        row[f"{name} whole call [s]"] = timing.median
    rival = [min(pair) for pair in zip(samples["symmetric"][1:], samples["direct"][1:], strict=True)]
    for name in names[:-2]:
        pairs = zip(rival, samples[name][1:], strict=True)
        row[f"MUMPS / {name}"] = statistics.median(slow / fast for slow, fast in pairs)
    return row


# Other packages by name, and as calls that take communicator, cells and weight.
RIVALS: dict[str, Callable[..., Row]] = {
    "ipopt": rivals.ipopt,
    "dolfinx_adjoint": rivals.dolfinx_adjoint_lbfgsb,
    "dolfinx_adjoint_unscaled": functools.partial(rivals.dolfinx_adjoint_lbfgsb, scaled=False),
}


def compete(comm: MPI.Comm, cells: int, alpha: float, method: str) -> Row:
    """Solve the problem with the known optimum twice, the first time to warm up. Collective: yes.

    Parameters
    ----------
    cells, alpha
        Cells a side, regularisation.
    method
        A method of `ControlProblem.solve`, or a key of `RIVALS`.

    Returns
    -------
    dict
        Among others ``seconds`` of the whole call, from the function spaces on but without the mesh.
    """
    row: Row = {}
    for _ in range(2):
        row = RIVALS[method](comm, cells, alpha) if method in RIVALS else _ours(comm, cells, alpha, method)
    columns = ("seconds", "iterations", "evaluations", "Krylov iterations", "Hessian actions", "converged")
    return {name: row[name] for name in (*columns, "objective", "control error") if name in row}


def _ours(comm: MPI.Comm, cells: int, alpha: float, method: str) -> Row:
    mesh = square(comm, cells)
    started = time.perf_counter()
    case = problems.PoissonControl(mesh, alpha=alpha)
    try:
        report, converged = case.problem.solve(method=method), True
    except ConvergenceError as error:
        if error.report is None:
            raise
        report, converged = error.report, False
    row: Row = {
        "seconds": time.perf_counter() - started,
        "iterations": report.iterations,
        "evaluations": report.quantities.get("gradients"),
        "Krylov iterations": report.linear_iterations,
        "Hessian actions": report.quantities.get("Hessian actions"),
        "converged": converged,
        "objective": case.problem.objective_value(),
        "control error": case.errors()["control"],
    }
    case.problem.destroy()
    return row
