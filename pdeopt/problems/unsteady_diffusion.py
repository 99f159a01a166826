"""Unsteady diffusion whose diffusivity swings over two orders of magnitude: a sequence of related linear systems."""

import math
from collections.abc import Callable

from mpi4py import MPI
from petsc4py import PETSc

import dolfinx
import dolfinx.fem.petsc
import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import fem

from pdeopt.problems.linear import check_range, dirichlet_condition, fixed_measure
from pdeopt.report import InputError

Array = npt.NDArray[np.float64]


class UnsteadyDiffusion:
    """March u' - kappa(t) laplace u = f in the unit square, u = 0 on its boundary, through the theta-scheme.

    Every step is one linear system in the same matrix pattern,

        (M + theta tau kappa K) u_new = (M - (1 - theta) tau kappa K) u_old + tau M f,

    with kappa and f at the time t_old + theta tau, continuous piecewise linear elements and f interpolated. By default
    it is the heat problem of Khodak, Chow, Balcan and Talwalkar (ICLR 2024, section 4.2) on finite elements: kappa as
    in `swinging_diffusivity`, f a bump that runs eight times a unit of time round a circle, u_0 a bump in the middle.
    All quantities are dimensionless. To march::

        problem = UnsteadyDiffusion(comm, 100)
        ksp.setOperators(problem.matrix)
        for _ in range(1000):
            problem.assemble_step()
            ksp.solve(problem.right_hand_side, problem.solution)
            problem.advance()

    Parameters
    ----------
    comm
        Communicator of the mesh.
    cells
        Cells a side, >= 2, each cut into two triangles.
    step
        tau > 0.
    theta
        In [1/2, 1]: 1/2 for Crank-Nicolson, 1 for the implicit Euler scheme.
    diffusivity
        kappa(t) >= 0.
    forcing, initial
        f(t, x) and u_0(x) from points of shape (2, points), zero on the boundary; shape (points,).

    Attributes
    ----------
    matrix, right_hand_side
        The system of the step ahead, as `assemble_step` left it.
    solution
        The present state, and so the solver's warm start.
    coordinates
        Points of the owned degrees of freedom, shape (owned, 2).
    time, kappa
        The present time, and the diffusivity in the step ahead.

    Raises
    ------
    InputError
        If a number is out of range.

    Collective: yes.
    """

    def __init__(
        self,
        comm: MPI.Comm,
        cells: int,
        step: float = 1e-3,
        theta: float = 0.5,
        diffusivity: Callable[[float], float] | None = None,
        forcing: Callable[[float, Array], Array] | None = None,
        initial: Callable[[Array], Array] | None = None,
    ) -> None:
        check_range("cells", cells, 1)
        check_range("step", step, 0.0)
        if not 0.5 <= theta <= 1.0:
            raise InputError(f"theta is {theta}: choose it between 0.5 (Crank-Nicolson) and 1 (implicit Euler)")
        self._step, self._theta = step, theta
        self._diffusivity = diffusivity or swinging_diffusivity
        self._forcing = forcing or running_bump
        self._initial = initial or (lambda x: bump(x, (0.5, 0.5), 0.25))

        mesh = dolfinx.mesh.create_unit_square(comm, cells, cells)
        # PETSc's objects are unusable once the space is collected.
        self.space = fem.functionspace(mesh, ("Lagrange", 1))
        condition = dirichlet_condition(self.space, fem.Constant(mesh, PETSc.ScalarType(0.0)))
        trial, test = ufl.TrialFunction(self.space), ufl.TestFunction(self.space)
        dx = fixed_measure(self.space, extra=0)
        self._mass = fem.petsc.assemble_matrix(fem.form(trial * test * dx), [condition])
        stiffness = fem.form(ufl.inner(ufl.grad(trial), ufl.grad(test)) * dx)
        self._stiffness = fem.petsc.assemble_matrix(stiffness, [condition], diag=0.0)
        for matrix in (self._mass, self._stiffness):
            matrix.assemble()
        self.matrix = self._mass.duplicate()
        self.matrix.setOption(PETSc.Mat.Option.SPD, True)
        self.solution, self.right_hand_side = self.matrix.createVecs()
        self._work = self.solution.duplicate()
        self.coordinates: Array = self.space.tabulate_dof_coordinates()[: self.solution.getLocalSize(), :2]
        self.restart()

    def restart(self, steps_taken: int = 0) -> None:
        """Take the initial state at the time after so many steps. Collective: yes."""
        self._steps_taken = steps_taken
        self.solution.array[:] = self._initial(self.coordinates.T)

    @property
    def time(self) -> float:
        """The present time."""
        return self._steps_taken * self._step

    @property
    def kappa(self) -> float:
        """The diffusivity in the step ahead."""
        return self._diffusivity(self.time + self._theta * self._step)

    def assemble_step(self) -> None:
        """Compute `matrix` and `right_hand_side` of the step ahead. Collective: yes."""
        kappa, step, theta = self.kappa, self._step, self._theta
        if not 0.0 <= kappa < math.inf:
            raise InputError(f"the diffusivity at time {self.time:g} is {kappa}: it must be finite and not negative")
        self._mass.copy(self.matrix, PETSc.Mat.Structure.SAME_NONZERO_PATTERN)
        self.matrix.axpy(theta * step * kappa, self._stiffness, PETSc.Mat.Structure.SAME_NONZERO_PATTERN)

        work, right = self._work, self.right_hand_side
        work.array[:] = self._forcing(self.time + theta * step, self.coordinates.T)
        work.aypx(step, self.solution)
        self._mass.mult(work, right)
        self._stiffness.mult(self.solution, work)
        right.axpy(-(1.0 - theta) * step * kappa, work)

    def advance(self) -> None:
        """Take what stands in `solution` as the state at the end of the step. Collective: no."""
        self._steps_taken += 1

    def destroy(self) -> None:
        """Free the PETSc objects. Collective: yes."""
        for matrix in (self._mass, self._stiffness, self.matrix):
            matrix.destroy()
        for vector in (self.solution, self.right_hand_side, self._work):
            vector.destroy()


def swinging_diffusivity(time: float) -> float:
    """Return max(0.1 sin 2 pi t, -10 sin 2 pi t), from the published program; the paper prints 0.01. Collective: no."""
    wave = math.sin(2.0 * math.pi * time)
    return max(0.1 * wave, -10.0 * wave)


def running_bump(time: float, x: Array) -> Array:
    """Return 32 times a bump of radius 1/8 whose centre is on the circle of radius 1/4, shape (points,).

    Parameters
    ----------
    time
        The centre runs eight times a unit of it.
    x
        Points, shape (2, points).

    Collective: no.
    """
    angle = 16.0 * math.pi * time
    return 32.0 * bump(x, (0.5 + 0.25 * math.cos(angle), 0.5 + 0.25 * math.sin(angle)), 0.125)


def bump(x: Array, centre: tuple[float, float], radius: float) -> Array:
    """Return exp(1 - 1 / (1 - |x - centre|^2 / radius^2)) inside the circle, and zero outside, shape (points,).

    Parameters
    ----------
    x
        Points, shape (2, points).
    centre, radius
        The circle.

    Collective: no.
    """
    square = ((x[0] - centre[0]) ** 2 + (x[1] - centre[1]) ** 2) / radius**2
    inside = square < 1.0
    values = np.zeros(x.shape[1])
    values[inside] = np.exp(1.0 - 1.0 / (1.0 - square[inside]))
    return values
