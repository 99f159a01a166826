"""Snapshots: fields of one space, distributed as it is, with the parameters that they belong to."""

from collections.abc import Sequence
from typing import Any

from mpi4py import MPI

import numpy as np
import numpy.typing as npt
from dolfinx import fem

from pdeopt.fem import forms
from pdeopt.parallel import collective_errors
from pdeopt.reduced_order.inner_product import Array, InnerProduct
from pdeopt.report import InputError


class Snapshots:
    """Fields as columns, and their Gram matrix, which grows with them.

    Parameters
    ----------
    inner_product
        The space of the fields, and how they are compared.
    parameter_size
        Number p of parameters that each field comes with; None if they come without.

    Attributes
    ----------
    inner_product, parameter_size
        As given.
    """

    def __init__(self, inner_product: InnerProduct, parameter_size: int | None = None) -> None:
        self.inner_product, self.parameter_size = inner_product, parameter_size
        self._columns = np.empty((inner_product.owned, 0), order="F")  # with room for more than there are
        self._parameters = np.empty((0, parameter_size or 0))
        self._count = 0
        self._gram = np.empty((0, 0))  # of the first fields

    def __len__(self) -> int:
        return self._count

    @property
    def comm(self) -> MPI.Comm:
        """Communicator of the space."""
        return self.inner_product.comm

    @property
    def columns(self) -> Array:
        """The fields, a view of shape (owned, n), column by column in memory."""
        return self._columns[:, : self._count]

    @property
    def parameters(self) -> Array | None:
        """The parameters, shape (n, p), or None."""
        return None if self.parameter_size is None else self._parameters

    def append(self, field: fem.Function[Any] | Array, parameter: npt.ArrayLike | None = None) -> None:
        """Add a field.

        Parameters
        ----------
        field
            A function of the space, or its values that this rank owns, shape (owned,). It is copied.
        parameter
            Its parameters, shape (p,), the same on all ranks.

        Raises
        ------
        InputError
            On all ranks, with nothing added, if a value is NaN or infinite, a shape is wrong, or the parameters differ
            between ranks.

        Collective: yes.
        """
        with collective_errors(self.comm):
            values = self._values_of(field)
            rows = self._as_parameters(None if parameter is None else np.asarray(parameter, dtype=float)[None], 1)
        self._extend(values[:, None], rows)

    def extend(self, columns: Array, parameters: Array | None = None) -> None:
        """Add fields, shape (owned, n), with parameters of shape (n, p). Raises and collective: as `append`."""
        with collective_errors(self.comm):
            if columns.ndim != 2:
                raise InputError(f"fields have the shape {columns.shape}: give (owned, n)")
            rows = self._as_parameters(parameters, columns.shape[1])
        self._extend(columns, rows)

    def gram(self) -> Array:
        """Return the products of all pairs of fields, shape (n, n), computed for new fields only. Collective: yes."""
        known = len(self._gram)
        if known < self._count:
            new = self.columns[:, known:]
            total = np.empty((self._count, self._count))
            total[:known, :known] = self._gram
            total[known:, known:] = self.inner_product.gram(new)
            if known:
                total[:known, known:] = self.inner_product.gram(self.columns[:, :known], new)
                total[known:, :known] = total[:known, known:].T
            self._gram = total
        return self._gram.copy()

    def norms(self) -> Array:
        """Return the norms of the fields, shape (n,), by the Gram matrix. Collective: yes."""
        return np.sqrt(np.maximum(np.diag(self.gram()), 0.0))

    def subset(self, indices: Sequence[int] | npt.NDArray[np.integer]) -> "Snapshots":
        """Return copies of some of the fields in the order given, and of a known Gram matrix. Collective: no."""
        chosen = np.asarray(indices, dtype=np.intp)
        if chosen.size and not (chosen.min() >= 0 and chosen.max() < self._count):
            raise InputError(f"a subset asks for snapshots up to {chosen.max()}: there are {self._count}, from 0")
        known = len(self._gram) == self._count
        gram = self._gram[np.ix_(chosen, chosen)] if known else np.empty((0, 0))
        return self._copy(self.columns[:, chosen], chosen, gram)

    def normalised(self) -> "Snapshots":
        """Return the fields divided by their norms.

        Raises
        ------
        InputError
            If a field is zero.

        Collective: yes.
        """
        norms = self.norms()
        if not np.all(norms > 0.0):
            raise InputError(f"snapshot {int(np.argmin(norms))} is zero and has no direction: leave it out")
        return self._copy(self.columns / norms, np.arange(self._count), self._gram / np.outer(norms, norms))

    def _copy(self, columns: Array, chosen: npt.NDArray[np.intp], gram: Array) -> "Snapshots":
        other = Snapshots(self.inner_product, self.parameter_size)
        other._columns, other._count = np.asfortranarray(columns), columns.shape[1]
        other._parameters, other._gram = self._parameters[chosen], gram
        return other

    def _values_of(self, field: fem.Function[Any] | Array) -> Array:
        if not isinstance(field, fem.Function):
            values = np.asarray(field)
            if values.ndim != 1:
                raise InputError(f"a snapshot has the shape {values.shape}: give (owned,), or several to extend()")
            return values
        space, ours = field.function_space, self.inner_product.space
        if space.mesh._cpp_object is not ours.mesh._cpp_object or space.ufl_element() != ours.ufl_element():
            raise InputError(
                f"the snapshot '{field.name}' is a function of {space.ufl_element()}, and the inner product one of "
                f"{ours.ufl_element()} on its own mesh: interpolate it there first"
            )
        return forms.owned_values(field)

    def _as_parameters(self, given: Array | None, count: int) -> Array:
        """Return the parameters of some fields as rows."""
        size = self.parameter_size
        if (given is None) != (size is None):
            raise InputError(
                "a snapshot came without parameters: give them, or leave out parameter_size"
                if given is None
                else "a snapshot came with parameters: announce their number by Snapshots(..., parameter_size=...)"
            )
        rows = np.empty((count, 0)) if given is None else np.asarray(given, dtype=float)
        if rows.shape != (count, size or 0):
            raise InputError(f"parameters have the shape {rows.shape[1:]} for each snapshot: give ({size},)")
        if not np.isfinite(rows).all():
            raise InputError(f"parameters are {rows.tolist()}: all of them have to be finite")
        return rows

    def _extend(self, columns: Array, rows: Array) -> None:
        agreed = self.comm.bcast((columns.shape[1], rows.tobytes()))
        with collective_errors(self.comm):
            owned = self.inner_product.owned
            if columns.shape[0] != owned:
                raise InputError(
                    f"snapshot {self._count} has {columns.shape[0]} values: this rank owns {owned} degrees of freedom"
                )
            broken = np.flatnonzero(~np.isfinite(columns).all(axis=0))
            if broken.size:
                raise InputError(
                    f"snapshot {self._count + broken[0]} has NaN or infinite values: look at the solve that it is from"
                )
            if columns.shape[1] != agreed[0]:
                raise InputError(
                    f"this rank adds {columns.shape[1]} snapshots and rank 0 adds {agreed[0]}: add as many"
                )
            if rows.tobytes() != agreed[1]:
                raise InputError("the parameters of a snapshot differ between ranks: draw them alike on all of them")
        total = self._count + columns.shape[1]
        if total > self._columns.shape[1]:
            grown = np.empty((owned, max(total, 2 * self._columns.shape[1])), order="F")
            grown[:, : self._count] = self.columns
            self._columns = grown
        self._columns[:, self._count : total] = columns
        self._parameters = np.vstack([self._parameters, rows])
        self._count = total
