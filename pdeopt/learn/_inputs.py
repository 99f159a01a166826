"""What a layer takes: functions, real numbers and boundary data, as arrays of owned values."""

from collections.abc import Sequence
from typing import Protocol

from mpi4py import MPI
from petsc4py import PETSc

import dolfinx
import numpy as np
import numpy.typing as npt

from pdeopt.fem import forms
from pdeopt.report import InputError

Array = npt.NDArray[np.float64]


class Input(Protocol):
    """An argument of a layer.

    Attributes
    ----------
    function
        The coefficient of the forms that stands for it.
    size
        Entries of its array on this rank.
    replicated
        Whether the array is equal on all ranks, and not a part.
    label
        Its name in messages.
    """

    function: dolfinx.fem.Function
    size: int
    replicated: bool
    label: str

    def values(self) -> Array:
        """Return a copy of the present values, shape (size,). Collective: no."""

    def set(self, values: Array) -> None:
        """Set the values, shape (size,). Collective: yes."""

    def expand(self, values: Array, function: dolfinx.fem.Function) -> None:
        """Set a function of the same space. Collective: yes."""

    def restrict(self, covector: PETSc.Vec) -> Array:
        """Turn a derivative by degrees of freedom into one by the values, shape (size,). Collective: yes."""


class FieldInput:
    """A finite element function of any space: its owned degrees of freedom."""

    replicated = False

    def __init__(self, function: dolfinx.fem.Function, label: str) -> None:
        self.function, self.label = function, label
        self.size = forms.owned_size(function.function_space)

    def values(self) -> Array:
        """Return a copy of the owned values. Collective: no."""
        return forms.owned_values(self.function).copy()

    def set(self, values: Array) -> None:
        """Set the owned values, and the ghosts. Collective: yes."""
        forms.set_function(self.function, values)

    def expand(self, values: Array, function: dolfinx.fem.Function) -> None:
        """Set the owned values of a function, and its ghosts. Collective: yes."""
        forms.set_function(function, values)

    def restrict(self, covector: PETSc.Vec) -> Array:
        """Return the owned entries. Collective: no."""
        return np.array(covector.array_r[: self.size])


class RealInput:
    """A constant of the forms: k real numbers, equal on all ranks.

    In the forms a piecewise constant function stands for it, since UFL differentiates by functions.
    """

    replicated = True

    def __init__(self, constant: dolfinx.fem.Constant, mesh: dolfinx.mesh.Mesh, label: str) -> None:
        self.constant, self.label, self._comm = constant, label, mesh.comm
        shape = constant.ufl_shape
        self.size = int(np.prod(shape, dtype=int)) if shape else 1
        self.function = dolfinx.fem.Function(dolfinx.fem.functionspace(mesh, ("DG", 0, shape) if shape else ("DG", 0)))
        self._owned = forms.owned_size(self.function.function_space)
        self.set(self.values())

    def values(self) -> Array:
        """Return a copy of the numbers. Collective: no."""
        return np.array(self.constant.value, dtype=np.float64).ravel()

    def set(self, values: Array) -> None:
        """Set the constant and its stand-in. Collective: no."""
        self.constant.value = values.reshape(self.constant.value.shape)
        self.expand(values, self.function)

    def expand(self, values: Array, function: dolfinx.fem.Function) -> None:
        """Fill a piecewise constant function. Collective: no."""
        function.x.array.reshape(-1, self.size)[:] = values

    def restrict(self, covector: PETSc.Vec) -> Array:
        """Return the sums over all cells, on all ranks. Collective: yes."""
        return self.sum(np.asarray(covector.array_r[: self._owned]).reshape(-1, self.size).sum(axis=0))

    def sum(self, part: Array) -> Array:
        """Add up what the ranks have, shape (size,). Collective: yes."""
        total = np.empty(self.size)
        self._comm.Allreduce(np.ascontiguousarray(part), total, op=MPI.SUM)
        return total


class BoundaryValues:
    """Which degrees of freedom of the state a layer's inputs prescribe, as values of Dirichlet conditions.

    Parameters
    ----------
    bcs
        The conditions. Where several fix the same degree of freedom the last one counts, as in DOLFINx.
    inputs
        The layer's inputs.
    space
        The state's space.

    Collective: no.
    """

    def __init__(
        self, bcs: Sequence[dolfinx.fem.DirichletBC], inputs: Sequence[Input], space: dolfinx.fem.FunctionSpace
    ) -> None:
        self._bcs = list(bcs)
        self.dofs = forms.owned_dirichlet_dofs(bcs)
        index_map = space.dofmap.index_map
        size = (index_map.size_local + index_map.num_ghosts) * space.dofmap.index_map_bs
        # For each input: degrees of freedom of the state, and the entry of the input that each takes its value from.
        self._links = [self._find(one, size, forms.owned_size(space)) for one in inputs]

    def _find(self, one: Input, size: int, owned: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Mark the entries of an input by their numbers and see where the conditions put these."""
        source = one.constant.value if isinstance(one, RealInput) else one.function.x.array
        before = np.array(source)
        marked = np.full(size, -1.0)
        found = np.full(size, -1, dtype=np.int64)
        for offset in (0.0, 0.5):
            target = source.reshape(-1)
            target[:] = np.arange(target.size) + offset
            marked[:] = -1.0
            for condition in self._bcs:
                condition.set(marked)
            hit = marked - offset
            # A value that comes from elsewhere is no number of ours both times.
            numbers = np.where((hit >= 0) & (hit == np.round(hit)), hit, -1.0).astype(np.int64)
            found = numbers if offset == 0.0 else np.where(found == numbers, found, -1)
        source.reshape(-1)[:] = before.reshape(-1)
        dofs = np.flatnonzero(found[:owned] >= 0)
        return dofs, found[dofs]

    def prescribes(self, which: int) -> bool:
        """Whether an input is the value of a condition on this rank. Collective: no."""
        return bool(self._links[which][0].size)

    def impose(self, values: Array) -> None:
        """Write the prescribed values into an array of the state, shape (owned and ghosts,). Collective: no."""
        for condition in self._bcs:
            condition.set(values)

    def clear(self, values: Array) -> None:
        """Write zeros where the state is prescribed, shape (owned,). Collective: no."""
        values[self.dofs] = 0.0

    def prescribe(self, which: int, values: Array, state: Array) -> None:
        """Add an input's values, ghosts included, where it prescribes the state, shape (owned,). Collective: no."""
        dofs, entries = self._links[which]
        state[dofs] += values[entries]

    def collect(self, which: int, one: Input, covector: Array, part: Array) -> Array:
        """Add to an input's gradient what comes through the prescribed values.

        Parameters
        ----------
        which, one
            The input.
        covector
            Derivative by the state's degrees of freedom, shape (owned,).
        part
            The other part of the gradient, shape (size,).

        Collective: yes.
        """
        dofs, entries = self._links[which]
        if isinstance(one, RealInput):
            return part + one.sum(np.bincount(entries, covector[dofs], minlength=one.size))
        # A value on the boundary between two ranks may belong to another rank than the degree of freedom it sets.
        gathered = dolfinx.la.vector(one.function.x.index_map, one.function.x.block_size)
        np.add.at(gathered.array, entries, covector[dofs])
        gathered.scatter_reverse(dolfinx.la.InsertMode.add)
        return part + np.asarray(gathered.array[: one.size])


def make_inputs(
    controls: Sequence[dolfinx.fem.Function | dolfinx.fem.Constant], mesh: dolfinx.mesh.Mesh
) -> tuple[Input, ...]:
    """Return the inputs of a layer.

    Raises
    ------
    InputError
        If a control is neither a function nor a constant, or named twice.

    Collective: yes.
    """
    result: list[Input] = []
    for index, control in enumerate(controls):
        if any(control is other for other in controls[:index]):
            raise InputError(f"control {index} is named twice: list each control once")
        if isinstance(control, dolfinx.fem.Constant):
            result.append(RealInput(control, mesh, f"control {index}"))
        elif isinstance(control, dolfinx.fem.Function):
            result.append(FieldInput(control, f"control {index} ({control.name})"))
        else:
            raise InputError(
                f"control {index} is a {type(control).__name__}: give a dolfinx.fem.Function or a dolfinx.fem.Constant"
            )
    return tuple(result)
