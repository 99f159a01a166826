"""Spaces and snapshots that the tests of bases share: functions of the coordinates, alike on any number of ranks."""

from mpi4py import MPI

import dolfinx
import numpy as np
from dolfinx import fem

from pdeopt.reduced_order import InnerProduct, Snapshots

ELEMENTS = {
    "P1": ("Lagrange", 1),
    "P2 vector": ("Lagrange", 2, (2,)),
    "Nedelec": ("N1curl", 1),
    "DG0": ("DG", 0),
}


def inner_product(element="P1", cells=8, form="h1", comm=MPI.COMM_WORLD):
    mesh = dolfinx.mesh.create_unit_square(comm, cells, cells)
    return InnerProduct(fem.functionspace(mesh, ELEMENTS[element]), form)


def bump(space, parameter):
    """Return a Gaussian of a parameter (x, y, width), in every component."""
    u = fem.Function(space)
    size = space.value_size

    def value(x):
        distance = (x[0] - parameter[0]) ** 2 + (x[1] - parameter[1]) ** 2
        values = np.exp(-distance / (2.0 * parameter[2] ** 2))
        return values if size == 1 else np.array([values, values * x[0]])

    u.interpolate(value)
    return u


def bumps(inner, count, seed=0):
    """Return snapshots with their parameters."""
    parameters = np.random.default_rng(seed).uniform([0.2, 0.2, 0.1], [0.8, 0.8, 0.3], size=(count, 3))
    snapshots = Snapshots(inner, 3)
    for parameter in parameters:
        snapshots.append(bump(inner.space, parameter), parameter)
    return snapshots


def smooth_columns(inner, count):
    """Return products of cosines, independent of each other, shape (owned, count)."""
    u, columns = fem.Function(inner.space), np.empty((inner.owned, count), order="F")
    for column in range(count):
        first, second = column % 5, column // 5
        u.interpolate(lambda x, i=first, j=second: np.cos(i * np.pi * x[0]) * np.cos(j * np.pi * x[1]))
        columns[:, column] = u.x.array[: inner.owned]
    return columns
