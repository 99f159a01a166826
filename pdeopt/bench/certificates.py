"""`pdeopt bench certificates`: residual estimators, goal-oriented adaptivity, judged initial guesses."""

from mpi4py import MPI

from pdeopt.bench import adaptivity, estimators, guests
from pdeopt.bench.harness import BenchResult, BenchSettings, say
from pdeopt.bench.study import Study


def run(settings: BenchSettings, comm: MPI.Comm) -> BenchResult:
    """Measure line by line what certificates, adaptivity and guests must show. Collective: yes."""
    study = Study("certificates", settings, comm)
    for name, part in (
        ("estimators", estimators.measure),
        ("adaptivity", adaptivity.measure),
        ("guests", guests.measure),
    ):
        say(comm, f"certificates: {name}")
        part(study, settings.quick)
    return study.result()
