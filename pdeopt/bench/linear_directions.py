"""Line 6: the loop of conjugate directions beside PETSc's methods, and the published network."""

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
from pdeopt.bench.study import Study

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


def measure(study: Study, quick: bool) -> None:
    """Measure the loop and the published network. Collective: one rank only."""
    _compare_loops(study, quick)
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
        learning_rate=1e-3, batch_size=10, epochs=1 if quick else 20, time_limit=5.0 if quick else 45.0, progress=False
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
