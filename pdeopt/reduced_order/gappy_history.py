"""Internal variables on the whole mesh from their values at the reduced points (gappy POD), and its misfit."""

import numpy as np
import numpy.typing as npt
from dolfinx import fem

from pdeopt.reduced_order.basis import Basis
from pdeopt.reduced_order.inner_product import Array
from pdeopt.report import InputError

# Directions that the reduced points see less than this share of the best-seen one are left out.
_SEEN = 1e-8


class GappyHistory:
    """p ~ Q c with c by least squares over the reduced points, c = argmin |Q_r c - p_r|.

    The misfit |Q_r c - p_r| / |p_r| says how far the values lie from all that the basis has seen; it costs nothing that
    grows with the mesh.

    Parameters
    ----------
    basis
        Modes Q of an internal variable, the same degrees of freedom as its quadrature field.
    points
        Shape (local points,): degrees of freedom among the owned ones at which the variable is known on this rank.

    Raises
    ------
    InputError
        If the reduced points see none of the modes.

    Notes
    -----
    Everson and Sirovich, *Karhunen-Loeve procedure for gappy data*, 1995; the misfit as error indicator of a
    hyper-reduced model: Casenave and Akkari, Math. Comput. Appl. 24(2):41, 2019.

    Collective: yes.
    """

    def __init__(self, basis: Basis, points: npt.NDArray[np.integer]) -> None:
        self.basis, self.comm = basis, basis.comm
        rows = self.comm.allgather(basis.modes[points])
        left, seen, right = np.linalg.svd(np.vstack(rows), full_matrices=False)
        keep = seen > _SEEN * seen.max(initial=0.0)
        if not keep.any():
            raise InputError(f"none of {basis.size} modes is seen at the {left.shape[0]} reduced points: select more")
        first = sum(len(part) for part in rows[: self.comm.rank])
        self._left = left[first : first + len(points), keep]
        self._right = right[keep].T / seen[keep]

    def coordinates(self, values: Array) -> tuple[Array, float]:
        """Return c, shape (modes,), and the misfit of values, shape (local points,). Collective: yes, one all-reduce.

        The misfit of values that are zero everywhere is zero.
        """
        local = np.append(self._left.T @ values, values @ values)
        total = np.empty_like(local)
        self.comm.Allreduce(local, total)
        seen, square = total[:-1], float(total[-1])
        missed = max(square - float(seen @ seen), 0.0)
        return self._right @ seen, float(np.sqrt(missed / square)) if square > 0.0 else 0.0

    def reconstruct(self, values: Array, function: fem.Function) -> float:
        """Fill a field on the whole mesh from values at the reduced points; return the misfit. Collective: yes."""
        coordinates, misfit = self.coordinates(values)
        function.x.array[: self.basis.inner_product.owned] = self.basis.expand(coordinates)
        function.x.scatter_forward()
        return misfit
