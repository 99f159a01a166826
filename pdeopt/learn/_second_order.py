"""The derivative of a layer's backward pass: second-order adjoints."""

from collections.abc import Sequence

import dolfinx
import numpy as np
import numpy.typing as npt
import ufl

from pdeopt.fem import forms
from pdeopt.learn._covectors import owned, restricted
from pdeopt.learn._equation import Equation
from pdeopt.report import InputError

Array = npt.NDArray[np.float64]


class SecondOrder:
    """Derivatives of <v, G(m, w)>, where G(m, w) = (du/dm)^T w is what the backward pass returns.

    With F(u, m) = 0, J^T p = w and J d = -F_m v: the derivative by w is d = (du/dm) v, and with J^T q = D_u K for the
    functional K = p^T (J d + F_m v), all of u, m moving, that by m is F_m^T q - D_m K (Hinze, Pinnau, Ulbrich, Ulbrich,
    Optimization with PDE Constraints (2009), section 1.6.5). Values that a Dirichlet condition prescribes move with d.

    Parameters
    ----------
    equation
        Its inputs and state have to be loaded, and its matrix has to stand, when a method is called.

    Raises
    ------
    InputError
        If a network coefficient stands in the form: its second derivatives are not formed.

    Collective: yes.
    """

    def __init__(self, equation: Equation) -> None:
        if equation.networks:
            raise InputError(
                "double backward through a layer with a network coefficient is not available, since it needs second "
                "derivatives of the network inside the form: call backward without create_graph"
            )
        self._equation = equation
        space, lagrangian = equation.space, equation.lagrangian
        self._change = dolfinx.fem.Function(space)
        self._directions = [dolfinx.fem.Function(one.function.function_space) for one in equation.inputs]
        functional = equation.differentiate(lagrangian, equation.state, self._change)
        along = ufl.Form([])
        for one, direction in zip(equation.inputs, self._directions, strict=True):
            along += equation.differentiate(lagrangian, one.function, direction)
        functional += along
        test = ufl.TestFunction(space)
        self._tangent = self._compile(ufl.derivative(functional, equation.adjoint, test))
        self._by_state = self._compile(ufl.derivative(functional, equation.state, test))
        self._by_input = [
            self._compile(ufl.derivative(functional, one.function, ufl.TestFunction(one.function.function_space)))
            for one in equation.inputs
        ]

    def _compile(self, form: ufl.Form) -> dolfinx.fem.Form | None:
        return None if forms.is_zero(form) else self._equation.compile(form)

    def tangent(self, directions: Sequence[Array], rtol: float) -> Array:
        """Return d = (du/dm) v, shape (owned,). Collective: yes."""
        equation = self._equation
        for one, function, direction in zip(equation.inputs, self._directions, directions, strict=True):
            one.expand(direction, function)
        prescribed = np.zeros(equation.size)
        for index, (one, direction) in enumerate(zip(equation.inputs, directions, strict=True)):
            values = direction if one.replicated else np.asarray(self._directions[index].x.array, dtype=np.float64)
            equation.boundary.prescribe(index, values, prescribed)
        forms.set_function(self._change, prescribed)
        right = np.zeros(equation.size) if self._tangent is None else -owned(self._tangent, equation.size)
        change = prescribed + equation.solve_linear(right, rtol)
        forms.set_function(self._change, change)
        return change

    def by_inputs(self, adjoint: Array, rtol: float) -> list[Array]:
        """Return the derivatives by the inputs; `tangent` comes before. Collective: yes."""
        equation = self._equation
        forms.set_function(equation.adjoint, adjoint)
        size = equation.size
        by_state = np.zeros(size) if self._by_state is None else owned(self._by_state, size)
        second = equation.solve_adjoint(by_state, rtol)
        explicit = [
            np.zeros(one.size) if form is None else restricted(form, one)
            for one, form in zip(equation.inputs, self._by_input, strict=True)
        ]
        implicit = equation.gradients(by_state, second, [True] * len(equation.inputs))
        return [-(part + (0.0 if other is None else other)) for part, other in zip(explicit, implicit, strict=True)]
