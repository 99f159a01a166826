"""Solvers that choose themselves: the rule, what is reused, and that no choice changes an answer."""

import dataclasses

from mpi4py import MPI
from petsc4py import PETSc

import dolfinx
import dolfinx.fem.petsc
import numpy as np
import pytest
import ufl

from pdeopt import problems
from pdeopt.relaxation import _auto_solver, automatic
from pdeopt.relaxation.automatic import AutoKSP, AutoPC
from pdeopt.relaxation.features import FeatureReader, MatrixFeatures
from pdeopt.relaxation.reuse import Lagging, ValueWatch
from pdeopt.relaxation.rule import Choice, candidates, factor_pays
from pdeopt.report import InputError, OptionError

PREFIX = "pdeopt_test_"


def square(cells=16, comm=MPI.COMM_WORLD):
    return dolfinx.mesh.create_unit_square(comm, cells, cells)


def at_left(x):
    return np.isclose(x[0], 0.0)


def solver(A, pc="lu", rtol=None, options=None, P=None):
    """Return a KSP that chooses itself, as a script that used pc would have it, and its context."""
    database = PETSc.Options()
    for name, value in (options or {}).items():
        database[PREFIX + name] = value
    ksp = PETSc.KSP().create(A.getComm())
    ksp.setOptionsPrefix(PREFIX)
    ksp.setOperators(A, P or A)
    ksp.getPC().setType(pc)
    ksp.setType("python")
    context = AutoKSP()
    ksp.setPythonContext(context)
    ksp.setErrorIfNotConverged(True)
    if rtol:
        ksp.setTolerances(rtol=rtol)
    try:
        ksp.setFromOptions()
    finally:
        for name in options or {}:
            database.delValue(PREFIX + name)
    return ksp, context


def factored(A, b, transposed=False):
    """Return the solution by LU of MUMPS."""
    ksp = PETSc.KSP().create(A.getComm())
    ksp.setOperators(A)
    ksp.setType("preonly")
    ksp.getPC().setType("lu")
    ksp.getPC().setFactorSolverType("mumps")
    x = b.duplicate()
    (ksp.solveTranspose if transposed else ksp.solve)(b, x)
    ksp.destroy()
    return x


def distance(A, x, y):
    """Return the relative distance of two solutions, the null space of A left out."""
    x, y = x.copy(), y.copy()
    kernel = A.getNullSpace()
    if kernel.handle:
        kernel.remove(x)
        kernel.remove(y)
    x.axpy(-1.0, y)
    return x.norm() / y.norm()


def check(A, b, ksp, tolerance=1e-8, transposed=False):
    """Solve, compare with the factorisation, and return the distance."""
    x = b.duplicate()
    (ksp.solveTranspose if transposed else ksp.solve)(b, x)
    assert ksp.getConvergedReason() > 0
    found = distance(A, x, factored(A, b, transposed))
    assert found < tolerance
    return x


def solve_to_rounding(A, b, ksp):
    """Solve; with a condition number below 1e4 this residual leaves no error above 1e-8."""
    x, r = b.duplicate(), b.duplicate()
    ksp.solve(b, x)
    A.mult(x, r)
    r.axpy(-1.0, b)
    assert r.norm() < 1.1e-12 * b.norm()


def neumann(mesh, attached):
    """Return the singular system of pure Neumann conditions, consistent."""
    space = dolfinx.fem.functionspace(mesh, ("Lagrange", 1))
    u, v, x = ufl.TrialFunction(space), ufl.TestFunction(space), ufl.SpatialCoordinate(mesh)
    A = dolfinx.fem.petsc.assemble_matrix(dolfinx.fem.form(ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx))
    A.assemble()
    b = dolfinx.fem.petsc.assemble_vector(dolfinx.fem.form((x[0] - x[1] ** 2) * v * ufl.dx))
    b.ghostUpdate(PETSc.InsertMode.ADD, PETSc.ScatterMode.REVERSE)
    constants = PETSc.NullSpace().create(constant=True, comm=mesh.comm)
    constants.remove(b)
    if attached:
        A.setNullSpace(constants)
        A.setTransposeNullSpace(constants)
    for handle in (A, b):
        handle.setAttr("space", space)
    return A, b


def check_each_class_gets_its_solver_and_the_answer_of_a_factorisation():
    alone = MPI.COMM_WORLD.size == 1
    mesh, cube = square(), dolfinx.mesh.create_unit_cube(MPI.COMM_WORLD, 6, 6, 6)
    bricks = dolfinx.mesh.create_unit_cube(MPI.COMM_WORLD, 4, 4, 4, dolfinx.mesh.CellType.hexahedron)
    cases = {
        "Poisson": (lambda: problems.poisson(mesh), "CG with ICC(3)"),
        "quadratic": (lambda: problems.poisson(mesh, degree=2), "CG with ICC(3)"),
        "jumps": (lambda: problems.checkerboard_diffusion(mesh, contrast=1e6), "CG with ICC(3)"),
        "anisotropy": (lambda: problems.anisotropic_diffusion(mesh), "CG with ICC(3)"),
        "space": (lambda: problems.poisson(cube), "CG with SSOR(1.7)" if alone else "CG with ICC(0)"),
        "dense rows": (lambda: problems.poisson(bricks, degree=2), "Cholesky by MUMPS"),
        "elasticity": (lambda: problems.linear_elasticity(cube, clamped=at_left), "CG with ICC(0)"),
        "plane elasticity": (lambda: problems.linear_elasticity(mesh, clamped=at_left), "Cholesky by MUMPS"),
        "convection": (lambda: problems.convection_diffusion(mesh, 1e-3, supg=True), "BiCGStab with ILU(2)"),
        "Stokes": (lambda: problems.stokes(mesh), "LU by MUMPS"),
    }
    for name, (problem, method) in cases.items():
        if not alone and name not in ("Poisson", "elasticity", "convection", "Stokes"):
            continue  # nothing that depends on the ranks
        A, b = problem().assemble()
        ksp, context = solver(A)
        check(A, b, ksp)
        assert context.report.method == method, name
        assert not context.failed, name
        if name == "convection":
            check(A, b, ksp, transposed=True)
        if name == "Poisson":  # to the default tolerance, in the true residual, where no factorisation was asked for
            loose, _ = solver(A, pc="jacobi")
            x = b.duplicate()
            loose.solve(b, x)
            r = A.createVecLeft()
            A.mult(x, r)
            r.aypx(-1.0, b)
            assert 1e-9 < r.norm() / b.norm() <= 1e-5
            assert loose.getResidualNorm() == pytest.approx(r.norm(), rel=1e-10)
            loose.destroy()
        ksp.destroy()
    solutions = []
    for attached, method in ((True, "CG with ICC(3)"), (False, "LU by MUMPS")):
        A, b = neumann(mesh, attached)
        ksp, context = solver(A)
        x = b.duplicate()
        ksp.solve(b, x)
        assert context.report.method == method
        assert context.features.kernel == ("attached" if attached else "constants")
        A.mult(x, r := b.duplicate())
        r.axpy(-1.0, b)
        assert r.norm() < 1e-10 * b.norm()
        x.shift(-x.sum() / x.getSize())
        x.setAttr("space", b.getAttr("space"))
        solutions.append(x)
        ksp.destroy()
    assert distance(A, *solutions) < 1e-8


# --- hand-made matrices: a five-point stencil with coefficients -------------------------------------------------------


def grid_matrix(side, coefficient=None, convection=0.0, shift=0.0, comm=MPI.COMM_WORLD):
    """Return the matrix of - div(coefficient grad u) + convection du/dx + shift u, scaled by the mesh width squared."""
    n = side * side
    value = coefficient or (lambda i, j: 1.0)
    A = PETSc.Mat().createAIJ((n, n), nnz=5, comm=comm)
    fill(A, side, value, convection, shift)
    return A


def fill(A, side, value, convection=0.0, shift=0.0):
    """Assemble the entries, as a script does it in each step."""
    A.zeroEntries()
    for row in range(*A.getOwnershipRange()):
        i, j = divmod(row, side)
        total = shift
        for di, dj, wind in ((1, 0, convection), (-1, 0, -convection), (0, 1, 0.0), (0, -1, 0.0)):
            weight = value(i + 0.5 * di, j + 0.5 * dj)
            total += weight
            if 0 <= i + di < side and 0 <= j + dj < side:
                A[row, (i + di) * side + j + dj] = -weight + wind
        A[row, row] = total
    A.assemble()


def random_vector(A, seed=0):
    b = A.createVecLeft()
    first, end = A.getOwnershipRange()
    b.array[:] = np.random.default_rng(seed).standard_normal(A.getSize()[0])[first:end]
    return b


def check_what_changed_decides_what_is_made_anew(monkeypatch):
    side = 20
    monkeypatch.setattr(automatic, "factor_pays", lambda *a: False)  # that depends on the clock
    A = grid_matrix(side)
    b = random_vector(A)
    ksp, context = solver(A)
    solve_to_rounding(A, b, ksp)
    assert (context.setups, context.reused) == ({"new": 1, "updated": 0}, {"unchanged": 0, "scaled": 0, "lagged": 0})
    for _ in range(2):  # PETSc counts a new state, the values are the same
        state = A.stateGet()
        fill(A, side, lambda i, j: 1.0)
        assert A.stateGet() > state
        solve_to_rounding(A, b, ksp)
    assert context.setups == {"new": 1, "updated": 0}
    assert context.reused["unchanged"] == 2
    A.scale(37.0)
    solve_to_rounding(A, b, ksp)
    assert context.setups == {"new": 1, "updated": 0}
    assert context.reused["scaled"] == 1
    # Nearby values: the old factors do as a preconditioner. Far ones: they are made anew, on the old pattern.
    context._held.lagging.made(1.0, 1e-3, context.iterations)
    fill(A, side, lambda i, j: 37.0 * (1.0 + 0.01 * i / side))
    solve_to_rounding(A, b, ksp)
    assert context.reused["lagged"] == 1
    assert context.setups == {"new": 1, "updated": 0}
    fill(A, side, lambda i, j: 1.0 + 100.0 * (i > 10))
    solve_to_rounding(A, b, ksp)
    assert context.setups == {"new": 1, "updated": 1}
    # The first matrix of a sequence is symmetric, the next one is not, by very little or by much.
    for convection, method in ((1e-9, "BiCGStab with ILU(2)"), (0.3, "BiCGStab with ILU(2)"), (0.0, "CG with ICC(3)")):
        fill(A, side, lambda i, j: 1.0, convection)
        solve_to_rounding(A, b, ksp)
        assert context.report.method == method
        assert not context.failed
    ksp.destroy()


def check_a_choice_that_fails_costs_a_retry_and_is_remembered(monkeypatch):
    side = 24
    # Indefinite in a way that constants do not show: conjugate gradients meet it on their way.
    A = grid_matrix(side, shift=-0.06)
    b = random_vector(A)
    ksp, context = solver(A)
    check(A, b, ksp)
    assert context.features.symmetric
    assert context.features.indefinite
    assert "CG with ICC(3)" in context.failed
    assert context.report.method == "Cholesky by MUMPS"
    assert context.fallbacks == 1
    fill(A, side, lambda i, j: 1.0, shift=-0.05)
    check(A, b, ksp)
    assert context.fallbacks == 1
    assert context.unsolved == 0
    ksp.destroy()

    # A convection matrix taken for symmetric by mistake must not survive.
    A = grid_matrix(side, convection=0.8)
    b = random_vector(A)
    read = FeatureReader.read
    with monkeypatch.context() as patch:
        patch.setattr(FeatureReader, "read", lambda *a: dataclasses.replace(read(*a), symmetric=True))
        ksp, context = solver(A)
        check(A, b, ksp)
        assert context.fallbacks >= 1
        assert context.report.method == "LU by MUMPS"
        ksp.destroy()

    # Choices that raise, that end with NaN or that claim what is not so.
    bad = [
        Choice("raises", "incomplete", {"ksp_type": "cg", "pc_type": "icc", "pc_factor_mat_solver_type": "mumps"}, ""),
        Choice("claims", "incomplete", {"ksp_type": "preonly", "pc_type": "jacobi"}, ""),
    ]
    A = grid_matrix(side)
    with monkeypatch.context() as patch:
        patch.setattr(_auto_solver, "candidates", lambda f, direct=False: [*bad, *candidates(f, direct)])
        ksp, context = solver(A)
        check(A, b, ksp)
        assert list(context.failed) == ["raises", "claims"]
        assert context.report.method == "CG with ICC(3)"
        ksp.destroy()

    # What has no answer is never returned as one.
    ksp, context = solver(A)
    ksp.setErrorIfNotConverged(False)
    b.set(np.nan)
    x = b.duplicate()
    ksp.solve(b, x)
    assert ksp.getConvergedReason() == PETSc.KSP.ConvergedReason.DIVERGED_NANORINF
    assert context.unsolved == 1
    ksp.destroy()


def check_preconditioner_is_linear_symmetric_and_serves_the_method_of_the_script():
    side = 20
    A, b = grid_matrix(side), None
    b = random_vector(A)
    reference = factored(A, b)
    for kind in ("cg", "gmres", "preonly"):
        ksp = PETSc.KSP().create(A.getComm())
        ksp.setOptionsPrefix(PREFIX)
        ksp.setOperators(A)
        ksp.setType(kind)
        ksp.setTolerances(rtol=1e-11)
        ksp.getPC().setType("python")
        context = AutoPC()
        ksp.getPC().setPythonContext(context)
        ksp.setErrorIfNotConverged(True)
        x = b.duplicate()
        ksp.solve(b, x)
        assert distance(A, x, reference) < 1e-8
        assert context.report.method == ("Cholesky by MUMPS" if kind == "preonly" else "CG with ICC(3)")
        A.assemble()
        fill(A, side, lambda i, j: 1.0)
        ksp.solve(b, x)
        assert context.kept == 1
        assert context.setups["updated"] == 0
        if kind == "cg":
            u, v, image, other = (random_vector(A, seed) for seed in range(4))
            ksp.getPC().apply(u, image)
            ksp.getPC().apply(v, other)
            assert image.dot(v) == pytest.approx(u.dot(other), rel=1e-12)
            w = u.copy()
            w.aypx(-2.5, v)
            ksp.getPC().apply(w, x)
            image.aypx(-2.5, other)
            image.axpy(-1.0, x)
            assert image.norm() < 1e-13 * x.norm()
        ksp.destroy()
    # Conjugate gradients fail on an indefinite matrix with incomplete factors; with complete ones, GMRES does not.
    A = grid_matrix(side, shift=-0.15)
    b = random_vector(A)
    ksp = PETSc.KSP().create(A.getComm())
    ksp.setOperators(A)
    ksp.setType("gmres")
    ksp.setTolerances(rtol=1e-12, max_it=8)
    ksp.getPC().setType("python")
    context = AutoPC()
    ksp.getPC().setPythonContext(context)
    ksp.setErrorIfNotConverged(True)
    x = b.duplicate()
    ksp.solve(b, x)
    assert context.repeated == 1
    assert distance(A, x, factored(A, b)) < 1e-8
    ksp.destroy()


@pytest.mark.parallel([1, 2])
def test_choice_reuse_fallback_and_preconditioner(monkeypatch):
    check_each_class_gets_its_solver_and_the_answer_of_a_factorisation()
    with monkeypatch.context() as patch:
        check_what_changed_decides_what_is_made_anew(patch)
    check_a_choice_that_fails_costs_a_retry_and_is_remembered(monkeypatch)
    check_preconditioner_is_linear_symmetric_and_serves_the_method_of_the_script()


# --- what needs no second rank ----------------------------------------------------------------------------------------


def test_scripts_switch_it_on_by_options_alone():
    name = f"{AutoKSP.__module__}.AutoKSP"
    mesh = square(12, MPI.COMM_SELF)
    space = dolfinx.fem.functionspace(mesh, ("Lagrange", 1))
    u, v, du = dolfinx.fem.Function(space), ufl.TestFunction(space), ufl.TrialFunction(space)
    mesh.topology.create_connectivity(1, 2)
    boundary = dolfinx.mesh.exterior_facet_indices(mesh.topology)
    bc = dolfinx.fem.dirichletbc(0.0, dolfinx.fem.locate_dofs_topological(space, 1, boundary), space)
    direct = {"pc_type": "lu", "pc_factor_mat_solver_type": "mumps"}
    solutions = []
    for options in ({"ksp_type": "preonly"}, {"ksp_type": "python", "ksp_python_type": name}):
        prefix = f"script_{options['ksp_type']}_"
        linear = dolfinx.fem.petsc.LinearProblem(
            ufl.inner(ufl.grad(du), ufl.grad(v)) * ufl.dx,
            v * ufl.dx,
            bcs=[bc],
            petsc_options_prefix=f"{prefix}linear_",
            petsc_options=options | direct,
        )
        w = linear.solve()
        u.x.array[:] = 0.0
        residual = ufl.inner((1.0 + u**4) * ufl.grad(u), ufl.grad(v)) * ufl.dx - 8.0 * v * ufl.dx
        newton = dolfinx.fem.petsc.NonlinearProblem(
            residual,
            u,
            bcs=[bc],
            petsc_options_prefix=f"{prefix}newton_",
            petsc_options=options | direct | {"snes_rtol": 1e-10, "snes_error_if_not_converged": True},
        )
        newton.solve()
        solutions.append((w.x.array.copy(), u.x.array.copy(), newton.solver.getIterationNumber()))
    context = newton.solver.getKSP().getPythonContext()
    # The Jacobian at zero is symmetric, those after it are not.
    assert context.setups["new"] == 2
    assert context.report.method == "BiCGStab with ILU(2)"
    assert solutions[0][2] == solutions[1][2]
    for expected, found in zip(solutions[0][:2], solutions[1][:2], strict=True):
        assert np.linalg.norm(found - expected) < 1e-8 * np.linalg.norm(expected)


def test_settings_of_the_script_are_kept_and_bad_ones_named():
    A = grid_matrix(12, shift=-3.0, comm=MPI.COMM_SELF)  # indefinite: MUMPS
    b = random_vector(A)
    database = PETSc.Options()
    database[f"{PREFIX}mat_mumps_icntl_14"] = 77
    ksp, context = solver(A)
    check(A, b, ksp)
    assert context._held.ksp.getPC().getFactorMatrix().getMumpsIcntl(14) == 77
    ksp.destroy()
    database.delValue(f"{PREFIX}mat_mumps_icntl_14")
    before = database.getAll()

    A = grid_matrix(12, comm=MPI.COMM_SELF)
    ksp, context = solver(A)
    check(A, b, ksp)
    assert database.getAll() == before
    context.view(ksp, viewer := PETSc.Viewer().createASCII("/dev/null", comm=MPI.COMM_SELF))
    viewer.destroy()
    assert "cheaper than the set-up of multigrid" in str(context.report)
    ksp.destroy()
    database[f"{PREFIX}auto_pc_type"] = "jacobi"
    ksp, context = solver(A)
    check(A, b, ksp)
    assert context._held.ksp.getPC().getType() == "jacobi"
    ksp.destroy()
    database.delValue(f"{PREFIX}auto_pc_type")
    ksp, context = solver(A, options={"ksp_auto_learn": "0", "ksp_auto_solves": "200"})
    assert (context.settings.learn, context.settings.solves) == (False, 200)
    ksp.destroy()
    for name, value, said in (
        ("direkt_rtol", "1e-3", "did you mean -pdeopt_test_ksp_auto_direct_rtol"),
        ("direct_rtol", "2", "is 2"),
        ("solves", "-1", "solves is -1"),
        ("learn", "perhaps", "value of type bool"),
    ):
        with pytest.raises(PETSc.Error) as caught:
            solver(A, options={f"ksp_auto_{name}": value})
        assert isinstance(caught.value.__cause__, OptionError)
        assert said in str(caught.value.__cause__)


def test_matrices_without_entries_keep_the_preconditioner_of_the_script():
    A = grid_matrix(12, comm=MPI.COMM_SELF)
    nest = PETSc.Mat().createNest([[A]], comm=MPI.COMM_SELF)
    nest.assemble()
    b = random_vector(A)
    ksp, context = solver(nest, pc="jacobi", rtol=1e-10)
    x = b.duplicate()
    ksp.solve(b, x)
    assert distance(A, x, factored(A, b)) < 1e-8
    assert context.report.method == "own"
    assert ksp.getPC().getType() == "jacobi"
    ksp.destroy()
    pc = PETSc.PC().create(MPI.COMM_SELF)
    pc.setOperators(nest)
    pc.setType("python")
    pc.setPythonContext(AutoPC())
    with pytest.raises(PETSc.Error) as caught:
        pc.setUp()
    assert isinstance(caught.value.__cause__, InputError)
    assert "type nest has none" in str(caught.value.__cause__)
    pc.destroy()
    # An assembled matrix to precondition another one with tells nothing of that one.
    shifted = grid_matrix(12, convection=0.4, comm=MPI.COMM_SELF)
    ksp, context = solver(shifted, P=A)
    x = check(shifted, b, ksp)
    assert context.report.method == "CG with ICC(3)"
    assert context._held.ksp.getType() == "fgmres"
    ksp.destroy()


def test_factors_pay_after_as_many_solves_as_they_cost():
    plane = MatrixFeatures(True, 50_000, 1, 1, 7.0, 2, True, "positive")
    # 1150 products for the factors, 70 for a solve with them, 400 for one without: after the fourth solve.
    assert [factor_pays(plane, solves, 400.0) for solves in (0, 3, 4)] == [False, False, True]
    assert not factor_pays(plane, 1000, 60.0)
    space = dataclasses.replace(plane, dimension=3, size=500_000)
    assert not factor_pays(space, 100, 300.0)
    assert next(iter(candidates(plane, direct=True))).name == "Cholesky by MUMPS"

    A = grid_matrix(30, comm=MPI.COMM_SELF)
    b = random_vector(A)
    ksp, context = solver(A)
    for method in ("CG with ICC(3)", "CG with ICC(3)", "Cholesky by MUMPS"):  # two solves tell what one costs
        check(A, b, ksp)
        context._chooser.watch.product = 1e-9  # pretend that products cost nothing beside these iterations
        assert context.report.method == method
    fill(A, 30, lambda i, j: 1.0 + 5.0 * (j > 3))
    check(A, b, ksp)
    assert context.unsolved == context.fallbacks == 0
    ksp.destroy()


def test_lagging_gives_up_and_waits_longer_each_time():
    lagging, near = Lagging(), lambda: 0.01
    assert lagging.budget("incomplete", near) == 0  # nothing is known yet
    lagging.made(setup=1.0, solve=1.0, iterations=10)
    assert lagging.budget("incomplete", near) == 15  # half a set-up is worth five iterations
    assert lagging.budget("multigrid", near) == 0
    lagging.kept(15, converged=True)
    assert lagging.budget("incomplete", near) == 0  # no better than anew from here on
    lagging.made(1.0, 1.0, 10)
    assert lagging.budget("incomplete", lambda: 0.9) == 0  # too far
    assert lagging.budget("incomplete", near) == 0  # and not asked again at once
    lagging = Lagging()
    waits = []
    for _ in range(3):
        lagging.made(1.0, 1.0, 10)
        lagging.kept(15, converged=False)
        lagging.made(1.0, 1.0, 10)
        waits.append(0)
        while not lagging.budget("incomplete", near):
            waits[-1] += 1
    assert waits == [1, 3, 7]


def test_one_entry_that_changes_is_seen_and_noise_of_rounding_is_not():
    A = grid_matrix(10, comm=MPI.COMM_SELF)
    watch = ValueWatch()
    assert watch.compare(A).kind == "pattern"
    watch.accept()
    assert watch.compare(A) is None
    A[3, 3] = 4.0 * (1.0 + 1e-15)
    A.assemble()
    assert watch.compare(A).kind == "none"
    A[3, 3] = 4.0 * (1.0 + 1e-11)
    A.assemble()
    change = watch.compare(A)
    assert change.kind == "values"
    assert change.fresh
    assert 0.0 < watch.amount() < 1e-11
    A.assemble()
    assert not watch.compare(A).fresh
    A[3, 3] = 4.0
    A.assemble()
    A.scale(-1.0)
    assert watch.compare(A).kind == "values"  # a negative multiple has other definiteness
    A[3, 4] = np.nan
    A.assemble()
    assert watch.compare(A).kind == "values"
    watch.release()


def test_what_no_x_can_reach_is_taken_out_of_an_inconsistent_load():
    """Pure Neumann conditions with the null space attached: reason and true residual fit together."""
    mesh = square(24, MPI.COMM_SELF)
    space = dolfinx.fem.functionspace(mesh, ("Lagrange", 1))
    u, v = ufl.TrialFunction(space), ufl.TestFunction(space)
    A = dolfinx.fem.petsc.assemble_matrix(dolfinx.fem.form(ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx))
    A.assemble()
    A.setOption(PETSc.Mat.Option.SYMMETRIC, True)
    null = PETSc.NullSpace().create(constant=True, comm=mesh.comm)
    A.setNullSpace(null)
    x, b = A.createVecs()
    b.array[:] = np.random.default_rng(0).standard_normal(b.getSize())
    null.remove(b)
    reachable = b.copy()
    b.shift(0.5)
    ksp, _ = solver(A, pc="gamg", rtol=1e-8)
    ksp.solve(b, x)
    assert ksp.getConvergedReason() > 0
    assert (reachable - A * x).norm() <= 1e-7 * b.norm()
    ksp.destroy()
