"""A steel plate under a hot, then cold spot that moves over it: a test of reduced-order models with a history."""

import math
from typing import Any

from mpi4py import MPI

import dolfinx
import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import fem

from pdeopt.fem.kinematics import PlaneStrain, virtual_strain
from pdeopt.fem.materials import LinearHardening, VonMisesMaterial
from pdeopt.fem.quasi_static import NewtonEquilibrium, QuasiStatic, Trajectory
from pdeopt.parallel import random_stream
from pdeopt.problems.linear import Mesh, check_range
from pdeopt.report import InputError

STEEL = VonMisesMaterial(200e9, 0.3, 250e6, 250e6, hardening=LinearHardening(2e9))
_SIDE = 0.1  # m
_EXPANSION = 1.2e-5  # 1/K
_WIDTH = 0.015  # m, standard deviation of the spot
_CENTRE = (0.25, 0.75)  # where the spot begins and ends, parts of the side
_AMPLITUDE = (150.0, 400.0)  # K
STEPS = 20


class ThermoplasticPlate:
    """A square plate in plane strain, 0.1 m wide, fixed at its left edge, in von Mises plasticity with hardening.

    The temperature is A sin(3 pi t / 2) exp(-|x - c(t)|^2 / (2 s^2)), 0 <= t <= 1, with a centre that moves straight
    from one point to another: the spot heats up, cools down at t = 1/3, where the load reverses, and ends as a cold
    spot. The parameters are (x, y) of the start, (x, y) of the end, both in parts of the side, and A [K].

    Parameters
    ----------
    comm
        Communicator to distribute the mesh over.
    cells
        Squares along a side, each of two triangles.
    degree
        Degree of the Lagrange elements. Linear triangles lock in plastic flow: the plate is a test of models of it, not
        of steel.
    material
        The law.

    Attributes
    ----------
    u
        Displacement [m].
    residual, bcs, internal
        The weak form, its boundary conditions and the internal variables.
    driver
        What steps through time.

    Raises
    ------
    InputError
        If a number of cells is not positive.

    Collective: yes.
    """

    def __init__(
        self,
        comm: MPI.Comm,
        cells: int = 40,
        *,
        degree: int = 1,
        material: VonMisesMaterial = STEEL,
        prefix: str = "plate_",
        **options: object,
    ) -> None:
        if cells < 1:
            raise InputError(f"{cells} cells along a side are too few: give at least 1")
        mesh: Mesh = dolfinx.mesh.create_rectangle(comm, [(0.0, 0.0), (_SIDE, _SIDE)], (cells, cells))
        self.mesh = mesh
        self.space = fem.functionspace(mesh, ("Lagrange", degree, (2,)))
        self.u: fem.Function[Any] = fem.Function(self.space, name="displacement")
        self._centre = fem.Constant(mesh, np.zeros(2))
        self._rise = fem.Constant(mesh, 0.0)
        self._parameter = np.array([0.25, 0.5, 0.75, 0.5, 300.0])
        facets = dolfinx.mesh.locate_entities_boundary(mesh, 1, lambda x: np.isclose(x[0], 0.0))
        dofs = fem.locate_dofs_topological(self.space, 1, facets)
        self.bcs = [fem.dirichletbc(np.zeros(2), dofs, self.space)]
        points = max(1, 2 * (degree - 1))
        distance = ufl.SpatialCoordinate(mesh) - self._centre
        width = fem.Constant(mesh, _WIDTH)
        self.temperature = self._rise * ufl.exp(-ufl.dot(distance, distance) / (2.0 * width**2))
        expansion = fem.Constant(mesh, _EXPANSION)
        kinematics, time_step = PlaneStrain(), fem.Constant(mesh, 1.0)
        stress, self.internal = material.at_points(
            self.u, kinematics, points, thermal_strain=expansion * self.temperature, time_step=time_step
        )
        dx = ufl.dx(mesh, metadata={"quadrature_degree": points, "quadrature_rule": "default"})
        self.stress = stress
        self.residual = ufl.inner(stress, virtual_strain(kinematics, self.u, ufl.TestFunction(self.space))) * dx
        self.solver = NewtonEquilibrium(self.residual, self.internal, self.bcs, prefix=prefix, **options)
        self.driver = QuasiStatic(self.solver, self.set_load, time_step=time_step)

    def set_parameter(self, parameter: npt.NDArray[np.float64]) -> None:
        """Set (x, y, x, y, A), shape (5,). Collective: no, but all ranks must set the same."""
        if np.shape(parameter) != (5,):
            raise InputError(f"parameters of the plate have the shape {np.shape(parameter)}: give (x, y, x, y, A)")
        self._parameter = np.array(parameter, float)

    def set_load(self, time: float) -> None:
        """Set the temperature of a time in [0, 1] [s]. Collective: no."""
        start, end, amplitude = self._parameter[:2], self._parameter[2:4], self._parameter[4]
        self._centre.value[:] = _SIDE * (start + time * (end - start))
        self._rise.value = np.asarray(amplitude * math.sin(1.5 * math.pi * time))

    def parameters(self, count: int, stream: str, seed: int = 0) -> npt.NDArray[np.float64]:
        """Return parameters of a named random stream, shape (count, 5), the same on all ranks. Collective: no."""
        generator = random_stream(stream, seed)
        return np.hstack(
            [generator.uniform(*_CENTRE, size=(count, 4)), generator.uniform(*_AMPLITUDE, size=(count, 1))]
        )

    def times(self, steps: int = STEPS) -> npt.NDArray[np.float64]:
        """Return the ends of equal steps [s], shape (steps,). Collective: no."""
        check_range("steps", float(steps), 0.0)
        return np.arange(1, steps + 1) / steps

    def solve_trajectory(self, parameter: npt.NDArray[np.float64], steps: int = STEPS) -> Trajectory:
        """Return what the plate, at rest and virgin at first, goes through. Collective: yes."""
        self.set_parameter(parameter)
        self.driver.reset()
        return self.driver.march(self.times(steps))
