"""What a matrix shows of itself."""

from mpi4py import MPI
from petsc4py import PETSc

import dolfinx
import dolfinx.fem.petsc
import numpy as np
import pytest
import ufl
from dolfinx import fem
from dolfinx.mesh import CellType

from pdeopt.relaxation.features import FEWEST_ROWS, FeatureReader, probe


def read(A, reader=None):
    vector, image = probe(A), A.createVecLeft()
    A.mult(vector, image)
    return (reader or FeatureReader()).read(A, vector, image)


@pytest.mark.parametrize(
    ("cell", "degree", "components", "cells"),
    [
        (CellType.triangle, 1, 1, 70),
        (CellType.triangle, 2, 2, 32),
        (CellType.triangle, 3, 2, 28),
        (CellType.triangle, 4, 1, 18),
        (CellType.quadrilateral, 2, 2, 32),
        (CellType.quadrilateral, 3, 1, 24),
        (CellType.tetrahedron, 1, 1, 18),
        (CellType.tetrahedron, 1, 3, 11),
        (CellType.tetrahedron, 2, 3, 6),
        (CellType.hexahedron, 1, 1, 17),
        (CellType.hexahedron, 2, 1, 8),
    ],
)
def test_dimension_whatever_the_element(cell, degree, components, cells):
    plane = cell in (CellType.triangle, CellType.quadrilateral)
    create = dolfinx.mesh.create_unit_square if plane else dolfinx.mesh.create_unit_cube
    mesh = create(MPI.COMM_SELF, *[cells] * (2 if plane else 3), cell)
    space = fem.functionspace(mesh, ("Lagrange", degree, (components,)) if components > 1 else ("Lagrange", degree))
    u, v = ufl.TrialFunction(space), ufl.TestFunction(space)
    A = fem.petsc.assemble_matrix(fem.form((ufl.inner(ufl.grad(u), ufl.grad(v)) + ufl.inner(u, v)) * ufl.dx))
    A.assemble()
    assert A.getSize()[0] >= FEWEST_ROWS
    features = read(A)
    assert features.dimension == (2 if plane else 3)
    assert features.block_size == components
    assert features.symmetric
    assert features.diagonal == "positive"
    assert features.kernel == "none"


def test_diagonal_matrix_is_not_singular():
    A = PETSc.Mat().createAIJ((50, 50), nnz=1, comm=MPI.COMM_SELF)
    for row in range(50):
        A[row, row] = 1.0 + row
    A.assemble()
    features = read(A)
    assert (features.kernel, features.symmetric, features.diagonal) == ("none", True, "positive")


def test_symmetry_and_signs_are_looked_at_after_every_change():
    """All is read only after the 1st, 2nd, 4th, ... change: what choices depend on must not be missed between."""
    n = 40
    A = PETSc.Mat().createAIJ((n, n), nnz=3, comm=MPI.COMM_SELF)

    def fill(convection=0.0, first=2.0):
        for row in range(n):
            A[row, row] = first if row == 0 else 2.0
            if row:
                A[row, row - 1] = -1.0 - convection
            if row < n - 1:
                A[row, row + 1] = -1.0 + convection
        A.assemble()

    reader = FeatureReader()
    for _ in range(4):
        fill()
        assert read(A, reader).symmetric
    # The 5th, 6th and 7th are none of these.
    fill(convection=1e-6)
    assert not read(A, reader).symmetric
    fill(first=-2.0)
    assert read(A, reader).diagonal == "mixed"
    fill(first=0.0)
    assert read(A, reader).diagonal == "zero"
    kernel = PETSc.NullSpace().create(constant=True, comm=MPI.COMM_SELF)
    for _ in range(2, 7):
        fill()
        assert read(A, reader).kernel == "none"
    A.setNullSpace(kernel)
    fill()
    assert read(A, reader).kernel == "attached"
    assert np.isfinite(A.norm())
