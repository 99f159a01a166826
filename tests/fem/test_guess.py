import resource

from mpi4py import MPI
from petsc4py import PETSc

import dolfinx
import numpy as np
import pytest
import ufl
from dolfinx import fem
from dolfinx.fem import petsc as fem_petsc

from pdeopt import attach_guess, problems
from pdeopt.bench import guest_families as families
from pdeopt.fem import forms
from pdeopt.fem._guess_judge import _affine_weights, lagrange_weights
from pdeopt.fem._guess_norm import RieszNorm, energy_product
from pdeopt.fem._guess_transfer import Loader
from pdeopt.report import ConvergenceError, InputError, OptionError

WORLD = MPI.COMM_WORLD
LAST = WORLD.size - 1


def square(cells, comm=WORLD):
    return dolfinx.mesh.create_unit_square(comm, cells, cells)


def bratu(cells, value=4.0, rtol=1e-8, prefix="guess_test_"):
    problem, parameter = families.bratu(square(cells), prefix)
    parameter.value = value
    problem.solver.setTolerances(rtol=rtol, atol=1e-50)
    return problem, parameter


def solve_from_zero(problem):
    problem.u.x.array[:] = 0.0
    problem.solve()
    return forms.owned_values(problem.u).copy()


def noise(problem, seed=0):
    return np.random.default_rng([seed, WORLD.rank]).normal(size=forms.owned_size(problem.u.function_space))


def raise_on_last_rank():
    if WORLD.rank == LAST:
        raise LookupError("the model has not been trained for this")
    return np.zeros(1)


def largest(values):
    return WORLD.allreduce(float(np.max(np.abs(values), initial=0.0)), op=MPI.MAX)


# --- nonlinear solvers ------------------------------------------------------------------------------------------------


def test_bad_proposals_lose_and_the_answer_stays():
    fine, _ = bratu(24)
    coarse, _ = bratu(12, prefix="guess_test_coarse_")
    answer = solve_from_zero(fine)
    size = answer.size
    proposals = {
        "noise": lambda: noise(fine),
        "NaN on one rank": lambda: np.where(WORLD.rank == LAST, np.nan, 1.0) * np.ones(size),
        "error on one rank": raise_on_last_rank,
        "size": lambda: np.zeros(size + (WORLD.rank == LAST)),
        "kind": lambda: fine.u if WORLD.rank == LAST and WORLD.size > 1 else "nonsense",
        "nothing": lambda: None,
    }
    guest = attach_guess(fine, proposals, coarse=coarse)
    assert largest(solve_from_zero(fine) - answer) < 1e-9
    report = guest.report
    assert report.chosen == "nested iteration"
    assert report.iterations == fine.solver.getIterationNumber() == 2
    assert report.candidate("present iterate").residual > 5.0 * report.candidate("nested iteration").residual
    notes = [report.candidate(name).note for name in proposals]
    assert [words in note for words, note in zip(
        ("outdone", "NaN", "not been trained", "shape", "guess", "nothing was offered"), notes, strict=True
    )] == [True] * 6  # fmt: skip
    assert guest.accepted == 0
    assert report.gain == 1.0
    assert report.steps_saved == 0.0
    # Every rank tells the same story.
    story = str(report.candidates[0].note), report.chosen, report.candidate("nested iteration").residual
    assert WORLD.bcast(story) == story
    guest.detach()
    assert largest(solve_from_zero(fine) - answer) < 1e-9


def test_the_exact_proposal_takes_one_check():
    problem, parameter = bratu(16)
    answers = {}
    for value in (2.0, 5.0):
        parameter.value = value
        answers[value] = solve_from_zero(problem)
    # The planted fault: without tolerances that refer to the usual start PETSc takes steps from the exact solution.
    problem.solver.setErrorIfNotConverged(False)
    problem.solver.setTolerances(max_it=3)
    problem.solve()
    assert problem.solver.getIterationNumber() > 0
    assert problem.solver.getConvergedReason() < 0
    problem.solver.setErrorIfNotConverged(True)
    problem.solver.setTolerances(max_it=50)

    def forbidden():
        raise AssertionError("the coarse problem was solved for nothing")

    guest = attach_guess(problem, {"exact": lambda: answers[float(parameter.value)]}, coarse=forbidden)
    for value in (2.0, 5.0):
        parameter.value = value
        assert largest(solve_from_zero(problem) - answers[value]) < 1e-12
        assert problem.solver.getConvergedReason() > 0
        assert (problem.solver.getIterationNumber(), problem.solver.getFunctionEvaluations()) == (0, 1)
        assert guest.report.chosen == "exact"
        assert guest.report.residual_evaluations == 2
        assert "nested iteration" not in str(guest.report)
    assert guest.accepted == guest.solves == 2
    assert problem.solver.getTolerances()[:2] == (1e-8, 1e-50)


@pytest.mark.parametrize("share", [1e-2, 1e-4, 1e-6])
def test_a_good_start_ends_as_accurately_as_the_usual_one(share):
    problem, _ = bratu(16, rtol=1e-8)
    answer = solve_from_zero(problem)
    residual = problem.b.duplicate()
    problem.x.set(0.0)
    problem.solver.computeFunction(problem.x, residual)
    target = 1e-8 * residual.norm()
    start = answer * (1.0 + share)
    guest = attach_guess(problem, start)
    solution = solve_from_zero(problem)
    problem.solver.computeFunction(problem.x, residual)
    assert residual.norm() <= target
    assert guest.report.tolerance == pytest.approx(target)
    assert guest.report.chosen == "proposal"
    assert guest.report.iterations <= 2
    assert largest(solution - answer) < 1e-7
    assert guest.report.gain > 0.5 / share


def test_new_tolerances_between_solves_are_kept():
    problem, _ = bratu(8)
    answer = solve_from_zero(problem)
    guest = attach_guess(problem.solver, 1.01 * answer)  # the bare SNES, whose tolerances stay set after a solve
    solve_from_zero(problem)
    assert problem.solver.getTolerances()[0] > 1e-8
    problem.solver.setTolerances(rtol=1e-5)
    solve_from_zero(problem)
    assert guest.report.tolerance == pytest.approx(1e-5 * guest.report.tolerance / 1e-5)
    guest.detach()
    assert problem.solver.getTolerances()[0] == 1e-5


def test_newton_that_fails_from_a_proposal_starts_again():
    problem, _ = bratu(16)
    answer = solve_from_zero(problem)
    problem.solver.setTolerances(max_it=4)
    # A norm that takes bad for good stands for a proposal whose small residual deceives.
    guest = attach_guess(problem, {"trap": 5.0 * answer + 3.0}, dual_norm=lambda residual: 1.0 / residual.norm())
    assert largest(solve_from_zero(problem) - answer) < 1e-9
    assert problem.solver.getConvergedReason() > 0
    assert "started again" in guest.report.advice
    assert guest.accepted == 0
    assert problem.solver.getTolerances()[:2] == (1e-8, 1e-50)


def test_a_proposal_that_always_loses_is_asked_less_and_less():
    problem, _ = bratu(8)
    answer = solve_from_zero(problem)
    asked, good = [], [False]

    def provider():
        asked.append(guest.solves)
        return answer if good[0] else noise(problem)

    guest = attach_guess(problem, provider)
    for _ in range(24):
        solve_from_zero(problem)
    assert asked == [0, 4, 20]
    assert "rest" in guest.report.candidate("proposal").note
    good[0] = True
    for _ in range(16):
        solve_from_zero(problem)
    assert asked[3:] == [36, 37, 38, 39]  # and again every time once it wins


def test_two_half_good_guesses_combine():
    problem, _ = bratu(16, value=1.0)
    answer = solve_from_zero(problem)
    space = problem.u.function_space
    left = np.clip(1.5 - 2.0 * space.tabulate_dof_coordinates()[: answer.size, 0], 0.0, 1.0)
    guest = attach_guess(problem, {"left": left * answer, "right": (1.0 - left) * answer}, combine=True)
    assert largest(solve_from_zero(problem) - answer) < 1e-9
    report = guest.report
    assert report.chosen == "combination"
    assert report.candidate("combination").residual < 0.2 * min(report.candidate(n).residual for n in ("left", "right"))
    assert report.residual_evaluations == 4


def test_weights_of_a_combination_are_those_of_least_squares():
    stream = np.random.default_rng(3)
    for count, rank in ((2, 2), (4, 4), (4, 2)):
        residuals = stream.normal(size=(30, rank)) @ stream.normal(size=(rank, count))
        weights = _affine_weights(residuals.T @ residuals)
        differences = residuals[:, 1:] - residuals[:, :1]
        tail = np.linalg.lstsq(differences, -residuals[:, 0], rcond=1e-8)[0]
        best = np.linalg.norm(residuals[:, 0] + differences @ tail)
        assert sum(weights) == pytest.approx(1.0)
        assert np.linalg.norm(residuals @ weights) <= best + 1e-6
        assert best < min(np.linalg.norm(residuals, axis=0))


def test_extrapolation_reproduces_polynomials():
    nodes, point = (0.3, 1.0, 2.5), 4.0
    weights = lagrange_weights(nodes, point)
    for degree in range(3):
        value = sum(weight * node**degree for weight, node in zip(weights, nodes, strict=True))
        assert value == pytest.approx(point**degree)
    assert abs(sum(w * n**3 for w, n in zip(weights, nodes, strict=True)) - point**3) > 1.0
    assert lagrange_weights(nodes, 1.0) == pytest.approx([0.0, 1.0, 0.0])


def test_earlier_solutions_are_extrapolated():
    problem, parameter = bratu(16)
    guest = attach_guess(problem, parameter=parameter)
    residuals = []
    for value in (2.0, 2.5, 3.0, 3.5):
        parameter.value = value
        problem.solve()
        residuals.append(guest.report.candidate(guest.report.chosen).residual)
    names = [candidate.name for candidate in guest.report.candidates]
    assert names == ["present iterate", "previous solution", "linear extrapolation", "quadratic extrapolation"]
    assert guest.report.chosen == "quadratic extrapolation"
    assert guest.report.candidate("previous solution").note == "the same as present iterate"
    assert residuals[3] < 0.3 * residuals[2] < 0.3 * 0.5 * residuals[1]
    parameter.value = 3.0  # solved before: the interpolant goes through it
    problem.solve()
    assert guest.report.iterations == 0


@pytest.mark.parametrize("kind", ["mpi", "nest"])
def test_blocks_of_unknowns(kind):
    mesh = square(8)
    spaces = [fem.functionspace(mesh, ("Lagrange", degree)) for degree in (1, 2)]
    u, w = (fem.Function(space) for space in spaces)
    v, z = (ufl.TestFunction(space) for space in spaces)
    forms_of_rows = [
        (ufl.inner(ufl.grad(u), ufl.grad(v)) + u**3 * v - (1.0 + w) * v) * ufl.dx,
        (ufl.inner(ufl.grad(w), ufl.grad(z)) + w * z - u * z) * ufl.dx,
    ]
    bcs = [families._boundary_condition(space) for space in spaces]
    options = {"ksp_type": "gmres", "ksp_rtol": 1e-12, "pc_type": "none" if kind == "nest" else "lu"}
    problem = fem_petsc.NonlinearProblem(
        forms_of_rows, [u, w], bcs=bcs, kind=kind, petsc_options_prefix=f"guess_blocks_{kind}_",
        petsc_options={"snes_rtol": 1e-8, "ksp_max_it": 1000, "snes_error_if_not_converged": True, **options},
    )  # fmt: skip
    problem.solve()
    answer = [u.copy(), w.copy()]
    u.x.array[:] = w.x.array[:] = 0.0
    guest = attach_guess(problem, {"exact": lambda: answer, "too few": lambda: answer[:1]})
    problem.solve()
    assert guest.report.iterations == 0
    assert "blocks" in guest.report.candidate("too few").note
    assert largest(u.x.array - answer[0].x.array) == largest(w.x.array - answer[1].x.array) == 0.0


def test_a_bare_snes_keeps_its_own_initial_guess():
    snes = PETSc.SNES().create(MPI.COMM_SELF)
    vector = PETSc.Vec().createSeq(2)
    matrix = PETSc.Mat().createDense((2, 2), comm=MPI.COMM_SELF)
    matrix.setUp()

    def residual(snes, x, out):
        a, b = x.array_r
        out.array[:] = (a**2 + b - 3.0, a - b + 1.0)

    def jacobian(snes, x, operator, preconditioner):
        operator[:, :] = np.array([[2.0 * x.array_r[0], 1.0], [1.0, -1.0]])
        operator.assemble()

    snes.setFunction(residual, vector.duplicate())
    snes.setJacobian(jacobian, matrix)
    snes.setInitialGuess(lambda snes, x: x.set(2.0))
    with pytest.raises(InputError, match="has no residual"):
        attach_guess(PETSc.SNES().create(MPI.COMM_SELF), vector)
    guest = attach_guess(snes, {"far": np.array([40.0, 1.0]), "near": np.array([1.01, 2.0])})
    with pytest.raises(InputError, match="no report yet"):
        _ = guest.report
    snes.solve(None, vector)
    assert vector.array == pytest.approx([1.0, 2.0])
    assert guest.report.chosen == "near"
    assert guest.report.candidate("present iterate").residual == pytest.approx(np.hypot(3.0, 1.0) / np.sqrt(2.0))
    guest.detach()
    snes.solve(None, vector)
    assert snes.getConvergenceHistory() is not None
    assert vector.array == pytest.approx([1.0, 2.0])


# --- the norm ---------------------------------------------------------------------------------------------------------


def test_the_norm_is_the_dual_norm_on_every_mesh():
    stream = np.random.default_rng(WORLD.rank)
    ratios = []
    for cells, degree in ((8, 1), (32, 1), (12, 2)):
        space = fem.functionspace(square(cells), ("Lagrange", degree))
        bcs = [families._boundary_condition(space)]
        norm = RieszNorm([space], bcs)
        product = forms.assemble_matrix(forms.compile_form(energy_product(space)), bcs)
        error, residual = product.createVecs()
        smooth = fem.Function(space)
        smooth.interpolate(lambda x: np.sin(np.pi * x[0]) * np.sin(np.pi * x[1]))
        for values in (forms.owned_values(smooth), stream.normal(size=error.getLocalSize())):
            error.array[:] = values
            error.array[forms.owned_dirichlet_dofs(bcs)] = 0.0
            product.mult(error, residual)
            exact = np.sqrt(error.dot(residual))  # |A e| in the dual norm is |e| in the energy norm
            ratios.append(norm(residual) / exact)
            assert norm.lower_bound(residual.norm()) <= exact
        norm.destroy()
    assert min(ratios) > 0.6
    assert max(ratios) < 1.3


def test_the_dual_norm_sees_a_coarse_solution_and_the_euclidean_norm_does_not():
    dual, euclidean = [], []
    for cells in (16, 64):
        fine, _ = bratu(cells)
        coarse, _ = bratu(cells // 2, prefix="guess_test_coarse_")
        norm = RieszNorm([fine.u.function_space], [families._boundary_condition(fine.u.function_space)])
        zero, nested = fine.b.duplicate(), fine.b.duplicate()
        point = fine.b.duplicate()
        point.set(0.0)
        fine.solver.computeFunction(point, zero)
        Loader([fine.u.function_space]).load(coarse.solve(), point)
        fine.solver.computeFunction(point, nested)
        dual.append(norm(nested) / norm(zero))
        euclidean.append(nested.norm() / zero.norm())
    assert dual[0] / dual[1] == pytest.approx(4.0, rel=0.15)  # as the error: half the mesh size, from 16 to 64 cells
    assert min(euclidean) > 0.2
    assert euclidean[0] / euclidean[1] < 1.5


def test_mixed_solutions_of_a_coarse_mesh_arrive_field_by_field():
    coarse, _ = families.lid_driven_cavity(square(4), "guess_test_coarse_")
    fine, _ = families.lid_driven_cavity(square(7), "guess_test_")
    for problem in (coarse, fine):
        problem.u.sub(0).interpolate(lambda x: np.array([x[0] ** 2 + x[1], x[0] * x[1] - 1.0]))
        problem.u.sub(1).interpolate(lambda x: 2.0 * x[0] - x[1])
    Loader([fine.u.function_space]).load(coarse.u, fine.x)
    assert largest(fine.x.array_r - forms.owned_values(fine.u)) < 1e-12


# --- linear solvers ---------------------------------------------------------------------------------------------------


def poisson(cells, **options):
    space = fem.functionspace(square(cells), ("Lagrange", 1))
    u, v = ufl.TrialFunction(space), ufl.TestFunction(space)
    load = fem.Constant(space.mesh, 1.0)
    x = ufl.SpatialCoordinate(space.mesh)
    problem = fem_petsc.LinearProblem(
        ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx, (load * x[0] + load**2) * v * ufl.dx,
        bcs=[families._boundary_condition(space)], petsc_options_prefix="guess_linear_",
        petsc_options={"ksp_type": "cg", "pc_type": "jacobi", "ksp_rtol": 1e-8, "ksp_norm_type": "unpreconditioned"}
        | options,
    )  # fmt: skip
    return problem, load


def test_linear_problems():
    problem, load = poisson(24)
    answer = forms.owned_values(problem.solve()).copy()
    usual = problem.solver.getIterationNumber()
    guest = attach_guess(
        problem, {"noise": lambda: np.random.default_rng(WORLD.rank).normal(size=answer.size), "NaN": answer * np.nan}
    )
    problem.solve()
    assert guest.report.chosen == "present iterate"  # zero, whatever the vector of the last solve holds
    assert problem.solver.getIterationNumber() == usual
    assert largest(forms.owned_values(problem.u) - answer) == 0.0
    guest.detach()
    guest = attach_guess(problem, answer)
    problem.solve()
    assert problem.solver.getIterationNumber() == 0
    assert guest.report.iterations == 0
    guest.detach()
    # The solution is quadratic in the load: the third extrapolation is exact.
    guest = attach_guess(problem, parameter=load)
    iterations = []
    for load.value in (1.0, 1.5, 2.0, 3.0):
        problem.solve()
        iterations.append(problem.solver.getIterationNumber())
    assert guest.report.chosen == "quadratic extrapolation"
    assert guest.report.candidate("quadratic extrapolation").residual < 1e-7
    assert iterations[0] == usual
    assert iterations[3] < 0.3 * usual  # the solutions it extrapolates are within the tolerance, no more


def test_a_direct_solve_takes_no_guess():
    problem, _ = poisson(4, ksp_type="preonly", pc_type="lu")
    with pytest.raises(OptionError, match="ksp_type preonly"):
        attach_guess(problem, problem.u)


# --- control problems -------------------------------------------------------------------------------------------------


def test_control_problems():
    fine, coarse = problems.SemilinearControl(square(12)), problems.SemilinearControl(square(6))
    problem = fine.problem
    usual = problem.solve().iterations
    problem.solve(rtol=1e-12)
    exact = {"state": problem.state.copy(), "control": fine.control.copy(), "adjoint": problem.adjoint.copy()}
    system = problem.system
    size = system.layout.create_vector().getLocalSize()

    def solve(**options):
        system.set_unknowns(system.layout.create_vector())
        return problem.solve(**options)

    def differences():
        pairs = ((problem.state, "state"), (fine.control, "control"), (problem.adjoint, "adjoint"))
        return max(largest(ours.x.array - exact[name].x.array) / largest(exact[name].x.array) for ours, name in pairs)

    guest = attach_guess(
        problem,
        {
            "noise": lambda: np.random.default_rng(WORLD.rank).normal(size=size),
            "NaN": lambda: np.full(size, np.nan),
            "part": {"stat": problem.state}.copy,
            "error": raise_on_last_rank,
        },
        coarse=coarse.problem,
    )
    report = solve()
    assert guest.report.chosen == "nested iteration"
    assert report.iterations < usual
    assert differences() < 1e-6
    assert "state equation alone" in guest.report.candidate("noise").note
    assert "its parts are state, control, adjoint" in guest.report.candidate("part").note
    guest.detach()
    guest = attach_guess(problem, lambda: exact, coarse=coarse.problem)
    report = solve()
    assert report.iterations == guest.report.iterations == 0
    assert guest.report.residual_evaluations == 2
    assert differences() == 0.0
    guest.detach()
    assert solve().iterations == usual


def test_control_in_the_space_of_the_controls():
    case = problems.SemilinearControl(square(8))
    problem = case.problem
    problem.solve(rtol=1e-12)
    exact = {"state": problem.state.copy(), "control": case.control.copy(), "adjoint": problem.adjoint.copy()}
    zero = problem.system.layout.create_vector()
    problem.system.set_unknowns(zero)
    assert problem.solve(method="bqnls").iterations > 3
    problem.system.set_unknowns(zero)
    guest = attach_guess(problem, lambda: exact)
    assert problem.solve(method="bqnls").iterations == guest.report.iterations == 0
    with pytest.raises(OptionError, match="unknown"):
        problem.solve(method="nonsense")


def test_control_with_bounds_and_a_second_start():
    case = problems.BoundedPoissonControl(square(16))
    problem = case.problem
    usual = problem.solve()
    control = case.control.copy()
    optimum = problem.system.layout.create_vector()
    problem.system.get_unknowns(optimum)
    guest = attach_guess(problem, {"exact": optimum.copy()})
    problem.system.set_unknowns(problem.system.layout.create_vector())
    assert problem.solve().iterations == 0 < usual.iterations
    assert largest(case.control.x.array - control.x.array) < 1e-12
    guest.detach()

    semilinear = problems.SemilinearControl(square(8)).problem
    far = 1e3 * np.ones(semilinear.system.layout.create_vector().getLocalSize())
    guest = attach_guess(semilinear, {"trap": far}, dual_norm=lambda residual: 1.0 / max(residual.norm(), 1e-300))
    report = semilinear.solve(max_iterations=5)
    assert report.converged
    assert guest.report.advice
    assert guest.accepted == 0
    guest.detach()
    with pytest.raises(ConvergenceError):
        semilinear.system.set_unknowns(PETSc.Vec().createWithArray(far, comm=WORLD))
        semilinear.solve(max_iterations=5)


# --- mistakes ---------------------------------------------------------------------------------------------------------


def test_mistakes_are_named():
    problem, _ = bratu(4)
    with pytest.raises(InputError, match="attached to a str"):
        attach_guess("problem", problem.u)
    with pytest.raises(InputError, match="'nested iteration', as one of its rivals"):
        attach_guess(problem, {"nested iteration": problem.u})
    with pytest.raises(InputError, match="proposal is a float"):
        attach_guess(problem, 3.0)
    with pytest.raises(InputError, match="coarse is a int"):
        attach_guess(problem, problem.u, coarse=3)
    problem.solver.setType("vinewtonrsls")
    with pytest.raises(OptionError, match="vinewtonrsls"):
        attach_guess(problem, problem.u)


def test_two_hundred_solves_do_not_grow():
    problem, parameter = bratu(6)
    guest = attach_guess(problem, {"noise": lambda: noise(problem)}, parameter=parameter, combine=True)

    def solve(count):
        for index in range(count):
            parameter.value = 2.0 + 0.01 * (index % 7)
            problem.solve()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0

    before = solve(30)
    assert solve(200) - before < 5.0
    assert guest.solves == 230


# --- several ranks ----------------------------------------------------------------------------------------------------
# One launch for many: each takes seconds.


@pytest.mark.parallel(2)
def test_on_two_ranks():
    test_bad_proposals_lose_and_the_answer_stays()
    test_the_exact_proposal_takes_one_check()
    test_newton_that_fails_from_a_proposal_starts_again()
    test_the_norm_is_the_dual_norm_on_every_mesh()
    test_linear_problems()
    test_control_problems()


@pytest.mark.parallel(3)
def test_on_three_ranks():
    test_bad_proposals_lose_and_the_answer_stays()
    test_the_exact_proposal_takes_one_check()
