"""Training of reduced models of the plate, for the benchmark of models with a history."""

import dataclasses
import time

import numpy as np
import ufl
from ufl.core.expr import Expr

from pdeopt.problems import ThermoplasticPlate
from pdeopt.reduced_order.basis import Basis
from pdeopt.reduced_order.cubature import Cubature, select_cells
from pdeopt.reduced_order.gappy_history import GappyHistory
from pdeopt.reduced_order.history import ReducedEquilibrium, replay
from pdeopt.reduced_order.inner_product import Array, InnerProduct
from pdeopt.reduced_order.internal_forces import InternalForces
from pdeopt.reduced_order.pod import proper_orthogonal_decomposition
from pdeopt.reduced_order.snapshots import Snapshots

_YOUNG, _POISSON = 200e9, 0.3


def energy(u: Expr, v: Expr) -> ufl.Form:
    """Return the elastic energy product over Young's modulus [m^2]: a dual norm over it is an error."""
    shear, lame = 0.5 / (1.0 + _POISSON), _POISSON / ((1.0 + _POISSON) * (1.0 - 2.0 * _POISSON))
    strains = (ufl.sym(ufl.grad(u)), ufl.sym(ufl.grad(v)))
    return (2.0 * shear * ufl.inner(*strains) + lame * ufl.div(u) * ufl.div(v)) * ufl.dx


# Cells of the pool that no fit has chosen, at most.
_SPREAD = 300
# Of the snapshots: modes of a smaller part are rounding.
_REST = 1e-6


@dataclasses.dataclass(eq=False)
class Trained:
    """A plate with its training trajectories.

    Parameters
    ----------
    plate, inner_product
        The body and the norm of the error.
    parameters, states, strains
        Training parameters, shape (n, 5), and of each the states, shape (owned, steps), and cumulated plastic strains.
    """

    plate: ThermoplasticPlate
    inner_product: InnerProduct
    parameters: Array
    states: list[Array]
    strains: list[Array]

    def relative(self, fields: Array, states: Array) -> Array:
        """Return the norms of fields over the largest norm of the states so far, shape (steps,). Collective: yes."""
        return self.inner_product.norms(fields) / np.maximum.accumulate(self.inner_product.norms(states))

    def basis(self, size: int) -> Basis:
        """Return modes of the training states, each over the largest of its trajectory so far. Collective: yes."""
        scaled = [u / np.maximum.accumulate(self.inner_product.norms(u)) for u in self.states]
        return _leading_modes(self.inner_product, np.hstack(scaled), size)

    def model(
        self, basis: Basis, tolerance: float, pool_tolerance: float | None = None, *, rows: int = 1000
    ) -> tuple[ReducedEquilibrium, InternalForces, float]:
        """Return the reduced equilibrium, its training forces, and the seconds that this took. Collective: yes."""
        started, plate = time.perf_counter(), self.plate
        least = tolerance if pool_tolerance is None else pool_tolerance
        tangent = plate.internal.tangent(plate.residual)
        forces = InternalForces(plate.residual, plate.u, basis, tangent, least, rows=rows)
        for parameter, states in zip(self.parameters, self.states, strict=True):
            plate.set_parameter(parameter)
            plate.driver.reset()
            for _ in replay(plate.driver, plate.times(), basis.expand(basis.coordinates(states))):
                forces.append()
        forces.compress()
        cubature, pool = select_cells(forces, tolerance), None
        if pool_tolerance is not None:
            more = select_cells(forces, pool_tolerance, start=cubature)
            # Beside them some cells all over the body, for modes unlike those of the training.
            count = plate.mesh.topology.index_map(2).size_global
            spread = np.unique(np.linspace(0, count - 1, _SPREAD).astype(np.int64))
            cells = np.union1d(np.union1d(cubature.cells, more.cells), spread)
            pool = Cubature(cells, np.ones(cells.size), more.error)
        model = ReducedEquilibrium(plate.residual, plate.internal, basis, cubature, bcs=plate.bcs, pool=pool)
        return model, forces, time.perf_counter() - started

    def gappy(self, model: ReducedEquilibrium, size: int) -> tuple[GappyHistory, np.ndarray, Array]:
        """Return the gappy basis of the cumulated plastic strain, the reduced points, and their values' view.

        Collective: yes.
        """
        field = next(f for f in self.plate.internal.history if f.name == "cumulated plastic strain")
        rule = ufl.dx(metadata={"quadrature_degree": 1, "quadrature_rule": "default"})
        product = InnerProduct(field.function_space, lambda p, q: p * q * rule)
        points = field.function_space.dofmap.list[model.reduced_mesh.cells].ravel()
        twin = model.reduced_mesh.function(field)
        local = twin.function_space.dofmap.list[: model.reduced_mesh.cells.size].ravel()
        gappy = GappyHistory(_leading_modes(product, np.hstack(self.strains), size), points)
        return gappy, local, twin.x.array


def train(plate: ThermoplasticPlate, count: int, seed: int) -> Trained:
    """Solve training trajectories. Collective: yes."""
    parameters = plate.parameters(count, "plate training", seed)
    runs = [plate.solve_trajectory(parameter) for parameter in parameters]
    product = InnerProduct(plate.space, energy, plate.bcs)
    strains = [run.history["cumulated plastic strain"] for run in runs]
    return Trained(plate, product, parameters, [run.unknowns for run in runs], strains)


def _leading_modes(product: InnerProduct, columns: Array, size: int) -> Basis:
    """Return at most so many modes, fewer where the columns are dependent. Collective: yes."""
    snapshots = Snapshots(product)
    snapshots.extend(columns)
    return proper_orthogonal_decomposition(snapshots, modes=size, tolerance=_REST)
