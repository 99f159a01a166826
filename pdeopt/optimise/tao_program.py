"""The callbacks that were set in a TAO, as a program."""

from collections.abc import Callable
from typing import Any

from petsc4py import PETSc

from pdeopt.optimise.matrices import MatrixProgram
from pdeopt.optimise.matrix_kkt import DirectionSettings
from pdeopt.optimise.program import Pair
from pdeopt.parallel import CallbackErrors
from pdeopt.report import OptionError


class TaoFunctions:
    """Objective, gradient, Hessian of the Lagrangian, equality constraints and their Jacobian of a TAO.

    Parameters
    ----------
    tao
        What has the callbacks; not kept beyond the solve.

    Attributes
    ----------
    multipliers
        Where the Hessian is wanted: the Hessian's callback reads it (``tao.getPythonContext().multipliers``).

    Raises
    ------
    OptionError
        If a callback is missing that the method needs.
    """

    def __init__(self, tao: PETSc.TAO) -> None:
        self._tao = tao
        if tao.getObjective() is None and tao.getObjectiveAndGradient()[1] is None:
            raise OptionError("the TAO has no objective: call setObjectiveGradient, or setObjective and setGradient")
        self._hessian, self._hessian_pc, callback = tao.getHessian()
        if callback is None:
            raise OptionError("the TAO has no Hessian: call setHessian; it returns that of f(x) + p'c(x)")
        self._constraints, self._constraints_callback = tao.getEqualityConstraints()
        self._jacobian: PETSc.Mat | None = None
        if self._constraints_callback is not None:
            self._jacobian, self._jacobian_pc, jacobian_callback = tao.getJacobianEquality()
            if jacobian_callback is None:
                raise OptionError("the TAO has equality constraints without derivative: call setJacobianEquality")
            self._jacobian_callback = jacobian_callback
        if tao.getInequalityConstraints()[1] is not None:
            raise OptionError(
                "inequality constraints of a TAO are not read: add slack variables with bounds, c(x) - s = 0, s >= 0"
            )
        self.multipliers: PETSc.Vec | None = None
        self._errors = CallbackErrors(self._hessian.comm.tompi4py())

    def _call[Result](self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call one of the user's functions; what it raises on one rank is raised on all. Collective: yes."""
        with self._errors.guard():
            try:
                result = function(*arguments)
            except PETSc.Error as error:
                raise (error.__cause__ if isinstance(error.__cause__, Exception) else error) from None
        self._errors.raise_stored()
        return result

    def _call_kept(self, callback: Any, *arguments: Any) -> None:
        """Call what petsc4py keeps of a callback: the function with its own arguments."""
        function, positional, named = callback
        self._call(lambda: function(self._tao, *arguments, *(positional or ()), **(named or {})))

    def start(self) -> Pair:
        """Return the initial point: the TAO's solution, and zero multipliers. Collective: yes."""
        primal = self._tao.getSolution()
        if self._constraints_callback is None:
            dual = PETSc.Vec().createMPI((0, 0), comm=primal.comm)
        else:
            dual = self._constraints.duplicate()
            dual.set(0.0)
        return Pair(primal, dual)

    def objective(self, x: PETSc.Vec) -> float:
        """Return f(x). Collective: yes."""
        if self._tao.getObjective() is not None:
            return float(self._call(self._tao.computeObjective, x))
        gradient = x.duplicate()
        value = float(self._call(self._tao.computeObjectiveGradient, x, gradient))
        gradient.destroy()
        return value

    def gradient(self, x: PETSc.Vec, out: PETSc.Vec) -> None:
        """Set f'(x). Collective: yes."""
        if self._tao.getGradient()[1] is not None:
            self._call(self._tao.computeGradient, x, out)
        else:
            self._call(self._tao.computeObjectiveGradient, x, out)

    def constraints(self, x: PETSc.Vec, out: PETSc.Vec) -> None:
        """Set c(x). Collective: yes."""
        self._call_kept(self._constraints_callback, x, out)

    def jacobian(self, x: PETSc.Vec) -> PETSc.Mat:
        """Return c'(x). Collective: yes."""
        assert self._jacobian is not None
        self._call_kept(self._jacobian_callback, x, self._jacobian, self._jacobian_pc)
        return self._jacobian

    def hessian(self, x: PETSc.Vec, multipliers: PETSc.Vec) -> PETSc.Mat:
        """Return the Hessian of the Lagrangian. Collective: yes."""
        self.multipliers = multipliers
        self._call(self._tao.computeHessian, x, self._hessian, self._hessian_pc)
        return self._hessian

    def destroy(self) -> None:
        """Nothing is to be freed: all is the TAO's. Collective: no."""


def tao_program(tao: PETSc.TAO, functions: TaoFunctions, settings: DirectionSettings) -> MatrixProgram:
    """Return the program of a TAO's callbacks and bounds. Collective: yes."""
    bounds = tao.getVariableBounds()
    bounds = bounds if bounds is not None and bounds[0] is not None and bounds[0].handle else None
    prefix = tao.getOptionsPrefix() or ""
    start = functions.start()
    program = MatrixProgram(functions, start, bounds, None, settings, f"{prefix}tao_adasketch_")
    start.dual.destroy()  # the primal one is the TAO's
    return program
