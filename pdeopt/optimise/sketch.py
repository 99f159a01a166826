"""Sketch-and-project: each step is the nearest point that solves a random combination of the equations.

With sketches S (columns s) and r = b - K z a step is z += K'S (S'K K'S)^+ S'r. One sketch costs little and gains
little: the expected square of the error falls by 1 - 1/kappa^2 with kappa = abs(K)_F abs(K^-1), so the number of
sketches grows like kappa^2, for a discretised saddle-point system about like h^-6. Here are single sketches, the
reference for small systems; blocks of them; and the residuals of all steps before as the sketch, which has short
recurrences and is a Krylov method.

References
----------
Strohmer and Vershynin, J. Fourier Anal. Appl. 15 (2009) 262-278; Gower and Richtarik, SIAM J. Matrix Anal. Appl. 36
(2015) 1660-1690; Brust and Saunders, "PLSS: a projected linear systems solver", SIAM J. Sci. Comput. 45 (2023)
A1012-A1037.
"""

import abc
import math

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np

from pdeopt.optimise.embedding import Array, LinearSystem, rows_by_index, sparse_signs
from pdeopt.parallel import random_stream
from pdeopt.report import OptionError

# Single sketches are refused beyond: the matrix would need 200 MB a rank, and the steps would never end.
DENSE_LIMIT = 5000
# Single projections done at a time, by one triangular solve.
GROUP = 32
# By default so many sketches stand between two convergence tests at least, which cost more than a small sweep.
SMALLEST_BATCH = 128


class Sketch(abc.ABC):
    """An iterative method that starts at a point and improves it step by step.

    Attributes
    ----------
    sketches
        Number of random combinations used so far; for Krylov methods, the number of steps.
    broken
        Whether it cannot go on.
    """

    def __init__(self) -> None:
        self.sketches = 0
        self.broken = False

    def start(self, system: LinearSystem, b: PETSc.Vec, x: PETSc.Vec, guess: bool) -> float:
        """Begin at x, or with ``guess`` false at zero; return the norm of the residual. Collective: yes."""
        self.system, self.b, self.x = system, b, x
        self.sketches, self.broken = 0, False
        self.residual = b.duplicate()
        if guess:
            norm = system.residual(b, x, self.residual)
        else:
            x.zeroEntries()
            b.copy(self.residual)
            norm = float(b.norm())
        if math.isfinite(norm):
            self._begin()
        return norm

    def verify(self) -> float:
        """Bring x up to date and return the norm of b - K x, computed anew. Collective: yes."""
        return self.system.residual(self.b, self.x, self.residual)

    def finish(self) -> None:
        """Let go of the system and the work vectors of one solve. Collective: yes."""
        self._end()
        self.residual.destroy()
        del self.system, self.b, self.x

    @abc.abstractmethod
    def step(self) -> float:
        """Do one step and return the norm of the residual, or an estimate. Collective: yes."""

    @abc.abstractmethod
    def _begin(self) -> None:
        """Make ready for steps, from x and its residual. Collective: yes."""

    @abc.abstractmethod
    def _end(self) -> None:
        """Free what `_begin` made, if it ran. Collective: yes."""

    def destroy(self) -> None:  # noqa: B027 - most keep nothing
        """Free what is kept from solve to solve. Collective: yes."""


class SingleSketch(Sketch):
    """One sketch at a time: z += K's (s'r) / abs(K's)^2, s = e_i with i uniform, or s ~ N(0, I).

    Every rank holds the whole matrix, dense, draws the same numbers and does the same steps. A `step` here is a batch
    of sketches. Some 30 of them are done at a time: their coefficients solve a triangular system, which is what doing
    them one by one does in another order.

    Parameters
    ----------
    gaussian
        Whether s is Gaussian; else a row is taken (randomised Kaczmarz with uniform rows).
    batch
        Sketches in a step; 0 means as many as there are unknowns, and 128 at least.
    cap
        Number of sketches in a solve at most; 0 means any number.
    seed
        Of the random stream.
    """

    def __init__(self, gaussian: bool, batch: int = 0, cap: int = 0, seed: int = 0) -> None:
        super().__init__()
        self.gaussian, self.batch, self.cap = gaussian, batch, cap
        # It goes on from solve to solve: one that continues another must not draw the same numbers again.
        self.stream = random_stream("sketch.gaussian" if gaussian else "sketch.kaczmarz", seed)

    def _begin(self) -> None:
        size = self.b.getSize()
        if size > DENSE_LIMIT:
            raise OptionError(
                f"single sketches need a number of steps that grows like h^-6.3, and a dense matrix: {size} unknowns "
                f"are more than {DENSE_LIMIT}. Set ksp_sketch_type sgmres or history"
            )
        self.matrix = gather_dense(self.system, self.b)
        self.comm = self.b.getComm().tompi4py()
        self.right = gather_vector(self.b)
        self.point = gather_vector(self.x)

    def step(self) -> float:
        """Do a batch of sketches and return the norm of the residual. Collective: yes."""
        count = self.batch or max(self.right.size, SMALLEST_BATCH)
        if self.cap:
            count = min(count, self.cap - self.sketches)
        indices = None if self.gaussian else self.stream.integers(self.right.size, size=count)
        for begin in range(0, count, GROUP):
            end = min(begin + GROUP, count)
            if indices is None:
                directions = self.stream.standard_normal((end - begin, self.right.size))
                project_in_turn(directions @ self.matrix, directions @ self.right, self.point)
            else:
                rows = indices[begin:end]
                project_in_turn(self.matrix[rows], self.right[rows], self.point)
        self.sketches += count
        # Ranks may round differently; they have to stop together.
        norm = np.array(np.linalg.norm(self.right - self.matrix @ self.point))
        self.comm.Bcast(norm)
        return float(norm)

    def verify(self) -> float:
        """Set x and return the norm of its residual. Collective: yes."""
        first, end = self.x.getOwnershipRange()
        self.x.array_w[:] = self.point[first:end]
        return super().verify()

    def _end(self) -> None:
        self.matrix = self.right = self.point = np.empty(0)


def project_in_turn(rows: Array, right: Array, point: Array) -> None:
    """Project a point onto the hyperplanes row'z = right, one after the other, in place.

    Step j is z += c_j a_j with c_j = right_j - a_j'z, rows scaled to norm one; before it z had moved by the c_l a_l
    with l < j. So (I + L) c = right - A z with L the strictly lower part of A A'.

    Parameters
    ----------
    rows
        Shape (count, unknowns); a row of zeros is passed over.
    right
        Shape (count,).
    point
        Shape (unknowns,).

    Collective: no.
    """
    lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    lengths[lengths == 0.0] = math.inf
    rows = rows / lengths[:, None]
    triangle = np.tril(rows @ rows.T, -1)
    np.fill_diagonal(triangle, 1.0)
    # No entry exceeds the diagonal's ones, so the LU factors are the triangle itself: this is forward substitution.
    point += np.linalg.solve(triangle, right / lengths - rows @ point) @ rows


class BlockSketch(Sketch):
    """Blocks of sketches: z += Y (Y'Y)^+ S'r with Y = K'S, by a QR factorisation of Y.

    S has a column for each of ``block_size`` rows that lie side by side, where the unknowns are numbered by their place
    on the mesh a subdomain; or Gaussian entries; or sparse signs.

    Parameters
    ----------
    block_size
        Columns of S.
    distribution
        ``"rows"``, ``"gaussian"`` or ``"sign"``.
    nonzeros
        In each row of S, for signs.
    seed
        Of the random streams.
    """

    def __init__(self, block_size: int, distribution: str = "rows", nonzeros: int = 4, seed: int = 0) -> None:
        super().__init__()
        self.block_size, self.distribution = block_size, distribution
        self.nonzeros, self.seed = nonzeros, seed
        self.steps = 0  # of all solves: each has numbers of its own
        self.stream = random_stream("sketch.block", seed)

    def _begin(self) -> None:
        self.width = min(self.block_size, self.b.getSize())
        self.comm = self.b.getComm().tompi4py()
        self.column, self.image = self.b.duplicate(), self.b.duplicate()

    def step(self) -> float:
        """Project onto a block of sketched equations. Collective: yes."""
        sketch = self._draw()
        images = np.empty_like(sketch)
        for j in range(self.width):
            self.column.array_w[:] = sketch[:, j]
            self.system.mult_transpose(self.column, self.image)
            images[:, j] = self.image.array_r
        # Tall-skinny QR: each rank's triangle, and then that of all triangles, on all ranks alike.
        local = np.linalg.qr(images, mode="r")
        triangle = np.linalg.qr(np.concatenate(self.comm.allgather(local)), mode="r")
        product = self.comm.allreduce(sketch.T @ self.residual.array_r, op=MPI.SUM)
        self.sketches += self.width
        self.steps += 1
        if not (np.isfinite(triangle).all() and np.isfinite(product).all()):
            return math.nan
        # The least solution of Y'd = S'r is d = Y (R'R)^+ S'r; singular where sketched equations depend on each other.
        _, values, right = np.linalg.svd(triangle, full_matrices=False)
        keep = values > values[0] * self.b.getSize() * np.finfo(float).eps
        inverse = np.divide(1.0, values, out=np.zeros_like(values), where=keep)
        # (R'R)^+ = V s^-2 V'; one s^-1 goes with Y = Q R, as Q = Y V s^-1 U', so nothing is squared.
        basis = images @ (right.T * inverse)
        self.column.array_w[:] = basis @ (inverse * (right @ product))
        self.x.axpy(1.0, self.column)
        self.system.mult(self.column, self.image)
        self.residual.axpy(-1.0, self.image)
        return float(self.residual.norm())

    def _draw(self) -> Array:
        """Return the owned rows of S. Collective: no."""
        first, end = self.b.getOwnershipRange()
        name = f"sketch.block.{self.steps}"
        if self.distribution == "gaussian":
            return rows_by_index(name, self.seed, first, end, lambda stream, n: stream.standard_normal((n, self.width)))
        sketch = np.zeros((end - first, self.width))
        if self.distribution == "sign":
            count = min(self.nonzeros, self.width)
            places, values, _ = sparse_signs(first, end, self.width - self.width % count, count, name, self.seed)
            np.put_along_axis(sketch, places, values, axis=1)
            return sketch
        blocks = -(-self.b.getSize() // self.width)
        start = int(self.stream.integers(blocks)) * self.width
        rows = np.arange(max(first, start), min(end, start + self.width))
        sketch[rows - first, rows - start] = 1.0
        return sketch

    def _end(self) -> None:
        if hasattr(self, "column"):
            self.column.destroy()
            self.image.destroy()


class ResidualHistory(Sketch):
    """All residuals so far as the sketch: each step solves r_j'K z = r_j'b for j < k, and moves as little as it can.

    The steps are orthogonal, and so are the residuals, hence short recurrences: with y = K'r_(k-1)

        p_k = theta (y + abs(r_(k-1))^2 / abs(p_(k-1))^2 p_(k-1)),   theta = abs(r_(k-1))^2 / abs(y + ...)^2.

    Mathematically it is Craig's method, also called CGNE: the error is the least in the Krylov space of K'K, and n
    steps suffice; the condition number counts squared. A preconditioner needs its transpose too. On the right (default)
    it changes the norm of the error; on the left that of the residuals which are orthogonal.
    """

    def _begin(self) -> None:
        make = self.b.duplicate
        self.vectors = [make() for _ in range(5)]
        self.sketched, self.direction, self.image, self.work, self.update = self.vectors
        self._restart()

    def _restart(self) -> None:
        """Forget the steps so far, but not what they reached. Collective: yes."""
        self.direction.zeroEntries()
        self.length = math.inf
        if self.system.left:
            self.system.precondition(self.residual, self.sketched)
        else:
            self.residual.copy(self.sketched)
        self.square = float(self.sketched.dot(self.sketched))

    def step(self) -> float:
        """Move along the next direction. Collective: yes."""
        system, y = self.system, self.update
        self.sketches += 1
        if system.left:
            system.precondition_transpose(self.sketched, self.work)
            system.mult_transpose(self.work, y)
        else:
            system.mult_transpose(self.sketched, self.work)
            system.precondition_transpose(self.work, y)
        self.direction.aypx(self.square / self.length, y)
        length = float(self.direction.dot(self.direction))
        if length == 0.0 and self.square > 0.0:
            self.broken = True  # K'r = 0: the system is singular
            return float(self.residual.norm())
        theta = self.square / length if length > 0.0 else 0.0
        if length == length and theta > 0.0:
            self.direction.scale(theta)
        self.length = theta * self.square
        if system.left:
            self.x.axpy(1.0, self.direction)
            system.mult(self.direction, self.image)
            self.residual.axpy(-1.0, self.image)
            system.precondition(self.image, self.work)
            self.sketched.axpy(-1.0, self.work)
        else:
            system.precondition(self.direction, self.work)
            self.x.axpy(1.0, self.work)
            system.mult(self.work, self.image)
            self.residual.axpy(-1.0, self.image)
            self.residual.copy(self.sketched)
        self.square = float(self.sketched.dot(self.sketched))
        return float(self.residual.norm()) if system.left else math.sqrt(self.square)

    def verify(self) -> float:
        """Return the norm of b - K x, computed anew; the recurrences go on from there. Collective: yes."""
        norm = super().verify()
        if math.isfinite(norm):
            self._restart()
        return norm

    def _end(self) -> None:
        for vector in getattr(self, "vectors", ()):
            vector.destroy()
        self.vectors = []


def gather_dense(system: LinearSystem, like: PETSc.Vec) -> Array:
    """Return K on all ranks, column by column, so that any type of matrix will do. Collective: yes."""
    comm = like.getComm().tompi4py()
    first, end = like.getOwnershipRange()
    size = like.getSize()
    unit, image = like.duplicate(), like.duplicate()
    columns = np.empty((size, end - first))
    for j in range(size):
        unit.zeroEntries()
        if first <= j < end:
            unit.array_w[j - first] = 1.0
        system.mult(unit, image)
        columns[j] = image.array_r
    unit.destroy()
    image.destroy()
    return np.ascontiguousarray(np.concatenate(comm.allgather(columns), axis=1).T)


def gather_vector(vector: PETSc.Vec) -> Array:
    """Return a vector on all ranks. Collective: yes."""
    return np.concatenate(vector.getComm().tompi4py().allgather(vector.array_r.copy()))
