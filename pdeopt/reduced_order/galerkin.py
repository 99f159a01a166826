"""The reduced system by full assembly, without hyper-reduction: exact, and as dear as the mesh is large."""

from collections.abc import Sequence
from typing import Any

from mpi4py import MPI

import dolfinx
import numpy as np
import ufl
from dolfinx import fem

from pdeopt.fem import forms
from pdeopt.reduced_order.basis import Basis
from pdeopt.reduced_order.inner_product import Array
from pdeopt.report import InputError


class GalerkinSystem:
    """r(a) = Phi' F(u_0 + Phi a) and Phi' F'(u_0 + Phi a) Phi, assembled over all cells.

    Each rank multiplies what its own cells contribute with its part of the modes, ghosts included, so that one
    all-reduce of r + r^2 numbers is all that ranks exchange.

    Parameters
    ----------
    residual
        F, a linear form in the test function of the basis' space.
    u
        The unknown in it.
    basis
        Phi; its modes vanish where ``bcs`` hold.
    bcs
        Dirichlet conditions, to check the modes.
    lifting
        u_0, which has the Dirichlet values; zero if None. `update` reads its present values.
    jacobian
        F', a bilinear form; the derivative of F if None.

    Raises
    ------
    InputError
        If ``u`` or ``lifting`` does not belong to the basis' space, or a mode does not vanish on a Dirichlet boundary.

    Attributes
    ----------
    comm, size
        See `pdeopt.reduced_order.ReducedSystem`.

    Collective: yes.
    """

    def __init__(
        self,
        residual: ufl.Form,
        u: fem.Function[Any],
        basis: Basis,
        bcs: Sequence[fem.DirichletBC[Any]] = (),
        lifting: fem.Function[Any] | None = None,
        jacobian: ufl.Form | None = None,
    ) -> None:
        for name, function in (("u", u), ("lifting", lifting)):
            if function is not None and function.function_space != basis.space:
                raise InputError(f"{name} belongs to another function space than the basis: build both on one space")
        self.comm: MPI.Comm = basis.comm
        self.size = basis.size
        self._u, self._lifting = u, lifting
        basis.check_dirichlet(bcs)
        residual = forms.fix_quadrature_degree(residual)
        self._residual = forms.compile_form(residual)
        self._jacobian = forms.compile_form(ufl.derivative(residual, u) if jacobian is None else jacobian)
        self._modes = basis.local_modes()
        self._vector = dolfinx.fem.create_vector(basis.space)
        self._matrix = dolfinx.fem.create_matrix(self._jacobian)
        self._sparse = self._matrix.to_scipy(ghosted=True)
        # Columns beyond the ghosts of the space hold what other ranks contribute, which is left to them.
        self._columns = np.zeros((self._sparse.shape[1], self.size))
        self._columns[: len(self._modes)] = self._modes
        self._offset = np.zeros(len(self._modes))
        self.update()

    def update(self) -> None:
        """Take over the present values of the lifting; parameters are read at each evaluation. Collective: no."""
        if self._lifting is not None:
            self._offset[:] = self._lifting.x.array

    def evaluate(self, coordinates: Array, *, jacobian: bool = True) -> tuple[Array, Array | None]:
        """Return the residual, shape (r,), and its Jacobian, shape (r, r); ``u`` is left at the state.

        Collective: yes.
        """
        self._u.x.array[:] = self._offset + self._modes @ coordinates
        self._vector.array[:] = 0.0
        dolfinx.fem.assemble_vector(self._vector.array, self._residual)  # type: ignore[arg-type]
        numbers = self.size * (1 + (self.size if jacobian else 0))
        local, total = np.empty(numbers), np.empty(numbers)
        local[: self.size] = self._modes.T @ self._vector.array
        if jacobian:
            self._matrix.data[:] = 0.0
            dolfinx.fem.assemble_matrix(self._matrix, self._jacobian)  # type: ignore[arg-type]
            local[self.size :] = (self._modes.T @ (self._sparse @ self._columns)).ravel()
        self.comm.Allreduce(local, total)
        return total[: self.size], total[self.size :].reshape(self.size, self.size) if jacobian else None
