"""The heat problem of "Learning to relax" on finite elements: omega learned online beside every fixed one.

All arms march in step: they solve the same system from the same start, one after the other, in an order that turns
round with every step, so whatever the machine does hits all of them. The state that goes on to the next step is that of
one arm; the others differ from it by the tolerance of the solves.
"""

import dataclasses
import itertools
import math
import statistics
import time

from petsc4py import PETSc

import numpy as np
import numpy.typing as npt

from pdeopt.bench.harness import Row, say
from pdeopt.bench.study import Study
from pdeopt.problems.unsteady_diffusion import UnsteadyDiffusion
from pdeopt.relaxation.petsc import BanditSettings, BanditSOR
from pdeopt.report import ConvergenceError

TOLERANCE = 1e-8
OMEGAS = np.linspace(1.0, 1.95, 20)
PERIOD = 1000  # of the diffusivity, in steps
REPLAYS = 20  # seeds
TOO_DEAR = 1.15
# The rivals of another kind need no more than one period to be compared.
RIVALS: dict[str, dict[str, str | float | bool]] = {
    "CG + Jacobi": {"pc_type": "jacobi"},
    "CG + ICC(0), one block a rank": {"pc_type": "bjacobi", "sub_pc_type": "icc"},
    "CG + GAMG, interpolation kept": {"pc_type": "gamg", "pc_gamg_reuse_interpolation": True},
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """One mesh.

    Parameters
    ----------
    cells
        A side.
    steps, first
        How many, beginning with which.
    omegas
        Indices of those that run.
    trial
        After so many steps, at best a period, fixed omegas with `TOO_DEAR` times the iterations of the best stop.
    """

    cells: int
    steps: int
    first: int = 0
    omegas: tuple[int, ...] = tuple(range(OMEGAS.size))
    trial: int | None = None


# From 200 cells on a step takes too long for the published 5000: with 500 from t = 1/4 on, the diffusivity falls from
# 0.1 to zero and rises to 10.
PLANS = (
    Plan(25, 5000),
    Plan(50, 5000),
    Plan(100, 5000, trial=PERIOD),
    Plan(200, 500, 250, tuple(range(1, 20, 3))),
)
QUICK_PLANS = (Plan(16, 60, 480, trial=30),)


class Arm:
    """One way to solve every system.

    Parameters
    ----------
    name
        For the table.
    problem
        Whose systems it solves.
    bandit
        Settings of `BanditSOR`, or None.
    attached
        Whether the bandit is attached to the solver, or is its preconditioner of type python.
    options
        PETSc options of the solver.
    limit
        It stops after so many steps.
    """

    _numbers = itertools.count()

    def __init__(
        self,
        name: str,
        problem: UnsteadyDiffusion,
        bandit: BanditSettings | None = None,
        attached: bool = True,
        options: dict[str, str | float | bool] | None = None,
        limit: int | None = None,
    ) -> None:
        self.name, self.limit = name, limit
        self.iterations: list[int] = []
        self.seconds = 0.0
        self.solution = problem.solution.duplicate()
        self.ksp = PETSc.KSP().create(comm=problem.matrix.getComm())
        prefix = f"relax_heat_{next(self._numbers)}_"
        self.ksp.setOptionsPrefix(prefix)
        self.ksp.setType(PETSc.KSP.Type.CG)
        self.ksp.setNormType(PETSc.KSP.NormType.UNPRECONDITIONED)  # the same test for every omega
        self.ksp.setTolerances(rtol=TOLERANCE)
        self.ksp.setInitialGuessNonzero(True)
        self.ksp.setOperators(problem.matrix)
        self._options = {f"{prefix}{option}": value for option, value in (options or {}).items()}
        database = PETSc.Options()
        for option, value in self._options.items():
            database[option] = value
        self.ksp.setFromOptions()
        self.bandit = None if bandit is None else BanditSOR(bandit)
        if self.bandit is not None and attached:
            self.bandit.attach(self.ksp)
        elif self.bandit is not None:
            self.ksp.getPC().setType(PETSc.PC.Type.PYTHON)
            self.ksp.getPC().setPythonContext(self.bandit)

    def solve(self, right_hand_side: PETSc.Vec, start: PETSc.Vec) -> None:
        """Solve one system from a start. Collective: yes."""
        if len(self.iterations) == self.limit:
            return
        start.copy(self.solution)
        began = time.perf_counter()
        self.ksp.solve(right_hand_side, self.solution)
        self.seconds += time.perf_counter() - began
        if self.ksp.getConvergedReason() <= 0:
            raise ConvergenceError(f"{self.name} stopped with reason {self.ksp.getConvergedReason()}")
        self.iterations.append(self.ksp.getIterationNumber())

    def row(self, plan: Plan) -> Row:
        """Return what it took. Collective: no."""
        steps = len(self.iterations)
        row: Row = {
            "n": plan.cells,
            "solver": self.name,
            "solves": steps,
            "iterations": sum(self.iterations),
            "total [s]": self.seconds,
            "ms a solve": 1e3 * self.seconds / steps,
        }
        if self.bandit is not None:
            for part in ("learning", "context"):
                row[f"{part} [us] a solve"] = 1e6 * self.bandit.seconds[part] / steps
        return row

    def destroy(self) -> None:
        """Free the PETSc objects, and take the options back. Collective: yes."""
        self.ksp.destroy()
        if self.bandit is not None:
            self.bandit.destroy()
        self.solution.destroy()
        for option in self._options:
            PETSc.Options().delValue(option)


def measure(study: Study, quick: bool) -> None:
    """Measure the sequence on every mesh. Collective: yes."""
    ratios, learning = {}, 0.0
    for plan in QUICK_PLANS if quick else PLANS:
        say(study.comm, f"  heat: n = {plan.cells}, {plan.steps} steps")
        problem = UnsteadyDiffusion(study.comm, plan.cells)
        fixed = [
            Arm(f"omega = {omega:g}", problem, options={"pc_type": "sor", "pc_sor_omega": float(omega)})
            for omega in OMEGAS[list(plan.omegas)]
        ]
        learned = [Arm(name, problem, settings) for name, settings in _learners(problem, study.settings.seed).items()]
        rivals = [Arm(name, problem, options=options, limit=PERIOD) for name, options in RIVALS.items()]
        off = [
            Arm(f"omega = 1, learning off, {how}", problem, BanditSettings(learner="fixed"), attached, limit=PERIOD)
            for how, attached in (("attached", True), ("pc_type python", False))
        ]
        arms = [*fixed, *learned, *off, *rivals]
        _march(problem, plan, arms, fixed)
        for arm in arms:
            study.row("Heat with a swinging diffusivity, from n x n cells", arm.row(plan))
        best = min((arm for arm in fixed if len(arm.iterations) == plan.steps), key=lambda arm: arm.seconds)
        quickest = min(learned, key=lambda arm: arm.seconds)
        _summarise(study, plan, fixed, learned)
        if len(plan.omegas) == OMEGAS.size:
            _replay(study, plan, problem, _counts(fixed), 3 if quick else REPLAYS)
        ratios[plan.cells] = quickest.seconds / best.seconds
        learning = max(learning, *(float(arm.row(plan)["learning [us] a solve"] or 0.0) for arm in learned))
        for arm in arms:
            arm.destroy()
        problem.destroy()
    cells = 100 if 100 in ratios else max(ratios)
    study.target(
        "1d",
        f"seconds of the best learner, learning included, over those of the best fixed omega in hindsight, n = {cells}",
        ratios[cells],
        1.0,
    )
    study.target("1e", "learning, microseconds a solve, the slowest learner", learning, 50.0)


def _learners(problem: UnsteadyDiffusion, seed: int) -> dict[str, BanditSettings]:
    """Return the learners; contexts are the diffusivity, as published, its logarithm, or a number from the matrix."""
    tsallis = BanditSettings(seed=seed)
    kappa = dataclasses.replace(tsallis, context=lambda: problem.kappa, context_low=0.0, context_high=10.0)
    chebyshev = dataclasses.replace(kappa, learner="chebyshev")
    logarithm = dataclasses.replace(
        chebyshev, context=lambda: math.log(problem.kappa), context_low=-8.0, context_high=math.log(10.0)
    )
    return {
        "Tsallis-INF": tsallis,
        "Tsallis-INF in bins of kappa": dataclasses.replace(kappa, learner="binned"),
        "ChebCB, kappa": chebyshev,
        "ChebCB, log kappa": logarithm,
        "ChebCB, matrix": dataclasses.replace(tsallis, learner="chebyshev", context="matrix"),
    }


def _march(problem: UnsteadyDiffusion, plan: Plan, arms: list[Arm], fixed: list[Arm]) -> None:
    """March all arms in step; a learner, which never stops, carries the state on. Collective: yes."""
    problem.restart(plan.first)
    order = list(arms)
    carrier = next(arm for arm in arms if arm.limit is None and arm not in fixed)
    for step in range(plan.steps):
        if step == plan.trial:
            fewest = min(sum(arm.iterations) for arm in fixed)
            for arm in fixed:
                arm.limit = step if sum(arm.iterations) > TOO_DEAR * fewest else None
        problem.assemble_step()
        for arm in order:
            arm.solve(problem.right_hand_side, problem.solution)
        order.reverse()
        carrier.solution.copy(problem.solution)
        problem.advance()


def _counts(fixed: list[Arm]) -> npt.NDArray[np.int64]:
    """Return the iterations of all omegas in the steps that all of them did, shape (steps, omegas). Collective: no."""
    steps = min(len(arm.iterations) for arm in fixed)
    return np.array([arm.iterations[:steps] for arm in fixed]).T


def _summarise(study: Study, plan: Plan, fixed: list[Arm], learned: list[Arm]) -> None:
    """Compare the learners with the best fixed omega, and with the best one of each step. Collective: no."""
    whole = [arm for arm in fixed if len(arm.iterations) == plan.steps]
    fewest, quickest = min(sum(arm.iterations) for arm in whole), min(arm.seconds for arm in whole)
    rows = {arm.name: (sum(arm.iterations) / fewest, arm.seconds / quickest) for arm in learned}
    if len(fixed) == OMEGAS.size:
        table = _counts(fixed)
        rows["best omega of each step"] = (int(table.min(axis=1).sum()) / int(table.sum(axis=0).min()), math.nan)
    for name, (iterations, seconds) in rows.items():
        study.row(
            "Over the best fixed omega in hindsight",
            {"n": plan.cells, "omega by": name, "iterations": iterations, "seconds": seconds},
        )


def _replay(study: Study, plan: Plan, problem: UnsteadyDiffusion, table: npt.NDArray[np.int64], seeds: int) -> None:
    """Let learners with many seeds play on counted iterations, repeated if they are too few. Collective: no."""
    counted = len(table)
    table = np.tile(table, (-(-plan.steps // counted), 1))[: plan.steps]
    best = int(table.sum(axis=0).min())
    for name, settings in _learners(problem, study.settings.seed).items():
        if settings.context == "matrix":
            continue
        contexts = []
        for step in range(plan.steps):
            problem.restart(plan.first + step)
            contexts.append(settings.context() if callable(settings.context) else None)
        totals, seconds = [], []
        for seed in range(seeds):
            learner = dataclasses.replace(settings, seed=settings.seed + seed).make_learner()
            total, began = 0, time.perf_counter()
            for context, costs in zip(contexts, table, strict=True):
                cost = int(costs[learner.choose(context)])
                learner.learn(float(cost))
                total += cost
            totals.append(total / best)
            seconds.append((time.perf_counter() - began) / plan.steps)
        study.row(
            "Iterations over those of the best fixed omega, replayed with many seeds",
            {
                "n": plan.cells,
                "omega by": name,
                "seeds": seeds,
                "steps counted": counted,
                "median": statistics.median(totals),
                "least": min(totals),
                "most": max(totals),
                "learning alone [us] a solve": 1e6 * statistics.median(seconds),
            },
        )
