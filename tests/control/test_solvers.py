"""Solvers of the KKT system: when they stop, what they agree on, what they leave behind."""

import gc
import pathlib
import sys

from mpi4py import MPI
from petsc4py import PETSc

import dolfinx
import numpy as np
import pytest
import ufl

from pdeopt.control import ControlProblem
from pdeopt.control.stopping import RieszStopping
from pdeopt.problems import PartialObservationControl, PoissonControl
from pdeopt.report import OptionError


def unit_square(cells):
    return dolfinx.mesh.create_unit_square(MPI.COMM_WORLD, cells, cells)


def set_options(**options):
    for name, value in options.items():
        PETSc.Options()[name] = value


@pytest.fixture
def petsc_options():
    names = []

    def insert(**options):
        names.extend(options)
        set_options(**options)

    yield insert
    for name in names:
        PETSc.Options().delValue(name)


def difference(one, other):
    return np.linalg.norm(one.x.array - other.x.array) / np.linalg.norm(other.x.array)


@pytest.mark.parametrize("alpha", [1e-2, 1e-4, 1e-6, 1e-8])
def test_iterative_solvers_agree_with_mumps_in_few_iterations(alpha):
    """The bounds are those of the published method, on every mesh; no refinement step may be needed."""
    for cells in (32, 64):
        reference = PoissonControl(unit_square(cells), alpha=alpha)
        reference.problem.solve(method="direct")
        for method, limit in (("pearson_wathen", 22), ("matched_schur", 13)):
            case = PoissonControl(unit_square(cells), alpha=alpha)
            report = case.problem.solve(method=method)
            assert report.iterations == 1
            assert report.linear_iterations <= limit
            assert report.quantities["relative KKT residual (Riesz)"] <= 1e-8
            assert difference(case.problem.state, reference.problem.state) <= 1e-6
            assert difference(case.control, reference.control) <= 1e-6


@pytest.mark.parametrize("alpha", [1e-2, 1e-4, 1e-6])
def test_swapped_roles_do_not_grow_with_refinement(alpha):
    counts = []
    for cells in (16, 32, 64):
        counts.append(PartialObservationControl(unit_square(cells), alpha=alpha).problem.solve().linear_iterations)
    assert max(counts) <= 18
    assert max(counts) <= 1.3 * counts[0]


@pytest.mark.parallel([1, 2, 3])
def test_convection_makes_the_state_operator_unsymmetric():
    """Transposed solves get a hierarchy of their own; all methods find one optimum."""
    values = {}
    for method in ("direct", "matched_schur", "pearson_wathen", "reduced_hessian", "bntr"):
        mesh = unit_square(24)
        space = dolfinx.fem.functionspace(mesh, ("Lagrange", 1))
        y, u, v = dolfinx.fem.Function(space), dolfinx.fem.Function(space), ufl.TestFunction(space)
        wind = ufl.as_vector([2.0, 1.0])
        problem = ControlProblem(
            objective=0.5 * (y - 1.0) ** 2 * ufl.dx + 0.5e-3 * u**2 * ufl.dx,
            state_equation=(
                0.2 * ufl.inner(ufl.grad(y), ufl.grad(v)) + ufl.inner(wind, ufl.grad(y)) * v + y * v - u * v
            )
            * ufl.dx,
            state=y,
            control=u,
        )
        values[method] = problem.solve(method=method).quantities["objective"]
    for method, value in values.items():
        assert value == pytest.approx(values["direct"], rel=1e-7), method


def test_small_weights_do_not_break_the_factorisation():
    for alpha in (1e-8, 1e-10, 1e-12):
        case = PoissonControl(unit_square(32), alpha=alpha)
        report = case.problem.solve(method="direct")
        assert report.quantities["relative KKT residual (Riesz)"] <= 1e-10
        assert report.iterations == 1


def test_the_symmetric_factorisation_is_an_option(petsc_options):
    case = PoissonControl(unit_square(16), alpha=1e-4)
    case.problem.solve(method="direct")
    optimum = case.control.x.array.copy()
    petsc_options(kkt_pc_type="cholesky")
    case = PoissonControl(unit_square(16), alpha=1e-4)
    case.problem.solve(method="direct")
    assert np.linalg.norm(case.control.x.array - optimum) <= 1e-8 * np.linalg.norm(optimum)


def test_a_krylov_method_that_does_not_fit_is_refused(petsc_options):
    petsc_options(kkt_ksp_type="cg")
    for method in ("matched_schur", "pearson_wathen"):
        with pytest.raises(OptionError, match="kkt_ksp_type cg does not fit"):
            PoissonControl(unit_square(8), alpha=1e-4).problem.solve(method=method)


class CountedNorm:
    """A norm that counts how often it is taken."""

    def __init__(self):
        self.calls = 0

    def __call__(self, vector):
        self.calls += 1
        return vector.norm()


def test_stopping_looks_seldom_and_stops_in_time():
    """On a diagonal matrix the norm is the Euclidean one: it stops at most a few iterations after the first chance."""
    size = 400
    matrix = PETSc.Mat().createAIJ((size, size), nnz=1, comm=PETSc.COMM_SELF)
    for row in range(size):
        matrix.setValue(row, row, 1.0 + row)
    matrix.assemble()
    right, out = matrix.createVecs()
    right.set(1.0)
    norm = CountedNorm()
    stopping = RieszStopping(norm)
    ksp = PETSc.KSP().create(PETSc.COMM_SELF)
    ksp.setOperators(matrix)
    ksp.setType("fgmres")
    ksp.setGMRESRestart(200)
    ksp.getPC().setType("none")
    ksp.setConvergenceTest(stopping)
    stopping.start(right, 1e-6)
    ksp.solve(right, out)
    assert ksp.getConvergedReason() > 0
    iterations = ksp.getIterationNumber()
    own = np.array(stopping.own_history)
    assert own.size == iterations + 1
    first_chance = int(np.argmax(own <= 1e-6 * own[0]))
    assert 0 <= iterations - first_chance <= 4
    assert norm.calls <= 2 + iterations // 4
    residual = right.duplicate()
    matrix.mult(out, residual)
    residual.axpy(-1.0, right)
    assert residual.norm() <= 1e-6 * right.norm() * (1 + 1e-8)


def resident():
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_repeated_solves_leave_nothing_behind():
    """200 solves of one problem, by every kind of solver in turn, within 5 MiB."""
    cases = [
        (PoissonControl(unit_square(12), alpha=1e-4, bounds=bounds).problem, method)
        for bounds, method in (
            (None, "matched_schur"),
            (None, "pearson_wathen"),
            (None, "direct"),
            (None, "reduced_hessian"),
            (None, "bntr"),
            ((0.1, 0.5), "direct"),
            ((0.1, 0.5), "bqnls"),
        )
    ]
    zero = {id(problem): problem.system.layout.create_vector() for problem, _ in cases}

    def sweep(count):
        for index in range(count):
            problem, method = cases[index % len(cases)]
            problem.system.set_unknowns(zero[id(problem)])
            problem.solve(method=method)
        gc.collect()

    sweep(35)
    before = resident()
    sweep(200)
    assert resident() - before <= 5.0


def test_log_view_lists_set_up_and_solve():
    PETSc.Log.begin()
    PoissonControl(unit_square(12), alpha=1e-4).problem.solve(method="matched_schur")
    for part in ("set-up", "solve"):
        information = PETSc.Log.Event(f"pdeopt matched_schur {part}").getPerfInfo()
        assert information["count"] >= 1
        assert information["time"] > 0.0
