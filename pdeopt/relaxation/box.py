"""Least squares with its coefficients in a box, from the normal equations: small, dense, solved often."""

import math


def box_least_squares(
    gram: list[list[float]], moment: list[float], bound: list[float], start: list[float], sweeps: int
) -> list[float]:
    """Return an approximate minimiser of x.G x / 2 - m.x over |x_j| <= bound_j.

    Coordinate descent: every coefficient in turn goes to the minimiser along its axis, cut at the box. It converges for
    every positive definite G, and a start near the minimiser needs few sweeps. Lists, because for half a dozen
    coefficients every call of NumPy takes as long as a sweep of this.

    Parameters
    ----------
    gram, moment
        G (n, n), symmetric positive definite, and m (n).
    bound
        Half widths (n), >= 0.
    start
        Where to begin (n).
    sweeps
        Sweeps over the coefficients.

    Collective: no.
    """
    x = start.copy()
    for _ in range(sweeps):
        for j, row in enumerate(gram):
            width, value = bound[j], x[j] + (moment[j] - math.sumprod(row, x)) / row[j]
            x[j] = width if value > width else -width if value < -width else value
    return x
