"""The loop equals flexible conjugate gradients; whatever fails, a classical solver goes on from the iterate."""

import math
import time

from mpi4py import MPI
from petsc4py import PETSc

import dolfinx
import numpy as np
import pytest
import ufl
from dolfinx import fem
from dolfinx.fem import petsc as fem_petsc

import pdeopt
from pdeopt.conjugate_directions import DirectionSettings
from pdeopt.conjugate_directions.progress import Progress
from pdeopt.fem import forms
from pdeopt.problems.manufactured_control import zero_on_boundary
from pdeopt.report import InputError, OptionError

COMM = MPI.COMM_WORLD
TYPE = {"ksp_type": "python", "ksp_python_type": "pdeopt.DeepConjugateDirections", "ksp_rtol": 1e-9}


class Diffusion:
    """-div(k grad u) + c u + drift u_x = f, with u = 0 on the boundary or no condition at all."""

    def __init__(self, cells=24, shift=0.0, drift=0.0, closed=False):
        mesh = dolfinx.mesh.create_unit_square(COMM, cells, cells)
        self.space = fem.functionspace(mesh, ("Lagrange", 1))
        bcs = [] if closed else [zero_on_boundary(self.space)]
        u, v, x = ufl.TrialFunction(self.space), ufl.TestFunction(self.space), ufl.SpatialCoordinate(mesh)
        shift, drift = fem.Constant(mesh, shift), fem.Constant(mesh, drift)
        k, dx = ufl.exp(3.0 * ufl.sin(9.0 * x[0]) * ufl.cos(7.0 * x[1])), ufl.dx(metadata={"quadrature_degree": 2})
        form = (k * ufl.inner(ufl.grad(u), ufl.grad(v)) + shift * u * v + drift * u.dx(0) * v) * dx
        self.A = forms.assemble_matrix(forms.compile_form(form), bcs)
        self.b = forms.assemble_vector(forms.compile_form(ufl.sin(5.0 * x[0] + x[1]) * v * dx))
        fem_petsc.set_bc(self.b, bcs)

    def solve(self, x=None, context=None, **options):
        """Return the solver, the solution, and the true relative residual."""
        ksp = PETSc.KSP().create(COMM)
        ksp.setOptionsPrefix("pdeopt_test_")
        ksp.setOperators(self.A)
        if context is not None:
            ksp.getPC().setType("python")
            ksp.getPC().setPythonContext(context)
        ksp.setInitialGuessNonzero(x is not None)
        x = self.b.duplicate() if x is None else x
        with forms.default_options("pdeopt_test_", options):
            ksp.setFromOptions()
            ksp.setConvergenceHistory()
            ksp.solve(self.b, x)
        return ksp, x, (self.b - self.A * x).norm() / self.b.norm()


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize(("pc", "depth", "every"), [("jacobi", 2, 1), ("bjacobi", 5, 0), ("gamg", 1, 0)])
def test_a_linear_definite_proposal_gives_flexible_conjugate_gradients(pc, depth, every):
    case = Diffusion(cells=16)
    fcg = {"ksp_type": "fcg", "ksp_fcg_truncation_type": "standard", "ksp_norm_type": "unpreconditioned"}
    expected, x, _ = case.solve(**fcg, ksp_fcg_mmax=depth, ksp_rtol=1e-9, pc_type=pc, sub_pc_type="icc")
    found, y, residual = case.solve(
        **TYPE, ksp_dcd_truncate=depth, ksp_dcd_true_residual=every, ksp_dcd_price=0, pc_type=pc,
        sub_pc_type="icc",
    )  # fmt: skip
    assert found.getConvergedReason() == expected.getConvergedReason() == 2
    assert residual <= 1e-9
    assert (y - x).norm() <= 1e-10 * x.norm()
    history = expected.getConvergenceHistory()
    np.testing.assert_allclose(found.getConvergenceHistory(), history, rtol=1e-6, atol=1e-10 * history[0])


class Proposal:
    """A preconditioner that divides by the diagonal, and does something else from a given application on."""

    def __init__(self, change=lambda y: None, first=math.inf):
        self.change, self.first, self.applications, self.norms = change, first, 0, []

    def setUp(self, pc):
        self.diagonal = pc.getOperators()[0].getDiagonal()

    def apply(self, pc, x, y):
        self.norms.append(x.norm())
        y.pointwiseDivide(x, self.diagonal)
        self.applications += 1
        if self.applications > self.first:
            self.change(y)


def not_a_number(y):
    y.set(math.nan)


def slowly(y):
    time.sleep(0.01)


def nothing(y):
    y.set(0.0)


def constant(y):
    y.set(1.0)


@pytest.mark.parallel([1, 2])
@pytest.mark.parametrize(
    ("change", "why"),
    [
        (not_a_number, "a proposal has NaN or Inf"),
        (nothing, "a proposal brought nothing new"),
        (constant, ""),
    ],
)
def test_a_proposal_that_breaks_down_leaves_its_iterate_to_a_classical_solver(change, why):
    case, first = Diffusion(), 10
    proposal = Proposal(change, first)
    ksp, _, residual = case.solve(context=proposal, **TYPE, ksp_dcd_price=0)
    context, history = ksp.getPythonContext(), ksp.getConvergenceHistory()
    assert residual <= 1e-9
    assert ksp.getConvergedReason() == 2
    assert [why in said for said in context.fallbacks] == [True]
    assert np.allclose(proposal.norms, 1.0)
    undisturbed = case.solve(context=Proposal(), **TYPE, ksp_dcd_price=0)[0].getConvergenceHistory()
    np.testing.assert_allclose(history[: first + 1], undisturbed[: first + 1], rtol=1e-12)
    # The classical solver begins at the residual that was reached, not at the right-hand side.
    assert context.report.residuals[1] == pytest.approx(history[context.accepted], rel=1e-9)
    assert context.report.converged
    assert "classical solver" in context.report.why


@pytest.mark.parallel([1, 2])
def test_noise_is_known_by_its_first_step():
    stream = np.random.default_rng(COMM.rank)

    def noise(y):
        y.array[:] = stream.standard_normal(y.getLocalSize())

    proposal = Proposal(noise, 0)
    ksp, _, residual = Diffusion().solve(context=proposal, **TYPE, ksp_dcd_price=0)
    context = ksp.getPythonContext()
    assert residual <= 1e-9
    assert context.fallbacks == {"a proposal gained less than the residual over the diagonal": 1}
    assert proposal.applications == 1
    _, _, residual = Diffusion().solve(context=proposal, **TYPE, ksp_dcd_price=0, ksp_dcd_gain=0, ksp_max_it=40)
    assert residual > 1e-3
    assert proposal.applications == 41


@pytest.mark.parallel([1, 2])
def test_classical_multigrid_that_gets_nowhere_is_not_the_last(monkeypatch):
    monkeypatch.setattr("pdeopt.conjugate_directions.fallback._LIMIT", 1)
    ksp, _, residual = Diffusion(cells=32).solve(context=Proposal(not_a_number, 0), **TYPE, ksp_dcd_price=0)
    assert residual <= 1e-9
    assert ksp.getConvergedReason() == 2
    assert ksp.getIterationNumber() <= 5


@pytest.mark.parametrize(
    ("norms", "dear"),
    [
        ([1.0] * 19, False),  # no verdict before a fifth of the price
        ([1.0] * 33, True),
        ([0.5**k for k in range(33)], False),
        ([0.9**k for k in range(33)], False),  # a forecast of thrice the price, made with a third of it
        ([0.9**k for k in range(129)], True),
        ([0.8**k for k in range(101)], False),  # dear, and nearly done
    ],
)
def test_forecasts_weigh_as_much_as_has_been_spent(norms, dear, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr("pdeopt.conjugate_directions.progress.time.perf_counter", lambda: float(next(clock)))
    progress = Progress(norms[0], 1e-12, 1000)
    for norm in norms[1:]:
        progress.note(norm)
    assert progress.too_dear(100.0) == dear


@pytest.mark.parallel([1, 2])
def test_proposals_that_change_and_are_no_linear_map_converge():
    def signs(y):
        y.array[:] = np.cbrt(y.array)

    ksp, _, residual = Diffusion(cells=12).solve(
        context=Proposal(signs, 0), **TYPE, ksp_dcd_price=0, ksp_dcd_window=10000
    )
    assert residual <= 1e-9
    assert ksp.getPythonContext().fallbacks == {}


@pytest.mark.parallel([1, 2])
def test_the_residual_that_does_not_fall_and_the_seconds_that_do_not_pay_end_the_proposals():
    case = Diffusion(cells=32)
    ksp, _, residual = case.solve(**TYPE, pc_type="none", ksp_dcd_window=5, ksp_dcd_price=0)
    assert residual <= 1e-9
    assert ksp.getPythonContext().fallbacks == {"the residual did not halve in 5 iterations": 1}
    ksp, _, residual = case.solve(context=Proposal(slowly, 0), **TYPE, ksp_dcd_price=0.1)
    assert residual <= 1e-9
    assert ksp.getPythonContext().fallbacks == {"the proposals cost more than a classical solve": 1}
    assert ksp.getPythonContext().accepted <= 4


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("kind", ["indefinite", "not symmetric", "singular", "singular, null space not attached"])
def test_what_is_no_definite_matrix_is_solved_by_the_classical_solver(kind):
    case = Diffusion(**{
        "indefinite": {"shift": -400.0}, "not symmetric": {"drift": 200.0},
    }.get(kind, {"closed": True}))  # fmt: skip
    if "singular" in kind:
        case.b.shift(-case.b.sum() / case.b.getSize())
    if kind == "singular":
        case.A.setNullSpace(PETSc.NullSpace().create(constant=True, comm=COMM))
    ksp, x, residual = case.solve(**TYPE, pc_type="jacobi", ksp_dcd_price=0)
    assert ksp.getConvergedReason() > 0
    assert residual <= 1e-9
    if kind == "singular":
        assert abs(x.sum()) <= 1e-9 * x.norm() * math.sqrt(x.getSize())
        assert ksp.getPythonContext().fallbacks == {}


@pytest.mark.parallel([1, 2])
def test_a_matrix_of_nan_gives_a_reason_and_a_sentence():
    case = Diffusion(cells=6)
    ksp = PETSc.KSP().create(COMM)
    context = pdeopt.DeepConjugateDirections()
    ksp.setType("python")
    ksp.setPythonContext(context)
    case.A.scale(math.nan)
    ksp.setOperators(case.A)
    ksp.getPC().setType("none")
    ksp.solve(case.b, case.b.duplicate())
    assert ksp.getConvergedReason() == PETSc.KSP.ConvergedReason.DIVERGED_NANORINF
    assert "NaN" in context.report.advice


@pytest.mark.parallel([1, 2])
def test_a_guess_several_solves_a_limit_and_the_view():
    case = Diffusion()
    ksp, x, _ = case.solve(**TYPE, pc_type="gamg")
    again, _, _ = case.solve(x=x.copy(), **TYPE, pc_type="gamg")
    assert again.getIterationNumber() == 0
    case.A.scale(2.0)
    y = x.duplicate()
    ksp.solve(case.b, y)
    assert (2.0 * y - x).norm() <= 1e-7 * x.norm()
    context = ksp.getPythonContext()
    assert context.solves == 2
    ksp.setTolerances(max_it=2)
    ksp.solve(case.b, y)
    assert ksp.getConvergedReason() == PETSc.KSP.ConvergedReason.DIVERGED_MAX_IT
    assert "ksp_max_it" in context.report.advice
    assert context.unsolved == 1
    smoother, _, _ = case.solve(**TYPE, pc_type="jacobi", ksp_max_it=3, ksp_convergence_test="skip")
    assert smoother.getConvergedReason() == PETSc.KSP.ConvergedReason.CONVERGED_ITS
    assert smoother.getIterationNumber() == 3


def test_options_are_checked():
    case = Diffusion(cells=4)
    with pytest.raises(InputError, match="truncate is -1"):
        DirectionSettings(truncate=-1)
    for options, match in (
        ({"ksp_dcd_truncat": 3}, "did you mean -pdeopt_test_ksp_dcd_truncate"),
        ({"ksp_norm_type": "natural"}, "convergence_test skip"),
    ):
        ksp = PETSc.KSP().create(COMM)
        ksp.setOptionsPrefix("pdeopt_test_")
        ksp.setOperators(case.A)
        with forms.default_options("pdeopt_test_", options), pytest.raises(OptionError, match=match):
            pdeopt.DeepConjugateDirections().setFromOptions(ksp)
