"""A reduced model of a control problem: state and adjoint in one small space, the controls as they are.

With a basis Z (of states less an origin y_0, and of adjoints) a control u of full dimension is answered by

    F(y_0 + Z a, u; Z_i) = 0,    L_y(y_0 + Z a, u, Z b; Z_i) = 0    for all i,
    J_r(u) = J(y_0 + Z a, u),    J_r'(u) = L_u(y_0 + Z a, u, Z b).

Because states and adjoints share their space, J_r' is the exact derivative of J_r, and at every control whose state and
adjoint were put into the basis both agree with the truth (Hermite interpolation). So J_r can be handed to an optimiser.
"""

import dataclasses

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np

from pdeopt.control import ControlProblem
from pdeopt.fem import forms
from pdeopt.reduced_order.basis import Basis
from pdeopt.reduced_order.control_projection import ModeProducts, ProjectedHessian, solve_small
from pdeopt.reduced_order.gradient_error import GradientCertificate, GradientError
from pdeopt.reduced_order.inner_product import Array, InnerProduct
from pdeopt.reduced_order.newton import NewtonSettings, solve_reduced
from pdeopt.report import ConvergenceError, InputError, OptionError

# Errors of the state enter value and gradient in full, and an optimiser wants both to more digits than it asks for.
_NEWTON = NewtonSettings(rtol=1e-12, atol=1e-15)
_DEPENDENT = 1e-9  # what remains of a field outside the basis, relative, below which it adds only rounding


@dataclasses.dataclass(frozen=True)
class ControlAnswer:
    """What the model says at a control.

    Parameters
    ----------
    value
        J_r(u).
    derivative
        J_r'(u), a covector over the controls, owned by the receiver.
    error
        Bounds of the errors of both.
    """

    value: float
    derivative: PETSc.Vec
    error: GradientError


class ReducedControl:
    """J_r, its derivatives and the error of its gradient; a `pdeopt.control.Functional`, which `minimise` takes.

    State and adjoint of the problem are set to those of the model, which a few Newton steps of the size of the basis
    find; what they cost is the assembly of residuals, and of Jacobians where the state operator is not the same
    everywhere. Nothing is factorised, save where `enrich` solves the full equations. Where that operator is the same
    everywhere and its factors are kept, a full solve is cheap already, and the model saves little.

    Parameters
    ----------
    problem
        The control problem, without extra constraints; bounds on controls are handed on.
    basis
        Z, in an inner product with the state's Dirichlet conditions; it may be empty, with modes of shape (owned, 0),
        and grows by `enrich`. Empty, in the inner product of H1, if None.
    origin
        Owned values of y_0, shape (owned,), which fulfil the Dirichlet conditions; the problem's present state if None.
    corrections, safety
        Of the `GradientCertificate`.

    Raises
    ------
    InputError
        If the basis lives in another space than the state.
    OptionError
        If the problem has extra constraints or bounds on the state.

    Attributes
    ----------
    basis, size
        Z, as it stands, and its number of modes.
    full
        The problem itself as a functional of the controls; it counts the full solves.
    certificate
        What bounds the errors.

    Collective: yes.
    """

    def __init__(
        self,
        problem: ControlProblem,
        basis: Basis | None = None,
        *,
        origin: Array | None = None,
        corrections: int = 3,
        safety: float = 2.0,
    ) -> None:
        self._system = system = problem.system
        space = system.lagrangian.state.function_space
        if basis is None:
            inner_product = InnerProduct(space, "h1", system.bcs)
            basis = Basis(inner_product, np.empty((inner_product.owned, 0)))
        if basis.space != space:
            raise InputError(f"the basis lives in {basis.space}, the state in {space}: make it in the state's space")
        if system.lagrangian.constraints or problem.state_bounds is not None:
            raise OptionError("the reduced model knows bounds on controls only: leave constraints and state_bounds out")
        self.comm: MPI.Comm = problem.comm
        self.basis, self.size = basis, basis.size
        self.full = problem.reduced_functional()  # sets the state's Dirichlet values
        self._origin = np.array(forms.owned_values(system.lagrangian.state) if origin is None else origin)
        self.certificate = GradientCertificate(
            system, self.full, basis.inner_product, corrections=corrections, safety=safety
        )
        self._layout = forms.BlockLayout(system.comm, system.layout.sizes[1:-1])
        self._work = system.layout.create_vector()
        self._operator = system.assemble_state_operator()
        self._constant: Array | None = None  # the projected operator, where it is the same everywhere
        self._control = self.create_vector()
        self._solved = False
        self._state = self._adjoint = np.zeros(basis.size)
        self._products = ModeProducts(basis)
        self._hessian: ProjectedHessian | None = None

    # What `Functional` asks for --------------------------------------------------------------------------------------

    def create_vector(self) -> PETSc.Vec:
        """Return a zero vector of control coordinates. Collective: yes."""
        return self._layout.create_vector()

    def get_control(self, out: PETSc.Vec) -> None:
        """Copy the present control into a vector. Collective: no."""
        self.full.get_control(out)

    def set_control(self, control: PETSc.Vec) -> None:
        """Set controls, and state and adjoint of the model. Collective: yes."""
        self._solve(control)

    def inner_product(self) -> PETSc.Mat:
        """Return the matrix of the controls' inner product, owned by `full`. Collective: yes."""
        return self.full.inner_product()

    def bounds(self) -> tuple[PETSc.Vec, PETSc.Vec] | None:
        """Return the bounds of the controls, or None. Collective: yes."""
        return self.full.bounds()

    def value(self, control: PETSc.Vec) -> float:
        """Return J_r(u). Collective: yes.

        Raises
        ------
        ConvergenceError
            If the reduced state equation cannot be solved.
        """
        self._solve(control)
        return self._system.objective()

    def derivative(self, control: PETSc.Vec, out: PETSc.Vec) -> None:
        """Set the covector J_r'(u). Collective: yes."""
        self._solve(control)
        for j in range(len(self._system.controls)):
            self._system.assemble_derivative(j + 1, self._work)
            self._layout.write(out, j, self._system.layout.read(self._work, j + 1))

    def hessian_action(self, control: PETSc.Vec, direction: PETSc.Vec, out: PETSc.Vec) -> None:
        """Set the covector J_r''(u) d. Collective: yes."""
        self._solve(control)
        if self._hessian is None:
            self._hessian = ProjectedHessian(self._system, self._products)
        self._hessian.mult(direction, out)

    # The model of an optimiser ---------------------------------------------------------------------------------------

    def __call__(self, control: PETSc.Vec, tolerance: float = 0.0) -> ControlAnswer:
        """Return value, derivative and bounds of their errors. Collective: yes.

        Parameters
        ----------
        control
            u.
        tolerance
            Error of the gradient that would do: its bound is not sharpened below it.
        """
        derivative = self.create_vector()
        self.derivative(control, derivative)
        value = self._system.objective()
        error = self.certificate(derivative, value, tolerance)
        self._place()  # the certificate has moved state and adjoint
        return ControlAnswer(value, derivative, error)

    def enrich(self, control: PETSc.Vec) -> tuple[float, PETSc.Vec]:
        """Solve the full equations at a control, put state and adjoint into the basis. Collective: yes.

        Returns
        -------
        value, derivative
            Of the full problem; the covector is owned by the receiver.

        Raises
        ------
        ConvergenceError
            If the full equations cannot be solved.
        """
        derivative = self.create_vector()
        value = self.full.value(control)
        self.full.derivative(control, derivative)
        if self.certificate.constants is None:
            self.certificate.renew()
        lagrangian = self._system.lagrangian
        state = forms.owned_values(lagrangian.state) - self._origin
        columns = np.column_stack([state, forms.owned_values(lagrangian.adjoint)])
        self.extend(columns)
        self._state = self.basis.coordinates(state[:, None])[:, 0]  # where Newton's method starts
        return value, derivative

    def extend(self, columns: Array) -> None:
        """Put fields, shape (owned, n), into the basis, save what it has already. Collective: yes."""
        inner_product = self.basis.inner_product
        for column in columns.T:
            mode = column[:, None]
            size = float(inner_product.norms(mode)[0])
            for _ in range(2):  # the second pass restores what rounding lost
                mode = mode - self.basis.expand(self.basis.coordinates(mode))
            rest = float(inner_product.norms(mode)[0])
            if rest > _DEPENDENT * size:
                self.basis = dataclasses.replace(self.basis, modes=np.column_stack([self.basis.modes, mode / rest]))
        added = self.basis.size - self._state.size
        self._state, self._adjoint = np.pad(self._state, (0, added)), np.pad(self._adjoint, (0, added))
        self._renew_products()

    # State and adjoint -----------------------------------------------------------------------------------------------

    def _solve(self, control: PETSc.Vec) -> None:
        self._set_controls(control)
        if self._solved and control.equal(self._control):
            self._place()
            return
        if not self.basis.size:
            raise InputError("the basis is empty: call enrich(control) first, or hand over a basis")
        self._forget()
        control.copy(self._control)
        self._adjoint = np.zeros(self.basis.size)
        found = solve_reduced(self, self._state, _NEWTON)
        if not found.converged:
            self._state = np.zeros(self.basis.size)
            raise ConvergenceError(
                f"the reduced state equation could not be solved with {self.basis.size} modes: {found.why}; enrich the "
                "basis at a control nearer to this one, or take a shorter step"
            )
        self._state = found.coordinates
        self._place()
        operator = self._jacobian()
        self._adjoint = -solve_small(operator.T, self._residual(0))
        self._place()
        self._solved = True

    def _set_controls(self, control: PETSc.Vec) -> None:
        for j, field in enumerate(self._system.controls):
            field.set_coordinates(self._layout.read(control, j))

    def update(self) -> None:
        """Take over nothing: the controls stand in the forms. Collective: no."""

    def evaluate(self, coordinates: Array, *, jacobian: bool = True) -> tuple[Array, Array | None]:
        """Return Z' F(y_0 + Z a, u), shape (r,), and Z' F_y Z, shape (r, r), at the present controls. Collective: yes.

        So the state equation is a `pdeopt.reduced_order.ReducedSystem`.
        """
        self._state = coordinates
        self._place()
        return self._residual(self._system.adjoint_field), self._jacobian() if jacobian else None

    def _place(self) -> None:
        """Set the problem's state and adjoint to those of the model. Collective: yes."""
        self.full.forget()  # they are no longer what it has solved for
        lagrangian = self._system.lagrangian
        forms.set_function(lagrangian.state, self._origin + self.basis.expand(self._state))
        forms.set_function(lagrangian.adjoint, self.basis.expand(self._adjoint))

    def _jacobian(self) -> Array:
        """Return Z' A Z at the present unknowns, shape (r, r). Collective: yes."""
        if self._system.linear_state:
            if self._constant is None:
                self._constant = self._products.matrix(self._operator)
            return self._constant
        self._system.reassemble_state_operator(self._operator)
        return self._products.matrix(self._operator)

    def _residual(self, field: int) -> Array:
        """Return Z' L_y or Z' L_p at the present unknowns, shape (r,). Collective: yes."""
        self._system.assemble_derivative(field, self._work)
        return self._products.covector(self._system.layout.read(self._work, field))

    def _forget(self) -> None:
        self._solved = False
        if self._hessian is not None and not self._system.linear_quadratic:
            self._hessian.destroy()
            self._hessian = None

    def _renew_products(self) -> None:
        """Let the small matrices follow the basis. Collective: yes."""
        self._solved, self._constant, self.size = False, None, self.basis.size
        for item in (self._hessian, self._products):
            if item is not None:
                item.destroy()
        self._hessian, self._products = None, ModeProducts(self.basis)

    def destroy(self) -> None:
        """Free the PETSc objects, not the basis. Collective: yes."""
        if self._hessian is not None:
            self._hessian.destroy()
        for item in (self._products, self._work, self._operator, self._control, self.certificate, self.full):
            item.destroy()
