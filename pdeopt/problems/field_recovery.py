"""A diffusivity to be recovered from a few readings of the states that it makes."""

from typing import Any

from mpi4py import MPI

import dolfinx
import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import fem

from pdeopt.parallel import random_stream
from pdeopt.report import InputError

Array = npt.NDArray[np.float64]


class FieldRecovery:
    """-div(e^m grad u) = f_k in the unit square, u = 0 on its boundary, read at a grid of sensors; m is unknown.

    Each source f_k is a Gaussian bump of its own place. The true m is a channel of high diffusivity and a blob of low.

    Parameters
    ----------
    comm
        Communicator of the mesh.
    cells
        Cells along a side, a multiple of ``sensors + 1``, so that the sensors are vertices.
    sensors
        Sensors along a side.
    sources
        Number of sources, 1 to 4.

    Attributes
    ----------
    space, state, log_diffusivity, source
        Continuous piecewise linear functions; u, m and f.
    bcs
        The Dirichlet condition.
    sensor_dofs, owned
        Degrees of freedom of the sensors that this rank owns, and which sensors these are.
    sensor_count
        Number of sensors.

    Raises
    ------
    InputError
        If a number does not fit.

    Collective: yes.
    """

    _PLACES = ((0.25, 0.25), (0.75, 0.75), (0.25, 0.75), (0.75, 0.25))

    def __init__(self, comm: MPI.Comm, cells: int = 48, sensors: int = 5, sources: int = 4) -> None:
        if cells % (sensors + 1) or not 1 <= sources <= len(self._PLACES):
            raise InputError(
                f"cells is {cells}, a multiple of {sensors + 1} is needed; sources is {sources}, 1 to 4 are offered"
            )
        mesh = dolfinx.mesh.create_unit_square(comm, cells, cells)
        self.space = fem.functionspace(mesh, ("Lagrange", 1))
        self.state = fem.Function(self.space, name="state")
        self.log_diffusivity = fem.Function(self.space, name="log_diffusivity")
        self.source = fem.Function(self.space, name="source")
        mesh.topology.create_connectivity(1, 2)
        dofs = fem.locate_dofs_topological(self.space, 1, dolfinx.mesh.exterior_facet_indices(mesh.topology))
        self.bcs = [fem.dirichletbc(0.0, dofs, self.space)]
        step = 1.0 / (sensors + 1)
        points = [(step * (i + 1), step * (j + 1)) for i in range(sensors) for j in range(sensors)]
        own = self.space.dofmap.index_map.size_local
        coordinates = self.space.tabulate_dof_coordinates()[:own, :2]
        found = [(np.flatnonzero(np.abs(coordinates - point).max(axis=1) < 1e-9), i) for i, point in enumerate(points)]
        self.sensor_dofs = np.array([dofs[0] for dofs, _ in found if dofs.size], dtype=np.int64)
        self.owned = np.array([i for dofs, i in found if dofs.size], dtype=np.int64)
        self.sensor_count, self.sources = len(points), sources
        self.coordinates = coordinates

    def residual(self) -> ufl.Form:
        """Return the residual form. Collective: no."""
        v, dx = ufl.TestFunction(self.space), ufl.dx(self.space.mesh, metadata={"quadrature_degree": 4})
        conduction = ufl.exp(self.log_diffusivity) * ufl.inner(ufl.grad(self.state), ufl.grad(v))
        return (conduction - self.source * v) * dx

    def truth(self) -> Array:
        """Return the true m at this rank's degrees of freedom, shape (owned,). Collective: no."""
        x, y = self.coordinates.T
        channel = np.exp(-(((y - 0.5 - 0.15 * np.sin(2.0 * np.pi * x)) / 0.12) ** 2))
        blob = np.exp(-(((x - 0.7) / 0.15) ** 2 + ((y - 0.25) / 0.15) ** 2))
        return np.asarray(1.5 * channel - 1.5 * blob)

    def source_values(self) -> Array:
        """Return the sources at this rank's degrees of freedom, shape (sources, owned). Collective: no."""
        x, y = self.coordinates.T
        places = self._PLACES[: self.sources]
        return np.array([50.0 * np.exp(-(((x - a) / 0.2) ** 2) - ((y - b) / 0.2) ** 2) for a, b in places])

    def add_noise(self, readings: Array, noise: float, seed: int = 0) -> Array:
        """Return readings of all sensors with noise, equal on all ranks.

        Parameters
        ----------
        readings
            Of this rank's sensors, shape (sources, owned sensors).
        noise
            Standard deviation of the error relative to the greatest reading.
        seed
            Of the noise.

        Returns
        -------
        readings
            Shape (sources, sensors).

        Collective: yes.
        """
        comm = self.space.mesh.comm
        whole = np.zeros((self.sources, self.sensor_count))
        whole[:, self.owned] = readings
        whole = comm.allreduce(whole)
        stream = random_stream("field recovery", seed)
        return np.asarray(whole + noise * np.abs(whole).max() * stream.standard_normal(whole.shape))

    def error(self, log_diffusivity: Any) -> float:
        """Return the relative L2 error of an m given by owned values, of vertices alike. Collective: yes."""
        comm, truth = self.space.mesh.comm, self.truth()
        parts = comm.allreduce(np.array([np.sum((log_diffusivity - truth) ** 2), np.sum(truth**2)]))
        return float(np.sqrt(parts[0] / parts[1]))
