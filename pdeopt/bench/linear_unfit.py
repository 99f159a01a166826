"""Line 7: matrices that multigrid is not for. They are solved, or a reason and a sentence say that they are not."""

import dataclasses
import math
from collections.abc import Callable

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np
import ufl
from dolfinx import fem

from pdeopt.bench.harness import say
from pdeopt.bench.linear_bodies import BODIES, Coordinates, multigrid, solver
from pdeopt.bench.linear_domains import domain_mesh
from pdeopt.bench.linear_outcome import RTOL
from pdeopt.bench.study import Study
from pdeopt.conjugate_directions import DeepConjugateDirections
from pdeopt.problems.linear import dirichlet_condition, fixed_measure
from pdeopt.report import KSP_ADVICE, PdeoptError

_MAX_IT = 500
# What stands behind the directions, alone.
_CLASSICAL = {"ksp_type": "gmres", "ksp_pc_side": "right", "pc_type": "lu", "pc_factor_mat_solver_type": "mumps"}


@dataclasses.dataclass(frozen=True, eq=False)
class _System:
    """A system, and whether it has a solution."""

    A: PETSc.Mat
    b: PETSc.Vec
    coordinates: Coordinates
    space: fem.FunctionSpace
    solvable: bool = True


@dataclasses.dataclass(frozen=True)
class _End:
    """How a solve ended; ``residual`` is the true one, without the part in the null space attached."""

    reason: int
    residual: float
    iterations: int
    sentence: str

    @property
    def verdict(self) -> str:
        if self.reason > 0:
            return "solved" if self.residual <= 2.0 * RTOL else "SILENT"
        return "told" if self.sentence else "NO SENTENCE"


def measure(study: Study, quick: bool) -> None:
    """Solve each system by both bodies, in conjugate gradients and in directions. Collective: one rank only."""
    wrong, lost = 0, 0
    for name, make in _SYSTEMS.items():
        say(study.comm, f"  unfit: {name}")
        system = make(study.comm, 12 if quick else 48)
        classical = _classical(system)
        ends = {("MUMPS", "GMRES"): classical}
        for body in BODIES:
            for loop in (False, True):
                ends[body, "directions" if loop else "CG"] = _solve(system, body, loop)
        for (body, method), end in ends.items():
            study.row("unfit matrices", {
                "system": name, "solvable": system.solvable, "preconditioner": body, "method": method,
                "verdict": end.verdict, "reason": end.reason, "iterations": end.iterations,
                "true residual": end.residual, "sentence": end.sentence,
            })  # fmt: skip
            if body in BODIES:
                wrong += end.verdict not in ("solved", "told")
                lost += method == "directions" and classical.verdict == "solved" and end.verdict != "solved"
        for handle in (system.A, system.b):
            handle.destroy()
    study.target("7a", "unfit matrices neither solved nor told with a reason and a sentence", wrong, 0)
    study.target("7b", "unfit matrices that the classical solver alone solves, and directions do not", lost, 0)


def _solve(system: _System, body: str, directions: bool) -> _End:
    """Solve with this body. Collective: one rank only."""
    context = multigrid(body, system.coordinates)
    loop = DeepConjugateDirections() if directions else None
    ksp = solver(system.A, context, loop)
    end = _end(ksp, system)
    ksp.destroy()
    error = context.error
    said = str(error) if isinstance(error, PdeoptError) else ""  # PETSc's error numbers are no sentences
    said = said or (loop.report.advice if loop is not None else "")
    if end.reason > 0:
        # A sentence that is no failure's: why the fallback took over.
        return dataclasses.replace(end, sentence=loop.report.why if loop is not None else "")
    return dataclasses.replace(end, sentence=said or end.sentence)


def _classical(system: _System) -> _End:
    """Solve by GMRES with MUMPS. Collective: one rank only."""
    database, prefix = PETSc.Options(), "pdeopt_unfit_"
    for option, value in _CLASSICAL.items():
        database[prefix + option] = value
    ksp = PETSc.KSP().create(system.A.getComm())
    ksp.setOptionsPrefix(prefix)
    ksp.setOperators(system.A)
    ksp.setFromOptions()
    end = _end(ksp, system)
    ksp.destroy()
    for option in _CLASSICAL:
        database.delValue(prefix + option)
    return end


def _end(ksp: PETSc.KSP, system: _System) -> _End:
    """Solve, and recompute the residual. Collective: one rank only."""
    ksp.setTolerances(rtol=RTOL, atol=0.0, max_it=_MAX_IT)
    x, b = system.b.duplicate(), system.b.copy()
    nullspace = system.A.getNullSpace()
    try:
        ksp.solve(b, x)
        reason, sentence = int(ksp.getConvergedReason()), KSP_ADVICE.get(int(ksp.getConvergedReason()), "")
    except PETSc.Error as error:
        reason, sentence = -abs(error.ierr), ""  # a sentence of its own must stand beside PETSc's number
    residual = system.b.duplicate()
    system.A.mult(x, residual)
    residual.aypx(-1.0, system.b)
    b = system.b.copy()
    if nullspace.handle:
        nullspace.remove(residual)
        nullspace.remove(b)
    relative = residual.norm() / b.norm() if b.norm() > 0.0 else math.nan
    return _End(reason, relative, ksp.getIterationNumber(), sentence)


def _laplacian(comm: MPI.Comm, size: int, shift: float = 0.0, held: bool = True) -> _System:
    """Return -div grad u + shift u = f, u = 0 on the boundary or free there. Collective: yes."""
    mesh = domain_mesh("square", size, comm)
    space = fem.functionspace(mesh, ("Lagrange", 1))
    u, v, x, dx = ufl.TrialFunction(space), ufl.TestFunction(space), ufl.SpatialCoordinate(mesh), fixed_measure(space)
    a = (ufl.inner(ufl.grad(u), ufl.grad(v)) + fem.Constant(mesh, shift) * u * v) * dx
    L = ufl.sin(7.0 * x[0]) * ufl.cos(5.0 * x[1]) * v * dx
    bcs = [dirichlet_condition(space, fem.Constant(mesh, 0.0))] if held else []
    A = fem.petsc.assemble_matrix(fem.form(a), bcs=bcs)
    A.assemble()
    b = fem.petsc.assemble_vector(fem.form(L))
    b.ghostUpdate(PETSc.InsertMode.ADD, PETSc.ScatterMode.REVERSE)
    fem.petsc.set_bc(b, bcs)
    return _System(A, b, space.tabulate_dof_coordinates()[: space.dofmap.index_map.size_local], space)


def _negative(comm: MPI.Comm, size: int) -> _System:
    system = _laplacian(comm, size)
    system.A.scale(-1.0)
    return system


def _free(comm: MPI.Comm, size: int, attached: bool, compatible: bool = True) -> _System:
    """Return a singular system, the constants its null space. Collective: yes."""
    system = _laplacian(comm, size, held=False)
    nullspace = PETSc.NullSpace().create(constant=True, comm=comm)
    if compatible:
        nullspace.remove(system.b)
    else:
        system.b.shift(1.0 / system.b.getSize())
    if attached:
        system.A.setNullSpace(nullspace)
    nullspace.destroy()
    return dataclasses.replace(system, solvable=compatible)


def _convection(comm: MPI.Comm, size: int) -> _System:
    """Return diffusion with a strong wind: the matrix plus a skew-symmetric one. Collective: yes."""
    system = _laplacian(comm, size)
    starts, columns, values = system.A.getValuesCSR()
    rows = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    along = (system.coordinates[columns] - system.coordinates[rows]) @ np.array([1.0, 0.5, 0.0])
    values += 20.0 * along * (values != 0.0)
    A = PETSc.Mat().createAIJ(system.A.getSize(), csr=(starts, columns, values), comm=comm)
    system.A.destroy()
    return dataclasses.replace(system, A=A)


def _not_a_number(comm: MPI.Comm, size: int, in_matrix: bool) -> _System:
    system = _laplacian(comm, size)
    middle = system.b.getSize() // 2
    if in_matrix:
        system.A.setValue(middle, middle, math.nan)
        system.A.assemble()
    else:
        system.b.setValue(middle, math.nan)
        system.b.assemble()
    return dataclasses.replace(system, solvable=False)


def _empty_row(comm: MPI.Comm, size: int) -> _System:
    """Return a matrix with a zero row and column, where the right-hand side is not zero. Collective: yes."""
    system = _laplacian(comm, size)
    middle = system.b.getSize() // 2
    system.A.zeroRowsColumns([middle], diag=0.0)
    system.b.setValue(middle, 1.0)
    system.b.assemble()
    return dataclasses.replace(system, solvable=False)


_SYSTEMS: dict[str, Callable[[MPI.Comm, int], _System]] = {
    "positive definite": _laplacian,
    "indefinite, few negative eigenvalues": lambda comm, size: _laplacian(comm, size, shift=-60.0),
    "indefinite, many negative eigenvalues": lambda comm, size: _laplacian(comm, size, shift=-600.0),
    "negative definite": _negative,
    "singular, null space attached": lambda comm, size: _free(comm, size, attached=True),
    "singular, no null space attached": lambda comm, size: _free(comm, size, attached=False),
    "singular, null space attached, incompatible load": lambda comm, size: _free(comm, size, True, compatible=False),
    "singular, incompatible load": lambda comm, size: _free(comm, size, False, compatible=False),
    "not symmetric": _convection,
    "NaN in the matrix": lambda comm, size: _not_a_number(comm, size, in_matrix=True),
    "NaN in the right-hand side": lambda comm, size: _not_a_number(comm, size, in_matrix=False),
    "a zero row": _empty_row,
}
