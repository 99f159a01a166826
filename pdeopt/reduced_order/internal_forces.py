"""Element vectors of training states in few patterns: rows for a cubature, for any modes, and for more modes later."""

from typing import Any

from mpi4py import MPI

import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import fem
from ufl.algorithms import expand_derivatives

from pdeopt.fem import forms
from pdeopt.parallel import random_stream
from pdeopt.reduced_order.basis import Basis
from pdeopt.reduced_order.compression import cell_volumes
from pdeopt.reduced_order.inner_product import Array
from pdeopt.reduced_order.integrands import cell_degrees_of_freedom, discontinuous_element, interpolate
from pdeopt.report import InputError

# Of the patterns, relative to all of them, those that stay below this multiple of the tolerance are left out.
_SHARE = 1.0
# How much less accurate than the residual the tangent may be.
_TANGENT = 0.1
# Products in how many of the random combinations that replace them each of them is.
_COPIES = 2
_STREAM = "rows of a cubature"


class InternalForces:
    """What each cell contributes to the residual F(u; v), and to the linearised forces F'(u; v, u), at many states.

    The element vectors f(cell) of n states, each divided by its state's size, are written in their principal
    components over the states: patterns. A state's integrands are f(cell) . phi_i(cell), so that the rows of a cubature
    are products of patterns and modes, and a further mode costs as many rows as there are patterns. The size of a
    state is the sum of max_i sum_cells abs(f . phi_i) of both, the magnitude of its internal forces; the linearised
    forces keep the reduced system regular where the residual is small everywhere, and count for a tenth. This gives
    the cubature of `CompressedIntegrands` at a small part of its cost where modes and states are many.

    Where the products are more than ``rows``, the rows are random combinations with signs (each product in 2 of them).
    This keeps the fit small, and the error of given weights; but n weights that are fitted to the rows err more by a
    factor of about 1 / sqrt(1 - n / rows), and a small tolerance needs many cells. The cells may then differ between
    numbers of ranks, as the patterns do by rounding.

    Parameters
    ----------
    residual
        F(u; v), linear in one test function v of the modes' space, with integrals over cells and exterior facets.
    u
        The unknown in it.
    basis
        The first modes.
    jacobian
        F'(u; v, du), consistent with the internal variables.
    tolerance
        The smallest relative error in the reduced residual that a cubature will be asked for, in (0, 1).
    rows
        The most rows; best three times the cells that the cubature will have, or more.

    Raises
    ------
    InputError
        If the tolerance is not in (0, 1), or there is to be no row.

    Attributes
    ----------
    mesh, comm, volumes, total_volume
        The mesh and the measure of each owned cell, and of all.

    Collective: yes.
    """

    def __init__(
        self,
        residual: ufl.Form,
        u: fem.Function[Any],
        basis: Basis,
        jacobian: ufl.Form,
        tolerance: float,
        *,
        rows: int = 1000,
    ) -> None:
        if not 0.0 < tolerance < 1.0:
            raise InputError(f"tolerance = {tolerance} is not in (0, 1): give the relative error of the cubature")
        if rows < 1:
            raise InputError(f"rows = {rows}: allow the cubature one row at least")
        self.mesh, self.comm, self.tolerance = basis.space.mesh, basis.comm, tolerance
        self.volumes = cell_volumes(self.mesh)
        self.total_volume = float(self.comm.allreduce(self.volumes.sum()))
        broken = fem.functionspace(self.mesh, discontinuous_element(basis.space.ufl_element()))
        tangent = expand_derivatives(ufl.action(jacobian, u))
        self._forms = [
            forms.compile_form(ufl.replace(form, {form.arguments()[0]: ufl.TestFunction(broken)}))
            for form in (forms.fix_quadrature_degree(residual), forms.fix_quadrature_degree(tangent))
        ]
        self._dofs = cell_degrees_of_freedom(broken)[: self.volumes.size]
        self._mode, self._split = fem.Function(basis.space), fem.Function(broken)
        # In blocks, as they came: what enrichment adds is small, and the rest is not copied for it.
        self._modes = [self._on_cells(basis.modes)]
        self._states: list[Array] = []
        self._patterns: list[Array] = []
        # Factors of the products, as they came, and the rows for some cells, with all cells' sum as the last column.
        self._pairs: list[tuple[Array, Array]] = []
        self._inside = np.ones(self.volumes.size, dtype=bool)
        self._table = np.empty((0, self.volumes.size + 1))
        self._most = rows
        self._generator = random_stream(_STREAM)
        self.states = 0

    def append(self) -> None:
        """Add the state that is present in the coefficients. Collective: yes.

        Raises
        ------
        InputError
            If its forces are not finite; on all ranks.
        """
        self._states.append(self._evaluate())
        self.states += 1

    def compress(self) -> int:
        """Replace the states by their patterns, set up the rows, and return the number of patterns. Collective: yes."""
        if not self._states:
            raise InputError("there are no states: append some first")
        states = np.concatenate([state.reshape(-1, 2).T for state in self._states])
        gram = states @ states.T
        self.comm.Allreduce(MPI.IN_PLACE, gram)
        values, vectors = self.comm.bcast(np.linalg.eigh(gram) if self.comm.rank == 0 else None)
        left_out = np.searchsorted(np.cumsum(values), (_SHARE * self.tolerance) ** 2 * float(values.sum()))
        patterns = (vectors[:, left_out:].T @ states) / np.sqrt(self.states)
        patterns = np.ascontiguousarray(patterns.reshape(-1, *self._dofs.shape).transpose(1, 2, 0))
        self._patterns, self._states = [patterns], []
        self._add([(patterns, self._modes[0])])
        return int(patterns.shape[2])

    def rows(self) -> Array:
        """Return A, shape (rows, owned cells): |A (w - 1)| is the error of weights w. Collective: no."""
        return self.columns(np.ones(self.volumes.size, dtype=bool))[0]

    def columns(self, inside: npt.NDArray[np.bool_]) -> tuple[Array, Array]:
        """Return A in some of the owned cells, and this rank's part of its sum over all cells, shape (rows,).

        What is added later is evaluated in these cells alone, until others are asked for. Collective: no.
        """
        if not np.array_equal(inside, self._inside):
            pairs, self._pairs = self._pairs, []
            self._inside, self._table = inside, np.empty((0, int(inside.sum()) + 1))
            self._generator = random_stream(_STREAM)  # the same combinations again
            self._add(pairs)
        return self._table[:, :-1], self._table[:, -1]

    def enrich(self, mode: Array) -> None:
        """Add a mode, shape (owned,), and the state that is present: their products are new rows. Collective: yes."""
        column = self._on_cells(mode[:, None])
        self._modes.append(column)
        state = self._evaluate() / np.sqrt(self.states)
        self._add([(patterns, column) for patterns in self._patterns] + [(state, modes) for modes in self._modes])
        self._patterns.append(state)

    def _add(self, pairs: list[tuple[Array, Array]]) -> None:
        """Add the products of patterns and modes to the rows. Collective: no."""
        for patterns, modes in pairs:
            new = self._products(patterns, modes)
            if self._table.shape[0] + new.shape[0] <= self._most:
                self._table = np.concatenate([self._table, new])
            else:
                _scatter(new, self._table, self._generator)
        self._pairs += pairs

    def _evaluate(self) -> Array:
        """Return both element vectors over the size of the state, shape (owned cells, n, 2). Collective: yes."""
        vectors = np.stack([fem.assemble_vector(form).array[self._dofs] for form in self._forms], axis=2)
        size = np.abs(np.einsum("cdk,cdr->ckr", vectors, self._modes[0], optimize=True)).sum(axis=0)
        self.comm.Allreduce(MPI.IN_PLACE, size)
        largest = float(size.max(axis=1).sum())
        if not np.isfinite(largest):
            raise InputError(f"the internal forces of state {self.states} are not finite: check the snapshot's values")
        vectors[:, :, 1] *= _TANGENT
        return vectors / largest if largest > 0.0 else vectors

    def _on_cells(self, modes: Array) -> Array:
        values = np.empty((*self._dofs.shape, modes.shape[1]))
        for index in range(modes.shape[1]):
            forms.set_function(self._mode, modes[:, index])
            interpolate(self._split, self._mode)
            values[:, :, index] = self._split.x.array[self._dofs]
        return values

    def _products(self, patterns: Array, modes: Array) -> Array:
        """Return all products, or random combinations of them, shape (rows, cells + 1). Collective: no."""
        count = patterns.shape[2] * modes.shape[2]
        sums = patterns.reshape(-1, patterns.shape[2]).T @ modes.reshape(-1, modes.shape[2])
        if not self._inside.all():
            patterns, modes = patterns[self._inside], modes[self._inside]
        if count <= self._most:
            products = np.einsum("cdm,cdr->mrc", patterns, modes, optimize=True).reshape(count, -1)
            return np.column_stack([products, sums.ravel()])
        rows = np.zeros((self._most, patterns.shape[0] + 1))
        for pattern in range(patterns.shape[2]):
            products = np.einsum("cd,cdr->rc", patterns[:, :, pattern], modes)
            _scatter(np.column_stack([products, sums[pattern]]), rows, self._generator)
        return rows


def _scatter(products: Array, rows: Array, generator: np.random.Generator) -> None:
    """Add each product, with random signs, to some of the rows. Collective: no."""
    for _ in range(_COPIES):
        signs = generator.choice([-1.0, 1.0], len(products)) / np.sqrt(_COPIES)
        for first in range(0, len(products), len(rows)):  # no row twice in one sum
            part = slice(first, first + len(rows))
            places = generator.permutation(len(rows))[: len(products[part])]
            rows[places] += signs[part, None] * products[part]
