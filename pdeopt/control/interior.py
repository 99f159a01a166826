"""A primal-dual interior point method for box bounds: the classical method behind the active sets.

Active sets find the optimum in a few steps, or cycle: where controls act much more strongly on the state than the
regularisation holds them, one step can push every control from one bound to the other. The predictor-corrector method
of Mehrotra (SIAM J. Optim. 2 (1992) 575-601) has no such trouble with linear-quadratic problems. With multipliers
z_l, z_u >= 0 of the bounds l <= u <= b it follows the solutions of

    L_y = 0,   L_u - z_l + z_u = 0,   L_p = 0,   (u - l) z_l = (b - u) z_u = mu W   as mu -> 0,

each step one KKT matrix with L_uu + diag(z_l / (u - l) + z_u / (b - u)), W the diagonal of the control's inner product.
"""

from collections.abc import Callable

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np
import numpy.typing as npt

from pdeopt.control.kkt import Blocks, KKTSystem
from pdeopt.control.solvers import KKTSolver

Array = npt.NDArray[np.float64]
_TOLERANCE = 1e-8  # of the linear solves, relative in the Riesz norm
_BACK_OFF = 0.995  # share of the way to the boundary that a step may go


class InteriorPoint:
    """Iterates on a linear-quadratic control problem with bounds, from the present unknowns.

    Parameters
    ----------
    system
        The KKT system.
    lower, upper
        Bounds by coordinates, those of all controls in turn, shape (owned,); infinite where there is none.
    make_solver
        Returns a solver for the KKT matrix of given blocks.

    Attributes
    ----------
    linear_iterations
        Krylov iterations so far.
    """

    def __init__(
        self,
        system: KKTSystem,
        lower: Array,
        upper: Array,
        make_solver: Callable[[Blocks], KKTSolver],
    ) -> None:
        self._system, self._make_solver = system, make_solver
        self._comm = system.comm
        self.linear_iterations = 0
        self._controls = slice(system.layout.offsets[1], system.layout.offsets[system.adjoint_field])
        self._bounds = (lower, upper)
        self._finite = (np.isfinite(lower), np.isfinite(upper))
        weights = [np.asarray(matrix.getDiagonal().array_r) for matrix in system.control_products]
        self._weights = np.concatenate(weights)
        self._unknowns = system.layout.create_vector()
        system.get_unknowns(self._unknowns)
        self._multipliers = self._start()

    def _sum(self, values: Array) -> float:
        return float(self._comm.allreduce(float(np.sum(values)), op=MPI.SUM))

    def _maximum(self, values: Array) -> float:
        return float(self._comm.allreduce(float(np.max(values, initial=0.0)), op=MPI.MAX))

    def _start(self) -> tuple[Array, Array]:
        """Move the control well inside its bounds, and return multipliers of the size of the gradient there."""
        lower, upper = self._bounds
        control = np.array(self._unknowns.array_r[self._controls])
        middle = 0.5 * (np.where(self._finite[0], lower, upper) + np.where(self._finite[1], upper, lower))
        both = self._finite[0] & self._finite[1]
        width = self._maximum(np.where(both, upper - lower, 0.0)) or max(self._maximum(np.abs(control)), 1.0)
        control = np.where(both, middle, control)
        control = np.where(self._finite[0] & ~both, np.maximum(control, lower + width), control)
        control = np.where(self._finite[1] & ~both, np.minimum(control, upper - width), control)
        self._unknowns.array[self._controls] = control
        gradient = self._residual().array_r[self._controls]
        barrier = max(0.5 * width * self._maximum(np.abs(gradient) / self._weights), 1e-30)
        self._distances = self._distance(control)
        below, above = (barrier * self._weights / distance for distance in self._distances)
        return np.where(self._finite[0], below, 0.0), np.where(self._finite[1], above, 0.0)

    def _distance(self, control: Array) -> tuple[Array, Array]:
        """Return the distances to the bounds, one where there is none."""
        lower, upper = self._bounds
        with np.errstate(invalid="ignore"):
            return np.where(self._finite[0], control - lower, 1.0), np.where(self._finite[1], upper - control, 1.0)

    def _residual(self) -> PETSc.Vec:
        self._system.set_unknowns(self._unknowns)
        residual = self._system.layout.create_vector()
        self._system.residual(residual)
        return residual

    def _gap(self, distances: tuple[Array, Array], multipliers: tuple[Array, Array]) -> float:
        """Return the mean complementarity per weight."""
        total = sum(self._sum(d * z) for d, z in zip(distances, multipliers, strict=True))
        count = sum(self._sum(np.where(finite, self._weights, 0.0)) for finite in self._finite)
        return total / count

    def _longest(self, values: Array, change: Array) -> float:
        shrinking = change < 0.0
        local = float(np.min(-values[shrinking] / change[shrinking], initial=1.0))
        return float(self._comm.allreduce(local, op=MPI.MIN))

    def step(self) -> float:
        """Take one predictor-corrector step, set the unknowns, and return the complementarity. Collective: yes."""
        system = self._system
        residual = self._residual()
        distances, multipliers = self._distances, self._multipliers
        gap = self._gap(distances, multipliers)
        blocks = self._blocks()
        solver = self._make_solver(blocks)
        step = system.layout.create_vector()
        nothing = np.zeros_like(self._weights)
        self.linear_iterations += solver.solve(self._right(residual, (nothing, nothing)), step, _TOLERANCE)
        change = np.array(step.array_r[self._controls])
        dual = self._dual_change(change, (nothing, nothing))
        length = self._length(change, dual, 1.0)
        moved = tuple(d + s * length * change for d, s in zip(distances, (1.0, -1.0), strict=True))
        raised = tuple(z + length * dz for z, dz in zip(multipliers, dual, strict=True))
        centring = (self._gap(moved, raised) / gap) ** 3  # type: ignore[arg-type]
        target = centring * gap * self._weights
        corrections = (target - change * dual[0], target + change * dual[1])
        self.linear_iterations += solver.solve(self._right(residual, corrections), step, _TOLERANCE)
        change = np.array(step.array_r[self._controls])
        dual = self._dual_change(change, corrections)
        length = self._length(change, dual, _BACK_OFF)
        self._unknowns.axpy(length, step)
        below, above = (z + length * dz for z, dz in zip(multipliers, dual, strict=True))
        self._multipliers = (below, above)
        self._distances = self._distance(np.array(self._unknowns.array_r[self._controls]))
        system.set_unknowns(self._unknowns)
        solver.destroy()
        blocks.destroy()
        return self._gap(self._distances, self._multipliers)

    def _blocks(self) -> Blocks:
        """Return the KKT blocks with the barrier's curvature on the diagonal of L_uu."""
        system = self._system
        blocks = system.assemble_blocks()
        curvature = sum(z / d for z, d in zip(self._multipliers, self._distances, strict=True))
        start = 0
        for j, control in enumerate(system.controls):
            block = blocks.control_control[j][j]
            assert block is not None
            diagonal = block.getDiagonal()
            diagonal.array[:] += np.asarray(curvature)[start : start + control.size]
            block.setDiagonal(diagonal)
            start += control.size
        return blocks

    def _right(self, residual: PETSc.Vec, corrections: tuple[Array, Array]) -> PETSc.Vec:
        right = residual.copy()
        right.scale(-1.0)
        # z_l and z_u drop out: their new values are corrections / distance - z du / distance.
        below, above = (c / d for c, d in zip(corrections, self._distances, strict=True))
        right.array[self._controls] += np.where(self._finite[0], below, 0.0) - np.where(self._finite[1], above, 0.0)
        return right

    def _dual_change(self, change: Array, corrections: tuple[Array, Array]) -> tuple[Array, Array]:
        (below, above), (left, right) = self._multipliers, self._distances
        lower = (corrections[0] - below * change) / left - below
        upper = (corrections[1] + above * change) / right - above
        return np.where(self._finite[0], lower, 0.0), np.where(self._finite[1], upper, 0.0)

    def _length(self, change: Array, dual: tuple[Array, Array], back_off: float) -> float:
        """Return the longest step that keeps distances and multipliers positive, one length for all unknowns."""
        left, right = self._distances
        lengths = [
            self._longest(left, np.where(self._finite[0], change, 0.0)),
            self._longest(right, np.where(self._finite[1], -change, 0.0)),
            *(self._longest(z, dz) for z, dz in zip(self._multipliers, dual, strict=True)),
        ]
        return min(1.0, back_off * min(lengths))
