"""Control problems: objective and state equation in UFL, optimum by PETSc."""

from pdeopt.control.problem import ControlProblem

__all__ = ["ControlProblem"]
