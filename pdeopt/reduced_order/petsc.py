"""The reduced model as a SNES type: it proposes, the full residual certifies, Newton's method stands behind it."""

import dataclasses
import logging
import math
import time
from collections.abc import Callable

from petsc4py import PETSc

from pdeopt.fem import forms
from pdeopt.fem.settings import read_settings
from pdeopt.parallel import collective_errors
from pdeopt.reduced_order.certificate import dual_norm
from pdeopt.reduced_order.model import ReducedModel
from pdeopt.reduced_order.newton import NewtonResult
from pdeopt.report import SNES_ADVICE, InputError, OptionError, SolveReport

_LOGGER = logging.getLogger(__name__)
_CERTIFY = ("true", "false", "indicator")
# What PETSc also takes for truth.
_WORDS = dict.fromkeys(("", "1", "yes", "on"), "true") | dict.fromkeys(("0", "no", "off"), "false")
_TOLERANCES = ("snes_rtol", "snes_atol", "snes_stol", "snes_max_it")
# Of the residual of an answer that was refused although the SNES' own tolerance would take it: PETSc has none above 1.
_LEAST_REDUCTION = 0.5
_FULL = {"snes_type": "newtonls", "ksp_type": "preonly", "pc_type": "lu", "pc_factor_mat_solver_type": "mumps"}


@dataclasses.dataclass(frozen=True)
class ReducedSettings:
    """When a reduced answer is accepted.

    Parameters
    ----------
    model
        The `ReducedModel`.
    tolerance
        Relative error in the norm of the basis.
    certify
        "true": by the certificate; "indicator": by the indicator alone; "false": where the reduced system was solved.

    Raises
    ------
    InputError
        If the tolerance is not positive, the word is unknown, or the model cannot do what it says.
    """

    model: object = ""
    tolerance: float = 1e-2
    certify: str = "true"

    def __post_init__(self) -> None:
        if not 0.0 < self.tolerance < math.inf:
            raise InputError(f"tolerance is {self.tolerance!r}: give a positive number")
        word = str(self.certify).lower()
        object.__setattr__(self, "certify", _WORDS.get(word, word))
        if self.certify not in _CERTIFY:
            raise InputError(f"certify is {self.certify!r}: choose {', '.join(_CERTIFY)}")
        if self.model == "":
            return  # it may come with the options
        if not isinstance(self.model, ReducedModel):
            raise InputError(f"model is {self.model!r}: give a ReducedModel through the application context")
        needed = {"true": self.model.certificate, "indicator": self.model.indicator, "false": self.model}[self.certify]
        if needed is None:
            absent = "certificate" if self.certify == "true" else "indicator"
            raise InputError(
                f"certify is {self.certify!r} and the model has no {absent}: give it one, or choose another"
            )


@dataclasses.dataclass
class Counts:
    """What became of the proposals of a `ReducedNewton` so far.

    Attributes
    ----------
    proposals, accepted
        How many were made and taken.
    fallbacks
        Why the others were not, and how often.
    """

    proposals: int = 0
    accepted: int = 0
    fallbacks: dict[str, int] = dataclasses.field(default_factory=dict)

    def refuse(self, why: str) -> None:
        """Count a fallback. Collective: no."""
        self.fallbacks[why] = self.fallbacks.get(why, 0) + 1


class ReducedNewton:
    """Solve by a reduced model where its error is certified, and by Newton's method from its answer elsewhere.

    Switched on by ``-snes_type python -snes_python_type pdeopt.ReducedNewton``; the SNES needs its residual and, for
    the fallback, its Jacobian, as DOLFINx's NonlinearProblem sets them. A certified answer ends with the reason
    CONVERGED_FNORM_RELATIVE, one that was not certified because the options say so with CONVERGED_ITS, and a fallback
    with the reason of Newton's method.

    Options, under the prefix of the SNES
    -------------------------------------
    ``-snes_reduced_model`` : key of petsctools' application context
        The `pdeopt.reduced_order.ReducedModel`.
    ``-snes_reduced_tolerance`` : 1e-2
        Relative error in the norm of the model's basis up to which a reduced answer is accepted.
    ``-snes_reduced_certify`` : true (default), false or indicator
        By the certificate, with the residual of this SNES; not at all; or by the indicator alone, which is no bound.
    ``-snes_reduced_full_...`` :
        Options of the SNES behind it (newtonls with MUMPS; tolerances of this SNES where the options give none).

    Parameters
    ----------
    settings
        The same from Python.
    on_full_solve
        Called with the vector of unknowns after each fallback that converged, for instance to enrich the model.

    Attributes
    ----------
    report
        What the last solve did.
    counts
        What became of all proposals.
    error
        An exception that ended the last solve.
    """

    def __init__(
        self, settings: ReducedSettings | None = None, on_full_solve: Callable[[PETSc.Vec], object] | None = None
    ) -> None:
        self.settings, self._on_full_solve = settings or ReducedSettings(), on_full_solve
        self.report: SolveReport | None = None
        self.error: Exception | None = None
        self.counts = Counts()
        self._full: PETSc.SNES | None = None
        self._chosen: set[str] = set()  # tolerances that options give to the SNES behind
        self._outer: PETSc.SNES | None = None  # known during a solve only: it knows this object

    # --- what PETSc calls ---------------------------------------------------------------------------------------------

    def setFromOptions(self, snes: PETSc.SNES) -> None:
        """Read the options under the prefix of the SNES. Collective: no."""
        self.settings = read_settings(self.settings, snes.getOptionsPrefix(), "snes_reduced_", inner=("full_",))

    def solve(self, snes: PETSc.SNES, b: PETSc.Vec | None, x: PETSc.Vec) -> None:
        """Solve from the vector's present values, which a fallback may start from. Collective: yes."""
        self.error, self._outer = None, snes
        try:
            self._solve(snes, b, x)
        except Exception as error:
            self.error = error  # PETSc hands on no more than a number
            raise
        finally:
            self._outer = None

    def view(self, snes: PETSc.SNES, viewer: PETSc.Viewer) -> None:
        """Print the settings, the counts, and the report of the last solve. Collective: yes."""
        lines = [f"tolerance: {self.settings.tolerance}", f"certify: {self.settings.certify}"]
        lines.append(f"proposals: {self.counts.proposals}, accepted: {self.counts.accepted}")
        lines += [f"full solves: {number} ({why})" for why, number in self.counts.fallbacks.items()]
        if self.report is not None:
            lines += str(self.report).splitlines()
        for line in ["reduced Newton", *(f"  {line}" for line in lines)]:
            viewer.printfASCII(line + "\n")

    def destroy(self, _: PETSc.SNES | None = None) -> None:
        """Free the SNES behind; PETSc calls this with its own end. Collective: yes."""
        if self._full is not None:
            self._full.destroy()
            self._full = None

    # ------------------------------------------------------------------------------------------------------------------

    def _solve(self, snes: PETSc.SNES, b: PETSc.Vec | None, x: PETSc.Vec) -> None:
        model = self.settings.model
        if not isinstance(model, ReducedModel):
            raise OptionError(
                f"-{snes.getOptionsPrefix() or ''}snes_reduced_model is not set: give a ReducedModel through the "
                "application context, or ReducedSettings(model=...)"
            )
        if b is not None and b.handle and b.norm() > 0.0:
            raise InputError("the SNES has a right-hand side, of which the reduced model knows nothing: put it into F")
        with collective_errors(model.basis.comm):
            owned = model.basis.inner_product.owned
            if x.getLocalSize() != owned:
                raise InputError(
                    f"the SNES has {x.getLocalSize()} unknowns on this rank and the model {owned}: build both on one "
                    "function space, without blocks of several"
                )
        started = time.perf_counter()
        self.counts.proposals += 1
        result = model.propose()
        present = x.copy()
        x.array[:] = model.field(result.coordinates)
        why, quantities, eta = self._judge(snes, model, result, x)
        seconds = {"reduced solve": result.seconds, "judgement": time.perf_counter() - started - result.seconds}
        snes.setIterationNumber(result.iterations)
        snes.monitor(0, eta)
        if not why:
            self.counts.accepted += 1
            certified = self.settings.certify == "true"
            reasons = PETSc.SNES.ConvergedReason
            reason = int(reasons.CONVERGED_FNORM_RELATIVE if certified else reasons.CONVERGED_ITS)
            method, iterations = "reduced Newton, " + ("certified" if certified else "not certified"), result.iterations
        else:
            self.counts.refuse(why)
            _LOGGER.info("full solve: %s", why)
            reason, iterations = self._fall_back(snes, model, present, x, eta)
            method = "Newton, from the reduced answer"
            seconds["full solve"] = time.perf_counter() - started - sum(seconds.values())
        present.destroy()
        snes.setFunctionNorm(snes.getFunction()[0].norm())
        snes.setConvergedReason(reason)
        self.report = SolveReport(
            method=method,
            why=why,
            converged=reason > 0,
            reason=reason,
            iterations=iterations,
            residuals=result.residuals if not why else (),
            seconds=seconds,
            quantities=quantities | {"proposals": self.counts.proposals, "accepted": self.counts.accepted},
            advice=SNES_ADVICE.get(reason, "") if reason < 0 else "",
        )
        if why and reason > 0 and self._on_full_solve is not None:
            self._on_full_solve(x)

    def _judge(
        self, snes: PETSc.SNES, model: ReducedModel, result: NewtonResult, x: PETSc.Vec
    ) -> tuple[str, dict[str, float | int | str], float]:
        """Return why the answer is refused (empty: it is not), numbers for the report, and the dual norm."""
        function = snes.getFunction()[0]
        snes.computeFunction(x, function)
        eta = dual_norm(model.basis.inner_product, function)
        quantities: dict[str, float | int | str] = {"dual norm of the residual": eta}
        if not result.converged:
            return "the reduced system was not solved", quantities, eta
        if not math.isfinite(eta):
            return "the residual of the reduced answer has NaN or Inf", quantities, eta
        certify = self.settings.certify
        if certify == "false":
            return "", quantities, eta
        if certify == "indicator":
            error = model.estimate(result.coordinates)
            quantities["relative error, estimated"] = error
        else:
            assert model.certificate is not None
            error = model.relative(model.certificate.bound(eta), result.coordinates)
            quantities["relative error, certified"] = error
            quantities["stability constant"] = model.certificate.stability.origin
        return "" if error <= self.settings.tolerance else "its error is above the tolerance", quantities, eta

    def _fall_back(
        self, snes: PETSc.SNES, model: ReducedModel, present: PETSc.Vec, x: PETSc.Vec, eta: float
    ) -> tuple[int, int]:
        """Solve in full from the better of the reduced answer and the present iterate. Collective: yes."""
        full = self._solver(snes)
        rtol, atol, stol, limit = snes.getTolerances()
        function = snes.getFunction()[0]
        snes.computeFunction(present, function)
        reference = function.norm()
        candidates = [x.copy(), present]
        if not eta <= dual_norm(model.basis.inner_product, function):
            candidates.reverse()
        iterations, reason = 0, -1
        for candidate in candidates:
            snes.computeFunction(candidate, function)
            norm = function.norm()
            # As without the proposal: relative to the residual at the present iterate.
            target = rtol * reference if math.isfinite(reference) else rtol * norm
            wanted = min(target / norm, _LEAST_REDUCTION) if norm > 0.0 else rtol
            tolerances = {"snes_rtol": wanted, "snes_atol": atol, "snes_stol": stol, "snes_max_it": limit}
            kept = {name.removeprefix("snes_"): tolerances[name] for name in tolerances if name not in self._chosen}
            full.setTolerances(**kept)
            candidate.copy(x)
            full.solve(None, x)
            iterations, reason = iterations + full.getIterationNumber(), int(full.getConvergedReason())
            if reason > 0:
                break
        candidates[0 if candidates[0] is not present else 1].destroy()
        snes.computeFunction(x, function)
        snes.setIterationNumber(iterations)
        snes.monitor(iterations, function.norm())
        return reason, iterations

    def _solver(self, snes: PETSc.SNES) -> PETSc.SNES:
        """Return the SNES behind, made when it is first needed. Collective: yes."""
        if self._full is not None:
            return self._full
        jacobian, preconditioner, _ = snes.getJacobian()
        if jacobian is None or not jacobian.handle:
            raise InputError("the SNES has no Jacobian, which the full solve needs: call its setJacobian")
        full = PETSc.SNES().create(snes.comm)
        prefix = f"{snes.getOptionsPrefix() or ''}snes_reduced_full_"
        full.setOptionsPrefix(prefix)
        full.setFunction(self._residual, snes.getFunction()[0].duplicate())
        full.setJacobian(self._jacobian, jacobian, preconditioner)
        options = PETSc.Options()
        self._chosen = {name for name in _TOLERANCES if options.hasName(prefix + name)}
        with forms.default_options(prefix, _FULL):
            full.setFromOptions()
            full.setUp()
        self._full = full
        return full

    def _residual(self, _: PETSc.SNES, x: PETSc.Vec, out: PETSc.Vec) -> None:
        assert self._outer is not None
        self._outer.computeFunction(x, out)

    def _jacobian(self, _: PETSc.SNES, x: PETSc.Vec, matrix: PETSc.Mat, preconditioner: PETSc.Mat) -> None:
        assert self._outer is not None
        self._outer.computeJacobian(x, matrix, preconditioner)
