"""Riesz maps: the norms in which residuals and gradients of a control problem are measured.

Euclidean norms of coefficient vectors depend on the mesh and say little about the error of a control problem, so every
residual here is measured by the dual norm of a regularisation-robust inner product (Zulehner, SIAM J. Matrix Anal.
Appl. 32 (2011), eq. (40)): with observation weight w, regularisation weight a and t = sqrt(a / w),

    |y|^2 = w (|y|_0^2 + t |grad y|_0^2),   |u|^2 = a (u, u)_U,   |p|^2 = (|p|_0^2 + t |grad p|_0^2) / a.
"""

import math
from collections.abc import Sequence

from mpi4py import MPI
from petsc4py import PETSc

import dolfinx
import numpy as np
import ufl
from ufl.sobolevspace import H1

from pdeopt.fem import forms

_STATE_SOLVER = {
    "ksp_type": "cg",
    "ksp_norm_type": "natural",
    "ksp_rtol": 1e-2,  # relative in the energy norm, so the dual norm is right to 1e-4
    "ksp_max_it": 200,
    "pc_type": "gamg",
    "pc_gamg_threshold": 0.02,
    "mg_levels_ksp_type": "chebyshev",
    "mg_levels_pc_type": "jacobi",
}
_CONTROL_SOLVER = {
    "ksp_type": "cg",
    "ksp_norm_type": "natural",
    "ksp_rtol": 1e-3,
    "ksp_max_it": 500,
    "pc_type": "jacobi",
}

_FAILED = (PETSc.KSP.ConvergedReason.DIVERGED_NANORINF, PETSc.KSP.ConvergedReason.DIVERGED_DTOL)


class RieszMap:
    """Solves with a symmetric positive definite matrix, and the dual norm that it induces.

    Parameters
    ----------
    matrix
        The inner product; kept, not copied.
    defaults
        PETSc options of the solver.
    prefix
        Options prefix under which a user may change them.
    """

    def __init__(self, matrix: PETSc.Mat, defaults: dict[str, object], prefix: str) -> None:
        self.matrix = matrix
        self._ksp = PETSc.KSP().create(matrix.comm)
        self._ksp.setOptionsPrefix(prefix)
        self._ksp.setOperators(matrix)
        with forms.default_options(prefix, defaults):
            self._ksp.setFromOptions()
            self._ksp.setUp()
        self._representative = matrix.createVecRight()

    def solve(self, covector: PETSc.Vec, representative: PETSc.Vec, rtol: float | None = None) -> None:
        """Find the Riesz representative of a covector. Collective: yes."""
        previous = self._ksp.getTolerances()[0]
        if rtol is not None:
            self._ksp.setTolerances(rtol=rtol)
        self._ksp.solve(covector, representative)
        self._ksp.setTolerances(rtol=previous)
        if self._ksp.getConvergedReason() in _FAILED:  # PETSc leaves zeros, which would look like a solution
            representative.set(math.nan)

    def dual_norm_squared(self, covector: PETSc.Vec) -> float:
        """Return the squared dual norm of a covector, NaN if it has NaN or is too large. Collective: yes."""
        self.solve(covector, self._representative)
        square = float(covector.dot(self._representative))
        return square if math.isnan(square) else max(square, 0.0)

    def destroy(self) -> None:
        """Free the PETSc objects. Collective: yes."""
        self._ksp.destroy()
        self._representative.destroy()


def state_riesz_map(
    space: dolfinx.fem.FunctionSpace, bcs: Sequence[dolfinx.fem.DirichletBC], length_squared: float
) -> RieszMap:
    """Return the Riesz map of (y, v) + t (grad y, grad v) with homogeneous Dirichlet conditions. Collective: yes.

    Parameters
    ----------
    space
        Space of state and adjoint; where its elements have no weak gradient, the L2 product alone is taken.
    bcs
        The state's Dirichlet conditions.
    length_squared
        t, in units of length squared.
    """
    trial, test = ufl.TrialFunction(space), ufl.TestFunction(space)
    form = ufl.inner(trial, test) * ufl.dx
    if space.ufl_element() in H1:
        weight = dolfinx.fem.Constant(space.mesh, PETSc.ScalarType(length_squared))
        form += weight * ufl.inner(ufl.grad(trial), ufl.grad(test)) * ufl.dx
    matrix = forms.assemble_matrix(forms.compile_form(form), bcs)
    matrix.setOption(PETSc.Mat.Option.SPD, True)
    return RieszMap(matrix, _STATE_SOLVER, "riesz_state_")


def control_riesz_map(matrix: PETSc.Mat) -> RieszMap:
    """Return the Riesz map of a control's inner product, idle degrees of freedom set to one. Collective: yes."""
    return RieszMap(matrix, _CONTROL_SOLVER, "riesz_control_")


def trace_ratio(matrix: PETSc.Mat, reference: PETSc.Mat) -> float:
    """Return the mean ratio of two diagonals where the reference's is positive. Collective: yes."""
    diagonal, scale = matrix.getDiagonal(), reference.getDiagonal()
    comm: MPI.Comm = matrix.comm.tompi4py()
    mask = scale.array_r > 0.0
    total = comm.allreduce(np.array([np.sum(diagonal.array_r[mask]), np.sum(scale.array_r[mask])]))
    return float(total[0] / total[1]) if total[1] > 0.0 else 0.0
