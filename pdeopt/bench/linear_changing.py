"""Line 3: sequences of changing matrices by both bodies and by recycling, beside what keeps something classical.

Every arm solves from 0 to the true residual: each matrix, or every second one if it keeps nothing from one to the
next; its sums are then doubled. "The best of the rest" is the best of fresh ICC, of what keeps its interpolation, and
of what lags; in space Eisenstat's SSOR stands beside them.
"""

from mpi4py import MPI

from dolfinx import fem

from pdeopt.bench.harness import say
from pdeopt.bench.linear_arms import petsc_arms
from pdeopt.bench.linear_bodies import Coordinates, RecyclingArm, body_arms
from pdeopt.bench.linear_domains import domain_mesh
from pdeopt.bench.linear_outcome import Outcome
from pdeopt.bench.linear_sequence_arms import classical_arms, replay
from pdeopt.bench.linear_sequences import SEQUENCES
from pdeopt.bench.study import Study

_FRESH, _BESIDE = "GAMG fresh", "Eisenstat"
_SIZES = {2: 320, 3: 46}  # cells along a side: about 1e5 unknowns
_MATRICES = 50
_RECYCLED = 10
_CLAIMS = {
    "multigrid, grid": "",
    "multigrid, algebraic": " algebraic",
    f"ICC, {_RECYCLED} recycled": " recycling",
}


def measure(study: Study, quick: bool) -> None:
    """Solve the sequences by all arms in turn. Collective: one rank only."""
    for name in ("samples",) if quick else SEQUENCES:
        dimension = 3 if "3D" in name else 2
        _sequence(study, name, dimension, 16 if quick else _SIZES[dimension], 4 if quick else _MATRICES)


def _sequence(study: Study, name: str, dimension: int, size: int, matrices: int) -> None:
    """Add a row for each arm over a sequence, and the claims."""
    say(study.comm, f"  sequence: {name}, {size} cells along a side")
    seed = study.settings.seed
    places = _coordinates(dimension, size, study.comm)
    incomplete = petsc_arms(dimension)["ICC: 3" if dimension == 2 else "ICC: 0"]
    classical = classical_arms(dimension)
    own = {
        **body_arms(places, _RECYCLED),
        f"ICC, {_RECYCLED} recycled": lambda: RecyclingArm(f"ICC, {_RECYCLED} recycled", incomplete, _RECYCLED),
    }
    outcomes = replay(SEQUENCES[name](study.comm, size, matrices, seed), {**classical, **own})
    totals = {arm: matrices / len(found) * sum(one.total_cpu for one in found) for arm, found in outcomes.items()}
    fresh, rest = totals[_FRESH], min(totals[arm] for arm in classical if arm not in (_FRESH, _BESIDE))
    best = min(totals[arm] for arm in classical)
    for arm, found in outcomes.items():
        study.row("sequences", {
            "sequence": name, "unknowns": len(places), "matrices": matrices, "arm": arm, **_sums(found, matrices),
            "over fresh GAMG": totals[arm] / fresh, "over the best of the rest": totals[arm] / rest,
            "over the best classical": totals[arm] / best,
        })  # fmt: skip
    for arm, suffix in _CLAIMS.items():
        claim = f"{name}: {arm}, total over"
        study.target(f"3a{suffix} {name}", f"{claim} fresh GAMG", totals[arm] / fresh, 0.5)
        study.target(f"3b{suffix} {name}", f"{claim} the best of the rest", totals[arm] / rest, 0.8)
        study.target(f"3c{suffix} {name}", f"{claim} the best of all classical ones", totals[arm] / best, 0.8)


def _sums(found: list[Outcome], matrices: int) -> dict[str, float]:
    scale = matrices / len(found)
    return {
        "iterations": round(scale * sum(outcome.iterations for outcome in found)),
        "set-up, CPU [s]": scale * sum(outcome.setup_cpu for outcome in found),
        "solve, CPU [s]": scale * sum(outcome.solve_cpu for outcome in found),
        "wall [s]": scale * sum(outcome.setup + outcome.solve for outcome in found),
        "worst true residual": max(outcome.residual for outcome in found),
        "solved": sum(outcome.solved for outcome in found),
        "of": len(found),
    }


def _coordinates(dimension: int, size: int, comm: MPI.Comm) -> Coordinates:
    """Return the places of the unknowns of a sequence: its mesh is kept, and a space on it has one numbering only."""
    space = fem.functionspace(domain_mesh("square" if dimension == 2 else "cube", size, comm), ("Lagrange", 1))
    return space.tabulate_dof_coordinates()[: space.dofmap.index_map.size_local]
