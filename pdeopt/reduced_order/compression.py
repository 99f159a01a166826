"""Integrands of many states in few rows: a range that grows with the states until its rest is below a tolerance."""

import math

from mpi4py import MPI

import dolfinx
import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import fem

from pdeopt.fem import forms
from pdeopt.parallel import on_root
from pdeopt.reduced_order.inner_product import Array
from pdeopt.report import InputError

# Part of the cubature's tolerance that what is left out may use up.
_SHARE = 0.1
# How much less accurate than the residual the tangent may be.
_TANGENT = 0.1
# Rows that are added at once.
_BATCH = 128


class CompressedIntegrands:
    """Rows A with A' A ~ G' G / n, where G stacks the integrands of n states, each relative to its state's size.

    The size of a state is max_i sum_cells abs(g(cell, i)), the magnitude of its internal forces: near a solution the
    sum itself is zero. Hence |A (w - 1)| is the root mean square over the states of the relative error that weights w
    make in the reduced residual. Since cells without deformation integrate a residual of zero perfectly, the rows of
    the tangent, F'(u; phi_i, u), keep the system regular; they count for a tenth.

    With an orthonormal range V of the rows so far, new rows B add their coordinates C = B V' to the small matrix C' C,
    and the largest directions of the rest B - C V join the range, as many as the tolerance asks for: there is no cap.

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
        self._range = np.empty((0, self.volumes.size))
        self._products = np.empty((0, 0))
        self._pending: list[Array] = []
        self._budget = 0.0

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
        # Weights are about one at all cells or N / n at n of them: a row s v' then errs by about s sqrt(N).
        self._budget += 0.5 * (_SHARE * self.tolerance) ** 2 / self._cells
        if sum(rows.shape[0] for rows in self._pending) >= _BATCH:
            self._merge()

    def rows(self) -> Array:
        """Return A, shape (k, owned cells). Collective: yes.

        Raises
        ------
        InputError
            If there is no state.
        """
        if self.states == 0:
            raise InputError("no training state was given: were they iterated over before, and used up?")
        self._merge()
        energies, vectors = self._eigenpairs(self._products)
        allowed = 0.5 * self.states * (_SHARE * self.tolerance) ** 2 / self._cells
        first = _count_below(energies, allowed)
        scale = np.sqrt(energies[first:] / max(self.states, 1))
        return (vectors[:, first:] * scale).T @ self._range

    def columns(self, inside: npt.NDArray[np.bool_]) -> tuple[Array, Array]:
        """Return A in some of the owned cells, and this rank's part of its sum over all. Collective: yes."""
        rows = self.rows()
        return rows[:, inside], rows.sum(axis=1)

    def _merge(self) -> None:
        """Add the pending rows to the range and its products."""
        if not self._pending:
            return
        rest = np.concatenate(self._pending)
        self._pending = []
        coordinates, rest = self._split(rest)
        energies, vectors = self._eigenpairs(self._sum(rest @ rest.T))
        first = _count_below(energies, self._budget)
        self._budget -= float(np.maximum(energies[:first], 0.0).sum())
        # Scaled up from small numbers, the directions are orthogonal to the range only after a second pass.
        scale = np.sqrt(energies[first:])
        _, new = self._split((vectors[:, first:] / scale).T @ rest)
        products = self._sum(new @ new.T)
        triangle = on_root(self.comm, lambda: np.linalg.cholesky(products))
        new = np.linalg.solve(triangle, new)
        coordinates = np.hstack([coordinates, (vectors[:, first:] * scale) @ triangle])
        self._range = np.concatenate([self._range, new])
        grown = coordinates.T @ coordinates
        kept = self._products.shape[0]
        grown[:kept, :kept] += self._products
        self._products = grown

    def _split(self, rows: Array) -> tuple[Array, Array]:
        """Return the coordinates of rows in the range, and what is outside it."""
        coordinates = self._sum(rows @ self._range.T)
        return coordinates, rows - coordinates @ self._range

    def _eigenpairs(self, products: Array) -> tuple[Array, Array]:
        """Return eigenvalues, rising, and eigenvectors, those of rank 0: another processor may turn the vectors."""

        def solve() -> tuple[Array, Array]:
            values, vectors = np.linalg.eigh(products)
            return values, vectors

        return on_root(self.comm, solve)

    def _sum(self, local: Array) -> Array:
        total = np.ascontiguousarray(local)
        self.comm.Allreduce(MPI.IN_PLACE, total)
        return total


def _count_below(energies: Array, allowed: float) -> int:
    """Return how many of the rising energies may be left out."""
    return int(np.searchsorted(np.cumsum(np.maximum(energies, 0.0)), allowed))


def cell_volumes(mesh: dolfinx.mesh.Mesh) -> Array:
    """Return the measure of each owned cell, shape (owned cells,). Collective: yes."""
    space = fem.functionspace(mesh, ("DG", 0))
    one = forms.compile_form(ufl.TestFunction(space) * ufl.dx(mesh))
    owned = mesh.topology.index_map(mesh.topology.dim).size_local
    return np.asarray(fem.assemble_vector(one).array[space.dofmap.list[:owned, 0]])
