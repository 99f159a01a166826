"""The classifier of local bases, and the residual that overrules it."""

from mpi4py import MPI

import numpy as np
import pytest

from pdeopt.reduced_order.classifier import BasisClassifier, CheckedChoice
from pdeopt.report import ConvergenceError, InputError


def quadrants(count=120, seed=0):
    points = np.random.default_rng(seed).uniform(-1.0, 1.0, (count, 2))
    return points * [1.0, 1e3], (points[:, 0] > 0.0) + 2 * (points[:, 1] > 0.0)


@pytest.mark.parallel([1, 2, 3])
def test_quadrants_are_learned_whatever_the_units():
    comm = MPI.COMM_WORLD
    features, labels = quadrants()
    classifier = BasisClassifier(features, labels, comm=comm)
    unseen, truth = quadrants(60, seed=1)
    rankings = np.array([classifier.ranking(feature) for feature in unseen])
    assert np.mean(rankings[:, 0] == truth) > 0.9
    assert np.array_equal(np.sort(rankings, axis=1), np.tile(np.arange(4), (60, 1)))
    assert classifier.accuracies[classifier.chosen] == max(classifier.accuracies.values()) > 0.85
    assert all(np.array_equal(rankings, other) for other in comm.allgather(rankings))
    with pytest.raises(InputError, match="2 finite numbers"):
        classifier.ranking(np.array([1.0, np.nan]))


def test_one_label_and_few_snapshots():
    classifier = BasisClassifier(np.arange(3.0)[:, None], np.zeros(3, dtype=int))
    assert classifier.ranking(np.array([7.0])).tolist() == [0]
    assert BasisClassifier(np.arange(3.0)[:, None], np.array([0, 0, 1])).ranking(np.array([2.0])).tolist() == [1, 0]


def test_what_cannot_be_learned_is_refused():
    features, labels = quadrants(20)
    with pytest.raises(InputError, match="do not fit"):
        BasisClassifier(features, labels[:-1])
    with pytest.raises(InputError, match="without a gap"):
        BasisClassifier(features, 2 * labels)
    features[3] = np.nan
    with pytest.raises(InputError, match="snapshot 3"):
        BasisClassifier(features, labels)


class Planted:
    """Proposes wrongly where the parameter is negative."""

    def ranking(self, feature):
        return np.array([0, 1, 2]) if feature[0] > 0.0 else np.array([2, 1, 0])


def solve(label, parameter):
    """The residual is small in basis 0, if the parameter is within reach; basis 2 fails."""
    residual = [1e-3, 0.5, np.nan][label] * (1.0 + 10.0 * (abs(parameter[0]) > 1.0))
    return np.array([float(label)]), residual


def test_a_wrong_proposal_is_overruled_by_its_residual():
    choice = CheckedChoice(Planted(), solve, limit=2e-3)
    right, wrong = choice(np.array([0.5])), choice(np.array([-0.5]))
    assert (right.label, right.tried, right.accepted) == (0, (0,), True)
    assert (wrong.label, wrong.tried, wrong.accepted) == (0, (2, 1, 0), True)
    assert wrong.coordinates == [0.0]
    outside = choice(np.array([2.0]))
    assert (outside.label, len(outside.tried), outside.accepted) == (0, 3, False)


def test_the_limit_is_that_of_the_best_basis_for_a_share_of_parameters():
    choice = CheckedChoice(Planted(), lambda label, mu: (mu, label + 0.01 * mu[0]))
    assert choice.calibrate(np.arange(1.0, 21.0)[:, None], coverage=0.9) == pytest.approx(0.18)
    assert [choice(np.array([mu])).accepted for mu in (18.0, 19.0)] == [True, False]
    with pytest.raises(InputError, match="coverage 2"):
        choice.calibrate(np.ones((3, 1)), coverage=2.0)


def test_no_finite_residual_is_an_error():
    with pytest.raises(ConvergenceError, match="none of the 3 local bases"):
        CheckedChoice(Planted(), lambda label, mu: (mu, np.inf), limit=1.0)(np.array([1.0]))
