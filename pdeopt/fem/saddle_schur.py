"""Approximations of Schur complements S = C - D F^-1 G, D = c G'."""

from collections.abc import Mapping, Sequence

from petsc4py import PETSc

import dolfinx
import numpy as np
import ufl
from ufl.core.expr import Expr

from pdeopt.fem import forms
from pdeopt.fem.saddle_blocks import Blocks, BlockTriangular, MakeSolver
from pdeopt.fem.saddle_fields import Array, Fields

type Coefficient = float | Expr
"""A number, or a scalar UFL expression (a Constant, a function, a nonlinear viscosity), read at every set-up."""


def as_ufl(value: Coefficient, mesh: dolfinx.mesh.Mesh) -> Expr:
    """Return a number as a Constant, so that forms are compiled once for all values; else the value. Collective: no."""
    return dolfinx.fem.Constant(mesh, PETSc.ScalarType(value)) if isinstance(value, int | float) else value


def compile_fixed(form: ufl.Form) -> dolfinx.fem.Form:
    """Compile a form, its quadrature degree fixed. Collective: yes."""
    return forms.compile_form(forms.fix_quadrature_degree(form))


class FieldOrder:
    """Work vectors of the second field in the order of its space, beside those in the order of its rows."""

    def __init__(self, fields: Fields, matrix: PETSc.Mat) -> None:
        self._order = fields.order[1]
        self.right, self.out = matrix.createVecRight(), matrix.createVecRight()

    def load(self, vector: PETSc.Vec) -> PETSc.Vec:
        """Copy a vector in the order of the rows into `right`. Collective: no."""
        self.right.array[:] = vector.array_r[self._order]
        return self.right

    def store(self, vector: PETSc.Vec, scale: float) -> None:
        """Copy `scale` times `out` into a vector in the order of the rows. Collective: no."""
        vector.array[self._order] = scale * self.out.array_r

    def release(self) -> None:
        """Free the vectors. Collective: yes."""
        self.right.destroy()
        self.out.destroy()


class PressureMass:
    """S_hat = -c M, the mass matrix of the second field weighted by 1 / viscosity + 1 / bulk modulus.

    Equivalent to the Schur complement of Stokes' and of elasticity's mixed form with constants that depend on the
    inf-sup constant alone (Elman, Silvester, Wathen, Finite Elements and Fast Iterative Solvers, 2nd ed. 2014,
    chapter 3).

    Parameters
    ----------
    fields
        The two fields.
    weight
        Weight of the mass matrix.
    """

    def __init__(self, fields: Fields, weight: Coefficient) -> None:
        space = fields.second
        trial, test = ufl.TrialFunction(space), ufl.TestFunction(space)
        self._fields = fields
        self._form = compile_fixed(as_ufl(weight, space.mesh) * ufl.inner(trial, test) * ufl.dx)
        self._matrix: PETSc.Mat | None = None
        self._ksp: PETSc.KSP | None = None
        self._scale = 1.0

    def set_up(self, blocks: Blocks, make_solver: MakeSolver) -> None:
        """Assemble the weighted mass matrix. Collective: yes."""
        if self._matrix is None:
            self._matrix = forms.assemble_matrix(self._form)
            self._work = FieldOrder(self._fields, self._matrix)
        else:
            forms.reassemble_matrix(self._matrix, self._form)
        self._ksp = make_solver("mass", self._matrix, self._ksp)
        self._scale = -1.0 / blocks.ratio

    def solve(self, right: PETSc.Vec, out: PETSc.Vec) -> None:
        """Set -M^-1 r / c. Collective: yes."""
        assert self._ksp is not None
        self._ksp.solve(self._work.load(right), self._work.out)
        self._work.store(out, self._scale)

    def release(self) -> None:
        """Free matrix and vectors. Collective: yes."""
        if self._matrix is not None:
            self._matrix.destroy()
            self._work.release()
            self._matrix = None


class Product:
    """The sparse product D Q^-1 G / c with a diagonal Q: a discrete Laplacian that knows all boundary conditions.

    Parameters
    ----------
    weights
        Diagonal of Q in the order of the rows, or None for the diagonal of F.
    """

    def __init__(self, weights: Array | None) -> None:
        self._weights = weights
        self.matrix: PETSc.Mat | None = None

    def set_up(self, blocks: Blocks) -> PETSc.Mat:
        """Multiply anew and return the matrix, its kernel attached. Collective: yes."""
        diagonal = blocks.leading.getDiagonal()
        if self._weights is not None:
            diagonal.array[:] = self._weights
        self.inverse = diagonal
        self.inverse.reciprocal()
        scaled = blocks.divergence.copy()
        scaled.diagonalScale(None, self.inverse)
        self.matrix = scaled.matMult(blocks.gradient, self.matrix)
        scaled.destroy()
        self.matrix.scale(1.0 / blocks.ratio)
        attach_constant(self.matrix, blocks.constant)
        return self.matrix

    def release(self) -> None:
        """Free the matrix. Collective: yes."""
        if self.matrix is not None:
            self.matrix.destroy()
            self.matrix = None


def attach_constant(matrix: PETSc.Mat, constant: Array | None) -> None:
    """Give a matrix the constant as its kernel, if there is one. Collective: yes."""
    if constant is None:
        return
    vector = matrix.createVecRight()
    vector.array[:] = constant
    vector.normalize()
    kernel = PETSc.NullSpace().create(vectors=[vector], comm=matrix.comm)
    matrix.setNullSpace(kernel)
    matrix.setTransposeNullSpace(kernel)
    kernel.destroy()
    vector.destroy()


class DiscreteLaplacian:
    """S_hat = -c (D diag(F)^-1 G / c), for a leading block that is a mass matrix, as in mixed Poisson.

    The diagonal of a mass matrix is equivalent to it, so the product is equivalent to the Schur complement.
    """

    def __init__(self) -> None:
        self._product = Product(None)
        self._ksp: PETSc.KSP | None = None
        self._ratio = 1.0

    def set_up(self, blocks: Blocks, make_solver: MakeSolver) -> None:
        """Form the product. Collective: yes."""
        self._ratio = blocks.ratio
        self._ksp = make_solver("laplacian", self._product.set_up(blocks), self._ksp)

    def solve(self, right: PETSc.Vec, out: PETSc.Vec) -> None:
        """Set -L^-1 r / c. Collective: yes."""
        assert self._ksp is not None
        self._ksp.solve(right, out)
        out.scale(-1.0 / self._ratio)

    def release(self) -> None:
        """Free the product. Collective: yes."""
        self._product.release()


class LeastSquaresCommutator:
    """The scaled least-squares commutator, exact where F Q^-1 commutes with G.

        S^-1 ~ -(1 / c) L^-1 (D Q^-1 F Q^-1 G / c) L^-1,    L = D Q^-1 G / c,    Q = diag(velocity mass)

    Elman, Howle, Shadid, Shuttleworth, Tuminaro, SIAM J. Sci. Comput. 27 (2006) 1651-1668.

    Parameters
    ----------
    fields
        Velocity and pressure.
    """

    def __init__(self, fields: Fields) -> None:
        space = fields.first
        mass = forms.assemble_matrix(
            compile_fixed(ufl.inner(ufl.TrialFunction(space), ufl.TestFunction(space)) * ufl.dx)
        )
        self._product = Product(fields.reorder(0, np.array(mass.getDiagonal().array_r)))
        mass.destroy()
        self._ksp: PETSc.KSP | None = None
        self._blocks: Blocks | None = None

    def set_up(self, blocks: Blocks, make_solver: MakeSolver) -> None:
        """Form L. Collective: yes."""
        if self._blocks is None:
            self._velocity = [blocks.gradient.createVecLeft() for _ in range(2)]
            self._pressure = blocks.gradient.createVecRight()
        self._blocks = blocks
        self._ksp = make_solver("laplacian", self._product.set_up(blocks), self._ksp)

    def solve(self, right: PETSc.Vec, out: PETSc.Vec) -> None:
        """Apply the commutator: two solves with L. Collective: yes."""
        assert self._ksp is not None
        assert self._blocks is not None
        blocks, first, second = self._blocks, *self._velocity
        self._ksp.solve(right, out)
        blocks.gradient.mult(out, first)
        first.pointwiseMult(first, self._product.inverse)
        blocks.leading.mult(first, second)
        second.pointwiseMult(second, self._product.inverse)
        blocks.divergence.mult(second, self._pressure)
        self._ksp.solve(self._pressure, out)
        out.scale(-1.0 / blocks.ratio**2)

    def release(self) -> None:
        """Free product and vectors. Collective: yes."""
        self._product.release()
        if self._blocks is not None:
            for vector in (*self._velocity, self._pressure):
                vector.destroy()
            self._blocks = None


class AugmentedLagrangian(BlockTriangular):
    """Preconditions by the equivalent system with F_g = F + (g / c) G W^-1 D, W = diag(pressure mass).

    Its Schur complement is close to that of the augmentation alone, -(c / (viscosity + g)) M (Benzi, Olshanskii, SIAM
    J. Sci. Comput. 28 (2006) 2095-2113, with the diagonal of the mass matrix for W). The system that is solved stays
    the user's own: the row operation that makes one of the other is applied to residuals.

    Parameters
    ----------
    fields, options, name, near_nullspace
        As for `BlockTriangular`.
    viscosity
        Factor of (grad u, grad v).
    augmentation
        g > 0, in units of the viscosity.
    """

    def __init__(
        self,
        fields: Fields,
        options: Mapping[str, object],
        name: str,
        near_nullspace: Sequence[Array],
        viscosity: Coefficient,
        augmentation: float,
    ) -> None:
        super().__init__(fields, PressureMass(fields, 1.0 / (viscosity + augmentation)), options, name, near_nullspace)
        space = fields.second
        trial, test = ufl.TrialFunction(space), ufl.TestFunction(space)
        mass = forms.assemble_matrix(compile_fixed(ufl.inner(trial, test) / as_ufl(augmentation, space.mesh) * ufl.dx))
        self._weights = fields.reorder(1, np.array(mass.getDiagonal().array_r))
        mass.destroy()
        self._scaled_gradient: PETSc.Mat | None = None
        self._augmented: PETSc.Mat | None = None

    def _leading_matrix(self, blocks: Blocks) -> PETSc.Mat:
        """Return F + (g / c) G W^-1 D. Collective: yes."""
        inverse = blocks.divergence.createVecLeft()
        inverse.array[:] = 1.0 / (blocks.ratio * self._weights)
        self._scaled_gradient = blocks.gradient.copy(self._scaled_gradient)
        self._scaled_gradient.diagonalScale(None, inverse)
        inverse.destroy()
        if self._augmented is not None:
            self._augmented.destroy()
        self._augmented = self._scaled_gradient.matMult(blocks.divergence)
        self._augmented.axpy(1.0, blocks.leading, structure=PETSc.Mat.Structure.DIFFERENT_NONZERO_PATTERN)
        return self._augmented

    def _prepare_right(self) -> None:
        """Apply the row operation to the residual. Collective: yes."""
        assert self._scaled_gradient is not None
        self._scaled_gradient.multAdd(self._right[1], self._right[0], self._right[0])

    def destroy(self, pc: PETSc.PC) -> None:
        """Free what was built. Collective: yes."""
        super().destroy(pc)
        for matrix in (self._scaled_gradient, self._augmented):
            if matrix is not None:
                matrix.destroy()
        self._scaled_gradient = self._augmented = None
