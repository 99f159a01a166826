"""What the optimisers see of a problem: min f(x) subject to c(x) = 0 and l <= x <= b, in PETSc vectors and Riesz norms.

With multipliers p the Lagrangian is L(x, p) = f(x) + p'c(x); G = c'(x) and H = L_xx. A control problem, TAO's callbacks
and plain NumPy functions all offer this, and every direction comes from one kind of solver for

    [[k H + s M + D, G'], [G, -e W]] (dx, dp) = (r, t),

M and W the matrices of the inner products of x and p, s >= 0 the inertia correction, D >= 0 a diagonal (of a barrier);
k = 1, or 0 for least-squares multipliers.
"""

import dataclasses
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]


@dataclasses.dataclass
class Pair:
    """A vector of the primal space and one of the dual space: a point, a step, or a residual."""

    primal: PETSc.Vec
    dual: PETSc.Vec

    def copy(self) -> "Pair":
        """Return a copy. Collective: yes."""
        return Pair(self.primal.copy(), self.dual.copy())

    def assign(self, other: "Pair") -> None:
        """Take over the values of another pair. Collective: no."""
        other.primal.copy(self.primal)
        other.dual.copy(self.dual)

    def move(self, length: float, direction: "Pair", start: "Pair") -> None:
        """Become start + length * direction. Collective: no."""
        self.primal.waxpy(length, direction.primal, start.primal)
        self.dual.waxpy(length, direction.dual, start.dual)

    def dot(self, other: "Pair") -> float:
        """Return the sum of the products of the entries, a covector applied to a vector. Collective: yes."""
        return float(self.primal.dot(other.primal) + self.dual.dot(other.dual))

    def destroy(self) -> None:
        """Free both vectors. Collective: yes."""
        self.primal.destroy()
        self.dual.destroy()


@dataclasses.dataclass(frozen=True)
class KKTResult:
    """What one solve with a KKT matrix did.

    Parameters
    ----------
    iterations
        Of the iterative method; 0 with a factorisation.
    relative_residual
        The true residual over the right-hand side, in the Riesz norm.
    state_solves
        Solves with the linearised state operator or its transpose.
    negative_curvature
        Whether the iterative method met a direction of the null space of G with d'(H + s M + D) d <= 0.
    """

    iterations: int
    relative_residual: float
    negative_curvature: bool = False
    state_solves: int = 0


class KKTSolver(Protocol):
    """Solves with the KKT matrix of the point at which it was made.

    Attributes
    ----------
    name
        What it is, for the report.
    inertia_is_right
        Whether the matrix has as many positive eigenvalues as x has entries and as many negative ones as p has, that is
        whether H + s M + D is positive definite on the null space of G; None where no factorisation can tell.
    singular
        Whether a factorisation met null pivots.
    """

    name: str
    inertia_is_right: bool | None
    singular: bool

    def solve(self, right: Pair, out: Pair, rtol: float, *, improve: bool = False) -> KKTResult:
        """Solve to a tolerance relative in the Riesz norm; with ``improve``, from what ``out`` holds. Collective: yes.

        Raises
        ------
        ConvergenceError
            If the solver breaks down. One that merely stops early returns the residual that it reached.
        """

    def destroy(self) -> None:
        """Free the PETSc objects. Collective: yes."""


class Program(Protocol):
    """A nonlinear program at the point to which it was moved last.

    Attributes
    ----------
    comm
        Communicator of the vectors.
    quadratic
        Whether f is quadratic and c linear: one accurate step solves it.
    """

    comm: MPI.Comm
    quadratic: bool

    def create(self) -> Pair:
        """Return a pair of zero vectors. Collective: yes."""

    def get(self, out: Pair) -> None:
        """Copy the present point (the initial guess, at first). Collective: yes."""

    def move(self, point: Pair) -> None:
        """Let everything below stand at a point. Collective: yes."""

    def bounds(self) -> tuple[PETSc.Vec, PETSc.Vec] | None:
        """Return l and b by coordinates, infinite where there is none; None without bounds. Collective: yes."""

    def objective(self) -> float:
        """Return f(x). Collective: yes."""

    def residual(self, out: Pair) -> None:
        """Set the covectors (L_x(x, p), c(x)). Collective: yes."""

    def objective_gradient(self, out: PETSc.Vec) -> None:
        """Set the covector f'(x). Collective: yes."""

    def hessian_mult(self, direction: PETSc.Vec, out: PETSc.Vec) -> None:
        """Set the covector H d. Collective: yes."""

    def jacobian_mult(self, direction: PETSc.Vec, out: PETSc.Vec) -> None:
        """Set the covector G d. Collective: yes."""

    def jacobian_mult_transpose(self, direction: PETSc.Vec, out: PETSc.Vec) -> None:
        """Set the covector G' d, d of the dual space. Collective: yes."""

    def riesz(self, covector: Pair, out: Pair) -> None:
        """Set the Riesz representatives (M^-1 r, W^-1 t): always by the same symmetric operators. Collective: yes."""

    def weights(self) -> PETSc.Vec:
        """Return the diagonal of M, shape of x: the weight of each coordinate in the metric. Collective: yes."""

    def kkt_solver(
        self,
        shift: float = 0.0,
        dual_shift: float = 0.0,
        diagonal: PETSc.Vec | None = None,
        fixed: Mask | None = None,
        curvature: float = 1.0,
    ) -> KKTSolver:
        """Set up a solver for the KKT matrix at the present point; destroy it after use. Collective: yes.

        Parameters
        ----------
        shift, dual_shift
            s and e.
        diagonal
            D, by coordinates of x.
        fixed
            Which owned coordinates of x do not move: their rows and columns are those of the identity.
        curvature
            k.
        """

    def destroy(self) -> None:
        """Free the PETSc objects. Collective: yes."""


@runtime_checkable
class Restoring(Protocol):
    """A program that can find, at the price of few solves, what belongs to a part of x: the state to the controls.

    Attributes
    ----------
    restores
        Whether that is cheap, so that it is done.
    gauss_newton
        Whether `Program.kkt_solver` leaves the curvature of the constraints out of H.
    """

    restores: bool
    gauss_newton: bool

    def restore(self, point: Pair) -> int:
        """Move a point so that c = 0 and so that L_x = 0 by that part of x, and return the solves it took.

        Collective: yes.
        """


def norm(program: Program, covector: Pair, parts: Sequence[str] = ("primal", "dual")) -> float:
    """Return the Riesz (dual) norm of a pair of covectors, or of one part of it. Collective: yes."""
    representative = program.create()
    program.riesz(covector, representative)
    square = 0.0
    for part in parts:
        square += max(getattr(covector, part).dot(getattr(representative, part)), 0.0)
    representative.destroy()
    return float(square**0.5)
