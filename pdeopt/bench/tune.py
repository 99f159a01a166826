"""`pdeopt bench tune`: solvers that choose themselves beside what they choose from."""

from mpi4py import MPI

from pdeopt.bench import tune_families
from pdeopt.bench.harness import BenchResult, BenchSettings, say
from pdeopt.bench.study import Study


def run(settings: BenchSettings, comm: MPI.Comm) -> BenchResult:
    """Measure line by line what the choice of a solver must show. Collective: yes."""
    study = Study("tune", settings, comm)
    say(comm, "tune: families of matrices")
    tune_families.measure(study, settings.quick)
    return study.result()
