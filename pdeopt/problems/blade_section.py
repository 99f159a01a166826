"""Section of a cooled turbine blade through a flight: viscoplastic flow under temperatures that nobody foresaw."""

import os
from typing import Any

from mpi4py import MPI
from petsc4py import PETSc

import dolfinx
import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import fem
from ufl.core.expr import Expr

from pdeopt.fem import forms
from pdeopt.fem.kinematics import PlaneStrain, virtual_strain
from pdeopt.fem.materials import KinematicHardening, LinearHardening, NortonViscosity, VonMisesMaterial
from pdeopt.fem.mesh import MeshData, read_mesh
from pdeopt.fem.quasi_static import NewtonEquilibrium, QuasiStatic, Trajectory
from pdeopt.parallel import random_stream
from pdeopt.report import InputError

_REST = 300.0  # K, at rest and free of stress
_EXPANSION = 1.4e-5  # 1/K
_CONDUCTIVITY = 25.0  # W/(m K)
_OUTER, _CHANNELS = 3000.0, 4500.0  # heat transfer coefficients, W/(m^2 K)
_CHORD = 0.05  # m
ZONES = ("leading edge", "suction side", "pressure side", "coolant")
# The range of each parameter: rises above the rest [K] at take-off of the gas along each zone and of the coolant, what
# of them there is in cruise and when the thrust is reversed, and the length of take-off [s].
_RISES = ((950.0, 1250.0), (750.0, 1050.0), (800.0, 1100.0), (300.0, 450.0))
_CRUISE = ((0.6, 0.9), (0.6, 0.9), (0.6, 0.9), (0.7, 1.1))
_REVERSAL = ((0.7, 1.05), (0.7, 1.05), (0.7, 1.05), (0.8, 1.2))
_TAKE_OFF = (60.0, 180.0)
_LANDING = 3600.0  # s
_BOUNDS = (*_RISES, *_CRUISE, *_REVERSAL, _TAKE_OFF)
STEPS = 24


class BladeSection:
    """The section of ``meshes/blade_section.msh`` in generalised plane strain, through take-off, cruise and landing.

    The temperature is T = 300 K + sum of rise_i(t) T_i(x), where T_i is the steady temperature when the gas along one
    zone of the surface, or the coolant, is warmer by 1 K: conduction levels out within seconds, a flight takes an hour.
    Rises go up within 30 s, stay for the take-off, change to cruise in 60 s and stay; after an hour they change within
    20 s to those of the reversal of the thrust, stay for 20 s and return to zero in 60 s, when what the heat squeezed
    is stretched. The parameters, 13 numbers, are the rises of the four zones at take-off [K], the part of each that
    there is in cruise, the same at the reversal, and the length of the take-off [s].

    The alloy, made up after nickel alloys, creeps: dp/dt = ((sigma - X - R) / K)^n, with Young's modulus, yield
    stress, K and n that fall with the temperature. The blade is long and free to grow: its axial strain is its mean
    thermal strain. Two points of the section are held, which causes no stress.

    Parameters
    ----------
    comm
        Communicator to distribute the mesh over.
    mesh_file
        The mesh, in metres, with the groups "metal" (cells), "suction side", "pressure side" and "channels" (facets).
    degree
        Degree of the Lagrange elements of the displacement; linear triangles lock.

    Attributes
    ----------
    u
        Displacement [m].
    temperature, stress
        Expressions of the present time [K, Pa].
    residual, bcs, internal
        The weak form, its boundary conditions and the internal variables.
    driver
        What steps through time [s].

    Raises
    ------
    MeshError
        If the mesh cannot be used.

    Collective: yes.
    """

    def __init__(
        self,
        comm: MPI.Comm,
        mesh_file: str | os.PathLike[str],
        *,
        degree: int = 2,
        prefix: str = "blade_",
        **options: object,
    ) -> None:
        self.mesh_data: MeshData = read_mesh(mesh_file, comm)
        mesh = self.mesh_data.mesh
        self.mesh = mesh
        self.influences = self._heat_conduction()
        self._rises = fem.Constant(mesh, np.zeros(len(ZONES)))
        self._axial_strain, self._time_step = fem.Constant(mesh, 0.0), fem.Constant(mesh, 1.0)
        rise = sum((self._rises[zone] * self.influences[zone] for zone in range(len(ZONES))), start=ufl.as_ufl(0.0))
        self.temperature = fem.Constant(mesh, _REST) + rise
        area = forms.assemble_scalar(forms.compile_form(fem.Constant(mesh, 1.0) * ufl.dx(mesh)))
        means = [forms.assemble_scalar(forms.compile_form(field * ufl.dx(mesh))) for field in self.influences]
        self._means = np.array(means) / area

        self.space = fem.functionspace(mesh, ("Lagrange", degree, (2,)))
        self.u: fem.Function[Any] = fem.Function(self.space, name="displacement")
        kinematics = PlaneStrain(self._axial_strain)
        points = max(1, 2 * (degree - 1))
        self.stress, self.internal = _alloy(mesh, rise).at_points(
            self.u,
            kinematics,
            points,
            thermal_strain=fem.Constant(mesh, _EXPANSION) * rise,
            time_step=self._time_step,
        )
        dx = ufl.dx(mesh, metadata={"quadrature_degree": points, "quadrature_rule": "default"})
        self.residual = ufl.inner(self.stress, virtual_strain(kinematics, self.u, ufl.TestFunction(self.space))) * dx
        self.bcs = self._held_points()
        self.solver = NewtonEquilibrium(self.residual, self.internal, self.bcs, prefix=prefix, **options)
        self.driver = QuasiStatic(self.solver, self.set_load, time_step=self._time_step)
        self._parameter = np.array([np.mean(bounds) for bounds in _BOUNDS])

    def set_parameter(self, parameter: npt.NDArray[np.float64]) -> None:
        """Set the parameters, shape (13,). Collective: no, but all ranks must set the same."""
        if np.shape(parameter) != self._parameter.shape:
            raise InputError(f"parameters of the blade have the shape {np.shape(parameter)}: give 13")
        self._parameter = np.array(parameter, float)

    def set_load(self, time: float) -> None:
        """Set the temperature of a time [s]. Collective: no."""
        rises, cruise, reversal = self._parameter[:12].reshape(3, 4)
        take_off = self._parameter[12]
        knots = np.array(
            [0.0, 30.0, 30.0 + take_off, 90.0 + take_off, *(_LANDING + np.array([0.0, 20.0, 40.0, 100.0]))]
        )
        for zone, (rise, left, back) in enumerate(zip(rises, cruise, reversal, strict=True)):
            self._rises.value[zone] = rise * np.interp(time, knots, [0.0, 1.0, 1.0, left, left, back, back, 0.0])
        self._axial_strain.value = np.asarray(_EXPANSION * float(self._means @ self._rises.value))

    def parameters(self, count: int, stream: str, seed: int = 0) -> npt.NDArray[np.float64]:
        """Return parameters of a named random stream, shape (count, 13), the same on all ranks. Collective: no."""
        lower, upper = np.array(_BOUNDS).T
        return random_stream(stream, seed).uniform(lower, upper, size=(count, lower.size))

    def times(self, steps: int = STEPS) -> npt.NDArray[np.float64]:
        """Return the ends of steps [s], shape (steps,): a quarter each for rise, take-off, cruise and landing.

        Raises
        ------
        InputError
            If the number of steps is not a positive multiple of 4.

        Collective: no.
        """
        if steps < 4 or steps % 4:
            raise InputError(f"{steps} steps do not divide into the four parts of a flight: give a multiple of 4")
        ends = np.array([0.0, 30.0, 90.0 + self._parameter[12], _LANDING, _LANDING + 100.0])
        part = np.arange(1, steps // 4 + 1) / (steps // 4)
        # Creep slows down: in cruise each step is longer than the one before.
        shapes = (part, part, part**2, part)
        return np.concatenate(
            [start + (end - start) * shape for start, end, shape in zip(ends[:-1], ends[1:], shapes, strict=True)]
        )

    def solve_trajectory(self, parameter: npt.NDArray[np.float64], steps: int = STEPS) -> Trajectory:
        """Return what the blade, at rest and virgin at first, goes through. Collective: yes."""
        self.set_parameter(parameter)
        self.driver.reset()
        return self.driver.march(self.times(steps))

    def _heat_conduction(self) -> list[fem.Function[Any]]:
        """Return the steady temperature of each zone's unit rise; they add up to one. Collective: yes."""
        data = self.mesh_data
        space = fem.functionspace(data.mesh, ("Lagrange", 1))
        trial, test = ufl.TrialFunction(space), ufl.TestFunction(space)
        ds = ufl.Measure("ds", data.mesh, subdomain_data=data.facet_tags, metadata={"quadrature_degree": 4})
        suction, pressure = ds(data.tag("suction side")), ds(data.tag("pressure side"))
        channels, outer = ds(data.tag("channels")), fem.Constant(data.mesh, _OUTER)
        inner, conductivity = fem.Constant(data.mesh, _CHANNELS), fem.Constant(data.mesh, _CONDUCTIVITY)
        along = ufl.SpatialCoordinate(data.mesh)[0] / _CHORD
        nose = ufl.exp(-((along / 0.12) ** 2))
        a = conductivity * ufl.inner(ufl.grad(trial), ufl.grad(test)) * ufl.dx(data.mesh)
        a += outer * trial * test * (suction + pressure) + inner * trial * test * channels
        supplies = (
            outer * nose * test * (suction + pressure),
            outer * (1.0 - nose) * test * suction,
            outer * (1.0 - nose) * test * pressure,
            inner * test * channels,
        )
        matrix = forms.assemble_matrix(forms.compile_form(a))
        solver = PETSc.KSP().create(data.mesh.comm)
        solver.setOperators(matrix)
        solver.setType("preonly")
        solver.getPC().setType("cholesky")
        solver.getPC().setFactorSolverType("mumps")
        solver.setErrorIfNotConverged(True)
        fields = []
        for zone, supply in zip(ZONES, supplies, strict=True):
            field: fem.Function[Any] = fem.Function(space, name=f"influence of the {zone}")
            vector = forms.assemble_vector(forms.compile_form(supply))
            solver.solve(vector, field.x.petsc_vec)
            field.x.scatter_forward()
            fields.append(field)
            vector.destroy()
        solver.destroy()
        matrix.destroy()
        return fields

    def _held_points(self) -> list[fem.DirichletBC[Any]]:
        """Hold the leading edge, and the end of the mean line across the chord."""
        x = self.mesh.geometry.x
        far = self.mesh.comm.allreduce(float(x[:, 0].max()) if x.size else 0.0, op=MPI.MAX)
        held = (
            (0, lambda x: np.hypot(x[0], x[1]) < 1e-9),
            (1, lambda x: np.hypot(x[0], x[1]) < 1e-9),
            (1, lambda x: x[0] > far - 1e-9),
        )
        conditions = []
        for axis, point in held:
            part = self.space.sub(axis)
            dofs = fem.locate_dofs_geometrical((part, part.collapse()[0]), point)
            conditions.append(fem.dirichletbc(np.asarray(0.0), dofs[0], part))
        return conditions


def _alloy(mesh: dolfinx.mesh.Mesh[Any], rise: Expr) -> VonMisesMaterial:
    """Return the alloy at a rise of the temperature [K] above the rest."""

    def falling(cold: float, hot: float) -> Expr:
        """Linear between the rest and 1000 K above it."""
        return fem.Constant(mesh, cold) + fem.Constant(mesh, (hot - cold) / 1000.0) * rise

    return VonMisesMaterial(
        young=falling(210e9, 130e9),
        poisson=0.3,
        yield_stress=falling(350e6, 50e6),
        stress_scale=300e6,
        hardening=LinearHardening(1e9),
        kinematic=KinematicHardening(falling(40e9, 15e9), recall=200.0),
        viscosity=NortonViscosity(falling(1200e6, 500e6), falling(12.0, 5.0)),
    )
