"""What of a solver can be kept when the matrix was assembled again."""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Literal

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np

from pdeopt.relaxation.features import is_assembled, probe, sum_over_ranks
from pdeopt.relaxation.rule import Kind

# Entries of A z that differ by less, relative to themselves, are the same: what order of summation can do.
SAME = 1e-13
# Images at a relative distance of more are not compared row by row.
CLOSE = 1e-9
# Rows of each rank from which the amount of a change is estimated.
SAMPLE = 500
# A preconditioner of values that differ by more is not tried: its iteration would not contract.
FAR = 0.5
# Relative change at which a row counts no more.
LARGEST = 1e3
# Share of a set-up that one solve with an old preconditioner may spend on more iterations than a fresh one needs.
PATIENCE = 0.5


@dataclasses.dataclass(frozen=True)
class Change:
    """How the values of a matrix differ from those that its preconditioner was made of.

    Parameters
    ----------
    kind
        ``"none"``: equal up to rounding; ``"scaled"``: all multiplied by one positive factor; ``"values"``: others in
        the same pattern; ``"pattern"``: another matrix, or the first one.
    fresh
        Whether they also differ from those seen last.
    """

    kind: Literal["none", "scaled", "values", "pattern"]
    fresh: bool = True


class ValueWatch:
    """Tells whether the values of a matrix A changed, from the image A z of a vector z drawn once.

    PETSc counts assemblies, not changes: a time step that assembles the same matrix again makes it factor again. An
    entry that changes by more than rounding changes A z. The image costs one product and the memory of five vectors,
    and serves matrices without entries as well.

    Attributes
    ----------
    vector, image
        z and A z of the matrix seen last.
    product
        Least wall seconds that a product took on this rank.
    """

    def __init__(self) -> None:
        self.vector: PETSc.Vec | None = None
        self.image: PETSc.Vec | None = None
        self.product = math.inf
        self._before: PETSc.Vec | None = None  # A z of the values seen before
        self._reference: PETSc.Vec | None = None  # A z of the values that were accepted
        self._difference: PETSc.Vec | None = None
        self._factor = 1.0  # the best scaling of the reference
        self._reference_is_before = False  # the values seen before were accepted
        self._key: tuple[object, ...] = ()
        self._state: tuple[int, int] = (-1, -1)

    def compare(self, matrix: PETSc.Mat) -> Change | None:
        """Return how the matrix differs from the one that was accepted; None if it was not touched since seen last.

        Collective: yes.
        """
        comm = matrix.getComm().tompi4py()
        state = matrix.getId(), matrix.stateGet()
        key = matrix.getId(), matrix.getSizes(), matrix.getInfo()["nz_used"] if is_assembled(matrix) else 0.0
        touched, other = sum_over_ranks(comm, [state != self._state, key != self._key])
        if not touched and not other:
            return None
        if other:
            self.release()
            self.product = math.inf
            self.vector, self.image = probe(matrix), matrix.createVecLeft()
            self._before, self._reference = self.image.duplicate(), self.image.duplicate()
            self._difference = self.image.duplicate()
            self._key = key
        self._state = state
        assert self.vector
        assert self.image
        assert self._before
        assert self._reference
        self.image.copy(self._before)
        began = time.perf_counter()
        matrix.mult(self.vector, self.image)
        self.product = min(self.product, time.perf_counter() - began)
        return Change("pattern") if other else self._compare_images(comm)

    def _compare_images(self, comm: MPI.Comm) -> Change:
        assert self.image
        assert self._before
        assert self._reference
        image, before, reference = self.image, self._before, self._reference
        square = reference.dot(reference)
        factor = image.dot(reference) / square if square > 0.0 else 0.0
        fresh = self._far(before, 1.0) or self._differ(before, 1.0, comm)
        changed = (
            fresh if self._reference_is_before else self._far(reference, 1.0) or self._differ(reference, 1.0, comm)
        )
        self._reference_is_before = False
        self._factor = factor if factor > 0.0 else 1.0
        if not changed:
            return Change("none", fresh)
        if factor > 0.0 and not self._far(reference, factor) and not self._differ(reference, factor, comm):
            return Change("scaled", fresh)
        return Change("values", fresh)

    def _far(self, known: PETSc.Vec, factor: float) -> bool:
        """Whether the image differs from factor times a known one so much that no row needs a look; NaN does."""
        assert self.image
        assert self._difference
        self._difference.waxpy(-factor, known, self.image)
        return not self._difference.norm() <= CLOSE * abs(factor) * known.norm()

    def _differ(self, known: PETSc.Vec, factor: float, comm: MPI.Comm) -> bool:
        """Whether the image differs from factor times a known one by more than rounding in any row; NaN does."""
        assert self.image
        expected = factor * known.array_r
        same = np.abs(self.image.array_r - expected) <= SAME * np.abs(expected)
        return bool(sum_over_ranks(comm, [same.size - np.count_nonzero(same)])[0])

    def amount(self) -> float:
        """Return how much the values changed from those that were accepted.

        The root mean square over a sample of rows of the change relative to the row, after the best scaling, which
        Krylov methods do not see. Collective: yes.
        """
        assert self.image
        assert self._reference
        step = max(self.image.getLocalSize() // SAMPLE, 1)
        nearest = self._factor * self._reference.array_r[::step]
        with np.errstate(invalid="ignore", over="ignore"):
            change = np.abs(self.image.array_r[::step] - nearest) / np.maximum(np.abs(nearest), np.finfo(float).tiny)
            change = np.minimum(change, LARGEST)
        squares, rows = sum_over_ranks(self.image.getComm().tompi4py(), [change @ change, change.size])
        return math.sqrt(squares / rows)

    def accept(self) -> None:
        """Compare with the values seen last from now on. Collective: yes."""
        assert self.image
        assert self._reference
        self.image.copy(self._reference)
        self._reference_is_before = True

    def release(self) -> None:
        """Free the vectors. Collective: yes."""
        for handle in (self.vector, self.image, self._before, self._reference, self._difference):
            if handle is not None:
                handle.destroy()
        self.vector = self.image = self._before = self._reference = self._difference = None
        self._key, self._state = (), (-1, -1)


class Lagging:
    """Decides how many iterations an old preconditioner may take, from what set-up and iterations cost so far.

    It is kept while the iterations that it takes beyond those of a fresh one cost less than half a set-up. One that
    reaches the limit is made anew, and after the k-th time in a row the next 2^k - 1 changes do not try. So the loss
    is bounded by half a set-up, logarithmically often.

    Attributes
    ----------
    solve
        Seconds of a solve with a fresh preconditioner; 0 before the first.
    """

    def __init__(self) -> None:
        self.solve = 0.0
        self._iterations = self._last = 0
        self._setup = 0.0
        self._failures = self._wait = 0

    def budget(self, kind: Kind, amount: Callable[[], float]) -> int:
        """Return the iterations that the old preconditioner may take, 0 to make it anew.

        ``amount`` tells how much the values changed, and is asked if it matters. Collective: yes.
        """
        if kind not in ("factor", "incomplete") or not self._iterations:
            # Multigrid smooths with the new values of its finest level, but bounds and diagonals of the old ones.
            return 0
        if self._wait:
            self._wait -= 1
            return 0
        limit = self._iterations + int(PATIENCE * self._setup * self._iterations / self.solve)
        if limit <= max(self._last, self._iterations):
            return 0
        if amount() <= FAR:
            return limit
        self.kept(0, False)
        return 0

    def made(self, setup: float, solve: float, iterations: int) -> None:
        """Note the seconds of a set-up and of a solve with the fresh preconditioner. Collective: no."""
        self._setup, self.solve = setup, solve
        self._iterations = self._last = iterations

    def kept(self, iterations: int, converged: bool) -> None:
        """Note a solve with the old preconditioner. Collective: no."""
        self._last = iterations
        if converged:
            self._failures = 0
        else:
            self._failures += 1
            self._wait = 2 ** min(self._failures, 10) - 1
