"""Line 1: the grid body beside the best classical solvers, what learned weights add, and how its steps grow.

The "constants" of the cycle are the same for all families of a dimension; "first" counts what is found once for a
pattern too. "Learned" has the shares that a network predicts, the prediction's time included. Its rivals are those
constants, and the one that is best for the very matrices of the family, of a sweep; with the oracle each matrix has its
own. Both are chosen by one round of solves and judged by another. A setting with which one matrix is not solved is no
constant.
"""

import dataclasses
import statistics

from petsc4py import PETSc

from pdeopt.bench.harness import say
from pdeopt.bench.linear_constants import CONSTANTS
from pdeopt.bench.linear_families import FAMILIES, LinearCase
from pdeopt.bench.linear_outcome import RTOL, Outcome
from pdeopt.bench.linear_rivals import all_arms, solve
from pdeopt.bench.linear_worker import timed_ksp_solve
from pdeopt.bench.study import Study
from pdeopt.conjugate_directions import CycleSettings, GridMultigrid

_KINDS = ("constant", "lognormal", "checker", "anisotropy")
_FROM = {"square": 512, "cube": 48}  # cells along a side from which on the bound holds
_SYSTEMS = {512: 3, 48: 5, 64: 2}  # of other sizes there is one
_BEST = 5  # of the constants of a group: the others are slower
# Before a sweep has found the constants of a group.
_RIVALS = (
    "GAMG: threshold 0.02", "GAMG: threshold 0.05 halved, aggressive 2, SOR", "ICC: 0", "ICC: 2", "ICC: 3",
    "Eisenstat: 1.8", "Eisenstat: 1.95", "MUMPS: Cholesky", "Sine transform: SciPy",
)  # fmt: skip
_LIMIT = 100  # iterations of a cycle: with more it is no solver
_KEEPS = (1.0, 0.25, 0.0, -0.25, -0.5, -0.75, -1.0)


def _settings(dimension: int) -> dict[str, CycleSettings]:
    """Return the constants of a dimension, the same with learned weights, and the constants that are swept."""
    return {
        "constants": CycleSettings.of(dimension),
        "learned": CycleSettings.of(dimension, "learned"),  # in the plane the same
        "W-cycle": CycleSettings(least=1.0),
        **{f"keep {keep}": CycleSettings(keep) for keep in _KEEPS},
        **{f"keep {keep}, V-cycle": CycleSettings(keep, visits=1) for keep in _KEEPS},
    }


class GridArm:
    """The grid body as a PETSc preconditioner that keeps what it knows of the pattern.

    Parameters
    ----------
    case
        What it solves.
    mirrored
        Whether the lattice runs along the first coordinate, or against it; by default the matrix decides.
    """

    def __init__(self, case: LinearCase, mirrored: bool | None = None) -> None:
        self._case, self._turning = case, mirrored is None
        self._constants = self.settings = CycleSettings.of(FAMILIES[case.family].dimension)
        self._places = case.coordinates * [-1.0, 1.0, 1.0] if mirrored else case.coordinates
        self._body: GridMultigrid | None = None

    def setUp(self, pc: PETSc.PC) -> None:
        """Take the matrix. Collective: yes."""
        matrix = pc.getOperators()[1]
        if self._body is None:
            self._body = GridMultigrid(matrix, self._places, self.settings, turning=self._turning)
        else:
            self._body.settings = self.settings
            self._body.update(matrix)

    def apply(self, pc: PETSc.PC, x: PETSc.Vec, y: PETSc.Vec) -> None:
        """Cycle. Collective: yes."""
        assert self._body is not None
        self._body.apply(x, y)

    def solve(self, name: str, settings: CycleSettings | None = None) -> Outcome:
        """Solve the system by conjugate gradients, by default with the constants of the dimension. Collective: yes."""
        self.settings = settings or self._constants
        solver = PETSc.KSP().create(self._case.comm)
        solver.setOperators(self._case.A)
        solver.setType(PETSc.KSP.Type.CG)
        solver.setNormType(PETSc.KSP.NormType.UNPRECONDITIONED)
        solver.getPC().setType(PETSc.PC.Type.PYTHON)
        solver.getPC().setPythonContext(self)
        outcome = Outcome.of_record(f"grid: {name}", timed_ksp_solve(solver, self._case.b, RTOL, _LIMIT))
        solver.destroy()
        return outcome


def measure(study: Study, quick: bool) -> None:
    """Measure the grid body on all families of structured meshes. Collective: one rank only."""
    sizes = {"square": (16, 32)} if quick else {"square": (128, 512, 1024), "cube": (48, 64)}
    for domain, counts in sizes.items():
        for kind in _KINDS[2:3] if quick else _KINDS:
            steps = {}
            for size in counts:
                steps[size] = _family(study, domain, kind, size, _SYSTEMS.get(size, 1))
            if domain == "square":
                growth = steps[counts[-1]] / steps[counts[0]]
                claim = f"iterations on {kind}, {counts[-1]} over {counts[0]} cells along a side"
                study.target(f"5a {kind}", claim, growth, 1.2)


def _family(study: Study, domain: str, kind: str, size: int, seeds: int) -> float:
    """Measure systems of one family and size, and return the median of the iterations."""
    name = f"{domain}, {kind}"
    say(study.comm, f"  {name}, {size} cells along a side")
    ratios, first, steps, chosen, judged = [], [], [], [], []
    arms = _settings(FAMILIES[name].dimension)
    for sample in range(seeds):
        case = FAMILIES[name].case(study.comm, size, study.settings.seed + sample)
        grid = GridArm(case)
        started = dataclasses.replace(grid.solve("first"), arm="grid: first")
        rounds = [[grid.solve(arm, settings) for arm, settings in arms.items()] for _ in range(2)]
        own = [min(pair, key=lambda outcome: outcome.total_cpu) for pair in zip(*rounds, strict=True)]
        wanted = CONSTANTS.get(FAMILIES[name].group, _RIVALS)[:_BEST]
        rivals = solve(case, [arm for arm in all_arms(case) if arm in wanted])
        for outcome in (*own, started, *rivals):
            study.row("grid", {"family": name, **case.tags, **outcome.row()})
        case.destroy()
        best = min(outcome.total_cpu for outcome in rivals)
        ratios.append(own[0].total_cpu / best)
        first.append(started.total_cpu / best)
        steps.append(own[0].iterations)
        totals = [dict(zip(arms, (outcome.total_cpu for outcome in one), strict=True)) for one in rounds]
        chosen.append(totals[0])
        judged.append(totals[1])
    swept = [arm for arm in arms if arm != "learned"]
    means = {arm: statistics.mean(seconds[arm] for seconds in judged) for arm in arms}
    constant = min(swept, key=lambda arm: sum(seconds[arm] for seconds in chosen))
    of_matrix = [min(swept, key=seconds.__getitem__) for seconds in chosen]
    oracle = statistics.mean(seconds[arm] for seconds, arm in zip(judged, of_matrix, strict=True))
    study.row("grid, medians", {
        "family": name, "size": size, "systems": seeds, "iterations": statistics.median(steps),
        "over the best classical": statistics.median(ratios), "worst": max(ratios),
        "first, over the best classical": statistics.median(first), "best constant": constant,
        "best constant over constants": means[constant] / means["constants"],
        "learned over constants": means["learned"] / means["constants"],
        "learned over best constant": means["learned"] / means[constant],
        "oracle over best constant": oracle / means[constant],
    })  # fmt: skip
    if kind != "constant" and size >= _FROM[domain]:
        claim = f"{name}, {size}: set-up and solve without learning, over the best classical, median"
        study.target(f"1a {name} {size}", claim, statistics.median(ratios), 0.5)
        if kind != "lognormal" and domain == "cube":  # for the plane no weights come with the package
            claim = f"{name}, {size}: set-up and solve with learned weights, over"
            study.target(f"1b {name} {size}", f"{claim} those without", means["learned"] / means["constants"], 0.8)
            study.target(
                f"1c {name} {size}", f"{claim} the family's best constant", means["learned"] / means[constant], 0.8
            )
    return float(statistics.median(steps))
