"""Objectives of the controls alone as programs without constraints: unsteady, taped and steady reduced functionals.

Every solve is conjugate gradients for the Hessian in the metric of the controls, which stops at negative curvature.
"""

import math

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np

from pdeopt.control import Functional
from pdeopt.control.riesz import control_riesz_map
from pdeopt.optimise.program import KKTResult, KKTSolver, Mask, Pair

_MAXIMUM = 500


class ReducedProgram:
    """j(u) as `pdeopt.optimise.program.Program`; its point is the control.

    Parameters
    ----------
    functional
        Any `pdeopt.control.Functional`: ``problem.reduced_functional()``, that of an unsteady problem, a taped one.
    """

    quadratic = False

    def __init__(self, functional: Functional) -> None:
        self.functional = functional
        self.comm: MPI.Comm = functional.comm
        self._point = functional.create_vector()
        functional.get_control(self._point)
        self._riesz = control_riesz_map(functional.inner_product())
        self._bounds = functional.bounds()
        if self._bounds is not None:
            self._point.pointwiseMax(self._point, self._bounds[0])
            self._point.pointwiseMin(self._point, self._bounds[1])

    def create(self) -> Pair:
        """Return a zero control, and a dual vector without entries. Collective: yes."""
        return Pair(self.functional.create_vector(), PETSc.Vec().createMPI((0, 0), comm=self.comm))

    def get(self, out: Pair) -> None:
        """Copy the present control. Collective: no."""
        self._point.copy(out.primal)

    def move(self, point: Pair) -> None:
        """Let everything stand at a control. Collective: no."""
        point.primal.copy(self._point)

    def bounds(self) -> tuple[PETSc.Vec, PETSc.Vec] | None:
        """Return the bounds of the functional. Collective: no."""
        return self._bounds

    def objective(self) -> float:
        """Return j(u); one state solve. Collective: yes."""
        return self.functional.value(self._point)

    def residual(self, out: Pair) -> None:
        """Set j'(u); one adjoint solve. Collective: yes."""
        self.functional.derivative(self._point, out.primal)

    def objective_gradient(self, out: PETSc.Vec) -> None:
        """Set j'(u). Collective: yes."""
        self.functional.derivative(self._point, out)

    def hessian_mult(self, direction: PETSc.Vec, out: PETSc.Vec) -> None:
        """Set j''(u) d; two linearised solves. Collective: yes."""
        self.functional.hessian_action(self._point, direction, out)

    def jacobian_mult(self, direction: PETSc.Vec, out: PETSc.Vec) -> None:
        """Nothing: there are no constraints. Collective: no."""

    def jacobian_mult_transpose(self, direction: PETSc.Vec, out: PETSc.Vec) -> None:
        """Set zero: there are no constraints. Collective: no."""
        out.set(0.0)

    def riesz(self, covector: Pair, out: Pair) -> None:
        """Set the representative in the inner product of the controls. Collective: yes."""
        self._riesz.solve(covector.primal, out.primal, rtol=1e-10)

    def weights(self) -> PETSc.Vec:
        """Return the diagonal of the inner product, new. Collective: yes."""
        return self.functional.inner_product().getDiagonal()

    def kkt_solver(
        self,
        shift: float = 0.0,
        dual_shift: float = 0.0,
        diagonal: PETSc.Vec | None = None,
        fixed: Mask | None = None,
        curvature: float = 1.0,
    ) -> KKTSolver:
        """Return conjugate gradients for k j'' + s M + D on what is not fixed. Collective: yes."""
        return _ConjugateGradients(self, shift, diagonal, fixed, curvature)

    def precondition(self, right: PETSc.Vec, out: PETSc.Vec) -> None:
        """Set the representative of a covector as the preconditioner. Collective: yes."""
        self._riesz.solve(right, out, rtol=1e-10)

    def destroy(self) -> None:
        """Free the PETSc objects; the functional stays. Collective: yes."""
        self._riesz.destroy()
        for vector in (self._point, *(self._bounds or ())):
            vector.destroy()


class _ConjugateGradients:
    """Preconditioned conjugate gradients; at negative curvature they stop with what they have."""

    name = "reduced-Hessian CG"
    inertia_is_right: bool | None = None
    singular = False

    def __init__(
        self, program: ReducedProgram, shift: float, diagonal: PETSc.Vec | None, fixed: Mask | None, curvature: float
    ) -> None:
        self._program, self._shift, self._fixed, self._curvature = program, shift, fixed, curvature
        self._diagonal = None if diagonal is None else diagonal.copy()  # the caller may free its own
        self._work = program.functional.create_vector()

    def _mask(self, vector: PETSc.Vec) -> None:
        if self._fixed is not None:
            vector.array[self._fixed] = 0.0

    def _mult(self, direction: PETSc.Vec, out: PETSc.Vec) -> None:
        if self._curvature != 0.0:
            self._program.hessian_mult(direction, out)
            out.scale(self._curvature)
        else:
            out.set(0.0)
        if self._shift > 0.0:
            self._program.functional.inner_product().mult(direction, self._work)
            out.axpy(self._shift, self._work)
        if self._diagonal is not None:
            self._work.pointwiseMult(self._diagonal, direction)
            out.axpy(1.0, self._work)
        self._mask(out)

    def _precondition(self, right: PETSc.Vec, out: PETSc.Vec) -> None:
        """Apply the Riesz map; with a diagonal, which may be much larger, that of the diagonals."""
        if self._diagonal is None:
            self._program.precondition(right, out)
        else:
            weights = self._program.weights()
            weights.axpy(1.0, self._diagonal)
            out.pointwiseDivide(right, weights)
            weights.destroy()
        self._mask(out)

    def solve(self, right: Pair, out: Pair, rtol: float, *, improve: bool = False) -> KKTResult:
        """Solve to a tolerance relative in the norm of the preconditioner. Collective: yes."""
        residual = right.primal.copy()
        self._mask(residual)
        create = self._program.functional.create_vector
        preconditioned, direction, product = create(), create(), create()
        self._precondition(residual, preconditioned)
        size = residual.dot(preconditioned)
        solution = out.primal
        if improve:
            self._mult(solution, product)
            residual.axpy(-1.0, product)
            self._precondition(residual, preconditioned)
        else:
            solution.set(0.0)
        square, iterations, negative = float(residual.dot(preconditioned)), 0, False
        preconditioned.copy(direction)
        while square > rtol**2 * size and iterations < _MAXIMUM and math.isfinite(square):
            self._mult(direction, product)
            curvature = float(direction.dot(product))
            if curvature <= 0.0:
                negative = True
                if iterations == 0 and not improve:
                    preconditioned.copy(solution)
                break
            length = square / curvature
            solution.axpy(length, direction)
            residual.axpy(-length, product)
            self._precondition(residual, preconditioned)
            previous, square = square, float(residual.dot(preconditioned))
            direction.aypx(square / previous, preconditioned)
            iterations += 1
        for vector in (residual, preconditioned, direction, product):
            vector.destroy()
        return KKTResult(iterations, float(np.sqrt(square / size)) if size > 0.0 else 0.0, negative)

    def destroy(self) -> None:
        """Free the vectors. Collective: yes."""
        self._work.destroy()
        if self._diagonal is not None:
            self._diagonal.destroy()
