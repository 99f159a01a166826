"""Linear constraints, mass and energy: met to rounding, nearest, differentiable, on 1, 2 and 3 ranks."""

from mpi4py import MPI

import numpy as np
import pytest
import ufl
from dolfinx import fem, mesh

from pdeopt import conserve
from pdeopt.learn._torch import torch
from pdeopt.report import InputError

COMM = MPI.COMM_WORLD


def make_space(n=8, degree=2):
    return fem.functionspace(mesh.create_unit_square(COMM, n, n), ("Lagrange", degree))


def field(space, kind=0):
    function = fem.Function(space)
    function.interpolate(lambda x: np.exp(x[0]) * np.sin(4 * x[1] + kind) + kind * x[0])
    function.x.scatter_forward()
    return function


def owned(function):
    return function.x.array[: function.function_space.dofmap.index_map.size_local]


def integrate(form):
    return COMM.allreduce(fem.assemble_scalar(fem.form(form)))


def moments(space):
    """Functionals for mass and first moments, and their values."""
    v, x = ufl.TestFunction(space), ufl.SpatialCoordinate(space.mesh)
    return [v * ufl.dx, v * x[0] * ufl.dx, v * x[1] * ufl.dx], [0.7, -0.2, 3.0]


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("energy_norm", [False, True], ids=["L2", "H1"])
def test_constraints_hold_and_the_field_is_the_nearest(energy_norm):
    space = make_space()
    u, v = ufl.TrialFunction(space), ufl.TestFunction(space)

    def inner(a, b):
        form = ufl.inner(a, b)
        return (form + ufl.inner(ufl.grad(a), ufl.grad(b)) if energy_norm else form) * ufl.dx

    functionals, values = moments(space)
    constraints = conserve.LinearConstraints(
        space, functionals, values, inner_product=inner(u, v) if energy_norm else None
    )
    p, q = field(space, 0), field(space, 2)
    projected_p, projected_q = constraints.project(p), constraints.project(q)
    assert np.max(np.abs(constraints.evaluate(p) - values)) > 0.1
    assert np.max(np.abs(constraints.evaluate(projected_p) - values)) < 1e-14 * max(np.abs(values))
    # Independently of the projection's own vectors.
    assert integrate(projected_p * ufl.dx) == pytest.approx(values[0], rel=1e-12)
    size = np.sqrt(integrate(inner(p, p)) * integrate(inner(q, q)))
    # What was added is orthogonal to all fields without mass and moments, and there are such fields.
    free = projected_q - projected_p
    assert integrate(inner(free, free)) > 1e-3
    assert abs(integrate(inner(projected_p - p, free))) < 1e-12 * size
    homogeneous = conserve.LinearConstraints(space, functionals, [0.0] * 3, inner_product=inner(u, v))
    first, second = homogeneous.project(p), homogeneous.project(q)
    assert abs(integrate(inner(first, q)) - integrate(inner(p, second))) < 1e-13 * size
    again = constraints.project(projected_p)
    assert np.max(np.abs(owned(again) - owned(projected_p)), initial=0.0) < 1e-13


@pytest.mark.parallel([1, 2])
def test_functionals_that_depend_on_each_other():
    space = make_space()
    functionals, values = moments(space)
    with pytest.raises(InputError, match="depend on each other"):
        conserve.LinearConstraints(space, [*functionals, functionals[0] + 2 * functionals[1]], [*values, 0.0])
    with pytest.raises(InputError, match="one value a functional"):
        conserve.LinearConstraints(space, functionals, values[:2])
    constraints = conserve.LinearConstraints(space, functionals, values)
    bad = field(space)
    if COMM.rank == 0:
        bad.x.array[0] = np.inf
    with pytest.raises(InputError, match="u_hat has NaN or Inf in 1 values of rank 0"):
        constraints.project(bad)


@pytest.mark.parallel([1, 2, 3])
def test_mass_and_energy():
    space = make_space()
    mass, energy = 0.4, 1.3
    projection = conserve.MassAndEnergy(space, mass=mass, energy=energy)
    guess = field(space)
    u = projection.project(guess)
    assert projection.evaluate(u) == pytest.approx((mass, energy), rel=1e-14)
    assert integrate(u * ufl.dx) == pytest.approx(mass, rel=1e-13)
    assert integrate(0.5 * u**2 * ufl.dx) == pytest.approx(energy, rel=1e-13)
    distance = integrate((u - guess) ** 2 * ufl.dx)
    # No other field with this mass and energy is nearer.
    for kind in range(1, 6):
        other = projection.project(field(space, kind))
        assert integrate((other - guess) ** 2 * ufl.dx) > distance
    near = fem.Function(space)
    near.x.array[:] = u.x.array + 1e-3 * field(space, 3).x.array
    near = projection.project(near)
    assert integrate((near - guess) ** 2 * ufl.dx) > distance
    again = projection.project(u)
    assert integrate((again - u) ** 2 * ufl.dx) < 1e-26
    projection.destroy()


@pytest.mark.parallel([1, 2])
def test_impossible_energies():
    space = make_space()
    with pytest.raises(InputError, match=r"no field has mass 2 and energy 1.9: .* = 2"):
        conserve.MassAndEnergy(space, mass=2.0, energy=1.9)
    flat = conserve.MassAndEnergy(space, mass=2.0, energy=2.0)
    u = flat.project(field(space))
    assert np.max(np.abs(owned(u) - 2.0), initial=0.0) < 1e-13
    one = fem.Function(space)
    one.x.array[:] = 1.0
    projection = conserve.MassAndEnergy(space, mass=2.0, energy=3.0)
    with pytest.raises(InputError, match="field to be projected is constant"):
        projection.project(one)
    with pytest.raises(InputError, match="field to be projected is constant"):
        projection(torch.from_numpy(owned(one).copy()))
    with pytest.raises(InputError, match="scalar field"):
        conserve.MassAndEnergy(fem.functionspace(space.mesh, ("Lagrange", 1, (2,))), mass=0.0, energy=1.0)


def make_projections(space):
    functionals, values = moments(space)
    return [
        conserve.LinearConstraints(space, functionals, values),
        conserve.MassAndEnergy(space, mass=0.4, energy=1.3),
    ]


@pytest.mark.parametrize("index", [0, 1], ids=["linear", "mass and energy"])
def test_gradcheck(index):
    space = make_space(2)
    projection = make_projections(space)[index]
    guess = torch.tensor(owned(field(space)), requires_grad=True)
    assert torch.autograd.gradcheck(projection, guess, eps=1e-5, atol=1e-8)
    assert torch.autograd.gradgradcheck(projection, guess, eps=1e-5, atol=1e-7)
    batch = torch.stack([guess.detach(), 2.0 * guess.detach() + 1.0]).requires_grad_()
    layer = projection.layer()
    assert torch.allclose(layer(batch)[1], projection(batch[1]), rtol=1e-14)
    assert torch.autograd.gradcheck(layer, batch, eps=1e-5, atol=1e-8)


@pytest.mark.parallel([1, 2, 3])
def test_torch_and_plain_agree_and_gradients_cross_ranks():
    space = make_space()
    for projection in make_projections(space):
        u = torch.tensor(owned(field(space)), requires_grad=True)
        value = projection(u)
        plain = projection.project(field(space))
        assert np.max(np.abs(value.detach().numpy() - owned(plain)), initial=0.0) < 1e-14
        # The functional sum_i w_i u_i^3 over the degrees of freedom of all ranks, along a direction.
        weights = torch.from_numpy(owned(field(space, 1)).copy())
        direction = torch.from_numpy(owned(field(space, 2)).copy())
        (gradient,) = torch.autograd.grad((weights * value**3).sum(), u)
        slope = COMM.allreduce(float(torch.dot(gradient, direction)))
        plus, minus = (projection(u.detach() + step * direction) for step in (1e-5, -1e-5))
        difference = COMM.allreduce(float((weights * (plus**3 - minus**3)).sum())) / 2e-5
        assert slope == pytest.approx(difference, rel=1e-7)
