"""Linear elasticity, with the rigid-body modes that algebraic multigrid needs."""

import dolfinx
import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import fem
from ufl.core.expr import Expr

from pdeopt.problems.linear import (
    LinearModelProblem,
    Marker,
    Mesh,
    check_mesh,
    check_range,
    dirichlet_condition,
    fixed_measure,
    smooth_scalar,
)


def linear_elasticity(
    mesh: Mesh, poisson_ratio: float = 0.3, clamped: Marker | None = None, degree: int = 1
) -> LinearModelProblem:
    r"""Return - div sigma(u) = f for an isotropic body of Young's modulus 1 (plane strain in two dimensions).

        sigma(u) = 2 mu eps(u) + lambda tr(eps(u)) I,    eps(u) = (grad u + grad u^T) / 2,
        mu = 1 / (2 (1 + nu)),    lambda = nu / ((1 + nu)(1 - 2 nu))

    The exact displacement has the components smooth_scalar(x, i), i = 0, 1[, 2], of `pdeopt.problems.linear`. It is
    prescribed on the clamped part of the boundary; its traction acts on the rest. The rigid-body modes are attached
    as near-nullspace.

    Parameters
    ----------
    mesh
        Any mesh of the plane or of space, of any cell type.
    poisson_ratio
        nu, in (-1, 1/2). Above about 0.45 degree 1 locks: errors grow with lambda; use degree 2.
    clamped
        Marks the facets with prescribed displacement; None means the whole boundary.
    degree
        Degree of the Lagrange elements, >= 1.

    Raises
    ------
    InputError
        If ``poisson_ratio`` is out of range, ``clamped`` marks nothing, or the mesh is one-dimensional or a surface
        (`MeshError`).

    Collective: yes.
    """
    dimension = check_mesh(mesh)
    check_range("poisson_ratio", poisson_ratio, -1.0, 0.5)
    mu = fem.Constant(mesh, 0.5 / (1.0 + poisson_ratio))
    lame = fem.Constant(mesh, poisson_ratio / ((1.0 + poisson_ratio) * (1.0 - 2.0 * poisson_ratio)))

    def stress(u: Expr) -> Expr:
        strain = ufl.sym(ufl.grad(u))
        value: Expr = 2.0 * mu * strain + lame * ufl.tr(strain) * ufl.Identity(dimension)
        return value

    space = fem.functionspace(mesh, ("Lagrange", degree, (dimension,)))
    trial_function, test_function = ufl.TrialFunction(space), ufl.TestFunction(space)
    x = ufl.SpatialCoordinate(mesh)
    exact = ufl.as_vector([smooth_scalar(x, float(component)) for component in range(dimension)])
    dx = fixed_measure(space)
    L = ufl.inner(-ufl.div(stress(exact)), test_function) * dx
    if clamped is not None:
        # Over the whole boundary: on clamped facets it only enters rows that the Dirichlet condition replaces.
        traction = ufl.dot(stress(exact), ufl.FacetNormal(mesh))
        L += ufl.inner(traction, test_function) * fixed_measure(space, "ds")
    return LinearModelProblem(
        name="linear_elasticity",
        a=ufl.inner(stress(trial_function), ufl.sym(ufl.grad(test_function))) * dx,
        L=L,
        space=space,
        bcs=[dirichlet_condition(space, exact, clamped)],
        exact=exact,
        symmetric=True,
        definite=True,
        near_nullspace=rigid_body_modes(space),
    )


def rigid_body_modes(space: fem.FunctionSpace[np.float64]) -> list[fem.Function[np.float64]]:
    """Return the translations and infinitesimal rotations, orthonormal as degree-of-freedom vectors.

    Parameters
    ----------
    space
        Lagrange space with value shape (2,) or (3,).

    Returns
    -------
    modes
        Three functions in the plane, six in space: the kernel of the strain.

    Collective: yes.
    """
    dimension = space.mesh.geometry.dim

    def translation(axis: int) -> fem.Function[np.float64]:
        mode: fem.Function[np.float64] = fem.Function(space)
        mode.x.array[axis::dimension] = 1.0
        return mode

    def rotation(first: int, second: int) -> fem.Function[np.float64]:
        def velocity(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
            values = np.zeros((dimension, x.shape[1]))
            values[first], values[second] = -x[second], x[first]
            return values

        mode: fem.Function[np.float64] = fem.Function(space)
        mode.interpolate(velocity)
        return mode

    planes = [(0, 1)] if dimension == 2 else [(0, 1), (1, 2), (2, 0)]
    modes = [translation(axis) for axis in range(dimension)] + [rotation(*plane) for plane in planes]
    dolfinx.la.orthonormalize([mode.x for mode in modes])
    for mode in modes:
        mode.x.scatter_forward()
    return modes
