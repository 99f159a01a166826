"""`pdeopt bench control`: orders, derivatives, iterations, speed and memory of the solvers of control problems."""

import dataclasses
import itertools
import math
from collections.abc import Callable

from mpi4py import MPI

import numpy as np

from pdeopt import problems
from pdeopt.bench import control_cases as cases
from pdeopt.bench.harness import BenchResult, BenchSettings, Row, say
from pdeopt.bench.study import Study, number
from pdeopt.control import taylor_test
from pdeopt.control.reduced import Functional
from pdeopt.parallel import random_stream
from pdeopt.report import PdeoptError

ALPHAS = (1e-2, 1e-4, 1e-6, 1e-8)
STRUCTURE_ALPHAS = (1e-2, 1e-4, 1e-6)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Cells a side of every part; refinements for the heat sink."""

    orders: tuple[int, ...] = (16, 32, 64, 128)
    iterations: tuple[int, ...] = (64, 128, 256, 512)
    speed: tuple[int, ...] = (256, 512)
    memory: int = 600
    heat_sink: int = 2
    cube: int = 48
    structures: tuple[int, ...] = (32, 64, 128)
    structures_3d: tuple[int, ...] = (8, 16, 32)
    ranks: int = 64
    rivals: tuple[int, ...] = (32, 64, 128)


_QUICK = Sizes(
    orders=(16, 32), iterations=(16, 32), speed=(32,), memory=32, heat_sink=0, cube=8, structures=(8, 16, 32),
    structures_3d=(4, 8, 16), ranks=16, rivals=(16,),
)  # fmt: skip


class _Bench(Study):
    """The study, and the sizes of its parts."""

    def __init__(self, settings: BenchSettings, comm: MPI.Comm) -> None:
        super().__init__("control", settings, comm)
        self.sizes = _QUICK if settings.quick else Sizes()

    def run_in_processes(self, name: str, ranks: int, **arguments: object) -> Row:
        """Run one case of `pdeopt.bench.control_cases`. Collective: yes."""
        return self.case(f"pdeopt.bench.control_cases:{name}", ranks, **arguments)


def run(settings: BenchSettings, comm: MPI.Comm) -> BenchResult:
    """Measure line by line what control problems must show. Collective: yes."""
    bench = _Bench(settings, comm)
    for part in (_orders, _derivatives, _iterations, _speed, _memory, _structures, _ranks, _rivals):
        say(comm, f"control: {part.__name__.strip('_')}")
        part(bench)
    return bench.result()


def _orders(bench: _Bench) -> None:
    """Line 1: errors against the known optima, and the orders between the two finest meshes."""
    kinds: list[tuple[str, int, Callable[..., problems.ManufacturedControl], float]] = [
        ("distributed", 1, problems.PoissonControl, 1e-6),
        ("distributed", 2, problems.PoissonControl, 1e-6),
        ("bounds", 1, problems.BoundedPoissonControl, 1e-2),
        ("boundary", 1, problems.BoundaryControl, 1e-2),
        ("nonlinear", 1, problems.SemilinearControl, 1e-2),
        ("constraint", 1, problems.ConstrainedControl, 1e-2),
    ]
    found: dict[tuple[str, int], dict[str, float]] = {}
    for name, degree, kind, alpha in kinds:
        history: list[dict[str, float]] = []
        for cells in bench.sizes.orders:
            case = kind(cases.square(bench.comm, cells), alpha=alpha, degree=degree)
            report = case.problem.solve(method="direct")
            errors = case.errors()
            if isinstance(case, problems.PoissonControl):
                objective = float(report.quantities["objective"])
                errors["objective"] = abs(objective - case.exact_objective) / case.exact_objective
            if name == "constraint":
                errors["constraint"] = float(np.max(np.abs(case.problem.system.constraint_values())))
            case.problem.destroy()
            history.append(errors)
            columns: Row = {"problem": name, "degree": degree, "n": cells, "alpha": alpha, **errors}
            bench.row("Errors (L2) against the known optimum", columns)
        coarse, fine = history[-2:]
        found[name, degree] = {key: math.log2(coarse[key] / fine[key]) for key in coarse if fine[key] > 0.0}
        found[name, degree]["last objective"] = fine.get("objective", math.nan)
        found[name, degree]["constraint"] = max(entry.get("constraint", 0.0) for entry in history)
        orders = {f"{key} order": found[name, degree][key] for key in ("state", "control", "adjoint")}
        bench.row("Orders between the two finest meshes", {"problem": name, "degree": degree, **orders})
    fields = ("state", "control", "adjoint")
    linear, quadratic = found["distributed", 1], found["distributed", 2]
    bench.target("1a", "order of state, control, adjoint, P1", min(linear[f] for f in fields), 1.95, at_least=True)
    bench.target("1b", "order of state, control, adjoint, P2", min(quadratic[f] for f in fields), 2.9, at_least=True)
    bench.target("1c", "order of the objective, P1", linear["objective"], 1.95, at_least=True)
    bench.target("1d", f"objective's error, P2, n = {bench.sizes.orders[-1]}", quadratic["last objective"], 1e-6)
    bench.target("1e", "order of the control, bounds", found["bounds", 1]["control"], 1.4, at_least=True)
    others = min(found[name, 1]["control"] for name in ("boundary", "nonlinear", "constraint"))
    bench.target("1f", "order of the control, boundary, nonlinear, constraint", others, 1.9, at_least=True)
    bench.target("1g", "constraint at the optimum", found["constraint", 1]["constraint"], 1e-10)


class _Mistaken:
    """A functional whose derivative is wrong by one thousandth."""

    def __init__(self, functional: Functional) -> None:
        self._functional = functional

    def __getattr__(self, name: str) -> object:
        return getattr(self._functional, name)

    def derivative(self, control: object, out: object) -> None:
        self._functional.derivative(control, out)
        out.scale(1.001)  # type: ignore[attr-defined]


def _derivatives(bench: _Bench) -> None:
    """Line 2: Taylor remainders at a control without structure, and with a planted mistake."""
    gradient, hessian, quadratic, planted = math.inf, math.inf, math.inf, 0.0
    for name in ("distributed", "boundary", "partial observation", "constraint", "nonlinear"):
        case = cases.build(bench.comm, name, 16, 1e-2)
        for control in case.problem.controls:
            stream = random_stream("taylor control", bench.settings.seed, bench.comm)
            control.set_coordinates(0.7 + 0.2 * stream.uniform(-1.0, 1.0, control.size))
        functional = case.problem.reduced_functional()
        report = taylor_test(functional, seed=bench.settings.seed)
        mistaken = taylor_test(_Mistaken(functional), hessian=False, seed=bench.settings.seed)  # type: ignore[arg-type]
        functional.destroy()
        gradient, planted = min(gradient, report.gradient_order), max(planted, mistaken.gradient_order)
        if name == "nonlinear":
            hessian = report.hessian_order
        else:
            quadratic = min(quadratic, report.hessian_order)
        columns: Row = {
            "problem": name,
            "order with gradient": report.gradient_order,
            "order with Hessian": "rounding" if math.isinf(report.hessian_order) else report.hessian_order,
            "order with a planted mistake": mistaken.gradient_order,
        }
        bench.row("Taylor remainders", columns)
    bench.target("2a", "Taylor order with the gradient", gradient, 1.99, at_least=True)
    bench.target("2b", "Taylor order with the Hessian, nonlinear", hessian, 2.95, at_least=True)
    at_rounding = float(math.isinf(quadratic))
    bench.target("2c", "quadratic problems: remainder at rounding (1: yes)", at_rounding, 1.0, at_least=True)
    bench.target("2d", "largest order with a gradient wrong by 1e-3", planted, 1.9)


def _iterations(bench: _Bench) -> None:
    """Line 3, first half: Krylov iterations over meshes and weights, and agreement with MUMPS."""
    worst = {"pearson_wathen": 0, "matched_schur": 0}
    growth, residual, difference = dict.fromkeys(worst, 0.0), 0.0, 0.0
    for alpha in ALPHAS:
        counts: dict[str, list[int]] = {method: [] for method in worst}
        for cells in bench.sizes.iterations:
            say(bench.comm, f"  alpha {alpha:g}, n = {cells}")
            reference = problems.PoissonControl(cases.square(bench.comm, cells), alpha=alpha)
            reference.problem.solve(method="direct")
            for method in worst:
                case = problems.PoissonControl(reference.problem.state.function_space.mesh, alpha=alpha)
                report = case.problem.solve(method=method)
                counts[method].append(report.linear_iterations)
                reached = float(report.quantities["relative KKT residual (Riesz)"])
                apart = max(
                    cases.relative_difference(case.problem.state, reference.problem.state),
                    cases.relative_difference(case.control, reference.control),
                )
                residual, difference = max(residual, reached), max(difference, apart)
                columns: Row = {
                    "method": method,
                    "alpha": alpha,
                    "n": cells,
                    "iterations": report.linear_iterations,
                    "Riesz residual": reached,
                    "difference from MUMPS": apart,
                    "control error": case.errors()["control"],
                }
                bench.row("Krylov iterations, distributed control", columns)
                case.problem.destroy()
            reference.problem.destroy()
        for method, entries in counts.items():
            worst[method] = max(worst[method], *entries)
            growth[method] = max(growth[method], max(entries) / entries[0] - 1.0)
    bench.target("3a", "iterations of Pearson-Wathen MINRES, all weights and meshes", worst["pearson_wathen"], 22)
    bench.target("3b", "their growth over the coarsest mesh's", growth["pearson_wathen"], 0.25)
    bench.target("3c", "iterations of the default (PRESB, FGMRES), all weights and meshes", worst["matched_schur"], 22)
    bench.target("3d", "their growth over the coarsest mesh's", growth["matched_schur"], 0.25)
    bench.target("3e", "relative Riesz residual reached", residual, 1e-8)
    bench.target("3f", "state and control against MUMPS, relative L2", difference, 1e-6)


def _speed(bench: _Bench) -> None:
    """Line 3, second half: set-up and solve against MUMPS, in processes of their own."""
    sizes, slowest = bench.sizes, math.inf
    plan = [("distributed", cells, ranks) for cells in sizes.speed for ranks in (1, 2)]
    plan += [("heat sink", sizes.heat_sink, ranks) for ranks in (1, 2)]
    for problem, cells, ranks in plan:
        repeat = bench.settings.repeat if cells <= 256 else 2
        methods = ["matched_schur", "pearson_wathen"]
        row = bench.run_in_processes(
            "speed", ranks, problem=problem, cells=cells, alpha=1e-4, repeat=repeat, methods=methods
        )  # fmt: skip
        label = "refinements" if problem == "heat sink" else "n"
        bench.row(f"Set-up + solve against MUMPS: {problem}", {label: cells, "ranks": ranks, **row})
        gain = number(row, "MUMPS / matched_schur")
        if problem == "distributed":
            slowest = min(slowest, gain) if math.isfinite(gain) else math.nan
        else:
            bench.target(f"3h{ranks}", f"MUMPS / default, {problem}, {ranks} ranks", gain, 3.0, at_least=True)
    bench.target("3g", "MUMPS / default, unit square, smallest over sizes and ranks", slowest, 3.0, at_least=True)


def _memory(bench: _Bench) -> None:
    """Line 3, memory and space: a million unknowns, and a cube beside MUMPS, one solve each on two ranks."""
    sizes, found = bench.sizes, {}
    for problem, cells, methods in (
        ("distributed", sizes.memory, ("matched_schur", "pearson_wathen")),
        ("distributed, 3D", sizes.cube, ("matched_schur", "direct")),
    ):
        for method in methods:
            row = bench.run_in_processes("solve", 2, problem=problem, cells=cells, alpha=1e-4, method=method)
            bench.row("Memory, and three dimensions: single solves on 2 ranks", {"problem": problem, "n": cells, **row})
            found[problem, method] = row
    least = min(
        number(found["distributed", method], "peak memory [MiB]") for method in ("matched_schur", "pearson_wathen")
    )
    bench.target("3i", f"peak memory, n = {sizes.memory}, 2 ranks in all [MiB]", least, 1024.0)
    seconds = [number(found["distributed, 3D", m], "set-up + solve [s]") for m in ("direct", "matched_schur")]
    gain = seconds[0] / seconds[1]
    bench.target("3j", f"MUMPS / default, cube, n = {sizes.cube}, 2 ranks", gain, 3.0, at_least=True)


def _structures(bench: _Bench) -> None:
    """Line 4: iterations of the other structures over three meshes and three weights."""
    growth = 0.0
    plan: list[tuple[str, str | None, tuple[int, ...]]] = [
        ("partial observation", None, bench.sizes.structures),
        ("nonlinear", None, bench.sizes.structures),
        ("bounds", "reduced_hessian", bench.sizes.structures),
        ("boundary", "reduced_hessian", bench.sizes.structures),
        ("constraint", "reduced_hessian", bench.sizes.structures),
        ("distributed, 3D", None, bench.sizes.structures_3d),
    ]
    for problem, method, meshes in plan:
        for alpha in STRUCTURE_ALPHAS:
            counts = []
            for cells in meshes:
                try:
                    row = cases.solve(bench.comm, problem, cells, alpha, method)
                except PdeoptError as error:
                    row = {"failed": str(error)[:100]}
                counts.append(number(row, "Krylov iterations"))
                bench.row("Iterations by structure", {"problem": problem, "alpha": alpha, "n": cells, **row})
            steps = [fine / coarse - 1.0 for coarse, fine in itertools.pairwise(counts)]
            growth = max([growth, *steps]) if all(math.isfinite(step) for step in steps) else math.nan
    bench.target("4", "largest growth of Krylov iterations per refinement", growth, 0.3)


def _ranks(bench: _Bench) -> None:
    """Line 5: one optimum on every number of ranks."""
    for identifier, method, bound in (("5a", "direct", 1e-10), ("5b", "matched_schur", 1e-7)):
        rows = [
            bench.run_in_processes(
                "solve", ranks, problem="distributed", cells=bench.sizes.ranks, alpha=1e-4, method=method
            )
            for ranks in (1, 2, 3)
        ]
        for row in rows:
            bench.row("The same on every number of ranks", row)
        values = [number(row, "objective") for row in rows]
        counts = [number(row, "Krylov iterations") for row in rows]
        spread = (max(values) - min(values)) / abs(values[0])
        bench.target(identifier, f"objective on 1, 2, 3 ranks, relative spread, {method}", spread, bound)
        if method != "direct":
            bench.target("5c", "spread of their iterations", max(counts) - min(counts), max(2.0, 0.1 * counts[0]))


def _rivals(bench: _Bench) -> None:
    """Line 8: every way to the optimum of one problem, each in a process of its own, its first call not timed."""
    ours = ("matched_schur", "pearson_wathen", "direct", "reduced_hessian", "bqnls", "blmvm", "bntr", "bnls")
    fastest, best_rival, taped = math.nan, math.inf, math.inf
    for cells, alpha in itertools.product(bench.sizes.rivals, (1e-4, 1e-6)):
        for name in (*ours, *cases.RIVALS):
            if name.startswith("dolfinx") and cells > 64:
                continue  # 30 ms an evaluation whatever the mesh: the smaller meshes say it all
            row = bench.run_in_processes("compete", 1, cells=cells, alpha=alpha, method=name)
            bench.row("Ways to one optimum, unit square, 1 rank", {"n": cells, "alpha": alpha, "method": name, **row})
            seconds = number(row, "seconds")
            if name == "matched_schur":
                fastest = seconds
            elif name == "ipopt" and cells == bench.sizes.rivals[-1]:
                best_rival = min(best_rival, seconds / fastest)
            elif name.startswith("dolfinx"):
                taped = min(taped, seconds / fastest)
    last = bench.sizes.rivals[-1]
    bench.target("8a", f"IPOPT / default, whole call, n = {last}, worst weight", best_rival, 3.0, at_least=True)
    bench.target("8b", "dolfinx-adjoint with L-BFGS-B / default, whole call, worst case", taped, 10.0, at_least=True)
