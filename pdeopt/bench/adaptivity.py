"""Adaptivity in `pdeopt bench certificates`: effectivities, and errors against unknowns beside uniform meshes."""

import dataclasses
import importlib.util
import math
from collections.abc import Callable, Iterator

from mpi4py import MPI

import dolfinx
import numpy as np
import ufl

from pdeopt.bench.harness import say
from pdeopt.bench.study import Study
from pdeopt.control.goal import estimate_objective_error
from pdeopt.fem import MeshData, forms
from pdeopt.fem.adapt import mark_doerfler, refine_mesh
from pdeopt.fem.goal import estimate_goal_error
from pdeopt.fem.metric import goal_metric, hessian_metric
from pdeopt.fem.remesh import remesh
from pdeopt.problems.l_shape import REFERENCE_OBJECTIVE, LShapeControl, LShapePoisson, l_shape_mesh

GOALS = ("box mean", "mean", "flux")
_FRACTION = 0.5  # of the error that is marked
_LAST = 3  # meshes that count for the effectivity


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Cells along a unit of length of the uniform meshes; steps of the loops; cells of the cube's edge length."""

    degrees: tuple[int, ...] = (1, 2)
    uniform: tuple[int, ...] = (4, 8, 16, 32, 64)
    steps: tuple[int, ...] = (11, 13)
    remeshings: int = 8
    control_degrees: tuple[int, ...] = (1, 2)
    control_uniform: tuple[int, ...] = (4, 8, 16, 32)
    control_steps: tuple[int, ...] = (9, 12)
    metrics: tuple[str, ...] = ("Mmg, goal-oriented metric", "Mmg, Hessian metric")
    cube: float = 0.1


_QUICK = Sizes(
    degrees=(2,), uniform=(4, 8), steps=(6,), remeshings=4, control_degrees=(1,), control_uniform=(4, 8),
    control_steps=(4,), metrics=("Mmg, goal-oriented metric",), cube=0.25,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Point:
    """One mesh of a study: unknowns of the state, signed error of the functional, estimate over error."""

    unknowns: int
    error: float
    effectivity: float = math.nan


def measure(study: Study, quick: bool) -> None:
    """Measure line 4 of what certificates must show, as far as goals and adaptive meshes go. Collective: yes."""
    sizes = _QUICK if quick else Sizes()
    _goals(study, sizes)
    _control(study, sizes)
    _cube(study, sizes)


def gain(points: list[Point], uniform: list[Point]) -> float:
    """Return the error of the uniform meshes over that of the last adaptive one at its number of unknowns.

    Between and beyond uniform meshes the logarithm of the error is linear in that of the unknowns. Collective: no.
    """
    last = points[-1]
    x = np.log([point.unknowns for point in uniform])
    y = np.log([abs(point.error) for point in uniform])
    right = min(max(int(np.searchsorted(x, math.log(last.unknowns))), 1), len(x) - 1)
    slope = (y[right] - y[right - 1]) / (x[right] - x[right - 1])
    expected = y[right] + slope * (math.log(last.unknowns) - x[right])
    return float(math.exp(expected) / abs(last.error))


def _goals(study: Study, sizes: Sizes) -> None:
    """Take three functionals of the harmonic function, by refinement and by Mmg."""
    gains: dict[str, list[float]] = {}
    effectivities: list[float] = []
    for degree, steps in zip(sizes.degrees, sizes.steps, strict=True):
        for goal in GOALS:
            say(study.comm, f"  {goal}, degree {degree}")
            uniform = [_uniform_point(study.comm, goal, degree, cells) for cells in sizes.uniform]
            found = {"uniform": uniform, "refined": list(_loop(study.comm, goal, degree, steps, "refined"))}
            if importlib.util.find_spec("mmgpy") is not None:
                for name in sizes.metrics:
                    found[name] = list(_loop(study.comm, goal, degree, sizes.remeshings, name))
            for meshes, points in found.items():
                for point in points:
                    columns = {"goal": goal, "degree": degree, "meshes": meshes, **dataclasses.asdict(point)}
                    study.row("L-shape: error of a functional against unknowns", columns)
                if meshes != "uniform":
                    gains.setdefault(meshes, []).append(gain(points, uniform))
                    columns = {"goal": goal, "degree": degree, "meshes": meshes, "unknowns": points[-1].unknowns}
                    columns["uniform / this error"] = gains[meshes][-1]
                    study.row("L-shape: gain over uniform meshes at equal unknowns", columns)
            effectivities += [point.effectivity for point in found["refined"][-_LAST:]]
    study.target("4h", "DWR effectivity, smallest of the last three meshes", min(effectivities), 0.5, at_least=True)
    study.target("4i", "DWR effectivity, largest of the last three meshes", max(effectivities), 2.0)
    least = min(gains["refined"])
    study.target("4j", "L-shape: uniform / refined error at equal unknowns, smallest", least, 10.0, at_least=True)
    mmg = gains.get("Mmg, goal-oriented metric")
    claim = "L-shape: uniform / Mmg error at equal unknowns, smallest"
    study.target("4k", claim, min(mmg) if mmg else None, 10.0, at_least=True)


def _solved(data: MeshData, degree: int) -> LShapePoisson:
    problem = LShapePoisson(data, degree)
    problem.solve()
    return problem


def _uniform_point(comm: MPI.Comm, goal: str, degree: int, cells: int) -> Point:
    problem = _solved(l_shape_mesh(comm, cells), degree)
    value = forms.assemble_scalar(forms.compile_form(problem.goals[goal]))
    return Point(problem.space.dofmap.index_map.size_global, problem.exact_goals[goal] - value)


def _loop(comm: MPI.Comm, goal: str, degree: int, steps: int, meshes: str) -> Iterator[Point]:
    """Solve, estimate, and make the next mesh."""
    data = l_shape_mesh(comm)
    cells = data.mesh.topology.index_map(2).size_global
    for step in range(steps):
        problem = _solved(data, degree)
        estimate = estimate_goal_error(problem.goals[goal], problem.residual, problem.solution, problem.bcs)
        error = problem.exact_goals[goal] - estimate.value
        yield Point(problem.space.dofmap.index_map.size_global, error, estimate.error / error)
        if step == steps - 1:
            return
        cells *= 2
        if meshes == "refined":
            data = refine_mesh(data, mark_doerfler(estimate.indicators, _FRACTION))
        elif meshes == "Mmg, Hessian metric":
            data = remesh(data, hessian_metric(problem.solution, cells))
        else:
            data = remesh(data, goal_metric(estimate.indicators, problem.solution, cells))


def _control(study: Study, sizes: Sizes) -> None:
    """Take the least objective of a control problem, by refinement."""
    worst, gains = 1.0, []
    for degree, steps in zip(sizes.control_degrees, sizes.control_steps, strict=True):
        say(study.comm, f"  least objective of a control problem, degree {degree}")
        uniform = [_least_objective(l_shape_mesh(study.comm, cells), degree)[0] for cells in sizes.control_uniform]
        refined: list[Point] = []
        data = l_shape_mesh(study.comm)
        for _ in range(steps):
            point, indicators = _least_objective(data, degree, estimated=True)
            refined.append(point)
            data = refine_mesh(data, mark_doerfler(indicators, _FRACTION))
        for meshes, points in (("uniform", uniform), ("refined", refined)):
            for point in points:
                columns = {"degree": degree, "meshes": meshes, **dataclasses.asdict(point)}
                study.row("L-shape: error of the least objective", columns)
        worst = max(worst, *(_from_one(point.effectivity) for point in refined[-_LAST:]))
        gains.append(gain(refined, uniform))
        columns = {"goal": "least objective", "degree": degree, "meshes": "refined", "unknowns": refined[-1].unknowns}
        study.row("L-shape: gain over uniform meshes at equal unknowns", columns | {"uniform / this error": gains[-1]})
    study.target("4l", "optimality DWR: effectivity or its inverse, largest of the last three meshes", worst, 2.0)
    claim = f"least objective, degree {sizes.control_degrees[-1]}: uniform / refined error at equal unknowns"
    study.target("4m", claim, gains[-1], 10.0, at_least=True)


def _least_objective(data: MeshData, degree: int, estimated: bool = False) -> tuple[Point, dolfinx.fem.Function]:
    """Solve, and estimate the error if asked; without that the indicators are zero."""
    case = LShapeControl(data, degree=degree)
    case.problem.solve(method="direct")
    error = REFERENCE_OBJECTIVE - case.problem.objective_value()
    unknowns = case.control.function_space.dofmap.index_map.size_global
    effectivity, indicators = math.nan, dolfinx.fem.Function(dolfinx.fem.functionspace(data.mesh, ("DG", 0)))
    if estimated:
        estimate = estimate_objective_error(case.problem)
        effectivity, indicators = estimate.error / error, estimate.indicators
    case.problem.destroy()
    return Point(unknowns, error, effectivity), indicators


def _from_one(effectivity: float) -> float:
    """Return how far an effectivity is from one, as a factor; infinite if the sign is wrong."""
    return max(effectivity, 1.0 / effectivity) if effectivity > 0.0 else math.inf


def _cube(study: Study, sizes: Sizes) -> None:
    """Remesh a cube by Mmg: edges should have unit length in the metric, and the domain should be kept."""
    claims = (
        "cube by Mmg: share of edges with metric length in [1/2, 2]",
        "cube by Mmg: relative change of the volume",
    )
    if importlib.util.find_spec("mmgpy") is None:
        study.target("4n", claims[0], None, 0.95, at_least=True)
        study.target("4u", claims[1], None, 1e-10)
        return
    say(study.comm, "  the cube by Mmg")
    ghosts = dolfinx.mesh.GhostMode.shared_facet
    data = MeshData(dolfinx.mesh.create_unit_cube(study.comm, 4, 4, 4, ghost_mode=ghosts), None, None, {})

    def eigenvalues(x: np.ndarray) -> np.ndarray:  # cells twice as long as thick, and finer towards x = 0
        size = sizes.cube * (0.5 + x[0])
        return np.array([1.0 / size**2, 0.25 / size**2, 0.25 / size**2])

    for _ in range(2):  # the second time on a mesh that carries the metric's variation
        metric = dolfinx.fem.Function(dolfinx.fem.functionspace(data.mesh, ("Lagrange", 1, (3, 3))))
        metric.interpolate(lambda x: (np.eye(3)[:, :, None] * eigenvalues(x)[:, None, :]).reshape(9, -1))
        data = remesh(data, metric)
    lengths = _edge_lengths(data, eigenvalues)
    share = float(np.mean((lengths > 0.5) & (lengths < 2.0)))
    one = dolfinx.fem.Constant(data.mesh, 1.0)
    volume = forms.assemble_scalar(forms.compile_form(one * ufl.dx))
    columns = {"cells": data.mesh.topology.index_map(3).size_global, "edges in [1/2, 2]": share}
    columns |= {f"length, {p} % quantile": float(np.percentile(lengths, p)) for p in (1, 50, 99)}
    study.row("Cube by Mmg, stretched metric", columns)
    study.target("4n", claims[0], share, 0.95, at_least=True)
    study.target("4u", claims[1], abs(volume - 1.0), 1e-10)


def _edge_lengths(data: MeshData, eigenvalues: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Return the lengths of the edges in the metric at their midpoints. Collective: yes."""
    data.mesh.topology.create_entities(1)
    data.mesh.topology.create_connectivity(1, 3)
    owned = np.arange(data.mesh.topology.index_map(1).size_local, dtype=np.int32)
    ends = data.mesh.geometry.x[dolfinx.mesh.entities_to_geometry(data.mesh, 1, owned)]
    vectors, middles = ends[:, 1] - ends[:, 0], ends.mean(axis=1)
    return np.concatenate(data.mesh.comm.allgather(np.sqrt((vectors**2 * eigenvalues(middles.T).T).sum(axis=1))))
