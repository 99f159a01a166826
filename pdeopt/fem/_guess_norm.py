"""The norm in which initial guesses are compared: a dual norm of the residual, the same on every mesh.

The Euclidean norm of a residual vector weighs errors by the square of their frequency. A coarse solution interpolated
to a fine mesh has kinks at the scale of the fine cells, so its Euclidean residual is of the size of that of the zero
guess although its error is a hundred times smaller. The dual norm of H1 measures what the error measures.
"""

from collections.abc import Callable, Sequence

from mpi4py import MPI
from petsc4py import PETSc

import basix.ufl
import dolfinx
import numpy as np
import ufl
from ufl.sobolevspace import H1

from pdeopt.fem import forms

DualNorm = Callable[[PETSc.Vec], float]
"""Takes an assembled residual on owned degrees of freedom, Dirichlet rows zero, and returns its norm on every rank."""

_CYCLE = {
    "ksp_type": "preonly",
    "pc_type": "gamg",
    "pc_gamg_threshold": 0.02,
    "mg_levels_ksp_type": "chebyshev",
    "mg_levels_pc_type": "jacobi",
}


def scaled_norm(residual: PETSc.Vec) -> float:
    """Return the Euclidean norm over the square root of the number of entries: for want of a space. Collective: yes."""
    return float(residual.norm()) / max(residual.getSize(), 1) ** 0.5


class RieszNorm:
    r"""The dual norm sup_v r(v) / |v| of a residual in the energy product of its space, up to a factor near one.

        |v|^2 = |grad v|^2 + |v|^2 / d^2   (L2 norms, d the diameter of the domain)

    where the elements have a weak gradient, and |v|^2 = |v|_0^2 where they have none. In a mixed space the fields of
    the highest degree take the first and the others the second: velocity and pressure of Taylor-Hood elements, whose
    residuals live in H^-1 and L2. Weights such as the viscosity it does not know.

    The inverse of the product is replaced by one V-cycle B of algebraic multigrid, |r|^2 = r' B r. That costs a
    fraction of a residual, and B being symmetric and linear it is the norm of an inner product, exactly.

    Parameters
    ----------
    spaces
        The function space of each block of unknowns.
    bcs
        Dirichlet conditions; their degrees of freedom are taken out.

    Collective: yes.
    """

    def __init__(
        self, spaces: Sequence[dolfinx.fem.FunctionSpace], bcs: Sequence[dolfinx.fem.DirichletBC] = ()
    ) -> None:
        self._sizes = [forms.owned_size(space) for space in spaces]
        self._ksps, self._covectors, self._representatives = [], [], []
        self._largest = 0.0  # bound on the eigenvalues of the product
        for space in spaces:
            own = [bc for bc in bcs if constrains(bc, space)]
            matrix = forms.assemble_matrix(forms.compile_form(energy_product(space)), own)
            matrix.setOption(PETSc.Mat.Option.SPD, True)
            self._largest = max(self._largest, float(matrix.norm(PETSc.NormType.NORM_INFINITY)))
            ksp = PETSc.KSP().create(matrix.comm)
            ksp.setOptionsPrefix("guess_riesz_")
            ksp.setOperators(matrix)
            with forms.default_options("guess_riesz_", _CYCLE):
                ksp.setFromOptions()
                ksp.setUp()
            representative, covector = matrix.createVecs()
            self._ksps.append(ksp)
            self._covectors.append(covector)
            self._representatives.append(representative)

    def __call__(self, residual: PETSc.Vec) -> float:
        """Return the dual norm of a residual. Collective: yes."""
        squared = 0.0
        for values, ksp, covector, representative in zip(
            owned_fields(residual, self._sizes), self._ksps, self._covectors, self._representatives, strict=True
        ):
            covector.array[:] = values
            ksp.solve(covector, representative)
            squared += float(covector.dot(representative))
        return float(np.sqrt(squared)) if squared > 0.0 or np.isnan(squared) else 0.0

    def lower_bound(self, euclidean: float) -> float:
        """Bound the dual norm of a residual from below by its Euclidean norm, for nothing. Collective: no."""
        return euclidean / float(np.sqrt(self._largest))

    def destroy(self) -> None:
        """Free the PETSc objects. Collective: yes."""
        for ksp in self._ksps:
            ksp.getOperators()[0].destroy()
        for item in (*self._ksps, *self._covectors, *self._representatives):
            item.destroy()


def constrains(bc: dolfinx.fem.DirichletBC, space: dolfinx.fem.FunctionSpace) -> bool:
    """Whether a Dirichlet condition fixes degrees of freedom of a space or of one of its sub-spaces."""
    return bool(space._cpp_object.contains(bc.function_space))


def energy_product(space: dolfinx.fem.FunctionSpace) -> ufl.Form:
    """Return the inner product of `RieszNorm` on a space as a bilinear form. Collective: yes."""
    element = space.ufl_element()
    trial, test = ufl.TrialFunction(space), ufl.TestFunction(space)
    parts = [(trial, test, element)]
    if isinstance(element, basix.ufl._MixedElement):
        parts = list(zip(ufl.split(trial), ufl.split(test), element.sub_elements, strict=True))
    highest = max(part.embedded_superdegree for _, _, part in parts)
    mass = dolfinx.fem.Constant(space.mesh, PETSc.ScalarType(diameter(space.mesh) ** -2))
    dx = ufl.dx(space.mesh)
    product = ufl.Form([])
    for u, v, part in parts:
        if part in H1 and part.embedded_superdegree == highest:
            product += ufl.inner(ufl.grad(u), ufl.grad(v)) * dx + mass * ufl.inner(u, v) * dx
        else:
            product += ufl.inner(u, v) * dx
    return product


def diameter(mesh: dolfinx.mesh.Mesh) -> float:
    """Return the diagonal of the box around a mesh. Collective: yes."""
    points = mesh.geometry.x
    low, high = np.min(points, axis=0, initial=np.inf), np.max(points, axis=0, initial=-np.inf)
    mesh.comm.Allreduce(MPI.IN_PLACE, low, op=MPI.MIN)
    mesh.comm.Allreduce(MPI.IN_PLACE, high, op=MPI.MAX)
    return float(np.linalg.norm(high - low))


def owned_fields(vector: PETSc.Vec, sizes: Sequence[int]) -> list[np.ndarray]:
    """Return this rank's values of each block of a plain or nested vector, read only. Collective: no."""
    if vector.getType() == PETSc.Vec.Type.NEST:
        return [np.asarray(part.array_r) for part in vector.getNestSubVecs()]
    ends = np.cumsum(sizes)
    return np.split(np.asarray(vector.array_r)[: ends[-1]], ends[:-1])
