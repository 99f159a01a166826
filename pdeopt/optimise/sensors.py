"""The exact Gauss-Newton Hessian of a misfit at few sensors: one adjoint solve a sensor, none per iteration.

A misfit sum_i w_i (q_i'y - d_i)^2 / 2 has the Gauss-Newton Hessian H = R + J'WJ, the rows of J being
j_i = (dy/du)' q_i. With R^-1 J' (no solve with the state equation) the Sherman-Morrison-Woodbury formula gives H^-1; it
is written here by the eigenpairs of (J'WJ, R), which those of the small matrix W^(1/2) J R^-1 J' W^(1/2) determine.
"""

from collections.abc import Sequence

from petsc4py import PETSc

import numpy as np

from pdeopt.control.hessian import ReducedHessian
from pdeopt.optimise.low_rank import Array, Eigenpairs, Metric
from pdeopt.report import InputError

_ZERO = 1e-14  # relative size of an eigenvalue that rounding makes


def sensor_eigenpairs(hessian: ReducedHessian, metric: Metric, rows: Sequence[PETSc.Vec], weights: Array) -> Eigenpairs:
    """Return all eigenpairs of (J'WJ, R) with l > 0; one adjoint solve a sensor.

    `pdeopt.optimise.low_rank.LowRankPreconditioner` with them is the exact inverse of R + J'WJ.

    Parameters
    ----------
    hessian
        The reduced Hessian at the point, which solves with the state equation.
    metric
        R, the second derivative of the regularisation.
    rows
        The covectors q_i of the state.
    weights
        The w_i, >= 0, shape (sensors,).

    Raises
    ------
    InputError
        If there are no sensors, as many weights as rows are not given, or a weight is negative.

    Collective: yes.
    """
    weights = np.asarray(weights, dtype=np.float64)
    if not rows or len(rows) != weights.size or np.any(weights < 0.0):
        raise InputError(
            f"{len(rows)} sensors and weights {weights}: give one weight >= 0 to each of at least one sensor"
        )
    jacobian = sensitivity_rows(hessian, rows) * np.sqrt(weights)
    raised = metric.solve(jacobian)
    small = metric.product(jacobian, raised)
    values, turn = np.linalg.eigh(0.5 * (small + small.T))
    kept = values > _ZERO * values[-1]
    return Eigenpairs(values[kept], raised @ (turn[:, kept] / np.sqrt(values[kept])))


def sensitivity_rows(hessian: ReducedHessian, rows: Sequence[PETSc.Vec]) -> Array:
    """Return the (dy/du)' q_i as columns, shape (owned, sensors). Collective: yes."""
    covector = hessian.layout.create_vector()
    columns = np.empty((covector.getLocalSize(), len(rows)), order="F")
    for i, row in enumerate(rows):
        hessian.sensitivity_transpose(row, covector)
        columns[:, i] = covector.array_r
    covector.destroy()
    return columns
