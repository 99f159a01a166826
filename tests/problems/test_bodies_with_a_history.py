"""Bodies of plastic, viscous and rubbery materials: closed forms, symmetries, and one answer on every rank count."""

import pathlib

from mpi4py import MPI

import dolfinx
import numpy as np
import pytest
import ufl

from pdeopt.fem import forms
from pdeopt.fem.kinematics import PlaneStrain
from pdeopt.fem.materials import VonMisesMaterial
from pdeopt.fem.quasi_static import NewtonEquilibrium, QuasiStatic
from pdeopt.problems import BladeSection, NeoHookeanBlock, PressurisedCylinder, ThermoplasticPlate
from pdeopt.report import ConvergenceError, InputError

BLADE = pathlib.Path(__file__).resolve().parents[2] / "meshes" / "blade_section.msh"
# What one rank found: the last pressure [Pa]; norms of displacements and of cumulated strains.
CYLINDER = 195719142.99092928
PLATE = [0.00023430519767252413, 0.0023352946615348468]
FLIGHT = [4.1336965545487577e-05, 0.015204016688268955]
BLOCK = 0.48468902927416074


def size(values):
    """Euclidean norm over all ranks of the values that they own."""
    return np.sqrt(MPI.COMM_WORLD.allreduce(float(values @ values)))


def test_cylinder_reaches_its_limit_load():
    """The elastic slope, a plateau, and the limit load within 1 %."""
    cylinder = PressurisedCylinder(MPI.COMM_WORLD, (5, 8))
    _, pressures = cylinder.solve_limit(0.02, 10)
    assert pressures[-1] == pytest.approx(cylinder.limit_pressure, rel=0.01)
    assert pressures[-1] - pressures[-3] < 1e-3 * cylinder.limit_pressure  # it is a plateau
    cylinder.driver.reset()
    cylinder.driver.step(1e-5)
    assert cylinder.pressure() == pytest.approx(cylinder.elastic_pressure(1e-5), rel=1e-3)


def test_plate_flows_unloads_and_flows_back():
    """Cumulated strain that stands still when the load reverses, and grows again; a step taken again is the same."""
    plate = ThermoplasticPlate(MPI.COMM_WORLD, 8)
    whole = plate.solve_trajectory(plate.parameters(1, "plate")[0])
    cumulated = [size(column) for column in whole.history["cumulated plastic strain"].T]
    growth = np.diff(cumulated)
    assert np.all(growth >= 0.0)
    assert np.all(growth[7:10] == 0.0)
    assert min(growth[3], growth[-2]) > 0.0
    assert whole.iterations.max() <= 8

    middle = {name: columns[:, 11] for name, columns in whole.history.items()}
    plate.driver.restore(whole.times[11], whole.unknowns[:, 11], middle)
    again = plate.driver.march(whole.times[12:])
    assert size((again.unknowns - whole.unknowns[:, 12:]).ravel()) <= 1e-10 * size(whole.unknowns.ravel())

    # A body that is led through the same displacements without solving has the same history.
    plate.driver.reset()
    for time, unknown in zip(whole.times, whole.unknowns.T, strict=True):
        plate.driver.impose(time, unknown)
        plate.driver.accept(time)
    for name, columns in whole.history.items():
        np.testing.assert_allclose(plate.internal.state()[name], columns[:, -1], rtol=0, atol=1e-14)


def test_blade_creeps_and_a_uniform_rise_leaves_it_without_stress():
    """The zones' temperatures add up to one; equal rises only expand the section; a flight leaves plastic strain."""
    blade = BladeSection(MPI.COMM_WORLD, BLADE, degree=1)
    total = sum(forms.owned_values(field) for field in blade.influences)
    np.testing.assert_allclose(total, 1.0, rtol=1e-12)
    even = np.concatenate([np.full(4, 800.0), np.ones(8), [100.0]])
    blade.set_parameter(even)
    blade.driver.reset()
    blade.driver.step(30.0)
    dx = ufl.dx(blade.mesh, metadata={"quadrature_degree": 1})
    stress = forms.compile_form(ufl.inner(blade.stress, blade.stress) * dx)
    area = forms.assemble_scalar(forms.compile_form(dolfinx.fem.Constant(blade.mesh, 1.0) * dx))
    assert np.sqrt(forms.assemble_scalar(stress) / area) <= 10.0  # Pa

    flight = blade.solve_trajectory(blade.parameters(1, "blade")[0], steps=8)
    assert size(flight.history["cumulated plastic strain"][:, -1]) > 1e-3


def test_rubber_block_is_its_own_mirror_image():
    """A mirrored traction gives the mirrored displacement, up to the mesh, which has one diagonal direction."""
    block = NeoHookeanBlock(MPI.COMM_WORLD, 16)
    solver = block.solver()
    squares = []
    for parameter in ([0.3, 0.8, 2e5, 1.5], [0.7, -0.8, 2e5, 1.5]):
        block.u.x.array[:] = 0.0
        block.set_parameter(np.array(parameter))
        solver.solve()
        squares.append(
            [forms.assemble_scalar(forms.compile_form(block.u[k] ** 2 * ufl.dx(block.mesh))) for k in (0, 1)]
        )
    assert squares[1] == pytest.approx(squares[0], rel=0.05)
    assert squares[0][1] > 1e-4  # m^4: far from small strains


def sizes(trajectory):
    return [size(trajectory.unknowns[:, -1]), size(trajectory.history["cumulated plastic strain"][:, -1])]


@pytest.mark.parallel([1, 2, 3])
def test_one_answer_on_every_rank_count():
    """Few steps of all bodies; some ranks have parts of the body that do not flow."""
    comm = MPI.COMM_WORLD
    assert PressurisedCylinder(comm, (2, 3)).solve_limit(0.005, 2)[1][-1] == pytest.approx(CYLINDER, rel=1e-10)
    plate, blade, block = ThermoplasticPlate(comm, 4), BladeSection(comm, BLADE, degree=1), NeoHookeanBlock(comm, 4)
    assert sizes(plate.solve_trajectory(plate.parameters(1, "plate")[0], 5)) == pytest.approx(PLATE, rel=1e-10)
    assert sizes(blade.solve_trajectory(blade.parameters(1, "blade")[0], 4)) == pytest.approx(FLIGHT, rel=1e-10)
    block.set_parameter(np.array([0.3, 0.8, 2e5, 1.5]))
    block.solver().solve()
    assert size(forms.owned_values(block.u)) == pytest.approx(BLOCK, rel=1e-10)

    plate.driver.reset()
    if comm.rank == comm.size - 1:

        def fails():
            raise ConvergenceError("the local equation of this rank was not solved")

        plate.internal.update = fails
    with pytest.raises(ConvergenceError, match="of this rank was not solved"):
        plate.driver.step(0.2)
    assert not plate.u.x.array.any()


def test_a_residual_that_a_line_search_leaves_loosens_no_tolerance():
    """Newton's first step overshoots to 1e173 times the load; the load after it is solved for all the same."""
    mesh = dolfinx.mesh.create_unit_square(MPI.COMM_SELF, 1, 1)
    u = dolfinx.fem.Function(dolfinx.fem.functionspace(mesh, ("Lagrange", 1, (2,))))
    _, internal = VonMisesMaterial(200e9, 0.3, 250e6, 250e6).at_points(u, PlaneStrain(), 1)
    load, test = dolfinx.fem.Constant(mesh, 400.0), ufl.TestFunction(u.function_space)
    residual = (ufl.exp(50.0 * u[0]) - load) * test[0] + u[1] * test[1]
    solver = NewtonEquilibrium(residual * ufl.dx(metadata={"quadrature_degree": 2}), internal, snes_max_it=500)
    for value in (400.0, 500.0):
        load.value = value
        solver.solve()
        np.testing.assert_allclose(u.x.array[::2], np.log(value) / 50.0, rtol=1e-8)
    solver.destroy()


class Spring:
    """A solver that takes no step longer than 0.3, and remembers what it was asked."""

    def __init__(self):
        self.values, self.internal, self.asked, self.commits = np.zeros(1), self, [], 0

    def solve(self):
        longest = self.asked[-1] - self.values[0] > 0.3
        self.values = self.values + (np.nan if longest else self.asked[-1] - self.values[0])
        if longest:
            raise ConvergenceError("too long")
        return 1

    def unknown(self):
        return self.values.copy()

    def set_unknown(self, values):
        self.values = values

    def commit(self):
        self.commits += 1


def test_a_step_that_fails_is_halved():
    """From the last equilibrium, as often as allowed, and then it is an error that tells where."""
    spring = Spring()
    driver = QuasiStatic(spring, spring.asked.append)
    assert driver.step(1.0) == spring.commits == 4
    assert spring.asked == [1.0, 0.5, 0.25, 0.5, 0.75, 1.0]
    assert spring.values[0] == driver.time == 1.0
    driver.halvings = 1
    with pytest.raises(ConvergenceError, match=r"step from 1 to 1.5 s: too long"):
        driver.step(2.0)
    assert spring.values[0] == driver.time == 1.0


def test_what_is_wrong_is_named():
    """Sizes, shapes and steps out of range."""
    comm = MPI.COMM_SELF
    with pytest.raises(InputError, match="0 cells"):
        ThermoplasticPlate(comm, 0)
    with pytest.raises(InputError, match="inner radius"):
        PressurisedCylinder(comm, radii=(2.0, 1.0))
    with pytest.raises(InputError, match="even"):
        NeoHookeanBlock(comm, 3)
    with pytest.raises(InputError, match="multiple of 4"):
        BladeSection.times(None, 6)
    with pytest.raises(InputError, match=r"\(4,\)"):
        ThermoplasticPlate(comm, 1).set_parameter(np.ones(4))
