"""The constants between a dual norm of the residual and the error: inf-sup and continuity, as eigenvalues."""

import dataclasses
import math
from collections.abc import Callable

from petsc4py import PETSc

import numpy as np
import numpy.typing as npt

from pdeopt.fem import estimate_solvers
from pdeopt.report import ConvergenceError, MissingPackageError

_TOLERANCE = 1e-6  # of the eigenvalues, relative
_MAX_RESTARTS = 200


@dataclasses.dataclass(frozen=True)
class Constants:
    """alpha |e| <= eta <= gamma |e| for every error e of a linearised problem.

    Parameters
    ----------
    inf_sup
        alpha.
    continuity
        gamma.
    """

    inf_sup: float
    continuity: float


class _Composition:
    """A PETSc shell matrix that is a function of vectors."""

    def __init__(self, apply: Callable[[PETSc.Vec, PETSc.Vec], None]) -> None:
        self._apply = apply

    def mult(self, _: PETSc.Mat, right: PETSc.Vec, out: PETSc.Vec) -> None:
        """Apply the function. Collective: yes."""
        self._apply(right, out)


def extreme_constants(
    energy: PETSc.Mat,
    energy_ksp: PETSc.KSP,
    operator: PETSc.Mat,
    operator_ksp: PETSc.KSP,
    linearised: PETSc.Mat,
    free: npt.NDArray[np.bool_],
) -> Constants:
    """Return the extreme singular values of e -> O^{-1} L e in the energy inner product A.

    eta = |O^{-1} L e|_A for the error e, so they are the inf-sup and the continuity constant. The largest eigenvalue
    is taken of A^{-1} L^T O^{-T} A O^{-1} L, and of its inverse: both are self-adjoint in A, and the solves confine
    them to velocities without divergence where A, O and L are saddle-point matrices.

    Parameters
    ----------
    energy
        A; its pressure block, if any, is not used.
    energy_ksp
        Solves with A, under the constraint.
    operator, operator_ksp
        O and a solver for it and its transpose.
    linearised
        L.
    free
        Which owned unknowns an error may have, shape (owned,).

    Raises
    ------
    MissingPackageError
        If slepc4py is absent.
    ConvergenceError
        If an eigenvalue or a solve does not converge.

    Collective: yes.
    """
    linearised_ksp = estimate_solvers.factorise(linearised, "estimate_jacobian_")
    work = [energy.createVecRight() for _ in range(2)]

    def confine(vector: PETSc.Vec) -> PETSc.Vec:
        vector.array[~free] = 0.0
        return vector

    def solve(ksp: PETSc.KSP, right: PETSc.Vec, out: PETSc.Vec, transpose: bool = False) -> None:
        (ksp.solveTranspose if transpose else ksp.solve)(confine(right), out)
        estimate_solvers.check_solved(ksp, "inf-sup constant")
        confine(out)

    def forward(right: PETSc.Vec, out: PETSc.Vec) -> None:
        linearised.mult(right, work[0])
        solve(operator_ksp, work[0], work[1])
        energy.mult(work[1], work[0])
        solve(operator_ksp, work[0], work[1], transpose=True)
        linearised.multTranspose(work[1], work[0])
        solve(energy_ksp, work[0], out)

    def inverse(right: PETSc.Vec, out: PETSc.Vec) -> None:
        energy.mult(right, work[0])
        solve(linearised_ksp, work[0], work[1], transpose=True)
        operator.multTranspose(work[1], work[0])
        solve(energy_ksp, work[0], work[1])
        operator.mult(work[1], work[0])
        solve(linearised_ksp, work[0], out)

    start = energy.createVecRight()
    first = start.getOwnershipRange()[0]
    start.array[:] = np.cos(1.0 + 0.7 * np.arange(first, first + free.size) ** 1.1)
    confine(start)
    try:
        continuity = math.sqrt(largest_eigenvalue(forward, energy, start))
        return Constants(1.0 / math.sqrt(largest_eigenvalue(inverse, energy, start)), continuity)
    finally:
        for item in (linearised_ksp, start, *work):
            item.destroy()


def largest_eigenvalue(apply: Callable[[PETSc.Vec, PETSc.Vec], None], like: PETSc.Mat, start: PETSc.Vec) -> float:
    """Return the largest eigenvalue of an operator with a real spectrum, which is not negative. Collective: yes.

    Parameters
    ----------
    apply
        Sets the second vector to the operator times the first, self-adjoint in some inner product.
    like
        A matrix of the operator's layout.
    start
        The first vector of the iteration.

    Raises
    ------
    MissingPackageError
        If slepc4py is absent.
    ConvergenceError
        If the eigenvalue does not converge.
    """
    try:
        from slepc4py import SLEPc
    except ImportError as error:
        raise MissingPackageError("the constants need slepc4py: install it beside petsc4py") from error
    shell = PETSc.Mat().createPython(like.getSizes(), context=_Composition(apply), comm=like.comm)
    solver = SLEPc.EPS().create(like.comm)
    try:
        solver.setOperators(shell)
        solver.setProblemType(SLEPc.EPS.ProblemType.NHEP)  # self-adjoint only in the energy inner product
        solver.setWhichEigenpairs(SLEPc.EPS.Which.LARGEST_REAL)
        solver.setDimensions(1)
        solver.setTolerances(_TOLERANCE, _MAX_RESTARTS)
        solver.setInitialSpace([start])
        solver.solve()
        if solver.getConverged() < 1:
            raise ConvergenceError(
                f"the eigenvalue of the inf-sup constant did not converge in {_MAX_RESTARTS} restarts"
            )
        return float(solver.getEigenvalue(0).real)
    finally:
        solver.destroy()
        shell.destroy()
