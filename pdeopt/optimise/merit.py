"""The exact augmented Lagrangian, the merit function in x and p together.

    M(x, p) = L(x, p) + eta_1 / 2 |c(x)|^2 + eta_2 / 2 |L_x(x, p)|^2

in Riesz norms; for eta_1 large and eta_2 small enough its minima are the solutions of the program (Pillo and Grippo,
SIAM J. Control Optim. 17 (1979) 618-628; Na, Anitescu and Kolar, Math. Program. 199 (2023) 721-791). Its gradient is

    (L_x + eta_1 G' W^-1 c + eta_2 H M^-1 L_x,  c + eta_2 G M^-1 L_x),

with H = L_xx, the curvature of the constraints included.
"""

import dataclasses
import math

from pdeopt.optimise.program import Pair, Program


@dataclasses.dataclass
class Penalties:
    """eta_1 on the constraints and eta_2 on the gradient of the Lagrangian."""

    constraint: float = 1.0
    gradient: float = 0.1


class Evaluation:
    """Everything about the merit function at one point that does not depend on the penalties.

    The program stands at the point when this is made.

    Parameters
    ----------
    program
        The program.

    Attributes
    ----------
    objective
        f(x).
    residual
        (L_x, c), covectors.
    gradient_norm, constraint_norm, norm
        |L_x|, |c| and both together, in Riesz norms.
    """

    def __init__(self, program: Program, multipliers: Pair) -> None:
        self._program = program
        self.objective = program.objective()
        self.residual, self.representative = program.create(), program.create()
        program.residual(self.residual)
        program.riesz(self.residual, self.representative)
        residual, representative = self.residual, self.representative
        self._lagrangian = self.objective + float(multipliers.dual.dot(residual.dual))
        gradient = _not_negative(float(residual.primal.dot(representative.primal)))
        constraint = _not_negative(float(residual.dual.dot(representative.dual)))
        self._squares = (constraint, gradient)
        self.gradient_norm, self.constraint_norm = gradient**0.5, constraint**0.5
        self.norm = (gradient + constraint) ** 0.5
        self._gradients: tuple[Pair, Pair] | None = None

    def value(self, penalties: Penalties) -> float:
        """Return the merit function. Collective: no."""
        constraint, gradient = self._squares
        return self._lagrangian + 0.5 * penalties.constraint * constraint + 0.5 * penalties.gradient * gradient

    def _penalty_gradients(self) -> tuple[Pair, Pair]:
        """Return the derivatives of |c|^2 / 2 and |L_x|^2 / 2; the program must still stand here. Collective: yes."""
        if self._gradients is None:
            program, representative = self._program, self.representative
            constraint, gradient = program.create(), program.create()
            program.jacobian_mult_transpose(representative.dual, constraint.primal)
            program.hessian_mult(representative.primal, gradient.primal)
            program.jacobian_mult(representative.primal, gradient.dual)
            self._gradients = (constraint, gradient)
        return self._gradients

    def gradient(self, penalties: Penalties, out: Pair) -> None:
        """Set the gradient, a covector; the program must still stand here. Collective: yes."""
        constraint, gradient = self._penalty_gradients()
        out.assign(self.residual)
        for part, weight in ((constraint, penalties.constraint), (gradient, penalties.gradient)):
            out.primal.axpy(weight, part.primal)
            out.dual.axpy(weight, part.dual)

    def slopes(self, direction: Pair) -> tuple[float, float, float]:
        """Return the derivatives of L, |c|^2 / 2 and |L_x|^2 / 2 along a direction. Collective: yes."""
        constraint, gradient = self._penalty_gradients()
        return self.residual.dot(direction), constraint.dot(direction), gradient.dot(direction)

    def infeasible_gradient_norm(self) -> float:
        """Return the Riesz norm of G' W^-1 c, which vanishes where |c| has a stationary point. Collective: yes."""
        covector, representative = self._program.create(), self._program.create()
        self._penalty_gradients()[0].primal.copy(covector.primal)
        self._program.riesz(covector, representative)
        square = float(covector.primal.dot(representative.primal))
        covector.destroy()
        representative.destroy()
        return max(square, 0.0) ** 0.5

    def destroy(self) -> None:
        """Free the vectors. Collective: yes."""
        for pair in (self.residual, self.representative, *(self._gradients or ())):
            pair.destroy()


def _not_negative(square: float) -> float:
    return square if math.isnan(square) else max(square, 0.0)


def slope(slopes: tuple[float, float, float], penalties: Penalties) -> float:
    """Return the derivative of the merit function along a direction, from `Evaluation.slopes`."""
    return slopes[0] + penalties.constraint * slopes[1] + penalties.gradient * slopes[2]
