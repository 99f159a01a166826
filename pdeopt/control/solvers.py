"""Linear solvers for the KKT system, one per structure: matched Schur complement, factorisation, reduced Hessian.

Each is a PETSc KSP under the prefix ``kkt_``; whatever the user sets there wins over the defaults below.
"""

import time
from typing import Protocol

from petsc4py import PETSc

import numpy as np
import ufl

from pdeopt.control.hessian import ReducedHessian
from pdeopt.control.kkt import Blocks, KKTSystem
from pdeopt.control.preconditioners import LinearContext, PearsonWathen, SquareBlock, SwappedSchur
from pdeopt.control.stopping import RieszStopping
from pdeopt.control.two_way import two_way_solver
from pdeopt.fem import forms
from pdeopt.fem.saddle import SolverSetup
from pdeopt.report import KSP_ADVICE, ConvergenceError, OptionError

METHODS = ("matched_schur", "pearson_wathen", "direct", "reduced_hessian")
_INDEFINITE = (PETSc.KSP.ConvergedReason.DIVERGED_INDEFINITE_PC, PETSc.KSP.ConvergedReason.DIVERGED_INDEFINITE_MAT)
_STATE_DIRECT_LIMIT = {1: 10_000_000, 2: 500_000, 3: 60_000}


class ControlPreconditioner(Protocol):
    """A symmetric positive definite approximation of the inverse of the reduced Hessian."""

    def apply(self, pc: PETSc.PC, covector: PETSc.Vec, out: PETSc.Vec) -> None:
        """Apply it to a vector over all controls. Collective: yes."""


class KKTSolver:
    """A KSP for the KKT matrix and the seconds that its set-up took.

    Parameters
    ----------
    method
        One of `METHODS`.
    context
        The system to solve.
    state_setup
        Solver of the state equation in "reduced_hessian", see `state_solver`.
    control_preconditioner
        Preconditioner of the conjugate gradients in "reduced_hessian", kept; see `ReducedHessianPC`.

    Raises
    ------
    OptionError
        If the method is unknown, or the options ask for a Krylov method that the preconditioner does not fit.
    """

    def __init__(
        self,
        method: str,
        context: LinearContext,
        state_setup: SolverSetup | None = None,
        control_preconditioner: ControlPreconditioner | None = None,
    ) -> None:
        started = time.perf_counter()
        self.method = method
        self._system = system = context.system
        self._preconditioner: PearsonWathen | SquareBlock | SwappedSchur | ReducedHessianPC | None = None
        self._stopping: RieszStopping | None = None
        self._scaling: PETSc.Vec | None = None
        # Symmetric pivoting on the indefinite matrix is slow: without it MUMPS needs a tenth of the time (n = 128).
        self._swapped = method == "direct" and PETSc.Options().getString("kkt_pc_type", "lu") == "lu"
        defaults: dict[str, object]
        if method == "direct":
            self._matrix = system.monolithic_matrix(context.blocks, self._swapped)
            self._scaling = system.scaling()
            left = self._scaling.copy()
            if self._swapped:
                system.swap_rows(left)
            self._matrix.diagonalScale(left, self._scaling)
            left.destroy()
            self._matrix.setOption(PETSc.Mat.Option.SYMMETRIC, not self._swapped)
            defaults = {"ksp_type": "preonly", "pc_type": "lu", "pc_factor_mat_solver_type": "mumps"}
            defaults["mat_mumps_icntl_14"] = 50 if self._swapped else 200  # indefinite pivoting outgrows the estimate
            self.name = "MUMPS on the KKT system"
        else:
            self._matrix = system.matrix(context.blocks)
            if method in ("matched_schur", "pearson_wathen"):
                self._preconditioner = _schur(method, context)
                # Not GCR: it breaks down where the preconditioned matrix is indefinite, as with too few cycles.
                krylov = "minres" if method == "pearson_wathen" else "fgmres"
                defaults = {"ksp_type": krylov, "pc_type": "python", "ksp_max_it": 500}
                if krylov == "fgmres":
                    defaults["ksp_gmres_restart"] = 60
                self._stopping = RieszStopping(system.norm)
                self.name = f"{krylov.upper()} + {type(self._preconditioner).__name__}"
            elif method == "reduced_hessian":
                self._preconditioner = ReducedHessianPC(context, state_setup, control_preconditioner)
                defaults = {"ksp_type": "preonly", "pc_type": "python"}
                self.name = "reduced-Hessian CG in the control metric"
            else:
                raise OptionError(f"method {method!r} is unknown: choose one of {', '.join(METHODS)}")
        self.ksp = PETSc.KSP().create(system.comm)
        self.ksp.setOptionsPrefix("kkt_")
        self.ksp.setOperators(self._matrix)
        with forms.default_options("kkt_", defaults):
            if self._preconditioner is not None:
                self.ksp.getPC().setType("python")
                self.ksp.getPC().setPythonContext(self._preconditioner)
            self.ksp.setFromOptions()
            self._check_krylov_method()
            if self._stopping is not None:
                self.ksp.setConvergenceTest(self._stopping)
            if method == "direct":
                self.ksp.setUp()
        self.seconds_setup = time.perf_counter() - started

    def _check_krylov_method(self) -> None:
        krylov = self.ksp.getType()
        fitting = {
            PearsonWathen: ("minres", "symmlq", "gmres", "fgmres", "gcr"),
            SquareBlock: ("gcr", "fgmres", "gmres"),
            SwappedSchur: ("gcr", "fgmres", "gmres"),
        }.get(type(self._preconditioner))
        if fitting and self.ksp.getPC().getType() == "python" and krylov not in fitting:
            raise OptionError(f"kkt_ksp_type {krylov} does not fit {self.method}: choose one of {', '.join(fitting)}")

    @property
    def residuals(self) -> tuple[float, ...]:
        """The Krylov method's own residual norms in the last solve; empty for methods without one."""
        return () if self._stopping is None else tuple(self._stopping.own_history)

    @property
    def negative_curvature(self) -> bool:
        """Whether the last solve by "reduced_hessian" met a control d with d'Hd <= 0."""
        inner = self._preconditioner
        return isinstance(inner, ReducedHessianPC) and inner.negative_curvature

    @property
    def solves(self) -> int:
        """Solves with the state operator or its transpose so far in "reduced_hessian"; 0 in other methods."""
        inner = self._preconditioner
        return inner.solves if isinstance(inner, ReducedHessianPC) else 0

    def solve(
        self,
        right: PETSc.Vec,
        out: PETSc.Vec,
        rtol: float,
        norm: float | None = None,
        *,
        report_negative_curvature: bool = False,
    ) -> int:
        """Solve to a tolerance relative in the Riesz norm and return the Krylov iterations. Collective: yes.

        Parameters
        ----------
        right, out
            Right-hand side and solution.
        rtol
            Relative tolerance.
        norm
            The Riesz norm of the right-hand side, if it is known.
        report_negative_curvature
            Where "reduced_hessian" meets negative curvature, set what was found until then and `negative_curvature`;
            otherwise that is an error.

        Raises
        ------
        ConvergenceError
            If the KSP reports divergence, or the reduced Hessian is indefinite.
        """
        if self._stopping is not None:
            self._stopping.start(right, rtol, norm)
        elif isinstance(self._preconditioner, ReducedHessianPC):
            # Eliminating state and adjoint amplifies the right-hand side by up to 1 / sqrt(alpha) before CG sees it.
            self._preconditioner.rtol = max(1e-3 * rtol, 1e-13)
        with forms.log_event(f"pdeopt {self.method} solve"):
            self._solve(right, out)
        reason = self.ksp.getConvergedReason()
        if reason < 0:
            advice = KSP_ADVICE.get(reason, "see kkt_ksp_converged_reason")
            raise ConvergenceError(f"the KKT solve with {self.name} failed (reason {reason}): {advice}")
        if isinstance(self._preconditioner, ReducedHessianPC):
            if self.negative_curvature and not report_negative_curvature:
                raise ConvergenceError(f"the reduced-Hessian solve failed (reason -10): {KSP_ADVICE[-10]}")
            return self._preconditioner.iterations
        return 0 if self.ksp.getType() == "preonly" else int(self.ksp.getIterationNumber())

    def _solve(self, right: PETSc.Vec, out: PETSc.Vec) -> None:
        if self._scaling is None:
            self.ksp.solve(right, out)
            return
        scaled = right.duplicate()
        scaled.pointwiseMult(right, self._scaling)
        if self._swapped:
            self._system.swap_rows(scaled)
        self.ksp.solve(scaled, out)
        out.pointwiseMult(out, self._scaling)
        scaled.destroy()

    def destroy(self) -> None:
        """Free the PETSc objects. Collective: yes."""
        self.ksp.destroy()
        self._matrix.destroy()
        if self._scaling is not None:
            self._scaling.destroy()
        if self._preconditioner is not None:
            self._preconditioner.release()


def _schur(method: str, context: LinearContext) -> PearsonWathen | SquareBlock | SwappedSchur:
    """Build the matched-Schur preconditioner that fits. Collective: yes."""
    if context.structure.kind == "general":
        raise OptionError(
            f"method {method!r} needs control and quadratic observation on the whole domain or a part of it, without "
            "extra constraints; this problem has another structure: choose 'direct' or 'reduced_hessian'"
        )
    if method == "pearson_wathen":
        return PearsonWathen(context)
    return SwappedSchur(context) if context.structure.kind == "partial observation" else SquareBlock(context)


class ReducedHessianPC:
    """Solves the KKT system by eliminating state and adjoint: CG for the reduced Hessian, preconditioned by L_uu.

    Where CG meets a direction of negative curvature it stops, as Steihaug's does: what it found until then (its first
    direction, if that is the one) becomes the control's part of the solution, and `negative_curvature` is set.

    In the metric of the regularisation the spectrum of the reduced Hessian is that of the identity plus a compact
    operator, so the iterations do not grow with refinement.

    Parameters
    ----------
    context
        The system to solve.
    state_setup
        Solver of the state equation, see `state_solver`.
    control_preconditioner
        Preconditions CG instead of L_uu, which is indefinite far from the optimum where the state equation is
        nonlinear in the control; kept, and not freed.

    Attributes
    ----------
    iterations, negative_curvature
        Of the last solve.
    """

    def __init__(
        self,
        context: LinearContext,
        state_setup: SolverSetup | None = None,
        control_preconditioner: ControlPreconditioner | None = None,
    ) -> None:
        system, blocks = context.system, context.blocks
        self._system, self._blocks = system, blocks
        self.rtol, self.iterations, self.negative_curvature = 1e-8, 0, False
        self._state_ksp = state_solver(system, blocks.state_operator, context.symmetric, state_setup)
        self._hessian = ReducedHessian(system, blocks, self._state_ksp)
        self._inner = _regularisation(blocks, system)
        self._ksp = PETSc.KSP().create(system.comm)
        self._ksp.setOptionsPrefix("kkt_reduced_")
        self._ksp.setOperators(self._hessian.matrix, self._inner)
        defaults: dict[str, object] = {"ksp_type": "cg", "ksp_norm_type": "natural", "ksp_max_it": 2000}
        if control_preconditioner is None:
            defaults |= {"pc_type": "ksp", "ksp_ksp_type": "cg", "ksp_ksp_rtol": 1e-10, "ksp_pc_type": "jacobi"}
        else:
            defaults |= {"pc_type": "python"}
        with forms.default_options("kkt_reduced_", defaults):
            if control_preconditioner is not None:
                self._ksp.getPC().setType("python")
                self._ksp.getPC().setPythonContext(control_preconditioner)
            self._ksp.setFromOptions()
            self._ksp.setUp()
        self._ksp.addConvergenceTest(self._stop_at_negative_curvature, prepend=True)
        self._state = [forms.SubVectors(system.layout, 0).vector for _ in range(4)]
        self._control = [self._hessian.layout.create_vector() for _ in range(2)]

    def apply(self, pc: PETSc.PC, right: PETSc.Vec, out: PETSc.Vec) -> None:
        """Solve the whole KKT system for a right-hand side. Collective: yes."""
        layout, last, blocks, hessian = self._system.layout, self._system.adjoint_field, self._blocks, self._hessian
        work, state, adjoint, product = self._state
        reduced, control = self._control
        controls = slice(layout.offsets[1], layout.offsets[last])

        def solve_adjoint(with_control: bool) -> None:
            """A^-T (r_y - L_yy y - L_yu u)."""
            work.array[:] = layout.read(right, 0)
            product.set(0.0)
            if blocks.state_state is not None:
                blocks.state_state.mult(state, product)
            if with_control:
                hessian.add_controls(blocks.state_control, control, product)
            work.axpy(-1.0, product)
            hessian.solve_state(work, adjoint, transpose=True)

        work.array[:] = layout.read(right, last)
        hessian.solve_state(work, state)  # A^-1 r_p
        solve_adjoint(with_control=False)
        reduced.set(0.0)
        hessian.add_transposed(blocks.state_control, state, reduced)
        hessian.add_transposed(blocks.control_operators, adjoint, reduced)
        reduced.scale(-1.0)
        reduced.array[:] += right.array_r[controls]
        self._ksp.setTolerances(rtol=self.rtol)
        hessian.curvatures = curvatures = list[float]()
        self._ksp.solve(reduced, control)
        hessian.curvatures = None
        self.iterations = int(self._ksp.getIterationNumber())
        reason = self._ksp.getConvergedReason()
        self.negative_curvature = reason in _INDEFINITE
        if self.negative_curvature and (len(curvatures) <= 1 or control.norm() == 0.0):
            self._first_direction(reason, reduced, control)
        elif reason < 0 and not self.negative_curvature:
            raise ConvergenceError(f"the reduced-Hessian solve failed (reason {reason}): {KSP_ADVICE.get(reason, '')}")
        out.array[controls] = control.array_r
        work.array[:] = layout.read(right, last)
        product.set(0.0)
        hessian.add_controls(blocks.control_operators, control, product)
        work.axpy(-1.0, product)
        hessian.solve_state(work, state)
        layout.write(out, 0, state.array_r)
        solve_adjoint(with_control=True)
        layout.write(out, last, adjoint.array_r)

    def _stop_at_negative_curvature(self, ksp: PETSc.KSP, iteration: int, norm: float) -> int:
        """End CG after a direction of negative curvature: PETSc's own goes on until the curvature changes its sign."""
        curvatures = self._hessian.curvatures
        if curvatures and curvatures[-1] < 0.0:
            return int(PETSc.KSP.ConvergedReason.DIVERGED_INDEFINITE_MAT)
        return int(PETSc.KSP.ConvergedReason.CONVERGED_ITERATING)

    def _first_direction(self, reason: int, right: PETSc.Vec, out: PETSc.Vec) -> None:
        """Set the preconditioned right-hand side; by the diagonal of the metric if the preconditioner is at fault."""
        if reason == PETSc.KSP.ConvergedReason.DIVERGED_INDEFINITE_MAT:
            self._ksp.getPC().apply(right, out)
        if right.dot(out) <= 0.0:
            first = 0
            for product in self._system.control_products:
                diagonal = product.getDiagonal()
                part = slice(first, first + diagonal.getLocalSize())
                out.array[part] = right.array_r[part] / diagonal.array_r
                first = part.stop

    @property
    def solves(self) -> int:
        """Solves with the state operator or its transpose so far."""
        return self._hessian.solves

    def release(self) -> None:
        """Free the PETSc objects. Collective: yes."""
        self._ksp.destroy()
        self._hessian.release()
        for item in (self._state_ksp, self._inner, *self._state, *self._control):
            item.destroy()


def _regularisation(blocks: Blocks, system: KKTSystem) -> PETSc.Mat:
    """Return L_uu over all controls as one AIJ matrix; the control's inner product stands in where it vanishes."""
    count = len(system.controls)
    table: list[list[PETSc.Mat | None]] = [[None] * count for _ in range(count)]
    for i in range(count):
        for j in range(i, count):
            table[i][j] = blocks.control_control[i][j]
            if i < j and table[i][j] is not None:
                table[j][i] = PETSc.Mat().createTranspose(table[i][j])
    only = blocks.control_control[0][0]
    if count == 1 and only is not None:
        return only.copy()
    nest = PETSc.Mat().createNest(table, comm=system.comm)
    matrix = nest.convert("aij", PETSc.Mat())
    nest.destroy()
    return matrix


def state_solver(
    system: KKTSystem, operator: PETSc.Mat, symmetric: bool, setup: SolverSetup | None = None
) -> PETSc.KSP:
    """Return a KSP for the linearised state equation and its transpose, prefix ``state_``. Collective: yes.

    That of the setup, if there is one; otherwise a factorisation up to the limit of the dimension, CG or GMRES with
    algebraic multigrid above it. The tolerance makes it exact for the solvers around it.
    """
    dimension = system.lagrangian.state.function_space.mesh.topology.dim
    return linear_state_solver(operator, symmetric, dimension, setup)


def linear_state_solver(
    operator: PETSc.Mat, symmetric: bool, dimension: int, setup: SolverSetup | None = None, prefix: str = "state_"
) -> PETSc.KSP:
    """Return such a KSP for an operator on a mesh of a topological dimension. Collective: yes."""
    if setup is not None:
        return two_way_solver(operator, setup, prefix)
    ksp = PETSc.KSP().create(operator.comm)
    ksp.setOptionsPrefix(prefix)
    ksp.setOperators(operator)
    defaults: dict[str, object]
    if operator.getSize()[0] <= _STATE_DIRECT_LIMIT[dimension]:
        factorisation = "cholesky" if symmetric else "lu"
        operator.setOption(PETSc.Mat.Option.SYMMETRIC, symmetric)
        defaults = {"ksp_type": "preonly", "pc_type": factorisation, "pc_factor_mat_solver_type": "mumps"}
    else:
        krylov = "cg" if symmetric else "gmres"
        defaults = {"ksp_type": krylov, "ksp_rtol": 1e-12, "ksp_max_it": 1000, "pc_type": "gamg"}
    with forms.default_options(prefix, defaults):
        ksp.setFromOptions()
        ksp.setUp()
    return ksp


def is_symmetric(matrix: PETSc.Mat) -> bool:
    """Whether a matrix is symmetric, tested on a fixed vector with no structure. Collective: yes."""
    vector, product = matrix.createVecs()
    transposed = product.duplicate()
    first, last = vector.getOwnershipRange()
    vector.array[:] = np.cos(1.0 + 0.7 * np.arange(first, last) ** 1.1)
    matrix.mult(vector, product)
    matrix.multTranspose(vector, transposed)
    size = product.norm()
    transposed.axpy(-1.0, product)
    return bool(transposed.norm() <= 1e-10 * size)


def state_operator_is_symmetric(system: KKTSystem, operator: PETSc.Mat) -> bool:
    """Whether the state operator is symmetric wherever it is assembled, tested at a generic point too. Collective: yes.

    That of a flow at rest is symmetric, and would be factorised as such, though no other is.
    """
    if system.linear_state or not is_symmetric(operator):
        return is_symmetric(operator)
    point, generic = system.layout.create_vector(), system.layout.create_vector()
    system.get_unknowns(point)
    first, last = generic.getOwnershipRange()
    generic.array[:] = point.array_r + 0.1 * np.cos(2.0 + 0.9 * np.arange(first, last))
    system.set_unknowns(generic)
    there = system.assemble_state_operator()
    symmetric = is_symmetric(there)
    system.set_unknowns(point)
    for item in (there, point, generic):
        item.destroy()
    return symmetric


def state_mass_matrix(system: KKTSystem) -> PETSc.Mat:
    """Return the state's mass matrix, Dirichlet rows and columns zero. Collective: yes."""
    space = system.lagrangian.state.function_space
    mass = forms.compile_form(ufl.inner(ufl.TrialFunction(space), ufl.TestFunction(space)) * ufl.dx)
    return forms.assemble_matrix(mass, system.bcs, diag=0.0)
