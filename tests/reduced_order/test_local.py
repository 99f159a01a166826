"""Local bases, and the prediction of their gain from a coarse mesh."""

from mpi4py import MPI

import dolfinx
import numpy as np
import pytest

from pdeopt.reduced_order import InnerProduct, LocalBases, Snapshots, cluster, predicted_gain
from pdeopt.reduced_order.dissimilarity import kernel
from pdeopt.reduced_order.gain import projection_errors
from pdeopt.report import InputError

WORLD = MPI.COMM_WORLD


def moving_bumps(comm, cells=16, count=60, seed=0):
    """Return snapshots exp(-20 |x - c|^2) of mixed signs and sizes on a unit square, c in it."""
    space = dolfinx.fem.functionspace(dolfinx.mesh.create_unit_square(comm, cells, cells), ("Lagrange", 1))
    stream = np.random.default_rng(seed)
    centres, sizes = stream.uniform(0.0, 1.0, (count, 2)), stream.uniform(1.0, 9.0, count)
    sizes *= stream.choice([-1.0, 1.0], count)
    snapshots, field = Snapshots(InnerProduct(space), parameter_size=2), dolfinx.fem.Function(space)
    for centre, size in zip(centres, sizes, strict=True):
        field.interpolate(lambda x, c=centre, s=size: s * np.exp(-20.0 * ((x[0] - c[0]) ** 2 + (x[1] - c[1]) ** 2)))
        snapshots.append(field, centre)
    return snapshots


@pytest.mark.parallel([1, 2, 3])
def test_local_bases_beat_one_of_equal_size_and_are_the_same_on_all_ranks():
    snapshots, unseen = moving_bumps(WORLD), moving_bumps(WORLD, count=20, seed=1)
    clustering = cluster(kernel(snapshots.gram()), 4, comm=WORLD)
    local = LocalBases(snapshots, clustering, 6)
    assert [basis.size for basis in local.bases] == [6] * 4
    errors = local.errors(unseen.columns)
    one = LocalBases(snapshots, cluster(kernel(snapshots.gram()), 1), 6).errors(unseen.columns)
    assert errors.shape == (4, 20)
    assert errors.min(axis=0).mean() < 0.5 * one[0].mean()

    alone = moving_bumps(MPI.COMM_SELF)
    serial = LocalBases(alone, cluster(kernel(alone.gram()), 4), 6)
    assert np.array_equal(serial.clustering.labels, clustering.labels)
    theirs = serial.errors(moving_bumps(MPI.COMM_SELF, count=20, seed=1).columns)
    np.testing.assert_allclose(errors, theirs, rtol=1e-10)


def test_signs_and_scales_change_nothing():
    snapshots = moving_bumps(MPI.COMM_SELF)
    other = Snapshots(snapshots.inner_product)
    other.extend(snapshots.columns * np.random.default_rng(2).choice([-3.0, 0.1], 60))
    first, second = (LocalBases(s, cluster(kernel(s.gram()), 4), 6) for s in (snapshots, other))
    np.testing.assert_allclose(first.errors(snapshots.columns), second.errors(snapshots.columns), atol=1e-9)


def test_zero_snapshots_small_clusters_and_wrong_sizes():
    snapshots = moving_bumps(MPI.COMM_SELF, cells=8, count=12)
    snapshots.append(np.zeros(snapshots.inner_product.owned), np.zeros(2))
    clustering = cluster(kernel(snapshots.gram()), 6)
    assert [basis.size for basis in LocalBases(snapshots, clustering, 5).bases] == [5] * 6
    with pytest.raises(InputError, match="13 items were clustered and there are 2 trajectories"):
        LocalBases(snapshots, clustering, 5, trajectories=np.repeat([0, 1], [6, 7]))
    with pytest.raises(InputError, match="without a gap"):
        LocalBases(snapshots, clustering, 5, trajectories=np.repeat([0, 2], [6, 7]))


def test_errors_by_the_gram_matrix_are_those_of_the_fields():
    snapshots = moving_bumps(MPI.COMM_SELF)
    training, targets = np.arange(40), np.arange(40, 60)
    one = cluster(kernel(snapshots.subset(training).gram()), 1)
    fields = LocalBases(snapshots.subset(training), one, 7, relative=False).errors(snapshots.columns[:, targets])
    norms = snapshots.norms()[targets]
    errors = projection_errors(snapshots.gram(), training, targets)
    np.testing.assert_allclose(errors[7] / norms, fields[0], rtol=1e-6)
    assert errors.shape == (61, 20)
    np.testing.assert_allclose(errors[0], norms)


@pytest.mark.parallel([1, 2])
def test_the_gain_is_predicted_by_a_coarse_mesh_and_said():
    coarse, fine = (
        predicted_gain(moving_bumps(WORLD, cells).gram(), 4, 6, folds=6, starts=4, comm=WORLD) for cells in (12, 24)
    )
    assert coarse.ratio == pytest.approx(fine.ratio, rel=0.1)
    assert coarse.ratio < 0.6
    assert coarse.worthwhile
    assert "local bases are worth it" in str(coarse)


def test_no_gain_is_predicted_where_one_basis_has_it_all():
    stream = np.random.default_rng(0)
    columns = stream.standard_normal((50, 5)) @ stream.standard_normal((5, 40))
    gram = columns.T @ columns + 1e-6 * np.eye(40)
    gain = predicted_gain(gram, 3, 5, folds=4, starts=2)
    assert not gain.worthwhile
    assert "one basis with more modes is simpler" in str(gain)
    with pytest.raises(InputError, match="41 modes of 40"):
        predicted_gain(gram, 3, 41)
    with pytest.raises(InputError, match="1 folds of 40"):
        predicted_gain(gram, 3, 5, folds=1)
    gram[7] = gram[:, 7] = 0.0
    with pytest.raises(InputError, match="snapshot 7 is zero"):
        predicted_gain(gram, 3, 5)
