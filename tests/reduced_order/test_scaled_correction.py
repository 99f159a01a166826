"""Corrections by the scaled inner product: near Newton steps for diffusion, and refused where they would not help."""

import itertools

from mpi4py import MPI

import numpy as np
import pytest
from newton_cases import sines

import pdeopt
from pdeopt.reduced_order import InnerProduct, ReducedModel, ScaledCorrection, as_guess
from pdeopt.report import InputError

WORLD, SELF = MPI.COMM_WORLD, MPI.COMM_SELF
UNSEEN = np.array([0.46, 0.57, 35.0])


def corrected(case, start, steps):
    problem = case.problem
    problem.set_parameter(UNSEEN)
    correction = ScaledCorrection(problem.residual, problem.u, case.basis.inner_product, problem.bcs, steps)
    values = correction(start)
    correction.destroy()
    return values


@pytest.mark.parallel([1, 2, 3])
def test_each_step_shrinks_the_error_of_a_smooth_answer_on_any_number_of_ranks():
    found, norms = [], []
    for comm in (SELF, WORLD):
        case = sines(comm, cells=16)
        truth = case.solve(UNSEEN)
        start = case.basis.expand(case.basis.coordinates(truth[:, None])[:, 0])
        fields = [start, *(corrected(case, start, steps) for steps in (1, 2, 3))]
        errors = [case.error(field, truth) for field in fields]
        assert max(after / before for before, after in itertools.pairwise(errors)) <= 0.06, errors
        found.append(errors)
        norms.append(case.basis.inner_product.norms(np.column_stack(fields)))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-6)
    np.testing.assert_allclose(norms[1], norms[0], rtol=1e-10)


def test_a_corrected_guess_saves_one_more_newton_step():
    case = sines(SELF, cells=16)
    problem, steps = case.problem, []
    model = ReducedModel(problem.u, case.basis, case.galerkin(case.basis.size))
    correction = ScaledCorrection(problem.residual, problem.u, case.basis.inner_product, problem.bcs, 2)
    for correct in (None, correction):
        guest = pdeopt.attach_guess(case.solver, as_guess(model, correct))
        case.solve(UNSEEN)
        steps.append(case.solver.solver.getIterationNumber())
        guest.detach()
    assert steps[1] < steps[0]


def test_steps_that_would_not_help_are_not_taken():
    case = sines(SELF, cells=8)
    problem, start = case.problem, case.basis.modes[:, 0].copy()
    problem.set_parameter(UNSEEN)
    mass = InnerProduct(problem.space, "l2", problem.bcs)  # not like the Jacobian
    correction = ScaledCorrection(problem.residual, problem.u, mass, problem.bcs)
    np.testing.assert_array_equal(correction(start), start)
    start[case.basis.inner_product.owned // 2] = np.nan
    np.testing.assert_array_equal(corrected(case, start, 2), start)


def test_wrong_input_is_named():
    case = sines(SELF, cells=4)
    problem, product = case.problem, case.basis.inner_product
    with pytest.raises(InputError, match="steps"):
        ScaledCorrection(problem.residual, problem.u, product, problem.bcs, 0)
    with pytest.raises(InputError, match="other Dirichlet conditions"):
        ScaledCorrection(problem.residual, problem.u, product)
