"""Benchmark problems 1 to 12 of the optimiser: how they are built, solved and what their least objectives are."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from mpi4py import MPI

import dolfinx
import numpy as np
import ufl

from pdeopt import problems
from pdeopt.bench.harness import Row
from pdeopt.fem import forms
from pdeopt.optimise import minimise
from pdeopt.report import ConvergenceError, SolveReport

_GAUSS = 40  # points, for integrals of smooth functions


@dataclasses.dataclass(frozen=True)
class Reference:
    """A least objective from elsewhere.

    Parameters
    ----------
    value, uncertainty
        The number, and how far from it the truth may be.
    source
        Where it comes from.
    mesh
        The mesh on which it holds, None for that of the continuous problem.
    lower
        Whether the publication stopped on its way to a minimum, so that lower is right.
    """

    value: float
    uncertainty: float
    source: str
    mesh: int | None = None
    lower: bool = False


@dataclasses.dataclass(frozen=True)
class Case:
    """One problem.

    Parameters
    ----------
    number, name
        Of the list of benchmarks, and what it is called in the tables.
    build
        Makes the problem on a mesh.
    meshes
        Cells along a side, growing by the same ratio; for problem 7 a level.
    reference
        Makes the reference; called after the solves.
    nonlinear
        Whether one linear system does not solve it.
    convex
        Whether there is one minimum at most near the start, so that second codes find the same one.
    stages
        Values of the constant ``penalty``, one after the other; empty if there is none.
    """

    number: str
    name: str
    build: Callable[[int], Any]
    meshes: tuple[int, ...]
    reference: Callable[[], Reference] | None = None
    nonlinear: bool = True
    convex: bool = True
    stages: tuple[float, ...] = ()


def solve(case: Case, instance: Any, rtol: float = 1e-8, limit: int = 300) -> tuple[list[SolveReport], bool]:
    """Minimise, stage after stage; return the reports, and whether all converged. Collective: yes."""
    reports = []
    converged = True
    for stage in case.stages or (None,):
        if stage is not None:
            instance.penalty.value = stage
        try:
            reports.append(minimise(instance.problem, rtol=rtol, max_iterations=limit))
        except ConvergenceError as error:
            converged = False
            if isinstance(error.report, SolveReport):
                reports.append(error.report)
    return reports, converged


def unknowns(problem: Any) -> int:
    """Return the number of states, adjoints and controls, at one time. Collective: yes."""
    system = getattr(problem, "system", None)
    if system is not None:
        return int(system.layout.global_size)
    control = problem.functional.create_vector()
    size = int(control.getSize())
    control.destroy()
    return size


def measure_case(case: Case, mesh: int, rtol: float = 1e-8) -> tuple[Row, Any]:
    """Solve on one mesh; return the row of the table and the problem at its solution. Collective: yes."""
    instance = case.build(mesh)
    started = time.perf_counter()
    reports, converged = solve(case, instance, rtol)
    seconds = time.perf_counter() - started
    last = reports[-1] if reports else None
    row: Row = {
        "problem": f"{case.number} {case.name}",
        "mesh": mesh,
        "unknowns": unknowns(instance.problem),
        "value": instance.problem.objective_value(),
        "iterations": ", ".join(str(report.iterations) for report in reports),
        "steps": max((report.iterations for report in reports), default=None),
        "KKT residual": last.residuals[-1] if last is not None and last.residuals else None,
        "converged": converged,
        "method": last.method if last is not None else None,
        "seconds": seconds,
    }
    return row, instance


def extrapolate(values: Sequence[float]) -> tuple[float, float]:
    """Return the limit of a sequence on meshes refined by one ratio, and its uncertainty.

    Richardson's extrapolation with the order that the last three values show (Aitken's formula); the uncertainty is the
    distance of the limit from the last value. Where they show no order it is the last value,
    uncertain by its last change.
    """
    if len(values) < 2:
        return values[-1], math.nan
    last = values[-1] - values[-2]
    if len(values) < 3:
        return values[-1], abs(last)
    before = values[-2] - values[-3]
    ratio = last / before if before != 0.0 else math.nan
    if not 0.0 < ratio < 0.9:
        return values[-1], abs(last)
    limit = values[-1] + last * ratio / (1.0 - ratio)
    return limit, abs(limit - values[-1])


# The problems --------------------------------------------------------------------------------------------------------


def square(cells: int, shape: str = "triangle") -> dolfinx.mesh.Mesh:
    """Return a mesh of the unit square over all ranks. Collective: yes."""
    return dolfinx.mesh.create_unit_square(MPI.COMM_WORLD, cells, cells, dolfinx.mesh.CellType[shape])


def _heat(cells: int) -> Any:
    corners = [np.array([-1.0, -1.0]), np.array([1.0, 1.0])]
    return problems.HeatControl(dolfinx.mesh.create_rectangle(MPI.COMM_WORLD, corners, (cells, cells)), cells)


def _stokes(level: int) -> Any:
    return problems.StokesDirichletControl(problems.obstacle_mesh(MPI.COMM_WORLD, 0.83 / 2**level))


def _rdw(name: str, cells: int) -> Any:
    return problems.ReesDollarWathenControl(
        square(cells, "quadrilateral"),
        int(name[6]),
        bounded=name[7] in "FB",
        state_bounded=name[7] == "B",
    )


def _rdw_case(name: str) -> Case:
    value = problems.ReesDollarWathenControl.CUTEST_OBJECTIVES[name]
    return Case(
        "2",
        f"Rees-Dollar-Wathen {name}",
        lambda cells: _rdw(name, cells),
        (8, 16, 32),
        lambda: Reference(value, 1e-6 * value, "CUTEst data, N = 8", mesh=8),
        nonlinear=name[7] != "U",
    )


def _exact(build: Callable[[int], Any], cells: int) -> Callable[[], Reference]:
    """Return what integrates the objective at the known optimum, on a fine mesh and a coarser one."""

    def reference() -> Reference:
        coarse, fine = (_objective_at_optimum(build(n)) for n in (cells // 2, cells))
        return Reference(fine, abs(fine - coarse) + 1e-12 * abs(fine), "exact optimum, integrated")

    return reference


def _objective_at_optimum(case: Any) -> float:
    lagrangian = case.problem.system.lagrangian
    exact = {lagrangian.state: case.exact["state"], lagrangian.controls[0].function: case.exact["control"]}
    return forms.assemble_scalar(forms.compile_form(ufl.replace(lagrangian.objective, exact)))


def _heat_reference() -> Reference:
    points, weights = np.polynomial.legendre.leggauss(_GAUSS)
    time_, eigenvalue, beta = 0.5 * (points + 1.0), math.pi**2 / 2.0, 1e-2
    adjoint = math.e - np.exp(time_)
    integrand = (np.exp(time_) + eigenvalue * adjoint) ** 2 + adjoint**2 / beta
    value = 0.5 * float(0.5 * weights @ integrand)
    return Reference(value, 1e-12 * value, "exact optimum, integrated")


def _boundary_reference() -> Reference:
    """J at y = 0, u = clip(x^2 - y^2) on the unit square: two sides have x^2, two have 1 - x^2."""
    kink = math.sqrt(0.5)
    sides = kink**5 / 5.0 + 0.25 * (1.0 - kink)
    opposite = 0.25 * kink + (8.0 / 15.0 - (kink - 2.0 * kink**3 / 3.0 + kink**5 / 5.0))
    value = 0.5 * 8.0 / 45.0 + 0.5 * 2.0 * (sides + opposite)
    return Reference(value, 1e-12 * value, "exact optimum, integrated")


def _maurer_reference() -> Reference:
    coarse, middle, fine = problems.MaurerMittelmannControl.PUBLISHED_OBJECTIVES.values()
    linear, quadratic = 2.0 * fine - middle, 8.0 / 3.0 * fine - 2.0 * middle + coarse / 3.0
    return Reference(quadratic, abs(quadratic - linear), "published, extrapolated in h and h^2")


def cases() -> list[Case]:
    """Return the twelve problems; some have several forms. Collective: no."""
    poisson = lambda cells: problems.PoissonControl(square(cells))  # noqa: E731
    bratu = lambda cells: problems.BratuControl(square(cells))  # noqa: E731
    flow = lambda cells: problems.NavierStokesControl(square(cells))  # noqa: E731
    topology, pipe = problems.PoissonTopology, problems.StokesDoublePipe
    obstacle, dirichlet = problems.ObstacleControl, problems.StokesDirichletControl
    return [
        Case("1", "Poisson", poisson, (32, 64, 128), _exact(poisson, 128), nonlinear=False),
        *(_rdw_case(name) for name in problems.ReesDollarWathenControl.CUTEST_OBJECTIVES),
        Case("3", "heat equation", _heat, (8, 16, 32), _heat_reference, nonlinear=False),
        Case(
            "4",
            "bounded boundary control",
            lambda cells: problems.BoundedBoundaryControl(square(cells)),
            (16, 32, 64),
            _boundary_reference,
        ),
        Case(
            "5",
            "Maurer-Mittelmann",
            lambda cells: problems.MaurerMittelmannControl(square(cells)),
            (25, 50, 100),
            _maurer_reference,
        ),
        Case(
            "6",
            "coefficient inversion",
            lambda cells: problems.CoefficientInversion(square(cells)),
            (16, 32, 64),
            lambda: Reference(1.81528e-7, 2e-9, "published, another draw of the noise (1 %)", mesh=64),
        ),
        Case(
            "7",
            "Stokes Dirichlet control",
            _stokes,
            (0, 1, 2),
            lambda: Reference(dirichlet.PUBLISHED_OBJECTIVE, 1e-3, "published, u = g in the degrees of freedom"),
            nonlinear=False,
        ),
        Case(
            "8",
            "Poisson topology",
            lambda cells: topology(square(cells)),
            (8, 16, 32),
            lambda: Reference(topology.PUBLISHED_OBJECTIVE, 1e-9, "published, 250 cells, stopped early", lower=True),
            convex=False,
        ),
        Case(
            "9",
            "Stokes double pipe, q = 0.01",
            lambda cells: pipe(MPI.COMM_WORLD, cells),
            (6, 12, 24),
            convex=False,
        ),
        Case(
            "9",
            "Stokes double pipe, q = 0.01, 0.1",
            lambda cells: pipe(MPI.COMM_WORLD, cells),
            (6, 12),
            convex=False,
            stages=pipe.CONTINUATION,
        ),
        Case(
            "10",
            "obstacle, soft",
            lambda cells: obstacle(square(cells)),
            (32, 64, 128),
            lambda: Reference(obstacle.PUBLISHED_OBJECTIVE, 1e-8, "published, 128 cells", mesh=128),
        ),
        Case(
            "10",
            "obstacle, complementarity",
            lambda cells: problems.ObstacleComplementarityControl(square(cells)),
            (8, 16, 32),
            lambda: Reference(0.0114388, 1e-7, "IPOPT, 8 cells", mesh=8),
        ),
        Case("11", "Bratu", bratu, (16, 32, 64), _exact(bratu, 64)),
        Case("12", "Navier-Stokes", flow, (12, 24, 48), _exact(flow, 48)),
    ]
