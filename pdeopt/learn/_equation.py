"""F(u, m; v) = 0 as a map from m to u, with its adjoint: what stands behind a PDE layer, without torch tensors."""

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence

from petsc4py import PETSc

import dolfinx
import numpy as np
import numpy.typing as npt
import ufl

from pdeopt import parallel
from pdeopt.fem import forms
from pdeopt.learn._adjoint_solver import AdjointSolver
from pdeopt.learn._covectors import owned, restricted
from pdeopt.learn._inputs import BoundaryValues, Input
from pdeopt.learn._torch import torch
from pdeopt.learn.network_coefficient import network_coefficients, total_derivative
from pdeopt.report import SNES_ADVICE, ConvergenceError, InputError

Array = npt.NDArray[np.float64]

# Newton's method stops at a relative step: on fine meshes rounding keeps the residual above any fraction of the load.
_DEFAULTS: Mapping[str, object] = {
    "snes_type": "newtonls",
    "snes_rtol": 1e-12,
    "snes_stol": 1e-10,
    "snes_max_it": 50,
    "ksp_type": "preonly",
    "pc_type": "lu",
    "pc_factor_mat_solver_type": "mumps",
}
# With a kernel: MUMPS finds the zero pivots, and GMRES keeps what they leave out of the solution.
_SINGULAR: Mapping[str, object] = {
    "ksp_type": "gmres",
    "ksp_rtol": 1e-12,
    "ksp_pc_side": "right",
    "mat_mumps_icntl_24": 1,
}
# What the residual has to fall to, over the first one, where Newton's method stopped because its steps are small.
_VERIFIED = 1e-6
# Component of a residual along the kernel, relative, from which data count as incompatible.
_INCOMPATIBLE = 1e-8


@dataclasses.dataclass
class Counts:
    """What was spent so far.

    Parameters
    ----------
    solves, newton, adjoints, krylov
        Equations solved, Newton steps, adjoint equations solved, their Krylov iterations.
    setups
        Preconditioners made anew for an adjoint equation, since the one of Newton's method was too old.
    seconds
        Wall seconds on this rank by stage.
    """

    solves: int = 0
    newton: int = 0
    adjoints: int = 0
    krylov: int = 0
    setups: int = 0
    seconds: dict[str, float] = dataclasses.field(
        default_factory=lambda: {"forward": 0.0, "adjoint": 0.0, "network": 0.0}
    )


class Equation:
    """F(u, m; v) = 0 for all v, solved by SNES; its adjoint by the same preconditioner, transposed.

    Parameters
    ----------
    residual
        F, a form with one argument, its quadrature fixed.
    state
        u; its values at creation are the initial guess of each solve.
    bcs
        Dirichlet conditions.
    inputs
        m.
    prefix, options
        Of the SNES, and defaults under it.
    kernel
        Functions that span the kernel of the derivative of F by u, and of its transpose.
    entity_maps
        Of forms on several meshes.

    Collective: yes.
    """

    def __init__(
        self,
        residual: ufl.Form,
        state: dolfinx.fem.Function,
        bcs: Sequence[dolfinx.fem.DirichletBC],
        inputs: Sequence[Input],
        prefix: str,
        options: Mapping[str, object],
        kernel: Sequence[dolfinx.fem.Function] = (),
        entity_maps: Sequence[dolfinx.mesh.EntityMap] | None = None,
    ) -> None:
        self.state, self.inputs, self.counts = state, tuple(inputs), Counts()
        space = state.function_space
        self.space, self.comm = space, space.mesh.comm
        self.size = forms.owned_size(space)
        self.guess = forms.owned_values(state).copy()
        self.networks = network_coefficients(residual)
        stand_ins = {one.constant: one.function for one in inputs if hasattr(one, "constant")}
        if stand_ins:
            residual = ufl.replace(residual, stand_ins)
            for network in self.networks:
                network.replace_operands(stand_ins)
        self.boundary = BoundaryValues(bcs, inputs, space)
        self._bcs, self._entity_maps = list(bcs), entity_maps
        self.adjoint = dolfinx.fem.Function(space)
        (test,) = residual.arguments()
        self.lagrangian = ufl.replace(residual, {test: self.adjoint})
        jacobian = self.differentiate(residual, state, ufl.TrialFunction(space))
        self._moves_with_state = forms.depends_on(jacobian, [state, *self.networks, *self._derivatives()])
        self._moves_with = [forms.depends_on(jacobian, [one.function]) for one in inputs]
        self.constants = ufl.algorithms.analysis.extract_constants(jacobian)  # that the matrix depends on
        known = [state, *self.networks, *self._derivatives(), *(one.function for one in inputs)]
        # What else the matrix depends on, which the user may change between calls.
        self._data = [one for one in ufl.algorithms.extract_coefficients(jacobian) if one not in known]
        self._residual, self._jacobian = self.compile(residual), self.compile(jacobian)
        self._by_state = self.compile(self.differentiate(self.lagrangian, state, ufl.TestFunction(space)))
        self._by_input = [self._compile_gradient(self.lagrangian, one.function) for one in inputs]
        self._by_network = [self._compile_gradient(self.lagrangian, one, partial=True) for one in self.networks]
        self.matrix = forms.assemble_matrix(self._jacobian, self._bcs)
        self._standing = False  # whether the matrix stands at what inputs and state hold
        self._loaded: list[Array] = []
        self._seen: list[Array] = []
        self._first_norm = math.nan
        self._callbacks = parallel.CallbackErrors(self.comm)
        self._prefix, self._kernel = prefix, _null_space(kernel, self.matrix)
        self._options = {**_DEFAULTS, **(_SINGULAR if kernel else {}), **options}
        self._create_solver()

    def _derivatives(self) -> list[dolfinx.fem.Function]:
        return [network.derivative for network in self.networks]

    def differentiate(self, form: ufl.Form, function: ufl.Coefficient, direction: object) -> ufl.Form:
        """Return the derivative of a form by a function, network coefficients included. Collective: no."""
        return total_derivative(form, function, direction, self.networks)

    def compile(self, form: ufl.Form) -> dolfinx.fem.Form:
        """Compile a form. Collective: yes."""
        return forms.compile_form(form, self._entity_maps)

    def _compile_gradient(
        self, form: ufl.Form, function: dolfinx.fem.Function, partial: bool = False
    ) -> dolfinx.fem.Form | None:
        """Compile the derivative by a function, None if there is none; ``partial`` takes networks for fixed."""
        test = ufl.TestFunction(function.function_space)
        derivative = total_derivative(form, function, test, () if partial else self.networks)
        return None if derivative.empty() else self.compile(derivative)

    def _create_solver(self) -> None:
        self._x, self._right = self.matrix.createVecs()
        if self._kernel is not None:
            self.matrix.setNullSpace(self._kernel)
            self.matrix.setTransposeNullSpace(self._kernel)
        self._snes = PETSc.SNES().create(self.comm)
        self._snes.setOptionsPrefix(self._prefix)
        self._snes.setFunction(self._evaluate, self._right.duplicate())
        self._snes.setJacobian(self._assemble, self.matrix)
        with forms.default_options(self._prefix, self._options):
            self._snes.setFromOptions()
        self._adjoint_solver = AdjointSolver(self._snes.getKSP())

    # --- forward ------------------------------------------------------------------------------------------------------

    def load(self, values: Sequence[Array]) -> None:
        """Set the inputs, one array each. Collective: yes."""
        moved = len(self._loaded) != len(values)
        for index, (one, array) in enumerate(zip(self.inputs, values, strict=True)):
            one.set(array)
            moved |= bool(self._moves_with[index] and not moved and not np.array_equal(self._loaded[index], array))
        data = [np.array(one.x.array) for one in self._data] + [np.array(one.value) for one in self.constants]
        moved |= len(data) != len(self._seen) or not all(map(np.array_equal, data, self._seen))
        self._seen = data
        if (data or any(self._moves_with)) and self.comm.allreduce(moved):
            self._standing = False
        self._loaded = [np.array(array) for array in values]

    def start_from(self, guess: Array | None = None) -> None:
        """Set the state to a guess, that of the layer if None, with its prescribed values. Collective: yes."""
        self.set_state(self.guess if guess is None else guess)
        self.boundary.impose(self.state.x.array)
        self.state.x.scatter_forward()

    def renew(self) -> None:
        """Assemble the matrix anew next time: something else that it depends on has changed. Collective: no."""
        self._standing = False

    def set_state(self, values: Array) -> None:
        """Set the state, shape (owned,). Collective: yes."""
        forms.set_function(self.state, values)
        if self._moves_with_state:
            self._standing = False

    def solve(self) -> Array:
        """Solve for the state from what its function holds, and return its owned values. Collective: yes.

        Raises
        ------
        ConvergenceError
            If Newton's method fails, or the residual of what it returns is not small.
        InputError
            If the equation has a kernel and no solution.
        """
        began = time.perf_counter()
        start = forms.owned_values(self.state).copy()
        self._adjoint_solver.let_go()
        self._first_norm = math.nan
        self._x.array[:] = start
        if self._kernel is not None:
            self._check_compatible()
            self._x.array[:] = start
        with forms.default_options(self._prefix, self._options):
            self._snes.solve(None, self._x)
        self._callbacks.raise_stored()
        self.counts.solves += 1
        self.counts.newton += self._snes.getIterationNumber()
        reason = int(self._snes.getConvergedReason())
        if reason <= 0:
            raise ConvergenceError(
                f"the forward solve of the layer failed after {self._snes.getIterationNumber()} Newton steps "
                f"(reason {reason}): {SNES_ADVICE.get(reason, f'see -{self._prefix}snes_converged_reason')}"
            )
        if self._kernel is not None:
            self._kernel.remove(self._x)
        self.set_state(np.asarray(self._x.array_r))
        self._verify(start)
        self.counts.seconds["forward"] += time.perf_counter() - began
        return forms.owned_values(self.state).copy()

    def _verify(self, start: Array) -> None:
        """Raise if the residual is not small although Newton's method says so. Collective: yes."""
        first, last = self._first_norm, float(self._snes.getFunctionNorm())
        if last <= _VERIFIED * first:
            return
        self._x.array[:] = start
        # A start that solves the equation already leaves nothing but rounding.
        rounding = 1e3 * float(np.finfo(float).eps) * self.matrix.norm(PETSc.NormType.INFINITY) * self._x.norm()
        if not last <= max(rounding, float(self._snes.getTolerances()[1])):
            raise ConvergenceError(
                f"the forward solve of the layer stopped at a residual of {last:.2e}, from {first:.2e} at its start: "
                "the linearised equation is singular, or nearly so; check boundary conditions, or name the kernel"
            )

    def _check_compatible(self) -> None:
        self._evaluate(self._snes, self._x, self._right)
        self._callbacks.raise_stored()
        assert self._kernel is not None
        self._right.copy(self._x)
        self._kernel.remove(self._x)
        self._x.axpy(-1.0, self._right)
        whole, along = self._right.norm(), self._x.norm()
        if along > _INCOMPATIBLE * max(whole, 1e-300):
            raise InputError(
                f"the data violate the compatibility condition: {along / whole:.1e} of the residual lies along the "
                "kernel of the equation, where no state can balance it; correct sources or boundary fluxes"
            )

    def _evaluate(self, snes: PETSc.SNES, x: PETSc.Vec, out: PETSc.Vec) -> None:
        self.set_state(np.asarray(x.array_r))
        failed: list[bool] = []
        with self._callbacks.guard(lambda: failed.append(True)):
            self._update_networks()
        vector = forms.assemble_vector(self._residual)
        out.array[:] = np.nan if failed else vector.array_r
        vector.destroy()
        self.boundary.clear(out.array)
        if math.isnan(self._first_norm):
            self._first_norm = out.norm()

    def _assemble(self, snes: PETSc.SNES, x: PETSc.Vec, matrix: PETSc.Mat, _: PETSc.Mat) -> None:
        self.set_state(np.asarray(x.array_r))
        self.stand()

    def stand(self) -> None:
        """Assemble the matrix at what inputs and state hold, unless it stands there. Collective: yes."""
        if self._standing:
            return
        with self._callbacks.guard():
            self._update_networks(derivative=True)
        forms.reassemble_matrix(self.matrix, self._jacobian, self._bcs)
        self._standing = True

    def _update_networks(self, derivative: bool = False) -> None:
        began = time.perf_counter()
        for network in self.networks:
            network.update(derivative)
        self.counts.seconds["network"] += time.perf_counter() - began

    # --- adjoint ------------------------------------------------------------------------------------------------------

    def linearise(self) -> None:
        """Let matrix and networks stand at what inputs and state hold. Collective: yes."""
        if self.networks:
            self._standing = False  # their values may be those of another residual evaluation
        self.stand()
        self._callbacks.raise_stored()

    def solve_adjoint(self, cotangent: Array, rtol: float) -> Array:
        """Solve J^T p = w where the state is free, p = 0 where it is prescribed; return p, shape (owned,).

        Parameters
        ----------
        cotangent
            w, shape (owned,).
        rtol
            Relative residual.

        Collective: yes.

        Raises
        ------
        ConvergenceError
            If the tolerance is not met.
        """
        return self.solve_linear(cotangent, rtol, transposed=True)

    def solve_linear(self, right: Array, rtol: float, transposed: bool = False) -> Array:
        """Solve with the matrix as it stands, or its transpose, where the state is free. Collective: yes."""
        began = time.perf_counter()
        self._right.array[:] = right
        self.boundary.clear(self._right.array)
        if self._kernel is not None:
            self._kernel.remove(self._right)
        with forms.default_options(self._prefix, self._options):
            iterations, setups = self._adjoint_solver.solve(self._right, self._x, rtol, transposed)
        if self._kernel is not None:
            self._kernel.remove(self._x)
        self.counts.adjoints += 1
        self.counts.krylov += iterations
        self.counts.setups += setups
        self.counts.seconds["adjoint"] += time.perf_counter() - began
        return np.array(self._x.array_r)

    def gradients(self, cotangent: Array, adjoint: Array, wanted: Sequence[bool]) -> list[Array | None]:
        """Return -p^T F_m for each input, with what comes through prescribed values; None where not wanted.

        Parameters
        ----------
        cotangent
            w, shape (owned,).
        adjoint
            p of `solve_adjoint`.
        wanted
            For each input.

        Collective: yes.
        """
        forms.set_function(self.adjoint, adjoint)
        result: list[Array | None] = []
        through: Array | None = None
        for index, (one, form) in enumerate(zip(self.inputs, self._by_input, strict=True)):
            if not wanted[index]:
                result.append(None)
                continue
            part = np.zeros(one.size) if form is None else -restricted(form, one)
            if self.comm.allreduce(self.boundary.prescribes(index)):
                if through is None:
                    through = cotangent - owned(self._by_state, self.size)
                part = self.boundary.collect(index, one, through, part)
            result.append(part)
        return result

    def parameter_gradients(self, adjoint: Array) -> list[list[torch.Tensor]]:
        """Return this rank's part of -p^T F_theta for the parameters of each network coefficient. Collective: yes."""
        forms.set_function(self.adjoint, adjoint)
        result: list[list[torch.Tensor]] = []
        for network, form in zip(self.networks, self._by_network, strict=True):
            size = forms.owned_size(network.function_space)
            covector = np.zeros(size) if form is None else -owned(form, size)
            with self._callbacks.guard():
                result.append(network.parameter_gradient(covector))
        if self.networks:
            self._callbacks.raise_stored()
        return result

    def destroy(self) -> None:
        """Free the PETSc objects. Collective: yes."""
        self._adjoint_solver.destroy()
        for item in (self._snes, self.matrix, self._x, self._right):
            item.destroy()


def _null_space(kernel: Sequence[dolfinx.fem.Function], matrix: PETSc.Mat) -> PETSc.NullSpace | None:
    """Return the span of functions as PETSc knows it, orthonormalised."""
    if not kernel:
        return None
    basis: list[PETSc.Vec] = []
    for function in kernel:
        vector = matrix.createVecRight()
        vector.array[:] = forms.owned_values(function)
        for other in basis:
            vector.axpy(-other.dot(vector), other)
        vector.normalize()
        basis.append(vector)
    return PETSc.NullSpace().create(vectors=basis, comm=matrix.getComm())
