"""Heat conduction with a conductivity that depends on temperature, and boundary records of it."""

from collections.abc import Callable
from typing import Any

from mpi4py import MPI
from petsc4py import PETSc

import dolfinx
import dolfinx.fem.petsc
import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import fem

from pdeopt.parallel import random_stream
from pdeopt.report import ConvergenceError, InputError

Array = npt.NDArray[np.float64]

LOADS = 4
"""Numbers that describe the heat flux of a record."""
SENSORS_PER_SIDE = 16


def true_conductivity(temperature: Any) -> Any:
    """Return k(T) = 0.5 + 1.5 / (1 + exp(-4 (T - 1))), of arrays or UFL expressions. Collective: no."""
    exp = np.exp if isinstance(temperature, np.ndarray | float) else ufl.exp
    return 0.5 + 1.5 / (1.0 + exp(-4.0 * (temperature - 1.0)))


class ConductivityRecords:
    """-div(k(T) grad T) = 0 in the unit square, T = 0 at the bottom, a heat flux on the other sides.

    A record is a flux g = a_0 + a_1 cos(pi x) + a_2 cos(pi y) + a_3 cos(2 pi x) and the temperatures that 47 sensors on
    the heated sides read. By Kirchhoff's transform the integral of k from 0 to T is harmonic, so temperatures where the
    flux is known determine k over the range that they visit.

    Parameters
    ----------
    comm
        Communicator of the mesh.
    cells
        Cells along a side, a multiple of 16, so that the sensors are vertices.

    Attributes
    ----------
    temperature, loads
        T, and the constant a of shape (4,).
    bcs
        The Dirichlet condition.
    sensors, owned
        Degrees of freedom of the sensors that this rank owns, and which sensors these are.
    sensor_count
        Number of sensors.

    Raises
    ------
    InputError
        If ``cells`` is no multiple of 16.

    Collective: yes.
    """

    def __init__(self, comm: MPI.Comm, cells: int = 16, degree: int = 1) -> None:
        if cells < SENSORS_PER_SIDE or cells % SENSORS_PER_SIDE:
            raise InputError(f"cells is {cells}: give a multiple of {SENSORS_PER_SIDE}, so that sensors are vertices")
        mesh = dolfinx.mesh.create_unit_square(comm, cells, cells)
        self.space = fem.functionspace(mesh, ("Lagrange", degree))
        self.temperature = fem.Function(self.space, name="temperature")
        self.loads = fem.Constant(mesh, np.zeros(LOADS))
        bottom = dolfinx.mesh.locate_entities_boundary(mesh, 1, lambda x: np.isclose(x[1], 0.0))
        dofs = fem.locate_dofs_topological(self.space, 1, bottom)
        self.bcs = [fem.dirichletbc(0.0, dofs, self.space)]
        heated = dolfinx.mesh.locate_entities_boundary(mesh, 1, lambda x: ~np.isclose(x[1], 0.0) & _on_side(x))
        tags = dolfinx.mesh.meshtags(mesh, 1, np.sort(heated), np.ones(heated.size, dtype=np.int32))
        self._ds = ufl.ds(mesh, subdomain_data=tags, metadata={"quadrature_degree": 6})(1)
        points = _sensor_points()
        self.sensor_count = len(points)
        own = self.space.dofmap.index_map.size_local
        coordinates = self.space.tabulate_dof_coordinates()[:own, :2]
        found = [(np.flatnonzero(np.abs(coordinates - point).max(axis=1) < 1e-9), i) for i, point in enumerate(points)]
        self.owned = np.array([i for dofs, i in found if dofs.size], dtype=np.int64)
        self.sensors = np.array([dofs[0] for dofs, _ in found if dofs.size], dtype=np.int64)

    def residual(self, conductivity: Any, degree: int = 4) -> ufl.Form:
        """Return the residual form with a conductivity, a UFL expression. Collective: no."""
        x, v = ufl.SpatialCoordinate(self.space.mesh), ufl.TestFunction(self.space)
        a = self.loads
        flux = (
            a[0] + a[1] * ufl.cos(ufl.pi * x[0]) + a[2] * ufl.cos(ufl.pi * x[1]) + a[3] * ufl.cos(2.0 * ufl.pi * x[0])
        )
        dx = ufl.dx(self.space.mesh, metadata={"quadrature_degree": degree})
        return conductivity * ufl.inner(ufl.grad(self.temperature), ufl.grad(v)) * dx - flux * v * self._ds

    def read(self, temperature: Array) -> Array:
        """Return the readings of this rank's sensors, shape (owned sensors,), from owned values. Collective: no."""
        return temperature[self.sensors]


def make_records(
    comm: MPI.Comm,
    count: int,
    noise: float,
    seed: int = 0,
    law: Callable[[Any], Any] = true_conductivity,
) -> tuple[Array, Array, tuple[float, float]]:
    """Solve with a law on a finer mesh of higher degree, and read the sensors with noise.

    Parameters
    ----------
    comm
        Communicator of the mesh.
    count
        Number of records.
    noise
        Standard deviation of the readings' error, relative to the range of temperatures.
    seed
        Of loads and noise.
    law
        k(T).

    Returns
    -------
    loads, readings
        Shapes (count, 4) and (count, sensors), equal on all ranks.
    visited
        Least and greatest temperature in all records.

    Raises
    ------
    ConvergenceError
        If Newton's method fails.

    Collective: yes.
    """
    model = ConductivityRecords(comm, 2 * SENSORS_PER_SIDE, degree=2)
    stream = random_stream("conductivity records", seed)
    loads = np.column_stack([stream.uniform(0.3, 2.2, count), *stream.uniform(-0.8, 0.8, (LOADS - 1, count))])
    problem = dolfinx.fem.petsc.NonlinearProblem(
        model.residual(law(model.temperature), 6),
        model.temperature,
        bcs=model.bcs,
        petsc_options_prefix="conductivity_records_",
        petsc_options={
            "ksp_type": "preonly",
            "pc_type": "lu",
            "pc_factor_mat_solver_type": "mumps",
            "snes_rtol": 1e-11,
        },
    )
    readings, low, high = np.zeros((count, model.sensor_count)), np.inf, -np.inf
    for record, numbers in enumerate(loads):
        model.loads.value = numbers
        problem.solve()
        if problem.solver.getConvergedReason() <= 0:
            raise ConvergenceError(f"record {record} was not solved (reason {problem.solver.getConvergedReason()})")
        values = np.asarray(model.temperature.x.array, dtype=np.float64)
        readings[record, model.owned] = model.read(values)
        low, high = min(low, float(values.min(initial=np.inf))), max(high, float(values.max(initial=-np.inf)))
    readings = comm.allreduce(readings)
    visited = (float(comm.allreduce(low, op=MPI.MIN)), float(comm.allreduce(high, op=MPI.MAX)))
    readings += noise * (visited[1] - visited[0]) * stream.standard_normal(readings.shape)
    options = PETSc.Options()  # DOLFINx leaves its options behind
    for name in options.getAll():
        if name.startswith("conductivity_records_"):
            options.delValue(name)
    return loads, readings, visited


def _on_side(x: Array) -> npt.NDArray[np.bool_]:
    return np.asarray(np.isclose(x[0], 0.0) | np.isclose(x[0], 1.0) | np.isclose(x[1], 1.0))


def _sensor_points() -> list[tuple[float, float]]:
    step = 1.0 / SENSORS_PER_SIDE
    along = [step * (k + 1) for k in range(SENSORS_PER_SIDE)]
    top = [(x, 1.0) for x in along[:-1]]
    return [*top, *((0.0, y) for y in along), *((1.0, y) for y in along)]
