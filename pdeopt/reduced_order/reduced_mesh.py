"""The cells of a cubature as a mesh of their own, and weak forms rebuilt on it."""

from typing import Any

import dolfinx
import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import fem
from ufl.algorithms import expand_derivatives
from ufl.core.expr import Expr
from ufl.corealg.traversal import traverse_unique_terminals
from ufl.domain import extract_unique_domain
from ufl.geometry import GeometricQuantity

from pdeopt.fem import forms
from pdeopt.parallel import collective_errors
from pdeopt.reduced_order.cubature import Cubature, original_cells
from pdeopt.reduced_order.field_restriction import FieldRestriction
from pdeopt.report import InputError

type Subdomains = list[tuple[int, npt.NDArray[np.int32]]]


class ReducedMesh:
    """The cells of a cubature, each on the rank that owns it; a rank may have none.

    Parameters
    ----------
    mesh
        The mesh.
    cubature
        Cells and weights.

    Attributes
    ----------
    submesh
        The reduced mesh.
    cells
        The local cell of the mesh that each cell of the reduced mesh is.
    weight
        The weights, a function that is constant in each cell of the reduced mesh.

    Raises
    ------
    InputError
        If the mesh lacks a cell of the cubature.

    Collective: yes.
    """

    def __init__(self, mesh: dolfinx.mesh.Mesh, cubature: Cubature) -> None:
        self.mesh = mesh
        dimension = mesh.topology.dim
        original = original_cells(mesh)
        chosen = np.flatnonzero(np.isin(original, cubature.cells)).astype(np.int32)
        found = mesh.comm.allreduce(chosen.size)
        if found != cubature.size:
            raise InputError(f"the mesh has {found} of the cubature's {cubature.size} cells: it was chosen on another")
        self.submesh, entities, _, _ = dolfinx.mesh.create_submesh(mesh, dimension, chosen)
        count = self.submesh.topology.index_map(dimension).size_local
        self.cells: npt.NDArray[np.int32] = np.asarray(
            entities.sub_topology_to_topology(np.arange(count, dtype=np.int32), False)
        )
        # The same nodes in both meshes: the whole mesh may move.
        self._nodes = self.submesh.geometry.dofmaps[0], mesh.geometry.dofmaps[0][self.cells]
        with collective_errors(mesh.comm):
            self._check_cells()
        constants = fem.functionspace(self.submesh, ("DG", 0))
        self.weight: fem.Function[Any] = fem.Function(constants, name="cubature_weight")
        self.set_weights(cubature)
        self._restrictions: list[FieldRestriction] = []
        self._functions: dict[fem.Function[Any], fem.Function[Any]] = {}
        self._constants: dict[fem.Constant, fem.Constant] = {}
        self._states: set[fem.Function[Any]] = set()

    def set_weights(self, cubature: Cubature) -> None:
        """Take over weights; cells of the reduced mesh that are not in the cubature get none.

        Raises
        ------
        InputError
            If the cubature has cells that the reduced mesh lacks; on all ranks.

        Collective: yes.
        """
        original = original_cells(self.mesh)[self.cells]
        chosen = np.isin(original, cubature.cells)
        if self.mesh.comm.allreduce(int(chosen.sum())) != cubature.size:
            raise InputError("the cubature has cells that the reduced mesh lacks: make a reduced mesh for it")
        weights = np.zeros(self.cells.size)
        weights[chosen] = cubature.weights[np.searchsorted(cubature.cells, original[chosen])]
        self.weight.x.array[self.weight.function_space.dofmap.list[:, 0]] = weights

    def field_restriction(self, space: fem.FunctionSpace[Any]) -> FieldRestriction:
        """Return the map from fields of a space to fields on the reduced mesh. Collective: yes."""
        for restriction in self._restrictions:
            if restriction.space == space:
                return restriction
        if space.mesh != self.mesh:
            raise InputError(f"a function of {space.ufl_element()} is on another mesh than the cubature")
        self._restrictions.append(FieldRestriction(space, self.submesh, self.cells))
        return self._restrictions[-1]

    def function(self, function: fem.Function[Any]) -> fem.Function[Any]:
        """Return the function on the reduced mesh that stands for a given one. Collective: yes."""
        if function not in self._functions:
            restriction = self.field_restriction(function.function_space)
            twin: fem.Function[Any] = fem.Function(restriction.subspace, name=function.name)
            self._functions[function] = twin
            twin.x.array[:] = restriction.values(function)
        return self._functions[function]

    def state(self, function: fem.Function[Any]) -> fem.Function[Any]:
        """Return the function that stands for a given one and lives on by itself: `update` leaves it alone.

        Collective: yes.
        """
        self._states.add(function)
        return self.function(function)

    def update(self) -> None:
        """Copy the present coefficients, constants and coordinates, without communication. Collective: yes."""
        places, sources = self._nodes
        self.submesh.geometry.x[places] = self.mesh.geometry.x[sources]
        for function, twin in self._functions.items():
            if function not in self._states:
                twin.x.array[:] = self.field_restriction(function.function_space).values(function)
        for constant, copy in self._constants.items():
            copy.value = constant.value

    def restrict[Form: (ufl.Form, Expr)](self, form: Form) -> Form:
        """Return a form or an expression on the reduced mesh; a form's integrals are weighted.

        Functions, constants, arguments and geometric quantities are replaced by their like. Quadrature degrees are
        those of the whole form. Cell and exterior-facet integrals keep their subdomains; facets are those of the whole
        mesh's boundary alone.

        Raises
        ------
        InputError
            If the form has other integrals, or something on another mesh.

        Collective: yes.
        """
        if not isinstance(form, ufl.Form):
            return self._replace(expand_derivatives(form))
        form = expand_derivatives(forms.fix_quadrature_degree(form))
        integrals = list(form.integrals())
        terminals = [t for integral in integrals for t in traverse_unique_terminals(integral.integrand())]
        self._prepare(terminals)
        domains = {kind: self._domains(kind, integrals) for kind in {i.integral_type() for i in integrals}}
        return ufl.Form(
            [
                integral.reconstruct(
                    integrand=self.weight * self._replace(integral.integrand()),
                    domain=self.submesh.ufl_domain(),
                    subdomain_id=_subdomain_id(integral, integrals),
                    subdomain_data=domains[integral.integral_type()],
                )
                for integral in integrals
            ]
        )

    def _replace[Expression: Expr](self, expression: Expression) -> Expression:
        terminals = list(traverse_unique_terminals(expression))
        self._prepare(terminals)
        pairs = ((terminal, self._counterpart(terminal)) for terminal in terminals)
        return ufl.replace(expression, {terminal: other for terminal, other in pairs if other is not terminal})

    def _prepare(self, terminals: list[Expr]) -> None:
        """Create functions and constants in the order of the given ones, in which compiled forms number them."""
        for function in sorted((t for t in terminals if isinstance(t, fem.Function)), key=lambda f: f.count()):
            self.function(function)
        for constant in sorted((t for t in terminals if isinstance(t, fem.Constant)), key=lambda c: c.count()):
            if constant not in self._constants:
                self._constants[constant] = fem.Constant(self.submesh, constant.value)

    def _counterpart(self, terminal: Expr) -> Expr:
        if isinstance(terminal, fem.Function):
            return self._functions[terminal]
        if isinstance(terminal, fem.Constant):
            return self._constants[terminal]
        if isinstance(terminal, ufl.Argument):
            subspace = self.field_restriction(terminal.ufl_function_space()).subspace
            return ufl.Argument(subspace, terminal.number(), terminal.part())
        if isinstance(terminal, GeometricQuantity):
            if extract_unique_domain(terminal) != self.mesh.ufl_domain():
                raise InputError(f"{terminal} is on another mesh than the cubature")
            return type(terminal)(self.submesh.ufl_domain())
        return terminal

    def _domains(self, kind: str, integrals: list[ufl.Integral]) -> Subdomains | None:
        """Return cells or (cell, facet) pairs of the reduced mesh for each subdomain of a kind of integrals."""
        if kind not in ("cell", "exterior_facet"):
            raise InputError(f"a {kind} integral belongs to no single cell: use integrals over cells and outer facets")
        same_kind = [integral for integral in integrals if integral.integral_type() == kind]
        data = next((d for d in (i.subdomain_data() for i in same_kind) if d is not None), None)
        numbers = sorted({number for integral in same_kind for number in _numbers(integral)})
        width = 1 if kind == "cell" else 2
        place = np.full(self.mesh.topology.index_map(self.mesh.topology.dim).size_local + 1, -1, dtype=np.int32)
        place[self.cells] = np.arange(self.cells.size)
        found = [(number, self._entities(kind, data, number)) for number in numbers]
        if kind == "exterior_facet":
            found.append((_facet_id_everywhere(same_kind), self._entities(kind, None, None)))
        domains = []
        for number, flat in found:
            entities = np.array(flat, dtype=np.int32).reshape(-1, width)
            entities = entities[entities[:, 0] < place.size - 1]
            entities[:, 0] = place[entities[:, 0]]
            domains.append((number, np.ascontiguousarray(entities[entities[:, 0] >= 0]).ravel()))
        return domains or None

    def _entities(self, kind: str, data: Any, number: int | None) -> npt.NDArray[np.int32]:
        """Return the integration entities of a subdomain of the whole mesh, of all of it if there is no number."""
        if isinstance(data, list):
            return next((np.asarray(entities) for key, entities in data if key == number), np.empty(0, dtype=np.int32))
        topology, dimension = self.mesh.topology, self.mesh.topology.dim
        if kind == "cell":
            return np.asarray(data.find(number)) if data is not None else np.empty(0, dtype=np.int32)
        topology.create_connectivity(dimension - 1, dimension)
        topology.create_connectivity(dimension, dimension - 1)
        facets = dolfinx.mesh.exterior_facet_indices(topology)
        if number is not None:
            marked = data.find(number) if data is not None else np.empty(0, dtype=np.int32)
            facets = np.intersect1d(facets, marked)
        return fem.compute_integration_domains(fem.IntegralType.exterior_facet, topology, facets)

    def _check_cells(self) -> None:
        """Verify that both meshes number the vertices of a cell alike."""
        places, sources = self._nodes
        if not np.array_equal(self.submesh.geometry.x[places], self.mesh.geometry.x[sources]):
            raise InputError("the mesh and its submesh number the vertices of a cell differently: report this mesh")


def _numbers(integral: ufl.Integral) -> tuple[int, ...]:
    number = integral.subdomain_id()
    if number == "everywhere":
        return ()
    return tuple(number) if isinstance(number, tuple) else (number,)


def _facet_id_everywhere(integrals: list[ufl.Integral]) -> int:
    """Return the number under which outer facets of the whole mesh are told from those that the cells' choice made."""
    numbers = [
        number
        for integral in integrals
        if integral.integral_type() == "exterior_facet"
        for number in _numbers(integral)
    ]
    return max(numbers, default=-1) + 1


def _subdomain_id(integral: ufl.Integral, integrals: list[ufl.Integral]) -> Any:
    if integral.integral_type() == "exterior_facet" and not _numbers(integral):
        return _facet_id_everywhere(integrals)
    return integral.subdomain_id()
