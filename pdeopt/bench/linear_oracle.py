"""Line 1, what a network could add to the grid body: the best constants and the best operators for each matrix.

Arms of the two-level cycle, in iterations: "off", the body's own constants; "class constant", corrections by gradient
descent over other matrices of the family, one number for each array of the stencils; "oracle, pattern", the same
numbers found for the matrix; "oracle, nodes", a correction of each single entry. Arms of the whole cycle, in seconds:
the settings of `CycleSettings` and the directions of the lattice, for each matrix or for the family. The total with the
best operators counts the time that the smallest network would take to predict them.
"""

import statistics
import time
from collections.abc import Mapping

import numpy as np

from pdeopt.bench.harness import say
from pdeopt.bench.linear_families import FAMILIES
from pdeopt.bench.linear_grid import GridArm
from pdeopt.bench.linear_grid_weights import System, descend, iterations, of_nodes, shared, system
from pdeopt.bench.study import Study
from pdeopt.conjugate_directions import CycleSettings

_KINDS = ("anisotropy", "checker")
# Cells along a side of the systems whose best operators are sought, and the number of systems of each size.
_SYSTEMS = {"square": {32: 10, 64: 3}, "cube": {12: 3, 20: 1}}
_TRAINING = 1000  # added to the seed for the systems from which the class constants are found
_KEEPS = {"square": (1.0, 0.5, 0.0), "cube": (1.0, 0.0, -0.5, -1.0)}
_SETTINGS = [
    CycleSettings(keep=keep, visits=visits, least=least)
    for keep in _KEEPS["square"]
    for visits, least in ((1, 1.0), (2, 1.0), (2, 0.5), (2, 0.3))
]
_DIRECTIONS = (False, True, None)  # along the first coordinate, against it, as the body does: by the matrix
_RATE = 0.02
_HIDDEN, _OUTPUTS = 16, 13  # of the network: corrections of 8 weights, 4 entries of L and a diagonal
_BOUND = 0.8


def measure(study: Study, quick: bool) -> None:
    """Measure the room that is left for learning. Collective: one rank only."""
    for kind in _KINDS:
        _operators(study, "cube", kind, {4: 1} if quick else _SYSTEMS["cube"], quick)
        share = _operators(study, "square", kind, {8: 1} if quick else _SYSTEMS["square"], quick)
        for size in (32,) if quick else (256, 512):
            _totals(study, f"square, {kind}", size, 1 if quick else 10 if size == 256 else 3, share)


# --- the operators ----------------------------------------------------------------------------------------------------


def _operators(study: Study, domain: str, kind: str, systems: Mapping[int, int], quick: bool) -> float:
    """Return the share of the better constant's iterations that the best operators of each matrix need, in the mean."""
    name, keeps, least = f"{domain}, {kind}", _KEEPS[domain], min(systems)
    seed, steps = study.settings.seed, (5, 5) if quick else (60, 150)
    say(study.comm, f"  {name}: class constants of two levels")
    training = {keep: _systems(study, name, least, systems[least], seed + _TRAINING, keep) for keep in keeps}
    means = {keep: statistics.mean(iterations(s, s.values) for s in found) for keep, found in training.items()}
    keep = min(means, key=lambda one: means[one])
    numbers = np.unique(training[keep][0].group[training[keep][0].group >= 0])
    maps = [nodes @ shared(groups, numbers) for nodes, groups in map(of_nodes, training[keep])]
    constant, _ = descend(training[keep], maps, np.zeros(numbers.size), steps[0], _RATE)
    found: list[tuple[float, float, float]] = []
    for size, number in systems.items():
        say(study.comm, f"  {name}: best operators of two levels, {size} cells along a side")
        test = [_systems(study, name, size, number, seed, k) for k in (keeps[0], keep)]
        for sample, (plain, one) in enumerate(zip(*test, strict=True)):
            began = time.process_time()
            nodes, groups = of_nodes(one)
            tied = shared(groups, numbers)
            off = iterations(plain, plain.values)
            unlearned, of_class = (iterations(one, one.values + nodes @ (tied @ p)) for p in (0.0 * constant, constant))
            start = constant if of_class < unlearned else 0.0 * constant
            pattern, (by_pattern,) = descend([one], [nodes @ tied], start, steps[0], _RATE)
            _, (by_nodes,) = descend([one], [nodes], tied @ pattern, steps[1], _RATE)
            found.append((off, of_class, min(off, by_nodes)))
            study.row("grid, best operators of two levels", {
                "family": name, "seed": seed + sample, "size": size, "off": off, "keep": keep,
                "class constant": of_class, "oracle, pattern": by_pattern, "oracle, nodes": by_nodes,
                "search, CPU [s]": time.process_time() - began,
            })  # fmt: skip
    off, of_class, by_nodes = np.mean(found, axis=0)
    return float(by_nodes / min(off, of_class))


def _systems(study: Study, name: str, size: int, number: int, seed: int, keep: float) -> list[System]:
    """Return systems of consecutive seeds."""
    found = []
    for sample in range(number):
        case = FAMILIES[name].case(study.comm, size, seed + sample)
        found.append(system(case, keep))
        case.destroy()
    return found


# --- the seconds ------------------------------------------------------------------------------------------------------


def _totals(study: Study, name: str, size: int, number: int, share: float) -> None:
    """Compare the settings of the whole cycle, and count the time of the best operators' share of the iterations."""
    say(study.comm, f"  {name}: settings of the cycle, {size} cells along a side")
    chosen, judged = [], []  # two rounds: what the first one chooses is judged by the second
    for sample in range(number):
        case = FAMILIES[name].case(study.comm, size, study.settings.seed + sample)
        arms = [GridArm(case, mirrored) for mirrored in _DIRECTIONS]
        for arm in arms:
            arm.solve("first")
        rounds = [[arm.solve(str(each), each) for each in _SETTINGS for arm in arms] for _ in range(2)]
        chosen.append([outcome.total_cpu for outcome in rounds[0]])
        judged.append(rounds[1])
        case.destroy()
    turning = len(_DIRECTIONS)
    means = np.mean(chosen, axis=0).reshape(-1, turning)
    constant, fixed = turning * int(np.argmin(means[:, -1])) + turning - 1, int(np.argmin(means[:, :-1]))
    fixed = turning * (fixed // (turning - 1)) + fixed % (turning - 1)
    of_constant = [outcomes[constant] for outcomes in judged]
    total = sum(outcome.total_cpu for outcome in of_constant)
    solve, price = sum(outcome.solve_cpu for outcome in of_constant), number * _price(size)
    settings = sum(
        outcomes[int(np.argmin(seconds))].total_cpu for outcomes, seconds in zip(judged, chosen, strict=True)
    )
    operators = total - solve + price + share * solve
    study.row("grid, room for learning", {
        "family": name, "size": size, "systems": number, "best constant": of_constant[0].arm.removeprefix("grid: "),
        "over fixed directions": total / sum(outcomes[fixed].total_cpu for outcomes in judged),
        "set-up, CPU [s]": (total - solve) / number, "solve, CPU [s]": solve / number,
        "network, CPU [s]": price / number, "best settings over constant": settings / total,
        "iterations with best operators": share, "best operators over constant": operators / total,
    })  # fmt: skip
    claim = f"{name}, {size}: total with the best {{}} of each matrix over the best constant's"
    study.target(f"1d {name} {size}", claim.format("operators, price of a network counted,"), operators / total, _BOUND)
    study.target(f"1e {name} {size}", claim.format("settings"), settings / total, _BOUND)


def _price(size: int) -> float:
    """Return the seconds of one hidden layer that takes the stencil of each point of each level to corrections."""
    points = sum((size // 2**level + 1) ** 2 for level in range(max(1, size.bit_length() - 3)))
    stencils = np.ones((points, 9), dtype=np.float32)
    first, second = np.ones((9, _HIDDEN), dtype=np.float32), np.ones((_HIDDEN, _OUTPUTS), dtype=np.float32)
    seconds = []
    for _ in range(5):
        began = time.process_time()
        np.maximum(stencils @ first, 0.0) @ second
        seconds.append(time.process_time() - began)
    return min(seconds)
