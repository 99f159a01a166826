"""Iterations of SOR on shifted grid Laplacians, for many systems and relaxation factors at once.

The systems are those of "Learning to relax" (Khodak et al., ICLR 2024): A + c I with the five-point A of a square grid
of SIDE x SIDE unknowns, right-hand sides from a Gaussian cut at its mean radius, a zero start.
"""

import dataclasses

import numpy as np
import numpy.typing as npt

from pdeopt.report import ConvergenceError

SIDE = 10  # MATLAB's numgrid('S', 12) without its frame
TOLERANCE = 1e-8
ITERATION_LIMIT = 10_000
OMEGAS = np.linspace(1.0, 1.95, 20)
BLOCK = 512  # systems that march together: their corrections fit a core's cache


@dataclasses.dataclass(frozen=True)
class Systems:
    """Systems (A + c_i I) x = b_i.

    Parameters
    ----------
    shifts
        c (systems).
    sides
        b (SIDE, SIDE, systems), numbered along the grid.
    """

    shifts: npt.NDArray[np.float64]
    sides: npt.NDArray[np.float64]


def draw_systems(count: int, beta: tuple[float, float], generator: np.random.Generator) -> Systems:
    """Draw shifts c = -0.15 + 0.6 Beta(beta) and right-hand sides.

    Collective: no.
    """
    shifts = -0.15 + 0.6 * generator.beta(*beta, size=count)
    unknowns = SIDE * SIDE
    sides = np.empty((unknowns, count))
    missing = np.arange(count)
    while missing.size:
        drawn = generator.standard_normal((unknowns, missing.size))
        inside = np.linalg.norm(drawn, axis=0) <= np.sqrt(unknowns)
        sides[:, missing[inside]] = drawn[:, inside]
        missing = missing[~inside]
    return Systems(shifts, sides.reshape(SIDE, SIDE, count))


def jacobi_radius(shifts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the spectral radius of Jacobi's iteration for A + c I. Collective: no."""
    return 4.0 * np.cos(np.pi / (SIDE + 1)) / (4.0 + shifts)


def young_omega(shifts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return Young's optimum 1 + (b / (1 + sqrt(1 - b^2)))^2, b the radius of Jacobi's iteration. Collective: no."""
    radius = jacobi_radius(shifts)
    return 1.0 + (radius / (1.0 + np.sqrt(1.0 - radius**2))) ** 2


def sor_radius(shifts: npt.NDArray[np.float64], omegas: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the spectral radius of SOR's iteration (Young: the matrix is consistently ordered). Collective: no."""
    swing = omegas * jacobi_radius(shifts)
    root = np.sqrt(np.maximum(swing**2 - 4.0 * (omegas - 1.0), 0.0))
    return np.where(omegas < young_omega(shifts), 0.25 * (swing + root) ** 2, omegas - 1.0)


def sor_iterations(systems: Systems, omegas: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Return the iterations of SOR until ||r|| / ||b|| < TOLERANCE, as many as omegas.

    Parameters
    ----------
    systems
        What to solve.
    omegas
        Relaxation factors (systems, arms), a row for each system.

    Raises
    ------
    ConvergenceError
        If a system needs more than ITERATION_LIMIT.

    Collective: no.
    """
    owners = np.repeat(np.arange(systems.shifts.size), omegas.shape[1])
    flat = omegas.ravel()
    # Those that take about as long go into one block.
    order = np.argsort(sor_radius(systems.shifts[owners], flat), kind="stable")
    counts = np.empty(flat.size, dtype=np.int64)
    for first in range(0, flat.size, BLOCK):
        part = order[first : first + BLOCK]
        chosen = owners[part]
        counts[part] = _march(systems.shifts[chosen], systems.sides[:, :, chosen], flat[part])
    return counts.reshape(omegas.shape)


def _march(
    shifts: npt.NDArray[np.float64],
    sides: npt.NDArray[np.float64],
    omegas: npt.NDArray[np.float64],
) -> npt.NDArray[np.int64]:
    """Count the iterations of a block of systems.

    With A = M - N and M = D / omega + L, the correction d = M^-1 r leaves the residual N d, so the iteration needs d
    alone. In the order of the rows an unknown (i, j) sees the new values of (i, j - 1) and (i - 1, j): all on an
    antidiagonal can be done at once. corrections[s + 1, i + 1] belongs to (i, s - i); its frame stays zero.
    """
    count = shifts.size
    gain, keep = omegas / (4.0 + shifts), (1.0 / omegas - 1.0) * (4.0 + shifts)
    corrections = np.zeros((2 * SIDE + 1, SIDE + 2, count))
    residual = np.empty((SIDE * SIDE, count))
    bounds = np.square(sides).sum(axis=(0, 1)) * TOLERANCE**2
    counts = np.empty(count, dtype=np.int64)
    running = np.ones(count, dtype=bool)
    fronts = _fronts()
    for iteration in range(ITERATION_LIMIT + 1):
        for (begin, end), number, (low, high) in fronts:
            rest = residual[begin:end]
            here, after, before = corrections[number], corrections[number + 1], corrections[number - 1]
            if iteration == 0:
                rest[:] = sides[np.arange(low, high) - 1, number - np.arange(low, high)]
            else:
                np.multiply(here[low:high], keep, out=rest)
                rest += after[low:high]
                rest += after[low + 1 : high + 1]
            new = here[low:high]
            np.add(before[low:high], before[low - 1 : high - 1], out=new)
            new += rest
            new *= gain
        # The residual before this iteration's correction is the one after `iteration` corrections.
        done = running & (np.einsum("ij,ij->j", residual, residual) < bounds)
        counts[done] = iteration
        running &= ~done
        if not running.any():
            return counts
    raise ConvergenceError(f"SOR with omega = {omegas[running][0]} took more than {ITERATION_LIMIT} iterations")


def _fronts() -> list[tuple[tuple[int, int], int, tuple[int, int]]]:
    """Return for every antidiagonal its rows in the list of residuals, its number from 1 on, and its i + 1."""
    fronts = []
    begin = 0
    for total in range(2 * SIDE - 1):
        low, high = max(0, total - SIDE + 1), min(total, SIDE - 1) + 1
        fronts.append(((begin, begin + high - low), total + 1, (low + 1, high + 1)))
        begin += high - low
    return fronts
