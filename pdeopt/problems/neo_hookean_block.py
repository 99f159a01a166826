"""A rubber block pressed and pulled by a traction that may act anywhere on its top: a test of local reduced bases."""

import math
from typing import Any

from mpi4py import MPI

import dolfinx
import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import fem
from dolfinx.fem import petsc as fem_petsc

from pdeopt.fem.kinematics import PlaneStrain
from pdeopt.fem.materials import lame_parameters, neo_hooke_stress
from pdeopt.parallel import random_stream
from pdeopt.problems.linear import Mesh
from pdeopt.report import InputError

_YOUNG, _POISSON = 1.0e6, 0.3  # Pa, 1
_WIDTH = 0.08  # m, standard deviation of the traction's place
_CENTRE = (0.15, 0.85)  # m
_ANGLE = (-0.5 * np.pi, 0.5 * np.pi)  # rad, from the outward normal: never a push into the block beyond shear
_TRACTION = (2e4, 3e5)  # Pa
_STIFFNESS = (0.5, 2.0)


class NeoHookeanBlock:
    """A unit square [m] of compressible Neo-Hooke material in plane strain, fixed at its bottom.

    On the top acts the dead traction T exp(-(x - c)^2 / (2 s^2)) (sin a, cos a), and Young's modulus of the upper half
    is k times that of the lower, 1 MPa. The parameters are (c [m], a [rad], T [Pa], k).

    Parameters
    ----------
    comm
        Communicator to distribute the mesh over.
    cells
        Squares along a side, each of two triangles; even, so that the material changes between cells.
    degree
        Degree of the Lagrange elements.

    Attributes
    ----------
    u
        Displacement [m].
    residual, bcs
        The weak form and its boundary conditions.

    Raises
    ------
    InputError
        If the number of cells is not positive and even.

    Collective: yes.
    """

    def __init__(self, comm: MPI.Comm, cells: int = 32, degree: int = 1) -> None:
        if cells < 2 or cells % 2:
            raise InputError(f"{cells} cells along a side do not meet at half the height: give an even number")
        self.mesh: Mesh = dolfinx.mesh.create_unit_square(comm, cells, cells)
        mesh = self.mesh
        self.space = fem.functionspace(mesh, ("Lagrange", degree, (2,)))
        self.u: fem.Function[Any] = fem.Function(self.space, name="displacement")
        bottom = dolfinx.mesh.locate_entities_boundary(mesh, 1, lambda x: np.isclose(x[1], 0.0))
        self.bcs = [fem.dirichletbc(np.zeros(2), fem.locate_dofs_topological(self.space, 1, bottom), self.space)]
        top = np.sort(dolfinx.mesh.locate_entities_boundary(mesh, 1, lambda x: np.isclose(x[1], 1.0)))
        tags = dolfinx.mesh.meshtags(mesh, 1, top, np.ones_like(top))
        self._centre, self._stiffness = fem.Constant(mesh, 0.5), fem.Constant(mesh, 1.0)
        self._traction = fem.Constant(mesh, np.zeros(2))
        owned = np.arange(mesh.topology.index_map(2).size_local, dtype=np.int32)
        upper: fem.Function[Any] = fem.Function(fem.functionspace(mesh, ("DG", 0)), name="upper half")
        upper.x.array[: owned.size] = dolfinx.mesh.compute_midpoints(mesh, 2, owned)[:, 1] > 0.5
        upper.x.scatter_forward()
        kinematics, test = PlaneStrain(), ufl.TestFunction(self.space)
        young = fem.Constant(mesh, _YOUNG) * (1.0 + upper * (self._stiffness - 1.0))
        lame, shear = lame_parameters(young, fem.Constant(mesh, _POISSON))
        stress = neo_hooke_stress(kinematics.gradient(self.u), lame, shear)
        distance = (ufl.SpatialCoordinate(mesh)[0] - self._centre) / fem.Constant(mesh, _WIDTH)
        dx = ufl.dx(mesh, metadata={"quadrature_degree": max(1, 2 * (degree - 1))})
        ds = ufl.Measure("ds", mesh, subdomain_data=tags, metadata={"quadrature_degree": 4 * degree})
        self.residual = ufl.inner(stress, kinematics.gradient(test)) * dx
        self.residual -= ufl.exp(-0.5 * distance**2) * ufl.inner(self._traction, test) * ds(1)

    def set_parameter(self, parameter: npt.NDArray[np.float64]) -> None:
        """Set (c, a, T, k), shape (4,). Collective: no, but all ranks must set the same."""
        centre, angle, traction, stiffness = parameter
        self._centre.value, self._stiffness.value = np.asarray(centre), np.asarray(stiffness)
        self._traction.value[:] = traction * np.sin(angle), traction * np.cos(angle)

    def parameters(self, count: int, stream: str, seed: int = 0) -> npt.NDArray[np.float64]:
        """Return parameters of a named random stream, shape (count, 4), the same on all ranks. Collective: no."""
        generator = random_stream(stream, seed)
        return np.column_stack(
            [
                generator.uniform(*_CENTRE, count),
                generator.uniform(*_ANGLE, count),
                _log_uniform(generator, _TRACTION, count),
                _log_uniform(generator, _STIFFNESS, count),
            ]
        )

    def solver(self, prefix: str = "block_", **options: object) -> fem_petsc.NonlinearProblem:
        """Return Newton's method with a sparse LU factorisation by MUMPS. Collective: yes."""
        chosen = {
            "snes_type": "newtonls", "snes_linesearch_type": "bt", "snes_rtol": 1e-10, "snes_atol": 1e-8,
            "snes_max_it": 60, "snes_error_if_not_converged": None,
            "ksp_type": "preonly", "pc_type": "lu", "pc_factor_mat_solver_type": "mumps",
        } | options  # fmt: skip
        return fem_petsc.NonlinearProblem(
            self.residual, self.u, petsc_options_prefix=prefix, bcs=self.bcs, petsc_options=chosen
        )


def _log_uniform(generator: np.random.Generator, bounds: tuple[float, float], count: int) -> npt.NDArray[np.float64]:
    return np.exp(generator.uniform(math.log(bounds[0]), math.log(bounds[1]), count))
