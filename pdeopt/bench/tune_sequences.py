"""Ten families of sequences of linear systems whose matrix changes each time, and one with an abrupt change."""

import math
from collections.abc import Callable, Iterator, Mapping

from mpi4py import MPI
from petsc4py import PETSc

import dolfinx
import dolfinx.fem.petsc
import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import fem

from pdeopt.parallel import random_stream
from pdeopt.problems.elasticity import rigid_body_modes
from pdeopt.problems.linear import Mesh, dirichlet_condition, fixed_measure
from pdeopt.problems.lognormal import GaussianRandomField

type Step = tuple[PETSc.Mat, PETSc.Vec]


class Sequence:
    """A problem on one mesh, assembled again and again into the same matrix and right-hand side.

    -div(K grad u) + w . grad u + s u = f with u = 0 on the boundary, or for vectors linear elasticity with Young's
    modulus k. Data are cellwise constant.

    Parameters
    ----------
    mesh
        Where.
    elastic
        Whether u is a displacement.

    Attributes
    ----------
    diffusion, source
        k and f, functions of one value per cell.
    tensor, wind, reaction
        K = k times this tensor; w; s.
    """

    def __init__(self, mesh: Mesh, elastic: bool = False) -> None:
        dimension = mesh.geometry.dim
        space = fem.functionspace(mesh, ("Lagrange", 1, (dimension,)) if elastic else ("Lagrange", 1))
        cells = fem.functionspace(mesh, ("DG", 0))
        self.diffusion, self.source = fem.Function(cells), fem.Function(cells)
        self.diffusion.x.array[:] = 1.0
        self.tensor = fem.Constant(mesh, np.eye(dimension))
        self.wind = fem.Constant(mesh, np.zeros(dimension))
        self.reaction = fem.Constant(mesh, 0.0)
        u, v, dx = ufl.TrialFunction(space), ufl.TestFunction(space), fixed_measure(space)
        k = self.diffusion
        if elastic:
            strain = ufl.sym(ufl.grad(u))
            stress = k * (2.0 * strain + 1.25 * ufl.tr(strain) * ufl.Identity(dimension))
            a = ufl.inner(stress, ufl.sym(ufl.grad(v))) * dx
            L = self.source * v[dimension - 1] * dx
        else:
            w, h = self.wind, ufl.CellDiameter(mesh)
            # Streamline diffusion of half a cell, as transport without it needs a mesh that resolves its layers.
            along = 0.5 * h / ufl.sqrt(1e-30 + ufl.dot(w, w)) * ufl.dot(w, ufl.grad(u)) * ufl.dot(w, ufl.grad(v))
            a = (ufl.inner(k * self.tensor * ufl.grad(u), ufl.grad(v)) + along) * dx
            a += (ufl.dot(w, ufl.grad(u)) * v + self.reaction * u * v) * dx
            L = self.source * v * dx
        self.space, self._a, self._L = space, fem.form(a), fem.form(L)
        zero = np.zeros(dimension) if elastic else 0.0
        self._bcs = [dirichlet_condition(space, fem.Constant(mesh, zero), _at_left if elastic else None)]
        self.matrix, self.b = fem.petsc.create_matrix(self._a), fem.petsc.create_vector(space)
        if elastic:
            self.modes = rigid_body_modes(space)
            self.matrix.setNearNullSpace(PETSc.NullSpace().create(vectors=[mode.x.petsc_vec for mode in self.modes]))
        self._centres = _centres(cells)

    def assemble(self) -> Step:
        """Return matrix and right-hand side of the present data; the objects stay the same. Collective: yes."""
        self.matrix.zeroEntries()
        fem.petsc.assemble_matrix(self.matrix, self._a, bcs=self._bcs)  # type: ignore[misc]
        self.matrix.assemble()
        with self.b.localForm() as local:
            local.set(0.0)
        fem.petsc.assemble_vector(self.b, self._L)
        self.b.ghostUpdate(PETSc.InsertMode.ADD, PETSc.ScatterMode.REVERSE)
        fem.petsc.set_bc(self.b, self._bcs)
        return self.matrix, self.b

    def draw(self, field: GaussianRandomField) -> npt.NDArray[np.float64]:
        """Return the values of a random field in the cells of this rank, ghosts included. Collective: no."""
        return field(self._centres)

    def set_source(self, seed: int) -> None:
        """Draw a new smooth right-hand side. Collective: no."""
        dimension = self.matrix_dimension
        self.source.x.array[:] = self.draw(GaussianRandomField(0.2, seed, dimension, features=32))

    @property
    def matrix_dimension(self) -> int:
        """Number of coordinates."""
        return int(self.space.mesh.geometry.dim)


type Change = Callable[[Sequence, int, np.random.Generator], None]


def families(comm: MPI.Comm, cells: int, steps: int) -> Mapping[str, tuple[Callable[[], Sequence], Change]]:
    """Return the ten families: how to make the problem, and how it changes at a step.

    Parameters
    ----------
    comm
        Of the meshes.
    cells
        Cells along a side of the square; cubes get about as many unknowns.
    steps
        Number of systems of a sequence.

    Collective: no.
    """
    side = max(round(1.05 * cells ** (2.0 / 3.0)), 4)

    def square() -> Sequence:
        return Sequence(dolfinx.mesh.create_unit_square(comm, cells, cells))

    def cube() -> Sequence:
        return Sequence(dolfinx.mesh.create_unit_cube(comm, side, side, side))

    def beam() -> Sequence:
        short = max(round(side / 3.5), 2)
        mesh = dolfinx.mesh.create_box(comm, [[0.0, 0.0, 0.0], [4.0, 1.0, 1.0]], [4 * short, short, short])
        return Sequence(mesh, elastic=True)

    def heat(problem: Sequence, step: int, stream: np.random.Generator) -> None:
        # Of `learned_relaxation`: diffusion rises and falls over two orders of magnitude each half period.
        wave = math.sin(4.0 * math.pi * (step + 0.5) / steps)
        _set(problem, max(0.1 * wave, -10.0 * wave), reaction=1e3)

    def lognormal(problem: Sequence, step: int, stream: np.random.Generator) -> None:
        field = GaussianRandomField(0.15, int(stream.integers(2**31)), problem.matrix_dimension, features=64)
        _set(problem, np.exp(stream.uniform(0.5, 3.0) * problem.draw(field)))

    def checkerboard(problem: Sequence, step: int, stream: np.random.Generator) -> None:
        odd = np.sum(np.floor(8.0 * problem._centres[:2]), axis=0) % 2
        _set(problem, 10.0 ** (stream.uniform(0.0, 6.0) * odd))

    def anisotropy(problem: Sequence, step: int, stream: np.random.Generator) -> None:
        angle, ratio = stream.uniform(0.0, math.pi), 10.0 ** stream.uniform(-3.0, 0.0)
        axis = np.array([math.cos(angle), math.sin(angle)])
        problem.tensor.value = ratio * np.eye(2) + (1.0 - ratio) * np.outer(axis, axis)

    def inclusion(problem: Sequence, step: int, stream: np.random.Generator) -> None:
        angle = 2.0 * math.pi * step / steps
        centre = 0.5 + 0.25 * np.array([[math.cos(angle)], [math.sin(angle)]])
        inside = np.sum((problem._centres[:2] - centre) ** 2, axis=0) < 0.15**2
        _set(problem, np.where(inside, 1e4, 1.0))

    def reaction(problem: Sequence, step: int, stream: np.random.Generator) -> None:
        # A step-size controller at work: the mass term rises and falls.
        _set(problem, 1.0, reaction=10.0 ** (3.0 + 3.0 * math.sin(5.0 * step / steps)))

    def transport(problem: Sequence, step: int, stream: np.random.Generator) -> None:
        wind = stream.standard_normal(problem.matrix_dimension)
        problem.wind.value = wind / np.linalg.norm(wind) * 10.0 ** stream.uniform(0.0, 2.0)
        problem.diffusion.x.array[:] = 1e-2

    def hardening(problem: Sequence, step: int, stream: np.random.Generator) -> None:
        field = GaussianRandomField(0.5, int(stream.integers(2**31)), 3, features=64)
        share = (step + 1.0) / steps
        problem.diffusion.x.array[:] = np.exp(2.0 * share * problem.draw(field))

    return {
        "heat, diffusion swings": (square, heat),
        "lognormal samples, 2D": (square, lognormal),
        "lognormal samples, 3D": (cube, lognormal),
        "checkerboard, contrast drawn": (square, checkerboard),
        "anisotropy, angle drawn": (square, anisotropy),
        "inclusion that moves": (square, inclusion),
        "reaction comes and goes, 3D": (cube, reaction),
        "transport, wind drawn, 2D": (square, transport),
        "transport, wind drawn, 3D": (cube, transport),
        "elasticity, modulus drawn": (beam, hardening),
    }


def regime_change(comm: MPI.Comm, cells: int, steps: int) -> tuple[Callable[[], Sequence], Change]:
    """Return small time steps of the heat equation that end abruptly half way; then it is nearly steady.

    Parameters
    ----------
    comm, cells, steps
        As for `families`.

    Collective: no.
    """

    def make() -> Sequence:
        return Sequence(dolfinx.mesh.create_unit_square(comm, cells, cells))

    def change(problem: Sequence, step: int, stream: np.random.Generator) -> None:
        noise = np.exp(0.2 * problem.draw(GaussianRandomField(0.2, int(stream.integers(2**31)), features=64)))
        _set(problem, noise, reaction=1e6 if step < steps // 2 else 1.0)

    return make, change


def systems(problem: Sequence, change: Change, steps: int, seed: int) -> Iterator[Step]:
    """Yield matrix and right-hand side of each step, always the same two objects. Collective: yes."""
    stream = random_stream("bench.tune_sequences", seed)
    for step in range(steps):
        change(problem, step, stream)
        problem.set_source(int(stream.integers(2**31)))
        yield problem.assemble()


def _set(problem: Sequence, diffusion: npt.NDArray[np.float64] | float, reaction: float = 0.0) -> None:
    problem.diffusion.x.array[:] = diffusion
    problem.reaction.value = reaction  # type: ignore[assignment]


def _at_left(x: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    return np.isclose(x[0], 0.0)


def _centres(cells: "fem.FunctionSpace[np.float64]") -> npt.NDArray[np.float64]:
    """Return the coordinates of the cells' degrees of freedom, shape (3, cells of this rank)."""
    return np.ascontiguousarray(cells.tabulate_dof_coordinates().T)
