"""Gaussian random fields as functions of the coordinates, the same on every mesh and rank count."""

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from pdeopt.parallel import random_stream
from pdeopt.problems.linear import check_range

_POINTS_AT_ONCE = 4096  # bounds the memory of the points x features table to some tens of MB


@dataclasses.dataclass(frozen=True)
class GaussianRandomField:
    r"""A sample of a stationary random field Z with mean 0 and variance 1.

    The sample is a sum of m random waves (random Fourier features),

        Z(x) = m^{-1/2} sum_j  a_j cos(w_j . x) + b_j sin(w_j . x),    a_j, b_j ~ N(0, 1),

    whose wave vectors w_j are drawn from the spectral density of the covariance, so that with r = abs(x - y)

        Cov(Z(x), Z(y)) = exp(-r^2 / (2 l^2))                                                      (s infinite)
        Cov(Z(x), Z(y)) = 2^{1-s} / Gamma(s) t^s K_s(t),   t = sqrt(2 s) r / l                   (Matern, s finite)

    exactly in the mean over seeds. Each seed is a function of x alone: ranks, partition and mesh do not enter.

    Parameters
    ----------
    correlation_length
        l > 0, in the unit of the coordinates.
    seed
        Number of the sample, >= 0.
    dimension
        Number of coordinates that the field depends on, 1 to 3.
    smoothness
        s > 0: samples are (almost) s times differentiable; 1/2 is the exponential covariance.
    features
        Number m of waves. Points see a Gaussian distribution up to O(1/m); below about 100 single waves show.

    References
    ----------
    Rahimi and Recht, Random features for large-scale kernel machines, NeurIPS 2007.
    """

    correlation_length: float
    seed: int = 0
    dimension: int = 2
    smoothness: float = math.inf
    features: int = 512

    def __post_init__(self) -> None:
        check_range("correlation_length", self.correlation_length, 0.0)
        check_range("dimension", self.dimension, 0, 4)
        check_range("features", self.features, 0)
        if self.smoothness != math.inf:
            check_range("smoothness", self.smoothness, 0.0)

    def __call__(self, x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Evaluate the field.

        Parameters
        ----------
        x
            Coordinates, shape (>= dimension, points), as DOLFINx's ``Function.interpolate`` hands them over.

        Returns
        -------
        values
            Shape (points,), dimensionless.

        Collective: no.
        """
        stream = random_stream("problems.gaussian_random_field", self.seed)
        waves = stream.standard_normal((self.features, self.dimension)) / self.correlation_length
        cosine_weights, sine_weights = stream.standard_normal((2, self.features)) / math.sqrt(self.features)
        if self.smoothness != math.inf:
            # The Matern spectral density is that of the multivariate t distribution with 2 s degrees of freedom.
            freedom = 2.0 * self.smoothness
            waves *= np.sqrt(freedom / stream.chisquare(freedom, self.features))[:, None]
        values = np.empty(x.shape[1])
        for start in range(0, x.shape[1], _POINTS_AT_ONCE):
            part = slice(start, start + _POINTS_AT_ONCE)
            angles = x[: self.dimension, part].T @ waves.T
            values[part] = np.cos(angles) @ cosine_weights + np.sin(angles) @ sine_weights
        return values
