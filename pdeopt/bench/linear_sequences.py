"""Sequences of changing matrices: Newton's method, time steps, a design that evolves, samples of a random field.

Each is an iterator over matrix and right-hand side, always the same two objects in one pattern; what leads from one
system to the next is solved inside it, to 1e-7.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import fem

from pdeopt.bench.linear_domains import domain_mesh
from pdeopt.bench.linear_families import Assembler
from pdeopt.parallel import random_stream
from pdeopt.problems.linear import dirichlet_condition, fixed_measure

type System = tuple[PETSc.Mat, PETSc.Vec]
type Systems = Iterator[System]

_WALK = 0.3  # radians by which a random field turns towards a new one at a step
_PREFIX = "pdeopt_sequence_path_"
_NEWTON_STEPS = 5  # for each load
_VOLUME, _POWER, _POOR, _MOVE = 0.4, 3.0, 1e-3, 0.2


def newton(comm: MPI.Comm, size: int, steps: int, seed: int) -> Systems:
    """Yield Newton's systems for the minimum of int k (g + g^2 / 2) - load f u, g = |grad u|^2 / 2, load after load.

    The Hessian is positive definite. After ten loads the nonlinear part of the flux is several times the linear one.
    """
    plain = Assembler(domain_mesh("square", size, comm))
    stream = random_stream("bench.linear_sequences.newton", seed)
    plain.coefficient.x.array[:] = np.exp(plain.draw(stream, 0.1))
    space = plain.space
    u, v, load = fem.Function(space), ufl.TestFunction(space), fem.Constant(space.mesh, 0.0)
    dx, half_square = fixed_measure(space, extra=0), 0.5 * ufl.inner(ufl.grad(u), ufl.grad(u))
    energy = (plain.coefficient * (half_square + 0.5 * half_square**2) - load * u) * dx
    gradient = ufl.derivative(energy, u, v)
    residual, hessian = fem.form(gradient), fem.form(ufl.derivative(gradient, u, ufl.TrialFunction(space)))
    bcs = [dirichlet_condition(space, fem.Constant(space.mesh, 0.0))]
    A, b, step = fem.petsc.create_matrix(hessian), fem.petsc.create_vector(space), fem.petsc.create_vector(space)
    with _solver(comm) as solve:
        for number in range(steps):
            load.value = 10.0 * (1 + number // _NEWTON_STEPS)  # type: ignore[assignment]
            A.zeroEntries()
            fem.petsc.assemble_matrix(A, hessian, bcs=bcs)  # type: ignore[misc]
            A.assemble()
            A.setOption(PETSc.Mat.Option.SYMMETRIC, True)
            A.setOption(PETSc.Mat.Option.SPD, True)
            with b.localForm() as local:
                local.set(0.0)
            fem.petsc.assemble_vector(b, residual)
            b.ghostUpdate(PETSc.InsertMode.ADD, PETSc.ScatterMode.REVERSE)
            fem.petsc.set_bc(b, bcs, alpha=0.0)
            b.scale(-1.0)
            yield A, b
            step.set(0.0)
            solve(A, b, step)
            u.x.petsc_vec.axpy(1.0, step)
            u.x.scatter_forward()


def time_steps(comm: MPI.Comm, size: int, steps: int, seed: int) -> Systems:
    """Yield the steps of implicit Euler for heat in a random medium in which a good conductor moves in a circle."""
    problem = Assembler(domain_mesh("square", size, comm))
    stream = random_stream("bench.linear_sequences.time_steps", seed)
    medium = np.exp(problem.draw(stream, 0.1))
    problem.reaction.value = 10.0  # type: ignore[assignment]  # one over the time step
    with _solver(comm) as solve:
        for number in range(steps):
            angle = 2.0 * math.pi * number / steps
            place = 0.5 + 0.25 * np.array([[math.cos(angle)], [math.sin(angle)]])
            inside = np.sum((problem.centres[:2] - place) ** 2, axis=0) < 0.15**2
            problem.coefficient.x.array[:] = np.where(inside, 1e3, medium)
            A, b = problem.assemble()
            yield A, b
            solve(A, b, problem.previous.x.petsc_vec)
            problem.previous.x.scatter_forward()


def design(comm: MPI.Comm, size: int, steps: int, seed: int) -> Systems:
    """Yield the states of a heat conductor whose material is moved where it cools best, by optimality criteria.

    Bendsoe and Sigmund, Topology Optimization, 2003, section 1.2: conductivity e + (1 - e) rho^3, 40 % of the square
    may be filled, and a quarter of its left side is cold. The heating is random.
    """
    problem = Assembler(domain_mesh("square", size, comm), _cold)
    stream = random_stream("bench.linear_sequences.design", seed)
    problem.source.x.array[:] = 1.0 + 0.5 * np.tanh(problem.draw(stream, 0.3))
    mesh = problem.space.mesh
    u, cells = fem.Function(problem.space), problem.coefficient.function_space
    points, v = cells.element.interpolation_points, ufl.TestFunction(problem.space)
    gain: fem.Function[np.float64] = fem.Function(cells)
    smooth: fem.Function[np.float64] = fem.Function(problem.space)
    square_of_gradient: fem.Expression[np.float64] = fem.Expression(ufl.inner(ufl.grad(u), ufl.grad(u)), points)
    at_midpoints: fem.Expression[np.float64] = fem.Expression(smooth, points)
    weights, loads = fem.form(v * ufl.dx(mesh)), fem.form(gain * v * ufl.dx(mesh))
    owned = mesh.topology.index_map(mesh.topology.dim).size_local
    rho = np.full(problem.centres.shape[1], _VOLUME)
    with _solver(comm) as solve:
        for _ in range(steps):
            problem.coefficient.x.array[:] = _POOR + (1.0 - _POOR) * rho**_POWER
            A, b = problem.assemble()
            yield A, b
            solve(A, b, u.x.petsc_vec)
            u.x.scatter_forward()
            gain.interpolate(square_of_gradient)
            gain.x.array[:] *= rho ** (_POWER - 1.0)
            _average(smooth, loads, weights)
            gain.interpolate(at_midpoints)
            rho = _moved(rho, gain.x.array, owned, comm)


def _average(target: "fem.Function[np.float64]", loads: fem.Form, weights: fem.Form) -> None:
    """Set the vertices' values to the means over the cells around, which keeps checkerboards out of the design."""
    sums = []
    for form in (loads, weights):
        vector = fem.petsc.assemble_vector(form)
        vector.ghostUpdate(PETSc.InsertMode.ADD, PETSc.ScatterMode.REVERSE)
        sums.append(vector)
    target.x.petsc_vec.pointwiseDivide(*sums)
    target.x.scatter_forward()
    for vector in sums:
        vector.destroy()


def _moved(
    rho: npt.NDArray[np.float64], gain: npt.NDArray[np.float64], owned: int, comm: MPI.Comm
) -> npt.NDArray[np.float64]:
    """Return the next design: rho (gain / lambda)^(1/2) within the move limit, with the price lambda of its volume."""
    lower, upper = np.maximum(rho - _MOVE, 1e-3), np.minimum(rho + _MOVE, 1.0)
    count = comm.allreduce(owned, op=MPI.SUM)  # all cells are of equal size
    root, found = np.sqrt(np.maximum(gain, 0.0)), rho
    least, most = 0.0, comm.allreduce(float(root.max()), op=MPI.MAX) / 1e-3
    for _ in range(60):
        price = 0.5 * (least + most)
        found = np.clip(rho * root / price, lower, upper)
        filled = comm.allreduce(float(found[:owned].sum()), op=MPI.SUM) / count
        least, most = (price, most) if filled > _VOLUME else (least, price)
    return found


def samples(comm: MPI.Comm, size: int, steps: int, seed: int, domain: str = "square") -> Systems:
    """Yield samples of a lognormal diffusion whose field walks at random: Z <- cos(t) Z + sin(t) W with fresh fields W.

    All samples have the same distribution; each expansion coefficient of Karhunen and Loeve walks by itself.
    """
    problem = Assembler(domain_mesh(domain, size, comm))
    stream = random_stream("bench.linear_sequences.samples", seed)
    problem.source.x.array[:] = problem.draw(stream, 0.2)
    # In the vertices, of which there are far fewer than cells; a cell gets the mean of its own.
    field, vertices = fem.Function(problem.space), problem.space.tabulate_dof_coordinates().T
    field.x.array[:] = problem.draw(stream, 0.1, vertices)
    for _ in range(steps):
        problem.coefficient.interpolate(field)
        problem.coefficient.x.array[:] = np.exp(1.5 * problem.coefficient.x.array)
        yield problem.assemble()
        field.x.array[:] = math.cos(_WALK) * field.x.array + math.sin(_WALK) * problem.draw(stream, 0.1, vertices)


def samples_in_cube(comm: MPI.Comm, size: int, steps: int, seed: int) -> Systems:
    """Yield `samples` in the cube."""
    return samples(comm, size, steps, seed, "cube")


SEQUENCES: Mapping[str, Callable[[MPI.Comm, int, int, int], Systems]] = {
    "Newton": newton,
    "time steps": time_steps,
    "design": design,
    "samples": samples,
    "samples, 3D": samples_in_cube,
}
"""By name; called with communicator, cells along a side, number of systems and seed. Collective: yes."""


def _cold(x: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    return np.isclose(x[0], 0.0) & (np.abs(x[1] - 0.5) < 0.125 + 1e-9)


@contextlib.contextmanager
def _solver(comm: MPI.Comm) -> Iterator[Callable[[PETSc.Mat, PETSc.Vec, PETSc.Vec], None]]:
    """Yield what solves A x = b from x, for one A after another: GAMG keeps its interpolation. Collective: yes."""
    ksp = PETSc.KSP().create(comm)
    ksp.setOptionsPrefix(_PREFIX)
    ksp.setType(PETSc.KSP.Type.CG)
    ksp.getPC().setType(PETSc.PC.Type.GAMG)
    database = PETSc.Options(_PREFIX)
    database["pc_gamg_reuse_interpolation"] = "1"
    ksp.setFromOptions()
    database.delValue("pc_gamg_reuse_interpolation")
    ksp.setTolerances(rtol=1e-7)
    ksp.setInitialGuessNonzero(True)
    ksp.setErrorIfNotConverged(True)

    def solve(A: PETSc.Mat, b: PETSc.Vec, x: PETSc.Vec) -> None:
        ksp.setOperators(A)
        ksp.solve(b, x)

    try:
        yield solve
    finally:
        ksp.destroy()
