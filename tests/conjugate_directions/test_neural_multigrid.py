"""The face of the multigrid bodies: which one is taken, new values, and what becomes of matrices it is not for."""

import logging
import pathlib

from mpi4py import MPI
from petsc4py import PETSc

import dolfinx.fem.petsc
import numpy as np
import petsctools
import pytest
import ufl
from grid_problems import Diffusion

from pdeopt.conjugate_directions.neural_multigrid import MultigridSettings, NeuralMultigrid
from pdeopt.parallel import on_root
from pdeopt.report import InputError

FAILED = PETSc.KSP.ConvergedReason.DIVERGED_PCSETUP_FAILED
BODIES = ("grid", "algebraic")


@pytest.fixture
def problem():
    return Diffusion("triangle", (24, 20))


def solver(matrix, context, kind="cg", rtol=1e-8):
    ksp = PETSc.KSP().create(matrix.getComm())
    ksp.setOperators(matrix)
    ksp.setType(kind)
    ksp.setNormType(PETSc.KSP.NormType.UNPRECONDITIONED)
    ksp.setTolerances(rtol=rtol, max_it=100)
    ksp.getPC().setType("python")
    ksp.getPC().setPythonContext(context)
    return ksp


def solve(matrix, right, context, kind="cg", rtol=1e-8):
    """Return the reason, the iterations, and the true relative residual."""
    ksp, x, rest = solver(matrix, context, kind, rtol), right.duplicate(), right.duplicate()
    ksp.solve(right, x)
    matrix.mult(x, rest)
    rest.aypx(-1.0, right)
    found = ksp.getConvergedReason(), ksp.getIterationNumber(), rest.norm() / right.norm()
    for thing in (ksp, x, rest):
        thing.destroy()
    return found


def settings(problem, body, **others):
    # Three levels of the small matrices here.
    return MultigridSettings(body, coarse_size=60, small=0, coordinates=problem.space, **others)


@pytest.mark.parallel([1, 2, 3])
def test_the_lattice_is_found_where_there_is_one(problem):
    context = NeuralMultigrid(settings(problem, "auto"))
    reason, _, residual = solve(problem.matrix, problem.right, context)
    assert reason > 0
    assert residual < 1e-8
    assert context.report.method == "multigrid on a lattice"
    assert context.report.quantities["lattice"] == "25 x 21"
    bent = problem.places + 0.01 * np.sin(40.0 * problem.places[:, ::-1])
    squares = Diffusion("quadrilateral", (9, 8), degree=2)
    for matrix, right, coordinates, why in (
        (problem.matrix, problem.right, "", "no coordinates are known"),
        (problem.matrix, problem.right, bent, "no filled lattice"),
        (squares.matrix, squares.right, squares.space, "lattice step away"),
    ):
        context = NeuralMultigrid(MultigridSettings(coarse_size=60, small=0, coordinates=coordinates))
        reason, _, residual = solve(matrix, right, context)
        assert reason > 0
        assert residual < 1e-8
        assert context.report.method == "multigrid by aggregation"
        assert why in context.report.why
        forced = NeuralMultigrid(MultigridSettings("grid", coordinates=coordinates))
        assert solve(matrix, right, forced)[0] == FAILED
        assert why in str(forced.error)


@pytest.mark.parallel([1, 2])
def test_function_space_through_the_application_context(problem):
    u, v = ufl.TrialFunction(problem.space), ufl.TestFunction(problem.space)
    linear = dolfinx.fem.petsc.LinearProblem(
        ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx, v * ufl.dx,
        bcs=[problem.condition], petsc_options={}, petsc_options_prefix="nmg_face_test_",
    )  # fmt: skip
    parameters = {
        "ksp_type": "cg", "ksp_rtol": 1e-8, "pc_type": "python", "pc_python_type": "pdeopt.NeuralMultigrid",
        "pc_nmg_coordinates": problem.space, "pc_nmg_small": 0,
    }  # fmt: skip
    petsctools.set_from_options(linear.solver, parameters=parameters, options_prefix="nmg_face_test_")
    linear.solve()
    assert linear.solver.getConvergedReason() > 0
    assert linear.solver.getPC().getPythonContext().report.method == "multigrid on a lattice"


@pytest.mark.parallel([1, 2])
@pytest.mark.parametrize(("strong", "factors", "most"), [(None, "icc", 10), ((1.0, -2.0), "cholesky", 1)])
def test_small_matrices_on_one_rank_are_factorised(strong, factors, most):
    problem = Diffusion("triangle", (30, 30), strong=strong)
    context = NeuralMultigrid(MultigridSettings(coordinates=problem.space))
    reason, iterations, residual = solve(problem.matrix, problem.right, context)
    assert reason > 0
    assert residual < 1e-8
    if problem.matrix.getComm().getSize() > 1:
        assert context.report.method == "multigrid on a lattice"
        return
    assert context.report.method == "factors of a small matrix"
    assert context.report.quantities["factors"] == factors
    assert iterations <= most
    body = context._body
    problem.matrix.scale(3.0)
    assert solve(problem.matrix, problem.right, context)[1] == iterations
    assert context._body is body


def without_zeros(matrix):
    """The same matrix in another pattern: rows of Dirichlet conditions hold nothing but their ones."""
    start, columns, values = matrix.getValuesCSR()
    kept = values != 0.0
    start = np.concatenate([[0], np.cumsum(kept)])[start].astype(PETSc.IntType)
    other = PETSc.Mat().createAIJ(matrix.getSizes(), csr=(start, columns[kept], values[kept]), comm=matrix.getComm())
    other.assemble()
    return other


@pytest.mark.parallel([1, 2])
@pytest.mark.parametrize(("body", "reuse"), [("grid", False), ("algebraic", False), ("algebraic", True)])
def test_new_values_and_new_patterns(problem, body, reuse):
    context = NeuralMultigrid(settings(problem, body, reuse_interpolation=reuse))
    ksp, x, rest = solver(problem.matrix, context), problem.right.duplicate(), problem.right.duplicate()
    counts, former = [], None
    for matrix, scale in ((problem.matrix, 1.0), (problem.matrix, 1e4), (without_zeros(problem.matrix), 1.0)):
        matrix.scale(scale)
        ksp.setOperators(matrix)
        ksp.solve(problem.right, x)
        matrix.mult(x, rest)
        rest.aypx(-1.0, problem.right)
        assert ksp.getConvergedReason() > 0
        assert rest.norm() < 1e-8 * problem.right.norm()
        counts.append(ksp.getIterationNumber())
        kept = context._body is former
        assert kept == ((body == "grid" or reuse) and scale != 1.0)
        assert ("update" in context.report.seconds) == kept
        former = context._body
    assert abs(counts[1] - counts[0]) <= 1
    ksp.destroy()


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("body", BODIES)
def test_matrices_that_it_is_not_for_end_with_a_reason_and_a_sentence(problem, body, caplog):
    first, last = problem.matrix.getOwnershipRange()
    row = first + (last - first) // 2
    own = problem.matrix.getRow(row)
    column = next(int(c) for c, value in zip(*own, strict=True) if c != row and abs(value) > 0.0)

    def damaged(**entries):
        matrix = problem.matrix.copy()
        if matrix.getComm().getRank() == matrix.getComm().getSize() - 1:
            for entry, value in entries.items():
                matrix[row, row if entry == "diagonal" else column] = value
        matrix.assemble()
        return matrix

    free = Diffusion("triangle", (24, 20), held=False)  # keeps the communicator
    shifted = free.matrix
    shifted.shift(-0.1)  # the diagonal stays positive
    rectangular = PETSc.Mat().createDense((4, 4), comm=MPI.COMM_WORLD)
    rectangular.setUp()
    rectangular.assemble()
    for matrix, sentence in (
        (damaged(diagonal=-1.0), "is -1.0 in row"),
        (damaged(diagonal=0.0), "is 0.0 in row"),
        (damaged(diagonal=np.nan), "is nan in row"),
        (damaged(coupling=np.nan), "NaN"),
        (damaged(coupling=3.0), "not symmetric"),
        (shifted, "indefinite"),
        (rectangular, "is of type"),
    ):
        context, (right, _) = NeuralMultigrid(settings(problem, body)), matrix.createVecs()
        right.set(1.0)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert solve(matrix, right, context)[0] == FAILED
        assert sentence in context.report.advice
        assert sentence in caplog.text
        assert isinstance(context.error, InputError)
        matrix.destroy()


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("body", BODIES)
def test_an_indefinite_matrix_that_looks_definite_is_never_said_to_be_solved(body):
    problem = Diffusion("triangle", (24, 20))
    mass = problem.matrix.getDiagonal()
    mass.array_w[:] = np.where(np.sin(9.0 * problem.places[:, 0]) > 0.0, 0.4, -0.4)  # v = 1 sees nothing of it
    problem.matrix.setDiagonal(problem.matrix.getDiagonal() - mass)
    context = NeuralMultigrid(settings(problem, body))
    reason, _, residual = solve(problem.matrix, problem.right, context)
    assert residual < 1e-7 if reason > 0 else context.report.advice


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("attached", [True, False])
@pytest.mark.parametrize("body", BODIES)
def test_pure_neumann_conditions(body, attached):
    problem = Diffusion("triangle", (24, 20), held=False)
    constants = PETSc.NullSpace().create(constant=True, comm=MPI.COMM_WORLD)
    constants.remove(problem.right)
    if attached:
        problem.matrix.setNullSpace(constants)
    reason, iterations, residual = solve(problem.matrix, problem.right, NeuralMultigrid(settings(problem, body)))
    assert reason > 0
    assert residual < 1e-8
    assert iterations <= {"grid": 10, "algebraic": 20}[body]
    if not attached:  # and without a solution there is none
        problem.right.shift(problem.right.norm())
        reason, _, residual = solve(problem.matrix, problem.right, NeuralMultigrid(settings(problem, body)))
        assert reason < 0 or residual < 1e-7


@pytest.mark.parallel([1, 2])
@pytest.mark.parametrize("body", BODIES)
def test_view_says_what_was_done(problem, body, tmp_path):
    ksp = solver(problem.matrix, NeuralMultigrid(settings(problem, body)))
    ksp.setUp()
    comm = problem.matrix.getComm().tompi4py()
    path = comm.bcast(str(tmp_path / "view.txt"))
    viewer = PETSc.Viewer().createASCII(path, comm=comm)
    ksp.view(viewer)
    viewer.destroy()
    text = on_root(comm, lambda: pathlib.Path(path).read_text())
    own = {"grid": ("25 x 21", "keep="), "algebraic": ("operator complexity", "Down solver")}[body]
    for word in (f"body: {body}", "chosen because", *own):
        assert word in text
    ksp.destroy()


def test_what_coordinates_may_be():
    problem = Diffusion("triangle", (6, 5))
    for given, sentence in (("nobody", "nothing of the name 'nobody'"), (3.0, "are of type float")):
        context = NeuralMultigrid(MultigridSettings("grid", coordinates=given))
        assert solve(problem.matrix, problem.right, context)[0] == FAILED
        assert sentence in str(context.error)
    with pytest.raises(InputError, match="body is 'spectral': choose auto, grid or algebraic"):
        MultigridSettings("spectral")
