"""Layers: derivatives against differences and dolfinx-adjoint, the same on all ranks, and nothing wrong returned."""

import gc

from mpi4py import MPI
from petsc4py import PETSc

import dolfinx
import numpy as np
import pytest
import ufl
from dolfinx import fem

import pdeopt
from pdeopt.bench import layer_cases, layer_rivals
from pdeopt.control.sweep import Checkpoints
from pdeopt.fem import forms
from pdeopt.learn import verify
from pdeopt.learn._equation import Equation
from pdeopt.learn._torch import torch
from pdeopt.learn.pde_layer import TimeSteps
from pdeopt.report import ConvergenceError, InputError

WORLD = MPI.COMM_WORLD


def square(cells=6, comm=WORLD):
    mesh = dolfinx.mesh.create_unit_square(comm, cells, cells)
    mesh.topology.create_connectivity(1, 2)
    return mesh


def boundary(space):
    return fem.locate_dofs_topological(space, 1, dolfinx.mesh.exterior_facet_indices(space.mesh.topology))


def leaves(case):
    return [tensor.clone().requires_grad_() for tensor in case.tensors]


def gradients(case):
    """Return loss and gradients, those of fields as sums of squares over the ranks."""
    tensors = leaves(case)
    loss = case.loss(*tensors)
    found = torch.autograd.grad(loss, (*tensors, *case.parameters))
    comm = case.layer.comm
    kinds = [*case.replicated, *(True for _ in case.parameters)]
    squares = [float((part**2).sum()) for part in found]
    return comm.allreduce(loss.item()), [
        one if kind else comm.allreduce(one) for kind, one in zip(kinds, squares, strict=True)
    ]


# --- derivatives ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", layer_cases.CASES)
def test_derivatives_agree_with_differences(name):
    case = layer_cases.CASES[name](MPI.COMM_SELF, 6)
    report = verify.check_derivative(
        case.layer, case.tensors, MPI.COMM_SELF, replicated=case.replicated, parameters=case.parameters
    )
    assert report.error <= 1e-9
    assert min(report.rates) > 1.9
    assert "relative error" in str(report)


@pytest.mark.parallel([2, 3])
@pytest.mark.parametrize("name", layer_cases.CASES)
def test_gradients_do_not_depend_on_the_number_of_ranks(name):
    loss, squares = gradients(layer_cases.CASES[name](WORLD, 4))
    alone, expected = gradients(layer_cases.CASES[name](MPI.COMM_SELF, 4))
    assert loss == pytest.approx(alone, rel=1e-10)
    assert squares == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("name", ["Poisson", "nonlinear diffusion", "Stokes", "hyperelasticity"])
def test_double_backward(name):
    case = layer_cases.CASES[name](MPI.COMM_SELF, 1 if name == "hyperelasticity" else 2)
    assert torch.autograd.gradgradcheck(case.layer, tuple(leaves(case)), eps=1e-5, atol=1e-6, rtol=1e-5)


def test_a_wrong_gradient_is_found(monkeypatch):
    case = layer_cases.nonlinear_diffusion(MPI.COMM_SELF, 6)
    right = Equation.gradients
    monkeypatch.setattr(
        Equation, "gradients", lambda self, *given: [1.001 * part for part in right(self, *given) if part is not None]
    )
    report = verify.check_derivative(case.layer, case.tensors, MPI.COMM_SELF)
    assert report.error > 1e-4
    assert min(report.rates) < 1.9


@pytest.mark.parametrize("name", layer_rivals.NAMES)
def test_gradients_are_those_of_dolfinx_adjoint(name):
    assert layer_rivals.compare(MPI.COMM_SELF, name, 6) <= 1e-8


def test_third_derivatives_are_refused():
    case = layer_cases.poisson(MPI.COMM_SELF, 2)
    tensors = leaves(case)
    (first,) = torch.autograd.grad((case.layer(*tensors) ** 2).sum(), tensors[0], create_graph=True)
    (second,) = torch.autograd.grad((first**2).sum(), tensors[0], create_graph=True)
    with pytest.raises(InputError, match="third derivatives"):
        torch.autograd.grad((second**2).sum(), tensors[0])


def test_double_backward_with_a_network_in_the_form_is_refused():
    case = layer_cases.network_diffusion(MPI.COMM_SELF, 2)
    (tensor,) = leaves(case)
    (first,) = torch.autograd.grad((case.layer(tensor) ** 2).sum(), tensor, create_graph=True)
    with pytest.raises(InputError, match="network coefficient"):
        torch.autograd.grad((first**2).sum(), tensor)


# --- calls in any order -----------------------------------------------------------------------------------------------


@pytest.mark.parallel([1, 2])
def test_backward_belongs_to_its_own_forward():
    case = layer_cases.nonlinear_diffusion(WORLD, 6)
    m, f = leaves(case)
    together = torch.stack([case.layer(m, f), case.layer(2.0 * m, f), case.layer(-m, 3.0 * f)])
    (mixed,) = torch.autograd.grad((together * case.weight).sum(), m)
    parts = [
        torch.autograd.grad((case.layer(a * m, b * f) * case.weight).sum(), m)[0] for a, b in ((1, 1), (2, 1), (-1, 3))
    ]
    assert torch.allclose(mixed, sum(parts), rtol=1e-9, atol=1e-12)


@pytest.mark.parallel([1, 3])
def test_a_batch_is_its_rows():
    case = layer_cases.poisson(WORLD, 4)
    m, _, g = leaves(case)
    batch = torch.stack([m, 0.5 * m, -m])
    strengths = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64, requires_grad=True)
    result = case.layer(batch, strengths, g)
    assert result.shape == (3, case.layer.state_size)
    for row in range(3):
        assert torch.allclose(result[row], case.layer(batch[row], strengths[row], g), rtol=1e-12, atol=1e-14)
    by_strength, by_boundary = torch.autograd.grad((result * case.weight).sum(), (strengths, g))
    rows = [torch.autograd.grad((case.layer(batch[r], s, g) * case.weight).sum(), g)[0] for r, s in
            enumerate(strengths.detach())]  # fmt: skip
    assert torch.allclose(by_boundary, sum(rows), rtol=1e-10, atol=1e-13)
    assert by_strength.shape == (3, 1)


def test_data_that_change_between_calls_reach_the_gradient():
    mesh = square()
    space = fem.functionspace(mesh, ("Lagrange", 1))
    u, f, v, k = fem.Function(space), fem.Function(space), ufl.TestFunction(space), fem.Constant(mesh, 1.0)
    residual = k * ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx - f * v * ufl.dx
    layer = pdeopt.PDELayer(residual, u, [fem.dirichletbc(0.0, boundary(space), space)], controls=[f])
    source = torch.ones(layer.state_size, dtype=torch.float64, requires_grad=True)
    first = torch.autograd.grad(layer(source).sum(), source)[0]
    k.value = 1.5
    second = torch.autograd.grad(layer(source).sum(), source)[0]
    assert torch.allclose(second, first / 1.5, rtol=1e-9)


def test_what_a_layer_returned_may_be_changed():
    mesh = square()
    space = fem.functionspace(mesh, ("Lagrange", 1))
    u, before, f, v = fem.Function(space), fem.Function(space), fem.Function(space), ufl.TestFunction(space)
    residual = ((u - before) * 20.0 * v + (1.0 + u**2) * ufl.inner(ufl.grad(u), ufl.grad(v)) - f * v) * ufl.dx
    bcs = [fem.dirichletbc(0.0, boundary(space), space)]
    layer = pdeopt.PDELayer(residual, u, bcs, controls=[f], time_steps=TimeSteps(before, 3))
    source = torch.full((layer.state_size,), 30.0, dtype=torch.float64, requires_grad=True)
    expected = torch.autograd.grad(layer(source).sum(), source)[0]
    output = layer(source)
    with torch.no_grad():
        output -= 1.0
    assert torch.equal(torch.autograd.grad(output.sum(), source)[0], expected)
    with pytest.raises(InputError, match="sets itself"):
        pdeopt.PDELayer(residual, u, bcs, controls=[u])


def test_other_types_and_bare_numbers():
    case = layer_cases.poisson(MPI.COMM_SELF, 4)
    m, _, g = case.tensors
    single = m.float().requires_grad_()
    strength = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    case.layer(single, strength, g).sum().backward()
    assert single.grad.dtype == torch.float32
    assert strength.grad.shape == ()
    assert strength.grad.item() == pytest.approx(
        torch.autograd.functional.jacobian(lambda f: case.layer(m, f, g).sum(), torch.tensor([1.5]).double()).item()
    )


@pytest.mark.parallel([1, 2])
def test_automatic_and_iterative_solvers_serve_both_ways():
    direct = layer_cases.nonlinear_diffusion(WORLD, 12)
    for options in (
        {"ksp_type": "python", "ksp_python_type": "pdeopt.AutoKSP", "ksp_rtol": 1e-10},
        {"ksp_type": "gmres", "pc_type": "gamg", "ksp_rtol": 1e-10, "ksp_pc_side": "right"},
    ):
        case = layer_cases.nonlinear_diffusion(WORLD, 12, petsc_options=options)
        assert gradients(case)[1] == pytest.approx(gradients(direct)[1], rel=1e-7)


# --- time steps -------------------------------------------------------------------------------------------------------


@pytest.mark.parallel([1, 2])
@pytest.mark.parametrize("checkpoints", [1, 2, 8])
def test_checkpoints_do_not_change_the_gradient(checkpoints):
    few, many = (layer_cases.burgers(WORLD, 4, steps=7, checkpoints=n) for n in (checkpoints, 7))
    assert gradients(few)[1] == pytest.approx(gradients(many)[1], rel=1e-12)


def test_all_states_end_with_the_final_one_and_backward_runs_twice():
    mesh = square()
    space = fem.functionspace(mesh, ("Lagrange", 1))
    u, before, f = (fem.Function(space) for _ in range(3))
    v = ufl.TestFunction(space)
    residual = ((u - before) * 20.0 * v + ufl.inner(ufl.grad(u), ufl.grad(v)) - f * v) * ufl.dx
    layers = [
        pdeopt.PDELayer(
            residual, u, [fem.dirichletbc(0.0, boundary(space), space)], controls=[f],
            time_steps=TimeSteps(before, 5, output=output, checkpoints=Checkpoints(2)),
        )
        for output in ("all", "final")
    ]  # fmt: skip
    source = torch.ones(layers[0].state_size, dtype=torch.float64, requires_grad=True)
    states, final = (layer(source) for layer in layers)
    assert states.shape == (5, layers[0].state_size)
    assert torch.equal(states[-1], final)
    first, again = (torch.autograd.grad(final.sum(), source, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, again)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        (gradient,) = torch.autograd.grad((final**2).sum(), source, create_graph=True)
        gradient.sum().backward()
    # Backward Euler with a factorisation that serves all steps and both ways.
    assert layers[0].report.quantities["preconditioners made for adjoints"] == 0


def test_mistakes_in_time_steps():
    mesh = square()
    space, other = fem.functionspace(mesh, ("Lagrange", 1)), fem.functionspace(mesh, ("DG", 0))
    u, before, f, v = fem.Function(space), fem.Function(space), fem.Function(space), ufl.TestFunction(space)
    residual = (u - before - f) * v * ufl.dx
    for wrong, words in (
        (lambda: TimeSteps(before, 0), "at least one"),
        (lambda: TimeSteps(before, 3, clock=fem.Constant(mesh, 0.0)), "length of a time step"),
        (lambda: TimeSteps(before, 3, output="some"), "'final' or 'all'"),
        (
            lambda: pdeopt.PDELayer(residual, u, controls=[f], time_steps=TimeSteps(fem.Function(other), 3)),
            "other space",
        ),
        (lambda: pdeopt.PDELayer(residual, u, time_steps=TimeSteps(before, 3, per_step=[f])), "not among the controls"),
        (
            lambda: pdeopt.PDELayer(residual, u, controls=[before], time_steps=TimeSteps(before, 3, per_step=[before])),
            "initial state",
        ),
    ):
        with pytest.raises(InputError, match=words):
            wrong()


# --- tolerances -------------------------------------------------------------------------------------------------------


def test_the_adjoint_tolerance_is_the_accuracy_of_the_gradient():
    options = {"ksp_type": "gmres", "pc_type": "gamg", "ksp_rtol": 1e-12, "ksp_pc_side": "right"}
    case = layer_cases.nonlinear_diffusion(MPI.COMM_SELF, 24, petsc_options=options)
    tensors = leaves(case)
    exact = torch.autograd.grad(case.loss(*tensors), tensors[0])[0]
    iterations = []
    for rtol in (1e-2, 1e-4, 1e-6):
        case.layer.adjoint_rtol = rtol
        before = case.layer.report.linear_iterations
        (found,) = torch.autograd.grad(case.loss(*tensors), tensors[0])
        iterations.append(case.layer.report.linear_iterations - before)
        assert 1e-3 * rtol < float((found - exact).norm() / exact.norm()) < 10.0 * rtol
    assert iterations == sorted(set(iterations))


@pytest.mark.parallel([1, 2])
def test_the_adaptive_tolerance_follows_the_change_of_gradients():
    case = layer_cases.nonlinear_diffusion(WORLD, 6)
    rule = pdeopt.learn.pde_layer.NoiseTolerance(memory=0.0)
    case.layer.adjoint_rtol = rule
    assert case.layer.adjoint_rtol == rule.loosest
    m, f = leaves(case)
    for factor in (1.0, 1.0 + 1e-4):
        torch.autograd.grad((case.layer(m, factor * f) * case.weight).sum(), m)
    assert 1e-6 < case.layer.adjoint_rtol < 1e-4
    assert case.layer.adjoint_rtol == WORLD.bcast(case.layer.adjoint_rtol)
    for wrong in ({"loosest": 2.0}, {"tightest": 1e-1, "loosest": 1e-2}, {"safety": 0.0}, {"memory": 1.0}):
        with pytest.raises(InputError):
            pdeopt.learn.pde_layer.NoiseTolerance(**wrong)
    with pytest.raises(InputError, match="relative residual"):
        case.layer.adjoint_rtol = 2.0


# --- singular equations -----------------------------------------------------------------------------------------------


def neumann(comm, named):
    mesh = square(5, comm)
    space = fem.functionspace(mesh, ("Lagrange", 1))
    u, f, v, one = fem.Function(space), fem.Function(space), ufl.TestFunction(space), fem.Function(space)
    one.x.array[:] = 1.0
    residual = ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx - f * v * ufl.dx
    layer = pdeopt.PDELayer(residual, u, controls=[f], kernel=[one] if named else ())
    source = fem.Function(space)
    source.interpolate(lambda x: np.cos(np.pi * x[0]))  # no integral over the square, on symmetric meshes
    return layer, torch.from_numpy(forms.owned_values(source).copy())


@pytest.mark.parallel([1, 2, 3])
def test_data_that_no_state_can_balance_are_refused():
    layer, source = neumann(WORLD, True)
    state = layer(source)
    assert WORLD.allreduce(float(state.sum())) == pytest.approx(0.0, abs=1e-10)
    with pytest.raises(InputError, match="compatibility"):
        layer(source + 0.1)


@pytest.mark.parallel([1, 2])
def test_the_derivative_across_a_kernel():
    layer, source = neumann(WORLD, True)
    # A change of the source that has no integral, so that a state exists on both sides.
    change = fem.Function(layer._equation.space)
    change.interpolate(lambda x: np.cos(np.pi * x[1]))
    direction = torch.from_numpy(forms.owned_values(change).copy())
    report = verify.check_derivative(layer, [source], WORLD, directions=[direction], replicated=[False])
    assert report.error < 1e-9


def test_a_singular_equation_never_gives_a_gradient():
    layer, source = neumann(MPI.COMM_SELF, False)
    with pytest.raises(ConvergenceError):
        layer((source + 1.0).requires_grad_()).square().sum().backward()


# --- what goes wrong, on all ranks ------------------------------------------------------------------------------------


@pytest.mark.parallel([1, 2, 3])
def test_wrong_tensors_are_refused_on_all_ranks():
    case = layer_cases.poisson(WORLD, 4)
    m, f, g = case.tensors
    last = WORLD.rank == WORLD.size - 1
    nan = m.clone()
    if last:
        nan[0] = np.nan
    for wrong, words in (
        ((m, f), "takes 3 tensors"),
        ((m[:-1] if last else m, f, g), "has shape"),
        ((nan, f, g), "NaN or infinity"),
    ):
        with pytest.raises(InputError, match=words):
            case.layer(*wrong)
    if WORLD.size > 1:
        for wrong, words in (
            ((m, f + WORLD.rank, g), "other numbers"),
            ((m.clone().requires_grad_(last), f, g), "on some ranks only"),
            ((torch.stack([m] * (1 + last)), f, g), "batches of different sizes"),
        ):
            with pytest.raises(InputError, match=words):
                case.layer(*wrong)
    assert bool(torch.isfinite(case.layer(*case.tensors)).all())


@pytest.mark.parallel([1, 2])
def test_newton_s_failure_is_an_error_on_all_ranks():
    mesh = square()
    space = fem.functionspace(mesh, ("Lagrange", 1))
    u, v, f = fem.Function(space), ufl.TestFunction(space), fem.Constant(mesh, 1.0)
    # Bratu's problem has no solution beyond about 6.8.
    residual = (ufl.inner(ufl.grad(u), ufl.grad(v)) - f * ufl.exp(u) * v) * ufl.dx
    layer = pdeopt.PDELayer(residual, u, [fem.dirichletbc(0.0, boundary(space), space)], controls=[f])
    layer(torch.tensor([5.0], dtype=torch.float64))
    with pytest.raises(ConvergenceError, match="forward solve"):
        layer(torch.tensor([20.0], dtype=torch.float64))
    assert float(layer(torch.tensor([5.0], dtype=torch.float64)).max()) < 3.0


@pytest.mark.parallel([1, 2])
def test_an_adjoint_that_is_not_solved_is_an_error():
    case = layer_cases.nonlinear_diffusion(WORLD, 12)
    tensors = leaves(case)
    loss = case.loss(*tensors)
    ksp = PETSc.KSP().create(WORLD)
    ksp.setType("richardson")
    ksp.getPC().setType("none")
    case.layer._equation._adjoint_solver._forward = ksp
    ksp.setOperators(case.layer._equation.matrix)
    with pytest.raises(ConvergenceError, match="adjoint equation"):
        loss.backward()
    assert tensors[0].grad is None


def test_mistakes_in_the_form():
    mesh = square(2)
    space, cells = fem.functionspace(mesh, ("Lagrange", 1)), fem.functionspace(mesh, ("DG", 0))
    u, v, m = fem.Function(space), ufl.TestFunction(space), fem.Function(cells)
    residual = ufl.exp(m) * ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx
    for wrong, words in (
        (lambda: pdeopt.PDELayer(m * ufl.dx, u), "one test function"),
        (lambda: pdeopt.PDELayer(m * v * ufl.dx, u), "does not contain the state"),
        (lambda: pdeopt.PDELayer(residual, m), "different spaces"),
        (lambda: pdeopt.PDELayer(residual, u, controls=[m, m]), "named twice"),
        (lambda: pdeopt.PDELayer(residual, u, controls=[3.0]), "control 0 is a float"),
        (lambda: pdeopt.PDELayer(residual, u, controls=[m], adjoint_rtol=0.0), "adjoint_rtol"),
    ):
        with pytest.raises(InputError, match=words):
            wrong()


def test_memory_does_not_grow():
    import resource

    case = layer_cases.nonlinear_diffusion(MPI.COMM_SELF, 16)
    peak = []
    for _ in range(3):
        for _ in range(20):
            case.loss(*leaves(case)).backward()
        gc.collect()
        peak.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0)
    assert peak[-1] - peak[0] <= 2.0  # MiB, over 40 pairs
