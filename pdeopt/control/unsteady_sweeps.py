"""What a sweep through time computes: states and adjoints with the gradient, and their changes with the Hessian."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pdeopt.control.step import BEFORE, EARLIER, NOW
from pdeopt.control.sweep import State

if TYPE_CHECKING:
    from pdeopt.control.unsteady_reduced import UnsteadyFunctional

Array = npt.NDArray[np.float64]
Visitor = Callable[[int, float], None]
"""Called with (n, t_n) when the problem's functions hold step n."""


class Trajectory:
    """States and adjoints of a point, so that second derivatives need not solve for them again.

    Parameters
    ----------
    steps
        Number of steps.

    Attributes
    ----------
    states, adjoints
        Owned values at t_1, ..., t_N, shape (owned,) each, as far as they are known.
    """

    def __init__(self, steps: int) -> None:
        self.states: list[Array] = [np.empty(0)] * steps
        self.adjoints: list[Array] = [np.empty(0)] * steps


class FirstOrder:
    """States forward, adjoints and the gradient backward: a `pdeopt.control.sweep.Model`.

    Parameters
    ----------
    functional
        What is differentiated.
    values
        Control coordinates, shape (owned,).
    visitor, visit_adjoints
        See `UnsteadyFunctional.visit`.
    kept
        Where to keep states and adjoints.

    Attributes
    ----------
    cost
        This rank's part of the objective, after the sweep forward.
    gradient
        j'(u), shape (owned,), after the sweep backward.
    """

    def __init__(
        self,
        functional: "UnsteadyFunctional",
        values: Array,
        visitor: Visitor | None = None,
        visit_adjoints: bool = False,
        kept: Trajectory | None = None,
    ) -> None:
        self._kept = kept
        self._functional, self._values = functional, values
        self._lagrangian, self._grid, self._solver = functional.lagrangian, functional.grid, functional.solver
        self._controls = functional._controls
        self._visitor, self._visit_adjoints = visitor, visit_adjoints
        self.cost = 0.0
        self.gradient = np.zeros_like(values)
        size = functional.initial_state.size
        self._pending = [np.zeros(size), np.zeros(size)]  # later steps' derivatives by the two states before

    def initial_state(self, values: Array) -> Array:
        """Return y_0. Collective: no."""
        functional = self._functional
        if not functional.initial_control:
            return functional.initial_state
        return np.where(functional.free, values[functional.place(self._grid.steps, 0)], functional.initial_state)

    def start(self) -> State:
        """Return (y_0, y_0); the second is never used. Collective: yes."""
        state = self.initial_state(self._values)
        self.cost = 0.0
        self._lagrangian.set_step(self._grid.data(0))
        self._lagrangian.load(NOW, state)
        self.cost += self._lagrangian.local_cost()
        if self._visitor is not None and not self._visit_adjoints:
            self._visitor(0, self._grid.start)
        return (state, state)

    def _load(self, step: int, before: State) -> None:
        """Set step n's coefficients, controls and the states before it. Collective: yes."""
        self._solver.prepare(self._grid.data(step))
        self._functional.load_control(step, self._values)
        self._lagrangian.load(BEFORE, before[0])
        self._lagrangian.load(EARLIER, before[1])

    def forward(self, step: int, state: State, first_time: bool) -> State:
        """Solve for y_n, n = step + 1. Collective: yes."""
        number = step + 1
        self._load(number, state)
        self._lagrangian.load(NOW, state[0])
        after = self._state(step)
        if first_time:
            self.cost += self._lagrangian.local_cost()
            if self._visitor is not None and not self._visit_adjoints:
                self._visitor(number, self._grid.time(number))
        return (after, state[0])

    def _state(self, step: int) -> Array:
        """Return the state after a step. Collective: yes."""
        state = self._solver.solve_state()
        if self._kept is not None:
            self._kept.states[step] = state
        return state

    def _adjoint(self, step: int) -> Array:
        """Return the adjoint of a step. Collective: yes."""
        adjoint = self._solver.solve(-(self._lagrangian.first(NOW) + self._pending[0]), transpose=True)
        if self._kept is not None:
            self._kept.adjoints[step] = adjoint
        return adjoint

    def reverse(self, step: int, before: State, after: State) -> None:
        """Take the adjoint step n = step + 1, after the last one the initial state's derivative. Collective: yes."""
        self._reverse_step(step, before, after)
        if step == 0 and self._functional.initial_control:
            self._reverse_start(before)

    def _reverse_step(self, step: int, before: State, after: State) -> None:
        """Solve for p_n and take the gradient of the step. Collective: yes."""
        number, lagrangian = step + 1, self._lagrangian
        self._load(number, before)
        lagrangian.load(NOW, after[0])
        self._solver.linearise()
        lagrangian.load(lagrangian.adjoint_slot, np.zeros_like(after[0]))
        adjoint = self._adjoint(step)
        lagrangian.load(lagrangian.adjoint_slot, adjoint)
        for j in range(len(self._controls)):
            self.gradient[self._functional.place(step, j)] = lagrangian.first(3 + j)
        self._pending = [self._pending[1] + lagrangian.first(BEFORE), lagrangian.first(EARLIER)]
        if self._visitor is not None and self._visit_adjoints:
            self._visitor(number, self._grid.time(number))

    def _reverse_start(self, before: State) -> None:
        """Take the derivative by the initial state. Collective: yes."""
        lagrangian = self._lagrangian
        lagrangian.set_step(self._grid.data(0))
        lagrangian.load(NOW, before[0])
        lagrangian.load(lagrangian.adjoint_slot, np.zeros_like(before[0]))
        self.gradient[self._functional.place(self._grid.steps, 0)] = lagrangian.first(NOW) + self._pending[0]


class SecondOrder(FirstOrder):
    """States and their changes forward, adjoints and theirs backward: the Hessian along one direction.

    Parameters
    ----------
    functional, values
        As for `FirstOrder`.
    direction
        Coordinates of the direction, shape (owned,).
    kept
        States and adjoints of the point, or None to solve for them.

    Attributes
    ----------
    curvature
        j''(u) d, shape (owned,), after the sweep backward.
    """

    def __init__(
        self, functional: "UnsteadyFunctional", values: Array, direction: Array, kept: Trajectory | None
    ) -> None:
        super().__init__(functional, values, kept=kept)
        self._direction = direction
        self.curvature = np.zeros_like(values)
        size = functional.initial_state.size
        self._pending_change = [np.zeros(size), np.zeros(size)]

    def _state(self, step: int) -> Array:
        """Return the state after a step, solved for only if it was not kept. Collective: yes."""
        if self._kept is None:
            return super()._state(step)
        self._lagrangian.load(NOW, self._kept.states[step])
        return self._kept.states[step]

    def _adjoint(self, step: int) -> Array:
        """Return the adjoint of a step, solved for only if it was not kept. Collective: yes."""
        return super()._adjoint(step) if self._kept is None else self._kept.adjoints[step]

    def start(self) -> State:
        """Return y_0 and its change, each twice. Collective: yes."""
        state = super().start()
        change = np.zeros_like(state[0])
        if self._functional.initial_control:
            direction = self._direction[self._functional.place(self._grid.steps, 0)]
            change = np.where(self._functional.free, direction, 0.0)
        return (*state, change, change)

    def _load_directions(self, step: int, now: Array | None, before: State, adjoint: Array | None) -> None:
        lagrangian = self._lagrangian
        lagrangian.load_direction(NOW, now)
        lagrangian.load_direction(BEFORE, before[2])
        lagrangian.load_direction(EARLIER, before[3])
        for j in range(len(self._controls)):
            lagrangian.load_direction(3 + j, self._direction[self._functional.place(step, j)])
        lagrangian.load_direction(lagrangian.adjoint_slot, adjoint)

    def forward(self, step: int, state: State, first_time: bool) -> State:
        """Solve for y_n and its change, n = step + 1. Collective: yes."""
        after, _ = super().forward(step, state, first_time)
        lagrangian = self._lagrangian
        self._solver.linearise()
        self._load_directions(step, None, state, None)
        change = -self._solver.solve(lagrangian.second(lagrangian.adjoint_slot))
        return (after, state[0], change, state[2])

    def _reverse_step(self, step: int, before: State, after: State) -> None:
        """Solve for p_n and its change, and take gradient and curvature of the step. Collective: yes."""
        super()._reverse_step(step, before, after)
        lagrangian = self._lagrangian
        self._load_directions(step, after[2], before, None)
        right = -(lagrangian.second(NOW) + self._pending_change[0])
        change = self._solver.solve(right, transpose=True)
        lagrangian.load_direction(lagrangian.adjoint_slot, change)
        for j in range(len(self._controls)):
            self.curvature[self._functional.place(step, j)] = lagrangian.second(3 + j)
        self._pending_change = [self._pending_change[1] + lagrangian.second(BEFORE), lagrangian.second(EARLIER)]

    def _reverse_start(self, before: State) -> None:
        """Take first and second derivative by the initial state. Collective: yes."""
        super()._reverse_start(before)
        lagrangian = self._lagrangian
        for slot in range(BEFORE, lagrangian.adjoint_slot + 1):
            lagrangian.load_direction(slot, None)
        lagrangian.load_direction(NOW, before[2])
        self.curvature[self._functional.place(self._grid.steps, 0)] = lagrangian.second(NOW) + self._pending_change[0]
