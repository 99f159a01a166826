"""Programs whose derivatives are assembled matrices: what TAO's callbacks and NumPy functions give."""

from collections.abc import Sequence
from typing import Protocol

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np
import numpy.typing as npt

from pdeopt.optimise.matrix_kkt import DirectionSettings, MatrixKKT
from pdeopt.optimise.program import KKTSolver, Mask, Pair
from pdeopt.report import InputError

Array = npt.NDArray[np.float64]


class Functions(Protocol):
    """What a program with matrices is made of; every call is collective."""

    def objective(self, x: PETSc.Vec) -> float:
        """Return f(x)."""

    def gradient(self, x: PETSc.Vec, out: PETSc.Vec) -> None:
        """Set f'(x)."""

    def constraints(self, x: PETSc.Vec, out: PETSc.Vec) -> None:
        """Set c(x)."""

    def jacobian(self, x: PETSc.Vec) -> PETSc.Mat:
        """Return c'(x); it stays the callee's."""

    def hessian(self, x: PETSc.Vec, multipliers: PETSc.Vec) -> PETSc.Mat:
        """Return L_xx(x, p), both triangles; it stays the callee's."""

    def destroy(self) -> None:
        """Free what they made."""


class MatrixProgram:
    """A program of assembled matrices, see `pdeopt.optimise.program.Program`.

    Parameters
    ----------
    functions
        Values and derivatives.
    start
        Initial x and p; copied. A dual vector of size zero if there are no constraints.
    bounds
        l and b, taken over, or None.
    weights
        Diagonal of the inner product of x, positive; ones if None. That of the constraints is the Euclidean one.
    settings
        The solver of the KKT systems.
    prefix
        Prefix of its options.

    Raises
    ------
    InputError
        If a weight is not positive or a lower bound is above its upper one.
    """

    quadratic = False

    def __init__(
        self,
        functions: Functions,
        start: Pair,
        bounds: tuple[PETSc.Vec, PETSc.Vec] | None = None,
        weights: PETSc.Vec | None = None,
        settings: DirectionSettings | None = None,
        prefix: str = "",
    ) -> None:
        self._functions, self._settings, self._prefix = functions, settings or DirectionSettings(), prefix
        self.comm: MPI.Comm = start.primal.comm.tompi4py()
        self._point = start.copy()
        self._weights = weights
        if weights is not None and weights.min()[1] <= 0.0:
            raise InputError(f"the smallest weight of the variables is {weights.min()[1]:g}: weights must be positive")
        if bounds is not None:
            wrong = int(np.count_nonzero(~(bounds[0].array_r <= bounds[1].array_r)))
            if self.comm.allreduce(wrong, op=MPI.SUM):
                raise InputError("a lower bound is above its upper bound, or not a number: exchange or correct them")
        self._bounds = bounds
        self._jacobian: PETSc.Mat | None = None
        self._hessian: PETSc.Mat | None = None
        self._added: PETSc.Mat | None = None

    def add_quadratic(self, matrix: PETSc.Mat | None) -> None:
        """Add x'Ax / 2 to the objective, in place of what was added before; the matrix is taken over.

        Collective: yes.
        """
        self._drop_hessian()
        if self._added is not None:
            self._added.destroy()
        self._added = matrix

    def create(self) -> Pair:
        """Return a pair of zero vectors. Collective: yes."""
        pair = Pair(self._point.primal.duplicate(), self._point.dual.duplicate())
        pair.primal.set(0.0)
        pair.dual.set(0.0)
        return pair

    def get(self, out: Pair) -> None:
        """Copy the present point. Collective: no."""
        out.assign(self._point)

    def move(self, point: Pair) -> None:
        """Let everything stand at a point. Collective: no."""
        self._point.assign(point)
        self._jacobian = None
        self._drop_hessian()

    def bounds(self) -> tuple[PETSc.Vec, PETSc.Vec] | None:
        """Return l and b, or None. Collective: no."""
        return self._bounds

    def objective(self) -> float:
        """Return f(x). Collective: yes."""
        value = float(self._functions.objective(self._point.primal))
        if self._added is not None:
            product = self._point.primal.duplicate()
            self._added.mult(self._point.primal, product)
            value += 0.5 * float(product.dot(self._point.primal))
            product.destroy()
        return value

    def objective_gradient(self, out: PETSc.Vec) -> None:
        """Set f'(x). Collective: yes."""
        self._functions.gradient(self._point.primal, out)
        if self._added is not None:
            self._added.multAdd(self._point.primal, out, out)

    def residual(self, out: Pair) -> None:
        """Set (L_x, c). Collective: yes."""
        self.objective_gradient(out.primal)
        if not self._has_constraints():
            return
        work = out.primal.duplicate()
        self._jacobian_here().multTranspose(self._point.dual, work)
        out.primal.axpy(1.0, work)
        work.destroy()
        self._functions.constraints(self._point.primal, out.dual)

    def hessian_mult(self, direction: PETSc.Vec, out: PETSc.Vec) -> None:
        """Set H d. Collective: yes."""
        self._hessian_here().mult(direction, out)

    def jacobian_mult(self, direction: PETSc.Vec, out: PETSc.Vec) -> None:
        """Set G d. Collective: yes."""
        if self._has_constraints():
            self._jacobian_here().mult(direction, out)

    def jacobian_mult_transpose(self, direction: PETSc.Vec, out: PETSc.Vec) -> None:
        """Set G' d. Collective: yes."""
        if self._has_constraints():
            self._jacobian_here().multTranspose(direction, out)
        else:
            out.set(0.0)

    def riesz(self, covector: Pair, out: Pair) -> None:
        """Divide by the weights. Collective: no."""
        out.assign(covector)
        if self._weights is not None:
            out.primal.pointwiseDivide(covector.primal, self._weights)

    def weights(self) -> PETSc.Vec:
        """Return the weights of the coordinates, a copy. Collective: yes."""
        if self._weights is not None:
            return self._weights.copy()
        ones = self._point.primal.duplicate()
        ones.set(1.0)
        return ones

    def kkt_solver(
        self,
        shift: float = 0.0,
        dual_shift: float = 0.0,
        diagonal: PETSc.Vec | None = None,
        fixed: Mask | None = None,
        curvature: float = 1.0,
    ) -> KKTSolver:
        """Set up a solver for the KKT matrix here; see `Program.kkt_solver`. Collective: yes."""
        added = self.weights()
        added.scale(shift)
        if diagonal is not None:
            added.axpy(1.0, diagonal)
        jacobian = self._jacobian_here() if self._has_constraints() else None
        return MatrixKKT(
            self._hessian_here(), jacobian, self._point, added, curvature, dual_shift, self._weights, fixed,
            self._settings, self._prefix,
        )  # fmt: skip

    def destroy(self) -> None:
        """Free the vectors of this object, the bounds, and the functions. Collective: yes."""
        self.add_quadratic(None)
        self._point.destroy()
        for bound in self._bounds or ():
            bound.destroy()
        self._functions.destroy()

    def _has_constraints(self) -> bool:
        return bool(self._point.dual.getSize() > 0)

    def _jacobian_here(self) -> PETSc.Mat:
        if self._jacobian is None:
            self._jacobian = self._functions.jacobian(self._point.primal)
        return self._jacobian

    def _hessian_here(self) -> PETSc.Mat:
        if self._hessian is None:
            self._hessian = self._functions.hessian(self._point.primal, self._point.dual)
            if self._added is not None:  # the functions keep their own
                self._hessian = self._hessian.copy()
                self._hessian.axpy(1.0, self._added, structure=PETSc.Mat.Structure.DIFFERENT_NONZERO_PATTERN)
        return self._hessian

    def _drop_hessian(self) -> None:
        if self._hessian is not None and self._added is not None:
            self._hessian.destroy()
        self._hessian = None


def vector(comm: MPI.Comm, values: Sequence[float] | Array) -> PETSc.Vec:
    """Return a distributed vector of values that all ranks know. Collective: yes."""
    values = np.asarray(values, dtype=np.float64)
    result = PETSc.Vec().createMPI(values.size, comm=comm)
    first, last = result.getOwnershipRange()
    result.array[:] = values[first:last]
    return result
