"""Time-stepping schemes, and errors of trajectories, on which `pdeopt bench certificates` measures slab estimators."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from mpi4py import MPI
from petsc4py import PETSc

import dolfinx
import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import fem

from pdeopt.bench.estimator_flows import Flow
from pdeopt.fem import estimate_solvers, forms
from pdeopt.fem.estimate import DualNorm, TrajectoryEstimate, TrajectoryEstimator, poisson_norm, stokes_norm
from pdeopt.fem.estimate_space import DualSpace
from pdeopt.parallel import random_stream

Field = npt.NDArray[np.float64]
Levels = Sequence[Field]


@dataclasses.dataclass(frozen=True)
class Scheme:
    """A one- or two-step scheme with a fixed step.

    Parameters
    ----------
    name
        ``"BDF2"``, begun by a step of the backward Euler scheme, or the name of a theta scheme.
    step
        dt [time].
    theta
        Weight of the new level in the spatial terms.
    """

    name: str
    step: float
    theta: float = 1.0

    def difference(self, levels: Levels, n: int, skip_newest: bool = False) -> Field:
        """Return the difference quotient at level n >= 1; on request without the share of level n itself."""
        weights = (1.5, -2.0, 0.5) if self.name == "BDF2" and n > 1 else (1.0, -1.0)
        newest = 0.0 * levels[n - 1] if skip_newest else weights[0] * levels[n]
        older = sum(weight * levels[n - k] for k, weight in enumerate(weights) if k > 0)
        return np.asarray((newest + older) / self.step)

    def inertia(self, n: int) -> float:
        """Return the weight of level n in the difference quotient [1/time]."""
        return (1.5 if self.name == "BDF2" and n > 1 else 1.0) / self.step

    def weighted(self, levels: Levels, n: int) -> Field:
        """Return the values at which the spatial terms are taken."""
        return np.asarray(self.theta * levels[n] + (1.0 - self.theta) * levels[n - 1])


class Evolution(Protocol):
    """A discrete evolution equation: its scheme, the dual norm for it, and its exact trajectory."""

    scheme: Scheme
    residual: ufl.Form

    @property
    def norm(self) -> DualNorm:
        """The dual norm of the spatial operator."""

    def load(self, levels: Levels, n: int) -> None:
        """Set the functions of the residual to step n. Collective: yes."""

    def solve(self, initial: Field, steps: int) -> list[Field]:
        """Return the trajectory that solves the scheme. Collective: yes."""

    def transported(self, errors: Levels, exact: Levels, n: int) -> PETSc.Vec:
        """Return v -> (difference quotient of the error, transported with the exact flow; v). Collective: yes."""

    def mass_norm(self, field: Field) -> float:
        """Return the L2 norm. Collective: yes."""


def score(evolution: Evolution, levels: Levels) -> TrajectoryEstimate:
    """Return the certificate of a trajectory that starts at the prescribed value. Collective: yes."""
    estimator = TrajectoryEstimator(evolution.norm, evolution.residual)
    for n in range(1, len(levels)):
        evolution.load(levels, n)
        estimator.add(evolution.scheme.step)
    return estimator.estimate()


def error_norms(evolution: Evolution, levels: Levels, exact: Levels) -> tuple[float, float]:
    """Return two norms of a trajectory's error: with its transported difference quotient, and without. Collective: yes.

    The first is (|e_N|^2 + sum dt (|e_n|_A^2 + |d_n e + c(u_n; e_n)|_*^2))^{1/2}, the second
    (max_n |e_n|^2 + sum dt |e_n|_A^2)^{1/2}.
    """
    step, norm = evolution.scheme.step, evolution.norm
    errors = [level - other for level, other in zip(levels, exact, strict=True)]
    energy = rate = largest = 0.0
    for n in range(1, len(errors)):
        energy += step * norm.error_norm(evolution.scheme.weighted(errors, n)) ** 2
        covector = evolution.transported(errors, exact, n)
        rate += step * norm.norm(covector) ** 2
        covector.destroy()
        largest = max(largest, evolution.mass_norm(errors[n]) ** 2)
    last = evolution.mass_norm(errors[-1]) ** 2
    return float(np.sqrt(last + energy + rate)), float(np.sqrt(largest + energy))


class Heat:
    """u' - kappa laplace u = f on the unit square, u = 0 on its boundary, by linear elements.

    Parameters
    ----------
    comm
        Communicator.
    cells
        Cells a side.
    scheme
        Any theta scheme, or BDF2.
    """

    def __init__(self, comm: MPI.Comm, cells: int, scheme: Scheme) -> None:
        mesh = dolfinx.mesh.create_unit_square(comm, cells, cells)
        space = fem.functionspace(mesh, ("Lagrange", 1))
        mesh.topology.create_connectivity(1, 2)
        boundary = fem.locate_dofs_topological(space, 1, dolfinx.mesh.exterior_facet_indices(mesh.topology))
        self.bcs = [fem.dirichletbc(PETSc.ScalarType(0.0), boundary, space)]
        self.scheme = scheme
        self.space = DualSpace(space, self.bcs)
        self.diffusivity, self._inertia = fem.Constant(mesh, 1.0), fem.Constant(mesh, 1.0)
        self._weighted, self._newest, self._history = (fem.Function(space) for _ in range(3))
        u, v = ufl.TrialFunction(space), ufl.TestFunction(space)
        x = ufl.SpatialCoordinate(mesh)
        source = 20.0 * ufl.sin(ufl.pi * x[0]) * ufl.exp(x[1])
        self.residual = (
            ufl.inner(self._inertia * self._newest + self._history - source, v)
            + self.diffusivity * ufl.inner(ufl.grad(self._weighted), ufl.grad(v))
        ) * ufl.dx
        operator = (
            self._inertia * u * v + scheme.theta * self.diffusivity * ufl.inner(ufl.grad(u), ufl.grad(v))
        ) * ufl.dx
        self._operator = self.space.compile_bilinear(operator)
        self._mass = self.space.matrix(self.space.compile_bilinear(u * v * ufl.dx))
        self.norm = poisson_norm(space, self.bcs, coefficient=1.0)
        self.step_norm = poisson_norm(space, self.bcs, coefficient=1.0, reaction=1.0 / scheme.step)

    def load(self, levels: Levels, n: int) -> None:
        """Set the functions of the residual to step n. Collective: yes."""
        self._inertia.value[...] = self.scheme.inertia(n)
        forms.set_function(self._newest, levels[n])
        forms.set_function(self._history, self.scheme.difference(levels, n, skip_newest=True))
        forms.set_function(self._weighted, self.scheme.weighted(levels, n))

    def solve(self, initial: Field, steps: int) -> list[Field]:
        """Return the trajectory that solves the scheme. Collective: yes."""
        levels = [initial]
        for n in range(1, steps + 1):
            levels.append(np.zeros_like(initial))
            self.load(levels, n)
            if n <= 2:  # the weight of the newest level, and with it the matrix, changes in BDF2's second step only
                matrix = self.space.matrix(self._operator)
                ksp = estimate_solvers.factorise(matrix, "estimate_heat_")
            right, update = self.norm.residual(self.residual), matrix.createVecRight()
            right.array[:] = self.space.free_values(right)
            ksp.solve(right, update)
            levels[n] = -update.array_r.copy()
        return levels

    def transported(self, errors: Levels, exact: Levels, n: int) -> PETSc.Vec:
        """Return v -> (difference quotient of the error, v). Collective: yes."""
        return _product(self._mass, self.scheme.difference(errors, n))

    def mass_norm(self, field: Field) -> float:
        """Return the L2 norm. Collective: yes."""
        return _norm(self._mass, field)

    def mode(self, i: int, j: int) -> Field:
        """Return sin(i pi x) sin(j pi y). Collective: yes."""
        function = fem.Function(self.norm.space.spaces[0])
        function.interpolate(lambda x: np.sin(i * np.pi * x[0]) * np.sin(j * np.pi * x[1]))
        return forms.owned_values(function)


class UnsteadyFlow:
    """The cavity of `Flow`, started from rest, by the backward Euler scheme or BDF2; levels hold velocity and pressure.

    Parameters
    ----------
    flow
        The flow, its viscosity set.
    scheme
        theta = 1.
    """

    def __init__(self, flow: Flow, scheme: Scheme) -> None:
        self.flow, self.scheme, self.residual = flow, scheme, flow.residual
        self.norm = stokes_norm(flow.spaces, flow.viscosity, flow.bcs)
        (u, p), (v, q) = flow.space.trials(), flow.space.tests()
        zero = fem.Constant(flow.mesh, 0.0)
        mass = (ufl.inner(u, v) + zero * p * q) * ufl.dx
        self._mass = flow.space.matrix(flow.space.compile_bilinear(mass))
        self._error, self._exact = fem.Function(flow.spaces[0]), fem.Function(flow.spaces[0])
        e, b = self._error, self._exact
        convection = 0.5 * (ufl.inner(ufl.grad(e) * b, v) - ufl.inner(ufl.grad(v) * b, e)) + zero * q
        self._convection = flow.space.compile_linear(convection * ufl.dx)

    def load(self, levels: Levels, n: int) -> None:
        """Set the functions of the residual to step n. Collective: yes."""
        self.flow.set_fields(levels[n])
        self._set_history(levels, n)

    def _set_history(self, levels: Levels, n: int) -> None:
        self.flow.inertia.value[...] = self.scheme.inertia(n)
        history = self.scheme.difference(levels, n, skip_newest=True)
        forms.set_function(self.flow.history, history[: self.flow.space.offsets[1]])

    def solve(self, initial: Field, steps: int, loose: bool = False) -> list[Field]:
        """Return the trajectory that solves the scheme, or that of one Picard step a time level. Collective: yes."""
        levels = [initial]
        self.flow.set_fields(initial)
        for n in range(1, steps + 1):
            self._set_history([*levels, initial], n)
            if loose:
                self.flow.step("picard")
            else:
                while self.flow.step() > 1e-11:
                    pass
            levels.append(self.flow.fields())
        return levels

    def transported(self, errors: Levels, exact: Levels, n: int) -> PETSc.Vec:
        """Return v -> (difference quotient of the error, v) + c(exact velocity; error, v). Collective: yes."""
        split = self.flow.space.offsets[1]
        forms.set_function(self._error, errors[n][:split])
        forms.set_function(self._exact, exact[n][:split])
        covector = self.flow.space.covector(self._convection)
        rate = self.scheme.difference(errors, n)
        rate[split:] = 0.0
        product = _product(self._mass, rate)
        covector.array[:] += product.array_r
        covector.array[split:] = 0.0
        product.destroy()
        return covector

    def mass_norm(self, field: Field) -> float:
        """Return the L2 norm of the velocity. Collective: yes."""
        velocity = field.copy()
        velocity[self.flow.space.offsets[1] :] = 0.0
        return _norm(self._mass, velocity)


def heat_errors(heat: Heat, steps: int, seed: int) -> tuple[list[Field], list[tuple[str, list[Field]]]]:
    """Return the exact trajectory of the heat equation, and proposals by the kind of their error. Collective: yes."""
    initial = heat.mode(1, 1)
    exact = heat.solve(initial, steps)
    proposals: list[tuple[str, list[Field]]] = []
    for factor in (0.8, 0.95, 1.2):
        heat.diffusivity.value[...] = factor
        proposals.append(("diffusivity", heat.solve(initial, steps)))
    heat.diffusivity.value[...] = 1.0
    times = np.arange(steps + 1) / steps
    generator = random_stream("certificates.heat", seed)
    for _ in range(3):
        weights = generator.standard_normal((3, 3))
        shape: Field = sum(weights[i, j] * heat.mode(i + 1, j + 1) for i in range(3) for j in range(3))
        frequency = 1.0 + 2.0 * generator.random()
        smooth = [level + 0.1 * np.sin(frequency * t) * shape for level, t in zip(exact, times, strict=True)]
        proposals.append(("smooth", smooth))
        factors = np.concatenate([[0.0], generator.standard_normal(steps)])
        proposals.append(("rough in time", [level + 0.1 * a * shape for level, a in zip(exact, factors, strict=True)]))
    return exact, proposals


def flow_errors(
    unsteady: UnsteadyFlow, steps: int, reynolds: float, seed: int
) -> tuple[list[Field], list[tuple[str, list[Field]]]]:
    """Return the exact trajectory of the cavity's start, and proposals by the kind of their error. Collective: yes."""
    flow = unsteady.flow
    flow.start()
    initial = flow.fields()
    flow.viscosity.value[...] = 1.0 / reynolds
    exact = unsteady.solve(initial, steps)
    proposals: list[tuple[str, list[Field]]] = []
    for factor in (0.8, 1.05):
        flow.viscosity.value[...] = 1.0 / (factor * reynolds)
        proposals.append(("viscosity", unsteady.solve(initial, steps)))
    flow.viscosity.value[...] = 1.0 / reynolds
    proposals.append(("loose solve", unsteady.solve(initial, steps, loose=True)))
    extrapolated = [2.0 * exact[n - 1] - exact[n - 2] for n in range(3, steps + 1)]
    proposals.append(("extrapolation", [*exact[:3], *extrapolated]))
    stokes = unsteady.norm
    directions = [flow.without_divergence(flow.random_velocity(4, seed + draw), stokes) for draw in range(2)]
    smooth = [0.1 * np.sin(np.pi * n / steps) for n in range(steps + 1)]
    generator = random_stream("certificates.flow", seed)
    rough = [0.0, *(0.1 * generator.standard_normal(steps))]
    for kind, factors in (("smooth", smooth), ("rough in time", rough)):
        for direction in directions:
            scale = unsteady.mass_norm(exact[-1]) / unsteady.mass_norm(direction)
            proposals.append((kind, [level + scale * a * direction for level, a in zip(exact, factors, strict=True)]))
    return exact, proposals


def _product(matrix: PETSc.Mat, field: Field) -> PETSc.Vec:
    vector, product = matrix.createVecs()
    vector.array[:] = field
    matrix.mult(vector, product)
    vector.destroy()
    return product


def _norm(matrix: PETSc.Mat, field: Field) -> float:
    product = _product(matrix, field)
    square = matrix.comm.tompi4py().allreduce(float(product.array_r @ field))
    product.destroy()
    return float(np.sqrt(max(square, 0.0)))
