"""Modes against the singular value decomposition, in three ways, on any number of ranks."""

import math

from mpi4py import MPI

import basis_cases
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdeopt.reduced_order import Basis, IncrementalDecomposition, Snapshots, proper_orthogonal_decomposition
from pdeopt.reduced_order.orthonormal import extend_orthonormal, orthonormalise
from pdeopt.report import InputError

COMM = MPI.COMM_WORLD
METHODS = ("snapshots", "slepc", "incremental")


def with_singular_values(inner, values, count, seed=0):
    """Return snapshots of known singular values and modes, shape (owned, r)."""
    modes = orthonormalise(inner, basis_cases.smooth_columns(inner, len(values)))
    mixing = np.linalg.qr(np.random.default_rng(seed).standard_normal((count, len(values))))[0]
    snapshots = Snapshots(inner)
    snapshots.extend(modes * values @ mixing.T)
    return snapshots, modes


def largest_angle(first, second):
    """Return the sine of the largest principal angle between two bases."""
    left = second.modes - first.modes @ first.coordinates(second.modes)
    return math.sqrt(np.linalg.eigvalsh(first.inner_product.gram(left)).max())


def loss(basis):
    return np.abs(basis.inner_product.gram(basis.modes) - np.eye(basis.size)).max()


@pytest.mark.parallel([1, 2])
def test_all_methods_find_known_modes_and_singular_values():
    inner = basis_cases.inner_product("P1", cells=12)
    values = 3.0 * 10.0 ** -np.arange(0.0, 6.0, 0.5)
    snapshots, modes = with_singular_values(inner, values, count=40)
    exact = Basis(inner, modes)
    for method in METHODS:
        basis = proper_orthogonal_decomposition(snapshots, modes=12, method=method)
        # The eigenvalues of the Gram matrix are right to rounding of the largest one.
        accuracy = 1e-15 * (values[0] / values if method == "snapshots" else 10.0) * 100.0 * values[0] / values
        np.testing.assert_array_less(np.abs(basis.singular_values[:12] / values - 1.0), accuracy)
        assert loss(basis) <= 1e-13
        for size in (1, 5, 9):
            assert largest_angle(exact.truncate(size), basis.truncate(size)) <= 20.0 * accuracy[size]
        tail = math.sqrt(np.sum(values[7:] ** 2))
        cut = basis.truncate(7)
        remainder = snapshots.columns - cut.expand(cut.coordinates(snapshots.columns))
        assert np.linalg.norm(inner.norms(remainder)) == pytest.approx(tail, rel=1e-6)


@pytest.mark.parallel([1, 2, 3])
def test_modes_and_their_signs_do_not_depend_on_ranks_or_method():
    """The coordinates of the snapshots say it: they are numbers that every partition has to find alike."""
    inner, alone = (basis_cases.inner_product("P2 vector", cells=6, comm=comm) for comm in (COMM, MPI.COMM_SELF))
    snapshots, serial = basis_cases.bumps(inner, 12), basis_cases.bumps(alone, 12)
    expected = proper_orthogonal_decomposition(serial, modes=6).coordinates(serial.columns)
    for method in METHODS:
        found = proper_orthogonal_decomposition(snapshots, modes=6, method=method).coordinates(snapshots.columns)
        np.testing.assert_allclose(found, expected, atol=1e-10 * np.abs(expected).max())


@pytest.mark.parallel([1, 2])
def test_small_modes_are_orthonormal_and_the_accurate_methods_find_them():
    inner = basis_cases.inner_product("P1", cells=12)
    values = 10.0 ** -np.arange(0.0, 12.0, 0.5)
    snapshots, _ = with_singular_values(inner, values, count=40)
    plain = proper_orthogonal_decomposition(snapshots, tolerance=0.0)
    assert 13 <= plain.size <= 17  # those above 1e-7 or so
    assert loss(plain) <= 1e-13
    for method in ("slepc", "incremental"):
        basis = proper_orthogonal_decomposition(snapshots, tolerance=1e-9, method=method)
        assert basis.size == 18
        np.testing.assert_allclose(basis.singular_values[:18], values[:18], rtol=1e-4)
        assert loss(basis) <= 1e-13


@pytest.mark.parallel([1, 2])
def test_a_tolerance_keeps_as_few_modes_as_it_allows():
    inner = basis_cases.inner_product()
    snapshots = basis_cases.bumps(inner, 16)
    energy = np.sum(snapshots.norms() ** 2)
    for tolerance in (0.3, 0.01):
        sizes = set()
        for method in METHODS:
            basis = proper_orthogonal_decomposition(snapshots, tolerance=tolerance, method=method)
            errors = [
                np.sum((cut.projection_errors(snapshots.columns) * snapshots.norms()) ** 2)
                for cut in (basis, basis.truncate(basis.size - 1))
            ]
            assert errors[0] <= tolerance**2 * energy < errors[1]
            sizes.add(basis.size)
        assert len(sizes) == 1
        assert proper_orthogonal_decomposition(snapshots, modes=2, tolerance=tolerance).size == 2


@pytest.mark.parallel([1, 2])
def test_fewer_modes_than_asked_for_are_returned_with_a_warning():
    inner = basis_cases.inner_product()
    snapshots, _ = with_singular_values(inner, np.array([2.0, 1.0, 0.5]), count=9)
    snapshots.append(np.zeros(inner.owned))
    for method in METHODS:
        if COMM.rank == 0:
            with pytest.warns(UserWarning, match="5 modes were asked for, and 10 snapshots have 3") as found:
                basis = proper_orthogonal_decomposition(snapshots, modes=5, method=method)
            assert found[0].filename == __file__  # the line that asked for them
        else:
            basis = proper_orthogonal_decomposition(snapshots, modes=5, method=method)
        assert basis.size == 3
        assert basis.projection_errors(snapshots.columns).max() <= 1e-12


@pytest.mark.parallel([1, 2])
def test_wrong_arguments_are_refused():
    inner = basis_cases.inner_product(cells=3)
    empty = Snapshots(inner)
    zero = Snapshots(inner)
    zero.append(np.zeros(inner.owned))
    some = basis_cases.bumps(inner, 2)
    for snapshots, arguments, message in (
        (empty, {"modes": 1}, "no snapshots"),
        (some, {}, "neither modes nor tolerance"),
        (some, {"modes": 0}, "modes is 0"),
        (some, {"tolerance": 1.0}, "tolerance is 1.0"),
        (some, {"modes": 1, "method": "svd"}, "method 'svd' is unknown"),
        *((zero, {"modes": 1, "method": method}, "snapshots are zero") for method in METHODS),
    ):
        with pytest.raises(InputError, match=message):
            proper_orthogonal_decomposition(snapshots, **arguments)
    with pytest.raises(InputError, match="linearly dependent"):
        orthonormalise(inner, np.hstack([some.columns, some.columns.sum(axis=1, keepdims=True)]))


@pytest.mark.parallel([1, 2])
def test_fields_that_the_inner_product_hardly_sees_become_orthonormal():
    """Constants have no energy: sums with 1e3 times one lose six of the digits of their products."""
    inner = basis_cases.inner_product("P1", form="h1_seminorm")
    modes = orthonormalise(inner, basis_cases.smooth_columns(inner, 7)[:, 1:] + 1e3)
    lost = np.abs(inner.gram(modes) - np.eye(6)).max()
    assert 1e-13 < lost < 1e-8


@pytest.mark.parallel([1, 2])
def test_increments_follow_fields_that_come_one_by_one():
    inner = basis_cases.inner_product()
    snapshots = basis_cases.bumps(inner, 40)
    whole = proper_orthogonal_decomposition(snapshots, modes=12, method="slepc")
    rough, fine = (IncrementalDecomposition(inner, truncation) for truncation in (1e-3, 1e-12))
    for column in snapshots.columns.T:
        for decomposition in (rough, fine):
            decomposition.update(column[:, None])
    np.testing.assert_allclose(fine.singular_values[:12], whole.singular_values[:12], rtol=1e-8)
    assert largest_angle(whole, fine.basis(12)) <= 1e-7
    assert fine.energy == pytest.approx(np.sum(snapshots.norms() ** 2), rel=1e-13)
    # What was dropped bounds the difference, also of the singular values (Weyl).
    assert len(rough.singular_values) < len(fine.singular_values)
    size = len(rough.singular_values)
    assert 0.0 < np.abs(rough.singular_values - fine.singular_values[:size]).max() <= rough.dropped
    left = rough.basis().projection_errors(snapshots.columns) * snapshots.norms()
    assert np.linalg.norm(left) <= rough.dropped
    with pytest.raises(InputError, match="0 modes were asked for"):
        fine.basis(0)
    column = snapshots.columns[:, 0].copy()
    if inner.comm.rank == inner.comm.size - 1:
        column[0] = np.nan
    with pytest.raises(InputError, match="NaN"):
        fine.update(column[:, None])
    with pytest.raises(InputError, match="shape"):
        fine.update(column)
    assert fine.energy == pytest.approx(np.sum(snapshots.norms() ** 2), rel=1e-13)


@pytest.mark.parallel([1, 2])
def test_a_basis_is_extended_by_directions_of_all_sizes():
    inner = basis_cases.inner_product("P1", cells=12)
    modes = orthonormalise(inner, basis_cases.smooth_columns(inner, 12))
    known, new = modes[:, :4], modes[:, 4:]
    sizes = 10.0 ** -np.arange(0.0, 12.0, 1.5)
    mixing = np.linalg.qr(np.random.default_rng(0).standard_normal((8, 8)))[0]
    fields = known @ np.ones((4, 8)) + new * sizes @ mixing
    basis = Basis(inner, extend_orthonormal(inner, known, fields, floor=1e-14))
    assert basis.size == 12
    assert loss(basis) <= 1e-13
    np.testing.assert_array_equal(basis.modes[:, :4], known)
    # The direction of size 1e-10 is known to about 1e-16 / 1e-10.
    assert largest_angle(Basis(inner, modes[:, :11]), basis.truncate(11)) <= 1e-4
    assert extend_orthonormal(inner, known, known @ np.ones((4, 2)), floor=1e-13).shape[1] == 4


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**20), count=st.integers(2, 12), rank=st.integers(1, 8), size=st.integers(1, 8))
def test_what_modes_leave_is_the_tail_of_the_singular_values(seed, count, rank, size):
    """Eckart and Young, for random snapshots of low rank."""
    random = np.random.default_rng(seed)
    columns = random.standard_normal((INNER.owned, rank)) @ random.standard_normal((rank, count))
    snapshots = Snapshots(INNER)
    snapshots.extend(columns)
    factor = np.linalg.cholesky(INNER.matrix[:, :])
    exact = np.linalg.svd(factor.T @ columns, compute_uv=False)
    for method in METHODS:
        basis = proper_orthogonal_decomposition(snapshots, modes=size, tolerance=0.0, method=method)
        assert basis.size <= size
        assert basis.size == min(size, rank, count)
        left = basis.projection_errors(columns) * INNER.norms(columns)
        tail = math.sqrt(np.sum(exact[basis.size :] ** 2))
        assert np.linalg.norm(left) == pytest.approx(tail, rel=1e-6, abs=1e-10 * exact[0])
        np.testing.assert_allclose(basis.singular_values[: basis.size], exact[: basis.size], rtol=1e-6)
        smaller = basis.truncate(1)
        assert smaller.remainder == pytest.approx(math.sqrt(np.sum(exact[1:] ** 2) / np.sum(exact**2)), abs=1e-7)


INNER = basis_cases.inner_product("P1", cells=3, comm=MPI.COMM_SELF)
