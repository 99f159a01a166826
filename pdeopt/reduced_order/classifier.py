"""From a parameter to the local basis: a classifier proposes, the reduced residual overrules it.

The classifier is one of scikit-learn (extra ``reduced``), chosen by cross-validation. It lives on rank 0; the ranking
of the bases that it proposes is handed to all ranks.
"""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any, Protocol

from mpi4py import MPI

import numpy as np

from pdeopt.parallel import on_root
from pdeopt.reduced_order._packages import require_package
from pdeopt.reduced_order.dissimilarity import Indices
from pdeopt.reduced_order.inner_product import Array
from pdeopt.report import ConvergenceError, InputError

# Reduced coordinates in the basis of a label, and the relative dual norm of the residual there (or another indicator).
type LocalSolver = Callable[[int, Array], tuple[Array, float]]


class Ranking(Protocol):
    """What proposes local bases."""

    def ranking(self, feature: Array, /) -> Indices:
        """Return all labels for one parameter, the most probable first. Collective: yes."""


class BasisClassifier:
    """Ranks the local bases by how probable it is that a parameter belongs to their clusters.

    Nearest neighbours, logistic regression and a random forest are compared by their accuracy on held-out parameters;
    the best one, the first if equal, is trained on all of them.

    Parameters
    ----------
    features
        Parameters of the snapshots, or features that are as cheap, shape (n, p). They are scaled to unit variance.
    labels
        Their clusters, shape (n,), every number from 0 to the greatest at least once.
    folds
        Folds of the cross-validation; fewer where there are fewer snapshots.
    seed
        Of the folds and of the forest.
    comm
        Communicator; the same features and labels are on all its ranks.

    Attributes
    ----------
    count
        Number of labels.
    accuracies
        Share of held-out parameters that each candidate got right; empty if there is one label only.
    chosen
        Name of the candidate that was taken.

    Raises
    ------
    InputError
        If shapes do not fit, features are not finite, or a label has no parameter.
    MissingPackageError
        If scikit-learn is absent.

    Collective: yes.
    """

    def __init__(
        self, features: Array, labels: Indices, *, folds: int = 5, seed: int = 0, comm: MPI.Comm = MPI.COMM_SELF
    ) -> None:
        self.comm = comm
        self._features = features.shape[1] if features.ndim == 2 else 0
        self._model: Any = None

        def train() -> tuple[int, dict[str, float], str]:
            count = _check(features, labels)
            self._model, accuracies, chosen = train_classifier(features, labels, folds, seed)
            return count, accuracies, chosen

        self.count, self.accuracies, self.chosen = on_root(comm, train)

    def ranking(self, feature: Array) -> Indices:
        """Return all labels, the most probable first, for one parameter of shape (p,). Collective: yes.

        Raises
        ------
        InputError
            If the parameter has another size than those of the training, or is not finite.
        """
        return on_root(self.comm, lambda: self._ranking(np.asarray(feature, dtype=np.float64)))

    def _ranking(self, feature: Array) -> Indices:
        if feature.shape != (self._features,) or not np.all(np.isfinite(feature)):
            raise InputError(f"the parameter is {feature}: give {self._features} finite numbers, as in the training")
        if self._model is None:
            return np.zeros(1, dtype=np.int64)
        return np.argsort(-self._model.predict_proba(feature[None, :])[0], kind="stable")


def train_classifier(features: Array, labels: Indices, folds: int, seed: int) -> tuple[Any, dict[str, float], str]:
    """Return the best model, the candidates' accuracies and its name; no model for one label. Collective: no."""
    if labels.max() == 0:
        return None, {}, "one basis"
    selection, pipeline = require_package("sklearn.model_selection"), require_package("sklearn.pipeline")
    scaler = require_package("sklearn.preprocessing").StandardScaler
    neighbours = require_package("sklearn.neighbors").KNeighborsClassifier
    forest = require_package("sklearn.ensemble").RandomForestClassifier
    logistic = require_package("sklearn.linear_model").LogisticRegression
    candidates = {
        "nearest neighbours": neighbours(min(5, labels.size), weights="distance"),
        "logistic regression": logistic(C=100.0, max_iter=1000),
        "random forest": forest(100, random_state=seed),
    }
    models = {name: pipeline.make_pipeline(scaler(), model) for name, model in candidates.items()}
    parts = selection.KFold(min(folds, labels.size), shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a part without some label counts as wrong there
        accuracies = {
            name: float(np.mean(selection.cross_val_score(model, features, labels, cv=parts, error_score=0.0)))
            for name, model in models.items()
        }
        chosen = max(accuracies, key=lambda name: accuracies[name])
        return models[chosen].fit(features, labels), accuracies, chosen


@dataclasses.dataclass(frozen=True, eq=False)
class LocalSolution:
    """The answer of the basis that was kept.

    Parameters
    ----------
    label
        Number of the basis.
    coordinates
        Reduced coordinates in it.
    residual
        What the solver returned with them.
    tried
        The bases that were tried, in their order.
    accepted
        Whether the residual is within the limit.
    """

    label: int
    coordinates: Array
    residual: float
    tried: tuple[int, ...]
    accepted: bool


class CheckedChoice:
    """Solve in the proposed basis; where its residual is larger than usual, try the others in the proposed order.

    Parameters
    ----------
    classifier
        Such as `BasisClassifier`.
    solve
        Called with a label and a parameter; returns the reduced coordinates and a *relative* residual norm (or
        indicator), alike on all ranks. A solve that fails returns inf or NaN for it.
    limit
        Residual up to which the first answer is taken; `calibrate` sets it. Until then every basis is tried.

    Notes
    -----
    Residuals in different bases are compared with each other, so they must be those of the same full equations.
    """

    def __init__(self, classifier: Ranking, solve: LocalSolver, limit: float = 0.0) -> None:
        self.classifier, self.limit, self._solve = classifier, limit, solve

    def calibrate(self, parameters: Array, coverage: float = 0.9) -> float:
        """Set the limit to what the best basis reaches for a share of parameters that were not trained on.

        Parameters
        ----------
        parameters
            Shape (n, p), unseen in the training.
        coverage
            The share, between 0 and 1.

        Collective: yes; it solves in every basis for every parameter.
        """
        if not 0.0 < coverage <= 1.0 or not len(parameters):
            raise InputError(f"coverage {coverage} of {len(parameters)} parameters: give 0 < coverage <= 1 and some")
        self.limit = 0.0
        residuals = [self(parameter).residual for parameter in parameters]
        self.limit = float(np.quantile(residuals, coverage, method="inverted_cdf"))
        return self.limit

    def __call__(self, parameter: Array) -> LocalSolution:
        """Return the first answer within the limit, or the best of all.

        Raises
        ------
        ConvergenceError
            If no basis gives a finite residual.

        Collective: yes.
        """
        tried: list[int] = []
        best: tuple[float, int, Array] | None = None
        for label in map(int, self.classifier.ranking(parameter)):
            coordinates, residual = self._solve(label, parameter)
            tried.append(label)
            if np.isfinite(residual) and (best is None or residual < best[0]):
                best = residual, label, coordinates
            if residual <= self.limit:
                break
        if best is None:
            raise ConvergenceError(
                f"none of the {len(tried)} local bases gave a finite residual for the parameter {parameter}: "
                "it may be far out of the range of the snapshots"
            )
        return LocalSolution(best[1], best[2], best[0], tuple(tried), best[0] <= self.limit)


def _check(features: Array, labels: Indices) -> int:
    if features.ndim != 2 or labels.shape != (features.shape[0],) or not labels.size:
        raise InputError(
            f"features {features.shape} and labels {labels.shape} do not fit: give (n, p) numbers and n labels"
        )
    if not np.all(np.isfinite(features)):
        row = int(np.flatnonzero(~np.all(np.isfinite(features), axis=1))[0])
        raise InputError(f"the features of snapshot {row} are {features[row]}: give finite numbers")
    present = np.unique(labels)
    if not np.array_equal(present, np.arange(present.size)):
        raise InputError(f"labels {present.tolist()} are not 0, 1, ... without a gap: number the clusters so")
    return int(present.size)
