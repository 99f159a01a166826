"""The Hessian of the objective as a function of the controls alone, as a matrix-free PETSc matrix.

With the KKT blocks L_yy, L_yu, L_uu, A = L_py, B = L_pu at a point where state and adjoint equation hold,

    H = L_uu - B' A^-T L_yu - L_uy A^-1 B + B' A^-T L_yy A^-1 B.

Without the second derivatives of the state equation (adjoint set to zero in the blocks) it is the Gauss-Newton Hessian.
"""

from collections.abc import Sequence

from petsc4py import PETSc

from pdeopt.control.conjugate_trace import ConjugateTrace
from pdeopt.control.kkt import Blocks, KKTSystem
from pdeopt.fem import forms
from pdeopt.report import KSP_ADVICE, ConvergenceError


class ReducedHessian:
    """Applies the reduced Hessian: two state solves an action.

    Parameters
    ----------
    system, blocks
        The KKT system and its blocks; both are kept, not copied.
    state_ksp
        Solver for A and its transpose; kept.

    Attributes
    ----------
    layout
        How the controls' coordinates lie in one vector.
    matrix
        The Hessian as a PETSc matrix of type python.
    solves
        Linearised state and adjoint solves so far, those that others make through `solve_state` included.
    curvatures
        If a list, every action on a d appends d'Hd to it.
    trace
        If there is one, every action is recorded in it.
    """

    def __init__(self, system: KKTSystem, blocks: Blocks, state_ksp: PETSc.KSP) -> None:
        self._system, self._blocks, self._state_ksp = system, blocks, state_ksp
        self.solves = 0
        self.curvatures: list[float] | None = None
        self.trace: ConjugateTrace | None = None
        self.layout = forms.BlockLayout(system.comm, system.layout.sizes[1:-1])
        sizes = (self.layout.offsets[-1], self.layout.global_size)
        self.matrix = PETSc.Mat().createPython((sizes, sizes), context=self, comm=system.comm)
        self.matrix.setUp()
        self._state = [forms.SubVectors(system.layout, 0).vector for _ in range(3)]
        self._work = self._state[0].duplicate()
        self._parts = [forms.SubVectors(self.layout, j) for j in range(len(system.controls))]
        self._results = [part.vector.duplicate() for part in self._parts]

    def add_controls(self, operators: Sequence[PETSc.Mat | None], control: PETSc.Vec, out: PETSc.Vec) -> None:
        """Add sum_j operators[j] u_j to a state-sized vector. Collective: yes."""
        for part, operator in zip(self._parts, operators, strict=True):
            if operator is not None:
                operator.mult(part.load(control), self._work)
                out.axpy(1.0, self._work)

    def add_transposed(self, operators: Sequence[PETSc.Mat | None], state: PETSc.Vec, out: PETSc.Vec) -> None:
        """Add operators[j]' y to the part of every control. Collective: yes."""
        for j, operator in enumerate(operators):
            if operator is not None:
                operator.multTranspose(state, self._results[j])
                out.array[self.layout.slice(j)] += self._results[j].array_r

    def add_regularisation(self, control: PETSc.Vec, out: PETSc.Vec) -> None:
        """Add L_uu u to a vector of controls. Collective: yes."""
        for i, row in enumerate(self._blocks.control_control):
            for j, block in enumerate(row):
                if block is None:
                    continue
                block.mult(self._parts[j].load(control), self._results[i])
                out.array[self.layout.slice(i)] += self._results[i].array_r
                if i != j:  # only the upper triangle is stored
                    block.multTranspose(self._parts[i].load(control), self._results[j])
                    out.array[self.layout.slice(j)] += self._results[j].array_r

    def solve_state(self, right: PETSc.Vec, out: PETSc.Vec, transpose: bool = False) -> None:
        """Solve with A, or with its transpose. Collective: yes.

        Raises
        ------
        ConvergenceError
            If the solver reports divergence.
        """
        (self._state_ksp.solveTranspose if transpose else self._state_ksp.solve)(right, out)
        self.solves += 1
        reason = self._state_ksp.getConvergedReason()
        if reason < 0:
            raise ConvergenceError(f"a linearised state solve failed (reason {reason}): {KSP_ADVICE.get(reason, '')}")

    def mult(self, matrix: PETSc.Mat, control: PETSc.Vec, out: PETSc.Vec) -> None:
        """Apply the Hessian. Collective: yes."""
        blocks, (right, state, adjoint) = self._blocks, self._state
        out.set(0.0)
        self.add_regularisation(control, out)
        right.set(0.0)
        self.add_controls(blocks.control_operators, control, right)
        right.scale(-1.0)
        self.solve_state(right, state)  # the change of the state
        right.set(0.0)
        if blocks.state_state is not None:
            blocks.state_state.mult(state, right)
        self.add_controls(blocks.state_control, control, right)
        right.scale(-1.0)
        self.solve_state(right, adjoint, transpose=True)  # the change of the adjoint
        self.add_transposed(blocks.state_control, state, out)
        self.add_transposed(blocks.control_operators, adjoint, out)
        if self.curvatures is not None:
            self.curvatures.append(float(control.dot(out)))
        if self.trace is not None:
            self.trace.record(control, out, state, adjoint)

    multTranspose = mult

    def sensitivity_transpose(self, covector: PETSc.Vec, out: PETSc.Vec) -> None:
        """Set (dy/du)' q for a covector q of the state; one adjoint solve. Collective: yes."""
        adjoint = self._state[2]
        self.solve_state(covector, adjoint, transpose=True)
        adjoint.scale(-1.0)
        out.set(0.0)
        self.add_transposed(self._blocks.control_operators, adjoint, out)

    def release(self) -> None:
        """Free matrix and work vectors, not what was handed in. Collective: yes."""
        vectors = [*self._state, self._work, *self._results, *(part.vector for part in self._parts)]
        for item in (self.matrix, *vectors):
            item.destroy()
