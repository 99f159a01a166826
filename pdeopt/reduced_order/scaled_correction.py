"""Corrections of a reduced answer by the full residual, without a factorisation of the Jacobian."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import ufl
from dolfinx import fem

from pdeopt.fem import forms
from pdeopt.parallel import collective_errors
from pdeopt.reduced_order.certificate import fixed_dofs
from pdeopt.reduced_order.inner_product import Array, InnerProduct
from pdeopt.report import InputError

# Of the residual that may be left of a linear model of it, or the step is not taken.
_LEAST_REDUCTION = 0.5


class ScaledCorrection:
    """Improve a field by steps -D^-1 M^-1 F(u), with M factorised beforehand and D = diag(F') / diag(M).

    Where the Jacobian is M with another coefficient, M D has nearly the same columns (Concus and Golub, SIAM J. Numer.
    Anal. 10 (1973), who scale rows and columns, of a symmetric operator): for -div(k(u) grad u) the scaled factor is
    the inverse of the Jacobian up to the discretisation. Steps need no more than a Jacobian's assembly for all of them,
    a residual and a solve with M each; every one is tried with the Jacobian first, and not taken where it would leave
    more than half of the residual.

    It suits smooth fields such as reduced answers, whose error is small: a Newton step that follows starts from an
    error that is smaller by orders.

    Parameters
    ----------
    residual, u, bcs
        The equation F(u; v) = 0, and its Dirichlet conditions, which fields must fulfil.
    inner_product
        M, with the same Dirichlet conditions; the one of the model's basis and certificate is factorised already.
    steps
        How many.
    jacobian
        F' as a bilinear form, found by differentiation if None.

    Raises
    ------
    InputError
        If there is no step, or the inner product has other Dirichlet conditions.

    Collective: yes.
    """

    def __init__(
        self,
        residual: ufl.Form,
        u: fem.Function[Any],
        inner_product: InnerProduct,
        bcs: Sequence[fem.DirichletBC[Any]] = (),
        steps: int = 1,
        jacobian: ufl.Form | None = None,
    ) -> None:
        with collective_errors(inner_product.comm):
            if steps < 1:
                raise InputError(f"steps is {steps!r}: take one at least")
        self._fixed = fixed_dofs(inner_product, bcs)
        residual = forms.fix_quadrature_degree(residual)
        self._residual = forms.compile_form(residual)
        self._form = forms.compile_form(ufl.derivative(residual, u) if jacobian is None else jacobian)
        self._u, self._product, self._bcs, self._steps = u, inner_product, tuple(bcs), steps
        self._matrix = forms.assemble_matrix(self._form, self._bcs)
        diagonal = inner_product.matrix.getDiagonal()
        self._scale = 1.0 / diagonal.array
        diagonal.destroy()

    def __call__(self, values: Array) -> Array:
        """Return the improved owned values at the present parameters, shape (owned,). Collective: yes."""
        product, values = self._product, np.array(values)
        forms.set_function(self._u, values)
        forms.reassemble_matrix(self._matrix, self._form, self._bcs)
        diagonal = self._matrix.getDiagonal()
        inverse = 1.0 / (diagonal.array * self._scale)
        diagonal.destroy()
        for step in range(self._steps):
            if step > 0:
                forms.set_function(self._u, values)
            residual = forms.assemble_vector(self._residual)
            residual.array[self._fixed] = 0.0
            norm = residual.norm()
            if not 0.0 < norm < np.inf:
                residual.destroy()
                break
            correction = product.riesz(residual)
            correction.array[:] *= inverse
            correction.scale(-1.0)
            self._matrix.multAdd(correction, residual, residual)
            change, left = np.array(correction.array_r), residual.norm()
            correction.destroy()
            residual.destroy()
            if not left <= _LEAST_REDUCTION * norm:
                break
            values += change
        return values

    def destroy(self) -> None:
        """Free the matrix. Collective: yes."""
        self._matrix.destroy()
