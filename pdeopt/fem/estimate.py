"""Certificates: residuals measured in dual norms, eta(u) = sup_v R(u; v) / |v|_V, by Riesz solves.

The residual of a discrete problem vanishes at its discrete solution, so eta bounds the distance of a proposal (a loose
solve, a reduced model, a network) from that solution. With R(u; v) = L(e, v), e the error and L the linearised operator
between the two, the two constants

    alpha |e| <= eta <= gamma |e|,    alpha = inf_e sup_v L(e, v) / (|e| |v|_V),  gamma = the same with sup_e,

say how far eta can be from the error; `DualNorm.constants` computes them. Which norm |v|_V is taken decides about them:

`poisson_norm`, `elasticity_norm`
    The energy norm. For the problem of the same name alpha = gamma = 1.
`stokes_norm`
    |v|^2 = nu |grad v|^2 over velocities without (discrete) divergence: needs no pressure. gamma grows with Re.
`oseen_norm`
    |v|^2 = nu |grad v|^2 + |b . grad v|_*^2, the graph norm of convection by a given wind b, with the dual norm of
    `stokes_norm` as |.|_*: gamma does not grow with Re.
`linearised_norm`
    The same with the whole linearised operator at b: both constants are one if b is the solution.

A test space that is richer than the one of the solution (a residual with test functions of a higher degree) makes
eta an estimate of the discretisation error.
"""

from collections.abc import Sequence
from typing import Any

import ufl
from dolfinx import fem
from ufl.core.expr import Expr

from pdeopt.fem.estimate_constants import Constants
from pdeopt.fem.estimate_flow import SolenoidalNorm, linearised_norm, oseen_norm, stokes_norm
from pdeopt.fem.estimate_norm import DualNorm, Estimate
from pdeopt.fem.estimate_space import rigid_body_modes
from pdeopt.fem.estimate_time import TrajectoryEstimate, TrajectoryEstimator, noise_ratio
from pdeopt.fem.estimate_velocity import VelocityNorm
from pdeopt.report import InputError

__all__ = [
    "Constants",
    "DualNorm",
    "Estimate",
    "SolenoidalNorm",
    "TrajectoryEstimate",
    "TrajectoryEstimator",
    "VelocityNorm",
    "elasticity_norm",
    "linearised_norm",
    "noise_ratio",
    "oseen_norm",
    "poisson_norm",
    "stokes_norm",
]

Coefficient = Expr | float


def poisson_norm(
    space: fem.FunctionSpace[Any],
    bcs: Sequence[fem.DirichletBC[Any]] = (),
    *,
    coefficient: Coefficient = 1.0,
    reaction: Coefficient = 0.0,
    direct: bool | None = None,
    options_prefix: str = "estimate_",
) -> DualNorm:
    """Return the dual norm of |v|^2 = (k grad v, grad v) + (c v, v).

    Parameters
    ----------
    space
        Scalar or vector-valued H1-conforming space.
    bcs
        Dirichlet conditions of the state. Without any, the reaction must be positive.
    coefficient
        k, a number, a UFL expression or a tensor of the mesh's dimension.
    reaction
        c, 1/(time step) for instance.
    direct
        Whether to factorise; None decides by the number of unknowns.
    options_prefix
        Prefix under which PETSc options change the solver.

    Collective: yes.
    """

    def inner_product(u: Expr, v: Expr) -> ufl.Form:
        gradient = ufl.grad(u)
        flux = ufl.dot(gradient, coefficient) if getattr(coefficient, "ufl_shape", ()) else coefficient * gradient
        form = ufl.inner(flux, ufl.grad(v)) * ufl.dx
        return form if isinstance(reaction, float) and reaction == 0.0 else form + reaction * ufl.inner(u, v) * ufl.dx

    return DualNorm(space, inner_product, bcs, direct=direct, options_prefix=options_prefix)


def elasticity_norm(
    space: fem.FunctionSpace[Any],
    bcs: Sequence[fem.DirichletBC[Any]],
    *,
    mu: Coefficient,
    lame: Coefficient,
    direct: bool | None = None,
    options_prefix: str = "estimate_",
) -> DualNorm:
    """Return the dual norm of the elastic energy, |v|^2 = (2 mu eps(v), eps(v)) + (lambda div v, div v).

    The rigid-body modes are handed to the algebraic multigrid.

    Parameters
    ----------
    space
        Vector-valued Lagrange space with as many components as the mesh has dimensions.
    bcs
        Dirichlet conditions; they must exclude rigid motions.
    mu, lame
        Lame's parameters, mu > 0 and lambda >= 0 [stress].
    direct
        Whether to factorise; None decides by the number of unknowns.
    options_prefix
        Prefix under which PETSc options change the solver.

    Raises
    ------
    InputError
        If the space has another number of components.

    Collective: yes.
    """
    if space.dofmap.index_map_bs != space.mesh.geometry.dim:
        raise InputError(
            f"the space has {space.dofmap.index_map_bs} components, the mesh {space.mesh.geometry.dim} dimensions: "
            "displacements need a vector-valued Lagrange space"
        )

    def inner_product(u: Expr, v: Expr) -> ufl.Form:
        strain = 2.0 * mu * ufl.inner(ufl.sym(ufl.grad(u)), ufl.sym(ufl.grad(v)))
        return (strain + lame * ufl.inner(ufl.div(u), ufl.div(v))) * ufl.dx

    modes = rigid_body_modes(space)
    return DualNorm(space, inner_product, bcs, near_nullspace=modes, direct=direct, options_prefix=options_prefix)
