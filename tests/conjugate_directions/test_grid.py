"""Multigrid on lattices: the matrix's own action, exact Galerkin stencils, symmetry, and steps that do not grow."""

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np
import pytest
from grid_problems import Diffusion, solve

from pdeopt.conjugate_directions import CycleSettings, GridMultigrid
from pdeopt.conjugate_directions.grid_coarsening import coarsen
from pdeopt.conjugate_directions.grid_cycle import GridCycle
from pdeopt.conjugate_directions.grid_kernels import load_kernels
from pdeopt.conjugate_directions.grid_layout import GridLayout
from pdeopt.conjugate_directions.grid_slabs import Slabs
from pdeopt.conjugate_directions.grid_stencils import Lattice
from pdeopt.report import InputError

CASES = {
    "triangle": (12, 9),
    "quadrilateral": (17, 33),
    "tetrahedron": (4, 5, 6),
    "hexahedron": (9, 8, 12),
}
ALONE = Slabs(MPI.COMM_SELF, np.array([0, 1]))


def random_stencils(shape, seed=0):
    """A diagonally dominant matrix with negative couplings, in double precision."""
    lattice = Lattice(shape, load_kernels(MPI.COMM_SELF, np.float64))
    stencils, generator = lattice.stencils(len(lattice.halves)), np.random.default_rng(seed)
    for offset, values in zip(lattice.halves, stencils, strict=True):
        inside = tuple(slice(max(0, -o), n - max(0, o)) for o, n in zip(offset, shape, strict=True))
        part = lattice.inner(values)[inside]
        part[...] = -generator.uniform(0.1, 1.0, part.shape) if any(offset) else len(lattice.offsets)
    return lattice, stencils


def columns(lattice, operation):
    """The matrix of a linear operation on values at the points of a lattice."""
    unit = lattice.values()
    inner = lattice.inner(unit)
    found = []
    for place in np.ndindex(lattice.shape):
        inner[...] = 0.0
        inner[place] = 1.0
        found.append(operation(unit))
    return np.stack(found, axis=1)


def row_sums(lattice, stencils):
    sums = stencils[0].copy()
    for offset, values in zip(lattice.halves[1:], stencils[1:], strict=True):
        sums += values + np.roll(values, offset, axis=tuple(range(values.ndim)))
    return sums


def product(lattice, stencils):
    kernels, out, sums = lattice.kernels, lattice.values(), row_sums(lattice, stencils)

    def operation(values):
        operator, arrays = map(kernels.pointer, (stencils, sums)), map(kernels.pointer, (values, out))
        kernels.library.residual(lattice.c, 0, lattice.shape[0], *operator, kernels.null, *arrays)
        return lattice.inner(out).ravel().copy()

    return operation


@pytest.mark.parametrize("shape", [(7, 9), (8, 6), (5, 4, 7), (6, 5, 4)])
def test_coarse_stencils_are_galerkins(shape):
    lattice, stencils = random_stencils(shape)
    coarse, weights, projected = coarsen(lattice, stencils, ALONE)
    kernels, fine = lattice.kernels, lattice.values()

    def interpolate(values):
        fine[...] = 0.0
        kernels.library.interpolate(
            lattice.c, coarse.c, 0, lattice.shape[0], *map(kernels.pointer, (weights, values, fine))
        )
        return lattice.inner(fine).ravel().copy()

    right = coarse.values()

    def restrict(values):
        arrays = map(kernels.pointer, (weights, values, right))
        kernels.library.restrict_to(lattice.c, coarse.c, 0, coarse.shape[0], *arrays)
        return coarse.inner(right).ravel().copy()

    prolongation, matrix = columns(coarse, interpolate), columns(lattice, product(lattice, stencils))
    assert np.abs(matrix - matrix.T).max() < 1e-13 * np.abs(matrix).max()
    assert np.abs(columns(lattice, restrict) - prolongation.T).max() == 0.0
    wanted = prolongation.T @ matrix @ prolongation
    assert np.abs(columns(coarse, product(coarse, projected)) - wanted).max() < 1e-13 * np.abs(wanted).max()
    # Of a constant the operator makes little here, and the weights almost keep it.
    assert prolongation.sum(axis=1).max() <= 1.0 + 1e-12


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("cell", CASES)
def test_the_lattice_acts_as_the_matrix(cell):
    problem = Diffusion(cell, CASES[cell])
    layout = GridLayout(problem.matrix, problem.places, load_kernels(MPI.COMM_WORLD, np.float64))
    assert layout.shape == tuple(count + 1 for count in CASES[cell][::-1])
    slabs, values = Slabs(layout.comm, layout.starts), layout.lattice.values()
    lattice, stencils, sums = layout.stencils(problem.matrix)
    layout.to_lattice(problem.right.array_r, values)
    for array, axis in ((stencils, 1), (values, 0)):
        slabs.exchange(array, axis)
    out, kernels = layout.lattice.values(), layout.lattice.kernels
    operator = map(kernels.pointer, (stencils, sums))
    arrays = map(kernels.pointer, (values, out))
    kernels.library.residual(lattice.c, 0, lattice.shape[0], *operator, kernels.null, *arrays)
    found, wanted = problem.right.duplicate(), problem.right.duplicate()
    layout.from_lattice(out, found.array_w)
    problem.matrix.mult(problem.right, wanted)
    size = wanted.norm()
    wanted.axpy(-1.0, found)
    assert wanted.norm() < 1e-13 * size


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("cell", CASES)
def test_the_cycle_is_symmetric_and_between_zero_and_the_inverse(cell):
    problem = Diffusion(cell, CASES[cell], strong=(3.0, 1.0, -2.0)[: len(CASES[cell])])
    body = GridMultigrid(problem.matrix, problem.places, dtype=np.float64)
    vectors, answers = [], []
    for number in range(4):
        vector, answer = problem.right.duplicate(), problem.right.duplicate()
        vector.array_w[:] = np.cos((10.0 + 90.0 * number) * problem.places @ [1.0, 2.0, 3.0] + number)
        body.apply(vector, answer)
        vectors.append(vector)
        answers.append(answer)
    product = np.array([[v.dot(a) for a in answers] for v in vectors])
    assert np.abs(product - product.T).max() < 1e-12 * np.abs(product).max()
    assert np.linalg.eigvalsh(product).min() > 0.0
    # B A has eigenvalues up to 1: the factors stay above the matrix, also where the slabs are cut.
    image = problem.right.duplicate()
    for vector, answer in zip(vectors, answers, strict=True):
        problem.matrix.mult(answer, image)
        assert answer.dot(image) <= vector.dot(answer) * (1.0 + 1e-10)


@pytest.mark.parametrize("cell", ["tetrahedron", "hexahedron"])
@pytest.mark.parametrize("strong", [(1.0, 0.6, -0.3), (1.0, 1.0, 0.1), (0.2, -1.0, 0.9)])
def test_the_cycle_in_space_is_positive_though_nothing_is_lumped(cell, strong):
    """All eigenvalues, with couplings of both signs."""
    problem = Diffusion(cell, (5, 6, 4), strong=strong)
    body = GridMultigrid(problem.matrix, problem.places, dtype=np.float64)
    assert body.settings.keep == 0.0
    vector, answer, found = problem.right.duplicate(), problem.right.duplicate(), []
    for unit in np.eye(vector.getSize()):
        vector.array_w[:] = unit
        body.apply(vector, answer)
        found.append(answer.array_r.copy())
    inverse = np.array(found)
    assert np.abs(inverse - inverse.T).max() < 1e-13 * np.abs(inverse).max()
    assert np.linalg.eigvalsh(inverse).min() > 0.0


@pytest.mark.parametrize(("strong", "most"), [(None, 7), ((1.0, 1.0), 7), ((1.0, 0.0), 7)])
def test_iterations_do_not_grow_with_the_mesh(strong, most):
    counts = []
    for cells in (64, 256):
        problem = Diffusion("triangle", (cells, cells), strong)
        iterations, residual = solve(problem.matrix, problem.right, GridMultigrid(problem.matrix, problem.places))
        assert residual < 1e-8
        counts.append(iterations)
    assert counts[1] <= max(1.2 * counts[0], counts[0] + 1)
    assert counts[1] <= most


@pytest.mark.parallel([1, 2, 3])
def test_solves_in_single_precision_to_1e8_and_takes_new_values():
    problem = Diffusion("hexahedron", (20, 16, 24))
    body = GridMultigrid(problem.matrix, problem.places)
    iterations, residual = solve(problem.matrix, problem.right, body)
    assert residual < 1e-8
    assert iterations <= 10
    problem.matrix.scale(1e3)
    body.update(problem.matrix)
    again, residual = solve(problem.matrix, problem.right, body)
    assert residual < 1e-8
    assert abs(again - iterations) <= 1


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize(("strong", "wanted"), [((1.0, 3.0), 5), ((0.0, 1.0), 2), (None, 3)])
def test_iterations_do_not_grow_with_the_ranks(strong, wanted):
    problem = Diffusion("triangle", (24, 60), strong)
    iterations, residual = solve(problem.matrix, problem.right, GridMultigrid(problem.matrix, problem.places))
    assert residual < 1e-8
    assert iterations == pytest.approx(wanted, abs=1)


def test_the_lattice_turns_with_the_strong_direction():
    """Both diagonals cost alike, also when the matrix changes from one to the other; without turning one costs more."""
    rising, falling = (Diffusion("triangle", (64, 64), strong) for strong in ((4.0, 1.0), (4.0, -1.0)))
    body = GridMultigrid(rising.matrix, rising.places)
    counts = [solve(rising.matrix, rising.right, body)[0]]
    for problem in (falling, rising):
        assert body.update(problem.matrix)
        counts.append(solve(problem.matrix, problem.right, body)[0])
    assert max(counts) <= 7
    fixed = [GridMultigrid(problem.matrix, problem.places, turning=False) for problem in (rising, falling)]
    worst = max(solve(p.matrix, p.right, body)[0] for p, body in zip((rising, falling), fixed, strict=True))
    assert worst >= 1.4 * max(counts)


class Counting:
    """A communicator that counts what is sent."""

    def __init__(self, comm):
        self.comm, self.messages = comm, 0

    def __getattr__(self, name):
        self.messages += name in ("Send", "Sendrecv", "Allgatherv")
        return getattr(self.comm, name)


@pytest.mark.parallel([2, 3])
def test_messages_do_not_grow_with_the_mesh():
    counts = []
    for layers in (200, 400):
        problem = Diffusion("triangle", (6, layers))
        layout, comm = (
            GridLayout(problem.matrix, problem.places, load_kernels(MPI.COMM_WORLD, np.float32)),
            MPI.COMM_WORLD,
        )
        slabs = Slabs(Counting(comm), layout.starts)
        cycle = GridCycle(*layout.stencils(problem.matrix), slabs, layout.depth)
        slabs.comm.messages = 0
        cycle.apply()
        counts.append(max(comm.allgather(slabs.comm.messages)))
    assert counts[0] == counts[1] < 50


def test_jumps_by_a_million_cost_single_precision_no_iterations():
    problem = Diffusion("triangle", (128, 128), jump=1e6)
    bodies = [GridMultigrid(problem.matrix, problem.places, dtype=dtype) for dtype in (np.float64, np.float32)]
    counts = [solve(problem.matrix, problem.right, body) for body in bodies]
    assert max(residual for _, residual in counts) < 1e-8
    assert counts[1][0] <= counts[0][0] + 1


@pytest.mark.parallel([1, 2])
def test_pure_neumann_conditions_are_solved_and_a_nan_is_said():
    problem = Diffusion("quadrilateral", (40, 30), held=False)
    constant = PETSc.NullSpace().create(constant=True, comm=MPI.COMM_WORLD)
    problem.matrix.setNullSpace(constant)
    constant.remove(problem.right)
    body = GridMultigrid(problem.matrix, problem.places)
    iterations, residual = solve(problem.matrix, problem.right, body)
    assert residual < 1e-8
    assert iterations <= 15
    problem.matrix.scale(np.nan)
    body.update(problem.matrix)
    assert not solve(problem.matrix, problem.right, body)[1] < 1.0


@pytest.mark.parallel([1, 2])
def test_what_is_no_lattice_is_said():
    problem = Diffusion("triangle", (6, 5))
    bent = problem.places + 0.05 * np.sin(40.0 * problem.places[:, ::-1])
    with pytest.raises(InputError, match="no filled lattice"):
        GridMultigrid(problem.matrix, bent)
    with pytest.raises(InputError, match="coordinates for"):
        GridMultigrid(problem.matrix, problem.places[:-1])
    with pytest.raises(InputError, match="lie at one place"):
        GridMultigrid(problem.matrix, np.concatenate([problem.places[:1], problem.places[:-1]]))
    squares = Diffusion("quadrilateral", (6, 5), degree=2)
    with pytest.raises(InputError, match="lattice step away"):
        GridMultigrid(squares.matrix, squares.places)


def test_settings_are_checked():
    problem = Diffusion("triangle", (6, 5))
    with pytest.raises(InputError, match="keep"):
        GridMultigrid(problem.matrix, problem.places, CycleSettings(keep=1.5))


@pytest.mark.parametrize("unit", [1e-23, 1e20])
def test_unit_of_the_matrix_does_not_matter(unit):
    """Squares of its entries are no numbers of single precision."""
    problem = Diffusion("triangle", (32, 32), strong=(1.0, 1.0))
    expected, _ = solve(problem.matrix, problem.right, GridMultigrid(problem.matrix, problem.places))
    problem.matrix.scale(unit)
    found, residual = solve(problem.matrix, problem.right, GridMultigrid(problem.matrix, problem.places))
    assert found <= expected + 1
    assert residual <= 1e-8


@pytest.mark.parallel([1, 2])
def test_coordinates_of_another_shape_are_refused():
    problem = Diffusion("triangle", (12, 9))
    with pytest.raises(InputError, match=r"coordinates of shape .*\(rows, 2 or 3\)"):
        GridMultigrid(problem.matrix, problem.places[:, 0])


def test_rows_too_long_for_the_stack_are_refused():
    count = 2**17 + 1
    matrix = PETSc.Mat().createAIJ((2 * count, 2 * count), nnz=1, comm=MPI.COMM_SELF)
    matrix.setUp()
    for row in (0, 2 * count - 1):
        matrix.setValue(row, row, 1.0)
    matrix.assemble()
    places = np.stack([np.tile(np.arange(count), 2), np.repeat([0.0, 1.0], count)], axis=1)
    with pytest.raises(InputError, match="exchange the coordinates"):
        GridMultigrid(matrix, places)
