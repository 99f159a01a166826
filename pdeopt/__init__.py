"""pdeopt: PDE-constrained optimisation on finite elements, with learned solvers that PETSc verifies.

Importing this package loads MPI first, which is the one order in which DOLFINx and PETSc can follow,
caps the threads of every rank and arms the checks that keep a parallel run from hanging. It loads
neither DOLFINx nor torch: the public names below arrive when they are first used.
"""

import importlib
from typing import Any

from pdeopt._startup import prepare_process

__version__ = "0.1.0"

prepare_process()

_PUBLIC_NAMES = {
    "AdaSketchNewton": "pdeopt.optimise.petsc",
    "AutoKSP": "pdeopt.relaxation.automatic",
    "AutoPC": "pdeopt.relaxation.automatic",
    "BanditSOR": "pdeopt.relaxation.petsc",
    "ControlProblem": "pdeopt.control",
    "DeepConjugateDirections": "pdeopt.conjugate_directions.petsc",
    "MulticolourSOR": "pdeopt.relaxation.petsc",
    "NetworkCoefficient": "pdeopt.learn.network_coefficient",
    "NeuralMultigrid": "pdeopt.conjugate_directions.neural_multigrid",
    "PDELayer": "pdeopt.learn.pde_layer",
    "ReducedDeflation": "pdeopt.reduced_order.deflation",
    "ReducedNewton": "pdeopt.reduced_order.petsc",
    "SketchedKSP": "pdeopt.optimise.petsc_sketch",
    "SolveReport": "pdeopt.report",
    "UnsteadyControlProblem": "pdeopt.control",
    "attach_guess": "pdeopt.control.guess",
    "read_mesh": "pdeopt.fem",
}
_SUBPACKAGES = {
    name: f"pdeopt.{name}"
    for name in (
        "animate",
        "bench",
        "conjugate_directions",
        "control",
        "fem",
        "learn",
        "optimise",
        "parallel",
        "plot",
        "problems",
        "reduced_order",
        "relaxation",
        "report",
    )
} | {"conserve": "pdeopt.learn.conserve"}

__all__ = [
    "AdaSketchNewton",
    "AutoKSP",
    "AutoPC",
    "BanditSOR",
    "ControlProblem",
    "DeepConjugateDirections",
    "MulticolourSOR",
    "NetworkCoefficient",
    "NeuralMultigrid",
    "PDELayer",
    "ReducedDeflation",
    "ReducedNewton",
    "SketchedKSP",
    "SolveReport",
    "UnsteadyControlProblem",
    "__version__",
    "attach_guess",
    "read_mesh",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC_NAMES:
        return getattr(importlib.import_module(_PUBLIC_NAMES[name]), name)
    if name in _SUBPACKAGES:
        return importlib.import_module(_SUBPACKAGES[name])
    raise AttributeError(f"module 'pdeopt' has no attribute {name!r}; it offers {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC_NAMES, *_SUBPACKAGES})
