"""What a provider of guesses may return, brought into the solver's vector: functions of any mesh, vectors, arrays."""

from collections.abc import Sequence

from mpi4py import MPI
from petsc4py import PETSc

import dolfinx
import numpy as np

from pdeopt.fem import forms
from pdeopt.fem._guess_norm import constrains, owned_fields
from pdeopt.parallel import raise_everywhere
from pdeopt.report import InputError

_PADDING = 0.1  # of a coarse cell: points outside a coarse mesh of a curved domain take the nearest cell


class Loader:
    """Writes guesses of all kinds into vectors of the solver's layout.

    Parameters
    ----------
    spaces
        Function space of each block of unknowns; empty if unknown, and then vectors and arrays alone are taken.
    bcs
        Dirichlet conditions, imposed on every guess.
    """

    def __init__(
        self,
        spaces: Sequence[dolfinx.fem.FunctionSpace] = (),
        bcs: Sequence[dolfinx.fem.DirichletBC] = (),
    ) -> None:
        self.spaces, self.bcs = list(spaces), list(bcs)
        self._functions = [dolfinx.fem.Function(space) for space in spaces]
        self._sizes = [forms.owned_size(space) for space in spaces]
        self._interpolation: dict[tuple[int, int], _Interpolation] = {}

    def load(self, value: object, out: PETSc.Vec) -> None:
        """Write a guess into a vector, Dirichlet values imposed. Collective: yes.

        Raises
        ------
        InputError
            On every rank, if the value does not fit on one of them.
        """
        comm: MPI.Comm = out.comm.tompi4py()
        error: Exception | None = None
        functions: list[dolfinx.fem.Function] = []
        try:
            functions = self._functions_of(value)
            if not functions:
                _copy_values(value, out)
        except Exception as caught:
            error = caught
        raise_everywhere(comm, error)
        if len(set(comm.allgather(len(functions)))) > 1:
            raise InputError("the guess is a function on some ranks and none on others: return one kind on all ranks")
        if functions:
            for index, function in enumerate(functions):
                self._take(index, function)
            self._store(out)
        self.impose(out)

    def impose(self, vector: PETSc.Vec) -> None:
        """Set the Dirichlet values of a vector. Collective: yes."""
        if not self.bcs or not self.spaces:
            return
        for function, values in zip(self._functions, owned_fields(vector, self._sizes), strict=True):
            function.x.array[: values.size] = values
            for bc in self.bcs:
                if constrains(bc, function.function_space):
                    bc.set(function.x.array)
        self._store(vector)

    def _store(self, out: PETSc.Vec) -> None:
        """Copy the owned values of the functions into a plain or nested vector. Collective: no."""
        values = [forms.owned_values(function) for function in self._functions]
        if out.getType() == PETSc.Vec.Type.NEST:
            for part, block in zip(out.getNestSubVecs(), values, strict=True):
                part.array[:] = block
        else:
            out.array[:] = np.concatenate(values)

    def _functions_of(self, value: object) -> list[dolfinx.fem.Function]:
        """Return the functions that a guess consists of, checked against the spaces; empty for other kinds."""
        given = list(value) if isinstance(value, list | tuple) else [value]
        functions = [function for function in given if isinstance(function, dolfinx.fem.Function)]
        if not functions or len(functions) < len(given):
            return []
        if len(functions) != len(self.spaces):
            raise InputError(
                f"the guess has {len(functions)} functions for {len(self.spaces)} blocks of unknowns: return one "
                "function per block, or an array of the owned degrees of freedom"
            )
        for function, space in zip(functions, self.spaces, strict=True):
            if function.function_space.value_shape != space.value_shape:
                raise InputError(
                    f"the guess has values of shape {function.function_space.value_shape}, the unknown "
                    f"{space.value_shape}: return a function of such values"
                )
        return functions

    def _take(self, index: int, source: dolfinx.fem.Function) -> None:
        target = self._functions[index]
        space, given = target.function_space, source.function_space
        if given.mesh is space.mesh and given.element == space.element:
            target.x.array[:] = source.x.array
            return
        key = (index, id(given))
        if key not in self._interpolation:
            self._interpolation[key] = _Interpolation(space, given)
        self._interpolation[key].apply(source, target)


def loader_for(
    unknowns: dolfinx.fem.Function | Sequence[dolfinx.fem.Function], bcs: Sequence[dolfinx.fem.DirichletBC]
) -> Loader:
    """Return the loader for the unknowns of a DOLFINx problem. Collective: yes."""
    functions = [unknowns] if isinstance(unknowns, dolfinx.fem.Function) else unknowns
    return Loader([function.function_space for function in functions], bcs)


def _copy_values(value: object, out: PETSc.Vec) -> None:
    """Copy a vector or an array of the owned degrees of freedom. Collective: no."""
    owned = out.getLocalSize()
    if isinstance(value, PETSc.Vec):
        if value.getLocalSize() != owned:
            raise InputError(
                f"the guess has {value.getLocalSize()} owned entries, the unknown {owned}: match its layout"
            )
        value.copy(out)
        return
    try:
        values = np.asarray(value, dtype=PETSc.ScalarType)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"the guess is a {type(value).__name__}: return a Function, a PETSc Vec or an array of the owned degrees "
            "of freedom"
        ) from error
    if values.shape != (owned,):
        raise InputError(f"the guess has shape {values.shape}, the owned degrees of freedom ({owned},): match them")
    out.array[:] = values


class _Interpolation:
    """Interpolation between two spaces on any two meshes, field by field, its search for points done once."""

    def __init__(self, target: dolfinx.fem.FunctionSpace, source: dolfinx.fem.FunctionSpace) -> None:
        self.source = source  # also keeps its id, by which it is found, from being taken by another
        self._from, self._to = dolfinx.fem.Function(source), dolfinx.fem.Function(target)
        self._fields: list[_Interpolation] = []
        self._maps: tuple[np.ndarray, np.ndarray] | None = None
        topology = target.mesh.topology
        cells = topology.index_map(topology.dim)
        self._cells = np.arange(cells.size_local + cells.num_ghosts, dtype=np.int32)
        if target.num_sub_spaces > 0 and target.dofmap.index_map_bs == 1:
            for i in range(target.num_sub_spaces):
                (fine, fine_map), (coarse, coarse_map) = target.sub(i).collapse(), source.sub(i).collapse()
                field = _Interpolation(fine, coarse)
                field._maps = (np.asarray(fine_map), np.asarray(coarse_map))
                self._fields.append(field)
            return
        dimension = source.mesh.topology.dim
        count = source.mesh.topology.index_map(dimension).size_local
        widest = float(np.max(source.mesh.h(dimension, np.arange(count, dtype=np.int32)), initial=0.0))
        padding = _PADDING * source.mesh.comm.allreduce(widest, op=MPI.MAX)
        self._data = dolfinx.fem.create_interpolation_data(target, source, self._cells, padding=padding)

    def apply(self, source: dolfinx.fem.Function, target: dolfinx.fem.Function) -> None:
        """Set the target to the interpolant of the source. Collective: yes."""
        if not self._fields:
            target.interpolate_nonmatching(source, self._cells, self._data)
            target.x.scatter_forward()
            return
        for field in self._fields:
            assert field._maps is not None
            fine, coarse = field._maps
            field._from.x.array[:] = source.x.array[coarse]
            field.apply(field._from, field._to)
            target.x.array[fine] = field._to.x.array
