"""Element vectors of training states in few patterns: rows for a cubature, for any modes, and for more modes later."""

from typing import Any

from mpi4py import MPI

import numpy as np
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
# More rows than these are replaced by so many random combinations of them, each row in some of them.
_ROWS, _COPIES = 1000, 4


class InternalForces:
    """What each cell contributes to the residual F(u; v), and to the linearised forces F'(u; v, u), at many states.

    The element vectors f(cell) of n states, each divided by its state's size, are written in their principal
    components over the states: patterns. A state's integrands are f(cell) . phi_i(cell), so that the rows of a cubature
    are products of patterns and modes, and a further mode costs as many rows as there are patterns. The size of a
    state is the sum of max_i sum_cells abs(f . phi_i) of both, the magnitude of its internal forces; the linearised
    forces keep the reduced system regular where the residual is small everywhere, and count for a tenth. This gives
    the cubature of `CompressedIntegrands` at a small part of its cost where modes and states are many.

    Where the products are more than 1,000, the rows are random combinations with signs (each product in 4 of them):
    this keeps the error of any weights, at n cells up to a factor of about sqrt(1 - n / 1000), and the fit small. The
    cells may then differ between numbers of ranks, as the patterns do by rounding.

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

    Attributes
    ----------
    mesh, comm, volumes, total_volume
        The mesh and the measure of each owned cell, and of all.

    Collective: yes.
    """

    def __init__(
        self, residual: ufl.Form, u: fem.Function[Any], basis: Basis, jacobian: ufl.Form, tolerance: float
    ) -> None:
        if not 0.0 < tolerance < 1.0:
            raise InputError(f"tolerance = {tolerance} is not in (0, 1): give the relative error of the cubature")
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
        self._modes = self._on_cells(basis.modes)
        self._states: list[Array] = []
        self._patterns = np.empty((*self._dofs.shape, 0))
        self._rows = np.empty((0, self.volumes.size))
        self._generator = random_stream("rows of a cubature")
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
        self._patterns = (vectors[:, left_out:].T @ states).reshape(-1, *self._dofs.shape).transpose(1, 2, 0)
        self._patterns /= np.sqrt(self.states)
        self._states = []
        self._rows = self._products(self._patterns, self._modes)
        return int(self._patterns.shape[2])

    def rows(self) -> Array:
        """Return A, shape (rows, owned cells): |A (w - 1)| is the error of weights w. Collective: no."""
        return self._rows

    def enrich(self, mode: Array) -> None:
        """Add a mode, shape (owned,), and the state that is present: their products are new rows. Collective: yes."""
        column = self._on_cells(mode[:, None])
        self._modes = np.concatenate([self._modes, column], axis=2)
        state = self._evaluate() / np.sqrt(self.states)
        for new in (self._products(self._patterns, column), self._products(state, self._modes)):
            if self._rows.shape[0] + new.shape[0] <= _ROWS:
                self._rows = np.concatenate([self._rows, new])
            else:
                _scatter(new, self._rows, self._generator)
        self._patterns = np.concatenate([self._patterns, state], axis=2)

    def _evaluate(self) -> Array:
        """Return both element vectors over the size of the state, shape (owned cells, n, 2). Collective: yes."""
        vectors = np.stack([fem.assemble_vector(form).array[self._dofs] for form in self._forms], axis=2)
        size = np.abs(np.einsum("cdk,cdr->ckr", vectors, self._modes, optimize=True)).sum(axis=0)
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
        """Return all products, or random combinations of them, shape (rows, owned cells). Collective: no."""
        count = patterns.shape[2] * modes.shape[2]
        if count <= _ROWS:
            return np.asarray(np.einsum("cdm,cdr->mrc", patterns, modes, optimize=True)).reshape(count, -1)
        rows = np.zeros((_ROWS, patterns.shape[0]))
        for pattern in range(patterns.shape[2]):
            _scatter(np.einsum("cd,cdr->rc", patterns[:, :, pattern], modes), rows, self._generator)
        return rows


def _scatter(products: Array, rows: Array, generator: np.random.Generator) -> None:
    """Add each product, with random signs, to some of the rows. Collective: no."""
    for _ in range(_COPIES):
        signs = generator.choice([-1.0, 1.0], len(products)) / np.sqrt(_COPIES)
        for first in range(0, len(products), len(rows)):  # no row twice in one sum
            part = slice(first, first + len(rows))
            places = generator.permutation(len(rows))[: len(products[part])]
            rows[places] += signs[part, None] * products[part]
