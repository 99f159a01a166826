"""`pdeopt bench optimise`: AdaSketch-Newton beside IPOPT, TAO, inexact Newton-CG and what was published."""

from mpi4py import MPI

from pdeopt.bench import optimise_large, optimise_problems, optimise_randomised, optimise_small
from pdeopt.bench.harness import BenchResult, BenchSettings, say
from pdeopt.bench.study import Study


def run(settings: BenchSettings, comm: MPI.Comm) -> BenchResult:
    """Measure line by line what the optimiser must show. Collective: yes."""
    study = Study("optimise", settings, comm)
    for name, part in (
        ("small problems", optimise_small.measure),
        ("benchmark problems", lambda study, quick: optimise_problems.run_problems(study)),
        ("rivals at the scale of PDEs", lambda study, quick: optimise_large.run_large(study)),
        ("eigenpairs and sketches", optimise_randomised.measure),
    ):
        say(comm, f"optimise: {name}")
        part(study, settings.quick)
    return study.result()
