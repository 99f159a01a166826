"""The objective of an unsteady problem as a function of its controls, by sweeps forward and backward in time.

With the Lagrangians L_n of the steps (`pdeopt.control.step`) the adjoint solves, from the last step to the first,

    R_n,y'(p_n) = -(cost of y_n)' - sum over the later steps of the derivative of L_m by y_n,

and the derivative by u_n is that of L_n. A Hessian action differentiates all of this along a direction: the states'
change goes forward beside the states, the adjoints' change backward beside the adjoints.
"""

from collections.abc import Callable, Sequence

from petsc4py import PETSc

import numpy as np
import numpy.typing as npt

from pdeopt.control.newton import Bounds
from pdeopt.control.step import BEFORE, EARLIER, NOW, StepData, StepLagrangian
from pdeopt.control.step_solver import StepSolver
from pdeopt.control.sweep import Checkpoints, State, Sweep
from pdeopt.fem import forms
from pdeopt.fem.time import StepCoefficients, TimeScheme

Array = npt.NDArray[np.float64]
Visitor = Callable[[int, float], None]
_NO_STEP = StepCoefficients((0.0, 0.0, 0.0), (0.0, 0.0))


class TimeGrid:
    """Steps of one size and what the scheme says of each.

    Parameters
    ----------
    scheme
        The time-stepping scheme.
    start, end
        Interval of time.
    steps
        Number of steps.
    """

    def __init__(self, scheme: TimeScheme, start: float, end: float, steps: int) -> None:
        self.scheme, self.start, self.steps = scheme, start, steps
        self.size = (end - start) / steps
        self.state_weights = self.size * scheme.state_weights(steps)
        self.control_weights = self.size * scheme.control_weights(steps)
        self.control_times = start + self.size * scheme.control_times(steps)

    def time(self, step: int) -> float:
        """Return t_n."""
        return self.start + step * self.size

    def data(self, step: int) -> StepData:
        """Return what belongs to step n = 1, ..., N, or to the initial state for n = 0."""
        if step == 0:
            times = (self.start, self.start, self.start)
            return StepData(_NO_STEP, self.size, times, self.state_weights[0], initial=1.0)
        times = (self.time(step), self.time(step - 1), float(self.control_times[step - 1]))
        return StepData(
            self.scheme.coefficients(step),
            self.size,
            times,
            float(self.state_weights[step]),
            float(self.control_weights[step - 1]),
            terminal=float(step == self.steps),
        )


class UnsteadyFunctional:
    """j(u) of an unsteady control problem: a `pdeopt.control.reduced.Functional`.

    Coordinates are those of u_1, then u_2, ..., and last those of the initial state if it is a control.

    Parameters
    ----------
    lagrangian, grid
        The steps.
    initial_state
        Values of y_0, shape (owned,); the first guess if it is a control.
    initial_control
        Whether y_0 is a control.
    bounds
        One pair per control of a step, and one for the initial state if it is a control.
    products
        Inner products of the controls of one step, and one of the initial state if it is a control; kept.
    checkpoints
        How many states a backward sweep may keep; all if None.

    Attributes
    ----------
    values
        Coordinates of the present control, shape (owned,).
    sweep
        The last pair of sweeps: its counters tell what was stored and computed anew.
    """

    def __init__(
        self,
        lagrangian: StepLagrangian,
        grid: TimeGrid,
        initial_state: Array,
        initial_control: bool,
        bounds: Sequence[Bounds],
        products: Sequence[PETSc.Mat],
        checkpoints: Checkpoints | None = None,
    ) -> None:
        self.comm = lagrangian.comm
        self._lagrangian, self._grid, self._bounds, self._checkpoints = lagrangian, grid, list(bounds), checkpoints
        self._controls = lagrangian.given.controls
        self._initial, self._initial_control = initial_state.copy(), initial_control
        sizes = [control.size for control in self._controls] * grid.steps
        self._layout = forms.BlockLayout(self.comm, sizes + [initial_state.size] * initial_control)
        self._solver = StepSolver(lagrangian)
        self._free = ~lagrangian.is_dirichlet()
        self.values = np.zeros(self._layout.offsets[-1])
        self._at: Array | None = None
        self._value = 0.0
        self._derivative: Array | None = None
        self.sweep: Sweep | None = None
        self._inner_product = TimeProduct(self._layout, products, grid.control_weights, len(self._controls))
        self.gradients = self.hessian_actions = 0

    # Coordinates -----------------------------------------------------------------------------------------------------

    @property
    def layout(self) -> forms.BlockLayout:
        """How controls of all steps lie in a vector."""
        return self._layout

    def create_vector(self) -> PETSc.Vec:
        """Return a zero vector of control coordinates. Collective: yes."""
        return self._layout.create_vector()

    def get_control(self, out: PETSc.Vec) -> None:
        """Copy the present control into a vector. Collective: no."""
        out.array[:] = self.values

    def set_control(self, control: PETSc.Vec) -> None:
        """Take over a control. Collective: yes."""
        self.values = np.array(control.array_r)

    def bounds(self) -> tuple[PETSc.Vec, PETSc.Vec] | None:
        """Return lower and upper bounds by coordinates, or None if all are infinite. Collective: yes."""
        lower, upper = self.create_vector(), self.create_vector()
        count = len(self._controls)
        pairs = self._bounds[:count] * self._grid.steps + self._bounds[count:]
        for field, pair in enumerate(pairs):
            self._layout.write(lower, field, pair.lower)
            self._layout.write(upper, field, pair.upper)
        finite = bool(np.isfinite(lower.array_r).any() or np.isfinite(upper.array_r).any())
        if self.comm.allreduce(finite):
            return lower, upper
        lower.destroy()
        upper.destroy()
        return None

    def inner_product(self) -> PETSc.Mat:
        """Return the matrix of sum_n c_n (u_n, v_n) + (y_0, z_0), owned by this object. Collective: yes."""
        return self._inner_product.matrix

    def load_control(self, step: int, values: Array) -> None:
        """Set the controls' functions to those of a step. Collective: yes."""
        for j, control in enumerate(self._controls):
            control.set_coordinates(values[self.place(step - 1, j)])

    def place(self, step: int, index: int) -> slice:
        """Return where control ``index`` of step + 1 lies in the owned coordinates; last, the initial state."""
        return self._layout.slice(step * len(self._controls) + index)

    # Values and derivatives ------------------------------------------------------------------------------------------

    def value(self, control: PETSc.Vec) -> float:
        """Return j(u); a sweep forward unless it was taken at this control. Collective: yes.

        Raises
        ------
        ConvergenceError
            If the state equation of a step cannot be solved.
        """
        self._sweep_forward(control)
        return self._value

    def derivative(self, control: PETSc.Vec, out: PETSc.Vec) -> None:
        """Set the covector j'(u); a sweep backward unless it was taken at this control. Collective: yes."""
        self._sweep_forward(control)
        if self._derivative is None:
            assert self.sweep is not None
            model = self._model
            self.sweep.reverse()
            self.sweep.release()
            self._derivative = model.gradient
            self.gradients += 1
        out.array[:] = self._derivative

    def hessian_action(self, control: PETSc.Vec, direction: PETSc.Vec, out: PETSc.Vec) -> None:
        """Set the covector j''(u) d; one sweep forward and one backward. Collective: yes."""
        model = SecondOrder(self, np.array(control.array_r), np.array(direction.array_r))
        sweep = Sweep(model, self._grid.steps, self._checkpoints, self.comm)
        sweep.forward()
        sweep.reverse()
        sweep.release()
        out.array[:] = model.curvature
        self.hessian_actions += 1

    def visit(self, control: PETSc.Vec, visitor: Visitor, adjoint: bool = False) -> None:
        """Call a function with (n, t_n) when the problem's functions hold step n. Collective: yes.

        Parameters
        ----------
        control
            Coordinates.
        visitor
            Called on every rank, for n = 0, ..., N; with adjoints for n = N, ..., 1.
        adjoint
            Sweep backward too, and visit there: state, control and adjoint are set.
        """
        model = FirstOrder(self, np.array(control.array_r), visitor, adjoint)
        sweep = Sweep(model, self._grid.steps, self._checkpoints, self.comm)
        sweep.forward()
        if adjoint:
            sweep.reverse()
        sweep.release()

    def _sweep_forward(self, control: PETSc.Vec) -> None:
        values = np.array(control.array_r)
        same = self._at is not None and np.array_equal(values, self._at)
        if self.comm.allreduce(not same) == 0:
            return
        if self.sweep is not None:
            self.sweep.release()
        self._at = self._derivative = None
        self._model = FirstOrder(self, values)
        self.sweep = Sweep(self._model, self._grid.steps, self._checkpoints, self.comm)
        self.sweep.forward()
        self._value = float(self.comm.allreduce(self._model.cost))
        self._at = values

    def destroy(self) -> None:
        """Free the PETSc objects. Collective: yes."""
        if self.sweep is not None:
            self.sweep.release()
        self._solver.destroy()
        self._inner_product.matrix.destroy()


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

    Attributes
    ----------
    cost
        This rank's part of the objective, after the sweep forward.
    gradient
        j'(u), shape (owned,), after the sweep backward.
    """

    def __init__(
        self,
        functional: UnsteadyFunctional,
        values: Array,
        visitor: Visitor | None = None,
        visit_adjoints: bool = False,
    ) -> None:
        self._functional, self._values = functional, values
        self._lagrangian, self._grid, self._solver = functional._lagrangian, functional._grid, functional._solver
        self._controls = functional._controls
        self._visitor, self._visit_adjoints = visitor, visit_adjoints
        self.cost = 0.0
        self.gradient = np.zeros_like(values)
        size = functional._initial.size
        self._pending = [np.zeros(size), np.zeros(size)]  # later steps' derivatives by the two states before

    def initial_state(self, values: Array) -> Array:
        """Return y_0. Collective: no."""
        functional = self._functional
        if not functional._initial_control:
            return functional._initial
        return np.where(functional._free, values[functional.place(self._grid.steps, 0)], functional._initial)

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
        after = self._solver.solve_state()
        if first_time:
            self.cost += self._lagrangian.local_cost()
            if self._visitor is not None and not self._visit_adjoints:
                self._visitor(number, self._grid.time(number))
        return (after, state[0])

    def reverse(self, step: int, before: State, after: State) -> None:
        """Take the adjoint step n = step + 1, after the last one the initial state's derivative. Collective: yes."""
        self._reverse_step(step, before, after)
        if step == 0 and self._functional._initial_control:
            self._reverse_start(before)

    def _reverse_step(self, step: int, before: State, after: State) -> None:
        """Solve for p_n and take the gradient of the step. Collective: yes."""
        number, lagrangian = step + 1, self._lagrangian
        self._load(number, before)
        lagrangian.load(NOW, after[0])
        self._solver.linearise()
        lagrangian.load(lagrangian.adjoint_slot, np.zeros_like(after[0]))
        adjoint = self._solver.solve(-(lagrangian.first(NOW) + self._pending[0]), transpose=True)
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

    Attributes
    ----------
    curvature
        j''(u) d, shape (owned,), after the sweep backward.
    """

    def __init__(self, functional: UnsteadyFunctional, values: Array, direction: Array) -> None:
        super().__init__(functional, values)
        self._direction = direction
        self.curvature = np.zeros_like(values)
        size = functional._initial.size
        self._pending_change = [np.zeros(size), np.zeros(size)]

    def start(self) -> State:
        """Return y_0 and its change, each twice. Collective: yes."""
        state = super().start()
        change = np.zeros_like(state[0])
        if self._functional._initial_control:
            direction = self._direction[self._functional.place(self._grid.steps, 0)]
            change = np.where(self._functional._free, direction, 0.0)
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


class TimeProduct:
    """sum_n c_n (u_n, v_n) + (y_0, z_0) as a matrix of type python.

    Parameters
    ----------
    layout
        Of the coordinates.
    products
        Inner products of the controls of one step and, last, of the initial state if it is a control.
    weights
        c_n, shape (steps,), in units of time.
    count
        Controls of one step.
    """

    def __init__(self, layout: forms.BlockLayout, products: Sequence[PETSc.Mat], weights: Array, count: int) -> None:
        self._layout = layout
        fields = [(j, float(weight)) for weight in weights for j in range(count)]
        fields += [(count, 1.0)] * (len(products) - count)
        self._fields = [(products[j], factor) for j, factor in fields]
        sizes = (layout.offsets[-1], layout.global_size)
        self.matrix = PETSc.Mat().createPython((sizes, sizes), context=self, comm=layout.comm)
        self.matrix.setOption(PETSc.Mat.Option.SPD, True)
        self.matrix.setUp()

    def mult(self, matrix: PETSc.Mat, vector: PETSc.Vec, out: PETSc.Vec) -> None:
        """Apply the product. Collective: yes."""
        for field, (product, factor) in enumerate(self._fields):
            part, result = product.createVecs()
            part.array[:] = self._layout.read(vector, field)
            product.mult(part, result)
            self._layout.write(out, field, factor * result.array_r)

    multTranspose = mult

    def getDiagonal(self, matrix: PETSc.Mat, out: PETSc.Vec) -> None:
        """Set the diagonal. Collective: yes."""
        diagonals = {id(product): product.getDiagonal().array_r for product, _ in self._fields}
        for field, (product, factor) in enumerate(self._fields):
            self._layout.write(out, field, factor * diagonals[id(product)])
