"""Constitutive laws at quadrature points: their tangents, and stresses against closed forms and other integrators."""

import dataclasses
from collections.abc import Callable

from mpi4py import MPI

import dolfinx
import numpy as np
import pytest
import scipy.integrate
import ufl
from dolfinx import fem

from pdeopt.fem.internal_variables import InternalVariables, quadrature_function
from pdeopt.fem.kinematics import Axisymmetric, Kinematics, PlaneStrain, Space, virtual_strain
from pdeopt.fem.materials import (
    KinematicHardening,
    LinearHardening,
    NortonViscosity,
    VoceHardening,
    VonMisesMaterial,
    neo_hooke_stress,
)
from pdeopt.fem.tangent_check import tangent_orders
from pdeopt.report import ConvergenceError, InputError

PERFECT = VonMisesMaterial(200e9, 0.3, 250e6, 250e6)
LINEAR = dataclasses.replace(PERFECT, hardening=LinearHardening(5e9), kinematic=KinematicHardening(3e9))
VOCE = dataclasses.replace(
    PERFECT, hardening=VoceHardening(100e6, 50.0), kinematic=KinematicHardening(30e9, recall=100.0)
)
NORTON = dataclasses.replace(LINEAR, yield_stress=50e6, viscosity=NortonViscosity(400e6, 5.0))
CREEP = VonMisesMaterial(200e9, 0.3, 0.0, 100e6, viscosity=NortonViscosity(400e6, 7.0))
LAWS = {"perfect": PERFECT, "linear": LINEAR, "Voce": VOCE, "Norton": NORTON, "creep": CREEP}


class Body:
    """A small body whose displacement is set, not solved for."""

    def __init__(self, law: VonMisesMaterial, kinematics: Kinematics | None = None, degree: int = 2):
        kinematics = kinematics or PlaneStrain()
        comm = MPI.COMM_WORLD
        if isinstance(kinematics, Space):
            self.mesh = dolfinx.mesh.create_unit_cube(comm, 2, 1, 1)
        else:
            self.mesh = dolfinx.mesh.create_rectangle(comm, [(1.0, 0.0), (2.0, 1.0)], (2, 2))
        dimension = self.mesh.geometry.dim
        self.space = fem.functionspace(self.mesh, ("Lagrange", degree, (dimension,)))
        self.u = fem.Function(self.space)
        self.time_step = fem.Constant(self.mesh, 10.0)
        self.stress, self.internal = law.at_points(self.u, kinematics, 2, time_step=self.time_step)
        test = ufl.TestFunction(self.space)
        dx = ufl.dx(self.mesh, metadata={"quadrature_degree": 2, "quadrature_rule": "default"})
        weight = kinematics.weight(self.u)
        self.residual = weight * ufl.inner(self.stress, virtual_strain(kinematics, self.u, test)) * dx
        points = self.internal.increment.function_space.element.interpolation_points
        self._stress = fem.Expression(ufl.as_vector([self.stress[i, j] for i in range(3) for j in range(3)]), points)

    def stretch(self, gradient: np.ndarray) -> np.ndarray:
        """Apply a homogeneous displacement gradient; return the stress of all owned points, shape (n, 3, 3)."""
        size = self.mesh.geometry.dim
        self.u.interpolate(lambda x: gradient[:size, :size] @ x[:size])
        self.internal.update()
        cells = np.arange(self.mesh.topology.index_map(size).size_local, dtype=np.int32)
        return self._stress.eval(self.mesh, cells).reshape(-1, 3, 3)


def wavy(amplitude: float, phase: float = 0.0, size: int = 2) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: amplitude * np.stack([np.sin(3 * x[k] + phase + 2 * x[k - 1] + k) for k in range(size)])


@pytest.mark.parallel([1, 2])
@pytest.mark.parametrize("name", LAWS)
def test_the_tangent_is_the_derivative(name):
    """Second-order Taylor remainders after a first step that left a history."""
    body = Body(LAWS[name])
    assert np.all(orders(body, body.internal.tangent(body.residual)) > 1.9)
    # Without the change of the increment it is another matrix, and the check finds out.
    assert np.all(orders(body, ufl.derivative(body.residual, body.u)) < 1.1)


@pytest.mark.parametrize("kinematics", [Axisymmetric(), Space()])
def test_the_tangent_is_the_derivative_in_all_kinematics(kinematics):
    body = Body(LINEAR, kinematics, degree=1)
    assert np.all(orders(body, body.internal.tangent(body.residual)) > 1.9)


def orders(body: Body, jacobian: ufl.Form) -> np.ndarray:
    """Of the Taylor remainders in the second of two steps."""
    size, internal = body.mesh.geometry.dim, body.internal
    internal.reset()
    body.u.interpolate(wavy(2e-3, 0.0, size))
    internal.update()
    internal.commit()
    body.u.interpolate(wavy(3e-3, 0.3, size))
    direction = fem.Function(body.space)
    direction.interpolate(wavy(1e-6, 1.0, size))
    found = tangent_orders(body.residual, jacobian, body.u, direction, internal.update)
    assert body.mesh.comm.allreduce(float(internal.active.x.array.sum())) > 0
    return found


GRADIENTS = 1e-3 * np.array(
    [
        [[2.0, 0.5, 0.0], [0.1, -1.0, 0.0], [0.0, 0.0, 0.0]],
        [[2.5, 3.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 0.0]],
        [[-1.0, 0.0, 0.0], [2.0, 0.5, 0.0], [0.0, 0.0, 0.0]],
    ]
)


def radial_return(gradients: np.ndarray) -> list[np.ndarray]:
    """Stresses of `LINEAR` by the closed form of linear hardening."""
    shear, bulk = LINEAR.young / 2.6, LINEAR.young / 1.2
    modulus, kinematic = LINEAR.hardening.modulus, LINEAR.kinematic.modulus
    plastic, cumulated, stresses = np.zeros((3, 3)), 0.0, []
    for gradient in gradients:
        strain = 0.5 * (gradient + gradient.T)
        elastic = strain - plastic
        effective = 2 * shear * (elastic - np.trace(elastic) / 3 * np.eye(3)) - 2 / 3 * kinematic * plastic
        norm = np.sqrt(1.5) * np.linalg.norm(effective)
        increment = max(0.0, norm - LINEAR.yield_stress - modulus * cumulated) / (3 * shear + kinematic + modulus)
        plastic, cumulated = plastic + 1.5 * increment * effective / norm, cumulated + increment
        elastic = strain - plastic
        volume = np.trace(elastic) * np.eye(3)
        stresses.append(bulk * volume + 2 * shear * (elastic - volume / 3))
    return stresses


@pytest.mark.parametrize("kinematics", [PlaneStrain(), Axisymmetric(), Space(), PlaneStrain(1e-3)])
def test_linear_hardening_is_the_radial_return(kinematics):
    """Three steps that are not proportional, in all kinematics."""
    gradients = GRADIENTS.copy()
    if isinstance(kinematics, Axisymmetric):  # u_r = a r has the hoop strain a
        gradients[:, 0, 1] = 0.0
        gradients[:, 2, 2] = gradients[:, 0, 0]
    elif isinstance(kinematics, Space):
        gradients[:, 2, :], gradients[:, 0, 2] = 1e-3, -2e-3
    else:
        gradients[:, 2, 2] = kinematics.axial_strain
    body = Body(LINEAR, kinematics)
    for gradient, expected in zip(gradients, radial_return(gradients), strict=True):
        stresses = body.stretch(gradient)
        assert MPI.COMM_WORLD.allreduce(float(abs(stresses - expected).max(initial=0.0)), op=MPI.MAX) <= 1e-3  # Pa
        body.internal.commit()


def strain_path(part: float) -> np.ndarray:
    return part * GRADIENTS[0] + part**2 * GRADIENTS[2]


def ode_stress(law: VonMisesMaterial, duration: float) -> np.ndarray:
    """Stress after `strain_path`, by a stiff integrator of the differential equations."""
    shear, bulk = law.young / 2.6, law.young / 1.2
    hardening = law.hardening.modulus if law.hardening else 0.0
    kinematic = law.kinematic.modulus if law.kinematic else 0.0

    def stress(time: float, state: np.ndarray) -> np.ndarray:
        gradient = strain_path(time / duration)
        elastic = 0.5 * (gradient + gradient.T) - state[1:].reshape(3, 3)
        return 2 * shear * elastic + (bulk - 2 / 3 * shear) * np.trace(elastic) * np.eye(3)

    def rate(time: float, state: np.ndarray) -> np.ndarray:
        sigma = stress(time, state)
        effective = sigma - np.trace(sigma) / 3 * np.eye(3) - 2 / 3 * kinematic * state[1:].reshape(3, 3)
        norm = np.sqrt(1.5) * np.linalg.norm(effective)
        over = max(0.0, norm - law.yield_stress - hardening * state[0])
        speed = (over / law.viscosity.resistance) ** law.viscosity.exponent
        return np.concatenate([[speed], (1.5 * speed * effective / max(norm, 1.0)).ravel()])

    solution = scipy.integrate.solve_ivp(rate, (0.0, duration), np.zeros(10), method="LSODA", rtol=1e-9, atol=1e-13)
    return stress(duration, solution.y[:, -1])


@pytest.mark.parametrize("law", [NORTON, CREEP])
def test_norton_follows_its_differential_equation(law):
    """Implicit Euler: the error halves with the step, and is small."""
    expected = ode_stress(law, 100.0)
    body = Body(law)
    errors = []
    for steps in (16, 32):
        body.internal.reset()
        body.time_step.value = np.asarray(100.0 / steps)
        for step in range(steps):
            stresses = body.stretch(strain_path((step + 1) / steps))
            body.internal.commit()
        errors.append(abs(stresses - expected).max() / abs(expected).max())
    assert errors[1] < 0.02
    assert errors[0] / errors[1] == pytest.approx(2.0, abs=0.4)


def test_slow_norton_flow_is_rate_independent_plasticity():
    """With little viscosity the overstress vanishes."""
    law = dataclasses.replace(LINEAR, viscosity=NortonViscosity(1e3, 2.0))
    stresses = [Body(each).stretch(GRADIENTS[1]) for each in (law, LINEAR)]
    np.testing.assert_allclose(stresses[0], stresses[1], atol=1e4)


def test_neo_hooke_is_objective_and_hyperelastic():
    """P(QF) = Q P(F); P = dW/dF; and at small strains it is Hooke's law."""
    mesh = dolfinx.mesh.create_unit_square(MPI.COMM_SELF, 1, 1)
    gradient = fem.Constant(mesh, np.zeros((3, 3)))
    lame, shear = 3.0, 2.0
    deformation = ufl.variable(ufl.Identity(3) + gradient)
    growth = ufl.ln(ufl.det(deformation))
    energy = 0.5 * shear * (ufl.inner(deformation, deformation) - 3 - 2 * growth) + 0.5 * lame * growth**2
    point = np.array([[0.3, 0.3]])
    law, derivative = (
        fem.Expression(ufl.as_vector([tensor[i, j] for i in range(3) for j in range(3)]), point)
        for tensor in (neo_hooke_stress(gradient, lame, shear), ufl.diff(energy, deformation))
    )

    def stress(expression: fem.Expression, deformation: np.ndarray) -> np.ndarray:
        gradient.value[:] = deformation - np.eye(3)
        return expression.eval(mesh, np.array([0], np.int32)).reshape(3, 3)

    generator = np.random.default_rng(0)
    strained = np.eye(3) + 0.3 * generator.normal(size=(3, 3))
    rotation = np.linalg.qr(generator.normal(size=(3, 3)))[0]
    rotation *= np.sign(np.linalg.det(rotation))
    strained *= np.sign(np.linalg.det(strained))
    np.testing.assert_allclose(stress(law, rotation @ strained), rotation @ stress(law, strained), rtol=1e-12)
    np.testing.assert_allclose(stress(law, strained), stress(derivative, strained), rtol=1e-12)
    small = 1e-7 * (strained + strained.T)
    hooke = lame * np.trace(small) * np.eye(3) + 2 * shear * small
    np.testing.assert_allclose(stress(law, np.eye(3) + small), hooke, rtol=1e-5, atol=1e-12)


@pytest.mark.parallel([1, 3])
def test_restricted_variables_are_the_same_law_with_a_life_of_their_own():
    """Copies of all fields on the same mesh go through the same history."""
    body = Body(VOCE)
    copies = {}

    def function(original):
        if original not in copies:
            copies[original] = original.copy()
        return copies[original]

    def restrict(expression):
        found = ufl.algorithms.extract_coefficients(expression)
        return ufl.replace(expression, {one: function(one) for one in found})

    twin = body.internal.restricted(restrict, function)
    for phase in (0.0, 0.5):
        body.u.interpolate(wavy(3e-3, phase))
        twin.unknown.x.array[:] = body.u.x.array
        for variables in (body.internal, twin):
            variables.update()
            variables.commit()
    ours, theirs = body.internal.state(), twin.state()
    assert MPI.COMM_WORLD.allreduce(float(ours["cumulated plastic strain"].sum())) > 0
    for name, values in ours.items():
        np.testing.assert_array_equal(values, theirs[name])
    twin.reset()
    assert not any(values.any() for values in twin.state().values())
    twin.set_state(ours)
    np.testing.assert_array_equal(twin.state()["back strain"], ours["back strain"])


@pytest.mark.parallel([3])
def test_ranks_without_a_cell_take_part():
    mesh = dolfinx.mesh.create_unit_square(MPI.COMM_WORLD, 1, 1)
    u = fem.Function(fem.functionspace(mesh, ("Lagrange", 1, (2,))))
    _, internal = VOCE.at_points(u, PlaneStrain(), 1)
    u.interpolate(lambda x: 0.01 * x[:2])
    internal.update()
    internal.commit()
    strains = internal.state()["cumulated plastic strain"]
    assert MPI.COMM_WORLD.allreduce(int((strains > 1e-3).sum())) == 2


def test_what_is_wrong_is_named():
    """Missing time step, wrong state, NaN, and a local equation without a solution."""
    mesh = dolfinx.mesh.create_unit_square(MPI.COMM_SELF, 1, 1)
    u = fem.Function(fem.functionspace(mesh, ("Lagrange", 1, (2,))))
    with pytest.raises(InputError, match="time_step"):
        NORTON.at_points(u, PlaneStrain(), 1)
    with pytest.raises(InputError, match="3 components"):
        LINEAR.at_points(u, Space(), 1)
    _, internal = LINEAR.at_points(u, PlaneStrain(), 1)
    with pytest.raises(InputError, match="'back strain' is absent"):
        internal.set_state({name: values for name, values in internal.state().items() if name != "back strain"})
    u.x.array[0] = np.nan
    with pytest.raises(ConvergenceError, match="not finite"):
        internal.update()
    increment = quadrature_function(mesh, 1, "increment")
    history = {quadrature_function(mesh, 1, "cumulated"): increment}
    start = fem.Constant(mesh, 1.0)
    rising = InternalVariables(u, increment, start + increment, start, history, 1e-8, "a law that hardens wrongly")
    u.x.array[:] = 0.0
    with pytest.raises(ConvergenceError, match="hardens wrongly: the local equation was not solved"):
        rising.update()
