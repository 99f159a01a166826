"""Seeded families of symmetric positive definite systems: diffusion and elasticity on grids and on meshes by Gmsh.

`FAMILIES` names them; ``FAMILIES["square, checker"].case(comm, size, seed)`` assembles one. Coefficients are constant
in each cell. The same seed gives the same function of the coordinates on every mesh and on any number of ranks.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import fem

from pdeopt.bench.linear_domains import DOMAINS, domain_mesh
from pdeopt.parallel import normal_numbers, random_stream
from pdeopt.problems.elasticity import rigid_body_modes
from pdeopt.problems.linear import Marker, Mesh, dirichlet_condition, fixed_measure
from pdeopt.problems.lognormal import GaussianRandomField

type Floats = npt.NDArray[np.float64]

_WAVES = 64  # of a random field: enough for a field, and a million cells take seconds
_JUMP = 1e3  # the coefficient is this or its inverse on the blocks and in the inclusions
_STIFF = 1e2  # Young's modulus of the inclusions
_BLOCKS = {2: 16, 3: 8}  # along a side


class Assembler:
    """- div(k T grad u) + s (u - w) = f, or - div sigma(u) = f with Young's modulus k, assembled again and again.

    k and f are constant in each cell, T and s in the whole domain. In elasticity (Poisson's ratio 0.3, plane strain in
    the plane) T, s and w do not enter, and f acts along the last axis. u = 0 on the part that is held, without flux on
    the rest. Dirichlet rows and columns are those of the identity.

    Parameters
    ----------
    mesh
        Where.
    held
        Marks the facets where u = 0; None means the whole boundary.
    elastic
        Whether u is a displacement; then the rigid-body modes are attached as near-nullspace.
    degree
        Degree of the Lagrange elements, >= 1.

    Attributes
    ----------
    space
        Of u.
    coefficient, source
        k > 0 and f: functions with one value per cell.
    tensor, reaction
        T, symmetric positive definite, and s >= 0: constants of the form.
    previous
        w, of the same space as u: with s = 1 / (time step) the solution of the time step before.
    centres
        Midpoints of the cells of this rank, ghosts included, shape (3, cells).
    matrix, b
        The system, overwritten by each `assemble`.

    Collective: yes.
    """

    def __init__(self, mesh: Mesh, held: Marker | None = None, elastic: bool = False, degree: int = 1) -> None:
        dimension = mesh.geometry.dim
        self.space = fem.functionspace(mesh, ("Lagrange", degree, (dimension,)) if elastic else ("Lagrange", degree))
        cells = fem.functionspace(mesh, ("DG", 0))
        self.coefficient, self.source = fem.Function(cells), fem.Function(cells)
        self.previous = fem.Function(self.space)
        self.coefficient.x.array[:] = 1.0
        self.source.x.array[:] = 1.0
        self.tensor, self.reaction = fem.Constant(mesh, np.eye(dimension)), fem.Constant(mesh, 0.0)
        self.centres: Floats = np.ascontiguousarray(cells.tabulate_dof_coordinates().T)
        u, v, k = ufl.TrialFunction(self.space), ufl.TestFunction(self.space), self.coefficient
        dx = fixed_measure(self.space, extra=0)
        if elastic:
            strain = ufl.sym(ufl.grad(u))
            stress = k / 1.3 * (strain + 0.75 * ufl.tr(strain) * ufl.Identity(dimension))  # nu / (1 - 2 nu) = 3/4
            a = ufl.inner(stress, ufl.sym(ufl.grad(v))) * dx
            L = self.source * v[dimension - 1] * dx
        else:
            a = (k * ufl.inner(self.tensor * ufl.grad(u), ufl.grad(v)) + self.reaction * u * v) * dx
            L = (self.source + self.reaction * self.previous) * v * dx
        self._a, self._L = fem.form(a), fem.form(L)
        zero = np.zeros(dimension) if elastic else 0.0
        self._bcs = [dirichlet_condition(self.space, fem.Constant(mesh, zero), held)]
        self.matrix, self.b = fem.petsc.create_matrix(self._a), fem.petsc.create_vector(self.space)
        if elastic:
            self._modes = rigid_body_modes(self.space)  # the nullspace refers to their memory
            nullspace = PETSc.NullSpace().create(vectors=[mode.x.petsc_vec for mode in self._modes], comm=mesh.comm)
            self.matrix.setNearNullSpace(nullspace)
            nullspace.destroy()

    def assemble(self) -> tuple[PETSc.Mat, PETSc.Vec]:
        """Return matrix and right-hand side for the present data: always the same two objects. Collective: yes."""
        self.matrix.zeroEntries()
        fem.petsc.assemble_matrix(self.matrix, self._a, bcs=self._bcs)  # type: ignore[misc]
        self.matrix.assemble()
        self.matrix.setOption(PETSc.Mat.Option.SYMMETRIC, True)
        self.matrix.setOption(PETSc.Mat.Option.SPD, True)
        with self.b.localForm() as local:
            local.set(0.0)
        fem.petsc.assemble_vector(self.b, self._L)
        self.b.ghostUpdate(PETSc.InsertMode.ADD, PETSc.ScatterMode.REVERSE)
        fem.petsc.set_bc(self.b, self._bcs)
        return self.matrix, self.b

    def noise(self, stream: np.random.Generator) -> Floats:
        """Return independent normal numbers for the cells, the same on any number of ranks. Collective: no."""
        keys = np.rint(self.centres.T * 1e9).astype(np.int64)
        return normal_numbers("bench.linear_families.noise", keys, int(stream.integers(2**31)))

    def draw(self, stream: np.random.Generator, correlation_length: float, points: Floats | None = None) -> Floats:
        """Return a Gaussian field, mean 0 and variance 1, in the cells or in points (3, n). Collective: no."""
        dimension = self.space.mesh.geometry.dim
        field = GaussianRandomField(correlation_length, int(stream.integers(2**31)), dimension, features=_WAVES)
        return field(self.centres if points is None else points)


@dataclasses.dataclass(frozen=True, eq=False)
class LinearCase:
    """One system A x = b of a family.

    Parameters
    ----------
    family
        Name of the family.
    A, b
        Matrix, with the symmetry flags and, in elasticity, the near-nullspace attached, and right-hand side.
    coordinates
        Points of the blocks of rows of this rank, shape (rows / block size, 3).
    tags
        What was drawn: seed, size, unknowns, and the numbers of the field.
    assembler
        Keeps the mesh alive, without which PETSc's objects are dead.
    """

    family: str
    A: PETSc.Mat
    b: PETSc.Vec
    coordinates: Floats
    tags: Mapping[str, int | float | str]
    assembler: Assembler

    @property
    def comm(self) -> MPI.Comm:
        """Communicator of the mesh."""
        return self.assembler.space.mesh.comm

    def destroy(self) -> None:
        """Free the matrix and the right-hand side. Collective: yes."""
        for handle in (self.A, self.b):
            handle.destroy()


def _constant(assembler: Assembler, stream: np.random.Generator) -> dict[str, float]:
    return {}


def _lognormal(assembler: Assembler, stream: np.random.Generator) -> dict[str, float]:
    length = stream.uniform(0.05, 0.2)
    assembler.coefficient.x.array[:] = np.exp(2.0 * assembler.draw(stream, length))
    return {"correlation length": length}


def _checker(assembler: Assembler, stream: np.random.Generator) -> dict[str, float]:
    dimension = assembler.space.mesh.geometry.dim
    blocks = _BLOCKS[dimension]
    signs = stream.choice([-1.0, 1.0], (blocks,) * dimension)
    index = np.minimum((blocks * assembler.centres[:dimension]).astype(int), blocks - 1)
    assembler.coefficient.x.array[:] = _JUMP ** signs[tuple(index)]
    return {"blocks": blocks}


def _inclusions(assembler: Assembler, stream: np.random.Generator) -> dict[str, float]:
    """Balls of radius 0.02 to 0.06, a third of them weak in a diffusion; in elasticity all are stiff."""
    dimension = assembler.space.mesh.geometry.dim
    box = assembler.centres[:dimension]
    number = 60 if dimension == 2 else 40
    elastic = assembler.space.dofmap.index_map_bs > 1
    # Anywhere in the unit box, as the domain's own box is not known on all ranks alike.
    places, radii = stream.uniform(0.0, 1.0, (number, dimension)), stream.uniform(0.02, 0.06, number)
    weak = stream.uniform(size=number) < 1.0 / 3.0
    values = np.ones(box.shape[1])
    for place, radius, is_weak in zip(places, radii * (1.0 if dimension == 2 else 2.0), weak, strict=True):
        inside = np.sum((box - place[:, None]) ** 2, axis=0) < radius**2
        values[inside] = _STIFF if elastic else 1.0 / _JUMP if is_weak else _JUMP
    assembler.coefficient.x.array[:] = values
    return {"inclusions": number}


def _anisotropy(assembler: Assembler, stream: np.random.Generator) -> dict[str, float]:
    """T = e e^T + (I - e e^T) / ratio with a random direction e and a ratio between 10 and 10^4."""
    dimension = assembler.space.mesh.geometry.dim
    strong = stream.standard_normal(dimension)
    strong /= np.linalg.norm(strong)
    ratio = 10.0 ** stream.uniform(1.0, 4.0)
    along = np.outer(strong, strong)
    assembler.tensor.value = along + (np.eye(dimension) - along) / ratio
    angle = math.degrees(math.atan2(strong[1], strong[0])) % 180.0
    return {"ratio": ratio, "angle [degrees]": angle}


type Field = Callable[[Assembler, np.random.Generator], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Family:
    """A kind of coefficient on a domain.

    Parameters
    ----------
    domain
        One of `pdeopt.bench.linear_domains.DOMAINS`.
    field
        Draws the coefficients into an `Assembler` and returns the numbers drawn.
    group
        Families whose solvers share their constants.
    elastic, degree
        As for `Assembler`.
    """

    domain: str
    field: Field
    group: str
    elastic: bool = False
    degree: int = 1

    @property
    def name(self) -> str:
        """Domain and kind of coefficient ("square, checker")."""
        return f"{self.domain}, {_kind(self.field, self.elastic, self.degree)}"

    @property
    def dimension(self) -> int:
        """2 or 3."""
        return DOMAINS[self.domain].dimension

    @property
    def structured(self) -> bool:
        """Whether the domain is a grid."""
        return DOMAINS[self.domain].draw is None

    def assembler(self, comm: MPI.Comm, size: int) -> Assembler:
        """Return the assembler of the family's equation on its mesh, see `case`. Collective: yes."""
        return Assembler(domain_mesh(self.domain, size, comm), DOMAINS[self.domain].held, self.elastic, self.degree)

    def case(self, comm: MPI.Comm, size: int, seed: int) -> LinearCase:
        """Assemble a system with random coefficients and a random source: smooth on grids, noise on other meshes.

        A smooth load bends the parts, which are held at one end, so far that rounding in A x alone is more than
        1e-8 of b (contrast times unknowns times the unit roundoff); then no solver can be compared at that residual.

        Parameters
        ----------
        comm
            Of the mesh.
        size
            Cells along a side of the square or cube, else the number of vertices wanted, roughly.
        seed
            Number of the sample, >= 0.

        Raises
        ------
        InputError
            If the size is not positive.

        Collective: yes.
        """
        assembler, stream = self.assembler(comm, size), random_stream(f"bench.linear_families.{self.name}", seed)
        drawn = self.field(assembler, stream)
        assembler.source.x.array[:] = assembler.draw(stream, 0.2) if self.structured else assembler.noise(stream)
        A, b = assembler.assemble()
        owned = assembler.space.dofmap.index_map.size_local
        tags = {"seed": seed, "size": size, "unknowns": A.getSize()[0], **drawn}
        coordinates = assembler.space.tabulate_dof_coordinates()[:owned]
        return LinearCase(self.name, A, b, coordinates, tags, assembler)


_KINDS: dict[str, Field] = {
    "constant": _constant,
    "lognormal": _lognormal,
    "checker": _checker,
    "inclusions": _inclusions,
    "anisotropy": _anisotropy,
}


def _kind(field: Field, elastic: bool, degree: int) -> str:
    kind = next(name for name, candidate in _KINDS.items() if candidate is field)
    return kind + (", elasticity" if elastic else "") + (f", degree {degree}" if degree > 1 else "")


def _families() -> list[Family]:
    found = [
        Family(domain, _KINDS[kind], f"{domain}, {kind}")
        for domain in ("square", "cube")
        for kind in ("constant", "lognormal", "checker", "anisotropy")
    ]
    for domain, properties in DOMAINS.items():
        if properties.draw is None:
            continue
        group = f"mesh in {properties.dimension}D, "
        found += [Family(domain, _KINDS[kind], group + kind) for kind in ("lognormal", "inclusions", "anisotropy")]
        if domain != "L-shape":
            found.append(Family(domain, _inclusions, group + "inclusions, elasticity", elastic=True))
    return [
        *found,
        Family("L-shape", _lognormal, "mesh in 2D, lognormal, degree 2", degree=2),
        Family("perforated plate", _anisotropy, "mesh in 2D, anisotropy, degree 2", degree=2),
        Family("bracket", _inclusions, "mesh in 3D, inclusions, degree 2", degree=2),
    ]


FAMILIES: Mapping[str, Family] = {family.name: family for family in _families()}
"""All families by name."""
