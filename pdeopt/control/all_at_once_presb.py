"""PRESB for the optimality system of all time steps: one solve forward and one backward in time.

The system [[W, V'], [V, -W]] has the preconditioner [[W, V'], [V, -(W + V + V')]] (Axelsson, Neytcheva, Ahmad, Numer.
Algorithms 66 (2014) 811-841), which takes one solve with W + V, block lower triangular in time, and one with W + V'.
The diagonal block tau Q + s (a_0 M + tau b_0 A) is the same for all steps: one hierarchy of GAMG.
"""

from petsc4py import PETSc

import numpy as np
import numpy.typing as npt

from pdeopt.control.all_at_once_matrices import SharedMatrices
from pdeopt.control.all_at_once_products import StepProducts
from pdeopt.control.preconditioners import ShiftedSolver
from pdeopt.control.waveform import WaveformMultigrid, suits
from pdeopt.report import OptionError

Array = npt.NDArray[np.float64]
_DIFFERENT = PETSc.Mat.Structure.DIFFERENT_NONZERO_PATTERN
SWEEPS = ("sequential", "waveform")
# So that no rank runs out of rows: the coarsest level is solved on all ranks.
_HIERARCHY = {"pc_gamg_process_eq_limit": 1, "pc_gamg_parallel_coarse_grid_solver": True}


class Presb:
    """The preconditioner.

    Option ``-kkt_sweep``: "sequential" (default), V-cycles for one step after the other, or "waveform", V-cycles that
    treat all steps together, for symmetric operators. With waveforms the number of messages does not depend on the
    number of steps, for machines where latency counts; on a few cores they cost as much or more.

    Parameters
    ----------
    matrices, products
        What the steps share.
    scale
        s: rows of the state equation and adjoints are scaled by it.
    step
        Size of the time step.
    free
        Where the state has no Dirichlet condition, shape (owned,).

    Attributes
    ----------
    sweep
        How the steps are treated.

    Raises
    ------
    OptionError
        If the option names no sweep, or one that does not fit.
    """

    def __init__(
        self, matrices: SharedMatrices, products: StepProducts, scale: float, step: float, free: npt.NDArray[np.bool_]
    ) -> None:
        self._matrices, self._products, self._step, self._free = matrices, products, step, free
        self._mass, self._stiffness = scale * products.mass, scale * products.stiffness
        self._right, self._product = matrices.state_mass.createVecs()
        self.sweep = PETSc.Options("kkt_").getString("sweep", SWEEPS[0])
        if self.sweep not in SWEEPS:
            raise OptionError(f"option kkt_sweep is {self.sweep!r}: choose one of {', '.join(SWEEPS)}")
        waveform = self.sweep == "waveform"
        shifted = matrices.observation.copy()
        shifted.scale(step)
        shifted.axpy(self._mass[0, 0], matrices.mass, structure=_DIFFERENT)
        shifted.axpy(self._stiffness[0, 0], matrices.stiffness, structure=_DIFFERENT)
        diagonal = shifted.getDiagonal()
        diagonal.array[~free] = 1.0
        shifted.setDiagonal(diagonal)
        diagonal.destroy()
        self._shifted = ShiftedSolver(shifted, products.symmetric, accurate=False, extra=_HIERARCHY if waveform else {})
        self._waveform: WaveformMultigrid | None = None
        if waveform:
            if not (products.symmetric and suits(self._shifted.pc)):
                raise OptionError(
                    "option kkt_sweep is 'waveform', which needs a symmetric operator and a multigrid preconditioner "
                    "kkt_shifted_pc_type (mg, gamg) that coarsens: choose 'sequential'"
                )
            self._waveform = WaveformMultigrid(self._shifted.pc, self._couplings(), len(self._mass))

    def _couplings(self) -> list[PETSc.Mat]:
        """Return the blocks of W + V below the diagonal, which all steps share."""
        couplings = []
        if len(self._mass) > 1:
            last = self._matrices.mass.copy()
            last.scale(self._mass[-1, 1])
            last.axpy(self._stiffness[-1, 1], self._matrices.stiffness, structure=_DIFFERENT)
            couplings.append(last)
        if len(self._mass) > 2 and self._mass[-1, 2] != 0.0:
            earlier = self._matrices.mass.copy()
            earlier.scale(self._mass[-1, 2])
            couplings.append(earlier)
        return couplings

    def apply(self, residual: Array) -> Array:
        """Return the states and adjoints that the preconditioner proposes, shape (2, steps, owned). Collective: yes."""
        result = np.empty_like(residual)
        difference = self._solve(residual[0] + residual[1])
        result[1] = self._solve(residual[0] - self._products.track(difference), backward=True)
        result[0] = difference + result[1]
        return result

    def _solve(self, right: Array, backward: bool = False) -> Array:
        """Return an approximation of (W + V)^-1 r or, backward, (W + V')^-1 r. Collective: yes."""
        if self._waveform is None:
            return self._solve_backward(right) if backward else self._solve_forward(right)
        # The coefficients do not depend on the step and the matrices are symmetric: V' is V with time reversed.
        order = slice(None, None, -1 if backward else 1)
        return np.asarray(np.where(self._free, self._waveform.solve(right[order])[order], 0.0))

    def _solve_forward(self, right: Array) -> Array:
        mass, stiffness = self._mass, self._stiffness
        out = np.empty_like(right)
        zero = np.zeros(right.shape[1])
        pair, earlier = (zero, zero), zero
        for n in range(len(right)):
            rest = right[n] - mass[n, 1] * pair[0] - stiffness[n, 1] * pair[1] - mass[n, 2] * earlier
            out[n] = self._cycle(rest, transpose=False)
            earlier = pair[0]
            if n + 1 < len(right):
                pair = self._pair(out[n], transpose=False)
        return out

    def _solve_backward(self, right: Array) -> Array:
        mass, stiffness = self._mass, self._stiffness
        out = np.empty_like(right)
        later: list[tuple[Array, Array]] = []  # products with the values of the next steps, the next one first
        for n in reversed(range(len(right))):
            rest = right[n].copy()
            if later:
                rest -= mass[n + 1, 1] * later[0][0] + stiffness[n + 1, 1] * later[0][1]
            if len(later) > 1:
                rest -= mass[n + 2, 2] * later[1][0]
            out[n] = self._cycle(rest, transpose=True)
            later = [self._pair(out[n], transpose=True), *later[:1]]
        return out

    def _pair(self, values: Array, transpose: bool) -> tuple[Array, Array]:
        """Return M and A, or their transposes, times the values of one step. Collective: yes."""
        self._right.array[:] = values
        out = []
        for matrix in (self._matrices.mass, self._matrices.stiffness):
            (matrix.multTranspose if transpose else matrix.mult)(self._right, self._product)
            out.append(np.array(self._product.array_r))
        return out[0], out[1]

    def _cycle(self, right: Array, transpose: bool) -> Array:
        self._right.array[:] = right
        (self._shifted.solve_transpose if transpose else self._shifted.solve)(self._right, self._product)
        return np.where(self._free, self._product.array_r, 0.0)

    def release(self) -> None:
        """Free the PETSc objects. Collective: yes."""
        if self._waveform is not None:
            self._waveform.release()
        self._shifted.release()
        self._right.destroy()
        self._product.destroy()
