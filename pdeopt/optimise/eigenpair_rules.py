"""Sketch and precondition: when eigenpairs of the misfit Hessian are found anew, and the preconditioner made of them.

A rule is asked once for every KKT matrix, with its reduced Hessian H, the metric R of the regularisation and the
iterations that conjugate gradients took last. It returns eigenpairs of (H - R, R), or None to keep those of before.
"""

import itertools
from collections.abc import Callable, Sequence

from petsc4py import PETSc

import numpy as np
import numpy.typing as npt

from pdeopt.control.hessian import ReducedHessian
from pdeopt.control.kkt import KKTSystem
from pdeopt.optimise.low_rank import (
    Eigenpairs,
    LowRankPreconditioner,
    Metric,
    prior_matrix,
    random_block,
    randomised_eigenpairs,
)
from pdeopt.optimise.sensors import sensor_eigenpairs

type EigenpairRule = Callable[[ReducedHessian, Metric, int], Eigenpairs | None]
"""Gives eigenpairs for the reduced Hessian, told the iterations of the last CG; None keeps the old."""


def sensor_wise(rows: Sequence[PETSc.Vec], weights: npt.NDArray[np.float64]) -> EigenpairRule:
    """Return the rule that renews the exact sensor-wise form when the last CG cost more solves than it would.

    Parameters
    ----------
    rows, weights
        See `pdeopt.optimise.sensors.sensor_eigenpairs`.
    """

    def renew(hessian: ReducedHessian, metric: Metric, last: int) -> Eigenpairs | None:
        return sensor_eigenpairs(hessian, metric, rows, weights) if 2 * last > len(rows) else None

    return renew


def randomised(
    system: KKTSystem, rank: int = 20, *, oversampling: int = 5, first: int = 5, seed: int = 0
) -> EigenpairRule:
    """Return the rule that takes eigenpairs from one randomised double pass, at step ``first``, and keeps them.

    Parameters
    ----------
    system
        The KKT system of the control problem.
    rank, oversampling
        Number of eigenpairs, and how many random vectors more.
    first
        Steps before: their steps are long, and eigenvectors from there mislead.
    seed
        Of the random numbers, which are alike on every number of ranks.
    """
    steps = itertools.count()

    def renew(hessian: ReducedHessian, metric: Metric, last: int) -> Eigenpairs | None:
        if next(steps) != first:
            return None
        sample = random_block(system, rank + oversampling, seed)

        def action(direction: PETSc.Vec, out: PETSc.Vec) -> None:
            hessian.mult(hessian.matrix, direction, out)

        return randomised_eigenpairs(action, metric, sample, rank)

    return renew


class EigenpairPreconditioner:
    """`LowRankPreconditioner` whose eigenpairs follow a rule from one reduced Hessian to the next.

    Parameters
    ----------
    system
        The KKT system, from which the metric comes.
    rule
        When to find eigenpairs anew.
    """

    def __init__(self, system: KKTSystem, rule: EigenpairRule) -> None:
        self._matrix = prior_matrix(system)
        self._metric = Metric(self._matrix, system.lagrangian.state.function_space.mesh.topology.dim)
        self._preconditioner, self._rule = LowRankPreconditioner(self._metric), rule
        self.last_iterations = 0

    def prepare(self, hessian: ReducedHessian) -> None:
        """Ask the rule about the reduced Hessian of the next solves. Collective: yes."""
        pairs = self._rule(hessian, self._metric, self.last_iterations)
        self._preconditioner.pairs = pairs or self._preconditioner.pairs

    def learn(self, pairs: list[tuple[PETSc.Vec, PETSc.Vec]], iterations: int) -> None:
        """Note what the last solves took; directions of CG are not used. Collective: no."""
        self.last_iterations = iterations
        for pair in pairs:
            for vector in pair:
                vector.destroy()

    def apply(self, pc: PETSc.PC | None, covector: PETSc.Vec, out: PETSc.Vec) -> None:
        """Apply the approximate inverse. Collective: yes."""
        self._preconditioner.apply(pc, covector, out)

    def release(self) -> None:
        """Free the PETSc objects. Collective: yes."""
        self._metric.release()
        self._matrix.destroy()
