"""Function spaces one degree higher: where estimators look for what the discrete solution cannot show."""

from collections.abc import Sequence

from mpi4py import MPI  # noqa: F401  MPI must be loaded before basix and DOLFINx

import basix.ufl
import dolfinx
import numpy as np
from ufl.finiteelement import AbstractFiniteElement

from pdeopt.fem import forms
from pdeopt.report import InputError

Space = dolfinx.fem.FunctionSpace
Function = dolfinx.fem.Function


def enriched_space(space: Space) -> Space:
    """Return the space of the same family with every degree raised by one; it contains ``space``.

    Parameters
    ----------
    space
        Lagrange, discontinuous Lagrange or other elements of basix; scalar, blocked or mixed.

    Raises
    ------
    InputError
        If an element has no next degree (quadrature elements, bubbles).

    Collective: yes.
    """
    return dolfinx.fem.functionspace(space.mesh, _raise_degree(space.ufl_element()))


def _raise_degree(element: AbstractFiniteElement) -> basix.ufl._ElementBase:
    if isinstance(element, basix.ufl._MixedElement):
        return basix.ufl.mixed_element([_raise_degree(part) for part in element.sub_elements])
    if isinstance(element, basix.ufl._BlockedElement):
        return basix.ufl.blocked_element(
            _raise_degree(element.sub_elements[0]),
            shape=element.reference_value_shape,
            symmetry=element._has_symmetry or None,
        )
    if not isinstance(element, basix.ufl._BasixElement) or element.element_family is None:
        raise InputError(f"the element {element} has no next degree: estimators need Lagrange elements, or other "
                         "elements of basix with a degree")  # fmt: skip
    return basix.ufl.element(
        element.element_family,
        element.cell_type,
        element.degree + 1,
        lagrange_variant=element.lagrange_variant or basix.LagrangeVariant.unset,
        dpc_variant=element.dpc_variant or basix.DPCVariant.unset,
        discontinuous=element.discontinuous,
        dtype=np.float64,
    )


def _is_mixed(space: Space) -> bool:
    return isinstance(space.ufl_element(), basix.ufl._MixedElement)


def interpolate(function: Function, space: Space) -> Function:
    """Interpolate into another space on the same mesh, mixed spaces part by part. Collective: yes."""
    result = dolfinx.fem.Function(space, name=function.name)
    if _is_mixed(space):
        for index in range(space.num_sub_spaces):
            result.sub(index).interpolate(function.sub(index))
    else:
        result.interpolate(function)
    result.x.scatter_forward()
    return result


def interpolation_remainder(function: Function, space: Space) -> Function:
    """Return a function of an enriched space less its interpolant in the space below. Collective: yes."""
    remainder = interpolate(interpolate(function, space), function.function_space)
    remainder.x.array[:] = function.x.array - remainder.x.array
    return remainder


def enriched_dirichlet(
    bcs: Sequence[dolfinx.fem.DirichletBC], space: Space, values: Function
) -> list[dolfinx.fem.DirichletBC]:
    """Carry Dirichlet conditions over to an enriched space.

    A degree of freedom of the enriched space on the boundary is fixed where a function of ``space`` that is fixed at
    all its Dirichlet degrees of freedom is fixed as a whole: on the facets of the conditions.

    Parameters
    ----------
    bcs
        Conditions on ``space`` or its parts, which must be (discontinuous) Lagrange there.
    space
        The space of the conditions.
    values
        Function of the enriched space with the values to impose; it must outlive the conditions.

    Raises
    ------
    InputError
        If a condition is on a space without nodal values.

    Collective: yes.
    """
    if not bcs:
        return []
    mesh = space.mesh
    fixed = dolfinx.fem.Function(space)
    fixed.x.array[forms.owned_dirichlet_dofs(bcs)] = 1.0
    fixed.x.scatter_forward()
    _require_nodal(space, fixed)
    fixed_above = interpolate(fixed, values.function_space)
    facet_dimension = mesh.topology.dim - 1
    mesh.topology.create_connectivity(facet_dimension, mesh.topology.dim)
    facets = dolfinx.mesh.exterior_facet_indices(mesh.topology)
    conditions = []
    for part, value in _components(values.function_space, values):
        if value is None:
            dofs = dolfinx.fem.locate_dofs_topological(part, facet_dimension, facets)
            dofs = dofs[np.abs(fixed_above.x.array[dofs] - 1.0) < 1e-9]
            conditions.append(dolfinx.fem.dirichletbc(values, dofs))
            continue
        both = dolfinx.fem.locate_dofs_topological((part, value.function_space), facet_dimension, facets)
        kept = np.abs(fixed_above.x.array[both[0]] - 1.0) < 1e-9
        conditions.append(dolfinx.fem.dirichletbc(value, [dofs[kept] for dofs in both], part))  # type: ignore[arg-type]
    return conditions


def _components(space: Space, values: Function) -> list[tuple[Space, Function | None]]:
    """List the scalar parts of a space with the values there; a scalar space is its own part, without values."""
    if not space.num_sub_spaces:
        return [(space, None)]
    parts: list[tuple[Space, Function | None]] = []
    for index in range(space.num_sub_spaces):
        part, part_values = space.sub(index), values.sub(index)
        deeper = _components(part, part_values)
        parts += [(part, part_values.collapse())] if deeper[0][1] is None else deeper
    return parts


def _require_nodal(space: Space, fixed: Function) -> None:
    """Refuse conditions on parts that have no nodal values. Collective: yes."""
    if _is_mixed(space):
        for index in range(space.num_sub_spaces):
            _require_nodal(space.sub(index).collapse()[0], fixed.sub(index).collapse())
        return
    family = space.ufl_element().family_name
    any_fixed = space.mesh.comm.allreduce(float(np.abs(fixed.x.array).sum())) > 0.0
    if any_fixed and family not in {"P", "Q", "DP", "DQ"}:
        raise InputError(f"a Dirichlet condition is on an element of family '{family}': goal-oriented estimators carry "
                         "over conditions on Lagrange elements only")  # fmt: skip
