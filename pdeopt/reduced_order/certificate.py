"""Certificates: a bound of a reduced answer's error from the residual of the full equation."""

import dataclasses
import math
import time
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from petsc4py import PETSc

import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import fem

from pdeopt.fem import forms
from pdeopt.fem.estimate_constants import extreme_constants
from pdeopt.parallel import collective_errors
from pdeopt.reduced_order.basis import Basis
from pdeopt.reduced_order.inner_product import Array, InnerProduct
from pdeopt.report import InputError


class ResidualNorm(Protocol):
    """An upper bound of the dual norm of the full residual at reduced coordinates, never an estimate of it."""

    def __call__(self, coordinates: Array) -> float:
        """Return sup_v F(u_0 + Phi a; v) / |v|_M at the present parameters, or more. Collective: yes."""


class FullResidual:
    """The dual norm of the residual, assembled over all cells, by a Riesz solve with a factorisation made once.

    Parameters
    ----------
    residual
        F, a linear form in the test function of the basis' space.
    u
        The unknown in it.
    basis
        Phi and the inner product, which must have the Dirichlet conditions.
    bcs
        Dirichlet conditions: their rows of the residual are left out.
    lifting
        u_0; zero if None.

    Raises
    ------
    InputError
        If the inner product has other Dirichlet conditions.

    Collective: yes.
    """

    def __init__(
        self,
        residual: ufl.Form,
        u: fem.Function[Any],
        basis: Basis,
        bcs: Sequence[fem.DirichletBC[Any]] = (),
        lifting: fem.Function[Any] | None = None,
    ) -> None:
        self._form = forms.compile_form(forms.fix_quadrature_degree(residual))
        self._u, self._basis, self._lifting = u, basis, lifting
        self._fixed = fixed_dofs(basis.inner_product, bcs)

    def vector(self, coordinates: Array) -> PETSc.Vec:
        """Return the residual, zero on Dirichlet rows; ``u`` is left at the state. Collective: yes."""
        values = self._basis.expand(coordinates)
        if self._lifting is not None:
            values += forms.owned_values(self._lifting)
        forms.set_function(self._u, values)
        return self.vector_of_state()

    def vector_of_state(self) -> PETSc.Vec:
        """Return the residual at the present ``u``, zero on Dirichlet rows. Collective: yes."""
        vector = forms.assemble_vector(self._form)
        vector.array[self._fixed] = 0.0
        return vector

    def __call__(self, coordinates: Array) -> float:
        """Return the dual norm, infinite for NaN. Collective: yes."""
        vector = self.vector(coordinates)
        norm = dual_norm(self._basis.inner_product, vector)
        vector.destroy()
        return norm

    def norms(self, columns: Array) -> Array:
        """Return the dual norms of residuals, shape (owned, n), by one solve for all of them. Collective: yes."""
        local = np.einsum("ij,ij->j", columns, self._basis.inner_product.riesz_columns(columns))
        total = np.empty_like(local)
        self._basis.comm.Allreduce(local, total)
        return np.sqrt(np.maximum(total, 0.0))


def fixed_dofs(inner_product: InnerProduct, bcs: Sequence[fem.DirichletBC[Any]]) -> npt.NDArray[np.int32]:
    """Return the owned degrees of freedom that conditions fix, after a look whether the inner product fixes the same.

    In a smaller space the dual norm would be no bound, and in a larger one far too large.

    Raises
    ------
    InputError
        On all ranks, if it does not.

    Collective: yes.
    """
    fixed = forms.owned_dirichlet_dofs(bcs)
    with collective_errors(inner_product.comm):
        if not np.array_equal(fixed, forms.owned_dirichlet_dofs(inner_product.bcs)):
            raise InputError("the inner product has other Dirichlet conditions than the equation: give both the same")
    return fixed


def dual_norm(inner_product: InnerProduct, residual: PETSc.Vec) -> float:
    """Return the dual norm of a residual; infinite for NaN or Inf, which no solver should see. Collective: yes."""
    if not math.isfinite(residual.norm()):
        return math.inf
    return inner_product.dual_norm(residual)


@dataclasses.dataclass(frozen=True)
class Stability:
    """A lower bound of the inf-sup constant, and what it rests on.

    Parameters
    ----------
    constant
        alpha, in units of the residual's dual norm over the norm of the error.
    origin
        Where it comes from, for reports.

    Raises
    ------
    InputError
        If the constant is not positive.
    """

    constant: float
    origin: str = "given"

    def __post_init__(self) -> None:
        if not 0.0 < self.constant < math.inf:
            raise InputError(f"the stability constant is {self.constant!r}: give a positive number")


def sampled_stability(
    residual: ufl.Form,
    u: fem.Function[Any],
    inner_product: InnerProduct,
    states: Iterable[object],
    bcs: Sequence[fem.DirichletBC[Any]] = (),
    safety: float = 1.25,
    jacobian: ufl.Form | None = None,
) -> Stability:
    """Return the least inf-sup constant of the linearised equation at some states, divided by a safety factor.

    Each is an eigenvalue by SLEPc on the full mesh, exact for its state. Between the states the constant is an
    assumption, which `Stability.origin` says.

    Parameters
    ----------
    residual, u, bcs, jacobian
        The equation.
    inner_product
        Norm of the error, with the Dirichlet conditions.
    states
        Iterated over: each turn must have set ``u`` and the parameters to a state.
    safety
        Factor, >= 1.

    Raises
    ------
    InputError
        If there is no state, the factor is below 1, or the inner product has not the same Dirichlet conditions.
    MissingPackageError
        If slepc4py is absent.
    ConvergenceError
        If an eigenvalue does not converge.

    Collective: yes. Takes a factorisation of the Jacobian and some hundred Riesz solves for each state.
    """
    if not safety >= 1.0:
        raise InputError(f"safety is {safety!r}: a factor of at least 1 keeps the bound on the safe side")
    fixed = fixed_dofs(inner_product, bcs)
    residual = forms.fix_quadrature_degree(residual)
    form = forms.compile_form(ufl.derivative(residual, u) if jacobian is None else jacobian)
    free = np.ones(inner_product.owned, dtype=bool)
    free[fixed] = False
    found = []
    for _ in states:
        linearised = forms.assemble_matrix(form, bcs)
        energy, solver = inner_product.matrix, inner_product.solver
        found.append(extreme_constants(energy, solver, energy, solver, linearised, free).inf_sup)
        linearised.destroy()
    if not found:
        raise InputError("no state was given: hand over one training state at least")
    return Stability(min(found) / safety, f"least of {len(found)} training states, over {safety:g}")


@dataclasses.dataclass(frozen=True)
class Bound:
    """What a certificate says about one answer.

    Parameters
    ----------
    error
        Bound of |u - u_r| in the norm of the basis; infinite where nothing can be said.
    residual
        Bound of the dual norm of the residual.
    seconds
        Wall time [s].
    """

    error: float
    residual: float
    seconds: float


class Certificate:
    """|u - u_r| <= |F(u_r)|_{M^-1} / alpha, for the solution u of the discretised equation.

    The residual is F(u_r) = -J (u - u_r) with the mean J of the Jacobian on the segment from u_r to u, whose inf-sup
    constant alpha has to bound from below. With the Lipschitz constant L of the Jacobian alpha is needed at u_r alone
    (Brezzi, Rappaz and Raviart, Numer. Math. 36 (1980)): where 2 L eta <= alpha^2 there is one solution near u_r, and

        |u - u_r| <= alpha / L (1 - sqrt(1 - 2 L eta / alpha^2)),    eta = |F(u_r)|_{M^-1};

    elsewhere the bound is infinite.

    Parameters
    ----------
    norm
        Gives eta at reduced coordinates: `FullResidual`, at the cost of the mesh, or `ExpandedResidual`.
    stability
        alpha.
    lipschitz
        L, in units of alpha over the norm; None for the first form.

    Raises
    ------
    InputError
        If L is not positive.
    """

    def __init__(self, norm: ResidualNorm, stability: Stability, lipschitz: float | None = None) -> None:
        if lipschitz is not None and not 0.0 < lipschitz < math.inf:
            raise InputError(f"lipschitz is {lipschitz!r}: give a positive number, or None")
        self.norm, self.stability, self.lipschitz = norm, stability, lipschitz

    def __call__(self, coordinates: Array) -> Bound:
        """Return the bound at reduced coordinates and the present parameters. Collective: yes."""
        started = time.perf_counter()
        residual = self.norm(coordinates)
        return Bound(self.bound(residual), residual, time.perf_counter() - started)

    def bound(self, residual: float) -> float:
        """Return the bound that belongs to a dual norm eta. Collective: no."""
        if not residual < math.inf:
            return math.inf
        alpha, lipschitz = self.stability.constant, self.lipschitz
        if lipschitz is None:
            return residual / alpha
        excess = 2.0 * lipschitz * residual / alpha**2
        if excess > 1.0:
            return math.inf
        # alpha / L (1 - sqrt(1 - x)) without the cancellation for small x.
        return 2.0 * residual / (alpha * (1.0 + math.sqrt(1.0 - excess)))
