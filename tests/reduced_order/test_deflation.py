"""The coarse correction: symmetric, exact on the basis, worth its while over weak preconditioners, any rank count."""

import tracemalloc

from mpi4py import MPI
from petsc4py import PETSc

import dolfinx
import numpy as np
import petsctools
import pytest
import ufl
from dolfinx import fem
from dolfinx.fem import petsc as fem_petsc

from pdeopt.fem import forms
from pdeopt.problems.manufactured_control import zero_on_boundary
from pdeopt.reduced_order import Basis, InnerProduct, ReducedDeflation
from pdeopt.reduced_order.deflation import DeflationSettings
from pdeopt.reduced_order.orthonormal import orthonormalise
from pdeopt.report import InputError, OptionError

COMM = MPI.COMM_WORLD


class Diffusion:
    """-div(k grad u) = 1 with the smoothest functions as a basis, zero on the boundary."""

    def __init__(self, cells=24, modes=9, sign=1.0, drift=0.0):
        mesh = dolfinx.mesh.create_unit_square(COMM, cells, cells)
        self.space = fem.functionspace(mesh, ("Lagrange", 1))
        self.bcs = [zero_on_boundary(self.space)]
        u, v, x = ufl.TrialFunction(self.space), ufl.TestFunction(self.space), ufl.SpatialCoordinate(mesh)
        sign, drift = fem.Constant(mesh, sign), fem.Constant(mesh, drift)
        form = sign * (1 + 5 * x[0]) * ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx + drift * u.dx(0) * v * ufl.dx
        self.matrix = forms.assemble_matrix(forms.compile_form(form), self.bcs)
        self.right = forms.assemble_vector(forms.compile_form(v * ufl.dx))
        fem_petsc.set_bc(self.right, self.bcs)
        side = round(modes**0.5)
        field, columns = fem.Function(self.space), []
        for i in range(1, side + 1):
            for j in range(1, side + 1):
                field.interpolate(lambda x, i=i, j=j: np.sin(i * np.pi * x[0]) * np.sin(j * np.pi * x[1]))
                field.x.array[np.abs(field.x.array) < 1e-14] = 0.0
                columns.append(forms.owned_values(field).copy())
        inner = InnerProduct(self.space, bcs=self.bcs)
        self.basis = Basis(inner, orthonormalise(inner, np.array(columns).T))

    def solver(self, context=None, **options):
        ksp = PETSc.KSP().create(COMM)
        ksp.setOptionsPrefix("pdeopt_test_")
        ksp.setOperators(self.matrix)
        ksp.setType("cg")
        ksp.setNormType(PETSc.KSP.NormType.UNPRECONDITIONED)
        ksp.setTolerances(rtol=1e-10)
        ksp.setErrorIfNotConverged(True)
        if context is not None:
            ksp.getPC().setType("python")
            ksp.getPC().setPythonContext(context)
        with forms.default_options("pdeopt_test_", options):
            ksp.setFromOptions()
            ksp.setUp()
        return ksp


@pytest.mark.parallel([1, 2, 3])
def test_the_correction_is_symmetric_and_what_its_formula_says():
    case = Diffusion(cells=12)
    for inner in ("jacobi", "gamg"):
        pc = case.solver(ReducedDeflation(case.basis, inner)).getPC()
        first, second, image, other = (case.matrix.createVecRight() for _ in range(4))
        places = case.space.tabulate_dof_coordinates()[: first.local_size]
        first.array[:], second.array[:] = np.sin(40 * places[:, 0]), np.cos(30 * places[:, 1] + places[:, 0])
        pc.apply(first, image)
        pc.apply(second, other)
        products = image.dot(second), other.dot(first), image.dot(first), other.dot(second)
        assert products[0] == pytest.approx(products[1], rel=1e-12)
        assert min(products[2:]) > 0.0
        pc.applyTranspose(first, other)
        assert (other - image).norm() <= 1e-12 * image.norm()
        if inner == "jacobi":
            plain = first / case.matrix.getDiagonal()
            modes = case.basis.modes
            coarse = COMM.allreduce(modes.T @ _images(case.matrix, modes))
            correction = modes @ np.linalg.solve(coarse, COMM.allreduce(modes.T @ first.array_r))
            np.testing.assert_allclose(image.array_r, plain.array_r + correction, rtol=1e-11, atol=1e-14)


def _images(matrix, modes):
    field, image = matrix.createVecs()
    images = np.empty_like(modes)
    for mode in range(modes.shape[1]):
        field.array[:] = modes[:, mode]
        matrix.mult(field, image)
        images[:, mode] = image.array_r
    return images


@pytest.mark.parallel([1, 2, 3])
def test_fewer_iterations_to_the_same_answer_from_python_and_from_options():
    case = Diffusion()
    plain = case.solver(pc_type="jacobi")
    expected, found = (case.matrix.createVecRight() for _ in range(2))
    plain.solve(case.right, expected)
    context = ReducedDeflation(case.basis)
    ksp = case.solver(context)
    ksp.solve(case.right, found)
    assert (found - expected).norm() <= 1e-8 * expected.norm()
    assert ksp.getIterationNumber() <= 0.7 * plain.getIterationNumber()
    assert context.report.quantities == {"modes": 9, "applications": context.applications}
    assert context.applications >= ksp.getIterationNumber()
    tracemalloc.start()
    ksp.getPC().apply(case.right, found)
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    ksp.getPC().apply(case.right, found)
    grown = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    assert grown <= 2000  # some handles, and no array
    for given in (case.basis, case.basis.modes):
        again = PETSc.KSP().create(COMM)
        again.setOperators(case.matrix)
        petsctools.set_from_options(
            again,
            parameters={
                "ksp_type": "cg", "ksp_rtol": 1e-10, "ksp_norm_type": "unpreconditioned",
                "pc_type": "python", "pc_python_type": "pdeopt.ReducedDeflation",
                "pc_deflation_basis": given, "pc_deflation_inner_pc_type": "bjacobi",
            },
            options_prefix="pdeopt_test_other_",
        )  # fmt: skip
        again.solve(case.right, found)
        assert (found - expected).norm() <= 1e-8 * expected.norm()
        assert again.getIterationNumber() < ksp.getIterationNumber()
        assert "over bjacobi" in again.getPC().getPythonContext().report.method
        again.getPC().reset()  # the options have left the database: what they said stays
        again.setOperators(case.matrix)
        again.solve(case.right, found)
        assert (found - expected).norm() <= 1e-8 * expected.norm()
        assert "over bjacobi" in again.getPC().getPythonContext().report.method
        again.destroy()
    # The coarse matrix follows the operator, and the basis the settings.
    case.matrix.scale(4.0)
    context.settings = DeflationSettings(case.basis.truncate(8))
    ksp.setOperators(case.matrix)
    ksp.solve(case.right, found)
    assert (4.0 * found - expected).norm() <= 1e-8 * expected.norm()
    assert ksp.getIterationNumber() <= 0.7 * plain.getIterationNumber()
    assert context.report.quantities["modes"] == 8


@pytest.mark.parallel([1, 2])
def test_what_does_not_fit_is_refused_on_all_ranks(tmp_path):
    case = Diffusion(cells=6, modes=4)
    nan = case.basis.modes.copy()
    if COMM.rank == COMM.size - 1:
        nan[0, 0] = np.nan
    doubled = np.hstack([case.basis.modes, case.basis.modes[:, :1]])
    for problem, basis, kind, message in (
        (case, None, OptionError, "pc_deflation_basis is missing"),
        (case, "mine", OptionError, "pc_deflation_basis names 'mine', which the application context does not have"),
        (case, case.basis.modes[1:], InputError, "the basis has the shape"),
        (case, nan, InputError, "NaN or infinite"),
        (case, doubled, InputError, "linearly dependent"),
        (Diffusion(6, 4, sign=-1.0), case.basis, InputError, "not positive definite"),
        (Diffusion(6, 4, drift=30.0), case.basis, InputError, "is not symmetric on the basis"),
    ):
        with pytest.raises((kind, PETSc.Error)) as caught:
            problem.solver(ReducedDeflation(basis))
        error = caught.value if isinstance(caught.value, kind) else caught.value.__cause__
        assert isinstance(error, kind)
        assert message in str(error)
    with pytest.raises((OptionError, PETSc.Error)) as caught:
        case.solver(ReducedDeflation(case.basis), pc_deflation_bases="x")
    error = caught.value if isinstance(caught.value, OptionError) else caught.value.__cause__
    assert "did you mean -pdeopt_test_pc_deflation_basis" in str(error)
