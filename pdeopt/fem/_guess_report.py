"""What became of the guesses on offer for a solve: which was taken, what judging cost, what it saved."""

import dataclasses
import math
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One guess on offer.

    Parameters
    ----------
    name
        Its name: that of a proposal, or "present iterate", "previous solution", "linear extrapolation", "quadratic
        extrapolation", "nested iteration", "combination".
    is_proposal
        Whether the user proposed it; the others are its rivals.
    residual
        Dual norm of its residual; NaN if there is none.
    seconds
        Wall seconds to make it and to measure it [s].
    note
        Why it is out of the race; empty if it is in.
    """

    name: str
    is_proposal: bool
    residual: float
    seconds: float
    note: str = ""


@dataclasses.dataclass(frozen=True)
class GuessReport:
    """Which guesses were on offer for a solve, which was taken, what judging cost and what it saved.

    Parameters
    ----------
    solver
        What was solved by.
    candidates
        All guesses on offer, in the order in which they were made.
    chosen
        Name of the one that was taken.
    tolerance
        Residual norm, as the solver measures it, that its relative tolerance stands for: that of the start it would
        have had without guests, times rtol. NaN where the solver has its own reference.
    residual_evaluations
        Residuals evaluated to judge.
    seconds
        Wall seconds by purpose: "proposals", "rivals" (among them the coarse solve), "judging" [s].
    iterations
        Newton or Krylov iterations of the solve that followed; None before it has ended.
    reason
        The solver's converged reason; 0 before it has ended.
    residuals
        The solver's own residual norms, the initial one first; empty where it kept none.
    steps_saved
        Iterations that the best rival would have needed to come as far as the chosen guess, at the measured
        contraction; 0 if a rival was chosen, NaN where no contraction was measured.
    advice
        What the user should know; empty as a rule.
    """

    solver: str
    candidates: tuple[Candidate, ...]
    chosen: str
    tolerance: float = math.nan
    residual_evaluations: int = 0
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    iterations: int | None = None
    reason: int = 0
    residuals: tuple[float, ...] = ()
    steps_saved: float = math.nan
    advice: str = ""

    def candidate(self, name: str) -> Candidate:
        """Return the guess of a name.

        Raises
        ------
        KeyError
            If none of that name was on offer.
        """
        for candidate in self.candidates:
            if candidate.name == name:
                return candidate
        raise KeyError(f"no guess {name!r} was on offer: there were {', '.join(c.name for c in self.candidates)}")

    @property
    def best_rival(self) -> Candidate | None:
        """The guess with the smallest residual that was not proposed by the user."""
        rivals = [c for c in self.candidates if not c.is_proposal and math.isfinite(c.residual)]
        return min(rivals, key=lambda candidate: candidate.residual, default=None)

    @property
    def gain(self) -> float:
        """Residual of the best rival over that of the chosen guess; 1 if a rival was chosen, NaN without a rival."""
        rival = self.best_rival
        if rival is None:
            return math.nan
        chosen = self.candidate(self.chosen).residual
        return rival.residual / chosen if chosen > 0.0 else math.inf

    def rows(self) -> list[tuple[str, str]]:
        """Return the (label, value) pairs of the printed table."""
        rows = [("solver", self.solver)]
        for candidate in self.candidates:
            value = f"residual {candidate.residual:.3e}, {candidate.seconds:.4f} s"
            if candidate.note:
                value = f"out: {candidate.note}"
            elif candidate.name == self.chosen:
                value += "  <- chosen"
            rows.append((candidate.name, value))
        rows.append(("residual evaluations", str(self.residual_evaluations)))
        rows.extend((f"seconds {name}", f"{value:.4f}") for name, value in self.seconds.items())
        if math.isfinite(self.tolerance):
            rows.append(("tolerance", f"{self.tolerance:.3e}"))
        if not math.isnan(self.gain):
            rows.append(("residual, best rival / chosen", f"{self.gain:.3g}"))
        if self.iterations is not None:
            rows.append(("iterations", f"{self.iterations} (reason {self.reason})"))
        if math.isfinite(self.steps_saved):
            rows.append(("iterations saved", f"{self.steps_saved:.0f} (estimated)"))
        if self.advice:
            rows.append(("advice", self.advice))
        return rows

    def __str__(self) -> str:
        rows = self.rows()
        width = max(len(label) for label, _ in rows)
        return "\n".join(f"{label:<{width}}  {value}" for label, value in rows)


def steps_saved(report: GuessReport, contraction: float) -> float:
    """Estimate the iterations from the best rival's residual down to the chosen guess's.

    Newton's method contracts by a factor that is proportional to the error, so the contraction measured from the
    better start is the smaller one, and the whole number of such steps a lower estimate.
    """
    if math.isnan(report.gain) or math.isnan(contraction) or not 0.0 < contraction < 1.0:
        return 0.0 if report.gain == 1.0 else math.nan
    if math.isinf(report.gain):
        return math.inf
    return float(max(math.floor(math.log(report.gain) / -math.log(contraction)), 0))
