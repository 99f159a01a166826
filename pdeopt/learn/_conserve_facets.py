"""The hybridised system: one multiplier for each flux degree of freedom that two cells share or that is prescribed."""

import itertools
from collections.abc import Mapping

from mpi4py import MPI
from petsc4py import PETSc

import dolfinx
import numpy as np

from pdeopt.fem.forms import default_options
from pdeopt.learn._conserve_cells import CellMatrices
from pdeopt.report import KSP_ADVICE, ConvergenceError

_OPTIONS: dict[str, object] = {
    "ksp_type": "cg",
    "ksp_max_it": 200,
    "pc_type": "gamg",
    # Without it iterations grow tenfold where the weight jumps by 1e6.
    "pc_gamg_threshold": 0.02,
    "mg_levels_ksp_max_it": 3,
    # The estimated largest eigenvalue is too small where the weight jumps, and the smoother indefinite.
    "mg_levels_ksp_chebyshev_esteig": "0,0.1,0,1.3",
}
_numbers = itertools.count()


class FacetSystem:
    """Multipliers that make the copies of a flux on both sides of a facet equal, and the solver for them.

    Parameters
    ----------
    cells
        Cell matrices.
    prescribed
        Facets (owned and ghosts) whose flux is prescribed, equal on all ranks that know a facet, shape (facets,), bool.
    petsc_options
        Options of the KSP, without prefix; they win over pdeopt's.

    Collective: yes.
    """

    def __init__(
        self, cells: CellMatrices, prescribed: np.ndarray, petsc_options: Mapping[str, object] | None = None
    ) -> None:
        mesh = cells.space.mesh
        dim = mesh.topology.dim
        self.comm = cells.comm
        self.cells = cells
        self.iterations = 0  # of all solves so far
        self.reason = 0
        self._facet_map = mesh.topology.index_map(dim - 1)
        faces = dolfinx.cpp.mesh.cell_num_entities(mesh.topology.cell_type, dim - 1)
        connectivity = mesh.topology.connectivity(dim, dim - 1)
        self.facets = connectivity.array.reshape(-1, faces)[: cells.count].astype(np.int64)
        layout = cells.space.dofmap.dof_layout
        # Position of a facet's degrees of freedom in the cell, shape (facets of a cell, degrees of freedom of a facet).
        self.local = np.array([layout.entity_dofs(dim - 1, facet) for facet in range(self.facets.shape[1])])
        self.per_facet = self.local.shape[1]

        active, self.sign = self._pair_up(prescribed)
        self._number(active)
        self.matrix = self._assemble()
        self.near_kernel = self._near_kernel()
        self.singular = self._is_singular(prescribed)
        if self.singular:
            self._anchor()
        self._hand_over_kernel()
        self.ksp = self._create_solver(dict(petsc_options or {}))
        self._x, self._b = self.matrix.createVecs()

    def _facet_vector(self, size: int = 1, kind: type = np.int64) -> dolfinx.la.Vector:
        return dolfinx.la.vector(self._facet_map, size, dtype=kind)

    def _pair_up(self, prescribed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return which facets get multipliers, and the sign with which each cell enters, shape (cells, facets)."""
        mesh = self.cells.space.mesh
        # The input index of a cell is the same on any number of ranks, so the signs are too.
        numbers = mesh.topology.original_cell_index[: self.cells.count].astype(np.int64)
        spread = np.repeat(numbers, self.facets.shape[1])
        count, total = self._add_up(np.ones(spread.size)), self._add_up(spread)
        self.on_boundary = count == 1
        other = total[self.facets] - numbers[:, None]
        sign = np.where(self.on_boundary[self.facets] | (numbers[:, None] < other), 1.0, -1.0)
        return (count == 2) | prescribed, sign

    def _add_up(self, of_sides: np.ndarray) -> np.ndarray:
        """Return the sums over a facet's sides for owned and ghost facets, from whole numbers, flattened."""
        vector = self._facet_vector()
        vector.array[:] = np.bincount(self.facets.reshape(-1), of_sides, minlength=vector.array.size)
        vector.scatter_reverse(dolfinx.la.InsertMode.add)
        vector.scatter_forward()
        return vector.array

    def _number(self, active: np.ndarray) -> None:
        """Give the facets that have multipliers a number over all ranks, and the others -1."""
        owned = self._facet_map.size_local
        self._active_owned = np.flatnonzero(active[:owned])
        self._first = int(self.comm.exscan(self._active_owned.size) or 0)
        number = self._facet_vector()
        number.array[:] = -1
        number.array[self._active_owned] = self._first + np.arange(self._active_owned.size)
        number.scatter_forward()
        number.array[~active] = -1
        self._number_of_cell_facet = number.array[self.facets]
        self.size = self.comm.allreduce(self._active_owned.size) * self.per_facet
        # A facet without multiplier leaves the system through its sign.
        self.sign = self.sign * (self._number_of_cell_facet >= 0)

    def _assemble(self) -> PETSc.Mat:
        """Return the sum of the cells' matrices C H C^T, with C the signed facet degrees of freedom of a cell."""
        count, faces, width = self.cells.count, self.facets.shape[1], self.per_facet
        flat = self.local.reshape(-1)
        sign = np.repeat(self.sign, width, axis=1)
        values = self.cells.inverse[:, flat[:, None], flat[None, :]] * sign[:, :, None] * sign[:, None, :]
        rows = self._number_of_cell_facet[:, :, None] * width + np.arange(width)
        rows = np.where(self._number_of_cell_facet[:, :, None] < 0, -1, rows).reshape(count, faces * width)
        shape = values.shape
        row = np.broadcast_to(rows[:, :, None], shape).reshape(-1)
        column = np.broadcast_to(rows[:, None, :], shape).reshape(-1)
        keep = (row >= 0) & (column >= 0)
        local = self._active_owned.size * width
        matrix = PETSc.Mat().create(comm=self.comm)
        matrix.setSizes(((local, None), (local, None)), bsize=width)
        matrix.setType("aij")
        matrix.setPreallocationCOO(row[keep].astype(PETSc.IntType), column[keep].astype(PETSc.IntType))
        matrix.setValuesCOO(np.ascontiguousarray(values.reshape(-1)[keep]))
        matrix.setOption(PETSc.Mat.Option.SPD, True)
        return matrix

    def _near_kernel(self) -> np.ndarray:
        """Return the multipliers of a constant pressure, for the owned facets that have any, flattened."""
        constant = np.einsum("cm,cmn->cn", self.cells.constant, self.cells.divergence)
        sides = np.where(self.on_boundary[self.facets], 1.0, 2.0)
        signed = constant[:, self.local] * (self.sign / sides)[:, :, None]
        return self._sum(signed)

    def _sum(self, of_sides: np.ndarray) -> np.ndarray:
        vector = self._facet_vector(self.per_facet, np.float64)
        facets = self.facets.reshape(-1)
        size = vector.array.size // self.per_facet
        for j in range(self.per_facet):
            vector.array[j :: self.per_facet] = np.bincount(facets, of_sides[:, :, j].reshape(-1), minlength=size)
        vector.scatter_reverse(dolfinx.la.InsertMode.add)
        return vector.array.reshape(-1, self.per_facet)[self._active_owned].reshape(-1)

    def jump(self, copies: np.ndarray) -> np.ndarray:
        """Return C q, the differences between the cells' copies (cells, n), and on the boundary the copies themselves.

        Only facets with multipliers have an entry: the result has the layout of `solve`.

        Collective: yes.
        """
        return self._sum(copies[:, self.local] * self.sign[:, :, None])

    def copies_on(self, marked: np.ndarray) -> np.ndarray:
        """Return one for the cells' copies (cells, n) on marked facets, zero for the others."""
        result = np.zeros((self.cells.count, self.cells.mass.shape[1]))
        result[:, self.local.reshape(-1)] = np.repeat(marked[self.facets], self.per_facet, axis=1)
        return result

    def to_cells(self, multipliers: np.ndarray) -> np.ndarray:
        """Return C^T mu as the cells see it, shape (cells, n), from the owned multipliers. Collective: yes."""
        vector = self._facet_vector(self.per_facet, np.float64)
        vector.array.reshape(-1, self.per_facet)[self._active_owned] = multipliers.reshape(-1, self.per_facet)
        vector.scatter_forward()
        values = vector.array.reshape(-1, self.per_facet)[self.facets] * self.sign[:, :, None]
        result = np.zeros((self.cells.count, self.cells.mass.shape[1]))
        result[:, self.local.reshape(-1)] = values.reshape(self.cells.count, self.local.size)
        return result

    def _is_singular(self, prescribed: np.ndarray) -> bool:
        """Whether all boundary fluxes are prescribed, so that a constant pressure is a kernel."""
        owned = self._facet_map.size_local
        free = np.count_nonzero(self.on_boundary[:owned] & ~prescribed[:owned])
        return bool(self.comm.allreduce(free) == 0)

    def _anchor(self) -> None:
        """Make the singular matrix definite by adding to one diagonal entry, where the kernel does not vanish.

        Where the right-hand side is orthogonal to the kernel, the solution is the one that vanishes in that entry: no
        flux changes. Multigrid would meet rounding instead of a zero pivot on its coarsest level.
        """
        diagonal = self.matrix.getDiagonal()
        values = diagonal.array_r * (np.abs(self.near_kernel) > 0.5 * np.max(np.abs(self.near_kernel), initial=0.0))
        largest, rank = self.comm.allreduce((float(np.max(values, initial=0.0)), -self.comm.rank), op=MPI.MAX)
        if rank == -self.comm.rank:
            entry = self._first * self.per_facet + int(np.argmax(values))
            self.matrix.setValue(entry, entry, largest, addv=PETSc.InsertMode.ADD_VALUES)
        self.matrix.assemble()
        diagonal.destroy()

    def _hand_over_kernel(self) -> None:
        vector = self.matrix.createVecRight()
        vector.array[:] = self.near_kernel
        vector.normalize()
        nullspace = PETSc.NullSpace().create(constant=False, vectors=[vector], comm=self.comm)
        self.matrix.setNearNullSpace(nullspace)
        nullspace.destroy()
        vector.destroy()

    def _create_solver(self, overrides: dict[str, object]) -> PETSc.KSP:
        ksp = PETSc.KSP().create(self.comm)
        prefix = f"pdeopt_conserve_{next(_numbers)}_"
        ksp.setOptionsPrefix(prefix)
        ksp.setOperators(self.matrix)
        with default_options(prefix, _OPTIONS | overrides):
            ksp.setFromOptions()
            if self.size:
                ksp.setUp()
        return ksp

    def solve(self, jump: np.ndarray, relative: float, energy: bool) -> np.ndarray:
        """Return the multipliers that close a jump, to a relative tolerance. Collective: yes.

        Parameters
        ----------
        jump
            Right-hand side.
        relative
            Reduction of the flux that is missing in the weighted norm, or of the jump itself.
        energy
            Which of the two.
        """
        norm = PETSc.KSP.NormType.NATURAL if energy else PETSc.KSP.NormType.UNPRECONDITIONED
        self.ksp.setNormType(norm)
        if self.size == 0:
            return jump
        self._b.array[:] = self._without_kernel(jump) if self.singular else jump
        self.ksp.setTolerances(rtol=relative)
        self.ksp.solve(self._b, self._x)
        self.iterations += self.ksp.getIterationNumber()
        self.reason = self.ksp.getConvergedReason()
        if self.reason <= 0:
            raise ConvergenceError(
                f"the facet system of the flux projection did not converge (reason {self.reason}): "
                f"{KSP_ADVICE.get(self.reason, 'see ksp_converged_reason')}"
            )
        return np.array(self._x.array_r)

    def _without_kernel(self, jump: np.ndarray) -> np.ndarray:
        both = np.array([self.near_kernel @ jump, self.near_kernel @ self.near_kernel])
        self.comm.Allreduce(MPI.IN_PLACE, both)
        return jump - self.near_kernel * (both[0] / both[1])

    @property
    def method(self) -> str:
        """What solves for the multipliers, in PETSc's words."""
        return f"{self.ksp.getType()} + {self.ksp.getPC().getType()}" if self.size else "no multipliers"

    def destroy(self) -> None:
        """Free PETSc's objects. Collective: yes."""
        for thing in (self.ksp, self.matrix, self._x, self._b):
            thing.destroy()
