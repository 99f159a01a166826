"""Incomplete factors of stencils across the slabs of a few ranks: the smoother of multigrid on lattices."""

import dataclasses

import numpy as np

from pdeopt.conjugate_directions.grid_network import SmootherNetwork
from pdeopt.conjugate_directions.grid_slabs import Slabs
from pdeopt.conjugate_directions.grid_stencils import Array, Lattice

__all__ = ["Factors"]

# Ranks whose slabs are factorised as one. Two work side by side, of three the middle one waits for the others.
_CHAIN = 3


class Factors:
    r"""Modified incomplete factors :math:`M = (D + L) D^{-1} (D + L^T)` of a symmetric matrix.

    In 3D they have the pattern of the matrix: those of all neighbours save an iteration or two, and take twice the
    time. In 2D they couple all neighbours.

    Dropped couplings are lumped after Ajiz and Jennings (Int. J. Numer. Methods Eng. 20, 1984), so that M exists and
    M - A is positive semidefinite. The unknowns of the lower ranks are eliminated in their order and those of the upper
    ones in reverse, until they meet: the twisted factorisation (van der Vorst, Parallel Comput. 5, 1987). So a cut does
    no harm, and two ranks never wait for each other. More than ``chain`` ranks would wait longer than they work: they
    form groups, between which the couplings are severed and their moduli added to the diagonal.

    Parameters
    ----------
    lattice, stencils
        This rank's slab and the matrix on it; the stencils' outer layers hold the neighbours' values.
    slabs
        How the lattice is cut.
    keep
        Share of the dropped couplings, of those that smooth vectors feel, that goes to the diagonal, between -1 and 1;
        1 is safe. A network predicts it for each point.
    chain
        Ranks in a group, at most.

    Attributes
    ----------
    values, inverse
        L^T as stencils, and 1 / D.

    Collective: yes.
    """

    def __init__(
        self, lattice: Lattice, stencils: Array, slabs: Slabs, keep: float | SmootherNetwork, chain: int = _CHAIN
    ) -> None:
        given = lattice
        if len(lattice.shape) == 2:
            lattice = dataclasses.replace(lattice, used=(1 << len(lattice.halves)) - 1)
        self._lattice, self._kernels, self._comm = lattice, lattice.kernels, slabs.comm
        self._find_neighbours(chain)
        layers = lattice.shape[0]
        self._first, self._last = 1, layers
        self.inverse = lattice.values()
        # In place where nothing changes but the diagonal: half the memory to read.
        self.values = stencils if not slabs.cut and self._along_axes() else np.zeros_like(stencils)
        if not slabs.cut:
            self._keep = _shares(given, stencils, keep)
            self._factorise(stencils, stencils[0], 0, layers)
            return
        oriented = self._turned(stencils) if self._down else stencils.copy()
        self._keep = _shares(given, oriented, keep)
        self._forget_later(oriented)
        diagonal = self._sever(stencils)
        if self._down:
            diagonal = _flipped(diagonal)
        if self._begin is not None:
            self._add(self._receive(self._begin, oriented), oriented, diagonal, self._first)
        self._factorise(oriented, diagonal, 0, layers - 1)
        if self._end is not None:
            self._add(self._receive(self._end, oriented), oriented, diagonal, self._last)
        self._factorise(oriented, diagonal, layers - 1, layers)
        if self._later is not None:
            fill = self._fill(oriented)
            self._comm.Send(self._turned(fill) if self._down else fill, self._later)

    def _find_neighbours(self, chain: int) -> None:
        """Find which way to go, and which ranks come before the first, before the last and after the last layer."""
        size, rank = self._comm.size, self._comm.rank
        group = next(part for part in np.array_split(np.arange(size), -(-size // chain)) if rank in part)
        below = rank - 1 if rank > group[0] else None
        above = rank + 1 if rank < group[-1] else None
        middle = group[len(group) // 2]
        self._severed = (rank > 0 and below is None, rank + 1 < size and above is None)
        self._down = below is not None and rank >= middle
        self._begin, beyond = (above, below) if self._down else (below, above)
        self._end: int | None = beyond if rank == middle else None
        self._later: int | None = None if rank == middle else beyond

    def _along_axes(self) -> bool:
        """Return whether there are only couplings along axes: then all that elimination brings about is dropped."""
        used = (offset for h, offset in enumerate(self._lattice.halves) if self._lattice.used >> h & 1)
        return all(sum(map(abs, offset)) <= 1 for offset in used)

    def _turned(self, stencils: Array) -> Array:
        """Return stencils of the lattice seen from its other end: all directions are reversed, as the order is."""
        turned = np.empty_like(stencils)
        axes = tuple(range(stencils.ndim - 1))
        for h, values in enumerate(stencils):  # a coupling belongs to its other point then
            turned[h] = np.roll(_flipped(values), [-o for o in self._lattice.halves[h][-values.ndim :]], axes)
        return turned

    def _forget_later(self, oriented: Array) -> None:
        """Remove couplings with the layers behind the last one if nobody asks for them."""
        for h, offset in enumerate(self._lattice.halves):
            if offset[0] and self._later is None:
                oriented[h, self._last] = 0.0

    def _sever(self, stencils: Array) -> Array:
        """Return the diagonal plus the moduli of the severed couplings: what is inverted stays above the matrix."""
        diagonal = stencils[0].copy()
        for offset, values in zip(self._lattice.halves, stencils, strict=True):
            if offset[0] and self._severed[1]:
                diagonal[-2] += np.abs(values[-2])
            if offset[0] and self._severed[0]:  # of the layer below, whose points couple with those of the first layer
                diagonal[1] += np.abs(_moved(values[0], offset))
        return diagonal

    def _fill(self, oriented: Array) -> Array:
        """Return what eliminating the last layer does to the stencils within the layer behind it."""
        halves = self._lattice.halves
        fill = np.zeros((self._within(), *oriented.shape[2:]), oriented.dtype)
        last, inverse, keep = self.values[:, self._last], self.inverse[self._last], self._keep[self._last]
        numbers = [h for h in range(1, len(halves)) if self._lattice.used >> h & 1]
        for b in (h for h in numbers if halves[h][0]):
            fill[0] -= _moved(last[b] * (last[b] * inverse), halves[b])
            for a in (h for h in numbers if h < b):
                between = tuple(p - q for p, q in zip(halves[b], halves[a], strict=True))
                h = halves.index(between) if between in halves else 0
                h = h if h in numbers else 0
                product = last[a] * (last[b] * inverse)
                if h == 0:  # outside the pattern
                    lumped = np.where(product > 0.0, keep * product, -product)
                    fill[0] += _moved(lumped, halves[b])
                    if halves[a][0]:
                        fill[0] += _moved(lumped, halves[a])
                elif halves[a][0]:
                    fill[h] -= _moved(product, halves[a])
        return fill

    def _within(self) -> int:
        """Return how many arrays of a stencil couple points of one layer, the diagonal included."""
        return sum(not offset[0] for offset in self._lattice.halves)

    def _receive(self, source: int, oriented: Array) -> Array:
        fill = np.empty((self._within(), *oriented.shape[2:]), oriented.dtype)
        self._comm.Recv(fill, source)
        return self._turned(fill) if self._down else fill

    @staticmethod
    def _add(fill: Array, oriented: Array, diagonal: Array, layer: int) -> None:
        oriented[1 : len(fill), layer] += fill[1:]
        diagonal[layer] += fill[0]

    def _factorise(self, stencils: Array, diagonal: Array, first: int, last: int) -> None:
        pointers = map(self._kernels.pointer, (stencils, diagonal, self._keep))
        factors = map(self._kernels.pointer, (self.values, self.inverse))
        self._kernels.library.factorise(self._lattice.c, first, last, *pointers, *factors)

    def solve(self, right: Array, half_way: Array, answer: Array, total: Array | None = None) -> None:
        """Set the answer to M^-1 times a vector, and add it to a total. Collective: yes.

        Parameters
        ----------
        right, answer
            The vector, and where to leave the answer, padded shape.
        half_way
            An array to work in, zero on the frame.
        total
            What to add the answer to, if any.
        """
        layers = self._lattice.shape[0]
        if self._down:
            right, result = _flipped(right), np.zeros_like(answer)
        else:
            right, result = right.copy() if self._begin is not None or self._end is not None else right, answer
        self._take(self._begin, right[self._first])
        self._sweep("forward", 0, layers - 1, right, half_way)
        self._take(self._end, right[self._last])
        self._sweep("forward", layers - 1, layers, right, half_way)
        result[[0, -1]] = 0.0
        if self._later is not None:
            taken = np.zeros_like(right[0])
            pointers = map(self._kernels.pointer, (self.values, half_way, taken))
            self._kernels.library.hand_on(self._lattice.c, *pointers)
            self._send(taken, self._later)
            result[-1] = self._layer(self._later, taken)
        self._sweep("backward", layers - 1, layers, half_way, result, None)
        self._send(result[self._last], self._end)
        self._sweep("backward", 0, layers - 1, half_way, result, None)
        self._send(result[self._first], self._begin)
        if self._down:
            answer[...] = _flipped(result)
        if total is not None:
            self._lattice.inner(total)[...] += self._lattice.inner(answer)

    def _send(self, layer: Array, target: int | None) -> None:
        if target is not None:
            self._comm.Send(_flipped(layer) if self._down else layer, target)

    def _layer(self, source: int, like: Array) -> Array:
        layer = np.empty_like(like)
        self._comm.Recv(layer, source)
        return _flipped(layer) if self._down else layer

    def _take(self, source: int | None, layer: Array) -> None:
        if source is not None:
            layer -= self._layer(source, layer)

    def _sweep(self, name: str, first: int, last: int, *arrays: Array | None) -> None:
        pointers = [self._kernels.null if array is None else self._kernels.pointer(array) for array in arrays]
        factors = map(self._kernels.pointer, (self.values, self.inverse))
        getattr(self._kernels.library, name)(self._lattice.c, first, last, *factors, *pointers)


def _shares(lattice: Lattice, oriented: Array, keep: float | SmootherNetwork) -> Array:
    """Return what each point keeps when it is eliminated."""
    if isinstance(keep, SmootherNetwork):
        return keep.predict(lattice, oriented)
    return np.full(lattice.padded, keep, lattice.kernels.dtype)


def _moved(layer: Array, offset: tuple[int, ...]) -> Array:
    """Return the values of a layer at the points that lie behind theirs by an offset's components within the layer."""
    return np.roll(layer, offset[1:], tuple(range(layer.ndim)))


def _flipped(values: Array) -> Array:
    """Return the values in reversed directions."""
    return np.ascontiguousarray(np.flip(values))
