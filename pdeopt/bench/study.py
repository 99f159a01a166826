"""One run of a benchmark: its settings, and what it has found so far."""

import math

from mpi4py import MPI

from pdeopt.bench.case import run_case
from pdeopt.bench.harness import BenchResult, BenchSettings, Row, Target, say
from pdeopt.parallel import on_root
from pdeopt.report import PdeoptError


class Study:
    """Collects the rows and targets of a benchmark.

    Parameters
    ----------
    name
        Name of the benchmark, the first part of every target's identifier.
    settings
        As given on the command line.
    comm
        Communicator of the whole run.

    Attributes
    ----------
    rows, targets
        What was found so far.
    """

    def __init__(self, name: str, settings: BenchSettings, comm: MPI.Comm) -> None:
        self.name, self.settings, self.comm = name, settings, comm
        self.rows: list[Row] = []
        self.targets: list[Target] = []

    def row(self, table: str, columns: Row) -> None:
        """Add a row to a table. Collective: no."""
        self.rows.append({"table": table, **columns})

    def target(self, identifier: str, claim: str, value: float | None, bound: float, at_least: bool = False) -> None:
        """Add a claim with its measured value and the bound that it must keep. Collective: no."""
        self.targets.append(Target(f"{self.name}.{identifier}", claim, value, bound, ">=" if at_least else "<="))

    def case(self, function: str, ranks: int, **arguments: object) -> Row:
        """Run ``module:function`` in processes of its own; a failure leaves a row without numbers. Collective: yes."""
        say(self.comm, f"  {function.rpartition(':')[2]} on {ranks} ranks: {arguments}")
        try:
            return on_root(self.comm, lambda: run_case(function, arguments, ranks, timeout=1800.0))
        except PdeoptError as error:
            say(self.comm, f"  FAILED: {error}")
            return {"failed": str(error).splitlines()[-1][:120]}

    def result(self) -> BenchResult:
        """Return what was found. Collective: no."""
        return BenchResult(self.name, self.rows, self.targets)


def number(row: Row, column: str) -> float:
    """Return a row's number, or NaN where it has none."""
    value = row.get(column)
    return float(value) if isinstance(value, int | float) else math.nan
