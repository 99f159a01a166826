"""The dual norm of a residual that is polynomial in the state, without the mesh: expanded once, bounded quickly.

With u = u_0 + sum a_i phi_i a residual of degree three is a sum over the products of coordinates,

    F(u; mu) = F(u_0; mu) + sum a_i F'[phi_i] + sum a_i a_j F''[phi_i, phi_j] / 2 + sum a_i a_j a_k F'''[...] / 6,

each term a fixed residual whose Riesz representative is found beforehand (Veroy and Patera, Int. J. Numer. Meth. Fluids
47 (2005), for degree two). All representatives are compressed into one orthonormal basis Psi; what a term has outside
of Psi enters by the triangle inequality, so that the sum stays a bound, up to rounding.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from petsc4py import PETSc

import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import fem

from pdeopt.fem import forms
from pdeopt.reduced_order.basis import Basis
from pdeopt.reduced_order.certificate import fixed_dofs
from pdeopt.reduced_order.inner_product import Array
from pdeopt.reduced_order.newton import check_coordinates
from pdeopt.report import InputError

_DEGREE = 3
# Part of a block's largest term that is rounding error, and passes of six digits each that may come near it: in units
# such as Pa no tolerance in units of the dual norm may be within reach. What is left counts as outside.
_ROUNDING, _PASSES = 1e-12, 4
_BLOCK = 128  # representatives at once: what one solve with many right-hand sides likes


class SourceExpansion(Protocol):
    """The part of the residual that depends on the parameters, F(u_0; mu) = sum w_q(mu) F_q + a bounded rest."""

    def loads(self) -> Iterator[None]:
        """Set the parameters so that F(u_0) is F_q, one q at a turn, and put them back in the end."""

    def weights(self) -> Array:
        """Return w at the present parameters, shape (terms,)."""

    def remainder(self) -> float:
        """Return a bound of the dual norm of the rest at the present parameters; infinite where there is none."""


class ExpandedResidual:
    """An upper bound of the dual norm of the residual that costs nothing of the mesh's size.

    Parameters
    ----------
    residual
        F, polynomial of degree three at most in ``u``; its derivatives must not depend on the parameters.
    u
        The unknown in it.
    basis
        Phi and the inner product, which must have the Dirichlet conditions.
    source
        How F(u_0) depends on the parameters.
    training
        Iterated over: each turn must have set the parameters and return the coordinates that belong to them. They tell
        which products matter; the bound does not rest on them.
    bcs
        Dirichlet conditions: their rows of the residual are left out.
    lifting
        u_0 at its present values; zero if None.
    tolerance
        How much the bound may exceed the norm at the training coordinates, about, in units of the dual norm; not less
        than the rounding errors of the terms.

    Raises
    ------
    InputError
        If the residual is not polynomial of degree three at most, there is no training, or the inner product has other
        Dirichlet conditions.

    Attributes
    ----------
    terms, kept, size
        Number of terms, of those multiplied in full, and of the representatives' modes.

    Collective: yes. The cubic terms are r (r + 1) / 2 assemblies of matrices and r (r + 1) (r + 2) / 6 Riesz solves.
    """

    def __init__(
        self,
        residual: ufl.Form,
        u: fem.Function[Any],
        basis: Basis,
        source: SourceExpansion,
        training: Iterable[Array],
        bcs: Sequence[fem.DirichletBC[Any]] = (),
        lifting: fem.Function[Any] | None = None,
        tolerance: float = 1e-6,
    ) -> None:
        self._source, self._basis = source, basis
        self._fixed = fixed_dofs(basis.inner_product, bcs)
        derivatives = _Derivatives(residual, u, basis.space)
        self._products = [
            np.array(list(itertools.combinations_with_replacement(range(basis.size), degree)), dtype=np.intp).T
            for degree in range(1, derivatives.degree + 1)
        ]
        self._shares = np.concatenate([_shares(indices) for indices in self._products])
        scales = np.zeros(0)
        for coordinates in training:
            scales = (
                np.maximum(scales, np.abs(self._factors(coordinates)))
                if scales.size
                else np.abs(self._factors(coordinates))
            )
        if not scales.size:
            raise InputError("no training coordinates were given: they tell which products matter")
        self.terms = scales.size
        self._compress(self._residuals(derivatives, u, lifting), scales, tolerance)
        derivatives.destroy()

    def __call__(self, coordinates: Array) -> float:
        """Return the bound at coordinates and the present parameters. Collective: no, but the same on all ranks."""
        factors = self._factors(check_coordinates(coordinates, self._basis.size, "coordinates"))
        inside = self._matrix @ factors[self._active]
        rest = float(np.abs(factors) @ self._outside)
        norm = math.sqrt(float(inside @ inside)) + rest + self._source.remainder()
        return norm if norm >= 0.0 else math.inf

    def _factors(self, coordinates: Array) -> Array:
        """Return what multiplies the terms, shape (terms,)."""
        products = np.concatenate([math.prod(coordinates[row] for row in indices) for indices in self._products])
        return np.concatenate([self._source.weights(), products * self._shares])

    def _residuals(
        self, derivatives: "_Derivatives", u: fem.Function[Any], lifting: fem.Function[Any] | None
    ) -> Iterator[Array]:
        """Assemble the terms in their order: owned values, shape (owned,). Collective: yes."""
        u.x.array[:] = 0.0 if lifting is None else lifting.x.array
        for _ in self._source.loads():
            vector = forms.assemble_vector(derivatives.residual)
            yield self._free(np.array(vector.array_r))
            vector.destroy()
        local, owned = self._basis.local_modes(), np.asfortranarray(self._basis.modes)
        for degree in range(1, derivatives.degree + 1):
            # All products with the same first factors are one matrix times the modes that may come last.
            for first in itertools.combinations_with_replacement(range(self._basis.size), degree - 1):
                directions = [local[:, mode] for mode in first]
                for column in derivatives.columns(directions, owned[:, first[-1] if first else 0 :]).T:
                    yield self._free(column)

    def _free(self, values: Array) -> Array:
        values[self._fixed] = 0.0
        return values

    def _compress(self, residuals: Iterator[Array], scales: Array, tolerance: float) -> None:
        """Find the modes, the terms' coordinates in them, and the norms of what they leave out. Collective: yes."""
        product = self._basis.inner_product
        least = tolerance / math.sqrt(self.terms)  # of what the modes leave out of a block
        modes = np.empty((product.owned, 0))
        coordinates: list[Array] = []
        norms, outside = np.empty(self.terms), np.empty(self.terms)
        for first in range(0, self.terms, _BLOCK):
            columns = np.array(list(itertools.islice(residuals, _BLOCK))).T
            block = slice(first, first + columns.shape[1])
            fields = product.riesz_columns(columns)
            norms[block] = np.sqrt(np.maximum(self._sum(np.einsum("ij,ij->j", columns, fields)), 0.0))
            inside = self._sum(modes.T @ columns)
            rest = fields - modes @ inside
            floor = max(least, _ROUNDING * float((scales * norms)[block].max()))
            for _ in range(_PASSES):
                left = product.norms(rest)
                if math.sqrt(float(((scales[block] * left) ** 2).sum())) <= floor:
                    break  # so that no combination exceeds it
                new = _leading(self._basis, rest * scales[block], floor)
                if new.shape[1] == 0:
                    break
                new = _orthonormalise(self._basis, modes, new)
                modes, inside = np.hstack([modes, new]), np.vstack([inside, self._sum(new.T @ columns)])
                rest -= new @ inside[-new.shape[1] :]
            else:
                left = product.norms(rest)
            coordinates.append(inside)
            outside[block] = left
        # Terms whose sum does not matter are not multiplied: their whole norm then counts as outside.
        order = np.argsort(scales * norms)
        dropped = order[np.cumsum((scales * norms)[order]) <= 0.5 * tolerance]
        active = np.ones(self.terms, dtype=bool)
        active[dropped] = False
        outside[dropped] = norms[dropped]
        self.size, self.kept = modes.shape[1], int(active.sum())
        matrix = np.zeros((self.size, self.terms))
        for number, inside in enumerate(coordinates):
            matrix[: len(inside), number * _BLOCK : number * _BLOCK + inside.shape[1]] = inside
        self._active, self._outside = np.flatnonzero(active), outside
        self._matrix = np.ascontiguousarray(matrix[:, self._active])

    def _sum(self, local: Array) -> Array:
        total = np.empty_like(local := np.ascontiguousarray(local))
        self._basis.comm.Allreduce(local, total)
        return total


class _Derivatives:
    """The compiled residual, and its derivatives by the state as matrices, as far as they do not vanish."""

    def __init__(self, residual: ufl.Form, u: fem.Function[Any], space: fem.FunctionSpace[Any]) -> None:
        form = forms.fix_quadrature_degree(residual)
        self.residual, self._comm = forms.compile_form(form), space.mesh.comm
        self._directions = [fem.Function(space) for _ in range(_DEGREE - 1)]
        self._forms: list[fem.Form] = []
        self._matrix: PETSc.Mat | None = None
        for direction in [*self._directions, None]:
            matrix = ufl.derivative(form, u, ufl.TrialFunction(space))
            if forms.is_zero(matrix):
                return
            self._forms.append(forms.compile_form(matrix))
            if direction is not None:
                form = ufl.derivative(form, u, direction)
        if not forms.is_zero(ufl.derivative(matrix, u, fem.Function(space))):
            raise InputError(
                f"the residual is not a polynomial of degree {_DEGREE} at most in the unknown: take FullResidual"
            )

    @property
    def degree(self) -> int:
        return len(self._forms)

    def columns(self, directions: Sequence[Array], modes: Array) -> Array:
        """Return the derivative in some directions and one mode each, shape (owned, modes). Collective: yes.

        Directions come with their ghosts, modes as owned values in Fortran's order.
        """
        for function, values in zip(self._directions, directions, strict=False):
            function.x.array[:] = values
        # One matrix for all: no derivative couples more degrees of freedom than the first one.
        if self._matrix is None:
            self._matrix = forms.assemble_matrix(self._forms[0])
        forms.reassemble_matrix(self._matrix, self._forms[len(directions)])
        dense = PETSc.Mat().createDense(
            ((modes.shape[0], PETSc.DETERMINE), (PETSc.DECIDE, modes.shape[1])), array=modes, comm=self._comm
        )
        dense.assemble()
        product = self._matrix.matMult(dense)
        found = np.array(product.getDenseArray(readonly=True))
        product.destroy()
        dense.destroy()
        return found

    def destroy(self) -> None:
        """Free the matrix. Collective: yes."""
        if self._matrix is not None:
            self._matrix.destroy()


def _shares(indices: npt.NDArray[np.intp]) -> Array:
    """Return 1 / (m_1! m_2! ...) of products with multiplicities m: how often each occurs, over the factorial."""
    count = [
        math.prod(math.factorial(int(m)) for m in np.unique(product, return_counts=True)[1]) for product in indices.T
    ]
    return 1.0 / np.array(count)


def _leading(basis: Basis, columns: Array, least: float) -> Array:
    """Return combinations of columns, orthogonal to each other, whose norms exceed a number. Collective: yes.

    Products of pairs see no more than the first seven digits: what is smaller is left to the next call.
    """
    squares, vectors = _eigenvectors(basis, columns)
    return columns @ vectors[:, squares > max(least**2, 1e-13 * squares[-1])]


def _orthonormalise(basis: Basis, modes: Array, new: Array) -> Array:
    """Return fields as an orthonormal basis that is orthogonal to modes: projected, normed, twice. Collective: yes."""
    for _ in range(2):
        new = new - modes @ basis.inner_product.gram(modes, new)
        squares, vectors = _eigenvectors(basis, new)
        new = new @ (vectors / np.sqrt(squares))
    return new


def _eigenvectors(basis: Basis, columns: Array) -> tuple[Array, Array]:
    """Return eigenvalues, rising, and eigenvectors of the products of columns, those of rank 0. Collective: yes."""
    matrix = basis.inner_product.gram(columns)
    squares, vectors = basis.comm.bcast(np.linalg.eigh(matrix) if basis.comm.rank == 0 else None)
    return squares, vectors
