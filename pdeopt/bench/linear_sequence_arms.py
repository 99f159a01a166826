"""Solvers of a sequence of matrices that keep something from one matrix to the next, and those that start afresh."""

from collections.abc import Callable, Mapping
from typing import Any

from petsc4py import PETSc

from pdeopt.bench.linear_arms import GAMG, petsc_arms
from pdeopt.bench.linear_outcome import MAX_IT, RTOL, Options, Outcome
from pdeopt.bench.linear_sequences import Systems
from pdeopt.bench.linear_worker import timed_ksp_solve

# What lags is built anew for the next matrix when it needs this many times the iterations that it started with; and at
# once, when it needs this many times.
_REFRESH, _ABANDON = 1.5, 2.0
_OMEGA_IN_SPACE = "1.7"  # the constant of lognormal fields


class SequenceArm:
    """Solves one system after another, each from 0 to the true relative residual `RTOL`.

    Parameters
    ----------
    name
        Of the arm.
    options
        Of the KSP and the PC without prefix.
    keep
        Whether the KSP, with what its PC reuses, stays from one matrix to the next.

    Collective: yes.
    """

    def __init__(self, name: str, options: Options, keep: bool = False) -> None:
        self.name, self._options, self.keep = name, options, keep
        self._ksp: PETSc.KSP | None = None
        # Unique, as a KSP that is kept reads its options again while others solve.
        self._prefix = f"pdeopt_sequence_{id(self):x}_"
        database = PETSc.Options()
        for option, value in options.items():
            database[self._prefix + option] = value

    def solve(self, A: PETSc.Mat, b: PETSc.Vec) -> Outcome:
        """Solve a system, the next of the sequence. Collective: yes."""
        return self._solve(A, b, MAX_IT)

    def _solve(self, A: PETSc.Mat, b: PETSc.Vec, max_it: int) -> Outcome:
        if not self.keep:
            self._forget()
        if self._ksp is None:
            self._ksp = self._make(A)
        self._ksp.setOperators(A)
        return Outcome.of_record(self.name, timed_ksp_solve(self._ksp, b, RTOL, max_it))

    def _forget(self) -> None:
        if self._ksp is not None:
            self._ksp.destroy()
            self._ksp = None

    def destroy(self) -> None:
        """Free the solver and its options. Collective: yes."""
        self._forget()
        database = PETSc.Options()
        for option in self._options:
            database.delValue(self._prefix + option)

    def _make(self, A: PETSc.Mat) -> PETSc.KSP:
        ksp = PETSc.KSP().create(A.getComm())
        ksp.setOptionsPrefix(self._prefix)
        ksp.setNormType(PETSc.KSP.NormType.UNPRECONDITIONED)
        return ksp


class RescaledLag(SequenceArm):
    """Keeps the preconditioner M of an earlier matrix A_0 and rescales it: S^-1 M S^-1 with S^2 = diag(A) / diag(A_0).

    Parameters
    ----------
    name
        Of the arm.
    options
        Of the PC M without prefix.

    M is built anew for the matrix after one that took `_REFRESH` times the iterations of the one it was built for. A
    solve that takes `_ABANDON` times these is given up, and done by a new M; its seconds count.

    Collective: yes.
    """

    def __init__(self, name: str, options: Options) -> None:
        super().__init__(name, {"ksp_type": "cg"}, keep=True)
        self._context = _Rescaled(options, self._prefix + "lag_")
        self._first = 0

    def solve(self, A: PETSc.Mat, b: PETSc.Vec) -> Outcome:
        """Solve a system, the next of the sequence. Collective: yes."""
        if self._context.fresh:
            return self._solve_afresh(A, b)
        lagged = self._solve(A, b, int(_ABANDON * self._first))
        self._context.fresh = lagged.iterations > _REFRESH * self._first
        if lagged.solved:
            return lagged
        self._context.fresh = True
        self._forget()  # PETSc would set up nothing for a matrix that it knows
        return lagged.then(self._solve_afresh(A, b))

    def _solve_afresh(self, A: PETSc.Mat, b: PETSc.Vec) -> Outcome:
        outcome = self._solve(A, b, MAX_IT)
        self._first, self._context.fresh = outcome.iterations, False
        return outcome

    def destroy(self) -> None:
        """Free the solver and its options. Collective: yes."""
        super().destroy()
        self._context.release()

    def _make(self, A: PETSc.Mat) -> PETSc.KSP:
        ksp = super()._make(A)
        ksp.getPC().setType(PETSc.PC.Type.PYTHON)
        ksp.getPC().setPythonContext(self._context)
        return ksp


class _Rescaled:
    """The PC of `RescaledLag`; ``fresh`` asks for M to be built for the next matrix, and says that it was."""

    def __init__(self, options: Options, prefix: str) -> None:
        self.fresh = True
        self._options, self._prefix = options, prefix
        self._handles: list[Any] = []
        database = PETSc.Options()
        for option, value in options.items():
            database[prefix + option] = value

    def setUp(self, pc: PETSc.PC) -> None:
        A = pc.getOperators()[1]
        if self.fresh:
            for handle in self._handles:
                handle.destroy()
            kept = A.duplicate(copy=True)  # A is overwritten by the next matrix
            for option in (PETSc.Mat.Option.SYMMETRIC, PETSc.Mat.Option.SPD):
                kept.setOption(option, True)
            self._diagonal = A.getDiagonal()
            self._inverse, self._scaled = self._diagonal.duplicate(), self._diagonal.duplicate()
            self._inverse.set(1.0)
            self._inner = PETSc.PC().create(A.getComm())
            self._inner.setOptionsPrefix(self._prefix)
            self._inner.setOperators(kept)
            self._inner.setFromOptions()
            self._inner.setUp()
            self._handles = [kept, self._diagonal, self._inverse, self._scaled, self._inner]
        else:
            A.getDiagonal(self._inverse)
            self._inverse.reciprocal()
            self._inverse.pointwiseMult(self._inverse, self._diagonal)
            self._inverse.sqrtabs()

    def apply(self, pc: PETSc.PC, r: PETSc.Vec, z: PETSc.Vec) -> None:
        self._scaled.pointwiseMult(self._inverse, r)
        self._inner.apply(self._scaled, z)
        z.pointwiseMult(z, self._inverse)

    def release(self) -> None:
        for handle in self._handles:
            handle.destroy()
        database = PETSc.Options()
        for option in self._options:
            database.delValue(self._prefix + option)


def classical_arms(dimension: int) -> Mapping[str, Callable[[], SequenceArm]]:
    """Return how to make the classical arms, by name, for scalar diffusion in the plane or in space.

    In the plane, factors that lag and Eisenstat's SSOR are left out: on validation seeds the set-up of ICC(3) was a
    tenth of its total, and Eisenstat's way slower than ICC or GAMG with its interpolation kept.

    Collective: no.
    """
    settings = petsc_arms(dimension)
    tuned = GAMG["threshold 0.02" if dimension == 2 else "SOR 1"]
    incomplete = settings["ICC: 3" if dimension == 2 else "ICC: 0"]
    arms: dict[str, Callable[[], SequenceArm]] = {
        "GAMG fresh": lambda: SequenceArm("GAMG fresh", GAMG["default"]),
        "GAMG, interpolation kept": lambda: SequenceArm(
            "GAMG, interpolation kept", tuned | {"pc_gamg_reuse_interpolation": "1"}, keep=True
        ),
        "GAMG, rescaled lag": lambda: RescaledLag("GAMG, rescaled lag", tuned),
        "ICC fresh": lambda: SequenceArm("ICC fresh", incomplete),
    }
    if dimension == 3:
        arms["ICC, rescaled lag"] = lambda: RescaledLag("ICC, rescaled lag", incomplete)
        arms["Eisenstat"] = lambda: SequenceArm("Eisenstat", settings[f"Eisenstat: {_OMEGA_IN_SPACE}"])
    return arms


def replay(systems: Systems, arms: Mapping[str, Callable[[], SequenceArm]]) -> dict[str, list[Outcome]]:
    """Solve a sequence by every arm, in turning order, so that all meet the same minutes.

    Arms that keep nothing solve every second system only: it is the same to them what came before.

    Parameters
    ----------
    systems
        As of `pdeopt.bench.linear_sequences.SEQUENCES`.
    arms
        How to make each arm.

    Collective: yes.
    """
    made = {name: make() for name, make in arms.items()}
    outcomes: dict[str, list[Outcome]] = {name: [] for name in made}
    try:
        for step, (A, b) in enumerate(systems):
            names = [name for name, arm in made.items() if arm.keep or step % 2 == 0]
            first = step % len(names)
            for name in names[first:] + names[:first]:
                outcomes[name].append(made[name].solve(A, b))
    finally:
        for arm in made.values():
            arm.destroy()
    return outcomes
