"""Flow past the cylinder: the published numbers, orders, identities, ranks; the vortex street; control of the wake."""

import dataclasses
import functools
import math

from mpi4py import MPI
from petsc4py import PETSc

import dolfinx
import gmsh
import numpy as np
import pytest
import ufl

from pdeopt.control import taylor_test
from pdeopt.fem import forms
from pdeopt.fem.mesh import MeshData
from pdeopt.problems.cylinder_control import WakeControl
from pdeopt.problems.cylinder_flow import REFERENCE_RE20, VISCOSITY, CylinderFlow, Forces
from pdeopt.problems.cylinder_mesh import DIAMETER, HEIGHT, LENGTH, cylinder_mesh
from pdeopt.problems.cylinder_unsteady import ForceHistory, UnsteadyCylinderFlow
from pdeopt.report import ConvergenceError, InputError, MeshError

NAMES = ("drag", "lift", "pressure_drop")


@functools.cache
def mesh_with(edges):
    return cylinder_mesh(MPI.COMM_WORLD, edges)


@functools.cache
def steady(edges, reynolds=20.0):
    flow = CylinderFlow(mesh_with(edges), reynolds)
    flow.solve()
    return flow


def errors(forces):
    return {name: abs(getattr(forces, name) / getattr(REFERENCE_RE20, name) - 1.0) for name in NAMES}


def integral(data, integrand, group=None):
    measure = ufl.ds(data.mesh, subdomain_data=data.facet_tags)(data.tag(group)) if group else ufl.dx(data.mesh)
    return forms.assemble_scalar(forms.compile_form(integrand * measure))


# --- the mesh ---------------------------------------------------------------------------------------------------------


def test_the_mesh_is_the_channel_with_a_round_hole():
    """Area and circumference converge to the circle's at fourth order: straight edges would give second."""
    one = [dolfinx.fem.Constant(mesh_with(edges).mesh, 1.0) for edges in (16, 32)]
    area = LENGTH * HEIGHT - math.pi * DIAMETER**2 / 4
    wrong = [abs(integral(mesh_with(edges), unit) - area) for edges, unit in zip((16, 32), one, strict=True)]
    assert wrong[1] <= 4e-6 * math.pi * DIAMETER**2 / 4
    assert math.log2(wrong[0] / wrong[1]) >= 3.8
    data = mesh_with(32)
    sizes = {group: integral(data, one[1], group) for group in ("inflow", "outflow", "walls", "cylinder")}
    expected = {"inflow": HEIGHT, "outflow": HEIGHT, "walls": 2 * LENGTH, "cylinder": math.pi * DIAMETER}
    assert sizes == pytest.approx(expected, rel=1e-5)
    assert data.facet_tags.find(data.tag("cylinder")).size == 32


def test_an_open_session_of_gmsh_is_left_as_it_was():
    gmsh.initialize(interruptible=False)
    try:
        gmsh.option.setNumber("General.Terminal", 0)
        gmsh.option.setNumber("Mesh.Algorithm", 5)
        gmsh.model.add("mine")
        gmsh.model.occ.addRectangle(0, 0, 0, 1, 1)
        gmsh.model.occ.synchronize()
        again = cylinder_mesh(MPI.COMM_WORLD, 16)
        assert gmsh.model.getCurrent() == "mine"
        assert gmsh.model.list().count("pdeopt") == 0
        assert len(gmsh.model.getEntities(2)) == 1
        assert gmsh.option.getNumber("Mesh.Algorithm") == 5
        assert gmsh.option.getNumber("Mesh.MeshSizeExtendFromBoundary") == 1
    finally:
        gmsh.finalize()
    assert np.array_equal(again.mesh.geometry.x, mesh_with(16).mesh.geometry.x)  # and the session had no influence


# --- steady flow ------------------------------------------------------------------------------------------------------


def test_the_numbers_of_benchmark_2d_1():
    """Each within 0.1 % on 1.7e4 degrees of freedom; an inflow that is 0.5 % too fast would be noticed."""
    flow = steady(64)
    assert flow.space.dofmap.index_map.size_global <= 1e5
    assert max(errors(flow.forces()).values()) <= 1e-3
    coarse = errors(steady(32).forces())
    assert math.log2(coarse["drag"] / errors(flow.forces())["drag"]) >= 2.5
    assert coarse["lift"] >= 4.0 * errors(flow.forces())["lift"]
    faster = CylinderFlow(mesh_with(32), 20.1)
    faster.solve()
    mistaken = faster.forces()
    mistaken = Forces(*(getattr(mistaken, name) * (20.1 / 20.0) ** 2 for name in NAMES[:2]), mistaken.pressure_drop)
    assert errors(mistaken)["drag"] >= 3e-3


def stress_integral(flow):
    """Drag and lift as the integral of the stress over the cylinder, which is how they are defined."""
    data = flow.mesh_data
    normal = -ufl.FacetNormal(data.mesh)  # out of the cylinder
    velocity, pressure = ufl.split(flow.solution)
    traction = VISCOSITY * ufl.dot(ufl.grad(velocity) + ufl.grad(velocity).T, normal) - pressure * normal
    scale = 2.0 / (flow.mean_inflow**2 * DIAMETER)
    return [scale * integral(data, traction[component], "cylinder") for component in (0, 1)]


def test_the_residual_gives_the_stress_integral_and_better():
    """Two formulas for one force: they approach each other, and that of the residual is nearer to the truth."""
    gaps, gains = [], []
    for edges in (16, 32, 64):
        flow = steady(edges)
        drag, lift = stress_integral(flow)
        gaps.append(abs(drag - flow.forces().drag))
        gains.append(abs(drag / REFERENCE_RE20.drag - 1.0) / errors(flow.forces())["drag"])
        assert abs(lift - flow.forces().lift) <= 2.0 * gaps[-1]
    assert gaps[0] > 2.0 * gaps[1] > 4.0 * gaps[2]
    assert min(gains) >= 2.5
    assert gains[-1] >= 6.0


@pytest.mark.parallel([1, 2, 3])
def test_one_flow_on_every_rank_count():
    """Forces, vorticity, motion in time, objective and gradient against those of one rank alone, to 1e-8."""

    def numbers(comm):
        data = cylinder_mesh(comm, 16)
        flow = CylinderFlow(data, 20.0)
        flow.solve()
        found = [*dataclasses.astuple(flow.forces()), integral(data, flow.vorticity() ** 2)]
        flow.rotate_cylinder(20.0)
        street = UnsteadyCylinderFlow(flow, 0.02)
        street.advance(3)
        history = street.history()
        street.destroy()
        case = WakeControl(data, 40.0)
        functional = case.problem.reduced_functional()
        control, gradient = functional.create_vector(), functional.create_vector()
        control.set(0.7)
        found.append(functional.value(control))
        functional.gradient(control, gradient)
        forms.set_function(case.control, gradient.array_r)
        functional.destroy()
        return [*found, *case.surface_velocity()[1], *history.drag, *history.lift, *history.pressure_drop]

    alone = MPI.COMM_WORLD.bcast(numbers(MPI.COMM_SELF) if MPI.COMM_WORLD.rank == 0 else None)
    assert np.asarray(numbers(MPI.COMM_WORLD)) == pytest.approx(np.asarray(alone), rel=1e-8, abs=1e-10)
    with pytest.raises(InputError, match="edges = 18 around"):
        cylinder_mesh(MPI.COMM_WORLD, 18)
    with pytest.raises(ConvergenceError, match="iteration limit"):
        CylinderFlow(mesh_with(16)).solve({"snes_max_it": 2})


def test_options_reach_the_solver():
    flow = CylinderFlow(mesh_with(16))
    report = flow.solve({"ksp_type": "gmres", "ksp_rtol": 1e-10})
    assert "gmres" in report.method
    assert report.linear_iterations >= report.iterations
    assert report.residuals[-1] <= 1e-11 * report.residuals[0]
    assert dataclasses.astuple(flow.forces()) == pytest.approx(dataclasses.astuple(steady(16).forces()), rel=1e-8)
    options = PETSc.Options()
    options["cylinder_snes_max_it"] = 1
    with pytest.raises(ConvergenceError, match="reason -5") as caught:
        CylinderFlow(mesh_with(16)).solve({"snes_max_it": 20})
    assert caught.value.report.iterations == 1


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: cylinder_mesh(MPI.COMM_WORLD, 12), "edges = 12 around the cylinder"),
        (lambda: CylinderFlow(mesh_with(16), 0.0), "reynolds = 0.0 is out of range"),
        (lambda: WakeControl(mesh_with(16), alpha=0.0), "alpha = 0.0 is out of range"),
        (lambda: UnsteadyCylinderFlow(steady(16), -0.1), "time_step = -0.1 is out of range"),
        (lambda: UnsteadyCylinderFlow(steady(16), 0.1).history().shedding(), "the lift has 0 whole ones up to 0 s"),
    ],
)
def test_mistakes_are_named(build, message):
    with pytest.raises(InputError, match=message):
        build()


def test_another_mesh_is_refused():
    square = dolfinx.mesh.create_unit_square(MPI.COMM_WORLD, 2, 2)
    with pytest.raises(MeshError, match="no facet tags"):
        CylinderFlow(MeshData(square, None, None, {}))
    good = mesh_with(16)
    with pytest.raises(MeshError, match="no group 'inflow'"):
        CylinderFlow(dataclasses.replace(good, physical_groups={}))


# --- unsteady flow ----------------------------------------------------------------------------------------------------


def test_a_steady_flow_stays():
    """The scheme has no other fixed point: forces stay those of the steady solver, and a wrong start is felt."""
    flow = CylinderFlow(mesh_with(16), 20.0)
    flow.solution.x.array[:] = steady(16).solution.x.array
    street = UnsteadyCylinderFlow(flow, 0.02)
    street.advance(4)
    history, forces = street.history(), steady(16).forces()
    assert history.times == pytest.approx([0.01, 0.02, 0.03, 0.04, 0.05, 0.07])
    for name in NAMES:
        assert getattr(history, name) == pytest.approx(np.full(6, getattr(forces, name)), rel=1e-8), name
    flow.solution.x.array[:] *= 1.001
    street = UnsteadyCylinderFlow(flow, 0.02)
    street.advance(4)
    assert np.max(np.abs(street.history().drag / forces.drag - 1.0)) >= 1e-4


def test_a_flow_that_is_not_finite_is_no_result():
    flow = CylinderFlow(mesh_with(16), 20.0)
    flow.solution.x.array[:] = np.nan
    with pytest.raises(ConvergenceError):
        UnsteadyCylinderFlow(flow, 0.02).advance(1)


def test_second_order_in_time():
    """Forces in the middle of common steps, for steps that are thirds of one another, from a flow that moves."""
    flow = CylinderFlow(mesh_with(16), 100.0)
    flow.rotate_cylinder(10.0)
    flow.solve()
    flow.rotate_cylinder(0.0)
    UnsteadyCylinderFlow(flow, 0.02).advance(10)
    start, lifts = flow.solution.x.array.copy(), []
    for refinement in (1, 3, 9):
        flow.solution.x.array[:] = start
        street = UnsteadyCylinderFlow(flow, 0.02 / refinement)
        street.advance(4 * refinement)
        history = street.history()
        when = np.argmin(np.abs(history.times - 3.5 * 0.02))
        assert history.times[when] == pytest.approx(3.5 * 0.02)
        lifts.append(history.lift[when])
    assert math.log(abs(lifts[0] - lifts[1]) / abs(lifts[1] - lifts[2]), 3) >= 1.8


def test_the_vortex_street():
    """On 4.7e3 unknowns and 17 steps a period: amplitude and frequency near the published ones."""
    flow = CylinderFlow(mesh_with(24), 100.0)
    flow.rotate_cylinder(22.0)
    flow.solve()
    flow.rotate_cylinder(0.0)
    street = UnsteadyCylinderFlow(flow, 0.02)
    street.advance(50)
    shedding = street.history().shedding(periods=1)
    assert shedding.drag_max == pytest.approx(3.23, rel=0.03)
    assert shedding.lift_max - shedding.lift_min == pytest.approx(2.0, rel=0.15)
    assert shedding.strouhal == pytest.approx(0.30, rel=0.05)
    assert shedding.pressure_drop == pytest.approx(2.48, rel=0.03)


def test_shedding_of_a_known_history():
    times = np.arange(1, 400) * 0.01
    angle = 2.0 * np.pi * times / 0.35
    history = ForceHistory(times, 3.0 + 0.1 * np.cos(2 * angle), 0.2 + np.sin(angle), 2.0 + 0.1 * np.sin(angle), 1.0)
    found = history.shedding(periods=3)
    assert found.strouhal == pytest.approx(0.1 / 0.35, rel=1e-5)
    assert (found.drag_max, found.lift_max, found.lift_min) == pytest.approx((3.1, 1.2, -0.8), abs=1e-5)
    assert found.pressure_drop == pytest.approx(1.9, abs=2e-3)  # half a period after the largest lift
    assert found.drift <= 1e-6
    growing = dataclasses.replace(history, lift=history.lift * np.exp(0.1 * times))
    assert growing.shedding(periods=3).drift == pytest.approx(math.expm1(0.035) / math.exp(0.07), rel=0.2)
    with pytest.raises(InputError, match="periods = 40 are to be evaluated"):
        history.shedding(periods=40)


# --- control of the wake ----------------------------------------------------------------------------------------------


@pytest.fixture
def sharp_states():
    """Solve states to the last digit: Taylor remainders are read down to rounding."""
    with forms.default_options("state_", {"snes_rtol": 1e-15}):
        yield


def test_a_rotating_cylinder_in_two_ways(sharp_states):
    """A constant control by Nitsche's method and the Dirichlet condition of a rotation give the same forces."""
    case = WakeControl(mesh_with(16), 40.0)
    flow = CylinderFlow(mesh_with(16), 40.0)
    flow.rotate_cylinder(1.5 * flow.mean_inflow / (DIAMETER / 2))
    flow.solve()
    functional = case.problem.reduced_functional()
    control = functional.create_vector()
    control.set(1.5)
    functional.value(control)
    functional.set_control(control)
    functional.destroy()
    assert abs(flow.forces().lift) > 1.0
    assert dataclasses.astuple(case.flow.forces()) == pytest.approx(dataclasses.astuple(flow.forces()), rel=1.5e-2)


class Mistaken:
    """A functional whose derivative is wrong by one thousandth."""

    def __init__(self, functional):
        self._functional = functional

    def __getattr__(self, name):
        return getattr(self._functional, name)

    def derivative(self, control, out):
        self._functional.derivative(control, out)
        out.scale(1.001)


def test_derivatives(sharp_states):
    """Taylor remainders around a rotating cylinder; around one at rest symmetry would hide the cubic term."""
    case = WakeControl(mesh_with(16), 40.0)
    case.control.x.array[:] = 1.0
    functional = case.problem.reduced_functional()
    report = taylor_test(functional, steps=0.25 ** np.arange(1.0, 7.0))
    assert report.passed
    assert report.gradient_order >= 1.99
    assert report.hessian_order >= 2.95
    assert not taylor_test(Mistaken(functional), hessian=False, steps=0.25 ** np.arange(3.0, 7.0)).passed
    assert taylor_test(functional, hessian=False, steps=0.25 ** np.arange(3.0, 7.0)).passed
    functional.destroy()
    assert case.problem.check_symmetry() <= 1e-10


def test_the_wake_is_closed():
    """The optimum costs a tenth of the cylinder at rest, by Newton's method and by TAO alike."""
    case = WakeControl(mesh_with(16), 40.0)
    objective, drag = case.problem.objective_value(), case.flow.forces().drag
    report = case.problem.solve()
    assert report.converged
    assert "MUMPS" in report.method
    best = case.problem.objective_value()
    assert best <= 0.06 * objective
    assert case.tracking() <= best
    assert case.flow.forces().drag <= 0.25 * drag
    angles, values = case.surface_velocity()
    assert angles.size == 16
    assert np.all(np.diff(angles) > 0.0)
    assert values[angles < -0.3].min() > -0.3  # below, the surface moves downstream as above: towards the rear
    assert values[angles > 0.3].max() < 0.3
    case.control.x.array[:] *= 0.8
    case.problem.solve(method="bqnls", rtol=1e-5)
    assert case.problem.objective_value() == pytest.approx(best, rel=1e-6)
