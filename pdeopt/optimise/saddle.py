"""Telling minima from saddle points where a factorisation knows the inertia, and leaving the latter."""

from mpi4py import MPI

import numpy as np

from pdeopt.optimise.program import KKTSolver, Pair, Program
from pdeopt.parallel import random_stream

_ITERATIONS = (4, 40)  # of inverse iteration: at least, and at most until negative curvature shows
_LEAST = -1e-3  # curvature, in the metric, from which a point counts as a saddle: zero ones look negative near them
_SHIFTS = tuple(10.0**k for k in range(-4, 16))


def is_minimum(program: Program) -> bool | None:
    """Whether the Hessian is definite on the null space of the constraints; None where that is not known or singular.

    Collective: yes.
    """
    kkt = program.kkt_solver()
    try:
        return None if kkt.singular else kkt.inertia_is_right
    finally:
        kkt.destroy()


def negative_curvature(program: Program) -> Pair | None:
    """Return a direction in the null space of the constraints along which the Hessian is negative, of norm 1.

    By inverse iteration with the first shift that makes the KKT matrix definite there: the smallest eigenvalues grow
    fastest. None if none is found. Collective: yes.
    """
    kkt = _first_definite(program)
    if kkt is None:
        return None
    direction, right, product = program.create(), program.create(), program.create()
    stream = random_stream("negative curvature", 0, program.comm)
    right.primal.array[:] = stream.standard_normal(right.primal.getLocalSize())
    weights = program.weights()
    curvature = 0.0
    for count in range(_ITERATIONS[1]):
        if count >= _ITERATIONS[0] and curvature < _LEAST:
            break
        kkt.solve(right, direction, 1e-8)
        size = float(np.sqrt(_square(direction, weights, program.comm)))
        direction.primal.scale(1.0 / size)
        program.hessian_mult(direction.primal, product.primal)
        curvature = float(direction.primal.dot(product.primal))
        right.primal.pointwiseMult(weights, direction.primal)
    kkt.destroy()
    direction.dual.set(0.0)
    for item in (right, product, weights):
        item.destroy()
    if curvature < _LEAST:
        return direction
    direction.destroy()
    return None


def _square(direction: Pair, weights: object, comm: MPI.Comm) -> float:
    """Return the sum of weight times square."""
    values = direction.primal.array_r
    return float(comm.allreduce(float(np.sum(weights.array_r * values**2)), op=MPI.SUM))  # type: ignore[attr-defined]


def _first_definite(program: Program) -> KKTSolver | None:
    for shift in _SHIFTS:
        kkt = program.kkt_solver(shift=shift)
        if kkt.inertia_is_right:
            return kkt
        kkt.destroy()
    return None
