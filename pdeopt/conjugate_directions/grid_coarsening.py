"""Operator-dependent coarsening of stencils: every second point stays, the rest follows the operator."""

from pdeopt.conjugate_directions.grid_slabs import Slabs
from pdeopt.conjugate_directions.grid_stencils import Array, Lattice

__all__ = ["coarsen"]


def coarsen(lattice: Lattice, stencils: Array, slabs: Slabs) -> tuple[Lattice, Array, Array]:
    r"""Return the lattice of every second point, the interpolation from it, and the Galerkin stencils on it.

    The value at a fine point follows from those of its coarse neighbours by the operator: the stencil at the point is
    summed over the directions in which the point lies on the coarse lattice, and solved for the point, after the
    points with fewer odd directions. That is black-box multigrid (Dendy, J. Comput. Phys. 48, 1982; in 3D: Dendy, Two
    multigrid methods for three-dimensional problems, SIAM J. Sci. Stat. Comput. 8, 1987). Weights outside [0, 1], which
    only positive couplings bring about, are cut off. The coarse operator is :math:`P^T A P`.

    Parameters
    ----------
    lattice, stencils
        The fine ones; the stencils' outer layers hold the neighbours' values.
    slabs
        How the lattice is cut over the ranks: each slab begins at an even layer.

    Returns
    -------
    coarse, weights, stencils
        Weights of shape (9 or 27, padded coarse shape): array k holds for a coarse point at place i the share of it in
        the fine point at place 2 i + offset k.

    Collective: yes.
    """
    kernels, coarse = lattice.kernels, lattice.halved()
    used = sum(lattice.used >> h & 1 for h in range(len(lattice.halves)))
    parities = coarse.stencils(2 ** len(lattice.shape) * used)
    kernels.library.sort_by_parity(lattice.c, coarse.c, kernels.pointer(stencils), kernels.pointer(parities))
    weights = coarse.stencils(len(coarse.offsets))
    kernels.library.weigh(lattice.c, coarse.c, kernels.pointer(parities), kernels.pointer(weights))
    slabs.halved().exchange(weights, axis=1)
    projected = coarse.stencils(len(coarse.halves))
    kernels.library.project(
        lattice.c, coarse.c, kernels.pointer(parities), kernels.pointer(weights), kernels.pointer(projected)
    )
    slabs.halved().exchange(projected, axis=1)
    return coarse, weights, projected
