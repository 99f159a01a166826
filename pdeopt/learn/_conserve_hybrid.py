"""The solve behind flux projection: eliminate the cells, solve for the multipliers, recover, repeat on what is left."""

import dataclasses

from mpi4py import MPI

import numpy as np

from pdeopt.learn._conserve_cells import CellMatrices
from pdeopt.learn._conserve_facets import FacetSystem
from pdeopt.report import ConvergenceError

# Relative tolerances. One pass would end in rounding: multipliers grow with the weight, and a residual is no more
# accurate than the largest of them. The first pass is measured in the energy of the flux that is missing, the later
# ones in the jumps themselves, which also count where the weight is small.
_FIRST_PASS = 1e-5
_SECOND_PASS = 1e-7
_LATER_PASS = 0.3
_FLOOR = 1e-9
_PASSES = 6


@dataclasses.dataclass(frozen=True)
class BrokenSolution:
    """What the cells have after a solve, shapes (cells, n) and (cells, m), and the largest jump before each pass."""

    flux: np.ndarray
    pressure: np.ndarray
    jumps: tuple[float, ...]


class HybridSolver:
    """Solver of M q + B^T p + C^T mu = load, B q = balance, C q = jump.

    Parameters
    ----------
    cells, facets
        The matrices of cells and the system of multipliers.
    tolerance
        Largest jump to leave between two copies of a flux, relative to the largest flux.
    """

    def __init__(self, cells: CellMatrices, facets: FacetSystem, tolerance: float) -> None:
        self._cells = cells
        self._facets = facets
        self._tolerance = tolerance
        n = cells.mass.shape[1]
        self._flux_of_load = cells.inverse[:, :n, :n]
        self._flux_of_balance = cells.inverse[:, :n, n:]
        self._pressure_of_balance = cells.inverse[:, n:, n:]
        # Forces of the constant pressure: they move no flux, so what they share with a force may be left out of it.
        self._constant_force = np.einsum("cm,cmn->cn", cells.constant, cells.divergence)
        self._constant_force_norm = np.einsum("cn,cn->c", self._constant_force, self._constant_force)

    def solve(
        self,
        load: np.ndarray | None = None,
        balance: np.ndarray | None = None,
        jump: np.ndarray | None = None,
        size: float = 0.0,
    ) -> BrokenSolution:
        """Solve for the cells' copies of the flux and for the pressure.

        Parameters
        ----------
        load
            Copies, shape (cells, n).
        balance
            Right-hand side of the cells' balances, shape (cells, m).
        jump
            Right-hand side of the facets with multipliers, in the layout of `FacetSystem.jump`.
        size
            A flux that the tolerance may be relative to, if it is larger than those of the solution.

        Raises
        ------
        ConvergenceError
            If the multipliers' system does not converge, or rounding leaves larger jumps than the tolerance allows.

        Collective: yes.
        """
        cells, facets = self._cells, self._facets
        n, m = cells.mass.shape[1], cells.divergence.shape[1]
        flux, pressure = np.zeros((cells.count, n)), np.zeros((cells.count, m))
        if load is not None:
            flux = _apply(self._flux_of_load, load)
            pressure = _apply_transposed(self._flux_of_balance, load)
        wanted = np.zeros((cells.count, m)) if balance is None else balance
        jumps: list[float] = []
        for number in range(_PASSES + 1):
            defect = wanted - _apply(cells.divergence, flux)
            flux = flux + _apply(self._flux_of_balance, defect)
            pressure = pressure + _apply(self._pressure_of_balance, defect)
            open_jump = facets.jump(flux)
            if jump is not None:
                open_jump = open_jump - jump
            if number == 0:
                size = max(size, self._largest(flux), self._largest(open_jump))
            jumps.append(self._largest(open_jump))
            allowed = self._tolerance * size
            if jumps[-1] <= allowed:
                return BrokenSolution(flux, pressure, tuple(jumps))
            if number == _PASSES:
                break
            ceiling = _SECOND_PASS if number == 1 else _LATER_PASS
            relative = _FIRST_PASS if number == 0 else min(ceiling, max(_FLOOR, 0.2 * allowed / jumps[-1]))
            force = facets.to_cells(facets.solve(open_jump, relative, energy=number == 0))
            constant = np.einsum("cn,cn->c", self._constant_force, force) / self._constant_force_norm
            force = force - self._constant_force * constant[:, None]
            flux = flux - _apply(self._flux_of_load, force)
            pressure = pressure - _apply_transposed(self._flux_of_balance, force) - cells.constant * constant[:, None]
        raise ConvergenceError(
            f"after {_PASSES} passes the flux projection leaves a jump of {jumps[-1]:.3g} between neighbouring cells, "
            f"more than {allowed:.3g}: the weights of the cells differ too much for double precision"
        )

    def _largest(self, values: np.ndarray) -> float:
        local = float(np.max(np.abs(values), initial=0.0))
        return float(self._cells.comm.allreduce(local, op=MPI.MAX))


def _apply(matrices: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    return np.einsum("cij,cj->ci", matrices, vectors)


def _apply_transposed(matrices: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    return np.einsum("cij,ci->cj", matrices, vectors)
