"""Convection-diffusion: a nonsymmetric matrix, optionally stabilised along the streamlines."""

from collections.abc import Sequence

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
from pdeopt.report import InputError


def convection_diffusion(
    mesh: Mesh,
    diffusivity: float = 1e-2,
    velocity: Sequence[float] | Expr | None = None,
    supg: bool = False,
    degree: int = 1,
) -> LinearModelProblem:
    r"""Return - epsilon div grad u + velocity . grad u = f in the domain, u = g on its boundary.

    f and g belong to the exact solution of `pdeopt.problems.linear.smooth_scalar`, which has no layer. Once the cell
    Peclet number h abs(velocity) / (2 epsilon) exceeds 1 the Galerkin matrix is no M-matrix and its solutions may
    oscillate; the streamline-upwind Petrov-Galerkin form adds tau (velocity . grad v) to the test function, with

        tau = (4 velocity . G velocity + 16 C epsilon^2 G:G)^{-1/2},   G = J^{-T} J^{-1},   C = 9 degree^4,

    where J is the Jacobian of the cell's map, which covers all cell types and stretched cells. The stabilised
    problem has the same exact solution.

    Parameters
    ----------
    mesh
        Any mesh of the plane or of space, of any cell type.
    diffusivity
        epsilon > 0.
    velocity
        Constant components, shape (dimension,), or a UFL vector; None means (0.8, 0.6) or (0.8, 0.6, 0.3).
    supg
        Whether to stabilise.
    degree
        Degree of the Lagrange elements, >= 1.

    Raises
    ------
    InputError
        If ``diffusivity`` is not positive, ``velocity`` has another dimension than the mesh, or the mesh is
        one-dimensional or a surface (`MeshError`).

    Collective: yes.

    References
    ----------
    Brooks and Hughes, Comput. Methods Appl. Mech. Engrg. 32 (1982) 199-259; Shakib, Hughes and Johan, ibid. 89 (1991)
    141-219 (tau).
    """
    dimension = check_mesh(mesh)
    check_range("diffusivity", diffusivity, 0.0)
    if velocity is None:
        velocity = (0.8, 0.6, 0.3)[:dimension]
    wind = velocity if isinstance(velocity, Expr) else fem.Constant(mesh, [float(component) for component in velocity])
    if wind.ufl_shape != (dimension,):
        raise InputError(f"velocity has shape {wind.ufl_shape}, but the mesh needs ({dimension},)")

    epsilon = fem.Constant(mesh, float(diffusivity))
    space = fem.functionspace(mesh, ("Lagrange", degree))
    trial_function, test_function = ufl.TrialFunction(space), ufl.TestFunction(space)
    exact = smooth_scalar(ufl.SpatialCoordinate(mesh))

    def strong_operator(u: Expr) -> Expr:
        value: Expr = -epsilon * ufl.div(ufl.grad(u)) + ufl.dot(wind, ufl.grad(u))
        return value

    source = strong_operator(exact)
    dx = fixed_measure(space)
    a = epsilon * ufl.inner(ufl.grad(trial_function), ufl.grad(test_function)) * dx
    a += ufl.inner(ufl.dot(wind, ufl.grad(trial_function)), test_function) * dx
    L = ufl.inner(source, test_function) * dx
    if supg:
        streamline_test = _stabilisation_time(mesh, wind, epsilon, degree) * ufl.dot(wind, ufl.grad(test_function))
        a += ufl.inner(strong_operator(trial_function), streamline_test) * dx
        L += ufl.inner(source, streamline_test) * dx
    return LinearModelProblem(
        name="convection_diffusion",
        a=a,
        L=L,
        space=space,
        bcs=[dirichlet_condition(space, exact)],
        exact=exact,
        symmetric=False,
        definite=False,
    )


def _stabilisation_time(mesh: Mesh, wind: Expr, epsilon: Expr, degree: int) -> Expr:
    """Return tau of `convection_diffusion`."""
    inverse_jacobian = ufl.inv(ufl.Jacobian(mesh))
    metric = inverse_jacobian.T * inverse_jacobian
    convective = 4.0 * ufl.inner(wind, metric * wind)
    diffusive = 16.0 * 9.0 * degree**4 * epsilon**2 * ufl.inner(metric, metric)
    time: Expr = 1.0 / ufl.sqrt(convective + diffusive)
    return time
