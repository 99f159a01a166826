"""Internal variables of a material: fields at quadrature points that follow from the state by a local equation.

A law of plasticity or viscoplasticity has one scalar unknown at a point, the increment q of the cumulated plastic
strain over a step. With the state u of the body and the history h of the material it solves

    g(u, q, h) = 0 where g(u, 0, h) > tolerance,     q = 0 elsewhere,

where g falls with q: it is the yield function after a return by q. The tolerance, not zero, separates the two: at a
reversal of the load rounding errors alone would switch points on and off, and Newton's method would not converge.
The residual F(u, q, h) of the body stays any UFL form, and its consistent tangent is again UFL, by the theorem of
implicit functions: dF/du - dF/dq (dg/du) / (dg/dq), the second part at active points.

References
----------
J. C. Simo, T. J. R. Hughes, Computational Inelasticity, Springer 1998, chapters 3 and 4.
"""

from collections.abc import Callable, Mapping
from typing import Any

import basix.ufl
import dolfinx
import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import fem
from ufl.algorithms import expand_derivatives
from ufl.algorithms.apply_algebra_lowering import apply_algebra_lowering
from ufl.core.expr import Expr

from pdeopt.fem import forms
from pdeopt.report import ConvergenceError, InputError

type Array = npt.NDArray[np.float64]
type History = Mapping[fem.Function[Any], Expr]

_MAX_ITERATIONS = 100
# The local equation is solved to this part of the tolerance of yielding, and the last step comes on top of it.
_LOCAL_ACCURACY = 1e-2
# A smaller increment is none: Norton's law would divide by it.
_SMALLEST_INCREMENT = 1e-20


def quadrature_function(
    mesh: dolfinx.mesh.Mesh[Any], degree: int, name: str, components: int | None = None
) -> fem.Function[Any]:
    """Return a field of one number, or of ``components`` numbers, at the points of a quadrature degree.

    Collective: yes.
    """
    shape = () if components is None else (components,)
    element = basix.ufl.quadrature_element(mesh.basix_cell(), value_shape=shape, scheme="default", degree=degree)
    return fem.Function(fem.functionspace(mesh, element), name=name)


class InternalVariables:
    """The increment q at quadrature points, solved for, and the history that it drives.

    Everything is UFL over functions and constants, so that a reduced mesh can carry the same law (`restricted`).

    Parameters
    ----------
    unknown
        The state u.
    increment
        The field q [the law's unit], made by `quadrature_function`.
    equation
        g(u, q, h), a scalar that falls with q >= 0.
    start
        Where the local Newton method begins, an expression of the trial state in which q does not occur; best where g
        is convex and the start on the left of its root, or where one step is exact.
    history
        Each field of the history with the expression of its new value at the end of the step. Where q = 0 it need not
        be the old value.
    tolerance
        Of yielding, in the unit of g, > 0.
    name
        What the law is called in error messages.

    Attributes
    ----------
    active
        1 at points where the local equation was solved, else 0.

    Raises
    ------
    InputError
        If the tolerance is not positive, the fields are not of one quadrature rule, or a field has no name of its own.

    Collective: yes.
    """

    def __init__(
        self,
        unknown: fem.Function[Any],
        increment: fem.Function[Any],
        equation: Expr,
        start: Expr,
        history: History,
        tolerance: float,
        name: str = "material law",
        active: fem.Function[Any] | None = None,
    ) -> None:
        if not tolerance > 0.0:
            raise InputError(f"{name}: the tolerance of yielding is {tolerance}: give a positive number")
        self.name, self.tolerance = name, tolerance
        self.unknown, self.increment, self.history = unknown, increment, dict(history)
        self.equation, self.start = equation, start
        self.mesh = increment.function_space.mesh
        element = increment.function_space.element
        points = element.interpolation_points
        for field in self.history:
            if not np.array_equal(field.function_space.element.interpolation_points, points):
                raise InputError(f"{name}: {field.name} lives at other quadrature points than the increment")
        if len({field.name for field in self.history}) != len(self.history):
            raise InputError(f"{name}: fields of the history share a name: give each its own")
        self.active = active if active is not None else fem.Function(increment.function_space, name=f"{name}: active")
        self._cells = np.arange(self.mesh.topology.index_map(self.mesh.topology.dim).size_local, dtype=np.int32)
        self._dofs = increment.function_space.dofmap.list[: self._cells.size]
        slope = ufl.derivative(equation, increment, ufl.as_ufl(1.0))
        trial = ufl.as_vector([ufl.replace(equation, {increment: ufl.as_ufl(0.0)}), start])
        comm = self.mesh.comm
        self._trial = fem.Expression(_expanded(trial), points, comm)
        self._law = fem.Expression(_expanded(ufl.as_vector([equation, slope])), points, comm)
        updates = [component for update in self.history.values() for component in _components(update)]
        self._width = len(updates)
        self._updates = fem.Expression(_expanded(ufl.as_vector(updates)), points, comm)

    # --- forms --------------------------------------------------------------------------------------------------------

    def tangent(self, residual: ufl.Form) -> ufl.Form:
        """Return the derivative of a residual F(u, q(u), h; v) by u, a bilinear form. Collective: no."""
        direction = ufl.TrialFunction(self.unknown.function_space)
        by_unknown = ufl.derivative(self.equation, self.unknown, direction)
        by_increment = ufl.derivative(self.equation, self.increment, ufl.as_ufl(1.0))
        followed = _expanded(-by_unknown / by_increment)
        change = ufl.conditional(ufl.gt(self.active, 0.5), followed, 0.0)
        return ufl.derivative(residual, self.unknown, direction) + ufl.derivative(residual, self.increment, change)

    def restricted(
        self, restrict: Callable[[Expr], Expr], function: Callable[[fem.Function[Any]], fem.Function[Any]]
    ) -> "InternalVariables":
        """Return the same variables on another mesh.

        Parameters
        ----------
        restrict
            Maps an expression to the other mesh.
        function
            Maps a function; the same function always to the same one, the one that ``restrict`` puts in its place.

        Collective: as ``function`` is.
        """
        return InternalVariables(
            function(self.unknown),
            function(self.increment),
            restrict(self.equation),
            restrict(self.start),
            {function(field): restrict(update) for field, update in self.history.items()},
            self.tolerance,
            self.name,
            function(self.active),
        )

    # --- the local equation -------------------------------------------------------------------------------------------

    def update(self) -> None:
        """Solve the local equation in the cells that this rank owns, for the present state and history.

        The result depends on these alone, not on earlier iterates. Ghost cells keep old values until `commit`:
        integrals over cells do not read them.

        Raises
        ------
        ConvergenceError
            On the rank where the state is not finite or the local Newton method does not converge.

        Collective: no.
        """
        trial = self._trial.eval(self.mesh, self._cells)
        value, start = trial[..., 0], trial[..., 1]
        if not np.all(np.isfinite(value)):
            raise ConvergenceError(f"{self.name}: the trial state is not finite: take a smaller step")
        active = (value > self.tolerance) & (start > _SMALLEST_INCREMENT)
        self.active.x.array[self._dofs] = active
        self.increment.x.array[self._dofs] = np.where(active, start, 0.0)
        working = np.flatnonzero(active.any(axis=1)).astype(np.int32)
        lower = np.zeros((working.size, active.shape[1]))
        upper = np.full_like(lower, np.inf)
        for _ in range(_MAX_ITERATIONS):
            if working.size == 0:
                return
            dofs, moving = self._dofs[working], active[working]
            values = np.asarray(self._law.eval(self.mesh, working), dtype=np.float64)
            residual, slope = values[..., 0], values[..., 1]
            before = self.increment.x.array[dofs]
            after = _newton_step(before, residual, slope, lower, upper)
            self.increment.x.array[dofs] = np.where(moving, after, 0.0)
            done = np.all(~moving | (np.abs(residual) <= _LOCAL_ACCURACY * self.tolerance), axis=1)
            working, lower, upper = working[~done], lower[~done], upper[~done]
        raise ConvergenceError(
            f"{self.name}: the local equation was not solved in {_MAX_ITERATIONS} iterations in {working.size} cells: "
            "take a smaller step, or check that it falls with the increment"
        )

    # --- the history --------------------------------------------------------------------------------------------------

    def commit(self) -> None:
        """Let the step end here: the history takes its new values, the increment is zero again. Collective: yes."""
        values = self._updates.eval(self.mesh, self._cells).reshape(*self._dofs.shape, self._width)
        column = 0
        for field in self.history:
            size = field.function_space.dofmap.index_map_bs
            dofs = field.function_space.dofmap.list[: self._cells.size]
            field.x.array.reshape(-1, size)[dofs] = values[..., column : column + size]
            field.x.scatter_forward()
            column += size
        self._forget_increment()

    def reset(self) -> None:
        """Return to the virgin material: history, increment and active points are zero. Collective: no."""
        for field in self.history:
            field.x.array[:] = 0.0
        self._forget_increment()

    def state(self) -> dict[str, Array]:
        """Return copies of the history by name, the values that this rank owns, shape (owned,). Collective: no."""
        return {field.name: forms.owned_values(field).copy() for field in self.history}

    def set_state(self, state: Mapping[str, Array]) -> None:
        """Set the history from what `state` returned. Collective: yes.

        Raises
        ------
        InputError
            If a field is missing or has another shape.
        """
        for field in self.history:
            owned = forms.owned_size(field.function_space)
            if field.name not in state or np.shape(state[field.name]) != (owned,):
                given = np.shape(state[field.name]) if field.name in state else "absent"
                raise InputError(f"{self.name}: history {field.name!r} is {given}: give an array of shape ({owned},)")
            forms.set_function(field, state[field.name])
        self._forget_increment()

    def _forget_increment(self) -> None:
        self.increment.x.array[:] = 0.0
        self.active.x.array[:] = 0.0


def _expanded(expression: Expr) -> Expr:
    return expand_derivatives(apply_algebra_lowering(expression))


def _components(expression: Expr) -> list[Expr]:
    return [expression] if expression.ufl_shape == () else [expression[i] for i in range(expression.ufl_shape[0])]


def _newton_step(before: Array, residual: Array, slope: Array, lower: Array, upper: Array) -> Array:
    """Return Newton's next point of a falling function, or the middle of the bracket, which is narrowed in place."""
    above = residual > 0.0  # the root is to the right
    np.copyto(lower, before, where=above)
    np.copyto(upper, before, where=~above)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        after = before - residual / slope
        middle = np.where(np.isfinite(upper), 0.5 * (lower + upper), 2.0 * lower)
        # A step of rounding size ends on the bracket itself; NaN and infinity fail both comparisons.
        inside = (after >= lower) & (after <= upper) & (slope < 0.0)
    return np.where(inside, after, middle)
