"""The matrices that all time steps of an unsteady problem share, and whether they fit the all-at-once solver."""

from typing import TYPE_CHECKING

from petsc4py import PETSc

import ufl

from pdeopt.control.riesz import trace_ratio
from pdeopt.control.step import NOW, StepData
from pdeopt.control.structure import relative_difference
from pdeopt.fem import forms
from pdeopt.fem.time import StepCoefficients

if TYPE_CHECKING:
    from pdeopt.control.unsteady import UnsteadyControlProblem

_SAME = 1e-8  # relative Frobenius distance up to which two assembled matrices count as the same


class SharedMatrices:
    """The matrices that all steps share, from one step's Lagrangian.

    Attributes
    ----------
    mass, stiffness
        M and A of the state equation, Dirichlet rows and columns zero.
    observation
        Second derivative of the state's cost, likewise.
    terminal
        The same of the terminal objective, or None.
    controls, regularisations
        B_j and H_j: derivative of the state equation, second derivative of the control's cost.
    state_mass
        L, likewise.
    """

    def __init__(self, problem: "UnsteadyControlProblem") -> None:
        lagrangian = problem.lagrangian
        adjoint = lagrangian.adjoint_slot

        def block(row: int, column: int, mass: float, stiffness: float, **weights: float) -> PETSc.Mat:
            coefficients = StepCoefficients((mass, 0.0, 0.0), (stiffness, 0.0))
            lagrangian.set_step(StepData(coefficients, 1.0, (0.0, 0.0, 0.0), **weights))
            return lagrangian.block(row, column)

        self.mass = block(adjoint, NOW, 1.0, 0.0)
        self.stiffness = block(adjoint, NOW, 0.0, 1.0)
        self.observation = block(NOW, NOW, 0.0, 0.0, state_weight=1.0)
        self.terminal = block(NOW, NOW, 0.0, 0.0, terminal=1.0) if problem.has_terminal_objective else None
        slots = range(3, adjoint)
        self.controls = [block(adjoint, slot, 0.0, 1.0) for slot in slots]
        self.regularisations = [block(slot, slot, 0.0, 0.0, control_weight=1.0) for slot in slots]
        space = problem.state.function_space
        form = ufl.inner(ufl.TrialFunction(space), ufl.TestFunction(space)) * ufl.dx
        self.state_mass = forms.assemble_matrix(forms.compile_form(form), list(lagrangian.given.bcs), diag=0.0)

    def weights(self) -> tuple[float, float]:
        """Return q and c for which Q = q L and sum_j B_j H_j^-1 B_j' = c L; 0 where it is not so. Collective: yes."""
        observation = trace_ratio(self.observation, self.state_mass)
        if relative_difference(self.observation, self.state_mass, observation) > _SAME:
            observation = 0.0
        coupling = 0.0
        for control, regularisation in zip(self.controls, self.regularisations, strict=True):
            if control.getSizes() != self.state_mass.getSizes():
                return observation, 0.0
            gain = trace_ratio(control, self.state_mass)
            weight = trace_ratio(regularisation, self.state_mass)
            full = regularisation.copy()
            masked = self.state_mass.getDiagonal()
            masked.array[:] = masked.array_r > 0.0
            full.diagonalScale(masked, masked)  # the state's mass matrix lacks the Dirichlet rows
            left = control.copy()
            left.diagonalScale(None, masked)
            same = relative_difference(left, self.state_mass, gain) <= _SAME
            same &= weight > 0.0 and relative_difference(full, self.state_mass, weight) <= _SAME
            for item in (full, left, masked):
                item.destroy()
            if not same:
                return observation, 0.0
            coupling += gain**2 / weight
        return observation, coupling

    def destroy(self) -> None:
        """Free the matrices. Collective: yes."""
        everything = (self.mass, self.stiffness, self.observation, self.terminal, self.state_mass)
        for matrix in (*everything, *self.controls, *self.regularisations):
            if matrix is not None:
                matrix.destroy()


def unfit(problem: "UnsteadyControlProblem") -> str:
    """Return why the optimality system of a problem is not solved all at once; empty if it can be. Collective: yes."""
    lagrangian = problem.lagrangian
    if not lagrangian.linear_quadratic:
        return "the problem is not linear with a quadratic objective"
    if not lagrangian.time_invariant:
        return "the state equation's operator depends on time"
    if problem.controls_initial_state:
        return "the initial state is a control"
    adjoint = lagrangian.adjoint_slot
    if not lagrangian.has_block(NOW, NOW) or not problem.has_state_cost:
        return "the running objective does not observe the state"
    if not all(lagrangian.has_block(adjoint, slot) for slot in range(3, adjoint)):
        return "a control does not stand in the state equation"
    matrices = SharedMatrices(problem)
    observation, coupling = matrices.weights()
    matrices.destroy()
    if observation <= 0.0:
        return "the running objective does not observe the whole state in the L2 norm"
    if coupling <= 0.0:
        return "the controls do not act on the whole domain, in the state's space and with an L2 regularisation"
    return ""
