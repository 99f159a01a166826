"""Cells and weights: non-negative, exact in volume, as good as other solvers', the same on all numbers of ranks."""

from mpi4py import MPI

import dolfinx
import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from pdeopt.reduced_order import CompressedIntegrands, Cubature, all_cells, select_cells
from pdeopt.reduced_order.nonnegative import NonnegativeFit
from pdeopt.report import ConvergenceError, InputError


@settings(max_examples=25, deadline=None, database=None)
@given(st.integers(0, 2**31), st.integers(2, 12), st.integers(1, 20), st.booleans())
def test_the_fit_agrees_with_scipys(seed, rows, columns, repeated):
    generator = np.random.default_rng(seed)
    matrix, shares = generator.normal(size=(rows, columns)), generator.uniform(0.5, 2.0, columns)
    if repeated:  # dependent columns
        matrix[:, -1], shares[-1] = matrix[:, 0], shares[0]
    target, total = generator.normal(size=rows), 3.0
    fit = NonnegativeFit(target, total)
    fit.offer(np.arange(columns), matrix, shares)
    fit.take_all(np.ones(columns))
    for _ in range(5):
        fit.offer(np.arange(columns), matrix, shares)  # those that had to leave may come back
        fit.improve(3 * columns, 0.0)
    # The equality by a weight of 1e4: scipy has none, and the error is off by 1e-8 with it.
    _, wanted = scipy.optimize.nnls(np.vstack([matrix, 1e4 * shares]), np.append(target, 1e4 * total))
    found = fit.outcome
    assert np.all(found.weights > 0.0)
    assert found.weights @ shares[found.labels] == pytest.approx(total, rel=1e-12)
    assert found.error <= wanted * (1.0 + 1e-6) + 1e-8
    assert found.error == pytest.approx(np.linalg.norm(target - matrix[:, found.labels] @ found.weights), abs=1e-12)


def smooth_integrands(cells=16, modes=12, tolerance=1e-4, shift=0.0):
    """Integrands that depend on the place alone: the same on any number of ranks."""
    mesh = dolfinx.mesh.create_unit_square(MPI.COMM_WORLD, cells, cells)
    compressed = CompressedIntegrands(mesh, tolerance)
    centres = mesh.geometry.x[mesh.geometry.dofmaps[0]].mean(axis=1)[: compressed.volumes.size, :2]
    for state in range(8):
        phases = centres @ [3.0 + state, 2.0 - state] + shift
        waves = np.stack([np.sin((1.0 + 0.3 * mode) * phases + mode) for mode in range(modes)], axis=1)
        compressed.append(waves * compressed.volumes[:, None], np.cos(waves) * compressed.volumes[:, None])
    return mesh, compressed


def error_of(compressed, cubature):
    cells = np.asarray(compressed.mesh.topology.original_cell_index)[: compressed.volumes.size]
    weights = np.zeros(compressed.volumes.size)
    here = np.isin(cells, cubature.cells)
    weights[here] = cubature.weights[np.searchsorted(cubature.cells, cells[here])]
    volume = MPI.COMM_WORLD.allreduce(weights @ compressed.volumes)
    return np.linalg.norm(MPI.COMM_WORLD.allreduce(compressed.rows() @ (weights - 1.0))), volume


@pytest.mark.parallel([1, 2, 3])
def test_few_cells_keep_the_tolerance_and_the_volume():
    mesh, compressed = smooth_integrands()
    cubature = select_cells(compressed)
    error, volume = error_of(compressed, cubature)
    assert cubature.size < 200 < mesh.topology.index_map(2).size_global
    assert error == pytest.approx(cubature.error, rel=1e-6)
    assert error <= 1e-4
    assert volume == pytest.approx(1.0, rel=1e-12)
    assert np.all(cubature.weights > 0.0)


@pytest.mark.parallel([2, 3])
def test_the_choice_does_not_depend_on_the_number_of_ranks():
    _, compressed = smooth_integrands()
    cubature = select_cells(compressed)
    # Rank 0 repeats the choice alone, on a mesh of its own.
    alone = CompressedIntegrands(dolfinx.mesh.create_unit_square(MPI.COMM_SELF, 16, 16), 1e-4)
    original = np.asarray(compressed.mesh.topology.original_cell_index)[: compressed.volumes.size]
    gathered = MPI.COMM_WORLD.allgather((original, compressed.rows()))
    rows = np.empty((gathered[0][1].shape[0], 512))
    for cells, part in gathered:
        rows[:, cells] = part
    rows = rows[:, np.asarray(alone.mesh.topology.original_cell_index)]
    alone.rows = lambda: rows
    again = select_cells(alone)
    assert np.array_equal(again.cells, cubature.cells)
    assert np.abs(again.weights - cubature.weights).max() <= 1e-7 * cubature.weights.max()


@pytest.mark.parallel([1, 2])
def test_blocks_need_about_as_many_cells_as_one_at_a_time_and_updates_start_from_them():
    _, compressed = smooth_integrands()
    blocks, plain = select_cells(compressed), select_cells(compressed, block=1)
    assert blocks.size <= 1.05 * plain.size
    _, changed = smooth_integrands(shift=1e-3)
    updated = select_cells(changed, start=blocks)
    error, volume = error_of(changed, updated)
    assert error <= 1e-4
    assert volume == pytest.approx(1.0, rel=1e-12)
    assert np.isin(updated.cells, blocks.cells).mean() > 0.8


@pytest.mark.parallel([1, 2])
def test_what_cannot_be_had_is_said():
    mesh, compressed = smooth_integrands(cells=4)
    with pytest.raises(InputError, match="compress them anew"):
        select_cells(compressed, 1e-6)
    with pytest.raises(InputError, match="cells that this mesh lacks"):
        select_cells(compressed, start=Cubature(np.array([1, 99]), np.ones(2), 0.0))
    with pytest.raises(InputError, match="positive"):
        Cubature(np.array([1, 2]), np.array([1.0, -1.0]), 0.0)
    with pytest.raises(InputError, match="rising"):
        Cubature(np.array([2, 1]), np.ones(2), 0.0)
    with pytest.raises(InputError, match="tolerance"):
        CompressedIntegrands(mesh, 2.0)
    whole = all_cells(mesh)
    assert np.array_equal(whole.cells, np.arange(32))
    assert np.all(whole.weights == 1.0)
    impossible = CompressedIntegrands(mesh, 1e-3)
    impossible.rows = lambda: np.empty((1, impossible.volumes.size)) * 0.0 + impossible.volumes
    impossible.total_volume = 2.0
    with pytest.raises(ConvergenceError, match="no cell lowers"):
        select_cells(impossible)
