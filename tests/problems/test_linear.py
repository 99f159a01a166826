"""The linear model problems against their exact solutions, and the mathematics that they claim."""

import dataclasses
import gc
import math
import subprocess
import sys
import weakref
from collections.abc import Callable

from mpi4py import MPI
from petsc4py import PETSc

import dolfinx
import gmsh
import numpy as np
import pytest

from pdeopt import problems
from pdeopt.problems import GaussianRandomField, LinearModelProblem
from pdeopt.report import InputError, MeshError

Mesh = dolfinx.mesh.Mesh
CellType = dolfinx.mesh.CellType


def square(cells: int, cell_type: CellType = CellType.triangle, comm: MPI.Comm = MPI.COMM_WORLD) -> Mesh:
    return dolfinx.mesh.create_unit_square(comm, cells, cells, cell_type)


def cube(cells: int, cell_type: CellType = CellType.tetrahedron, comm: MPI.Comm = MPI.COMM_WORLD) -> Mesh:
    return dolfinx.mesh.create_unit_cube(comm, cells, cells, cells, cell_type)


def quadrilaterals(cells: int) -> Mesh:
    return square(cells, CellType.quadrilateral)


def hexahedra(cells: int) -> Mesh:
    return cube(cells, CellType.hexahedron)


def solve(problem: LinearModelProblem) -> dolfinx.fem.Function:
    """Solve by MUMPS, which is told to expect a singular matrix, and check the residual."""
    A, b = problem.assemble()
    ksp = PETSc.KSP().create(A.getComm())
    ksp.setOperators(A)
    ksp.setType("preonly")
    pc = ksp.getPC()
    pc.setType("lu")
    pc.setFactorSolverType("mumps")
    pc.setFactorSetUpSolverType()
    pc.getFactorMatrix().setMumpsIcntl(24, 1)
    x, residual = b.duplicate(), b.duplicate()
    ksp.solve(b, x)
    A.mult(x, residual)
    residual.axpy(-1.0, b)
    assert residual.norm() <= 1e-9 * b.norm()
    solution = problem.to_function(x)
    for thing in (ksp, A, b, x, residual):
        thing.destroy()
    return solution


def left_side(x: np.ndarray) -> np.ndarray:
    return np.isclose(x[0], 0.0)


def all_but_right_side(x: np.ndarray) -> np.ndarray:
    return x[0] < 1.0 - 1e-9


@dataclasses.dataclass(frozen=True)
class Case:
    """A problem, two meshes with halved cells, and the least L2 order of its first field."""

    name: str
    build: Callable[[Mesh], LinearModelProblem]
    order: float
    mesh: Callable[[int], Mesh] = square
    cells: int = 16


CASES = [
    Case("poisson P1", problems.poisson, 1.9),
    Case("poisson P2", lambda mesh: problems.poisson(mesh, degree=2), 2.9),
    Case("poisson P1 tetrahedra", problems.poisson, 1.85, cube, 4),
    Case("poisson Q2 hexahedra", lambda mesh: problems.poisson(mesh, degree=2), 2.9, hexahedra, 4),
    Case("rotated anisotropy P1", problems.anisotropic_diffusion, 1.9),
    Case("rotated anisotropy P2", lambda mesh: problems.anisotropic_diffusion(mesh, degree=2), 2.9),
    Case("aligned anisotropy P1", lambda mesh: problems.anisotropic_diffusion(mesh, angle=0.0), 1.9),
    Case("checkerboard P1", problems.checkerboard_diffusion, 1.9, square, 32),
    Case("checkerboard P2", lambda mesh: problems.checkerboard_diffusion(mesh, degree=2), 2.9, square, 32),
    Case("convection P1", problems.convection_diffusion, 1.9),
    Case("convection P2", lambda mesh: problems.convection_diffusion(mesh, degree=2), 2.9),
    Case("convection SUPG P1", lambda mesh: problems.convection_diffusion(mesh, supg=True), 1.9),
    Case("convection SUPG P2", lambda mesh: problems.convection_diffusion(mesh, supg=True, degree=2), 2.9),
    Case("convection SUPG Q1", lambda mesh: problems.convection_diffusion(mesh, supg=True), 1.9, quadrilaterals),
    Case("helmholtz P1", lambda mesh: problems.helmholtz(mesh, 8.0), 1.9, square, 32),
    Case("helmholtz P2", lambda mesh: problems.helmholtz(mesh, 8.0, degree=2), 2.9),
    Case("elasticity P1", problems.linear_elasticity, 1.9),
    Case("elasticity P2 clamped", lambda mesh: problems.linear_elasticity(mesh, 0.3, left_side, 2), 2.9),
    Case("elasticity P1 tetrahedra", problems.linear_elasticity, 1.85, cube, 4),
    Case("stokes enclosed", problems.stokes, 2.9, square, 8),
    Case("stokes with outflow", lambda mesh: problems.stokes(mesh, 0.1, all_but_right_side), 2.9, square, 8),
    Case("stokes quadrilaterals", problems.stokes, 2.9, quadrilaterals, 8),
]


def observed_orders(build: Callable[[Mesh], LinearModelProblem], meshes: list[Mesh]) -> list[float]:
    coarse, fine = (problem.l2_errors(solve(problem)) for problem in (build(meshes[0]), build(meshes[1])))
    return [math.log2(coarse[field] / fine[field]) for field in coarse]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_l2_order(case: Case) -> None:
    orders = observed_orders(case.build, [case.mesh(case.cells), case.mesh(2 * case.cells)])
    assert orders[0] >= case.order
    assert all(order >= 1.9 for order in orders[1:])  # the pressure, where there is one


def test_order_check_notices_a_wrong_exact_solution() -> None:
    def wrong(mesh: Mesh) -> LinearModelProblem:
        problem = problems.poisson(mesh)
        return dataclasses.replace(problem, exact=1.01 * problem.exact)

    assert observed_orders(wrong, [square(16), square(32)])[0] < 1.0


def test_order_on_an_unstructured_mesh() -> None:
    def disk(size: float) -> Mesh:
        gmsh.initialize()
        gmsh.option.setNumber("General.Terminal", 0)
        gmsh.model.occ.addDisk(0.0, 0.0, 0.0, 0.5, 0.5)
        gmsh.model.occ.synchronize()
        gmsh.model.addPhysicalGroup(2, [1])
        gmsh.option.setNumber("Mesh.MeshSizeMax", size)
        gmsh.model.mesh.generate(2)
        mesh = dolfinx.io.gmsh.model_to_mesh(gmsh.model, MPI.COMM_WORLD, 0, gdim=2).mesh
        gmsh.finalize()
        return mesh

    assert observed_orders(problems.stokes, [disk(0.1), disk(0.05)])[0] > 2.7


SPECTRA = {
    "poisson": (problems.poisson, "positive"),
    "anisotropy": (problems.anisotropic_diffusion, "positive"),
    "checkerboard": (problems.checkerboard_diffusion, "positive"),
    "lognormal": (lambda mesh: problems.lognormal_diffusion(mesh, sigma=2.0), "positive"),
    "elasticity": (problems.linear_elasticity, "positive"),
    "helmholtz": (lambda mesh: problems.helmholtz(mesh, 8.0), "indefinite"),
    "stokes": (problems.stokes, "singular"),
    "stokes with outflow": (lambda mesh: problems.stokes(mesh, 1.0, all_but_right_side), "indefinite"),
}


@pytest.mark.parametrize("name", SPECTRA)
def test_symmetry_and_signs_of_the_spectrum(name: str) -> None:
    build, kind = SPECTRA[name]
    problem = build(square(4))
    A, _ = problem.assemble()
    matrix = A.copy().convert("dense").getDenseArray()
    scale = np.abs(matrix).max()
    assert np.abs(matrix - matrix.T).max() <= 1e-14 * scale
    eigenvalues = np.linalg.eigvalsh(matrix)
    zeros = int(np.sum(np.abs(eigenvalues) < 1e-10 * scale))
    assert zeros == len(problem.nullspace) == (kind == "singular")
    assert problem.symmetric
    assert problem.definite == (kind == "positive") == (eigenvalues[0] > 0.0)
    assert A.isSymmetricKnown() == (True, True)
    if kind == "singular":
        assert A.getNullSpace().test(A)


def test_convection_is_not_symmetric() -> None:
    problem = problems.convection_diffusion(square(4), supg=True)
    A, _ = problem.assemble()
    difference = A.copy()
    difference.axpy(-1.0, A.copy().transpose())
    assert not problem.symmetric
    assert difference.norm() > 1e-2 * A.norm()


@pytest.mark.parametrize(("mesh", "degree", "count"), [(square, 1, 3), (square, 2, 3), (cube, 1, 6)])
def test_rigid_body_modes_span_the_kernel(mesh: Callable[[int], Mesh], degree: int, count: int) -> None:
    problem = problems.linear_elasticity(mesh(3), degree=degree)
    unconstrained, _ = dataclasses.replace(problem, bcs=()).assemble()
    modes = unconstrained.getNearNullSpace().getVecs()
    gram = np.array([[first.dot(second) for first in modes] for second in modes])
    assert np.abs(gram - np.eye(count)).max() <= 1e-12
    image = unconstrained.createVecLeft()
    for mode in modes:
        unconstrained.mult(mode, image)
        assert image.norm() <= 1e-12 * unconstrained.norm()


def test_conjugate_gradients_need_many_iterations() -> None:
    """A right-hand side that is an eigenvector would make every preconditioner look good."""
    A, b = problems.poisson(square(16)).assemble()
    ksp = PETSc.KSP().create(A.getComm())
    ksp.setOperators(A)
    ksp.setType("cg")
    ksp.getPC().setType("none")
    ksp.setTolerances(rtol=1e-8)
    ksp.solve(b, b.duplicate())
    assert ksp.getIterationNumber() > 20


@pytest.mark.parallel([1, 2])
def test_matrix_keeps_the_problem_until_it_is_destroyed() -> None:
    problem = problems.linear_elasticity(square(4))
    watch = weakref.ref(problem)
    A, b = problem.assemble()
    del problem
    gc.collect()
    y = b.duplicate()
    A.mult(b, y)
    assert np.isfinite(y.norm())
    for thing in (y, A, b):
        thing.destroy()
    gc.collect()
    assert watch() is None


def test_fields_cover_the_rows_once() -> None:
    problem = problems.stokes(square(3))
    indices = problem.field_indices()
    rows = np.concatenate([index.getIndices() for index in indices.values()])
    assert list(indices) == ["velocity", "pressure"]
    assert np.array_equal(np.sort(rows), np.arange(problem.assemble()[1].getSize()))
    assert indices["pressure"].getSize() == 16


@pytest.mark.parametrize("smoothness", [math.inf, 0.5])
def test_covariance_of_the_random_field(smoothness: float) -> None:
    length, lags = 0.1, np.array([0.0, 0.05, 0.1, 0.3])
    starts = np.stack(np.meshgrid(np.arange(5.0), np.arange(5.0))).reshape(2, -1)  # far apart: nearly independent
    products = []
    for seed in range(60):
        field = GaussianRandomField(length, seed, smoothness=smoothness)
        products.append([np.mean(field(starts) * field(np.add(starts, [[lag], [0.0]]))) for lag in lags])
    scaled = lags / length
    expected = np.exp(-(scaled**2) / 2) if math.isinf(smoothness) else np.exp(-scaled)
    assert np.abs(np.mean(products, axis=0) - expected).max() < 0.1


def test_random_field_depends_on_the_point_and_the_seed_alone() -> None:
    points = np.random.default_rng(1).random((3, 5000))
    field = GaussianRandomField(0.2, seed=7)
    together = field(points)
    assert np.allclose(together[4090:4100], field(points[:, 4090:4100]), rtol=0.0, atol=1e-12)
    assert not np.allclose(together, GaussianRandomField(0.2, seed=8)(points))
    for cells in (4, 8):
        mesh = square(cells)
        diffusivity = problems.lognormal_diffusion(mesh, 1.5, 0.2, seed=7).coefficients["diffusivity"]
        count = mesh.topology.index_map(2).size_local
        midpoints = dolfinx.mesh.compute_midpoints(mesh, 2, np.arange(count, dtype=np.int32))
        assert np.allclose(diffusivity.x.array[:count], np.exp(1.5 * field(midpoints.T)), rtol=1e-12)


def fingerprints(comm: MPI.Comm) -> dict[str, np.ndarray]:
    """Return numbers of every problem on a communicator that must not depend on its size."""
    plane, space = square(6, comm=comm), cube(3, comm=comm)
    built = {
        "poisson": problems.poisson(plane),
        "anisotropy": problems.anisotropic_diffusion(plane),
        "checkerboard": problems.checkerboard_diffusion(square(8, comm=comm), blocks=4),
        "lognormal": problems.lognormal_diffusion(plane, seed=3),
        "convection": problems.convection_diffusion(plane, supg=True),
        "helmholtz": problems.helmholtz(plane, 8.0),
        "elasticity": problems.linear_elasticity(space),
        "stokes": problems.stokes(plane),
        "stokes with outflow": problems.stokes(plane, 0.1, all_but_right_side),
    }
    numbers = {}
    for name, problem in built.items():
        A, b = problem.assemble()
        solution = solve(problem)
        errors = [] if problem.exact is None else list(problem.l2_errors(solution).values())
        modes = [mode.x.petsc_vec.norm() for mode in (*problem.near_nullspace, *problem.nullspace)]
        sizes = [index.getSize() for index in problem.field_indices().values()]
        coefficients = [coefficient.x.petsc_vec.norm() for coefficient in problem.coefficients.values()]
        numbers[name] = np.array(
            [A.norm(), b.norm(), solution.x.petsc_vec.norm(), *errors, *modes, *sizes, *coefficients]
        )
    return numbers


@pytest.mark.parallel([1, 2, 3])
def test_problems_do_not_depend_on_the_rank_count() -> None:
    distributed = fingerprints(MPI.COMM_WORLD)
    serial = fingerprints(MPI.COMM_SELF)
    for name, numbers in distributed.items():
        np.testing.assert_allclose(numbers, serial[name], rtol=1e-10, err_msg=name)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda mesh: problems.anisotropic_diffusion(mesh, ratio=0.0), "ratio"),
        (lambda mesh: problems.checkerboard_diffusion(mesh, contrast=-1.0), "contrast"),
        (lambda mesh: problems.lognormal_diffusion(mesh, sigma=-1.0), "sigma"),
        (lambda mesh: problems.lognormal_diffusion(mesh, correlation_length=0.0), "correlation_length"),
        (lambda mesh: problems.convection_diffusion(mesh, velocity=(1.0, 0.0, 0.0)), "velocity"),
        (lambda mesh: problems.helmholtz(mesh, math.nan), "wavenumber"),
        (lambda mesh: problems.linear_elasticity(mesh, poisson_ratio=0.5), "poisson_ratio"),
        (lambda mesh: problems.linear_elasticity(mesh, clamped=lambda x: x[0] > 2.0), "marker"),
        (lambda mesh: problems.stokes(mesh, degree=1), "degree"),
    ],
)
def test_wrong_input_is_named(build: Callable[[Mesh], LinearModelProblem], words: str) -> None:
    with pytest.raises(InputError, match=words):
        build(square(2))


def test_meshes_that_are_refused() -> None:
    with pytest.raises(MeshError, match="plane or of space"):
        problems.poisson(dolfinx.mesh.create_unit_interval(MPI.COMM_WORLD, 3))


def test_error_without_exact_solution() -> None:
    problem = problems.lognormal_diffusion(square(2))
    with pytest.raises(InputError, match="no exact solution"):
        problem.l2_errors(dolfinx.fem.Function(problem.space))


def test_import_is_light() -> None:
    code = "import sys, pdeopt.problems; sys.exit('dolfinx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert set(problems.__all__) <= set(dir(problems))
    with pytest.raises(AttributeError, match="poisson"):
        problems.nothing  # noqa: B018
