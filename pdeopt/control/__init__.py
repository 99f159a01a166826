"""Control problems: objective and state equation in UFL, optimum by PETSc."""

from pdeopt.control.problem import ControlProblem
from pdeopt.control.reduced import Functional, ReducedFunctional
from pdeopt.control.sweep import Checkpoints
from pdeopt.control.tao import minimise
from pdeopt.control.tape import TapedFunctional
from pdeopt.control.unsteady import UnsteadyControlProblem
from pdeopt.control.verify import TaylorReport, check_symmetry, taylor_test

__all__ = [
    "Checkpoints",
    "ControlProblem",
    "Functional",
    "ReducedFunctional",
    "TapedFunctional",
    "TaylorReport",
    "UnsteadyControlProblem",
    "check_symmetry",
    "minimise",
    "taylor_test",
]
