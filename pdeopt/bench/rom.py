"""`pdeopt bench rom`: reduced-order models beside full solves, interpolation, other clusterings and pyMOR."""

from mpi4py import MPI

from pdeopt.bench import (
    rom_cubature,
    rom_gradient,
    rom_heat,
    rom_history,
    rom_local,
    rom_materials,
    rom_pod,
)
from pdeopt.bench.harness import BenchResult, BenchSettings, say
from pdeopt.bench.study import Study


def run(settings: BenchSettings, comm: MPI.Comm) -> BenchResult:
    """Measure line by line what reduced-order models must show. Collective: yes."""
    study = Study("rom", settings, comm)
    for name, part in (
        ("a plate under a moving source", rom_heat),
        ("local bases", rom_local),
        ("cubature", rom_cubature),
        ("laws with internal variables", rom_materials),
        ("models with a history", rom_history),
        ("orthogonal decomposition, deflation", rom_pod),
        ("gradients", rom_gradient),
    ):
        say(comm, f"rom: {name}")
        part.measure(study, settings.quick)
    return study.result()
