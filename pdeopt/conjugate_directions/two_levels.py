r"""Two-level cycles of small lattices in torch, differentiable by the shares of what the incomplete factors drop.

The same factors as `pdeopt.conjugate_directions.grid_smoother.Factors` has on one rank, and the same interpolation P;
the coarse level is exact: with :math:`M = (D + L) D^{-1} (D + L^T)` and :math:`C = P (P^T A P)^{-1} P^T`, the cycle B
takes r to :math:`x_1 = M^{-1} r`, :math:`x_2 = x_1 + C (r - A x_1)`, :math:`B r = x_2 + M^{-1} (r - A x_2)`.

Arrays are those of the lattice with its frame, flat; vectors are rows.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pdeopt.conjugate_directions.grid_stencils import Lattice
from pdeopt.learn._torch import torch

__all__ = ["TwoLevelSystem", "TwoLevels"]

type Floats = npt.NDArray[np.float64]
type Operator = Callable[[torch.Tensor], torch.Tensor]

_STEPS = 4  # of descent
_TINY = 1e-26  # of the energy of an error is rounding


@dataclasses.dataclass(frozen=True, eq=False)
class TwoLevelSystem:
    """What a cycle needs besides the factors.

    Parameters
    ----------
    stencils
        Halves of the symmetric stencils, shape (5 or 14, padded points).
    matrix
        Takes vectors to their products with A, shape (vectors, padded points).
    coarse
        Takes residuals to corrections on the coarse level, of the same shape.
    errors
        Errors to reduce, shape (vectors, padded points).
    """

    stencils: Floats
    matrix: Callable[[Floats], Floats]
    coarse: Callable[[Floats], Floats]
    errors: Floats


class TwoLevels:
    """The cycles of matrices on lattices of one shape.

    Parameters
    ----------
    lattice
        Of double precision.
    """

    def __init__(self, lattice: Lattice) -> None:
        # The factors couple all neighbours.
        self.lattice = lattice = dataclasses.replace(lattice, used=(1 << len(lattice.halves)) - 1)
        dimension = len(lattice.shape)
        number = np.arange(int(np.prod(lattice.padded))).reshape(lattice.padded)
        self.inner = torch.from_numpy(number[(slice(1, -1),) * dimension].ravel().copy())
        strides = np.array([int(np.prod(lattice.padded[axis + 1 :])) for axis in range(dimension)])
        self.shifts = torch.tensor([int(np.dot(offset, strides)) for offset in lattice.halves])
        # Each wave of points depends on those before it.
        times = np.array([2 ** (dimension - 1 - axis) for axis in range(dimension)])
        wave = np.tensordot(np.indices(lattice.shape), times, (0, 0)).ravel()
        self._waves = [self.inner[torch.from_numpy(wave == t)] for t in np.unique(wave)]
        kept, dropped = [], []
        for a, b in itertools.combinations(range(1, len(lattice.halves)), 2):
            between = tuple(p - q for p, q in zip(lattice.halves[b], lattice.halves[a], strict=True))
            if between in lattice.halves:
                kept.append((a, b, lattice.halves.index(between)))
            else:
                dropped.append((a, b))
        self._kept, self._dropped = torch.tensor(kept).reshape(-1, 3), torch.tensor(dropped).reshape(-1, 2)

    def couplings(self, stencils: torch.Tensor) -> torch.Tensor:
        """Return what the network sees, shape (batch, points, 8 or 26), of stencils (batch, 5 or 14, padded points).

        Collective: no.
        """
        later = stencils[:, 1:, self.inner]
        places = self.inner - self.shifts[:, None]
        before = torch.stack([stencils[:, h, places[h]] for h in range(1, len(self.shifts))], dim=1)
        diagonal = stencils[:, :1, self.inner]
        inverse = torch.where(diagonal > 0.0, 1.0 / torch.where(diagonal > 0.0, diagonal, 1.0), 0.0)
        return torch.cat([later * inverse, before * inverse], dim=1).movedim(1, -1)

    def factorise(self, stencils: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return L^T as stencils, and 1 / D, of shapes (batch, 5 or 14, padded points) and (batch, padded points).

        Parameters
        ----------
        stencils
            As for `couplings`.
        keep
            For each point the share of what its elimination drops, shape (batch, points).

        Collective: no.
        """
        batch, _, size = stencils.shape
        upper, inverse = torch.zeros_like(stencils), stencils.new_zeros(batch, size)
        shares = stencils.new_zeros(batch, size).index_copy(1, self.inner, keep)
        (a, b, h), (c, d), shifts = self._kept.T, self._dropped.T, self.shifts
        ends = torch.cat([shifts[c], shifts[d]])
        c, d = torch.cat([c, c]), torch.cat([d, d])
        later, every = torch.arange(1, len(shifts)), torch.arange(batch)[:, None]
        for wave in self._waves:
            diagonal = stencils[:, 0, wave]
            behind = wave - shifts[later][:, None]
            pivot = diagonal - (upper[:, later[:, None], behind] ** 2 * inverse[:, behind]).sum(1)
            behind = wave - ends[:, None]
            product = upper[:, c[:, None], behind] * upper[:, d[:, None], behind]
            lumped = torch.where(product > 0.0, shares[:, behind] * product, -product)
            pivot = pivot + (lumped * inverse[:, behind]).sum(1)
            behind = wave - shifts[a][:, None]
            fill = upper[:, a[:, None], behind] * upper[:, b[:, None], behind] * inverse[:, behind]
            entries = stencils[:, 1:, wave].index_add(1, h - 1, fill, alpha=-1.0)
            pivot = torch.where(pivot > 1e-3 * diagonal, pivot, diagonal)
            upper = upper.index_put((every[..., None], later[None, :, None], wave), entries)
            inverse = inverse.index_put((every, wave), 1.0 / pivot)
        return upper, inverse

    def cycle(self, system: TwoLevelSystem, upper: torch.Tensor, inverse: torch.Tensor) -> tuple[Operator, Operator]:
        """Return the matrix and the cycle, which take vectors of shape (vectors, padded points).

        Parameters
        ----------
        system
            The matrix.
        upper, inverse
            Its factors, see `factorise`.

        Collective: no.
        """

        def multiply(x: torch.Tensor) -> torch.Tensor:
            return _Symmetric.apply(x, system.matrix)

        def smooth(r: torch.Tensor) -> torch.Tensor:
            return _Smooth.apply(upper, inverse, r, self)

        def cycle(r: torch.Tensor) -> torch.Tensor:
            x = smooth(r)
            first = r - multiply(x)
            correction = _Symmetric.apply(first, system.coarse)
            return x + correction + smooth(first - multiply(correction))

        return multiply, cycle

    def loss(self, systems: Sequence[TwoLevelSystem], keep: torch.Tensor) -> torch.Tensor:
        """Return for each matrix the logarithm of the steps that an error takes to fall by e in the norm of A.

        Each step follows the direction that the cycle proposes as far as the error falls.

        Parameters
        ----------
        systems
            The matrices.
        keep
            As for `factorise`.

        Returns
        -------
        torch.Tensor
            Shape (batch,).

        Collective: no.
        """
        stencils = torch.from_numpy(np.stack([system.stencils for system in systems]))
        uppers, inverses = self.factorise(stencils, keep)
        rates = []
        for system, upper, inverse in zip(systems, uppers, inverses, strict=True):
            multiply, cycle = self.cycle(system, upper, inverse)
            error = torch.from_numpy(system.errors)
            r = multiply(error)
            before = (error * r).sum(1)
            for _ in range(_STEPS):
                step = cycle(r)
                image = multiply(step)
                length = ((step * r).sum(1) / (step * image).sum(1))[:, None]
                error, r = error - length * step, r - length * image
            rates.append(-0.5 * torch.log((error * r).sum(1).abs() / before + _TINY).mean() / _STEPS)
        return -torch.log(torch.stack(rates))

    def solve(self, upper: Floats, inverse: Floats, right: Floats) -> tuple[Floats, Floats]:
        """Return (D + L)^-1 and M^-1 times vectors, by the kernels of the cycle. Collective: no."""
        kernels, layers = self.lattice.kernels, self.lattice.shape[0]
        half, answer = np.zeros_like(right), np.zeros_like(right)
        factors = kernels.pointer(upper), kernels.pointer(inverse)
        for r, y, x in zip(right, half, answer, strict=True):
            pointers = kernels.pointer(r), kernels.pointer(y), kernels.pointer(x)
            kernels.library.forward(self.lattice.c, 0, layers, *factors, *pointers[:2])
            kernels.library.backward(self.lattice.c, 0, layers, *factors, *pointers[1:], kernels.null)
        return half, answer


class _Symmetric(torch.autograd.Function):
    """A symmetric operator on NumPy arrays."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, operator: Callable[[Floats], Floats]) -> torch.Tensor:
        ctx.operator = operator
        return torch.from_numpy(operator(x.detach().numpy()))

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor, None]:
        return torch.from_numpy(ctx.operator(slope.numpy())), None


class _Smooth(torch.autograd.Function):
    """M^-1 r, and its derivatives by r and by the entries of the factors: d(M^-1) = - M^-1 dM M^-1."""

    @staticmethod
    def forward(
        ctx: Any, upper: torch.Tensor, inverse: torch.Tensor, r: torch.Tensor, levels: TwoLevels
    ) -> torch.Tensor:
        factors = upper.detach().contiguous(), inverse.detach().contiguous()
        half, x = map(torch.from_numpy, levels.solve(*(f.numpy() for f in factors), r.detach().contiguous().numpy()))
        ctx.save_for_backward(*factors, half, x)
        ctx.levels = levels
        return x

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None]:
        upper, inverse, half, x = ctx.saved_tensors
        levels = ctx.levels
        solved = levels.solve(upper.numpy(), inverse.numpy(), slope.contiguous().numpy())
        half_slope, y = map(torch.from_numpy, solved)
        inner = levels.inner
        of_upper, of_inverse = torch.zeros_like(upper), torch.zeros_like(inverse)
        for h, shift in enumerate(levels.shifts[1:].tolist(), start=1):
            there = inner + shift
            of_upper[h, inner] = -(y[:, there] * half[:, inner] + x[:, there] * half_slope[:, inner]).sum(0)
        of_pivots = -(y * half - half_slope * half + half_slope * x).sum(0)
        of_inverse[inner] = -of_pivots[inner] / inverse[inner] ** 2
        return of_upper, of_inverse, y, None
