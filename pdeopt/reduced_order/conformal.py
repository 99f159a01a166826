"""Split conformal calibration: the factor on an indicator, with the coverage that the number of runs can promise."""

import dataclasses
import math

import numpy as np

from pdeopt.reduced_order.inner_product import Array
from pdeopt.report import InputError


@dataclasses.dataclass(frozen=True)
class Calibration:
    """A factor on an indicator.

    Parameters
    ----------
    factor
        True error <= factor * indicator, with the probability ``coverage`` for a new run drawn as the calibration runs
        were.
    coverage
        The probability promised, k / (n + 1).
    runs
        n.
    """

    factor: float
    coverage: float
    runs: int


def calibrate(errors: Array, indicators: Array, coverage: float) -> Calibration:
    """Return the least factor with a coverage, from runs whose true errors are known.

    The k-th smallest of n ratios of error to indicator, k = ceil(coverage (n + 1)), is not exceeded by the ratio of
    another exchangeable run with a probability of k / (n + 1) at least (Vovk, Gammerman and Shafer, Algorithmic
    Learning in a Random World, 2005). Of a trajectory the greatest ratio counts, so that the promise is one for all of
    its steps together. Nothing is promised for runs from elsewhere.

    Parameters
    ----------
    errors
        True errors of the runs, shape (n,), or of their steps, shape (n, steps).
    indicators
        The indicator's values, in the same shape.
    coverage
        Probability between 0 and 1.

    Raises
    ------
    InputError
        If the shapes differ, a number is negative or NaN, or n runs cannot promise the coverage.

    Collective: no.
    """
    errors, indicators = np.asarray(errors, dtype=np.float64), np.asarray(indicators, dtype=np.float64)
    if errors.shape != indicators.shape or errors.ndim not in (1, 2) or errors.size == 0:
        raise InputError(
            f"errors have the shape {errors.shape} and indicators {indicators.shape}: give both as (n,) or (n, steps)"
        )
    if not ((errors >= 0.0).all() and (indicators >= 0.0).all()):
        raise InputError("errors or indicators are negative or NaN: leave out the runs that failed")
    if not 0.0 < coverage < 1.0:
        raise InputError(f"coverage is {coverage!r}: choose it between 0 and 1")
    runs = len(errors)
    needed = math.ceil(coverage * (runs + 1) * (1.0 - 1e-12))
    if needed > runs:
        more = math.ceil(coverage / (1.0 - coverage) * (1.0 - 1e-12))
        raise InputError(
            f"{runs} runs can promise a coverage of {runs}/{runs + 1} = {runs / (runs + 1):.4g} at most, and "
            f"{coverage:g} was asked for: calibrate with {more} runs or ask for less"
        )
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(errors > 0.0, errors / indicators, 0.0)  # an error that the indicator calls zero is infinite
    ratios = np.where(np.isnan(ratios), np.inf, ratios).reshape(runs, -1).max(axis=1)
    return Calibration(float(np.sort(ratios)[needed - 1]), needed / (runs + 1), runs)
