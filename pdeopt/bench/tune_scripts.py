"""Whole scripts: `pdeopt tune` and `pdeopt run --tuned` beside the script as it is."""

import contextlib
import functools
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from pdeopt._launchers import clean_environment
from pdeopt.bench.harness import Row, say
from pdeopt.bench.study import Study, number
from pdeopt.parallel import on_root
from pdeopt.relaxation import tune, tune_report

_HEAD = """
import sys
from mpi4py import MPI
from petsc4py import PETSc
import numpy as np
import ufl
from dolfinx import default_scalar_type, fem, mesh
from dolfinx.fem.petsc import LinearProblem

n = int(sys.argv[1])
LU = {"ksp_type": "preonly", "pc_type": "lu"}

def clamped(space, where):
    domain = space.mesh
    facets = mesh.locate_entities_boundary(domain, domain.topology.dim - 1, where)
    dofs = fem.locate_dofs_topological(space, domain.topology.dim - 1, facets)
    zero = np.zeros(space.value_shape or (), dtype=default_scalar_type)
    return fem.dirichletbc(zero, dofs, space)
"""
# Scripts as people write them, each with the solver of a tutorial; they print one number.
SCRIPTS = {
    "Poisson 2D, LU": """
domain = mesh.create_unit_square(MPI.COMM_WORLD, n, n)
space = fem.functionspace(domain, ("Lagrange", 1))
u, v = ufl.TrialFunction(space), ufl.TestFunction(space)
x = ufl.SpatialCoordinate(domain)
a, L = ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx, ufl.exp(x[0]) * x[1] * v * ufl.dx
bc = clamped(space, lambda x: np.isclose(x[0], 0) | np.isclose(x[0], 1))
problem = LinearProblem(a, L, bcs=[bc], petsc_options_prefix="poisson_", petsc_options=LU)
problem.solve()
print(f"{problem.x.norm():.12e}")
""",
    "elasticity 3D, LU": """
domain = mesh.create_box(MPI.COMM_WORLD, [[0, 0, 0], [3, 1, 1]], [3 * n, n, n])
space = fem.functionspace(domain, ("Lagrange", 1, (3,)))
u, v = ufl.TrialFunction(space), ufl.TestFunction(space)
strain = lambda w: ufl.sym(ufl.grad(w))
a = (2 * ufl.inner(strain(u), strain(v)) + 1.25 * ufl.div(u) * ufl.div(v)) * ufl.dx
L = ufl.inner(fem.Constant(domain, default_scalar_type((0, 0, -0.01))), v) * ufl.dx
bc = clamped(space, lambda x: np.isclose(x[0], 0))
problem = LinearProblem(a, L, bcs=[bc], petsc_options_prefix="elastic_", petsc_options=LU)
problem.solve()
print(f"{problem.x.norm():.12e}")
""",
    "heat 2D, assembled each step, LU": """
domain = mesh.create_unit_square(MPI.COMM_WORLD, n, n)
space = fem.functionspace(domain, ("Lagrange", 1))
u, v, old = ufl.TrialFunction(space), ufl.TestFunction(space), fem.Function(space)
old.interpolate(lambda x: np.exp(-20 * ((x[0] - 0.5) ** 2 + (x[1] - 0.5) ** 2)))
a = (u * v + 0.01 * ufl.inner(ufl.grad(u), ufl.grad(v))) * ufl.dx
bc = clamped(space, lambda x: np.isclose(x[0], 0))
problem = LinearProblem(a, old * v * ufl.dx, u=old, bcs=[bc], petsc_options_prefix="heat_", petsc_options=LU)
for _ in range(10):
    problem.solve()
print(f"{problem.x.norm():.12e}")
""",
    "heat 2D, CG with Jacobi": """
domain = mesh.create_unit_square(MPI.COMM_WORLD, n, n)
space = fem.functionspace(domain, ("Lagrange", 1))
u, v, old = ufl.TrialFunction(space), ufl.TestFunction(space), fem.Function(space)
old.interpolate(lambda x: np.exp(-20 * ((x[0] - 0.5) ** 2 + (x[1] - 0.5) ** 2)))
a = (u * v + 1e-6 * ufl.inner(ufl.grad(u), ufl.grad(v))) * ufl.dx
options = {"ksp_type": "cg", "pc_type": "jacobi", "ksp_rtol": 1e-10}
problem = LinearProblem(a, old * v * ufl.dx, u=old, petsc_options_prefix="heat_", petsc_options=options)
for _ in range(10):
    problem.solve()
print(f"{problem.x.norm():.12e}")
""",
}
SIZES = {
    "Poisson 2D, LU": (60, 450),
    "elasticity 3D, LU": (4, 12),
    "heat 2D, assembled each step, LU": (40, 220),
    "heat 2D, CG with Jacobi": (40, 350),
}


def measure(study: Study, quick: bool) -> None:
    """Fill in seconds of whole scripts, as they are and with tuned solvers. Collective: yes."""
    names = list(SCRIPTS)[:1] if quick else list(SCRIPTS)
    repeat = 1 if quick else study.settings.repeat
    gains, differences = [], []
    for name in names:
        say(study.comm, f"  {name}")
        size = SIZES[name][0 if quick else 1]
        row = on_root(study.comm, functools.partial(_script, name, size, repeat))
        study.row("scripts of ours", row)
        gains.append(number(row, "script / tuned"))
        differences.append(number(row, "difference"))
    mean = math.exp(statistics.fmean(map(math.log, gains)))
    study.target("3.own", "scripts of ours: script / tuned, geometric mean", mean, 1.4, at_least=True)
    study.target("3.own.never", "the least of these", min(gains), 0.95, at_least=True)
    study.target("3.own.equal", "greatest relative difference of a printed norm", max(differences), 1e-6)


def _script(name: str, size: int, repeat: int) -> Row:
    """Return the row of a script: medians of alternating runs. Collective: no."""
    with tempfile.TemporaryDirectory(prefix="pdeopt-bench-") as folder:
        path, tuned = pathlib.Path(folder, "script.py"), pathlib.Path(folder, "tuned.json")
        path.write_text(_HEAD + SCRIPTS[name])
        command = [sys.executable, str(path), str(size)]
        environment = clean_environment(os.environ)
        own_norm, _ = _seconds(command)  # compiles the forms
        report = pathlib.Path(folder, "report")
        began = time.perf_counter()
        with _stdout_of_children_off():
            tune.tune_script(command, None, 1.0, tuned, report, environment)
        tuning = time.perf_counter() - began
        seconds: dict[str, list[float]] = {"own": [], "tuned": []}
        norm = own_norm
        for _ in range(repeat):
            own_norm, own = _seconds(command)
            norm, faster = _seconds([sys.executable, "-m", "pdeopt", "run", "--tuned", str(tuned), "--", *command])
            seconds["own"].append(own)
            seconds["tuned"].append(faster)
        solvers = tune_report.load(tuned)
    own, faster = (statistics.median(seconds[arm]) for arm in ("own", "tuned"))
    return {
        "script": name,
        "size": size,
        "solver": solvers[0]["solver"] if solvers else "own",
        "gain of solvers": float(solvers[0]["gain"]) if solvers else 1.0,
        "script s": own,
        "tuned s": faster,
        "script / tuned": own / faster,
        "tune s": tuning,
        "difference": abs(norm - own_norm) / abs(own_norm),
    }


def _seconds(command: list[str]) -> tuple[float, float]:
    """Return the number that a script prints, and its wall seconds, start-up included."""
    began = time.perf_counter()
    job = subprocess.run(
        command, capture_output=True, text=True, check=True, env=clean_environment(os.environ), timeout=900.0
    )
    return float(job.stdout), time.perf_counter() - began


@contextlib.contextmanager
def _stdout_of_children_off() -> Iterator[None]:
    """Send what children print to nowhere."""
    kept = os.dup(1)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
