"""Check of a tangent: the remainders of Taylor's theorem fall as the square of the step."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import fem

from pdeopt.fem import forms

type Array = npt.NDArray[np.float64]


def tangent_orders(
    residual: ufl.Form,
    jacobian: ufl.Form,
    unknown: fem.Function[Any],
    direction: fem.Function[Any],
    update: Callable[[], None] = lambda: None,
    halvings: int = 3,
) -> Array:
    """Return log2 of the ratios of |F(u + h v) - F(u) - h J v| at h = 1, 1/2, ...: about 2 if J is the derivative.

    About 1 tells that it is not. Laws of plasticity are smooth only as long as no point begins or ends to flow: choose
    a direction v so small that none does, and so large that the remainders are not rounding.

    Parameters
    ----------
    residual, jacobian
        F and J.
    unknown
        u, which is left as it was.
    direction
        v.
    update
        What has to follow a change of u, such as `InternalVariables.update`.
    halvings
        How many ratios are taken.

    Returns
    -------
    orders
        Shape (halvings,).

    Collective: yes.
    """
    comm = unknown.function_space.mesh.comm
    start, compiled = unknown.x.array.copy(), forms.compile_form(residual)

    def assembled(step: float) -> Array:
        unknown.x.array[:] = start + step * direction.x.array
        update()
        vector = forms.assemble_vector(compiled)
        values = np.array(vector.array_r)
        vector.destroy()
        return values

    before = assembled(0.0)
    matrix = forms.assemble_matrix(forms.compile_form(jacobian))
    product = matrix.createVecLeft()
    matrix.mult(direction.x.petsc_vec, product)
    change = np.array(product.array_r)
    product.destroy()
    matrix.destroy()
    steps = 0.5 ** np.arange(halvings + 1)
    squares = np.array([np.sum((assembled(step) - before - step * change) ** 2) for step in steps])
    assembled(0.0)
    total = np.empty_like(squares)
    comm.Allreduce(squares, total)
    return 0.5 * np.log2(total[:-1] / total[1:])
