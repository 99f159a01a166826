"""Rivals written in Python: PyAMG's hierarchies, and the direct sine transform for Poisson's equation on a grid."""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

from petsc4py import PETSc

import numpy as np
import numpy.typing as npt

from pdeopt.bench.linear_families import LinearCase
from pdeopt.bench.linear_outcome import MAX_IT, RTOL, Outcome
from pdeopt.bench.rivals import require_package
from pdeopt.report import InputError

type Arm = Callable[[LinearCase], Outcome]
type Floats = npt.NDArray[np.float64]

_SWEEP = ("gauss_seidel", {"sweep": "symmetric"})
_SMOOTHERS = {"presmoother": _SWEEP, "postsmoother": _SWEEP}
_EVOLUTION = ("evolution", {"epsilon": 4.0})
_ENERGY = ("energy", {"maxiter": 4})
_AGGREGATION: dict[str, tuple[str, dict[str, Any]]] = {
    "aggregation": ("smoothed_aggregation_solver", {"strength": "symmetric"}),
    "aggregation, strength 0.05": (
        "smoothed_aggregation_solver", {"strength": ("symmetric", {"theta": 0.05})},
    ),
    "aggregation, evolution": ("smoothed_aggregation_solver", {"strength": _EVOLUTION}),
    "aggregation, evolution, energy": ("smoothed_aggregation_solver", {"strength": _EVOLUTION, "smooth": _ENERGY}),
    "root node, evolution, energy": ("rootnode_solver", {"strength": _EVOLUTION, "smooth": _ENERGY}),
}  # fmt: skip
_CLASSICAL: dict[str, tuple[str, dict[str, Any]]] = {
    "classical": ("ruge_stuben_solver", {}),
    "classical, PMIS": ("ruge_stuben_solver", {"CF": "PMIS"}),
    "classical, strength 0.5": ("ruge_stuben_solver", {"strength": ("classical", {"theta": 0.5})}),
}


def pyamg_arms(elastic: bool) -> Mapping[str, Arm]:
    """Return the settings of PyAMG that are swept, by name. Collective: no."""
    settings = _AGGREGATION if elastic else _AGGREGATION | _CLASSICAL
    return {
        f"PyAMG: {name}": functools.partial(_solve_by_pyamg, arm=f"PyAMG: {name}", maker=maker, options=options)
        for name, (maker, options) in settings.items()
    }


def _solve_by_pyamg(case: LinearCase, arm: str, maker: str, options: dict[str, Any]) -> Outcome:
    """Solve by PyAMG's cycle in its own conjugate gradients. Collective: one rank only."""
    try:
        pyamg = require_package("pyamg", "rivals")
    except ImportError as error:
        return Outcome(arm, failed=str(error))
    require_package("pyamg.krylov", "rivals")
    A, b = _to_scipy(case.A), np.array(case.b.array_r)
    modes = _near_nullspace(case.A)
    extra = {} if modes is None else {"B": modes}
    clock = _Clock()
    hierarchy = getattr(pyamg, maker)(A, **options, **_SMOOTHERS, **extra)
    cycle = hierarchy.aspreconditioner(cycle="V")
    clock.lap()
    x, iterations, asked = np.zeros_like(b), 0, RTOL
    for _ in range(4):
        history: list[float] = []
        x, _ = pyamg.krylov.cg(
            A, b, x0=x, tol=asked, maxiter=MAX_IT - iterations, M=cycle, residuals=history, criteria="rr"
        )
        iterations += len(history) - 1
        residual = float(np.linalg.norm(b - A @ x) / np.linalg.norm(b))
        if residual <= RTOL or not residual < 1e3 or iterations >= MAX_IT:
            break
        asked *= 0.5 * RTOL / residual
    clock.lap()
    return Outcome(arm, *clock.seconds(), iterations=iterations, residual=residual)


def sine_transform(case: LinearCase) -> Outcome:
    """Solve Poisson's equation on a grid by the type I sine transform: its matrix is the five- or seven-point stencil.

    Raises
    ------
    InputError
        If the system is none of "square, constant" and "cube, constant".

    Collective: one rank only.
    """
    if case.family not in ("square, constant", "cube, constant"):
        raise InputError(f"the sine transform solves Poisson's equation on a grid, not {case.family!r}")
    fft = require_package("scipy.fft", "rivals")
    dimension, cells = (2 if case.family[0] == "s" else 3), int(case.tags["size"])
    b = np.array(case.b.array_r)
    clock = _Clock()
    shape = (cells + 1,) * dimension
    places = np.ravel_multi_index(tuple(np.rint(cells * case.coordinates[:, :dimension]).astype(int).T), shape)
    half = np.arange(1, cells) * (0.5 * np.pi / cells)
    along = 4.0 * np.sin(half) ** 2 * cells ** (2.0 - dimension)  # of the stencil of linear elements
    eigenvalues = functools.reduce(np.add.outer, [along] * dimension)
    clock.lap()
    grid = np.zeros(shape)
    grid.flat[places] = b
    inside = (slice(1, -1),) * dimension
    spectrum = fft.dstn(grid[inside], type=1) / eigenvalues
    grid[inside] = fft.idstn(spectrum, type=1)  # the values on the boundary are those of b
    x = case.b.duplicate()
    x.array = grid.ravel()[places]
    clock.lap()
    r = case.b.duplicate()
    case.A.mult(x, r)
    r.aypx(-1.0, case.b)
    residual = r.norm() / case.b.norm()
    for handle in (x, r):
        handle.destroy()
    return Outcome("Sine transform: SciPy", *clock.seconds(), iterations=1, residual=residual)


class _Clock:
    """Wall and processor seconds of set-up and solution, whose ends are its laps."""

    def __init__(self) -> None:
        self._marks = [(time.perf_counter(), time.process_time())]

    def lap(self) -> None:
        self._marks.append((time.perf_counter(), time.process_time()))

    def seconds(self) -> tuple[float, float, float, float]:
        """Return set-up and solution by the clock, then of the processor [s]."""
        (w0, c0), (w1, c1), (w2, c2) = self._marks
        return w1 - w0, w2 - w1, c1 - c0, c2 - c1


def _to_scipy(A: PETSc.Mat) -> Any:
    """Return a copy of the matrix of this rank, in blocks where it has some."""
    sparse = require_package("scipy.sparse", "rivals")
    rows, columns, values = A.getValuesCSR()
    matrix = sparse.csr_matrix((values, columns, rows), shape=A.getSize())
    size = A.getBlockSize()
    return matrix if size == 1 else matrix.tobsr((size, size))


def _near_nullspace(A: PETSc.Mat) -> Floats | None:
    nullspace = A.getNearNullSpace()
    return np.column_stack([mode.array_r for mode in nullspace.getVecs()]) if nullspace.handle else None
