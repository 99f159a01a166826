"""AdaSketch-Newton: optimisation with equality constraints and bounds, in full or reduced space, as a TAO type."""

import importlib
from typing import Any

# Public name -> the module that defines it, loaded when the name is first used.
_PUBLIC_NAMES = {
    "AdaSketchNewton": "pdeopt.optimise.petsc",
    "AdaSketchSettings": "pdeopt.optimise.settings",
    "ControlProgram": "pdeopt.optimise.control_program",
    "DirectionSettings": "pdeopt.optimise.matrix_kkt",
    "MatrixProgram": "pdeopt.optimise.matrices",
    "Program": "pdeopt.optimise.program",
    "ReducedProgram": "pdeopt.optimise.reduced_program",
    "TaoSettings": "pdeopt.optimise.petsc",
    "minimise": "pdeopt.optimise.solve",
    "numpy_program": "pdeopt.optimise.from_numpy",
}

__all__ = list(_PUBLIC_NAMES)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC_NAMES:
        return getattr(importlib.import_module(_PUBLIC_NAMES[name]), name)
    raise AttributeError(f"module 'pdeopt.optimise' has no attribute {name!r}; it offers {', '.join(_PUBLIC_NAMES)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC_NAMES})
