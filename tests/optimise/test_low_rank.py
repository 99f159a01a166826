"""Randomised eigenpairs, the preconditioners made of them, and the exact form for few sensors."""

from mpi4py import MPI
from petsc4py import PETSc

import dolfinx
import numpy as np
import pytest
import scipy.linalg
import ufl

from pdeopt.control import ControlProblem
from pdeopt.control.preconditioners import LinearContext
from pdeopt.control.solvers import KKTSolver, ReducedHessianPC, is_symmetric, state_mass_matrix
from pdeopt.control.structure import recognise
from pdeopt.optimise.low_rank import (
    Eigenpairs,
    LowRankPreconditioner,
    Metric,
    leading,
    prior_matrix,
    random_block,
    randomised_eigenpairs,
    rayleigh_ritz,
)
from pdeopt.optimise.sensors import sensitivity_rows, sensor_eigenpairs
from pdeopt.problems import CoefficientInversion
from pdeopt.report import ConvergenceError, InputError


class Setting:
    """The Gauss-Newton Hessian of a small inversion at its first control, with everything around it."""

    def __init__(self, sensors, cells=8, gauss_newton=True):
        mesh = dolfinx.mesh.create_unit_square(MPI.COMM_WORLD, cells, cells)
        self.case = CoefficientInversion(mesh, sensors, gamma=1e-9, epsilon=10.0, degree=1)
        self.functional = self.case.problem.reduced_functional(gauss_newton=gauss_newton)
        self.control = self.functional.create_vector()
        self.functional.get_control(self.control)
        self.matrix = prior_matrix(self.case.problem.system)
        self.metric = Metric(self.matrix)

    def action(self, direction, out):
        self.functional.hessian_action(self.control, direction, out)

    def sample(self, columns, seed=0):
        return random_block(self.case.problem.system, columns, seed)

    def vector(self, values):
        vector = self.functional.create_vector()
        vector.array[:] = values
        return vector

    def dense(self, action):
        """The matrix of an action, from its columns, on all ranks."""
        first, last = self.control.getOwnershipRange()
        columns, out = [], self.functional.create_vector()
        for j in range(self.control.getSize()):
            unit = self.vector(np.arange(first, last) == j)
            action(unit, out)
            columns.append(np.concatenate(MPI.COMM_WORLD.allgather(out.array_r.copy())))
            unit.destroy()
        return np.column_stack(columns)


@pytest.mark.parallel([1, 2, 3])
def test_eigenpairs_are_those_of_the_dense_pencil():
    """Six sensors make six positive eigenvalues, which ten random vectors find whole."""
    setting = Setting(6)
    dense, prior = setting.dense(setting.action), setting.dense(setting.matrix.mult)
    exact = scipy.linalg.eigh(dense - prior, prior, eigvals_only=True)[::-1]
    sample = setting.sample(10)
    pairs = randomised_eigenpairs(setting.action, setting.metric, sample, 6)
    assert pairs.values == pytest.approx(exact[:6], rel=1e-7)
    gram = setting.metric.product(pairs.vectors, setting.metric.mult(pairs.vectors))
    assert np.abs(gram - np.eye(6)).max() <= 1e-9
    # The sample, and with it what fewer vectors find, does not know how many ranks there are.
    moments = MPI.COMM_WORLD.allreduce(np.array([sample.sum(), (sample**2).sum(), (sample**3).sum()]))
    assert moments == pytest.approx(MOMENTS, rel=1e-10)
    rough = randomised_eigenpairs(setting.action, setting.metric, setting.sample(3), 2)
    assert rough.values == pytest.approx(ROUGH, rel=1e-7)
    spent = setting.functional.solves - 2 - 2 * setting.control.getSize()
    assert 2 * (10 + 6 + 3 + 3) <= spent <= 4 * (10 + 3)  # what the sample finds twice is left out


@pytest.mark.parallel([1, 2])
def test_the_sensorwise_form_is_the_gauss_newton_hessian():
    setting = Setting(6)
    before = setting.functional.hessian(setting.control).solves
    rows, weights = setting.case.observations()
    hessian = setting.functional.hessian(setting.control)
    jacobian = sensitivity_rows(hessian, rows)
    assert hessian.solves - before == 6
    direction, out = setting.vector(setting.sample(1)[:, 0]), setting.functional.create_vector()
    setting.action(direction, out)
    values = direction.array_r.copy()[:, None]
    expected = setting.metric.mult(values) + jacobian @ (weights[:, None] * setting.metric.product(jacobian, values))
    difference = np.abs(out.array_r - expected[:, 0]).max(initial=0.0)
    assert MPI.COMM_WORLD.allreduce(difference, op=MPI.MAX) <= 1e-10 * out.norm(PETSc.NormType.INFINITY)
    # Its eigenpairs give the inverse.
    inverse = LowRankPreconditioner(setting.metric, sensor_eigenpairs(hessian, setting.metric, rows, weights))
    back = setting.functional.create_vector()
    inverse.apply(None, out, back)
    back.axpy(-1.0, direction)
    assert back.norm() <= 1e-8 * direction.norm()
    with pytest.raises(InputError, match="weight"):
        sensor_eigenpairs(hessian, setting.metric, rows, -weights)


def krylov_iterations(setting, preconditioner, rtol=1e-8):
    """Iterations of CG for the Hessian, the error measured in the norm of the preconditioned residual."""
    hessian = setting.functional.hessian(setting.control)
    ksp = PETSc.KSP().create(MPI.COMM_WORLD)
    ksp.setType("cg")
    ksp.setNormType(PETSc.KSP.NormType.NATURAL)
    ksp.setOperators(hessian.matrix)
    ksp.getPC().setType("python")
    ksp.getPC().setPythonContext(preconditioner)
    ksp.setTolerances(rtol=rtol, max_it=500)
    right, solution = (
        setting.vector(setting.matrix * setting.vector(setting.sample(1, seed=5)[:, 0])),
        setting.vector(0.0),
    )
    ksp.solve(right, solution)
    assert ksp.getConvergedReason() > 0
    return ksp.getIterationNumber()


@pytest.mark.parallel([1, 2])
def test_iterations_fall_as_the_eigenvalues_say():
    """CG needs at most sqrt(k) log(2 sqrt(k) / tol) / 2 iterations, k = 1 + the largest eigenvalue that is left."""
    setting = Setting(None, cells=12)
    pairs = randomised_eigenpairs(setting.action, setting.metric, setting.sample(50), 40)
    counts = []
    for rank in (0, 10, 30):
        chosen = leading(pairs, rank)
        counts.append(krylov_iterations(setting, LowRankPreconditioner(setting.metric, chosen)))
        root = np.sqrt(1.0 + 1.5 * pairs.values[rank])  # the randomised values are a little low
        bound = 0.5 * root * np.log(2.0 * root / 1e-8)
        assert counts[-1] <= bound, (rank, counts, bound)
    assert counts[0] >= 2 * counts[1] >= 4 * counts[2], counts


@pytest.mark.parallel([1, 2])
def test_preconditioner_is_symmetric_and_definite_even_where_the_hessian_is_not():
    setting = Setting(None)
    basis = setting.metric.orthonormal(setting.sample(4))[1]
    pairs = Eigenpairs(np.array([50.0, -0.5, -0.99, -3.0]), basis)
    preconditioner = LowRankPreconditioner(setting.metric, pairs)
    products = setting.metric.each(lambda x, y: preconditioner.apply(None, x, y), setting.sample(3, seed=1))
    table = setting.metric.product(setting.sample(3, seed=1), products)
    assert np.abs(table - table.T).max() <= 1e-11 * np.abs(table).max()
    assert np.linalg.eigvalsh(table).min() > 0.0
    # On an eigenvector R v it divides by 1 + l.
    image = setting.metric.each(lambda x, y: preconditioner.apply(None, x, y), setting.metric.mult(basis[:, :2]))
    difference = image - basis[:, :2] / np.array([51.0, 0.5])
    assert np.trace(setting.metric.product(difference, setting.metric.mult(difference))) <= 1e-18


def test_rotation_follows_the_hessian():
    """Within their span the old eigenvectors become the Ritz vectors of the Hessian at another control."""
    setting = Setting(None)
    old = randomised_eigenpairs(setting.action, setting.metric, setting.sample(16), 8)
    setting.control.array[:] += 0.3 * np.cos(np.arange(setting.control.getLocalSize()))
    preconditioner = LowRankPreconditioner(setting.metric, old)
    preconditioner.rotate(setting.action)
    image = setting.metric.each(setting.action, preconditioner.pairs.vectors)
    ritz = setting.metric.product(preconditioner.pairs.vectors, image)
    assert np.diag(ritz) - 1.0 == pytest.approx(preconditioner.pairs.values, rel=1e-8)
    assert np.abs(ritz - np.diag(np.diag(ritz))).max() <= 1e-8 * ritz.max()


def test_enrichment_by_directions_is_one_projection_on_both_spans():
    """With exact eigenvectors at hand, the directions and images of CG give all that a new projection would."""
    setting = Setting(6)
    rows, weights = setting.case.observations()
    pairs = sensor_eigenpairs(setting.functional.hessian(setting.control), setting.metric, rows, weights)
    preconditioner = LowRankPreconditioner(setting.metric, leading(pairs, 3))
    directions = setting.metric.solve(setting.metric.each(setting.action, setting.sample(5, seed=3)))
    images = setting.metric.each(setting.action, directions)
    old = preconditioner.pairs.vectors
    spent = setting.functional.solves
    preconditioner.enrich(list(directions.T), list(images.T), 8)
    assert setting.functional.solves == spent
    both = np.column_stack([old, directions])
    expected = rayleigh_ritz(setting.metric, both, setting.metric.each(setting.action, both)).values
    assert np.sort(preconditioner.pairs.values) == pytest.approx(np.sort(expected), rel=1e-6, abs=1e-8 * expected.max())


def indefinite_problem():
    """A reduced Hessian with a hundred negative directions among a few thousand controls."""
    mesh = dolfinx.mesh.create_unit_square(MPI.COMM_WORLD, 16, 16)
    space = dolfinx.fem.functionspace(mesh, ("Lagrange", 1))
    y, u, v = dolfinx.fem.Function(space), dolfinx.fem.Function(space), ufl.TestFunction(space)
    x = ufl.SpatialCoordinate(mesh)
    return ControlProblem(
        objective=(0.5 * u**2 - 5e3 * y**2 - ufl.sin(7 * x[0]) * u) * ufl.dx,
        state_equation=(ufl.inner(ufl.grad(y), ufl.grad(v)) + y * v - u * v) * ufl.dx,
        state=y,
        control=u,
    )


@pytest.mark.parallel([1, 2])
def test_negative_curvature_is_reported_with_a_direction():
    problem = indefinite_problem()
    with pytest.raises(ConvergenceError, match="indefinite"):
        problem.solve(method="reduced_hessian")
    system = problem.system
    blocks, mass = system.assemble_blocks(), state_mass_matrix(system)
    active = [np.zeros(control.size, dtype=bool) for control in system.controls]
    symmetric = is_symmetric(blocks.state_operator)
    context = LinearContext(system, blocks, recognise(system, blocks, mass), active, mass, symmetric)
    system.calibrate_norm(blocks, mass)
    solver = KKTSolver("reduced_hessian", context)
    right, step = system.layout.create_vector(), system.layout.create_vector()
    system.residual(right)
    right.scale(-1.0)
    solver.solve(right, step, 1e-8, report_negative_curvature=True)
    assert solver.negative_curvature
    assert solver.solves >= 4
    control = step.duplicate()
    system.layout.write(control, 1, system.layout.read(step, 1))
    assert control.norm() > 0.0
    assert right.dot(control) > 0.0  # a direction of descent
    solver.destroy()


def test_a_preconditioner_of_ones_own_serves_the_kkt_solve():
    """With the exact inverse the reduced CG needs one or two iterations, and the same solution comes out."""
    setting = Setting(6)
    functional, system = setting.functional, setting.case.problem.system
    rows, weights = setting.case.observations()
    pairs = sensor_eigenpairs(functional.hessian(setting.control), setting.metric, rows, weights)
    system.lagrangian.adjoint.x.array[:] = 0.0  # so that the blocks are those of Gauss and Newton
    blocks, mass = system.assemble_blocks(), state_mass_matrix(system)
    active = [np.zeros(control.size, dtype=bool) for control in system.controls]
    context = LinearContext(system, blocks, recognise(system, blocks, mass), active, mass, True)
    right, steps, counts = system.layout.create_vector(), [], []
    system.residual(right)
    for preconditioner in (None, LowRankPreconditioner(setting.metric, pairs)):
        inner = ReducedHessianPC(context, control_preconditioner=preconditioner)
        inner.rtol = 1e-10
        steps.append(system.layout.create_vector())
        inner.apply(None, right, steps[-1])
        counts.append(inner.iterations)
        assert not inner.negative_curvature
        inner.release()
    assert counts[1] <= 2 < counts[0]
    steps[0].axpy(-1.0, steps[1])
    assert steps[0].norm() <= 1e-6 * steps[1].norm()


# Printed by one rank.
MOMENTS = [2.8243679008707527, 805.1789273206906, 38.01788737432728]
ROUGH = [53312.742769209064, 4617.26835669312]
