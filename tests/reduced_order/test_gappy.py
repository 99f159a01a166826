"""Gaps are filled to rounding where the rank is exact, and what cannot be filled is refused."""

from mpi4py import MPI

import basis_cases
import numpy as np
import pytest

from pdeopt.parallel import normal_numbers
from pdeopt.reduced_order.gappy import complete_snapshots
from pdeopt.report import InputError

COMM = MPI.COMM_WORLD


def gaps(inner, count, part):
    """Return a mask that is alike on any number of ranks, True where known."""
    places = np.round(1e6 * inner.space.tabulate_dof_coordinates()[: inner.owned]).astype(np.int64)
    columns = [normal_numbers(f"gap {column}", places) for column in range(count)]
    threshold = np.quantile(np.random.default_rng(0).standard_normal(100_000), part)
    return threshold < np.array(columns).T


def low_rank(inner, rank, count):
    """Return columns of falling singular values."""
    factor = np.random.default_rng(3).standard_normal((rank, count)) * 10.0 ** -np.linspace(0.0, 1.5, rank)[:, None]
    return basis_cases.smooth_columns(inner, rank) @ factor


@pytest.mark.parallel([1, 2, 3])
def test_fields_of_low_rank_are_recovered_with_30_per_cent_missing():
    inner = basis_cases.inner_product(cells=12)
    columns = low_rank(inner, 5, 24)
    known = gaps(inner, 24, 0.3)
    missing = COMM.allreduce(int(np.sum(~known))) / COMM.allreduce(known.size)
    assert 0.25 <= missing <= 0.35
    gappy = np.where(known, columns, np.nan)
    for arguments in ({"rank": 5}, {"tolerance": 1e-8}):
        completion = complete_snapshots(inner, gappy, known, **arguments)
        assert completion.rank == 5
        assert completion.residual <= 1e-8
        np.testing.assert_array_equal(completion.columns[known], columns[known])
        assert inner.norms(completion.columns - columns).max() <= 1e-6 * inner.norms(columns).max()
    # A rank too small leaves a residual, and says so.
    less = complete_snapshots(inner, gappy, known, rank=3)
    assert less.residual >= 1e-3
    assert inner.norms(less.columns - columns).max() >= 1e-3 * inner.norms(columns).max()


@pytest.mark.parallel([1, 2])
def test_what_cannot_be_completed_is_refused_on_all_ranks():
    inner = basis_cases.inner_product(cells=4)
    columns = low_rank(inner, 3, 8)
    known = np.ones(columns.shape, dtype=bool)
    unknown_dof, unknown_field, broken = known.copy(), known.copy(), columns.copy()
    if COMM.rank == COMM.size - 1:
        unknown_dof[0, 2:], broken[0, 0] = False, np.inf
    unknown_field[:, 3] = False
    for given, mask, arguments, message in (
        (columns, known, {}, "give one of them"),
        (columns, known, {"rank": 2, "tolerance": 0.1}, "give one of them"),
        (columns[:-1], known, {"rank": 2}, "columns have the shape"),
        (columns, known.astype(float), {"rank": 2}, "known of bool"),
        (broken, known, {"rank": 2}, "mark them as unknown"),
        (columns, unknown_dof, {"rank": 3}, "known least determines 2"),
        (columns, unknown_field, {"rank": 1}, "not known at all"),
        (columns, unknown_dof, {"tolerance": 1e-10}, "that the known values determine, 2, leaves"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            complete_snapshots(inner, given, mask, **arguments)
        assert len(set(COMM.allgather(str(caught.value)))) == 1
