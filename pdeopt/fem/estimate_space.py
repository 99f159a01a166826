"""The space in whose dual a residual lives: one function space, a mixed one, or several blocks, under one interface."""

from collections.abc import Sequence
from typing import Any

from petsc4py import PETSc

import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import fem
from ufl.core.expr import Expr

from pdeopt.fem import forms
from pdeopt.report import InputError

Space = fem.FunctionSpace[Any] | Sequence[fem.FunctionSpace[Any]]
LinearForm = ufl.Form | Sequence[ufl.Form]


class DualSpace:
    """Test functions that vanish where Dirichlet conditions hold, and the PETSc objects over them.

    Parameters
    ----------
    space
        A function space, mixed or not; or a sequence of spaces, whose unknowns are the blocks of one vector in
        DOLFINx's layout (each rank holds its part of every block in turn).
    bcs
        Dirichlet conditions of the state; here only the places matter, the values are taken as zero.

    Attributes
    ----------
    blocked
        Whether the unknowns are blocks of several spaces.
    constrained
        Local indices of the owned degrees of freedom that the conditions fix, shape (fixed,).
    """

    def __init__(self, space: Space, bcs: Sequence[fem.DirichletBC[Any]]) -> None:
        self.blocked = not isinstance(space, fem.FunctionSpace)
        self.spaces: tuple[fem.FunctionSpace[Any], ...] = tuple(space) if self.blocked else (space,)  # type: ignore[assignment,arg-type]
        self.mesh = self.spaces[0].mesh
        self.comm = self.mesh.comm
        self.bcs = list(bcs)
        sizes = [forms.owned_size(block) for block in self.spaces]
        self.offsets = np.concatenate([[0], np.cumsum(sizes)])
        self.constrained = self._constrained_rows()
        self._ufl_space = ufl.MixedFunctionSpace(*self.spaces) if self.blocked else self.spaces[0]

    def _constrained_rows(self) -> npt.NDArray[np.int64]:
        rows: list[npt.NDArray[np.int64]] = []
        for bc in self.bcs:
            indices, first_ghost = bc.dof_indices()
            block = [i for i, space in enumerate(self.spaces) if space._cpp_object.contains(bc.function_space)]
            if not block:
                raise InputError(
                    "a Dirichlet condition belongs to another function space than the norm: build it there"
                )
            rows.append(self.offsets[block[0]] + np.asarray(indices[:first_ghost], dtype=np.int64))
        return np.unique(np.concatenate(rows)) if rows else np.empty(0, dtype=np.int64)

    @property
    def fields(self) -> int:
        """Number of blocks or of sub-spaces of a mixed element."""
        if self.blocked:
            return len(self.spaces)
        # A vector-valued element has sub-spaces, too, but all in one block of the dof map.
        space = self.spaces[0]
        return space.num_sub_spaces if space.num_sub_spaces and space.dofmap.index_map_bs == 1 else 1

    def trials(self) -> tuple[Expr, ...]:
        """Return the trial function of every field."""
        if self.fields == 1:
            return (ufl.TrialFunction(self.spaces[0]),)
        return tuple(ufl.TrialFunctions(self._ufl_space))

    def tests(self) -> tuple[Expr, ...]:
        """Return the test function of every field."""
        if self.fields == 1:
            return (ufl.TestFunction(self.spaces[0]),)
        return tuple(ufl.TestFunctions(self._ufl_space))

    def compile_linear(self, form: LinearForm) -> Any:
        """Compile a linear form, or the list of the blocks of one. Collective: yes."""
        blocks: Any = ufl.extract_blocks(form) if isinstance(form, ufl.Form) and self.blocked else form
        count = 0 if isinstance(blocks, ufl.Form) else len(tuple(blocks))
        if count != (len(self.spaces) if self.blocked else 0):
            raise InputError(f"the residual must be {len(self.spaces)} linear forms, one for each block of the norm")
        return forms.compile_form(blocks)

    def compile_bilinear(self, form: ufl.Form) -> Any:
        """Compile a bilinear form. Collective: yes."""
        return forms.compile_form(ufl.extract_blocks(form) if self.blocked else form)

    def matrix(self, compiled: Any) -> PETSc.Mat:
        """Assemble a compiled bilinear form, rows and columns of the conditions replaced by the identity.

        Collective: yes.
        """
        return forms.assemble_matrix(compiled, self.bcs)

    def covector(self, compiled: Any) -> PETSc.Vec:
        """Assemble a compiled linear form. Collective: yes."""
        return forms.assemble_vector(compiled)

    def free_values(self, covector: PETSc.Vec) -> npt.NDArray[np.float64]:
        """Return a copy of the owned entries, zero on constrained rows, shape (owned,).

        Raises
        ------
        InputError
            If the vector's owned size is not that of the space: every rank's own verdict.

        Collective: no.
        """
        if covector.getType() == "nest":
            values = np.concatenate([part.array_r for part in covector.getNestSubVecs()])
        else:
            values = covector.array_r.copy()
        if values.size != self.offsets[-1]:
            raise InputError(
                f"the residual has {values.size} owned entries on this rank, but the space of the norm has "
                f"{self.offsets[-1]}: assemble it with test functions of that space"
            )
        values[self.constrained] = 0.0
        return np.asarray(values, dtype=np.float64)

    def field_rows(self, field: int) -> npt.NDArray[np.int64]:
        """Return the sorted local indices of the owned degrees of freedom of one field, shape (owned of field,)."""
        if self.blocked:
            return np.arange(self.offsets[field], self.offsets[field + 1])
        if self.fields == 1:
            return np.arange(self.offsets[-1])
        _, parents = self.spaces[0].sub(field).collapse()
        rows = np.sort(np.asarray(parents, dtype=np.int64))
        return np.asarray(rows[rows < self.offsets[-1]])

    def create_functions(self, name: str) -> tuple[fem.Function[Any], ...]:
        """Return one function for each block, zero. Collective: yes."""
        functions = tuple(fem.Function(space) for space in self.spaces)
        for function in functions:
            function.name = name
        return functions

    def load(self, functions: Sequence[fem.Function[Any]], values: npt.NDArray[np.float64]) -> None:
        """Copy owned entries, shape (owned,), into functions. Collective: yes (updates ghosts)."""
        for block, function in enumerate(functions):
            forms.set_function(function, values[self.offsets[block] : self.offsets[block + 1]])

    def split(self, functions: Sequence[fem.Function[Any]]) -> tuple[Expr, ...]:
        """Return the fields of functions of this space as UFL expressions."""
        return tuple(functions) if self.blocked or self.fields == 1 else tuple(ufl.split(functions[0]))


def rigid_body_modes(space: fem.FunctionSpace[Any]) -> PETSc.NullSpace:
    """Return translations and rotations of a blocked Lagrange space as PETSc's near-nullspace. Collective: yes."""
    dimension = space.mesh.geometry.dim
    index_map = space.dofmap.index_map
    coordinates = PETSc.Vec().create(comm=space.mesh.comm)
    coordinates.setSizes((dimension * index_map.size_local, dimension * index_map.size_global))
    coordinates.setBlockSize(dimension)
    coordinates.setUp()
    coordinates.array[:] = space.tabulate_dof_coordinates()[: index_map.size_local, :dimension].ravel()
    modes = PETSc.NullSpace().createRigidBody(coordinates)
    coordinates.destroy()
    return modes


def local_form(form: ufl.Form, constants: fem.FunctionSpace[Any]) -> ufl.Form:
    """Return the linear form over piecewise constants whose entries are a functional's shares of the cells.

    An integral over an interior facet is shared equally by its two cells.
    """
    indicator = ufl.TestFunction(constants)
    integrals = []
    for integral in form.integrals():
        weight = ufl.avg(indicator) if integral.integral_type() == "interior_facet" else indicator
        integrals.append(integral.reconstruct(integrand=integral.integrand() * weight))
    return ufl.Form(integrals)
