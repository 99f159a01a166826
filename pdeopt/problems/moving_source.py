"""Nonlinear heat conduction in a plate under a heat source that may be anywhere: a test of reduced-order models."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import fem
from dolfinx.fem import petsc as fem_petsc

from pdeopt.parallel import random_stream
from pdeopt.problems.linear import Mesh, check_range
from pdeopt.problems.manufactured_control import zero_on_boundary


@dataclasses.dataclass(frozen=True)
class SourceRange:
    """Where the parameters (x, y, amplitude) of a source lie, and how wide it is.

    Parameters
    ----------
    width
        Standard deviation s of the Gaussian.
    centre
        Least and greatest coordinate of the centre, in both directions.
    amplitude
        Least and greatest amplitude, which is drawn log-uniformly.
    """

    width: float
    centre: tuple[float, float]
    amplitude: tuple[float, float]

    def draw(self, count: int, generator: np.random.Generator) -> npt.NDArray[np.float64]:
        """Return parameters, shape (count, 3). Collective: no; equal seeds give equal parameters on all ranks."""
        centres = generator.uniform(*self.centre, size=(count, 2))
        amplitudes = np.exp(generator.uniform(*np.log(self.amplitude), size=(count, 1)))
        return np.hstack([centres, amplitudes])


NARROW = SourceRange(0.05, (0.15, 0.85), (5.0, 500.0))
WIDE = SourceRange(0.15, (0.3, 0.7), (5.0, 100.0))


class MovingSource:
    """Solve -div((1 + u^2) grad u) = A exp(-|x - c|^2 / (2 s^2)) in the unit square, u = 0 on its boundary.

    All quantities are dimensionless. With T(u) = u + u^3 / 3 the equation is -laplace T(u) = f, so that it has one
    solution. It is odd in u: -u solves it for -A.

    Parameters
    ----------
    mesh
        A mesh of the unit square.
    source
        The family of sources: `NARROW`, `WIDE` or another.
    degree
        Degree of the Lagrange elements.

    Attributes
    ----------
    u
        The solution.
    residual, bcs
        The weak form and its boundary conditions.
    centre, amplitude
        The parameters, constants of the form.

    Raises
    ------
    InputError
        If the width is not positive.

    Collective: yes.
    """

    def __init__(self, mesh: Mesh, source: SourceRange = WIDE, degree: int = 1) -> None:
        check_range("width", source.width, 0.0, math.inf)
        self.source = source
        self.space = fem.functionspace(mesh, ("Lagrange", degree))
        self.u: fem.Function[Any] = fem.Function(self.space, name="temperature")
        self.centre = fem.Constant(mesh, np.array([0.5, 0.5]))
        self.amplitude = fem.Constant(mesh, float(source.amplitude[0]))
        self.bcs = [zero_on_boundary(self.space)]
        width = fem.Constant(mesh, source.width)
        test, distance = ufl.TestFunction(self.space), ufl.SpatialCoordinate(mesh) - self.centre
        heat = self.amplitude * ufl.exp(-ufl.dot(distance, distance) / (2.0 * width**2))
        dx = ufl.dx(mesh, metadata={"quadrature_degree": 4 * degree})
        self.residual = (1.0 + self.u**2) * ufl.inner(ufl.grad(self.u), ufl.grad(test)) * dx - heat * test * dx

    def set_parameter(self, parameter: npt.NDArray[np.float64]) -> None:
        """Set (x, y, amplitude), shape (3,). Collective: no, but all ranks must set the same."""
        self.centre.value[:] = parameter[:2]
        self.amplitude.value = np.asarray(parameter[2])

    def parameters(self, count: int, stream: str, seed: int = 0) -> npt.NDArray[np.float64]:
        """Return parameters of a named random stream, shape (count, 3), the same on all ranks. Collective: no."""
        return self.source.draw(count, random_stream(stream, seed))

    def parameter(self) -> npt.NDArray[np.float64]:
        """Return (x, y, log amplitude), shape (3,): what the solution depends on evenly. Collective: no."""
        return np.array([*self.centre.value, math.log(float(self.amplitude.value))])

    def solver(self, prefix: str = "moving_source_", **options: object) -> fem_petsc.NonlinearProblem:
        """Return Newton's method with a sparse LU factorisation by MUMPS. Collective: yes."""
        chosen = {
            "snes_type": "newtonls", "snes_rtol": 1e-10, "snes_atol": 1e-12, "snes_max_it": 40,
            "snes_linesearch_type": "bt", "snes_error_if_not_converged": None,
            "ksp_type": "preonly", "pc_type": "lu", "pc_factor_mat_solver_type": "mumps",
        } | options  # fmt: skip
        return fem_petsc.NonlinearProblem(
            self.residual, self.u, petsc_options_prefix=prefix, bcs=self.bcs, petsc_options=chosen
        )


class SourceInterpolation:
    """The load of a `MovingSource` as a combination of those at Chebyshev nodes of the centre, with a proven rest.

    The Gaussian is a product of one factor in x and one in y, and each is interpolated in the coordinate of the centre
    by a polynomial of degree n - 1. On an interval of half-width w its error is at most

        2 (w / 2)^n max|g^(n)| / n!,    max|g^(n)| <= 1.0865 sqrt(n!) / s^n   (Cramer's inequality),

    and that of the product this times 1 + Lambda, the Lebesgue constant of the nodes, Lambda <= 2 / pi log n + 1.

    Parameters
    ----------
    problem
        Its source range is that of the nodes.
    nodes
        n, in each direction.

    Raises
    ------
    InputError
        If there is less than one node.
    """

    def __init__(self, problem: MovingSource, nodes: int = 14) -> None:
        check_range("nodes", nodes, 1, 60)
        self.problem = problem
        low, high = problem.source.centre
        angles = math.pi * (np.arange(nodes) + 0.5) / nodes
        self._half, self._low, self._high = 0.5 * (high - low), low, high
        self._nodes = 0.5 * (low + high) + self._half * np.cos(angles)
        self._barycentric = (-1.0) ** np.arange(nodes) * np.sin(angles)
        one = 2.0 * (self._half / (2.0 * problem.source.width)) ** nodes * 1.0865 / math.sqrt(math.factorial(nodes))
        self._error = one * (2.0 + 2.0 / math.pi * math.log(nodes))

    def loads(self) -> Iterator[None]:
        """Set the source to amplitude 1 and each pair of nodes in turn, and in the end to what it was."""
        problem = self.problem
        kept = np.array([*problem.centre.value, problem.amplitude.value])
        for x in self._nodes:
            for y in self._nodes:
                problem.set_parameter(np.array([x, y, 1.0]))
                yield
        problem.set_parameter(kept)

    def weights(self) -> npt.NDArray[np.float64]:
        """Return the weights of the loads at the present parameters, shape (n^2,). Collective: no."""
        one, two = (self._lagrange(float(coordinate)) for coordinate in self.problem.centre.value)
        return float(self.problem.amplitude.value) * np.outer(one, two).ravel()

    def remainder(self) -> float:
        """Return a bound of the rest's dual norm, for inner products not below that of L2; infinite outside the range.

        The square has the area 1, and the quadrature integrates squares of test functions exactly. Collective: no.
        """
        centre = self.problem.centre.value
        inside = bool((centre >= self._low).all() and (centre <= self._high).all())
        return abs(float(self.problem.amplitude.value)) * self._error if inside else math.inf

    def _lagrange(self, coordinate: float) -> npt.NDArray[np.float64]:
        distance = coordinate - self._nodes
        hit = np.flatnonzero(distance == 0.0)
        if hit.size:
            return np.eye(self._nodes.size)[hit[0]]
        terms = self._barycentric / distance
        return np.asarray(terms / terms.sum())
