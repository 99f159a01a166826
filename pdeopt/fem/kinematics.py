"""Tensors of three dimensions from displacements of two or three: plane strain, axisymmetry, space."""

from typing import Protocol

import ufl
from ufl.core.expr import Expr

from pdeopt.report import InputError


class Kinematics(Protocol):
    """How a displacement field makes a displacement gradient.

    Attributes
    ----------
    components
        The entries of a symmetric tensor that may differ from zero, and from each other.
    """

    components: tuple[tuple[int, int], ...]

    def gradient(self, displacement: Expr) -> Expr:
        """Return the displacement gradient [1], shape (3, 3)."""

    def weight(self, displacement: Expr) -> Expr:
        """Return what an integral over the mesh is multiplied by: 1, or the circumference."""


_PLANE = ((0, 0), (1, 1), (2, 2), (0, 1))


class PlaneStrain:
    """Displacements (u_x, u_y) of (x, y), and the same strain everywhere along z.

    Parameters
    ----------
    axial_strain
        The strain along z [1], zero by default. A constant that follows the mean thermal strain models a long body that
        is free to grow along z.
    """

    components: tuple[tuple[int, int], ...] = _PLANE

    def __init__(self, axial_strain: Expr | float = 0.0) -> None:
        self.axial_strain = axial_strain

    def gradient(self, displacement: Expr) -> Expr:
        """Return the displacement gradient [1], shape (3, 3)."""
        _check(displacement, 2, "plane strain")
        g = ufl.grad(displacement)
        return ufl.as_tensor([[g[0, 0], g[0, 1], 0.0], [g[1, 0], g[1, 1], 0.0], [0.0, 0.0, self.axial_strain]])

    def weight(self, displacement: Expr) -> Expr:
        """Return 1."""
        return ufl.as_ufl(1.0)


class Axisymmetric:
    """Displacements (u_r, u_z) of (r, z) around the axis r = 0; the third direction is the circumference."""

    components: tuple[tuple[int, int], ...] = _PLANE

    def gradient(self, displacement: Expr) -> Expr:
        """Return the displacement gradient [1], shape (3, 3)."""
        _check(displacement, 2, "axisymmetry")
        g, radius = ufl.grad(displacement), ufl.SpatialCoordinate(ufl.domain.extract_unique_domain(displacement))[0]
        return ufl.as_tensor([[g[0, 0], g[0, 1], 0.0], [g[1, 0], g[1, 1], 0.0], [0.0, 0.0, displacement[0] / radius]])

    def weight(self, displacement: Expr) -> Expr:
        """Return the circumference 2 pi r [m]."""
        return 2.0 * ufl.pi * ufl.SpatialCoordinate(ufl.domain.extract_unique_domain(displacement))[0]


class Space:
    """Displacements of three components of three coordinates."""

    components: tuple[tuple[int, int], ...] = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))

    def gradient(self, displacement: Expr) -> Expr:
        """Return the displacement gradient [1], shape (3, 3)."""
        _check(displacement, 3, "space")
        return ufl.grad(displacement)

    def weight(self, displacement: Expr) -> Expr:
        """Return 1."""
        return ufl.as_ufl(1.0)


def strain(kinematics: Kinematics, displacement: Expr) -> Expr:
    """Return the small strain [1], shape (3, 3)."""
    return ufl.sym(kinematics.gradient(displacement))


def virtual_strain(kinematics: Kinematics, unknown: Expr, test: Expr) -> Expr:
    """Return the change of the small strain along a change of the displacement, shape (3, 3).

    Not the strain of ``test`` itself: a given axial strain does not change.
    """
    return ufl.derivative(strain(kinematics, unknown), unknown, test)


def symmetric_tensor(kinematics: Kinematics, entries: Expr) -> Expr:
    """Return the tensor of shape (3, 3) whose entries are given in the order of ``components``."""
    place = {pair: number for number, pair in enumerate(kinematics.components)}
    rows = [[place.get((min(i, j), max(i, j))) for j in range(3)] for i in range(3)]
    return ufl.as_tensor([[0.0 if number is None else entries[number] for number in row] for row in rows])


def symmetric_entries(kinematics: Kinematics, tensor: Expr) -> Expr:
    """Return the entries of a symmetric tensor in the order of ``components``."""
    return ufl.as_vector([tensor[i, j] for i, j in kinematics.components])


def _check(displacement: Expr, size: int, what: str) -> None:
    if displacement.ufl_shape != (size,):
        raise InputError(f"{what} needs displacements of {size} components, not of shape {displacement.ufl_shape}")
