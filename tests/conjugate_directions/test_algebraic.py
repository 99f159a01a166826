"""Algebraic multigrid: symmetry, definiteness, what the interpolation keeps, ranks, options, and what it refuses."""

import pathlib

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np
import pytest

from pdeopt.bench.linear_families import FAMILIES
from pdeopt.conjugate_directions.algebraic_hierarchy import Constants, LocalRows, build_hierarchy, choose_constants
from pdeopt.conjugate_directions.neural_multigrid import MultigridSettings, NeuralMultigrid
from pdeopt.parallel import on_root
from pdeopt.report import InputError, OptionError

CASES = {
    "isotropic": ("L-shape, inclusions", 1500),
    "anisotropic": ("heat sink, anisotropy", 1500),
    "elasticity": ("bracket, inclusions, elasticity", 1000),
}
# Small enough to have three levels here.
SMALL = MultigridSettings(body="algebraic", coarse_size=100)


@pytest.fixture(scope="module", params=CASES)
def case(request):
    name, size = CASES[request.param]
    case = FAMILIES[name].case(MPI.COMM_WORLD, size, 1)
    yield case
    case.destroy()


def solver(case, context, kind="cg", matrix=None):
    ksp = PETSc.KSP().create(case.comm)
    ksp.setOptionsPrefix("pdeopt_nmg_test_")
    ksp.setOperators(matrix or case.A)
    ksp.setType(kind)
    ksp.setNormType(PETSc.KSP.NormType.UNPRECONDITIONED)
    ksp.setTolerances(rtol=1e-8, max_it=400)
    ksp.getPC().setType("python")
    ksp.getPC().setPythonContext(context)
    ksp.setFromOptions()
    return ksp


def random_vector(matrix, seed):
    first, end = matrix.getOwnershipRange()
    vector = matrix.createVecLeft()
    vector.array[:] = np.random.default_rng(seed).standard_normal(matrix.getSize()[0])[first:end]
    return vector


def true_residual(case, x):
    r = case.b.duplicate()
    case.A.mult(x, r)
    r.axpy(-1.0, case.b)
    return r.norm() / case.b.norm()


@pytest.mark.parallel([1, 2, 3])
def test_cycle_is_symmetric_positive_and_solves(case):
    ksp = solver(case, NeuralMultigrid(SMALL))
    x, image, other = case.b.duplicate(), case.b.duplicate(), case.b.duplicate()
    ksp.solve(case.b, x)
    assert ksp.getConvergedReason() > 0
    assert true_residual(case, x) < 2e-8
    for seed in range(6):
        u, v = random_vector(case.A, 2 * seed), random_vector(case.A, 2 * seed + 1)
        ksp.getPC().apply(u, image)
        ksp.getPC().apply(v, other)
        assert u.dot(image) > 0.0
        assert abs(v.dot(image) - u.dot(other)) <= 1e-12 * v.norm() * image.norm()
    ksp.destroy()


@pytest.mark.parallel([1, 2, 3])
def test_near_nullspace_is_interpolated_exactly(case):
    """The near-nullspace, or the constant, is in the range of the interpolation: least squares leave nothing of it."""
    given = case.A.getNearNullSpace()
    vectors = given.getVecs() if given.handle else [case.A.createVecLeft()]
    if not given.handle:
        vectors[0].set(1.0)
    rows = LocalRows(case.A)
    _, constants = choose_constants(case.A, rows)
    levels = build_hierarchy(case.A, Constants(constants.strength, constants.threshold, 0.0, 0, 100), rows)
    interpolation = levels[0].interpolation
    assert levels[0].matrix.handle == case.A.handle
    ksp = PETSc.KSP().create(case.comm)
    ksp.setType("lsqr")
    ksp.getPC().setType("none")
    ksp.setTolerances(rtol=1e-12, max_it=300)
    ksp.setOperators(interpolation)
    for vector in vectors:
        coarse, back = interpolation.createVecs()
        ksp.solve(vector, coarse)
        interpolation.mult(coarse, back)
        # Rows without entries belong to Dirichlet conditions: no neighbour is strong.
        filled = np.diff(interpolation.getValuesCSR()[0]) > 0
        missed = np.abs(back.array_r - vector.array_r)[filled]
        assert case.comm.allreduce(missed.max(initial=0.0), MPI.MAX) <= 1e-8 * vector.norm()
    ksp.destroy()


def test_class_of_the_matrix(case):
    kind, constants = choose_constants(case.A, LocalRows(case.A))
    expected = {"inclusions": "isotropic", "anisotropy": "anisotropic", "elasticity": "several unknowns a node"}
    assert kind == expected[case.family.split(", ")[-1]]
    assert constants.strength == ("evolution" if kind == "anisotropic" else "symmetric")


@pytest.mark.parallel([1, 2, 3])
def test_iterations_do_not_grow_with_mesh_or_ranks():
    counts = []
    for size in (1000, 4000):
        case = FAMILIES["L-shape, lognormal"].case(MPI.COMM_WORLD, size, 2)
        ksp = solver(case, NeuralMultigrid(SMALL))
        ksp.solve(case.b, case.b.duplicate())
        counts.append(ksp.getIterationNumber())
        ksp.destroy()
        case.destroy()
    assert counts[1] <= counts[0] + 3
    assert max(counts) <= 14  # 12 on one rank


@pytest.mark.parallel([1, 2])
def test_options_and_view(case, tmp_path):
    options = PETSc.Options()
    given = {"coarse_size": 50, "small": 0, "strength": "symmetric", "threshold": 0.1, "mg_levels_1_pc_sor_its": 2}
    for name, value in given.items():
        options["pdeopt_nmg_test_pc_nmg_" + name] = value
    context = NeuralMultigrid()
    try:
        ksp = solver(case, context)
        assert context.settings == MultigridSettings("auto", "symmetric", 0.1, -1, 50, small=0)
        ksp.setUp()
        path = case.comm.bcast(str(tmp_path / "view.txt"))
        viewer = PETSc.Viewer().createASCII(path, comm=case.comm)
        ksp.view(viewer)
        viewer.destroy()
        text = on_root(case.comm, lambda: pathlib.Path(path).read_text())
        assert "no coordinates are known" in text
        assert "class of the matrix" in text
        assert "operator complexity" in text
        ksp.destroy()
        options["pdeopt_nmg_test_pc_nmg_treshold"] = 1
        with pytest.raises(OptionError, match="did you mean -pdeopt_nmg_test_pc_nmg_threshold"):
            NeuralMultigrid().setFromOptions(_Named())
    finally:
        for name in [*given, "treshold"]:
            options.delValue("pdeopt_nmg_test_pc_nmg_" + name)


class _Named:
    def getOptionsPrefix(self):
        return "pdeopt_nmg_test_"


@pytest.mark.parallel([1, 2])
@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_matrices_that_it_is_not_for_end_with_a_reason(case, value):
    matrix = case.A.copy()
    diagonal = matrix.getDiagonal()
    if case.comm.rank == case.comm.size - 1:
        diagonal.array[0] = value
    matrix.setDiagonal(diagonal)
    context = NeuralMultigrid(SMALL)
    ksp = solver(case, context, matrix=matrix)
    ksp.solve(case.b, case.b.duplicate())
    assert ksp.getConvergedReason() == PETSc.KSP.ConvergedReason.DIVERGED_PCSETUP_FAILED
    assert "diagonal of the matrix" in context.report.advice
    assert isinstance(context.error, InputError)
    ksp.destroy()


@pytest.mark.parallel([1, 2])
def test_pure_neumann_with_its_null_space():
    """The coarsest matrix is singular too; its pseudo-inverse is taken."""
    assembler = FAMILIES["L-shape, lognormal"].assembler(MPI.COMM_WORLD, 1500)
    assembler._bcs.clear()
    matrix, b = assembler.assemble()
    null = PETSc.NullSpace().create(constant=True, comm=MPI.COMM_WORLD)
    matrix.setNullSpace(null)
    null.remove(b)
    ksp = PETSc.KSP().create(MPI.COMM_WORLD)
    ksp.setOperators(matrix)
    ksp.setType("cg")
    ksp.setTolerances(rtol=1e-8, max_it=100)
    ksp.getPC().setType("python")
    ksp.getPC().setPythonContext(NeuralMultigrid(SMALL))
    x, r = b.duplicate(), b.duplicate()
    ksp.solve(b, x)
    matrix.mult(x, r)
    r.axpy(-1.0, b)
    assert ksp.getConvergedReason() > 0
    assert r.norm() <= 1e-6 * b.norm()
    for handle in (ksp, matrix, b, null):
        handle.destroy()


def test_constants_out_of_range():
    with pytest.raises(InputError, match="strength is 'weak'"):
        Constants(strength="weak")
    with pytest.raises(InputError, match="threshold is -1"):
        Constants(threshold=-1.0)
    with pytest.raises(InputError, match="body is 'spectral'"):
        MultigridSettings(body="spectral")
