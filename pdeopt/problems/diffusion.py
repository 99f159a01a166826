"""Diffusion with a constant, anisotropic, jumping or random diffusivity."""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import fem
from ufl.core.expr import Expr

from pdeopt.problems.linear import (
    LinearModelProblem,
    Mesh,
    check_mesh,
    check_range,
    dirichlet_condition,
    fixed_measure,
    smooth_scalar,
)
from pdeopt.problems.lognormal import GaussianRandomField

Evaluation = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]


def poisson(mesh: Mesh, degree: int = 1) -> LinearModelProblem:
    """Return Poisson's equation, - div grad u = f in the domain, u = g on its boundary.

    f and g belong to the exact solution of `pdeopt.problems.linear.smooth_scalar`.

    Parameters
    ----------
    mesh
        Any mesh of the plane or of space, of any cell type.
    degree
        Degree of the Lagrange elements, >= 1.

    Raises
    ------
    MeshError
        If the mesh is one-dimensional or a surface.

    Collective: yes.
    """
    check_mesh(mesh)
    exact = smooth_scalar(ufl.SpatialCoordinate(mesh))
    return _diffusion_problem(
        "poisson", mesh, degree, fem.Constant(mesh, 1.0), -ufl.div(ufl.grad(exact)), boundary=exact, exact=exact
    )


def anisotropic_diffusion(
    mesh: Mesh, ratio: float = 1e-3, angle: float = math.pi / 6, degree: int = 1
) -> LinearModelProblem:
    r"""Return - div(K grad u) = f with K = e e^T + ratio (I - e e^T), e = (cos angle, sin angle[, 0]).

    The diffusivity is 1 along e and ``ratio`` across it. Angle 0 is aligned with the axes of a structured mesh: there
    semicoarsening and incomplete factorisations do well; pi/6 is aligned with no edge of it. f and the boundary values
    belong to the exact solution of `pdeopt.problems.linear.smooth_scalar`.

    Parameters
    ----------
    mesh
        Any mesh of the plane or of space, of any cell type.
    ratio
        Weak over strong diffusivity, > 0 and normally < 1; classical multigrid degrades below about 1e-2.
    angle
        From the first axis towards the second, in radians.
    degree
        Degree of the Lagrange elements, >= 1.

    Raises
    ------
    InputError
        If ``ratio`` is not positive, or the mesh is one-dimensional or a surface (`MeshError`).

    Collective: yes.
    """
    dimension = check_mesh(mesh)
    check_range("ratio", ratio, 0.0)
    strong = np.array([math.cos(angle), math.sin(angle), 0.0])[:dimension]
    along = np.outer(strong, strong)
    diffusivity = fem.Constant(mesh, along + ratio * (np.eye(dimension) - along))
    exact = smooth_scalar(ufl.SpatialCoordinate(mesh))
    return _diffusion_problem(
        "anisotropic_diffusion",
        mesh,
        degree,
        diffusivity,
        -ufl.div(diffusivity * ufl.grad(exact)),
        boundary=exact,
        exact=exact,
    )


def checkerboard_diffusion(mesh: Mesh, contrast: float = 1e6, blocks: int = 4, degree: int = 1) -> LinearModelProblem:
    r"""Return - div(kappa grad u) = f with kappa jumping between contrast^{-1/2} and contrast^{+1/2}.

    The blocks are squares or cubes with edge 1/blocks from the origin on, coloured like a checkerboard. The exact
    solution is the same for every contrast: with s the function of `pdeopt.problems.linear.smooth_scalar`,

        u(x) = s(phi(x_0), phi(x_1)[, phi(x_2)]),   phi(t) = t - sin(2 pi blocks t) / (2 pi blocks),

    has a vanishing normal derivative on all interfaces, so u and kappa du/dn are continuous there.

    Parameters
    ----------
    mesh
        Any mesh of the plane or of space; kappa is evaluated at the cells' midpoints, so convergence at full order
        requires the interfaces to consist of facets (n cells per unit length with n a multiple of ``blocks``).
    contrast
        Ratio of the two diffusivities, > 0.
    blocks
        Blocks per unit length, >= 1.
    degree
        Degree of the Lagrange elements, >= 1.

    Raises
    ------
    InputError
        If ``contrast`` or ``blocks`` is not positive, or the mesh is one-dimensional or a surface (`MeshError`).

    Collective: yes.
    """
    dimension = check_mesh(mesh)
    check_range("contrast", contrast, 0.0)
    check_range("blocks", blocks, 0)

    def evaluate(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        colour = np.floor(blocks * x[:dimension]).sum(axis=0) % 2
        values: npt.NDArray[np.float64] = np.where(colour == 0, contrast**-0.5, contrast**0.5)
        return values

    kappa = _cellwise(mesh, evaluate)
    x = ufl.SpatialCoordinate(mesh)
    frequency = fem.Constant(mesh, 2.0 * math.pi * blocks)
    stairs = ufl.as_vector([x[i] - ufl.sin(frequency * x[i]) / frequency for i in range(dimension)])
    exact = smooth_scalar(stairs)
    return _diffusion_problem(
        "checkerboard_diffusion", mesh, degree, kappa, -kappa * ufl.div(ufl.grad(exact)), boundary=exact, exact=exact
    )


def lognormal_diffusion(
    mesh: Mesh,
    sigma: float = 1.0,
    correlation_length: float = 0.1,
    seed: int = 0,
    smoothness: float = math.inf,
    degree: int = 1,
) -> LinearModelProblem:
    r"""Return - div(exp(sigma Z) grad u) = 1 with u = 0 on the boundary and a Gaussian random field Z.

    Z has mean 0, variance 1 and the covariance that `pdeopt.problems.lognormal.GaussianRandomField` states. The same
    seed gives the same function of x on every mesh and any number of ranks; the diffusivity in the form is its value
    at the cells' midpoints. There is no exact solution.

    Parameters
    ----------
    mesh
        Any mesh of the plane or of space, of any cell type; cells should be smaller than half the correlation length.
    sigma
        Standard deviation of the logarithm of the diffusivity, >= 0; about exp(6 sigma) separates its extremes.
    correlation_length
        In the unit of the coordinates, > 0.
    seed
        Number of the sample, >= 0.
    smoothness
        Matern smoothness, > 0; infinite for the squared exponential covariance, 1/2 for rough rock-like fields.
    degree
        Degree of the Lagrange elements, >= 1.

    Raises
    ------
    InputError
        If a parameter is out of range, or the mesh is one-dimensional or a surface (`MeshError`).

    Collective: yes.
    """
    dimension = check_mesh(mesh)
    if sigma != 0.0:
        check_range("sigma", sigma, 0.0)
    field = GaussianRandomField(correlation_length, seed, dimension, smoothness)
    diffusivity = _cellwise(mesh, lambda x: np.exp(sigma * field(x)))
    one, zero = fem.Constant(mesh, 1.0), fem.Constant(mesh, 0.0)
    return _diffusion_problem("lognormal_diffusion", mesh, degree, diffusivity, one, boundary=zero, exact=None)


def _cellwise(mesh: Mesh, evaluate: Evaluation) -> fem.Function[np.float64]:
    """Return the piecewise constant function with the values at the cells' midpoints."""
    coefficient: fem.Function[np.float64] = fem.Function(fem.functionspace(mesh, ("DG", 0)), name="diffusivity")
    coefficient.interpolate(evaluate)
    return coefficient


def _diffusion_problem(
    name: str,
    mesh: Mesh,
    degree: int,
    diffusivity: Expr,
    source: Expr,
    boundary: Expr,
    exact: Expr | None,
) -> LinearModelProblem:
    """Return - div(diffusivity grad u) = source, u = boundary on the whole boundary."""
    space = fem.functionspace(mesh, ("Lagrange", degree))
    trial_function, test_function = ufl.TrialFunction(space), ufl.TestFunction(space)
    dx = fixed_measure(space)
    return LinearModelProblem(
        name=name,
        a=ufl.inner(diffusivity * ufl.grad(trial_function), ufl.grad(test_function)) * dx,
        L=ufl.inner(source, test_function) * dx,
        space=space,
        bcs=[dirichlet_condition(space, boundary)],
        exact=exact,
        symmetric=True,
        definite=True,
        coefficients={"diffusivity": diffusivity} if isinstance(diffusivity, fem.Function) else {},
    )
