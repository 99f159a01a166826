"""The cells that a reduced equilibrium keeps in reserve."""

from mpi4py import MPI

import numpy as np
import pytest

from pdeopt.problems import ThermoplasticPlate
from pdeopt.reduced_order import Cubature, InnerProduct, ReducedEquilibrium, Snapshots, proper_orthogonal_decomposition


@pytest.mark.parallel([1, 2])
def test_the_pool_has_the_cubature_and_its_further_cells_get_weights_later():
    plate = ThermoplasticPlate(MPI.COMM_WORLD, 4)
    flow = plate.solve_trajectory(plate.parameters(1, "plate")[0], 5)
    snapshots = Snapshots(InnerProduct(plate.space, "h1", plate.bcs))
    snapshots.extend(flow.unknowns)
    basis = proper_orthogonal_decomposition(snapshots, modes=2)
    cubature = Cubature(np.array([0, 3, 20]), np.full(3, 10.0), 0.0)
    further = Cubature(np.array([1, 3, 7]), np.ones(3), 0.0)
    model = ReducedEquilibrium(plate.residual, plate.internal, basis, cubature, bcs=plate.bcs, pool=further)
    assert model.pool.cells.tolist() == [0, 1, 3, 7, 20]
    model.enrich(basis, further)
    assert model.cubature is further
