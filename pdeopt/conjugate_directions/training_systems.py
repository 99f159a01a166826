"""Matrices from which the learned smoother is trained: small lattices, and coarse levels of larger ones."""

from typing import Any

from mpi4py import MPI
from petsc4py import PETSc

import basix.ufl
import dolfinx.mesh
import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import fem

from pdeopt.conjugate_directions.grid_body import GridMultigrid
from pdeopt.conjugate_directions.grid_coarsening import coarsen
from pdeopt.conjugate_directions.grid_slabs import Slabs
from pdeopt.conjugate_directions.grid_stencils import Lattice
from pdeopt.conjugate_directions.two_levels import TwoLevelSystem
from pdeopt.parallel import random_stream
from pdeopt.problems.linear import dirichlet_condition

__all__ = ["CELLS", "FIELDS", "SystemSource", "two_level_system"]

type Floats = npt.NDArray[np.float64]

CELLS = {2: 32, 3: 12}
"""Cells along a side of the lattices that are trained on."""
FIELDS = ("anisotropy", "anisotropy in blocks", "checker", "lognormal", "lognormal anisotropy")
"""Kinds of media."""
_DEPTH = {2: 2, 3: 1}  # levels of a matrix that are trained on, besides the finest
_WAVES = 60  # of a random field
_VECTORS = 4  # errors of each system


class SystemSource:
    """Draws diffusion problems on the unit square or cube, held on the boundary, and takes them to lattices.

    Parameters
    ----------
    dimension
        2 or 3.
    seed
        Of all that is drawn.
    purpose
        Other purposes draw other numbers.

    Collective: no; each rank by itself.
    """

    def __init__(self, dimension: int, seed: int, purpose: str = "training") -> None:
        self.dimension = dimension
        self._stream = random_stream(f"conjugate_directions.systems.{purpose}.{dimension}", seed)
        self._problems: dict[int, _Problem] = {}

    def draw(self, count: int) -> list[TwoLevelSystem]:
        """Return systems of all kinds and levels in turn. Collective: no."""
        kinds, levels = len(FIELDS), _DEPTH[self.dimension] + 1
        return [self._system(FIELDS[i % kinds], i // kinds % levels) for i in range(count)]

    def _system(self, field: str, level: int) -> TwoLevelSystem:
        """Draw a medium, and return one level of its matrix."""
        cells = CELLS[self.dimension] << level
        if cells not in self._problems:
            self._problems[cells] = _Problem(self.dimension, cells)
        problem = self._problems[cells]
        problem.tensor.x.array[:] = self._medium(field, problem.centres).ravel()
        matrix = problem.assemble()
        layout = GridMultigrid(matrix, problem.coordinates, dtype=np.float64).layout
        slabs = Slabs(MPI.COMM_SELF, layout.starts)
        lattice, stencils, _ = layout.stencils(matrix)
        matrix.destroy()
        for _ in range(level):
            lattice, _, stencils = coarsen(lattice, stencils, slabs)
        return two_level_system(lattice, stencils / np.abs(stencils).max(), slabs, self._stream)

    def _medium(self, field: str, centres: Floats) -> Floats:
        """Return the tensors of the cells, shape (cells, dimension, dimension)."""
        stream, dimension = self._stream, self.dimension
        identity = np.broadcast_to(np.eye(dimension), (len(centres), dimension, dimension))
        if field == "checker":
            return identity * self._blocks(centres, 10.0 ** stream.uniform(0.5, 3.0))[:, None, None]
        if field == "lognormal":
            return identity * np.exp(stream.uniform(0.5, 2.5) * self._gaussian(centres))[:, None, None]
        if field == "anisotropy":
            return np.broadcast_to(self._tensor(), identity.shape)
        if field == "lognormal anisotropy":
            return self._tensor() * np.exp(stream.uniform(0.5, 2.0) * self._gaussian(centres))[:, None, None]
        choice = self._blocks(centres, 2.0) > 1.0
        return np.where(choice[:, None, None], self._tensor(), self._tensor() * 10.0 ** stream.uniform(-2.0, 2.0))

    def _tensor(self) -> Floats:
        """Return a tensor that conducts well in one direction or, in space, in two."""
        stream, dimension = self._stream, self.dimension
        direction = stream.standard_normal(dimension)
        along = np.outer(direction, direction) / (direction @ direction)
        ratio = 10.0 ** stream.uniform(0.3, 4.0)
        across = np.eye(dimension) - along
        return along + across / ratio if dimension == 2 or stream.uniform() < 0.7 else across + along / ratio

    def _blocks(self, centres: Floats, jump: float) -> Floats:
        """Return jump or its inverse for cells in boxes of random size."""
        number = int(self._stream.integers(2, 9))
        signs = self._stream.choice([-1.0, 1.0], (number,) * self.dimension)
        index = np.minimum((number * centres).astype(int), number - 1)
        return jump ** signs[tuple(index.T)]

    def _gaussian(self, centres: Floats) -> Floats:
        """Return values of a smooth random field of variance one, by random waves."""
        length = 10.0 ** self._stream.uniform(-1.3, -0.3)
        waves = self._stream.standard_normal((self.dimension, _WAVES)) / length
        phases = self._stream.uniform(0.0, 2.0 * np.pi, _WAVES)
        return np.sqrt(2.0 / _WAVES) * np.cos(centres @ waves + phases).sum(axis=1)


class _Problem:
    """Assembles the diffusion matrix of tensors that are constant in cells."""

    def __init__(self, dimension: int, cells: int) -> None:
        comm = MPI.COMM_SELF
        mesh = (
            dolfinx.mesh.create_unit_square(comm, cells, cells)
            if dimension == 2
            else dolfinx.mesh.create_unit_cube(comm, cells, cells, cells)
        )
        element = basix.ufl.element("DG", mesh.basix_cell(), 0, shape=(dimension, dimension))
        self.tensor = fem.Function(fem.functionspace(mesh, element))
        self.space = fem.functionspace(mesh, ("Lagrange", 1))
        self.centres = fem.functionspace(mesh, ("DG", 0)).tabulate_dof_coordinates()[:, :dimension]
        self.coordinates = self.space.tabulate_dof_coordinates()
        u, v = ufl.TrialFunction(self.space), ufl.TestFunction(self.space)
        dx = ufl.Measure("dx", metadata={"quadrature_degree": 0})
        self._form = fem.form(ufl.inner(self.tensor * ufl.grad(u), ufl.grad(v)) * dx)
        self._bcs = [dirichlet_condition(self.space, fem.Constant(mesh, 0.0))]

    def assemble(self) -> PETSc.Mat:
        """Return the matrix for the present tensors."""
        matrix = fem.petsc.assemble_matrix(self._form, bcs=self._bcs)
        matrix.assemble()
        return matrix


def two_level_system(lattice: Lattice, stencils: Floats, slabs: Slabs, stream: np.random.Generator) -> TwoLevelSystem:
    """Return the matrix of stencils with its coarse level, and errors of which half are smooth and half are rough.

    Parameters
    ----------
    lattice, stencils, slabs
        On one rank.
    stream
        Of the errors.

    Collective: no.
    """
    from scipy.sparse import csc_array, csr_array, diags_array
    from scipy.sparse.linalg import splu

    number = np.arange(int(np.prod(lattice.padded))).reshape(lattice.padded)
    inner = lattice.inner(number).ravel()
    A = csr_array(diags_array(stencils[0].ravel()))
    for h, step in enumerate(lattice.halves[1:], start=1):
        here = inner[lattice.inner(stencils[h]).ravel() != 0.0]
        there = here + int(np.dot(step, np.array(number.strides) // number.itemsize))
        half = csr_array((stencils[h].ravel()[here], (here, there)), shape=A.shape)
        A = A + half + half.T
    coarse, weights, _ = coarsen(lattice, stencils, slabs)
    P = _interpolation(lattice, coarse, weights, number)
    exact = splu(_regular(csc_array(P.T @ A @ P))).solve
    solve = splu(_regular(csc_array(A))).solve
    root = np.sqrt(A.diagonal())[:, None]
    noise = np.zeros((number.size, _VECTORS))
    noise[inner] = stream.standard_normal((inner.size, _VECTORS))
    noise[:, ::2] = solve(noise[:, ::2] * root**2)
    noise[inner, 1::2] /= np.maximum(root[inner], 1e-150)
    return TwoLevelSystem(
        stencils.reshape(len(stencils), -1),
        lattice.used if len(lattice.shape) == 3 else (1 << len(lattice.halves)) - 1,
        lambda x: np.ascontiguousarray((A @ x.T).T),
        lambda r: np.ascontiguousarray((P @ exact(P.T @ r.T)).T),
        np.ascontiguousarray(noise.T),
    )


def _regular(matrix: Any) -> Any:
    """Return a matrix with ones on the diagonal for points that have no equation, those of the frame among them."""
    from scipy.sparse import csc_array, diags_array

    return csc_array(matrix + diags_array((matrix.diagonal() == 0.0).astype(float)))


def _interpolation(lattice: Lattice, coarse: Lattice, weights: Floats, number: npt.NDArray[np.intp]) -> Any:
    """Return the interpolation as a matrix of shape (padded points, coarse points)."""
    from scipy.sparse import csr_array

    parents = np.stack(np.unravel_index(np.arange(coarse.points), coarse.shape), axis=1)
    rows, columns, entries = [], [], []
    for k, step in enumerate(coarse.offsets):
        fine = 2 * parents + step
        inside = np.flatnonzero(np.all((fine >= 0) & (fine < lattice.shape), axis=1))
        rows.append(lattice.inner(number)[tuple(fine[inside].T)])
        columns.append(inside)
        entries.append(coarse.inner(weights[k]).ravel()[inside])
    places = np.concatenate(rows), np.concatenate(columns)
    return csr_array((np.concatenate(entries), places), shape=(number.size, coarse.points))
