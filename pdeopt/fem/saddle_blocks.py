"""A block-triangular preconditioner for saddle points, as a PETSc preconditioner of type python.

For A = [[F, G], [D, C]] with the Schur complement S = C - D F^-1 G and an approximation S_hat of it,

    P = [[F, G], [0, S_hat]],

after which GMRES needs two iterations if both solves are exact (Murphy, Golub, Wathen, SIAM J. Sci. Comput. 21 (2000)
1969-1972). The solves here are a few cycles of multigrid, so the Krylov method around it must be flexible.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

from petsc4py import PETSc

import dolfinx
import numpy as np

from pdeopt.fem import forms
from pdeopt.fem.saddle_fields import Array, Fields, nullspace_of

_SINGULAR = 1e-10


@dataclasses.dataclass
class Blocks:
    """What the approximation of a Schur complement is built from.

    Parameters
    ----------
    leading, gradient, divergence
        F, G and D.
    ratio
        c with D = c G' for symmetric or antisymmetric coupling, up to rounding: the sign that the user gave to the
        second equation, and its scale.
    constant
        The constant of the second field in the order of its rows, shape (owned,), where it is in the kernel of the
        matrix (the pressure of enclosed flow), else None.
    """

    leading: PETSc.Mat
    gradient: PETSc.Mat
    divergence: PETSc.Mat
    ratio: float
    constant: Array | None

    def destroy(self) -> None:
        """Free the matrices. Collective: yes."""
        for matrix in (self.leading, self.gradient, self.divergence):
            matrix.destroy()


class SchurApproximation(Protocol):
    """An approximate solve with the Schur complement."""

    def set_up(self, blocks: Blocks, make_solver: "MakeSolver") -> None:
        """Build or update what `solve` needs; called once for every new matrix. Collective: yes."""

    def solve(self, right: PETSc.Vec, out: PETSc.Vec) -> None:
        """Set an approximation of S^-1 r, both in the order of the field's rows. Collective: yes."""

    def release(self) -> None:
        """Free the PETSc objects. Collective: yes."""


class MakeSolver(Protocol):
    """Makes the KSP of an inner solve, configured by the setup's options and those of the user."""

    def __call__(self, name: str, matrix: PETSc.Mat, existing: PETSc.KSP | None = None) -> PETSc.KSP:
        """Return a KSP under the prefix ``name``; an existing one is given the new matrix. Collective: yes."""


class BlockTriangular:
    """Applies P^-1; the context of a PETSc preconditioner of type python.

    Parameters
    ----------
    fields
        Where the unknowns of both fields lie.
    schur
        The approximation of the Schur complement.
    options
        PETSc options of the inner solvers under their names, for instance ``velocity_pc_type``; what the user set in
        PETSc's options wins.
    name
        Name of the inner solver of F ("velocity").
    near_nullspace
        Modes of the first field for algebraic multigrid, in the order of its collapsed space, shape (owned,) each.
    """

    def __init__(
        self,
        fields: Fields,
        schur: SchurApproximation,
        options: Mapping[str, object],
        name: str,
        near_nullspace: Sequence[Array],
    ) -> None:
        self._fields, self._schur, self._options, self._name = fields, schur, options, name
        self._modes = [fields.reorder(0, mode) for mode in near_nullspace]
        one = dolfinx.fem.Function(fields.second)
        one.interpolate(lambda x: np.ones(x.shape[1]))
        self._one = fields.reorder(1, forms.owned_values(one).copy())
        self._prefix = ""
        self._blocks: Blocks | None = None
        self._leading_ksp: PETSc.KSP | None = None
        self._inner: dict[str, PETSc.KSP] = {}
        self._right: list[PETSc.Vec] = []
        self._out: list[PETSc.Vec] = []

    # What PETSc calls -------------------------------------------------------------------------------------------------

    def setUp(self, pc: PETSc.PC) -> None:
        """Cut the blocks out of the matrix and set up the inner solvers. Collective: yes."""
        self._prefix = pc.getOptionsPrefix() or ""
        operator, matrix = pc.getOperators()
        constant = self._kernel(operator)
        self._blocks = self._cut(matrix, constant)
        leading = self._leading_matrix(self._blocks)
        self._leading_ksp = self._make_solver(self._name, leading, self._leading_ksp, self._modes)
        self._schur.set_up(self._blocks, self._make_solver)
        if not self._right:
            for vectors in (self._right, self._out):
                pressure, velocity = self._blocks.gradient.createVecs()
                vectors.extend((velocity, pressure))
            self._work = self._out[0].duplicate()

    def apply(self, pc: PETSc.PC, right: PETSc.Vec, out: PETSc.Vec) -> None:
        """Apply the inverse of the block triangle. Collective: yes."""
        assert self._blocks is not None
        assert self._leading_ksp is not None
        self._fields.split(right, self._right)
        self._prepare_right()
        self._schur.solve(self._right[1], self._out[1])
        self._blocks.gradient.mult(self._out[1], self._work)
        self._right[0].axpy(-1.0, self._work)
        self._leading_ksp.solve(self._right[0], self._out[0])
        self._fields.join(self._out, out)

    def view(self, pc: PETSc.PC, viewer: PETSc.Viewer) -> None:
        """Print the inner solvers. Collective: yes."""
        viewer.printfASCII(f"  block triangle, Schur complement by {type(self._schur).__name__}\n")
        for name, ksp in self._inner.items():
            viewer.printfASCII(f"  {name}:\n")
            viewer.pushASCIITab()
            ksp.view(viewer)
            viewer.popASCIITab()

    def destroy(self, pc: PETSc.PC) -> None:
        """Free what was built. Collective: yes."""
        self._schur.release()
        for ksp in self._inner.values():
            ksp.destroy()
        if self._blocks is not None:
            self._blocks.destroy()
        if self._right:
            for vector in (*self._right, *self._out, self._work):
                vector.destroy()
        self._inner, self._blocks, self._leading_ksp, self._right, self._out = {}, None, None, [], []

    # For the augmented Lagrangian -------------------------------------------------------------------------------------

    def _leading_matrix(self, blocks: Blocks) -> PETSc.Mat:
        """Return the matrix of the solve for the first field. Collective: yes."""
        return blocks.leading

    def _prepare_right(self) -> None:
        """Change the split right-hand side before the block solve. Collective: yes."""

    # ------------------------------------------------------------------------------------------------------------------

    def _kernel(self, operator: PETSc.Mat) -> Array | None:
        """Give the matrix the constant of the second field as its kernel, if it is; return it then."""
        vector, image = operator.createVecs()
        scale = vector.duplicate()
        zero = [np.zeros(rows.size) for rows in self._fields.rows]
        singular = True
        for multiply in (operator.mult, operator.multTranspose):
            # A field without structure tells the size of the entries that must cancel for the constant.
            _write(self._fields, vector, [zero[0], self._one])
            multiply(vector, image)
            size = image.norm()
            pattern = np.where(np.arange(self._one.size) % 2 == 0, 1.0, -1.0) * self._one
            _write(self._fields, vector, [zero[0], pattern])
            multiply(vector, scale)
            singular = singular and size <= _SINGULAR * scale.norm()
        if singular:
            _write(self._fields, vector, [zero[0], self._one])
            vector.normalize()
            kernel = PETSc.NullSpace().create(vectors=[vector], comm=operator.comm)
            operator.setNullSpace(kernel)
            operator.setTransposeNullSpace(kernel)
            kernel.destroy()
        for item in (vector, image, scale):
            item.destroy()
        return self._one if singular else None

    def _cut(self, matrix: PETSc.Mat, constant: Array | None) -> Blocks:
        old = self._blocks
        if matrix.getType() == PETSc.Mat.Type.NEST:
            leading, gradient, divergence = (matrix.getNestSubMatrix(*at) for at in ((0, 0), (0, 1), (1, 0)))
        else:
            first, second = self._fields.index_sets(matrix)
            leading = matrix.createSubMatrix(first, first, old.leading if old else None)
            gradient = matrix.createSubMatrix(first, second, old.gradient if old else None)
            divergence = matrix.createSubMatrix(second, first, old.divergence if old else None)
            for indices in (first, second):
                indices.destroy()
        return Blocks(leading, gradient, divergence, _ratio(gradient, divergence), constant)

    def _make_solver(
        self, name: str, matrix: PETSc.Mat, existing: PETSc.KSP | None = None, modes: Sequence[Array] = ()
    ) -> PETSc.KSP:
        if modes:
            nullspace = nullspace_of(matrix, modes)
            matrix.setNearNullSpace(nullspace)
            nullspace.destroy()
        ksp = existing if existing is not None else PETSc.KSP().create(matrix.comm)
        ksp.setOperators(matrix)
        prefix = f"{self._prefix}{name}_"
        own = {
            key.removeprefix(f"{name}_"): value for key, value in self._options.items() if key.startswith(f"{name}_")
        }
        with forms.default_options(prefix, own):
            if existing is None:
                ksp.setOptionsPrefix(prefix)
                ksp.setFromOptions()
            ksp.setUp()
        self._inner[name] = ksp
        return ksp


def _write(fields: Fields, vector: PETSc.Vec, parts: Sequence[Array]) -> None:
    if vector.getType() == PETSc.Vec.Type.NEST:
        for target, values in zip(vector.getNestSubVecs(), parts, strict=True):
            target.array[:] = values
        return
    for rows, values in zip(fields.rows, parts, strict=True):
        vector.array[rows] = values


def _ratio(gradient: PETSc.Mat, divergence: PETSc.Mat) -> float:
    """Return c = (q, D G q) / |G q|^2 for a q without structure. Collective: yes."""
    pressure, velocity = gradient.createVecs()
    first, last = pressure.getOwnershipRange()
    pressure.array[:] = np.cos(1.0 + 0.7 * np.arange(first, last) ** 1.1)
    gradient.mult(pressure, velocity)
    image = pressure.duplicate()
    divergence.mult(velocity, image)
    size = velocity.dot(velocity)
    value = float(pressure.dot(image) / size) if size > 0.0 else 1.0
    for vector in (pressure, velocity, image):
        vector.destroy()
    return value if value != 0.0 else 1.0
