"""Solvers for the state equation of one time step, its linearisation and the transpose of that."""

from petsc4py import PETSc

import numpy as np
import numpy.typing as npt

from pdeopt.control.solvers import is_symmetric
from pdeopt.control.state_solvers import linear_state_solver
from pdeopt.control.step import NOW, StepData, StepLagrangian
from pdeopt.fem import forms
from pdeopt.report import KSP_ADVICE, SNES_ADVICE, ConvergenceError

Array = npt.NDArray[np.float64]
# Newton's method stops at a relative step: on fine meshes rounding keeps the residual above any fraction of the load.
_NONLINEAR = {"snes_type": "newtonls", "snes_rtol": 1e-12, "snes_stol": 1e-10, "snes_max_it": 50}


class StepSolver:
    """Solves for y_n, for its change along a direction, and for the adjoint p_n.

    Operators that depend neither on unknowns nor on time are set up once for each pair of coefficients; others anew in
    each step, and Newton's method moves the state.

    Parameters
    ----------
    lagrangian
        The step's Lagrangian; its functions hold the point at which to solve.

    Attributes
    ----------
    state_solves, linear_solves
        What was spent so far.
    """

    def __init__(self, lagrangian: StepLagrangian) -> None:
        self._lagrangian = lagrangian
        self._solvers: dict[tuple[float, ...], PETSc.KSP] = {}
        self._ksp: PETSc.KSP | None = None
        self._snes: PETSc.SNES | None = None
        self.state_solves = self.linear_solves = 0
        self._size = forms.owned_size(lagrangian.given.state.function_space)

    def prepare(self, data: StepData) -> None:
        """Take over a step's coefficients, and the operator that belongs to them. Collective: yes."""
        lagrangian = self._lagrangian
        lagrangian.set_step(data)
        key: tuple[float, ...] = ()
        if lagrangian.time_invariant:
            key = (data.coefficients.mass[0], data.coefficients.stiffness[0])
        if key not in self._solvers:
            operator = lagrangian.operator()
            symmetric = lagrangian.time_invariant and is_symmetric(operator)
            dimension = lagrangian.given.state.function_space.mesh.topology.dim
            self._solvers[key] = linear_state_solver(operator, symmetric, dimension)
        self._ksp = self._solvers[key]

    def linearise(self) -> None:
        """Let the operator stand at what the functions hold. Collective: yes."""
        if not self._lagrangian.time_invariant:
            assert self._ksp is not None
            operator = self._ksp.getOperators()[0]
            self._lagrangian.reassemble_operator(operator)
            self._ksp.setOperators(operator)

    def solve_state(self) -> Array:
        """Solve for the state at t_n, from what its function holds, and return it, shape (owned,). Collective: yes.

        Raises
        ------
        ConvergenceError
            If the step's equation cannot be solved.
        """
        lagrangian = self._lagrangian
        self.state_solves += 1
        lagrangian.impose_dirichlet()
        if lagrangian.linear_state:
            self.linearise()
            values = forms.owned_values(lagrangian.given.state) - self.solve(lagrangian.first(lagrangian.adjoint_slot))
        else:
            values = self._solve_nonlinear()
        lagrangian.load(NOW, values)
        return np.array(forms.owned_values(lagrangian.given.state))

    def _solve_nonlinear(self) -> Array:
        lagrangian = self._lagrangian
        assert self._ksp is not None
        operator = self._ksp.getOperators()[0]
        if self._snes is None:
            self._snes = PETSc.SNES().create(lagrangian.comm)
            self._snes.setOptionsPrefix("state_")
            self._snes.setKSP(self._ksp)
            self._snes.setFunction(self._residual, operator.createVecLeft())
            self._snes.setJacobian(self._jacobian, operator)
            with forms.default_options("state_", _NONLINEAR):
                self._snes.setFromOptions()
        solution = operator.createVecRight()
        solution.array[:] = forms.owned_values(lagrangian.given.state)
        self._snes.solve(None, solution)
        reason = self._snes.getConvergedReason()
        if reason < 0:
            raise ConvergenceError(
                f"the state equation of a time step could not be solved (reason {reason}): "
                f"{SNES_ADVICE.get(reason, 'see state_snes_converged_reason')}; or take more steps"
            )
        values = np.array(solution.array_r)
        solution.destroy()
        return values

    def _residual(self, snes: PETSc.SNES, state: PETSc.Vec, out: PETSc.Vec) -> None:
        self._lagrangian.load(NOW, state.array_r)
        out.array[:] = self._lagrangian.first(self._lagrangian.adjoint_slot)

    def _jacobian(self, snes: PETSc.SNES, state: PETSc.Vec, matrix: PETSc.Mat, _: PETSc.Mat) -> None:
        self._lagrangian.load(NOW, state.array_r)
        self._lagrangian.reassemble_operator(matrix)

    def solve(self, right: Array, transpose: bool = False) -> Array:
        """Solve with the linearised operator or its transpose, shape (owned,). Collective: yes.

        Raises
        ------
        ConvergenceError
            If the KSP reports divergence.
        """
        assert self._ksp is not None
        self.linear_solves += 1
        covector, solution = self._ksp.getOperators()[0].createVecs()
        covector.array[:] = right
        (self._ksp.solveTranspose if transpose else self._ksp.solve)(covector, solution)
        reason = self._ksp.getConvergedReason()
        if reason < 0:
            raise ConvergenceError(f"the linear solve of a step failed (reason {reason}): {KSP_ADVICE.get(reason, '')}")
        values = np.array(solution.array_r)
        covector.destroy()
        solution.destroy()
        return values

    def destroy(self) -> None:
        """Free solvers and matrices. Collective: yes."""
        if self._snes is not None:
            self._snes.destroy()
        for ksp in self._solvers.values():
            operator = ksp.getOperators()[0]
            ksp.destroy()
            operator.destroy()
        self._solvers.clear()
