"""Reduced models with a history: against the full body, their indicators, learning, and bad input."""

import dataclasses

from mpi4py import MPI

import numpy as np
import pytest
import ufl
from history_cases import STEPS, plate, with_pool

from pdeopt.fem.quasi_static import QuasiStatic
from pdeopt.reduced_order import (
    Adaptive,
    Basis,
    Cubature,
    ElasticCorrection,
    EnrichmentSettings,
    GappyHistory,
    HierarchicalHistory,
    InnerProduct,
    Integrands,
    all_cells,
    replay,
    select_cells,
)
from pdeopt.reduced_order.cubature import original_cells
from pdeopt.report import InputError

WORLD, SELF = MPI.COMM_WORLD, MPI.COMM_SELF


@pytest.fixture(scope="module")
def case():
    return plate(WORLD)


def march(case, model, load):
    driver = QuasiStatic(model, case.plate.set_load, time_step=case.plate.driver.time_step)
    case.plate.set_parameter(case.parameters[load])
    driver.reset()
    return driver.march(case.plate.times(STEPS))


@pytest.fixture(scope="module")
def exact(case):
    return case.model(case.basis, all_cells(case.plate.mesh))


@pytest.fixture(scope="module")
def small(case):
    return case.model(case.basis.truncate(4), all_cells(case.plate.mesh))


@pytest.fixture(scope="module")
def three_modes(case):
    return case.forces(case.basis.truncate(3), 1e-8, loads=1)


@pytest.mark.parallel([1, 2, 3])
def test_all_cells_and_all_states_give_the_full_trajectory(case, exact):
    found = march(case, exact, 1)
    errors = case.relative(case.basis.expand(found.unknowns) - case.states[1], case.states[1])
    assert errors.max() <= 1e-4
    strain = found.history["cumulated plastic strain"][:, -1]
    assert WORLD.allreduce(strain.max(initial=0.0), MPI.MAX) > 1e-5


@pytest.mark.parallel([1, 2, 3])
def test_the_patterns_hold_the_integrands_of_all_states(case, three_modes):
    basis, problem = case.basis.truncate(3), case.plate
    integrands = Integrands(problem.residual, problem.u, basis, problem.internal.tangent(problem.residual))
    problem.set_parameter(case.parameters[0])
    problem.driver.reset()
    gram = 0.0
    for _ in replay(problem.driver, problem.times(STEPS), case.states[0]):
        blocks = [integrands.residual(), integrands.tangent()]
        size = sum(WORLD.allreduce(np.abs(block).sum(axis=0)).max() for block in blocks)
        for block, weight in zip(blocks, (1.0, 0.1), strict=True):
            gram = gram + (weight / size) ** 2 * block @ block.T / STEPS
    rows = three_modes.rows()
    scale = WORLD.allreduce(np.abs(gram).max(initial=0.0), MPI.MAX)
    error = np.abs(rows.T @ rows - gram).max(initial=0.0)
    assert WORLD.allreduce(error, MPI.MAX) <= 1e-10 * scale


@pytest.mark.parallel([1, 2, 3])
def test_combined_rows_keep_the_error_of_given_weights(case, three_modes):
    combined = case.forces(case.basis.truncate(3), three_modes.tolerance, loads=1, rows=20)
    assert len(combined.rows()) == 20 < len(three_modes.rows())
    random = np.random.default_rng(0).uniform(0.0, 2.0, (case.plate.mesh.topology.index_map(2).size_global, 200))
    owned = original_cells(case.plate.mesh)
    errors = [
        np.linalg.norm(WORLD.allreduce(forces.rows() @ (random[owned] - 1.0)), axis=0)
        for forces in (combined, three_modes)
    ]
    ratios = (errors[0] / errors[1]) ** 2
    assert 0.7 <= ratios.mean() <= 1.3
    assert ratios.std() <= 0.6


@pytest.mark.parallel([1, 2, 3])
def test_a_further_mode_adds_the_rows_that_it_would_have_had(case):
    forces = case.forces(case.basis.truncate(2), 1e-8, loads=1)
    rows = forces.rows()
    problem = case.plate
    problem.set_parameter(case.parameters[0])
    problem.driver.reset()
    for _ in replay(problem.driver, problem.times(STEPS)[:1], case.states[0]):
        forces.enrich(case.basis.modes[:, 2])
    inside = np.arange(rows.shape[1]) % 3 == 0
    after = forces.rows()
    part, sums = forces.columns(inside)
    assert np.abs(part - after[:, inside]).max(initial=0.0) <= 1e-14 * np.abs(after).max(initial=1e-300)
    assert np.allclose(sums, after.sum(axis=1), rtol=0.0, atol=1e-12)
    assert np.array_equal(after[: len(rows)], rows)
    # The same state again: its rows are those of the patterns, so that no cubature has more to integrate.
    cubature = select_cells(forces, 1e-4)
    errors = WORLD.allreduce(after @ (_weights(case, cubature) - 1.0))
    assert np.linalg.norm(errors) <= 1.001e-4


def _weights(case, cubature):
    original = case.plate.mesh.topology.original_cell_index[: case.plate.mesh.topology.index_map(2).size_local]
    weights = np.zeros(len(original))
    here = np.isin(original, cubature.cells)
    weights[here] = cubature.weights[np.searchsorted(cubature.cells, original[here])]
    return weights


@pytest.mark.parallel([1, 2, 3])
def test_a_cubature_keeps_to_the_cells_it_may_choose_among(three_modes):
    allowed = select_cells(three_modes, 1e-4).cells
    coarse = select_cells(three_modes, 1e-2, among=allowed)
    assert np.all(np.isin(coarse.cells, allowed))
    assert coarse.size <= allowed.size


@pytest.mark.parallel([1, 2, 3])
def test_learning_brings_an_unseen_load_below_the_tolerance_on_any_number_of_ranks(case):
    world = case
    found = []
    for case in [world] if WORLD.size == 1 else [plate(SELF), world]:
        basis = case.basis.truncate(4)
        forces = case.forces(basis, 1e-3, loads=1)
        cubature, pool = with_pool(forces, 3e-3)
        times = case.plate.times(STEPS)
        still = EnrichmentSettings(0.02, learn=False)
        adaptive = Adaptive(case.plate.driver, case.model(basis, cubature, pool), forces, 3e-3, still)
        case.plate.set_parameter(case.parameters[1])
        before = adaptive.march(times)
        assert not before.full_steps.any()
        assert adaptive.reduced.basis.size == 4
        adaptive.settings = dataclasses.replace(still, learn=True)
        after = adaptive.march(times)
        assert 0 < after.full_steps.sum() <= STEPS
        assert adaptive.updates == adaptive.reduced.basis.size - 4
        errors = [case.relative(run.unknowns - case.states[1], case.states[1]).max() for run in (before, after)]
        assert errors[1] <= 0.3 * errors[0]
        gram = adaptive.reduced.basis.inner_product.gram(adaptive.reduced.basis.modes)
        assert np.abs(gram - np.eye(len(gram))).max() <= 1e-10
        found.append(np.concatenate([before.estimates, after.estimates, errors]))
    assert np.allclose(found[0], found[-1], rtol=1e-6, atol=1e-12)


@pytest.mark.parallel([1])
def test_corrections_estimate_the_error_and_better_the_answers(case, small, three_modes):
    case.plate.set_parameter(case.parameters[1])
    found = []
    for corrections in (2, 60):
        for learn in (False, True):
            settings = EnrichmentSettings(np.inf, corrections=corrections, learn=learn)
            adaptive = Adaptive(case.plate.driver, small, three_modes, 1e-2, settings)
            run = adaptive.march(case.plate.times(STEPS))
            adaptive.destroy()
            assert not run.full_steps.any()
            errors = case.relative(run.unknowns - case.states[1], case.states[1])
            found.append((run.estimates.max(), errors.max()))
    (estimate, error), (_, corrected), (last_estimate, _), (_, last) = found
    assert 0.5 <= estimate / error <= 1.5
    assert corrected <= 0.6 * error
    # With many corrections the answer is the full body's, and the estimate the error.
    assert last <= 1e-3 * error
    assert abs(last_estimate - error) <= 2e-3 * error


@pytest.mark.parallel([1, 2, 3])
def test_one_correction_is_exact_where_nothing_flows(case):
    problem = case.plate
    problem.set_parameter(np.array([0.3, 0.5, 0.7, 0.5, 1.0]))
    problem.driver.reset()
    problem.driver.step(0.3)
    assert np.abs(problem.internal.active.x.array).max() == 0.0
    wanted = problem.solver.unknown()
    correction = ElasticCorrection(problem.driver)
    found = correction(0.3, -wanted)
    correction.destroy()
    norms = case.basis.inner_product.norms(np.column_stack([found - wanted, wanted]))
    assert norms[0] <= 1e-9 * norms[1]


@pytest.mark.parallel([1])
def test_the_hierarchical_indicator_is_the_error_where_the_larger_model_is_exact(case, exact, small):
    indicator = HierarchicalHistory(exact, 4)
    driver = QuasiStatic(small, case.plate.set_load, time_step=case.plate.driver.time_step)
    case.plate.set_parameter(case.parameters[1])
    driver.reset()
    indicator.reset()
    errors, estimates = [], []
    for step, time in enumerate(case.plate.times(STEPS)):
        driver.step(float(time))
        estimates.append(indicator.step(small.coordinates))
        error = small.basis.expand(small.coordinates) - case.states[1][:, step]
        errors.append(case.basis.inner_product.norms(error[:, None])[0])
    assert max(errors) > 0.0
    assert 0.8 <= max(estimates) / max(errors) <= 1.25


@pytest.mark.parallel([1, 2, 3])
def test_gappy_values_are_completed_where_they_are_in_the_basis_and_missed_elsewhere(case):
    field = case.plate.internal.increment
    rule = ufl.dx(metadata={"quadrature_degree": 1, "quadrature_rule": "default"})
    product = InnerProduct(field.function_space, lambda p, q: p * q * rule)
    x = case.plate.mesh.geometry.x[case.plate.mesh.geometry.dofmaps[0]].mean(axis=1)[: product.owned]
    modes = np.column_stack([np.ones(product.owned), x[:, 0], x[:, 1]])
    points = np.flatnonzero(np.arange(product.owned) % 3 == 0)
    gappy = GappyHistory(Basis(product, modes), points)
    wanted = modes @ np.array([1.0, 2.0, -30.0])
    assert gappy.reconstruct(wanted[points], field) <= 1e-7
    error = np.abs(field.x.array[: product.owned] - wanted).max(initial=0.0)
    field.x.array[:] = 0.0
    assert WORLD.allreduce(error, MPI.MAX) <= 1e-10
    assert 0.1 < gappy.coordinates(np.sin(300.0 * x[points, 0]))[1] <= 1.0
    assert gappy.coordinates(np.zeros(points.size))[1] == 0.0
    with pytest.raises(InputError, match="none of 3 modes is seen"):
        GappyHistory(Basis(product, 0.0 * modes), points)


@pytest.mark.parallel([1, 2, 3])
def test_bad_input_is_named(case):
    basis = case.basis.truncate(2)
    few = Cubature(np.array([0, 3]), np.array([36.0, 36.0]), 0.0)
    model = case.model(basis, few)
    with pytest.raises(InputError, match="cells that the reduced mesh lacks"):
        model.enrich(basis, Cubature(np.array([1]), np.array([72.0]), 0.0))
    with pytest.raises(InputError, match="give it more"):
        HierarchicalHistory(model, 2)
    with pytest.raises(InputError, match="tolerance"):
        EnrichmentSettings(-1.0)
    with pytest.raises(InputError, match="corrections = 0"):
        EnrichmentSettings(1.0, corrections=0)
    with pytest.raises(InputError, match="needs a NewtonEquilibrium"):
        ElasticCorrection(QuasiStatic(model, case.plate.set_load, time_step=case.plate.driver.time_step))
    with pytest.raises(InputError, match="not in"):
        case.forces(basis, 2.0, loads=1)
    with pytest.raises(InputError, match="one row"):
        case.forces(basis, 0.1, loads=1, rows=0)
