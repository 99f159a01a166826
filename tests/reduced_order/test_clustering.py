"""Dissimilarities, sign alignment, clusters: against their definitions, their invariances and planted answers."""

from mpi4py import MPI

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies
from hypothesis.extra import numpy as arrays

from pdeopt.reduced_order.clustering import cluster
from pdeopt.reduced_order.dissimilarity import (
    align_signs,
    coordinates,
    covariance_kernel,
    distances,
    kernel,
    subspace_kernel,
)
from pdeopt.reduced_order.subspaces import cluster_subspaces
from pdeopt.report import InputError

KINDS = ["euclidean", "normalised", "aligned", "sine"]
entries = strategies.floats(-3.0, 3.0, allow_subnormal=False)
fields = arrays.arrays(float, (6, 5), elements=entries).filter(lambda x: np.linalg.norm(x, axis=0).min() > 0.1)
factors = arrays.arrays(float, 5, elements=strategies.floats(0.2, 5.0))
signs = arrays.arrays(float, 5, elements=strategies.sampled_from([-1.0, 1.0]))


def gram(columns):
    return columns.T @ columns


def planted(counts=(7, 9, 11), dimension=3, size=30, seed=0):
    """Return fields of as many random subspaces, each around its own axis, with mixed signs and sizes, and labels."""
    stream = np.random.default_rng(seed)
    columns = []
    for count in counts:
        basis = np.linalg.qr(stream.standard_normal((size, dimension)))[0]
        columns.append(basis @ np.vstack([np.ones(count), 0.2 * stream.standard_normal((dimension - 1, count))]))
    scales = stream.choice([-1.0, 1.0], sum(counts)) * 10.0 ** stream.uniform(-2.0, 2.0, sum(counts))
    return np.hstack(columns) * scales, np.repeat(np.arange(len(counts)), counts)


def same_partition(first, second):
    return np.array_equal(first[:, None] == first, second[:, None] == second)


@hypothesis.given(fields, factors, signs)
@hypothesis.settings(deadline=None, max_examples=50)
def test_invariance(columns, factors, signs):
    """Sine: scale and sign; aligned: the same up to rounding of ties; normalised: scale; and their definitions."""
    products = gram(columns)
    sine = distances(kernel(products, "sine"))
    scaled = distances(kernel(gram(columns * factors * signs), "sine"))
    np.testing.assert_allclose(scaled**2, sine**2, atol=1e-12)
    first, second = columns[:, 0], columns[:, 1]
    remainder = second - first * (first @ second) / (first @ first)
    assert sine[0, 1] == pytest.approx(np.linalg.norm(remainder) / np.linalg.norm(second), abs=1e-7)
    normalised = distances(kernel(products, "normalised"))
    np.testing.assert_allclose(distances(kernel(gram(columns * factors), "normalised")) ** 2, normalised**2, atol=1e-12)
    units = columns / np.linalg.norm(columns, axis=0)
    assert np.sqrt(2.0) * normalised[0, 1] == pytest.approx(np.linalg.norm(units[:, 0] - units[:, 1]), abs=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_coordinates_have_the_kernel_as_products(kind):
    products = kernel(gram(np.random.default_rng(1).standard_normal((8, 12))), kind)
    points = coordinates(products)
    np.testing.assert_allclose(points @ points.T, products, atol=1e-12)


def test_subspaces_have_the_sines_of_their_principal_angles():
    import scipy.linalg

    stream = np.random.default_rng(2)
    trajectories = [stream.standard_normal((9, 4)) @ np.diag([5.0, 3.0, 0.1, 0.01]) for _ in range(3)]
    # The second one has two independent snapshots only, those of a third are of the same plane as the first.
    columns = np.hstack([trajectories[0], trajectories[1][:, :2], trajectories[2]])
    groups = np.repeat([0, 1, 2], [4, 2, 4])
    separation = distances(subspace_kernel(gram(columns), groups, 2))
    leading = [np.linalg.svd(columns[:, groups == group], full_matrices=False)[0][:, :2] for group in range(3)]
    for row in range(3):
        for column in range(row):
            angles = scipy.linalg.subspace_angles(leading[row], leading[column])
            assert separation[row, column] == pytest.approx(np.sqrt(np.mean(np.sin(angles) ** 2)), abs=1e-10)
    assert np.all(np.diag(separation) == 0.0)


def test_covariances_of_trajectories_have_the_angles_of_their_matrices():
    stream = np.random.default_rng(6)
    groups = np.array([0, 1, 1, 0, 2, 2, 2])
    columns = stream.standard_normal((9, 7)) * stream.choice([-1.0, 1.0], 7)
    covariances = [columns[:, groups == group] @ columns[:, groups == group].T for group in range(3)]
    covariances = [matrix / np.linalg.norm(matrix) for matrix in covariances]
    expected = [[np.sum(one * other) for other in covariances] for one in covariances]
    scaled = columns * np.array([2.0, 0.5, 0.5, 2.0, -3.0, -3.0, -3.0])
    for fields in (columns, scaled):
        np.testing.assert_allclose(covariance_kernel(gram(fields), groups), expected, atol=1e-14)
    np.testing.assert_allclose(covariance_kernel(gram(columns)), kernel(gram(columns), "sine"), atol=1e-14)


@hypothesis.given(strategies.integers(0, 10**6))
@hypothesis.settings(deadline=None, max_examples=30)
def test_signs_of_one_signed_data_are_found(seed):
    stream = np.random.default_rng(seed)
    flips = stream.choice([-1.0, 1.0], 20)
    columns = np.abs(stream.standard_normal((15, 20)))
    assert np.array_equal(align_signs(gram(columns * flips)), flips * flips[0])


@pytest.mark.parametrize("method", ["means", "medoids"])
@pytest.mark.parametrize("kind", ["sine", "aligned"])
def test_planted_directions_are_found_whatever_signs_and_scales(method, kind):
    columns, labels = planted()
    found = cluster(kernel(gram(columns), kind), 3, method=method)
    assert same_partition(found.labels, labels)
    assert np.array_equal(labels[found.medoids], found.labels[found.medoids])
    # The planted fault: distances that see the scale do not find them.
    assert not same_partition(cluster(kernel(gram(columns), "euclidean"), 3, method=method).labels, labels)


def test_planted_subspaces_of_trajectories_are_found():
    stream = np.random.default_rng(3)
    planes = [np.linalg.qr(stream.standard_normal((30, 2)))[0] for _ in range(2)]
    labels = np.array([0, 1, 1, 0, 0, 1, 0])
    columns = np.hstack([planes[label] @ stream.standard_normal((2, 5)) for label in labels])
    products = subspace_kernel(gram(columns + 1e-2 * stream.standard_normal(columns.shape)), np.repeat(range(7), 5), 2)
    assert np.array_equal(cluster(products, 2).labels, labels)


def test_subspaces_are_found_that_angles_do_not_show():
    """Two directions in each of three planes: k-means by angles sees six groups, and planes must not be cut."""
    stream = np.random.default_rng(5)
    planes = np.stack([np.linalg.qr(stream.standard_normal((5, 2)))[0] for _ in range(3)], axis=1)
    labels, angles = np.arange(48) % 3, np.pi / 2 * (np.arange(48) % 2) + 0.2 * stream.standard_normal(48)
    directions = np.stack([np.cos(angles), np.sin(angles)])
    columns = np.stack([planes[:, label] @ directions[:, item] for item, label in enumerate(labels)], axis=1)
    columns *= stream.choice([-1.0, 1.0], 48) * stream.uniform(0.1, 10.0, 48)
    found = cluster_subspaces(gram(columns), 3, 2)
    assert same_partition(found.labels, labels)
    assert not same_partition(cluster(kernel(gram(columns)), 3).labels, labels)
    # Three trajectories in each plane.
    groups = np.repeat(np.arange(9), [5, 5, 6, 5, 5, 6, 5, 5, 6])
    order = np.argsort(labels, kind="stable")
    found = cluster_subspaces(gram(columns[:, order]), 3, 2, trajectories=groups, starts=6)
    assert found.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_subspaces_refuse_what_angles_refuse_and_one_cluster_is_one():
    products = gram(planted()[0])
    assert cluster_subspaces(products, 1, 3).count == 1
    with pytest.raises(InputError, match="28 clusters of 27 items"):
        cluster_subspaces(products, 28, 3)
    with pytest.raises(InputError, match="0 modes"):
        cluster_subspaces(products, 2, 0)
    products[0, 0] = np.inf
    with pytest.raises(InputError, match="NaN or Inf in row 0"):
        cluster_subspaces(products, 2, 3)


def test_members_and_overlap():
    points = np.array([[0.0], [1.0], [2.0], [10.0], [11.0], [5.0]])
    found = cluster(points @ points.T, 2)
    assert found.labels.tolist() == [0, 0, 0, 1, 1, 0]
    assert found.members(0).tolist() == [0, 1, 2, 5]
    assert found.members(1).tolist() == [3, 4]
    assert found.members(1, overlap=0.5).tolist() == [3, 4, 5]
    assert found.members(1, at_least=4).tolist() == [3, 4, 5, 2]
    assert found.members(1, at_least=100).size == 6
    with pytest.raises(InputError, match="no cluster 2"):
        found.members(2)
    with pytest.raises(InputError, match="overlap is -1"):
        found.members(0, overlap=-1.0)


@pytest.mark.parametrize("method", ["means", "medoids"])
def test_what_cannot_be_clustered_is_refused(method):
    columns, _ = planted()
    products = gram(columns)
    with pytest.raises(InputError, match="28 clusters of 27 items"):
        cluster(kernel(products), 28, method=method)
    with pytest.raises(InputError, match="0 clusters of 27 items"):
        cluster(kernel(products), 0, method=method)
    repeated = gram(columns[:, [0, 0, 1, 1, 1]])
    with pytest.raises(InputError, match="ask for at most 2"):
        cluster(kernel(repeated), 3, method=method)
    with pytest.raises(InputError, match="ask for at most 1"):
        cluster(kernel(np.zeros((4, 4))), 2, method=method)
    products[3, 4] = np.nan
    with pytest.raises(InputError, match="NaN or Inf in row 3"):
        kernel(products)
    with pytest.raises(InputError, match="choose 'means' or 'medoids'"):
        cluster(kernel(gram(columns)), 2, method="mean")
    with pytest.raises(InputError, match="'cosine' is unknown"):
        kernel(gram(columns), "cosine")


@pytest.mark.parametrize("kind", KINDS)
def test_zero_snapshots_are_finite_and_far(kind):
    columns = np.random.default_rng(4).standard_normal((6, 4))
    columns[:, 2] = 0.0
    separation = distances(kernel(gram(columns), kind))
    assert np.all(np.isfinite(separation))
    assert np.all(np.delete(separation[2], 2) > 0.0)


@pytest.mark.parallel([1, 2, 3])
def test_errors_and_labels_reach_all_ranks():
    comm = MPI.COMM_WORLD
    columns, labels = planted()
    products = kernel(gram(columns))
    for found in (cluster(products, 3, comm=comm), cluster_subspaces(gram(columns), 3, 3, starts=2, comm=comm)):
        assert same_partition(found.labels, labels)
        assert all(np.array_equal(found.labels, other) for other in comm.allgather(found.labels))
    with pytest.raises(InputError, match="40 clusters"):
        cluster(products, 40, comm=comm)
