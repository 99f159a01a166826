"""The velocity error that a residual stands for, by the Stokes equations: a norm to compare guesses of flows in."""

from collections.abc import Callable, Sequence
from typing import Any

from petsc4py import PETSc

import numpy as np
import ufl
from dolfinx import fem

from pdeopt.fem.estimate_flow import SolenoidalNorm, Viscosity
from pdeopt.fem.estimate_space import Space
from pdeopt.report import InputError


class VelocityNorm:
    """The L2 norm of the velocity z that solves the Stokes equations with a residual on the right-hand side.

        nu (grad z, grad v) - (s, div v) = R(v, 0),    - (q, div z) = R(0, q).

    For a Stokes flow that is the error of the velocity, exactly. Energy norms of the residual weigh rough errors, such
    as those of an interpolated coarse solution at the corners of a driven cavity, more than Newton's method does, whose
    nonlinear remainder sees lower norms. Pass it as ``dual_norm`` to `pdeopt.attach_guess`.

    Parameters
    ----------
    space
        Mixed space of velocity and pressure, or the two spaces (V, Q); inf-sup stable.
    viscosity
        nu > 0, or a constant of the mesh that holds nu or a function that returns it: read at every call.
    bcs
        Dirichlet conditions of the state.
    direct
        Whether to factorise; None decides by the number of unknowns.
    options_prefix
        Prefix under which PETSc options change the solver.

    Raises
    ------
    InputError
        If the space is not a pair of velocity and pressure; when called, if the viscosity is not positive.

    Collective: yes.
    """

    def __init__(
        self,
        space: Space,
        viscosity: Viscosity | Callable[[], float],
        bcs: Sequence[fem.DirichletBC[Any]] = (),
        *,
        direct: bool | None = None,
        options_prefix: str = "estimate_",
    ) -> None:
        self._viscosity = viscosity
        self._stokes = SolenoidalNorm(space, 1.0, bcs, direct=direct, options_prefix=options_prefix)
        self._velocity_rows = self._stokes.space.field_rows(0)
        velocity = self._stokes.space.split(self._stokes.representative)[0]
        self._square = fem.form(ufl.inner(velocity, velocity) * ufl.dx)

    def __call__(self, residual: PETSc.Vec) -> float:
        """Return the norm of an assembled residual; infinity if it has NaN or Inf. Collective: yes."""
        given = self._viscosity
        # A constant of UFL is callable too, in another sense.
        viscosity = float(given if isinstance(given, float | int | fem.Constant) else given())
        if not viscosity > 0.0:
            raise InputError(f"viscosity is {viscosity}: it must be positive")
        # One factorisation for all viscosities: z and s / nu solve the equations of unit viscosity with R(v, 0) / nu.
        values = residual.copy()
        if values.getType() == PETSc.Vec.Type.NEST:
            values.getNestSubVecs()[0].scale(1.0 / viscosity)
        else:
            values.array[self._velocity_rows] /= viscosity
        energy = self._stokes.norm(values)
        values.destroy()
        if not np.isfinite(energy):
            return energy
        return float(np.sqrt(self._stokes.space.comm.allreduce(float(np.real(fem.assemble_scalar(self._square))))))

    def destroy(self) -> None:
        """Free the PETSc objects. Collective: yes."""
        self._stokes.destroy()
