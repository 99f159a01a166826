"""A preconditioner for the reduced Hessian H from the directions of earlier conjugate gradients, at no cost in solves.

CG leaves directions d with their images H d. From one Newton step to the next H changes little, and what data say about
a control is of low rank in the metric R of the regularisation: so the quasi-Newton inverse of BFGS that starts from
R^-1 and takes the pairs (d, H d) for its secants is near H^-1 where R^-1 is not (Morales and Nocedal, SIAM J. Optim. 10
(2000) 1079-1096). CG's directions are conjugate, so that all secants of one solve hold at once.
"""

from petsc4py import PETSc

from pdeopt.control.hessian import ReducedHessian
from pdeopt.control.kkt import KKTSystem
from pdeopt.optimise.low_rank import Metric, prior_matrix

RECYCLED = 100
"""Pairs that are kept at most, two vectors of the controls each."""


class RecycledDirections:
    """Learns from each solve, and preconditions the next.

    Parameters
    ----------
    system
        The KKT system, from which the metric comes.
    """

    def __init__(self, system: KKTSystem) -> None:
        self._matrix = prior_matrix(system)
        dimension = system.lagrangian.state.function_space.mesh.topology.dim
        self._metric = Metric(self._matrix, dimension)
        self._pairs: list[tuple[PETSc.Vec, PETSc.Vec, float]] = []
        self._work = self._matrix.createVecRight()

    def prepare(self, hessian: ReducedHessian) -> None:
        """Nothing: what was learned from other Hessians serves. Collective: no."""

    def learn(self, pairs: list[tuple[PETSc.Vec, PETSc.Vec]], iterations: int) -> None:
        """Take over pairs (d, H d), the last ones of which replace the oldest. Collective: yes."""
        self._pairs += [(direction, image, float(direction.dot(image))) for direction, image in pairs]
        while len(self._pairs) > RECYCLED:
            for vector in self._pairs.pop(0)[:2]:
                vector.destroy()

    def apply(self, pc: PETSc.PC | None, covector: PETSc.Vec, out: PETSc.Vec) -> None:
        """Apply the approximate inverse, by the recursion of two loops. Collective: yes."""
        covector.copy(self._work)
        factors = []
        for direction, image, curvature in reversed(self._pairs):
            factors.append(float(direction.dot(self._work)) / curvature)
            self._work.axpy(-factors[-1], image)
        self._metric.solve_vector(self._work, out)
        for (direction, image, curvature), factor in zip(self._pairs, reversed(factors), strict=True):
            out.axpy(factor - float(image.dot(out)) / curvature, direction)

    def release(self) -> None:
        """Free the PETSc objects. Collective: yes."""
        for direction, image, _ in self._pairs:
            direction.destroy()
            image.destroy()
        self._metric.release()
        for item in (self._matrix, self._work):
            item.destroy()
