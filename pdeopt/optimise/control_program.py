"""A control problem in full space as a program: x = (state, controls), p = (adjoint, multipliers of the constraints).

Inner products are those of `pdeopt.control.riesz`, so that merit function, tolerances and iterations do not depend on
the mesh. Dirichlet conditions of the state hold from the start on: no step changes them.
"""

import math

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np
import numpy.typing as npt

from pdeopt.control import ControlProblem, solvers, structure
from pdeopt.control.kkt import Blocks
from pdeopt.control.preconditioners import LinearContext
from pdeopt.control.state_solvers import state_solver
from pdeopt.fem import forms
from pdeopt.optimise.control_kkt import METHODS, ControlKKT
from pdeopt.optimise.eigenpair_rules import EigenpairPreconditioner, EigenpairRule, randomised
from pdeopt.optimise.program import KKTSolver, Mask, Pair
from pdeopt.optimise.recycled import RecycledDirections
from pdeopt.report import OptionError

Array = npt.NDArray[np.float64]
_RIESZ_ACCURACY = 1e-10


class ControlProgram:
    """A control problem as `pdeopt.optimise.program.Program`.

    Parameters
    ----------
    problem
        The problem; its functions hold the point at which the program stands.
    method
        Solver of the KKT systems, one of `pdeopt.optimise.control_kkt.METHODS`; chosen by structure if None.
    eigenpairs
        When "low_rank", elimination with conjugate gradients that eigenpairs of the misfit Hessian precondition, finds
        them anew, and how: `pdeopt.optimise.eigenpair_rules.sensor_wise` for few sensors, or, if None, `randomised`.

    Attributes
    ----------
    method, why
        The solver, and why it was chosen.

    Raises
    ------
    OptionError
        If the method is unknown.
    """

    def __init__(
        self, problem: ControlProblem, method: str | None = None, eigenpairs: EigenpairRule | None = None
    ) -> None:
        if eigenpairs is not None:
            method = method or "low_rank"
            if method != "low_rank":
                raise OptionError(f"eigenpairs do not fit method {method!r}: ask for 'low_rank', or leave them out")
        if method is not None and method not in METHODS:
            raise OptionError(f"method {method!r} is unknown: choose one of {', '.join(METHODS)}")
        self.problem, self.system = problem, problem.system
        self.comm: MPI.Comm = problem.comm
        system = self.system
        self.quadratic = system.linear_quadratic
        layout = system.layout
        self._primal = slice(0, layout.offsets[system.adjoint_field])
        self._dual = slice(layout.offsets[system.adjoint_field], layout.offsets[-1])
        self._multipliers = system.lagrangian.multipliers
        # Multipliers of the extra constraints are real numbers: rank 0 holds them in the dual vector.
        own = len(self._multipliers) if self.comm.rank == 0 else 0
        self._primal_layout = forms.BlockLayout(self.comm, [self._primal.stop])
        self._dual_layout = forms.BlockLayout(self.comm, [layout.sizes[0], own])
        self._work = [layout.create_vector() for _ in range(2)]
        system.impose_dirichlet()
        self._blocks: Blocks | None = system.assemble_blocks()
        self._matrix: PETSc.Mat | None = None
        self._gradients: list[PETSc.Vec] | None = None
        self._state_mass = solvers.state_mass_matrix(system)
        self._symmetric = solvers.state_operator_is_symmetric(system, self._blocks.state_operator)
        self._structure = structure.recognise(system, self._blocks, self._state_mass)
        system.calibrate_norm(self._blocks, self._state_mass)
        self._bounds = self._make_bounds()
        simple = self._bounds is None and not self._multipliers
        self.gauss_newton = False
        self.restores = simple and system.affine_state and not system.linear_state
        if method is None:
            method, self.why = structure.choose_method(self._structure, system, self._bounds is not None)
            if method == "direct" and (not self.quadratic or self._bounds is not None):  # quadratic may be concave
                method, self.why = "factorisation", f"{self.why}; the symmetric one knows the inertia"
        else:
            self.why = "asked for"
        self.method = method
        self.preconditioner: RecycledDirections | EigenpairPreconditioner | None = None
        if method == "low_rank":
            self.preconditioner = EigenpairPreconditioner(system, eigenpairs or randomised(system))
        elif method == "reduced_hessian":
            self.preconditioner = RecycledDirections(system)

    # Points ----------------------------------------------------------------------------------------------------------

    def create(self) -> Pair:
        """Return a pair of zero vectors. Collective: yes."""
        return Pair(self._primal_layout.create_vector(), self._dual_layout.create_vector())

    def get(self, out: Pair) -> None:
        """Copy the present point. Collective: yes."""
        self.system.get_unknowns(self._work[0])
        self.split(self._work[0], out, [float(multiplier.value) for multiplier in self._multipliers])

    def move(self, point: Pair) -> None:
        """Let everything stand at a point; the problem's functions are set. Collective: yes."""
        self.system.set_unknowns(self.join(point, self._work[0]))
        for multiplier, value in zip(self._multipliers, self.extra(point), strict=True):
            multiplier.value = np.asarray(value)
        if not self.quadratic:  # whose matrices are the same everywhere
            self.forget_matrices()

    def join(self, pair: Pair, out: PETSc.Vec) -> PETSc.Vec:
        """Write a pair into a vector of the KKT system, without the multipliers. Collective: no."""
        out.array[self._primal] = pair.primal.array_r
        out.array[self._dual] = self._dual_layout.read(pair.dual, 0)
        return out

    def split(self, vector: PETSc.Vec, out: Pair, extra: list[float] | Array) -> None:
        """Write a vector of the KKT system, and numbers for the multipliers, into a pair. Collective: no."""
        out.primal.array[:] = vector.array_r[self._primal]
        self._dual_layout.write(out.dual, 0, vector.array_r[self._dual])
        if self.comm.rank == 0:
            self._dual_layout.write(out.dual, 1, np.asarray(extra))

    def extra(self, pair: Pair) -> Array:
        """Return the part of a pair that belongs to the extra constraints, on all ranks. Collective: yes."""
        if not self._multipliers:
            return np.empty(0)
        return np.asarray(self.comm.bcast(np.array(self._dual_layout.read(pair.dual, 1))))

    def _make_bounds(self) -> tuple[PETSc.Vec, PETSc.Vec] | None:
        system, problem = self.system, self.problem
        vectors = []
        state_bounds = getattr(problem, "state_bounds", None)
        for side, infinite in (("lower", -np.inf), ("upper", np.inf)):
            vector = self._primal_layout.create_vector()
            state = np.full(system.layout.sizes[0], infinite)
            if state_bounds is not None:
                state = np.where(system.dirichlet_mask(), infinite, getattr(state_bounds, side))
            controls = [
                np.where(idle, infinite, getattr(bounds, side))
                for idle, bounds in zip(system.idle, problem.bounds, strict=True)
            ]
            vector.array[:] = np.concatenate([state, *controls])
            vectors.append(vector)
        finite = any(bool(np.isfinite(vector.array_r).any()) for vector in vectors)
        if self.comm.allreduce(finite, op=MPI.LOR):
            return vectors[0], vectors[1]
        for vector in vectors:
            vector.destroy()
        return None

    def bounds(self) -> tuple[PETSc.Vec, PETSc.Vec] | None:
        """Return bounds of state and controls, or None. Collective: no."""
        return self._bounds

    # Values and derivatives ------------------------------------------------------------------------------------------

    def objective(self) -> float:
        """Return J. Collective: yes."""
        return self.system.objective()

    def residual(self, out: Pair) -> None:
        """Set (L_y, L_u; F, G). Collective: yes."""
        self.system.residual(self._work[0])
        self.split(self._work[0], out, self.system.constraint_values())

    def objective_gradient(self, out: PETSc.Vec) -> None:
        """Set J'(y, u): the Lagrangian's gradient at zero multipliers. Collective: yes."""
        here, without, residual = self.create(), self.create(), self.create()
        self.get(here)
        here.primal.copy(without.primal)
        kept = self._blocks, self._matrix, self._gradients
        self._blocks = self._matrix = self._gradients = None
        self.move(without)
        self.residual(residual)
        residual.primal.copy(out)
        self.move(here)
        self._blocks, self._matrix, self._gradients = kept
        for pair in (here, without, residual):
            pair.destroy()

    def hessian_mult(self, direction: PETSc.Vec, out: PETSc.Vec) -> None:
        """Set H d. Collective: yes."""
        self._product(direction, None)
        out.array[:] = self._work[1].array_r[self._primal]

    def jacobian_mult(self, direction: PETSc.Vec, out: PETSc.Vec) -> None:
        """Set G d. Collective: yes."""
        self._product(direction, None)
        vector, product = self._work
        self._dual_layout.write(out, 0, product.array_r[self._dual])
        if self._multipliers:
            vector.array[self._dual] = 0.0
            values = [float(gradient.dot(vector)) for gradient in self.constraint_gradients()]
            if self.comm.rank == 0:
                self._dual_layout.write(out, 1, np.array(values))

    def jacobian_mult_transpose(self, direction: PETSc.Vec, out: PETSc.Vec) -> None:
        """Set G' d. Collective: yes."""
        pair = Pair(out, direction)
        extra = self.extra(pair)
        self._product(None, direction)
        out.array[:] = self._work[1].array_r[self._primal]
        for factor, gradient in zip(extra, self.constraint_gradients() if extra.size else (), strict=True):
            out.array[:] += float(factor) * gradient.array_r[self._primal]

    def _product(self, primal: PETSc.Vec | None, dual: PETSc.Vec | None) -> None:
        """Multiply by the KKT matrix from the first work vector into the second."""
        vector, product = self._work
        vector.array[self._primal] = 0.0 if primal is None else primal.array_r
        vector.array[self._dual] = 0.0 if dual is None else self._dual_layout.read(dual, 0)
        if self._matrix is None:
            self._matrix = self.system.matrix(self.blocks())
        self._matrix.mult(vector, product)

    def blocks(self) -> Blocks:
        """Return the blocks of the KKT matrix here; they stay this object's. Collective: yes."""
        if self._blocks is None:
            self._blocks = self.system.assemble_blocks()
        return self._blocks

    def gauss_newton_blocks(self) -> Blocks:
        """Return the blocks without the second derivatives of the state equation; the caller's. Collective: yes."""
        adjoint = self.system.lagrangian.adjoint
        kept = forms.owned_values(adjoint).copy()
        forms.set_function(adjoint, np.zeros_like(kept))
        blocks = self.system.assemble_blocks()
        forms.set_function(adjoint, kept)
        return blocks

    def constraint_gradients(self) -> list[PETSc.Vec]:
        """Return the gradients of the extra constraints here; they stay this object's. Collective: yes."""
        if self._gradients is None:
            self._gradients = self.system.constraint_gradients()
        return self._gradients

    def reference_norm(self) -> float:
        """Return the norm of the residual at zero state, control and adjoint, conditions and bounds respected.

        Collective: yes.
        """
        here, zero, residual = self.create(), self.create(), self.create()
        self.get(here)
        if self._bounds is not None:
            zero.primal.pointwiseMax(zero.primal, self._bounds[0])
            zero.primal.pointwiseMin(zero.primal, self._bounds[1])
        self.move(zero)
        self.system.impose_dirichlet()
        self.residual(residual)
        size = self.system.norm(self.join(residual, self._work[0]))
        self.move(here)
        for pair in (here, zero, residual):
            pair.destroy()
        return size

    def restore(self, point: Pair) -> int:
        """Set state and adjoint to those of the controls, where the state equation is affine in the state.

        If the control multiplies the state, both change fast along a step, and the full space's linearisation serves
        only short ones. The solves are not lost: the next elimination starts without them. Collective: yes.
        """
        system, layout = self.system, self.system.layout
        if not self.restores:
            return 0
        self.move(point)
        operator = system.assemble_state_operator()
        ksp = state_solver(system, operator, self._symmetric, self.problem._state_solver)
        right, change = operator.createVecs()
        vector = self._work[0]
        for field, transpose in ((0, False), (system.adjoint_field, True)):
            other = system.adjoint_field - field
            system.assemble_derivative(other, vector)
            right.array[:] = layout.read(vector, other)
            (ksp.solveTranspose if transpose else ksp.solve)(right, change)
            if ksp.getConvergedReason() < 0:
                change.set(math.nan)
            system.get_unknowns(vector)
            layout.write(vector, field, layout.read(vector, field) - change.array_r)
            system.set_unknowns(vector)
        self.get(point)
        self.forget_matrices()
        for item in (ksp, operator, right, change):
            item.destroy()
        return 2

    # Inner products and solvers --------------------------------------------------------------------------------------

    def riesz(self, covector: Pair, out: Pair) -> None:
        """Set the Riesz representatives; extra constraints are measured by their values. Collective: yes."""
        extra = self.extra(covector)
        self.system.representative(self.join(covector, self._work[0]), self._work[1], _RIESZ_ACCURACY)
        self.split(self._work[1], out, extra)

    def weights(self) -> PETSc.Vec:
        """Return the diagonals of the mass matrices in the weights of the norm, new. Collective: yes."""
        system = self.system
        state = system.observation_weight * self._state_mass.getDiagonal().array_r
        parts = [np.where(system.dirichlet_mask(), 1.0, state)]
        for product in system.control_products:
            parts.append(system.regularisation_weight * product.getDiagonal().array_r)
        vector = self._primal_layout.create_vector()
        vector.array[:] = np.concatenate(parts)
        return vector

    def measures(self) -> PETSc.Vec:
        """Return the diagonals of the mass matrices, without the weights of the norm, new. Collective: yes."""
        system = self.system
        parts = [np.where(system.dirichlet_mask(), 1.0, self._state_mass.getDiagonal().array_r)]
        parts += [product.getDiagonal().array_r for product in system.control_products]
        vector = self._primal_layout.create_vector()
        vector.array[:] = np.concatenate(parts)
        return vector

    def kkt_solver(
        self,
        shift: float = 0.0,
        dual_shift: float = 0.0,
        diagonal: PETSc.Vec | None = None,
        fixed: Mask | None = None,
        curvature: float = 1.0,
    ) -> KKTSolver:
        """Set up a solver for the KKT matrix here; see `Program.kkt_solver`. Collective: yes.

        The inertia correction acts on the controls alone, which makes the reduced Hessian definite; the dual one on the
        extra constraints alone, since the state operator is invertible.
        """
        return ControlKKT(self, shift, dual_shift, diagonal, fixed, curvature)

    def linear_context(self, blocks: Blocks, held: list[Mask]) -> LinearContext:
        """Return what the solvers of `pdeopt.control` are built from. Collective: no."""
        return LinearContext(self.system, blocks, self._structure, held, self._state_mass, self._symmetric)

    def forget_matrices(self) -> None:
        """Assemble all second derivatives anew when next needed: coefficients of the forms changed. Collective: yes."""
        if self._matrix is not None:
            self._matrix.destroy()
            self._matrix = None
        if self._blocks is not None:
            self._blocks.destroy()
            self._blocks = None
        for gradient in self._gradients or ():
            gradient.destroy()
        self._gradients = None

    def destroy(self) -> None:
        """Free the PETSc objects; the problem stays. Collective: yes."""
        self.forget_matrices()
        self._state_mass.destroy()
        if self.preconditioner is not None:
            self.preconditioner.release()
        for vector in (*self._work, *(self._bounds or ())):
            vector.destroy()
