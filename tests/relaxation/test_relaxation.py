"""Colouring, relaxation by colours, SSOR with a bandit, and the heat problem that it is for."""

import dataclasses
import math

from mpi4py import MPI
from petsc4py import PETSc

import dolfinx
import dolfinx.fem.petsc
import numpy as np
import petsctools
import pytest
import ufl
from dolfinx import fem
from hypothesis import given, settings
from hypothesis import strategies as st

from pdeopt.problems.unsteady_diffusion import UnsteadyDiffusion
from pdeopt.relaxation import colouring
from pdeopt.relaxation.contexts import StiffnessRatio
from pdeopt.relaxation.multicolour import MulticolourSweep
from pdeopt.relaxation.petsc import BanditSettings, BanditSOR, MulticolourSettings, MulticolourSOR
from pdeopt.report import InputError, OptionError

SELF = MPI.COMM_SELF


def stencil_matrix(comm, side, offsets, diagonal=4.0):
    """Return the matrix of a stencil on a square grid, in lexicographic numbers on any number of ranks."""
    matrix = PETSc.Mat().createAIJ((side * side, side * side), nnz=len(offsets) + 1, comm=comm)
    for row in range(*matrix.getOwnershipRange()):
        i, j = divmod(row, side)
        matrix[row, row] = diagonal
        for di, dj, value in offsets:
            if 0 <= i + di < side and 0 <= j + dj < side:
                matrix[row, (i + di) * side + j + dj] = value
    matrix.assemble()
    return matrix


FIVE_POINT = [(1, 0, -1.0), (-1, 0, -1.0), (0, 1, -1.0), (0, -1, -1.0)]
# One-sided couplings (2, 1) make the pattern unsymmetric.
SKEW = [*FIVE_POINT, (1, 1, -0.5), (-1, -1, -0.3), (2, 1, -0.2)]


def dense(matrix):
    """Return all of a matrix on every rank."""
    full = np.zeros(matrix.getSize())
    for row in range(*matrix.getOwnershipRange()):
        columns, values = matrix.getRow(row)
        full[row, columns] = values
    return matrix.getComm().tompi4py().allreduce(full)


def solver(matrix, context, kind="richardson", rtol=1e-8, max_it=10_000):
    ksp = PETSc.KSP().create(matrix.getComm())
    ksp.setOptionsPrefix("pdeopt_test_")
    ksp.setType(kind)
    ksp.setNormType(PETSc.KSP.NormType.UNPRECONDITIONED)
    ksp.setTolerances(rtol=rtol, max_it=max_it)
    ksp.setOperators(matrix)
    ksp.getPC().setType("python")
    ksp.getPC().setPythonContext(context)
    ksp.setFromOptions()
    return ksp


def random_vector(matrix, seed=0):
    first, end = matrix.getOwnershipRange()
    vector = matrix.createVecLeft()
    vector.array[:] = np.random.default_rng(seed).standard_normal(matrix.getSize()[0])[first:end]
    return vector


class Script:
    """A learner that follows a list of arms, and notes what it is told."""

    def __init__(self, arms):
        self.arms, self.contexts, self.costs = list(arms), [], []

    def choose(self, context=None):
        self.contexts.append(context)
        return self.arms[len(self.contexts) - 1]

    def learn(self, cost):
        self.costs.append(cost)

    def state(self):
        return {}

    def restore(self, state):
        pass


# --- colouring --------------------------------------------------------------------------------------------------------


def graph_of(rows, columns, size):
    matrix = PETSc.Mat().createAIJ((size, size), nnz=size, comm=SELF)
    for i in range(size):
        matrix[i, i] = 1.0
    for i, j in zip(rows, columns, strict=True):
        matrix[i, j] = 1.0
    matrix.assemble()
    return matrix, colouring.matrix_graph(matrix)


def greedy(neighbours, order):
    """Colour one row after the other by the smallest colour that no neighbour has."""
    colours = {}
    for row in order:
        taken = {colours.get(other) for other in neighbours[row]}
        colours[row] = next(colour for colour in range(len(order) + 1) if colour not in taken)
    return [colours[row] for row in range(len(order))]


def is_bipartite(neighbours):
    colour = {}
    for start in range(len(neighbours)):
        if start in colour:
            continue
        colour[start], queue = 0, [start]
        for row in queue:
            for other in neighbours[row]:
                if other not in colour:
                    colour[other] = 1 - colour[row]
                    queue.append(other)
                elif colour[other] == colour[row]:
                    return False
    return True


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 14), st.data())
def test_colours_of_random_graphs(size, data):
    pairs = data.draw(st.lists(st.tuples(st.integers(0, size - 1), st.integers(0, size - 1)), max_size=2 * size))
    matrix, graph = graph_of([i for i, _ in pairs], [j for _, j in pairs], size)
    neighbours = [{j for i, j in [*pairs, *((j, i) for i, j in pairs)] if i == row and j != row} for row in range(size)]
    assert [set(graph.neighbours[a:b]) for a, b in zip(graph.offsets, graph.offsets[1:], strict=False)] == neighbours

    weights = np.random.default_rng(size).permutation(size).astype(np.uint64)
    colours = colouring.colour_graph(graph, weights)
    assert colours.tolist() == greedy(neighbours, np.argsort(weights)[::-1].tolist())
    tied = colouring.colour_graph(graph, np.zeros(size, dtype=np.uint64))
    two = colouring.two_colours(graph)
    assert (two is not None) == is_bipartite(neighbours)
    for found in (tied, two if two is not None else tied):
        assert all(found[row] != found[other] for row in range(size) for other in neighbours[row])
    graph.destroy()
    matrix.destroy()


def test_more_colours_than_bits_of_a_word():
    size = 130
    rows, columns = np.triu_indices(size, 1)  # every row coupled to every other, in one triangle only
    matrix, graph = graph_of(rows, columns, size)
    colours = colouring.colour_graph(graph, colouring.graph_weights(graph))
    assert sorted(colours) == list(range(size))
    graph.destroy()
    matrix.destroy()


def test_weights_do_not_see_the_numbering():
    rng = np.random.default_rng(3)
    size = 200
    rows, columns = rng.integers(0, size, (2, 3 * size))
    number = rng.permutation(size)
    matrix, graph = graph_of(rows, columns, size)
    other_matrix, other = graph_of(number[rows], number[columns], size)
    weights, other_weights = colouring.graph_weights(graph), colouring.graph_weights(other)
    assert np.array_equal(other_weights[number], weights)
    assert np.unique(weights).size > 0.8 * size  # isolated rows and twins apart, the graph tells its rows apart
    for handle in (graph, other, matrix, other_matrix):
        handle.destroy()


# --- relaxation by colours --------------------------------------------------------------------------------------------


def test_red_black_relaxation_has_the_radius_of_young():
    side = 9
    matrix = stencil_matrix(SELF, side, FIVE_POINT)
    full = dense(matrix)
    sweep = MulticolourSweep(matrix)
    assert sweep.count == 2
    jacobi = math.cos(math.pi / (side + 1))
    best = 2.0 / (1.0 + math.sqrt(1.0 - jacobi**2))
    for omega in (1.3, best, 1.9):
        # Young (1954): (l + omega - 1)^2 = l omega^2 jacobi^2.
        exact = omega - 1.0
        if omega < best:
            exact = (0.5 * (omega * jacobi + math.sqrt((omega * jacobi) ** 2 - 4.0 * (omega - 1.0)))) ** 2
        iteration = np.eye(side * side) - np.column_stack([sweep.apply(column, omega) for column in full.T])
        radius = np.abs(np.linalg.eigvals(iteration)).max()
        # At the optimum the largest eigenvalue is defective: rounding moves it by the root of the machine precision.
        assert radius == pytest.approx(exact, rel=1e-6 if omega == best else 1e-10)
    sweep.destroy()


def test_richardson_tests_convergence():
    matrix = stencil_matrix(SELF, 16, SKEW, diagonal=5.0)
    b = random_vector(matrix)
    x = b.duplicate()
    counts = []
    for omega in (1.0, 1.3):
        ksp = solver(matrix, MulticolourSOR(MulticolourSettings(omega=omega)))
        ksp.solve(b, x)
        assert ksp.getConvergedReason() == PETSc.KSP.ConvergedReason.CONVERGED_RTOL
        assert (matrix * x - b).norm() <= 1.0001e-8 * b.norm()
        counts.append(ksp.getIterationNumber())
        ksp.destroy()
    assert counts[1] < counts[0] < 1000


def test_new_values_and_new_patterns():
    b = random_vector(stencil_matrix(SELF, 8, FIVE_POINT))
    x = b.duplicate()
    matrix = stencil_matrix(SELF, 8, FIVE_POINT)
    context = MulticolourSOR(MulticolourSettings(sweep="symmetric", omega=1.2))
    ksp = solver(matrix, context, "cg")
    ksp.solve(b, x)
    first = context.sweep
    matrix.shift(3.0)
    ksp.solve(b, x)
    assert context.sweep is first
    expected = np.linalg.solve(dense(matrix), b.array_r)
    assert np.allclose(x.array_r, expected, rtol=1e-6)
    wider = stencil_matrix(SELF, 8, [*FIVE_POINT, (1, 1, -0.5), (-1, -1, -0.5)], diagonal=6.0)
    ksp.setOperators(wider)
    ksp.solve(b, x)
    assert context.sweep is not first
    assert np.allclose(x.array_r, np.linalg.solve(dense(wider), b.array_r), rtol=1e-6)
    ksp.destroy()


def test_what_relaxation_refuses():
    with pytest.raises(InputError, match="diagonal has 1 zeros"):
        MulticolourSweep(PETSc.Mat().createAIJ((2, 2), csr=([0, 2, 3], [0, 1, 0], [1.0, 1.0, 1.0]), comm=SELF))
    with pytest.raises(InputError, match=r"2 x 3 matrix.*aij"):
        MulticolourSweep(PETSc.Mat().createDense((2, 3), comm=SELF))
    matrix = stencil_matrix(SELF, 4, FIVE_POINT)
    ksp = solver(matrix, MulticolourSOR(), "cg")
    b = random_vector(matrix)
    with pytest.raises(PETSc.Error) as caught:
        ksp.solve(b, b.duplicate())
    assert isinstance(caught.value.__cause__, OptionError)
    assert "pc_multicolour_sweep symmetric" in str(caught.value.__cause__)


# --- several ranks ----------------------------------------------------------------------------------------------------


def poisson_matrix(mesh, degree):
    space = fem.functionspace(mesh, ("Lagrange", degree))
    u, v = ufl.TrialFunction(space), ufl.TestFunction(space)
    x = ufl.SpatialCoordinate(mesh)
    mesh.topology.create_connectivity(mesh.topology.dim - 1, mesh.topology.dim)
    facets = dolfinx.mesh.exterior_facet_indices(mesh.topology)
    bc = fem.dirichletbc(0.0, fem.locate_dofs_topological(space, mesh.topology.dim - 1, facets), space)
    matrix = fem.petsc.assemble_matrix(fem.form(ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx), [bc])
    matrix.assemble()
    b = fem.petsc.assemble_vector(fem.form(ufl.exp(x[0]) * ufl.cos(3 * x[1]) * v * ufl.dx))
    b.ghostUpdate(PETSc.InsertMode.ADD, PETSc.ScatterMode.REVERSE)
    fem.petsc.set_bc(b, [bc])
    points = space.tabulate_dof_coordinates()[: b.getLocalSize()]
    return matrix, b, colouring.point_labels(mesh.comm, points), space


def iterations(matrix, b, labels, omega):
    context = MulticolourSOR(MulticolourSettings(omega=omega, labels="" if labels is None else labels))
    ksp = solver(matrix, context, rtol=1e-6)
    x = b.duplicate()
    ksp.solve(b, x)
    assert ksp.getConvergedReason() > 0
    count, colours = ksp.getIterationNumber(), context.sweep.count
    x.destroy()
    ksp.destroy()
    return count, colours


def check_sweeps(comm):
    side, omega = 9, 1.6
    for offsets in (FIVE_POINT, SKEW):
        matrix, alone = (stencil_matrix(where, side, offsets, diagonal=5.0) for where in (comm, SELF))
        sweep, sweep_alone = MulticolourSweep(matrix), MulticolourSweep(alone)
        colours = np.concatenate(comm.allgather(sweep.colours))
        assert np.array_equal(colours, sweep_alone.colours)

        # The dense algorithm in the order of the colours.
        full = dense(matrix)
        diagonal = np.diag(np.diag(full))
        lower = np.where(colours < colours[:, None], full, 0.0)
        upper = np.where(colours > colours[:, None], full, 0.0)
        assert np.array_equal(lower + diagonal + upper, full)  # a proper colouring
        first, last = diagonal / omega + lower, diagonal / omega + upper
        vector = np.random.default_rng(1).standard_normal(side * side)
        owned = slice(*matrix.getOwnershipRange())
        for kind, preconditioner in (
            ("forward", first),
            ("backward", last),
            ("symmetric", omega / (2.0 - omega) * first @ np.linalg.solve(diagonal, last)),
        ):
            exact = np.linalg.solve(preconditioner, vector)[owned]
            assert np.allclose(sweep.apply(vector[owned], omega, kind), exact, rtol=0.0, atol=1e-14)
        sweep.destroy()
        sweep_alone.destroy()
        pairs = [iterations(a, random_vector(a), None, 1.4) for a in (matrix, alone)]
        assert pairs[0] == pairs[1]
        matrix.destroy()
        alone.destroy()


def check_mesh(build, comm, degree):
    """DOLFINx numbers the rows differently on each number of ranks."""
    matrix, b, labels, _kept = poisson_matrix(build(comm), degree)
    alone, b_alone, labels_alone, _kept_alone = poisson_matrix(build(SELF), degree)
    reference, colours = iterations(alone, b_alone, labels_alone, 1.4)
    assert iterations(matrix, b, labels, 1.4) == (reference, colours)
    count, _ = iterations(matrix, b, None, 1.4)  # without labels almost the same
    assert abs(count - reference) <= max(2, 0.1 * reference)
    for handle in (matrix, b, alone, b_alone):
        handle.destroy()


def check_bandit(comm):
    """One omega for all ranks, and an error of one rank on all of them."""
    problem = UnsteadyDiffusion(comm, 8)
    seen = []

    def rank_dependent():
        if len(seen) == 5 and comm.rank == comm.size - 1:
            raise ZeroDivisionError("a context fails on the last rank")
        seen.append(problem.kappa)
        return problem.kappa + comm.rank

    script = Script([0, 3, 1, 2, 2])
    context = BanditSOR(BanditSettings(count=4, context=rank_dependent), learner=script)
    ksp = solver(problem.matrix, context, "cg")
    for _ in range(5):
        problem.assemble_step()
        ksp.solve(problem.right_hand_side, problem.solution)
        problem.advance()
    assert comm.allgather(context.chosen.tolist()) == comm.size * [[0, 3, 1, 2, 2]]
    if comm.rank == 0:
        assert script.contexts == seen
        assert script.costs == context.paid.tolist()
    with pytest.raises(PETSc.Error) as caught:
        ksp.solve(problem.right_hand_side, problem.solution)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    ksp.destroy()
    problem.destroy()


@pytest.mark.parallel([3])
def test_relaxation_on_several_ranks():
    """The same sweeps, colours and iterations on three ranks, on two of them, and on one."""
    two = MPI.COMM_WORLD.Split(MPI.COMM_WORLD.rank // 2)
    for comm in (MPI.COMM_WORLD, two):
        check_sweeps(comm)
    check_mesh(lambda comm: dolfinx.mesh.create_unit_square(comm, 8, 8), MPI.COMM_WORLD, degree=1)
    check_mesh(lambda comm: dolfinx.mesh.create_unit_cube(comm, 2, 2, 2), two, degree=2)
    check_bandit(two)
    two.Free()


# --- SSOR with a bandit -----------------------------------------------------------------------------------------------


def heat_solver(context, cells=12, **options):
    """Return a problem and its solver, whose preconditioner is named by an option as a user would."""
    problem = UnsteadyDiffusion(SELF, cells)
    database = PETSc.Options("pdeopt_test_")
    for name, value in options.items():
        database[name] = value
    try:
        ksp = solver(problem.matrix, context, "cg")
    finally:
        for name in options:
            database.delValue(name)
    ksp.setInitialGuessNonzero(True)
    return problem, ksp


def march(problem, ksp, steps):
    counts = []
    for _ in range(steps):
        problem.assemble_step()
        ksp.solve(problem.right_hand_side, problem.solution)
        counts.append(ksp.getIterationNumber())
        problem.advance()
    return counts


def cause(function):
    with pytest.raises(PETSc.Error) as caught:
        function()
    return caught.value.__cause__


def test_a_fixed_omega_is_that_of_petsc():
    name = "pdeopt.relaxation.petsc.BanditSOR"
    options = {"pc_type": "python", "pc_python_type": name, "pc_bandit_learner": "fixed", "pc_bandit_omega": 1.7}
    before = PETSc.Options().getAll()
    problem, ksp = heat_solver(None, **options)
    counts = march(problem, ksp, 10)
    context = ksp.getPC().getPythonContext()
    assert context.omegas.tolist() == [1.7]
    assert context.paid.tolist() == counts
    assert PETSc.Options().getAll() == before
    rival, rival_ksp = heat_solver(None, pc_type="sor", pc_sor_omega=1.7)
    assert march(rival, rival_ksp, 10) == counts
    assert (rival.solution - problem.solution).norm() <= 1e-14 * problem.solution.norm()

    # Options read again begin anew where they differ, and only there.
    ksp.setFromOptions()
    assert context.paid.tolist() == counts
    PETSc.Options()["pdeopt_test_pc_bandit_omega"] = 1.2
    ksp.setFromOptions()
    PETSc.Options().delValue("pdeopt_test_pc_bandit_omega")
    march(problem, ksp, 2)
    assert context.omegas.tolist() == [1.2]
    assert context.counts == [2]


def test_each_solve_uses_the_omega_of_its_arm():
    script = Script([0, 4, 2, 2])
    problem, ksp = heat_solver(BanditSOR(BanditSettings(low=1.0, high=1.8, count=5, context="matrix"), script))
    counts = march(problem, ksp, 4)
    assert script.costs == counts
    for step, omega in enumerate((1.0, 1.8, 1.4, 1.4)):
        rival, rival_ksp = heat_solver(None, pc_type="sor", pc_sor_omega=omega)
        for _ in range(step):  # the state up to here, then one solve
            rival.assemble_step()
            rival_ksp.solve(rival.right_hand_side, rival.solution)
            rival.advance()
        assert march(rival, rival_ksp, 1) == [counts[step]]
    assert len(set(script.contexts)) == 4  # kappa grows, and so does the context
    assert script.contexts == sorted(script.contexts)


def test_a_failed_solve_is_repeated_and_dear():
    # Pure upwinding: with omega = 1 relaxation in the order of the flow is a direct solver, with 1.95 it diverges.
    matrix = stencil_matrix(SELF, 20, [(-1, 0, -2.0), (0, -1, -2.0)])
    script = Script([0, 1, 0])
    context = BanditSOR(BanditSettings(low=1.0, high=1.95, count=2), script)
    ksp = solver(matrix, context)
    ksp.setErrorIfNotConverged(True)
    b = random_vector(matrix)
    x = b.duplicate()
    for _ in range(3):
        ksp.solve(b, x)
        assert ksp.getConvergedReason() > 0
        assert (matrix * x - b).norm() <= 1e-8 * b.norm()
    assert (context.failures, context.repeated, context.unsolved) == (1, 1, 0)
    plain, failed = script.costs[0], script.costs[1]
    assert script.costs[2] == plain
    assert 10.0 * plain < failed < math.inf
    assert ksp.getErrorIfNotConverged()
    assert context.report.converged


def test_attached_it_does_the_same():
    settings = BanditSettings(low=1.1, high=1.9, count=7, seed=2, learner="chebyshev")
    as_type, attached = BanditSOR(settings), BanditSOR(settings)
    problem, ksp = heat_solver(as_type)
    counts = march(problem, ksp, 25)
    other, other_ksp = heat_solver(None)
    attached.attach(other_ksp)
    assert other_ksp.getPC().getType() == "sor"
    assert march(other, other_ksp, 25) == counts
    assert attached.chosen == as_type.chosen
    assert len(set(counts)) > 1
    assert (other.solution - problem.solution).norm() <= 1e-14 * problem.solution.norm()

    other_ksp.setTolerances(max_it=1)  # omega = 1 goes on from there, and needs more than that too
    other_ksp.setErrorIfNotConverged(False)
    other.solution.set(0.0)
    march(other, other_ksp, 1)
    assert (attached.failures, attached.repeated, attached.unsolved) == (1, 1, 1)
    other_ksp.setType("richardson")
    assert "tests no convergence" in str(cause(lambda: march(other, other_ksp, 1)))
    other_ksp.destroy()
    attached.destroy()


def test_a_solve_that_omega_one_cannot_save():
    matrix = stencil_matrix(SELF, 8, FIVE_POINT, diagonal=0.5)  # far from diagonally dominant: relaxation diverges
    script = Script([1, 0])
    context = BanditSOR(BanditSettings(low=1.0, high=1.95, count=2), script)
    ksp = solver(matrix, context)
    b = random_vector(matrix)
    x = b.duplicate()
    ksp.solve(b, x)
    assert ksp.getConvergedReason() == PETSc.KSP.ConvergedReason.DIVERGED_DTOL
    ksp.setErrorIfNotConverged(True)
    with pytest.raises(PETSc.Error):
        ksp.solve(b, x)
    assert (context.failures, context.repeated, context.unsolved) == (2, 1, 2)
    assert all(math.isfinite(cost) for cost in script.costs)
    assert not context.report.converged


def test_options_that_do_not_fit():
    for option, value, message in (
        ("pc_bandit_lerner", "tsallis", "did you mean -pdeopt_test_pc_bandit_learner"),
        ("pc_bandit_learner", "psychic", "choose tsallis, binned, chebyshev or fixed"),
        ("pc_bandit_count", "many", "-pdeopt_test_pc_bandit_count is 'many': give it a value of type int"),
        ("pc_bandit_high", 2.5, "between 0 and 2"),
        ("pc_bandit_context", "weather", "choose auto, matrix"),
        ("bandit_pc_sor_omega", 1.2, "-pdeopt_test_pc_bandit_omega"),
    ):
        options = {option: value}
        error = cause(lambda options=options: heat_solver(BanditSOR(), **options))
        assert isinstance(error, OptionError)
        assert message in str(error)


def test_what_was_learned_goes_on(tmp_path):
    file = tmp_path / "state.json"
    settings = BanditSettings(count=6, seed=3)
    whole = BanditSOR(settings)
    march(*heat_solver(whole), 40)
    kept = dataclasses.replace(settings, state=str(file))
    problem, chosen = UnsteadyDiffusion(SELF, 12), []
    for _ in range(2):
        context = BanditSOR(kept)
        ksp = solver(problem.matrix, context, "cg")
        ksp.setInitialGuessNonzero(True)
        march(problem, ksp, 20)
        chosen += context.chosen.tolist()
        ksp.destroy()  # writes what is known
    assert chosen == whole.chosen.tolist()
    assert len(set(chosen)) > 1
    assert list(tmp_path.iterdir()) == [file]

    fewer = BanditSOR(dataclasses.replace(kept, count=5))
    assert "name another file" in str(cause(lambda: march(*heat_solver(fewer), 1)))
    text = file.read_text()
    position = text.index("omegas") + 15
    file.write_text(text[:position] + chr(ord(text[position]) ^ 1) + text[position + 1 :])
    assert "no state of a learner" in str(cause(lambda: march(*heat_solver(BanditSOR(kept)), 1)))
    nowhere = dataclasses.replace(settings, state=str(tmp_path / "missing" / "state.json"))
    assert "cannot be written" in str(cause(lambda: march(*heat_solver(BanditSOR(nowhere)), 1)))


def test_context_through_petsctools_and_view(tmp_path):
    problem = UnsteadyDiffusion(SELF, 8)
    ksp = PETSc.KSP().create(SELF)
    ksp.setOperators(problem.matrix)
    petsctools.set_from_options(
        ksp,
        parameters={
            "ksp_type": "cg",
            "pc_type": "python",
            "pc_python_type": "pdeopt.relaxation.petsc.BanditSOR",
            "pc_bandit_context": lambda: problem.kappa,
            "pc_bandit_count": 3,
        },
        options_prefix="pdeopt_test_",
    )
    march(problem, ksp, 6)
    context = ksp.getPC().getPythonContext()
    assert context.settings.context() == problem.kappa
    viewer = PETSc.Viewer().createASCII(str(tmp_path / "view.txt"), comm=SELF)
    ksp.view(viewer)
    viewer.destroy()
    lines = (tmp_path / "view.txt").read_text().splitlines()
    table = [
        line.split() for line in lines[lines.index("    omega, solves, mean iterations") + 1 :][: context.omegas.size]
    ]
    for omega, solves, mean in (row for row in table if len(row) == 3):
        arm = context.omegas.tolist().index(float(omega))
        assert int(solves) == context.counts[arm]
        assert float(mean) == pytest.approx(context.costs[arm] / context.counts[arm], rel=1e-3)
    assert sum(int(row[1]) for row in table if len(row) == 3) == 6


def test_stiffness_ratio_resolves_both_ends():
    # I + c K with the five-point K: r = (1 + k c) / (1 + 4 c) where k neighbours are missing at the edge.
    side = 24
    for c in (1e-4, 1e-2, 1.0, 1e3):
        offsets = [(i, j, -c) for i, j, _ in FIVE_POINT]
        ratio = StiffnessRatio(stencil_matrix(SELF, side, offsets, diagonal=1.0 + 4.0 * c))
        i, j = np.divmod(ratio.rows, side)
        missing = (i == 0) * 1.0 + (i == side - 1) + (j == 0) + (j == side - 1)
        exact = np.log(2.0 * (1.0 + 4.0 * c) / (1.0 + missing * c) - 1.0)
        assert ratio(stencil_matrix(SELF, side, offsets, diagonal=1.0 + 4.0 * c)) == pytest.approx(exact.mean())
        assert np.count_nonzero(missing == 0) > 40
        assert exact[missing == 0] == pytest.approx(math.log(1.0 + 8.0 * c))
        ratio.destroy()


# --- the heat problem -------------------------------------------------------------------------------------------------


def heat_error(cells, steps, theta):
    """Return the largest error at t = 1/4 with kappa = 1 + sin(8 t), against exp(-2 pi^2 int kappa) sin sin."""
    problem = UnsteadyDiffusion(
        SELF,
        cells,
        step=0.25 / steps,
        theta=theta,
        diffusivity=lambda time: 1.0 + math.sin(8.0 * time),
        forcing=lambda time, x: np.zeros(x.shape[1]),
        initial=lambda x: np.sin(math.pi * x[0]) * np.sin(math.pi * x[1]),
    )
    ksp = PETSc.KSP().create(SELF)
    ksp.setType("cg")
    ksp.getPC().setType("icc")
    ksp.setTolerances(rtol=1e-11)
    ksp.setOperators(problem.matrix)
    march(problem, ksp, steps)
    assert problem.time == pytest.approx(0.25)
    integral = 0.25 + (1.0 - math.cos(2.0)) / 8.0
    exact = math.exp(-2.0 * math.pi**2 * integral) * np.prod(np.sin(math.pi * problem.coordinates.T), axis=0)
    error = np.abs(problem.solution.array_r - exact).max()
    ksp.destroy()
    problem.destroy()
    return float(error)


def test_order_of_the_heat_problem():
    # h is halved; the step is halved for order 2 in time, quartered for order 1.
    for theta, (coarse, fine) in ((0.5, ((16, 32), (32, 64))), (1.0, ((8, 50), (16, 200)))):
        order = math.log2(heat_error(*coarse, theta) / heat_error(*fine, theta))
        assert order == pytest.approx(2.0, abs=0.12)


def test_heat_problem_refuses():
    with pytest.raises(InputError, match=r"theta is 0\.3"):
        UnsteadyDiffusion(SELF, 4, theta=0.3)
    problem = UnsteadyDiffusion(SELF, 4, diffusivity=lambda time: -1.0)
    with pytest.raises(InputError, match="diffusivity at time 0 is -1"):
        problem.assemble_step()
