from mpi4py import MPI

import dolfinx
import numpy as np
import pytest
from program_cases import general, quadratic

from pdeopt.optimise.active_set import ActiveSet, solve_bounded
from pdeopt.optimise.control_program import ControlProgram
from pdeopt.optimise.from_numpy import numpy_program
from pdeopt.optimise.interior import InteriorPoint
from pdeopt.optimise.regularisation import Failure
from pdeopt.optimise.settings import Tolerances
from pdeopt.problems import BoundedPoissonControl


@pytest.mark.parallel([1, 2, 3])
def test_bounded_control_takes_few_steps_on_every_mesh():
    """Both methods, the same value; the active set method ends at rounding, the other does not grow with the mesh."""
    steps, values = {"active": [], "interior": []}, []
    for number in (8, 16, 32) if MPI.COMM_WORLD.size == 1 else (8, 16):
        mesh = dolfinx.mesh.create_unit_square(MPI.COMM_WORLD, number, number)
        pair = []
        for name, kind in (("active", ActiveSet), ("interior", InteriorPoint)):
            program = ControlProgram(BoundedPoissonControl(mesh).problem, "direct")
            tolerance = 1e-8 * program.reference_norm()
            method = kind(program)
            steps[name].append(method.solve(Tolerances(tolerance, tolerance)))
            pair.append(method.objective)
            if name == "active":
                assert method.norm <= 1e-12
                assert bool(method.bounds.sum(float((method.active > 0).sum())))
            method.destroy()
            program.destroy()
        assert pair[0] == pytest.approx(pair[1], rel=1e-7)
        values.append(pair[0])
    assert max(steps["active"]) <= 6
    assert max(steps["interior"]) <= 10
    assert steps["interior"][-1] <= steps["interior"][-2] + 1


def test_quadratic_programs_end_after_few_steps():
    rng = np.random.default_rng(3)
    size = 60
    matrix = np.diag(np.full(size, 2.5)) - np.eye(size, k=1) - np.eye(size, k=-1)
    program = quadratic(matrix, rng.standard_normal(size), lower=-0.1, upper=0.3)
    active, interior = ActiveSet(numpy_program(program)), InteriorPoint(numpy_program(program))
    assert active.solve() <= 6
    interior.solve()
    assert active.point.primal.array_r == pytest.approx(np.array(interior.point.primal.array_r), abs=1e-6)
    z = active.bound_multipliers
    assert matrix @ active.point.primal.array_r + program.gradient(np.zeros(size)) + z.upper - z.lower == pytest.approx(
        np.zeros(size), abs=1e-10
    )


def test_a_circle_of_active_sets_is_reported_and_the_interior_point_method_takes_over():
    """The example of Curtis, Han and Robinson, Comput. Optim. Appl. 60 (2015) 311-341, with minimum at x = 0."""
    matrix = [[4.0, 5.0, -5.0], [5.0, 9.0, -5.0], [-5.0, -5.0, 7.0]]
    program = quadratic(matrix, [2.0, 1.0, -3.0], upper=0.0)
    with pytest.raises(Failure, match="interior point"):
        ActiveSet(numpy_program(program)).solve()
    method = solve_bounded(numpy_program(program))
    assert isinstance(method, InteriorPoint)
    x = np.array(method.point.primal.array_r)
    assert np.abs(np.maximum(program.gradient(x), x)).max() <= 1e-6


def test_negative_curvature_is_reported():
    program = quadratic(-np.eye(2), [0.1, 0.2], lower=-1.0, upper=1.0)
    with pytest.raises(Failure, match="not positive definite"):
        ActiveSet(numpy_program(program)).solve()


def test_not_a_number_is_reported():
    program = general(1, lambda x: np.log(x[0]), lambda x: 1.0 / x, lambda x: [[1.0 / x[0]]], start=[-1.0], upper=0.0)
    with pytest.raises(Failure, match="NaN") as caught:
        ActiveSet(numpy_program(program)).solve()
    assert caught.value.reason == -4
