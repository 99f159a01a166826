"""Conjugate directions: former ones kept for A-orthogonalisation, and the exact line search along a new one."""

import dataclasses
import math

from petsc4py import PETSc

# A direction that keeps less than this part of its energy once the former ones are taken out of it is rounding.
_INDEPENDENT = 1e-13


@dataclasses.dataclass(frozen=True)
class Search:
    r"""Along a direction q with image w = A q.

    Attributes
    ----------
    curvature, slope
        q'Aq and q'r; the exact step is slope / curvature.
    total
        q'Aq before the former directions were taken out of q.
    """

    curvature: float
    slope: float
    total: float

    @property
    def step(self) -> float:
        """What minimises the energy of the error along q."""
        return self.slope / self.curvature

    @property
    def gain(self) -> float:
        """By how much this step lowers e'Ae, the energy of the error e."""
        return self.slope**2 / self.curvature

    @property
    def fault(self) -> str:
        """Why there is no step; empty if there is one."""
        if not (math.isfinite(self.curvature) and math.isfinite(self.slope)):
            return "not finite"
        if self.curvature < -_INDEPENDENT * abs(self.total) or (self.curvature == 0.0 and self.slope != 0.0):
            return "not positive"
        return "" if self.curvature > _INDEPENDENT * self.total and self.slope != 0.0 else "not new"


class Directions:
    r"""The last directions and their images, to which a proposal is made A-orthogonal.

    .. math:: q \leftarrow q - \sum_j \frac{w_j' q}{p_j' w_j} p_j, \qquad w_j = A p_j

    With a linear symmetric positive definite proposal this is the flexible conjugate gradient method of Notay (SIAM J.
    Sci. Comput. 22, 2000), truncated to ``depth`` directions; with a network as proposal and depth 2 the method of
    Kaneda et al. (ICML 2023).

    Parameters
    ----------
    template
        A vector of the layout of the unknowns.
    depth
        How many directions are kept, >= 0.

    Collective: yes.
    """

    def __init__(self, template: PETSc.Vec, depth: int) -> None:
        self._pairs = [(template.duplicate(), template.duplicate()) for _ in range(depth + 1)]
        self._curvatures: list[float] = []
        self._depth = depth

    @property
    def new(self) -> tuple[PETSc.Vec, PETSc.Vec]:
        """Where the next direction and its image are to be written."""
        return self._pairs[-1]

    def search(self, A: PETSc.Mat, residual: PETSc.Vec) -> Search:
        """Make the new direction A-orthogonal to the kept ones, and look along it. Collective: yes."""
        direction, image = self.new
        removed = 0.0
        if self._curvatures:
            kept = self._pairs[: len(self._curvatures)]
            products = direction.mDot([w for _, w in kept])
            shares = [float(product) / c for product, c in zip(products, self._curvatures, strict=True)]
            direction.maxpy([-share for share in shares], [p for p, _ in kept])
            removed = sum(share**2 * c for share, c in zip(shares, self._curvatures, strict=True))
        A.mult(direction, image)
        curvature, slope = (float(value) for value in direction.mDot([image, residual]))
        return Search(curvature, slope, curvature + removed)

    def keep(self, curvature: float) -> None:
        """Keep the new direction, in the place of the oldest if there are too many. Collective: no."""
        if len(self._curvatures) < self._depth:
            place = len(self._curvatures)
            self._pairs[place], self._pairs[-1] = self._pairs[-1], self._pairs[place]
            self._curvatures.append(curvature)
        elif self._depth:
            self._pairs = [*self._pairs[1:-1], self._pairs[-1], self._pairs[0]]
            self._curvatures = [*self._curvatures[1:], curvature]

    def forget(self) -> None:
        """Begin anew. Collective: no."""
        self._curvatures.clear()

    def release(self) -> None:
        """Free the vectors. Collective: yes."""
        for pair in self._pairs:
            for vector in pair:
                vector.destroy()
        self._pairs = []
