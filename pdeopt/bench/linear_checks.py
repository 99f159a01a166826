"""Line 5: how iterations grow with the mesh and with ranks; whether the cycles are symmetric and positive."""

import itertools
import math
from collections.abc import Callable

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np
import numpy.typing as npt

from pdeopt.bench.harness import Row, say
from pdeopt.bench.linear_bodies import BODIES, Coordinates, multigrid, solve_by_body
from pdeopt.bench.linear_families import FAMILIES
from pdeopt.bench.study import Study, number
from pdeopt.conjugate_directions import GridMultigrid
from pdeopt.parallel import random_stream

type Vector = npt.NDArray[np.float64]
type Cycle = Callable[[PETSc.Vec, PETSc.Vec], None]

_KINDS = ("lognormal", "checker", "anisotropy")
_ON_RANKS = {
    "grid": {
        "square, lognormal": 256,
        "square, checker": 256,
        "square, anisotropy": 256,
        "cube, checker": 32,
        "cube, anisotropy": 32,
    },
    "algebraic": {
        "square, lognormal": 128,
        "L-shape, anisotropy": 20_000,
        "perforated plate, inclusions, elasticity": 10_000,
        "bracket, inclusions": 20_000,
    },
}
_VECTORS = 10_000


def measure(study: Study, quick: bool) -> None:
    """Measure growth, ranks, symmetry and definiteness. Collective: one rank only."""
    _growth(study, (16, 32) if quick else (128, 1024), _KINDS[:1] if quick else _KINDS)
    _ranks(study, quick)
    _definiteness(study, 50 if quick else _VECTORS, {"square": 16, "cube": 6} if quick else {"square": 32, "cube": 10})


def _growth(study: Study, sizes: tuple[int, int], kinds: tuple[str, ...]) -> None:
    """Solve by the algebraic body on a coarse and on a fine mesh; of the grid body `linear_grid` counts them."""
    for kind in kinds:
        say(study.comm, f"  growth, {kind}")
        iterations = []
        for size in sizes:
            case = FAMILIES[f"square, {kind}"].case(study.comm, size, study.settings.seed)
            outcome = solve_by_body(case.A, case.b, "algebraic", case.coordinates)
            study.row("growth", {"family": case.family, **case.tags, **outcome.row()})
            iterations.append(outcome.iterations if outcome.solved else math.nan)
            case.destroy()
        claim = f"algebraic: iterations on {kind}, {sizes[1]} over {sizes[0]} cells along a side"
        study.target(f"5a algebraic {kind}", claim, iterations[1] / iterations[0], 1.2)


def _ranks(study: Study, quick: bool) -> None:
    """Count the iterations on several ranks; DESIGN's bound is the greater of 2 and a tenth of those on one."""
    for body in BODIES:
        sizes = {"square, checker": 16} if quick else _ON_RANKS[body]
        counts: dict[int, Row] = {}
        for ranks in (1, 2) if quick else (1, 2, 3):
            arguments = {"body": body, "sizes": sizes, "seed": study.settings.seed}
            if ranks == study.comm.size:
                counts[ranks] = iterations_on_ranks(study.comm, **arguments)  # type: ignore[arg-type]
            else:
                counts[ranks] = study.case("pdeopt.bench.linear_checks:iterations_on_ranks", ranks, **arguments)
        worst = 0.0
        for family in sizes:
            one = number(counts[1], family)
            found = {f"on {ranks}": number(row, family) for ranks, row in counts.items()}
            study.row("iterations on ranks", {"body": body, "family": family, "size": sizes[family], **found})
            for value in found.values():
                worst = max(worst, (value - one) / max(2.0, 0.1 * one)) if math.isfinite(value) else math.nan
        for ranks, row in counts.items():
            if "failed" in row:
                study.row("iterations on ranks, failures", {"body": body, "ranks": ranks, "failed": row["failed"]})
        claim = f"{body}: iterations on 2 and 3 ranks beyond those on one, over max(2, 10 %), worst"
        study.target(f"5b {body}", claim, worst, 1.0)


def iterations_on_ranks(comm: MPI.Comm, body: str, sizes: dict[str, int], seed: int) -> Row:
    """Return the iterations for each family, None where the true residual is missed. Collective: yes."""
    found: Row = {}
    for family, size in sizes.items():
        case = FAMILIES[family].case(comm, size, seed)
        outcome = solve_by_body(case.A, case.b, body, case.coordinates)
        found[family] = outcome.iterations if outcome.solved else None
        case.destroy()
    return found


def _definiteness(study: Study, vectors: int, sizes: dict[str, int]) -> None:
    """Apply cycles in float64 to random vectors: u' M v = v' M u, and r' M r > 0."""
    for body in BODIES:
        for kind, (domain, size) in itertools.product(_KINDS, sizes.items()):
            name = f"{domain}, {kind}"
            say(study.comm, f"  symmetry: {body}, {name}")
            case = FAMILIES[name].case(study.comm, size, study.settings.seed)
            skew, least = _products(case.A, _cycle(case.A, body, case.coordinates), vectors)
            study.row("symmetric and positive", {
                "body": body, "family": name, "unknowns": case.tags["unknowns"], "vectors": vectors,
                "asymmetry": skew, "least r'Mr / |r| |Mr|": least,
            })  # fmt: skip
            case.destroy()
            study.target(f"5c {body} {name}", f"{body}, {name}: |u'Mv - v'Mu| / |u| |Mv|, worst", skew, 1e-12)
            claim = f"{body}, {name}: r'Mr / |r| |Mr| on {vectors} random vectors, least"
            study.target(f"5d {body} {name}", claim, least, 1e-16, at_least=True)


def _cycle(A: PETSc.Mat, body: str, coordinates: Coordinates) -> Cycle:
    """Return a body's cycle in float64. Collective: yes."""
    if body == "grid":
        return GridMultigrid(A, coordinates, dtype=np.float64, weights="learned").apply
    pc = PETSc.PC().create(A.getComm())
    pc.setOperators(A)
    pc.setType(PETSc.PC.Type.PYTHON)
    pc.setPythonContext(multigrid(body, coordinates))
    pc.setUp()
    return pc.apply


def _products(A: PETSc.Mat, cycle: Cycle, vectors: int) -> tuple[float, float]:
    """Return the worst asymmetry over successive pairs and the least cosine of r and M r. Collective: one rank only."""
    r, z = A.createVecs()
    stream = random_stream("bench.linear_checks", 0)
    skew, least = 0.0, math.inf
    former: tuple[Vector, Vector] | None = None
    for _ in range(vectors):
        r.array_w[:] = stream.standard_normal(r.getLocalSize())
        cycle(r, z)
        u, image = r.array_r.copy(), z.array_r.copy()
        least = min(least, float(u @ image) / float(np.linalg.norm(u) * np.linalg.norm(image)))
        if former is not None:
            scale = float(np.linalg.norm(u) * np.linalg.norm(former[1]))
            skew = max(skew, abs(float(u @ former[1]) - float(former[0] @ image)) / scale)
        former = u, image
    for handle in (r, z):
        handle.destroy()
    return skew, least
