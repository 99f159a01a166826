"""Bodies with a history under loads that change slowly: one equilibrium after another."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from petsc4py import PETSc

import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import fem
from dolfinx.fem import petsc as fem_petsc

from pdeopt.fem import forms
from pdeopt.fem.internal_variables import InternalVariables
from pdeopt.parallel import CallbackErrors, collective_errors
from pdeopt.report import SNES_ADVICE, ConvergenceError

type Array = npt.NDArray[np.float64]

_OPTIONS = {
    "snes_type": "newtonls", "snes_linesearch_type": "bt", "snes_max_it": 25, "snes_rtol": 1e-9, "snes_stol": 0.0,
    "ksp_type": "preonly", "pc_type": "lu", "pc_factor_mat_solver_type": "mumps",
}  # fmt: skip
# Of the largest residual that a load has made so far: what a step that changes nothing may leave.
_NEGLIGIBLE = 1e-11


class EquilibriumSolver(Protocol):
    """What `QuasiStatic` needs: equilibrium under the present load, from the present unknown.

    Attributes
    ----------
    internal
        The internal variables of the points that the solver integrates over.
    """

    internal: InternalVariables

    def solve(self) -> int:
        """Find the equilibrium and return Newton's iterations; raise ConvergenceError on all ranks. Collective: yes."""

    def unknown(self) -> Array:
        """Return a copy of the unknown: owned degrees of freedom, or reduced coordinates. Collective: no."""

    def set_unknown(self, values: Array) -> None:
        """Set the unknown. Collective: yes."""


class NewtonEquilibrium:
    """Equilibrium F(u, q(u), h) = 0 by PETSc's SNES, the internal variables renewed before every residual.

    Parameters
    ----------
    residual
        F, linear in a test function of the space of u.
    internal
        The internal variables; they know u.
    bcs
        Dirichlet conditions.
    prefix
        Of PETSc's options.
    options
        PETSc's options without the prefix, on top of Newton's method with MUMPS.

    Attributes
    ----------
    u
        The state.
    residual, jacobian
        The forms.

    Collective: yes.
    """

    def __init__(
        self,
        residual: ufl.Form,
        internal: InternalVariables,
        bcs: Sequence[fem.DirichletBC[Any]] = (),
        *,
        prefix: str = "equilibrium_",
        **options: object,
    ) -> None:
        self.u, self.internal, self.bcs = internal.unknown, internal, list(bcs)
        self.residual, self.jacobian = residual, internal.tangent(residual)
        self._residual, self._jacobian = forms.compile_form(self.residual), forms.compile_form(self.jacobian)
        self._comm = self.u.function_space.mesh.comm
        self._errors = CallbackErrors(self._comm)
        self._scale, self._first = 0.0, True
        self._matrix = fem_petsc.create_matrix(self._jacobian)
        self._x, self._b = self.u.x.petsc_vec.duplicate(), self.u.x.petsc_vec.duplicate()
        self.snes = PETSc.SNES().create(self._comm)
        self.snes.setOptionsPrefix(prefix)
        self.snes.setFunction(self._evaluate, self._b)
        self.snes.setJacobian(self._linearise, self._matrix)
        with forms.default_options(prefix, _OPTIONS | options):
            self.snes.setFromOptions()
            self.snes.getKSP().setFromOptions()
        self._relative, self._absolute, _, _ = self.snes.getTolerances()

    def solve(self) -> int:
        """Find the equilibrium and return Newton's iterations.

        Raises
        ------
        ConvergenceError
            On all ranks, if Newton's method or a local equation fails; u is then where they stopped.

        Collective: yes.
        """
        self.snes.setTolerances(rtol=self._relative, atol=max(1e-300, _NEGLIGIBLE * self._scale))
        self.u.x.petsc_vec.copy(self._x)
        self._first = True
        self.snes.solve(None, self._x)
        self._errors.raise_stored()
        reason = int(self.snes.getConvergedReason())
        self._take(self._x)
        if reason <= 0:
            advice = SNES_ADVICE.get(reason, "see PETSc's list of reasons")
            raise ConvergenceError(f"no equilibrium was found (SNES reason {reason}): {advice}")
        return int(self.snes.getIterationNumber())

    def unknown(self) -> Array:
        """Return a copy of the owned degrees of freedom of u, shape (owned,). Collective: no."""
        return forms.owned_values(self.u).copy()

    def set_unknown(self, values: Array) -> None:
        """Set u from its owned degrees of freedom. Collective: yes."""
        forms.set_function(self.u, values)

    def destroy(self) -> None:
        """Free PETSc's objects. Collective: yes."""
        for thing in (self.snes, self._matrix, self._x, self._b):
            thing.destroy()

    def _take(self, x: PETSc.Vec) -> None:
        x.copy(self.u.x.petsc_vec)
        self.u.x.scatter_forward()

    def _evaluate(self, _snes: PETSc.SNES, x: PETSc.Vec, b: PETSc.Vec) -> None:
        self._take(x)
        with b.localForm() as local:
            local.set(0.0)
        # An error counts if no shorter step of the line search mended it.
        self._errors = CallbackErrors(self._comm)
        with self._errors.guard(lambda: b.array.fill(np.nan)):
            self.internal.update()
        fem_petsc.assemble_vector(b, self._residual)  # type: ignore[arg-type]
        state = self.u.x.petsc_vec  # with its ghosts, which x lacks
        fem_petsc.apply_lifting(b, [self._jacobian], bcs=[self.bcs], x0=[state], alpha=-1.0)
        b.ghostUpdate(addv=PETSc.InsertMode.ADD, mode=PETSc.ScatterMode.REVERSE)
        fem_petsc.set_bc(b, self.bcs, x0=state, alpha=-1.0)
        if self._first:  # not those that a line search tries and leaves, which may be beyond all loads
            self._scale, self._first = max(self._scale, b.norm()), False  # NaN is not larger

    def _linearise(self, _snes: PETSc.SNES, _x: PETSc.Vec, matrix: PETSc.Mat, _preconditioner: PETSc.Mat) -> None:
        # The internal variables are those of the last residual, which Newton's method took here.
        forms.reassemble_matrix(matrix, self._jacobian, self.bcs)


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """What a body went through.

    Parameters
    ----------
    times
        Ends of the steps [s], shape (steps,).
    unknowns
        The unknown after each step, shape (owned, steps).
    history
        The history after each step by name, shape (owned, steps).
    iterations
        Newton's iterations of each step, shape (steps,).
    """

    times: Array
    unknowns: Array
    history: dict[str, Array]
    iterations: npt.NDArray[np.int64]


class QuasiStatic:
    """Step through time: load, equilibrium, history.

    Parameters
    ----------
    solver
        Of the equilibrium: `NewtonEquilibrium`, or a reduced one.
    load
        Sets all loads, temperatures and boundary values of a time [s].
    time_step
        The constant of the forms that receives the length of each step [s]; None if the law has no rate.
    halvings
        How often the parts of a step are cut in half when one fails, before the step counts as failed.

    Attributes
    ----------
    time
        Present time [s].
    solver, load, time_step
        As given.

    Collective: no.
    """

    def __init__(
        self,
        solver: EquilibriumSolver,
        load: Callable[[float], None],
        *,
        time_step: fem.Constant[Any] | None = None,
        halvings: int = 4,
    ) -> None:
        self.solver, self.load, self.halvings, self.time = solver, load, halvings, 0.0
        self.time_step = time_step

    def reset(self, time: float = 0.0) -> None:
        """Return to the virgin body at rest. Collective: yes."""
        self.solver.set_unknown(np.zeros_like(self.solver.unknown()))
        self.solver.internal.reset()
        self.time = time

    def restore(self, time: float, unknown: Array, history: Mapping[str, Array]) -> None:
        """Go to a state: the time [s], the unknown and the history by name, as `march` returns them in columns.

        Collective: yes.
        """
        self.solver.set_unknown(unknown)
        self.solver.internal.set_state(history)
        self.time = time

    def step(self, time: float) -> int:
        """Go on to a time [s] and return Newton's iterations.

        Raises
        ------
        ConvergenceError
            On all ranks, if a part fails although it was halved as often as allowed. The body is then at the end of
            the last part that succeeded, which ``time`` tells.

        Collective: yes.
        """
        start, iterations, parts, done = self.time, 0, 1, 0
        while done < parts:
            end = time if done + 1 == parts else start + (time - start) * (done + 1) / parts
            before = self.solver.unknown()
            self._set_load(end)
            try:
                iterations += self.solver.solve()
            except ConvergenceError as error:
                self.solver.set_unknown(before)
                if parts == 2**self.halvings:
                    raise ConvergenceError(f"step from {self.time:g} to {end:g} s: {error}", error.report) from error
                parts, done = 2 * parts, 2 * done
                continue
            self.accept(end)
            done += 1
        return iterations

    def impose(self, time: float, unknown: Array) -> None:
        """Put the body into a given state at the end of a step, without equilibrium: internal variables follow.

        The history is still that of the beginning; `accept` ends the step. So a body follows another, a reduced one.

        Raises
        ------
        ConvergenceError
            On all ranks, if the local equation is not solved.

        Collective: yes.
        """
        self._set_load(time)
        self.solver.set_unknown(unknown)
        internal = self.solver.internal
        with collective_errors(internal.mesh.comm):
            internal.update()

    def accept(self, time: float) -> None:
        """End the step at a time [s]: the history takes its new values. Collective: yes."""
        self.solver.internal.commit()
        self.time = time

    def march(self, times: Sequence[float] | Array) -> Trajectory:
        """Step through all times [s], which rise, and return what happened. Collective: yes."""
        unknowns, states, iterations = [], [], []
        for time in times:
            iterations.append(self.step(float(time)))
            unknowns.append(self.solver.unknown())
            states.append(self.solver.internal.state())
        history = {name: np.column_stack([state[name] for state in states]) for name in states[0]}
        return Trajectory(np.asarray(times, float), np.column_stack(unknowns), history, np.asarray(iterations))

    def _set_load(self, time: float) -> None:
        self.load(time)
        if self.time_step is not None:
            self.time_step.value = np.asarray(time - self.time)
