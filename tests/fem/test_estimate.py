"""Dual norms against dense linear algebra and exact identities, on every rank count; trajectories; the noise test."""

from mpi4py import MPI

import basix.ufl
import dolfinx
import numpy as np
import pytest
import scipy.linalg
import ufl
from dolfinx import fem

from pdeopt.bench.estimator_flows import Flow, continue_to, errors
from pdeopt.bench.estimator_steps import Heat, Scheme, heat_errors, score
from pdeopt.fem import forms
from pdeopt.fem.estimate import (
    DualNorm,
    SolenoidalNorm,
    TrajectoryEstimator,
    elasticity_norm,
    linearised_norm,
    noise_ratio,
    oseen_norm,
    poisson_norm,
    stokes_norm,
)
from pdeopt.parallel import random_stream
from pdeopt.report import InputError


def unit_square(cells):
    return dolfinx.mesh.create_unit_square(MPI.COMM_WORLD, cells, cells)


def on_boundary(x):
    return np.isclose(x[0] * (1.0 - x[0]) * x[1] * (1.0 - x[1]), 0.0)


def clamp(space):
    return [fem.dirichletbc(fem.Function(space), fem.locate_dofs_geometrical(space, on_boundary))]


def wave(x):
    return np.sin(np.pi * x[0]) * np.sin(2.0 * np.pi * x[1])


def whirl(x):
    first = np.sin(np.pi * x[0]) ** 2 * np.sin(2.0 * np.pi * x[1])
    return np.vstack([first, -(np.sin(np.pi * x[1]) ** 2) * np.sin(2.0 * np.pi * x[0])])


def sum_of(function):
    return function.function_space.mesh.comm.allreduce(float(forms.owned_values(function).sum()))


def taylor_hood(mesh):
    velocity = basix.ufl.element("Lagrange", "triangle", 2, shape=(2,))
    return velocity, basix.ufl.element("Lagrange", "triangle", 1)


def momentum(nu, u, p, v, q, convection=True):
    form = nu * ufl.inner(ufl.grad(u), ufl.grad(v)) - p * ufl.div(v) - q * ufl.div(u)
    return (form + ufl.inner(ufl.grad(u) * u, v) if convection else form) * ufl.dx


class MixedFlow:
    """A field on the mixed Taylor-Hood space and the residual of the steady Navier-Stokes equations at it."""

    def __init__(self, mesh, nu, convection=True):
        self.space = fem.functionspace(mesh, basix.ufl.mixed_element(list(taylor_hood(mesh))))
        velocity_space, _ = self.space.sub(0).collapse()
        places = fem.locate_dofs_geometrical((self.space.sub(0), velocity_space), on_boundary)
        self.bcs = [fem.dirichletbc(fem.Function(velocity_space), places, self.space.sub(0))]
        self.state = fem.Function(self.space)
        self.state.sub(0).interpolate(whirl)
        self.state.sub(1).interpolate(lambda x: np.cos(3.0 * x[0]))
        tests = ufl.TestFunctions(self.space)
        self.residual = momentum(nu, *ufl.split(self.state), *tests, convection)
        self.jacobian = ufl.derivative(self.residual, self.state)


class BlockedFlow:
    """The same in two blocks."""

    def __init__(self, mesh, nu):
        self.space = tuple(fem.functionspace(mesh, element) for element in taylor_hood(mesh))
        self.bcs = clamp(self.space[0])
        self.velocity, pressure = (fem.Function(space) for space in self.space)
        self.velocity.interpolate(whirl)
        pressure.interpolate(lambda x: np.cos(3.0 * x[0]))
        tests = ufl.TestFunctions(ufl.MixedFunctionSpace(*self.space))
        self.residual = momentum(nu, self.velocity, pressure, *tests)


# --- one number on every rank count ----------------------------------------------------------------------------------


@pytest.mark.parallel([1, 2, 3])
def test_on_every_rank_count():
    """One launch for each rank count; what takes thousands of small solves is left out where ranks share a core."""
    check_bad_input()
    check_numbers_and_layouts(constants=MPI.COMM_WORLD.size < 3)
    if MPI.COMM_WORLD.size < 3:
        check_iterative_riesz_maps()
        check_noise()


def check_numbers_and_layouts(constants):
    """Mixed and blocked unknowns, 1 to 3 ranks: the numbers stand here to the digits that one rank printed."""
    mesh, nu = unit_square(8), 1.0 / 400.0
    mixed, blocked = MixedFlow(mesh, nu), BlockedFlow(mesh, nu)
    wind = ufl.split(mixed.state)[0]
    expected = {"stokes": 0.3920988926283, "oseen": 0.2220960180405, "linearised": 0.183543099279}
    norms = {
        "stokes": (stokes_norm(mixed.space, nu, mixed.bcs), stokes_norm(blocked.space, nu, blocked.bcs)),
        "oseen": (
            oseen_norm(mixed.space, nu, wind, mixed.bcs),
            oseen_norm(blocked.space, nu, blocked.velocity, blocked.bcs),
        ),
        "linearised": (
            linearised_norm(mixed.space, nu, wind, mixed.bcs),
            linearised_norm(blocked.space, nu, blocked.velocity, blocked.bcs),
        ),
    }
    for name, (first, second) in norms.items():
        estimate, other = first.estimate(mixed.residual), second.estimate(blocked.residual)
        assert estimate.eta == pytest.approx(expected[name], rel=1e-10), name
        assert other.eta == pytest.approx(estimate.eta, rel=1e-10), name
        assert sum_of(estimate.cells) == pytest.approx(estimate.eta**2, rel=1e-10), name
        assert forms.owned_values(estimate.cells).min(initial=0.0) >= 0.0
    if constants:
        found = norms["oseen"][0].constants(mixed.jacobian)
        assert (found.inf_sup, found.continuity) == pytest.approx((0.288454310, 2.513952441), rel=1e-5)
    for pair in norms.values():
        for norm in pair:
            norm.destroy()


def check_iterative_riesz_maps():
    mesh, nu = unit_square(4), 1.0 / 20.0
    mixed, blocked = MixedFlow(mesh, nu), BlockedFlow(mesh, nu)
    vectors = fem.functionspace(mesh, ("Lagrange", 2, (2,)))
    bcs, v = clamp(vectors), ufl.TestFunction(vectors)
    load = ufl.inner(ufl.as_vector([1.0, ufl.SpatialCoordinate(mesh)[0]]), v) * ufl.dx
    makers = [
        (lambda direct: poisson_norm(vectors, bcs, coefficient=3.0, direct=direct), load),
        (lambda direct: elasticity_norm(vectors, bcs, mu=1.0, lame=2.0, direct=direct), load),
        (lambda direct: stokes_norm(mixed.space, nu, mixed.bcs, direct=direct), mixed.residual),
    ]
    if mesh.comm.size == 1:  # hundreds of inner iterations, each with a wait for the other ranks
        makers.append(
            (
                lambda direct: oseen_norm(blocked.space, nu, blocked.velocity, blocked.bcs, direct=direct),
                blocked.residual,
            )
        )
    for make, residual in makers:
        with make(True) as factorised, make(False) as iterative:
            assert iterative.estimate(residual).eta == pytest.approx(factorised.estimate(residual).eta, rel=1e-8)
            assert iterative.iterations > 1


def check_bad_input():
    mesh = unit_square(4)
    space = fem.functionspace(mesh, ("Lagrange", 1))
    norm = poisson_norm(space, clamp(space))
    residual = norm.residual(wave_load(space))
    assert 0.0 < norm.norm(residual) < np.inf
    if mesh.comm.rank == mesh.comm.size - 1:
        residual.array[:] = np.nan
    assert norm.norm(residual) == np.inf
    other = fem.functionspace(mesh, ("Lagrange", 2))
    with pytest.raises(InputError, match="owned entries"):
        norm.norm(forms.assemble_vector(forms.compile_form(wave_load(other))))
    with pytest.raises(InputError, match="another function space"):
        poisson_norm(space, clamp(other))
    with pytest.raises(InputError, match="components"):
        elasticity_norm(space, clamp(space), mu=1.0, lame=1.0)
    with pytest.raises(InputError, match=r"1 field\(s\)"):
        stokes_norm(space, 1.0)
    with pytest.raises(InputError, match="viscosity is -1"):
        stokes_norm((space, space), -1.0)
    with pytest.raises(InputError, match="time step is 0"):
        TrajectoryEstimator(norm, wave_load(space)).add(0.0)
    with pytest.raises(InputError, match="2 linear forms"):
        stokes_norm(tuple(fem.functionspace(mesh, e) for e in taylor_hood(mesh)), 1.0).residual([wave_load(space)])


def check_noise():
    """Noise scores a million times a converged trajectory; a vacuous certificate does not tell them apart."""
    heat = Heat(MPI.COMM_WORLD, 8, Scheme("BDF2", 0.02))
    exact, _ = heat_errors(heat, 8, 0)

    def certificate(levels):
        return score(heat, levels).total

    def vacuous(levels):
        """Takes the increments from a step of the scheme that starts at the proposal itself."""
        return np.sqrt(sum(score(heat, heat.solve(level, 1)).total ** 2 for level in levels[1:]))

    comm = MPI.COMM_WORLD
    assert noise_ratio(certificate, exact, random_stream("noise", 0, comm), comm) >= 1e6
    assert noise_ratio(vacuous, exact, random_stream("noise", 0, comm), comm) <= 1e3


def wave_load(space):
    x = ufl.SpatialCoordinate(space.mesh)
    return ufl.sin(x[0]) * ufl.TestFunction(space) * ufl.dx


# --- identities ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["poisson", "elasticity"])
def test_eta_is_the_energy_error_of_a_linear_problem(kind):
    mesh = unit_square(8)
    space = fem.functionspace(mesh, ("Lagrange", 2) if kind == "poisson" else ("Lagrange", 1, (2,)))
    bcs, u, v = clamp(space), fem.Function(space), ufl.TestFunction(space)
    coefficient = 1.0 + 100.0 * ufl.SpatialCoordinate(mesh)[0]
    if kind == "poisson":
        u.interpolate(wave)
        norm = poisson_norm(space, bcs, coefficient=coefficient)
        energy = coefficient * ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx
    else:
        u.interpolate(whirl)
        norm = elasticity_norm(space, bcs, mu=coefficient, lame=7.0)
        energy = 2.0 * coefficient * ufl.inner(ufl.sym(ufl.grad(u)), ufl.sym(ufl.grad(v))) * ufl.dx
        energy += 7.0 * ufl.div(u) * ufl.div(v) * ufl.dx
    estimate = norm.estimate(energy, jacobian=ufl.derivative(energy, u))
    true = np.sqrt(forms.assemble_scalar(forms.compile_form(ufl.replace(energy, {v: u}))))
    assert estimate.eta == pytest.approx(true, rel=1e-10)
    assert norm.error_norm(forms.owned_values(u)) == pytest.approx(true, rel=1e-10)
    assert estimate.constants.inf_sup == pytest.approx(1.0, rel=1e-6)
    assert estimate.constants.continuity == pytest.approx(1.0, rel=1e-6)
    assert estimate.bounds == pytest.approx((true, true), rel=1e-6)


def test_eta_is_the_velocity_error_of_stokes_flow_with_divergence_whatever_the_pressure():
    mesh, nu = unit_square(8), 0.1
    flow = MixedFlow(mesh, nu, convection=False)
    flow.state.sub(0).interpolate(lambda x: np.vstack([wave(x), 3.0 * wave(x)]))
    with stokes_norm(flow.space, nu, flow.bcs) as norm:
        true = norm.error_norm(flow.state.x.array)
        assert norm.estimate(flow.residual).eta == pytest.approx(true, rel=1e-10)
        flow.state.sub(1).interpolate(lambda x: 1e3 * x[0])
        assert norm.estimate(flow.residual).eta == pytest.approx(true, rel=1e-10)


def test_cells_show_where_the_error_is():
    mesh = unit_square(16)
    space = fem.functionspace(mesh, ("Lagrange", 1))
    u, v = fem.Function(space), ufl.TestFunction(space)
    u.interpolate(lambda x: wave(x) * (np.hypot(x[0] - 0.25, x[1] - 0.25) < 0.2))
    estimate = poisson_norm(space, clamp(space)).estimate(ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx)
    centres = dolfinx.mesh.compute_midpoints(mesh, 2, np.arange(estimate.cells.x.array.size, dtype=np.int32))
    near = np.hypot(centres[:, 0] - 0.25, centres[:, 1] - 0.25) < 0.3
    assert estimate.cells.x.array[near].sum() >= 0.999 * estimate.eta**2


def test_an_inner_product_with_facets_is_shared_out_completely():
    mesh = unit_square(4)
    space = fem.functionspace(mesh, ("Discontinuous Lagrange", 1))
    u, v = fem.Function(space), ufl.TestFunction(space)
    u.interpolate(wave)

    def inner_product(a, b):
        jumps = ufl.inner(ufl.jump(a), ufl.jump(b)) * ufl.dS + a * b * ufl.ds
        return ufl.inner(ufl.grad(a), ufl.grad(b)) * ufl.dx + 10.0 * jumps

    estimate = DualNorm(space, inner_product).estimate(inner_product(u, v))
    assert sum_of(estimate.cells) == pytest.approx(estimate.eta**2, rel=1e-12)


# --- dense linear algebra --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", ["stokes", "oseen", "linearised"])
def test_flow_norms_against_dense_linear_algebra(weight):
    """Sup over a basis of the divergence-free velocities, by the definition of each norm; constants by an SVD."""
    mesh, nu = unit_square(3), 0.02
    flow = MixedFlow(mesh, nu)
    u, v = ufl.TrialFunctions(flow.space)[0], ufl.TestFunctions(flow.space)[0]
    b = ufl.split(flow.state)[0]
    norm = SolenoidalNorm(
        flow.space, nu, flow.bcs, wind=None if weight == "stokes" else b, shear=weight == "linearised"
    )
    velocity = np.setdiff1d(norm.space.field_rows(0), norm.space.constrained)
    pressure = norm.space.field_rows(1)

    def dense(form):
        matrix = norm.space.matrix(forms.compile_form(form))
        return matrix.convert("dense").getDenseArray()

    divergence = dense(ufl.div(u) * ufl.TestFunctions(flow.space)[1] * ufl.dx)[np.ix_(pressure, velocity)]
    basis = scipy.linalg.null_space(divergence)

    def confined(form):
        return basis.T @ dense(form)[np.ix_(velocity, velocity)] @ basis

    energy = confined(nu * ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx)
    skew = confined(0.5 * (ufl.inner(ufl.grad(u) * b, v) - ufl.inner(ufl.grad(v) * b, u)) * ufl.dx)
    shear = confined(ufl.inner(ufl.grad(b) * u, v) * ufl.dx)
    if weight == "stokes":
        gram = energy
    elif weight == "oseen":  # nu |grad v|^2 and the dual norm of convection, added
        gram = energy + skew @ np.linalg.solve(energy, skew.T)
    else:
        operator = energy + skew + shear
        gram = operator @ np.linalg.solve(energy, operator.T)
    residual = norm.residual(flow.residual)
    residual.array[pressure] = 0.0
    covector = basis.T @ residual.array_r[velocity]
    eta = np.sqrt(covector @ np.linalg.solve(gram, covector))
    assert norm.norm(residual) == pytest.approx(eta, rel=1e-9)

    linearised = confined(flow.jacobian)
    root, error_root = np.linalg.cholesky(gram), np.linalg.cholesky(energy)
    inner = scipy.linalg.solve_triangular(root, linearised, lower=True)
    singular = np.linalg.svd(scipy.linalg.solve_triangular(error_root, inner.T, lower=True), compute_uv=False)
    constants = norm.constants(flow.jacobian)
    assert constants.continuity == pytest.approx(singular.max(), rel=1e-5)
    assert constants.inf_sup == pytest.approx(singular.min(), rel=1e-5)


# --- flows -----------------------------------------------------------------------------------------------------------


def test_the_oseen_weight_keeps_the_effectivity_where_the_others_lose_it():
    flow = Flow(MPI.COMM_WORLD, "cavity", 8)
    exact = continue_to(flow, 400.0)
    wind = flow.velocity.copy()
    oseen = oseen_norm(flow.spaces, flow.viscosity, wind, flow.bcs)
    stokes = stokes_norm(flow.spaces, flow.viscosity, flow.bcs)
    found = []
    for _, proposal in errors(flow, 400.0, 0, True):
        flow.set_fields(proposal)
        residual = flow.residual_vector()
        size = oseen.error_norm(proposal - exact)
        found.append((oseen.norm(residual) / size, stokes.norm(residual) / size))
    smallest, largest = np.min(found, axis=0), np.max(found, axis=0)
    assert smallest[0] >= 0.7
    assert largest[0] <= 3.0
    assert largest[1] > 3.0
    # The graph norm does not know the sign of the wind.
    flow.set_fields(exact + flow.without_divergence(flow.random_velocity(4, 0), stokes))
    residual = flow.residual_vector()
    eta = oseen.norm(residual)
    wind.x.array[:] *= -1.0
    oseen.update()
    assert oseen.norm(residual) == pytest.approx(eta, rel=1e-8)


def test_constants_bracket_small_errors_and_notice_a_wrong_residual():
    flow = Flow(MPI.COMM_WORLD, "cavity", 6)
    exact = continue_to(flow, 100.0)
    norm = stokes_norm(flow.spaces, flow.viscosity, flow.bcs)
    constants = norm.constants(flow.jacobian)

    def effectivities(factor):
        found = []
        for seed in range(4):
            direction = flow.without_divergence(flow.random_velocity(2 + seed, seed), norm)
            proposal = exact + 1e-6 * direction
            flow.set_fields(proposal)
            flow.viscosity.value[...] = factor / 100.0
            residual = flow.residual_vector()
            flow.viscosity.value[...] = 1.0 / 100.0
            found.append(norm.norm(residual) / norm.error_norm(proposal - exact))
        return np.array(found)

    good = effectivities(1.0)
    assert (good >= constants.inf_sup * (1.0 - 1e-4)).all()
    assert (good <= constants.continuity * (1.0 + 1e-4)).all()
    assert (effectivities(1.001) > constants.continuity).all()


def test_update_takes_the_new_viscosity():
    mesh = unit_square(4)
    nu = fem.Constant(mesh, 0.1)
    flow = MixedFlow(mesh, nu)
    with stokes_norm(flow.space, nu, flow.bcs) as norm, stokes_norm(flow.space, 0.3, flow.bcs) as fresh:
        nu.value[...] = 0.3
        norm.update()
        assert norm.estimate(flow.residual).eta == pytest.approx(fresh.estimate(flow.residual).eta, rel=1e-12)


# --- trajectories ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "theta"), [("backward Euler", 1.0), ("Crank-Nicolson", 0.5), ("theta", 0.7)])
def test_the_parabolic_identity(name, theta):
    """The whole of (*) in `pdeopt.fem.estimate_time`, the initial mismatch and the damping of the scheme included."""
    heat = Heat(MPI.COMM_WORLD, 8, Scheme(name, 0.02, theta))
    exact, _ = heat_errors(heat, 12, 0)
    generator = np.random.default_rng(0)
    errors = [
        generator.standard_normal() * heat.mode(1, 2) + generator.standard_normal() * heat.mode(3, 1) for _ in exact
    ]
    estimator = TrajectoryEstimator(heat.norm, heat.residual)
    levels = [level + error for level, error in zip(exact, errors, strict=True)]
    initial = fem.Function(heat.norm.space.spaces[0])
    forms.set_function(initial, errors[0])
    estimator.start(initial)
    square = heat.mass_norm(errors[-1]) ** 2
    for n in range(1, len(levels)):
        heat.load(levels, n)
        estimator.add(heat.scheme.step)
        rate = heat.norm.norm(heat.transported(errors, exact, n))
        energy = heat.norm.error_norm(heat.scheme.weighted(errors, n))
        damping = (2.0 * theta - 1.0) * heat.mass_norm(errors[n] - errors[n - 1]) ** 2
        square += heat.scheme.step * (rate**2 + energy**2) + damping
    estimate = estimator.estimate()
    assert estimate.total**2 == pytest.approx(square, rel=1e-10)
    assert estimate.initial_mismatch**2 + sum(estimate.shares) == pytest.approx(square, rel=1e-10)
