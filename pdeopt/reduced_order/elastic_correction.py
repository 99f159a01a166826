"""Elastic corrections: an answer is led towards equilibrium by a matrix that is factorised once."""

from petsc4py import PETSc

import numpy as np

from pdeopt.fem import forms
from pdeopt.fem.quasi_static import NewtonEquilibrium, QuasiStatic
from pdeopt.reduced_order.inner_product import Array
from pdeopt.report import InputError


class ElasticCorrection:
    """u - K^-1 F(u, q(u), h) with the tangent K of the body at rest, under the loads that it has when this is made.

    A step of the modified Newton method: it costs the internal variables, a residual and a solve with old factors.
    Where the material hardens it comes nearer to equilibrium from anywhere, slowly where much of it flows.

    Parameters
    ----------
    body
        On the whole mesh, with a `NewtonEquilibrium`; it is left virgin and at rest.

    Raises
    ------
    InputError
        If the body has another solver.

    Attributes
    ----------
    solver
        The body's.

    Collective: yes.
    """

    def __init__(self, body: QuasiStatic) -> None:
        if not isinstance(body.solver, NewtonEquilibrium):
            raise InputError("the whole body needs a NewtonEquilibrium, which knows its residual and tangent")
        self._body, self.solver = body, body.solver
        body.reset()
        self._residual = forms.compile_form(self.solver.residual)
        self._fixed = forms.owned_dirichlet_dofs(self.solver.bcs)
        self._matrix = forms.assemble_matrix(forms.compile_form(self.solver.jacobian), self.solver.bcs)
        self._factors = PETSc.KSP().create(self._matrix.getComm())
        self._factors.setOperators(self._matrix)
        # With a solver as the body's own one.
        own = self.solver.snes.getKSP()
        self._factors.setType(own.getType())
        self._factors.getPC().setType(own.getPC().getType())
        if own.getPC().getFactorSolverType():
            self._factors.getPC().setFactorSolverType(own.getPC().getFactorSolverType())
        self._factors.setErrorIfNotConverged(True)

    def __call__(self, time: float, state: Array) -> Array:
        """Return the corrected state, shape (owned,), of a state at the end of the step to a time [s].

        The body is left at the state that was given.

        Raises
        ------
        ConvergenceError
            On all ranks, if the local equation is not solved.

        Collective: yes.
        """
        self._body.impose(time, state)
        vector = forms.assemble_vector(self._residual)
        vector.array[self._fixed] = 0.0
        self._factors.solve(vector, vector)
        corrected = np.asarray(state - vector.array_r)
        vector.destroy()
        return corrected

    def destroy(self) -> None:
        """Free the matrix and its factors. Collective: yes."""
        self._factors.destroy()
        self._matrix.destroy()
