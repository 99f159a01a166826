"""A reduced mesh of all cells gives the Galerkin system itself; few cells give nearly the same answers."""

from mpi4py import MPI

import dolfinx
import numpy as np
import pytest
from cubature_cases import CASES, elasticity, heat, set_state, square
from dolfinx import fem

from pdeopt.fem import forms
from pdeopt.problems import MovingSource
from pdeopt.reduced_order import (
    Basis,
    Cubature,
    HyperReducedSystem,
    InnerProduct,
    ReducedMesh,
    all_cells,
    empirical_cubature,
)
from pdeopt.report import InputError


def galerkin(case):
    """Phi' F by full assembly."""
    vector = forms.assemble_vector(forms.compile_form(forms.fix_quadrature_degree(case.residual)))
    reduced = MPI.COMM_WORLD.allreduce(case.basis.modes.T @ vector.array_r)
    vector.destroy()
    return reduced


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("name", CASES)
def test_all_cells_give_the_galerkin_system_and_its_derivative(name):
    case = CASES[name]()
    system = HyperReducedSystem(case.residual, case.u, case.basis, all_cells(case.u.function_space.mesh))
    a, direction = np.array([0.3, 0.5, -0.2, 0.4]), np.array([1.0, -0.5, 0.7, 0.2])
    residual, jacobian = system.evaluate(a)
    set_state(case, a)
    wanted = galerkin(case)
    assert np.linalg.norm(residual - wanted) <= 1e-12 * np.linalg.norm(wanted)
    rests = []
    for step in (1e-2, 5e-3):
        further, nothing = system.evaluate(a + step * direction, jacobian=False)
        assert nothing is None
        rests.append(np.linalg.norm(further - residual - step * jacobian @ direction))
    assert np.log2(rests[0] / rests[1]) > 1.9


def newton(system, size):
    a = np.zeros(size)
    for _ in range(20):
        residual, jacobian = system.evaluate(a)
        step = np.linalg.solve(jacobian, residual)
        a = a - step
        if np.linalg.norm(step) <= 1e-12 * np.linalg.norm(a):
            return a
    raise AssertionError("Newton's method did not converge")


@pytest.mark.parallel([1, 2])
def test_few_cells_solve_the_heat_problem_at_training_and_other_parameters():
    case = MovingSource(square(12))
    inner = InnerProduct(case.space, bcs=case.bcs)
    solver, parameters = case.solver(), case.parameters(16, "test.cubature")
    snapshots = np.empty((inner.owned, len(parameters)))
    for column, parameter in enumerate(parameters):
        case.set_parameter(parameter)
        solver.solve()
        snapshots[:, column] = forms.owned_values(case.u)
    values, vectors = np.linalg.eigh(inner.gram(snapshots[:, :12]))
    basis = Basis(inner, snapshots[:, :12] @ vectors[:, -6:] / np.sqrt(values[-6:]))

    def states():
        for column, parameter in enumerate(parameters[:12]):
            case.set_parameter(parameter)
            forms.set_function(case.u, snapshots[:, column])
            yield

    cubature = empirical_cubature(case.residual, case.u, basis, states(), 1e-3)
    assert cubature.size < 60
    system = HyperReducedSystem(case.residual, case.u, basis, cubature, bcs=case.bcs)
    errors, coordinates = [], []
    for parameter, snapshot in zip(parameters, snapshots.T, strict=True):
        case.set_parameter(parameter)
        system.update()
        coordinates.append(newton(system, basis.size))
        error = inner.norms((basis.expand(coordinates[-1]) - snapshot)[:, None])[0]
        errors.append(error / inner.norms(snapshot[:, None])[0])
    projection = basis.projection_errors(snapshots)
    assert np.mean(errors[:12]) <= 1.1 * np.mean(projection[:12])
    assert np.mean(errors[12:]) <= 1.5 * np.mean(projection[12:])
    first = MPI.COMM_WORLD.bcast(coordinates)
    assert np.array_equal(first, coordinates)


@pytest.mark.parallel([1, 2, 3])
def test_ranks_without_a_cell_take_part():
    case = heat(square(4))
    cubature = Cubature(np.array([3, 17]), np.array([20.0, 12.0]), 0.0)
    system = HyperReducedSystem(case.residual, case.u, case.basis, cubature)
    a = np.array([0.3, 0.5, -0.2, 0.4])
    residual, jacobian = system.evaluate(a)
    alone = heat(square(4, MPI.COMM_SELF))
    # The same modes up to rounding: they are fields of the coordinates, orthonormalised from the first to the last.
    wanted, wanted_jacobian = HyperReducedSystem(alone.residual, alone.u, alone.basis, cubature).evaluate(a)
    assert np.linalg.norm(residual - wanted) <= 1e-10 * np.linalg.norm(wanted)
    assert np.linalg.norm(jacobian - wanted_jacobian) <= 1e-10 * np.linalg.norm(wanted_jacobian)


@pytest.mark.parallel([1, 2, 3])
def test_the_lifting_is_added_and_followed():
    case = elasticity(square(3))
    lifting = fem.Function(case.u.function_space)
    lifting.interpolate(lambda x: np.array([0.1 * x[0], 0.2 * x[1] ** 2]))
    mesh = case.u.function_space.mesh
    system = HyperReducedSystem(case.residual, case.u, case.basis, all_cells(mesh), lifting=lifting)
    lifting.x.array[:] *= 2.0
    system.update()
    a = np.array([0.3, 0.5, -0.2, 0.4])
    residual, _ = system.evaluate(a)
    set_state(case, a)
    case.u.x.array[:] += lifting.x.array
    wanted = galerkin(case)
    assert np.linalg.norm(residual - wanted) <= 1e-12 * np.linalg.norm(wanted)


@pytest.mark.parallel([2])
def test_an_error_of_one_ranks_local_equations_is_raised_on_all():
    class Fails:
        def update(self):
            if MPI.COMM_WORLD.rank == 1:
                raise ArithmeticError("no solution at a point")

    case = heat(square(4))
    cubature = all_cells(case.u.function_space.mesh)
    system = HyperReducedSystem(case.residual, case.u, case.basis, cubature, internal=Fails())
    with pytest.raises(ArithmeticError, match="no solution"):
        system.evaluate(np.zeros(4))


@pytest.mark.parallel([1, 2])
def test_what_does_not_fit_is_refused():
    case = MovingSource(square(4))
    free = InnerProduct(case.space)
    modes = Basis(free, np.ones((free.owned, 1)))
    cubature = all_cells(case.space.mesh)
    with pytest.raises(InputError, match="Dirichlet"):
        HyperReducedSystem(case.residual, case.u, modes, cubature, bcs=case.bcs)
    other = fem.Function(fem.functionspace(case.space.mesh, ("Lagrange", 2)))
    with pytest.raises(InputError, match="lifting"):
        HyperReducedSystem(case.residual, case.u, modes, cubature, lifting=other)
    with pytest.raises(InputError, match="no training state"):
        empirical_cubature(case.residual, case.u, modes, iter([]), 1e-3)
    part = dolfinx.mesh.create_submesh(case.space.mesh, 2, np.arange(3, dtype=np.int32))[0]
    with pytest.raises(InputError, match="submesh"):
        all_cells(part)
    with pytest.raises(InputError, match="chosen on another"):
        ReducedMesh(case.space.mesh, Cubature(np.array([3, 4000]), np.ones(2), 0.0))


@pytest.mark.parallel([1, 2])
def test_rounding_errors_on_a_dirichlet_boundary_are_judged_by_the_whole_mode():
    case = MovingSource(square(4))
    inner = InnerProduct(case.space)
    modes = np.full((inner.owned, 1), 1e-12)
    if MPI.COMM_WORLD.rank == 0:
        modes[:] = 1.0
        modes[forms.owned_dirichlet_dofs(case.bcs)] = 1e-12
    Basis(inner, modes).check_dirichlet(case.bcs)
    if MPI.COMM_WORLD.rank == MPI.COMM_WORLD.size - 1:
        modes[:] = 1e-3
    with pytest.raises(InputError, match="Dirichlet"):
        Basis(inner, modes).check_dirichlet(case.bcs)
