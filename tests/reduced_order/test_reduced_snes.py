"""ReducedNewton as a SNES: accepted where certified, Newton's method elsewhere, never converged falsely."""

from mpi4py import MPI
from petsc4py import PETSc

import dolfinx
import numpy as np
import petsctools
import pytest
import ufl
from dolfinx import fem
from dolfinx.fem import petsc as fem_petsc
from newton_cases import heat, sines

import pdeopt
from pdeopt.fem import forms
from pdeopt.reduced_order import (
    Basis,
    Certificate,
    FullResidual,
    GalerkinSystem,
    HierarchicalIndicator,
    InnerProduct,
    ReducedModel,
    ReducedNewton,
    ReducedSettings,
    Stability,
    as_guess,
)
from pdeopt.report import InputError, OptionError

WORLD, SELF = MPI.COMM_WORLD, MPI.COMM_SELF
Reason = PETSc.SNES.ConvergedReason
UNSEEN = np.array([0.46, 0.57, 35.0])


def model_of(case, size, basis=None, start=True):
    problem, basis = case.problem, basis or case.basis.truncate(size)
    norm = FullResidual(problem.residual, problem.u, basis, problem.bcs)
    return ReducedModel(
        problem.u,
        basis,
        case.galerkin(size),
        start=case.start(size) if start else None,
        certificate=Certificate(norm, Stability(0.9)),
        indicator=HierarchicalIndicator(case.galerkin(size + 2), size),
    )


def reduced_solver(case, model, on_full_solve=None, **options):
    """Return DOLFINx's problem with its SNES replaced by the reduced one."""
    solver = case.problem.solver("moving_source_reduced_")
    context = ReducedNewton(ReducedSettings(model, **options), on_full_solve)
    solver.solver.setType("python")
    solver.solver.setPythonContext(context)
    return solver, context


def solve(case, solver, parameter=UNSEEN):
    case.problem.set_parameter(parameter)
    case.problem.u.x.array[:] = 0.0
    solver.solve()
    return forms.owned_values(case.problem.u).copy()


@pytest.mark.parallel([1, 2, 3])
def test_accepted_where_certified_and_solved_in_full_elsewhere_on_any_number_of_ranks():
    found = []
    for comm in (SELF, WORLD):
        case = sines(comm)
        truth = case.solve(UNSEEN)
        norm = case.basis.inner_product.norms(truth[:, None])[0]
        seen = []
        solver, context = reduced_solver(case, model_of(case, 7, start=False), seen.append, tolerance=0.3)
        values = solve(case, solver)
        assert solver.solver.getConvergedReason() == Reason.CONVERGED_FNORM_RELATIVE
        certified = context.report.quantities["relative error, certified"]
        assert 0.0 < case.error(values, truth) / norm <= certified <= 0.3
        residual = solver.solver.getFunction()[0].norm()
        assert residual > 1e-6
        assert solver.solver.getFunctionNorm() == pytest.approx(residual, rel=1e-12)
        assert not seen
        context.settings = ReducedSettings(context.settings.model, tolerance=1e-7)
        assert case.error(solve(case, solver), truth) <= 1e-8 * norm
        assert solver.solver.getConvergedReason() > 0
        assert (context.counts.proposals, context.counts.accepted, len(seen)) == (2, 1, 1)
        assert "above the tolerance" in context.report.why
        assert context.report.iterations < case.solver.solver.getIterationNumber()
        found.append([certified, norm])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-9)


def test_a_useless_basis_costs_nothing_but_a_full_solve():
    case = heat(SELF, cells=8, snapshots=10)
    truth = case.solve(UNSEEN)
    steps = case.solver.solver.getIterationNumber()
    stream = np.random.default_rng(0)
    modes = stream.standard_normal((case.basis.modes.shape[0], 6))
    modes[forms.owned_dirichlet_dofs(case.problem.bcs)] = 0.0
    product = case.basis.inner_product
    modes = np.linalg.solve(np.linalg.cholesky(product.gram(modes)), modes.T).T
    case.basis = Basis(product, modes)
    solver, context = reduced_solver(case, model_of(case, 2, start=False))
    assert case.error(solve(case, solver), truth) <= 1e-9
    assert context.counts.accepted == 0
    assert solver.solver.getConvergedReason() > 0
    assert context.report.iterations <= steps + 1


def test_uncertified_answers_say_so_and_failures_are_never_converged():
    case = heat(SELF, cells=8, snapshots=20)
    truth = case.solve(UNSEEN)
    model = model_of(case, 12)
    for certify in ("indicator", "false"):
        solver, context = reduced_solver(case, model, certify=certify, tolerance=0.2)
        values = solve(case, solver)
        assert solver.solver.getConvergedReason() == Reason.CONVERGED_ITS
        assert "not certified" in context.report.method
        assert case.error(values, truth) > 1e-6
    # Newton's method behind it is allowed too few steps.
    solver, context = reduced_solver(case, model, tolerance=1e-9)
    solver.solver.setTolerances(max_it=1)
    solver.solver.setErrorIfNotConverged(False)
    solve(case, solver, np.array([0.3, 0.7, 95.0]))
    assert solver.solver.getConvergedReason() == Reason.DIVERGED_MAX_IT
    assert not context.report.converged
    assert "snes_max_it" in context.report.advice
    # NaN comes from the parameters: no solver can help.
    with pytest.raises(PETSc.Error):
        solve(case, solver, np.array([0.5, np.nan, 10.0]))
    assert "NaN" in str(context.error)


def test_switched_on_by_options_and_wrong_ones_are_named():
    case = heat(SELF, cells=6, snapshots=20)
    truth = case.solve(UNSEEN)
    solver = case.problem.solver("moving_source_reduced_")
    parameters = {
        "snes_type": "python",
        "snes_python_type": "pdeopt.ReducedNewton",
        "snes_reduced_model": model_of(case, 12),
        "snes_reduced_tolerance": 1e-8,
        "snes_reduced_full_snes_max_it": 30,
    }
    petsctools.set_from_options(solver.solver, parameters=parameters, options_prefix="pdeopt_test_reduced")
    with petsctools.inserted_options(solver.solver):
        values = solve(case, solver)
    assert case.error(values, truth) <= 1e-8
    context = solver.solver.getPythonContext()
    assert isinstance(context, pdeopt.ReducedNewton)
    assert context.settings.tolerance == 1e-8
    viewer = PETSc.Viewer().createASCII("/dev/null", comm=SELF)
    solver.solver.view(viewer)
    options = PETSc.Options()
    for name, value in (("tolerance", "much"), ("tolerence", "1"), ("certify", "maybe"), ("model", "heat")):
        options[f"moving_source_reduced_snes_reduced_{name}"] = value
        other = case.problem.solver("moving_source_reduced_")
        with pytest.raises(OptionError, match=name):
            ReducedNewton().setFromOptions(other.solver)
        del options[f"moving_source_reduced_snes_reduced_{name}"]
    bare = ReducedModel(case.problem.u, case.basis.truncate(3), case.galerkin(3))
    with pytest.raises(InputError, match="no certificate"):
        ReducedSettings(bare)
    assert [ReducedSettings(certify=word).certify for word in (True, "off", "YES")] == ["true", "false", "true"]
    with pytest.raises(InputError, match="no indicator"):
        ReducedSettings(bare, certify="indicator")
    with pytest.raises(InputError, match="coordinates"):
        ReducedModel(case.problem.u, case.basis.truncate(4), case.galerkin(3))


@pytest.mark.parallel([1, 2])
def test_a_guess_saves_newton_steps_and_leaves_the_answer():
    case = sines(WORLD)
    truth = case.solve(UNSEEN)
    steps = case.solver.solver.getIterationNumber()
    guest = pdeopt.attach_guess(case.solver, as_guess(model_of(case, 7, start=False)))
    assert case.error(case.solve(UNSEEN), truth) <= 1e-9
    assert guest.report.chosen == "proposal"
    assert case.solver.solver.getIterationNumber() < steps
    guest.detach()


def test_a_model_reports_what_it_knows():
    case = heat(SELF, cells=8, snapshots=20)
    truth = case.solve(UNSEEN)
    model = model_of(case, 12)
    case.problem.u.x.array[:] = 0.0
    report = model.solve()
    error = case.error(forms.owned_values(case.problem.u), truth) / case.basis.inner_product.norms(truth[:, None])[0]
    assert report.converged
    assert error <= report.quantities["relative error, certified"] <= 2.0 * error
    assert 0.5 * error <= report.quantities["relative error, estimated"] <= 1.25 * error
    assert "given" in str(report)


@pytest.mark.parallel([1, 2])
def test_the_certified_error_with_given_boundary_values_is_relative_to_the_norm_of_the_whole_field():
    mesh = dolfinx.mesh.create_unit_square(WORLD, 6, 6)
    space = fem.functionspace(mesh, ("Lagrange", 1))
    u, lifting, test = fem.Function(space), fem.Function(space), ufl.TestFunction(space)
    mesh.topology.create_connectivity(1, 2)
    boundary = fem.locate_dofs_topological(space, 1, dolfinx.mesh.exterior_facet_indices(mesh.topology))
    bcs = [fem.dirichletbc(lifting, boundary)]
    x, source = ufl.SpatialCoordinate(mesh), fem.Constant(mesh, 40.0)
    residual = ufl.inner(ufl.grad(u), ufl.grad(test)) * ufl.dx - source * x[0] * test * ufl.dx
    product = InnerProduct(space, "h1_seminorm", bcs)
    points = space.tabulate_dof_coordinates()[: product.owned]
    modes = np.prod(np.sin(np.pi * points[:, :2]), axis=1)[:, None]
    modes[forms.owned_dirichlet_dofs(bcs)] = 0.0
    basis = Basis(product, modes / product.norms(modes))
    certificate = Certificate(FullResidual(residual, u, basis, bcs, lifting), Stability(1.0))
    system = GalerkinSystem(residual, u, basis, bcs, lifting)
    model = ReducedModel(u, basis, system, certificate=certificate, lifting=lifting)
    solver = fem_petsc.LinearProblem(
        *ufl.system(ufl.replace(residual, {u: ufl.TrialFunction(space)})),
        bcs=bcs,
        petsc_options_prefix="lifting_",
        petsc_options={"ksp_type": "preonly", "pc_type": "lu", "pc_factor_mat_solver_type": "mumps"},
    )
    for wall in (0.0, 300.0):
        lifting.interpolate(lambda x, w=wall: w + 5.0 * x[0])
        truth = solver.solve()
        certified = model.solve().quantities["relative error, certified"]

        def seminorm(field):
            form = ufl.inner(ufl.grad(field), ufl.grad(field)) * ufl.dx
            return np.sqrt(forms.assemble_scalar(forms.compile_form(form)))

        error = seminorm(u - truth) / seminorm(truth)
        assert 0.05 < error <= certified * (1.0 + 1e-10)
        assert certified <= error / (1.0 - 2.0 * error)


def test_a_refused_answer_below_the_tolerance_of_the_snes_is_improved_and_options_of_the_solver_behind_count():
    case = heat(SELF, cells=8, snapshots=20)
    truth = case.solve(UNSEEN)
    solver, context = reduced_solver(case, model_of(case, 12), tolerance=1e-9)
    solver.solver.setTolerances(rtol=0.9)
    options = PETSc.Options()
    options["moving_source_reduced_snes_reduced_full_snes_max_it"] = 7
    rough = context.settings.model.solve().quantities["relative error, certified"]
    assert 1e-9 < rough < 1e-2
    values = solve(case, solver)
    del options["moving_source_reduced_snes_reduced_full_snes_max_it"]
    assert context.counts.accepted == 0
    assert context.report.converged
    assert case.error(values, truth) <= 0.5 * rough * case.basis.inner_product.norms(truth[:, None])[0]
    assert context._full.getTolerances()[3] == 7


@pytest.mark.parallel([1, 2])
def test_a_snes_of_other_unknowns_is_refused():
    case = sines(WORLD)
    other = sines(WORLD, cells=5)
    solver, context = reduced_solver(other, model_of(case, 7, start=False))
    with pytest.raises(PETSc.Error):
        solve(other, solver)
    assert "one function space" in str(context.error)
