"""Line 6, last table: a reduced basis as coarse space, beside PETSc's own deflation and its guesses by POD.

The operator is that of the heat problem with the conductivity 1 + u^2 of a solution that the basis has not seen:
symmetric and positive definite, and the equation that a Picard step solves. Linear elements in the plane are the
hardest case for the seconds: a product with 40 dense modes costs as much as six with the matrix.
"""

from collections.abc import Mapping, Sequence

from mpi4py import MPI
from petsc4py import PETSc

import dolfinx
import numpy as np
import ufl
from dolfinx import fem
from dolfinx.fem import petsc as fem_petsc

from pdeopt.bench.harness import Row, paired_times
from pdeopt.bench.study import Study
from pdeopt.fem import forms
from pdeopt.problems import MovingSource
from pdeopt.reduced_order.basis import Basis
from pdeopt.reduced_order.deflation import ReducedDeflation
from pdeopt.reduced_order.inner_product import InnerProduct
from pdeopt.reduced_order.pod import proper_orthogonal_decomposition
from pdeopt.reduced_order.snapshots import Snapshots

_RTOL = 1e-8


def measure_deflation(study: Study, quick: bool) -> None:
    """Count iterations and seconds of CG with and without the basis. Collective: yes."""
    seed = study.settings.seed
    if quick:
        row = solves(MPI.COMM_SELF, 16, (4, 8), snapshots=10, systems=2, repeat=1, seed=seed)
    else:
        size = {"cells": 300, "sizes": (20, 40), "snapshots": 100, "systems": 10, "repeat": study.settings.repeat}
        row = study.case("pdeopt.bench.rom_deflation:solves", 2, **size, seed=seed)
    arms = dict.fromkeys(name.partition(": ")[0] for name in row if ": " in name)
    for arm in arms:
        columns = {name.partition(": ")[2]: value for name, value in row.items() if name.startswith(f"{arm}: ")}
        study.row("CG on the heat problem's operators, to 1e-8", {"arm": arm, **columns})


def solves(
    comm: MPI.Comm, cells: int, sizes: Sequence[int], snapshots: int, systems: int, repeat: int, seed: int
) -> Row:
    """Solve Picard steps at unseen parameters by CG in several ways, with bases of some sizes. Collective: yes."""
    problem = MovingSource(dolfinx.mesh.create_unit_square(comm, cells, cells))
    inner = InnerProduct(problem.space, bcs=problem.bcs)
    solver = problem.solver(prefix="rom_deflation_")
    fields = Snapshots(inner)
    for parameter in problem.parameters(snapshots, "deflation: seen", seed):
        problem.set_parameter(parameter)
        solver.solve()
        fields.append(problem.u)
    bases = {size: proper_orthogonal_decomposition(fields, modes=size) for size in sizes}
    operators = []
    for parameter in problem.parameters(systems, "deflation: unseen", seed):
        problem.set_parameter(parameter)
        problem.u.x.array[:] = 0.0
        solver.solve()
        operators.append(_picard_step(problem))
    arms: dict[str, _Arm] = {}
    for kind in ("jacobi", "bjacobi", "gamg"):
        arms[kind] = _Arm(operators, {"pc_type": kind})
        for size, basis in bases.items():
            arms[f"{kind} + {size} modes"] = _Arm(operators, {}, ReducedDeflation(basis, kind))
    deflation = {"deflation_pc_pc_type": "jacobi"}
    arms[f"jacobi + PCDEFLATION, {sizes[-1]} modes"] = _Arm(operators, deflation, space=_sparse(bases[sizes[-1]]))
    guess = {"pc_type": "jacobi", "ksp_guess_type": "pod", "ksp_guess_pod_size": sizes[-1]}
    arms["jacobi + KSPGuess POD"] = _Arm(operators, guess)
    timings = paired_times(arms, repeat, comm)
    row: Row = {"unknowns": int(comm.allreduce(inner.owned)), "systems": systems}
    for name, timing in timings.items():
        row[f"{name}: iterations"], row[f"{name}: not solved"] = timing.result
        row[f"{name}: seconds"] = timing.median / systems
    return row


def _picard_step(problem: MovingSource) -> tuple[PETSc.Mat, PETSc.Vec]:
    """Return the matrix and right-hand side of the step from the present solution. Collective: yes."""
    trial, test = ufl.TrialFunction(problem.space), ufl.TestFunction(problem.space)
    conductivity = (1.0 + problem.u**2) * ufl.inner(ufl.grad(trial), ufl.grad(test)) * ufl.dx
    matrix = forms.assemble_matrix(forms.compile_form(forms.fix_quadrature_degree(conductivity)), problem.bcs)
    source = ufl.replace(problem.residual, {problem.u: fem.Function(problem.space)})
    right = forms.assemble_vector(forms.compile_form(-source))
    fem_petsc.set_bc(right, problem.bcs)
    return matrix, right


class _Arm:
    """CG with a preconditioner, for all systems in turn; the set-up for each system counts."""

    def __init__(
        self,
        systems: list[tuple[PETSc.Mat, PETSc.Vec]],
        options: Mapping[str, object],
        context: ReducedDeflation | None = None,
        space: PETSc.Mat | None = None,
    ) -> None:
        self.systems, self.options, self.context, self.space = systems, options, context, space
        self.ksp = self._solver(systems[0][0])
        self.solution = systems[0][0].createVecRight()

    def __call__(self) -> tuple[float, int]:
        """Solve all systems; return the mean number of iterations, and of systems not solved. Collective: yes."""
        iterations = failures = 0
        for matrix, right in self.systems:
            if self.space is not None:  # PETSc's deflation keeps the first operator's coarse matrix for ever
                self.ksp.destroy()
                self.ksp = self._solver(matrix)
            self.ksp.setOperators(matrix)
            self.solution.set(0.0)  # PETSc's deflation starts from what is there
            self.ksp.solve(right, self.solution)
            iterations += self.ksp.getIterationNumber()
            failures += self.ksp.getConvergedReason() <= 0
        return iterations / len(self.systems), failures

    def _solver(self, matrix: PETSc.Mat) -> PETSc.KSP:
        ksp = PETSc.KSP().create(matrix.getComm())
        ksp.setOptionsPrefix(f"rom_arm_{id(self)}_")
        ksp.setOperators(matrix)
        ksp.setType("cg")
        ksp.setNormType(PETSc.KSP.NormType.UNPRECONDITIONED)
        ksp.setTolerances(rtol=_RTOL, max_it=5000)
        pc = ksp.getPC()
        if self.context is not None:
            pc.setType("python")
            pc.setPythonContext(self.context)
        if self.space is not None:
            pc.setType("deflation")
            pc.setDeflationSpace(self.space, False)
        with forms.default_options(ksp.getOptionsPrefix(), self.options):
            ksp.setFromOptions()
            ksp.setUp()
        return ksp


def _sparse(basis: Basis) -> PETSc.Mat:
    """Return the modes as a sparse matrix of all entries: PETSc's deflation multiplies no sparse with dense matrices.

    Collective: yes.
    """
    owned, size = basis.modes.shape
    offsets, columns = np.arange(0, owned * size + 1, size), np.tile(np.arange(size), owned)
    csr = offsets.astype(PETSc.IntType), columns.astype(PETSc.IntType), basis.modes.ravel()
    return PETSc.Mat().createAIJ(((owned, None), (None, size)), csr=csr, comm=basis.comm)
