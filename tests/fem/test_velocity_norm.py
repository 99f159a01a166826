"""The velocity error that a residual stands for: exact for Stokes flows, whatever the viscosity."""

from mpi4py import MPI
from petsc4py import PETSc

import basix.ufl
import dolfinx
import numpy as np
import pytest
import ufl
from dolfinx.fem import petsc as fem_petsc

from pdeopt.fem.estimate_velocity import VelocityNorm
from pdeopt.report import InputError

comm = MPI.COMM_WORLD


@pytest.mark.parallel([1, 2])
def test_it_is_the_error_of_a_stokes_flow():
    mesh = dolfinx.mesh.create_unit_square(comm, 6, 6)
    velocity = basix.ufl.element("Lagrange", "triangle", 2, shape=(2,))
    pressure = basix.ufl.element("Lagrange", "triangle", 1)
    space = dolfinx.fem.functionspace(mesh, basix.ufl.mixed_element([velocity, pressure]))
    velocities, _ = space.sub(0).collapse()
    mesh.topology.create_connectivity(1, 2)
    facets = dolfinx.mesh.exterior_facet_indices(mesh.topology)
    dofs = dolfinx.fem.locate_dofs_topological((space.sub(0), velocities), 1, facets)
    condition = dolfinx.fem.dirichletbc(dolfinx.fem.Function(velocities), dofs, space.sub(0))
    error = dolfinx.fem.Function(space)
    error.x.array[:] = np.random.default_rng(comm.rank).standard_normal(error.x.array.size)
    condition.set(error.x.array)
    error.x.scatter_forward()
    nu = dolfinx.fem.Constant(mesh, 1.0)
    (u, p), (v, q) = ufl.split(error), ufl.TestFunctions(space)
    form = dolfinx.fem.form(
        (nu * ufl.inner(ufl.grad(u), ufl.grad(v)) - p * ufl.div(v) - q * ufl.div(u)) * ufl.dx
    )  # of any velocity: its divergence is an error too
    square = comm.allreduce(dolfinx.fem.assemble_scalar(dolfinx.fem.form(ufl.inner(u, u) * ufl.dx)))
    norm = VelocityNorm(space, nu, [condition])
    for value in (1.0, 1e-3, 50.0):
        nu.value = value
        residual = fem_petsc.assemble_vector(form)
        residual.ghostUpdate(addv=PETSc.InsertMode.ADD, mode=PETSc.ScatterMode.REVERSE)
        assert norm(residual) == pytest.approx(np.sqrt(square), rel=1e-9)
    residual.set(np.nan)
    assert norm(residual) == np.inf
    nu.value = -1.0
    with pytest.raises(InputError, match=r"viscosity is -1\.0"):
        norm(residual)
    norm.destroy()
