"""Random matrices for sketches, the same for any number of ranks, and the linear system that is sketched."""

import dataclasses
from collections.abc import Callable
from typing import Any

from petsc4py import PETSc

import numpy as np
import numpy.typing as npt

from pdeopt.parallel import random_stream
from pdeopt.report import InputError

Array = npt.NDArray[np.float64]

# So many consecutive global indices share a stream.
CHUNK = 4096


@dataclasses.dataclass(frozen=True)
class LinearSystem:
    """K z = b, or K'z = b, and its preconditioner P.

    Parameters
    ----------
    matrix
        K, square, of any type that can be multiplied with vectors; its transpose too, but for sketched GMRES.
    preconditioner
        Applies P^-1; None is the identity.
    left
        Whether P stands on the left, which only the residual-history method can do.
    transposed
        Whether K' and P' take the places of K and P.
    """

    matrix: PETSc.Mat
    preconditioner: PETSc.PC | None = None
    left: bool = False
    transposed: bool = False

    def mult(self, x: PETSc.Vec, y: PETSc.Vec) -> None:
        """Set y = K x. Collective: yes."""
        (self.matrix.multTranspose if self.transposed else self.matrix.mult)(x, y)

    def mult_transpose(self, x: PETSc.Vec, y: PETSc.Vec) -> None:
        """Set y = K'x. Collective: yes."""
        (self.matrix.mult if self.transposed else self.matrix.multTranspose)(x, y)

    def precondition(self, x: PETSc.Vec, y: PETSc.Vec) -> None:
        """Set y = P^-1 x. Collective: yes."""
        if self.preconditioner is None:
            x.copy(y)
        else:
            (self.preconditioner.applyTranspose if self.transposed else self.preconditioner.apply)(x, y)

    def precondition_transpose(self, x: PETSc.Vec, y: PETSc.Vec) -> None:
        """Set y = P^-T x. Collective: yes."""
        if self.preconditioner is None:
            x.copy(y)
        else:
            (self.preconditioner.apply if self.transposed else self.preconditioner.applyTranspose)(x, y)

    def residual(self, b: PETSc.Vec, x: PETSc.Vec, r: PETSc.Vec) -> float:
        """Set r = b - K x and return its norm. Collective: yes."""
        self.mult(x, r)
        r.aypx(-1.0, b)
        return float(r.norm())


def rows_by_index(
    name: str, seed: int, first: int, end: int, draw: Callable[[np.random.Generator, int], npt.NDArray[Any]]
) -> npt.NDArray[Any]:
    """Return random rows for the global indices from ``first`` to ``end``, whoever owns them.

    Parameters
    ----------
    name, seed
        Of the streams.
    first, end
        The owned range.
    draw
        Returns as many rows as its second argument says, the first axis counting them.

    Collective: no.
    """
    parts = [draw(random_stream(name, seed), 0)]
    for chunk in range(first // CHUNK, -(-end // CHUNK)):
        start = chunk * CHUNK
        rows = draw(random_stream(f"{name}.{chunk}", seed), CHUNK)
        parts.append(rows[max(first - start, 0) : max(min(end - start, CHUNK), 0)])
    return np.concatenate(parts)


def sparse_signs(
    first: int, end: int, rows: int, nonzeros: int, name: str, seed: int
) -> tuple[npt.NDArray[np.int32], Array, int]:
    """Return where the entries of a sparse sign embedding stand, what they are, and its number of rows.

    Parameters
    ----------
    first, end, rows, nonzeros, name, seed
        As those of `SparseSign`.

    Returns
    -------
    places, values, rows
        The first two of shape (end - first, nonzeros): in the column of each owned unknown.

    Collective: no.
    """
    if nonzeros < 1 or rows < 1:
        raise InputError(f"a sketch needs a row and a nonzero at least, not {rows} and {nonzeros}")
    band = -(-rows // nonzeros)

    def draw(stream: np.random.Generator, count: int) -> npt.NDArray[np.int64]:
        return stream.integers(2 * band, size=(count, nonzeros))

    drawn = rows_by_index(name, seed, first, end, draw)
    places = (drawn // 2 + band * np.arange(nonzeros)).astype(PETSc.IntType)
    return places, np.where(drawn % 2 == 0, 1.0, -1.0) / np.sqrt(nonzeros), band * nonzeros


class SparseSign:
    """A sparse sign embedding S: in each column so many entries +-1/sqrt(nonzeros), one in each band of rows.

    Columns belong to the unknowns. For a subspace of dimension d and some 2 d rows, abs(S v) is abs(v) to within a
    factor of two or so, with high probability.

    Parameters
    ----------
    first, end
        Range of the owned unknowns.
    rows
        Number of rows, rounded up to a multiple of ``nonzeros``.
    nonzeros
        In each column.
    name, seed
        Of the random streams.

    Collective: no.

    References
    ----------
    Nelson and Nguyen, "OSNAP: faster numerical linear algebra algorithms via sparser subspace embeddings", FOCS 2013.
    """

    def __init__(self, first: int, end: int, rows: int, nonzeros: int, name: str, seed: int) -> None:
        columns, values, self.rows = sparse_signs(first, end, rows, nonzeros, name, seed)
        count = end - first
        starts = np.arange(0, nonzeros * count + 1, nonzeros, dtype=PETSc.IntType)
        # The transpose is stored: its product writes to few places, which stay in the cache.
        self._transpose = PETSc.Mat().createAIJ(
            (count, self.rows), csr=(starts, columns.ravel(), values.ravel()), comm=PETSc.COMM_SELF
        )
        self._input = PETSc.Vec().createSeq(count)
        self._output = PETSc.Vec().createSeq(self.rows)

    def local(self, array: Array) -> Array:
        """Return this rank's part of S v, to be summed over the ranks. Collective: no."""
        self._input.placeArray(array)
        self._transpose.multTranspose(self._input, self._output)
        self._input.resetArray()
        result: Array = self._output.array_r
        return result

    def destroy(self) -> None:
        """Free the matrix. Collective: no."""
        for handle in (self._transpose, self._input, self._output):
            handle.destroy()
