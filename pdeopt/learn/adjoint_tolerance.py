"""How accurately an adjoint equation is solved while a network is trained."""

import dataclasses
import math

from mpi4py import MPI

import numpy as np
import numpy.typing as npt

from pdeopt.report import InputError

Array = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class NoiseTolerance:
    """An adjoint tolerance tied to how much gradients change from one step of the optimiser to the next.

    The relative error of a gradient is about the relative residual of its adjoint equation. While consecutive
    gradients differ by a share nu, from noise in the samples or from the optimiser's own steps, errors far below nu are
    not seen; the forcing terms of Eisenstat and Walker (SIAM J. Sci. Comput. 17 (1996) 16-32) say the same of Newton
    steps. The tolerance is ``safety`` nu, nu a running mean, between ``tightest`` and ``loosest``.

    Parameters
    ----------
    safety
        Share of the change that the adjoint's error may have, > 0.
    loosest, tightest
        Bounds of the relative residual, between 0 and 1.
    memory
        Weight of the past in the running mean, in [0, 1).

    Raises
    ------
    InputError
        If a number is out of its range.
    """

    safety: float = 0.1
    loosest: float = 1e-2
    tightest: float = 1e-10
    memory: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 < self.tightest <= self.loosest < 1.0:
            raise InputError(
                f"tightest is {self.tightest} and loosest {self.loosest}: they are relative residuals, the first the "
                "smaller one, between 0 and 1"
            )
        if not (self.safety > 0.0 and 0.0 <= self.memory < 1.0):
            raise InputError(f"safety is {self.safety}, above 0, and memory {self.memory}, from 0 to below 1")


class ToleranceControl:
    """The tolerance in use: a fixed one, or that of a `NoiseTolerance`.

    Parameters
    ----------
    setting
        Relative residual, or the rule.
    comm
        Communicator of the gradients.

    Raises
    ------
    InputError
        If a fixed tolerance is not between 0 and 1.
    """

    def __init__(self, setting: "float | NoiseTolerance", comm: MPI.Comm) -> None:
        if isinstance(setting, int | float) and not 0.0 < setting < 1.0:
            raise InputError(f"adjoint_rtol is {setting}: it is a relative residual, between 0 and 1")
        self._setting, self._comm = setting, comm
        self._former: Array | None = None
        self._change = math.nan

    @property
    def rtol(self) -> float:
        """Relative residual of the next adjoint equation."""
        rule = self._setting
        if not isinstance(rule, NoiseTolerance):
            return float(rule)
        # Nothing is known before the second gradient.
        wanted = rule.loosest if math.isnan(self._change) else rule.safety * self._change
        return min(max(wanted, rule.tightest), rule.loosest)

    @property
    def adapts(self) -> bool:
        """Whether gradients matter."""
        return isinstance(self._setting, NoiseTolerance)

    def observe(self, gradient: Array) -> None:
        """Take a gradient, this rank's part of it. Collective: yes."""
        rule = self._setting
        if not isinstance(rule, NoiseTolerance):
            return
        if self._former is not None and self._former.size == gradient.size:
            parts = np.array([np.sum((gradient - self._former) ** 2), np.sum(gradient**2), np.sum(self._former**2)])
            total = np.empty(3)
            self._comm.Allreduce(parts, total, op=MPI.SUM)
            change = math.sqrt(total[0] / max(total[1], total[2], 1e-300))
            self._change = (
                change if math.isnan(self._change) else rule.memory * self._change + (1.0 - rule.memory) * change
            )
        self._former = np.array(gradient)
