"""What each cell contributes to a reduced residual: the integrands that an empirical cubature has to integrate."""

from collections.abc import Iterable, Iterator
from typing import Any

import basix.ufl
import numpy as np
import ufl
from dolfinx import fem
from ufl.algorithms import expand_derivatives, extract_arguments

from pdeopt.fem import forms
from pdeopt.reduced_order.basis import Basis
from pdeopt.reduced_order.inner_product import Array
from pdeopt.report import InputError


def discontinuous_element(element: Any) -> Any:
    """Return the element whose degrees of freedom belong to one cell each. Collective: no.

    Its space contains that of the given element, and an integral over a cell tested with its functions is the
    element's vector before it is summed over cells.
    """
    if element.is_mixed:
        return basix.ufl.mixed_element([discontinuous_element(part) for part in element.sub_elements])
    if element.block_shape:
        part = discontinuous_element(element.sub_elements[0])
        return basix.ufl.blocked_element(part, element.block_shape, symmetry=element.is_symmetric or None)
    if element.discontinuous or element.is_quadrature:
        return element
    if element.is_custom_element:
        return _discontinuous_custom_element(element)
    return basix.ufl.element(
        element.element_family, element.cell_type, element.degree, element.lagrange_variant, element.dpc_variant,
        discontinuous=True, dtype=element.dtype,
    )  # fmt: skip


def _discontinuous_custom_element(element: Any) -> Any:
    """Return a custom element with all points and functionals moved from the cell's boundary to its interior."""
    points = [x for entities in element._x for x in entities]
    functionals = [m for entities in element._M for m in entities]
    _, values, _, derivatives = functionals[0].shape
    inner = np.zeros((sum(m.shape[0] for m in functionals), values, sum(m.shape[2] for m in functionals), derivatives))
    row = column = 0
    for part in functionals:
        inner[row : row + part.shape[0], :, column : column + part.shape[2]] = part
        row, column = row + part.shape[0], column + part.shape[2]
    dimension = points[0].shape[1]
    no_points, no_functionals = np.empty((0, points[0].shape[1])), np.empty((0, values, 0, derivatives))
    x = [[no_points for _ in entities] for entities in element._x]
    moments = [[no_functionals for _ in entities] for entities in element._M]
    x[dimension], moments[dimension] = [np.concatenate(points)], [inner]
    return basix.ufl.custom_element(
        element.cell_type, list(element.reference_value_shape), element._wcoeffs, x, moments,
        element.interpolation_nderivs, element.map_type, element.basix_sobolev_space, True,
        element.embedded_subdegree, element.embedded_superdegree, element.polyset_type, element.dtype,
    )  # fmt: skip


def cell_degrees_of_freedom(space: fem.FunctionSpace[Any]) -> np.ndarray:
    """Return the local degrees of freedom of each local cell, block size included, shape (cells, n). Collective: no."""
    block = space.dofmap.index_map_bs
    nodes = space.dofmap.list
    return (nodes[:, :, None] * block + np.arange(block)).reshape(len(nodes), nodes.shape[1] * block)


def interpolate(target: fem.Function[Any], source: fem.Function[Any]) -> None:
    """Set a function to another one on the same mesh, component by component in mixed spaces. Collective: no."""
    if not target.function_space.ufl_element().is_mixed:
        target.interpolate(source)
        return
    for part in range(target.function_space.num_sub_spaces):
        interpolate(target.sub(part), source.sub(part))


class Integrands:
    """g(cell, i) = contribution of a cell, with its exterior facets, to F(u; phi_i), and likewise of F'(u; phi_i, u).

    One assembly with discontinuous test functions gives all element vectors, and their products with the modes on the
    cell are the integrands: the cost is that of one residual, whatever the number of modes.

    Parameters
    ----------
    residual
        F(u; v), linear in one test function v of the basis' space.
    u
        The unknown in it.
    basis
        The modes.
    jacobian
        F'(u; v, du); the derivative of F by default.

    Raises
    ------
    InputError
        If the form has no single test function in the basis' space, or integrals over interior facets.

    Collective: yes.
    """

    def __init__(
        self, residual: ufl.Form, u: fem.Function[Any], basis: Basis, jacobian: ufl.Form | None = None
    ) -> None:
        arguments = extract_arguments(residual)
        if len(arguments) != 1 or arguments[0].ufl_function_space() != basis.space:
            raise InputError(
                f"the residual has {len(arguments)} arguments, or not one in the basis' space: give the weak form "
                "F(u; v) with a test function of the space that the modes are in"
            )
        _refuse_interior_facets(residual)
        self.mesh, self.size = basis.space.mesh, basis.size
        broken = fem.functionspace(self.mesh, discontinuous_element(basis.space.ufl_element()))
        residual = forms.fix_quadrature_degree(residual)
        tangent = ufl.action(ufl.derivative(residual, u) if jacobian is None else jacobian, u)
        self._residual, self._tangent = (
            forms.compile_form(ufl.replace(expand_derivatives(form), {form.arguments()[0]: ufl.TestFunction(broken)}))
            for form in (residual, tangent)
        )
        cells = self.mesh.topology.index_map(self.mesh.topology.dim).size_local
        self._dofs = cell_degrees_of_freedom(broken)[:cells]
        self._modes = np.empty((*self._dofs.shape, basis.size))
        mode, split = fem.Function(basis.space), fem.Function(broken)
        for index in range(basis.size):
            forms.set_function(mode, basis.modes[:, index])
            interpolate(split, mode)
            self._modes[:, :, index] = split.x.array[self._dofs]

    def residual(self) -> Array:
        """Return the integrands of F at the present values of all coefficients, shape (owned cells, r).

        Collective: no.
        """
        return self._integrate(self._residual)

    def tangent(self) -> Array:
        """Return those of F'(u; phi_i, u), the linearised internal forces, shape (owned cells, r). Collective: no."""
        return self._integrate(self._tangent)

    def _integrate(self, form: fem.Form) -> Array:
        vector = fem.assemble_vector(form)
        return np.einsum("cd,cdr->cr", vector.array[self._dofs], self._modes)


def integrand_blocks(
    residual: ufl.Form,
    u: fem.Function[Any],
    basis: Basis,
    states: Iterable[Any],
    jacobian: ufl.Form | None = None,
) -> Iterator[tuple[Array, Array]]:
    """Yield the integrands of the residual and of the tangent at each state, both of shape (owned cells, r).

    Parameters
    ----------
    residual, u, basis, jacobian
        As for `Integrands`.
    states
        Anything to iterate over that sets the unknown and all other coefficients and constants of the form, ghosts
        included, before it yields; what it yields is ignored.

    Collective: yes.
    """
    integrands = Integrands(residual, u, basis, jacobian)
    for _ in states:
        yield integrands.residual(), integrands.tangent()


def _refuse_interior_facets(residual: ufl.Form) -> None:
    for integral in residual.integrals():
        if integral.integral_type() not in ("cell", "exterior_facet"):
            raise InputError(
                f"an integral of the type {integral.integral_type()} belongs to no single cell: hyper-reduction takes "
                "integrals over cells and exterior facets"
            )
