"""Bodies with a history by reduced models: load steps in few coordinates, internal variables at few points."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import ufl
from dolfinx import fem

from pdeopt.fem.internal_variables import InternalVariables
from pdeopt.fem.quasi_static import QuasiStatic
from pdeopt.reduced_order.basis import Basis
from pdeopt.reduced_order.cubature import Cubature
from pdeopt.reduced_order.hyper_reduced import HyperReducedSystem
from pdeopt.reduced_order.inner_product import Array
from pdeopt.reduced_order.newton import NewtonSettings, solve_reduced
from pdeopt.reduced_order.reduced_mesh import ReducedMesh
from pdeopt.report import ConvergenceError


class ReducedEquilibrium:
    """Equilibrium r(a) = 0 by the reduced Newton method, for `pdeopt.fem.quasi_static.QuasiStatic`.

    The state and the history live on the reduced mesh alone; loads are those of the whole body.

    Parameters
    ----------
    residual
        F(u, q(u), h; v) on the whole mesh.
    internal
        The internal variables on the whole mesh; they know u.
    basis
        Modes of u.
    cubature
        Cells and weights.
    bcs
        Dirichlet conditions, to check the modes.
    lifting
        A field with the present Dirichlet values; zero by default.
    settings
        Tolerances of the reduced Newton method.
    pool
        A cubature with further cells, such as one of a smaller tolerance: internal variables live on these too, so
        that `enrich` can give weights to any of them.

    Attributes
    ----------
    internal
        The internal variables at the reduced points.
    basis, cubature, system
        The reduced model.
    coordinates
        Present coordinates, shape (r,).

    Collective: yes.
    """

    def __init__(
        self,
        residual: ufl.Form,
        internal: InternalVariables,
        basis: Basis,
        cubature: Cubature,
        *,
        bcs: Sequence[fem.DirichletBC[Any]] = (),
        lifting: fem.Function[Any] | None = None,
        settings: NewtonSettings | None = None,
        pool: Cubature | None = None,
    ) -> None:
        self.basis, self.cubature = basis, cubature
        self.pool = cubature if pool is None else _united(cubature, pool)
        self._whole, self._residual, self._bcs, self._lifting = internal, residual, bcs, lifting
        self.reduced_mesh = reduced_mesh = ReducedMesh(basis.space.mesh, self.pool)
        reduced_mesh.set_weights(cubature)
        for field in (internal.unknown, internal.increment, internal.active, *internal.history):
            reduced_mesh.state(field)
        self.internal = internal.restricted(reduced_mesh.restrict, reduced_mesh.function)
        self.system = HyperReducedSystem(
            residual, internal.unknown, basis, cubature, bcs=bcs, lifting=lifting,
            jacobian=internal.tangent(residual), reduced_mesh=reduced_mesh, internal=self.internal,
        )  # fmt: skip
        self.coordinates = np.zeros(basis.size)
        self._settings = settings or NewtonSettings(rtol=1e-8)

    def enrich(self, basis: Basis, cubature: Cubature) -> None:
        """Take over more modes, after the present ones, and a cubature from the pool. Collective: yes.

        Raises
        ------
        InputError
            If the cubature has cells that are not in the pool.
        """
        self.reduced_mesh.set_weights(cubature)
        self.system.set_basis(basis)
        self.set_unknown(np.pad(self.coordinates, (0, basis.size - self.coordinates.size)))
        self.basis, self.cubature = basis, cubature

    def rebuilt(self, basis: Basis, cubature: Cubature, pool: Cubature) -> "ReducedEquilibrium":
        """Return the model on another reduced mesh, at rest. Collective: yes."""
        return ReducedEquilibrium(
            self._residual, self._whole, basis, cubature, bcs=self._bcs, lifting=self._lifting,
            settings=self._settings, pool=pool,
        )  # fmt: skip

    def take_history(self) -> None:
        """Take over the present history of the whole body. Collective: yes."""
        for field in self._whole.history:
            twin = self.reduced_mesh.function(field)
            twin.x.array[:] = self.reduced_mesh.field_restriction(field.function_space).values(field)

    def solve(self) -> int:
        """Find the reduced equilibrium and return Newton's steps.

        Raises
        ------
        ConvergenceError
            On all ranks, if Newton's method or a local equation fails.

        Collective: yes.
        """
        self.system.update()
        result = solve_reduced(self.system, self.coordinates, self._settings)
        if not result.converged:
            raise ConvergenceError(f"no reduced equilibrium was found: {result.why}")
        self.coordinates = result.coordinates
        return result.iterations

    def unknown(self) -> Array:
        """Return a copy of the coordinates, shape (r,). Collective: no."""
        return self.coordinates.copy()

    def set_unknown(self, values: Array) -> None:
        """Set the coordinates and the state on the reduced mesh. Collective: no."""
        self.coordinates = np.array(values, float)
        self.system.set_state(self.coordinates)


def _united(first: Cubature, second: Cubature) -> Cubature:
    """Return the cells of both, with weights that mean nothing. Collective: no."""
    cells = np.union1d(first.cells, second.cells)
    return Cubature(cells, np.ones(cells.size), second.error)


def replay(driver: QuasiStatic, times: Array, unknowns: Array) -> Iterator[int]:
    """Lead a body through given states without solving: the internal variables follow.

    Parameters
    ----------
    driver
        The body on the whole mesh, or any other; it starts from its present history.
    times
        Ends of the steps [s], shape (steps,).
    unknowns
        The unknown at the end of each step, shape (owned, steps).

    Yields
    ------
    int
        The number of the step, when the state, the loads and the internal variables are those of its end and the
        history is still that of its beginning: what the residual is made of.

    Collective: yes.
    """
    for step, time in enumerate(times):
        driver.impose(float(time), unknowns[:, step])
        yield step
        driver.accept(float(time))
