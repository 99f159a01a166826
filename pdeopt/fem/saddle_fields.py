"""The two fields of a mixed problem: where their unknowns lie in a vector, and what multigrid must know."""

from collections.abc import Sequence

from petsc4py import PETSc

import dolfinx
import numpy as np
import numpy.typing as npt

from pdeopt import parallel
from pdeopt.fem import forms
from pdeopt.report import InputError

type Spaces = dolfinx.fem.FunctionSpace | Sequence[dolfinx.fem.FunctionSpace]
"""A space on a mixed element of two fields, or the two spaces of a blocked problem."""

Array = npt.NDArray[np.float64]


class Fields:
    """Index sets and local positions of the two fields of a mixed problem.

    Parameters
    ----------
    spaces
        A space on a mixed element, as ``functionspace(mesh, mixed_element([...]))``, or the spaces (V, Q) of a form
        in blocks.

    Attributes
    ----------
    first, second
        The fields' spaces, those of a mixed element collapsed.
    rows
        This rank's positions of each field in a vector over both, ascending, shape (owned,) each. DOLFINx keeps the
        components of a node together there, in their order, so the blocks that these rows cut out have its block size.
    order
        Where the k-th degree of freedom of a collapsed space stands among the field's rows, shape (owned,) each.

    Raises
    ------
    InputError
        If there are not two fields.

    Collective: yes.
    """

    def __init__(self, spaces: Spaces) -> None:
        self.rows: list[npt.NDArray[np.int32]] = []
        self.order: list[npt.NDArray[np.int64]] = []
        if isinstance(spaces, dolfinx.fem.FunctionSpace):
            if spaces.num_sub_spaces != 2 or spaces.dofmap.index_map_bs != 1:
                raise InputError(
                    f"a space of {spaces.ufl_element()} is not mixed from two fields: give a space on "
                    "basix.ufl.mixed_element([first, second]), or the two spaces of a form in blocks"
                )
            owned = spaces.dofmap.index_map.size_local
            parts = [spaces.sub(i).collapse() for i in range(2)]
            self.first, self.second = (space for space, _ in parts)
            for space, parents in parts:
                positions = np.ravel(parents)[: forms.owned_size(space)].astype(np.int32)
                sorted_rows = np.sort(positions)
                if positions.size and sorted_rows[-1] >= owned:
                    raise RuntimeError("DOLFINx gave a subspace other owners than its parent")
                self.rows.append(sorted_rows)
                self.order.append(np.searchsorted(sorted_rows, positions))
        else:
            given = tuple(spaces)
            if len(given) != 2:
                raise InputError(f"{len(given)} spaces were given: a problem of two fields has two")
            self.first, self.second = given
            start = 0
            for space in given:
                size = forms.owned_size(space)
                self.rows.append(np.arange(start, start + size, dtype=np.int32))
                self.order.append(np.arange(size))
                start += size
        self.mesh = self.first.mesh
        self.comm = self.mesh.comm
        self.local_size = self.rows[0].size + self.rows[1].size

    def check_layout(self, matrix: PETSc.Mat) -> None:
        """Raise `InputError` on all ranks unless a matrix has the rows of both fields. Collective: yes."""
        with parallel.collective_errors(self.comm):
            if matrix.getLocalSize()[0] != self.local_size:
                raise InputError(
                    f"the matrix has {matrix.getLocalSize()[0]} rows on this rank and the two fields have "
                    f"{self.local_size} unknowns: give the spaces that the form was assembled on"
                )

    def index_sets(self, matrix: PETSc.Mat) -> tuple[PETSc.IS, PETSc.IS]:
        """Return the global rows of each field in a matrix over both. Collective: yes."""
        start = matrix.getOwnershipRange()[0]
        sets = []
        for space, rows in zip((self.first, self.second), self.rows, strict=True):
            indices = PETSc.IS().createGeneral((rows + start).astype(PETSc.IntType), comm=self.comm)
            indices.setBlockSize(space.dofmap.index_map_bs)
            sets.append(indices)
        return sets[0], sets[1]

    def split(self, vector: PETSc.Vec, parts: Sequence[PETSc.Vec]) -> None:
        """Copy both fields out of a vector. Collective: no."""
        if vector.getType() == PETSc.Vec.Type.NEST:
            for source, part in zip(vector.getNestSubVecs(), parts, strict=True):
                part.array[:] = source.array_r
            return
        values = vector.array_r
        for rows, part in zip(self.rows, parts, strict=True):
            part.array[:] = values[rows]

    def join(self, parts: Sequence[PETSc.Vec], vector: PETSc.Vec) -> None:
        """Copy both fields into their places in a vector. Collective: no."""
        if vector.getType() == PETSc.Vec.Type.NEST:
            for target, part in zip(vector.getNestSubVecs(), parts, strict=True):
                target.array[:] = part.array_r
            return
        values = vector.array_w
        for rows, part in zip(self.rows, parts, strict=True):
            values[rows] = part.array_r

    def reorder(self, field: int, values: Array) -> Array:
        """Return values in the order of the collapsed space as values in the order of the rows, shape (owned,)."""
        ordered = np.empty_like(values)
        ordered[self.order[field]] = values
        return ordered


def near_nullspace_arrays(space: dolfinx.fem.FunctionSpace, rotations: bool) -> list[Array]:
    """Return the owned values of translations and, on request, infinitesimal rotations, shape (owned,) each.

    They are interpolated, so that the space may be of any element whose degrees of freedom DOLFINx can interpolate.

    Parameters
    ----------
    space
        A vector-valued space.
    rotations
        Three modes in the plane and six in space, the kernel of the strain, instead of the translations alone.

    Collective: yes.
    """
    dimension = space.mesh.geometry.dim

    def interpolate(values: npt.NDArray[np.float64]) -> Array:
        """Interpolate the field with components matrix x + shift, ``values`` being (matrix, shift)."""
        mode = dolfinx.fem.Function(space)
        mode.interpolate(lambda x: values[:, :dimension] @ x[:dimension] + values[:, dimension:])
        return forms.owned_values(mode).copy()

    modes = []
    for axis in range(dimension):
        translation = np.zeros((dimension, dimension + 1))
        translation[axis, dimension] = 1.0
        modes.append(interpolate(translation))
    if rotations:
        for first in range(dimension):
            for second in range(first + 1, dimension):
                rotation = np.zeros((dimension, dimension + 1))
                rotation[first, second], rotation[second, first] = -1.0, 1.0
                modes.append(interpolate(rotation))
    return modes


def nullspace_of(matrix: PETSc.Mat, arrays: Sequence[Array]) -> PETSc.NullSpace:
    """Return the space spanned by arrays of owned values, orthonormalised. Collective: yes."""
    vectors: list[PETSc.Vec] = []
    for values in arrays:
        vector = matrix.createVecRight()
        vector.array[:] = values
        for previous in vectors:
            vector.axpy(-vector.dot(previous), previous)
        vector.normalize()
        vectors.append(vector)
    nullspace = PETSc.NullSpace().create(vectors=vectors, comm=matrix.comm)
    for vector in vectors:
        vector.destroy()
    return nullspace
