"""Line 8: a reduced control problem knows the error of its gradient, and saves an optimiser full solves.

The model is enriched at every third iterate of the full problem's own quasi-Newton method and asked at the others,
which it has not seen. Beside its bound stands the one by constants alone, as published, and what the best constant
factor could make of that: a factor cures its mean, never its spread. How much the constants change along the path is
printed, since outside linear-quadratic problems the bound takes them from the first full solve and a safety factor.
"""

import math
import statistics
import time
from collections.abc import Callable

from mpi4py import MPI
from petsc4py import PETSc

import dolfinx
import numpy as np
import ufl
from ufl.core.expr import Expr

from pdeopt.bench.harness import Row, say
from pdeopt.bench.study import Study, number
from pdeopt.control import ControlProblem, ReducedFunctional, minimise
from pdeopt.problems import BratuControl, CoefficientInversion, NavierStokesControl, PoissonControl, SemilinearControl
from pdeopt.reduced_order import Basis, GradientCertificate, InnerProduct, ReducedControl, minimise_by_model
from pdeopt.reduced_order.gradient_error import GradientConstants
from pdeopt.report import ConvergenceError

_PATH = "the error of the reduced gradient at the iterates of a quasi-Newton method"
_SPREAD = "the bounds over all iterates"
_SOLVES = "full solves to a gradient of 1e-6"
_EVERY = 3
_ROUNDING = 1e-11  # of the first gradient: smaller errors are rounding
_RTOL = 1e-6

type Make = Callable[[], ControlProblem]


def measure(study: Study, quick: bool) -> None:
    """Bound gradients along paths, and count full solves. Collective: yes."""
    effectivities: list[float] = []
    for name, make in _cases(study.comm, quick).items():
        say(study.comm, f"  gradient errors: {name}")
        effectivities += _follow(study, name, make, 8 if quick else 60)
    study.target("8a", "bound of the gradient's error over the error: least", min(effectivities), 1.0, True)
    study.target("8b", "bound of the gradient's error over the error: greatest", max(effectivities), 20.0)
    ratios = []
    for name, make in _cases(study.comm, quick).items():
        say(study.comm, f"  trust region: {name}")
        rows = _compare(study, name, make)
        full = [number(row, "linear solves") for arm, row in rows.items() if arm != _MODEL and row["converged"]]
        ratios.append(number(rows[_MODEL], "linear solves") / min(full))
    study.target(
        "8c", "full solves of the trust region on the model over the best full optimiser's: median",
        statistics.median(ratios), 1.0 / 3.0,
    )  # fmt: skip


def _cases(comm: MPI.Comm, quick: bool) -> dict[str, Make]:
    def square(cells: int) -> dolfinx.mesh.Mesh:
        return dolfinx.mesh.create_unit_square(comm, *(2 * (8 if quick else cells,)))

    def cube(cells: int) -> dolfinx.mesh.Mesh:
        return dolfinx.mesh.create_unit_cube(comm, cells, cells, cells)

    cases: dict[str, Make] = {
        "Poisson": lambda: PoissonControl(square(64), alpha=1e-5).problem,
        "Bratu": lambda: BratuControl(square(64), alpha=1e-3).problem,
        "coefficient": lambda: CoefficientInversion(square(64), gamma=1e-6, epsilon=1.0, degree=1).problem,
    }
    if not quick:
        cases |= {
            "semilinear": lambda: SemilinearControl(square(64), alpha=1e-4).problem,
            "Bratu in 3D": lambda: BratuControl(cube(20), alpha=1e-3).problem,
            "flow": lambda: NavierStokesControl(square(16), alpha=1e-3, reynolds=50.0).problem,
        }
    return cases


def _empty_model(problem: ControlProblem) -> ReducedControl:
    space = problem.state.function_space
    mixed = space.num_sub_spaces > 0

    def flow(left: Expr, right: Expr) -> ufl.Form:
        (velocity, pressure), (velocity_test, pressure_test) = ufl.split(left), ufl.split(right)
        return ufl.inner(ufl.grad(velocity), ufl.grad(velocity_test)) * ufl.dx + pressure * pressure_test * ufl.dx

    inner_product = InnerProduct(space, flow if mixed else "h1_seminorm", problem.system.bcs)
    return ReducedControl(problem, Basis(inner_product, np.empty((inner_product.owned, 0))))


class _Recorder:
    """A functional that remembers where its derivative was asked for."""

    def __init__(self, functional: ReducedFunctional) -> None:
        self.functional, self.path = functional, list[PETSc.Vec]()
        self.comm = functional.comm
        for name in ("create_vector", "get_control", "set_control", "value", "hessian_action", "inner_product",
                     "bounds"):  # fmt: skip
            setattr(self, name, getattr(functional, name))

    def derivative(self, control: PETSc.Vec, out: PETSc.Vec) -> None:
        self.path.append(control.copy())
        self.functional.derivative(control, out)


def _follow(study: Study, name: str, make: Make, most: int) -> list[float]:
    """Add a row per iterate that the model has not seen; return the effectivities. Collective: yes."""
    problem = make()
    recorder = _Recorder(problem.reduced_functional())
    minimise(recorder, "bqnls", rtol=_RTOL)  # type: ignore[arg-type]
    path = recorder.path[1:][:most]  # the first is the reference at zero control
    model = _empty_model(problem)
    plain = GradientCertificate(problem.system, model.full, model.basis.inner_product, corrections=0)
    probe = GradientCertificate(problem.system, model.full, model.basis.inner_product)
    found: list[tuple[float, float]] = []
    first, drift = 0.0, 1.0
    for step, control in enumerate(path):
        if step % _EVERY == 0:
            _, exact = model.enrich(control)
            kept = plain.constants = model.certificate.constants
            assert kept is not None
            drift = max(drift, _ratio(probe.renew(), kept))
            first = first or model.certificate.dual_norm(exact)
            continue
        start = time.perf_counter()
        model.set_control(control)
        alone = time.perf_counter() - start
        answer = model(control)
        seconds = time.perf_counter() - start
        worst = plain(answer.derivative, answer.value)
        solver = recorder.functional
        solver.forget()
        exact = model.create_vector()
        start = time.perf_counter()
        solver.derivative(control, exact)
        full_seconds = time.perf_counter() - start
        value = solver.value(control)
        size = model.certificate.dual_norm(exact)
        exact.axpy(-1.0, answer.derivative)
        error = model.certificate.dual_norm(exact)
        if error <= _ROUNDING * first:
            continue
        found.append((answer.error.bound / error, worst.bound / error))
        study.row(
            _PATH,
            {"case": name, "iterate": step, "modes": model.size, "gradient": size, "error": error,
             "bound": answer.error.bound, "effectivity": found[-1][0],
             "it knew: at most": answer.error.largest_effectivity, "by constants alone": found[-1][1],
             "corrections": answer.error.corrections, "error of the value": abs(answer.value - value),
             "its bound": answer.error.value_bound, "model alone [s]": alone,
             "with bounds [s]": seconds, "full [s]": full_seconds},
        )  # fmt: skip
    for arm, column in (("corrected", 0), ("constants alone", 1)):
        values = [pair[column] for pair in found]
        study.row(
            _SPREAD,
            {"case": name, "bound": arm, "least effectivity": min(values), "median": statistics.median(values),
             "greatest": max(values), "with the best factor: greatest over least": max(values) / min(values),
             "constants worse along the path by": drift},
        )  # fmt: skip
    model.destroy()
    problem.destroy()
    return [pair[0] for pair in found]


def _ratio(now: GradientConstants, kept: GradientConstants) -> float:
    """Return by what factor the kept constants would have to be made worse."""
    ratios = [kept.inf_sup / now.inf_sup]
    for field in ("control_operator", "state_curvature", "mixed_curvature"):
        if getattr(now, field) > 0.0:
            ratios.append(getattr(now, field) / getattr(kept, field) if getattr(kept, field) else math.inf)
    return max(ratios)


_MODEL = "trust region on a reduced model"


def _compare(study: Study, name: str, make: Make) -> dict[str, Row]:
    """Add a row per optimiser: solves with the state operator and its transpose, and seconds. Collective: yes."""
    arms: dict[str, Callable[[], Row]] = {
        "L-BFGS (TAO bqnls)": lambda: _full(make(), "bqnls"),
        "Newton-CG (TAO bntr)": lambda: _full(make(), "bntr"),
        _MODEL: lambda: _by_model(make()),
    }
    runs: dict[str, list[Row]] = {arm: [] for arm in arms}
    for _ in range(study.settings.repeat):
        for arm, run in arms.items():
            runs[arm].append(run())
    rows = {}
    for arm, repeats in runs.items():
        seconds = statistics.median(number(row, "seconds") for row in repeats)
        rows[arm] = repeats[0] | {"seconds": seconds}
        study.row(_SOLVES, {"case": name, "arm": arm, **rows[arm]})
    return rows


def _full(problem: ControlProblem, method: str) -> Row:
    functional = problem.reduced_functional()
    start = time.perf_counter()
    try:
        minimise(functional, method, rtol=_RTOL)
        converged = True
    except ConvergenceError:
        converged = False
    seconds = time.perf_counter() - start
    row: Row = {
        "state equations": functional.state_solves, "adjoint equations": functional.adjoint_solves,
        "Hessian actions": functional.hessian_actions, "linear solves": functional.solves,
        "objective": problem.objective_value(), "converged": converged, "seconds": seconds,
    }  # fmt: skip
    functional.destroy()
    problem.destroy()
    return row


def _by_model(problem: ControlProblem) -> Row:
    start = time.perf_counter()
    model = _empty_model(problem)
    try:
        minimise_by_model(model, rtol=_RTOL)
        converged = True
    except ConvergenceError:
        converged = False
    seconds = time.perf_counter() - start
    row: Row = {
        "state equations": model.full.state_solves, "adjoint equations": model.full.adjoint_solves,
        "Hessian actions": 0, "linear solves": model.full.solves, "objective": problem.objective_value(),
        "converged": converged, "seconds": seconds, "modes": model.size,
    }  # fmt: skip
    model.destroy()
    problem.destroy()
    return row
