"""The inner product in which snapshots are compared, modes are orthonormal and errors are measured."""

from collections.abc import Callable, Sequence
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

_BLOCK = 40  # columns of a Gram matrix at a time


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
        self.space, self.bcs = space, tuple(bcs)
        self.comm: MPI.Comm = space.mesh.comm
        trial, test = ufl.TrialFunction(space), ufl.TestFunction(space)
        self.matrix = forms.assemble_matrix(forms.compile_form(integrand(trial, test)), self.bcs)
        self.matrix.setOption(PETSc.Mat.Option.SPD, True)
        self.owned = forms.owned_size(space)
        self._solver: PETSc.KSP | None = None

    def apply(self, columns: Array) -> Array:
        """Return M times fields, shape (owned, n). Collective: yes."""
        return self._product(columns)

    def gram(self, left: Array, right: Array | None = None) -> Array:
        """Return the products of all pairs of fields, shape (left, right), the same on all ranks. Collective: yes."""
        if right is None:
            return self._own_gram(left)
        local = np.ascontiguousarray(left.T @ self._product(right))
        total = np.empty_like(local)
        self.comm.Allreduce(local, total)
        return total

    def norms(self, columns: Array) -> Array:
        """Return the norm of each field, shape (n,). Collective: yes."""
        local = np.einsum("ij,ij->j", columns, self._product(columns))
        total = np.empty_like(local)
        self.comm.Allreduce(local, total)
        return np.sqrt(np.maximum(total, 0.0))

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
        self.matrix.destroy()
        if self._solver is not None:
            self._solver.destroy()

    def _own_gram(self, columns: Array) -> Array:
        """Return X' M X by blocks of columns, those on and above the diagonal: half of the work, and little memory."""
        count = columns.shape[1]
        local = np.zeros((count, count))
        for start in range(0, count, _BLOCK):
            end = min(start + _BLOCK, count)
            local[:end, start:end] = columns[:, :end].T @ self._product(columns[:, start:end])
        total = np.empty_like(local)
        self.comm.Allreduce(local, total)
        upper = np.triu(total)
        return upper + np.triu(total, 1).T

    def _product(self, columns: Array) -> Array:
        dense = self._dense(columns)
        product = self.matrix.matMult(dense)
        values = np.array(product.getDenseArray(readonly=True))
        product.destroy()
        dense.destroy()
        return values

    def _dense(self, columns: Array) -> PETSc.Mat:
        dense = PETSc.Mat().createDense(
            ((self.owned, PETSc.DETERMINE), (PETSc.DECIDE, columns.shape[1])),
            array=np.asfortranarray(columns, dtype=PETSc.ScalarType),
            comm=self.comm,
        )
        dense.assemble()
        return dense
