"""The objective of an unsteady problem as a function of its controls, by sweeps forward and backward in time.

With the Lagrangians L_n of the steps (`pdeopt.control.step`) the adjoint solves, from the last step to the first,

    R_n,y'(p_n) = -(cost of y_n)' - sum over the later steps of the derivative of L_m by y_n,

and the derivative by u_n is that of L_n. A Hessian action differentiates all of this along a direction: the states'
change goes forward beside the states, the adjoints' change backward beside the adjoints.
"""

from collections.abc import Sequence

from petsc4py import PETSc

import numpy as np
import numpy.typing as npt

from pdeopt.control.newton import Bounds
from pdeopt.control.step import StepLagrangian, TimeGrid
from pdeopt.control.step_solver import StepSolver
from pdeopt.control.sweep import Checkpoints, Sweep
from pdeopt.control.unsteady_sweeps import FirstOrder, SecondOrder, Trajectory, Visitor
from pdeopt.fem import forms

Array = npt.NDArray[np.float64]


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
        self.lagrangian, self.grid, self._bounds, self._checkpoints = lagrangian, grid, list(bounds), checkpoints
        self._controls = lagrangian.given.controls
        self.initial_state, self.initial_control = initial_state.copy(), initial_control
        sizes = [control.size for control in self._controls] * grid.steps
        self._layout = forms.BlockLayout(self.comm, sizes + [initial_state.size] * initial_control)
        self.solver = StepSolver(lagrangian)
        self.free = ~lagrangian.is_dirichlet()
        self.values = np.zeros(self._layout.offsets[-1])
        self._at: Array | None = None
        self._value = 0.0
        self._derivative: Array | None = None
        self._kept: Trajectory | None = None
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
        pairs = self._bounds[:count] * self.grid.steps + self._bounds[count:]
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
        out.array[:] = self._reverse()

    def hessian_action(self, control: PETSc.Vec, direction: PETSc.Vec, out: PETSc.Vec) -> None:
        """Set the covector j''(u) d; one sweep forward and one backward. Collective: yes.

        Without checkpoints the states and adjoints of the point are kept, and only linear equations are solved.
        """
        if self._checkpoints is None:
            self._sweep_forward(control)
            self._reverse()
        model = SecondOrder(self, np.array(control.array_r), np.array(direction.array_r), self._kept)
        sweep = Sweep(model, self.grid.steps, self._checkpoints, self.comm)
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
        sweep = Sweep(model, self.grid.steps, self._checkpoints, self.comm)
        sweep.forward()
        if adjoint:
            sweep.reverse()
        sweep.release()

    def _reverse(self) -> Array:
        """Return the derivative at the point of the last sweep forward. Collective: yes."""
        if self._derivative is None:
            assert self.sweep is not None
            self.sweep.reverse()
            self.sweep.release()
            self._derivative = self._model.gradient
            self.gradients += 1
        return self._derivative

    def _sweep_forward(self, control: PETSc.Vec) -> None:
        values = np.array(control.array_r)
        same = self._at is not None and np.array_equal(values, self._at)
        if self.comm.allreduce(not same) == 0:
            return
        if self.sweep is not None:
            self.sweep.release()
        self._at = self._derivative = None
        self._kept = Trajectory(self.grid.steps) if self._checkpoints is None else None
        self._model = FirstOrder(self, values, kept=self._kept)
        self.sweep = Sweep(self._model, self.grid.steps, self._checkpoints, self.comm)
        self.sweep.forward()
        self._value = float(self.comm.allreduce(self._model.cost))
        self._at = values

    def destroy(self) -> None:
        """Free the PETSc objects. Collective: yes."""
        if self.sweep is not None:
            self.sweep.release()
        self.solver.destroy()
        self.lagrangian.destroy()
        self._inner_product.matrix.destroy()


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
