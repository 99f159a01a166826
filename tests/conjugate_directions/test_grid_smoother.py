"""Incomplete factors across slabs: the same as one process computes by the book, in the ranks' order."""

import dataclasses
import itertools

from mpi4py import MPI

import numpy as np
import pytest

from pdeopt.conjugate_directions.grid_kernels import load_kernels
from pdeopt.conjugate_directions.grid_slabs import Slabs
from pdeopt.conjugate_directions.grid_smoother import Factors
from pdeopt.conjugate_directions.grid_stencils import Lattice


def random_matrix(shape, only):
    """A diagonally dominant matrix with couplings of both signs, but not to all neighbours, as stencils and dense."""
    lattice, generator = Lattice(shape, load_kernels(MPI.COMM_WORLD, np.float64)), np.random.default_rng(1)
    stencils, number = lattice.stencils(len(lattice.halves)), np.arange(lattice.points).reshape(shape)
    dense = np.zeros((lattice.points, lattice.points))
    for offset, values in zip(lattice.halves[1:], stencils[1:], strict=True):
        rows, columns = (
            number[tuple(slice(max(0, -s * o), n - max(0, s * o)) for o, n in zip(offset, shape, strict=True))].ravel()
            for s in (1, -1)
        )
        if offset in only:
            couplings = generator.uniform(-1.0, 0.3, rows.size)
            dense[rows, columns] = dense[columns, rows] = couplings
            full = np.zeros(lattice.points)
            full[rows] = couplings
            lattice.inner(values)[...] = full.reshape(shape)
    used = sum(1 << h for h, offset in enumerate(lattice.halves) if offset in only or not any(offset))
    lattice = dataclasses.replace(lattice, used=used)
    np.fill_diagonal(dense, 0.1 + np.abs(dense).sum(axis=1))
    lattice.inner(stencils[0])[...] = dense.diagonal().reshape(shape)
    return lattice, stencils, dense


def slab(lattice, stencils):
    """This rank's part of it."""
    comm, layers = MPI.COMM_WORLD, lattice.shape[0]
    slabs = Slabs(comm, np.arange(comm.size + 1) * layers // comm.size)
    count = int(slabs.starts[comm.rank + 1] - slabs.starts[comm.rank])
    part = Lattice((count, *lattice.shape[1:]), lattice.kernels, lattice.used)
    return slabs, part, np.ascontiguousarray(np.moveaxis(slabs.part(np.moveaxis(stencils, 1, 0)), 0, 1))


def inverse(whole, slabs, part, factors):
    """The dense matrix of what the factors solve."""
    right, half_way, answer = part.values(), part.values(), part.values()
    found = []
    for unit in np.eye(whole.points):
        framed = whole.values()
        whole.inner(framed)[...] = unit.reshape(whole.shape)
        right[...] = slabs.part(framed)
        right[[0, -1]] = 0.0
        given = right.copy()
        factors.solve(right, half_way, answer)
        assert (right == given).all()
        found.append(whole.inner(slabs.gather(answer)).ravel())
    return np.array(found)


def by_the_book(dense, shape, starts, keep):
    """Eliminate points from both ends to the middle rank, on the matrix's pattern, in 2D on that of all neighbours."""
    layers = [list(range(start, end)) for start, end in itertools.pairwise(starts)]
    middle = len(layers) // 2
    number = np.arange(len(dense)).reshape(shape)
    upwards = [number[layers[r]].ravel() for r in range(max(middle, 1))]
    downwards = [number[layers[r]].ravel()[::-1] for r in range(len(layers) - 1, max(middle, 1) - 1, -1)]
    order = np.concatenate([*upwards, *downwards])
    rest, factor = dense[np.ix_(order, order)], np.zeros_like(dense)
    places = np.stack(np.unravel_index(order, shape), axis=1)
    coupled = rest != 0.0 if len(shape) == 3 else np.abs(places[:, None] - places[None]).max(axis=2) <= 1
    for k in range(len(order)):
        factor[:, k] = np.where(np.arange(len(order)) >= k, rest[:, k], 0.0)
        for i in np.flatnonzero(factor[:, k]):
            for j in np.flatnonzero(factor[:, k]):
                if i == k or j == k:
                    continue
                fill = factor[i, k] * factor[j, k] / factor[k, k]
                if coupled[i, j]:
                    rest[i, j] -= fill
                else:  # comes again with i and j exchanged
                    rest[i, i] += keep * fill if fill > 0.0 else -fill
    product = factor / factor.diagonal() @ factor.T
    back = np.empty_like(product)
    back[np.ix_(order, order)] = product
    return back


FULL = [(0, 1), (1, -1), (1, 0), (1, 1)]
TRIANGLES = [(0, 1), (1, 0), (1, 1)]
TETRAHEDRA = [(0, 0, 1), (0, 1, 0), (0, 1, 1), (1, 0, 0), (1, 0, 1), (1, 1, 0), (1, 1, 1)]
AXES = [(0, 0, 1), (0, 1, 0), (1, 0, 0)]
HEXAHEDRA = [(dz, dy, dx) for dz in (0, 1) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dz, dy, dx) > (0, 0, 0)]


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize(
    ("shape", "only", "keep"),
    [
        ((8, 5), FULL, 1.0),
        ((8, 5), TRIANGLES, 0.5),
        ((6, 3, 2), AXES, 0.0),
        ((7, 3, 2), TETRAHEDRA, 1.0),
        ((6, 3, 2), HEXAHEDRA, 0.5),
    ],
)
def test_slabs_have_the_factors_of_the_whole(shape, only, keep):
    whole, stencils, dense = random_matrix(shape, only)
    slabs, part, own = slab(whole, stencils)
    found = inverse(whole, slabs, part, Factors(part, own, slabs, keep))
    wanted = by_the_book(dense, shape, slabs.starts, keep)
    assert np.abs(found @ wanted - np.eye(len(dense))).max() < 1e-11
    if keep == 1.0:
        assert np.linalg.eigvalsh(wanted - dense).min() > -1e-12


@pytest.mark.parallel([1, 2, 3])
def test_lines_across_the_cuts_are_solved_exactly_unless_severed():
    whole, stencils, dense = random_matrix((9, 3), [(1, 0)])
    slabs, part, own = slab(whole, stencils)
    error = inverse(whole, slabs, part, Factors(part, own, slabs, 1.0)) @ dense - np.eye(len(dense))
    assert np.abs(error).max() < 1e-12
    found = inverse(whole, slabs, part, Factors(part, own, slabs, 1.0, chain=1))
    assert np.abs(found - found.T).max() < 1e-14
    assert np.linalg.eigvalsh(np.linalg.inv(found) - dense).min() > -1e-12
    assert slabs.cut == (np.abs(found @ dense - np.eye(len(dense))).max() > 1e-3)
