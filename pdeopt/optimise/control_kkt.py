"""Solvers for the KKT systems of control problems: those of `pdeopt.control`, a factorisation, sketches."""

from typing import TYPE_CHECKING

from petsc4py import PETSc

import numpy as np
import numpy.typing as npt

from pdeopt.control import solvers
from pdeopt.control.kkt import Blocks
from pdeopt.control.solvers import KKTSolver as StructuredSolver
from pdeopt.fem import forms
from pdeopt.optimise.matrix_kkt import SKETCHES, default_options
from pdeopt.optimise.program import KKTResult, Mask, Pair
from pdeopt.optimise.recycled import RECYCLED
from pdeopt.report import ConvergenceError, OptionError

if TYPE_CHECKING:
    from pdeopt.optimise.control_program import ControlProgram

Array = npt.NDArray[np.float64]
METHODS = (*solvers.METHODS, "low_rank", "factorisation", "ksp", *SKETCHES)
_ACCURACY = 1e-10  # asked of factorisations, however loose the tolerance


class ControlKKT:
    """The KKT system of a control problem at one point, extra constraints bordering it.

    Parameters
    ----------
    program
        The program, whose point, blocks and method are used.
    shift, dual_shift, diagonal, fixed, curvature
        See `pdeopt.optimise.program.Program.kkt_solver`.

    Attributes
    ----------
    name, inertia_is_right, singular
        See `pdeopt.optimise.program.KKTSolver`.
    """

    def __init__(
        self,
        program: "ControlProgram",
        shift: float,
        dual_shift: float,
        diagonal: PETSc.Vec | None,
        fixed: Mask | None,
        curvature: float,
    ) -> None:
        self._program, self._system, self._dual_shift = program, program.system, dual_shift
        self.inertia_is_right: bool | None = None
        self.singular = False
        self._negative = 0
        system = self._system
        self._modified = diagonal is not None or fixed is not None or curvature != 1.0
        self._own = shift > 0.0 or diagonal is not None or fixed is not None or curvature != 1.0 or program.gauss_newton
        if program.gauss_newton:
            self._blocks = program.gauss_newton_blocks()
        else:
            self._blocks = _copy(program.blocks()) if self._own else program.blocks()
        if self._own:
            self._modify(shift, diagonal, curvature)
        self._fixed = fixed
        self._held = self._split_fixed(fixed)
        self._matrix = system.matrix(self._blocks)
        self._vectors = [system.layout.create_vector() for _ in range(3)]
        self._responses: list[PETSc.Vec] = []
        self._structured: StructuredSolver | None = None
        self._ksp: PETSc.KSP | None = None
        self._iterations = 0
        if program.method == "low_rank" or program.method in solvers.METHODS:
            context = program.linear_context(self._blocks, self._held)
            low_rank = program.method == "low_rank"
            self._learned = learned = program.preconditioner if low_rank or not self._modified else None
            structured = "reduced_hessian" if low_rank else program.method
            self._structured = StructuredSolver(
                structured, context, program.problem._state_solver, learned, RECYCLED if learned else 0
            )
            self.name = self._structured.name + (", eigenpairs" if low_rank else "")
        else:
            self.name = program.method
            self._set_up_matrix_solver(program.method)
        self._gradients = self._masked_gradients()
        if self._gradients:
            self._border()
        elif self._ksp is not None and program.method == "factorisation":
            self.inertia_is_right = not self.singular and self._negative == self._dual_size()

    def _dual_size(self) -> int:
        return int(self._system.lagrangian.state.function_space.dofmap.index_map.size_global) * int(
            self._system.lagrangian.state.function_space.dofmap.index_map_bs
        )

    # The matrix ------------------------------------------------------------------------------------------------------

    def _modify(self, shift: float, diagonal: PETSc.Vec | None, curvature: float) -> None:
        """Change the copied blocks: k L + s M + D."""
        system, blocks = self._system, self._blocks
        if curvature != 1.0:
            for block in (
                blocks.state_state,
                *blocks.state_control,
                *(b for row in blocks.control_control for b in row),
            ):
                if block is not None:
                    block.scale(curvature)
            blocks.state_state = self._add(
                blocks.state_state, shift * system.observation_weight, self._program._state_mass
            )
        for j, product in enumerate(system.control_products):
            if shift > 0.0:
                weight = shift * system.regularisation_weight
                blocks.control_control[j][j] = self._add(blocks.control_control[j][j], weight, product)
        if diagonal is None:
            return
        added = diagonal.array_r
        layout = system.layout
        state = np.where(system.dirichlet_mask(), 0.0, added[layout.slice(0)])
        if system.comm.allreduce(float(np.sum(np.abs(state)))) > 0.0:
            if blocks.state_state is None:
                blocks.state_state = self._add(None, 0.0, self._program._state_mass)
            _add_diagonal(blocks.state_state, state)
        for j in range(len(system.controls)):
            block = blocks.control_control[j][j]
            if block is None:
                block = blocks.control_control[j][j] = self._add(None, 0.0, system.control_products[j])
            _add_diagonal(block, added[layout.slice(j + 1)])

    @staticmethod
    def _add(block: PETSc.Mat | None, factor: float, matrix: PETSc.Mat) -> PETSc.Mat:
        if block is None:
            block = matrix.copy()
            block.scale(factor)
        elif factor != 0.0:
            block.axpy(factor, matrix, structure=PETSc.Mat.Structure.DIFFERENT_NONZERO_PATTERN)
        return block

    def _split_fixed(self, fixed: Mask | None) -> list[Mask]:
        """Take fixed controls out of the blocks; fixed states need one assembled matrix."""
        system, layout = self._system, self._system.layout
        nothing = [np.zeros(control.size, dtype=bool) for control in system.controls]
        if fixed is None:
            return nothing
        states = bool(np.any(fixed[layout.slice(0)]))
        if system.comm.allreduce(states) and self._program.method not in ("factorisation", "ksp", *SKETCHES):
            raise OptionError(
                f"method {self._program.method!r} cannot hold states at their bounds: choose 'factorisation', or the "
                "interior point method"
            )
        held = [np.array(fixed[layout.slice(j + 1)]) for j in range(len(system.controls))]
        system.fix_controls(self._blocks, held)
        return held

    def _set_up_matrix_solver(self, method: str) -> None:
        system = self._system
        matrix = _with_diagonal(system.monolithic_matrix(self._blocks))
        self._scaling = system.scaling()
        matrix.diagonalScale(self._scaling, self._scaling)
        if self._fixed is not None:
            states = np.flatnonzero(self._fixed[system.layout.slice(0)]) + matrix.getOwnershipRange()[0]
            matrix.zeroRowsColumns(states.astype(PETSc.IntType), diag=1.0)
        matrix.setOption(PETSc.Mat.Option.SYMMETRIC, True)
        self._monolithic = matrix
        self._ksp = ksp = PETSc.KSP().create(system.comm)
        ksp.setOptionsPrefix("kkt_")
        ksp.setOperators(matrix)
        defaults = default_options(method, "kkt_")
        if method == "factorisation":  # matching A with its transpose saves the delayed pivots: 20 to 40 times the time
            defaults["mat_mumps_icntl_6"] = 5
        with forms.default_options("kkt_", defaults):
            ksp.setFromOptions()
            ksp.setErrorIfNotConverged(False)
            ksp.setUp()
        if method == "factorisation":
            if ksp.getPC().getFailedReason() != 0:
                self.singular = True
            else:
                self._negative, zero, _ = ksp.getPC().getFactorMatrix().getInertia()
                self.singular = zero > 0

    # Extra constraints -----------------------------------------------------------------------------------------------

    def _masked_gradients(self) -> list[PETSc.Vec]:
        """Return the gradients of the extra constraints, zero where nothing moves."""
        gradients = []
        for gradient in self._program.constraint_gradients():
            copy = gradient.copy()
            if self._fixed is not None:
                copy.array[: self._fixed.size][self._fixed] = 0.0
            gradients.append(copy)
        return gradients

    def _border(self) -> None:
        """Solve for the responses to the extra constraints, and factorise their Schur complement."""
        for gradient in self._gradients:
            response = self._system.layout.create_vector()
            self._solve_core(gradient, response, _ACCURACY)
            self._responses.append(response)
        schur = np.array([[row.dot(column) for column in self._responses] for row in self._gradients])
        self._schur = 0.5 * (schur + schur.T) + self._dual_shift * np.eye(len(self._gradients))
        eigenvalues = np.linalg.eigvalsh(self._schur)
        if not np.all(np.isfinite(eigenvalues)) or np.min(np.abs(eigenvalues)) < 1e-14 * np.max(np.abs(eigenvalues)):
            self.singular, self.inertia_is_right = True, False
        elif self._ksp is not None and self._program.method == "factorisation":
            negative = self._negative + int(np.sum(eigenvalues > 0.0))
            self.inertia_is_right = not self.singular and negative == self._dual_size() + len(self._gradients)

    # Solves ----------------------------------------------------------------------------------------------------------

    def _solve_core(self, right: PETSc.Vec, out: PETSc.Vec, rtol: float) -> int:
        """Solve without the extra constraints and return the iterations. Collective: yes."""
        if self._structured is not None:
            return self._structured.solve(
                right, out, rtol, report_negative_curvature=True, no_more_than_asked=not self._modified
            )
        assert self._ksp is not None
        scaled = right.copy()
        if self._fixed is not None:
            scaled.array[: self._fixed.size][self._fixed] = 0.0
        scaled.pointwiseMult(scaled, self._scaling)
        exact = self._program.method == "factorisation"
        self._ksp.setTolerances(rtol=min(rtol, _ACCURACY) if exact else rtol, atol=1e-300)
        self._ksp.solve(scaled, out)
        scaled.destroy()
        out.pointwiseMult(out, self._scaling)
        return 0 if exact else int(self._ksp.getIterationNumber())

    def solve(self, right: Pair, out: Pair, rtol: float, *, improve: bool = False) -> KKTResult:
        """Solve to a tolerance relative in the Riesz norm; see `KKTSolver.solve`. Collective: yes."""
        program, system = self._program, self._system
        solves = self._structured.solves if self._structured is not None else 0
        load, solution, product = self._vectors
        extra, multipliers = program.extra(right), np.zeros(len(self._gradients))
        program.join(right, load)
        if self._fixed is not None:
            load.array[: self._fixed.size][self._fixed] = 0.0
        size = float(np.hypot(system.norm(load), np.linalg.norm(extra)))
        start, tolerance = None, rtol
        if improve:
            start, multipliers = program.join(out, solution).copy(), program.extra(out)
            self._residual(start, multipliers, extra, load, product)
            product.copy(load)
            extra = self._last_extra
            reached = float(np.hypot(system.norm(load), np.linalg.norm(extra)))
            tolerance = min(1.0, rtol * size / reached) if reached > 0.0 else 1.0
        solution.set(0.0)
        iterations = self._solve_core(load, solution, min(tolerance, 0.5))
        self._iterations += iterations
        if self._gradients:
            mismatch = np.array([gradient.dot(solution) for gradient in self._gradients]) - extra
            change = np.linalg.solve(self._schur, mismatch)
            for response, factor in zip(self._responses, change, strict=True):
                solution.axpy(-float(factor), response)
            multipliers = multipliers + change if improve else change
        if start is not None:
            solution.axpy(1.0, start)
            start.destroy()
        program.join(right, load)
        if self._fixed is not None:
            load.array[: self._fixed.size][self._fixed] = 0.0
        self._residual(solution, multipliers, program.extra(right), load, product)
        reached = float(np.hypot(system.norm(product), np.linalg.norm(self._last_extra)))
        relative = reached / size if size > 0.0 else 0.0
        if not np.isfinite(relative):
            raise ConvergenceError("the KKT system could not be solved: its matrix is singular, or has NaN or Inf")
        program.split(solution, out, multipliers)
        solves = self._structured.solves - solves if self._structured is not None else 0
        indefinite = self._structured is not None and self._structured.negative_curvature
        return KKTResult(iterations, relative, indefinite, solves)

    def _residual(self, vector: PETSc.Vec, multipliers: Array, extra: Array, right: PETSc.Vec, out: PETSc.Vec) -> None:
        """Set right - K z, the part of the extra constraints into ``_last_extra``."""
        self._matrix.mult(vector, out)
        out.aypx(-1.0, right)
        for gradient, factor in zip(self._gradients, multipliers, strict=True):
            out.axpy(-float(factor), gradient)
        if self._fixed is not None:
            out.array[: self._fixed.size][self._fixed] = 0.0
        values = np.array([gradient.dot(vector) for gradient in self._gradients])
        self._last_extra = extra - values + self._dual_shift * multipliers if self._gradients else np.empty(0)

    def destroy(self) -> None:
        """Free the PETSc objects. Collective: yes."""
        if self._structured is not None:
            if self._learned is not None:
                self._learned.learn(self._structured.take_pairs(), self._iterations)
            self._structured.destroy()
        if self._ksp is not None:
            for item in (self._ksp, self._monolithic, self._scaling):
                item.destroy()
        self._matrix.destroy()
        if self._own:
            self._blocks.destroy()
        for vector in (*self._vectors, *self._responses, *self._gradients):
            vector.destroy()


def _with_diagonal(matrix: PETSc.Mat) -> PETSc.Mat:
    """Return the matrix with all diagonal entries stored, zeros too; takes it over. Collective: yes.

    On several ranks PETSc 3.25 hands MUMPS the upper triangle of a symmetric matrix from the diagonal entries on: in
    rows without one all entries are lost.
    """
    zero = PETSc.Mat().createAIJ(matrix.getSizes(), nnz=1, comm=matrix.comm)
    diagonal = matrix.createVecLeft()
    diagonal.set(0.0)
    zero.setDiagonal(diagonal)
    zero.assemble()
    matrix.axpy(1.0, zero, structure=PETSc.Mat.Structure.DIFFERENT_NONZERO_PATTERN)
    for item in (zero, diagonal):
        item.destroy()
    return matrix


def _add_diagonal(block: PETSc.Mat, values: Array) -> None:
    """Add numbers to the diagonal of a matrix. Collective: yes."""
    diagonal = block.getDiagonal()
    diagonal.array[:] += values
    block.setDiagonal(diagonal)
    diagonal.destroy()


def _copy(blocks: Blocks) -> Blocks:
    """Return copies of all blocks. Collective: yes."""

    def copy(block: PETSc.Mat | None) -> PETSc.Mat | None:
        return None if block is None else block.copy()

    return Blocks(
        state_state=copy(blocks.state_state),
        state_control=[copy(block) for block in blocks.state_control],
        control_control=[[copy(block) for block in row] for row in blocks.control_control],
        state_operator=blocks.state_operator.copy(),
        control_operators=[copy(block) for block in blocks.control_operators],
    )
