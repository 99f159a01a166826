from mpi4py import MPI

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st
from program_cases import general, quadratic

from pdeopt.optimise.from_numpy import numpy_program
from pdeopt.optimise.interior import InteriorPoint
from pdeopt.optimise.interior_state import InteriorPointSettings
from pdeopt.optimise.matrices import MatrixProgram, vector
from pdeopt.optimise.program import Pair
from pdeopt.optimise.regularisation import Failure


def whole(values):
    return np.concatenate(values.comm.tompi4py().allgather(np.array(values.array_r)))


def random_quadratic(seed, size=8, count=3):
    """A convex problem with a feasible point between bounds, some of them equal or missing."""
    rng = np.random.default_rng(seed)
    root, rows = rng.standard_normal((size - 2, size)), rng.standard_normal((count, size))
    inside = rng.uniform(-1.0, 1.0, size)
    lower = np.where(rng.random(size) < 0.2, -np.inf, inside - rng.uniform(0.1, 1.0, size))
    upper = np.where(rng.random(size) < 0.2, np.inf, inside + rng.uniform(0.1, 1.0, size))
    lower[0] = upper[0] = inside[0]
    matrix = root.T @ root + 0.1 * np.eye(size)
    return matrix, 3.0 * rng.standard_normal(size), rows, rows @ inside, lower, upper


@pytest.mark.parametrize("adaptive", [True, False])
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_convex_quadratic_programs_agree_with_scipy(adaptive, seed):
    matrix, linear, rows, values, lower, upper = random_quadratic(seed)
    program = quadratic(matrix, linear, rows, values, lower=lower, upper=upper)
    method = InteriorPoint(numpy_program(program), InteriorPointSettings(adaptive=adaptive))
    assert method.solve() <= 30
    rival = scipy.optimize.minimize(
        program.objective,
        np.clip(np.zeros(linear.size), lower, upper),
        jac=program.gradient,
        bounds=scipy.optimize.Bounds(lower, upper),
        constraints={"type": "eq", "fun": program.constraints, "jac": lambda x: rows},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    x = method.point.primal.array_r
    assert np.all((x >= lower) & (x <= upper))
    assert method.objective == pytest.approx(rival.fun, rel=1e-6, abs=1e-6)
    # Stationarity by hand, from what the caller gets.
    z = method.bound_multipliers
    gradient = matrix @ x + linear + rows.T @ method.point.dual.array_r + z.upper - z.lower
    assert np.abs(gradient[lower < upper]).max() <= 1e-8


def hs71(x_start=(1.0, 5.0, 5.0, 1.0)):
    """Problem 71 of Hock and Schittkowski, with a slack: minimum 17.0140173 at (1, 4.743, 3.821, 1.379)."""

    def objective(x):
        return x[0] * x[3] * (x[0] + x[1] + x[2]) + x[2]

    def gradient(x):
        total = x[0] + x[1] + x[2]
        return np.array([x[3] * (total + x[0]), x[0] * x[3], x[0] * x[3] + 1.0, x[0] * total, 0.0])

    def hessian(x):
        a = 2 * x[0] + x[1] + x[2]
        return [
            [2 * x[3], x[3], x[3], a, 0],
            [x[3], 0, 0, x[0], 0],
            [x[3], 0, 0, x[0], 0],
            [a, x[0], x[0], 0, 0],
            [0, 0, 0, 0, 0],
        ]

    def constraints(x):
        return np.array([np.prod(x[:4]) - x[4] - 25.0, x[:4] @ x[:4] - 40.0])

    def jacobian(x):
        product = [x[1] * x[2] * x[3], x[0] * x[2] * x[3], x[0] * x[1] * x[3], x[0] * x[1] * x[2], -1.0]
        return np.array([product, [*(2.0 * x[:4]), 0.0]])

    def curvature(x, p):
        matrix = np.zeros((5, 5))
        for i in range(4):
            for j in range(4):
                others = [k for k in range(4) if k not in (i, j)]
                matrix[i, j] = 2.0 * p[1] if i == j else p[0] * x[others[0]] * x[others[1]]
        return matrix

    lower, upper = np.array([1.0, 1, 1, 1, 0]), np.array([5.0, 5, 5, 5, np.inf])
    start = [*x_start, 0.0]
    return general(
        5, objective, gradient, hessian, (constraints, jacobian, curvature), start=start, lower=lower, upper=upper
    )


@pytest.mark.parallel([1, 2, 3])
def test_nonconvex_problem_reaches_its_published_minimum_on_any_number_of_ranks():
    comm = MPI.COMM_WORLD
    method = InteriorPoint(numpy_program(hs71(), comm))
    steps = method.solve()
    assert method.objective == pytest.approx(17.0140173, abs=1e-6)
    assert whole(method.point.primal)[:4] == pytest.approx([1.0, 4.7429994, 3.8211503, 1.3794082], abs=1e-6)
    serial = InteriorPoint(numpy_program(hs71(), MPI.COMM_SELF))
    assert serial.solve() == steps
    assert serial.objective == pytest.approx(method.objective, rel=1e-10)
    method.destroy()
    serial.destroy()


@pytest.mark.parametrize("barrier", [1e-3, 1e-6])
def test_second_solve_starts_warm(barrier):
    matrix, linear, rows, values, lower, upper = random_quadratic(7)
    first = InteriorPoint(numpy_program(quadratic(matrix, linear, rows, values, lower=lower, upper=upper)))
    cold = first.solve()
    shifted = quadratic(
        matrix, linear + 1e-6, rows, values, lower=lower, upper=upper, start=np.array(first.point.primal.array_r)
    )
    second = InteriorPoint(
        numpy_program(shifted), InteriorPointSettings(barrier=barrier), multipliers=first.bound_multipliers
    )
    assert second.solve() <= cold
    assert second.norms.largest <= 1e-8


def test_weights_make_the_barrier_independent_of_the_number_of_unknowns():
    """Minimise int (u - sin)^2 / 2, |u| <= 0.5, by midpoints: the steps must not depend on how many there are."""
    steps = []
    for size in (500, 5000, 50000):
        weights, target = np.full(size, 1.0 / size), np.sin(2.0 * np.pi * (np.arange(size) + 0.5) / size)
        program = _Midpoints(target, weights)
        method = InteriorPoint(program)
        steps.append(method.solve())
        assert np.abs(method.point.primal.array_r - np.clip(target, -0.5, 0.5)).max() <= 1e-3
        method.destroy()
    assert max(steps) - min(steps) <= 1


class _Midpoints(MatrixProgram):
    quadratic = True

    def __init__(self, target, weights):
        from petsc4py import PETSc

        comm, size = MPI.COMM_SELF, target.size
        diagonal = vector(comm, weights)
        hessian = PETSc.Mat().createAIJ((size, size), nnz=1, comm=comm)
        hessian.setDiagonal(diagonal)
        hessian.assemble()

        class Functions:
            def objective(self, x):
                return 0.5 * float(weights @ (x.array_r - target) ** 2)

            def gradient(self, x, out):
                out.array[:] = weights * (x.array_r - target)

            def hessian(self, x, multipliers):
                return hessian

        start = Pair(vector(comm, np.zeros(size)), vector(comm, []))
        bounds = vector(comm, np.full(size, -0.5)), vector(comm, np.full(size, 0.5))
        super().__init__(Functions(), start, bounds, diagonal)


def test_infeasible_constraints_are_reported():
    program = quadratic(np.eye(2), [0.0, 0.0], [[1.0, 1.0]], [5.0], lower=0.0, upper=1.0)
    with pytest.raises(Failure, match="infeasible") as caught:
        InteriorPoint(numpy_program(program)).solve()
    assert caught.value.reason == -8


def test_unbounded_objective_is_reported():
    program = quadratic(np.zeros((2, 2)), [-1.0, 0.0], lower=[0.0, 0.0], upper=[np.inf, 1.0])
    with pytest.raises(Failure, match="no minimum") as caught:
        InteriorPoint(numpy_program(program)).solve()
    assert caught.value.reason == -8


def test_not_a_number_at_the_start_is_reported():
    program = general(
        1, lambda x: np.sqrt(x[0] - 10.0), lambda x: 0.5 / np.sqrt(x - 10.0), lambda x: [[1.0]], start=[1.0], lower=0.0
    )
    with pytest.raises(Failure, match="NaN") as caught:
        InteriorPoint(numpy_program(program)).solve()
    assert caught.value.reason == -4


def test_not_a_number_on_the_way_shortens_the_step():
    """Minimise x - log(x - 1), x >= 0, from the right: the logarithm ends before the bound."""
    program = general(
        1,
        lambda x: x[0] - np.log(x[0] - 1.0),
        lambda x: 1.0 - 1.0 / (x - 1.0),
        lambda x: [[1.0 / (x[0] - 1.0) ** 2]],
        start=[30.0],
        lower=0.0,
    )
    method = InteriorPoint(numpy_program(program))
    method.solve()
    assert method.point.primal.array_r[0] == pytest.approx(2.0, abs=1e-7)


def test_dependent_constraints_are_no_obstacle():
    rows = [[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]]
    program = quadratic(np.eye(3), [1.0, 0.0, -1.0], rows, [1.0, 2.0], lower=0.0)
    method = InteriorPoint(numpy_program(program))
    method.solve()
    # Minimum of |x|^2 / 2 + x_0 - x_2 on the simplex.
    assert method.point.primal.array_r == pytest.approx([0.0, 0.0, 1.0], abs=1e-4)


def test_a_local_maximum_along_the_constraints_is_left():
    """Minimise -x y on x + y = 1 within the unit box: x = y = 1/2 is a minimum; of x y, it is a maximum."""
    for sign, value in ((-1.0, -0.25), (1.0, 0.0)):
        program = quadratic(
            sign * np.array([[0.0, 1.0], [1.0, 0.0]]), [0.0, 0.0], [[1.0, 1.0]], [1.0], start=[0.5, 0.45], lower=0.0
        )
        method = InteriorPoint(numpy_program(program))
        method.solve()
        assert method.objective == pytest.approx(value, abs=1e-7)
