"""Lines 1, 2 and 6 of the optimiser: small test problems beside IPOPT, the published example, hopeless problems."""

import time
from collections.abc import Callable, Sequence

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np
import numpy.typing as npt

from pdeopt.bench import optimise_sets as sets
from pdeopt.bench.harness import Row, say
from pdeopt.bench.optimise_ipopt import kkt_residual, solve_by_ipopt
from pdeopt.bench.study import Study, number
from pdeopt.optimise.from_numpy import numpy_program
from pdeopt.optimise.matrix_kkt import DirectionSettings
from pdeopt.optimise.newton import AdaSketch
from pdeopt.optimise.petsc import TaoSettings
from pdeopt.optimise.settings import AdaSketchSettings, Tolerances
from pdeopt.optimise.solve import minimise
from pdeopt.problems import read_s2mpj
from pdeopt.problems.nonlinear_program import NonlinearProgram
from pdeopt.problems.published_control import PublishedPoissonControl
from pdeopt.report import ConvergenceError, PdeoptError, SolveReport

Array = npt.NDArray[np.float64]
_THIS = __name__
_TOLERANCE, _PUBLISHED_TOLERANCE = 1e-8, 1e-4
_LIMIT = 1000
_SAME_VALUE = 1e-5  # relative: what the files print have five to eight digits
_PUBLISHED = TaoSettings(constraint_penalty=1.0, gradient_penalty=0.1, least_squares_multipliers=False)
_HISTORY = {"kaczmarz": (19.19, 7.1e-2, 4.7e-4, 4.1e-6), "gaussian": (19.19,)}


def measure(study: Study, quick: bool) -> None:
    """Measure the three lines. Collective: yes."""
    for name, part in (("test problems", _test_problems), ("published example", _published), ("failures", _failures)):
        say(study.comm, f"  {name}")
        part(study, quick)


# Line 1 --------------------------------------------------------------------------------------------------------------


def _test_problems(study: Study, quick: bool) -> None:
    names = sets.PUBLISHED_SET[:12] if quick else sets.PUBLISHED_SET
    ours = [solve_by_pdeopt(name) for name in names]
    for row in ours:
        published = sets.PUBLISHED_ITERATIONS[str(row["problem"])]
        study.row("Test problems of the publication", row | {"published outer": published})
    two = study.case(f"{_THIS}:solve_names", 2, names=list(names))
    study.row("The same on two ranks", two)
    solved = [row for row in ours if row["converged"]]
    missed = len(names) - len(solved)
    study.target("1a", f"of {len(names)} published problems not solved to 1e-8", missed, 0)
    study.target("1a.ranks", "the same on two ranks", number(two, "not solved"), 0)
    study.target("1b", "mean outer iterations", float(np.mean([number(row, "iterations") for row in solved])), 6.4)
    higher = [row["problem"] for row in ours if _worse(row)]
    study.target("1c", f"objectives above the printed value{_list(higher)}", len(higher), 0)
    _sketched(study, names, quick)
    rivals = sets.EQUALITY_SET[:10] if quick else sets.EQUALITY_SET
    rows = [row for name in rivals for row in (solve_by_pdeopt(name), solve_by_ipopt(_read(name)))]
    for row in rows:
        study.row("Equality constraints and an objective: all of S2MPJ", row)
    counts = {
        method: sum(bool(row["converged"]) for row in rows if row["method"] == method) for method in ("pdeopt", "IPOPT")
    }
    study.target("1d", f"of {len(rivals)} solved; the bound is IPOPT's count", counts["pdeopt"], counts["IPOPT"], True)


def _sketched(study: Study, names: Sequence[str], quick: bool) -> None:
    """Run the published direction solver with a practical accuracy, to the published tolerance."""
    for seed in range(1 if quick else 3):
        rows = [solve_by_pdeopt(name, "kaczmarz", seed, _PUBLISHED_TOLERANCE, 50) for name in names]
        solved = [number(row, "iterations") for row in rows if row["converged"]]
        study.row(
            "Kaczmarz directions, to 1e-4 as published (45 of 47, mean 6.4)",
            {"seed": seed, "problems": len(rows), "solved": len(solved), "mean outer": float(np.mean(solved)),
             "median outer": float(np.median(solved)), "seconds": sum(number(row, "seconds") for row in rows)},
        )  # fmt: skip


def _list(names: Sequence[object]) -> str:
    return f" ({', '.join(map(str, names))})" if names else ""


def _read(name: str) -> NonlinearProgram:
    return read_s2mpj(name, *sets.PUBLISHED_ARGUMENTS.get(name, ()))


def _worse(row: Row) -> bool:
    """Whether the objective is above what the problem's file prints."""
    known = row["known value"]
    if known is None or not row["converged"]:
        return False
    return number(row, "objective") > float(known) + _SAME_VALUE * max(1.0, abs(float(known)))


def solve_by_pdeopt(
    name: str, solver: str = "factorisation", seed: int = 0, tolerance: float = _TOLERANCE, limit: int = _LIMIT
) -> Row:
    """Solve one problem of the collection and judge the result by its unscaled infinity norms. Collective: no."""
    problem = _read(name)
    program = numpy_program(problem, settings=DirectionSettings(solver), prefix="small_")
    started = time.perf_counter()
    message = ""
    report: SolveReport | None
    options = PETSc.Options()
    options["small_kkt_ksp_sketch_seed"] = seed
    try:
        report = minimise(program, rtol=tolerance, max_iterations=limit)
    except ConvergenceError as error:
        report, message = error.report, str(error)
    finally:
        options.delValue("small_kkt_ksp_sketch_seed")
    seconds = time.perf_counter() - started
    row: Row = {"problem": name, "method": "pdeopt", "unknowns": problem.size, "constraints": problem.constraint_count}
    point = program.create()
    program.get(point)
    residual = kkt_residual(problem, np.array(point.primal.array_r), np.array(point.dual.array_r))
    point.destroy()
    program.destroy()
    return row | {
        "converged": residual.largest <= tolerance,
        "said converged": report is not None and report.converged,
        "iterations": report.iterations if report is not None else None,
        "evaluations": int(report.quantities.get("evaluations", 0)) if report is not None else None,
        "objective": float(report.quantities["objective"]) if report is not None and report.quantities else None,
        "known value": problem.known_value,
        "KKT residual": residual.largest,
        "feasibility": residual.feasibility,
        "seconds": seconds,
        "message": message[:120],
    }


def solve_names(comm: MPI.Comm, names: Sequence[str]) -> Row:
    """Solve problems with the linear algebra over all ranks; say how many were not solved. Collective: yes."""
    failed, iterations = 0, []
    for name in names:
        program = numpy_program(_read(name), comm)
        try:
            iterations.append(minimise(program, rtol=_TOLERANCE, max_iterations=_LIMIT).iterations)
        except ConvergenceError:
            failed += 1
        program.destroy()
    return {"ranks": comm.size, "problems": len(names), "not solved": failed, "mean outer": float(np.mean(iterations))}


# Line 2 --------------------------------------------------------------------------------------------------------------


def _published(study: Study, quick: bool) -> None:
    """Solve the control problem of the publication, N = 3, by every direction solver."""
    problem = PublishedPoissonControl(3).program()
    optimum = PublishedPoissonControl(3).solution()
    minimise(problem)  # what is loaded once
    for solver in ("factorisation", "ksp", "history", "sgmres", "block", "kaczmarz", *(() if quick else ("gaussian",))):
        seeds = 1 if quick or solver in ("factorisation", "ksp", "history") else 20
        rows = [_solve_published(problem, optimum, solver, seed) for seed in range(seeds)]
        study.row("Published control problem, N = 3, to 1e-4", _summary(solver, rows))
    exact = [_capped(problem, "kaczmarz", seed) for seed in range(1 if quick else 20)]
    table = np.array([history[:4] for history in exact])
    study.row(
        "Published control problem, N = 3: KKT norms with 1e5 Kaczmarz steps a solve",
        {"outer": len(_HISTORY["kaczmarz"]) - 1, **{f"step {k}": float(np.median(table[:, k])) for k in range(4)},
         **{f"published {k}": value for k, value in enumerate(_HISTORY["kaczmarz"])}},
    )  # fmt: skip
    ratio = np.abs(np.log10(np.median(table, axis=0) / np.array(_HISTORY["kaczmarz"])))
    study.target("2a", "published KKT norms: largest distance in decades", float(np.max(ratio)), 0.5)
    study.target("2a.outer", "outer iterations, worst seed (published: 3)", max(len(h) - 1 for h in exact), 3)
    times = [_solve_published(problem, optimum, "factorisation", 0) for _ in range(5)]
    study.target("2b", "seconds, median", float(np.median([number(row, "seconds") for row in times])), 0.02)


def _summary(solver: str, rows: Sequence[Row]) -> Row:
    outer = [number(row, "outer") for row in rows]
    return {
        "solver": solver,
        "seeds": len(rows),
        "solved": sum(bool(row["converged"]) for row in rows),
        "outer": float(np.median(outer)),
        "worst outer": float(np.max(outer)),
        "inner": float(np.median([number(row, "inner") for row in rows])),
        "error": float(np.max([number(row, "error") for row in rows])),
        "seconds": float(np.median([number(row, "seconds") for row in rows])),
    }


def _solve_published(problem: NonlinearProgram, optimum: Array, solver: str, seed: int) -> Row:
    program = numpy_program(problem, settings=DirectionSettings(solver), prefix="small_")
    options = PETSc.Options()
    options["small_kkt_ksp_sketch_seed"] = seed
    started = time.perf_counter()
    try:
        report = minimise(program, rtol=_PUBLISHED_TOLERANCE, settings=_PUBLISHED)
        converged, outer, inner = True, report.iterations, report.linear_iterations
    except ConvergenceError as error:
        converged, outer, inner = False, error.report.iterations if error.report else 0, 0
    finally:
        options.delValue("small_kkt_ksp_sketch_seed")
    seconds = time.perf_counter() - started
    point = program.create()
    program.get(point)
    error_norm = float(np.max(np.abs(point.primal.array_r - optimum[: problem.size])))
    point.destroy()
    program.destroy()
    return {"converged": converged, "outer": outer, "inner": inner, "error": error_norm, "seconds": seconds}


def _capped(problem: NonlinearProgram, solver: str, seed: int) -> list[float]:
    """Return the KKT norms where every solve takes all sketches that it may, as in the publication."""
    options = PETSc.Options()
    options["small_kkt_ksp_sketch_seed"] = seed
    program = numpy_program(problem, settings=DirectionSettings(solver), prefix="small_")
    settings = AdaSketchSettings(1.0, 0.1, accuracy=1e-12, sharpen=0.0, least_squares_multipliers=False)
    iteration = AdaSketch(program, settings)
    history = [iteration.evaluation.norm]
    tolerances = Tolerances(_PUBLISHED_TOLERANCE, _PUBLISHED_TOLERANCE)
    while iteration.evaluation.norm > _PUBLISHED_TOLERANCE and len(history) < 20:
        iteration.step(tolerances)
        history.append(iteration.evaluation.norm)
    program.destroy()
    options.delValue("small_kkt_ksp_sketch_seed")
    return history


# Line 6 --------------------------------------------------------------------------------------------------------------


def _failures(study: Study, quick: bool) -> None:
    """Problems that have no answer: every one must end with a reason and a sentence."""
    silent = 0
    for name, (problem, solvable) in hopeless_problems().items():
        started = time.perf_counter()
        report: SolveReport | None = None
        message = ""
        try:
            report = minimise(problem, max_iterations=300)
        except ConvergenceError as error:
            report, message = error.report, str(error).partition("): ")[2]
        except PdeoptError as error:
            message = str(error)
        converged = report is not None and report.converged
        wrong = converged is not solvable or (not converged and not message)
        silent += wrong
        study.row(
            "Problems without an answer, and degenerate ones that have one",
            {"problem": name, "has an answer": solvable, "converged": converged,
             "reason": report.reason if report is not None else None, "sentence": message[:110],
             "seconds": time.perf_counter() - started},
        )  # fmt: skip
    study.target("6", "wrong verdicts, or failures without a sentence", silent, 0)


def hopeless_problems() -> dict[str, tuple[NonlinearProgram, bool]]:
    """Return programs of two unknowns, and whether each has a solution."""
    import scipy.sparse as sparse

    def program(
        objective: Callable[[Array], float],
        gradient: Callable[[Array], Array],
        hessian: Callable[[Array, Array], Array],
        constraints: Callable[[Array], Array],
        jacobian: Callable[[Array], Array],
        count: int,
        start: tuple[float, float] = (1.0, 2.0),
    ) -> NonlinearProgram:
        infinite = np.full(2, np.inf)
        return NonlinearProgram(
            name="hopeless",
            start=np.array(start),
            lower=-infinite,
            upper=infinite,
            constraint_lower=np.zeros(count),
            constraint_upper=np.zeros(count),
            objective=objective,
            gradient=gradient,
            constraints=constraints,
            jacobian=lambda x: sparse.csr_array(np.reshape(jacobian(x), (count, 2))),
            hessian=lambda x, p: sparse.csr_array(hessian(x, p)),
        )

    unit = np.eye(2)
    square = (lambda x: float(x @ x), lambda x: 2.0 * x, lambda x, p: 2.0 * unit)
    line = (lambda x: np.array([x[0] + x[1] - 1.0]), lambda x: np.ones((1, 2)), 1)
    parallel, twice = np.ones((2, 2)), np.array([1.0, 2.0])
    logarithm = (
        lambda x: float(np.log(x[0])),
        lambda x: np.array([1.0 / x[0], 0.0]),
        lambda x, p: np.diag([-1.0 / x[0] ** 2, 0.0]),
    )
    return {
        "infeasible: |x|^2 = -1": (
            program(square[0], square[1], lambda x, p: 2.0 * (1.0 + p[0]) * unit, lambda x: np.array([x @ x + 1.0]),
                    lambda x: 2.0 * x, 1),
            False,
        ),
        "infeasible: parallel lines": (
            program(*square, lambda x: np.array([x[0] + x[1] - 1.0, x[0] + x[1] - 2.0]), lambda x: parallel, 2), False
        ),
        "rank-deficient, consistent": (
            program(*square, lambda x: (x[0] + x[1] - 1.0) * twice, lambda x: np.outer(twice, [1.0, 1.0]), 2),
            True,
        ),
        "unbounded, linear": (
            program(lambda x: float(x[0] - x[1]), lambda x: np.array([1.0, -1.0]), lambda x, p: 0.0 * unit, *line),
            False,
        ),
        "unbounded, quadratic": (
            program(lambda x: -float(x @ x), lambda x: -2.0 * x, lambda x, p: -2.0 * unit, *line), False
        ),
        "NaN at the start": (program(*logarithm, *line, start=(-1.0, 2.0)), False),
        "NaN second derivatives": (program(square[0], square[1], lambda x, p: np.nan * unit, *line), False),
        "NaN beyond the start": (program(*logarithm, *line), False),
        "start at a maximum": (
            program(lambda x: float(x[0] ** 4 - x[0] ** 2 + x[1] ** 2),
                    lambda x: np.array([4.0 * x[0] ** 3 - 2.0 * x[0], 2.0 * x[1]]),
                    lambda x, p: np.diag([12.0 * x[0] ** 2 - 2.0, 2.0]),
                    lambda x: np.array([x[1]]), lambda x: np.array([0.0, 1.0]), 1, start=(0.0, 0.0)),
            True,
        ),
    }  # fmt: skip
