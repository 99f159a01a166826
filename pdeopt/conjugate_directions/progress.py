"""Whether proposed directions get on: what they gain beside the plainest choice, and what they cost beside a solver."""

import bisect
import math
import time

from petsc4py import PETSc

# Part of the price of a classical solve that proposals may cost before a forecast counts.
_TRIAL = 0.2
# Of a classical solve, the part that does not depend on where it starts: its set-up.
_SETUP = 0.5
# The residual has to fall by this factor within the window; in an iteration in which it does, there is no doubt.
_FALL = 0.5


class Progress:
    """Watches the residual norms of one solve.

    Parameters
    ----------
    norm
        Of the first residual.
    target
        Norm at which the solve ends.
    window
        Iterations within which the norm has to halve.
    """

    def __init__(self, norm: float, target: float, window: int) -> None:
        self._target, self._window = target, window
        self._norms, self._least = [norm], [norm]
        self._last, self._seconds = time.perf_counter(), list[float]()
        self._doubtful, self._doubts = False, 0

    def note(self, norm: float) -> None:
        """Take the norm of the residual after an iteration. Collective: no."""
        self._doubtful = norm > _FALL * self._least[-1]
        self._doubts += self._doubtful
        self._norms.append(norm)
        self._least.append(min(norm, self._least[-1]))
        now = time.perf_counter()
        bisect.insort(self._seconds, now - self._last)
        self._last = now

    @property
    def stagnates(self) -> bool:
        """Whether the norm has not halved within the window; the same on all ranks."""
        return len(self._norms) > self._window and self._least[-1] > _FALL * self._least[-1 - self._window]

    @property
    def doubtful(self) -> bool:
        """Whether the last step is to be compared with a plain one; the same on all ranks.

        Of the iterations that do not halve the norm these are the first four, the 8th, 16th and so on.
        """
        return self._doubtful and (self._doubts <= 4 or _is_power(self._doubts))

    @property
    def due(self) -> bool:
        """Whether seconds are to be looked at after this iteration; the same on all ranks."""
        iterations = len(self._norms) - 1
        return iterations % 16 == 0 or _is_power(iterations)

    def too_dear(self, price: float) -> bool:
        """Whether the rest would cost more than a classical solve from here, of ``price`` seconds from the start.

        The rest is forecast from the least norms of the later half of the iterations, from 0.2 of the price on. As
        residuals that have not fallen yet may still do so, the forecast has the weight of the part of the price that
        has been spent. An iteration counts with their median, so that no hiccup of the machine decides. By the seconds
        of this rank: let rank 0 decide.
        """
        last, half = len(self._seconds), len(self._seconds) // 2
        pace = self._seconds[half]
        spent = last * pace
        if spent < _TRIAL * price or self._norms[-1] <= self._target:
            return False
        left = math.log(self._norms[-1] / self._target)
        share = left / max(math.log(self._norms[0] / self._target), left)
        classical = price * (_SETUP + (1.0 - _SETUP) * share)
        fall = math.log(self._least[half] / self._least[last])
        if fall <= 0.0:
            return True
        forecast = (last - half) * pace * left / fall
        return forecast * min(spent / price, 1.0) > classical


class PlainStep:
    r"""What the plainest proposal, the residual divided by the diagonal, would gain: a yardstick for others.

    An exact step along q lowers the energy of the error, e'Ae, by

    .. math:: \frac{(q' r)^2}{q' A q} .

    Parameters
    ----------
    template
        A vector of the layout of the unknowns.

    Collective: yes.
    """

    def __init__(self, template: PETSc.Vec) -> None:
        self._inverse, self._step, self._image = (template.duplicate() for _ in range(3))
        self._ready = False

    def forget(self) -> None:
        """Another matrix follows. Collective: no."""
        self._ready = False

    def gain(self, A: PETSc.Mat, P: PETSc.Mat, residual: PETSc.Vec) -> float:
        """Return the energy that a step along the residual over the diagonal of P would take. Collective: yes."""
        if not self._ready:
            self._inverse.set(1.0)
            if "aij" in P.getType():
                P.getDiagonal(self._inverse)
                self._inverse.abs()
                self._inverse.reciprocal()  # PETSc leaves zeros as they are
            self._ready = True
        self._step.pointwiseMult(self._inverse, residual)
        A.mult(self._step, self._image)
        curvature, slope = (float(value) for value in self._step.mDot([self._image, residual]))
        return slope**2 / curvature if curvature > 0.0 else 0.0

    def release(self) -> None:
        """Free the vectors. Collective: yes."""
        for vector in (self._inverse, self._step, self._image):
            vector.destroy()


def _is_power(count: int) -> bool:
    """Whether a number is a power of two."""
    return count > 0 and count & (count - 1) == 0
