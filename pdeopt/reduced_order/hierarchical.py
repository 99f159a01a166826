"""The hierarchical error indicator: what one Newton step in a larger reduced space would change."""

import numpy as np

from pdeopt.reduced_order.inner_product import Array
from pdeopt.reduced_order.newton import check_coordinates
from pdeopt.reduced_order.system import ReducedSystem
from pdeopt.report import InputError


class HierarchicalIndicator:
    """|delta| of the step J delta = -r in a larger space, from the answer continued by zeros.

    The modes are orthonormal, so this is the norm of a field: an estimate of the error, not a bound, and blind to
    what lies outside of the larger space. It errs to the low side, by the error of the larger model over that of the
    smaller one.

    Parameters
    ----------
    larger
        The reduced system in more modes; the first of them are those of the smaller system. With hyper-reduction its
        cubature has to be made for all of them.
    size
        Number of modes of the smaller system.

    Raises
    ------
    InputError
        If the larger system is not larger.
    """

    def __init__(self, larger: ReducedSystem, size: int) -> None:
        if not 0 < size < larger.size:
            raise InputError(f"the larger system has {larger.size} modes and the smaller one {size}: give it more")
        self.larger, self.size = larger, size

    def update(self) -> None:
        """Take over the present parameters. Collective: yes."""
        self.larger.update()

    def __call__(self, coordinates: Array) -> float:
        """Return the estimate; infinite where the step does not exist.

        Parameters
        ----------
        coordinates
            The smaller system's answer, shape (r,).

        Collective: yes.
        """
        return float(np.linalg.norm(self.step(coordinates)))

    def step(self, coordinates: Array) -> Array:
        """Return delta, shape (modes of the larger system,), the same on all ranks. Collective: yes."""
        extended = np.zeros(self.larger.size)
        extended[: self.size] = check_coordinates(coordinates, self.size, "coordinates")
        residual, jacobian = self.larger.evaluate(extended)
        assert jacobian is not None
        step = np.full(self.larger.size, np.inf)
        if self.larger.comm.rank == 0 and np.isfinite(residual).all() and np.isfinite(jacobian).all():
            try:
                step = np.linalg.solve(jacobian, -residual)
            except np.linalg.LinAlgError:
                step[:] = np.inf
        if self.larger.comm.size > 1:
            self.larger.comm.Bcast(step)
        return step
