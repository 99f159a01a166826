"""Linear solvers for the KKT system, one per structure: matched Schur complement, factorisation, reduced Hessian.

Each is a PETSc KSP under the prefix ``kkt_``; whatever the user sets there wins over the defaults below.
"""

import dataclasses
import time
from collections.abc import Sequence

from petsc4py import PETSc

import numpy as np
import ufl

from pdeopt.control.kkt import Blocks, KKTSystem, Mask
from pdeopt.control.preconditioners import PearsonWathen, SquareBlock, SwappedSchur
from pdeopt.control.structure import Structure
from pdeopt.fem import forms
from pdeopt.report import KSP_ADVICE, ConvergenceError, OptionError

METHODS = ("matched_schur", "pearson_wathen", "direct", "reduced_hessian")
_STATE_DIRECT_LIMIT = {1: 10_000_000, 2: 500_000, 3: 60_000}


@dataclasses.dataclass(frozen=True)
class LinearContext:
    """What every KKT solver is built from.

    Parameters
    ----------
    system, blocks, structure
        The KKT system, its blocks with fixed controls taken out, and what was recognised.
    active
        Which coordinates of each control a bound holds.
    state_mass, identity_mass
        State mass matrix with zeros and with ones on the Dirichlet diagonal.
    symmetric
        Whether the state operator is symmetric.
    """

    system: KKTSystem
    blocks: Blocks
    structure: Structure
    active: Sequence[Mask]
    state_mass: PETSc.Mat
    identity_mass: PETSc.Mat
    symmetric: bool


class KKTSolver:
    """A KSP for the KKT matrix and the seconds that its set-up took.

    Parameters
    ----------
    method
        One of `METHODS`.
    context
        The system to solve.

    Raises
    ------
    OptionError
        If the method is unknown, or the options ask for a Krylov method that the preconditioner does not fit.
    """

    def __init__(self, method: str, context: LinearContext) -> None:
        started = time.perf_counter()
        self.method = method
        system = context.system
        self._preconditioner: PearsonWathen | SquareBlock | SwappedSchur | ReducedHessianPC | None = None
        self._matrix = (system.monolithic_matrix if method == "direct" else system.matrix)(context.blocks)
        defaults: dict[str, object]
        if method == "direct":
            self._matrix.setOption(PETSc.Mat.Option.SYMMETRIC, True)
            defaults = {"ksp_type": "preonly", "pc_type": "cholesky", "pc_factor_mat_solver_type": "mumps"}
            defaults["mat_mumps_icntl_14"] = 200  # indefinite pivoting outgrows MUMPS' default workspace estimate
            self.name = "MUMPS on the KKT system"
        elif method in ("matched_schur", "pearson_wathen"):
            self._preconditioner = _schur(method, context)
            krylov = "minres" if method == "pearson_wathen" else "gcr"
            defaults = {"ksp_type": krylov, "pc_type": "python", "ksp_max_it": 500}
            if krylov == "gcr":
                defaults["ksp_gcr_restart"] = 60
            self.name = f"{krylov.upper()} + {type(self._preconditioner).__name__}"
        elif method == "reduced_hessian":
            self._preconditioner = ReducedHessianPC(context)
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

    def solve(self, right: PETSc.Vec, out: PETSc.Vec, rtol: float) -> int:
        """Solve to a relative tolerance and return the Krylov iterations. Collective: yes.

        Raises
        ------
        ConvergenceError
            If the KSP reports divergence.
        """
        if isinstance(self._preconditioner, ReducedHessianPC):
            # Eliminating state and adjoint amplifies the right-hand side by up to 1 / sqrt(alpha) before CG sees it.
            self._preconditioner.rtol = max(1e-3 * rtol, 1e-13)
        self.ksp.setTolerances(rtol=max(rtol, 1e-14))
        self.ksp.solve(right, out)
        reason = self.ksp.getConvergedReason()
        if reason < 0:
            advice = KSP_ADVICE.get(reason, "see ksp_converged_reason")
            raise ConvergenceError(f"the KKT solve with {self.name} failed (reason {reason}): {advice}")
        if isinstance(self._preconditioner, ReducedHessianPC):
            return self._preconditioner.iterations
        return 0 if self.ksp.getType() == "preonly" else int(self.ksp.getIterationNumber())

    def destroy(self) -> None:
        """Free the PETSc objects. Collective: yes."""
        self.ksp.destroy()
        self._matrix.destroy()
        if self._preconditioner is not None:
            self._preconditioner.release()


def _schur(method: str, context: LinearContext) -> PearsonWathen | SquareBlock | SwappedSchur:
    """Build the matched-Schur preconditioner that fits. Collective: yes."""
    if context.structure.kind == "general":
        raise OptionError(
            f"method {method!r} needs control and quadratic observation on the whole domain or a part of it, without "
            "extra constraints; this problem has another structure: choose 'direct' or 'reduced_hessian'"
        )
    shared = (context.system, context.blocks, context.structure, context.state_mass)
    if method == "pearson_wathen":
        return PearsonWathen(*shared, context.identity_mass, _free_mass(context), context.symmetric)
    if context.structure.kind == "partial observation":
        return SwappedSchur(*shared, context.identity_mass, context.symmetric)
    return SquareBlock(*shared, _free_mass(context), context.symmetric)


def _free_mass(context: LinearContext) -> PETSc.Mat:
    """Return the control term of the Schur complement: the mass matrix, less what bounds hold. Collective: yes.

    Where control and state share their degrees of freedom, the mass matrix loses the rows and columns of active
    controls (Porcelli, Simoncini, Tani, SIAM J. Sci. Comput. 37 (2015) S472-S502); otherwise it stays whole.
    """
    system = context.system
    same = [
        c.function.function_space.element == system.lagrangian.state.function_space.element for c in system.controls
    ]
    held = system.comm.allreduce(any(bool(np.any(mask)) for mask in context.active))
    if not held or len(same) != 1 or not same[0] or context.active[0].size != system.layout.sizes[0]:
        return context.state_mass
    matrix = context.state_mass.copy()
    system._fix(matrix, context.active[0], context.active[0])
    return matrix


class ReducedHessianPC:
    """Solves the KKT system by eliminating state and adjoint: CG for the reduced Hessian, preconditioned by L_uu.

    H = L_uu - B' A^-T L_yu - L_uy A^-1 B + B' A^-T L_yy A^-1 B. In the metric of the regularisation its spectrum is
    that of the identity plus a compact operator, so the iterations do not grow with refinement.

    Parameters
    ----------
    context
        The system to solve.
    """

    def __init__(self, context: LinearContext) -> None:
        system, blocks = context.system, context.blocks
        self._system, self._blocks = system, blocks
        self.rtol, self.iterations = 1e-8, 0
        self._state_ksp = state_solver(system, blocks.state_operator, context.symmetric)
        sizes = system.layout.sizes
        self._control_layout = forms.BlockLayout(system.comm, sizes[1:-1])
        self._hessian = PETSc.Mat().createPython(
            ((self._control_layout.offsets[-1], self._control_layout.global_size),) * 2, context=self, comm=system.comm
        )
        self._hessian.setUp()
        self._inner = _regularisation(blocks, system)
        self._ksp = PETSc.KSP().create(system.comm)
        self._ksp.setOptionsPrefix("kkt_reduced_")
        self._ksp.setOperators(self._hessian, self._inner)
        defaults: dict[str, object] = {"ksp_type": "cg", "ksp_norm_type": "natural", "ksp_max_it": 2000}
        defaults |= {"pc_type": "ksp", "ksp_ksp_type": "cg", "ksp_ksp_rtol": 1e-10, "ksp_pc_type": "jacobi"}
        with forms.default_options("kkt_reduced_", defaults):
            self._ksp.setFromOptions()
            self._ksp.setUp()
        self._state = [forms.SubVectors(system.layout, 0).vector for _ in range(4)]
        self._control = [self._control_layout.create_vector() for _ in range(2)]
        self._parts = [forms.SubVectors(self._control_layout, j) for j in range(len(sizes) - 2)]

    def _add_controls(self, operators: Sequence[PETSc.Mat | None], control: PETSc.Vec, out: PETSc.Vec) -> None:
        work = out.duplicate()
        for part, operator in zip(self._parts, operators, strict=True):
            if operator is not None:
                operator.mult(part.load(control), work)
                out.axpy(1.0, work)
        work.destroy()

    def _add_transposed(self, operators: Sequence[PETSc.Mat | None], state: PETSc.Vec, out: PETSc.Vec) -> None:
        for j, (part, operator) in enumerate(zip(self._parts, operators, strict=True)):
            if operator is not None:
                operator.multTranspose(state, part.vector)
                out.array[self._control_layout.slice(j)] += part.vector.array_r

    def _solve_state(self, right: PETSc.Vec, out: PETSc.Vec, transpose: bool = False) -> None:
        (self._state_ksp.solveTranspose if transpose else self._state_ksp.solve)(right, out)
        if self._state_ksp.getConvergedReason() < 0:
            reason = self._state_ksp.getConvergedReason()
            raise ConvergenceError(f"a linearised state solve failed (reason {reason}): {KSP_ADVICE.get(reason, '')}")

    def mult(self, matrix: PETSc.Mat, control: PETSc.Vec, out: PETSc.Vec) -> None:
        """Apply the reduced Hessian. Collective: yes."""
        blocks, (right, state, adjoint, _) = self._blocks, self._state
        self._inner.mult(control, out)
        right.set(0.0)
        self._add_controls(blocks.control_operators, control, right)
        right.scale(-1.0)
        self._solve_state(right, state)
        right.set(0.0)
        if blocks.state_state is not None:
            blocks.state_state.mult(state, right)
        self._add_controls(blocks.state_control, control, right)
        right.scale(-1.0)
        self._solve_state(right, adjoint, transpose=True)
        self._add_transposed(blocks.state_control, state, out)
        self._add_transposed(blocks.control_operators, adjoint, out)

    def apply(self, pc: PETSc.PC, right: PETSc.Vec, out: PETSc.Vec) -> None:
        """Solve the whole KKT system for a right-hand side. Collective: yes."""
        layout, last, blocks = self._system.layout, self._system.adjoint_field, self._blocks
        work, particular, adjoint, shifted = self._state
        reduced, control = self._control
        work.array[:] = layout.read(right, last)
        self._solve_state(work, particular)  # A^-1 r_p
        work.array[:] = layout.read(right, 0)
        if blocks.state_state is not None:
            blocks.state_state.mult(particular, shifted)
            work.axpy(-1.0, shifted)
        self._solve_state(work, adjoint, transpose=True)  # A^-T (r_y - L_yy A^-1 r_p)
        reduced.set(0.0)
        self._add_transposed(blocks.state_control, particular, reduced)
        self._add_transposed(blocks.control_operators, adjoint, reduced)
        reduced.scale(-1.0)
        reduced.array[:] += right.array_r[layout.offsets[1] : layout.offsets[last]]
        self._ksp.setTolerances(rtol=self.rtol)
        self._ksp.solve(reduced, control)
        self.iterations = int(self._ksp.getIterationNumber())
        if self._ksp.getConvergedReason() < 0:
            reason = self._ksp.getConvergedReason()
            raise ConvergenceError(f"the reduced-Hessian solve failed (reason {reason}): {KSP_ADVICE.get(reason, '')}")
        out.array[layout.offsets[1] : layout.offsets[last]] = control.array_r
        work.array[:] = layout.read(right, last)
        shifted.set(0.0)
        self._add_controls(blocks.control_operators, control, shifted)
        work.axpy(-1.0, shifted)
        self._solve_state(work, particular)
        layout.write(out, 0, particular.array_r)
        work.array[:] = layout.read(right, 0)
        shifted.set(0.0)
        if blocks.state_state is not None:
            blocks.state_state.mult(particular, shifted)
        self._add_controls(blocks.state_control, control, shifted)
        work.axpy(-1.0, shifted)
        self._solve_state(work, adjoint, transpose=True)
        layout.write(out, last, adjoint.array_r)

    def release(self) -> None:
        """Free the PETSc objects. Collective: yes."""
        for item in (self._ksp, self._state_ksp, self._hessian, self._inner, *self._state, *self._control):
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


def state_solver(system: KKTSystem, operator: PETSc.Mat, symmetric: bool, prefix: str = "state_") -> PETSc.KSP:
    """Return a KSP for the linearised state equation and its transpose. Collective: yes.

    A factorisation up to the limit of the dimension, CG or GMRES with algebraic multigrid above it, to a tolerance
    that makes it exact for the solvers around it.
    """
    dimension = system.lagrangian.state.function_space.mesh.topology.dim
    ksp = PETSc.KSP().create(system.comm)
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


def state_mass_matrices(system: KKTSystem) -> tuple[PETSc.Mat, PETSc.Mat]:
    """Return the state's mass matrix with zeros, and with ones, on the Dirichlet diagonal. Collective: yes."""
    space = system.lagrangian.state.function_space
    mass = forms.compile_form(ufl.inner(ufl.TrialFunction(space), ufl.TestFunction(space)) * ufl.dx)
    return forms.assemble_matrix(mass, system.bcs, diag=0.0), forms.assemble_matrix(mass, system.bcs, diag=1.0)
