"""Full-space Newton steps by elimination: no solve that CG has made already, and none more accurate than asked."""

from mpi4py import MPI

import dolfinx
import numpy as np
import pytest

from pdeopt.bench.optimise_counts import Certificate
from pdeopt.bench.optimise_rivals import inexact_newton_cg
from pdeopt.control.conjugate_trace import ConjugateTrace
from pdeopt.control.riesz import control_riesz_map
from pdeopt.optimise import ControlProgram, minimise
from pdeopt.optimise.program import norm
from pdeopt.problems import CoefficientInversion, NavierStokesControl, SemilinearControl


def unit_square(cells):
    return dolfinx.mesh.create_unit_square(MPI.COMM_WORLD, cells, cells)


def program_of(problem):
    return ControlProgram(problem, "reduced_hessian")


@pytest.mark.parallel([1, 2])
def test_states_and_adjoints_of_the_directions_add_up_to_the_solution():
    """A step costs two solves, and two for each iteration of CG; its residual is what was asked for, not much less."""
    program = program_of(SemilinearControl(unit_square(12), alpha=1e-4).problem)
    right, step = program.create(), program.create()
    program.residual(right)
    for rtol in (1e-2, 1e-8):
        kkt = program.kkt_solver()
        result = kkt.solve(right, step, rtol)
        assert result.state_solves == 2 + 2 * result.iterations
        assert 1e-4 * rtol <= result.relative_residual <= rtol
        # A matrix-vector product of one's own: the KKT system holds, not only its reduced form.
        product, dual = program.create(), program.create()
        program.hessian_mult(step.primal, product.primal)
        program.jacobian_mult_transpose(step.dual, dual.primal)
        product.primal.axpy(1.0, dual.primal)
        program.jacobian_mult(step.primal, product.dual)
        product.primal.aypx(-1.0, right.primal)
        product.dual.aypx(-1.0, right.dual)
        assert norm(program, product) <= 1.01 * rtol * norm(program, right)
        again = kkt.solve(right, step, rtol / 10, improve=True)
        assert again.state_solves == 2 * again.iterations  # what is left is in the controls alone
        kkt.destroy()
    program.destroy()


def test_directions_of_one_step_precondition_the_next():
    program = program_of(NavierStokesControl(unit_square(4), alpha=1e-3, reynolds=20.0).problem)
    right, step = program.create(), program.create()
    program.residual(right)
    counts = []
    for _ in range(2):
        kkt = program.kkt_solver()
        counts.append(kkt.solve(right, step, 1e-3).iterations)
        kkt.destroy()
    assert counts[1] <= 2 < counts[0], counts
    program.destroy()


def test_a_trace_leaves_out_directions_of_negative_curvature():
    problem = SemilinearControl(unit_square(4)).problem
    functional = problem.reduced_functional()
    right = functional.create_vector()
    right.set(1.0)
    image = right.copy()
    image.scale(-1.0)
    trace = ConjugateTrace(right, right, limit=3)
    trace.record(right, image, right, right)
    assert trace.control.norm() == 0.0
    assert trace.take_pairs() == []
    image.scale(-2.0)
    trace.record(right, image, right, right)  # H = 2: the step is 1/2
    assert trace.residual.norm() == pytest.approx(0.0, abs=1e-14)
    assert trace.adjoint.norm() == pytest.approx(0.5 * right.norm())
    assert len(trace.take_pairs()) == 1
    trace.release()


@pytest.mark.parallel([1, 2])
def test_inversion_needs_fewer_solves_than_newton_in_the_space_of_the_controls():
    cases = [CoefficientInversion(unit_square(32), gamma=1e-7, epsilon=1.0, degree=1) for _ in range(3)]
    report = minimise(cases[0].problem, method="reduced_hessian")
    rival = inexact_newton_cg(cases[1].problem)
    certificate = Certificate(cases[2])
    assert certificate.judge(cases[0].problem) <= 1.01e-8
    assert cases[0].problem.objective_value() == pytest.approx(rival["objective"], rel=1e-8)
    assert report.quantities["state solves"] < rival["PDE solves"]
    assert certificate.judge(cases[1].problem) > 0.0
    cases[0].control.x.array[:] += 1e-3  # an error that was planted
    assert certificate.judge(cases[0].problem) > 1e-6


def test_restored_points_satisfy_state_and_adjoint_equation():
    case = CoefficientInversion(unit_square(8), 5, degree=1)
    case.control.interpolate(lambda x: x[0] - np.sin(3.0 * x[1]))
    program = program_of(case.problem)
    point, residual = program.create(), program.create()
    program.get(point)
    assert program.restore(point) == 2
    program.move(point)
    program.residual(residual)
    state = case.problem.system.layout.sizes[0]
    assert np.abs(residual.primal.array_r[:state]).max() <= 1e-12
    assert residual.dual.norm() <= 1e-12 < residual.primal.norm()
    assert program_of(SemilinearControl(unit_square(4)).problem).restore(point) == 0  # not affine in the state
    program.destroy()


def test_the_norm_of_nan_is_no_zero():
    problem = SemilinearControl(unit_square(4)).problem
    product = control_riesz_map(problem.system.control_products[0])
    covector = problem.system.control_products[0].createVecRight()
    covector.set(np.nan)
    assert np.isnan(product.dual_norm_squared(covector))
