"""Checks of a control problem when it is built: one sentence for each mistake, naming the thing and the remedy."""

from collections.abc import Sequence
from typing import cast

from mpi4py import MPI

import dolfinx
import numpy as np
import ufl
from ufl.algorithms import extract_arguments, extract_coefficients
from ufl.algorithms.analysis import extract_constants

from pdeopt.control.controls import Control, FieldControl
from pdeopt.control.lagrangian import Lagrangian
from pdeopt.control.newton import Bounds
from pdeopt.fem import forms
from pdeopt.parallel import collective_errors
from pdeopt.report import ProblemError

Given = dolfinx.fem.Function | dolfinx.fem.Constant


def check_unknowns(state: object, controls: Sequence[Given], adjoint: object) -> dolfinx.fem.Function:
    """Check kinds and spaces of state, controls and adjoint; return the adjoint, made if it is None."""
    if not isinstance(state, dolfinx.fem.Function):
        raise ProblemError(f"state is a {type(state).__name__}, not a dolfinx.fem.Function: pass the unknown itself")
    if not controls:
        raise ProblemError("control is an empty sequence: pass at least one function or constant")
    for index, control in enumerate(controls):
        if not isinstance(control, Given):
            raise ProblemError(
                f"control {index} is a {type(control).__name__}: pass a dolfinx.fem.Function, or a "
                "dolfinx.fem.Constant "
                "for real-valued controls"
            )
        if control is state:
            raise ProblemError(f"control {index} is the state itself: make a function of its own for each unknown")
    if len({id(control) for control in controls}) != len(controls):
        raise ProblemError("the same control is given twice: list each control once")
    if adjoint is None:
        adjoint = dolfinx.fem.Function(state.function_space, name="adjoint")
    if not isinstance(adjoint, dolfinx.fem.Function):
        raise ProblemError(
            f"adjoint is a {type(adjoint).__name__}, not a dolfinx.fem.Function: pass a function or None"
        )
    if adjoint is state or any(adjoint is control for control in controls):
        raise ProblemError("the adjoint is also the state or a control: make a function of its own for each unknown")
    if adjoint.function_space != state.function_space:
        raise ProblemError(
            f"adjoint and state are functions of different spaces ({adjoint.function_space.ufl_element()} and "
            f"{state.function_space.ufl_element()}): make the adjoint from state.function_space"
        )
    for function in (state, *controls, adjoint):
        values = function.x.array if isinstance(function, dolfinx.fem.Function) else np.atleast_1d(function.value)
        with collective_errors(state.function_space.mesh.comm):
            if not np.isfinite(values).all():
                raise ProblemError(f"the initial values of {function} have NaN or Inf: set them to finite numbers")
    return adjoint


def _check_functional(form: object, name: str) -> ufl.Form:
    if not isinstance(form, ufl.Form):
        remedy = (
            "multiply the integrand by a measure such as ufl.dx"
            if isinstance(form, ufl.core.expr.Expr)
            else "pass a UFL form"
        )
        raise ProblemError(f"{name} is a {type(form).__name__}, not a form: {remedy}")
    arguments = extract_arguments(form)
    if arguments:
        raise ProblemError(
            f"{name} has {len(arguments)} test or trial functions, but must be a number: put the "
            "unknowns in their place"
        )
    return form


def test_with_adjoint(form: object, state: dolfinx.fem.Function, adjoint: dolfinx.fem.Function, name: str) -> ufl.Form:
    """Return a residual form with the adjoint in place of its test function."""
    if not isinstance(form, ufl.Form):
        hint = (
            "move the right-hand side over: F = a - L" if isinstance(form, ufl.equation.Equation) else "pass a UFL form"
        )
        raise ProblemError(f"{name} is a {type(form).__name__}, not a form: {hint}")
    arguments = extract_arguments(form)
    if len(arguments) > 1:
        raise ProblemError(
            f"{name} has {len(arguments)} arguments: put the state (a Function) where the TrialFunction stands"
        )
    if arguments:
        if arguments[0].ufl_function_space() != state.function_space.ufl_function_space() and (
            arguments[0].ufl_function_space() != state.function_space
        ):
            raise ProblemError(f"the test function of {name} is of another space than the state: use the state's space")
        form = ufl.replace(form, {arguments[0]: adjoint})
    elif adjoint not in extract_coefficients(form):
        raise ProblemError(f"{name} has neither a test function nor the adjoint in it: multiply it by a TestFunction")
    return cast(ufl.Form, form)


def check_forms(
    objective: object,
    state_equation: object,
    state: dolfinx.fem.Function,
    controls: Sequence[Given],
    adjoint: dolfinx.fem.Function,
    constraints: Sequence[object],
) -> ufl.Form:
    """Check ranks of the forms; return the state equation tested with the adjoint."""
    _check_functional(objective, "objective")
    for index, constraint in enumerate(constraints):
        _check_functional(constraint, f"constraint {index}")
    state_equation = test_with_adjoint(state_equation, state, adjoint, "state_equation")
    if adjoint in extract_coefficients(objective):
        raise ProblemError("the objective contains the adjoint: it may depend on state and control only")
    everything = [objective, state_equation, *constraints]
    for index, control in enumerate(controls):
        where = extract_constants if isinstance(control, dolfinx.fem.Constant) else extract_coefficients
        if not any(control in where(form) for form in everything):  # type: ignore[no-untyped-call]
            raise ProblemError(
                f"control {index} ({control}) appears neither in the objective nor in the state equation"
            )
    if state not in extract_coefficients(state_equation):
        raise ProblemError(
            f"the state ({state}) does not appear in state_equation: pass the function that the equation is about"
        )
    assert isinstance(state_equation, ufl.Form)
    return state_equation


def check_dependence(lagrangian: Lagrangian) -> None:
    """Check the derivatives: linear in the adjoint, an equation for the state, something to minimise."""
    last = len(lagrangian.unknowns) - 1
    equation = lagrangian.state_equation
    if not forms.is_zero(lagrangian.second(equation, last, last)):
        raise ProblemError("state_equation is not linear in the test function (adjoint): it must be a weak residual")
    if forms.is_zero(lagrangian.second(equation, last, 0)):
        raise ProblemError(
            "the derivative of state_equation by the state vanishes: the equation does not determine the state"
        )
    objective = lagrangian.objective
    if not forms.depends_on(objective, lagrangian.unknowns[:-1]):
        raise ProblemError("the objective depends neither on the state nor on a control: there is nothing to minimise")
    for index, control in enumerate(lagrangian.controls, start=1):
        if forms.is_zero(lagrangian.second(lagrangian.functional, index, index)):
            raise ProblemError(
                f"the objective is not curved in control {index - 1} ({control.function}): add a "
                "regularisation such as "
                "alpha / 2 * inner(u, u) * dx"
            )


def check_dirichlet(bcs: Sequence[object], state: dolfinx.fem.Function) -> None:
    """Check that the Dirichlet conditions are conditions, and of the state's space."""
    if isinstance(bcs, dolfinx.fem.DirichletBC):
        raise ProblemError("bcs is a single Dirichlet condition: pass a list, bcs=[bc]")
    for index, bc in enumerate(bcs):
        if not isinstance(bc, dolfinx.fem.DirichletBC):
            raise ProblemError(f"bcs[{index}] is a {type(bc).__name__}: make it with dolfinx.fem.dirichletbc")
        if (
            not state.function_space._cpp_object.contains(bc.function_space)
            and bc.function_space != state.function_space._cpp_object
        ):
            raise ProblemError(f"bcs[{index}] is a condition on another function space than the state's")


def check_bounds(bounds: object, given: Sequence[Given], controls: Sequence[Control], comm: MPI.Comm) -> list[Bounds]:
    """Return bounds by coordinates for every control."""
    count = len(given)
    pairs: list[object]
    if bounds is None:
        pairs = [None] * count
    elif count == 1 and isinstance(bounds, tuple) and len(bounds) == 2 and not isinstance(bounds[0], tuple):
        pairs = [bounds]
    else:
        pairs = list(bounds) if isinstance(bounds, list | tuple) else [bounds]
    if len(pairs) != count or not all(pair is None or (isinstance(pair, tuple) and len(pair) == 2) for pair in pairs):
        raise ProblemError(
            f"bounds must be a pair (lower, upper), or one such pair or None for each of the {count} controls"
        )
    return [
        _bounds_of(pair if isinstance(pair, tuple) else (None, None), given[index], control, f"control {index}", comm)
        for index, (pair, control) in enumerate(zip(pairs, controls, strict=True))
    ]


def check_state_bounds(bounds: object, state: dolfinx.fem.Function, comm: MPI.Comm) -> Bounds | None:
    """Return bounds by coordinates of the state, None if there are none."""
    if bounds is None:
        return None
    if not (isinstance(bounds, tuple) and len(bounds) == 2):
        raise ProblemError("state_bounds must be a pair (lower, upper), either of them None where there is no bound")
    return _bounds_of(bounds, state, FieldControl(state), "the state", comm)


def _bounds_of(pair: tuple[object, object], given: Given, coordinates: Control, name: str, comm: MPI.Comm) -> Bounds:
    low = _bound_values(pair[0], -np.inf, given, coordinates, f"lower bound of {name}")
    high = _bound_values(pair[1], np.inf, given, coordinates, f"upper bound of {name}")
    with collective_errors(comm):
        if np.isnan(low).any() or np.isnan(high).any():
            raise ProblemError(f"a bound of {name} is NaN: use None where there is no bound")
        if (low > high).any():
            worst = int(np.argmax(low > high))
            raise ProblemError(
                f"the lower bound of {name} exceeds the upper one ({low[worst]:g} > {high[worst]:g}): swap them"
            )
    return Bounds(low, high)


def _bound_values(bound: object, default: float, given: Given, control: Control, name: str) -> np.ndarray:
    if bound is None:
        return np.full(control.size, default)
    if isinstance(bound, dolfinx.fem.Function):
        if isinstance(given, dolfinx.fem.Constant) or bound.function_space.element != given.function_space.element:
            raise ProblemError(
                f"the {name} is a function of another space than what it bounds: interpolate it there first"
            )
        return forms.owned_values(bound).copy()
    try:
        values = np.asarray(bound, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ProblemError(f"the {name} is {bound!r}: give a number, an array or a function") from error
    if values.ndim == 0:
        return np.full(control.size, float(values))
    if isinstance(given, dolfinx.fem.Constant) and values.size == np.asarray(given.value).size:
        return values.ravel()[: control.size].copy()
    raise ProblemError(f"the {name} has shape {values.shape}: give a number, or one number for each component")


def per_control(value: object, count: int) -> list[ufl.Form | None]:
    """Return one inner product per control from one form, a sequence of forms, or None."""
    entries: list[ufl.Form | None] = list(value) if isinstance(value, list | tuple) else [value] * count  # type: ignore[list-item]
    if len(entries) != count or not all(isinstance(entry, ufl.Form | None) for entry in entries):
        raise ProblemError(
            f"control_inner_product has {len(entries)} entries for {count} controls, or entries that are no forms: "
            "give one bilinear form (or None) per control"
        )
    return entries
