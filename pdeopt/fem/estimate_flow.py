"""Dual norms over velocities without discrete divergence: Stokes, Oseen-weighted, linearised."""

from collections.abc import Sequence
from typing import Any

from petsc4py import PETSc

import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import fem
from ufl.core.expr import Expr

from pdeopt.fem import estimate_solvers
from pdeopt.fem.estimate_constants import Constants, extreme_constants
from pdeopt.fem.estimate_norm import DualNorm
from pdeopt.fem.estimate_space import Space
from pdeopt.report import InputError

Viscosity = float | fem.Constant


class SolenoidalNorm(DualNorm):
    """Dual norms over velocities without discrete divergence, for velocity-pressure residuals.

    The representative z solves, with a multiplier l in place of the pressure,

        nu (grad z, grad v) + c(b; z, v) - (l, div v) = R(v, 0),    - (q, div z) = R(0, q),

        c(b; z, v) = ((b . grad z, v) - (b . grad v, z)) / 2,    eta = nu^{1/2} |grad z|,

    so whatever pressure the proposal has drops out. Without wind, eta is the dual norm of nu^{1/2} |grad v|. With
    wind it is the dual norm of |v|^2 = nu |grad v|^2 + |c(b; v, .)|_*^2, the graph norm of convection: with A and S for
    the two forms, S skew, the Oseen operator O = A + S has O A^{-1} O^T = A + S A^{-1} S^T, and eta^2 =
    R (O A^{-1} O^T)^{-1} R = |O^{-1} R|_A^2. With shear, O has (z . grad b, v) too, and |v| = |O^T v|_* is the optimal
    test norm of the problem linearised at b. The same for any linear problem: Sangalli, SIAM J. Numer. Anal. 43
    (2005); Verfuerth, ibid. 43 (2005); Demkowicz and Gopalakrishnan, Numer. Methods Partial Differ. Equ. 27 (2011).

    A divergence of the proposal enters through R(0, q), which must be -(q, div u) as in the equation above.

    Parameters
    ----------
    space
        Mixed space of velocity and pressure, or the two spaces (V, Q); inf-sup stable.
    viscosity
        nu > 0, a number or a constant of the mesh [kinematic viscosity].
    bcs
        Dirichlet conditions of the state.
    wind
        The velocity b of the weight; None for the norm of Stokes. Functions in it are read at set-up and by `update`.
    shear
        Whether the weight has the term with grad b.
    direct
        Whether to factorise; None decides by the number of unknowns.
    options_prefix
        Prefix under which PETSc options change the solver.

    Raises
    ------
    InputError
        If the space is not a pair of velocity and pressure, or the viscosity is not positive.

    Collective: yes.
    """

    name = "velocity residual"

    def __init__(
        self,
        space: Space,
        viscosity: Viscosity,
        bcs: Sequence[fem.DirichletBC[Any]] = (),
        *,
        wind: Expr | None = None,
        shear: bool = False,
        direct: bool | None = None,
        options_prefix: str = "estimate_",
    ) -> None:
        if not float(viscosity) > 0.0:
            raise InputError(f"viscosity is {float(viscosity)}: it must be positive")
        self.wind = wind
        self._viscosity, self._shear = viscosity, shear
        super().__init__(space, self._dissipation, bcs, direct=direct, options_prefix=options_prefix)

    def _dissipation(self, u: Expr, v: Expr) -> ufl.Form:
        return self._viscosity * ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx

    def _compile(self) -> None:
        space = self.space
        if space.fields != 2:
            raise InputError(
                f"the space has {space.fields} field(s): a velocity and a pressure are needed, in this order"
            )
        (u, p), (v, q) = space.trials(), space.tests()
        mass = p * q / self._viscosity * ufl.dx
        # Zero, but it gives blocked matrices the pressure diagonal that pinning needs.
        self._pressure_pattern = fem.Constant(space.mesh, 0.0) * p * q * ufl.dx
        stokes = self._dissipation(u, v) - (p * ufl.div(v) + q * ufl.div(u)) * ufl.dx + self._pressure_pattern
        weighted = stokes
        if self.wind is not None:
            b = self.wind
            weighted += 0.5 * (ufl.inner(ufl.grad(u) * b, v) - ufl.inner(ufl.grad(v) * b, u)) * ufl.dx
            if self._shear:
                weighted += ufl.inner(ufl.grad(b) * u, v) * ufl.dx
        # The inner product of velocities comes with that of pressures which is its counterpart in the Stokes problem.
        self._energy_form = space.compile_bilinear(self._dissipation(u, v) + mass)
        self._stokes_form = space.compile_bilinear(stokes)
        self._operator_form = space.compile_bilinear(weighted)
        self._preconditioner_form = None if self.wind is None else space.compile_bilinear(weighted - mass)
        self._rows = space.field_rows(0), space.field_rows(1)
        self._free_pressure = np.setdiff1d(self._rows[1], space.constrained)

    def _set_up(self) -> None:
        self._matrix = self.space.matrix(self._energy_form)
        self._pressure_weights = self._constant_pressure(self._matrix)
        self._operator = self.space.matrix(self._operator_form)
        self._enclosed = self._is_enclosed()
        self._pinned: int | None = None
        direct = self._is_direct(self._operator)
        if self._enclosed and direct:
            self._pinned = self._pin_pressure(self._operator)
        elif self._enclosed:
            self._operator.setNullSpace(self._pressure_nullspace())
        if direct:
            self._ksp = estimate_solvers.factorise(self._operator, self._prefix)
            return
        preconditioner = self._matrix
        if self._preconditioner_form is not None:
            preconditioner = self.space.matrix(self._preconditioner_form)
        symmetric = self.wind is None
        self._ksp = estimate_solvers.saddle_solver(self._operator, preconditioner, self._rows, self._prefix, symmetric)
        if preconditioner is not self._matrix:
            preconditioner.destroy()  # the solver keeps its own reference

    def _constant_pressure(self, matrix: PETSc.Mat) -> npt.NDArray[np.float64]:
        """Return the product of a matrix with the pressure that is one, the owned entries."""
        ones, product = matrix.createVecs()
        ones.array[self._free_pressure] = 1.0
        matrix.mult(ones, product)
        values = product.array_r.copy()
        ones.destroy()
        product.destroy()
        return np.asarray(values)

    def _is_enclosed(self) -> bool:
        """Whether the velocity is given on the whole boundary, so that the pressure is free up to a constant."""
        comm = self.space.comm
        if comm.allreduce(self._rows[1].size - self._free_pressure.size) != 0:
            return False  # a condition on the pressure
        gradient = float(np.sum(self._constant_pressure(self._operator) ** 2))
        return bool(comm.allreduce(gradient) <= 1e-20 * self._operator.norm() ** 2)

    def _pin_pressure(self, matrix: PETSc.Mat) -> int | None:
        """Fix one pressure and return its local row where it is owned.

        The right-hand sides are made consistent, so the representative does not depend on which one it is.
        """
        first = matrix.getOwnershipRange()[0]
        mine = int(first + self._rows[1][0]) if self._rows[1].size else int(np.iinfo(PETSc.IntType).max)
        pinned = min(self.space.comm.allgather(mine))
        matrix.zeroRowsColumns([pinned] if pinned == mine else [], diag=1.0)
        return pinned - first if pinned == mine else None

    def _pressure_nullspace(self) -> PETSc.NullSpace:
        mode = self._matrix.createVecRight()
        mode.array[self._rows[1]] = 1.0
        mode.normalize()
        return PETSc.NullSpace().create(vectors=[mode], comm=self.space.comm)

    def _prepare(self, right: PETSc.Vec) -> None:
        """Remove the mean divergence, which no velocity of an enclosed flow can have."""
        if not self._enclosed:
            return
        rows, weights = self._rows[1], self._pressure_weights[self._rows[1]]
        sums = self.space.comm.allreduce(np.array([right.array_r[rows].sum(), weights.sum()]))
        right.array[rows] -= weights * (sums[0] / sums[1])
        if self._pinned is not None:
            right.array[self._pinned] = 0.0

    def update(self) -> None:
        """Take the present values of wind and viscosity. Collective: yes; costs a new factorisation."""
        self._free_matrices()
        self._set_up()

    def constants(self, jacobian: ufl.Form) -> Constants:
        """See `DualNorm.constants`; over velocities without discrete divergence. Collective: yes."""
        linearised = self._jacobian_matrix(jacobian + self._pressure_pattern)
        riesz = self.space.matrix(self._stokes_form)
        if self._enclosed:
            self._pin_pressure(linearised)
            self._pin_pressure(riesz)
        ksp = estimate_solvers.factorise(riesz, self._prefix + "stokes_")
        try:
            return extreme_constants(self._matrix, ksp, self._operator, self._ksp, linearised, self._free_rows())
        finally:
            for item in (linearised, ksp, riesz):
                item.destroy()

    def _free_matrices(self) -> None:
        self._operator.destroy()
        super()._free_matrices()


def stokes_norm(
    space: Space,
    viscosity: Viscosity,
    bcs: Sequence[fem.DirichletBC[Any]] = (),
    *,
    direct: bool | None = None,
    options_prefix: str = "estimate_",
) -> SolenoidalNorm:
    """Return the dual norm of nu^{1/2} |grad v| over velocities without discrete divergence.

    Its effectivity grows with the Reynolds number. Parameters as of `SolenoidalNorm`. Collective: yes.
    """
    return SolenoidalNorm(space, viscosity, bcs, direct=direct, options_prefix=options_prefix)


def oseen_norm(
    space: Space,
    viscosity: Viscosity,
    wind: Expr,
    bcs: Sequence[fem.DirichletBC[Any]] = (),
    *,
    direct: bool | None = None,
    options_prefix: str = "estimate_",
) -> SolenoidalNorm:
    """Return the Oseen-weighted dual norm, of nu |grad v|^2 + |b . grad v|_*^2.

    Parameters
    ----------
    space, viscosity, bcs, direct, options_prefix
        As of `SolenoidalNorm`.
    wind
        Velocity b of the weight: the proposal itself, a solution on a coarser mesh or at a nearby parameter.

    Collective: yes.
    """
    return SolenoidalNorm(space, viscosity, bcs, wind=wind, direct=direct, options_prefix=options_prefix)


def linearised_norm(
    space: Space,
    viscosity: Viscosity,
    state: Expr,
    bcs: Sequence[fem.DirichletBC[Any]] = (),
    *,
    direct: bool | None = None,
    options_prefix: str = "estimate_",
) -> SolenoidalNorm:
    """Return the optimal test norm of the Navier-Stokes equations linearised at a frozen velocity.

    Sharper than `oseen_norm` where shear feeds the error, as in separated flow; like the linearisation itself it may
    break down near a bifurcation, where the inf-sup constant of the flow goes to zero.

    Parameters
    ----------
    space, viscosity, bcs, direct, options_prefix
        As of `SolenoidalNorm`.
    state
        The velocity at which to linearise: a solution on a coarser mesh, for instance.

    Collective: yes.
    """
    return SolenoidalNorm(space, viscosity, bcs, wind=state, shear=True, direct=direct, options_prefix=options_prefix)
