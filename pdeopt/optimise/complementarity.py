"""Complementarity constraints 0 <= a perp b >= 0 between coordinates of x, by an exact penalty.

The bounds a, b >= 0 stay; a'b = 0, at whose feasible points no constraint qualification holds, becomes the term
rho * sum_k w_k a_k b_k of the objective, and rho grows while the barrier parameter falls faster than the products
(Leyffer, Lopez-Calva, Nocedal, SIAM J. Optim. 17 (2006) 52-77). If rho stays bounded the limit is strongly stationary:
the multipliers of pairs that both vanish are not negative.
"""

import dataclasses
from typing import Protocol

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np
import numpy.typing as npt

from pdeopt.optimise.control_program import ControlProgram
from pdeopt.optimise.interior import InteriorPoint
from pdeopt.optimise.interior_state import InteriorPointSettings
from pdeopt.optimise.matrices import MatrixProgram
from pdeopt.optimise.program import Program
from pdeopt.optimise.regularisation import Failure
from pdeopt.optimise.settings import Tolerances
from pdeopt.report import InputError

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.integer]
_GROWTH, _LARGEST_PENALTY = 10.0, 1e7  # beyond, rounding of the penalty drowns the objective
_RELATION = 0.4  # products may be as large as mu to this power before rho grows


class Penalty(Protocol):
    """A term rho * sum_k w_k a_k b_k of a program's objective.

    Attributes
    ----------
    program
        The program with the term.
    """

    program: Program

    def set(self, penalty: float) -> None:
        """Set rho. Collective: yes."""

    def pairs(self, vector: PETSc.Vec) -> tuple[Array, Array]:
        """Return entries of a vector at a and at b: every pair on one rank. Collective: yes."""

    def weights(self) -> Array:
        """Return w of the same pairs. Collective: no."""


class PairPenalty:
    """The penalty of pairs of coordinates, added to a program of matrices.

    Parameters
    ----------
    program
        The program; its bounds hold a, b >= 0.
    first, second
        Global indices of a_k and b_k, shape (pairs,), the same on all ranks.
    weights
        w, positive, shape (pairs,); ones if None.

    Raises
    ------
    InputError
        If shapes or indices are wrong.

    Collective: yes.
    """

    def __init__(self, program: MatrixProgram, first: Indices, second: Indices, weights: Array | None = None) -> None:
        self.program: Program = program
        self._matrices = program
        first, second = np.asarray(first, dtype=PETSc.IntType), np.asarray(second, dtype=PETSc.IntType)
        point = program.create()
        size = point.primal.getSize()
        if first.shape != second.shape or first.ndim != 1 or not _within(size, first, second):
            raise InputError(
                f"pairs have shapes {first.shape} and {second.shape}: give two lists of indices below {size}"
            )
        own = slice(program.comm.rank, None, program.comm.size)
        every = np.ones(first.size) if weights is None else np.asarray(weights, dtype=float)
        if every.shape != first.shape or not (every > 0.0).all():
            raise InputError("weights of pairs must be positive, one for each pair")
        self._first, self._second, self._weights = first[own], second[own], every[own]
        self._local = point.primal.getLocalSize()
        point.destroy()

    def set(self, penalty: float) -> None:
        """Set rho. Collective: yes."""
        matrix = PETSc.Mat().createAIJ(((self._local, None),) * 2, comm=self.program.comm)
        matrix.setOption(PETSc.Mat.Option.NEW_NONZERO_ALLOCATION_ERR, False)
        matrix.setUp()
        for row, column, weight in zip(self._first, self._second, self._weights, strict=True):
            matrix.setValue(row, column, penalty * weight, addv=PETSc.InsertMode.ADD_VALUES)
            matrix.setValue(column, row, penalty * weight, addv=PETSc.InsertMode.ADD_VALUES)
        matrix.assemble()
        self._matrices.add_quadratic(matrix)

    def pairs(self, vector: PETSc.Vec) -> tuple[Array, Array]:
        """Return entries of a vector at a and at b. Collective: yes."""
        found = []
        for indices in (self._first, self._second):
            index = PETSc.IS().createGeneral(indices, comm=MPI.COMM_SELF)
            out = PETSc.Vec().createSeq(indices.size)
            scatter = PETSc.Scatter().create(vector, index, out, None)
            scatter.scatter(vector, out)
            found.append(np.array(out.array_r))
            for item in (scatter, out, index):
                item.destroy()
        return found[0], found[1]

    def weights(self) -> Array:
        """Return w of the same pairs. Collective: no."""
        return self._weights


class ConstantPenalty:
    """The penalty that a problem's objective holds already, with rho a constant of its form.

    Parameters
    ----------
    program
        That of a control problem with rho * y * u * dx in its objective.
    constant
        rho, for instance a `dolfinx.fem.Constant`.
    first, second
        Local indices of a_k and b_k among the owned coordinates of x, shape (pairs,).
    weights
        w, shape (pairs,): what the integral gives a node.
    """

    def __init__(
        self, program: ControlProgram, constant: object, first: Indices, second: Indices, weights: Array
    ) -> None:
        self.program: Program = program
        self._control = program
        self._constant, self._first, self._second, self._weights = constant, first, second, weights

    def set(self, penalty: float) -> None:
        """Set rho. Collective: yes."""
        self._constant.value = np.asarray(penalty)  # type: ignore[attr-defined]
        self._control.forget_matrices()

    def pairs(self, vector: PETSc.Vec) -> tuple[Array, Array]:
        """Return entries of a vector at a and at b. Collective: no."""
        values = vector.array_r
        return np.array(values[self._first]), np.array(values[self._second])

    def weights(self) -> Array:
        """Return w of the same pairs. Collective: no."""
        return self._weights


def _within(size: int, *indices: Indices) -> bool:
    return all(bool(((index >= 0) & (index < size)).all()) for index in indices)


@dataclasses.dataclass(frozen=True)
class ComplementarityReport:
    """What was reached.

    Parameters
    ----------
    iterations
        Steps of the interior point method.
    penalty
        Last rho.
    largest_product
        Largest a_k b_k.
    biactive
        Number of pairs in which both vanish.
    stationarity
        "strong", where their multipliers are not negative (or there are none); otherwise "M" (one vanishes or both are
        positive), "C" (products of multipliers are not negative) or "weak".
    """

    iterations: int
    penalty: float
    largest_product: float
    biactive: int
    stationarity: str


class ComplementaritySolver:
    """Solves a program with complementarity constraints, from its present point.

    Parameters
    ----------
    penalty
        The term of the objective.
    settings
        Numbers of the interior point method; mu falls monotonically if None, since rho follows it.
    initial
        First rho.
    tolerance
        For the products a_k b_k.

    Attributes
    ----------
    interior
        The interior point method: point, multipliers, norms. Its objective has the penalty term in it, which is at most
        rho times the sum of the products.

    Collective: yes.
    """

    def __init__(
        self,
        penalty: Penalty,
        settings: InteriorPointSettings | None = None,
        initial: float = 1.0,
        tolerance: float = 1e-7,
    ) -> None:
        self._term, self._tolerance = penalty, tolerance
        self.penalty = initial
        penalty.set(initial)
        self.interior = InteriorPoint(penalty.program, settings or InteriorPointSettings(adaptive=False))

    def solve(self, tolerances: Tolerances | None = None, limit: int = 300) -> ComplementarityReport:
        """Step until optimality and products are within their tolerances. Collective: yes.

        Raises
        ------
        Failure
            If the interior point method fails, the limit is reached, or rho grows beyond all bounds.
        """
        tolerances, interior = tolerances or Tolerances(), self.interior
        lowest = interior.barrier
        for count in range(limit + 1):
            solved = tolerances.met(interior.gradient_norm, interior.constraint_norm)
            product = self._largest_product()
            if solved and product <= self._tolerance:
                return self._report(count, product)
            if solved or (
                interior.barrier < 0.5 * lowest and product > max(interior.barrier**_RELATION, self._tolerance)
            ):
                self._increase(product)
            lowest = min(lowest, interior.barrier)
            if count < limit:
                interior.step(tolerances)
        raise Failure(
            f"{limit} steps left a product of {product:.1e} and a residual of {interior.norms.largest:.1e}", -2
        )

    def _increase(self, product: float) -> None:
        """Raise rho and go on from the present point."""
        self.penalty *= _GROWTH
        if self.penalty > _LARGEST_PENALTY:
            raise Failure(
                f"products of complementary variables stay at {product:.1e} for every penalty: the problem is "
                "infeasible, or has a local minimum of the products; start elsewhere",
                -8,
            )
        self._term.set(self.penalty)
        self.interior.refresh()

    def _largest_product(self) -> float:
        first, second = self._term.pairs(self.interior.point.primal)
        return self._maximum(float((first * second).max(initial=0.0)))

    def _maximum(self, value: float) -> float:
        return float(self.interior.bounds.comm.allreduce(value, op=MPI.MAX))

    def _report(self, count: int, product: float) -> ComplementarityReport:
        """Return what was reached, with the kind of stationarity. Collective: yes."""
        interior, term = self.interior, self._term
        bounds = interior.bounds
        vector = interior.point.primal.duplicate()
        vector.array[:] = bounds.weights * interior.bound_multipliers.lower
        covectors = term.pairs(vector)
        vector.destroy()
        first, second = term.pairs(interior.point.primal)
        biactive = np.maximum(first, second) <= self._tolerance**0.5
        # With the penalty's derivative taken off these are the multipliers of a, b >= 0 in the problem without penalty.
        of_first = (covectors[0] - self.penalty * term.weights() * second)[biactive]
        of_second = (covectors[1] - self.penalty * term.weights() * first)[biactive]
        scale = 1e-3 * max(1.0, self._maximum(max(np.abs(values).max(initial=0.0) for values in (of_first, of_second))))
        smaller, larger = np.minimum(of_first, of_second), np.maximum(of_first, of_second)
        kinds = {
            "strong": smaller >= -scale,
            "M": (smaller >= -scale) | (np.abs(larger) <= scale),
            "C": (smaller >= -scale) | (larger <= scale),
        }
        stationarity = "weak"
        for kind, holds in reversed(kinds.items()):
            if not self._maximum(float(not holds.all())):
                stationarity = kind
        return ComplementarityReport(count, self.penalty, product, int(bounds.sum(float(biactive.sum()))), stationarity)

    def destroy(self) -> None:
        """Free the vectors; the program stays. Collective: yes."""
        self.interior.destroy()
