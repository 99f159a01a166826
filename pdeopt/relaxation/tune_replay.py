"""One linear system of a script, solved again by other solvers, at the accuracy of the script's own.

Runs in the script's process, on whose options and objects it leaves no trace.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from petsc4py import PETSc

import numpy as np

from pdeopt.relaxation import rule
from pdeopt.relaxation.features import MatrixFeatures
from pdeopt.relaxation.overlay_watch import Stopwatch, meet
from pdeopt.relaxation.rule import Choice

# Relative residuals below this are equal: what solvers of a script call exact.
EXACT = 1e-10
# An arm's true residual may be this much larger than the script's own, or than `EXACT`.
SLACK = 3.0
# Relative difference to the script's own solution, null space aside. Beside a solver with a loose tolerance nothing
# passes that is not as wrong in the same way: users want to know before digits change that they have printed.
SAME_ANSWER = 1e-6
# A script's solve that leaves more than this of the right-hand side is no solve that could be compared with.
NO_SOLVE = 1e-2
# An arm is given up after this multiple of the seconds of the script's own solve, or of the best arm so far.
PATIENCE = 1.25
# Wall seconds below which clocks and caches decide.
SHORTEST = 0.005
# Iterations from one look at the clock to the next, which on several ranks takes a broadcast.
_CLOCK = 8

PREFIX = "pdeopt_tune_"
State = Literal["equal", "wrong", "slow", "failed"]


@dataclasses.dataclass
class Trial:
    """One arm on one system; equal on all ranks.

    Parameters
    ----------
    state
        ``"equal"``: as accurate as the script's own, ``"wrong"``: not, ``"slow"``: given up, ``"failed"``.
    setup, solve
        Seconds (`overlay_watch.Stopwatch`), the slowest rank's.
    iterations
        Of the Krylov method.
    why
        What went wrong.
    fresh
        Whether the set-up was the first one of its KSP, symbolic work included.
    negative
        Number of negative eigenvalues, where a symmetric factorisation has counted them.
    """

    state: State
    setup: float = math.nan
    solve: float = math.nan
    iterations: int = 0
    why: str = ""
    fresh: bool = True
    negative: int = 0


@dataclasses.dataclass
class System:
    """A system A x = b that the script has just solved.

    Parameters
    ----------
    ksp
        The script's solver.
    matrix
        A, with the null spaces attached to it.
    b, x
        Right-hand side and the script's solution.
    start
        The initial guess; None if zero.
    seconds
        Of the script's own solve.
    features
        Of A.
    values
        Number of times that the values of A were new so far.
    """

    ksp: Any
    matrix: Any
    b: Any
    x: Any
    start: Any
    seconds: float
    features: MatrixFeatures
    values: int = 0

    def __post_init__(self) -> None:
        self.comm = self.matrix.getComm().tompi4py()
        self.norm = self.b.norm()
        self.residual = self.relative_residual(self.x) if self.norm > 0.0 else 0.0
        self.direct = self.ksp.getPC().getType() in ("lu", "cholesky")
        own_rtol = self.ksp.getTolerances()[0]
        self.rtol = EXACT if self.direct else min(own_rtol, max(self.residual, EXACT))

    def relative_residual(self, x: Any) -> float:
        """Return |b - A x| / |b|, without what no x can reach. Collective: yes."""
        r = self.b.duplicate()
        self.matrix.mult(x, r)
        r.aypx(-1.0, self.b)
        self._project(r)
        norm = float(r.norm())
        r.destroy()
        return norm / self.norm

    def difference(self, x: Any) -> float:
        """Return the largest relative difference of a field to the script's solution, null space aside.

        Rows without diagonal entry are a field of their own: the pressure beside the velocity. Collective: yes.
        """
        own, other = self.x.copy(), x.copy()
        other.axpy(-1.0, own)
        self._project(own)
        self._project(other)
        diagonal = self.matrix.getDiagonal()
        multiplier = diagonal.array_r == 0.0
        local = [
            float(vector.array_r[field] @ vector.array_r[field])
            for vector in (other, own)
            for field in (~multiplier, multiplier)
        ]
        for handle in (own, other, diagonal):
            handle.destroy()
        squares = self.comm.allreduce(np.array(local))
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = np.where(squares[:2] == 0.0, 0.0, squares[:2] / squares[2:])
        return math.sqrt(float(np.max(ratios)))

    def _project(self, vector: Any) -> None:
        nullspace = self.matrix.getNullSpace()
        if nullspace.handle:
            nullspace.remove(vector)


def reason_to_keep(system: System) -> str:
    """Return why the script's solver cannot be compared with others; "" if it can. Collective: no."""
    if not system.features.assembled:
        return f"its matrix has no entries to look at (type {system.matrix.getType()})"
    if system.ksp.getOperators()[0] != system.ksp.getOperators()[1]:
        return "it is preconditioned by another matrix, which options would factor in place of its own"
    if not system.residual <= NO_SOLVE:
        return f"it leaves {system.residual:.1e} of the right-hand side: a step of another iteration, not a solve"
    if np.iscomplexobj(np.empty(0, PETSc.ScalarType)):
        return "complex numbers are not tuned"
    return ""


def arms(f: MatrixFeatures) -> list[Choice]:
    """Return what to try, the most promising first. Collective: no; the same on all ranks."""
    found = {choice.name: choice for choice in rule.candidates(f) if choice.kind != "own"}
    definite = f.diagonal == "positive" and not f.indefinite and f.kernel != "constants"
    others: list[Choice] = []
    if definite and f.symmetric:
        others = [rule.icc(f, 0, ""), rule.gamg(f, ""), rule.jacobi(f), rule.icc(f, 1, ""), rule.ldl("")]
    elif definite:
        others = [rule.ilu(f, 0, ""), rule.ilu(f, 1, "")]
    elif f.symmetric:
        others = [rule.ldl("")]
    for choice in (*others, rule.lu("")):
        found.setdefault(choice.name, choice)
    if rule.factor_bytes(f) > rule.MEMORY_SHARE * rule.memory():
        found = {name: choice for name, choice in found.items() if choice.kind != "factor"}
    return list(found.values())


def needs_symmetry(options: Mapping[str, str]) -> bool:
    """Whether a solver is for symmetric matrices only. Collective: no."""
    return bool({"cg", "cholesky", "icc"} & {options.get(name) for name in ("ksp_type", "pc_type", "sub_pc_type")})


def needs_definiteness(options: Mapping[str, str]) -> bool:
    """Whether a solver is for positive definite matrices only. Collective: no."""
    return options.get("ksp_type") == "cg" or "icc" in (options.get("pc_type"), options.get("sub_pc_type"))


def options_for(choice: Choice, system: System) -> dict[str, str]:
    """Return the options that replace the script's solver by an arm, without prefix. Collective: no."""
    own = system.ksp
    options = {**choice.options, **(mumps_settings(own) if choice.kind == "factor" else {})}
    if choice.kind == "factor" and system.direct and system.start is None:
        return options | {"ksp_type": "preonly"}
    options |= {"ksp_rtol": f"{system.rtol:.1e}", "ksp_norm_type": "unpreconditioned"}
    if options["ksp_type"] == "fgmres" or own.getPCSide() != PETSc.PC.Side.LEFT:
        options.setdefault("ksp_pc_side", "left" if options["ksp_type"] == "cg" else "right")
    if own.getTolerances()[3] < 10_000:
        options["ksp_max_it"] = "10000"
    return options


def mumps_settings(ksp: Any) -> dict[str, str]:
    """Return what the script has told MUMPS, by options or by hand. Collective: no."""
    settings = {
        name: value
        for name, value in PETSc.Options(ksp.getOptionsPrefix()).getAll().items()
        if name.startswith("mat_mumps_")
    }
    pc = ksp.getPC()
    if pc.getType() in ("lu", "cholesky") and pc.getFactorSolverType() == "mumps":
        factors = pc.getFactorMatrix()
        # Room for pivoting, null pivots, which solution of a singular system; with MUMPS's own values.
        for number, usual in ((14, (20, 30, 35)), (24, (0,)), (25, (0,))):
            value = factors.getMumpsIcntl(number)
            if value not in usual:
                settings.setdefault(f"mat_mumps_icntl_{number}", str(value))
        for number in (3, 5):  # which pivots are null, and what replaces them
            if factors.getMumpsCntl(number) != 0.0:
                settings.setdefault(f"mat_mumps_cntl_{number}", repr(factors.getMumpsCntl(number)))
    return settings


class Arm:
    """A solver that is tried: its options, and a KSP that lives as long as the script's.

    Parameters
    ----------
    choice
        What it is.
    options
        Its options, without prefix.
    """

    def __init__(self, choice: Choice, options: dict[str, str]) -> None:
        self.choice, self.options = choice, options
        self.ksp: Any = None
        self.values = 0  # number of the values that it was set up for last

    def attempt(self, system: System, limit: float, isolated: Callable[..., object]) -> Trial:
        """Solve the system, and compare.

        Parameters
        ----------
        system
            What the script has solved.
        limit
            Seconds after which to give up.
        isolated
            Calls a function while PETSc's options are the given ones alone.

        Collective: yes.
        """
        trial = self._attempt(system, limit, isolated)
        if trial.state == "wrong" and "ksp_rtol" in self.options and system.direct:
            # Where the matrix is ill-conditioned the answer of a direct solver needs a smaller residual.
            self.options["ksp_rtol"] = "1.0e-12"
            self.release()
            trial = self._attempt(system, limit, isolated)
        if trial.state != "equal":
            self.release()
        return trial

    def _attempt(self, system: System, limit: float, isolated: Callable[..., object]) -> Trial:
        comm = system.comm
        x = system.x.duplicate()
        if system.start is None:
            x.set(0.0)
        else:
            system.start.copy(x)
        clock = [0.0, 0.0]
        error, fresh = "", self.ksp is None
        entries = {PREFIX + name: value for name, value in self.options.items()}
        try:
            isolated(entries, lambda: self._solve(system, x, limit, clock))
        except Exception as caught:
            error = (str(caught).strip().splitlines() or [""])[-1].rpartition("]")[2].strip() or type(caught).__name__
        meet(comm, f"trying {self.choice.name}", error)
        error = next(filter(None, comm.allgather(error)), "")
        if error:
            x.destroy()
            return Trial("failed", why=error)
        setup, solve = np.max(comm.allgather((clock[0], clock[1] - clock[0])), axis=0)
        trial = Trial("equal", float(setup), float(solve), self.ksp.getIterationNumber(), fresh=fresh)
        reason = self.ksp.getConvergedReason()
        if reason < 0:
            trial.state, trial.why = "failed", f"reason {reason}"
            if reason == PETSc.KSP.ConvergedReason.DIVERGED_MAX_IT:
                trial.state, trial.why = "slow", f"given up after {trial.iterations} iterations"
        else:
            residual, difference = system.relative_residual(x), system.difference(x)
            if not residual <= SLACK * max(system.residual, EXACT):
                trial.state, trial.why = "wrong", f"its residual is {residual:.1e}, not {system.residual:.1e}"
            elif not difference <= SAME_ANSWER:
                trial.state, trial.why = "wrong", f"its solution differs by {difference:.1e}"
            elif self.options["pc_type"] == "cholesky" and system.features.kernel == "none":
                trial.negative = self.ksp.getPC().getFactorMatrix().getMumpsInfog(12)
        x.destroy()
        return trial

    def _solve(self, system: System, x: Any, limit: float, clock: list[float]) -> None:
        comm = system.comm
        fresh = self.ksp is None
        if fresh:
            self.ksp = PETSc.KSP().create(comm)
            self.ksp.setOptionsPrefix(PREFIX)
        ksp = self.ksp
        comm.barrier()
        watch = Stopwatch()
        ksp.setOperators(system.matrix)
        if fresh:
            ksp.setFromOptions()
            ksp.setErrorIfNotConverged(False)
            ksp.setInitialGuessNonzero(system.start is not None)
        # The same values in a matrix that was assembled again: `pdeopt run --tuned` keeps the set-up, too.
        ksp.getPC().setReusePreconditioner(not fresh and self.values == system.values)
        self.values = system.values
        if ksp.getType() != "preonly":
            target = max(ksp.getTolerances()[0] * system.norm, system.ksp.getTolerances()[1])
            ksp.setConvergenceTest(_test(comm, target, watch, limit))
        ksp.setUp()
        ksp.setUpOnBlocks()
        comm.barrier()
        clock[0] = watch.seconds()
        ksp.solve(system.b, x)
        clock[1] = watch.seconds()

    def release(self) -> None:
        """Free the solver. Collective: yes."""
        if self.ksp is not None:
            self.ksp.destroy()
            self.ksp = None


def _test(comm: Any, target: float, watch: Stopwatch, limit: float) -> Callable[..., int]:
    """Return a convergence test for the true residual that also ends after some seconds, the same on all ranks."""
    reasons = PETSc.KSP.ConvergedReason

    def test(ksp: Any, iteration: int, norm: float) -> int:
        late = iteration % _CLOCK == 0 and watch.seconds() > limit
        if comm.size > 1 and iteration % _CLOCK == 0:
            late = comm.bcast(late)
        if not math.isfinite(norm):
            return int(reasons.DIVERGED_NANORINF)
        if norm <= target:
            return int(reasons.CONVERGED_RTOL)
        return int(reasons.DIVERGED_MAX_IT) if late or iteration >= 10_000 else 0

    return test


def worth_a_factorisation(f: MatrixFeatures, product: float, available: float) -> bool:
    """Whether a factorisation, which cannot be cut short, is predicted to take less than the seconds available.

    Collective: no; ``product``, the seconds of one product with the matrix, has to be equal on all ranks.
    """
    return rule.factor_products(f) * product < available


def ordered(choices: list[Choice], totals: Mapping[str, float]) -> Iterator[Choice]:
    """Yield arms by what they are predicted to cost, those without a figure last. Collective: no."""
    yield from sorted(choices, key=lambda choice: totals.get(choice.name, math.inf))
