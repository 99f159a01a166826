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

_STEPS = 5  # of conjugate gradients
# The least eigenvalue of the cycle times the matrix that errors show stays away from zero: the coarse level of longer
# cycles is not exact, and they have to be positive definite too.
_LEAST, _PENALTY = 0.15, 5.0
_SLOWEST = 1e-2
_TINY = 1e-26  # of the energy of an error is rounding


@dataclasses.dataclass(frozen=True, eq=False)
class TwoLevelSystem:
    """What a cycle needs besides the factors.

    Parameters
    ----------
    stencils
        Halves of the symmetric stencils, shape (5 or 14, padded points).
    used
        Bit h says whether array h has entries in the factors.
    matrix
        Takes vectors to their products with A, shape (vectors, padded points).
    coarse
        Takes residuals to corrections on the coarse level, of the same shape.
    errors
        Errors to reduce, shape (vectors, padded points).
    """

    stencils: Floats
    used: int
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
        self.lattice, dimension = lattice, len(lattice.shape)
        number = np.arange(int(np.prod(lattice.padded))).reshape(lattice.padded)
        self.inner = torch.from_numpy(number[(slice(1, -1),) * dimension].ravel().copy())
        strides = np.array([int(np.prod(lattice.padded[axis + 1 :])) for axis in range(dimension)])
        self.shifts = torch.tensor([int(np.dot(offset, strides)) for offset in lattice.halves])
        # Each wave of points depends on those before it.
        times = np.array([2 ** (dimension - 1 - axis) for axis in range(dimension)])
        wave = np.tensordot(np.indices(lattice.shape), times, (0, 0)).ravel()
        self._waves = [self.inner[torch.from_numpy(wave == t)] for t in np.unique(wave)]
        numbers = range(1, len(lattice.halves))
        between = {
            (a, b): tuple(p - q for p, q in zip(lattice.halves[b], lattice.halves[a], strict=True))
            for a, b in itertools.combinations(numbers, 2)
        }
        # 0 where no array couples the two points.
        met = [lattice.halves.index(o) if o in lattice.halves else 0 for o in between.values()]
        self._pairs = torch.tensor(list(between)).T, torch.tensor(met)

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

    def factorise(self, systems: Sequence[TwoLevelSystem], keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return L^T as stencils, and 1 / D, of shapes (batch, 5 or 14, padded points) and (batch, padded points).

        Parameters
        ----------
        systems
            The matrices.
        keep
            For each point the share of what its elimination drops, shape (batch, points).

        Collective: no.
        """
        stencils = torch.from_numpy(np.stack([system.stencils for system in systems]))
        batch, count, size = stencils.shape
        used = torch.tensor([[h > 0 and system.used >> h & 1 for h in range(count)] for system in systems]).double()
        upper, inverse = torch.zeros_like(stencils), stencils.new_zeros(batch, size)
        shares = stencils.new_zeros(batch, size).index_copy(1, self.inner, keep)
        ((a, b), h), shifts = self._pairs, self.shifts
        kept, dropped = used[:, h, None], 1.0 - used[:, h, None]
        later, every = torch.arange(1, count), torch.arange(batch)[:, None]
        for wave in self._waves:
            diagonal = stencils[:, 0, wave]
            behind = wave - shifts[later][:, None]
            pivot = diagonal - (upper[:, later[:, None], behind] ** 2 * inverse[:, behind]).sum(1)
            behind = wave - shifts[a][:, None]
            product = upper[:, a[:, None], behind] * upper[:, b[:, None], behind]
            fill = product * inverse[:, behind] * kept
            pivot = pivot + (_lumped(product, shares[:, behind]) * inverse[:, behind] * dropped).sum(1)
            entries = stencils[:, 1:, wave].index_add(1, (h - 1).clamp_min(0), fill, alpha=-1.0) * used[:, 1:, None]
            behind = wave - shifts[b][:, None]
            product = upper[:, a[:, None], behind] * upper[:, b[:, None], behind]
            pivot = pivot + (_lumped(product, shares[:, behind]) * inverse[:, behind] * dropped).sum(1)
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
            return _Smooth.apply(upper, inverse, r, self, system.used)

        def cycle(r: torch.Tensor) -> torch.Tensor:
            x = smooth(r)
            first = r - multiply(x)
            correction = _Symmetric.apply(first, system.coarse)
            return x + correction + smooth(first - multiply(correction))

        return multiply, cycle

    def loss(self, systems: Sequence[TwoLevelSystem], keep: torch.Tensor) -> torch.Tensor:
        """Return for each matrix the logarithm of the steps that an error takes to fall by e in the norm of A.

        The steps are those of conjugate gradients. A cycle that is hardly positive definite is punished.

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
        uppers, inverses = self.factorise(systems, keep)
        losses = []
        for system, upper, inverse in zip(systems, uppers, inverses, strict=True):
            multiply, cycle = self.cycle(system, upper, inverse)
            error = torch.from_numpy(system.errors)
            r = multiply(error)
            before = energy = (error * r).sum(1)
            direction, old, least = r, before, before.new_tensor(1.0)
            for step in range(_STEPS):
                proposed = cycle(r)
                new = (proposed * r).sum(1)
                least = torch.minimum(least, (new / energy).min())
                direction = proposed + (new / old)[:, None] * direction if step else proposed
                old, image = new, multiply(direction)
                length = (new / (direction * image).sum(1))[:, None]
                error, r = error - length * direction, r - length * image
                energy = (error * r).sum(1).abs()
            rate = -0.5 * torch.log(energy / before + _TINY).mean() / _STEPS
            losses.append(_PENALTY * torch.log1p(torch.relu(_LEAST - least)) - torch.log(rate.clamp_min(_SLOWEST)))
        return torch.stack(losses)

    def solve(self, used: int, upper: Floats, inverse: Floats, right: Floats) -> tuple[Floats, Floats]:
        """Return (D + L)^-1 and M^-1 times vectors, by the kernels of the cycle. Collective: no."""
        kernels, layers = self.lattice.kernels, self.lattice.shape[0]
        half, answer = np.zeros_like(right), np.zeros_like(right)
        lattice = dataclasses.replace(self.lattice, used=used).c
        factors = kernels.pointer(upper), kernels.pointer(inverse)
        for r, y, x in zip(right, half, answer, strict=True):
            pointers = kernels.pointer(r), kernels.pointer(y), kernels.pointer(x)
            kernels.library.forward(lattice, 0, layers, *factors, *pointers[:2])
            kernels.library.backward(lattice, 0, layers, *factors, *pointers[1:], kernels.null)
        return half, answer


def _lumped(product: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Return what goes to each of two diagonal entries for a dropped coupling."""
    return torch.where(product > 0.0, keep * product, -product)


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
        ctx: Any, upper: torch.Tensor, inverse: torch.Tensor, r: torch.Tensor, levels: TwoLevels, used: int
    ) -> torch.Tensor:
        factors = upper.detach().contiguous(), inverse.detach().contiguous()
        solved = levels.solve(used, factors[0].numpy(), factors[1].numpy(), r.detach().contiguous().numpy())
        half, x = map(torch.from_numpy, solved)
        ctx.save_for_backward(*factors, half, x)
        ctx.levels, ctx.used = levels, used
        return x

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None, None]:
        upper, inverse, half, x = ctx.saved_tensors
        levels = ctx.levels
        solved = levels.solve(ctx.used, upper.numpy(), inverse.numpy(), slope.contiguous().numpy())
        half_slope, y = map(torch.from_numpy, solved)
        inner = levels.inner
        of_upper, of_inverse = torch.zeros_like(upper), torch.zeros_like(inverse)
        for h, shift in enumerate(levels.shifts[1:].tolist(), start=1):
            if not ctx.used >> h & 1:
                continue
            there = inner + shift
            of_upper[h, inner] = -(y[:, there] * half[:, inner] + x[:, there] * half_slope[:, inner]).sum(0)
        of_pivots = -(y * half - half_slope * half + half_slope * x).sum(0)
        of_inverse[inner] = -of_pivots[inner] / inverse[inner] ** 2
        return of_upper, of_inverse, y, None, None
