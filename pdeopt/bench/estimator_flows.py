"""Flows and errors on which `pdeopt bench certificates` measures effectivities: a cavity and a widening channel."""

from collections.abc import Callable, Iterator

from mpi4py import MPI
from petsc4py import PETSc

import dolfinx
import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import fem

from pdeopt.fem import estimate_solvers, forms
from pdeopt.fem.estimate_flow import SolenoidalNorm, stokes_norm
from pdeopt.fem.estimate_space import DualSpace
from pdeopt.parallel import random_stream
from pdeopt.report import ConvergenceError

Field = npt.NDArray[np.float64]
FLOWS = ("cavity", "channel")
_CHANNEL_LENGTH = 6.0


class Flow:
    """Steady Navier-Stokes flow on Taylor-Hood elements, nu = 1 / Re, unit velocity and height.

    Parameters
    ----------
    comm
        Communicator.
    name
        ``"cavity"``: the unit square with a lid of velocity one; ``"channel"``: a channel of length six, inflow
        through the upper half of its left end, free outflow.
    cells
        Cells over the height.
    """

    def __init__(self, comm: MPI.Comm, name: str, cells: int) -> None:
        self.name, self.cells = name, cells
        length = 1.0 if name == "cavity" else _CHANNEL_LENGTH
        corners = [np.zeros(2), np.array([length, 1.0])]
        self.mesh = mesh = dolfinx.mesh.create_rectangle(comm, corners, [cells if length == 1.0 else 3 * cells, cells])
        self.length = length
        velocity_space = fem.functionspace(mesh, ("Lagrange", 2, (2,)))
        pressure_space = fem.functionspace(mesh, ("Lagrange", 1))
        data = fem.Function(velocity_space)
        data.interpolate(_lid if name == "cavity" else _inflow)
        walls = fem.locate_dofs_geometrical(velocity_space, lambda x: _walls(x, length, enclosed=name == "cavity"))
        self.spaces = (velocity_space, pressure_space)
        self.bcs = [fem.dirichletbc(data, walls)]
        self.space = DualSpace(self.spaces, self.bcs)
        self._data = data
        self.viscosity = fem.Constant(mesh, 1.0)
        self.force = fem.Constant(mesh, 0.0)
        self.velocity, self.pressure = fem.Function(velocity_space), fem.Function(pressure_space)
        # A step of a time-stepping scheme adds inertia * u + history to the momentum balance.
        self.inertia, self.history = fem.Constant(mesh, 0.0), fem.Function(velocity_space)
        mixed = ufl.MixedFunctionSpace(*self.spaces)
        tests = ufl.TestFunctions(mixed)
        trials = ufl.TrialFunctions(mixed)
        u, (v, q), (du, dp) = self.velocity, tests, trials
        dx = ufl.dx(metadata={"quadrature_degree": 6})
        x = ufl.SpatialCoordinate(mesh)
        stirring = self.force * ufl.as_vector([-ufl.sin(2 * ufl.pi * x[1]), ufl.sin(2 * ufl.pi * x[0])])
        momentum = ufl.grad(u) * u + self.inertia * u + self.history - stirring
        self.residual = (self.viscosity * ufl.inner(ufl.grad(u), ufl.grad(v)) + ufl.inner(momentum, v)) * dx - (
            self.pressure * ufl.div(v) + q * ufl.div(u)
        ) * dx
        oseen = (
            self.viscosity * ufl.inner(ufl.grad(du), ufl.grad(v)) + ufl.inner(ufl.grad(du) * u + self.inertia * du, v)
        ) * dx - (dp * ufl.div(v) + q * ufl.div(du) + fem.Constant(mesh, 0.0) * dp * q) * dx
        self.jacobian = oseen + ufl.inner(ufl.grad(u) * du, v) * dx
        self._compiled = {
            "residual": self.space.compile_linear(self.residual),
            "newton": self.space.compile_bilinear(self.jacobian),
            "picard": self.space.compile_bilinear(oseen),
        }

    def set_fields(self, values: Field) -> None:
        """Set velocity and pressure from owned values, shape (owned,). Collective: yes."""
        self.space.load((self.velocity, self.pressure), values)

    def fields(self) -> Field:
        """Return the owned values of velocity and pressure, shape (owned,)."""
        return np.concatenate([forms.owned_values(self.velocity), forms.owned_values(self.pressure)])

    def start(self) -> None:
        """Set the fluid at rest, with the boundary's velocity. Collective: yes."""
        self.set_fields(np.zeros(self.space.offsets[-1]))
        self.bcs[0].set(self.velocity.x.array)
        self.velocity.x.scatter_forward()

    def residual_vector(self) -> PETSc.Vec:
        """Assemble the residual at the present fields, zero on Dirichlet rows. Collective: yes."""
        vector = self.space.covector(self._compiled["residual"])
        vector.array[:] = self.space.free_values(vector)
        return vector

    def step(self, kind: str = "newton") -> float:
        """Make one step of Newton's or Picard's method and return the residual's norm before it. Collective: yes."""
        right = self.residual_vector()
        matrix = self.space.matrix(self._compiled[kind])
        if self.name == "cavity":
            self._pin(matrix)
        ksp = estimate_solvers.factorise(matrix, "estimate_flow_")
        update = matrix.createVecRight()
        ksp.solve(right, update)
        self.set_fields(self.fields() - update.array_r)
        size = float(right.norm())
        for item in (right, matrix, ksp, update):
            item.destroy()
        return size

    def _pin(self, matrix: PETSc.Mat) -> None:
        comm = self.mesh.comm
        first = matrix.getOwnershipRange()[0] + int(self.space.offsets[1])
        mine = first if self.space.field_rows(1).size else np.iinfo(PETSc.IntType).max
        pinned = min(comm.allgather(mine))
        matrix.zeroRowsColumns([pinned] if mine == pinned else [], diag=1.0)

    def solve(self, reynolds: float) -> Field:
        """Solve from the present fields by Newton's method and return the owned values. Collective: yes."""
        self.viscosity.value[...] = 1.0 / reynolds
        for _ in range(25):
            if self.step() < 1e-11:
                return self.fields()
        raise ConvergenceError(f"the {self.name} flow at Re = {reynolds} did not converge in 25 Newton steps")

    def random_velocity(self, modes: int, seed: int) -> Field:
        """Return a smooth random velocity, the curl of a stream function that vanishes with its gradient.

        psi = sum c_ij a_i(x / length) a_j(y), 0 <= i, j <= modes, a_i(s) = s^2 (1 - s)^2 cos(i pi s), with normal c_ij.

        Collective: yes.
        """
        weights = random_stream(f"certificates.velocity.{modes}", seed).standard_normal((modes + 1, modes + 1))
        function = fem.Function(self.spaces[0])

        def velocity(x: Field) -> Field:
            along, along_slope = _modes(x[0] / self.length, modes)
            across, across_slope = _modes(x[1], modes)
            first = np.einsum("ij,ip,jp->p", weights, along, across_slope)
            second = -np.einsum("ij,ip,jp->p", weights, along_slope, across) / self.length
            return np.vstack([first, second])

        function.interpolate(velocity)
        return np.concatenate([forms.owned_values(function), np.zeros(forms.owned_size(self.spaces[1]))])

    def noise(self, seed: int) -> Field:
        """Return independent random values of all velocity unknowns. Collective: no."""
        values = random_stream("certificates.noise", seed, self.mesh.comm).standard_normal(self.space.offsets[1])
        return np.concatenate([values, np.zeros(forms.owned_size(self.spaces[1]))])

    def without_divergence(self, velocity: Field, stokes: SolenoidalNorm) -> Field:
        """Return the projection, in the energy norm, on velocities without discrete divergence. Collective: yes."""
        velocity = velocity.copy()
        velocity[self.space.constrained] = 0.0
        covector = stokes.riesz_covector(velocity)
        stokes.norm(covector)
        covector.destroy()
        projected = forms.owned_values(stokes.representative[0])
        return np.concatenate([projected, np.zeros(velocity.size - projected.size)])


def errors(flow: Flow, reynolds: float, seed: int, quick: bool) -> Iterator[tuple[str, Field]]:
    """Yield kinds of error and proposals (owned values) that have them; the flow's solution must be set.

    Generic errors have relative sizes of 1e-1, 1e-2 and 1e-4 in the energy norm and no discrete divergence; parametric
    ones are solutions at other viscosities and under another force; loose solves are Picard's iterates; coarse ones the
    interpolated solution on a mesh of half the size, whose divergence does not vanish. Collective: yes.
    """
    exact = flow.fields()
    with stokes_norm(flow.spaces, flow.viscosity, flow.bcs, options_prefix="estimate_projection_") as stokes:
        size = stokes.error_norm(exact)
        draws = 1 if quick else 2
        generic: list[tuple[str, Callable[[int], Field]]] = [
            (f"solenoidal, {modes} modes", lambda draw, modes=modes: flow.random_velocity(modes, seed + draw))  # type: ignore[misc]
            for modes in (2, 4, 8)
        ]
        for kind, make in [*generic, ("noise", lambda draw: flow.noise(seed + draw))]:
            for draw in range(draws):
                direction = flow.without_divergence(make(draw), stokes)
                for amplitude in (1e-1, 1e-2, 1e-4):
                    yield kind, exact + direction * (amplitude * size / stokes.error_norm(direction))
    changes = (0.8, 1.05) if quick else (0.8, 0.95, 1.05, 1.2)
    for change in changes:
        flow.set_fields(exact)
        proposal = flow.solve(change * reynolds)
        flow.viscosity.value[...] = 1.0 / reynolds
        yield "viscosity", proposal
    for strength in (5.0,) if quick else (-5.0, -1.0, 1.0, 5.0):
        flow.set_fields(exact)
        flow.force.value[...] = strength / reynolds
        proposal = flow.solve(reynolds)
        flow.force.value[...] = 0.0
        yield "force", proposal
    for steps in (2, 4):
        flow.start()
        for _ in range(steps):
            flow.step("picard")
        yield "loose solve", flow.fields()
    yield "coarse mesh", coarse_solution(flow, reynolds)
    flow.set_fields(exact)


def coarse_solution(flow: Flow, reynolds: float) -> Field:
    """Return the solution on a mesh of half the size, interpolated. Collective: yes."""
    coarse = Flow(flow.mesh.comm, flow.name, flow.cells // 2)
    continue_to(coarse, reynolds)
    cells = np.arange(flow.mesh.topology.index_map(2).size_local, dtype=np.int32)
    parts = []
    for source, space in zip((coarse.velocity, coarse.pressure), flow.spaces, strict=True):
        target = fem.Function(space)
        data = fem.create_interpolation_data(space, source.function_space, cells, padding=1e-10)
        target.interpolate_nonmatching(source, cells, data)
        target.x.scatter_forward()
        if space is flow.spaces[0]:
            flow.bcs[0].set(target.x.array)
        parts.append(forms.owned_values(target))
    return np.concatenate(parts)


def continue_to(flow: Flow, reynolds: float) -> Field:
    """Solve at a Reynolds number by continuation from the fluid at rest. Collective: yes."""
    flow.start()
    for stage in (100.0, 200.0, 300.0, 400.0, 700.0):
        if stage < reynolds:
            flow.solve(stage)
    return flow.solve(reynolds)


def _modes(s: Field, modes: int) -> tuple[Field, Field]:
    """Return a_0 ... a_modes and their derivatives at points, shape (modes + 1, points) each."""
    angles = np.pi * np.arange(modes + 1)[:, None]
    bubble, slope = (s * (1.0 - s)) ** 2, 2.0 * s * (1.0 - s) * (1.0 - 2.0 * s)
    cosine, sine = np.cos(angles * s), np.sin(angles * s)
    return bubble * cosine, slope * cosine - bubble * angles * sine


def _lid(x: Field) -> Field:
    return np.vstack([np.where(x[1] > 1.0 - 1e-9, 1.0, 0.0), np.zeros(x.shape[1])])


def _inflow(x: Field) -> Field:
    profile = np.where((x[0] < 1e-9) & (x[1] > 0.5), 16.0 * (x[1] - 0.5) * (1.0 - x[1]), 0.0)
    return np.vstack([profile, np.zeros(x.shape[1])])


def _walls(x: Field, length: float, enclosed: bool) -> npt.NDArray[np.bool_]:
    on_wall = np.isclose(x[1], 0.0) | np.isclose(x[1], 1.0) | np.isclose(x[0], 0.0)
    return np.asarray(on_wall | np.isclose(x[0], length) if enclosed else on_wall)
