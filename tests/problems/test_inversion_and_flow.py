"""Coefficient inversion beside its published run, and Navier-Stokes control with a known optimum."""

from mpi4py import MPI

import dolfinx
import numpy as np
import pytest

from pdeopt.bench.optimise_rivals import bntr, inexact_newton_cg
from pdeopt.control import minimise
from pdeopt.optimise.eigenpair_rules import randomised, sensor_wise
from pdeopt.optimise.low_rank import LowRankPreconditioner, Metric, prior_matrix
from pdeopt.problems import CoefficientInversion, NavierStokesControl
from pdeopt.report import ConvergenceError, InputError, OptionError


def unit_square(cells):
    return dolfinx.mesh.create_unit_square(MPI.COMM_WORLD, cells, cells)


def test_coefficient_inversion_as_published():
    """The published run with other noise: 8 Newton steps, 44 iterations of CG, objective 1.81528e-7."""
    case = CoefficientInversion(unit_square(64))
    row = inexact_newton_cg(case.problem)
    assert row["converged"]
    assert row["iterations"] <= 9
    assert row["CG iterations"] <= 50
    assert row["objective"] == pytest.approx(1.81528e-7, rel=0.02)
    # One state solve a step and one at the start, as many gradients, two solves an iteration of CG.
    assert row["PDE solves"] == 2 * (row["iterations"] + 1) + 2 * row["CG iterations"]
    assert case.error() <= 0.2


def test_trust_region_with_the_prior_as_preconditioner():
    """The diagonal of an H1 product is no measure of it: the prior itself saves TAO most of its Hessian actions."""
    settings = {"gamma": 1e-8, "epsilon": 5.0, "degree": 1}
    case = CoefficientInversion(unit_square(24), **settings)
    functional = case.problem.reduced_functional()
    plain = minimise(functional, "bntr", rtol=1e-9)
    row = bntr(CoefficientInversion(unit_square(24), **settings).problem)
    assert row["converged"], row
    assert row["objective"] == pytest.approx(plain.quantities["objective"], rel=1e-9)
    assert 2 * row["PDE solves"] <= functional.solves
    with pytest.raises(OptionError, match="without bounds"):
        minimise(functional, "bqnls", preconditioner=LowRankPreconditioner(Metric(prior_matrix(case.problem.system))))


def test_few_sensors_need_fewer_solves_in_their_own_space():
    """The exact form of ten sensors halves the solves of the prior alone; a double pass does not pay for itself."""
    settings = {"gamma": 1e-9, "epsilon": 10.0, "noise": 0.01, "degree": 1}
    rows = []
    for rule in ("prior", "sensorwise", "randomised"):
        case = CoefficientInversion(unit_square(32), 10, **settings)
        choose = {"sensorwise": lambda c=case: sensor_wise(*c.observations()),
                  "randomised": lambda c=case: randomised(c.problem.system, 10), "prior": lambda: None}  # fmt: skip
        rows.append(inexact_newton_cg(case.problem, renewal=choose[rule]()))
        assert rows[-1]["converged"]
        assert rows[-1]["objective"] == pytest.approx(rows[0]["objective"], rel=1e-7)
    prior, sensors, sketch = (row["PDE solves"] for row in rows)
    assert 1.5 * sensors <= prior, (prior, sensors, sketch)
    assert sensors < sketch, (prior, sensors, sketch)


# On 12 x 12 cells, by number of sensors: the objective at the start and at the minimum that one rank printed.
INVERSIONS = {
    None: (0.00011739435842834182, 1.4390665217236525e-07),
    5: (0.00014035228909069707, 7.159196609168872e-08),
}


@pytest.mark.parallel([1, 2, 3])
def test_inversion_on_every_rank_count():
    """Noise and sensors do not know how many ranks there are."""
    for sensors, (start, least) in INVERSIONS.items():
        case = CoefficientInversion(unit_square(12), sensors, gamma=1e-8, epsilon=5.0, degree=1)
        row = inexact_newton_cg(case.problem, rtol=1e-6, max_iterations=0)
        assert row["objective"] == pytest.approx(start, rel=1e-10), sensors
        if MPI.COMM_WORLD.size < 3:  # three ranks on two cores are slow
            row = inexact_newton_cg(case.problem, rtol=1e-6)
            assert row["converged"], row
            assert row["objective"] == pytest.approx(least, rel=1e-7), sensors


def test_derivatives_and_mistakes_of_the_inversion():
    case = CoefficientInversion(unit_square(8), 7)
    assert case.problem.taylor_test().passed
    assert case.problem.check_symmetry() <= 1e-11
    rows, weights = case.observations()
    assert len(rows) == weights.size == 7
    for settings in ({"gamma": 0.0}, {"sensors": 0}, {"noise": -1.0}, {"epsilon": -1.0}):
        with pytest.raises(InputError):
            CoefficientInversion(unit_square(4), **settings)
    with pytest.raises(InputError, match="share cells"):
        CoefficientInversion(unit_square(2), 50)


def test_a_failed_state_solve_does_not_spoil_the_next():
    """A line search tries a coefficient that overflows, and then a shorter step."""
    case = CoefficientInversion(unit_square(8), degree=1)
    functional = case.problem.reduced_functional()
    control, far = functional.create_vector(), functional.create_vector()
    functional.get_control(control)
    value = functional.value(control)
    far.waxpy(1.0, control, control)
    far.array[:] += 1e3 * np.cos(np.arange(far.getLocalSize()))
    with pytest.raises(ConvergenceError):
        functional.value(far)
    assert functional.value(control) == pytest.approx(value, rel=1e-12)
    assert functional.solves == 2  # the equation is linear in the state: one solve each; what failed does not count


def solved_flow(cells, **settings):
    case = NavierStokesControl(unit_square(cells), **settings)
    report = case.problem.solve()
    assert report.iterations <= 5
    return case


def test_navier_stokes_orders():
    """Velocity, control and adjoint converge by third order, the pressure by second; errors at small alpha, too."""
    coarse, fine = (solved_flow(cells).errors() for cells in (12, 24))
    for field, bound in {"velocity": 2.85, "control": 2.9, "adjoint": 2.9, "pressure": 1.95}.items():
        assert np.log2(coarse[field] / fine[field]) >= bound, field
    small = solved_flow(12, alpha=1e-8).errors()
    assert small["velocity"] <= 1.5e-3
    assert small["control"] <= 0.1


def test_navier_stokes_optimum_solves_the_optimality_system():
    residuals = []
    for cells in (8, 16):
        case = NavierStokesControl(unit_square(cells))
        case.set_optimum()
        residuals.append(case.problem.solve().residuals[0])
    assert np.log2(residuals[0] / residuals[1]) >= 1.9


@pytest.mark.parallel([1, 2, 3])
def test_navier_stokes_on_every_rank_count():
    """By the optimality system; and in the space of the controls, where the flow starts at rest."""
    case = solved_flow(8)
    assert case.problem.objective_value() == pytest.approx(FLOW, rel=1e-8)
    if MPI.COMM_WORLD.size < 3:
        case = NavierStokesControl(unit_square(8), alpha=1e-2)
        row = inexact_newton_cg(case.problem)
        assert row["converged"], row


FLOW = 1.631933140008665e-05
