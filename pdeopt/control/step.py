"""One time step of an unsteady control problem: its Lagrangian and all derivatives, compiled once for all steps.

With the state at t_n, t_(n-1), t_(n-2), the controls u_n and the adjoint p_n of the step,

    L_n = R_n(y_n, y_(n-1), y_(n-2), u_n; p_n) + s_n j(y_n, t_n) + c_n g(u_n, .) + e_n J_T(y_n) + i_n J_0(y_n),

R_n the residual of the scheme (`pdeopt.fem.time`); the Lagrangian of the whole problem is the sum of these. All
coefficients and times are constants of the forms, so that the same code serves every step of every scheme.
"""

import dataclasses
from collections.abc import Callable, Sequence

from mpi4py import MPI
from petsc4py import PETSc

import dolfinx
import numpy as np
import numpy.typing as npt
import ufl
from dolfinx.fem import petsc as fem_petsc
from ufl.algorithms import expand_derivatives
from ufl.algorithms.analysis import extract_constants

from pdeopt.control.controls import Control
from pdeopt.fem import forms
from pdeopt.fem.time import StepCoefficients, TimeScheme

Array = npt.NDArray[np.float64]
_NO_STEP = StepCoefficients((0.0, 0.0, 0.0), (0.0, 0.0))
NOW, BEFORE, EARLIER = 0, 1, 2
"""Slots of the state at t_n, t_(n-1), t_(n-2); controls and, last, the adjoint follow."""


@dataclasses.dataclass(frozen=True)
class UnsteadyForms:
    """The forms of an unsteady control problem, the equations tested with the adjoint.

    Parameters
    ----------
    mass
        m(y; p), what is differentiated in time.
    state_equation
        F(y, u, t; p).
    state_cost, control_cost, terminal_cost, initial_cost
        j(y, t), g(u, t), J_T(y), J_0(y); None where absent.
    state, adjoint
        The functions y and p.
    controls
        The controls u of one step.
    time
        The constant t, or None.
    bcs
        Dirichlet conditions of the state.
    update_bcs
        Called with a time before the conditions are used.
    entity_maps
        DOLFINx entity maps where forms mix meshes.
    """

    mass: ufl.Form
    state_equation: ufl.Form
    state_cost: ufl.Form | None
    control_cost: ufl.Form | None
    terminal_cost: ufl.Form | None
    initial_cost: ufl.Form | None
    state: dolfinx.fem.Function
    adjoint: dolfinx.fem.Function
    controls: tuple[Control, ...]
    time: dolfinx.fem.Constant | None
    bcs: Sequence[dolfinx.fem.DirichletBC]
    update_bcs: Callable[[float], None] | None
    entity_maps: Sequence[dolfinx.mesh.EntityMap] | None


@dataclasses.dataclass(frozen=True)
class StepData:
    """What changes from step to step.

    Parameters
    ----------
    coefficients
        Of the scheme.
    size
        tau, in the problem's unit of time.
    times
        t_n, t_(n-1) and the control's time.
    state_weight, control_weight
        s_n and c_n, tau included.
    terminal, initial
        e_n and i_n: 1 or 0.
    """

    coefficients: StepCoefficients
    size: float
    times: tuple[float, float, float]
    state_weight: float = 0.0
    control_weight: float = 0.0
    terminal: float = 0.0
    initial: float = 0.0


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


class StepLagrangian:
    """L_n and its derivatives at what the functions hold.

    Parameters
    ----------
    given
        The problem's forms.

    Attributes
    ----------
    functions, directions
        One function per slot, and one for the direction of second derivatives.
    linear_state, time_invariant
        Whether the state operator depends on no unknown; whether, moreover, on no time.
    linear_quadratic
        Whether no second derivative depends on an unknown.
    """

    def __init__(self, given: UnsteadyForms) -> None:
        self.given = given
        space = given.state.function_space
        self.comm: MPI.Comm = space.mesh.comm
        before, earlier = dolfinx.fem.Function(space), dolfinx.fem.Function(space)
        self.adjoint_slot = 3 + len(given.controls)
        self.functions = [given.state, before, earlier, *(c.function for c in given.controls), given.adjoint]
        self.directions = [dolfinx.fem.Function(function.function_space) for function in self.functions]
        names = ("mass 0", "mass 1", "mass 2", "stiffness 0", "stiffness 1", "state", "control", "terminal", "initial")
        mesh = space.mesh
        self._constants = {name: dolfinx.fem.Constant(mesh, 0.0) for name in names}
        self._times = [dolfinx.fem.Constant(mesh, 0.0) for _ in range(3)]
        self._dirichlet_dofs = forms.owned_dirichlet_dofs(list(given.bcs))
        self._covectors: dict[dolfinx.fem.Form, PETSc.Vec] = {}  # made once: making one costs more than assembling it
        self._compile()

    def _compile(self) -> None:
        given, constants, (now, before, control) = self.given, self._constants, self._times
        state = given.state

        def at(form: ufl.Form, slot: int, time: dolfinx.fem.Constant) -> ufl.Form:
            mapping: dict[ufl.core.expr.Expr, ufl.core.expr.Expr] = {}
            if slot != NOW:
                mapping[state] = self.functions[slot]
            if given.time is not None:
                mapping[given.time] = time
            return ufl.replace(form, mapping) if mapping else form

        residual = constants["mass 0"] * given.mass
        residual += constants["mass 1"] * at(given.mass, BEFORE, before)
        residual += constants["mass 2"] * at(given.mass, EARLIER, before)
        residual += constants["stiffness 0"] * at(given.state_equation, NOW, now)
        residual += constants["stiffness 1"] * at(given.state_equation, BEFORE, before)
        cost = ufl.Form([])
        for name, form, time in (
            ("state", given.state_cost, now),
            ("control", given.control_cost, control),
            ("terminal", given.terminal_cost, now),
            ("initial", given.initial_cost, now),
        ):
            if form is not None:
                cost += constants[name] * at(form, NOW, time)
        total = residual + cost
        self._cost = self._compile_form(cost)
        slots = range(len(self.functions))
        first = [
            ufl.derivative(total, function, ufl.TestFunction(function.function_space)) for function in self.functions
        ]
        self._first = [self._compile_form(form) for form in first]
        self._second = []
        for form in first:
            action = ufl.Form([])
            for slot in slots:
                action += ufl.derivative(form, self.functions[slot], self.directions[slot])
            self._second.append(None if forms.is_zero(action) else self._compile_form(action))
        self._blocks: dict[tuple[int, int], ufl.Form] = {}
        for row in slots:
            for column in slots:
                trial = ufl.TrialFunction(self.functions[column].function_space)
                block = ufl.derivative(first[row], self.functions[column], trial)
                if not forms.is_zero(block):
                    self._blocks[row, column] = block
        self._compiled_blocks: dict[tuple[int, int], dolfinx.fem.Form] = {}
        operator = self._blocks[self.adjoint_slot, NOW]
        self.linear_state = not forms.depends_on(operator, self.functions)
        self.time_invariant = self.linear_state and not any(
            any(constant is time for time in self._times)
            for slot in (NOW, BEFORE, EARLIER)
            if (self.adjoint_slot, slot) in self._blocks
            for constant in extract_constants(expand_derivatives(self._blocks[self.adjoint_slot, slot]))
        )
        self.linear_quadratic = not any(forms.depends_on(block, self.functions) for block in self._blocks.values())

    def _compile_form(self, form: ufl.Form) -> dolfinx.fem.Form | None:
        expanded = expand_derivatives(form)
        return None if expanded.empty() else forms.compile_form(form, self.given.entity_maps)

    # Data of the step ------------------------------------------------------------------------------------------------

    def set_step(self, data: StepData) -> None:
        """Take over coefficients, weights and times of a step. Collective: no."""
        stiffness = [data.size * b for b in data.coefficients.stiffness]
        weights = (data.state_weight, data.control_weight, data.terminal, data.initial)
        values = (*data.coefficients.mass, *stiffness, *weights)
        for constant, value in zip(self._constants.values(), values, strict=True):
            constant.value = np.asarray(value)
        for constant, time in zip(self._times, data.times, strict=True):
            constant.value = np.asarray(time)
        if self.given.update_bcs is not None:
            self.given.update_bcs(data.times[0])

    def load(self, slot: int, values: Array) -> None:
        """Set the function of a state or adjoint slot from owned values, shape (owned,). Collective: yes."""
        forms.set_function(self.functions[slot], values)

    def load_direction(self, slot: int, values: Array | None) -> None:
        """Set the direction of a slot, zero if None, from coordinates for controls. Collective: yes."""
        direction = self.directions[slot]
        if values is None:
            direction.x.array[:] = 0.0
        elif 3 <= slot < self.adjoint_slot:
            self.given.controls[slot - 3].expand(values, direction)
        else:
            forms.set_function(direction, values)

    def impose_dirichlet(self) -> None:
        """Set the Dirichlet values of the state at t_n. Collective: yes."""
        for bc in self.given.bcs:
            bc.set(self.given.state.x.array)
        self.given.state.x.scatter_forward()

    def is_dirichlet(self) -> npt.NDArray[np.bool_]:
        """Return which owned degrees of freedom a Dirichlet condition fixes, shape (owned,)."""
        mask = np.zeros(forms.owned_size(self.given.state.function_space), dtype=bool)
        mask[self._dirichlet_dofs] = True
        return mask

    # Values and derivatives ------------------------------------------------------------------------------------------

    def local_cost(self) -> float:
        """Return this rank's part of the cost of the step. Collective: no."""
        return 0.0 if self._cost is None else float(np.real(dolfinx.fem.assemble_scalar(self._cost)))

    def first(self, slot: int) -> Array:
        """Return the derivative of L_n by a slot, by coordinates for controls, shape (owned,). Collective: yes."""
        return self._assemble(self._first[slot], slot)

    def second(self, slot: int) -> Array:
        """Return the derivative of `first` along all directions, shape (owned,). Collective: yes."""
        return self._assemble(self._second[slot], slot)

    def _assemble(self, form: dolfinx.fem.Form | None, slot: int) -> Array:
        is_control = 3 <= slot < self.adjoint_slot
        if form is None:
            size = self.given.controls[slot - 3].size if is_control else forms.owned_size(
                self.given.state.function_space
            )  # fmt: skip
            return np.zeros(size)
        if form not in self._covectors:
            self._covectors[form] = fem_petsc.create_vector(self.functions[slot].function_space)
        covector = self._covectors[form]
        with covector.localForm() as local:
            local.set(0.0)
        fem_petsc.assemble_vector(covector, form)  # type: ignore[arg-type]
        covector.ghostUpdate(addv=PETSc.InsertMode.ADD, mode=PETSc.ScatterMode.REVERSE)
        if is_control:
            values = self.given.controls[slot - 3].restrict(covector)
        else:
            values = np.array(covector.array_r)
            values[self._dirichlet_dofs] = 0.0
        return values

    def has_block(self, row: int, column: int) -> bool:
        """Whether the second derivative by two slots can be other than zero."""
        return (row, column) in self._blocks

    def block(self, row: int, column: int, diagonal: float = 0.0) -> PETSc.Mat:
        """Assemble a second derivative of L_n as a matrix, Dirichlet rows and columns of states zero. Collective: yes.

        Parameters
        ----------
        row, column
            Slots.
        diagonal
            What stands on the Dirichlet diagonal where both slots are states or adjoints.
        """
        form = self._compiled(row, column)
        state_row, state_column = (not 3 <= slot < self.adjoint_slot for slot in (row, column))
        if state_row and state_column:
            return forms.assemble_matrix(form, list(self.given.bcs), diag=diagonal)
        matrix = forms.assemble_matrix(form)
        if not state_row and not state_column:
            return self.given.controls[row - 3].restrict_both(matrix)
        if not state_row:
            raise ValueError("blocks of a control's row are the transposes of those of its column")
        matrix = self.given.controls[column - 3].restrict_columns(matrix)
        kept = matrix.createVecLeft()
        kept.array[:] = ~self.is_dirichlet()
        matrix.diagonalScale(kept, None)
        kept.destroy()
        return matrix

    def reassemble_operator(self, matrix: PETSc.Mat) -> None:
        """Assemble the state operator of the step into an existing matrix. Collective: yes."""
        form = self._compiled(self.adjoint_slot, NOW)
        matrix.zeroEntries()
        fem_petsc.assemble_matrix(matrix, form, bcs=list(self.given.bcs), diag=1.0)  # type: ignore[misc,arg-type]
        matrix.assemble()

    def operator(self) -> PETSc.Mat:
        """Assemble the state operator L_n,py with ones on the Dirichlet diagonal. Collective: yes."""
        return self.block(self.adjoint_slot, NOW, diagonal=1.0)

    def _compiled(self, row: int, column: int) -> dolfinx.fem.Form:
        if (row, column) not in self._compiled_blocks:
            form = self._blocks[row, column]
            self._compiled_blocks[row, column] = forms.compile_form(form, self.given.entity_maps)
        return self._compiled_blocks[row, column]

    def destroy(self) -> None:
        """Free the PETSc objects. Collective: yes."""
        for covector in self._covectors.values():
            covector.destroy()
        self._covectors.clear()
