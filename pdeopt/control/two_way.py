"""One KSP that solves with a matrix and with its transpose, each by an iterative solver of its own.

A preconditioner in blocks cannot be transposed as it is, and multigrid is better built on the transposed matrix anyway.
So `KSP.solve` and `KSP.solveTranspose` of the KSP made here hand their right-hand sides to two others.
"""

from petsc4py import PETSc

from pdeopt.fem import forms
from pdeopt.fem.saddle import SolverSetup

_TOLERANCE = {"ksp_rtol": 1e-12}  # exact for the solvers around it


def two_way_solver(operator: PETSc.Mat, setup: SolverSetup, prefix: str) -> PETSc.KSP:
    """Return a KSP whose solves, in both directions, are those of a setup. Collective: yes.

    Parameters
    ----------
    operator
        The matrix; when its values change, or after `KSP.setOperators`, both solvers follow.
    setup
        What to attach to the solvers.
    prefix
        Options prefix of the solver of the matrix; that of the transpose is ``prefix`` and ``adjoint_``.
    """
    ksp = PETSc.KSP().create(operator.comm)
    ksp.setOptionsPrefix(f"{prefix}two_way_")
    ksp.setType(PETSc.KSP.Type.PREONLY)
    ksp.setOperators(operator)
    pc = ksp.getPC()
    pc.setType(PETSc.PC.Type.PYTHON)
    pc.setPythonContext(_TwoWay(setup, prefix))
    return ksp


class _TwoWay:
    """The context of a PETSc preconditioner that is a converged solve, in both directions."""

    def __init__(self, setup: SolverSetup, prefix: str) -> None:
        self._setup, self._prefix = setup, prefix
        self._forward: PETSc.KSP | None = None
        self._adjoint: PETSc.KSP | None = None
        self._transposed: PETSc.Mat | None = None
        self._stale = True

    def _create(self, matrix: PETSc.Mat, adjoint: bool) -> PETSc.KSP:
        ksp = PETSc.KSP().create(matrix.comm)
        ksp.setOptionsPrefix(f"{self._prefix}adjoint_" if adjoint else self._prefix)
        ksp.setOperators(matrix)
        with forms.default_options(ksp.getOptionsPrefix(), _TOLERANCE):
            self._setup.attach(ksp, adjoint=adjoint)
        return ksp

    def setUp(self, pc: PETSc.PC) -> None:
        """Hand a new matrix to the solvers; the transpose is formed when it is first needed. Collective: yes."""
        matrix = pc.getOperators()[0]
        if self._forward is None:
            self._forward = self._create(matrix, adjoint=False)
        else:
            self._forward.setOperators(matrix)
        self._stale = True

    def apply(self, pc: PETSc.PC, right: PETSc.Vec, out: PETSc.Vec) -> None:
        """Solve with the matrix. Collective: yes."""
        assert self._forward is not None
        self._solve(pc, self._forward, right, out)

    def applyTranspose(self, pc: PETSc.PC, right: PETSc.Vec, out: PETSc.Vec) -> None:
        """Solve with the transposed matrix. Collective: yes."""
        if self._stale:
            matrix = pc.getOperators()[0]
            if self._transposed is None:
                self._transposed = matrix.transpose(PETSc.Mat())
                self._adjoint = self._create(self._transposed, adjoint=True)
            else:
                assert self._adjoint is not None
                matrix.transpose(self._transposed)
                self._adjoint.setOperators(self._transposed)
            self._stale = False
        assert self._adjoint is not None
        self._solve(pc, self._adjoint, right, out)

    @staticmethod
    def _solve(pc: PETSc.PC, ksp: PETSc.KSP, right: PETSc.Vec, out: PETSc.Vec) -> None:
        ksp.solve(right, out)
        if ksp.getConvergedReason() < 0:  # the KSP around this then reports that its preconditioner failed
            pc.setFailedReason(PETSc.PC.FailedReason.SUBPC_ERROR)

    def view(self, pc: PETSc.PC, viewer: PETSc.Viewer) -> None:
        """Print both solvers. Collective: yes."""
        for ksp in (self._forward, self._adjoint):
            if ksp is not None:
                ksp.view(viewer)

    def destroy(self, pc: PETSc.PC) -> None:
        """Free the solvers. Collective: yes."""
        for item in (self._forward, self._adjoint, self._transposed):
            if item is not None:
                item.destroy()
        self._forward = self._adjoint = self._transposed = None
