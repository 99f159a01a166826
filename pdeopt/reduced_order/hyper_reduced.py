"""The reduced system on the cells of a cubature: its cost does not depend on the mesh."""

from collections.abc import Sequence
from typing import Any, Protocol

from mpi4py import MPI

import numpy as np
import ufl
from dolfinx import fem
from dolfinx.cpp.la import BlockMode

from pdeopt.fem import forms
from pdeopt.parallel import collective_errors, raise_everywhere
from pdeopt.reduced_order._packages import require_package
from pdeopt.reduced_order.basis import Basis
from pdeopt.reduced_order.cubature import Cubature
from pdeopt.reduced_order.inner_product import Array
from pdeopt.reduced_order.reduced_mesh import ReducedMesh
from pdeopt.report import InputError


class LocalUnknowns(Protocol):
    """Unknowns that local equations give at the points of the reduced mesh, such as a plastic multiplier."""

    def update(self) -> None:
        """Solve the local equations at the present state. Collective: no."""


class HyperReducedSystem:
    """r(a) = sum_c w_c Phi_c' F_c(u_0 + Phi a) over the cells c of a cubature, and its Jacobian.

    Each rank adds up what its own cells contribute, without ghost exchange; one all-reduce of r + r^2 numbers gives
    all ranks the same system. A rank may have no cell.

    Parameters
    ----------
    residual
        F(u; v), linear in one test function v of the basis' space, with integrals over cells and exterior facets.
    u
        The unknown in it.
    basis
        The modes, which vanish where ``bcs`` hold.
    cubature
        Cells and weights.
    bcs
        Dirichlet conditions, to check the modes.
    lifting
        u_0, a field with the Dirichlet values whose present values `update` takes over; zero by default.
    jacobian
        F'(u; v, du); the derivative of F by default.
    reduced_mesh
        The reduced mesh, if it is there already; with it ``residual`` and ``jacobian`` may contain functions that
        `ReducedMesh.state` has made independent.
    internal
        Unknowns that local equations on the reduced mesh give; updated before each evaluation.

    Attributes
    ----------
    u
        The state on the reduced mesh.
    reduced_mesh
        The reduced mesh.

    Raises
    ------
    InputError
        If a mode does not vanish on a Dirichlet boundary, or ``u`` or ``lifting`` is in another space.

    Collective: yes.
    """

    def __init__(
        self,
        residual: ufl.Form,
        u: fem.Function[Any],
        basis: Basis,
        cubature: Cubature,
        *,
        bcs: Sequence[fem.DirichletBC[Any]] = (),
        lifting: fem.Function[Any] | None = None,
        jacobian: ufl.Form | None = None,
        reduced_mesh: ReducedMesh | None = None,
        internal: LocalUnknowns | None = None,
    ) -> None:
        for name, function in (("u", u), ("lifting", lifting)):
            if function is not None and function.function_space != basis.space:
                raise InputError(f"{name} is in another function space than the modes")
        with collective_errors(basis.comm):
            require_package("scipy.sparse")
            _check_modes(basis, bcs)
        self.comm: MPI.Comm = basis.comm
        self.reduced_mesh = ReducedMesh(basis.space.mesh, cubature) if reduced_mesh is None else reduced_mesh
        self.u = self.reduced_mesh.state(u)
        self._internal = internal
        residual = forms.fix_quadrature_degree(residual)
        jacobian = ufl.derivative(residual, u) if jacobian is None else jacobian
        self._residual = forms.compile_form(self.reduced_mesh.restrict(residual))
        self._jacobian = forms.compile_form(self.reduced_mesh.restrict(jacobian))
        self._restriction = self.reduced_mesh.field_restriction(basis.space)
        self._lifting = None if lifting is None else self.reduced_mesh.function(lifting)
        self._vector = np.zeros(self._restriction.size)
        self._matrix = fem.create_matrix(self._jacobian, BlockMode.expanded)
        self._sparse = self._matrix.to_scipy(ghosted=True)
        self.set_basis(basis)
        self.update()

    def set_basis(self, basis: Basis) -> None:
        """Replace the modes by others of the same space, which vanish where they have to. Collective: yes."""
        self.size = basis.size
        self._modes = self._restriction.columns(basis.local_modes())
        # Columns beyond the ghosts of the space hold what other ranks contribute, which is left to them.
        self._columns = np.zeros((self._sparse.shape[1], self.size))
        self._columns[: self._restriction.size] = self._modes
        self._numbers = np.empty(self.size * (1 + self.size))

    def update(self) -> None:
        """Take over the present values of constants, coefficients and lifting. Collective: no."""
        self.reduced_mesh.update()
        self._constants = fem.pack_constants(self._residual), fem.pack_constants(self._jacobian)

    def set_state(self, coordinates: Array) -> None:
        """Set u to u_0 + Phi a on the reduced mesh. Collective: no."""
        values = self.u.x.array
        np.matmul(self._modes, coordinates, out=values)
        if self._lifting is not None:
            values += self._lifting.x.array

    def evaluate(self, coordinates: Array, *, jacobian: bool = True) -> tuple[Array, Array | None]:
        """Return the residual, shape (r,), and its Jacobian, shape (r, r). Collective: yes, by one all-reduce.

        An error in the local equations of one rank is raised on all.
        """
        size = self.size
        numbers = self._numbers if jacobian else self._numbers[:size]
        error: Exception | None = None
        try:
            self._assemble(coordinates, numbers)
        except Exception as caught:  # the other ranks wait in the all-reduce: they learn of it by a NaN
            error = caught
            numbers[:] = np.nan
        total = np.empty_like(numbers)
        self.comm.Allreduce(numbers, total)
        if np.isnan(total[0]):
            raise_everywhere(self.comm, error)
        return total[:size], total[size:].reshape(size, size) if jacobian else None

    def _assemble(self, coordinates: Array, numbers: Array) -> None:
        size = self.size
        self.set_state(coordinates)
        if self._internal is not None:
            self._internal.update()
        self._vector[:] = 0.0
        fem.assemble_vector(self._vector, self._residual, self._constants[0])  # type: ignore[arg-type]
        numbers[:size] = self._vector @ self._modes
        if numbers.size > size:
            self._matrix.data[:] = 0.0
            fem.assemble_matrix(self._matrix, self._jacobian, constants=self._constants[1])  # type: ignore[arg-type]
            np.matmul(self._modes.T, self._sparse @ self._columns, out=numbers[size:].reshape(size, size))


def _check_modes(basis: Basis, bcs: Sequence[fem.DirichletBC[Any]]) -> None:
    fixed = np.abs(basis.modes[forms.owned_dirichlet_dofs(bcs)]).max(initial=0.0)
    if fixed > 1e-10 * np.abs(basis.modes).max(initial=0.0):
        raise InputError(
            f"a mode has the value {fixed:.1e} where a Dirichlet condition holds: subtract the lifting from the "
            "snapshots, or give the conditions to the inner product"
        )
