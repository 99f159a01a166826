"""Modes in single precision: within their bound of those in double precision, which certified bounds contain."""

from mpi4py import MPI

import numpy as np
import pytest
from newton_cases import sines

from pdeopt.reduced_order import Certificate, FullResidual, ReducedModel, SinglePrecisionModes, Stability

WORLD, SELF = MPI.COMM_WORLD, MPI.COMM_SELF


@pytest.mark.parallel([1, 2, 3])
def test_fields_are_within_the_bound_and_the_bound_is_the_same_on_any_number_of_ranks():
    bounds = []
    for comm in (SELF, WORLD):
        basis = sines(comm, cells=8, waves=4).basis
        single = SinglePrecisionModes(basis)
        coordinates = 0.7 ** np.arange(basis.size) * np.cos(np.arange(basis.size))
        difference = single.expand(coordinates) - basis.expand(coordinates)
        error = basis.inner_product.norms(difference[:, None])[0]
        assert 0.0 < error <= single.error(coordinates) <= 1e-4
        bounds.append(single.error(coordinates))
        leading = np.where(np.arange(basis.size) < 4, coordinates, 0.0)  # these are in double precision
        assert single.error(leading) == 0.0
        np.testing.assert_allclose(single.expand(leading), basis.expand(leading), rtol=0, atol=1e-14)
    np.testing.assert_allclose(bounds[1], bounds[0], rtol=1e-10)


def test_a_model_adds_the_rounding_to_its_bound():
    case = sines(SELF, waves=4)
    problem, basis = case.problem, case.basis
    problem.set_parameter(np.array([0.46, 0.57, 35.0]))
    norm = FullResidual(problem.residual, problem.u, basis, problem.bcs)
    arguments = problem.u, basis, case.galerkin(basis.size)
    single = SinglePrecisionModes(basis)
    certified = []
    for modes in (None, single):
        model = ReducedModel(*arguments, certificate=Certificate(norm, Stability(0.9)), single=modes)
        certified.append(model.solve().quantities["relative error, certified"])
    coordinates = model.propose().coordinates
    np.testing.assert_array_equal(model.field(coordinates), single.expand(coordinates))
    added = single.error(coordinates) / model.norm(coordinates)
    assert added <= certified[1] - certified[0] <= 3.0 * added
