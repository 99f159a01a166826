"""The Helmholtz equation: a symmetric, indefinite matrix."""

import ufl
from dolfinx import fem

from pdeopt.problems.linear import LinearModelProblem, Mesh, check_mesh, check_range, dirichlet_condition, fixed_measure


def helmholtz(mesh: Mesh, wavenumber: float, degree: int = 1) -> LinearModelProblem:
    r"""Return - div grad u - k^2 u = f in the domain, u = g on its boundary.

    The exact solution, f and g are

        u(x) = cos(k d . x) + sin(k x_0 / 2),   f(x) = - (3/4) k^2 sin(k x_0 / 2),   d = (0.8, 0.6) or (2, 2, 1)/3.

    The matrix is positive definite only while k^2 is below the lowest Dirichlet eigenvalue (2 pi^2 on the unit square,
    3 pi^2 on the unit cube) and singular when k^2 meets an eigenvalue; k = 10 on the unit square is near one.
    At least ten cells per wavelength 2 pi / k are needed, and more as k grows, since the phase error accumulates
    (pollution): keep k^3 h^2 << 1 for degree 1.

    Parameters
    ----------
    mesh
        Any mesh of the plane or of space, of any cell type.
    wavenumber
        k > 0, in radians per unit length.
    degree
        Degree of the Lagrange elements, >= 1.

    Raises
    ------
    InputError
        If ``wavenumber`` is not positive, or the mesh is one-dimensional or a surface (`MeshError`).

    Collective: yes.

    References
    ----------
    Ihlenburg and Babuska, Finite element solution of the Helmholtz equation with high wave number, Part I, Computers
    Math. Applic. 30 (1995) 9-37.
    """
    dimension = check_mesh(mesh)
    check_range("wavenumber", wavenumber, 0.0)
    k = fem.Constant(mesh, float(wavenumber))
    x = ufl.SpatialCoordinate(mesh)
    direction = (0.8, 0.6) if dimension == 2 else (2 / 3, 2 / 3, 1 / 3)
    slow_wave = ufl.sin(k * x[0] / 2)
    exact = ufl.cos(k * ufl.dot(ufl.as_vector(direction), x)) + slow_wave

    space = fem.functionspace(mesh, ("Lagrange", degree))
    trial_function, test_function = ufl.TrialFunction(space), ufl.TestFunction(space)
    dx = fixed_measure(space)
    stiffness = ufl.inner(ufl.grad(trial_function), ufl.grad(test_function))
    return LinearModelProblem(
        name="helmholtz",
        a=(stiffness - k**2 * ufl.inner(trial_function, test_function)) * dx,
        L=ufl.inner(-0.75 * k**2 * slow_wave, test_function) * dx,
        space=space,
        bcs=[dirichlet_condition(space, exact)],
        exact=exact,
        symmetric=True,
        definite=False,
    )
