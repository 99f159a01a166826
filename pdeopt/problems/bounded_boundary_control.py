"""Boundary control between bounds on a domain with a corner: problem "ccbnd1" of the collection OPTPDE."""

import math

import dolfinx
import ufl

from pdeopt.control import ControlProblem
from pdeopt.fem import forms
from pdeopt.problems.linear import Mesh, check_range
from pdeopt.problems.manufactured_control import ManufacturedControl
from pdeopt.report import MeshError

_BOUND = 0.5
_KINK_DEGREE = 12  # the clipped control has a kink inside facets


class BoundedBoundaryControl(ManufacturedControl):
    """Move the flux on the boundary of a polygon with a corner, between bounds.

    Minimise |y - d|^2 / 2 + |u|_b^2 / 2 + int_b g y ds subject to

        -laplace y + y = 0,   grad y . n = u - q on the boundary b,   -1/2 <= u <= 1/2.

    The domain is the part of (-1, 1)^2 with polar angle between 0 and w. The target d = r^l cos(l phi), l = pi / w, is
    harmonic, and its flux vanishes on both edges of the corner. With g = - grad d . n and q = clip(d, -1/2, 1/2) the
    optimum is

        y* = 0,   u* = clip(d, -1/2, 1/2),   p* = d,

    since then the adjoint equation y* - d - laplace p* + p* = 0, grad p* . n = - g holds (in the sign of p that is used
    everywhere here), and u* is the projection of p*. For w > pi / 2 the adjoint is singular at the corner: on uniform
    meshes its L2 error falls no faster than h^(2 l). All quantities are dimensionless.

    Parameters
    ----------
    mesh
        A mesh of the domain: of the unit square for w = pi / 2, `l_shape_mesh` for 3 pi / 2.
    angle
        w, between 0 and 2 pi.
    degree
        Degree of state, control and adjoint.

    Raises
    ------
    InputError
        If the angle is out of range or the area of the mesh is not that of the domain (`MeshError`).

    Collective: yes.

    References
    ----------
    Mateos and Roesch, On saturation effects in the Neumann boundary control of elliptic optimal control problems,
    Computational Optimization and Applications 49 (2011) 359-378; OPTPDE, problem ccbnd1. The
    signs of g and q are those that make the above an optimum.
    """

    def __init__(self, mesh: Mesh, angle: float = math.pi / 2, degree: int = 1) -> None:
        check_range("angle", angle, 0.0, 2.0 * math.pi)
        area = forms.assemble_scalar(forms.compile_form(dolfinx.fem.Constant(mesh, 1.0) * ufl.dx(mesh)))
        if not math.isclose(area, _area(angle), rel_tol=1e-8):
            raise MeshError(f"the mesh has area {area:g}, the domain for angle = {angle:g} has {_area(angle):g}")
        space = dolfinx.fem.functionspace(mesh, ("Lagrange", degree))
        state, control = dolfinx.fem.Function(space, name="state"), dolfinx.fem.Function(space, name="control")
        test = ufl.TestFunction(space)
        x = ufl.SpatialCoordinate(mesh)
        # Measured from the middle of the domain the angle has its jump outside, also under rounding.
        cosine, sine, power = math.cos(angle / 2), math.sin(angle / 2), math.pi / angle
        polar = ufl.atan2(cosine * x[1] - sine * x[0], cosine * x[0] + sine * x[1]) + angle / 2
        target = (x[0] ** 2 + x[1] ** 2) ** (power / 2) * ufl.cos(power * polar)
        optimum = ufl.max_value(-_BOUND, ufl.min_value(_BOUND, target))
        metadata = {"quadrature_degree": 2 * degree + 4}
        dx, ds = ufl.dx(mesh, metadata=metadata), ufl.ds(mesh, metadata=metadata)
        kink_ds = ufl.ds(mesh, metadata={"quadrature_degree": _KINK_DEGREE})
        flux = ufl.dot(ufl.grad(target), ufl.FacetNormal(mesh))
        problem = ControlProblem(
            objective=0.5 * (state - target) ** 2 * dx + 0.5 * control**2 * ds - flux * state * ds,
            state_equation=ufl.inner(ufl.grad(state), ufl.grad(test)) * dx
            + state * test * dx
            - control * test * ds
            + optimum * test * kink_ds,
            state=state,
            control=control,
            bounds=(-_BOUND, _BOUND),
        )
        exact = {"state": dolfinx.fem.Constant(mesh, 0.0), "control": optimum, "adjoint": target}
        super().__init__(problem, exact, dx, kink_ds)


def _area(angle: float) -> float:
    """Return the area of the part of (-1, 1)^2 with polar angle between 0 and ``angle``. Collective: no."""
    eighths, rest = divmod(angle, math.pi / 4)
    # An eighth of the square is a triangle of area 1/2; odd ones are run through from their other end.
    part = 0.5 * math.tan(rest) if int(eighths) % 2 == 0 else 0.5 * (1.0 - math.tan(math.pi / 4 - rest))
    return 0.5 * eighths + part
