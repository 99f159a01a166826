"""Pressure convection-diffusion: the Schur complement of Oseen's equations by a commutator.

    S^-1 ~ -(1 / c) (I + A^-1 K) M^-1,    M = (p / viscosity, q),   A = (grad p, grad q),
    K = ((reaction p + w . grad p) / viscosity, q) - <min(w . n, 0) p / viscosity, q>,

with homogeneous Dirichlet conditions for A where the velocity is free to leave, and natural ones elsewhere; the last
term of K is the Robin condition at inflow (Elman, Silvester, Wathen, Finite Elements and Fast Iterative Solvers, 2nd
ed. 2014, section 9.2; the variant that FENaPack calls BRM2). With reaction it contains the preconditioner of Cahouet
and Chabard for unsteady flow, and without convection that of Stokes.
"""

from petsc4py import PETSc

import dolfinx
import numpy as np
import ufl
from ufl.core.expr import Expr
from ufl.sobolevspace import H1

from pdeopt.fem import forms
from pdeopt.fem.saddle_blocks import Blocks, MakeSolver
from pdeopt.fem.saddle_fields import Fields
from pdeopt.fem.saddle_schur import Coefficient, FieldOrder, as_ufl, attach_constant, compile_fixed
from pdeopt.report import InputError


def check_continuous(space: dolfinx.fem.FunctionSpace) -> None:
    """Raise `InputError` unless the functions of a space have weak gradients. Collective: no."""
    if space.ufl_element() not in H1:
        raise InputError(
            f"a pressure of {space.ufl_element()} has no weak gradient, which the pressure convection-diffusion "
            "preconditioner needs: choose method 'lsc' or 'augmented_lagrangian', and no reaction for Stokes"
        )


class PressureConvectionDiffusion:
    """Approximates the inverse Schur complement of Oseen's equations, or of their adjoint.

    Parameters
    ----------
    fields
        Velocity and continuous pressure.
    viscosity
        Factor of (grad u, grad v).
    wind
        w, a vector-valued UFL expression that is read at every set-up; None for unsteady Stokes.
    reaction
        Factor of (u, v), for instance density over time step.
    adjoint
        Precondition the transposed equations.
    """

    def __init__(
        self, fields: Fields, viscosity: Coefficient, wind: Expr | None, reaction: Coefficient, adjoint: bool
    ) -> None:
        space = fields.second
        self._fields, self._adjoint = fields, adjoint
        trial, test = ufl.TrialFunction(space), ufl.TestFunction(space)
        normal = ufl.FacetNormal(space.mesh)
        viscosity, reaction = as_ufl(viscosity, space.mesh), as_ufl(reaction, space.mesh)
        self._mass_form = compile_fixed(1.0 / viscosity * ufl.inner(trial, test) * ufl.dx)
        self._laplacian_form = compile_fixed(ufl.inner(ufl.grad(trial), ufl.grad(test)) * ufl.dx)
        convection = reaction / viscosity * ufl.inner(trial, test) * ufl.dx
        if wind is not None:
            inflow = ufl.conditional(ufl.lt(ufl.dot(wind, normal), 0.0), ufl.dot(wind, normal), 0.0)
            convection += 1.0 / viscosity * ufl.inner(ufl.dot(wind, ufl.grad(trial)), test) * ufl.dx
            convection -= 1.0 / viscosity * inflow * ufl.inner(trial, test) * ufl.ds
        self._convection_form = compile_fixed(convection)
        # Where the normal velocity is free: zero where boundary conditions fix it, for every test function there.
        self._free = dolfinx.fem.Function(fields.first)
        squared = ufl.as_vector([normal[i] ** 2 for i in range(space.mesh.geometry.dim)])
        self._open_form = compile_fixed(ufl.dot(self._free, squared) * test * ufl.ds)
        self._laplacian: PETSc.Mat | None = None
        self._mass_ksp: PETSc.KSP | None = None
        self._laplacian_ksp: PETSc.KSP | None = None
        self._scale = 1.0

    def set_up(self, blocks: Blocks, make_solver: MakeSolver) -> None:
        """Assemble the three matrices, that of the convection at the present wind. Collective: yes."""
        self._scale = -1.0 / blocks.ratio
        if self._laplacian is None:
            self._mass = forms.assemble_matrix(self._mass_form)
            self._convection = forms.assemble_matrix(self._convection_form)
            self._laplacian = self._assemble_laplacian(blocks)
            self._work = FieldOrder(self._fields, self._mass)
            self._vectors = [self._mass.createVecRight() for _ in range(2)]
            self._laplacian_ksp = make_solver("laplacian", self._laplacian)
        else:
            forms.reassemble_matrix(self._mass, self._mass_form)
            forms.reassemble_matrix(self._convection, self._convection_form)
        self._mass_ksp = make_solver("mass", self._mass, self._mass_ksp)

    def _assemble_laplacian(self, blocks: Blocks) -> PETSc.Mat:
        """Assemble A, Dirichlet rows and columns where the boundary is open. Collective: yes."""
        free = _free_rows(blocks)
        forms.set_function(self._free, free[self._fields.order[0]])
        share = forms.assemble_vector(self._open_form)
        values = np.abs(share.array_r)
        largest = share.norm(PETSc.NormType.INFINITY)
        self._open = np.flatnonzero(values > 1e-8 * largest) if largest > 0.0 else np.empty(0, dtype=np.int64)
        share.destroy()
        matrix = forms.assemble_matrix(self._laplacian_form)
        start = matrix.getOwnershipRange()[0]
        matrix.zeroRowsColumns((self._open + start).astype(PETSc.IntType), 1.0)
        one = None
        if blocks.constant is not None:
            one = blocks.constant[self._fields.order[1]]
        attach_constant(matrix, one)
        return matrix

    def solve(self, right: PETSc.Vec, out: PETSc.Vec) -> None:
        """Apply the approximate inverse. Collective: yes."""
        assert self._mass_ksp is not None
        assert self._laplacian_ksp is not None
        first, second = self._vectors
        work = self._work
        given = work.load(right)
        if self._adjoint:  # M^-1 (I + K' A^-1)
            given.copy(first)
            first.array[self._open] = 0.0
            self._laplacian_ksp.solve(first, second)
            second.array[self._open] = 0.0
            self._convection.multTransposeAdd(second, given, first)
            self._mass_ksp.solve(first, work.out)
        else:
            self._mass_ksp.solve(given, work.out)
            self._convection.mult(work.out, first)
            first.array[self._open] = 0.0
            self._laplacian_ksp.solve(first, second)
            work.out.axpy(1.0, second)
        work.store(out, self._scale)

    def release(self) -> None:
        """Free matrices and vectors. Collective: yes."""
        if self._laplacian is not None:
            for item in (self._mass, self._convection, self._laplacian, *self._vectors):
                item.destroy()
            self._work.release()
            self._laplacian = None


def _free_rows(blocks: Blocks) -> np.ndarray:
    """Return 1 where the first field is free and 0 where a Dirichlet condition fixes it, shape (owned,).

    A fixed row holds nothing but its diagonal, so it multiplies a vector without structure as the diagonal does.
    Collective: yes.
    """
    vector, image = blocks.leading.createVecs()
    first, last = vector.getOwnershipRange()
    vector.array[:] = 2.0 + np.cos(1.0 + 0.7 * np.arange(first, last) ** 1.1)
    blocks.leading.mult(vector, image)
    diagonal = blocks.leading.getDiagonal()
    diagonal.pointwiseMult(diagonal, vector)
    free = (np.abs(image.array_r - diagonal.array_r) > 1e-14 * np.abs(diagonal.array_r)).astype(float)
    for item in (vector, image, diagonal):
        item.destroy()
    return free
