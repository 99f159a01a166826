"""Gradients of layers: right, equal to those of others and on any number of ranks, and cheap."""

import gc
import resource
import statistics
import time

from mpi4py import MPI

from pdeopt.bench import layer_rivals
from pdeopt.bench.harness import Row, say
from pdeopt.bench.layer_cases import CASES, LayerCase, burgers, nonlinear_diffusion
from pdeopt.bench.study import Study, number
from pdeopt.learn._torch import torch
from pdeopt.learn.verify import check_derivative

_THIS = __name__
# The five of the claim; the sixth case has the same form without its network.
NAMES = tuple(name for name in CASES if name != "nonlinear diffusion")


def measure(study: Study, quick: bool) -> None:
    """Lines 1 and 2. Collective: yes."""
    _derivatives(study, quick)
    _ranks(study, quick)
    _cost(study, quick)


def _derivatives(study: Study, quick: bool) -> None:
    errors, rates = [], []
    for name in NAMES:
        say(study.comm, f"  {name}")
        case = CASES[name](study.comm, 4 if quick else 16)
        report = check_derivative(
            case.layer, case.tensors, study.comm, replicated=case.replicated, parameters=case.parameters,
            seed=study.settings.seed,
        )  # fmt: skip
        errors.append(report.error)
        rates.append(report.rates[-1])  # orders approach 2 from either side as the step falls
        study.row(
            "Derivative along a random direction",
            {
                "equation": name,
                "unknowns": case.layer.report.method.split(", ")[1].split()[0],
                "relative error, to fourth-order differences": report.error,
                "Taylor order, smallest step": report.rates[-1],
            },
        )
        case.layer.destroy()
    study.target("1a", "derivatives of five equations: greatest relative error", max(errors), 1e-9)
    study.target("1b", "least Taylor order, at the smallest step", min(rates), 1.99, at_least=True)
    differences = []
    for name in layer_rivals.NAMES:
        try:
            differences.append(layer_rivals.compare(study.comm, name, 8 if quick else 32))
        except ImportError as error:
            say(study.comm, f"  dolfinx-adjoint is not installed: {error}")
            differences.append(float("nan"))
        study.row("Gradients beside dolfinx-adjoint", {"equation": name, "relative difference": differences[-1]})
    study.target("1c", "difference to dolfinx-adjoint's gradients, three equations", max(differences), 1e-8)


def gradient_case(comm: MPI.Comm, name: str, cells: int) -> Row:
    """Return loss and gradients of a case as numbers that do not depend on who owns what. Collective: yes."""
    case = CASES[name](comm, cells)
    tensors = [tensor.clone().requires_grad_() for tensor in case.tensors]
    loss = case.loss(*tensors)
    gradients = torch.autograd.grad(loss, (*tensors, *case.parameters))
    whole = [*case.replicated, *(True for _ in case.parameters)]
    row: Row = {"loss": comm.allreduce(loss.item())}
    for index, (part, kind) in enumerate(zip(gradients, whole, strict=True)):
        square = float((part**2).sum())
        row[f"gradient {index}"] = (square if kind else comm.allreduce(square)) ** 0.5
    return row


def _ranks(study: Study, quick: bool) -> None:
    worst = 0.0
    for name in NAMES[:2] if quick else NAMES:
        rows = [
            study.case(f"{_THIS}:gradient_case", ranks, name=name, cells=4 if quick else 16)
            for ranks in ((1, 2) if quick else (1, 2, 3))
        ]
        keys = [key for key in rows[0] if key == "loss" or key.startswith("gradient")]
        difference = max(
            (
                abs(number(row, key) - number(rows[0], key)) / abs(number(rows[0], key))
                for row in rows[1:]
                for key in keys
            ),
            default=float("nan"),
        )
        worst = max(worst, difference)
        study.row(
            "Loss and gradients on 1, 2 and 3 ranks", {"equation": name, "greatest relative difference": difference}
        )
    study.target("1d", "loss and gradients on 1, 2, 3 ranks: greatest relative difference", worst, 1e-10)


def _pair(case: LayerCase) -> tuple[float, float, Row]:
    """Return seconds forward and backward, and what was spent."""
    tensors = [tensor.clone().requires_grad_() for tensor in case.tensors]
    counts = case.layer._equation.counts
    newton, adjoints, krylov, setups = counts.newton, counts.adjoints, counts.krylov, counts.setups
    inside = counts.seconds["forward"]
    began = time.perf_counter()
    loss = case.loss(*tensors)
    half = time.perf_counter()
    loss.backward()
    end = time.perf_counter()
    row: Row = {
        "Newton steps": counts.newton - newton,
        "adjoint solves": counts.adjoints - adjoints,
        "adjoint Krylov iterations": counts.krylov - krylov,
        "preconditioners made for adjoints": counts.setups - setups,
        "outside the solve [ms]": 1e3 * (half - began - (counts.seconds["forward"] - inside)),
    }
    return half - began, end - half, row


def _cost(study: Study, quick: bool) -> None:
    ratios: list[float] = []
    overheads: list[float] = []
    adjoints: list[float] = []
    setups: list[float] = []
    for cells in (16,) if quick else (32, 64, 128, 256):
        say(study.comm, f"  cost at {cells} cells a side")
        case = nonlinear_diffusion(study.comm, cells)
        pairs = [_pair(case) for _ in range(2 if quick else 7)][1:]
        forward = statistics.median(pair[0] for pair in pairs)
        backward = statistics.median(pair[1] for pair in pairs)
        row = pairs[-1][2]
        overhead = statistics.median(number(pair[2], "outside the solve [ms]") for pair in pairs)
        ratios.append(backward / forward)
        overheads.append(overhead)
        adjoints.append(number(row, "adjoint solves"))
        setups.append(number(row, "preconditioners made for adjoints"))
        study.row(
            "Cost of nonlinear diffusion, forward and backward",
            {
                "unknowns": case.layer.report.method.split(", ")[1].split()[0],
                "forward [ms]": 1e3 * forward,
                "backward [ms]": 1e3 * backward,
                "backward / forward": backward / forward,
                **row,
                "outside the solve [ms]": overhead,
            },
        )
        case.layer.destroy()
    study.target("2a", "transposed solves a backward pass", max(adjoints), 1)
    study.target("2b", "factorisations a backward pass", max(setups), 0)
    study.target("2c", "backward over forward, 6 Newton steps, greatest", max(ratios), 0.25)
    study.target("2d", "outside the solve, at the most [ms]", max(overheads), 2.0)
    growth = []
    for name, make in (("nonlinear diffusion", nonlinear_diffusion), ("Burgers, time steps", burgers)):
        growth.append(_growth(make(study.comm, 16), 20 if quick else 200))
        study.row("Memory over pairs of forward and backward", {"equation": name, "growth [MiB]": growth[-1]})
    study.target("2e", f"growth over {20 if quick else 200} pairs [MiB]", max(growth), 5.0)


def _growth(case: LayerCase, pairs: int) -> float:
    for _ in range(20):
        _pair(case)
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(pairs):
        _pair(case)
    gc.collect()
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024.0
