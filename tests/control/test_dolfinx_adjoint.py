"""dolfinx-adjoint: its derivatives agree with ours on its own demos, and what it taped is minimised here."""

import contextlib
import gc
import sys

from mpi4py import MPI

import dolfinx
import numpy as np
import pytest
import ufl

from pdeopt.control import ControlProblem, check_symmetry, minimise, tape, taylor_test
from pdeopt.control.tape import TapedFunctional
from pdeopt.fem import forms
from pdeopt.parallel import random_stream
from pdeopt.problems import PoissonControl
from pdeopt.report import MissingPackageError, ProblemError

pyadjoint = pytest.importorskip("pyadjoint")
dolfinx_adjoint = pytest.importorskip("dolfinx_adjoint")

AGREEMENT = 1e-8
DIRECT = {
    "ksp_type": "preonly",
    "pc_type": "lu",
    "pc_factor_mat_solver_type": "mumps",
    "ksp_error_if_not_converged": True,
}
SOLVERS = {"petsc_options": DIRECT, "adjoint_petsc_options": DIRECT, "tlm_petsc_options": DIRECT}


@pytest.fixture(autouse=True)
def no_annotation_afterwards():
    pyadjoint.continue_annotation()
    yield
    pyadjoint.pause_annotation()
    pyadjoint.set_working_tape(pyadjoint.Tape())


def unit_square(cells):
    return dolfinx.mesh.create_unit_square(MPI.COMM_WORLD, cells, cells)


def homogeneous(space):
    """Zero on the whole boundary, for a scalar space."""
    topology = space.mesh.topology
    topology.create_connectivity(topology.dim - 1, topology.dim)
    facets = dolfinx.mesh.exterior_facet_indices(topology)
    return dolfinx.fem.dirichletbc(0.0, dolfinx.fem.locate_dofs_topological(space, topology.dim - 1, facets), space)


def reduced(objective, controls, model=None, **settings):
    functional = pyadjoint.ReducedFunctional(objective, [pyadjoint.Control(c) for c in controls], **settings)
    functional.model = model  # the tape itself does not keep the problem alive, and would rebuild it
    return functional


# --- the same problem twice: on the tape, and as a ControlProblem -----------------------------------------------------


def refined_square():
    mesh = unit_square(16)
    mesh.topology.create_entities(1)
    mesh.topology.create_connectivity(1, 2)
    middle = dolfinx.mesh.locate_entities(mesh, 1, lambda x: np.abs(x[:2] - 0.5).max(axis=0) < 0.25 + 1e-12)
    return dolfinx.mesh.refine(mesh, middle)[0]


def poisson_mother():
    """Heat sources, constant in each cell, for a wanted temperature; mesh refined in the middle (poisson_mother.py)."""
    pyadjoint.set_working_tape(pyadjoint.Tape())
    mesh = refined_square()
    states = dolfinx.fem.functionspace(mesh, ("Lagrange", 1))
    sources = dolfinx.fem.functionspace(mesh, ("Discontinuous Lagrange", 0))
    dx = ufl.dx(mesh, metadata={"quadrature_degree": 6})
    x = ufl.SpatialCoordinate(mesh)
    wanted = ufl.sin(ufl.pi * x[0]) * ufl.sin(ufl.pi * x[1]) / (2 * ufl.pi**2)
    bcs = [homogeneous(states)]
    test = ufl.TestFunction(states)

    def objective(y, u):
        return 0.5 * (y - wanted) ** 2 * dx + 0.5e-6 * u**2 * dx

    source, temperature = dolfinx_adjoint.Function(sources), dolfinx_adjoint.Function(states)
    stiffness = ufl.inner(ufl.grad(ufl.TrialFunction(states)), ufl.grad(test)) * dx
    model = dolfinx_adjoint.LinearProblem(stiffness, source * test * dx, u=temperature, bcs=bcs, **SOLVERS)
    model.solve()
    taped = TapedFunctional(reduced(dolfinx_adjoint.assemble_scalar(objective(temperature, source)), [source], model))

    y, u = dolfinx.fem.Function(states), dolfinx.fem.Function(sources)
    problem = ControlProblem(
        objective=objective(y, u),
        state_equation=ufl.inner(ufl.grad(y), ufl.grad(test)) * dx - u * test * dx,
        state=y,
        control=u,
        bcs=bcs,
    )
    return taped, problem.reduced_functional()


class Penalised:
    """A functional plus w (mean of the control - m)^2, which is no integral: so the chain rule stands here."""

    def __init__(self, functional, volumes, weight, mean):
        self._functional, self._volumes, self._weight, self._mean = functional, volumes, weight, mean

    def __getattr__(self, name):
        return getattr(self._functional, name)

    def value(self, control):
        return self._functional.value(control) + self._weight * (self._volumes.dot(control) - self._mean) ** 2

    def derivative(self, control, out):
        self._functional.derivative(control, out)
        out.axpy(2.0 * self._weight * (self._volumes.dot(control) - self._mean), self._volumes)

    def hessian_action(self, control, direction, out):
        self._functional.hessian_action(control, direction, out)
        out.axpy(2.0 * self._weight * self._volumes.dot(direction), self._volumes)


def topology_optimisation():
    """Density of a clamped elastic beam of least compliance, its mean held by a penalty (topology_optimization.py)."""
    pyadjoint.set_working_tape(pyadjoint.Tape())
    mesh = dolfinx.mesh.create_box(
        MPI.COMM_WORLD, [np.zeros(3), np.array([2.0, 1.0, 1.0])], (8, 2, 4), dolfinx.mesh.CellType.hexahedron
    )
    right = dolfinx.mesh.locate_entities_boundary(mesh, 2, lambda x: x[0] > 2.0 - 1e-9)
    left = dolfinx.mesh.locate_entities_boundary(mesh, 2, lambda x: x[0] < 1e-9)
    facets = dolfinx.mesh.meshtags(mesh, 2, np.sort(right), np.ones(right.size, dtype=np.int32))
    dx, ds = ufl.dx(mesh, metadata={"quadrature_degree": 4}), ufl.ds(mesh, subdomain_data=facets)
    displacements = dolfinx.fem.functionspace(mesh, ("Lagrange", 1, (3,)))
    densities = dolfinx.fem.functionspace(mesh, ("DG", 0))
    clamped = dolfinx.fem.locate_dofs_topological(displacements, 2, left)
    bcs = [dolfinx.fem.dirichletbc(np.zeros(3), clamped, displacements)]
    traction = dolfinx.fem.Constant(mesh, (0.0, 0.0, -1.0))
    weight, mean, poisson_ratio = 50.0, 0.5, 0.3

    def energy(density, u, v):
        stiffness = 70.0 + (70_000.0 - 70.0) * density**3
        strain_u, strain_v = ufl.sym(ufl.grad(u)), ufl.sym(ufl.grad(v))
        first = stiffness * poisson_ratio / ((1.0 + poisson_ratio) * (1.0 - 2.0 * poisson_ratio))
        second = stiffness / (2.0 * (1.0 + poisson_ratio))
        return (first * ufl.tr(strain_u) * ufl.tr(strain_v) + 2.0 * second * ufl.inner(strain_u, strain_v)) * dx

    def load(v):
        return ufl.inner(traction, v) * ds(1)

    trial, test = ufl.TrialFunction(displacements), ufl.TestFunction(displacements)
    density, displacement = dolfinx_adjoint.Function(densities), dolfinx_adjoint.Function(displacements)
    density.x.array[:] = 0.5
    model = dolfinx_adjoint.LinearProblem(energy(density, trial, test), load(test), u=displacement, bcs=bcs, **SOLVERS)
    model.solve()
    volume = dolfinx_adjoint.assemble_scalar(density * dx) / 2.0
    objective = dolfinx_adjoint.assemble_scalar(load(displacement)) + weight * (volume - mean) ** 2
    taped = TapedFunctional(reduced(objective, [density], model))

    u, rho = dolfinx.fem.Function(displacements), dolfinx.fem.Function(densities)
    rho.x.array[:] = 0.5
    problem = ControlProblem(
        objective=load(u), state_equation=energy(rho, u, test) - load(test), state=u, control=rho, bcs=bcs
    )
    functional = problem.reduced_functional()
    volumes = functional.create_vector()
    volumes.array[:] = forms.assemble_vector(forms.compile_form(ufl.TestFunction(densities) * dx)).array_r / 2.0
    return taped, Penalised(functional, volumes, weight, mean)


DEMOS = {"poisson mother": poisson_mother, "topology": topology_optimisation}


def compare(taped, ours):
    """Return the largest relative differences of value, derivative and Hessian over five random directions."""
    control, one, other = ours.create_vector(), ours.create_vector(), ours.create_vector()
    size = control.getLocalSize()
    assert taped.create_vector().getLocalSize() == size
    control.array[:] = 0.5 + random_stream("control of the demos", 0, ours.comm).uniform(-0.2, 0.2, size)
    directions = []
    for index in range(5):
        direction = ours.create_vector()
        direction.array[:] = random_stream(f"direction {index}", 0, ours.comm).uniform(-1.0, 1.0, size)
        directions.append(direction)
    worst = [abs(taped.value(control) / ours.value(control) - 1.0), 0.0, 0.0]
    taped.derivative(control, one)
    ours.derivative(control, other)
    for direction in directions:
        worst[1] = max(worst[1], abs(one.dot(direction) / other.dot(direction) - 1.0))
    for direction in directions:
        taped.hessian_action(control, direction, one)
        ours.hessian_action(control, direction, other)
        worst[2] = max(worst[2], abs(one.dot(direction) / other.dot(direction) - 1.0))
    return worst


@pytest.mark.parallel([1, 2])
def test_derivatives_agree_on_demos_of_dolfinx_adjoint():
    for name, build in DEMOS.items():
        worst = compare(*build())
        assert max(worst) <= AGREEMENT, (name, worst)


class Wrong:
    """A functional whose derivative is off by a small part of itself in the first entry of each rank."""

    def __init__(self, functional):
        self._functional = functional

    def __getattr__(self, name):
        return getattr(self._functional, name)

    def derivative(self, control, out):
        self._functional.derivative(control, out)
        out.array[0] *= 1.0 + 1e-4


def test_the_comparison_notices_one_wrong_entry():
    taped, ours = poisson_mother()
    worst = compare(taped, Wrong(ours))
    assert worst[1] > AGREEMENT
    assert worst[2] <= AGREEMENT


# --- the adapter ------------------------------------------------------------------------------------------------------


def taped_poisson(cells, alpha, **settings):
    """The data of `PoissonControl` on the tape."""
    pyadjoint.set_working_tape(pyadjoint.Tape())
    mesh = unit_square(cells)
    space = dolfinx.fem.functionspace(mesh, ("Lagrange", 1))
    dx = ufl.dx(mesh, metadata={"quadrature_degree": 6})
    x = ufl.SpatialCoordinate(mesh)
    target = ufl.sin(ufl.pi * x[0]) * ufl.sin(ufl.pi * x[1]) / (2 * ufl.pi**2)
    control, state = dolfinx_adjoint.Function(space), dolfinx_adjoint.Function(space)
    test = ufl.TestFunction(space)
    stiffness = ufl.inner(ufl.grad(ufl.TrialFunction(space)), ufl.grad(test)) * dx
    bcs = [homogeneous(space)]
    model = dolfinx_adjoint.LinearProblem(stiffness, control * test * dx, u=state, bcs=bcs, **SOLVERS)
    model.solve()
    objective = dolfinx_adjoint.assemble_scalar((0.5 * (state - target) ** 2 + 0.5 * alpha * control**2) * dx)
    return reduced(objective, [control], model, **settings), control, state


def taped_nonlinear(scale=1.0):
    """A field, a number and a vector as controls; not linear in the state nor in the number."""
    pyadjoint.set_working_tape(pyadjoint.Tape())
    mesh = unit_square(6)
    space = dolfinx.fem.functionspace(mesh, ("Lagrange", 1))
    x = ufl.SpatialCoordinate(mesh)
    field, state = dolfinx_adjoint.Function(space), dolfinx_adjoint.Function(space)
    number, vector = dolfinx_adjoint.Constant(mesh, 0.3), dolfinx_adjoint.Constant(mesh, (0.2, 0.4))
    test = ufl.TestFunction(space)
    residual = (1.0 + number**2) * ufl.inner(ufl.grad(state), ufl.grad(test)) * ufl.dx + state**3 * test * ufl.dx
    residual -= (ufl.exp(field) + ufl.inner(vector, x)) * test * ufl.dx
    newton = DIRECT | {"snes_rtol": 1e-13, "snes_atol": 1e-14}
    model = dolfinx_adjoint.NonlinearProblem(
        residual, state, bcs=[homogeneous(space)], **(SOLVERS | {"petsc_options": newton})
    )
    model.solve()
    cost = (field**2 + number**2 + ufl.inner(vector, vector)) * ufl.dx
    objective = dolfinx_adjoint.assemble_scalar(0.5 * (state - x[0]) ** 2 * ufl.dx + 5e-4 * cost)
    return reduced(objective, [field, number, vector], model, scale=scale)


@pytest.mark.parallel([1, 2, 3])
def test_optimum_through_the_tape_is_that_of_the_control_problem():
    cases = [((0.1, 0.6), "bqnls"), (None, "bntr")]
    for bounds, method in cases[: 2 if MPI.COMM_WORLD.size == 1 else 1]:  # sweeps are slow on several ranks
        case = PoissonControl(unit_square(8), alpha=1e-4, bounds=bounds)
        case.problem.solve()
        reduced_functional, control, state = taped_poisson(8, 1e-4)
        functional = TapedFunctional(reduced_functional, bounds=bounds)
        report = minimise(functional, method, rtol=1e-9)
        assert report.converged
        assert report.quantities["objective"] == pytest.approx(case.problem.objective_value(), rel=1e-6)
        for mine, theirs in ((case.control, control), (case.problem.state, state)):
            largest = MPI.COMM_WORLD.allreduce(np.abs(mine.x.array).max(), op=MPI.MAX)
            assert np.abs(mine.x.array - theirs.x.array).max() <= 1e-6 * largest, (bounds, method)
        functional.destroy()


@pytest.mark.parallel([1, 2, 3])
def test_several_controls_numbers_and_a_scale():
    """Taylor remainders and symmetry; the same value on every rank count."""
    functional = TapedFunctional(taped_nonlinear(scale=2.0))
    assert functional.create_vector().getSize() == 49 + 1 + 2
    report = taylor_test(functional)
    assert report.passed, str(report)
    assert report.hessian_order <= 3.1
    assert check_symmetry(functional, pairs=1) <= 1e-12
    control, covector = functional.create_vector(), functional.create_vector()
    functional.get_control(control)
    assert functional.value(control) == pytest.approx(2.0 * 0.14855243823, rel=1e-10)  # to the digits of one rank
    control.set(1.0)
    functional.inner_product().mult(control, covector)
    assert covector.dot(control) == pytest.approx(1.0 + 1.0 + 2.0, rel=1e-12)  # squares of ones over a unit square


@pytest.mark.parallel([2])
def test_ghosts_would_be_counted_twice_without_the_cure(monkeypatch):
    """Fails once dolfinx-adjoint clears the ghosts itself: then the cure can go."""
    monkeypatch.setattr(tape, "_ghosts_counted_once", contextlib.nullcontext)
    report = taylor_test(TapedFunctional(taped_nonlinear()), steps=[0.02, 0.01, 0.005])
    assert report.gradient_order >= 1.99
    assert report.hessian_order <= 2.5, str(report)


def test_tape_is_replayed_only_when_the_control_moved():
    reduced_functional, user_control, _ = taped_poisson(4, 1e-4)
    functional = TapedFunctional(reduced_functional)
    control, covector, direction = (functional.create_vector() for _ in range(3))
    control.set(0.5)
    direction.set(1.0)
    value = functional.value(control)
    functional.derivative(control, covector)
    functional.derivative(control, direction)
    functional.hessian_action(control, covector, direction)
    assert (functional.evaluations, functional.derivatives, functional.hessian_actions) == (1, 1, 1)
    reduced_functional(user_control)  # somebody else replays the tape, at zero
    assert functional.value(control) == value
    assert functional.evaluations == 2
    first = covector.copy()
    functional.derivative(control, covector)
    assert covector.equal(first)
    assert not user_control.x.array.any()
    functional.set_control(control)
    assert (user_control.x.array == 0.5).all()


def test_control_on_a_boundary_is_measured_there():
    """The form of the objective tells where; a form of the user's overrides it; without either all cells count."""
    mesh = unit_square(4)
    space = dolfinx.fem.functionspace(mesh, ("Lagrange", 1))
    control, state, test = dolfinx_adjoint.Function(space), dolfinx_adjoint.Function(space), ufl.TestFunction(space)
    operator = (
        ufl.inner(ufl.grad(ufl.TrialFunction(space)), ufl.grad(test)) + ufl.TrialFunction(space) * test
    ) * ufl.dx
    model = dolfinx_adjoint.LinearProblem(operator, control * test * ufl.ds, u=state, **SOLVERS)
    model.solve()
    functional = reduced(dolfinx_adjoint.assemble_scalar((state - 1.0) ** 2 * ufl.dx), [control], model)
    trial = ufl.TrialFunction(space)
    for product, measure in ((None, 4.0 + 9.0), (2.0 * trial * test * ufl.dx, 2.0)):  # nine idle nodes, one each
        taped = TapedFunctional(functional, inner_product=product)
        ones, image = taped.create_vector(), taped.create_vector()
        ones.set(1.0)
        taped.inner_product().mult(ones, image)
        assert image.dot(ones) == pytest.approx(measure, rel=1e-12)
        assert taylor_test(taped).passed
    dirichlet = dolfinx_adjoint.Function(space)
    bc = dolfinx_adjoint.dirichletbc(dirichlet, np.arange(3, dtype=np.int32))
    dolfinx_adjoint.LinearProblem(operator, test * ufl.dx, u=state, bcs=[bc], **SOLVERS).solve()
    taped = TapedFunctional(reduced(dolfinx_adjoint.assemble_scalar(state**2 * ufl.dx), [dirichlet]))
    ones, image = taped.create_vector(), taped.create_vector()
    ones.set(1.0)
    taped.inner_product().mult(ones, image)
    assert image.dot(ones) == pytest.approx(1.0, rel=1e-12)


def test_sweeps_leave_nothing_behind():
    """The number of live functions stays; each holds an MPI communicator, and there are some two thousand."""
    functional = TapedFunctional(taped_nonlinear())
    control, direction, out = (functional.create_vector() for _ in range(3))
    direction.set(1.0)
    counts = []
    for _ in range(3):
        for _ in range(7):
            control.shift(0.01)
            functional.hessian_action(control, direction, out)
        tape._collect_garbage()
        counts.append(sum(isinstance(item, dolfinx.fem.Function) for item in gc.get_objects()))
    assert counts[2] == counts[1], counts


@pytest.mark.parallel([2])
def test_a_callback_that_fails_on_one_rank_fails_on_all():
    last = MPI.COMM_WORLD.size - 1

    def watch(value, controls):
        if MPI.COMM_WORLD.rank == last:
            raise ValueError("the user's own mistake")

    functional = TapedFunctional(taped_poisson(4, 1e-4, eval_cb_post=watch)[0])
    control = functional.create_vector()
    with pytest.raises(ValueError, match="the user's own mistake"):
        functional.value(control)


def test_mistakes_are_named(monkeypatch):
    functional, control, _ = taped_poisson(4, 1e-4)
    for given, message in (
        (3.0, "reduced_functional is a float"),
        (
            pyadjoint.reduced_functional_numpy.ReducedFunctionalNumPy(functional),
            "reduced_functional is a ReducedFunctionalNumPy",
        ),
        (reduced(functional.functional, [pyadjoint.AdjFloat(1.0)]), "control 0 is a AdjFloat"),
        (reduced(control, [control]), "taped functional is a Function"),
        (reduced(functional.functional, [control], derivative_components=(0, 1)), "derivative_components"),
    ):
        with pytest.raises(ProblemError, match=message):
            TapedFunctional(given)
    for bounds, message in (
        (3.0, "bounds must be a pair"),
        ((np.zeros(2), None), r"lower bound of control 0 has shape \(2,\)"),
        ([(0.0, 1.0), (0.0, 1.0)], "for each of the 1 controls"),
        ((1.0, 0.0), "exceeds the upper one"),
    ):
        with pytest.raises(ProblemError, match=message):
            TapedFunctional(functional, bounds=bounds)
    with pytest.raises(ProblemError, match="2 entries for 1 controls"):
        TapedFunctional(functional, inner_product=[None, None])
    with pytest.raises(ProblemError, match="inner_product 0 has 0 arguments"):
        TapedFunctional(functional, inner_product=control * ufl.dx)
    monkeypatch.setitem(sys.modules, "dolfinx_adjoint", None)
    with pytest.raises(MissingPackageError, match=r"need dolfinx_adjoint: run .*pdeopt\[adjoint\]"):
        TapedFunctional(functional)
    monkeypatch.setitem(sys.modules, "pyadjoint", None)
    with pytest.raises(MissingPackageError, match=r"need pyadjoint: run .*requirements-nodeps"):
        TapedFunctional(functional)
