r"""What the best operators of the grid body could save: gradient descent through conjugate gradients, for each matrix.

Two levels, the coarse one solved exactly, with the grid body's interpolation P and incomplete factors: with
:math:`M = (D + L) D^{-1} (D + L^T)` and :math:`C = P (P^T A P)^{-1} P^T`, the cycle B takes r to
:math:`x_1 = M^{-1} r`, :math:`x_2 = x_1 + C (r - A x_1)`, :math:`B r = x_2 + M^{-1} (r - A x_2)`. The entries of L, P
and D descend on the logarithm of the error that k steps of conjugate gradients leave in the norm of A. As the lengths
of the steps minimise that norm, their own derivatives drop out: what remains is a linear recurrence in B.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from mpi4py import MPI

import numpy as np
import numpy.typing as npt

from pdeopt.bench.linear_families import LinearCase
from pdeopt.conjugate_directions import GridMultigrid
from pdeopt.conjugate_directions.grid_coarsening import coarsen
from pdeopt.conjugate_directions.grid_slabs import Slabs
from pdeopt.conjugate_directions.grid_smoother import Factors
from pdeopt.conjugate_directions.grid_stencils import Lattice
from pdeopt.parallel import random_stream

__all__ = ["System", "TwoLevels", "descend", "error_left", "iterations", "of_nodes", "shared", "system"]

type Array = npt.NDArray[Any]

_VECTORS = 6  # of each step of descent, drawn anew
_JUDGED = 5  # steps between two counts of iterations
_LIMIT = 100  # iterations
_FIRST_WEIGHT = 100  # number of the first array of interpolation weights


@dataclasses.dataclass(frozen=True)
class System:
    """A matrix, and the entries of the operators of its two-level cycle: first those of L, then of P, then of D.

    Parameters
    ----------
    A
        scipy's csr_array of shape (n, n), symmetric positive definite.
    b
        Right-hand side by which iterations are counted, shape (n,).
    solve
        Takes b to A^-1 b.
    rows, columns
        Where each entry is, shape (entries,).
    group
        Number of the entry's array in a stencil, 0 for D; -1 for what may not change.
    ends
        Where the entries of L and those of P end.
    values
        The entries themselves, as the body without learning has them.
    """

    A: Any
    b: Array
    solve: Any
    rows: Array
    columns: Array
    group: Array
    ends: tuple[int, int]
    values: Array


def system(case: LinearCase, keep: float) -> System:
    """Return a case's matrix with the grid body's own operators, in double precision.

    Parameters
    ----------
    case
        Of a structured family.
    keep
        Constant of the incomplete factors, see `pdeopt.conjugate_directions.CycleSettings`.

    Collective: yes, for one rank.
    """
    from scipy.sparse.linalg import splu

    layout = GridMultigrid(case.A, case.coordinates, dtype=np.float64).layout
    slabs = Slabs(MPI.COMM_SELF, layout.starts)
    lattice, stencils, _ = layout.stencils(case.A)
    smoother = Factors(lattice, stencils, slabs, keep)
    factors, inverse, b = smoother.values, smoother.inverse, lattice.values()
    coarse, weights, _ = coarsen(lattice, stencils, slabs)
    layout.to_lattice(case.b.array_r, b)

    A, lower = _couplings(lattice, stencils, factors)
    free = np.diff(A.indptr) > 1  # the other rows are held by a Dirichlet condition
    every = np.arange(lattice.points)
    diagonal = (every, every, np.where(free, 0, -1), 1.0 / lattice.inner(inverse).ravel())
    blocks = [*lower, *_weights(lattice, coarse, weights, free), diagonal]
    rows, columns, group, values = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    lower_end = sum(block[0].size for block in lower)
    solve = splu(A.tocsc()).solve
    ends = (lower_end, rows.size - lattice.points)
    return System(A, lattice.inner(b).ravel().copy(), solve, rows, columns, group, ends, values)


type Block = tuple[Array, Array, Array, Array]  # rows, columns, groups and values of entries


def _couplings(lattice: Lattice, stencils: Array, factors: Array) -> tuple[Any, list[Block]]:
    """Return the matrix of stencils, and the entries of L where it has some."""
    from scipy.sparse import csr_array, diags_array

    places = np.stack(np.unravel_index(np.arange(lattice.points), lattice.shape), axis=1)
    A = csr_array(diags_array(lattice.inner(stencils[0]).ravel()))
    blocks = []
    for h, step in enumerate(lattice.halves):
        if h == 0:
            continue
        entries, factor = lattice.inner(stencils[h]).ravel(), lattice.inner(factors[h]).ravel()
        here = np.flatnonzero((entries != 0.0) | (factor != 0.0))
        there = np.ravel_multi_index(tuple((places[here] + step).T), lattice.shape)
        half = csr_array((entries[here], (here, there)), shape=A.shape)
        half.eliminate_zeros()
        A = A + half + half.T
        blocks.append((there, here, np.full(here.size, h), factor[here]))
    return csr_array(A), blocks


def _weights(lattice: Lattice, coarse: Lattice, weights: Array, free: Array) -> list[Block]:
    """Return the entries of P. Those of points without an equation and of coarse points themselves may not change."""
    parents = np.stack(np.unravel_index(np.arange(coarse.points), coarse.shape), axis=1)
    blocks = []
    for k, step in enumerate(coarse.offsets):
        fine = 2 * parents + step
        inside = np.flatnonzero(np.all((fine >= 0) & (fine < lattice.shape), axis=1))
        there = np.ravel_multi_index(tuple(fine[inside].T), lattice.shape)
        may_change = free[there] & free[np.ravel_multi_index(tuple(2 * parents[inside].T), lattice.shape)]
        group = np.where(may_change & any(step), _FIRST_WEIGHT + k, -1)
        blocks.append((there, inside, group, coarse.inner(weights[k]).ravel()[inside]))
    return blocks


class TwoLevels:
    """The cycle with given entries of its operators, for arrays of shape (n, m).

    Parameters
    ----------
    of
        Whose cycle.
    values
        Entries in the places of ``of.values``.
    """

    def __init__(self, of: System, values: Array) -> None:
        from scipy.sparse import csc_array
        from scipy.sparse.linalg import splu

        self._system, self._A, count = of, of.A, of.A.shape[0]
        lower, transfer = of.ends
        self._diagonal = np.maximum(values[transfer:], 0.1 * of.values[transfer:])[:, None]
        places = (of.rows[:lower], of.columns[:lower])
        L = csc_array((values[:lower], places), shape=(count, count))
        self._upper = L.T.tocsr()
        D = csc_array((self._diagonal.ravel(), (np.arange(count), np.arange(count))), shape=(count, count))
        exact = {"permc_spec": "NATURAL", "diag_pivot_thresh": 0.0}
        self._forward = splu((L + D).tocsc(), **exact).solve
        self._backward = splu((L.T + D).tocsc(), **exact).solve
        places = (of.rows[lower:transfer], of.columns[lower:transfer])
        P = csc_array((values[lower:transfer], places), shape=(count, int(of.columns[lower:transfer].max()) + 1))
        self._P, self._restriction = P.tocsr(), P.T.tocsr()
        galerkin = (self._restriction @ (of.A @ self._P)).tocsc()
        # A coarse point on the boundary may have lost its row.
        self._coarse = splu(galerkin, permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True}).solve

    def _smooth(self, r: Array) -> tuple[Array, Array]:
        """Return (D + L)^-1 r and M^-1 r."""
        half = self._forward(r)
        return half, self._backward(self._diagonal * half)

    def run(self, r: Array) -> tuple[Array, ...]:
        """Return B r, and what the gradient needs: both smoothing steps, both residuals and the coarse solution."""
        half, x = self._smooth(r)
        first = r - self._A @ x
        y = self._coarse(self._restriction @ first)
        correction = self._P @ y
        rest = first - self._A @ correction
        last_half, last = self._smooth(rest)
        return x + correction + last, half, x, y, rest, last_half, last

    def add_gradient(self, slope: Array, left: tuple[Array, ...], right: tuple[Array, ...]) -> None:
        """Add the derivative of l^T B r by the entries, where `run` took l and r to ``left`` and ``right``."""
        of, (lower, transfer) = self._system, self._system.ends
        _, half_l, x_l, y_l, rest_l, last_half_l, last_l = left
        _, half_r, x_r, y_r, rest_r, last_half_r, last_r = right
        rows, columns = of.rows[:lower], of.columns[:lower]
        # d(M^-1) = - M^-1 dM M^-1, once for the smoothing before and once for that after the correction.
        for a, p, c, q in ((half_l, x_l, last_half_r, last_r), (last_half_l, last_l, half_r, x_r)):
            slope[:lower] -= _paired(q[rows], a[columns]) + _paired(p[rows], c[columns])
            slope[transfer:] += _paired(a, c) - _paired(a, q) - _paired(p, c)
        rows, columns = of.rows[lower:transfer], of.columns[lower:transfer]
        slope[lower:transfer] += _paired(rest_l[rows], y_r[columns]) + _paired(rest_r[rows], y_l[columns])


def _paired(u: Array, v: Array) -> Array:
    return np.einsum("ij,ij->i", u, v)


def error_left(of: System, values: Array, start: Array, steps: int) -> tuple[float, Array]:
    """Return the mean logarithm of what is left of errors in the norm of A, and its derivative by the entries.

    Parameters
    ----------
    of, values
        As for `TwoLevels`.
    start
        Errors before the first step, shape (n, m).
    steps
        Of preconditioned conjugate gradients, for each error by itself.

    Collective: no.
    """
    cycle, A = TwoLevels(of, values), of.A
    error, r = start.copy(), A @ start
    before = _norms(A, error)
    runs, lengths, ratios = [], [], []
    p = np.zeros_like(r)
    old = np.ones(r.shape[1])
    for step in range(steps):
        run = cycle.run(r)
        new = np.einsum("ij,ij->j", run[0], r)
        ratio = new / old if step else np.zeros_like(new)
        p, old = run[0] + ratio * p, new
        image = A @ p
        length = new / np.einsum("ij,ij->j", p, image)
        error, r = error - length * p, r - length * image
        runs.append(run)
        lengths.append(length)
        ratios.append(ratio)
    after = _norms(A, error)
    slope, count = np.zeros(values.size), start.shape[1]
    back, towards = 2.0 * error / after / count, np.zeros_like(r)
    for step in reversed(range(steps)):
        towards = -lengths[step] * (A @ back) + (ratios[step + 1] * towards if step + 1 < steps else 0.0)
        run = cycle.run(towards)
        cycle.add_gradient(slope, run, runs[step])
        back = back + run[0]
    return float(np.mean(np.log(after / before))), slope


def _norms(A: Any, error: Array) -> Array:
    """Return the squares of the norms of A, shape (m,)."""
    return np.einsum("ij,ij->j", error, A @ error)


def iterations(of: System, values: Array) -> float:
    """Return the iterations of conjugate gradients to a true relative residual of 1e-8, with the share of the last one.

    Collective: no.
    """
    cycle, b = TwoLevels(of, values), of.b
    x, r, p = np.zeros_like(b), b.copy(), np.zeros_like(b)
    old = 1.0
    left = [0.0]
    for count in range(_LIMIT):
        z = cycle.run(r[:, None])[0].ravel()
        new = float(z @ r)
        p, old = z + (new / old if count else 0.0) * p, new
        image = of.A @ p
        length = new / (p @ image)
        x, r = x + length * p, r - length * image
        left.append(float(np.log(np.linalg.norm(b - of.A @ x) / np.linalg.norm(b))))
        if not np.isfinite(left[-1]):
            break
        if left[-1] <= np.log(1e-8):
            return float(count + (np.log(1e-8) - left[-2]) / (left[-1] - left[-2]))
    return float(_LIMIT)


def of_nodes(of: System) -> tuple[Any, Array]:
    r"""Return how the entries follow from parameters of which each entry has its own, and the parameters' groups.

    Entries of L change in proportion, and D with them, so that :math:`(D + L^T) 1`, which changes in proportion by
    parameters of its own, does not: what is nearly constant on an island of strong couplings is smoothed as before.
    Likewise the weights of a fine point change by summands that add up to zero.

    Returns
    -------
    map
        csr_array of shape (entries, parameters).
    groups
        The arrays of stencils that the parameters belong to, shape (parameters,).

    Collective: no.
    """
    from scipy.sparse import csr_array, eye_array, hstack

    (lower, transfer), entries, count = of.ends, of.values.size, of.A.shape[0]
    own, size = np.arange(lower), np.abs(of.values[:lower])
    columns = of.columns[:lower]
    places = (np.concatenate([own, transfer + columns]), np.concatenate([own, own]))
    factors = csr_array((np.concatenate([size, -size]), places), shape=(entries, lower))
    sums = np.abs(of.values[transfer:] + np.bincount(columns, of.values[:lower], count))
    free = np.flatnonzero(of.group[transfer:] >= 0)
    diagonal = csr_array((sums[free], (transfer + free, np.arange(free.size))), shape=(entries, free.size))
    weights = lower + np.flatnonzero(of.group[lower:transfer] >= 0)
    here = np.arange(weights.size)
    of_row = csr_array((np.ones(weights.size), (of.rows[weights], here)), shape=(count, weights.size))
    shares = csr_array((1.0 / of_row.sum(axis=1)[of.rows[weights]], (here, of.rows[weights])), shape=of_row.T.shape)
    placed = csr_array((np.ones(weights.size), (weights, here)), shape=(entries, weights.size))
    interpolation = placed @ (eye_array(weights.size) - shares @ of_row)
    groups = np.concatenate([of.group[:lower], of.group[weights], np.zeros(free.size, dtype=int)])
    return csr_array(hstack([factors, interpolation, diagonal])), groups


def shared(groups: Array, numbers: Array) -> Any:
    """Return how parameters of their own follow from parameters that each array of stencils has only one of.

    Parameters
    ----------
    groups
        As `of_nodes` returns them.
    numbers
        The arrays, in the order of the shared parameters.

    Collective: no.
    """
    from scipy.sparse import csr_array

    return csr_array((groups[:, None] == numbers).astype(float))


def descend(
    systems: Sequence[System], maps: Sequence[Any], start: Array, steps: int, rate: float
) -> tuple[Array, list[float]]:
    """Descend on parameters that some systems share, and keep those with the fewest iterations, maybe the first ones.

    Parameters
    ----------
    systems
        At least one.
    maps
        For each, how its entries follow from the parameters: ``values + map @ parameters``.
    start
        Parameters to begin with.
    steps, rate
        Of Adam (Kingma and Ba, ICLR 2015); the rate is halved after each failure to improve, from the best parameters.

    Returns
    -------
    parameters, iterations
        The best parameters, and the iterations of each system with them.

    Collective: no.
    """
    stream = random_stream("bench.linear_grid_weights", 0)

    def judge(parameters: Array) -> list[float]:
        return [iterations(s, s.values + m @ parameters) for s, m in zip(systems, maps, strict=True)]

    best, counts = start, judge(start)
    depths = [max(2, int(np.ceil(count))) for count in counts]
    parameters, mean, square, moves = start.copy(), np.zeros_like(start), np.zeros_like(start), 0
    for step in range(steps):
        slope = np.zeros_like(start)
        for s, m, depth in zip(systems, maps, depths, strict=True):
            noise = stream.standard_normal((s.b.size, _VECTORS))
            # Half of the errors are smooth, as those of random loads are, half are rough.
            root = np.sqrt(s.A.diagonal())[:, None]
            noise[:, ::2] = s.solve(noise[:, ::2] * root**2)
            noise[:, 1::2] /= root
            slope += m.T @ error_left(s, s.values + m @ parameters, noise, depth)[1]
        moves += 1
        mean, square = 0.9 * mean + 0.1 * slope, 0.99 * square + 0.01 * slope**2
        change = mean / (1.0 - 0.9**moves) / (np.sqrt(square / (1.0 - 0.99**moves)) + 1e-12)
        parameters = parameters - rate * change
        if step % _JUDGED == _JUDGED - 1:
            found = judge(parameters)
            if np.mean(found) < np.mean(counts):
                best, counts = parameters.copy(), found
            elif not np.isfinite(parameters).all() or np.mean(found) > 1.05 * np.mean(counts):
                parameters, rate, moves = best.copy(), 0.5 * rate, 0
                mean, square = np.zeros_like(start), np.zeros_like(start)
    return best, counts
