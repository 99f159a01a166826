"""Recycled directions: the slow ones, fewer iterations on the next matrix, the same answer on any number of ranks."""

from mpi4py import MPI
from petsc4py import PETSc

import dolfinx
import numpy as np
import pytest
import scipy.linalg
import ufl
from dolfinx import fem
from dolfinx.fem import petsc as fem_petsc

import pdeopt
from pdeopt.conjugate_directions import DirectionSettings
from pdeopt.fem import forms
from pdeopt.problems.manufactured_control import zero_on_boundary

COMM = MPI.COMM_WORLD


class Channels:
    """-div(k grad u) = f with sixteen stiff squares, each a slow mode of diagonal scaling, whose contrast rises."""

    def __init__(self, cells=16, comm=COMM):
        mesh = dolfinx.mesh.create_unit_square(comm, cells, cells)
        self.space = fem.functionspace(mesh, ("Lagrange", 1))
        self.bcs = [zero_on_boundary(self.space)]
        u, v, x = ufl.TrialFunction(self.space), ufl.TestFunction(self.space), ufl.SpatialCoordinate(mesh)
        self.contrast, dx = fem.Constant(mesh, 1.0), ufl.dx(metadata={"quadrature_degree": 2})
        inside = ufl.conditional(ufl.sin(8 * np.pi * x[0]) * ufl.sin(8 * np.pi * x[1]) > 0.5, self.contrast, 1.0)
        self.form = forms.compile_form(inside * ufl.inner(ufl.grad(u), ufl.grad(v)) * dx)
        self.A = forms.assemble_matrix(self.form, self.bcs)
        self.b = forms.assemble_vector(forms.compile_form(ufl.exp(2.0 * x[0] + ufl.sin(5.0 * x[1])) * v * dx))
        fem_petsc.set_bc(self.b, self.bcs)
        self.ksp = PETSc.KSP().create(comm)
        self.ksp.setOperators(self.A)
        self.ksp.setTolerances(rtol=1e-10)
        self.ksp.getPC().setType("jacobi")
        self.ksp.setType("python")

    def run(self, size, contrasts):
        """Return the iterations and the greatest true residual over a sequence, and the type."""
        context = pdeopt.DeepConjugateDirections(DirectionSettings(recycle=size, price=0.0))
        self.ksp.setPythonContext(context)
        iterations, residuals, x = [], [], self.b.duplicate()
        for contrast in contrasts:
            self.contrast.value = contrast
            forms.reassemble_matrix(self.A, self.form, self.bcs)
            self.ksp.solve(self.b, x)
            iterations.append(self.ksp.getIterationNumber())
            residuals.append((self.b - self.A * x).norm() / self.b.norm())
        assert context.fallbacks == {}
        return iterations, max(residuals), context


@pytest.mark.parallel([1, 2, 3])
def test_fewer_iterations_over_changing_matrices_on_any_number_of_ranks():
    contrasts = 10.0 ** np.linspace(2.0, 3.0, 4)
    plain, _, _ = Channels().run(0, contrasts)
    case = Channels()
    found, residual, context = case.run(20, contrasts)
    assert residual <= 1e-10
    assert found[0] == plain[0]
    assert sum(found[2:]) <= 0.6 * sum(plain[2:])
    assert "20, " in context.report.quantities["recycled, renewed"]
    if COMM.size > 1:
        serial, _, _ = Channels(comm=MPI.COMM_SELF).run(20, contrasts)
        assert np.abs(np.subtract(found, serial)).max() <= max(2, 0.1 * max(serial))


def test_the_vectors_are_the_slowest_of_the_scaled_matrix():
    case = Channels(cells=12)
    _, _, context = case.run(6, [100.0] * 5)
    space = context._space
    dense = case.A[:, :]
    values = scipy.linalg.eigh(dense, np.diag(np.diag(dense)), eigvals_only=True)
    vectors = space._vectors
    mass, stiffness = vectors.T @ (np.diag(dense)[:, None] * vectors), vectors.T @ dense @ vectors
    np.testing.assert_allclose(scipy.linalg.eigh(stiffness, mass, eigvals_only=True)[:3], values[:3], rtol=0.02)


@pytest.mark.parallel([1, 2])
def test_a_matrix_that_turns_bad_after_good_ones_is_noticed():
    case = Channels(cells=12)
    case.run(4, [10.0, 20.0])
    case.A.scale(np.nan)
    case.ksp.solve(case.b, case.b.duplicate())
    assert case.ksp.getConvergedReason() == PETSc.KSP.ConvergedReason.DIVERGED_NANORINF
