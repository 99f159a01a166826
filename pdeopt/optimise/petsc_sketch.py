"""Sketched linear solvers as a PETSc type."""

import dataclasses
import math
import time

from petsc4py import PETSc

from pdeopt.fem.settings import check_choice, read_settings
from pdeopt.optimise.embedding import LinearSystem
from pdeopt.optimise.sgmres import SketchedGMRES
from pdeopt.optimise.sketch import BlockSketch, ResidualHistory, SingleSketch, Sketch
from pdeopt.report import KSP_ADVICE, InputError, OptionError, SolveReport

__all__ = ["SketchSettings", "SketchedKSP"]

Reason = PETSc.KSP.ConvergedReason

TYPES = ("sgmres", "history", "block", "kaczmarz", "gaussian")
PRECONDITIONED = ("sgmres", "history")
DISTRIBUTIONS = ("rows", "gaussian", "sign")
# Where the published method gives up a solve.
PUBLISHED_CAPS = {"kaczmarz": 100_000, "gaussian": 1_000_000}


@dataclasses.dataclass(frozen=True)
class SketchSettings:
    """Settings of `SketchedKSP`; its docstring says what they mean.

    Raises
    ------
    InputError
        If one is out of its range.
    """

    type: str = "sgmres"
    seed: int = 0
    max_sketches: int = 0
    batch: int = 0
    block_size: int = 32
    distribution: str = "rows"
    truncation: int = 8
    restart: int = 500
    rows: int = 0
    nonzeros: int = 4
    condition: float = 1e12

    def __post_init__(self) -> None:
        check_choice(self, "type", TYPES)
        check_choice(self, "distribution", DISTRIBUTIONS)
        for name in ("seed", "max_sketches", "batch", "rows"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}: it has to be 0 or more")
        for name in ("block_size", "truncation", "restart", "nonzeros"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: it has to be 1 or more")
        if 0 < self.rows <= self.restart:
            raise InputError(f"rows is {self.rows}: a sketch for {self.restart} vectors (restart) needs more rows")
        if not self.condition > 1.0:
            raise InputError(f"condition is {self.condition}: it limits a condition number, and has to exceed 1")

    @property
    def cap(self) -> int:
        """Largest number of sketches in a solve; 0 if any number will do."""
        return self.max_sketches or PUBLISHED_CAPS.get(self.type, 0)

    def make(self) -> Sketch:
        """Return the method. Collective: no."""
        if self.type == "sgmres":
            return SketchedGMRES(self.truncation, self.restart, self.rows, self.nonzeros, self.condition, self.seed)
        if self.type == "history":
            return ResidualHistory()
        if self.type == "block":
            return BlockSketch(self.block_size, self.distribution, self.nonzeros, self.seed)
        return SingleSketch(self.type == "gaussian", self.batch, self.cap, self.seed)


class SketchedKSP:
    """Sketched Krylov methods, and sketch-and-project, for any square system.

    Switched on by ``-ksp_type python -ksp_python_type pdeopt.SketchedKSP``. The norm is that of the residual b - K z.
    Convergence is declared by the true one, computed anew: a convergence test of the user's own is called a second time
    for that iteration, with the true norm. The same seed gives the same random numbers on any number of ranks; single
    sketches and blocks go on drawing from solve to solve.

    Options, under the prefix of the KSP
    ------------------------------------
    ``-ksp_sketch_type`` : sgmres (default), history, block, kaczmarz or gaussian
        Sketched GMRES, which is for long solves (hundreds of iterations); the history of residuals, with the short
        recurrences of Craig's method, which needs the transpose of the matrix and of the preconditioner; blocks of
        random rows or combinations; single rows; single Gaussian combinations. The last two hold the matrix dense on
        every rank (at most 5,000 unknowns), and an iteration is a batch of sketches. The last three use no
        preconditioner.
    ``-ksp_sketch_seed`` : 0
        Seed of the random numbers.
    ``-ksp_sketch_max_sketches`` : 0
        A solve ends after so many sketches; 0 means the published 1e5 for kaczmarz and 1e6 for gaussian, no limit else.
    ``-ksp_sketch_batch`` : 0
        Single sketches in an iteration; 0 means as many as there are unknowns, and 128 at least.
    ``-ksp_sketch_block_size`` : 32
        Sketches in an iteration of type block.
    ``-ksp_sketch_distribution`` : rows (default), gaussian or sign
        Those of type block: rows side by side, Gaussian combinations, or sparse ones with signs.
    ``-ksp_sketch_truncation`` : 8
        Former vectors to which sketched GMRES makes a new one orthogonal.
    ``-ksp_sketch_restart`` : 500
        Largest number of basis vectors, which are held in memory.
    ``-ksp_sketch_rows`` : 0
        Rows of its sketch; 0 means 2 (restart + 1).
    ``-ksp_sketch_nonzeros`` : 4
        In each column of a sparse sketch.
    ``-ksp_sketch_condition`` : 1e12
        Sketched GMRES starts anew where the estimated condition number of its sketched basis passes this.

    The preconditioner stands on the right and may change from iteration to iteration with sgmres; history takes
    ``-ksp_pc_side left`` too.

    Parameters
    ----------
    settings
        The same from Python: ``ksp.setPythonContext(SketchedKSP(SketchSettings(type="history")))``.
    options
        Single settings by name, in the place of those: ``SketchedKSP(type="sgmres", truncation=2)``.

    Attributes
    ----------
    sketches
        Random combinations used in the last solve; for the Krylov methods its iterations.

    Raises
    ------
    OptionError
        If an option is unknown or its value unfit, a preconditioner is asked for where none is used, or the system is
        too large for single sketches.
    """

    def __init__(self, settings: SketchSettings | None = None, **options: str | float) -> None:
        known = {field.name for field in dataclasses.fields(SketchSettings)}
        unknown = sorted(options.keys() - known)
        if unknown:
            raise InputError(f"setting {unknown[0]} is unknown: choose among {', '.join(sorted(known))}")
        self.settings = dataclasses.replace(settings or SketchSettings(), **options)  # type: ignore[arg-type]
        self._method: Sketch | None = None
        self._norms = (math.nan, math.nan)
        self._reason = self._iterations = self.sketches = 0
        self._seconds = 0.0
        self._notes: dict[str, int] = {}
        self._event = PETSc.Log.Event("SketchedKSP")

    # --- what PETSc calls ---------------------------------------------------------------------------------------------

    def create(self, ksp: PETSc.KSP) -> None:
        """Prefer the right side. Collective: no."""
        ksp.setPCSide(PETSc.PC.Side.RIGHT)

    def setFromOptions(self, ksp: PETSc.KSP) -> None:
        """Read the options under the prefix of the solver. Collective: no."""
        prefix = ksp.getOptionsPrefix() or ""
        settings = read_settings(self.settings, prefix, "ksp_sketch_")
        options = PETSc.Options(prefix)
        if settings.type not in PRECONDITIONED and options.getString("pc_type", "none") != "none":
            raise OptionError(
                f"option -{prefix}pc_type: ksp_sketch_type {settings.type} uses no preconditioner; set it to none, or "
                f"take -{prefix}ksp_sketch_type sgmres or history"
            )
        if settings != self.settings:
            self.settings = settings
            self.reset()

    def setUp(self, ksp: PETSc.KSP) -> None:
        """Set the norm, and keep PETSc from setting up a preconditioner that is not used. Collective: yes."""
        ksp.setNormType(PETSc.KSP.NormType.UNPRECONDITIONED)
        if self.settings.type not in PRECONDITIONED and ksp.getPC().getType() != PETSc.PC.Type.NONE:
            ksp.getPC().setType(PETSc.PC.Type.NONE)

    def solve(self, ksp: PETSc.KSP, b: PETSc.Vec, x: PETSc.Vec) -> None:
        """Solve K x = b. Collective: yes."""
        self._solve(ksp, b, x, transposed=False)

    def solveTranspose(self, ksp: PETSc.KSP, b: PETSc.Vec, x: PETSc.Vec) -> None:
        """Solve K'x = b, with the transpose of the preconditioner. Collective: yes."""
        self._solve(ksp, b, x, transposed=True)

    def view(self, ksp: PETSc.KSP, viewer: PETSc.Viewer) -> None:
        """Print the settings and what was done. Collective: yes."""
        if viewer.getType() != PETSc.Viewer.Type.ASCII:
            return
        for label, value in self.report.rows():
            viewer.printfASCII(f"  {label}: {value}\n")

    def reset(self, ksp: PETSc.KSP | None = None) -> None:
        """Free the embedding. Collective: yes."""
        if self._method is not None:
            self._method.destroy()
            self._method = None

    def destroy(self, ksp: PETSc.KSP | None = None) -> None:
        """Free the embedding. Collective: yes."""
        self.reset()

    @property
    def report(self) -> SolveReport:
        """What the last solve did."""
        settings = self.settings
        used = {
            "sgmres": ("truncation", "restart", "nonzeros", "condition", "seed"),
            "history": (),
            "block": ("block_size", "distribution", "seed"),
        }.get(settings.type, ("seed",))
        return SolveReport(
            method=f"sketched linear solver, type {settings.type}",
            converged=self._reason > 0,
            reason=self._reason,
            linear_iterations=self._iterations,
            residuals=() if math.isnan(self._norms[0]) else self._norms,
            seconds={"solve": self._seconds},
            quantities={
                **{name: getattr(settings, name) for name in used},
                **({"cap of sketches": settings.cap} if settings.cap else {}),
                "sketches": self.sketches,
                **self._notes,
            },
            advice=KSP_ADVICE.get(self._reason, ""),
        )

    # --- one solve ----------------------------------------------------------------------------------------------------

    def _solve(self, ksp: PETSc.KSP, b: PETSc.Vec, x: PETSc.Vec, transposed: bool) -> None:
        began = time.perf_counter()
        self.setUp(ksp)  # options read again bring another preconditioner back
        if self._method is None:
            self._method = self.settings.make()
        method, pc = self._method, ksp.getPC()
        plain = self.settings.type not in PRECONDITIONED or pc.getType() == PETSc.PC.Type.NONE
        left = ksp.getPCSide() == PETSc.PC.Side.LEFT
        if left and self.settings.type == "sgmres":
            raise OptionError("ksp_pc_side left: sketched GMRES has its preconditioner on the right")
        system = LinearSystem(ksp.getOperators()[0], None if plain else pc, left and not plain, transposed)
        with self._event:
            try:
                self._iterate(ksp, method, method.start(system, b, x, bool(ksp.getInitialGuessNonzero())))
            finally:
                self.sketches = method.sketches
                if isinstance(method, SketchedGMRES):
                    self._notes = {"restarts": method.restarts, "for ill condition": method.ill_conditioned}
                method.finish()
        self._seconds = time.perf_counter() - began

    def _iterate(self, ksp: PETSc.KSP, method: Sketch, norm: float) -> None:
        """Step until the convergence test, a limit, or NaN says stop. Collective: yes."""
        limit, cap = ksp.getTolerances()[3], self.settings.cap
        iteration, first = 0, norm
        reason = self._test(ksp, 0, norm)
        while reason == Reason.CONVERGED_ITERATING:
            if iteration >= limit or (cap and method.sketches >= cap):
                reason, norm = Reason.DIVERGED_MAX_IT, method.verify()
                break
            iteration += 1
            norm = method.step()
            if method.broken:
                reason, norm = Reason.DIVERGED_BREAKDOWN, method.verify()
                break
            reason = self._test(ksp, iteration, norm)
            if reason not in (Reason.CONVERGED_ITERATING, Reason.DIVERGED_NANORINF):
                norm = method.verify()
                if not math.isfinite(norm):
                    reason = Reason.DIVERGED_NANORINF
                elif reason > 0:
                    reason = ksp.callConvergenceTest(iteration, norm)
        ksp.setIterationNumber(iteration)
        ksp.setResidualNorm(norm if math.isfinite(norm) else math.inf)
        ksp.setConvergedReason(reason)
        self._reason, self._iterations, self._norms = int(reason), iteration, (first, norm)

    @staticmethod
    def _test(ksp: PETSc.KSP, iteration: int, norm: float) -> int:
        """Note, show and judge a residual. Collective: yes."""
        if not math.isfinite(norm):
            return int(Reason.DIVERGED_NANORINF)  # PETSc's test refuses the number itself
        ksp.setIterationNumber(iteration)
        ksp.setResidualNorm(norm)
        ksp.logConvergenceHistory(norm)
        ksp.monitor(iteration, norm)
        return int(ksp.callConvergenceTest(iteration, norm))
