r"""Slow directions of a matrix, kept from solve to solve and deflated in the next.

From the directions of a solve and the vectors kept so far come the k combinations u with the smallest

.. math:: \theta(u) = \frac{u' A u}{u' D u}, \qquad D = \operatorname{diag}(A),

the slow modes that a one-level preconditioner leaves. The next solve begins with its error A-orthogonal to them, and
its directions stay so: deflated conjugate gradients of Saad, Yeung, Erhel and Guyomarc'h (SIAM J. Sci. Comput. 21,
2000), here for a matrix that has changed meanwhile. They rank by
(A u)' P^-1 (A u) / u'Au, at an application of the preconditioner for each vector.
"""

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np
import numpy.typing as npt

from pdeopt.parallel import on_root

type Array = npt.NDArray[np.float64]

# Directions of a solve that are kept until its end, for each vector of the space.
_STORED = 4
# Part of its energy with which a vector counts as dependent on the others.
_DEPENDENT = 1e-10
# The space is renewed while it is new, and when a solve takes this many times the iterations of the best one so far.
_YOUNG, _AGED = 3, 1.15


class RecycledSpace:
    """The slow directions of the last solves.

    Parameters
    ----------
    size
        Number k of vectors, >= 1.
    template
        A vector of the layout of the unknowns.

    Attributes
    ----------
    rank
        Vectors in use in the last solve.
    renewals
        How often the vectors were chosen anew.

    Collective: yes.
    """

    def __init__(self, size: int, template: PETSc.Vec) -> None:
        owned = template.getLocalSize()
        self._comm: MPI.Comm = template.getComm().tompi4py()
        self._size = size
        self._in, self._out = template.duplicate(), template.duplicate()
        self._vectors: Array = np.zeros((owned, 0))
        self._images: Array = np.zeros((owned, 0))
        self._change = np.empty((0, 0))  # the vectors times this are A-orthonormal
        self._stored = np.empty((owned, _STORED * size), order="F")
        self._count = 0
        self._best = 0  # iterations
        self.rank = self.renewals = 0

    def prepare(self, A: PETSc.Mat, x: PETSc.Vec, residual: PETSc.Vec) -> None:
        """Take the present matrix, and make the error A-orthogonal to the space. Collective: yes."""
        self._count = 0
        if self._vectors.shape[1] == 0:
            return
        images = np.empty(self._vectors.shape, order="F")
        for column in range(images.shape[1]):
            self._in.array[:] = self._vectors[:, column]
            A.mult(self._in, self._out)
            images[:, column] = self._out.array_r
        self._images = images
        energy = self._sum(self._vectors.T @ images)
        self._change = on_root(self._comm, lambda: _orthonormal(energy))
        self.rank = self._change.shape[1]
        shares = self._change @ (self._change.T @ self._sum(residual.array_r @ self._vectors))
        with x as values:
            values += self._vectors @ shares
        with residual as values:
            values -= images @ shares

    def deflate(self, proposal: PETSc.Vec) -> None:
        """Make a proposal A-orthogonal to the space. Collective: yes."""
        if self.rank == 0:
            return
        shares = self._change @ (self._change.T @ self._sum(proposal.array_r @ self._images))
        with proposal as values:
            values -= self._vectors @ shares

    def note(self, direction: PETSc.Vec, curvature: float) -> None:
        """Keep a direction of energy ``curvature`` while there is room. Collective: no."""
        if self._count < self._stored.shape[1]:
            np.multiply(direction.array_r, curvature**-0.5, out=self._stored[:, self._count])
            self._count += 1

    def finish(self, P: PETSc.Mat, iterations: int) -> None:
        """After a solve: choose the vectors anew if it is time. Collective: yes."""
        if self._count == 0 or (self.renewals >= _YOUNG and iterations <= _AGED * self._best):
            return
        if self.rank:
            self._best = min(self._best or iterations, iterations)
        # All of these are A-orthonormal.
        candidates = np.hstack([self._vectors @ self._change, self._stored[:, : self._count]])
        self._out.set(1.0)
        if "aij" in P.getType():
            P.getDiagonal(self._out)
        weighted = np.sqrt(np.abs(self._out.array_r))[:, None] * candidates
        gram = self._sum(weighted.T @ weighted)
        chosen = on_root(self._comm, lambda: np.linalg.eigh(gram)[1][:, -self._size :].copy())
        self._vectors = np.asfortranarray(candidates @ chosen)
        self.renewals += 1

    def release(self) -> None:
        """Free the work vectors. Collective: yes."""
        self._in.destroy()
        self._out.destroy()

    def _sum(self, local: Array) -> Array:
        """Return the sum over the ranks. Collective: yes."""
        local = np.ascontiguousarray(local)
        total = np.empty_like(local)
        self._comm.Allreduce(local, total)
        return total


def _orthonormal(energy: Array) -> Array:
    """Return the combinations of vectors that are orthonormal for a matrix of energies, without dependent ones."""
    if not np.isfinite(energy).all():
        return np.empty((len(energy), 0))
    scale = 1.0 / np.sqrt(np.maximum(np.diag(energy), np.finfo(float).tiny))
    values, vectors = np.linalg.eigh(energy * np.outer(scale, scale))
    kept = values > _DEPENDENT
    return np.asarray((scale[:, None] * vectors[:, kept]) / np.sqrt(values[kept]))
