"""The Lagrangian of a control problem and its derivatives, as compiled forms."""

import dataclasses
from collections.abc import Sequence

import dolfinx
import ufl

from pdeopt.control.controls import Control
from pdeopt.fem import forms


@dataclasses.dataclass(frozen=True)
class Lagrangian:
    """L(y, u, p, l) = J(y, u) + F(y, u; p) + sum_k l_k G_k(y, u).

    Parameters
    ----------
    objective, state_equation, constraints
        J, F(.; p) and the G_k as functionals with fixed quadrature degrees.
    state, adjoint
        y and p, functions of the same space.
    controls
        The controls, each with the function that stands in the forms.
    multipliers
        The l_k, one constant per constraint.
    entity_maps
        DOLFINx entity maps where forms mix meshes.
    """

    objective: ufl.Form
    state_equation: ufl.Form
    constraints: tuple[ufl.Form, ...]
    state: dolfinx.fem.Function
    adjoint: dolfinx.fem.Function
    controls: tuple[Control, ...]
    multipliers: tuple[dolfinx.fem.Constant, ...]
    entity_maps: Sequence[dolfinx.mesh.EntityMap] | None = None

    @property
    def functional(self) -> ufl.Form:
        """The Lagrangian itself."""
        total = self.objective + self.state_equation
        for multiplier, constraint in zip(self.multipliers, self.constraints, strict=True):
            total += ufl.Form(
                [integral.reconstruct(multiplier * integral.integrand()) for integral in constraint.integrals()]
            )
        return total

    @property
    def unknowns(self) -> tuple[dolfinx.fem.Function, ...]:
        """State, controls, adjoint: the order of the blocks."""
        return (self.state, *(control.function for control in self.controls), self.adjoint)

    def first(self, form: ufl.Form, field: int) -> dolfinx.fem.Form | None:
        """Compile the derivative of a functional by one unknown; None where it vanishes. Collective: yes."""
        unknown = self.unknowns[field]
        derivative = ufl.derivative(form, unknown, ufl.TestFunction(unknown.function_space))
        return None if forms.is_zero(derivative) else forms.compile_form(derivative, self.entity_maps)

    def second(self, form: ufl.Form, row: int, column: int) -> ufl.Form:
        """Return the second derivative of a functional by two unknowns (rows, columns) in UFL; it may vanish."""
        unknowns = self.unknowns
        test = ufl.TestFunction(unknowns[row].function_space)
        trial = ufl.TrialFunction(unknowns[column].function_space)
        return ufl.derivative(ufl.derivative(form, unknowns[row], test), unknowns[column], trial)

    def has_constant_state_operator(self) -> bool:
        """Whether L_py depends on no unknown: one factorisation serves all state and adjoint solves."""
        last = len(self.unknowns) - 1
        return not forms.depends_on(self.second(self.functional, last, 0), self.unknowns)

    def has_affine_state_equation(self) -> bool:
        """Whether the state equation is affine in the state: one linear solve finds the state of any control."""
        last = len(self.unknowns) - 1
        return not forms.depends_on(self.second(self.functional, last, 0), (self.state,))

    def is_linear_quadratic(self) -> bool:
        """Whether no second derivative depends on the unknowns: quadratic objective, linear equations."""
        functional, unknowns = self.functional, self.unknowns
        count = len(unknowns)
        varying = [*unknowns]
        return not any(
            forms.depends_on(self.second(functional, row, column), varying)
            for row in range(count)
            for column in range(row, count)
        )
