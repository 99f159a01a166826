"""Systems unlike those on which constants were chosen: other domains, mappings, equations and coefficients.

`batches` yields them in batches of one mesh; each system of a batch has its own coefficients and load.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator

from mpi4py import MPI
from petsc4py import PETSc

import dolfinx
import numpy as np
import numpy.typing as npt

from pdeopt.bench.linear_domains import DOMAINS, domain_mesh
from pdeopt.bench.linear_families import Assembler
from pdeopt.parallel import random_stream
from pdeopt.problems.linear import Mesh

type Floats = npt.NDArray[np.float64]

_LEAST, _MOST = 1_000, 20_000  # vertices


@dataclasses.dataclass(frozen=True)
class Shape:
    """A kind of domain.

    Parameters
    ----------
    name
        "L-shape" and "heat sink" are meshes by Gmsh, the others are mapped from lattices.
    dimension
        2 or 3.
    lattice
        Whether its vertices form a lattice with edges along the axes.
    elastic
        Whether its systems are of elasticity.
    """

    name: str
    dimension: int
    lattice: bool = False
    elastic: bool = False

    @property
    def label(self) -> str:
        """Name and equation ("twisted box, elasticity")."""
        return self.name + (", elasticity" if self.elastic else "")


SHAPES = (
    Shape("rectangle", 2, lattice=True),
    Shape("box", 3, lattice=True),
    Shape("quarter of a ring", 2),
    Shape("warped square", 2),
    Shape("twisted box", 3),
    Shape("L-shape", 2),
    Shape("heat sink", 2),
    Shape("quarter of a ring", 2, elastic=True),
    Shape("twisted box", 3, elastic=True),
)
"""Domains of the unseen systems; no constant was chosen on one of them."""


@dataclasses.dataclass(frozen=True, eq=False)
class UnseenSystem:
    """One system A x = b; ``kind`` says what coefficients it has, ``coordinates`` where its unknowns are."""

    shape: Shape
    kind: str
    A: PETSc.Mat
    b: PETSc.Vec
    coordinates: Floats


def batches(comm: MPI.Comm, systems: int, seed: int, batch: int = 20, most: int = _MOST) -> Iterator[UnseenSystem]:
    """Yield systems; each is overwritten by the next.

    Parameters
    ----------
    comm
        Of the meshes.
    systems
        How many, >= 1.
    seed
        Of everything that is drawn.
    batch
        Systems on a mesh.
    most
        Vertices of the greatest meshes, roughly; sizes are spread evenly in their logarithm.

    Collective: yes.
    """
    stream = random_stream("bench.linear_unseen", seed)
    for first in range(0, systems, batch):
        shape = SHAPES[(first // batch) % len(SHAPES)]
        size = math.exp(stream.uniform(math.log(min(_LEAST, most)), math.log(most)))
        mesh = _mesh(shape, size / shape.dimension if shape.elastic else size, stream, comm)
        held = (
            DOMAINS[shape.name].held if shape.name in DOMAINS else functools.partial(_at_foot, axis=shape.dimension - 1)
        )
        problem = Assembler(mesh, held, shape.elastic)
        owned = problem.space.dofmap.index_map.size_local
        coordinates = problem.space.tabulate_dof_coordinates()[:owned]
        for _ in range(min(batch, systems - first)):
            kind = _draw(problem, stream)
            yield UnseenSystem(shape, kind, *problem.assemble(), coordinates)
        for handle in (problem.matrix, problem.b):
            handle.destroy()


def _at_foot(x: Floats, axis: int) -> npt.NDArray[np.bool_]:
    return np.isclose(x[axis], 0.0)


def _mesh(shape: Shape, vertices: float, stream: np.random.Generator, comm: MPI.Comm) -> Mesh:
    """Mesh a domain. Collective: yes."""
    if shape.name in DOMAINS:
        return domain_mesh(shape.name, round(vertices), comm)
    sides = 2.0 ** stream.uniform(-1.0, 1.0, shape.dimension)
    sides /= np.max(sides)
    # Cells are not squares or cubes either.
    cells = sides * 1.5 ** stream.uniform(-1.0, 1.0, shape.dimension)
    cells = np.maximum(np.rint(cells * (vertices / np.prod(cells)) ** (1.0 / shape.dimension)), 4).astype(int)
    if shape.dimension == 2:
        mesh = dolfinx.mesh.create_rectangle(comm, [np.zeros(2), sides], list(cells))
    else:
        mesh = dolfinx.mesh.create_box(comm, [np.zeros(3), sides], list(cells))
    x = mesh.geometry.x
    if shape.name == "quarter of a ring":
        radius, angle = 0.3 + 0.7 * x[:, 0] / sides[0], 0.5 * math.pi * x[:, 1] / sides[1]
        x[:, 0], x[:, 1] = radius * np.cos(angle), radius * np.sin(angle)
    elif shape.name == "warped square":
        wave = 0.08 * np.sin(2.0 * math.pi * x[:, 0] / sides[0]) * np.sin(2.0 * math.pi * x[:, 1] / sides[1])
        x[:, 0] += wave * sides[0]
        x[:, 1] += wave * sides[1]
    elif shape.name == "twisted box":
        angle = 0.7 * x[:, 2] / sides[2]
        x[:, 0], x[:, 1] = (
            x[:, 0] * np.cos(angle) - x[:, 1] * np.sin(angle),
            x[:, 0] * np.sin(angle) + x[:, 1] * np.cos(angle),
        )
    return mesh


def _draw(problem: Assembler, stream: np.random.Generator) -> str:
    """Draw coefficients and load into the assembler, and return the kind. Collective: no."""
    dimension = problem.space.mesh.geometry.dim
    elastic = problem.space.dofmap.index_map_bs > 1
    centres, identity = problem.centres[:dimension], np.eye(dimension)
    problem.tensor.value, problem.reaction.value = identity, 0.0  # type: ignore[assignment]
    problem.source.x.array[:] = problem.noise(stream)
    # Stiffness jumps less than conductivity.
    span = 1.0 if elastic else 3.0
    kind = str(stream.choice(["lognormal", "blocks", "layers"] + ([] if elastic else ["anisotropy", "reaction"])))
    if kind == "lognormal":
        exponent = stream.uniform(0.2, 0.4) * span * problem.draw(stream, stream.uniform(0.03, 0.4))
    elif kind == "blocks":
        counts = stream.integers(3, 25 if dimension == 2 else 10, dimension)
        signs = stream.uniform(-1.0, 1.0, tuple(counts))
        exponent = span * signs[tuple(np.floor(counts[:, None] * centres).astype(int) % counts[:, None])]
    elif kind == "layers":
        normal = stream.standard_normal(dimension)
        phase = stream.uniform(3.0, 20.0) * (normal / np.linalg.norm(normal)) @ centres
        exponent = np.where(np.floor(phase) % 2.0 == 0.0, span * stream.uniform(0.3, 1.0), 0.0)
    else:
        exponent = 0.5 * problem.draw(stream, 0.2)
    problem.coefficient.x.array[:] = 10.0**exponent
    if kind == "anisotropy":
        strong = stream.standard_normal(dimension)
        strong /= np.linalg.norm(strong)
        along = np.outer(strong, strong)
        problem.tensor.value = along + (identity - along) / 10.0 ** stream.uniform(0.5, 4.5)
    elif kind == "reaction":
        problem.reaction.value = 10.0 ** stream.uniform(0.0, 5.0)
    return kind
