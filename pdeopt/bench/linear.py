"""`pdeopt bench linear`: conjugate directions and multigrid made for each matrix, beside the best classical solvers."""

from mpi4py import MPI

from pdeopt.bench import (
    linear_algebraic,
    linear_changing,
    linear_checks,
    linear_directions,
    linear_grid,
    linear_oracle,
    linear_rivals,
    linear_systems,
    linear_unfit,
)
from pdeopt.bench.harness import BenchResult, BenchSettings, say
from pdeopt.bench.study import Study


def run(settings: BenchSettings, comm: MPI.Comm) -> BenchResult:
    """Measure line by line what learned linear solvers must show. Collective: one rank only."""
    study = Study("linear", settings, comm)
    for name, part in (
        ("grids", linear_grid),
        ("what is left to learn on grids", linear_oracle),
        ("meshes by Gmsh", linear_algebraic),
        ("sequences of matrices", linear_changing),
        ("unseen systems", linear_systems),
        ("growth, ranks, symmetry", linear_checks),
        ("conjugate directions", linear_directions),
        ("matrices that do not fit", linear_unfit),
        ("classical solvers", linear_rivals),
    ):
        say(comm, f"linear: {name}")
        part.measure(study, settings.quick)
    return study.result()
