"""A small plate under a moving spot, and reduced models trained on a few of its loads."""

import dataclasses

from mpi4py import MPI

import numpy as np

from pdeopt.problems import ThermoplasticPlate
from pdeopt.reduced_order import Basis, Cubature, InnerProduct, InternalForces, ReducedEquilibrium, replay, select_cells

STEPS = 5


@dataclasses.dataclass
class Plate:
    """A plate, its trajectories (states as columns), and modes of all their states."""

    plate: ThermoplasticPlate
    parameters: np.ndarray
    states: list[np.ndarray]
    basis: Basis

    def forces(self, basis: Basis, tolerance: float, loads: int, rows: int = 1000) -> InternalForces:
        plate = self.plate
        tangent = plate.internal.tangent(plate.residual)
        forces = InternalForces(plate.residual, plate.u, basis, tangent, tolerance, rows=rows)
        for parameter, states in zip(self.parameters[:loads], self.states[:loads], strict=True):
            plate.set_parameter(parameter)
            plate.driver.reset()
            for _ in replay(plate.driver, plate.times(STEPS), states):
                forces.append()
        forces.compress()
        return forces

    def model(self, basis: Basis, cubature: Cubature, pool: Cubature | None = None) -> ReducedEquilibrium:
        plate = self.plate
        return ReducedEquilibrium(plate.residual, plate.internal, basis, cubature, bcs=plate.bcs, pool=pool)

    def relative(self, fields: np.ndarray, states: np.ndarray) -> np.ndarray:
        norms = self.basis.inner_product.norms
        return norms(fields) / np.maximum.accumulate(norms(states))


def plate(comm: MPI.Comm, loads: int = 2) -> Plate:
    """Return a plate with the modes of all states of its trajectories."""
    # Each rank factorises all of the small matrix: a distributed one would wait for messages most of the time.
    problem = ThermoplasticPlate(comm, 6, pc_type="redundant")
    parameters = problem.parameters(loads, "test plate")
    states = [problem.solve_trajectory(parameter, STEPS).unknowns for parameter in parameters]
    product = InnerProduct(problem.space, "h1_seminorm", problem.bcs)
    return Plate(problem, parameters, states, orthonormal(product, np.hstack(states)))


def orthonormal(product: InnerProduct, columns: np.ndarray) -> Basis:
    """Return the principal modes of columns, signs fixed by the first column's coordinates."""
    columns = columns / product.norms(columns)
    values, vectors = np.linalg.eigh(product.gram(columns))
    kept = values > 1e-10 * values[-1]
    vectors = vectors[:, kept][:, ::-1]
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])])
    modes = columns @ (vectors / np.sqrt(values[kept][::-1]))
    for _ in range(2):
        modes = np.linalg.solve(np.linalg.cholesky(product.gram(modes)), modes.T).T
    return Basis(product, np.ascontiguousarray(modes))


def with_pool(forces: InternalForces, tolerance: float) -> tuple[Cubature, Cubature]:
    """Return a cubature, and a pool of all cells of a finer one."""
    cubature = select_cells(forces, tolerance)
    cells = np.union1d(cubature.cells, select_cells(forces, forces.tolerance, start=cubature).cells)
    return cubature, Cubature(cells, np.ones(cells.size), 0.0)
