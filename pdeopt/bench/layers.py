"""`pdeopt bench layers`: solves inside networks, networks inside solves, and conservation."""

from mpi4py import MPI

from pdeopt.bench import layer_conservation, layer_derivatives, layer_tolerance, layer_training
from pdeopt.bench.harness import BenchResult, BenchSettings, say
from pdeopt.bench.study import Study


def run(settings: BenchSettings, comm: MPI.Comm) -> BenchResult:
    """Measure line by line what layers must show. Collective: yes."""
    study = Study("layers", settings, comm)
    for name, part in (
        ("derivatives and their cost", layer_derivatives.measure),
        ("adjoint tolerances", layer_tolerance.measure),
        ("conservation", layer_conservation.measure),
        ("a law from boundary records", layer_training.measure),
    ):
        say(comm, f"layers: {name}")
        part(study, settings.quick)
    return study.result()
