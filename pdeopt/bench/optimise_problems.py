"""Benchmark problems 1 to 12: values beside published ones, a second code, iterations over meshes, random starts."""

import dataclasses
import math
import time
from typing import Any

from mpi4py import MPI

import numpy as np

from pdeopt.bench.harness import Row, say
from pdeopt.bench.optimise_adapter import ControlAdapter
from pdeopt.bench.optimise_ipopt import solve_by_ipopt
from pdeopt.bench.optimise_problem_cases import Case, cases, extrapolate, measure_case
from pdeopt.bench.optimise_starts import random_starts
from pdeopt.bench.study import Study, number
from pdeopt.control import ControlProblem

_THIS = "pdeopt.bench.optimise_problems"
_ACCURATE = 1e-10  # tolerance where values are compared to many digits
_SMALL = {"1": 8, "2": 8, "3": 8, "4": 8, "5": 12, "6": 8, "7": -1, "8": 8, "9": 6, "10": 8, "11": 8, "12": 6}
_QUICK = ("RDW2D52F", "Maurer", "obstacle, soft", "Bratu")
_ON_TWO_RANKS = (("4 bounded boundary control", 16), ("6 coefficient inversion", 16), ("11 Bratu", 16))
_NEAR = 1e-4  # relative size of the perturbation from which a second code looks for the same local minimum


def run_problems(study: Study) -> None:
    """Fill the tables and add the targets of line 3. Collective: yes."""
    quick = study.settings.quick
    chosen = [case for case in cases() if not quick or any(word in case.name for word in _QUICK)]
    if quick:
        chosen = [dataclasses.replace(case, meshes=(8, 16, 32)) for case in chosen]
    _over_meshes(study, chosen)
    _second_codes(study, chosen)
    _starts(study, chosen, 2 if quick else 20)
    if not quick:
        _two_ranks(study)


def _over_meshes(study: Study, chosen: list[Case]) -> None:
    worst, steps, growth = 0.0, 0.0, 0.0
    for case in chosen:
        values: list[float] = []
        counts: list[float] = []
        for mesh in case.meshes:
            say(study.comm, f"  {case.number} {case.name}, mesh {mesh}")
            row, _ = measure_case(case, mesh)
            study.row("Benchmark problems", row)
            values.append(number(row, "value"))
            counts.append(number(row, "steps") if row["converged"] else math.inf)
        if case.nonlinear:
            steps = max(steps, *counts)
            growth = max(growth, (counts[-1] - counts[0]) / (len(counts) - 1))
        row = _beside_reference(case, values)
        study.row("Values", row)
        if "deviation" in row:
            worst = max(worst, number(row, "deviation"))
    study.target("3a", "benchmarks 1-12: deviation from known values, in stated uncertainties", worst, 1.0)
    study.target("3c", "benchmarks 1-12: outer iterations of nonlinear problems, on any mesh", steps, 12.0)
    study.target(
        "3d",
        "benchmarks 1-12: growth of outer iterations by a refinement, mean over the sequence of meshes",
        growth,
        1.0,
    )


def _beside_reference(case: Case, values: list[float]) -> Row:
    """Return the row of the table of values; "lower" values of minima never deviate."""
    limit, uncertainty = extrapolate(values)
    row: Row = {
        "problem": f"{case.number} {case.name}",
        "finest value": values[-1],
        "extrapolated": limit,
        "its uncertainty": uncertainty,
    }
    reference = None if case.reference is None else case.reference()
    if reference is None or reference.mesh not in (None, *case.meshes):
        return row
    ours, own = limit, uncertainty
    if reference.lower:
        ours, own = values[-1], 0.0
    elif reference.mesh is not None:
        ours, own = values[case.meshes.index(reference.mesh)], 0.0
    difference = ours - reference.value
    if reference.lower:
        difference = max(difference, 0.0)
    return row | {
        "compared": ours,
        "reference": reference.value,
        "uncertainty": reference.uncertainty + own,
        "source": reference.source,
        "deviation": abs(difference) / (reference.uncertainty + own),
    }


def _second_codes(study: Study, chosen: list[Case]) -> None:
    worst = 0.0
    for case in chosen:
        say(study.comm, f"  {case.number} {case.name} by a second code")
        row = study.case(f"{_THIS}:second_code", 1, name=f"{case.number} {case.name}", mesh=_SMALL[case.number])
        study.row("A second code on the same discretisation", _without_process(row))
        worst = max(worst, abs(number(row, "difference"))) if "difference" in row else math.nan
    study.target("3b", "benchmarks 1-12: relative difference of the value from a second code", worst, 1e-6)


def _starts(study: Study, chosen: list[Case], seeds: int) -> None:
    false, failed = 0.0, 0.0
    for case in chosen:
        if len(case.stages) > 1:
            continue
        say(study.comm, f"  {case.number} {case.name} from random starts")
        row = random_starts(case, _SMALL[case.number], seeds)
        study.row("Random starts", row)
        false, failed = false + number(row, "false"), failed + number(row, "failed")
    study.target("3e", "benchmarks 1-12: false 'converged' from random starts", false, 0.0)


def _two_ranks(study: Study) -> None:
    for name, mesh in _ON_TWO_RANKS:
        rows = [study.case(f"{_THIS}:solve_named", ranks, name=name, mesh=mesh) for ranks in (1, 2)]
        values = [number(row, "value") for row in rows]
        study.row(
            "On two ranks",
            {
                "problem": name,
                "mesh": mesh,
                "value on 1 rank": values[0],
                "relative difference on 2": abs(values[1] - values[0]) / abs(values[0]),
                "iterations on 1": rows[0].get("steps"),
                "iterations on 2": rows[1].get("steps"),
            },
        )


def _without_process(row: Row) -> Row:
    return {key: value for key, value in row.items() if key not in ("ranks", "job seconds", "peak memory [MiB]")}


# In processes of their own -------------------------------------------------------------------------------------------


def _named(name: str) -> Case:
    return next(case for case in cases() if f"{case.number} {case.name}" == name)


def solve_named(comm: MPI.Comm, name: str, mesh: int) -> Row:
    """Solve one problem accurately; for comparisons of ranks. Collective: yes."""
    return measure_case(_named(name), mesh, _ACCURATE)[0]


def second_code(comm: MPI.Comm, name: str, mesh: int) -> Row:
    """Solve one problem by the optimiser and by IPOPT, or SciPy for unsteady ones; serial.

    IPOPT starts where the optimiser did. Where that leads it to another local minimum of a problem that is not convex
    it starts anew near the optimiser's.
    """
    case = _named(name)
    ours, instance = measure_case(case, mesh, _ACCURATE)
    value = float(instance.problem.objective_value())
    if isinstance(instance.problem, ControlProblem):
        found, start = _by_ipopt(case, mesh, None), "the same"
        if not case.convex and abs(number(found, "value") - value) > 1e-6 * abs(value):
            found, start = _by_ipopt(case, mesh, instance), "near the minimum"
    else:
        found, start = _by_scipy(case.build(mesh)), "the same"
    return {
        "problem": name,
        "mesh": mesh,
        "value": value,
        "code": found["code"],
        "its start": start,
        "its value": found["value"],
        "difference": (value - number(found, "value")) / abs(value),
        "iterations": ours["iterations"],
        "its iterations": found["iterations"],
        "its KKT residual": found["KKT residual"],
    }


def _by_ipopt(case: Case, mesh: int, minimum: Any) -> Row:
    instance = case.build(mesh)
    if case.stages:
        instance.penalty.value = case.stages[-1]
    adapter = ControlAdapter(instance.problem, case.name)
    program = adapter.program
    if minimum is not None:
        near = ControlAdapter(minimum.problem, case.name)
        x = near.program.start
        noise = np.random.default_rng(0).standard_normal(x.size) * (program.lower < program.upper)
        x = np.clip(x * (1.0 + _NEAR * noise), program.lower, program.upper)
        program = dataclasses.replace(program, start=x)
        near.destroy()
    options: dict[str, str | float] = dict.fromkeys(("tol", "dual_inf_tol", "constr_viol_tol", "compl_inf_tol"), 1e-10)
    if minimum is not None:  # a large barrier parameter would lead it away again
        options |= {"mu_init": 1e-8, "bound_push": 1e-8, "bound_frac": 1e-8}
    row = solve_by_ipopt(program, **options)
    value = number(row, "objective") / adapter.scale
    adapter.destroy()
    kept = {key: row[key] for key in ("iterations", "KKT residual")}
    return {"code": "IPOPT", "value": value, **kept}


def _by_scipy(instance: Any) -> Row:
    """Minimise in the space of the controls by Newton-CG, in the metric of the diagonal of the inner product."""
    import scipy.optimize

    functional = instance.problem.functional
    control, out, direction = (functional.create_vector() for _ in range(3))
    diagonal = functional.inner_product().getDiagonal()
    scale = 1.0 / np.sqrt(np.array(diagonal.array_r))
    started = time.perf_counter()

    def value(z: Any) -> float:
        control.array[:] = scale * z
        return float(functional.value(control))

    def gradient(z: Any) -> Any:
        control.array[:] = scale * z
        functional.derivative(control, out)
        return scale * out.array_r

    def action(z: Any, d: Any) -> Any:
        control.array[:] = scale * z
        direction.array[:] = scale * d
        functional.hessian_action(control, direction, out)
        return scale * out.array_r

    start = np.zeros(scale.size)
    options = {"gtol": 1e-8 * float(np.linalg.norm(gradient(start))), "maxiter": 100}
    result = scipy.optimize.minimize(value, start, jac=gradient, hessp=action, method="trust-krylov", options=options)
    return {
        "code": "SciPy trust-krylov",
        "value": float(result.fun),
        "iterations": int(result.nit),
        "KKT residual": float(np.linalg.norm(result.jac)),
        "seconds": time.perf_counter() - started,
    }
