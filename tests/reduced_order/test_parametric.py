"""Clusters by the parameters that matter: which these are, against planted ones, and what must not matter."""

from mpi4py import MPI

import numpy as np
import pytest

from pdeopt.reduced_order.clustering import cluster
from pdeopt.reduced_order.dissimilarity import kernel
from pdeopt.reduced_order.gain import local_projection_errors, predicted_gain
from pdeopt.reduced_order.parametric import cluster_by_parameters
from pdeopt.report import InputError

CLUSTERS, MODES = 4, 6


def loads(count, seed=0):
    """Return bumps at a place t, of which a direction mixes two components, their products, and their parameters.

    The parameters are the place, the direction, and a number that changes nothing.
    """
    stream = np.random.default_rng(seed)
    place, direction, nothing = stream.uniform(0.0, 1.0, (3, count))
    points = np.linspace(0.0, 1.0, 60)[:, None]
    bumps = np.exp(-0.5 * ((points - place) / 0.12) ** 2)
    columns = np.vstack([np.cos(np.pi * direction) * bumps, np.sin(np.pi * direction) * bumps])
    return columns.T @ columns, np.column_stack([place, direction, nothing])


def unseen_error(products, clustering, training, unseen):
    norms = np.sqrt(np.diag(products))
    groups = list(np.arange(len(products))[:, None])
    relative = products / np.outer(norms, norms)
    return local_projection_errors(relative, clustering, MODES, groups, training, unseen).min(axis=0).mean()


def test_clusters_follow_the_parameter_that_matters():
    products, parameters = loads(110)
    training, unseen = np.arange(70), np.arange(70, 110)
    part = products[np.ix_(training, training)]
    found = cluster_by_parameters(part, parameters[training], CLUSTERS, MODES)
    # Intervals of the place: along it the label changes as often as there are borders.
    along = found.labels[np.argsort(parameters[training, 0])]
    assert np.count_nonzero(np.diff(along)) == CLUSTERS - 1
    error = unseen_error(products, found, training, unseen)
    oracle = cluster(np.outer(parameters[training, 0], parameters[training, 0]), CLUSTERS)
    assert error < 1.1 * unseen_error(products, oracle, training, unseen)
    for other in (kernel(part), parameters[training] @ parameters[training].T):
        assert error < 0.7 * unseen_error(products, cluster(other, CLUSTERS), training, unseen)


def test_angles_decide_where_the_parameters_say_nothing():
    stream = np.random.default_rng(1)
    axes = np.linalg.qr(stream.standard_normal((30, 3)))[0]
    labels = np.arange(45) % 3
    columns = axes[:, labels] + 0.05 * stream.standard_normal((30, 45))
    found = cluster_by_parameters(columns.T @ columns, stream.standard_normal((45, 2)), 3, 2)
    assert np.array_equal(found.labels, labels)


def test_signs_sizes_and_units_change_nothing():
    products, parameters = loads(60, seed=2)
    first = cluster_by_parameters(products, parameters, CLUSTERS, MODES)
    stream = np.random.default_rng(3)
    factors = stream.choice([-1.0, 1.0], 60) * stream.uniform(0.1, 10.0, 60)
    # Other units and origins, one parameter that never changes, and one that is the sign.
    others = np.column_stack([parameters * [1e3, 1e-3, 7.0] + [5.0, 0.0, 1.0], np.full(60, 0.3), np.sign(factors)])
    second = cluster_by_parameters(products * np.outer(factors, factors), others, CLUSTERS, MODES)
    assert np.array_equal(first.labels, second.labels)


def test_whole_trajectories_are_clustered():
    products, parameters = loads(80, seed=4)
    # Four steps each, near one place.
    order = np.argsort(parameters[:, 0])
    products, parameters = products[np.ix_(order, order)], parameters[order].reshape(20, 4, 3).mean(axis=1)
    found = cluster_by_parameters(products, parameters, 3, MODES, trajectories=np.repeat(np.arange(20), 4))
    assert np.array_equal(found.labels, np.sort(found.labels))
    assert found.count == 3


def test_gain_with_parameters_is_larger_where_they_tell_more():
    products, parameters = loads(90, seed=5)
    with_them = predicted_gain(products, CLUSTERS, MODES, parameters=parameters, folds=3)
    without = predicted_gain(products, CLUSTERS, MODES, folds=3, starts=2)
    assert with_them.local_error < without.local_error
    with pytest.raises(InputError, match="89 rows of parameters for 90 items"):
        predicted_gain(products, CLUSTERS, MODES, parameters=parameters[1:], folds=3)


def test_few_snapshots_keep_to_their_fields_where_parameters_say_nothing():
    stream = np.random.default_rng(6)
    kept = 0
    for seed in range(5):
        products, _ = loads(16, seed)
        found = cluster_by_parameters(products, stream.standard_normal((16, 3)), 3, MODES)
        kept += np.array_equal(found.labels, cluster(kernel(products, "aligned"), 3).labels)
    assert kept == 5


def test_trajectories_may_differ_in_length_or_in_the_order_of_their_steps_alone():
    products, parameters = loads(80, seed=4)
    order = np.argsort(parameters[:, 0])
    products, parameters = products[np.ix_(order, order)], parameters[order]
    lengths = np.tile([3, 5], 10)
    trajectories = np.repeat(np.arange(20), lengths)
    means = np.array([parameters[trajectories == number].mean(axis=0) for number in range(20)])
    found = cluster_by_parameters(products, means, 3, MODES, trajectories=trajectories)
    assert np.array_equal(found.labels, np.sort(found.labels))
    # Two steps to and fro: all covariances are the same.
    reverse = np.array([[0, 1], [1, 0]] * 4).ravel()
    both = products[np.ix_([0, 79], [0, 79])][np.ix_(reverse, reverse)]
    found = cluster_by_parameters(both, np.zeros((8, 1)), 2, 1, trajectories=np.repeat(np.arange(8), 2))
    assert np.array_equal(found.labels, np.arange(8) % 2)


@pytest.mark.parallel([1, 2, 3])
def test_labels_and_errors_reach_all_ranks():
    comm = MPI.COMM_WORLD
    products, parameters = loads(40)
    labels = cluster_by_parameters(products, parameters, 3, 4, comm=comm).labels
    assert all(np.array_equal(labels, other) for other in comm.allgather(labels))
    assert cluster_by_parameters(products, parameters, 1, 4, comm=comm).count == 1
    with pytest.raises(InputError, match=r"parameters of the shape \(39, 3\) for 40 items"):
        cluster_by_parameters(products, parameters[1:], 3, 4, comm=comm)
    parameters[7, 1] = np.nan
    with pytest.raises(InputError, match="finite numbers"):
        cluster_by_parameters(products, parameters, 3, 4, comm=comm)
    with pytest.raises(InputError, match="41 clusters of 40 items"):
        cluster_by_parameters(products, np.nan_to_num(parameters), 41, 4, comm=comm)
    with pytest.raises(InputError, match="0 modes"):
        cluster_by_parameters(products, np.nan_to_num(parameters), 3, 0, comm=comm)
