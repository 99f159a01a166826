"""Integrands of many states in few rows: a range that grows with the states until its rest is below a tolerance."""

import math

from mpi4py import MPI

import dolfinx
import numpy as np
import ufl
from dolfinx import fem

from pdeopt.fem import forms
from pdeopt.reduced_order.inner_product import Array
from pdeopt.report import InputError

# Part of the cubature's tolerance that the rows left out may use up.
_SHARE = 0.1
# How much less accurate than the residual the tangent may be.
_TANGENT = 0.1
# Rows are collected until there are so many, or as many as kept ones, before they are merged.
_LEAST_BATCH = 128


class CompressedIntegrands:
    """Rows A with A' A ~ G' G / n, where G stacks the integrands of n states, each relative to its state's size.

    The size of a state is max_i sum_cells abs(g(cell, i)), the magnitude of its internal forces: near a solution the
    sum itself is zero. Hence |A (w - 1)| is the root mean square over the states of the relative error that weights w
    make in the reduced residual. The rows are merged in batches: with Y = [A; new rows] and the eigenvectors U of
    Y Y', the rows U' Y have the same Gram matrix, and those with the smallest eigenvalues are left out. There is no
    cap on their number.

    Parameters
    ----------
    mesh
        The mesh, whose owned cells are the columns.
    tolerance
        The smallest relative error in the reduced residual that a cubature will be asked for.

    Attributes
    ----------
    volumes
        Measure of each owned cell.
    total_volume
        Their sum over all ranks.

    Raises
    ------
    InputError
        If the tolerance is not in (0, 1).

    Collective: yes.
    """

    def __init__(self, mesh: dolfinx.mesh.Mesh, tolerance: float) -> None:
        if not 0.0 < tolerance < 1.0:
            raise InputError(f"tolerance = {tolerance} is not in (0, 1): give the relative error of the cubature")
        self.mesh, self.comm, self.tolerance = mesh, mesh.comm, tolerance
        self.volumes = cell_volumes(mesh)
        self.total_volume = float(self.comm.allreduce(self.volumes.sum()))
        self.states = 0
        self._cells = int(self.comm.allreduce(self.volumes.size))
        self._rows = np.empty((0, self.volumes.size))
        self._pending: list[Array] = []
        self._left_out = 0.0

    def append(self, residual: Array, tangent: Array) -> None:
        """Add the integrands of one state, both of shape (owned cells, r). Collective: yes.

        Raises
        ------
        InputError
            If the integrands are not finite; on all ranks.
        """
        size = np.abs(tangent).sum(axis=0) + np.abs(residual).sum(axis=0)
        self.comm.Allreduce(MPI.IN_PLACE, size)
        largest = float(size.max())
        if not math.isfinite(largest):
            raise InputError(f"the integrands of state {self.states} are not finite: check the snapshot's values")
        self.states += 1
        if largest > 0.0:
            self._pending += [residual.T / largest, tangent.T * (_TANGENT / largest)]
        if sum(rows.shape[0] for rows in self._pending) >= max(_LEAST_BATCH, self._rows.shape[0]):
            self._merge()

    def rows(self) -> Array:
        """Return A, shape (k, owned cells). Collective: yes."""
        self._merge()
        return self._rows / math.sqrt(max(self.states, 1))

    def _merge(self) -> None:
        if not self._pending:
            return
        new = np.concatenate(self._pending)
        self._pending = []
        both = np.concatenate([self._rows, new])
        gram = both @ both.T
        self.comm.Allreduce(MPI.IN_PLACE, gram)
        values, vectors = np.linalg.eigh(0.5 * (gram + gram.T))
        # Weights are about one at all cells or N / n at n of them: a row s v' then errs by about s sqrt(N).
        allowed = self.states * (_SHARE * self.tolerance) ** 2 / self._cells - self._left_out
        energies = np.cumsum(np.maximum(values, 0.0))
        dropped = int(np.searchsorted(energies, allowed))
        self._left_out += float(energies[dropped - 1]) if dropped else 0.0
        self._rows = vectors[:, dropped:][:, ::-1].T @ both


def cell_volumes(mesh: dolfinx.mesh.Mesh) -> Array:
    """Return the measure of each owned cell, shape (owned cells,). Collective: yes."""
    space = fem.functionspace(mesh, ("DG", 0))
    one = forms.compile_form(ufl.TestFunction(space) * ufl.dx(mesh))
    owned = mesh.topology.index_map(mesh.topology.dim).size_local
    return np.asarray(fem.assemble_vector(one).array[space.dofmap.list[:owned, 0]])
