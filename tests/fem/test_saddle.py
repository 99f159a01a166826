"""Saddle points and elasticity: Schur complements, near-nullspaces, iterations over meshes, kinds and ranks."""

from mpi4py import MPI
from petsc4py import PETSc

import basix.ufl
import dolfinx
import numpy as np
import pytest
import ufl
from dolfinx import fem
from dolfinx.fem.petsc import LinearProblem, NonlinearProblem

from pdeopt.bench import saddle_cases as cases
from pdeopt.fem import forms, saddle
from pdeopt.fem.saddle_blocks import Blocks, BlockTriangular
from pdeopt.fem.saddle_fields import Fields, near_nullspace_arrays, nullspace_of
from pdeopt.fem.saddle_pcd import PressureConvectionDiffusion
from pdeopt.fem.saddle_schur import LeastSquaresCommutator, PressureMass
from pdeopt.report import InputError, OptionError

WIND_STRENGTH = 20.0
DIRECT = {"ksp_type": "preonly", "pc_type": "lu", "pc_factor_mat_solver_type": "mumps"}


def exact_solver(name, matrix, existing=None):
    """An inner solver without error, for tests of the algebra around it."""
    ksp = PETSc.KSP().create(matrix.comm)
    ksp.setOperators(matrix)
    ksp.setType("preonly")
    ksp.getPC().setType("lu")
    ksp.getPC().setFactorSolverType("mumps")
    return ksp


def oseen(mesh, flow="step", wind=WIND_STRENGTH, sign=-1.0):
    """The Oseen equations with a given wind: space, wind, bilinear form, conditions."""
    space, conditions = (cases.cavity if flow == "cavity" else cases.step)(mesh)
    x = ufl.SpatialCoordinate(mesh)
    wind = wind * ufl.as_vector([x[1] * (1.0 - x[1]), ufl.sin(x[0]) * x[1] * (1.0 - x[1])])
    (u, p), (v, q) = ufl.TrialFunctions(space), ufl.TestFunctions(space)
    a = (ufl.inner(ufl.grad(u), ufl.grad(v)) + ufl.inner(ufl.dot(ufl.grad(u), wind), v)) * ufl.dx
    a += (-p * ufl.div(v) + sign * q * ufl.div(u)) * ufl.dx
    return space, wind, a, conditions


def solve(space, a, conditions, setup, prefix="test_saddle_", rtol=1e-9):
    load = ufl.inner(fem.Constant(space.mesh, (0.3, -0.2)), ufl.TestFunctions(space)[0]) * ufl.dx
    problem = LinearProblem(a, load, bcs=conditions, petsc_options_prefix=prefix)
    if isinstance(setup, dict):
        options = setup
        with forms.default_options(prefix, options):
            problem.solver.setFromOptions()
    else:
        setup.options["ksp_rtol"] = rtol
        setup.attach(problem.solver)
    solution = problem.solve()
    assert problem.solver.getConvergedReason() > 0
    return solution, problem


def difference(one, other):
    """Relative L2 distance of the first fields of two mixed functions."""
    first, second = ufl.split(one)[0], ufl.split(other)[0]
    return cases._size(first - second) / cases._size(second)


def channel(cells, comm=MPI.COMM_WORLD):
    return cases.flow_mesh(comm, "step", cells)


def dense(matrix):
    return matrix.convert("dense", PETSc.Mat()).getDenseArray().copy()


def blocks_of(space, a, conditions):
    """The blocks of an assembled matrix, cut out without the code under test."""
    matrix = forms.assemble_matrix(forms.compile_form(a), conditions)
    parts = [np.sort(np.ravel(space.sub(i).collapse()[1])).astype(np.int32) for i in range(2)]
    sets = [PETSc.IS().createGeneral(part, comm=PETSc.COMM_SELF) for part in parts]
    leading, gradient, divergence = (matrix.createSubMatrix(sets[i], sets[j]) for i, j in ((0, 0), (0, 1), (1, 0)))
    return Blocks(leading, gradient, divergence, 1.0, None)


def columns(schur, size):
    """The matrix of a Schur complement's approximate solve."""
    right, out = (PETSc.Vec().createSeq(size) for _ in range(2))
    table = np.empty((size, size))
    for index in range(size):
        right.set(0.0)
        right.array[index] = 1.0
        schur.solve(right, out)
        table[:, index] = out.array
    return table


# Algebra --------------------------------------------------------------------------------------------------------------


def test_pressure_mass_is_equivalent_to_the_schur_complement():
    """Stokes: the spectrum of S_hat^-1 S lies in [beta^2, 1], whatever viscosity and mesh (velocity prescribed)."""
    for cells, viscosity in ((3, 1.0), (6, 1.0), (3, 1e-3)):
        space, conditions = cases.cavity(cases.square(MPI.COMM_SELF, cells))
        (u, p), (v, q) = ufl.TrialFunctions(space), ufl.TestFunctions(space)
        a = (viscosity * ufl.inner(ufl.grad(u), ufl.grad(v)) - p * ufl.div(v) - q * ufl.div(u)) * ufl.dx
        blocks = blocks_of(space, a, conditions)
        schur = PressureMass(Fields(space), 1.0 / viscosity)
        schur.set_up(blocks, exact_solver)
        exact = -dense(blocks.divergence) @ np.linalg.solve(dense(blocks.leading), dense(blocks.gradient))
        values = np.sort(np.linalg.eigvals(columns(schur, exact.shape[0]) @ exact).real)
        assert abs(values[0]) <= 1e-10  # the constant pressure
        assert values[1] >= 0.1
        assert values[-1] <= 1.0 + 1e-10


def test_the_commutator_is_exact_where_it_commutes():
    """With F a multiple of diag(mass) the least-squares commutator is the inverse Schur complement."""
    space, conditions = cases.step(channel(6, MPI.COMM_SELF))
    (u, p), (v, q) = ufl.TrialFunctions(space), ufl.TestFunctions(space)
    a = (ufl.inner(u, v) - p * ufl.div(v) + 3.0 * q * ufl.div(u)) * ufl.dx
    blocks = blocks_of(space, a, conditions)
    blocks.ratio = -3.0
    diagonal = forms.assemble_matrix(forms.compile_form(a)).getDiagonal().array
    velocity = np.sort(np.ravel(space.sub(0).collapse()[1]))
    blocks.leading.zeroEntries()
    weights = blocks.leading.createVecRight()
    weights.array[:] = 7.0 * diagonal[velocity]
    blocks.leading.setDiagonal(weights)
    schur = LeastSquaresCommutator(Fields(space))
    schur.set_up(blocks, exact_solver)
    exact = -dense(blocks.divergence) @ np.linalg.solve(dense(blocks.leading), dense(blocks.gradient))
    product = columns(schur, exact.shape[0]) @ exact
    assert np.abs(product - np.eye(exact.shape[0])).max() <= 1e-8


def test_adjoint_of_the_pressure_convection_diffusion():
    """Its transpose, to rounding; the forward one in its place is a mistake that the test sees."""
    space, wind, a, conditions = oseen(channel(6, MPI.COMM_SELF))
    blocks = blocks_of(space, a, conditions)
    tables = []
    for adjoint in (False, True):
        schur = PressureConvectionDiffusion(Fields(space), 1.0, wind, 2.0, adjoint)
        schur.set_up(blocks, exact_solver)
        tables.append(columns(schur, blocks.divergence.getSize()[0]))
    forward, adjoint = tables
    size = np.abs(forward).max()
    assert np.abs(adjoint - forward.T).max() <= 1e-11 * size
    assert np.abs(adjoint - forward).max() >= 1e-2 * size


class ExactSchur:
    """The inverse of the Schur complement itself, or, as a planted mistake, its diagonal alone."""

    def __init__(self, wrong):
        self.wrong = wrong

    def set_up(self, blocks, make_solver):
        exact = -dense(blocks.divergence) @ np.linalg.solve(dense(blocks.leading), dense(blocks.gradient))
        self.inverse = np.linalg.inv(exact)
        if self.wrong:
            self.inverse = np.diag(np.diag(self.inverse))

    def solve(self, right, out):
        out.array[:] = self.inverse @ right.array_r

    def release(self):
        pass


@pytest.mark.parametrize(("wrong", "fewest", "most"), [(False, 1, 2), (True, 3, 200)])
def test_two_iterations_with_exact_blocks(wrong, fewest, most):
    """Murphy, Golub and Wathen's two iterations, and more with a wrong Schur complement."""
    space, _, a, conditions = oseen(channel(6, MPI.COMM_SELF))
    matrix = forms.assemble_matrix(forms.compile_form(a), conditions)
    options = {"velocity_ksp_type": "preonly", "velocity_pc_type": "lu"}
    ksp = PETSc.KSP().create(PETSc.COMM_SELF)
    ksp.setOperators(matrix)
    ksp.setType("fgmres")
    ksp.setTolerances(rtol=1e-9)
    ksp.getPC().setType("python")
    ksp.getPC().setPythonContext(BlockTriangular(Fields(space), ExactSchur(wrong), options, "velocity", []))
    right, out = matrix.createVecs()
    right.array[:] = np.cos(np.arange(right.getLocalSize()))
    ksp.solve(right, out)
    assert ksp.getConvergedReason() > 0
    assert fewest <= ksp.getIterationNumber() <= most
    ksp.destroy()


@pytest.mark.parametrize("dimension", [2, 3])
def test_rigid_body_modes_cost_no_energy(dimension):
    """The modes are the kernel of the free body's stiffness; a quadratic field is not in it."""
    make = dolfinx.mesh.create_unit_square if dimension == 2 else dolfinx.mesh.create_unit_cube
    mesh = make(MPI.COMM_SELF, *[3] * dimension)
    space = fem.functionspace(mesh, ("Lagrange", 2, (dimension,)))
    u, v = ufl.TrialFunction(space), ufl.TestFunction(space)
    strain = ufl.inner(ufl.sym(ufl.grad(u)), ufl.sym(ufl.grad(v))) * ufl.dx
    matrix = forms.assemble_matrix(forms.compile_form(strain))
    modes = near_nullspace_arrays(space, rotations=True)
    assert len(modes) == dimension * (dimension + 1) // 2
    assert nullspace_of(matrix, modes).test(matrix)
    bent = fem.Function(space)
    bent.interpolate(lambda x: np.vstack([x[0] ** 2] + [0.0 * x[0]] * (dimension - 1)))
    assert not nullspace_of(matrix, [bent.x.array.copy()]).test(matrix)


# Solves ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parallel([2, 3])
def test_every_solver_on_every_number_of_ranks():
    """Solutions are those of MUMPS, and iterations those of one rank."""
    counts = {}
    for comm in (MPI.COMM_SELF, MPI.COMM_WORLD):
        space, wind, a, conditions = oseen(channel(12, comm))
        reference, _ = solve(space, a, conditions, DIRECT)
        for method in saddle.NAVIER_STOKES_METHODS:
            setup = saddle.navier_stokes(space, wind, 1.0, method=method, augmentation=10.0)
            solution, problem = solve(space, a, conditions, setup, f"test_{method}_")
            assert difference(solution, reference) <= 1e-7, method
            counts.setdefault(method, []).append(problem.solver.getIterationNumber())
        for name in ("stokes", "displacement", "mixed_displacement", "mixed_poisson"):
            row = getattr(cases, name)(comm, 12)
            counts.setdefault(name, []).append(row["iterations"])
            counts.setdefault(f"size of {name}", []).append(row["size"])
    for name, (alone, together) in counts.items():
        if name.startswith("size"):
            assert together == pytest.approx(alone, rel=1e-8), name
        else:
            assert abs(together - alone) <= max(2, 0.1 * alone), (name, alone, together)


@pytest.mark.parallel(2)
def test_forms_in_blocks():
    """Two spaces with one matrix, or with a nest of them, give the iterations and the flow of the mixed element."""
    mesh = channel(8)
    mixed, _, a, conditions = oseen(mesh, wind=0.0)
    expected, problem = solve(mixed, a, conditions, saddle.stokes(mixed), "test_mixed_")
    velocity = fem.functionspace(mesh, ("Lagrange", 2, (2,)))
    pressure = fem.functionspace(mesh, ("Lagrange", 1))
    u, p = ufl.TrialFunction(velocity), ufl.TrialFunction(pressure)
    v, q = ufl.TestFunction(velocity), ufl.TestFunction(pressure)
    form = [
        [ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx, -p * ufl.div(v) * ufl.dx],
        [-q * ufl.div(u) * ufl.dx, None],
    ]
    load = [
        ufl.inner(fem.Constant(mesh, (0.3, -0.2)), v) * ufl.dx,
        ufl.inner(fem.Constant(mesh, 0.0), q) * ufl.dx,
    ]
    values = fem.Function(velocity)
    given = conditions[0].g
    values.interpolate(given)
    facets = dolfinx.mesh.locate_entities_boundary(
        mesh, 1, lambda x: (x[0] < 1e-10) | (x[1] < 1e-10) | (x[1] > 1.0 - 1e-10)
    )
    condition = fem.dirichletbc(values, fem.locate_dofs_topological(velocity, 1, facets))
    wanted = ufl.split(expected)[0]
    for kind in ("mpi", "nest"):
        blocked = LinearProblem(form, load, bcs=[condition], kind=kind, petsc_options_prefix=f"test_{kind}_")
        setup = saddle.stokes((velocity, pressure))
        setup.options["ksp_rtol"] = 1e-9
        setup.attach(blocked.solver)
        flow, _ = blocked.solve()
        assert blocked.solver.getConvergedReason() > 0
        assert abs(blocked.solver.getIterationNumber() - problem.solver.getIterationNumber()) <= 2, kind
        assert cases._size(flow - wanted) <= 1e-7 * cases._size(wanted), kind
    with pytest.raises(InputError, match="give the spaces that the form was assembled on"):  # on both ranks
        saddle.stokes((velocity, velocity)).attach(problem.solver)


def test_iterations_do_not_grow_with_refinement():
    """Four times the unknowns, at most 30 % more iterations."""
    for name in ("stokes", "displacement", "mixed_displacement", "mixed_poisson"):
        few, many = (getattr(cases, name)(MPI.COMM_SELF, cells)["iterations"] for cells in (20, 40))
        assert many <= 1.3 * few, name
    row = cases.navier_stokes(MPI.COMM_SELF, "step", 200.0, (20, 40), start=10)
    assert row["iterations 40"] <= 1.3 * row["iterations 20"]


def test_solutions_converge_as_the_elements_promise():
    """Third order for the velocity, and for a nearly incompressible displacement that would lock otherwise."""
    for name, field in (("stokes", "velocity error"), ("mixed_displacement", "displacement error")):
        coarse, fine = (getattr(cases, name)(MPI.COMM_SELF, cells)[field] for cells in (12, 24))
        assert np.log2(coarse / fine) >= 2.8, name


def test_enclosed_flow_gets_its_kernel_and_open_flow_none():
    """The constant pressure becomes the matrix' nullspace, and the solve converges below its component's size."""
    for flow, enclosed in (("cavity", True), ("step", False)):
        space, wind, a, conditions = oseen(cases.flow_mesh(MPI.COMM_SELF, flow, 12), flow)
        _, problem = solve(space, a, conditions, saddle.navier_stokes(space, wind, 1.0), f"test_{flow}_")
        assert bool(problem.A.getNullSpace().handle) == enclosed
        if enclosed:
            assert problem.A.getNullSpace().test(problem.A)


def test_sign_and_scale_of_the_second_equation_do_not_matter():
    counts = []
    for sign in (-1.0, 1.0, -3.0):
        space, wind, a, conditions = oseen(channel(8, MPI.COMM_SELF), sign=sign)
        for method in saddle.NAVIER_STOKES_METHODS:
            setup = saddle.navier_stokes(space, wind, 1.0, method=method)
            _, problem = solve(space, a, conditions, setup, "test_sign_", rtol=1e-8)
            counts.append(problem.solver.getIterationNumber())
    for method in range(3):
        few, many = min(counts[method::3]), max(counts[method::3])
        assert many - few <= max(2, 0.1 * few)


def test_reaction_keeps_time_steps_cheap():
    """With a small time step the preconditioner of steady flow fails; told of the reaction it is as good as ever."""
    space, _, a, conditions = oseen(channel(12, MPI.COMM_SELF), wind=0.0)
    rate = 1e4
    a += rate * ufl.inner(ufl.TrialFunctions(space)[0], ufl.TestFunctions(space)[0]) * ufl.dx
    _, problem = solve(space, a, conditions, saddle.stokes(space, reaction=rate), "test_reaction_")
    assert problem.solver.getIterationNumber() <= 40
    setup = saddle.stokes(space)
    setup.options["ksp_max_it"] = 80
    setup.attach(problem.solver)
    problem.solve()
    assert problem.solver.getConvergedReason() < 0


def test_newton_under_a_dolfinx_problem():
    """The one line that a script needs; the wind follows Newton's iterates, and nothing stays in PETSc's options."""
    space, conditions = cases.step(channel(8, MPI.COMM_SELF))
    solution = fem.Function(space)
    (u, p), (v, q) = ufl.split(solution), ufl.TestFunctions(space)
    residual = 0.01 * ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx
    residual += (ufl.inner(ufl.dot(ufl.grad(u), u), v) - p * ufl.div(v) - q * ufl.div(u)) * ufl.dx
    before = dict(PETSc.Options().getAll())
    counts = {}
    PETSc.Options()["test_newton_mass_ksp_max_it"] = 9
    for frozen in (False, True):
        solution.x.array[:] = 0.0
        problem = NonlinearProblem(residual, solution, bcs=conditions, petsc_options_prefix="test_newton_")
        wind = fem.Constant(space.mesh, (0.0, 0.0)) if frozen else u
        saddle.navier_stokes(space, wind, 0.01).attach(problem.solver)
        problem.solve()
        assert problem.solver.getConvergedReason() > 0
        context = problem.solver.getKSP().getPC().getPythonContext()
        assert context._inner["mass"].getTolerances()[3] == 9
        counts[frozen] = problem.solver.getLinearSolveIterations()
    PETSc.Options().delValue("test_newton_mass_ksp_max_it")
    assert dict(PETSc.Options().getAll()) == before
    assert counts[True] >= 1.5 * counts[False]


# Mistakes -------------------------------------------------------------------------------------------------------------


def test_mistakes_are_named():
    mesh = cases.square(MPI.COMM_SELF, 2)
    space = cases.taylor_hood(mesh)
    wind = fem.Constant(mesh, (1.0, 0.0))
    with pytest.raises(OptionError, match="method 'simple' is unknown"):
        saddle.navier_stokes(space, wind, 1.0, method="simple")
    with pytest.raises(InputError, match=r"viscosity = 0\.0 is out of range"):
        saddle.stokes(space, 0.0)
    with pytest.raises(InputError, match=r"the wind has shape \(\)"):
        saddle.navier_stokes(space, fem.Constant(mesh, 1.0), 1.0)
    with pytest.raises(InputError, match="not mixed from two fields"):
        saddle.stokes(fem.functionspace(mesh, ("Lagrange", 2, (2,))))
    with pytest.raises(InputError, match="none of displacements"):
        saddle.elasticity(fem.functionspace(mesh, ("Lagrange", 1)))
    velocity = basix.ufl.element("Lagrange", mesh.basix_cell(), 2, shape=(2,))
    constants = basix.ufl.element("DG", mesh.basix_cell(), 0)
    discontinuous = fem.functionspace(mesh, basix.ufl.mixed_element([velocity, constants]))
    with pytest.raises(InputError, match="no weak gradient"):
        saddle.navier_stokes(discontinuous, wind, 1.0)
