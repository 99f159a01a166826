"""Control problems in full space: the optimum of `ControlProblem.solve`, by every KKT solver, on every rank count."""

import gc
import pathlib
import sys

from mpi4py import MPI

import dolfinx
import numpy as np
import pytest
import ufl

from pdeopt.control import ControlProblem
from pdeopt.optimise import minimise
from pdeopt.problems import ConstrainedControl, HeatControl, PoissonControl, SemilinearControl
from pdeopt.report import ConvergenceError, OptionError

comm = MPI.COMM_WORLD


def square(cells=8):
    return dolfinx.mesh.create_unit_square(comm, cells, cells)


def two_controls():
    """A nodal control inside and a cellwise one."""
    mesh = square(6)
    space = dolfinx.fem.functionspace(mesh, ("Lagrange", 1))
    y, u, v = dolfinx.fem.Function(space), dolfinx.fem.Function(space), ufl.TestFunction(space)
    w = dolfinx.fem.Function(dolfinx.fem.functionspace(mesh, ("DG", 0)))
    x, dx = ufl.SpatialCoordinate(mesh), ufl.dx(mesh, metadata={"quadrature_degree": 6})
    return ControlProblem(
        objective=0.5 * (y - x[0] * (1 - x[0])) ** 2 * dx + 5e-5 * (u**2 + w**2) * dx,
        state_equation=ufl.inner(ufl.grad(y), ufl.grad(v)) * dx + (y + y**3 - u - 2 * w) * v * dx,
        state=y,
        control=[u, w],
    )


CASES = {
    "linear": lambda: PoissonControl(square(), alpha=1e-4).problem,
    "nonlinear": lambda: SemilinearControl(square(), alpha=1e-2).problem,
    "constrained": lambda: ConstrainedControl(square(), alpha=1e-2).problem,
    "bounded": lambda: PoissonControl(square(), alpha=1e-4, bounds=(0.1, 0.5)).problem,
    "several": two_controls,
}


def values(problem):
    """Return owned values of state, controls and adjoint, and multipliers."""
    vector = problem.system.layout.create_vector()
    problem.system.get_unknowns(vector)
    found = np.array(vector.array_r)
    vector.destroy()
    return np.concatenate([found, [float(m.value) for m in problem.system.lagrangian.multipliers]])


def difference(one, other):
    largest = comm.allreduce(float(np.abs(one - other).max(initial=0.0)), op=MPI.MAX)
    return largest / comm.allreduce(float(np.abs(other).max(initial=0.0)), op=MPI.MAX)


# What one rank printed: objectives at the optimum.
OBJECTIVES = {
    "linear": 1.3053850595933698e-05,
    "nonlinear": 0.03326303705970014,
    "constrained": 0.019220172708467653,
    "bounded": 2.8964493610130213e-05,
    "several": 0.00022895268152859228,
}


@pytest.mark.parallel([1, 2, 3])
def test_the_optimum_is_that_of_control_problem():
    for name in CASES if comm.size < 3 else ("nonlinear", "constrained"):
        problem = CASES[name]()
        report = minimise(problem, rtol=1e-11)
        if comm.size < 3:
            reference = CASES[name]()
            reference.solve(rtol=1e-11)
            error = difference(values(problem), values(reference))
            assert error <= 1e-8, (name, error)
            assert problem.objective_value() == pytest.approx(reference.objective_value(), rel=1e-9), name
        assert problem.objective_value() == pytest.approx(OBJECTIVES[name], rel=1e-8), name
        assert report.converged
        assert report.iterations <= (25 if name == "bounded" else 8), (name, report.iterations)


@pytest.mark.parallel([1, 2])
def test_every_kkt_solver():
    methods = ("direct", "matched_schur", "pearson_wathen", "reduced_hessian", "factorisation", "ksp", "sgmres")
    found = {}
    for method in methods if comm.size == 1 else ("matched_schur", "factorisation"):
        case = SemilinearControl(square(6), alpha=1e-2)
        report = minimise(case.problem, method=method, rtol=1e-10)
        found[method] = case.problem.objective_value()
        assert report.iterations <= 8, method
        assert report.quantities["full steps"] == report.iterations
    assert list(found.values()) == pytest.approx([found["matched_schur"]] * len(found), rel=1e-9)
    with pytest.raises(OptionError, match="matched_schur"):
        minimise(SemilinearControl(square(2)).problem, method="multigrid")


def test_iterations_do_not_grow_with_refinement():
    counts = []
    for cells in (8, 16, 32):
        report = minimise(SemilinearControl(square(cells), alpha=1e-2).problem)
        counts.append((report.iterations, report.linear_iterations))
    assert counts[-1][0] <= counts[0][0] + 1
    assert counts[-1][1] <= 1.3 * counts[0][1]


def test_unsteady_problems_and_functionals():
    mesh = dolfinx.mesh.create_rectangle(comm, [[-1, -1], [1, 1]], [6, 6])
    for bounds in (None, (-np.inf, 60.0)):
        objectives = []
        for solve in (minimise, lambda problem: problem.solve(method="bntr")):
            case = HeatControl(mesh, 4, bounds=bounds)
            report = solve(case.problem)
            objectives.append(report.quantities["objective"])
            case.problem.destroy()
        assert objectives[0] == pytest.approx(objectives[1], rel=1e-9), bounds
    steady, reduced = SemilinearControl(square(6)), SemilinearControl(square(6))
    functional = reduced.problem.reduced_functional()
    minimise(functional, rtol=1e-9)
    minimise(steady.problem, rtol=1e-10)
    assert reduced.problem.objective_value() == pytest.approx(steady.problem.objective_value(), rel=1e-9)


@pytest.mark.parallel([1, 2])
def test_monitor_limit_and_exceptions():
    seen = []
    report = minimise(
        SemilinearControl(square(6)).problem, monitor=lambda iteration, norm: seen.append((iteration, norm))
    )
    assert [iteration for iteration, _ in seen] == list(range(report.iterations + 1))
    assert [norm for _, norm in seen] == pytest.approx(report.residuals, rel=1e-12)
    with pytest.raises(ConvergenceError, match="iteration limit") as caught:
        minimise(SemilinearControl(square(6)).problem, max_iterations=1)
    assert caught.value.report.iterations == 1

    def mistaken(iteration, norm):
        if iteration == 1 and comm.rank == comm.size - 1:
            raise ValueError("the user's own mistake")

    for problem in (SemilinearControl(square(6)).problem, PoissonControl(square(6)).problem.reduced_functional()):
        with pytest.raises(ValueError, match="the user's own mistake"):
            minimise(problem, monitor=mistaken)


def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_repeated_solves_leave_nothing_behind():
    problems = [CASES[name]() for name in ("linear", "constrained", "several", "bounded")]
    problems.append(PoissonControl(square(6), alpha=1e-4).problem.reduced_functional())

    def sweep(count):
        for index in range(count):
            problem = problems[index % len(problems)]
            if isinstance(problem, ControlProblem):
                zero = problem.system.layout.create_vector()
                problem.system.set_unknowns(zero)
                zero.destroy()
            else:
                zero = problem.create_vector()
                problem.set_control(zero)
                zero.destroy()
            minimise(problem, rtol=1e-6)
        gc.collect()

    sweep(10)
    before = resident()
    sweep(60)
    assert resident() - before <= 1.5
