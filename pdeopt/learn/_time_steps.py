"""A layer that takes time steps: the equation of one step, swept forward, and its adjoint backward."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import dolfinx
import numpy as np
import numpy.typing as npt

from pdeopt.control.sweep import Checkpoints, State, Sweep
from pdeopt.learn._equation import Equation
from pdeopt.learn._torch import torch
from pdeopt.report import InputError

Array = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class TimeSteps:
    """How a layer's equation is repeated in time.

    Parameters
    ----------
    previous
        The function that holds the state before a step. Its values at creation of the layer are the initial state,
        unless it is among the controls.
    count
        Number of steps, >= 1.
    size
        Step size [time], needed with ``clock``.
    clock
        A constant of the forms that is set to the time at the end of each step; None if time does not stand in them.
    start
        Time before the first step.
    per_step
        Those of the controls that take another value in each step: their tensors have a leading axis of length
        ``count``.
    output
        ``"final"``: the state after the last step; ``"all"``: after each step, with a leading axis of length ``count``.
    checkpoints
        How many states the backward sweep finds stored; all of them if None.

    Raises
    ------
    InputError
        If a number is out of its range.
    """

    previous: dolfinx.fem.Function
    count: int
    size: float = 0.0
    clock: dolfinx.fem.Constant | None = None
    start: float = 0.0
    per_step: Sequence[dolfinx.fem.Function | dolfinx.fem.Constant] = ()
    output: Literal["final", "all"] = "final"
    checkpoints: Checkpoints | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InputError(f"count is {self.count}: take at least one time step")
        if self.clock is not None and not self.size > 0.0:
            raise InputError(f"size is {self.size}: with a clock, give the length of a time step, above 0")
        if self.output not in ("final", "all"):
            raise InputError(f"output is {self.output!r}: choose 'final' or 'all'")


class March:
    """One forward sweep of a layer, and the backward sweep that belongs to it.

    Parameters
    ----------
    equation
        Of one step; its last input is the state before the step.
    times
        How it is repeated.
    per_step
        Which of the inputs change from step to step.
    values
        One array per input: shape (size,), or (count, size) for those that change.
    initial
        The initial state, shape (owned,).

    Attributes
    ----------
    states
        What the layer returns, shape (owned,) or (count, owned), after `forward`.
    """

    def __init__(
        self, equation: Equation, times: TimeSteps, per_step: Sequence[bool], values: Sequence[Array], initial: Array
    ) -> None:
        self._equation, self._times, self._per_step = equation, times, per_step
        self._values, self._initial = list(values), initial
        self.states = np.zeros((times.count, equation.size) if times.output == "all" else equation.size)
        self._sweep = Sweep(self, times.count, times.checkpoints, equation.comm)
        self._cotangents, self._rtol = np.zeros(0), 0.0
        self._pending = np.zeros(equation.size)
        self._wanted: list[bool] = []
        self.gradients: list[Array] = []
        self.parameter_gradients: list[list[torch.Tensor]] = []

    def forward_sweep(self) -> None:
        """Take all steps. Collective: yes."""
        self._sweep.forward()

    def backward_sweep(self, cotangents: Array, wanted: Sequence[bool], rtol: float) -> Array:
        """Take all adjoint steps, and return the gradient by the initial state, shape (owned,).

        Parameters
        ----------
        cotangents
            Derivative by what the layer returned, of the same shape.
        wanted
            For each input, whether its gradient is wanted.
        rtol
            Relative residual of the adjoint equations.

        Collective: yes.
        """
        self._cotangents, self._rtol = cotangents, rtol
        self._wanted = [*wanted, True]
        self.gradients = [np.zeros_like(array) for array in self._values]
        self._pending = np.zeros(self._equation.size)
        self.parameter_gradients = []
        self._sweep.reverse()
        self._sweep.release()
        return self._pending

    def release(self) -> None:
        """Forget the states. Collective: yes."""
        self._sweep.release()

    # --- what the sweep calls -----------------------------------------------------------------------------------------

    def start(self) -> State:
        """Return the initial state. Collective: yes."""
        return (self._initial,)

    def _load(self, step: int, before: Array) -> None:
        times = self._times
        values = [
            np.asarray(array[step]) if changing else array
            for array, changing in zip(self._values, self._per_step, strict=True)
        ]
        if times.clock is not None:
            times.clock.value = times.start + (step + 1) * times.size  # type: ignore[assignment]
            if times.clock in self._equation.constants:
                self._equation.renew()
        self._equation.load([*values, before])

    def forward(self, step: int, state: State, first_time: bool) -> State:
        """Solve for the state after a step. Collective: yes."""
        self._load(step, state[0])
        self._equation.start_from(state[0])
        after = self._equation.solve()
        if first_time:
            if self._times.output == "all":
                self.states[step] = after
            else:
                self.states = after.copy()  # the user may change what the layer returned
        return (after,)

    def reverse(self, step: int, before: State, after: State) -> None:
        """Take an adjoint step. Collective: yes."""
        equation = self._equation
        self._load(step, before[0])
        equation.set_state(after[0])
        equation.linearise()
        cotangent = self._pending.copy()
        if self._times.output == "all":
            cotangent += self._cotangents[step]
        elif step == self._times.count - 1:
            cotangent += self._cotangents
        adjoint = equation.solve_adjoint(cotangent, self._rtol)
        parts = equation.gradients(cotangent, adjoint, self._wanted)
        for index, changing in enumerate(self._per_step):
            part = parts[index]
            if part is None:
                continue
            if changing:
                self.gradients[index][step] = part
            else:
                self.gradients[index] += part
        last = parts[-1]
        assert last is not None
        self._pending = last
        parameters = equation.parameter_gradients(adjoint)
        if self.parameter_gradients:
            parameters = [
                [total + part for total, part in zip(*both, strict=True)]
                for both in zip(self.parameter_gradients, parameters, strict=True)
            ]
        self.parameter_gradients = parameters
