"""The inner product in which snapshots are compared, modes are orthonormal and errors are measured."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import fem
from ufl.core.expr import Expr

from pdeopt.fem import forms
from pdeopt.report import InputError

type Array = npt.NDArray[np.float64]
type Integrand = Callable[[Expr, Expr], ufl.Form]

_BLOCK = 20  # columns multiplied at a time


def _l2(u: Expr, v: Expr) -> ufl.Form:
    return ufl.inner(u, v) * ufl.dx


def _h1_seminorm(u: Expr, v: Expr) -> ufl.Form:
    return ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx


def _h1(u: Expr, v: Expr) -> ufl.Form:
    return _l2(u, v) + _h1_seminorm(u, v)


_NAMED: dict[str, Integrand] = {"l2": _l2, "h1": _h1, "h1_seminorm": _h1_seminorm}


class InnerProduct:
    """(u, v)_M of the fields of one space, distributed as the space is.

    Fields are handed over as columns: an array of shape (owned, n), the degrees of freedom that this rank owns (block
    size included) of n fields.

    Parameters
    ----------
    space
        The function space.
    form
        "h1" (default), "l2", "h1_seminorm", or a function of two fields that returns the bilinear form, symmetric and
        positive on the fields that satisfy ``bcs``.
    bcs
        Homogeneous Dirichlet conditions of the fields. Their rows of the matrix are those of the identity, so that the
        Riesz map sets them to zero where the residual is zero there.

    Raises
    ------
    InputError
        If the name is unknown.

    Attributes
    ----------
    matrix
        The Gram matrix M of the finite-element basis.

    Collective: yes.
    """

    def __init__(
        self, space: fem.FunctionSpace[Any], form: Integrand | str = "h1", bcs: Sequence[fem.DirichletBC[Any]] = ()
    ) -> None:
        if isinstance(form, str) and form not in _NAMED:
            raise InputError(f"inner product {form!r} is unknown: choose {', '.join(_NAMED)} or give a function")
        integrand = _NAMED[form] if isinstance(form, str) else form
        self.space, self.bcs, self._integrand = space, tuple(bcs), integrand
        self.comm: MPI.Comm = space.mesh.comm
        trial, test = ufl.TrialFunction(space), ufl.TestFunction(space)
        self.matrix = forms.assemble_matrix(forms.compile_form(integrand(trial, test)), self.bcs)
        self.matrix.setOption(PETSc.Mat.Option.SPD, True)
        self.owned = forms.owned_size(space)
        self._solver: PETSc.KSP | None = None
        self._square: tuple[fem.Function[Any], fem.Form] | None = None
        self._image: PETSc.Mat | None = None  # M times some fields

    def apply(self, columns: Array) -> Array:
        """Return M times fields, shape (owned, n). Collective: yes."""
        images = np.empty(columns.shape, order="F")
        for block, image in self._images(columns):
            images[:, block] = image
        return images

    def gram(self, left: Array, right: Array | None = None) -> Array:
        """Return the products of all pairs of fields, shape (left, right), the same on all ranks. Collective: yes."""
        if right is None:
            # The blocks on and above the diagonal say all: half of the work.
            local = np.zeros((left.shape[1], left.shape[1]))
            for block, image in self._images(left):
                local[: block.stop, block] = left[:, : block.stop].T @ image
            upper = np.triu(self._sum(local))
            return upper + np.triu(upper, 1).T
        local = np.empty((left.shape[1], right.shape[1]))
        for block, image in self._images(right):
            local[:, block] = left.T @ image
        return self._sum(local)

    def norms(self, columns: Array) -> Array:
        """Return the norm of each field, shape (n,). Collective: yes."""
        local = np.empty(columns.shape[1])
        for block, image in self._images(columns):
            local[block] = np.einsum("ij,ij->j", columns[:, block], image)
        return np.sqrt(np.maximum(self._sum(local), 0.0))

    def norm_with_boundary(self, values: Array) -> float:
        """Return the norm of one field, shape (owned,), that need not be zero where ``bcs`` hold.

        The matrix has lost what couples Dirichlet values to the others, and would give another number. Collective: yes.
        """
        if self._square is None:
            field: fem.Function[Any] = fem.Function(self.space)
            self._square = field, forms.compile_form(self._integrand(field, field))
        forms.set_function(self._square[0], values)
        square = forms.assemble_scalar(self._square[1])
        return float(np.sqrt(max(square, 0.0))) if np.isfinite(square) else square

    @property
    def solver(self) -> PETSc.KSP:
        """The factorised matrix M, made when it is first used. Collective: yes."""
        if self._solver is None:
            self._solver = PETSc.KSP().create(self.comm)
            self._solver.setOperators(self.matrix)
            self._solver.setType("preonly")
            self._solver.getPC().setType("cholesky")
            self._solver.getPC().setFactorSolverType("mumps")
            self._solver.setErrorIfNotConverged(True)
        return self._solver

    def riesz(self, residual: PETSc.Vec) -> PETSc.Vec:
        """Return the field M^-1 r of a residual, which the caller destroys. Collective: yes."""
        field = residual.duplicate()
        self.solver.solve(residual, field)
        return field

    def riesz_columns(self, residuals: Array) -> Array:
        """Return the fields M^-1 r of many residuals at once, shape (owned, n). Collective: yes."""
        right = self._dense(residuals)
        fields = right.duplicate()
        self.solver.matSolve(right, fields)
        values = np.array(fields.getDenseArray(readonly=True))
        right.destroy()
        fields.destroy()
        return values

    def dual_norm(self, residual: PETSc.Vec) -> float:
        """Return sup_v r(v) / |v|_M over the fields, sqrt(r' M^-1 r). Collective: yes."""
        field = self.riesz(residual)
        square = float(residual.dot(field))
        field.destroy()
        return float(np.sqrt(max(square, 0.0))) if np.isfinite(square) else square

    def destroy(self) -> None:
        """Free the matrix and its factor. Collective: yes."""
        for handle in (self.matrix, self._solver, self._image):
            if handle is not None:
                handle.destroy()

    def _sum(self, local: Array) -> Array:
        total = np.empty_like(local)
        self.comm.Allreduce(local, total)
        return total

    def _images(self, columns: Array) -> Iterator[tuple[slice, Array]]:
        """Yield M times some columns at a time, in memory that the next ones overwrite.

        That memory is kept: to touch the pages of a new one would cost as much as the product. So all blocks are of one
        width, and the last one begins inside of the one before.

        Collective: yes.
        """
        count = columns.shape[1]
        width = min(count, _BLOCK)
        for start in range(0, count, _BLOCK):
            block = slice(min(start, count - width), min(start + width, count))
            fields = self._dense(columns[:, block])
            if self._image is not None and self._image.getSize()[1] != width:
                self._image.destroy()
                self._image = None
            self._image = self.matrix.matMult(fields, self._image)
            yield block, self._image.getDenseArray(readonly=True)
            fields.destroy()

    def _dense(self, columns: Array) -> PETSc.Mat:
        dense = PETSc.Mat().createDense(
            ((self.owned, PETSc.DETERMINE), (PETSc.DECIDE, columns.shape[1])),
            array=np.asfortranarray(columns, dtype=PETSc.ScalarType),
            comm=self.comm,
        )
        dense.assemble()
        return dense
