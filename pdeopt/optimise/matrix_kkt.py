"""The KKT matrix as one sparse matrix, and the solvers for it."""

import dataclasses

from petsc4py import PETSc

import numpy as np

from pdeopt.fem import forms
from pdeopt.optimise.program import KKTResult, Mask, Pair
from pdeopt.report import ConvergenceError, InputError

SKETCHES = ("kaczmarz", "gaussian", "block", "history", "sgmres")
FACTORISATION = {
    "ksp_type": "gmres",  # one or two steps of refinement: pivots of indefinite matrices lose digits
    "ksp_pc_side": "right",
    "ksp_max_it": 10,
    "pc_type": "cholesky",
    "pc_factor_mat_solver_type": "mumps",
    "mat_mumps_icntl_7": 5,  # METIS; what MUMPS chooses for several ranks takes longer, and counted wrong signs
    "mat_mumps_icntl_13": 1,  # no dense root in parallel, whose inertia MUMPS does not report
    "mat_mumps_icntl_24": 1,  # count null pivots
    "mat_mumps_icntl_14": 200,
}
KRYLOV = {
    "ksp_type": "gmres",
    "ksp_pc_side": "right",
    "ksp_gmres_restart": 200,
    "ksp_max_it": 10_000,
    "pc_type": "none",
}
_ACCURACY = 1e-10  # of the factorisation, however loose the tolerance


@dataclasses.dataclass(frozen=True)
class DirectionSettings:
    """How a direction is found.

    Parameters
    ----------
    solver
        "factorisation" (symmetric indefinite, by MUMPS; it knows the inertia), "ksp" (any method under the prefix), or
        a sketch: "kaczmarz", "gaussian", "block", "history", "sgmres".

    Raises
    ------
    InputError
        If the solver is none of these.
    """

    solver: str = "factorisation"

    def __post_init__(self) -> None:
        known = ("factorisation", "ksp", *SKETCHES)
        if self.solver not in known:
            raise InputError(f"solver is {self.solver!r}: choose one of {', '.join(known)}")


def default_options(solver: str, prefix: str) -> dict[str, object]:
    """Return the options of a solver's KSP that hold where none are given under its prefix. Collective: no."""
    if solver == "factorisation":
        return dict(FACTORISATION)
    defaults: dict[str, object] = dict(KRYLOV)
    if solver in SKETCHES:
        return defaults | {"ksp_type": "python", "ksp_python_type": "pdeopt.SketchedKSP", "ksp_sketch_type": solver}
    if "gmres" not in PETSc.Options(prefix).getString("ksp_type", "gmres"):
        del defaults["ksp_pc_side"]  # symmetric methods have no right side
    return defaults


class MatrixKKT:
    """[[c H + D, G'], [G, -e I]] in coordinates in which the Riesz norm is the Euclidean one.

    Parameters
    ----------
    hessian, jacobian
        H and G, copied; no constraints if G is None.
    point
        A pair of vectors of the right layout.
    diagonal
        D by coordinates; taken over.
    curvature
        c.
    dual_shift
        e.
    weights
        Diagonal of the inner product of x, ones if None.
    fixed
        Which owned coordinates of x do not move.
    settings, prefix
        The solver, and the prefix of its options.

    Attributes
    ----------
    name, inertia_is_right
        See `pdeopt.optimise.program.KKTSolver`.
    matrix
        The matrix, scaled.
    """

    def __init__(
        self,
        hessian: PETSc.Mat,
        jacobian: PETSc.Mat | None,
        point: Pair,
        diagonal: PETSc.Vec,
        curvature: float,
        dual_shift: float,
        weights: PETSc.Vec | None,
        fixed: Mask | None,
        settings: DirectionSettings,
        prefix: str,
    ) -> None:
        comm = point.primal.comm.tompi4py()
        self.layout = forms.BlockLayout(comm, [point.primal.getLocalSize(), point.dual.getLocalSize()])
        self.name = settings.solver
        self.inertia_is_right: bool | None = None
        self.matrix = _assemble(hessian, jacobian, point, diagonal, curvature, dual_shift)
        self._scaling: PETSc.Vec | None = None
        if weights is not None:
            self._scaling = self.layout.create_vector()
            self.layout.write(self._scaling, 0, 1.0 / np.sqrt(weights.array_r))
            self.layout.write(self._scaling, 1, np.ones(self.layout.sizes[1]))
            self.matrix.diagonalScale(self._scaling, self._scaling)
        if fixed is not None:
            rows = np.flatnonzero(fixed) + self.matrix.getOwnershipRange()[0]
            self.matrix.zeroRowsColumns(rows.astype(PETSc.IntType), diag=1.0)
        self.matrix.setOption(PETSc.Mat.Option.SYMMETRIC, True)
        self._fixed = fixed
        self._sizes = (point.primal.getSize(), point.dual.getSize())
        self._right, self._solution = self.layout.create_vector(), self.layout.create_vector()
        self._ksp = PETSc.KSP().create(comm)
        self._set_up(settings, prefix)

    def _set_up(self, settings: DirectionSettings, prefix: str) -> None:
        ksp = self._ksp
        ksp.setOptionsPrefix(f"{prefix}kkt_")
        ksp.setOperators(self.matrix)
        with forms.default_options(f"{prefix}kkt_", default_options(settings.solver, f"{prefix}kkt_")):
            ksp.setFromOptions()
            ksp.setErrorIfNotConverged(False)
            ksp.setUp()
        if settings.solver == "factorisation" and ksp.getPC().getFailedReason() == 0:
            negative, zero, _ = ksp.getPC().getFactorMatrix().getInertia()
            self.inertia_is_right = zero == 0 and negative == self._sizes[1]
            self.singular = zero > 0
        elif settings.solver == "factorisation":
            self.inertia_is_right, self.singular = False, True

    singular = False
    """Whether the factorisation met null pivots."""

    def solve(self, right: Pair, out: Pair, rtol: float, *, improve: bool = False) -> KKTResult:
        """Solve to a tolerance relative in the Riesz norm; see `KKTSolver.solve`. Collective: yes."""
        layout, ksp = self.layout, self._ksp
        primal = np.array(right.primal.array_r)
        if self._fixed is not None:
            primal[self._fixed] = 0.0
        layout.write(self._right, 0, primal)
        layout.write(self._right, 1, right.dual.array_r)
        if self._scaling is not None:
            self._right.pointwiseMult(self._right, self._scaling)
        if improve:
            layout.write(self._solution, 0, out.primal.array_r)
            layout.write(self._solution, 1, out.dual.array_r)
            if self._scaling is not None:
                self._solution.pointwiseDivide(self._solution, self._scaling)
        ksp.setInitialGuessNonzero(improve)
        tolerance = min(rtol, _ACCURACY) if self.name == "factorisation" else rtol
        ksp.setTolerances(rtol=tolerance, atol=1e-300)
        ksp.solve(self._right, self._solution)
        size = self._right.norm()
        residual = self._right.duplicate()
        self.matrix.mult(self._solution, residual)
        residual.aypx(-1.0, self._right)
        relative = residual.norm() / size if size > 0.0 else 0.0
        residual.destroy()
        if not np.isfinite(relative):
            raise ConvergenceError("the KKT system could not be solved: its matrix is singular, or has NaN or Inf")
        if self._scaling is not None:
            self._solution.pointwiseMult(self._solution, self._scaling)
        out.primal.array[:] = layout.read(self._solution, 0)
        out.dual.array[:] = layout.read(self._solution, 1)
        iterations = 0 if self.name == "factorisation" else int(ksp.getIterationNumber())
        return KKTResult(iterations, float(relative))

    def destroy(self) -> None:
        """Free the PETSc objects. Collective: yes."""
        for item in (self._ksp, self.matrix, self._right, self._solution, *([self._scaling] if self._scaling else [])):
            item.destroy()


def _assemble(
    hessian: PETSc.Mat,
    jacobian: PETSc.Mat | None,
    point: Pair,
    diagonal: PETSc.Vec,
    curvature: float,
    dual_shift: float,
) -> PETSc.Mat:
    """Return the matrix as one AIJ matrix. Collective: yes."""
    block = hessian.copy()
    block.scale(curvature)
    block.setOption(PETSc.Mat.Option.NEW_NONZERO_ALLOCATION_ERR, False)
    block.setDiagonal(diagonal, addv=PETSc.InsertMode.ADD_VALUES)
    diagonal.destroy()
    if jacobian is None:
        return block
    transposed = jacobian.transpose(PETSc.Mat())
    corner = PETSc.Mat().createAIJ(
        ((point.dual.getLocalSize(), point.dual.getSize()),) * 2, nnz=1, comm=point.primal.comm
    )
    negative = point.dual.duplicate()
    negative.set(-dual_shift)
    corner.setDiagonal(negative)
    corner.assemble()
    nest = PETSc.Mat().createNest([[block, transposed], [jacobian, corner]], comm=point.primal.comm)
    matrix = nest.convert("aij", PETSc.Mat())
    for item in (nest, block, transposed, corner, negative):
        item.destroy()
    return matrix
