"""The logarithm of a coefficient from noisy data of the state: everywhere, or at a few sensors."""

import math

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import fem

from pdeopt.control import ControlProblem
from pdeopt.fem import forms
from pdeopt.parallel import normal_numbers, random_stream
from pdeopt.problems.linear import Mesh, check_mesh, check_range
from pdeopt.problems.manufactured_control import unit_cube_dimension, zero_on_boundary
from pdeopt.report import InputError

Array = npt.NDArray[np.float64]
_NOISE = "problems.coefficient_inversion.noise"
_MARGIN = 0.1  # between the sensors and the boundary


class CoefficientInversion:
    """Find m from data d of the state of -div(e^m grad y) = 1 on the unit square, y = 0 on its boundary.

    Minimise the misfit and a Gaussian prior of precision gamma (-laplace + epsilon),

        T(y - d) + gamma / 2 (|grad m|^2 + epsilon |m - log 2|^2),

    where T(r) = |r|^2 / 2 when the state is seen everywhere, and sum_i r(x_i)^2 / 2 s when it is seen at s sensors. The
    data are the state of the true m, log 2 in the disc of radius 0.2 around the centre and log 9 outside, with
    independent normal noise of standard deviation ``noise`` times the largest value. All quantities are dimensionless.

    Seen everywhere, with the default mesh, degree and epsilon = 0, this is the model problem of Villa and Petra's
    course (uvilla/inverse17, ``Poisson_INCG``), where an inexact Newton-CG method that stops at a gradient of 1e-8
    needs 8 iterations and 44 of CG, and reports an objective of 1.81528e-7; its noise is not seeded, so that other
    draws differ by 1 %. A sensor reads the state at the centroid of the cell that its place lies in.

    Parameters
    ----------
    mesh
        A mesh of the unit square; of 64 x 64 cells for the published problem.
    sensors
        Number of sensors, >= 1, or None to see the state everywhere.
    gamma
        Weight of the prior, > 0.
    epsilon
        Inverse square of the prior's correlation length, >= 0.
    noise
        Relative standard deviation of the noise, >= 0.
    seed
        Of noise and places of the sensors, >= 0.
    degree
        Degree of the state; m is piecewise linear.

    Attributes
    ----------
    problem
        The control problem; its control is m, its inner product |grad m|^2 + |m|^2 times gamma.
    control
        m, at first log 2; set by ``problem.solve()``.
    truth
        The true m.
    data
        d: the noisy state, or None with sensors.
    points, readings
        Places of the sensors, shape (sensors, 2), and what they read, shape (sensors,), on all ranks; empty without.

    Raises
    ------
    InputError
        If a number is out of range, two sensors share a cell, or the mesh is of another domain (`MeshError`).

    Collective: yes.
    """

    def __init__(
        self,
        mesh: Mesh,
        sensors: int | None = None,
        *,
        gamma: float = 1e-8,
        epsilon: float = 0.0,
        noise: float = 0.05,
        seed: int = 0,
        degree: int = 2,
    ) -> None:
        check_mesh(mesh)
        check_range("gamma", gamma, 0.0)
        if epsilon < 0.0 or noise < 0.0 or (sensors is not None and sensors < 1):
            raise InputError(f"epsilon = {epsilon} and noise = {noise} must be >= 0, sensors = {sensors} >= 1 or None")
        if unit_cube_dimension(mesh) != 2:
            raise InputError("the problem is posed on the unit square: make its mesh with create_unit_square")
        self._mesh, self._noise, self._seed = mesh, noise, seed
        space = fem.functionspace(mesh, ("Lagrange", degree))
        self.state = state = fem.Function(space, name="state")
        self.control = fem.Function(fem.functionspace(mesh, ("Lagrange", 1)), name="log coefficient")
        self.truth = fem.Function(self.control.function_space, name="true log coefficient")
        self.truth.interpolate(lambda x: np.log(2.0 + 7.0 * (np.hypot(x[0] - 0.5, x[1] - 0.5) > 0.2)))
        self.control.x.array[:] = math.log(2.0)
        test = ufl.TestFunction(space)
        # Nothing in e^m is polynomial; this degree is exact where m is constant, as fine as the elements elsewhere.
        dx = ufl.dx(mesh, metadata={"quadrature_degree": 2 * degree + 1})
        equation = (ufl.exp(self.control) * ufl.inner(ufl.grad(state), ufl.grad(test)) - test) * dx
        bcs = [zero_on_boundary(space)]
        weight, shift = fem.Constant(mesh, float(gamma)), fem.Constant(mesh, float(epsilon))
        deviation = self.control - math.log(2.0)
        prior = 0.5 * weight * (ufl.inner(ufl.grad(deviation), ufl.grad(deviation)) + shift * deviation**2) * dx
        exact = self._solve_for_truth(equation, bcs)
        self.points, self.readings = np.empty((0, 2)), np.empty(0)
        self.data: fem.Function | None = None
        if sensors is None:
            self.data = self._noisy_state(exact, bcs)
            misfit = 0.5 * (state - self.data) ** 2 * dx
        else:
            misfit = self._sensor_misfit(exact, sensors)
        trial, trial_test = (
            ufl.TrialFunction(self.control.function_space),
            ufl.TestFunction(self.control.function_space),
        )
        scale = shift if epsilon > 0.0 else fem.Constant(mesh, 1.0)
        product = weight * (ufl.inner(ufl.grad(trial), ufl.grad(trial_test)) + scale * trial * trial_test) * dx
        self.problem = ControlProblem(
            objective=misfit + prior,
            state_equation=equation,
            state=state,
            control=self.control,
            bcs=bcs,
            control_inner_product=product,
        )

    def _solve_for_truth(self, equation: ufl.Form, bcs: list[fem.DirichletBC]) -> fem.Function:
        """Return the state of the true coefficient. Collective: yes."""
        space = self.state.function_space
        replaced = ufl.replace(equation, {self.control: self.truth, self.state: ufl.TrialFunction(space)})
        matrix = forms.assemble_matrix(forms.compile_form(ufl.lhs(replaced)), bcs)
        load = forms.assemble_vector(forms.compile_form(ufl.rhs(replaced)))
        right, solution = matrix.createVecs()
        right.array[:] = load.array_r[: right.getLocalSize()]
        right.array[forms.owned_dirichlet_dofs(bcs)] = 0.0
        ksp = PETSc.KSP().create(self._mesh.comm)
        ksp.setOperators(matrix)
        defaults = {"ksp_type": "preonly", "pc_type": "cholesky", "pc_factor_mat_solver_type": "mumps"}
        ksp.setOptionsPrefix("coefficient_inversion_")
        with forms.default_options("coefficient_inversion_", defaults):
            ksp.setFromOptions()
            ksp.solve(right, solution)
        exact = fem.Function(space)
        forms.set_function(exact, solution.array_r)
        for item in (ksp, matrix, load, right, solution):
            item.destroy()
        return exact

    def _noisy_state(self, exact: fem.Function, bcs: list[fem.DirichletBC]) -> fem.Function:
        """Return the state with noise that belongs to the place of a node, so alike on every number of ranks."""
        space = exact.function_space
        owned = forms.owned_size(space)
        largest = self._mesh.comm.allreduce(float(np.abs(exact.x.array[:owned]).max(initial=0.0)), op=MPI.MAX)
        places = np.round(space.tabulate_dof_coordinates()[:owned, :2] * 2**24).astype(np.int64)
        data = fem.Function(space, name="data")
        values = exact.x.array[:owned] + self._noise * largest * normal_numbers(_NOISE, places, self._seed)
        values[forms.owned_dirichlet_dofs(bcs)] = 0.0
        forms.set_function(data, values)
        return data

    def _sensor_misfit(self, exact: fem.Function, sensors: int) -> ufl.Form:
        """Choose the sensors, read them, and return their misfit. Collective: yes."""
        mesh, comm = self._mesh, self._mesh.comm
        places = _spread(sensors, self._seed)
        constants = fem.functionspace(mesh, ("DG", 0))
        centroids = constants.tabulate_dof_coordinates()[: forms.owned_size(constants), :2]
        # A sensor reads at the nearest centroid; the reading is a quadrature rule of one point, which UFL can write.
        distances = np.linalg.norm(centroids[None, :, :] - places[:, None, :], axis=2)
        nearest = distances.argmin(axis=1) if centroids.size else np.zeros(sensors, dtype=int)
        mine = distances[np.arange(sensors), nearest] if centroids.size else np.full(sensors, np.inf)
        keys = [(float(d), float(x), float(y)) for d, (x, y) in
                zip(np.round(mine, 12), centroids[nearest] if centroids.size else places, strict=True)]  # fmt: skip
        gathered = comm.allgather(keys)
        winners = [min(range(comm.size), key=lambda rank: gathered[rank][i]) for i in range(sensors)]
        self.points = np.array([gathered[rank][i][1:] for i, rank in enumerate(winners)])
        if len({tuple(np.round(point, 10)) for point in self.points}) < sensors:
            raise InputError(f"{sensors} sensors share cells of this mesh: refine it, or take fewer")
        cells = np.array([nearest[i] if winners[i] == comm.rank else -1 for i in range(sensors)])
        self.observed = np.flatnonzero(cells >= 0)
        weight, reading = fem.Function(constants), fem.Function(constants)
        self._rule = ufl.dx(mesh, metadata={"quadrature_degree": 1})
        area = forms.assemble_vector(forms.compile_form(ufl.TestFunction(constants) * self._rule))
        exact_mean = forms.assemble_vector(forms.compile_form(exact * ufl.TestFunction(constants) * self._rule))
        clean = np.zeros(sensors)
        clean[self.observed] = (exact_mean.array_r / area.array_r)[cells[self.observed]]
        clean = comm.allreduce(clean)
        stream = random_stream("problems.coefficient_inversion.readings", self._seed)
        self.readings = clean + self._noise * np.abs(clean).max() * stream.standard_normal(sensors)
        own = cells[self.observed]
        weight.x.array[own] = 1.0 / (sensors * area.array_r[own])
        reading.x.array[own] = self.readings[self.observed]
        for function in (weight, reading):
            function.x.scatter_forward()
        self._cells, self._weight = cells, 1.0 / sensors
        for item in (area, exact_mean):
            item.destroy()
        return 0.5 * weight * (self.state - reading) ** 2 * self._rule

    def observations(self) -> tuple[list[PETSc.Vec], Array]:
        """Return the covectors that read the state at the sensors, and their weights in the misfit.

        Returns
        -------
        rows, weights
            The misfit's second derivative by the state is sum_i weights_i rows_i rows_i'; owned by the caller.

        Raises
        ------
        InputError
            If the state is seen everywhere.

        Collective: yes.
        """
        if not self.readings.size:
            raise InputError("the state is seen everywhere: there are no sensors")
        constants = fem.functionspace(self._mesh, ("DG", 0))
        indicator = fem.Function(constants)
        test = ufl.TestFunction(self.state.function_space)
        form = forms.compile_form(indicator * test / ufl.CellVolume(self._mesh) * self._rule)
        fixed = forms.owned_dirichlet_dofs(self.problem.system.bcs)
        rows = []
        for cell in self._cells:
            indicator.x.array[:] = 0.0
            if cell >= 0:
                indicator.x.array[cell] = 1.0
            indicator.x.scatter_forward()
            covector = forms.assemble_vector(form)
            row = forms.SubVectors(self.problem.system.layout, 0).vector
            row.array[:] = covector.array_r[: row.getLocalSize()]
            row.array[fixed] = 0.0
            covector.destroy()
            rows.append(row)
        return rows, np.full(len(rows), self._weight)

    def error(self) -> float:
        """Return the L2 norm of the error of m relative to that of log 2. Collective: yes."""
        dx = ufl.dx(self._mesh, metadata={"quadrature_degree": 2})
        parts = [
            forms.assemble_scalar(forms.compile_form((function - self.truth) ** 2 * dx))
            for function in (self.control, fem.Constant(self._mesh, math.log(2.0)))
        ]
        return math.sqrt(parts[0] / parts[1])


def _spread(count: int, seed: int) -> Array:
    """Return places in the square that keep apart, shape (count, 2): an additive recurrence with a random shift."""
    generator = 1.32471795724474602596  # the plastic number: its powers make the most even sequence of this kind
    steps = np.arange(1, count + 1)[:, None] * np.array([1.0 / generator, 1.0 / generator**2])
    shift = random_stream("problems.coefficient_inversion.sensors", seed).random(2)
    return np.asarray(_MARGIN + (1.0 - 2.0 * _MARGIN) * ((steps + shift) % 1.0))
