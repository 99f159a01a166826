"""What the tests of reduced solves share: a plate under a moving source, its snapshots, a basis of them."""

import dataclasses

from mpi4py import MPI

import dolfinx
import numpy as np

from pdeopt.fem import forms
from pdeopt.problems.moving_source import WIDE, MovingSource
from pdeopt.reduced_order import Basis, CoordinateInterpolation, GalerkinSystem, InnerProduct


@dataclasses.dataclass
class Heat:
    """The problem, and a basis from solutions at training parameters."""

    problem: MovingSource
    solver: object
    basis: Basis
    parameters: np.ndarray
    coordinates: np.ndarray

    def galerkin(self, size):
        problem = self.problem
        return GalerkinSystem(problem.residual, problem.u, self.basis.truncate(size), problem.bcs)

    def start(self, size):
        interpolation = CoordinateInterpolation(logarithmic(self.parameters), self.coordinates[:size])
        return lambda: interpolation(self.problem.parameter())

    def solve(self, parameter):
        """Return the owned values of the full solution."""
        self.problem.set_parameter(parameter)
        self.problem.u.x.array[:] = 0.0
        self.solver.solve()
        return np.array(forms.owned_values(self.problem.u))

    def error(self, values, truth):
        return float(self.basis.inner_product.norms((values - truth)[:, None])[0])


def logarithmic(parameters):
    return np.column_stack([parameters[:, :2], np.log(parameters[:, 2])])


def heat(comm=MPI.COMM_WORLD, cells=12, snapshots=24):
    mesh = dolfinx.mesh.create_unit_square(comm, cells, cells)
    problem = MovingSource(mesh, WIDE)
    solver = problem.solver("moving_source_")
    product = InnerProduct(problem.space, "h1", problem.bcs)
    case = Heat(problem, solver, None, problem.parameters(snapshots, "train"), None)
    columns = np.array([case.solve(parameter) for parameter in case.parameters]).T
    squares, vectors = np.linalg.eigh(product.gram(columns))
    order = np.argsort(-squares)[: snapshots - 4]
    modes = columns @ (vectors[:, order] / np.sqrt(squares[order]))
    for _ in range(2):
        modes = np.linalg.solve(np.linalg.cholesky(product.gram(modes)), modes.T).T
    case.basis = Basis(product, modes)
    case.coordinates = case.basis.coordinates(columns)
    return case


def sines(comm, cells=6, waves=3):
    """The same with products of sines as modes, which take no full solve."""
    mesh = dolfinx.mesh.create_unit_square(comm, cells, cells)
    problem = MovingSource(mesh, WIDE)
    product = InnerProduct(problem.space, "h1", problem.bcs)
    points = problem.space.tabulate_dof_coordinates()[: product.owned]
    waves = [(i, j) for i in range(1, waves + 1) for j in range(1, waves + 1)]
    modes = np.array([np.prod(np.sin(np.pi * points[:, :2] * wave), axis=1) for wave in waves]).T
    modes[forms.owned_dirichlet_dofs(problem.bcs)] = 0.0
    modes = np.linalg.solve(np.linalg.cholesky(product.gram(modes)), modes.T).T
    return Heat(problem, problem.solver("moving_source_"), Basis(product, modes), None, None)
