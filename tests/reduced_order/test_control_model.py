"""The reduced model of a control problem: its derivatives, its bound of their errors, and what it asks of its input."""

import math

from mpi4py import MPI

import dolfinx
import numpy as np
import pytest

from pdeopt.control import minimise, taylor_test
from pdeopt.fem import forms
from pdeopt.problems import BratuControl, CoefficientInversion, MaurerMittelmannControl, PoissonControl
from pdeopt.reduced_order import Basis, InnerProduct, ReducedControl, minimise_by_model
from pdeopt.report import ConvergenceError, InputError, OptionError


def square(cells=8):
    return dolfinx.mesh.create_unit_square(MPI.COMM_WORLD, cells, cells)


CASES = {
    "poisson": lambda: PoissonControl(square(), alpha=1e-4).problem,
    "bratu": lambda: BratuControl(square(), alpha=1e-3).problem,
    "coefficient": lambda: CoefficientInversion(square(), gamma=1e-6, epsilon=1.0, degree=1).problem,
}
VALUES = {  # of one rank: J_r, |J_r'| and the bound by constants alone, at the third control
    "poisson": (8.44433190739462e-05, 0.0002729182566917539, 5.242944172253788e-05),
    "bratu": (0.0007980194116278053, 0.0013546117374727564, 0.0013880732600411664),
    "coefficient": (0.0001286286494416807, 0.3217854174090464, 2.3147957742309675),
}
# Three ranks share two cores and wait for each other: one case must do.
NAMES = list(CASES) if MPI.COMM_WORLD.size < 3 else ["coefficient"]


def empty_model(problem, **settings):
    inner_product = InnerProduct(problem.state.function_space, "h1_seminorm", problem.system.bcs)
    return ReducedControl(problem, Basis(inner_product, np.empty((inner_product.owned, 0))), **settings)


def wave(problem, model, number, size=1.0):
    """A smooth control, the same on every number of ranks."""
    function = dolfinx.fem.Function(problem.controls[0].function.function_space)
    function.interpolate(
        lambda x: size * (0.7 + np.cos((1 + number % 2) * np.pi * x[0]) * np.sin((1 + number // 2) * x[1] + 0.3))
    )
    vector = model.create_vector()
    vector.array[:] = forms.owned_values(function)
    return vector


def full_answer(model, control):
    derivative = model.create_vector()
    model.full.derivative(control, derivative)
    return model.full.value(control), derivative


def gradient_error(model, approximate, exact):
    difference = approximate.copy()
    difference.axpy(-1.0, exact)
    return model.certificate.dual_norm(difference)


def enriched_model(name):
    """The model after two full solves, and a control that it has not seen."""
    problem = CASES[name]()
    model = empty_model(problem)
    controls = [wave(problem, model, number) for number in range(3)]
    for control in controls[:2]:
        model.enrich(control)
    return model, controls[2]


@pytest.mark.parametrize("name", CASES)
def test_derivatives_are_those_of_the_reduced_objective(name):
    model, control = enriched_model(name)
    gram = model.basis.inner_product.gram(model.basis.modes)
    assert np.abs(gram - np.eye(4)).max() <= 1e-12
    model.set_control(control)
    report = taylor_test(model)
    assert report.passed, report
    model.destroy()


@pytest.mark.parallel([1, 2, 3])
def test_one_model_whatever_the_ranks():
    """Values and bounds are those of one rank."""
    for name in NAMES:
        model, control = enriched_model(name)
        answer = model(control, tolerance=math.inf)
        norm = model.certificate.dual_norm(answer.derivative)
        assert (answer.value, norm) == pytest.approx(VALUES[name][:2], rel=1e-10), name
        assert answer.error.bound == pytest.approx(VALUES[name][2], rel=1e-6), name  # eigenvalues to 1e-6


@pytest.mark.parallel([1, 2])
def test_the_bound_holds_and_is_sharp():
    """At controls that the basis has not seen; and it vanishes, with the error, at one that it has."""
    for name in CASES:
        problem = CASES[name]()
        model = empty_model(problem)
        controls = [wave(problem, model, number) for number in range(4)]
        model.enrich(controls[0])
        value, exact = model.enrich(controls[1])
        answer = model(controls[1])
        size = model.certificate.dual_norm(exact)
        assert answer.value == pytest.approx(value, rel=1e-12)
        assert gradient_error(model, answer.derivative, exact) <= 1e-10 * size
        assert answer.error.bound <= 1e-7 * size, (name, answer.error)
        for control in controls[2:]:
            answer = model(control)
            # The certificate leaves the model's own state and adjoint behind.
            again = model.create_vector()
            model.derivative(control, again)
            assert gradient_error(model, answer.derivative, again) <= 1e-14 * size
            value, exact = full_answer(model, control)
            error = gradient_error(model, answer.derivative, exact)
            assert error > 1e-6 * size
            assert error <= answer.error.bound <= 3.0 * error, (name, answer.error, error)
            assert answer.error.bound <= answer.error.largest_effectivity * error * (1.0 + 1e-9)
            assert abs(answer.value - value) <= answer.error.value_bound, name
        model.destroy()


@pytest.mark.parallel([1, 2])
def test_the_constants_alone_bound_the_error_without_a_solve():
    """Where they are those of every point, the inequality needs no correction; with a wrong adjoint it must fail."""
    problem = CASES["poisson"]()
    model = empty_model(problem, corrections=0)
    controls = [wave(problem, model, number) for number in range(4)]
    model.enrich(controls[0])
    constants = model.certificate.constants
    assert constants.inf_sup == pytest.approx(1.0, rel=1e-5)  # the inner product is the operator
    # |v|^2 <= |grad v|^2 / (2 pi^2), from below on a mesh.
    assert constants.state_curvature == pytest.approx(1.0 / (2.0 * math.pi**2), rel=0.06)
    assert constants.control_operator == pytest.approx(math.sqrt(constants.state_curvature), rel=1e-2)
    assert constants.mixed_curvature == 0.0
    solves = model.full.solves
    for control in controls[1:]:
        answer = model(control)
        assert model.full.solves == solves
        assert model.certificate.corrector_solves == 0
        value, exact = full_answer(model, control)
        solves = model.full.solves
        error = gradient_error(model, answer.derivative, exact)
        assert error <= answer.error.bound
        assert abs(answer.value - value) <= answer.error.value_bound
        # L_u = alpha u - p for the planted adjoint -p.
        wrong = model.create_vector()
        model.full.inner_product().mult(control, wrong)
        wrong.scale(2e-4)
        wrong.axpy(-1.0, answer.derivative)
        assert gradient_error(model, wrong, exact) > answer.error.bound


@pytest.mark.parallel([1, 2])
def test_a_given_basis_serves_and_the_corrections_stop_where_they_suffice():
    problem = MaurerMittelmannControl(square(), ceiling=None, bounds=None).problem
    model = ReducedControl(problem)
    controls = [wave(problem, model, number) for number in range(3)]
    model.enrich(controls[0])
    model.enrich(controls[1])
    answer = model(controls[2])
    _, exact = full_answer(model, controls[2])
    error = gradient_error(model, answer.derivative, exact)
    assert error <= answer.error.bound <= 3.0 * error
    solves = model.certificate.corrector_solves
    rough = model(controls[2], tolerance=1e3)
    assert model.certificate.corrector_solves == solves
    assert rough.error.corrections == 0
    assert rough.error.bound > answer.error.bound
    other = ReducedControl(problem, model.basis, origin=np.zeros(model.basis.inner_product.owned))
    assert other.value(controls[2]) == pytest.approx(model.value(controls[2]), rel=1e-10)
    assert model.bounds() is None


@pytest.mark.parallel([1, 2])
def test_what_cannot_be_answered_is_an_error_on_all_ranks():
    problem = CASES["bratu"]()
    model = empty_model(problem)
    control = wave(problem, model, 0)
    with pytest.raises(InputError, match="enrich"):
        model.value(control)
    model.enrich(control)
    control.scale(1e3)  # Bratu's equation has no solution for so strong a source
    with pytest.raises(ConvergenceError, match="reduced state equation"):
        model.value(control)
    with pytest.raises(OptionError, match="state_bounds"):
        empty_model(MaurerMittelmannControl(square()).problem)
    elsewhere = InnerProduct(dolfinx.fem.functionspace(square(), ("Lagrange", 2)))
    with pytest.raises(InputError, match="state's space"):
        ReducedControl(problem, Basis(elsewhere, np.empty((elsewhere.owned, 0))))


@pytest.mark.parallel([1, 2])
def test_the_trust_region_ends_at_a_minimum_of_the_full_problem():
    """Far fewer full solves than the full optimiser needs, even where the first models mislead."""
    for make, most in (
        (CASES["bratu"], 6),
        (lambda: CoefficientInversion(square(), gamma=1e-8, epsilon=1.0, degree=1).problem, 16),
    ):
        problem = make()
        model = empty_model(problem)
        seen = []
        report = minimise_by_model(model, rtol=1e-7, monitor=lambda iteration, norm, seen=seen: seen.append(norm))
        assert report.residuals[-1] <= 1e-7 * report.residuals[0]
        assert seen[0] == report.residuals[0]
        assert model.full.state_solves <= most, report
        control = model.create_vector()
        model.get_control(control)
        # What is left behind is the full problem's: its gradient vanishes at the functions as they stand.
        _, derivative = full_answer(model, control)
        assert model.certificate.dual_norm(derivative) <= 1.01e-7 * report.residuals[0]
        reference = make().reduced_functional()
        assert minimise(reference, "bntr", rtol=1e-9).quantities["objective"] == pytest.approx(
            report.quantities["objective"], rel=1e-6
        )
        with pytest.raises(ConvergenceError, match="max_iterations"):
            minimise_by_model(empty_model(make()), rtol=1e-12, max_iterations=1)


def test_the_trust_region_refuses_bounds():
    problem = PoissonControl(square(), bounds=(0.0, 0.1)).problem
    with pytest.raises(OptionError, match="bounds"):
        minimise_by_model(empty_model(problem))
