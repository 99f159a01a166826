"""Small nonlinear programs with equality constraints for the tests of AdaSketch-Newton."""

import numpy as np
import scipy.sparse

from pdeopt.optimise.from_numpy import numpy_program
from pdeopt.optimise.matrix_kkt import DirectionSettings
from pdeopt.optimise.newton import AdaSketch
from pdeopt.optimise.settings import Tolerances
from pdeopt.problems.nonlinear_program import NonlinearProgram


def equality_program(objective, constraints, start, multipliers=None):
    """Build min f(x), c(x) = 0 from (f, f', f'') and (c, c', sum of p_i c_i''), dense."""
    start = np.asarray(start, dtype=float)
    size, count = start.size, 0 if constraints is None else np.size(constraints[0](start))
    values, jacobian, curvature = constraints or (
        lambda x: np.empty(0),
        lambda x: np.empty((0, size)),
        lambda x, p: np.zeros((size, size)),
    )
    return NonlinearProgram(
        name="case",
        start=start,
        lower=np.full(size, -np.inf),
        upper=np.full(size, np.inf),
        constraint_lower=np.zeros(count),
        constraint_upper=np.zeros(count),
        objective=objective[0],
        gradient=objective[1],
        constraints=lambda x: np.asarray(values(x), dtype=float),
        jacobian=lambda x: scipy.sparse.csr_array(np.reshape(jacobian(x), (count, size)).astype(float)),
        hessian=lambda x, p: scipy.sparse.csr_array(np.asarray(objective[2](x) + curvature(x, p), dtype=float)),
        start_multipliers=None if multipliers is None else np.asarray(multipliers, dtype=float),
    )


def quadratic_form(matrix, linear):
    """Return x'Qx / 2 + q'x with derivatives."""
    matrix, linear = np.asarray(matrix, dtype=float), np.asarray(linear, dtype=float)
    return (lambda x: 0.5 * x @ matrix @ x + linear @ x, lambda x: matrix @ x + linear, lambda x: matrix)


def linear_constraints(rows, values):
    """Return A x - b with derivatives."""
    rows, values = np.asarray(rows, dtype=float), np.asarray(values, dtype=float)
    size = rows.shape[1]
    return (lambda x: rows @ x - values, lambda x: rows, lambda x, p: np.zeros((size, size)))


def sphere(radius_squared=1.0, size=2, copies=1):
    """Return |x|^2 - r^2, several times over if asked."""
    factors = np.arange(1, copies + 1)
    return (
        lambda x: factors * (x @ x - radius_squared),
        lambda x: np.outer(factors, 2.0 * x),
        lambda x, p: 2.0 * float(factors @ p) * np.eye(size),
    )


def hs7(start=(2.0, 2.0), multipliers=None):
    """Hock and Schittkowski's problem 7, f = -sqrt(3) at (0, sqrt(3)), p = 1 / (2 sqrt(3))."""
    objective = (
        lambda x: np.log(1 + x[0] ** 2) - x[1],
        lambda x: np.array([2 * x[0] / (1 + x[0] ** 2), -1.0]),
        lambda x: np.diag([2 * (1 - x[0] ** 2) / (1 + x[0] ** 2) ** 2, 0.0]),
    )
    constraints = (
        lambda x: [(1 + x[0] ** 2) ** 2 + x[1] ** 2 - 4],
        lambda x: [[4 * x[0] * (1 + x[0] ** 2), 2 * x[1]]],
        lambda x, p: p[0] * np.diag([4 + 12 * x[0] ** 2, 2.0]),
    )
    return equality_program(objective, constraints, start, multipliers)


def chain(size=60):
    """Build quartic springs pressed into a ball: a convex problem on which GMRES needs many iterations."""
    stiffness = np.linspace(1.0, 30.0, size)
    target = np.cos(np.arange(size))
    objective = (
        lambda x: 0.5 * stiffness @ (x - target) ** 2 + 0.25 * np.sum(x**4),
        lambda x: stiffness * (x - target) + x**3,
        lambda x: np.diag(stiffness + 3 * x**2),
    )
    return equality_program(objective, sphere(0.2 * size, size), 0.8 * target)


def iterate(problem, settings=None, solver="factorisation", tolerance=1e-10, limit=60):
    """Step until the tolerance; return the iteration, the residual norms and the step lengths."""
    iteration = AdaSketch(numpy_program(problem, settings=DirectionSettings(solver)), settings)
    tolerances, norms, lengths = Tolerances(tolerance, tolerance), [iteration.evaluation.norm], []
    while not tolerances.met(iteration.gradient_norm, iteration.constraint_norm) and len(lengths) < limit:
        lengths.append(iteration.step(tolerances))
        norms.append(iteration.evaluation.norm)
    return iteration, np.array(norms), np.array(lengths)
