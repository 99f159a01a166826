"""What the directions of conjugate gradients have cost already: their states and adjoints, summed along the iteration.

Each action of a reduced Hessian on a direction d solves for the change of state and adjoint along d. CG's solution is a
sum of such directions, so that its state and adjoint are sums of these changes, and need no solves of their own.
"""

from petsc4py import PETSc


class ConjugateTrace:
    """Repeats CG's steps from zero on the states and adjoints of its directions.

    Parameters
    ----------
    right
        Right-hand side of CG.
    state
        A vector of the state's shape.
    limit
        How many pairs (d, H d) are kept, the last ones.

    Attributes
    ----------
    control, state, adjoint, residual
        The solution so far, its state and adjoint, and right - H control.
    pairs
        Directions of positive curvature with their images under H; owned by whoever takes them.
    """

    def __init__(self, right: PETSc.Vec, state: PETSc.Vec, limit: int = 0) -> None:
        self.residual, self.control = right.copy(), right.duplicate()
        self.state, self.adjoint = state.duplicate(), state.duplicate()
        for vector in (self.control, self.state, self.adjoint):
            vector.set(0.0)
        self._limit = limit
        self.pairs: list[tuple[PETSc.Vec, PETSc.Vec]] = []

    def record(self, direction: PETSc.Vec, image: PETSc.Vec, state: PETSc.Vec, adjoint: PETSc.Vec) -> None:
        """Take CG's step along a direction, unless its curvature is not positive. Collective: yes."""
        curvature = float(direction.dot(image))
        if not curvature > 0.0:
            return
        length = float(direction.dot(self.residual)) / curvature
        self.control.axpy(length, direction)
        self.residual.axpy(-length, image)
        self.state.axpy(length, state)
        self.adjoint.axpy(length, adjoint)
        if self._limit:
            self.pairs.append((direction.copy(), image.copy()))
            if len(self.pairs) > self._limit:
                for vector in self.pairs.pop(0):
                    vector.destroy()

    def take_pairs(self) -> list[tuple[PETSc.Vec, PETSc.Vec]]:
        """Return the pairs, which are the caller's from now on."""
        pairs, self.pairs = self.pairs, []
        return pairs

    def release(self) -> None:
        """Free the vectors. Collective: yes."""
        for vector in (
            self.residual,
            self.control,
            self.state,
            self.adjoint,
            *(v for pair in self.pairs for v in pair),
        ):
            vector.destroy()
