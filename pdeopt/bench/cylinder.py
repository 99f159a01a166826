"""The cylinder's part of `pdeopt bench certificates`: published forces, rank counts, the vortex street, the wake."""

import dataclasses
import time

from mpi4py import MPI

import numpy as np

from pdeopt.bench.harness import Row, say
from pdeopt.bench.study import Study, number
from pdeopt.fem import forms
from pdeopt.problems.cylinder_control import WakeControl
from pdeopt.problems.cylinder_flow import REFERENCE_RE20, CylinderFlow, Forces
from pdeopt.problems.cylinder_mesh import cylinder_mesh
from pdeopt.problems.cylinder_unsteady import UnsteadyCylinderFlow

_THIS = "pdeopt.bench.cylinder"
_LARGEST = 1e5  # degrees of freedom that the published numbers may take
_STOPPED_ROTATION = 22.0  # rad/s
# Schaefer and Turek (1996), benchmark 2D-2.
_PUBLISHED = {"drag_max": (3.22, 3.24), "lift_max": (0.99, 1.01), "strouhal": (0.295, 0.305)}
_PUBLISHED |= {"pressure_drop": (2.46, 2.50)}
_ROTATIONS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)  # and their negatives


def measure(study: Study, quick: bool) -> None:
    """Fill the rows and targets of flow past the cylinder. Collective: yes."""
    _steady(study, (16, 32, 64) if quick else (32, 64, 128))
    _ranks(study, quick)
    _wake(study, (16,) if quick else (16, 32, 64))
    if not quick:
        _street(study)


def _errors(forces: Forces) -> dict[str, float]:
    """Return the relative errors against the reference by name [%]."""
    names = [field.name for field in dataclasses.fields(Forces)]
    return {name: 100.0 * abs(getattr(forces, name) / getattr(REFERENCE_RE20, name) - 1.0) for name in names}


def steady_forces(comm: MPI.Comm, edges: int, reynolds: float = 20.0) -> Row:
    """Solve for the steady flow: forces, size, Newton steps, seconds with the mesh. Collective: yes."""
    started = time.perf_counter()
    flow = CylinderFlow(cylinder_mesh(comm, edges), reynolds)
    report = flow.solve()
    unknowns = int(report.quantities["unknowns"])
    columns: Row = {"edges": edges, "unknowns": unknowns, **dataclasses.asdict(flow.forces())}
    return {**columns, "Newton steps": report.iterations, "seconds": time.perf_counter() - started}


def _forces(row: Row) -> Forces:
    return Forces(*(number(row, field.name) for field in dataclasses.fields(Forces)))


def _steady(study: Study, meshes: tuple[int, ...]) -> None:
    """Lines 3a, 3b, 3c: Re 20 against the published numbers, and the orders between meshes of half the size."""
    previous: dict[str, float] = {}
    for edges in meshes:
        row = steady_forces(study.comm, edges)
        errors = _errors(_forces(row))
        orders = {f"{name} order": float(np.log2(previous[name] / errors[name])) for name in previous}
        wrong = {f"{name} error [%]": error for name, error in errors.items()}
        study.row("Cylinder, Re 20: forces against the published ones", {**row, **wrong, **orders})
        previous = errors
    allowed = int(row["unknowns"] or 0) <= _LARGEST
    for identifier, name in zip(("3a", "3b", "3c"), previous, strict=True):
        claim = f"cylinder, Re 20: error of the {name.replace('_', ' ')}, {row['unknowns']} unknowns [%]"
        study.target(identifier, claim, previous[name] if allowed else None, 0.1)


def _ranks(study: Study, quick: bool) -> None:
    """Line 3n: the same forces on every rank count."""
    counts, edges = ((2,), 16) if quick else ((1, 2, 3), 64)
    rows = [study.case(f"{_THIS}:steady_forces", ranks, edges=edges) for ranks in counts]
    if quick:
        rows.insert(0, {**steady_forces(study.comm, edges), "ranks": study.comm.size})
    for row in rows:
        kept = ("ranks", "edges", "drag", "lift", "pressure_drop", "seconds", "failed")
        study.row("Cylinder, Re 20: one flow on every rank count", {name: row[name] for name in kept if name in row})
    forces = np.array([dataclasses.astuple(_forces(row)) for row in rows])
    spread = float(np.max(np.abs(forces / forces[0] - 1.0)))  # NaN if a case failed
    study.target("3n", "cylinder, Re 20: relative difference of the forces between rank counts", spread, 1e-8)


def shedding(comm: MPI.Comm, edges: int, time_step: float, duration: float) -> Row:
    """Follow the vortex street at Re 100 and evaluate its last two periods. Collective: yes.

    Parameters
    ----------
    edges
        Around the cylinder.
    time_step, duration
        In seconds. The motion starts from the steady flow around a cylinder that rotates, and is stopped then.
    """
    flow = CylinderFlow(cylinder_mesh(comm, edges), 100.0)
    flow.rotate_cylinder(_STOPPED_ROTATION)
    report = flow.solve()
    flow.rotate_cylinder(0.0)
    street = UnsteadyCylinderFlow(flow, time_step)
    street.advance(round(duration / time_step))
    found = dataclasses.asdict(street.history().shedding(periods=2))
    street.destroy()
    unknowns = int(report.quantities["unknowns"])
    amplitude = 0.5 * (found["lift_max"] - found["lift_min"])
    return {"edges": edges, "unknowns": unknowns, "step [s]": time_step, **found, "lift amplitude": amplitude}


def _street(study: Study) -> None:
    """Line 3j: Re 100; how far the numbers are from the middle of the published intervals, in half widths."""
    table = "Cylinder, Re 100: vortex street, started by stopping a rotation of 22 rad/s"
    row: Row = {}
    for edges, step in ((32, 1 / 100), (64, 1 / 100), (96, 1 / 200)):
        row = study.case(f"{_THIS}:shedding", 2, edges=edges, time_step=step, duration=1.6)
        study.row(table, {name: value for name, value in row.items() if name != "job seconds"})
    study.row(table, {"edges": "published, lower", **{name: limits[0] for name, limits in _PUBLISHED.items()}})
    study.row(table, {"edges": "published, upper", **{name: limits[1] for name, limits in _PUBLISHED.items()}})
    for name, (lower, upper) in _PUBLISHED.items():
        distance = abs(number(row, name) - 0.5 * (lower + upper)) / (0.5 * (upper - lower))
        claim = f"cylinder, Re 100: {name.replace('_', ' ')} from the middle of [{lower}, {upper}], in half widths"
        study.target(f"3j.{name}", claim, distance, 1.0)


def _wake(study: Study, meshes: tuple[int, ...]) -> None:
    """Lines 3k, 3l, 3m: what the control of the wake gains, and that its derivatives are right."""
    ratio = np.nan
    for edges in meshes:
        say(study.comm, f"  wake control, {edges} edges")
        case = WakeControl(cylinder_mesh(study.comm, edges), 40.0, 1e-2)
        if edges == meshes[0]:
            _derivatives(study, case)
        resting, drag = case.problem.objective_value(), case.flow.forces().drag
        columns: Row = {"edges": edges, "control": "at rest", "objective": resting, "tracking": case.tracking()}
        study.row("Cylinder, Re 40: control of the wake", {**columns, "drag": drag})
        if edges == meshes[0]:
            study.row("Cylinder, Re 40: control of the wake", {"edges": edges, **_best_rotation(case)})
        report = case.problem.solve()
        best = float(report.quantities["objective"])
        _, values = case.surface_velocity()
        columns = {"edges": edges, "control": "optimal", "objective": best, "tracking": case.tracking()}
        columns |= {"drag": case.flow.forces().drag, "largest |g|": float(np.max(np.abs(values)))}
        columns |= {"Newton steps": report.iterations, "seconds": report.seconds["total"]}
        study.row("Cylinder, Re 40: control of the wake", columns)
        ratio = best / resting
        case.problem.destroy()
    study.target("3k", "wake control, Re 40: objective over that of the cylinder at rest", ratio, 0.1)


def _best_rotation(case: WakeControl) -> Row:
    """Return the best of some constant controls, the trivial rival; the flow at rest is put back. Collective: yes."""
    rows: list[Row] = []
    functional = case.problem.reduced_functional()
    control = functional.create_vector()
    for turn in (1.0, -1.0):
        case.flow.solution.x.array[:] = case.uncontrolled.x.array
        for rotation in _ROTATIONS:  # outwards from rest, so that each state is a good start for the next
            control.set(turn * rotation)
            objective = functional.value(control)
            columns: Row = {"control": f"rotation, g = {turn * rotation:g}", "objective": objective}
            columns["tracking"] = case.tracking()
            rows.append({**columns, "drag": case.flow.forces().drag})
    functional.destroy()
    _put_back(case)
    return min(rows, key=lambda row: number(row, "objective"))


def _put_back(case: WakeControl) -> None:
    case.flow.solution.x.array[:] = case.uncontrolled.x.array
    case.control.x.array[:] = 0.0
    case.problem.adjoint.x.array[:] = 0.0


def _derivatives(study: Study, case: WakeControl) -> None:
    """Taylor remainders around a rotating cylinder; around one at rest symmetry would hide the cubic term."""
    case.control.x.array[:] = 1.0
    with forms.default_options("state_", {"snes_rtol": 1e-15}):  # states to the last digit
        report = case.problem.taylor_test()
    _put_back(case)
    columns: Row = {"gradient order": report.gradient_order, "Hessian order": report.hessian_order}
    study.row("Cylinder, Re 40: Taylor remainders of the wake control", columns)
    claim = "wake control: order of the Taylor remainder with the"
    study.target("3l", f"{claim} gradient", report.gradient_order, 1.99, at_least=True)
    study.target("3m", f"{claim} Hessian", report.hessian_order, 2.95, at_least=True)
