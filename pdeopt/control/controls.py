"""The controls of a problem as coordinates that an optimiser can move: fields and real-valued vectors."""

from collections.abc import Sequence
from typing import Protocol

from mpi4py import MPI
from petsc4py import PETSc

import dolfinx
import numpy as np
import numpy.typing as npt
import ufl

from pdeopt.fem import forms

Array = npt.NDArray[np.float64]


class Control(Protocol):
    """A control: a function that stands in the forms, and the coordinates that determine it.

    Attributes
    ----------
    function
        The coefficient of the forms.
    size
        Number of coordinates that this rank owns.
    """

    function: dolfinx.fem.Function
    size: int

    def coordinates(self) -> Array:
        """Return the present coordinates, shape (size,)."""

    def set_coordinates(self, values: Array) -> None:
        """Set the control from coordinates of shape (size,). Collective: yes."""

    def expand(self, values: Array, function: dolfinx.fem.Function) -> None:
        """Set a function of the control's space from coordinates of shape (size,). Collective: yes."""

    def restrict_columns(self, matrix: PETSc.Mat) -> PETSc.Mat:
        """Turn the columns of a matrix from degrees of freedom into coordinates. Collective: yes."""

    def restrict_both(self, matrix: PETSc.Mat) -> PETSc.Mat:
        """Turn rows and columns of a square matrix into coordinates. Collective: yes."""

    def restrict(self, covector: PETSc.Vec) -> Array:
        """Turn a derivative by degrees of freedom into one by coordinates, shape (size,). Collective: yes."""


class FieldControl:
    """A finite element function; its coordinates are its owned degrees of freedom."""

    def __init__(self, function: dolfinx.fem.Function) -> None:
        self.function = function
        self.size = forms.owned_size(function.function_space)

    def coordinates(self) -> Array:
        """Return the owned values."""
        return forms.owned_values(self.function).copy()

    def set_coordinates(self, values: Array) -> None:
        """Set the owned values and update the ghosts. Collective: yes."""
        self.expand(values, self.function)

    def expand(self, values: Array, function: dolfinx.fem.Function) -> None:
        """Set the owned values of a function of the control's space, and its ghosts. Collective: yes."""
        forms.set_function(function, values)

    def restrict_columns(self, matrix: PETSc.Mat) -> PETSc.Mat:
        """Return the matrix as it is: coordinates are degrees of freedom."""
        return matrix

    def restrict_both(self, matrix: PETSc.Mat) -> PETSc.Mat:
        """Return the matrix as it is: coordinates are degrees of freedom."""
        return matrix

    def restrict(self, covector: PETSc.Vec) -> Array:
        """Return the owned entries."""
        return np.array(covector.array_r[: self.size])


class RealControl:
    """A constant of the forms, a vector of k real numbers; rank 0 owns all its coordinates.

    In the forms a piecewise constant function stands for it, since UFL differentiates by functions; the prolongation
    that fills this function with the k numbers turns derivatives by it into derivatives by the numbers.
    """

    def __init__(self, constant: dolfinx.fem.Constant, mesh: dolfinx.mesh.Mesh) -> None:
        self.constant = constant
        self._comm: MPI.Comm = mesh.comm
        shape = constant.ufl_shape
        self._count = int(np.prod(shape, dtype=int)) if shape else 1
        space = dolfinx.fem.functionspace(mesh, ("DG", 0, shape) if shape else ("DG", 0))
        self.function = dolfinx.fem.Function(space)
        self.size = self._count if mesh.comm.rank == 0 else 0
        self._prolongation = self._build_prolongation(space)
        self.set_coordinates(np.asarray(constant.value, dtype=np.float64).ravel()[: self.size])

    def _build_prolongation(self, space: dolfinx.fem.FunctionSpace) -> PETSc.Mat:
        rows = forms.owned_size(space)
        first = space.dofmap.index_map.local_range[0] * space.dofmap.index_map_bs
        total = space.dofmap.index_map.size_global * space.dofmap.index_map_bs
        pointers = np.arange(rows + 1, dtype=PETSc.IntType)
        columns = ((first + np.arange(rows)) % self._count).astype(PETSc.IntType)
        matrix = PETSc.Mat().createAIJ(
            ((rows, total), (self.size, self._count)), csr=(pointers, columns, np.ones(rows)), comm=self._comm
        )
        matrix.assemble()
        return matrix

    def coordinates(self) -> Array:
        """Return the numbers on rank 0 and nothing elsewhere."""
        return np.asarray(self.constant.value, dtype=np.float64).ravel()[: self.size].copy()

    def set_coordinates(self, values: Array) -> None:
        """Hand rank 0's numbers to the constant and its stand-in on all ranks. Collective: yes."""
        self.expand(values, self.function)
        numbers = np.asarray(self._comm.bcast(values if self._comm.rank == 0 else None))
        self.constant.value = numbers.reshape(self.constant.value.shape)

    def expand(self, values: Array, function: dolfinx.fem.Function) -> None:
        """Fill a piecewise constant function with rank 0's numbers. Collective: yes."""
        numbers = np.asarray(self._comm.bcast(values if self._comm.rank == 0 else None))
        function.x.array[:] = np.resize(numbers, function.x.array.size)

    def restrict_columns(self, matrix: PETSc.Mat) -> PETSc.Mat:
        """Return the matrix times the prolongation. Collective: yes."""
        return matrix.matMult(self._prolongation)

    def restrict_both(self, matrix: PETSc.Mat) -> PETSc.Mat:
        """Return the Galerkin product with the prolongation. Collective: yes."""
        return matrix.ptap(self._prolongation)

    def restrict(self, covector: PETSc.Vec) -> Array:
        """Return the sums over all cells on rank 0. Collective: yes."""
        result = self._prolongation.createVecRight()
        plain = self._prolongation.createVecLeft()
        plain.array[:] = covector.array_r[: plain.getLocalSize()]
        self._prolongation.multTranspose(plain, result)
        return np.array(result.array_r)


def default_inner_product(form: ufl.Form, function: dolfinx.fem.Function) -> ufl.Form:
    """Return the L2 inner product over exactly those cells and facets where a control appears in a form.

    So a boundary control is measured on its boundary, and degrees of freedom that act nowhere have a zero row.
    """
    trial, test = ufl.TrialFunction(function.function_space), ufl.TestFunction(function.function_space)
    measures = {}
    for integral in form.integrals():
        if function in ufl.algorithms.extract_coefficients(integral.integrand()):
            key = (integral.integral_type(), integral.subdomain_id(), str(integral.ufl_domain()))
            restriction = "+" if integral.integral_type() == "interior_facet" else None
            product = ufl.inner(trial(restriction), test(restriction)) if restriction else ufl.inner(trial, test)
            measures[key] = integral.reconstruct(integrand=product, metadata={})
    everywhere = [key for key in measures if key[0] == "cell" and key[1] == "everywhere"]
    chosen: Sequence[tuple[object, ...]] = everywhere or list(measures)
    return ufl.Form([measures[key] for key in chosen])  # type: ignore[index]
