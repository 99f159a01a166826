"""AdaSketch-Newton: optimisation with equality constraints and bounds, in full or reduced space, as a TAO type."""

from pdeopt._lazy import lazy_names

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

__getattr__, __dir__ = lazy_names(__name__, _PUBLIC_NAMES)
