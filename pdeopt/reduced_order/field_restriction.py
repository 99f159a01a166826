"""Fields on the cells of a reduced mesh, copied without communication."""

from typing import Any

import dolfinx
import numpy as np
import numpy.typing as npt
from dolfinx import fem

from pdeopt.reduced_order.inner_product import Array
from pdeopt.reduced_order.integrands import cell_degrees_of_freedom, discontinuous_element, interpolate
from pdeopt.report import InputError


class FieldRestriction:
    """The map from fields of a space to fields of the same elements on a mesh of some of its cells.

    Corresponding cells have the same vertices in the same order, so that degrees of freedom correspond one by one,
    cell by cell. Elements whose degrees of freedom depend on the orientation of edges and faces are the exception,
    since it follows the global numbering of vertices, which differs: they go through discontinuous fields.

    Parameters
    ----------
    space
        The space on the whole mesh.
    submesh
        The mesh of some cells.
    cells
        The local cell of the whole mesh for each cell of ``submesh``.

    Attributes
    ----------
    subspace
        The space on ``submesh``.

    Raises
    ------
    InputError
        If the space is a component of another one.

    Collective: yes.
    """

    def __init__(self, space: fem.FunctionSpace[Any], submesh: dolfinx.mesh.Mesh, cells: npt.NDArray[np.int32]) -> None:
        if len(space.component()) > 0:
            raise InputError("a function of a sub-space has no space of its own: use ufl.split, or collapse the space")
        element = space.ufl_element()
        self.space = space
        self.subspace: fem.FunctionSpace[Any] = fem.functionspace(submesh, element)
        spaces = [self.space, self.subspace]
        self._oriented = _depends_on_orientation(element)
        if self._oriented:
            broken = discontinuous_element(element)
            spaces = [fem.functionspace(space.mesh, broken), fem.functionspace(submesh, broken)]
            self._between = [fem.Function(whole) for whole in spaces]
        self._source = cell_degrees_of_freedom(spaces[0])[cells].ravel()
        self._target = cell_degrees_of_freedom(spaces[1]).ravel()

    @property
    def size(self) -> int:
        """Local degrees of freedom on the submesh, ghosts included."""
        index_map = self.subspace.dofmap.index_map
        return int((index_map.size_local + index_map.num_ghosts) * self.subspace.dofmap.index_map_bs)

    def values(self, function: fem.Function[Any]) -> Array:
        """Return the local values on the submesh of a function whose ghosts are up to date. Collective: no."""
        local = np.zeros(self.size)
        if self._oriented:
            whole, part = self._between
            interpolate(whole, function)
            part.x.array[self._target] = whole.x.array[self._source]
            result = fem.Function(self.subspace)
            interpolate(result, part)
            local[:] = result.x.array
        else:
            local[self._target] = function.x.array[self._source]
        return local

    def columns(self, fields: Array) -> Array:
        """Return the local values on the submesh, shape (local, n), of fields with ghosts. Collective: no."""
        local = np.zeros((self.size, fields.shape[1]))
        if not self._oriented:
            local[self._target] = fields[self._source]
            return local
        function = fem.Function(self.space)
        for index in range(fields.shape[1]):
            function.x.array[:] = fields[:, index]
            local[:, index] = self.values(function)
        return local


def _depends_on_orientation(element: Any) -> bool:
    if element.is_mixed:
        return any(_depends_on_orientation(part) for part in element.sub_elements)
    if element.is_quadrature:
        return False
    part = element.sub_elements[0] if element.block_shape else element
    return not part.basix_element.dof_transformations_are_identity
