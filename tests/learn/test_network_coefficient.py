"""Networks inside forms: the same matrices as the formula that the network computes, and errors that name the cause."""

from mpi4py import MPI

import dolfinx
import numpy as np
import pytest
import ufl
from dolfinx import fem

import pdeopt
from pdeopt.fem import forms
from pdeopt.learn._torch import torch
from pdeopt.learn.layers import mlp
from pdeopt.learn.network_coefficient import NetworkCoefficient, total_derivative
from pdeopt.report import ConvergenceError, InputError

WORLD = MPI.COMM_WORLD
DEGREE = 4


class Formula(torch.nn.Module):
    """A network without weights."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, inputs):
        return self.function(inputs)


@pytest.fixture
def square():
    mesh = dolfinx.mesh.create_unit_square(WORLD, 5, 5)
    mesh.topology.create_connectivity(1, 2)
    return mesh


def a_function(mesh):
    u = fem.Function(fem.functionspace(mesh, ("Lagrange", 2)))
    u.interpolate(lambda x: np.sin(3.0 * x[0]) + x[1] ** 2)
    return u


def compare(u, network_form, exact_form, networks):
    """Return the relative differences of residuals and matrices."""
    for network in networks:
        network.update(derivative=True)
    trial = ufl.TrialFunction(u.function_space)
    pairs = [
        (forms.assemble_vector(fem.form(network_form)), forms.assemble_vector(fem.form(exact_form))),
        (
            forms.assemble_matrix(fem.form(total_derivative(network_form, u, trial, networks))),
            forms.assemble_matrix(fem.form(ufl.derivative(exact_form, u, trial))),
        ),
    ]
    differences = []
    for found, exact in pairs:
        norm = exact.norm()
        exact.axpy(-1.0, found)
        differences.append(exact.norm() / norm)
    return differences


@pytest.mark.parallel([1, 2])
def test_a_scalar_network_gives_the_matrix_of_its_formula(square):
    u = a_function(square)
    v, dx = ufl.TestFunction(u.function_space), ufl.dx(metadata={"quadrature_degree": DEGREE})
    x = ufl.SpatialCoordinate(square)
    k = NetworkCoefficient(
        Formula(lambda s: (1.0 + s[:, 0] ** 2 * s[:, 2] + s[:, 1])[:, None]),
        [u, ufl.inner(ufl.grad(u), ufl.grad(u)), x[0]],
        DEGREE,
    )
    exact = 1.0 + u**2 * x[0] + ufl.inner(ufl.grad(u), ufl.grad(u))
    differences = compare(
        u, k * ufl.inner(ufl.grad(u), ufl.grad(v)) * dx, exact * ufl.inner(ufl.grad(u), ufl.grad(v)) * dx, [k]
    )
    assert max(differences) < 1e-13


def test_vector_and_tensor_networks(square):
    u = a_function(square)
    v, dx = ufl.TestFunction(u.function_space), ufl.dx(metadata={"quadrature_degree": DEGREE})
    flux = NetworkCoefficient(
        Formula(lambda g: g * (1.0 + (g**2).sum(1, keepdim=True))), ufl.grad(u), DEGREE, shape=(2,)
    )
    g = ufl.grad(u)
    assert max(compare(u, ufl.inner(flux, ufl.grad(v)) * dx,
                       ufl.inner(g * (1.0 + ufl.inner(g, g)), ufl.grad(v)) * dx, [flux])) < 1e-13  # fmt: skip
    tensor = NetworkCoefficient(
        Formula(lambda s: torch.cat([1.0 + s**2, s, 2.0 * s, 3.0 + s**3], dim=1)), u, DEGREE, shape=(2, 2)
    )
    exact = ufl.as_matrix([[1.0 + u**2, u], [2.0 * u, 3.0 + u**3]])
    assert max(compare(u, ufl.inner(tensor * g, ufl.grad(v)) * dx, ufl.inner(exact * g, ufl.grad(v)) * dx,
                       [tensor])) < 1e-13  # fmt: skip


def diffusion(mesh, network, operands=None, measure=ufl.dx, **settings):
    space = fem.functionspace(mesh, ("Lagrange", 1))
    u, v = fem.Function(space), ufl.TestFunction(space)
    k = NetworkCoefficient(network, u if operands is None else operands(u), DEGREE, **settings)
    dofs = fem.locate_dofs_topological(space, 1, dolfinx.mesh.exterior_facet_indices(mesh.topology))
    residual = k * ufl.inner(ufl.grad(u), ufl.grad(v)) * measure - v * ufl.dx
    return pdeopt.PDELayer(residual, u, [fem.dirichletbc(0.0, dofs, space)])


@pytest.mark.parallel([1, 2, 3])
def test_a_network_that_returns_nan_on_one_rank_is_an_error_on_all(square):
    poison = {"on": False}

    def formula(s):
        out = 1.0 + s[:, :1] ** 2
        return out * float("nan") if poison["on"] and WORLD.rank == WORLD.size - 1 else out

    layer = diffusion(square, Formula(formula))
    before = layer()
    poison["on"] = True
    with pytest.raises(ConvergenceError, match="NaN or infinity"):
        layer()
    poison["on"] = False
    assert torch.equal(layer(), before)


@pytest.mark.parallel([1, 2])
def test_a_network_that_fails_in_backward_is_an_error_on_all(square):
    network = mlp(1, 1, width=4, depth=1)
    guarded = {"on": False}

    class Guarded(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network

        def forward(self, s):
            if guarded["on"] and WORLD.rank == 0:
                raise ValueError("no more evaluations")
            return 2.0 + self.inner(s) ** 2

    layer = diffusion(square, Guarded())
    loss = layer().sum()
    guarded["on"] = True
    with pytest.raises(ValueError, match="no more evaluations"):
        loss.backward()
    assert all(parameter.grad is None for parameter in network.parameters())


def test_single_precision_networks(square):
    double = torch.nn.Sequential(mlp(1, 1, width=4, depth=1, seed=3), torch.nn.Softplus())
    single = torch.nn.Sequential(mlp(1, 1, width=4, depth=1, seed=3, dtype=torch.float32), torch.nn.Softplus())
    states = []
    for network in (double, single):
        # Newton's method on a rounded residual: its steps cannot become as small.
        layer = diffusion(square, network)
        states.append(layer())
        states[-1].sum().backward()
    assert torch.allclose(*states, rtol=1e-5)
    for one, other in zip(double.parameters(), single.parameters(), strict=True):
        assert other.grad.dtype == torch.float32
        assert torch.allclose(one.grad.float(), other.grad, rtol=1e-3, atol=1e-6)


def test_networks_without_weights_or_without_inputs_that_matter(square):
    constant = diffusion(square, Formula(lambda s: torch.full((len(s), 1), 2.0, dtype=s.dtype)))
    formula = diffusion(square, Formula(lambda s: 2.0 + 0.0 * s))
    assert torch.allclose(constant(), formula(), rtol=1e-12)


def test_mistakes(square):
    good = Formula(lambda s: 1.0 + s[:, :1] ** 2)
    for wrong, words in (
        (lambda: NetworkCoefficient(good, ufl.SpatialCoordinate(square)[0], DEGREE), "name the mesh"),
        (lambda: NetworkCoefficient(good, a_function(square), 0), "quadrature_degree is 0"),
        (lambda: diffusion(square, Formula(lambda s: torch.cat([s, s], dim=1)))(), "has to be"),
        (lambda: diffusion(square, good, measure=ufl.ds), "exterior_facet"),
        (lambda: diffusion(square, good, measure=ufl.dx(metadata={"quadrature_degree": 2})), "degree 2"),
    ):
        with pytest.raises(InputError, match=words):
            wrong()
