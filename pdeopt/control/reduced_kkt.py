"""The KKT system by elimination of state and adjoint: conjugate gradients for the reduced Hessian."""

import math
from typing import Protocol

from petsc4py import PETSc

from pdeopt.control.conjugate_trace import ConjugateTrace
from pdeopt.control.hessian import ReducedHessian
from pdeopt.control.kkt import Blocks, KKTSystem
from pdeopt.control.preconditioners import LinearContext
from pdeopt.control.state_solvers import state_solver
from pdeopt.fem import forms
from pdeopt.fem.saddle import SolverSetup
from pdeopt.report import KSP_ADVICE, ConvergenceError

_NEGLIGIBLE = 0.1  # of the residual asked for: a part of the right-hand side below it needs no solve
_SAME = 1e-6  # relative difference of CG's solution and its repetition: more means another Krylov method
_ROUNDING = 1e-14  # relative to the right-hand side: no residual falls below it
_INDEFINITE = (PETSc.KSP.ConvergedReason.DIVERGED_INDEFINITE_PC, PETSc.KSP.ConvergedReason.DIVERGED_INDEFINITE_MAT)


class ControlPreconditioner(Protocol):
    """A symmetric positive definite approximation of the inverse of the reduced Hessian."""

    def prepare(self, hessian: ReducedHessian) -> None:
        """Learn of the reduced Hessian that is going to be solved with. Collective: yes."""

    def apply(self, pc: PETSc.PC, covector: PETSc.Vec, out: PETSc.Vec) -> None:
        """Apply it to a vector over all controls. Collective: yes."""


class ReducedHessianPC:
    """Solves the KKT system by eliminating state and adjoint: CG for the reduced Hessian, preconditioned by L_uu.

    Where CG meets a direction of negative curvature it stops, as Steihaug's does: what it found until then (its first
    direction, if that is the one) becomes the control's part of the solution, and `negative_curvature` is set.

    In the metric of the regularisation the spectrum of the reduced Hessian is that of the identity plus a compact
    operator, so the iterations do not grow with refinement.

    Parameters
    ----------
    context
        The system to solve.
    state_setup
        Solver of the state equation, see `state_solver`.
    control_preconditioner
        Preconditions CG instead of L_uu, which is indefinite far from the optimum where the state equation is
        nonlinear in the control; kept, and not freed.
    recycle
        How many of CG's last directions are kept for `take_pairs`.

    Attributes
    ----------
    rtol
        Where CG stops: its residual in the norm of its preconditioner, relative to its right-hand side.
    target
        Riesz norm of its residual at which it stops instead, if not None. State and adjoint equation are solved
        exactly, so that this is the residual of the whole KKT system; they are left alone where theirs are far below.
    iterations, negative_curvature
        Of the last solve.
    """

    def __init__(
        self,
        context: LinearContext,
        state_setup: SolverSetup | None = None,
        control_preconditioner: ControlPreconditioner | None = None,
        recycle: int = 0,
    ) -> None:
        system, blocks = context.system, context.blocks
        self._system, self._blocks = system, blocks
        self.rtol, self.iterations, self.negative_curvature = 1e-8, 0, False
        self.target: float | None = None
        self._state_ksp = state_solver(system, blocks.state_operator, context.symmetric, state_setup)
        self._hessian = ReducedHessian(system, blocks, self._state_ksp)
        if control_preconditioner is not None:
            control_preconditioner.prepare(self._hessian)
        self._inner = _regularisation(blocks, system)
        self._ksp = PETSc.KSP().create(system.comm)
        self._ksp.setOptionsPrefix("kkt_reduced_")
        self._ksp.setOperators(self._hessian.matrix, self._inner)
        defaults: dict[str, object] = {"ksp_type": "cg", "ksp_norm_type": "natural", "ksp_max_it": 2000}
        if control_preconditioner is None:
            defaults |= {"pc_type": "ksp", "ksp_ksp_type": "cg", "ksp_ksp_rtol": 1e-10, "ksp_pc_type": "jacobi"}
        else:
            defaults |= {"pc_type": "python"}
        with forms.default_options("kkt_reduced_", defaults):
            if control_preconditioner is not None:
                self._ksp.getPC().setType("python")
                self._ksp.getPC().setPythonContext(control_preconditioner)
            self._ksp.setFromOptions()
            self._ksp.setUp()
        self._ksp.addConvergenceTest(self._converged, prepend=True)
        self._trace: ConjugateTrace | None = None
        self._recycle = recycle
        self.pairs: list[tuple[PETSc.Vec, PETSc.Vec]] = []
        self._state = [forms.SubVectors(system.layout, 0).vector for _ in range(4)]
        self._control = [self._hessian.layout.create_vector() for _ in range(2)]

    def apply(self, pc: PETSc.PC, right: PETSc.Vec, out: PETSc.Vec) -> None:
        """Solve the whole KKT system for a right-hand side. Collective: yes."""
        layout, last, hessian = self._system.layout, self._system.adjoint_field, self._hessian
        state, adjoint = self._state[1:3]
        reduced, control = self._control
        controls = slice(layout.offsets[1], layout.offsets[last])
        target = self.target
        negligible = 0.0 if target is None else _NEGLIGIBLE * target
        sizes = (0.0, 0.0) if target is None else self._system.norms(right)[::2]
        self._solve_state(right, None, negligible, sizes[1])  # A^-1 r_p
        self._solve_adjoint(right, None, negligible, sizes[0])
        reduced.set(0.0)
        hessian.add_transposed(self._blocks.state_control, state, reduced)
        hessian.add_transposed(self._blocks.control_operators, adjoint, reduced)
        reduced.scale(-1.0)
        reduced.array[:] += right.array_r[controls]
        self._drop_trace()
        hessian.trace = self._trace = trace = ConjugateTrace(reduced, state, self._recycle)
        self._ksp.setTolerances(rtol=self.rtol if target is None else _ROUNDING)
        hessian.curvatures = curvatures = list[float]()
        self._ksp.solve(reduced, control)
        hessian.curvatures = hessian.trace = None
        self.iterations = int(self._ksp.getIterationNumber())
        reason = self._ksp.getConvergedReason()
        self.negative_curvature = reason in _INDEFINITE
        if self.negative_curvature and (len(curvatures) <= 1 or control.norm() == 0.0):
            self._first_direction(reason, reduced, control)
        elif reason < 0 and not self.negative_curvature:
            raise ConvergenceError(f"the reduced-Hessian solve failed (reason {reason}): {KSP_ADVICE.get(reason, '')}")
        reduced.waxpy(-1.0, control, trace.control)
        if reduced.norm() <= _SAME * control.norm():  # CG's steps, so their states and adjoints are there
            trace.control.copy(control)
            state.axpy(1.0, trace.state)
            adjoint.axpy(1.0, trace.adjoint)
        else:
            self._solve_state(right, control, 0.0, math.inf)
            self._solve_adjoint(right, control, 0.0, math.inf)
        out.array[controls] = control.array_r
        layout.write(out, 0, state.array_r)
        layout.write(out, last, adjoint.array_r)

    def _solve_state(self, right: PETSc.Vec, control: PETSc.Vec | None, negligible: float, size: float) -> None:
        """Set y = A^-1 (r_p - B u), u = 0 for None; zero if r_p is negligible."""
        work, state, _, product = self._state
        if control is None and size <= negligible and negligible > 0.0:
            state.set(0.0)
            return
        work.array[:] = self._system.layout.read(right, self._system.adjoint_field)
        if control is not None:
            product.set(0.0)
            self._hessian.add_controls(self._blocks.control_operators, control, product)
            work.axpy(-1.0, product)
        self._hessian.solve_state(work, state)

    def _solve_adjoint(self, right: PETSc.Vec, control: PETSc.Vec | None, negligible: float, size: float) -> None:
        """Set p = A^-T (r_y - L_yy y - L_yu u), u = 0 for None; zero if y is and r_y is negligible."""
        work, state, adjoint, product = self._state
        if control is None and size <= negligible and negligible > 0.0 and state.norm() == 0.0:
            adjoint.set(0.0)
            return
        work.array[:] = self._system.layout.read(right, 0)
        product.set(0.0)
        if self._blocks.state_state is not None:
            self._blocks.state_state.mult(state, product)
        if control is not None:
            self._hessian.add_controls(self._blocks.state_control, control, product)
        work.axpy(-1.0, product)
        self._hessian.solve_state(work, adjoint, transpose=True)

    def _control_norm(self, covector: PETSc.Vec) -> float:
        """Return the Riesz norm of the control part of a KKT residual. Collective: yes."""
        return self._system.control_norm(covector, self._hessian.layout)

    def _converged(self, ksp: PETSc.KSP, iteration: int, norm: float) -> int:
        """End CG at the Riesz norm asked for, and after a direction of negative curvature.

        PETSc's own CG goes on until the curvature changes its sign.
        """
        curvatures = self._hessian.curvatures
        if curvatures and curvatures[-1] < 0.0:
            return int(PETSc.KSP.ConvergedReason.DIVERGED_INDEFINITE_MAT)
        if self.target is not None and self._trace is not None:
            if self._control_norm(self._trace.residual) > self.target:
                return int(PETSc.KSP.ConvergedReason.CONVERGED_ITERATING)
            return int(PETSc.KSP.ConvergedReason.CONVERGED_ATOL)
        return int(PETSc.KSP.ConvergedReason.CONVERGED_ITERATING)

    def _drop_trace(self) -> None:
        if self._trace is not None:
            self.pairs += self._trace.take_pairs()
            self._trace.release()
            self._trace = None

    def take_pairs(self) -> list[tuple[PETSc.Vec, PETSc.Vec]]:
        """Return the directions of CG so far with their images under the Hessian, owned by the caller from now on."""
        self._drop_trace()
        pairs, self.pairs = self.pairs, []
        return pairs

    def _first_direction(self, reason: int, right: PETSc.Vec, out: PETSc.Vec) -> None:
        """Set the preconditioned right-hand side; by the diagonal of the metric if the preconditioner is at fault."""
        if reason == PETSc.KSP.ConvergedReason.DIVERGED_INDEFINITE_MAT:
            self._ksp.getPC().apply(right, out)
        if right.dot(out) <= 0.0:
            first = 0
            for product in self._system.control_products:
                diagonal = product.getDiagonal()
                part = slice(first, first + diagonal.getLocalSize())
                out.array[part] = right.array_r[part] / diagonal.array_r
                first = part.stop

    @property
    def solves(self) -> int:
        """Solves with the state operator or its transpose so far."""
        return self._hessian.solves

    def release(self) -> None:
        """Free the PETSc objects. Collective: yes."""
        for pair in self.take_pairs():
            for vector in pair:
                vector.destroy()
        self._ksp.destroy()
        self._hessian.release()
        for item in (self._state_ksp, self._inner, *self._state, *self._control):
            item.destroy()


def _regularisation(blocks: Blocks, system: KKTSystem) -> PETSc.Mat:
    """Return L_uu over all controls as one AIJ matrix; the control's inner product stands in where it vanishes."""
    count = len(system.controls)
    table: list[list[PETSc.Mat | None]] = [[None] * count for _ in range(count)]
    for i in range(count):
        for j in range(i, count):
            table[i][j] = blocks.control_control[i][j]
            if i < j and table[i][j] is not None:
                table[j][i] = PETSc.Mat().createTranspose(table[i][j])
    only = blocks.control_control[0][0]
    if count == 1 and only is not None:
        return only.copy()
    nest = PETSc.Mat().createNest(table, comm=system.comm)
    matrix = nest.convert("aij", PETSc.Mat())
    nest.destroy()
    return matrix
