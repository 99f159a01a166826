"""The control problem as users state it: an objective and a state equation in UFL."""

from collections.abc import Callable, Sequence
from typing import Literal

from mpi4py import MPI
from petsc4py import PETSc

import dolfinx
import numpy as np
import numpy.typing as npt
import ufl

from pdeopt.control import checks, solvers, tao, verify
from pdeopt.control.controls import Control, FieldControl, RealControl
from pdeopt.control.kkt import KKTSystem
from pdeopt.control.lagrangian import Lagrangian
from pdeopt.control.matrix_free import MatrixFreeKKT
from pdeopt.control.newton import NewtonSolver
from pdeopt.control.reduced import ReducedFunctional
from pdeopt.fem import forms
from pdeopt.fem.saddle import SolverSetup
from pdeopt.report import OptionError, SolveReport

Bound = float | npt.NDArray[np.float64] | dolfinx.fem.Function | None
"""A bound: a number, an array for a real-valued control, a function of the space of what it bounds, or none."""


class ControlProblem:
    """Minimise J(y, u) subject to F(y, u; v) = 0 for all v, Dirichlet conditions, bounds on u and constraints G_k = 0.

    Everything is plain UFL and may be nonlinear. The Lagrangian is L = J + F(y, u; p) + sum_k l_k G_k; adjoint
    equation, gradient and Hessian are its derivatives, all integrated by one quadrature rule.

    Parameters
    ----------
    objective
        J, a functional (a form without arguments).
    state_equation
        F, a residual form: linear in one test function, or in ``adjoint`` itself.
    state
        y, a function; its values are the initial guess, and the result.
    control
        u, a function of any space, a `dolfinx.fem.Constant` (a vector of real numbers), or a sequence of such.
    adjoint
        p, a function of the state's space; made if None.
    bcs
        Dirichlet conditions of the state.
    bounds
        (lower, upper) for one control, or one such pair or None per control.
    state_bounds
        (lower, upper) of the state's degrees of freedom, for `pdeopt.optimise.minimise`; the methods of `solve` and the
        space of the controls know bounds on controls only.
    constraints
        The G_k, functionals that must vanish.
    control_inner_product
        Bilinear form that measures a control, one per control; the L2 product where the control acts if None.
    entity_maps
        DOLFINx entity maps, if forms mix meshes.
    state_solver
        A setup of `pdeopt.fem.saddle` for the state equation and its adjoint, in the methods that solve them one by
        one ("reduced_hessian" and those of TAO); a factorisation, or multigrid for large meshes, if None.

    Attributes
    ----------
    state, adjoint
        The functions y and p, set by `solve`.
    multipliers
        The l_k, shape (constraints,), set by `solve`.
    bounds, state_bounds
        Lower and upper bounds by coordinates that this rank owns, infinite where there is none: a list with an entry
        per control, and one entry for the state or None.

    Raises
    ------
    ProblemError
        If something about the problem cannot be right; the message says what, and what to do.

    Collective: yes.
    """

    def __init__(
        self,
        *,
        objective: ufl.Form,
        state_equation: ufl.Form,
        state: dolfinx.fem.Function,
        control: dolfinx.fem.Function | dolfinx.fem.Constant | Sequence[dolfinx.fem.Function | dolfinx.fem.Constant],
        adjoint: dolfinx.fem.Function | None = None,
        bcs: Sequence[dolfinx.fem.DirichletBC] = (),
        bounds: tuple[Bound, Bound] | Sequence[tuple[Bound, Bound] | None] | None = None,
        state_bounds: tuple[Bound, Bound] | None = None,
        constraints: Sequence[ufl.Form] = (),
        control_inner_product: ufl.Form | Sequence[ufl.Form | None] | None = None,
        entity_maps: Sequence[dolfinx.mesh.EntityMap] | None = None,
        state_solver: SolverSetup | None = None,
    ) -> None:
        controls: list[dolfinx.fem.Function | dolfinx.fem.Constant] = (
            list(control) if isinstance(control, list | tuple) else [control]  # type: ignore[list-item]
        )
        adjoint = checks.check_unknowns(state, controls, adjoint)
        residual = checks.check_forms(objective, state_equation, state, controls, adjoint, constraints)
        checks.check_dirichlet(bcs, state)
        products = checks.per_control(control_inner_product, len(controls))
        mesh = state.function_space.mesh
        self.state, self.adjoint, self._state_solver = state, adjoint, state_solver
        self.given_controls = tuple(controls)
        self.comm: MPI.Comm = mesh.comm
        self.controls: tuple[Control, ...] = tuple(
            RealControl(c, mesh) if isinstance(c, dolfinx.fem.Constant) else FieldControl(c) for c in controls
        )
        stand_ins = {
            given: real.function
            for given, real in zip(controls, self.controls, strict=True)
            if isinstance(given, dolfinx.fem.Constant)
        }
        fixed = [forms.fix_quadrature_degree(ufl.replace(form, stand_ins) if stand_ins else form)
                 for form in (objective, residual, *constraints)]  # fmt: skip
        multipliers = tuple(dolfinx.fem.Constant(mesh, 0.0) for _ in constraints)
        self._lagrangian = Lagrangian(
            fixed[0], fixed[1], tuple(fixed[2:]), state, adjoint, self.controls, multipliers, entity_maps
        )
        checks.check_dependence(self._lagrangian)
        self.bounds = checks.check_bounds(bounds, controls, self.controls, self.comm)
        self.state_bounds = checks.check_state_bounds(state_bounds, state, self.comm)
        self.system = KKTSystem(self._lagrangian, bcs, products)

    @property
    def multipliers(self) -> npt.NDArray[np.float64]:
        """The multipliers of the extra constraints, shape (constraints,)."""
        return np.array([float(multiplier.value) for multiplier in self._lagrangian.multipliers])

    def objective_value(self) -> float:
        """Return J at the present state and control. Collective: yes."""
        return self.system.objective()

    def solve(
        self,
        *,
        method: str | None = None,
        rtol: float = 1e-8,
        max_iterations: int | None = None,
        monitor: Callable[[int, float], None] | None = None,
    ) -> SolveReport:
        """Find the optimum. Collective: yes.

        State, control and adjoint are set. PETSc options under ``kkt_`` (the KKT solve), ``state_`` (state solves in
        the space of the controls), ``kkt_shifted_``, ``kkt_mass_`` (blocks of the preconditioners) and ``reduced_``
        (TAO) override the defaults.

        Parameters
        ----------
        method
            For the optimality system "matched_schur", "pearson_wathen", "direct" or "reduced_hessian"; in the space
            of the controls by TAO "bqnls", "blmvm", "bntr" or "bnls"; chosen by structure if None.
        rtol
            Relative tolerance for the Riesz norm of the KKT residual, with TAO for the projected gradient.
        max_iterations
            Newton or active-set steps (50 if None), or iterations of TAO (500).
        monitor
            Called on every rank with (iteration, residual norm).

        Raises
        ------
        ConvergenceError
            If the tolerance is not reached; nothing unconverged is returned as solved.
        OptionError
            If the method or a PETSc option does not fit the problem, or the state has bounds.
        """
        if method is not None and method not in (*solvers.METHODS, *tao.METHODS):
            known = ", ".join((*solvers.METHODS, *tao.METHODS))
            raise OptionError(f"method {method!r} is unknown: choose one of {known}")
        if self.state_bounds is not None:
            raise OptionError(
                "no method of solve() keeps the state within state_bounds: use pdeopt.optimise.minimise, an interior "
                "point method, or leave them out"
            )
        if method in tao.METHODS:
            if self._lagrangian.constraints:
                raise OptionError(
                    f"method {method!r} moves the controls alone and cannot keep extra constraints: "
                    "choose 'direct' or 'reduced_hessian'"
                )
            functional = self.reduced_functional()
            try:
                report = tao.minimise(
                    functional, method, rtol=rtol, max_iterations=max_iterations or 500, monitor=monitor
                )
            finally:
                functional.destroy()
            self._free_dropped()  # not after an exception, which may be this rank's alone
            return report
        solver = NewtonSolver(self.system, self.bounds, method, self._state_solver)
        report = solver.solve(rtol=rtol, max_iterations=max_iterations or 50, monitor=monitor)
        self._free_dropped()
        return report

    def reduced_functional(self, *, gauss_newton: bool = False) -> ReducedFunctional:
        """Return the objective as a function of the controls alone; destroy it after use. Collective: yes.

        Coefficients of the forms must not change while it is in use.

        Parameters
        ----------
        gauss_newton
            Leave the second derivatives of state equation and constraints out of its Hessian.
        """
        return ReducedFunctional(self.system, self.bounds, gauss_newton, self._state_solver)

    def kkt_matrix(self, form: Literal["nest", "monolithic", "matrix_free"] = "nest") -> PETSc.Mat:
        """Return the KKT matrix at the present state, control and adjoint, for solvers of your own. Collective: yes.

        Its rows and columns are state, controls and adjoint, each rank's part of every field in turn; bounds and extra
        constraints are left out. Rows and columns of the state's Dirichlet degrees of freedom are those of the
        identity in the state operator.

        Parameters
        ----------
        form
            "nest" (a MATNEST of the assembled blocks), "monolithic" (one MATAIJ, for factorisations) or "matrix_free"
            (a MATPYTHON that assembles actions, and follows the unknowns when they change).

        Raises
        ------
        OptionError
            If the form is none of these.
        """
        if form == "matrix_free":
            return MatrixFreeKKT(self.system).create_matrix()
        if form not in ("nest", "monolithic"):
            raise OptionError(f"form {form!r} is unknown: choose 'nest', 'monolithic' or 'matrix_free'")
        blocks = self.system.assemble_blocks()
        return self.system.matrix(blocks) if form == "nest" else self.system.monolithic_matrix(blocks)

    def taylor_test(self, *, hessian: bool = True, seed: int = 0) -> verify.TaylorReport:
        """Test gradient and Hessian at the present control by Taylor remainders. Collective: yes.

        The report says whether they passed, and prints as a table.

        Parameters
        ----------
        hessian
            Test the Hessian too.
        seed
            Seed of the random direction.
        """
        functional = self.reduced_functional()
        try:
            return verify.taylor_test(functional, hessian=hessian, seed=seed)
        finally:
            functional.destroy()

    def check_symmetry(self, *, seed: int = 0) -> float:
        """Return the largest relative asymmetry of the reduced Hessian over random directions. Collective: yes."""
        functional = self.reduced_functional()
        try:
            return verify.check_symmetry(functional, seed=seed)
        finally:
            functional.destroy()

    def destroy(self) -> None:
        """Free the PETSc objects. Collective: yes."""
        self._free_dropped()
        self.system.destroy()

    def _free_dropped(self) -> None:
        """Free what Python has dropped on all ranks, which PETSc keeps until asked. Collective: yes.

        Not after `destroy`: PETSc's communicator might be gone on some ranks only, and the others would wait for it.
        """
        PETSc.garbage_cleanup(self.comm)
