"""The unsteady control problem as users state it: what is differentiated in time, the equation, costs, a scheme."""

from collections.abc import Callable, Sequence

from mpi4py import MPI
from petsc4py import PETSc

import dolfinx
import numpy as np
import ufl
from ufl.algorithms import extract_coefficients

from pdeopt.control import checks, tao, verify
from pdeopt.control.all_at_once import AllAtOnce
from pdeopt.control.all_at_once_matrices import unfit
from pdeopt.control.controls import Control, FieldControl, RealControl, default_inner_product
from pdeopt.control.problem import Bound
from pdeopt.control.step import StepLagrangian, TimeGrid, UnsteadyForms
from pdeopt.control.sweep import Checkpoints
from pdeopt.control.unsteady_reduced import UnsteadyFunctional
from pdeopt.control.unsteady_sweeps import Visitor
from pdeopt.fem import forms
from pdeopt.fem.time import Theta, TimeScheme
from pdeopt.report import ConvergenceError, OptionError, ProblemError, SolveReport

ALL_AT_ONCE = "all_at_once"


class UnsteadyControlProblem:
    r"""Minimise a cost over an interval of time subject to d/dt m(y; v) + F(y, u, t; v) = 0 for all v.

    The cost is the integral over time of the running objective plus an objective of the final and one of the initial
    state. There is one control per time step, constant in it (`pdeopt.fem.time`), and the initial state can be a
    control too. Discretised first, then optimised: gradients and Hessians are exact for the discrete problem.

    Parameters
    ----------
    state_equation
        F, a residual form without the time derivative: linear in one test function, or in ``adjoint`` itself.
    state
        y, a function; its values are the initial state.
    control
        u, a function, a `dolfinx.fem.Constant`, or a sequence of such; empty if only the initial state is one. The
        values are the first guess for all steps.
    interval
        (start, end), in the problem's unit of time.
    steps
        Number of steps.
    running_objective
        Integrand in time; each of its integrals must contain the state or controls, not both.
    terminal_objective, initial_objective
        Functionals of the state at the end and at the start.
    scheme
        Crank-Nicolson if None.
    time
        The constant of the forms that holds the time t.
    mass
        m, as ``state_equation`` with a test function; the L2 product of the state if None.
    control_initial_state
        Whether the initial state is a control; ``initial_objective`` must then curve it.
    adjoint
        p, a function of the state's space; made if None.
    bcs
        Dirichlet conditions of the state, of the initial one too.
    update_bcs
        Called with a time before the conditions are used at it, to bring their values up to date.
    bounds
        (lower, upper) for one control, or one such pair or None per control, for all steps.
    initial_bounds
        The same for the initial state.
    control_inner_product
        Bilinear form that measures a control, one per control; the L2 product where the control acts if None.
    checkpoints
        How many states a sweep backward may keep, to bound the memory of long runs; all if None.
    entity_maps
        DOLFINx entity maps, if forms mix meshes.

    Attributes
    ----------
    state, adjoint
        The functions y and p, which `visit` sets to each step's.

    Raises
    ------
    ProblemError
        If something about the problem cannot be right; the message says what, and what to do.

    Collective: yes.
    """

    def __init__(
        self,
        *,
        state_equation: ufl.Form,
        state: dolfinx.fem.Function,
        control: dolfinx.fem.Function | dolfinx.fem.Constant | Sequence[dolfinx.fem.Function | dolfinx.fem.Constant],
        interval: tuple[float, float],
        steps: int,
        running_objective: ufl.Form | None = None,
        terminal_objective: ufl.Form | None = None,
        initial_objective: ufl.Form | None = None,
        scheme: TimeScheme | None = None,
        time: dolfinx.fem.Constant | None = None,
        mass: ufl.Form | None = None,
        control_initial_state: bool = False,
        adjoint: dolfinx.fem.Function | None = None,
        bcs: Sequence[dolfinx.fem.DirichletBC] = (),
        update_bcs: Callable[[float], None] | None = None,
        bounds: tuple[Bound, Bound] | Sequence[tuple[Bound, Bound] | None] | None = None,
        initial_bounds: tuple[Bound, Bound] | None = None,
        control_inner_product: ufl.Form | Sequence[ufl.Form | None] | None = None,
        checkpoints: Checkpoints | None = None,
        entity_maps: Sequence[dolfinx.mesh.EntityMap] | None = None,
    ) -> None:
        given: list[dolfinx.fem.Function | dolfinx.fem.Constant] = (
            list(control) if isinstance(control, list | tuple) else [control]  # type: ignore[list-item]
        )
        start, end = interval
        if steps < 1 or not np.isfinite(end - start) or end <= start:
            raise ProblemError(f"{steps} steps over the interval ({start:g}, {end:g}): give start < end and steps >= 1")
        if not given and not control_initial_state:
            raise ProblemError("there is no control: pass one, or set control_initial_state=True")
        if control_initial_state and initial_objective is None:
            raise ProblemError(
                "control_initial_state needs an initial_objective that is curved in the state, such as "
                "alpha / 2 * inner(y, y) * dx"
            )
        adjoint = checks.check_unknowns(state, given or [dolfinx.fem.Function(state.function_space)], adjoint)
        objectives = [running_objective, terminal_objective, initial_objective]
        present = [form for form in objectives if form is not None]
        if not present:
            raise ProblemError("there is no objective: pass running_objective, terminal_objective or initial_objective")
        total = present[0]
        for form in present[1:]:
            total = total + form
        residual = checks.check_forms(total, state_equation, state, given, adjoint, ())
        if mass is None:
            mass = ufl.inner(state, adjoint) * ufl.dx(state.function_space.mesh)
        mass = checks.test_with_adjoint(mass, state, adjoint, "mass")
        checks.check_dirichlet(bcs, state)
        mesh = state.function_space.mesh
        self.state, self.adjoint = state, adjoint
        self.given_controls = tuple(given)
        self.comm: MPI.Comm = mesh.comm
        self.controls: tuple[Control, ...] = tuple(
            RealControl(c, mesh) if isinstance(c, dolfinx.fem.Constant) else FieldControl(c) for c in given
        )
        stand_ins = {
            c: real.function
            for c, real in zip(given, self.controls, strict=True)
            if isinstance(c, dolfinx.fem.Constant)
        }

        def prepare(form: ufl.Form | None) -> ufl.Form | None:
            if form is None or form.empty():
                return None
            return forms.fix_quadrature_degree(ufl.replace(form, stand_ins) if stand_ins else form)

        fields = [c.function for c in self.controls]
        state_cost, control_cost = _split(prepare(running_objective), state, fields)
        fixed_mass, fixed_residual = prepare(mass), prepare(residual)
        assert fixed_mass is not None
        assert fixed_residual is not None
        self._forms = UnsteadyForms(
            fixed_mass, fixed_residual, state_cost, control_cost, prepare(terminal_objective),
            prepare(initial_objective), state, adjoint, self.controls, time, tuple(bcs), update_bcs, entity_maps,
        )  # fmt: skip
        self.lagrangian = StepLagrangian(self._forms)
        for index in range(len(given)):
            if not self.lagrangian.has_block(3 + index, 3 + index):
                raise ProblemError(
                    f"the running objective is not curved in control {index} ({given[index]}): add a regularisation "
                    "such as alpha / 2 * inner(u, u) * dx"
                )
        self.grid = TimeGrid(scheme or Theta(0.5), start, end, steps)
        pairs = checks.check_bounds(bounds, given, self.controls, self.comm) if given else []
        self._products = [
            self._product(index, form)
            for index, form in enumerate(checks.per_control(control_inner_product, len(given)))
        ]
        initial = forms.owned_values(state).copy()
        if control_initial_state:
            pairs += checks.check_bounds(
                None if initial_bounds is None else initial_bounds, [state], [FieldControl(state)], self.comm
            )
            trial, test = ufl.TrialFunction(state.function_space), ufl.TestFunction(state.function_space)
            self._products.append(forms.assemble_matrix(forms.compile_form(ufl.inner(trial, test) * ufl.dx)))
        self.functional = UnsteadyFunctional(
            self.lagrangian, self.grid, initial, control_initial_state, pairs, self._products, checkpoints
        )
        self.controls_initial_state = control_initial_state
        self.has_state_cost = state_cost is not None
        self.has_terminal_objective = terminal_objective is not None
        self._set_first_guess(initial, control_initial_state)

    def _product(self, index: int, form: ufl.Form | None) -> PETSc.Mat:
        control = self.controls[index]
        if form is None:
            everything = self._forms.state_equation
            if self._forms.control_cost is not None:
                everything = everything + self._forms.control_cost
            form = default_inner_product(everything, control.function)
        return control.restrict_both(forms.assemble_matrix(forms.compile_form(form, self._forms.entity_maps)))

    def _set_first_guess(self, initial: np.ndarray, control_initial_state: bool) -> None:
        functional = self.functional
        for step in range(self.grid.steps):
            for index, control in enumerate(self.controls):
                functional.values[functional.place(step, index)] = control.coordinates()
        if control_initial_state:
            functional.values[functional.place(self.grid.steps, 0)] = initial

    def objective_value(self) -> float:
        """Return the cost at the present controls. Collective: yes."""
        control = self.functional.create_vector()
        self.functional.get_control(control)
        value = self.functional.value(control)
        control.destroy()
        return value

    def solve(
        self,
        *,
        method: str | None = None,
        rtol: float = 1e-8,
        max_iterations: int = 500,
        monitor: Callable[[int, float], None] | None = None,
    ) -> SolveReport:
        """Find the optimal controls, which `visit` then shows with their states and adjoints. Collective: yes.

        PETSc options under ``state_`` (solves of a step), ``kkt_`` (the all-at-once system), ``kkt_shifted_`` (blocks
        of its preconditioner) and ``reduced_`` (TAO) override the defaults.

        Parameters
        ----------
        method
            "all_at_once" for the optimality system of all steps together, or in the space of the controls by TAO
            "bqnls", "blmvm", "bntr" or "bnls"; chosen by structure if None.
        rtol
            Relative tolerance for the residual of the optimality system, or for the projected gradient.
        max_iterations
            Krylov iterations, or iterations of TAO.
        monitor
            Called on every rank with (iteration, residual norm).

        Raises
        ------
        ConvergenceError
            If the tolerance is not reached; nothing unconverged is returned as solved.
        OptionError
            If the method is unknown or does not fit the problem.
        """
        if method is not None and method not in (ALL_AT_ONCE, *tao.METHODS):
            known = ", ".join((ALL_AT_ONCE, *tao.METHODS))
            raise OptionError(f"method {method!r} is unknown: choose one of {known}")
        reason = unfit(self)
        if method == ALL_AT_ONCE and reason:
            raise OptionError(f"method 'all_at_once' does not fit: {reason}; choose 'bntr' or leave the method out")
        if method == ALL_AT_ONCE or (method is None and not reason):
            system = AllAtOnce(self)
            report: SolveReport | None = None
            try:
                report = system.solve(rtol=rtol, max_iterations=max_iterations, monitor=monitor)
            except ConvergenceError:
                if method is not None or not system.bounded:  # active sets can cycle; a trust region does not
                    raise
            finally:
                system.destroy()
            PETSc.garbage_cleanup(self.comm)  # not after an exception, which may be this rank's alone
            if report is not None:
                return report
        report = tao.minimise(
            self.functional, method or "bntr", rtol=rtol, max_iterations=max_iterations, monitor=monitor
        )
        PETSc.garbage_cleanup(self.comm)
        return report

    def visit(self, visitor: Visitor, *, adjoint: bool = False) -> None:
        """Call a function at every step when state, control and, if asked for, adjoint hold its values.

        Parameters
        ----------
        visitor
            Called on every rank with (n, t_n): n = 0, ..., N, or with adjoints n = N, ..., 1. Control and adjoint of
            step n belong to the time that the scheme says, not always to t_n.
        adjoint
            Whether to sweep backward and set the adjoint too.

        Collective: yes.
        """
        control = self.functional.create_vector()
        self.functional.get_control(control)
        self.functional.visit(control, visitor, adjoint)
        control.destroy()

    def taylor_test(self, *, hessian: bool = True, seed: int = 0) -> verify.TaylorReport:
        """Test gradient and Hessian at the present controls by Taylor remainders. Collective: yes."""
        return verify.taylor_test(self.functional, hessian=hessian, seed=seed)

    def check_symmetry(self, *, seed: int = 0) -> float:
        """Return the largest relative asymmetry of the reduced Hessian over random directions. Collective: yes."""
        return verify.check_symmetry(self.functional, seed=seed)

    def destroy(self) -> None:
        """Free the PETSc objects. Collective: yes."""
        PETSc.garbage_cleanup(self.comm)  # what Python dropped on several ranks stays until asked for
        self.functional.destroy()
        for product in self._products:
            product.destroy()


def _split(
    form: ufl.Form | None, state: dolfinx.fem.Function, controls: Sequence[dolfinx.fem.Function]
) -> tuple[ufl.Form | None, ufl.Form | None]:
    """Return the integrals of the running objective that see the state, and those that do not."""
    if form is None:
        return None, None
    of_state: list[ufl.Integral] = []
    of_control: list[ufl.Integral] = []
    for integral in form.integrals():
        seen = extract_coefficients(integral.integrand())
        has_control = any(control in seen for control in controls)
        if state in seen and has_control:
            raise ProblemError(
                "an integral of the running objective contains state and control: they belong to different times of "
                "a step; write it as a sum of integrals of the one and of the other"
            )
        (of_control if has_control else of_state).append(integral)
    return (ufl.Form(of_state) if of_state else None), (ufl.Form(of_control) if of_control else None)
