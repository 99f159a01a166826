"""The preconditioner that chooses itself."""

import time

from petsc4py import PETSc

from pdeopt.relaxation._auto_solver import Automatic, build, print_report, set_up
from pdeopt.relaxation.features import is_assembled
from pdeopt.relaxation.rule import Choice
from pdeopt.report import InputError, OptionError, SolveReport


class AutoPC(Automatic):
    """A preconditioner that looks at the matrix and chooses itself, for the Krylov method that the script has.

    Switched on by ``-pc_type python -pc_python_type pdeopt.AutoPC``. It is one application of the preconditioner that
    the rule of `AutoKSP` takes for this matrix: incomplete factors, a cycle of multigrid, or the factors of MUMPS. So
    it is linear and fits any Krylov method; it is symmetric and definite wherever the matrix is, but for rounding. What
    was set up is kept while the values of the matrix are the same or, for incomplete factors, a multiple of the former;
    for others in the same pattern the symbolic work is kept. ``-ksp_type preonly`` gets a factorisation. The tolerance
    and the norm in which it is tested are the Krylov method's: `AutoKSP` tests the true residual.

    A choice that cannot be set up gives way to the next one. After a solve that failed, the solve is repeated once with
    a factorisation, or the next choice if that would not fit into memory, which stays.

    It has no options; those of the chosen preconditioner have the prefix ``auto_`` (``-auto_pc_type gamg`` wins over
    the rule), and options of MUMPS that the script gives are kept.

    Attributes
    ----------
    choice
        The preconditioner at present; its Krylov method is not used.
    setups, kept
        Set-ups ``"new"`` and ``"updated"``, and how often the matrix was assembled again and nothing had to be done.
    repeated
        Solves that were repeated.
    seconds
        Wall seconds on this rank: ``"features"``, ``"setup"``.

    Raises
    ------
    InputError
        If the matrix has no entries to look at (nest, shell).
    OptionError
        If the Krylov method is ``preonly`` and a factorisation of this matrix cannot be relied upon.
    """

    def __init__(self) -> None:
        super().__init__()
        self._inner: PETSc.KSP | None = None
        self._direct = self._repeating = False
        self.kept = self.repeated = 0
        self.seconds = {"features": 0.0, "setup": 0.0}

    # --- what PETSc calls ---------------------------------------------------------------------------------------------

    def setUp(self, pc: PETSc.PC) -> None:
        """Look at the matrix, choose, and set up what is not there yet. Collective: yes."""
        matrix = pc.getOperators()[1]
        if not is_assembled(matrix):
            raise InputError(
                f"AutoPC chooses by the entries of a matrix, and one of type {matrix.getType()} has none to look at: "
                "set a preconditioner of your own, or give an assembled matrix to precondition with"
            )
        change = self._chooser.look(matrix)
        self.seconds["features"] = self._chooser.seconds
        if change.kind == "pattern":
            self._drop()
        for choice in self._chooser.candidates(self._direct):
            same = self._inner is not None and self.choice is not None and self.choice.name == choice.name
            if same and (change.kind == "none" or (change.kind == "scaled" and choice.kind == "incomplete")):
                self.kept += 1
                return
            if self._set_up(pc, choice, same):
                return
        raise PETSc.Error(76)  # PETSC_ERR_LIB: not even a factorisation could be made

    def preSolve(self, pc: PETSc.PC, ksp: PETSc.KSP, b: PETSc.Vec, x: PETSc.Vec) -> None:
        """Make a factorisation for a method that does not iterate. Collective: yes."""
        if self._repeating:
            return
        if ksp.getType() == PETSc.KSP.Type.PREONLY:
            self._direct = True
            if self.choice is not None and self.choice.kind != "factor":
                self.setUp(pc)
            if self.choice is None or self.choice.kind != "factor":
                raise OptionError(
                    "ksp_type preonly needs a factorisation, and this matrix is singular or too large: choose cg or "
                    "gmres, or pdeopt.AutoKSP"
                )
        # Otherwise PETSc raises before anyone can repeat the solve.
        self._strict = bool(ksp.getErrorIfNotConverged())
        ksp.setErrorIfNotConverged(False)

    def postSolve(self, pc: PETSc.PC, ksp: PETSc.KSP, b: PETSc.Vec, x: PETSc.Vec) -> None:
        """Repeat a solve that failed, with a factorisation if there can be one. Collective: yes."""
        if self._repeating:
            return
        ksp.setErrorIfNotConverged(self._strict)
        reason = ksp.getConvergedReason()
        if reason > 0 or self.choice is None or reason == PETSc.KSP.ConvergedReason.DIVERGED_NANORINF:
            return
        self._chooser.give_up(self.choice, reason, f"reason {reason}")
        self._direct = True
        if self._chooser.candidates(self._direct)[0].name == self.choice.name:
            return  # that was the last one
        self.repeated += 1
        starts_at_x = bool(ksp.getInitialGuessNonzero())
        ksp.setInitialGuessNonzero(False)
        self._repeating = True
        try:
            self.setUp(pc)
            ksp.solve(b, x)
        finally:
            self._repeating = False
            ksp.setInitialGuessNonzero(starts_at_x)

    def apply(self, pc: PETSc.PC, x: PETSc.Vec, y: PETSc.Vec) -> None:
        """Apply the chosen preconditioner once. Collective: yes."""
        assert self._inner is not None
        self._inner.getPC().apply(x, y)

    def applyTranspose(self, pc: PETSc.PC, x: PETSc.Vec, y: PETSc.Vec) -> None:
        """Apply its transpose once. Collective: yes."""
        assert self._inner is not None
        self._inner.getPC().applyTranspose(x, y)

    def view(self, pc: PETSc.PC, viewer: PETSc.Viewer) -> None:
        """Print what was chosen and why, and what was reused. Collective: yes."""
        if print_report(self.report, viewer) and self._inner is not None:
            self._inner.getPC().view(viewer)

    def destroy(self, pc: PETSc.PC) -> None:
        """Free the chosen preconditioner. Collective: yes."""
        self._drop()
        self._chooser.release()

    # --- what is left -------------------------------------------------------------------------------------------------

    @property
    def report(self) -> SolveReport:
        """What was chosen and done so far."""
        return SolveReport(
            method=self.choice.name if self.choice else "nothing chosen yet",
            why=self.choice.why if self.choice else "",
            converged=self.choice is not None,
            seconds=dict(self.seconds),
            quantities={**self._quantities(), "kept": self.kept, "solves repeated": self.repeated},
        )

    def _set_up(self, pc: PETSc.PC, choice: Choice, same: bool) -> bool:
        """Set up a choice; return whether it could be. Collective: yes."""
        began = time.perf_counter()
        prefix = pc.getOptionsPrefix() or ""
        A, P = pc.getOperators()
        try:
            if not same:
                self._drop()
                self._inner = build(choice, f"{prefix}auto_", prefix, P)
            assert self._inner is not None
            set_up(self._inner, choice, f"{prefix}auto_", prefix, A, P)
            failures = P.getComm().tompi4py().allreduce(int(self._inner.getPC().getFailedReason()))
            how = "set-up failed" if failures else ""
        except PETSc.Error as error:
            how = f"error {error.ierr}"
        self.seconds["setup"] += time.perf_counter() - began
        if how:
            self._chooser.failed[choice.name] = how
            self._drop()
            return False
        self.choice = choice
        self.setups["updated" if same else "new"] += 1
        self._chooser.accept()
        return True

    def _drop(self) -> None:
        if self._inner is not None:
            self._inner.destroy()
            self._inner = None
