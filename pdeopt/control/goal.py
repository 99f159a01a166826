"""Dual-weighted residuals for control problems: how wrong the least objective, or a quantity at the optimum, is.

With the Lagrangian L(y, u, p) = J + F, the discrete optimum x_h, the optimum x and e = x - x_h,

    J(x) - J(x_h) = (L'(x_h)(e) + L'(x)(e)) / 2 + R

with a remainder R of third order (Becker, Kapp and Rannacher, SIAM J. Control Optim. 39 (2000) 113-132). By the
discrete optimality system e may be replaced by e - i e, with any interpolation i, in every unknown without bounds, and
L'(x)(e) vanishes but for controls with bounds (Vexler and Wollner, SIAM J. Control Optim. 47 (2008) 509-534).
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from mpi4py import MPI

import dolfinx
import numpy as np
import numpy.typing as npt
import ufl
from ufl.algorithms import extract_arguments

from pdeopt.control.controls import RealControl
from pdeopt.control.newton import Bounds
from pdeopt.control.problem import Bound, ControlProblem
from pdeopt.control.structure import DIRECT_LIMIT
from pdeopt.fem import forms
from pdeopt.fem.enrich import (
    Function,
    Space,
    enriched_dirichlet,
    enriched_space,
    interpolate,
    interpolation_remainder,
)
from pdeopt.fem.goal import GoalEstimate, Part, direct_solver, localise, raise_quadrature_degree, solve_checked
from pdeopt.report import ProblemError

_INFINITE = 1e30  # stands for a bound that is not there while bounds are interpolated


def estimate_objective_error(problem: ControlProblem) -> GoalEstimate:
    """Estimate how far the least objective of a solved problem is from that of the continuous problem.

    The problem is solved once more with every degree raised by one, from its optimum: four (plane) to eight (solid)
    times the unknowns where the degree was one. Factorised if it is small enough, it is otherwise solved by the method
    that fits its structure. Bounds and constraints are kept; bounds that are functions are interpolated. Dirichlet data
    are taken to be exact as interpolated, and the quadrature error of the forms is not seen.

    Parameters
    ----------
    problem
        A control problem at its optimum, as ``solve()`` leaves it.

    Returns
    -------
    GoalEstimate
        J(x_h), the estimate of J(x) - J(x_h), and the contributions of the cells of the state's mesh.

    Raises
    ------
    ConvergenceError
        If the enriched problem cannot be solved.
    InputError
        If a space has no next degree.

    Collective: yes.
    """
    mesh, maps = problem.state.function_space.mesh, problem.system.lagrangian.entity_maps
    with _enriched(problem) as fine:
        differences = fine.solve()
        fine.go_to_start()
        parts: list[Part] = []
        at_optimum: list[Part] = []
        for unknown, difference, space, bounded in zip(
            fine.unknowns, differences, fine.coarse_spaces, fine.bounded, strict=True
        ):
            if bounded:
                parts.append((unknown, difference, 0.5))
                at_optimum.append((unknown, difference, 0.5))
            elif space is not None:
                parts.append((unknown, interpolation_remainder(difference, space), 0.5))
        error, indicators = localise(fine.functional, parts, mesh, maps)
        if at_optimum:
            fine.go_to_optimum()
            more, contributions = localise(fine.functional, at_optimum, mesh, maps)
            error += more
            indicators.x.array[:] += contributions.x.array
    return GoalEstimate(problem.objective_value(), error, indicators)


def estimate_quantity_error(problem: ControlProblem, quantity: ufl.Form) -> GoalEstimate:
    """Estimate the error in a quantity I(y, u) at the optimum of a solved problem.

    With the Hessian K of the Lagrangian and K xi = -I'(x_h) one degree higher, I(x) - I(x_h) = L'(x_h)(xi - i xi) + R,
    exact for linear-quadratic problems and linear quantities and else with R of second order (Becker and Vexler,
    Numer. Math. 96 (2004) 435-459).

    Parameters
    ----------
    problem
        A control problem at its optimum, without bounds and extra constraints.
    quantity
        Functional of state and controls.

    Returns
    -------
    GoalEstimate
        I(x_h), the estimate of I(x) - I(x_h), and the contributions of the cells of the state's mesh.

    Raises
    ------
    ProblemError
        If the problem has bounds or extra constraints, or the quantity is no functional of its unknowns.
    ConvergenceError
        If the linear solve (MUMPS, or PETSc options under ``goal_``) fails.
    InputError
        If a space has no next degree.

    Collective: yes.
    """
    lagrangian = problem.system.lagrangian
    if not isinstance(quantity, ufl.Form) or extract_arguments(quantity):
        raise ProblemError("the quantity must be a functional: a UFL form without test and trial functions")
    if not forms.depends_on(quantity, lagrangian.unknowns[:-1]):
        raise ProblemError("the quantity depends neither on the state nor on a control")
    if lagrangian.constraints or any(_is_bounded(problem, bounds) for bounds in problem.bounds):
        raise ProblemError("the error of a quantity is estimated without bounds and extra constraints only: "
                           "estimate_objective_error() takes both")  # fmt: skip
    mesh = problem.state.function_space.mesh
    value = forms.assemble_scalar(forms.compile_form(quantity, lagrangian.entity_maps))
    with _enriched(problem, quantity) as fine:
        weights = fine.solve_hessian()
        parts = [
            (unknown, interpolation_remainder(weight, space), 1.0)
            for unknown, weight, space in zip(fine.unknowns, weights, fine.coarse_spaces, strict=True)
            if space is not None  # numbers are no coarser than they can be
        ]
        error, indicators = localise(fine.functional, parts, mesh, lagrangian.entity_maps)
    return GoalEstimate(value, error, indicators)


class _Enriched:
    """A control problem with its degrees raised, its unknowns set to those of the problem it was made from.

    Attributes
    ----------
    problem
        The enriched problem; its last constraint is the quantity of interest, if there is one.
    functional
        Its Lagrangian. The multiplier of the quantity of interest is zero.
    coarse_spaces
        The original space of each unknown; None for real-valued controls.
    bounded
        Which unknowns have bounds.
    """

    def __init__(self, original: ControlProblem, quantity: ufl.Form | None) -> None:
        lagrangian = original.system.lagrangian
        above: dict[Function, Any] = {}  # a function, or the constant of real-valued controls
        self.coarse_spaces: list[Space | None] = []
        for unknown, control in zip(lagrangian.unknowns, (None, *original.controls, None), strict=True):
            space = unknown.function_space
            if isinstance(control, RealControl):
                above[unknown] = control.constant
                self.coarse_spaces.append(None)
                continue
            # Unknowns of one space keep one space: state and adjoint must.
            known = [other for other in above if other.function_space == space]
            raised_space = above[known[0]].function_space if known else enriched_space(space)
            above[unknown] = interpolate(unknown, raised_space)
            self.coarse_spaces.append(space)

        def raised(form: ufl.Form) -> ufl.Form:
            return ufl.replace(raise_quadrature_degree(form), above)

        state, *controls, adjoint = above.values()
        self._dirichlet_values = state.copy()
        quantities = [] if quantity is None else [quantity]
        bounds = [
            _enriched_bounds(pair, given, fine, original.comm) if _is_bounded(original, pair) else None
            for pair, given, fine in zip(original.bounds, original.given_controls, controls, strict=True)
        ]
        self.bounded = [False, *(pair is not None for pair in bounds), False]
        self.problem = ControlProblem(
            objective=raised(lagrangian.objective),
            state_equation=raised(lagrangian.state_equation),
            state=state,
            control=controls,
            adjoint=adjoint,
            bcs=enriched_dirichlet(original.system.bcs, original.state.function_space, self._dirichlet_values),
            bounds=bounds,
            constraints=[raised(form) for form in (*lagrangian.constraints, *quantities)],
            entity_maps=lagrangian.entity_maps,
        )
        self.functional = self.problem.system.lagrangian.functional
        self.unknowns: tuple[Function, ...] = self.problem.system.lagrangian.unknowns
        self._multipliers = self.problem.system.lagrangian.multipliers[: len(lagrangian.multipliers)]
        for multiplier, value in zip(self._multipliers, original.multipliers, strict=True):
            multiplier.value = value
        self._start = self._values()

    def _values(self) -> list[npt.NDArray[np.float64]]:
        """Return copies of the values of unknowns and multipliers."""
        values = [unknown.x.array.copy() for unknown in self.unknowns]
        return [*values, *(np.array(multiplier.value) for multiplier in self._multipliers)]

    def _set_values(self, values: Sequence[npt.NDArray[np.float64]]) -> None:
        for unknown, value in zip(self.unknowns, values, strict=False):
            unknown.x.array[:] = value
        for multiplier, number in zip(self._multipliers, values[len(self.unknowns) :], strict=True):
            multiplier.value = number

    def solve(self) -> list[Function]:
        """Find the optimum and return how far it is from the start. Collective: yes."""
        # A factorisation where one fits: the differences from the start can be small beside an iterative tolerance.
        dimension = self.problem.state.function_space.mesh.topology.dim
        fits = self.problem.system.layout.global_size <= DIRECT_LIMIT[dimension]
        self.problem.solve(method="direct" if fits else None)
        self._optimum = self._values()
        return self._differences(self._optimum)

    def go_to_start(self) -> None:
        """Set the unknowns to those of the original problem. Collective: no."""
        self._set_values(self._start)

    def go_to_optimum(self) -> None:
        """Set the unknowns to the optimum that `solve` found. Collective: no."""
        self._set_values(self._optimum)

    def _differences(self, values: Sequence[npt.NDArray[np.float64]]) -> list[Function]:
        differences = []
        for unknown, value, start in zip(self.unknowns, values, self._start, strict=False):
            difference = dolfinx.fem.Function(unknown.function_space)
            difference.x.array[:] = value - start
            differences.append(difference)
        return differences

    def solve_hessian(self) -> list[Function]:
        """Return minus the inverse of the Lagrangian's Hessian times the quantity's gradient. Collective: yes."""
        system = self.problem.system
        (gradient,) = system.constraint_gradients()
        gradient.scale(-1.0)
        system.swap_rows(gradient)
        blocks = system.assemble_blocks()
        matrix = system.monolithic_matrix(blocks, swapped=True)
        solution = gradient.duplicate()
        with direct_solver(matrix, {"mat_mumps_icntl_14": 50}) as solver:
            solve_checked(solver, gradient, solution)
        system.set_unknowns(solution)
        weights = [unknown.copy() for unknown in self.unknowns]
        self.go_to_start()
        for item in (matrix, gradient, solution):
            item.destroy()
        blocks.destroy()
        return weights


@contextlib.contextmanager
def _enriched(problem: ControlProblem, quantity: ufl.Form | None = None) -> Iterator[_Enriched]:
    """Hand out the enriched problem; at the end real-valued controls, which it shares, get their values back.

    Collective: yes.
    """
    saved = [control.coordinates() for control in problem.controls]
    fine: _Enriched | None = None
    try:
        fine = _Enriched(problem, quantity)
        yield fine
    finally:
        for control, values in zip(problem.controls, saved, strict=True):
            control.set_coordinates(values)
        if fine is not None:
            fine.problem.destroy()


def _is_bounded(problem: ControlProblem, bounds: Bounds) -> bool:
    """Whether any rank has a finite bound. Collective: yes."""
    finite = bool(np.isfinite(bounds.lower).any() or np.isfinite(bounds.upper).any())
    return bool(problem.comm.allreduce(finite, op=MPI.LOR))


def _enriched_bounds(
    bounds: Bounds,
    given: Function | dolfinx.fem.Constant,
    above: Function | dolfinx.fem.Constant,
    comm: MPI.Comm,
) -> tuple[Bound, Bound]:
    """Return the bounds of an enriched control. Collective: yes."""
    if isinstance(given, dolfinx.fem.Constant) or isinstance(above, dolfinx.fem.Constant):
        return comm.bcast(bounds.lower), comm.bcast(bounds.upper)  # rank 0 has all the numbers
    pair = []
    for values in (bounds.lower, bounds.upper):
        coarse = dolfinx.fem.Function(given.function_space)
        forms.set_function(coarse, np.clip(values, -_INFINITE, _INFINITE))
        fine = interpolate(coarse, above.function_space)
        infinite = np.abs(fine.x.array) > 1e-3 * _INFINITE  # next to a node without a bound there is none either
        fine.x.array[infinite] = np.copysign(np.inf, fine.x.array[infinite])
        pair.append(fine)
    return pair[0], pair[1]
