"""Symmetric nearest-neighbour stencils on a lattice: five arrays for nine points, fourteen for 27."""

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from pdeopt.conjugate_directions.grid_kernels import Kernels

__all__ = ["Lattice"]

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Lattice:
    """The points of a rank's part of a lattice, in arrays with a frame of one point on every side.

    The slowest direction is the first one; on several ranks it is the one that is cut, and the frame's first and last
    layers then hold the neighbours' points.

    Parameters
    ----------
    shape
        Numbers of points in the directions, two or three, slowest first.
    kernels
        What computes on the arrays.
    used
        Bit h says whether array h of stencils has entries; what has none costs nothing.
    """

    shape: tuple[int, ...]
    kernels: Kernels
    used: int = (1 << 14) - 1

    @property
    def padded(self) -> tuple[int, ...]:
        """Shape of an array of values, with the frame."""
        return tuple(count + 2 for count in self.shape)

    @property
    def points(self) -> int:
        """Number of points without the frame."""
        return math.prod(self.shape)

    @property
    def c(self) -> tuple[int, int, int, int, int]:
        """The structure that the kernels take."""
        *slowest, rows, columns = self.shape
        return (slowest[0] if slowest else 1, rows, columns, len(slowest), self.used)

    @property
    def halves(self) -> list[tuple[int, ...]]:
        """Offsets of the arrays of a symmetric stencil: zero and the lexicographically positive ones."""
        return [offset for offset in self.offsets if offset >= (0,) * len(self.shape)]

    @property
    def offsets(self) -> list[tuple[int, ...]]:
        """Offsets of the nearest neighbours, in lexicographical order: 9 or 27."""
        return [tuple(int(i) - 1 for i in index) for index in np.ndindex((3,) * len(self.shape))]

    def values(self) -> Array:
        """Return zeros, one per point and frame point."""
        return np.zeros(self.padded, dtype=self.kernels.dtype)

    def stencils(self, count: int) -> Array:
        """Return ``count`` arrays of zeros that follow each other in memory."""
        return np.zeros((count, *self.padded), dtype=self.kernels.dtype)

    def inner(self, values: Array) -> Array:
        """Return a view without the frame of the last two or three axes."""
        index: tuple[Any, ...] = (..., *(slice(1, -1) for _ in self.shape))
        return values[index]

    def halved(self) -> "Lattice":
        """Return the lattice of every second point, the first one included."""
        return Lattice(tuple((count + 1) // 2 for count in self.shape), self.kernels)
