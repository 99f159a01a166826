"""Guests, part of `pdeopt bench time`: what initial guesses cost when they are bad, and save when they are good."""

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable

from mpi4py import MPI

import dolfinx
import numpy as np
import ufl

from pdeopt.bench import guest_families as families
from pdeopt.bench.guest_families import Family
from pdeopt.bench.harness import Row, paired_times, say
from pdeopt.bench.study import Study
from pdeopt.control.guess import attach_guess
from pdeopt.fem import forms
from pdeopt.fem._guess_norm import RieszNorm, energy_product
from pdeopt.fem._guess_transfer import Loader
from pdeopt.parallel import random_stream

BY_HAND, NOBODY = "nested iteration by hand", "guest without proposal"
BAD, EXACT = ("noise", "NaN"), "exact"


@dataclasses.dataclass
class Run:
    """What one pass through a family came to: summed over its solves."""

    seconds: float = 0.0
    processor: float = 0.0  # seconds of this process, which other programs on the machine do not enter
    judging: float = 0.0  # of the seconds, those spent on proposals and on measuring guesses
    steps: int = 0
    evaluations: int = 0
    judged: int = 0
    solutions: list[np.ndarray] = dataclasses.field(default_factory=list)


def measure(study: Study, quick: bool) -> None:
    """Fill line 5 of the study: guests. Collective: yes."""
    comm = study.comm
    square = functools.partial(dolfinx.mesh.create_unit_square, comm)

    def cube(cells: int) -> dolfinx.mesh.Mesh:
        return dolfinx.mesh.create_unit_cube(comm, cells, cells, cells)

    cells_square, cells_cube, cells_flow, cells_control = (24, 4, 8, 16) if quick else (128, 16, 40, 96)
    loads = (2.0, 4.0) if quick else (2.0, 3.5, 5.0, 6.0)
    makers: list[Callable[[], Family]] = [
        lambda: families.newton_family(
            f"Bratu, square, n = {cells_square}",
            families.bratu,
            (square(cells_square // 2, cells_square // 2), square(cells_square, cells_square)),
            loads,
        ),
        lambda: families.newton_family(
            f"Bratu, cube, n = {cells_cube}",
            families.bratu,
            (cube(cells_cube // 2), cube(cells_cube)),
            loads,
        ),
        lambda: families.newton_family(
            f"lid-driven cavity, n = {cells_flow}",
            families.lid_driven_cavity,
            (square(cells_flow // 2, cells_flow // 2), square(cells_flow, cells_flow)),
            (100.0, 400.0) if quick else (100.0, 200.0, 300.0, 400.0),
            flow=True,
        ),
        lambda: families.control_family(comm, cells_control),
    ]
    worst = {"time": 0.0, "steps": 0.0, "difference": 0.0, "exact steps": 0.0}
    for make in makers:
        family = make()
        say(comm, f"  guests: {family.name}")
        found = _family(study, family, 1 if quick else study.settings.repeat)
        worst = {name: max(value, found[name]) for name, value in worst.items()}
        family.destroy()
    study.target("5a", "noise or NaN: processor time over nested iteration by hand", worst["time"], 1.05)
    study.target("5a steps", "noise or NaN: Newton steps over those of nested iteration", worst["steps"], 1.0)
    study.target("5b", "exact proposal: Newton steps, all solves of a sequence", worst["exact steps"], 0.0)
    study.target("5c", "largest relative difference of the answers with and without", worst["difference"], 1e-7)
    _combination(study, 16 if quick else 64)
    _norms(study, (8, 16) if quick else (16, 32, 64, 128))
    _gains(study, 16 if quick else 64)


def _run(comm: MPI.Comm, family: Family, arm: str, exact: list[np.ndarray], seed: int) -> Run:
    """Solve the family once: by hand or with a fresh guest. The norm's set-up, once per attachment, is not counted."""
    run, position = Run(), [0]
    stream = random_stream("guests.noise", seed, comm)
    size = family.unknowns().size
    proposals: dict[str, dict[str, Callable[[], object]]] = {
        BY_HAND: {},
        NOBODY: {},
        "noise": {"noise": lambda: stream.normal(size=size)},
        "NaN": {"NaN": lambda: np.full(size, np.nan)},
        EXACT: {"exact": lambda: exact[position[0]]},
    }
    family.set_start()
    guest = (
        None
        if arm == BY_HAND
        else attach_guess(family.target, proposals[arm], coarse=family.coarse, dual_norm=family.dual_norm)
    )
    for index, value in enumerate(family.values):
        position[0] = index
        family.set_value(value)
        comm.Barrier()
        started, processor = time.perf_counter(), time.process_time()
        steps, evaluations = family.solve_nested() if guest is None else family.solve()
        run.processor += comm.allreduce(time.process_time() - processor, op=MPI.MAX)
        run.seconds += comm.allreduce(time.perf_counter() - started, op=MPI.MAX)
        run.steps += steps
        run.evaluations += evaluations
        if guest is not None:
            run.judged += guest.report.residual_evaluations
            run.judging += guest.report.seconds["proposals"] + guest.report.seconds["judging"]
        run.solutions.append(family.unknowns())
    if guest is not None:
        guest.detach()
    return run


def _family(study: Study, family: Family, repeat: int) -> dict[str, float]:
    """Run all arms of a family in turn and enter what they came to."""
    reference = _run(study.comm, family, BY_HAND, [], study.settings.seed)
    samples: dict[str, list[Run]] = {arm: [] for arm in (BY_HAND, NOBODY, *BAD, EXACT)}

    def call(arm: str) -> Run:
        samples[arm].append(_run(study.comm, family, arm, reference.solutions, study.settings.seed))
        return samples[arm][-1]

    paired_times({arm: functools.partial(call, arm) for arm in samples}, repeat, study.comm)
    found = {"time": 0.0, "steps": 0.0, "difference": 0.0, "exact steps": 0.0}
    for arm, runs in samples.items():
        kept = runs[1:]  # the first is the warm-up
        pairs = zip(kept, samples[BY_HAND][1:], strict=True)
        relative = statistics.median(run.processor / rival.processor for run, rival in pairs)
        last = kept[-1]
        difference = max(
            _relative_difference(study.comm, mine, theirs)
            for mine, theirs in zip(last.solutions, reference.solutions, strict=True)
        )
        row: Row = {
            "family": family.name,
            "unknowns": family.size,
            "solves": len(family.values),
            "arm": arm,
            "Newton steps": last.steps,
            "residuals judged": last.judged,
            "seconds": statistics.median(run.seconds for run in kept),
            "processor seconds": statistics.median(run.processor for run in kept),
            "processor time / by hand": relative,
            "judging / rest": statistics.median(run.judging / (run.seconds - run.judging) for run in kept),
            "difference": difference,
        }
        study.row("Guests: a sequence of solves beside nested iteration by hand", row)
        found["difference"] = max(found["difference"], difference)
        if arm in BAD:
            found["time"] = max(found["time"], relative)
            found["steps"] = max(found["steps"], last.steps / max(reference.steps, 1))
        if arm == EXACT:
            found["exact steps"] = last.steps
    return found


def _relative_difference(comm: MPI.Comm, one: np.ndarray, other: np.ndarray) -> float:
    squares = comm.allreduce(np.array([np.sum((one - other) ** 2), np.sum(other**2)]))
    return math.sqrt(squares[0] / squares[1])


def _combination(study: Study, cells: int) -> None:
    """Offer two guesses, each good in one half of the domain, and their combination."""
    problem, parameter = families.bratu(dolfinx.mesh.create_unit_square(study.comm, cells, cells), "guests_halves_")
    families.set_parameter(parameter, 2.0)
    solution = families.unknown(problem)
    problem.solve()
    answer = forms.owned_values(solution).copy()
    usual = problem.solver.getIterationNumber()
    points = solution.function_space.tabulate_dof_coordinates()[: answer.size, 0]
    left = np.clip(1.5 - 2.0 * points, 0.0, 1.0)
    halves = {"left half": left * answer, "right half": (1.0 - left) * answer}
    guest = attach_guess(problem, halves, combine=True)
    solution.x.array[:] = 0.0
    problem.solve()
    report = guest.report
    for candidate in report.candidates:
        row: Row = {"guess": candidate.name, "residual (dual norm)": candidate.residual}
        study.row("Guests: two half-good guesses and their combination", row)
    steps: Row = {"guess": "Newton steps, without and with", "from zero": usual, "from the best": report.iterations}
    study.row("Guests: two half-good guesses and their combination", steps)
    ratio = report.candidate("combination").residual / min(report.candidate(name).residual for name in halves)
    study.target("5d", "residual of the combination over the better of two half-good guesses", ratio, 0.5)
    guest.detach()


def _norms(study: Study, sizes: tuple[int, ...]) -> None:
    """Compare what norms say of nested iteration beside the zero guess with what the error says."""
    for cells in sizes:
        fine, coarse = (
            families.bratu(dolfinx.mesh.create_unit_square(study.comm, n, n), f"guests_norms_{n}_")
            for n in (cells, cells // 2)
        )
        for _, parameter in (fine, coarse):
            families.set_parameter(parameter, 4.0)
        problem, solution = fine[0], families.unknown(fine[0])
        space = solution.function_space
        norm = RieszNorm([space], problem.solver.getFunction()[1][2]["bcs"])
        product = forms.compile_form(ufl.action(energy_product(space), solution))
        nested, zero = problem.b.duplicate(), problem.b.duplicate()
        loader = Loader([space])
        loader.load(coarse[0].solve(), nested)
        zero.set(0.0)
        problem.solve()
        answer = forms.owned_values(solution).copy()
        sizes_of: dict[str, tuple[float, float, float]] = {}
        for name, point in (("nested", nested), ("zero", zero)):
            residual = problem.b.duplicate()
            problem.solver.computeFunction(point, residual)
            forms.set_function(solution, point.array_r - answer)
            energy = forms.assemble_vector(product)
            error = float(np.sqrt(study.comm.allreduce(float(energy.array_r @ forms.owned_values(solution)))))
            sizes_of[name] = (error, norm(residual), float(residual.norm()))
        ratios = [a / b for a, b in zip(sizes_of["nested"], sizes_of["zero"], strict=True)]
        row: Row = dict(zip(("error (energy)", "residual, dual norm", "residual, Euclidean"), ratios, strict=True))
        study.row("Guests: nested iteration over zero guess, Bratu, by error and by norms", {"n": cells, **row})
        norm.destroy()


def _gains(study: Study, cells: int) -> None:
    """Let rivals and combination compete along a sequence of loads: what the report says that they save."""
    square = functools.partial(dolfinx.mesh.create_unit_square, study.comm)
    problem, parameter = families.bratu(square(cells, cells), "guests_gains_")
    coarse, coarse_parameter = families.bratu(square(cells // 2, cells // 2), "guests_gains_coarse_")
    solution, coarse_solution = families.unknown(problem), families.unknown(coarse)
    for arm in ("present iterate alone", "nested iteration", "extrapolation", "all and their combination"):
        solution.x.array[:] = coarse_solution.x.array[:] = 0.0
        guest = attach_guess(
            problem,
            coarse=None if arm in ("present iterate alone", "extrapolation") else coarse,
            parameter=parameter if arm in ("extrapolation", "all and their combination") else None,
            combine=arm.startswith("all"),
        )
        steps, judged, chosen = 0, 0, []
        for value in (2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 5.5):
            families.set_parameter(parameter, value)
            families.set_parameter(coarse_parameter, value)
            problem.solve()
            steps += problem.solver.getIterationNumber()
            judged += guest.report.residual_evaluations
            chosen.append(guest.report.chosen)
        most = max(set(chosen), key=chosen.count)
        row: Row = {"on offer": arm, "solves": 8, "Newton steps": steps, "residuals judged": judged, "mostly": most}
        study.row("Guests: a sequence of loads, Bratu", row)
        guest.detach()
