"""Inertia correction of KKT matrices, and what iterations count and raise."""

import dataclasses

from petsc4py import PETSc

from pdeopt.optimise.program import KKTResult, KKTSolver, Mask, Pair, Program
from pdeopt.report import ConvergenceError

FIRST_SHIFT, _SMALLEST_SHIFT, _LARGEST_SHIFT = 1e-4, 1e-20, 1e20


class Failure(ConvergenceError):
    """The iteration cannot go on; ``reason`` is TAO's."""

    def __init__(self, message: str, reason: int) -> None:
        super().__init__(message)
        self.reason = reason


@dataclasses.dataclass
class Counters:
    """What was spent: evaluations, KKT matrices set up, iterations and state solves of their solvers, corrections."""

    evaluations: int = 0
    setups: int = 0
    inner_iterations: int = 0
    corrections: int = 0
    penalty_updates: int = 0
    unit_steps: int = 0
    second_order_corrections: int = 0
    restorations: int = 0
    state_solves: int = 0


class InertiaCorrection:
    """Finds the shift s of the KKT matrix (Waechter and Biegler, Math. Program. 106 (2006), Algorithm IC).

    Parameters
    ----------
    program
        The program.
    counters
        Is kept up to date.

    Attributes
    ----------
    kkt_name
        The last solver's name.
    """

    def __init__(self, program: Program, counters: Counters) -> None:
        self._program, self._counters = program, counters
        self._last = 0.0
        self.kkt_name = ""

    def accept(self, shift: float) -> None:
        """Keep a shift that led to a step: the next correction begins near it."""
        self._last = shift

    def forget(self) -> None:
        """Begin the next correction from nothing."""
        self._last = 0.0

    def increase(self, shift: float) -> float:
        """Return a larger shift.

        Raises
        ------
        Failure
            If there is none left.
        """
        self._counters.corrections += 1
        if shift == 0.0:
            return FIRST_SHIFT if self._last == 0.0 else max(_SMALLEST_SHIFT, self._last / 3.0)
        shift *= 100.0 if self._last == 0.0 else 8.0
        if shift > _LARGEST_SHIFT:
            raise Failure("no regularisation made the KKT matrix regular: look for NaN in the second derivatives", -8)
        return shift

    def solve(
        self,
        right: Pair,
        out: Pair,
        accuracy: float,
        shift: float,
        dual_shift: float,
        dual_shift_if_singular: float,
        diagonal: PETSc.Vec | None = None,
        fixed: Mask | None = None,
    ) -> tuple[KKTSolver | None, KKTResult | None]:
        """Set up and solve; None where the inertia is known to be wrong. The caller destroys the solver.

        Collective: yes.
        """
        program, counters = self._program, self._counters
        kkt = program.kkt_solver(shift, dual_shift, diagonal, fixed)
        counters.setups += 1
        self.kkt_name = kkt.name
        if kkt.inertia_is_right is False and kkt.singular and dual_shift == 0.0 and right.dual.getSize():
            kkt.destroy()  # the gradients of the constraints may be linearly dependent
            kkt = program.kkt_solver(shift, dual_shift_if_singular, diagonal, fixed)
            counters.setups += 1
        if kkt.inertia_is_right is False:
            kkt.destroy()
            return None, None
        try:
            result = kkt.solve(right, out, accuracy)
        except ConvergenceError:
            kkt.destroy()
            return None, None
        counters.inner_iterations += result.iterations
        counters.state_solves += result.state_solves
        return kkt, result
