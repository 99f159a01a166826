"""`pdeopt bench time`: unsteady control, flows past a cylinder, saddle points, checkpoints of runs."""

import math

from mpi4py import MPI

import numpy as np

from pdeopt import problems
from pdeopt.bench import checkpoints, cylinder, saddle_points
from pdeopt.bench import time_cases as cases
from pdeopt.bench.harness import BenchResult, BenchSettings, say
from pdeopt.bench.study import Study, number
from pdeopt.control import Checkpoints, taylor_test
from pdeopt.fem.time import BDF2, Theta, TimeScheme

SCHEMES: dict[str, TimeScheme] = {"Crank-Nicolson": Theta(0.5), "implicit Euler": Theta(1.0), "BDF2": BDF2()}


def run(settings: BenchSettings, comm: MPI.Comm) -> BenchResult:
    """Measure line by line what unsteady problems, saddle points and checkpoints must show. Collective: yes."""
    study = Study("time", settings, comm)
    for name, part in (
        ("orders", _orders),
        ("all at once", _all_at_once),
        ("checkpoints in a sweep", _sweeps),
        ("derivatives", _derivatives),
        ("cylinder", cylinder.measure),
        ("saddle points", saddle_points.measure),
        ("checkpoints of runs", checkpoints.measure),
    ):
        say(comm, f"time: {name}")
        part(study, settings.quick)
    return study.result()


def _orders(study: Study, quick: bool) -> None:
    """Line 1: errors in space and time against the known optima, h and dt refined together and alone."""
    sizes = (8, 16) if quick else (16, 32, 64)
    worst: dict[str, float] = {}
    for problem in ("heat", "heat, bounds", "Burgers"):
        for name, scheme in SCHEMES.items():
            if name != "Crank-Nicolson" and (problem == "heat, bounds" or (quick and problem == "Burgers")):
                continue
            history = []
            for cells in sizes if problem != "heat, bounds" else sizes[:2]:
                case = cases.build(study.comm, problem, cells, cells, scheme)
                report = case.problem.solve()
                errors = case.errors()
                history.append(errors)
                case.problem.destroy()
                study.row(
                    "Errors (L2 in space and time) against the known optimum, h and dt together",
                    {"problem": problem, "scheme": name, "n": cells, "steps": cells, **errors, "solver": report.method},
                )
            coarse, fine = history[-2:]
            found = {key: math.log2(coarse[key] / fine[key]) for key in coarse}
            orders = {f"{key} order": order for key, order in found.items()}
            study.row("Orders between the two finest", {"problem": problem, "scheme": name, **orders})
            key = problem if problem == "heat, bounds" else name
            least = found["control"] if problem == "heat, bounds" else min(found.values())
            worst[key] = min(worst.get(key, math.inf), least)
    study.target("1a", "order of state, control, adjoint, Crank-Nicolson", worst["Crank-Nicolson"], 1.9, at_least=True)
    study.target("1b", "the same, implicit Euler", worst["implicit Euler"], 0.9, at_least=True)
    study.target("1c", "the same, BDF2", worst["BDF2"], 1.9, at_least=True)
    study.target("1d", "order of the control with bounds", worst["heat, bounds"], 1.4, at_least=True)


def _all_at_once(study: Study, quick: bool) -> None:
    """Line 1: iterations over steps, meshes and weights; memory of a large problem."""
    steps = (8, 32) if quick else (16, 64, 256)
    meshes = (8, 16) if quick else (32, 64, 128)
    families = [(1e-2, name) for name in SCHEMES] + [(beta, "Crank-Nicolson") for beta in (1e-4, 1e-6) if not quick]
    growth = {"steps": 0.0, "meshes": 0.0}
    worst = 0
    for beta, name in families:
        for what, plan in (
            ("steps", [(meshes[0], count) for count in steps]),
            ("meshes", [(cells, steps[0]) for cells in meshes]),
        ):
            counts = []
            for cells, count in plan:
                case = problems.HeatControl(cases.square(study.comm, cells), count, beta=beta, scheme=SCHEMES[name])
                report = case.problem.solve(method="all_at_once")
                case.problem.destroy()
                counts.append(report.linear_iterations)
                study.row(
                    "Krylov iterations, all steps at once",
                    {
                        "beta": beta,
                        "scheme": name,
                        "n": cells,
                        "steps": count,
                        "unknowns": report.quantities["unknowns"],
                        "iterations": report.linear_iterations,
                        "residual": report.residuals[-1],
                        "total [s]": report.seconds["total"],
                    },
                )
            growth[what] = max(growth[what], max(counts) / counts[0] - 1.0)
            worst = max(worst, *counts)
    span = f"{steps[0]} to {steps[-1]} steps"
    study.target("1e", f"growth of the iterations from {span}, schemes and weights", growth["steps"], 0.25)
    study.target("1f", f"growth from n = {meshes[0]} to {meshes[-1]}", growth["meshes"], 0.25)
    study.target("1g", "iterations at most", worst, 25)
    cells, count = (16, 16) if quick else (128, 102)
    row = study.case("pdeopt.bench.time_cases:large", 2, cells=cells, steps=count)
    study.row("A large problem on 2 ranks", row)
    if not quick:
        study.target("1h", "unknowns of the large problem", number(row, "unknowns"), 5e6, at_least=True)
    study.target("1i", "its peak memory in all [MiB]", number(row, "peak memory [MiB]"), 8192.0)
    table = "Sweeps of the preconditioner, beta = 1e-2: one step after the other, and all together"
    if quick:
        study.row(table, cases.sweeps(study.comm, 8, 8, repeat=1))
        return
    for cells, count in ((32, 64), (64, 64), (32, 256)):
        for ranks in (1, 2):
            row = study.case("pdeopt.bench.time_cases:sweeps", ranks, cells=cells, steps=count, repeat=2)
            study.row(table, row)


def _sweeps(study: Study, quick: bool) -> None:
    """Line 1: memory of the reduced approach as the schedule promises, the same gradient in every bit."""
    steps = 24 if quick else 200
    reference, equal, within = None, True, True
    for kept in (None, Checkpoints(10), Checkpoints(3), Checkpoints(2, 6)):
        case = cases.build(study.comm, "Burgers", 32 if quick else 128, steps, Theta(0.5), kept)
        functional = case.problem.functional
        control, gradient = functional.create_vector(), functional.create_vector()
        control.array[:] = 0.1
        functional.derivative(control, gradient)
        sweep = functional.sweep
        assert sweep is not None
        values = np.array(gradient.array_r)
        reference = values if reference is None else reference
        same = bool(np.array_equal(values, reference))
        equal &= same
        if kept is not None:
            within &= sweep.peak_in_memory <= kept.in_memory and sweep.peak_on_disk <= kept.on_disk
        study.row(
            "Checkpoints of a sweep, Burgers",
            {
                "in memory": "all" if kept is None else kept.in_memory,
                "on disk": 0 if kept is None else kept.on_disk,
                "steps": steps,
                "steps computed": sweep.forward_steps,
                "most in memory": sweep.peak_in_memory,
                "most on disk": sweep.peak_on_disk,
                "states kept [bytes]": sweep.peak_bytes,
                "gradient equal in every bit": str(same),
            },
        )
        case.problem.destroy()
    study.target(
        "1j", "gradient equal in every bit with and without checkpoints (1: yes)", float(equal), 1.0, at_least=True
    )
    study.target("1k", "checkpoints within what the schedule promises (1: yes)", float(within), 1.0, at_least=True)


def _derivatives(study: Study, quick: bool) -> None:
    """Line 2: Taylor remainders of the nonlinear problem with every scheme."""
    gradient, hessian = math.inf, math.inf
    for name, scheme in SCHEMES.items():
        case = cases.build(study.comm, "Burgers", 16 if quick else 64, 8 if quick else 32, scheme)
        report = taylor_test(case.problem.functional, seed=study.settings.seed)
        case.problem.destroy()
        gradient, hessian = min(gradient, report.gradient_order), min(hessian, report.hessian_order)
        study.row(
            "Taylor remainders, Burgers",
            {"scheme": name, "order with gradient": report.gradient_order, "order with Hessian": report.hessian_order},
        )
    study.target("2a", "Taylor order with the gradient, unsteady nonlinear", gradient, 1.99, at_least=True)
    study.target("2b", "Taylor order with the Hessian, unsteady nonlinear", hessian, 2.95, at_least=True)
