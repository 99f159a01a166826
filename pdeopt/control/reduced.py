"""The objective as a function of the controls alone: j(u) = J(y(u), u), the state equation solved for y(u)."""

from collections.abc import Sequence
from typing import Protocol

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np

from pdeopt.control import riesz, solvers, state_solvers
from pdeopt.control.hessian import ReducedHessian
from pdeopt.control.kkt import Blocks, KKTSystem
from pdeopt.control.newton import Bounds
from pdeopt.fem import forms
from pdeopt.fem.saddle import SolverSetup
from pdeopt.report import SNES_ADVICE, ConvergenceError

# Relative step below which Newton's method has found the state; the residual cannot serve, since on fine meshes
# rounding keeps its Euclidean norm above any fixed fraction of the load's.
_STATE_STEP = 1e-10


class Functional(Protocol):
    """An objective of the controls alone, in coordinates that a PETSc vector holds.

    `minimise`, `taylor_test` and `check_symmetry` take any object like this.

    Attributes
    ----------
    comm
        Communicator of the vectors.
    """

    comm: MPI.Comm

    def create_vector(self) -> PETSc.Vec:
        """Return a zero vector of control coordinates. Collective: yes."""

    def get_control(self, out: PETSc.Vec) -> None:
        """Copy the present control into a vector. Collective: no."""

    def set_control(self, control: PETSc.Vec) -> None:
        """Hand a control, and the state that belongs to it, to the user's functions. Collective: yes."""

    def value(self, control: PETSc.Vec) -> float:
        """Return j(u). Collective: yes."""

    def derivative(self, control: PETSc.Vec, out: PETSc.Vec) -> None:
        """Set the covector j'(u). Collective: yes."""

    def hessian_action(self, control: PETSc.Vec, direction: PETSc.Vec, out: PETSc.Vec) -> None:
        """Set the covector j''(u) d. Collective: yes."""

    def inner_product(self) -> PETSc.Mat:
        """Return the matrix of the control space's inner product, owned by the functional. Collective: yes."""

    def bounds(self) -> tuple[PETSc.Vec, PETSc.Vec] | None:
        """Return lower and upper bounds by coordinates, or None. Collective: yes."""


class ReducedFunctional:
    """j(u) = J(y(u), u) + sum_k l_k G_k(y(u), u) for a control problem, the multipliers l_k as they stand.

    State, adjoint and Hessian blocks of the last point are kept, so that value, derivative and Hessian actions at one
    control cost one state solve, one adjoint solve and two linearised solves an action.

    Parameters
    ----------
    system
        The problem's KKT system.
    bounds
        One pair of bounds per control.
    gauss_newton
        Leave the second derivatives of state equation and constraints out of the Hessian.
    state_setup
        Solver of the state equation and its adjoint, see `pdeopt.control.state_solvers.state_solver`.

    Attributes
    ----------
    state_solves, adjoint_solves, hessian_actions
        What was spent so far.
    solves
        The linear solves with the state operator or its transpose that all this took: each Newton step of a state
        solve and each adjoint solve counts 1, each Hessian action 2, and what else was solved through `hessian`.
    """

    def __init__(
        self,
        system: KKTSystem,
        bounds: Sequence[Bounds],
        gauss_newton: bool = False,
        state_setup: SolverSetup | None = None,
    ) -> None:
        self._system, self._bounds, self._gauss_newton = system, bounds, gauss_newton
        self.comm = system.comm
        self.state_solves = self.adjoint_solves = self.hessian_actions = 0
        self._solves = 0  # without those of the present Hessian
        self._layout = forms.BlockLayout(system.comm, system.layout.sizes[1:-1])
        self._full = system.layout.create_vector()
        self._inner_product: PETSc.Mat | None = None
        self._riesz: riesz.RieszMap | None = None
        self._control = self.create_vector()
        self._solved = self._adjoint_solved = False
        self._blocks: Blocks | None = None
        self._hessian: ReducedHessian | None = None
        self._linear = system.linear_state
        system.impose_dirichlet()
        self._create_state_solver(state_setup)

    def _create_state_solver(self, setup: SolverSetup | None) -> None:
        system = self._system
        self._operator = system.assemble_state_operator()
        symmetric = solvers.state_operator_is_symmetric(system, self._operator)
        ksp = state_solvers.state_solver(system, self._operator, symmetric, setup)
        self._right, self._solution = self._operator.createVecs()
        self._snes = PETSc.SNES().create(self.comm)
        self._snes.setOptionsPrefix("state_")
        self._snes.setKSP(ksp)
        self._snes.setFunction(self._assemble_state_residual, self._right.duplicate())
        self._snes.setJacobian(self._assemble_state_jacobian, self._operator)
        defaults: dict[str, object] = {"snes_type": "ksponly"}
        if not system.affine_state:
            defaults = {"snes_type": "newtonls", "snes_rtol": 1e-12, "snes_stol": _STATE_STEP, "snes_max_it": 50}
        with forms.default_options("state_", defaults):
            self._snes.setFromOptions()
        self._ksp = ksp

    def _assemble_state_residual(self, snes: PETSc.SNES, state: PETSc.Vec, out: PETSc.Vec) -> None:
        system = self._system
        forms.set_function(system.lagrangian.state, state.array_r)
        system.assemble_derivative(system.adjoint_field, self._full)
        out.array[:] = system.layout.read(self._full, system.adjoint_field)

    def _assemble_state_jacobian(self, snes: PETSc.SNES, state: PETSc.Vec, matrix: PETSc.Mat, _: PETSc.Mat) -> None:
        if not self._linear:
            forms.set_function(self._system.lagrangian.state, state.array_r)
            self._system.reassemble_state_operator(matrix)

    # Coordinates -----------------------------------------------------------------------------------------------------

    def create_vector(self) -> PETSc.Vec:
        """Return a zero vector of control coordinates. Collective: yes."""
        return self._layout.create_vector()

    def get_control(self, out: PETSc.Vec) -> None:
        """Copy the present control into a vector. Collective: no."""
        for j, control in enumerate(self._system.controls):
            self._layout.write(out, j, control.coordinates())

    def set_control(self, control: PETSc.Vec) -> None:
        """Set controls, state and adjoint that belong to the given coordinates. Collective: yes."""
        self._solve_adjoint(control)

    def bounds(self) -> tuple[PETSc.Vec, PETSc.Vec] | None:
        """Return lower and upper bounds by coordinates, or None if all are infinite. Collective: yes."""
        lower, upper = self.create_vector(), self.create_vector()
        finite = False
        for j, pair in enumerate(self._bounds):
            self._layout.write(lower, j, pair.lower)
            self._layout.write(upper, j, pair.upper)
            finite |= bool(np.isfinite(pair.lower).any() or np.isfinite(pair.upper).any())
        if self.comm.allreduce(finite, op=MPI.LOR):
            return lower, upper
        lower.destroy()
        upper.destroy()
        return None

    def inner_product(self) -> PETSc.Mat:
        """Return the block diagonal matrix of the controls' inner products, owned by this object. Collective: yes."""
        if self._inner_product is None:
            products = self._system.control_products
            if len(products) == 1:
                self._inner_product = products[0].copy()
            else:
                table = [[p if i == j else None for j in range(len(products))] for i, p in enumerate(products)]
                nest = PETSc.Mat().createNest(table, comm=self.comm)
                self._inner_product = nest.convert("aij", PETSc.Mat())
                nest.destroy()
            self._inner_product.setOption(PETSc.Mat.Option.SPD, True)
        return self._inner_product

    # Values and derivatives ------------------------------------------------------------------------------------------

    def value(self, control: PETSc.Vec) -> float:
        """Return j(u); solves the state equation unless it was solved at this control. Collective: yes.

        Raises
        ------
        ConvergenceError
            If the state equation cannot be solved.
        """
        self._solve_state(control)
        system = self._system
        multipliers = [float(multiplier.value) for multiplier in system.lagrangian.multipliers]
        return system.objective() + float(np.dot(multipliers, system.constraint_values()))

    def derivative(self, control: PETSc.Vec, out: PETSc.Vec) -> None:
        """Set the covector j'(u) = L_u(y(u), u, p(u)); one adjoint solve. Collective: yes."""
        self._solve_adjoint(control)
        system = self._system
        for j in range(len(system.controls)):
            system.assemble_derivative(j + 1, self._full)
            self._layout.write(out, j, system.layout.read(self._full, j + 1))

    def gradient(self, control: PETSc.Vec, out: PETSc.Vec) -> None:
        """Set the gradient: the Riesz representative of j'(u) in the control's inner product. Collective: yes."""
        if self._riesz is None:
            self._riesz = riesz.control_riesz_map(self.inner_product())
        covector = self.create_vector()
        self.derivative(control, covector)
        self._riesz.solve(covector, out, rtol=1e-12)
        covector.destroy()

    def hessian_action(self, control: PETSc.Vec, direction: PETSc.Vec, out: PETSc.Vec) -> None:
        """Set the covector j''(u) d, or its Gauss-Newton part; two linearised solves. Collective: yes."""
        hessian = self.hessian(control)
        hessian.mult(hessian.matrix, direction, out)
        for j, idle in enumerate(self._system.idle):
            out.array[self._layout.slice(j)][idle] = 0.0  # the blocks have ones there
        self.hessian_actions += 1

    def hessian(self, control: PETSc.Vec) -> ReducedHessian:
        """Return the Hessian at a control, owned by this object and alive until it is asked about another control.

        Unlike `hessian_action` it has ones on the diagonal of controls that act nowhere. Collective: yes.
        """
        self._solve_adjoint(control)
        if self._hessian is None:
            self._blocks = self._assemble_hessian_blocks()
            self._hessian = ReducedHessian(self._system, self._blocks, self._ksp)
        return self._hessian

    @property
    def state_solver(self) -> PETSc.KSP:
        """Solver of the linearised state equation, set up where state or adjoint equation were last solved."""
        return self._ksp

    def use_gauss_newton(self, gauss_newton: bool) -> None:
        """Leave second derivatives out of the Hessian from now on, or do not. Collective: yes."""
        if gauss_newton != self._gauss_newton:
            self._gauss_newton = gauss_newton
            self._forget_hessian()

    @property
    def solves(self) -> int:
        """Linear solves so far, see the class."""
        return self._solves + (self._hessian.solves if self._hessian is not None else 0)

    def _assemble_hessian_blocks(self) -> Blocks:
        lagrangian = self._system.lagrangian
        if not self._gauss_newton:
            return self._system.assemble_blocks()
        adjoint = forms.owned_values(lagrangian.adjoint).copy()
        multipliers = [multiplier.value.copy() for multiplier in lagrangian.multipliers]
        forms.set_function(lagrangian.adjoint, np.zeros_like(adjoint))
        for multiplier in lagrangian.multipliers:
            multiplier.value = np.zeros(())
        blocks = self._system.assemble_blocks()
        forms.set_function(lagrangian.adjoint, adjoint)
        for multiplier, value in zip(lagrangian.multipliers, multipliers, strict=True):
            multiplier.value = value
        return blocks

    def _solve_state(self, control: PETSc.Vec) -> None:
        system = self._system
        if self._solved and control.equal(self._control):
            return
        self.forget()
        control.copy(self._control)
        for j, field in enumerate(system.controls):
            field.set_coordinates(self._layout.read(control, j))
        if system.affine_state and not self._linear:  # one step solves it: what a failed trial left must not enter
            forms.set_function(system.lagrangian.state, np.zeros(system.layout.sizes[0]))
            system.impose_dirichlet()
        guess = forms.owned_values(system.lagrangian.state).copy()
        self._solution.array[:] = guess
        self._snes.solve(None, self._solution)
        forms.set_function(system.lagrangian.state, self._solution.array_r)
        self.state_solves += 1
        self._solves += int(self._snes.getIterationNumber())
        reason = self._snes.getConvergedReason()
        if reason < 0:
            # What follows, such as a shorter step of a line search, must find neither NaN nor a failed factorisation.
            forms.set_function(system.lagrangian.state, guess)
            self._ksp.getPC().reset()
            raise ConvergenceError(
                f"the state equation could not be solved (reason {reason}): "
                f"{SNES_ADVICE.get(reason, 'see state_snes_converged_reason')}"
            )
        self._solved = True

    def _solve_adjoint(self, control: PETSc.Vec) -> None:
        self._solve_state(control)
        if self._adjoint_solved:
            return
        system = self._system
        if not self._linear:
            system.reassemble_state_operator(self._operator)
            self._ksp.setOperators(self._operator)
        forms.set_function(system.lagrangian.adjoint, np.zeros(system.layout.sizes[0]))
        system.assemble_derivative(0, self._full)
        self._right.array[:] = -system.layout.read(self._full, 0)
        self._ksp.solveTranspose(self._right, self._solution)
        reason = self._ksp.getConvergedReason()
        if reason < 0:
            raise ConvergenceError(f"the adjoint equation could not be solved (reason {reason})")
        forms.set_function(system.lagrangian.adjoint, self._solution.array_r)
        self.adjoint_solves += 1
        self._solves += 1
        self._adjoint_solved = True

    def forget(self) -> None:
        """Count nothing as solved any more, as whoever has moved state or adjoint must ask for. Collective: yes."""
        self._solved = self._adjoint_solved = False
        self._forget_hessian()

    def _forget_hessian(self) -> None:
        if self._hessian is not None:
            self._solves += self._hessian.solves
            self._hessian.release()
            self._hessian = None
        if self._blocks is not None:
            self._blocks.destroy()
            self._blocks = None

    def destroy(self) -> None:
        """Free the PETSc objects. Collective: yes."""
        self.forget()
        for item in (self._snes, self._ksp, self._operator, self._right, self._solution, self._full, self._control):
            item.destroy()
        if self._riesz is not None:
            self._riesz.destroy()
        if self._inner_product is not None:
            self._inner_product.destroy()
