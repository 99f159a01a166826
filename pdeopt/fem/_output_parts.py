"""Fields as files for ParaView hold them: scalars, vectors and tensors on Lagrange elements."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

from dolfinx import fem

from pdeopt.report import InputError


@dataclasses.dataclass(frozen=True)
class LagrangeField:
    """A field on a Lagrange space that follows a function of the user's.

    Parameters
    ----------
    name
        Name under which it is listed.
    function
        Its values.
    refresh
        Brings the values up to date with the user's function. Collective: yes.
    """

    name: str
    function: fem.Function[Any]
    refresh: Callable[[], None]

    def on_degree(self, degree: int, *, continuous: bool) -> "LagrangeField":
        """Return the field in the Lagrange space of a degree; itself if it lives there. Collective: yes."""
        result = lagrange_interpolant(self.function, degree, continuous=continuous)
        if result is self.function:
            return self

        def refresh() -> None:
            self.refresh()
            result.interpolate(self.function)
            result.x.scatter_forward()

        return LagrangeField(self.name, result, refresh)


def lagrange_fields(name: str, function: fem.Function[Any]) -> Iterator[LagrangeField]:
    """Yield the scalar, vector and tensor fields that a function is made of, each on a Lagrange space.

    Other elements are interpolated to the Lagrange space that contains them: continuous if they are H1-conforming,
    discontinuous otherwise.

    Parameters
    ----------
    name
        Name of the field; parts of a mixed field are named ``name_0``, ``name_1``, ...
    function
        Any field with nodal values.

    Raises
    ------
    InputError
        If the element cannot be interpolated, as quadrature elements.

    Collective: yes.
    """
    yield from _parts(LagrangeField(name, function, function.x.scatter_forward))


def plain_fields(name: str, function: fem.Function[Any]) -> Iterator[tuple[str, fem.Function[Any]]]:
    """Yield names and functions of `lagrange_fields`, for what looks at them once. Collective: yes."""
    for field in lagrange_fields(name, function):
        yield field.name, field.function


def _parts(field: LagrangeField) -> Iterator[LagrangeField]:
    function = field.function
    if function.function_space.component():
        field = _collapsed(field)
        function = field.function
    space = function.function_space
    element, shape = space.ufl_element(), tuple(space.value_shape)
    storable = len(shape) <= 2 and all(extent <= 3 for extent in shape)
    # The block size differs from the number of components in mixed elements and in symmetric tensors.
    if space.num_sub_spaces and not (storable and space.dofmap.index_map_bs == math.prod(shape)):
        for index in range(space.num_sub_spaces):
            yield from _parts(LagrangeField(f"{field.name}_{index}", function.sub(index), field.refresh))
        return
    if element.family_name == "quadrature":
        raise InputError(
            f"the field '{field.name}' has values at quadrature points only: project it to a space with nodes"
        )
    field.refresh()
    degree = element.degree if is_nodal(function) else element.embedded_superdegree
    yield field.on_degree(degree, continuous=element.basix_sobolev_space.name == "H1")


def _collapsed(field: LagrangeField) -> LagrangeField:
    """Return the view of a part of a mixed function as a function of its own. Collective: yes."""
    view = field.function
    space, positions = view.function_space.collapse()
    part = fem.Function(space, dtype=view.x.array.dtype)

    def refresh() -> None:
        field.refresh()
        part.x.array[:] = view.x.array[positions]

    return LagrangeField(field.name, part, refresh)


def is_nodal(function: fem.Function[Any]) -> bool:
    """Tell whether a function is (possibly discontinuous) Lagrange. Collective: no."""
    return function.function_space.ufl_element().family_name in {"P", "Q", "DP", "DQ"}


def is_cellwise_constant(function: fem.Function[Any]) -> bool:
    """Tell whether a function has one value per cell. Collective: no."""
    return is_nodal(function) and function.function_space.ufl_element().degree == 0


def lagrange_interpolant(function: fem.Function[Any], degree: int, *, continuous: bool) -> fem.Function[Any]:
    """Return a function in the Lagrange space of a degree; the function itself if it lives there.

    Collective: yes.
    """
    space = function.function_space
    family = "P" if continuous and degree > 0 else "DG"
    wanted = fem.functionspace(space.mesh, (family, degree, tuple(space.value_shape)))
    if wanted.ufl_element() == space.ufl_element():
        return function
    result = fem.Function(wanted, dtype=function.x.array.dtype)
    result.interpolate(function)
    result.x.scatter_forward()
    return result
