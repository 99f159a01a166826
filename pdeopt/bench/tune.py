"""`pdeopt bench tune`: solvers that choose themselves beside what they choose from."""

from mpi4py import MPI

from pdeopt.bench import tune_families, tune_hindsight, tune_large, tune_outside, tune_scripts
from pdeopt.bench.harness import BenchResult, BenchSettings, say
from pdeopt.bench.study import Study


def run(settings: BenchSettings, comm: MPI.Comm) -> BenchResult:
    """Measure line by line what the choice of a solver must show. Collective: yes."""
    study = Study("tune", settings, comm)
    for name, part in (
        ("families of matrices", tune_families.measure),
        ("families held out and large systems", tune_large.measure),
        ("changing matrices", tune_hindsight.measure),
        ("scripts", tune_scripts.measure),
        ("scripts of other people", tune_outside.measure),
    ):
        say(comm, f"tune: {name}")
        part(study, settings.quick)
    return study.result()
