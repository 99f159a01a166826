"""Small programs in NumPy for the tests of optimisers."""

import numpy as np
import scipy.sparse

from pdeopt.problems.nonlinear_program import NonlinearProgram


def quadratic(matrix, linear, rows=(), values=(), *, start=None, lower=-np.inf, upper=np.inf, constant=0.0):
    """Minimise x'Qx / 2 + q'x + constant subject to A x = b and bounds."""
    matrix, linear = np.asarray(matrix, dtype=float), np.asarray(linear, dtype=float)
    values = np.asarray(values, dtype=float)
    rows = np.asarray(rows, dtype=float).reshape(values.size, linear.size)
    sides = np.zeros(values.size)
    return NonlinearProgram(
        name="quadratic",
        start=np.zeros(linear.size) if start is None else np.asarray(start, dtype=float),
        lower=np.broadcast_to(lower, linear.shape).astype(float),
        upper=np.broadcast_to(upper, linear.shape).astype(float),
        constraint_lower=sides,
        constraint_upper=sides,
        objective=lambda x: 0.5 * x @ matrix @ x + linear @ x + constant,
        gradient=lambda x: matrix @ x + linear,
        constraints=lambda x: rows @ x - values,
        jacobian=lambda x: scipy.sparse.csr_array(rows),
        hessian=lambda x, multipliers: scipy.sparse.csr_array(matrix),
    )


def general(size, objective, gradient, hessian, constraints=None, *, start, lower=-np.inf, upper=np.inf):
    """Minimise f subject to bounds and equalities c = (value, jacobian, hessian with multipliers)."""
    count = 0 if constraints is None else np.size(constraints[0](np.asarray(start, dtype=float)))
    value, jacobian, curvature = constraints or (
        lambda x: np.empty(0),
        lambda x: np.empty((0, size)),
        lambda x, p: np.zeros((size, size)),
    )
    return NonlinearProgram(
        name="general",
        start=np.asarray(start, dtype=float),
        lower=np.broadcast_to(lower, size).astype(float),
        upper=np.broadcast_to(upper, size).astype(float),
        constraint_lower=np.zeros(count),
        constraint_upper=np.zeros(count),
        objective=objective,
        gradient=gradient,
        constraints=value,
        jacobian=lambda x: scipy.sparse.csr_array(jacobian(x)),
        hessian=lambda x, p: scipy.sparse.csr_array(np.asarray(hessian(x), dtype=float) + curvature(x, p)),
    )
