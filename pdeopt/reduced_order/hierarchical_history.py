"""The hierarchical error indicator of a body with a history: a larger reduced model follows with one step each."""

import numpy as np

from pdeopt.parallel import collective_errors
from pdeopt.reduced_order.history import ReducedEquilibrium
from pdeopt.reduced_order.inner_product import Array
from pdeopt.report import ConvergenceError, InputError


class HierarchicalHistory:
    """|b - a| of the answer b that a larger reduced model gives by one Newton step a load step, with its own history.

    The larger model starts each step from the smaller one's answer, continued by its own last difference from it. Since
    it remembers by itself, the indicator sees what the smaller model's errors have left in the history.

    Parameters
    ----------
    larger
        The larger model; the first of its modes are those of the smaller one.
    size
        Number of modes of the smaller model.

    Raises
    ------
    InputError
        If the larger model is not larger.

    Collective: no.
    """

    def __init__(self, larger: ReducedEquilibrium, size: int) -> None:
        if not 0 < size < larger.basis.size:
            raise InputError(f"the larger model has {larger.basis.size} modes and the smaller one {size}: give it more")
        self.larger, self.size = larger, size
        self._difference = np.zeros(larger.basis.size)

    def reset(self) -> None:
        """Return to the virgin body at rest. Collective: no."""
        self._difference[:] = 0.0
        self.larger.set_unknown(self._difference)
        self.larger.internal.reset()

    def step(self, coordinates: Array) -> float:
        """Follow the smaller model, whose step has just ended, and return the indicator.

        Parameters
        ----------
        coordinates
            The smaller model's answer, shape (size,).

        Raises
        ------
        ConvergenceError
            If the Newton step does not exist.

        Collective: yes.
        """
        system = self.larger.system
        system.update()
        answer = np.pad(coordinates, (0, self._difference.size - self.size))
        residual, jacobian = system.evaluate(answer + self._difference)
        with collective_errors(system.comm):
            try:
                step = np.linalg.solve(np.asarray(jacobian), -residual)
            except np.linalg.LinAlgError as error:
                raise ConvergenceError(
                    "the larger model's Jacobian is singular: give its cubature more cells"
                ) from error
        if system.comm.size > 1:
            system.comm.Bcast(step)
        self._difference += step
        self.larger.set_unknown(answer + self._difference)
        with collective_errors(system.comm):
            self.larger.internal.update()
        self.larger.internal.commit()
        return float(np.linalg.norm(self._difference))
