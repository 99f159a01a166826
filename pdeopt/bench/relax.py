"""`pdeopt bench relax`: relaxation parameters learned over sequences of systems."""

from mpi4py import MPI

from pdeopt.bench import relax_curves, relax_heat
from pdeopt.bench.harness import BenchResult, BenchSettings, say
from pdeopt.bench.study import Study


def run(settings: BenchSettings, comm: MPI.Comm) -> BenchResult:
    """Measure line by line what bandits over relaxation parameters must show. Collective: yes."""
    study = Study("relax", settings, comm)
    for name, part in (("regret curves", relax_curves.measure), ("heat equation", relax_heat.measure)):
        say(comm, f"relax: {name}")
        part(study, settings.quick)
    return study.result()
