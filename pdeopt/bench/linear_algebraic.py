"""Line 2: the algebraic body on meshes by Gmsh, beside the best classical solvers and the best weights there could be.

"constants" is the body as it ships: no network, constants by the class of the matrix. "isotropic constants" are the
same for all matrices. The oracle's weights say what a network could add, its evaluation counted.
"""

import statistics
import time

from petsc4py import PETSc

import numpy as np

from pdeopt.bench.harness import say
from pdeopt.bench.linear_constants import CONSTANTS
from pdeopt.bench.linear_families import FAMILIES, LinearCase
from pdeopt.bench.linear_outcome import MAX_IT, RTOL, Outcome
from pdeopt.bench.linear_rivals import all_arms, solve
from pdeopt.bench.linear_weights import best_weights, over_constant
from pdeopt.bench.linear_worker import timed_ksp_solve
from pdeopt.bench.study import Study
from pdeopt.conjugate_directions import MultigridSettings, NeuralMultigrid
from pdeopt.conjugate_directions.algebraic_hierarchy import LocalRows, build_hierarchy, choose_constants

_ARMS = {
    "constants": MultigridSettings(),
    "isotropic constants": MultigridSettings(strength="symmetric", threshold=0.02, descents=0),
}
# Beside the best settings of each group: what is strong on single matrices of it.
_ALWAYS = ("GAMG: threshold 0.02", "BoomerAMG: HMIS", "BoomerAMG: HMIS, aggressive")
_BEST = 5  # of the constants of a group: the others are slower
_UNKNOWNS = 120_000
_HARD = ("anisotropy", "inclusions", "inclusions, elasticity")
_ORACLE = (
    "L-shape, lognormal",
    "L-shape, inclusions",
    "L-shape, anisotropy",
    "bracket, inclusions",
    "bracket, anisotropy",
)


def measure(study: Study, quick: bool) -> None:
    """Compare with the best classical solvers, then look for room for a network. Collective: one rank only."""
    names = [name for name, family in FAMILIES.items() if not family.structured]
    if quick:
        names = ["L-shape, inclusions", "heat sink, anisotropy"]
    hard: list[float] = []
    rest: list[float] = []
    for name in names:
        family = FAMILIES[name]
        a_vertex = (family.dimension if family.elastic else 1) * family.degree**family.dimension
        ratios = _family(study, name, 1000 if quick else _UNKNOWNS // a_vertex, 1)
        (hard if name.partition(", ")[2].removesuffix(", degree 2") in _HARD else rest).extend(ratios)
    claim = "total over the best classical: jumps, anisotropy and elasticity, median"
    study.target("2a", claim, statistics.median(hard), 0.9)
    if rest:
        study.target("2b", "total over the best classical: the rest, worst decile", float(np.quantile(rest, 0.9)), 1.1)
    room = [
        _oracle(study, name, 1000 if quick else 10_000, 10 if quick else 40) for name in _ORACLE[:: 4 if quick else 1]
    ]
    study.target("2c", "total with the best weights of interpolation over constants, least family", min(room), 0.8)


def _family(study: Study, name: str, size: int, seeds: int) -> list[float]:
    """Solve systems of a family, and return the totals over those of the best classical solver."""
    say(study.comm, f"  {name}, about {size} nodes")
    ratios, best = [], []
    for sample in range(seeds):
        case = FAMILIES[name].case(study.comm, size, study.settings.seed + sample)
        own = [min((_solve(case, arm) for _ in range(2)), key=lambda outcome: outcome.total_cpu) for arm in _ARMS]
        wanted = {*CONSTANTS.get(FAMILIES[name].group, ())[:_BEST], *_ALWAYS}
        rivals = solve(case, [arm for arm in all_arms(case) if arm in wanted])
        for outcome in (*own, *rivals):
            study.row("algebraic", {"family": name, **case.tags, **outcome.row()})
        case.destroy()
        fastest = min(rivals, key=lambda outcome: outcome.total_cpu)
        best.append(fastest.kind)
        ratios.append(own[0].total_cpu / fastest.total_cpu)
    study.row("algebraic, medians", {
        "family": name, "size": size, "systems": seeds, "over the best classical": statistics.median(ratios),
        "worst": max(ratios), "best classical": statistics.mode(best),
    })  # fmt: skip
    return ratios


def _solve(case: LinearCase, name: str) -> Outcome:
    """Solve by conjugate gradients. Collective: yes."""
    solver = PETSc.KSP().create(case.comm)
    solver.setOperators(case.A)
    solver.setType(PETSc.KSP.Type.CG)
    solver.setNormType(PETSc.KSP.NormType.UNPRECONDITIONED)
    solver.getPC().setType(PETSc.PC.Type.PYTHON)
    solver.getPC().setPythonContext(NeuralMultigrid(_ARMS[name]))
    outcome = Outcome.of_record(f"algebraic: {name}", timed_ksp_solve(solver, case.b, RTOL, MAX_IT))
    solver.destroy()
    return outcome


def _oracle(study: Study, name: str, size: int, steps: int) -> float:
    """Return the total with the best weights of interpolation over that with the constants."""
    from scipy.sparse import csr_matrix

    say(study.comm, f"  {name}: best weights")
    case = FAMILIES[name].case(study.comm, size, study.settings.seed)
    outcome = min((_solve(case, "constants") for _ in range(3)), key=lambda outcome: outcome.total_cpu)
    rows = LocalRows(case.A)
    kind, constants = choose_constants(case.A, rows)
    levels = build_hierarchy(case.A, constants, rows)
    P = levels[0].interpolation
    assert P is not None
    began = time.process_time()
    A, weights = (csr_matrix(M.getValuesCSR()[::-1], shape=M.getSize()) for M in (case.A, P))
    saving = best_weights(A, weights, steps)
    seconds = time.process_time() - began
    values = case.A.getValuesCSR()[2]
    began = time.process_time()
    for _ in range(10):
        values * values
    found = over_constant(saving, outcome.setup_cpu, outcome.solve_cpu, (time.process_time() - began) / 10)
    study.row("algebraic, best weights", {
        "family": name, **case.tags, "class": kind, "iterations, two levels": saving.constant,
        "with the best weights": saving.oracle, "search, CPU [s]": seconds, "total over constants": found,
    })  # fmt: skip
    for level in levels:
        if level.interpolation is not None:
            level.interpolation.destroy()
        if level is not levels[0]:
            level.matrix.destroy()
    case.destroy()
    return found
