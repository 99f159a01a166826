"""Lines 3 and 6: the loop of conjugate directions beside PETSc's methods, recycling, and the published network."""

import statistics
import time
from collections.abc import Mapping

from petsc4py import PETSc

import numpy as np
import scipy.sparse

from pdeopt.bench.harness import say
from pdeopt.bench.linear_arms import solve_by_options
from pdeopt.bench.linear_families import FAMILIES, LinearCase
from pdeopt.bench.linear_outcome import RTOL, Options, Outcome
from pdeopt.bench.linear_sequences import SEQUENCES
from pdeopt.bench.study import Study
from pdeopt.fem import forms

_CG = {"ksp_type": "cg", "ksp_norm_type": "unpreconditioned"}
_LOOP = {"ksp_type": "python", "ksp_python_type": "pdeopt.DeepConjugateDirections", "ksp_dcd_price": "0"}
_ICC = {"pc_type": "icc", "pc_factor_levels": "2", "pc_factor_mat_ordering_type": "rcm"}
_GAMG = {"pc_type": "gamg", "pc_gamg_reuse_interpolation": "false"}
_METHODS: Mapping[str, Options] = {
    "CG": _CG,
    "FCG, truncated to 2": {
        "ksp_type": "fcg", "ksp_fcg_truncation_type": "standard", "ksp_fcg_mmax": "2",
        "ksp_norm_type": "unpreconditioned",
    },
    "FCG, PETSc's truncation": {"ksp_type": "fcg", "ksp_norm_type": "unpreconditioned"},
    "GCR(30)": {"ksp_type": "gcr"},
    "DCD": _LOOP,
    "DCD, true residual in each iteration": _LOOP | {"ksp_dcd_true_residual": "1"},
}  # fmt: skip
_PROPOSALS: Mapping[str, Options] = {
    "ICC(2)": _ICC,
    "SSOR": {"pc_type": "sor", "pc_sor_omega": "1.6"},
    "GAMG": {"pc_type": "gamg"},
}
_SEQUENCE_ARMS: Mapping[str, Options] = {
    "CG, fresh GAMG": _CG | _GAMG,
    "CG, GAMG, interpolation reused": _CG | {"pc_type": "gamg", "pc_gamg_reuse_interpolation": "true"},
    "CG, SSOR": _CG | _PROPOSALS["SSOR"],
    "CG, fresh ICC(0)": _CG | {"pc_type": "icc"},
    "CG, fresh ICC(2)": _CG | _ICC,
    "CG, fresh ICC(2), PETSc's guess from the last 10": _CG | _ICC | {
        "ksp_guess_type": "fischer", "ksp_guess_fischer_model": "1,10",
    },
    "DCD, ICC(2), no recycling": _LOOP | _ICC,
    "DCD, ICC(0), 10 recycled": _LOOP | {"pc_type": "icc", "ksp_dcd_recycle": "10"},
    "DCD, ICC(2), 10 recycled": _LOOP | _ICC | {"ksp_dcd_recycle": "10"},
    "DCD, ICC(2), 20 recycled": _LOOP | _ICC | {"ksp_dcd_recycle": "20"},
    "DCD, SSOR, 20 recycled": _LOOP | _PROPOSALS["SSOR"] | {"ksp_dcd_recycle": "20"},
    "DCD, fresh GAMG, 10 recycled": _LOOP | _GAMG | {"ksp_dcd_recycle": "10"},
}  # fmt: skip
_CLASSICAL = tuple(arm for arm in _SEQUENCE_ARMS if arm.startswith("CG") and arm != "CG, fresh GAMG")


def measure(study: Study, quick: bool) -> None:
    """Measure the loop, recycling over sequences, and the published network. Collective: one rank only."""
    _compare_loops(study, quick)
    for name in SEQUENCES:
        if not quick or name == "samples":
            _recycle(study, name, quick)
    _published(study, quick)


def _compare_loops(study: Study, quick: bool) -> None:
    """Put the loop beside PETSc's methods with the same proposals."""
    cases = {"square, checker": 16 if quick else 256, "cube, lognormal": 6 if quick else 40}
    iterations, seconds, renewal = [], [], []
    for family, size in cases.items():
        case = FAMILIES[family].case(study.comm, size, study.settings.seed)
        for proposal, options in _PROPOSALS.items():
            say(study.comm, f"  loops, {family}, {proposal}")
            rounds: dict[str, list[Outcome]] = {name: [] for name in _METHODS}
            for _ in range(1 if quick else max(study.settings.repeat, 3)):
                for name, method in _METHODS.items():
                    rounds[name].append(solve_by_options(case, name, method | options))
            cpu = {name: statistics.median(outcome.solve_cpu for outcome in found) for name, found in rounds.items()}
            for name, found in rounds.items():
                row = {"family": family, "unknowns": case.tags["unknowns"], "proposal": proposal, **found[-1].row()}
                study.row("conjugate directions, loops", row | {"solve, CPU [s]": cpu[name]})
            ours, theirs = rounds["DCD"][-1], rounds["FCG, truncated to 2"][-1]
            iterations.append(abs(ours.iterations - theirs.iterations))
            seconds.append(cpu["DCD"] / cpu["FCG, truncated to 2"])
            renewal.append(cpu["DCD, true residual in each iteration"] / cpu["DCD"])
        case.destroy()
    study.target("6a", "iterations of the loop less those of FCG, greatest difference", float(max(iterations)), 0.0)
    study.target("6b", "the loop over FCG, CPU seconds of the solve, median", statistics.median(seconds), 1.1)
    study.row("conjugate directions, true residuals", {
        "in each iteration over where convergence is claimed, CPU": statistics.median(renewal), "worst": max(renewal),
    })  # fmt: skip


def _recycle(study: Study, name: str, quick: bool) -> None:
    """Solve a sequence by all arms in turn, and compare the totals with those of fresh preconditioners."""
    size, steps = (12, 3) if quick else (36 if "3D" in name else 256, 50)
    say(study.comm, f"  recycling, {name}")
    solvers: dict[str, PETSc.KSP] = {}
    seconds: dict[str, float] = dict.fromkeys(_SEQUENCE_ARMS, 0.0)
    iterations, residuals = dict.fromkeys(_SEQUENCE_ARMS, 0), dict.fromkeys(_SEQUENCE_ARMS, 0.0)
    unknowns = 0
    for A, b in SEQUENCES[name](study.comm, size, steps, study.settings.seed):
        x, residual, unknowns = b.duplicate(), b.duplicate(), b.getSize()
        for place, (arm, options) in enumerate(_SEQUENCE_ARMS.items()):
            prefix = f"pdeopt_directions_{place}_"
            began = time.process_time()
            with forms.default_options(prefix, options):
                if arm not in solvers:
                    ksp = solvers[arm] = PETSc.KSP().create(study.comm)
                    ksp.setOptionsPrefix(prefix)
                    ksp.setOperators(A)
                    ksp.setTolerances(rtol=RTOL, atol=0.0, max_it=5000)
                    ksp.setFromOptions()
                ksp = solvers[arm]
                ksp.setOperators(A)
                x.set(0.0)
                ksp.solve(b, x)
            seconds[arm] += time.process_time() - began
            iterations[arm] += ksp.getIterationNumber()
            A.mult(x, residual)
            residual.aypx(-1.0, b)
            residuals[arm] = max(residuals[arm], residual.norm() / b.norm())
        x.destroy()
        residual.destroy()
    for ksp in solvers.values():
        ksp.destroy()
    fresh = seconds["CG, fresh GAMG"]
    for arm in _SEQUENCE_ARMS:
        study.row("conjugate directions, sequences", {
            "sequence": name, "unknowns": unknowns, "systems": steps, "arm": arm, "iterations": iterations[arm],
            "CPU [s]": seconds[arm], "over fresh GAMG": seconds[arm] / fresh, "worst true residual": residuals[arm],
        })  # fmt: skip
    best = min(seconds[arm] for arm in seconds if "recycled" in arm)
    rival = min(seconds[arm] for arm in _CLASSICAL)
    study.target(f"3a recycling, {name}", f"{name}: recycling alone over fresh GAMG, CPU", best / fresh, 0.5)
    study.target(f"3b recycling, {name}", f"{name}: recycling alone over the best classical", best / rival, 0.8)


def _published(study: Study, quick: bool) -> None:
    """Train the published network for a while, and let it propose."""
    for family, size, steps, samples in (
        ("square, constant", 8 if quick else 63, 20 if quick else 600, 20 if quick else 2000),
        ("cube, constant", 4 if quick else 15, 20 if quick else 600, 20 if quick else 2000),
    ):
        case = FAMILIES[family].case(study.comm, size, study.settings.seed)
        _train_and_solve(study, case, min(steps, case.b.getSize() // 2), samples, quick)
        case.destroy()
    _time_network(study, 8 if quick else 48)


def _train_and_solve(study: Study, case: LinearCase, steps: int, samples: int, quick: bool) -> None:
    from pdeopt.conjugate_directions import DeepConjugateDirections, DirectionSettings, published
    from pdeopt.learn.trainer import TrainerSettings

    say(study.comm, f"  the published network, {case.family}")
    shape, order = published.lattice_order(case.coordinates)
    began = time.process_time()
    indptr, columns, values = case.A.getValuesCSR()
    matrix = scipy.sparse.csr_matrix((values, columns, indptr))[order][:, order]
    # Of unit size, as the network has no scale of its own.
    matrix = scipy.sparse.csr_matrix(matrix / matrix.diagonal().max())
    sides = published.right_hand_sides(*published.lanczos(matrix, steps, study.settings.seed), samples)
    settings = TrainerSettings(
        learning_rate=1e-3, batch_size=10, epochs=1 if quick else 20, time_limit=5.0 if quick else 120.0, progress=False
    )
    network, report = published.train_published(matrix, shape, sides, settings)
    trained = time.process_time() - began
    for arm, net in (("trained", network), ("random weights", published.PublishedNetwork(len(shape)))):
        proposal = published.NetworkProposal(net, case.coordinates)
        context = DeepConjugateDirections(DirectionSettings(price=0.0))
        ksp = PETSc.KSP().create(study.comm)
        ksp.setOperators(case.A)
        ksp.setTolerances(rtol=RTOL)
        ksp.setType("python")
        ksp.setPythonContext(context)
        ksp.getPC().setType("python")
        ksp.getPC().setPythonContext(proposal)
        x = case.b.duplicate()
        began = time.process_time()
        ksp.solve(case.b, x)
        seconds = time.process_time() - began
        study.row("conjugate directions, the published network", {
            "family": case.family, "unknowns": case.tags["unknowns"], "arm": f"DCD, {arm}",
            "training, CPU [s]": trained if net is network else 0.0, "loss": float(report.validation_losses[-1]),
            "directions": context.accepted, "iterations": ksp.getIterationNumber(), "CPU [s]": seconds,
            "fallback": next(iter(context.fallbacks), "none"), "true residual": (case.b - case.A * x).norm()
            / case.b.norm(),
        })  # fmt: skip
        ksp.destroy()
    for arm, options in (("CG, ICC(2)", _CG | _ICC), ("CG", _CG | {"pc_type": "none"})):
        outcome = solve_by_options(case, arm, options)
        study.row("conjugate directions, the published network", {
            "family": case.family, "unknowns": case.tags["unknowns"], "arm": arm, "iterations": outcome.iterations,
            "CPU [s]": outcome.total_cpu, "true residual": outcome.residual,
        })  # fmt: skip


def _time_network(study: Study, size: int) -> None:
    """Compare one application of the network with a whole classical solve on as many points."""
    from pdeopt.conjugate_directions import published

    case = FAMILIES["cube, constant"].case(study.comm, size - 1, study.settings.seed)
    proposal = published.NetworkProposal(published.PublishedNetwork(3), case.coordinates)
    pc = PETSc.PC().create(study.comm)
    pc.setOperators(case.A)
    pc.setType("python")
    pc.setPythonContext(proposal)
    y, samples = case.b.duplicate(), []
    for _ in range(4):
        began = time.process_time()
        pc.apply(case.b, y)
        samples.append(time.process_time() - began)
    classical = min(
        solve_by_options(case, "SSOR", _CG | {"pc_type": "sor", "pc_sor_omega": "1.8"}).total_cpu for _ in range(3)
    )
    application = float(np.median(samples[1:]))
    study.row("conjugate directions, one application", {
        "points along a side": size, "published network, CPU [s]": application, "whole solve, CG with SSOR, CPU [s]":
        classical, "ratio": application / classical,
    })  # fmt: skip
    pc.destroy()
    case.destroy()
