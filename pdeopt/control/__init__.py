"""Control problems: objective and state equation in UFL, optimum by PETSc."""

from pdeopt.control.problem import ControlProblem
from pdeopt.control.reduced import Functional, ReducedFunctional
from pdeopt.control.tao import minimise
from pdeopt.control.tape import TapedFunctional
from pdeopt.control.verify import TaylorReport, check_symmetry, taylor_test

__all__ = [
    "ControlProblem",
    "Functional",
    "ReducedFunctional",
    "TapedFunctional",
    "TaylorReport",
    "check_symmetry",
    "minimise",
    "taylor_test",
]
