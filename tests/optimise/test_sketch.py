"""Sketched linear solvers: against dense algebra, their theory, PETSc's GMRES, and on any number of ranks."""

import math

from mpi4py import MPI
from petsc4py import PETSc

import dolfinx
import numpy as np
import pytest

from pdeopt.optimise.embedding import LinearSystem, SparseSign, rows_by_index
from pdeopt.optimise.petsc_sketch import SketchedKSP, SketchSettings
from pdeopt.optimise.sketch import ResidualHistory, SingleSketch, project_in_turn
from pdeopt.problems.convection import convection_diffusion
from pdeopt.report import InputError, OptionError

WORLD, SELF = MPI.COMM_WORLD, MPI.COMM_SELF
Reason = PETSc.KSP.ConvergedReason
KINDS = [
    {"type": "kaczmarz"},
    {"type": "gaussian"},
    {"type": "block", "block_size": 7},
    {"type": "block", "block_size": 8, "distribution": "gaussian"},
    {"type": "block", "block_size": 8, "distribution": "sign"},
    {"type": "history"},
    {"type": "sgmres"},
]
names = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(str(value) for value in kind.values()))


def system(size=24, spread=0.3, seed=1):
    """Return an indefinite nonsymmetric matrix with eigenvalues near 1 and -1, and a right-hand side."""
    stream = np.random.default_rng(seed)
    noise = stream.standard_normal((size, size)) / math.sqrt(size)
    matrix = np.diag(np.where(np.arange(size) % 3, 1.0, -1.0)) + spread * noise
    return matrix, stream.standard_normal(size)


def to_petsc(matrix, right, comm=SELF):
    """Return a dense array and a vector as PETSc's sparse matrix and vector."""
    size = len(matrix)
    sparse = PETSc.Mat().createAIJ((size, size), nnz=size, comm=comm)
    first, end = sparse.getOwnershipRange()
    sparse.setValues(range(first, end), range(size), matrix[first:end])
    sparse.assemble()
    vector = sparse.createVecLeft()
    vector.array[:] = right[first:end]
    return sparse, vector


def solver(matrix, kind, pc="none", rtol=1e-9, max_it=20_000):
    ksp = PETSc.KSP().create(matrix.getComm())
    ksp.setOptionsPrefix("pdeopt_test_")
    ksp.setOperators(matrix)
    ksp.setType("python")
    ksp.setPythonContext(SketchedKSP(**kind))
    ksp.getPC().setType(pc)
    ksp.setTolerances(rtol=rtol, max_it=max_it)
    ksp.setFromOptions()
    return ksp


def everywhere(vector):
    return np.concatenate(vector.getComm().tompi4py().allgather(vector.array_r.copy()))


@pytest.mark.parallel([1, 2, 3])
def test_any_number_of_ranks_solves_with_the_same_numbers():
    matrix, right = system(spread=0.15)
    exact = np.linalg.solve(matrix, right)
    for kind in KINDS:
        few, solutions = [], []
        for comm in (SELF, WORLD):
            A, b = to_petsc(matrix, right, comm)
            x = b.duplicate()
            pc = "jacobi" if kind["type"] in ("history", "sgmres") else "none"
            # After one iteration each is far from the solution, and where depends on every number drawn.
            ksp = solver(A, kind, pc, rtol=1e-6, max_it=1)
            ksp.solve(b, x)
            assert ksp.getConvergedReason() == Reason.DIVERGED_MAX_IT
            few.append(everywhere(x))
            ksp.setTolerances(max_it=20_000)
            ksp.solve(b, x)
            assert ksp.getConvergedReason() == Reason.CONVERGED_RTOL, kind
            solutions.append(everywhere(x))
            for handle in (ksp, A, b, x):
                handle.destroy()
        np.testing.assert_allclose(few[1], few[0], rtol=0, atol=1e-10)
        assert np.linalg.norm(few[1] - exact) > 1e-4 * np.linalg.norm(exact)
        assert np.linalg.norm(matrix @ solutions[1] - right) <= 1.01e-6 * np.linalg.norm(right)
        np.testing.assert_allclose(solutions[1], exact, rtol=0, atol=1e-4)


def test_projections_in_a_group_are_those_one_by_one():
    stream = np.random.default_rng(0)
    rows, right, point = stream.standard_normal((9, 5)), stream.standard_normal(9), stream.standard_normal(5)
    rows[4], rows[7] = rows[2], 0.0  # one drawn twice, and an empty one
    right[4], right[7] = right[2], 1.0
    expected = point.copy()
    for row, value in zip(rows, right, strict=True):
        if row.any():
            expected += row * (value - row @ expected) / (row @ row)
    project_in_turn(rows, right, point)
    np.testing.assert_allclose(point, expected, rtol=1e-12)


def test_kaczmarz_contracts_in_the_mean_as_its_theory_says():
    # With rows of norm one, uniform rows are those of Strohmer and Vershynin's theorem.
    matrix, _ = system(12)
    matrix /= np.linalg.norm(matrix, axis=1)[:, None]
    exact = np.random.default_rng(3).standard_normal(12)
    A, b = to_petsc(matrix, matrix @ exact)
    x = b.duplicate()
    kappa = np.linalg.norm(matrix) * np.linalg.norm(np.linalg.inv(matrix), 2)
    steps, sweeps = 12, 20
    squares = np.zeros(sweeps)
    for seed in range(20):
        method = SingleSketch(gaussian=False, batch=steps, seed=seed)
        method.start(LinearSystem(A), b, x, guess=False)
        for sweep in range(sweeps):
            method.step()
            squares[sweep] += np.sum((method.point - exact) ** 2) / 20
        method.finish()
    bound = np.sum(exact**2) * (1.0 - kappa**-2) ** (steps * np.arange(1, sweeps + 1))
    assert np.all(squares <= bound)
    # Per step no mean contraction can beat the largest singular value's: a solver that does is not this one.
    fastest = 1.0 - np.linalg.norm(matrix, 2) ** 2 / np.linalg.norm(matrix) ** 2
    assert squares[-1] > np.sum(exact**2) * fastest ** (steps * sweeps)


def craig(matrix, right, steps):
    """Return the iterates of CGNE: conjugate gradients on K K'u = b, x = K'u."""
    u, residual = np.zeros_like(right), right.copy()
    direction, iterates = residual.copy(), []
    for _ in range(steps):
        image = matrix @ (matrix.T @ direction)
        length = residual @ residual / (direction @ image)
        u += length * direction
        following = residual - length * image
        direction = following + following @ following / (residual @ residual) * direction
        residual = following
        iterates.append(matrix.T @ u)
    return iterates


@pytest.mark.parametrize("left", [False, True])
def test_residual_history_is_cgne_and_ends_after_n_steps(left):
    matrix, right = system(10)
    A, b = to_petsc(matrix, right)
    x = b.duplicate()
    pc = PETSc.PC().create(SELF)
    pc.setOperators(A)
    pc.setType("jacobi")
    pc.setUp()
    scale = 1.0 / np.diag(matrix)
    # Jacobi's P is diagonal: on the right the unknowns are scaled, on the left the equations.
    plain = scale[:, None] * matrix if left else matrix * scale
    references = craig(plain, scale * right if left else right, 10)
    method = ResidualHistory()
    method.start(LinearSystem(A, pc, left), b, x, guess=False)
    residuals = [method.sketched.array_r.copy()]
    for reference in references[:8]:
        method.step()
        residuals.append(method.sketched.array_r.copy())
        np.testing.assert_allclose(x.array_r, reference if left else scale * reference, rtol=1e-7, atol=1e-9)
    directions = np.array(residuals) / np.linalg.norm(residuals, axis=1)[:, None]
    np.testing.assert_allclose(directions @ directions.T, np.eye(9), atol=1e-8)
    method.step()
    assert method.step() < 1e-8 * np.linalg.norm(right)
    method.finish()


def test_sketched_gmres_needs_about_as_many_iterations_as_full_gmres():
    mesh = dolfinx.mesh.create_unit_square(SELF, 32, 32)
    for diffusivity, pc in ((1e-1, "ilu"), (1e-2, "jacobi"), (1e-3, "jacobi")):
        A, b = convection_diffusion(mesh, diffusivity, supg=True).assemble()
        x = b.duplicate()
        full = PETSc.KSP().create(SELF)
        full.setOperators(A)
        full.setType("gmres")
        full.setGMRESRestart(500)
        full.setPCSide(PETSc.PC.Side.RIGHT)
        full.getPC().setType(pc)
        full.setTolerances(rtol=1e-8)
        full.solve(b, x)
        sketched = solver(A, {"type": "sgmres"}, pc, rtol=1e-8)
        sketched.solve(b, x)
        assert sketched.getConvergedReason() == Reason.CONVERGED_RTOL
        assert sketched.getIterationNumber() <= 1.5 * full.getIterationNumber()
        assert (b - A * x).norm() <= 1.01e-8 * b.norm()
        # With no room for a basis it starts anew, and still arrives.
        short = solver(A, {"type": "sgmres", "restart": 25}, pc, rtol=1e-8)
        short.solve(b, x)
        assert short.getConvergedReason() == Reason.CONVERGED_RTOL
        assert (b - A * x).norm() <= 1.01e-8 * b.norm()


def test_sketch_keeps_lengths_in_a_subspace_and_depends_on_global_numbers_only():
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((9000, 40)))[0]
    whole = SparseSign(0, 9000, 160, 8, "pdeopt_test", 0)
    sketch = np.array([whole.local(column).copy() for column in basis.T]).T
    values = np.linalg.svd(sketch, compute_uv=False)
    assert 0.3 < values.min() <= values.max() < 1.7
    parts = [SparseSign(*limits, 160, 8, "pdeopt_test", 0) for limits in ((0, 5000), (5000, 5000), (5000, 9000))]
    pieces = (basis[:5000, 0].copy(), basis[:0, 0].copy(), basis[5000:, 0].copy())
    summed = sum(part.local(piece).copy() for part, piece in zip(parts, pieces, strict=True))
    np.testing.assert_allclose(summed, sketch[:, 0], atol=1e-14)
    drawn = rows_by_index("pdeopt_test", 0, 4000, 4200, lambda stream, count: stream.standard_normal((count, 2)))
    assert drawn.shape == (200, 2)


@names
def test_nan_is_a_reason_not_a_result(kind):
    matrix, right = system(6)
    matrix[2, 3] = math.nan
    A, b = to_petsc(matrix, right)
    ksp = solver(A, kind)
    ksp.solve(b, b.duplicate())
    assert ksp.getConvergedReason() == Reason.DIVERGED_NANORINF
    b.array[0] = math.inf
    ksp.solve(b, b.duplicate())
    assert ksp.getConvergedReason() == Reason.DIVERGED_NANORINF


@names
def test_guess_transpose_monitor_and_a_test_of_the_users_own(kind):
    matrix, right = system()
    A, b = to_petsc(matrix, right)
    x = b.duplicate()
    ksp = solver(A, kind)
    ksp.solveTranspose(b, x)
    assert np.linalg.norm(matrix.T @ x.array_r - right) <= 1.01e-9 * np.linalg.norm(right)

    x.array[:] = np.linalg.solve(matrix, right)
    ksp.setInitialGuessNonzero(True)
    ksp.solve(b, x)
    assert ksp.getIterationNumber() == 0
    assert ksp.getConvergedReason() > 0

    shown = []
    ksp.setInitialGuessNonzero(False)
    ksp.setMonitor(lambda ksp, iteration, norm: shown.append((iteration, norm)))
    ksp.setConvergenceTest(lambda ksp, iteration, norm: Reason.CONVERGED_ATOL if norm < 0.1 else False)
    ksp.solve(b, x)
    assert ksp.getConvergedReason() == Reason.CONVERGED_ATOL
    assert [iteration for iteration, _ in shown] == list(range(ksp.getIterationNumber() + 1))
    assert ksp.getResidualNorm() == pytest.approx(np.linalg.norm(matrix @ x.array_r - right), rel=1e-9)
    assert 1e-6 < ksp.getResidualNorm() < 0.1
    assert ksp.getPythonContext().report.converged


def test_singular_systems_break_down_and_nested_ones_are_solved():
    A, b = to_petsc(np.diag([1.0, 2.0, 0.0]), np.ones(3))
    for kind in ("history", "sgmres"):
        ksp = solver(A, {"type": kind})
        ksp.solve(b, b.duplicate())
        assert ksp.getConvergedReason() < 0
    matrix, right = system()
    blocks = [
        [to_petsc(np.ascontiguousarray(matrix[i, j]), right[:12])[0] for j in np.s_[:12, 12:]] for i in np.s_[:12, 12:]
    ]
    nested = PETSc.Mat().createNest(blocks)
    b = PETSc.Vec().createNest([to_petsc(np.eye(12), part)[1] for part in (right[:12], right[12:])])
    b.setUp()
    for kind in KINDS:
        x = b.duplicate()
        solver(nested, kind).solve(b, x)
        np.testing.assert_allclose(x.array_r, np.linalg.solve(matrix, right), atol=1e-7)


def test_options_caps_and_mistakes():
    matrix, right = system()
    A, b = to_petsc(matrix, right)
    options = PETSc.Options("pdeopt_test_")
    options["ksp_sketch_type"] = "kaczmarz"
    options["ksp_sketch_max_sketches"] = 300
    ksp = solver(A, {}, rtol=1e-14)
    ksp.solve(b, b.duplicate())
    assert ksp.getConvergedReason() == Reason.DIVERGED_MAX_IT
    assert ksp.getPythonContext().sketches == 300
    assert ksp.getIterationNumber() == 3  # batches of 128, 128 and 44
    options["pc_type"] = "jacobi"
    with pytest.raises(OptionError, match="sgmres or history"):
        ksp.getPythonContext().setFromOptions(ksp)
    options.delValue("pc_type")
    options["ksp_sketch_tpye"] = "sgmres"
    with pytest.raises(OptionError, match="-pdeopt_test_ksp_sketch_type"):
        ksp.getPythonContext().setFromOptions(ksp)
    options.delValue("ksp_sketch_tpye")
    options["ksp_sketch_type"] = "sketchy"
    with pytest.raises(OptionError, match="choose sgmres, history"):
        ksp.getPythonContext().setFromOptions(ksp)
    for name in ("ksp_sketch_type", "ksp_sketch_max_sketches"):
        options.delValue(name)
    with pytest.raises(InputError, match="blocksize"):
        SketchedKSP(blocksize=3)
    with pytest.raises(InputError, match="more rows"):
        SketchSettings(rows=50, restart=100)
    large = PETSc.Mat().createConstantDiagonal(6000, 1.0, comm=SELF)
    big = large.createVecLeft()
    method = SingleSketch(gaussian=True)
    with pytest.raises(OptionError, match=r"h\^-6.3"):
        method.start(LinearSystem(large), big, big.duplicate(), guess=False)
