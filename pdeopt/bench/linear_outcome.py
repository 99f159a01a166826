"""What a linear solver needed for one system."""

import dataclasses
import math
from collections.abc import Mapping

from pdeopt.bench.harness import Row

RTOL = 1e-8
"""Relative true residual, in float64, that every solver must reach."""
MAX_IT = 1000
"""Iterations after which a solver has failed."""

type Options = dict[str, str]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What an arm needed for a system.

    Parameters
    ----------
    arm
        Its name, "KIND: setting".
    setup, solve, setup_cpu, solve_cpu
        Seconds by the clock and of the processor.
    iterations
        Of the Krylov method.
    residual
        abs(b - A x) / abs(b), recomputed.
    reason
        PETSc's converged reason; 0 for solvers that are not PETSc's.
    failed
        Why there are no numbers; empty if there are.
    """

    arm: str
    setup: float = math.nan
    solve: float = math.nan
    setup_cpu: float = math.nan
    solve_cpu: float = math.nan
    iterations: int = 0
    residual: float = math.nan
    reason: int = 0
    failed: str = ""

    @classmethod
    def of_record(cls, arm: str, record: Mapping[str, float | int]) -> "Outcome":
        """Return the outcome that `pdeopt.bench.linear_worker.timed_solve` recorded. Collective: no."""
        return cls(arm, **{name.replace(" ", "_"): value for name, value in record.items()})  # type: ignore[arg-type]

    @property
    def kind(self) -> str:
        """Kind of solver ("GAMG")."""
        return self.arm.partition(":")[0]

    @property
    def solved(self) -> bool:
        """Whether the true residual is small enough."""
        return self.residual <= RTOL

    @property
    def total(self) -> float:
        """Set-up and solution, wall seconds; infinite if not solved."""
        return self.setup + self.solve if self.solved else math.inf

    @property
    def total_cpu(self) -> float:
        """Set-up and solution, seconds of the processor, which other jobs disturb less; infinite if not solved."""
        return self.setup_cpu + self.solve_cpu if self.solved else math.inf

    def then(self, other: "Outcome") -> "Outcome":
        """Return what another outcome, of a solve that followed this failed one, has cost in all. Collective: no."""
        names = ("setup", "solve", "setup_cpu", "solve_cpu", "iterations")
        return dataclasses.replace(other, **{name: getattr(self, name) + getattr(other, name) for name in names})

    def row(self) -> Row:
        """Return the columns of a table. Collective: no."""
        if self.failed:
            return {"arm": self.arm, "note": self.failed}
        return {
            "arm": self.arm,
            "set-up [s]": self.setup,
            "solve [s]": self.solve,
            "set-up, CPU [s]": self.setup_cpu,
            "solve, CPU [s]": self.solve_cpu,
            "iterations": self.iterations,
            "true residual": self.residual,
            "solved": self.solved,
        }
