"""What the best weights of an interpolation could save: gradient descent on the convergence factor, for each matrix.

Two levels, the coarse one solved exactly, damped Jacobi before and after. With E = (I - P A_c^-1 P'A)(I - W D^-1 A) the
error shrinks by at most the largest value of |E z|_A^2 / |z|_A^2. Weights P on the pattern of the constant method, and
W, descend on its mean over the slowest vectors, iterated along, and random ones after some cycles. As A_c^-1 P'A is the
best coarse correction in the norm of A, its own derivative drops out.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pdeopt.parallel import random_stream

type Array = npt.NDArray[np.float64]

_SLOW, _RANDOM = 16, 40  # vectors
_PRICE = 10  # passes over the matrix that the evaluation of a network is taken to cost


class Saving(NamedTuple):
    """Iterations of conjugate gradients over two levels, by the constant method and by the best weights found."""

    constant: int
    oracle: int


def best_weights(A: Any, interpolation: Any, steps: int) -> Saving:
    """Descend, and keep the weights with the fewest iterations, which may be those at the start.

    Parameters
    ----------
    A
        scipy's csr_array or csr_matrix, symmetric positive definite.
    interpolation
        Its entries are where the descent starts, and its pattern.
    steps
        Of gradient descent; every tenth is judged by its iterations.

    Collective: no.
    """
    stream = random_stream("bench.linear_weights", 0)
    diagonal, count = A.diagonal(), A.shape[0]
    largest = _largest_eigenvalue(A, diagonal, stream)
    b = stream.standard_normal(count)
    P = interpolation.tocsr().copy()
    damping, constant = min(
        ((value, _iterations(_TwoLevels(A, P, np.full(count, value / largest)), b)) for value in (1.0, 1.3, 1.5, 1.7)),
        key=lambda found: found[1],
    )
    row = np.repeat(np.arange(count), np.diff(P.indptr))
    entries = np.maximum(np.diff(P.indptr), 1)
    keeps_ones = (np.abs(np.asarray(P.sum(axis=1)).ravel() - 1.0) < 1e-6)[row]
    W = np.full(count, damping / largest)
    slow = stream.standard_normal((count, _SLOW))
    momentum, momentum_W, best = np.zeros(P.nnz), np.zeros(count), constant
    for step in range(steps):
        cycle = _TwoLevels(A, P, W)
        for _ in range(4 if step == 0 else 1):
            slow -= cycle(A @ slow)
            slow /= np.sqrt(np.einsum("ij,ij->j", slow, A @ slow))
        if step % 5 == 0:
            slow = np.linalg.qr(slow * np.sqrt(diagonal)[:, None])[0] / np.sqrt(diagonal)[:, None]
        noise = stream.standard_normal((count, _RANDOM)) / np.sqrt(diagonal)[:, None]
        for _ in range(1 + step % 3):
            noise -= cycle(A @ noise)
        vectors = np.hstack([slow, noise])
        image = A @ vectors
        norms = np.sqrt(np.einsum("ij,ij->j", vectors, image))
        vectors, image = vectors / norms, image / norms
        jacobi = image / diagonal[:, None]
        smoothed = vectors - W[:, None] * jacobi
        coarse = cycle.coarse(A @ smoothed)
        residual = A @ (smoothed - P @ coarse)
        factors = np.einsum("ij,ij->j", smoothed - P @ coarse, residual)
        curvature = np.einsum("jk,jk,k->j", coarse, coarse, factors)[P.indices]
        slope = -np.einsum("ij,ij->i", residual[row] * factors, coarse[P.indices])
        slope /= diagonal[row] * (curvature + 1e-3 * curvature.mean())
        slope -= np.where(keeps_ones, (np.bincount(row, slope, count) / entries)[row], 0.0)
        momentum = 0.7 * momentum + slope
        rate = 0.075 if step < 0.6 * steps else 0.025
        P.data -= rate * momentum
        curvature = np.einsum("ij,ij,j->i", jacobi, jacobi, factors) * diagonal
        slope = -np.einsum("ij,ij,j->i", residual, jacobi, factors) / (curvature + 1e-3 * curvature.mean())
        momentum_W = 0.7 * momentum_W + slope
        W = np.clip(W - rate * momentum_W, 0.3 / largest, 1.9 / largest)
        if step % 10 == 9:
            best = min(best, _iterations(_TwoLevels(A, P, W), b))
    return Saving(constant, best)


def over_constant(saving: Saving, setup: float, solve: float, one_pass: float) -> float:
    """Return the total time with the best weights over that without, the network at its price. Collective: no."""
    return (setup + _PRICE * one_pass + solve * saving.oracle / saving.constant) / (setup + solve)


class _TwoLevels:
    """x = cycle(r) for arrays of shape (n,) or (n, m)."""

    def __init__(self, A: Any, P: Any, W: Array) -> None:
        from scipy.sparse.linalg import splu

        self._A, self._P, self._restriction = A, P, P.T.tocsr()
        self._scale = W / A.diagonal()
        matrix = (self._restriction @ (A @ P)).tocsc()
        self._factor = splu(matrix, permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True})

    def coarse(self, r: Array) -> Array:
        """Return the coarse correction's coordinates."""
        return self._factor.solve(self._restriction @ r)

    def __call__(self, r: Array) -> Array:
        scale = self._scale[:, None] if r.ndim > 1 else self._scale
        x = scale * r
        x = x + self._P @ self.coarse(r - self._A @ x)
        return x + scale * (r - self._A @ x)


def _iterations(cycle: _TwoLevels, b: Array, limit: int = 500) -> int:
    """Return the iterations of conjugate gradients to a relative residual of 1e-8."""
    r, x = b.copy(), np.zeros_like(b)
    z = cycle(r)
    p, rho = z.copy(), r @ z
    for count in range(1, limit + 1):
        q = cycle._A @ p
        alpha = rho / (p @ q)
        x, r = x + alpha * p, r - alpha * q
        if np.linalg.norm(r) < 1e-8 * np.linalg.norm(b):
            return count
        z = cycle(r)
        rho, former = r @ z, rho
        p = z + rho / former * p
    return limit


def _largest_eigenvalue(A: Any, diagonal: Array, stream: np.random.Generator, steps: int = 20) -> float:
    vector, value = stream.standard_normal(A.shape[0]), 1.0
    for _ in range(steps):
        image = (A @ vector) / diagonal
        value = float(np.linalg.norm(image * np.sqrt(diagonal)) / np.linalg.norm(vector * np.sqrt(diagonal)))
        vector = image / np.linalg.norm(image)
    return 1.05 * value
