"""Fields from coordinates with modes in single precision: half of the memory to read, and a bound of what it costs."""

from petsc4py import PETSc

import numpy as np

from pdeopt.reduced_order.basis import Basis
from pdeopt.reduced_order.inner_product import Array

# The first modes stay in double precision: their coordinates are the largest.
_LEADING = 4
# Modes summed at once in single precision: rounding errors grow with their number.
_GROUP = 16
_UNIT = 2.0**-24  # unit roundoff of single precision


class SinglePrecisionModes:
    """Phi a, with all but the first modes stored in single precision.

    To write out a field means to read all modes once, and nothing else takes time. With the exact rounding errors of
    the stored modes, and those of a sum of m products, at most (m + 1) u / (1 - (m + 1) u) of the sum of their absolute
    values (Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition 2002, section 3.1, and one more for the
    coordinate), the error in the norm of the basis is at most the sum of c_i |a_i| with

        c_i = |fl(phi_i) - phi_i|_M + (m + 1) u / (1 - (m + 1) u) sqrt(|M|_inf) |fl(phi_i)|_2

    but for those of double precision.

    Parameters
    ----------
    basis
        Phi.

    Collective: yes.
    """

    def __init__(self, basis: Basis) -> None:
        self._double = np.asfortranarray(basis.modes[:, :_LEADING])
        self._single: list[tuple[slice, np.ndarray]] = []
        self._factors = np.zeros(basis.size)
        largest = np.sqrt(basis.inner_product.matrix.norm(PETSc.NormType.INFINITY))
        growth = (_GROUP + 1) * _UNIT / (1.0 - (_GROUP + 1) * _UNIT)
        for first in range(_LEADING, basis.size, _GROUP):
            chosen = slice(first, min(first + _GROUP, basis.size))
            single = np.asfortranarray(basis.modes[:, chosen], dtype=np.float32)
            stored = single.astype(np.float64)
            squares = (stored**2).sum(axis=0)
            total = np.empty_like(squares)
            basis.comm.Allreduce(squares, total)
            rounding = basis.inner_product.norms(stored - basis.modes[:, chosen])
            self._factors[chosen] = rounding + growth * largest * np.sqrt(total)
            self._single.append((chosen, single))

    def expand(self, coordinates: Array) -> Array:
        """Return the owned values of Phi a, shape (owned,). Collective: no."""
        values = self._double @ coordinates[:_LEADING]
        rounded = coordinates.astype(np.float32)
        for chosen, single in self._single:
            values += single @ rounded[chosen]
        return np.asarray(values)

    def error(self, coordinates: Array) -> float:
        """Return a bound of |expand(a) - Phi a| in the norm of the basis. Collective: no, but alike on all ranks."""
        return float(self._factors @ np.abs(coordinates))
