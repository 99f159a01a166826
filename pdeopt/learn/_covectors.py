"""Linear forms as arrays of what this rank owns."""

import dolfinx
import numpy as np
import numpy.typing as npt

from pdeopt.fem import forms
from pdeopt.learn._inputs import Input

Array = npt.NDArray[np.float64]


def restricted(form: dolfinx.fem.Form, one: Input) -> Array:
    """Assemble the derivative of something by an input's function into one by its values. Collective: yes."""
    vector = forms.assemble_vector(form)
    try:
        return one.restrict(vector)
    finally:
        vector.destroy()


def owned(form: dolfinx.fem.Form, size: int) -> Array:
    """Assemble a linear form, and return the first entries of this rank. Collective: yes."""
    vector = forms.assemble_vector(form)
    try:
        return np.array(vector.array_r[:size])
    finally:
        vector.destroy()
