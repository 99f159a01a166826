"""A reduced basis: fields that are orthonormal in an inner product, with what they were chosen by."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from mpi4py import MPI

import numpy as np
from dolfinx import fem

from pdeopt.fem import forms
from pdeopt.parallel import collective_errors
from pdeopt.reduced_order.inner_product import Array, InnerProduct
from pdeopt.report import InputError

# Part of a mode's largest value that may be left on a Dirichlet boundary: the rounding errors of fields less their
# lifting, over the singular value of a mode.
_NEGLIGIBLE = 1e-6


@dataclasses.dataclass(frozen=True, eq=False)
class Basis:
    """Modes Phi with Phi' M Phi = I.

    Parameters
    ----------
    inner_product
        M and the space.
    modes
        Shape (owned, r): the degrees of freedom that this rank owns of each mode.
    singular_values
        Those of the snapshots, falling, at least r of them; empty if the modes come from elsewhere.

    Raises
    ------
    InputError
        On all ranks, if the modes have another shape on one of them.

    Collective: yes.
    """

    inner_product: InnerProduct
    modes: Array
    singular_values: Array = dataclasses.field(default_factory=lambda: np.empty(0))

    def __post_init__(self) -> None:
        owned = self.inner_product.owned
        with collective_errors(self.inner_product.comm):
            if self.modes.ndim != 2 or self.modes.shape[0] != owned:
                raise InputError(
                    f"modes have the shape {self.modes.shape}: give (owned, r), and this rank owns {owned}"
                )

    @property
    def size(self) -> int:
        """Number of modes r."""
        return int(self.modes.shape[1])

    @property
    def space(self) -> fem.FunctionSpace[Any]:
        """Function space of the modes."""
        return self.inner_product.space

    @property
    def comm(self) -> MPI.Comm:
        """Communicator of the space."""
        return self.inner_product.comm

    @property
    def remainder(self) -> float:
        """What the modes leave of the snapshots, in the root mean square: the scale for a cubature's tolerance.

        sqrt(sum_{i > r} s_i^2 / sum_i s_i^2); zero where the singular values end with the modes. A reduced model whose
        cubature has a tolerance of at most 0.7 of this errs little more than its modes do; with a larger one it errs
        by the cubature, and has modes for nothing.
        """
        squares = self.singular_values**2
        return float(np.sqrt(squares[self.size :].sum() / squares.sum())) if squares.any() else 0.0

    def truncate(self, size: int) -> "Basis":
        """Return the first modes alone. Collective: yes."""
        if not 0 < size <= self.size:
            raise InputError(f"{size} of {self.size} modes were asked for: choose between 1 and {self.size}")
        return dataclasses.replace(self, modes=self.modes[:, :size])

    def coordinates(self, fields: Array | fem.Function[Any]) -> Array:
        """Return Phi' M u of one field, shape (r,), or of columns, shape (r, n). Collective: yes."""
        if isinstance(fields, fem.Function):
            return self.inner_product.gram(self.modes, forms.owned_values(fields)[:, None])[:, 0]
        return self.inner_product.gram(self.modes, fields)

    def expand(self, coordinates: Array) -> Array:
        """Return the owned values of Phi a, shape (owned,) or (owned, n). Collective: no."""
        return self.modes @ coordinates

    def local_modes(self) -> Array:
        """Return the modes with their ghosts, shape (owned + ghosts, r). Collective: yes."""
        function = fem.Function(self.space)
        columns = np.empty((function.x.array.size, self.size))
        for mode in range(self.size):
            forms.set_function(function, self.modes[:, mode])
            columns[:, mode] = function.x.array
        return columns

    def check_dirichlet(self, bcs: Sequence[fem.DirichletBC[Any]]) -> None:
        """Verify that the modes vanish where conditions hold, but for rounding errors that small modes magnify.

        Raises
        ------
        InputError
            On all ranks, if they do not.

        Collective: yes: a rank whose part of the modes is rounding alone must not judge by it.
        """
        fixed = np.abs(self.modes[forms.owned_dirichlet_dofs(bcs)]).max(initial=0.0)
        largest = np.array([fixed, np.abs(self.modes).max(initial=0.0)])
        self.comm.Allreduce(MPI.IN_PLACE, largest, MPI.MAX)
        if largest[0] > _NEGLIGIBLE * largest[1]:
            raise InputError(
                f"a mode has the value {largest[0]:.1e} where a Dirichlet condition holds, and {largest[1]:.1e} "
                "elsewhere: take modes of fields less their lifting"
            )

    def projection_errors(self, columns: Array) -> Array:
        """Return |u - Phi Phi' M u| / |u| of each field, shape (n,). Collective: yes."""
        remainder = columns - self.modes @ self.coordinates(columns)
        norms = self.inner_product.norms(columns)
        return self.inner_product.norms(remainder) / np.where(norms > 0.0, norms, 1.0)
