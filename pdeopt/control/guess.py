"""Initial guesses for the optimality system: states, controls and adjoints that are judged before they are used."""

import functools
import math
import time
import weakref
from collections.abc import Callable, Mapping

from petsc4py import PETSc

import dolfinx
import numpy as np

from pdeopt.control import solvers, tao
from pdeopt.control.controls import RealControl
from pdeopt.control.kkt import KKTSystem
from pdeopt.control.newton import NewtonSolver
from pdeopt.control.newton import _Point as Point
from pdeopt.control.problem import ControlProblem
from pdeopt.fem import forms
from pdeopt.fem._guess_guest import PRESENT, Guest, Sources, make_guest
from pdeopt.fem._guess_judge import Judge, Offer, OutdoneError
from pdeopt.fem._guess_norm import DualNorm
from pdeopt.fem._guess_transfer import Loader
from pdeopt.fem.guess import attach_guess
from pdeopt.report import ConvergenceError, InputError, SolveReport

__all__ = ["ControlGuest", "attach_guess"]

_FIELDS = ("state", "control", "adjoint")


class ControlGuest(Guest):
    """A guest at a `ControlProblem`: ``problem.solve()`` judges the guesses and goes on from the best.

    A guess is a dictionary with some of "state", "control" (a value, or a list with one per control) and "adjoint";
    what is left out stays as it is. An array or vector holds all unknowns, each rank's part of every field in turn.
    Residuals are those of the semismooth KKT system in its Riesz norm, which takes no part in extra constraints.
    """

    def __init__(self, problem: ControlProblem, sources: Sources, dual_norm: DualNorm | None) -> None:
        super().__init__(sources, dual_norm or problem.system.norm, Loader())
        started = time.perf_counter()
        _calibrate(problem.system)
        self.seconds_setup += time.perf_counter() - started
        self._in_parts = dual_norm is None
        self._problem = weakref.ref(problem)
        self._loaders = {
            "state": Loader([problem.state.function_space]),
            "adjoint": Loader([problem.adjoint.function_space]),
            **{
                f"control {index}": Loader([control.function.function_space])
                for index, control in enumerate(problem.controls)
                if not isinstance(control, RealControl)
            },
        }
        problem.solve = functools.partial(_solve, self._problem, self)  # type: ignore[method-assign]

    def detach(self) -> None:
        """Give the problem back as it was, and free the PETSc objects. Collective: yes."""
        problem = self._problem()
        if problem is not None:
            problem.__dict__.pop("solve", None)
        super().detach()

    def choose_start(self, newton: "JudgingNewton", rtol: float, atol: float = 1e-14) -> None:
        """Set the problem's unknowns to the best guess, and hand on what is known of it. Collective: yes."""
        system = newton.system
        present = system.layout.create_vector()
        system.get_unknowns(present)
        points: list[tuple[PETSc.Vec, Point]] = []

        def residual(unknowns: PETSc.Vec, out: PETSc.Vec) -> None:
            newton.place(unknowns)
            if self._in_parts and judge.best_norm < math.inf:
                self._compare_state_equation(newton, out, judge.best_norm)
            point = newton.evaluate()
            point.residual.copy(out)
            points.append((unknowns, point))

        judge = Judge(present, residual, self._norm, functools.partial(self._load, newton, present))

        def meets(offer: Offer) -> bool:
            if math.isnan(newton.reference):
                start = next(offer for offer in judge.offers if offer.name == PRESENT)
                if start.residual is not None and present.norm() == 0.0:
                    newton.reference = system.norm(start.residual)
                    newton.at_zero = start.residual.copy()
                else:
                    newton.reference = newton.measure_reference(present)
                    judge.evaluations += 1
            assert offer.residual is not None
            return system.norm(offer.residual) <= max(rtol * newton.reference, atol)

        newton.prepare_to_evaluate()
        best = self.choose("ControlProblem", judge, present, meets, lambda: newton.place(present))
        rival = judge.best(rivals_only=True)
        if best.is_proposal and rival is not None:
            newton.rival = rival.vector.copy()
        newton.place(best.vector)
        newton.ready = next((point for vector, point in points if vector is best.vector), None)
        for _, point in points:
            if point is not newton.ready:
                point.residual.destroy()
        judge.destroy()
        present.destroy()

    @staticmethod
    def _compare_state_equation(newton: "JudgingNewton", work: PETSc.Vec, best: float) -> None:
        """Stop where the state equation alone, a third of the work, is worse than the best guess. Collective: yes."""
        system = newton.system
        work.set(0.0)
        system.assemble_derivative(system.adjoint_field, work)
        least = system.norms(work)[2]
        if least > best:
            raise OutdoneError(f"the residual of its state equation alone is {least:.3e}")

    def _load(self, newton: "JudgingNewton", present: PETSc.Vec, value: object, out: PETSc.Vec) -> None:
        """Write a guess into a blocked vector. Collective: yes."""
        system = newton.system
        if isinstance(value, ControlProblem):
            value = {"state": value.state, "control": list(value.given_controls), "adjoint": value.adjoint}
        if not isinstance(value, Mapping):
            Loader().load(value, out)
            return
        unknown = [name for name in value if name not in _FIELDS]
        if unknown:
            raise InputError(f"the guess has a part named {unknown[0]!r}: its parts are {', '.join(_FIELDS)}")
        present.copy(out)
        parts: list[tuple[int, str, object]] = []
        for name, field in (("state", 0), ("adjoint", system.adjoint_field)):
            if name in value:
                parts.append((field, name, value[name]))
        if "control" in value:
            given = value["control"]
            controls = list(given) if isinstance(given, list | tuple) else [given]
            if len(controls) != len(system.controls):
                raise InputError(f"the guess has {len(controls)} controls, the problem {len(system.controls)}")
            parts += [(j + 1, f"control {j}", control) for j, control in enumerate(controls)]
        for field, name, part in parts:
            if name in self._loaders:
                work = forms.SubVectors(system.layout, field)
                self._loaders[name].load(part, work.vector)
                work.store(out)
                work.vector.destroy()
            else:  # real numbers, which rank 0 owns
                numbers = part.value if isinstance(part, dolfinx.fem.Constant) else part
                values = np.asarray(numbers, dtype=np.float64).ravel()
                system.layout.write(out, field, values[: system.layout.sizes[field]])


class JudgingNewton(NewtonSolver):
    """Newton's method that lets a guest choose the start before the matrices are assembled there.

    The residuals at the start and at zero, if judging has found them out, are not assembled again.

    Attributes
    ----------
    reference
        Norm of the residual at zero unknowns, which tolerances refer to; NaN while it is not known.
    at_zero
        That residual, if it was assembled.
    ready
        The residual at the start, if known.
    rival
        The best rival, if a proposal was chosen.
    """

    def __init__(self, problem: ControlProblem, method: str | None, guest: ControlGuest, rtol: float) -> None:
        super().__init__(problem.system, problem.bounds, method)
        self._guest, self._rtol = guest, rtol
        self.reference = math.nan
        self.ready: Point | None = None
        self.at_zero: PETSc.Vec | None = None
        self.rival: PETSc.Vec | None = None

    def place(self, unknowns: PETSc.Vec) -> None:
        """Set the unknowns, and write them back with Dirichlet values and within bounds. Collective: yes."""
        self.system.set_unknowns(unknowns)
        self.system.impose_dirichlet()
        self._clip()
        self.system.get_unknowns(unknowns)

    def prepare_to_evaluate(self) -> None:
        """Take the scales of the semismooth residual from the diagonals of the L_uu. Collective: yes."""
        self._scales = []
        for index, product in enumerate(self.system.control_products):
            scale = np.array(product.getDiagonal().array_r)
            block = self.system.assemble_block(index + 1, index + 1) if self._bounded else None
            if block is not None:
                diagonal = np.array(block.getDiagonal().array_r)
                scale = np.where(diagonal > 0.0, diagonal, scale)
                block.destroy()
            self._scales.append(scale)

    def evaluate(self) -> Point:
        """Return the residual at the present unknowns. Collective: yes."""
        return super()._evaluate()

    def measure_reference(self, present: PETSc.Vec) -> float:
        """Return the residual norm at zero unknowns, the present ones put back. Collective: yes."""
        return super()._reference(present)

    def destroy(self) -> None:
        """Free what was kept for the solve. Collective: yes."""
        for vector in (self.rival, self.at_zero):
            if vector is not None:
                vector.destroy()

    def _prepare(self) -> None:
        self._guest.choose_start(self, self._rtol)
        super()._prepare()
        if self._bounded:  # the scales may have changed, and the active sets with them
            self.ready = None
        if self.at_zero is not None:
            self.reference = self.system.norm(self.at_zero)  # the norm has been calibrated at the start
        else:
            self.reference = math.nan

    def _evaluate(self) -> Point:
        point, self.ready = self.ready, None
        if point is None:
            return super()._evaluate()
        point.parts = self.system.norms(point.residual)
        point.norm = math.hypot(*point.parts)
        return point

    def _reference(self, unknowns: PETSc.Vec) -> float:
        if not math.isnan(self.reference):
            return self.reference
        point, self.ready = self.ready, None
        reference = super()._reference(unknowns)
        self.ready = point
        return reference


def _calibrate(system: KKTSystem) -> None:
    """Give the system's norm its weights from the blocks at the present unknowns. Collective: yes."""
    blocks, mass = system.assemble_blocks(), solvers.state_mass_matrix(system)
    system.calibrate_norm(blocks, mass)
    blocks.destroy()
    mass.destroy()


def _solve(
    handle: "weakref.ref[ControlProblem]",
    guest: ControlGuest,
    *,
    method: str | None = None,
    rtol: float = 1e-8,
    max_iterations: int | None = None,
    monitor: Callable[[int, float], None] | None = None,
) -> SolveReport:
    """Stand in for `ControlProblem.solve`. Collective: yes."""
    problem = handle()
    if problem is None:
        raise InputError("the control problem of this guess is gone: keep a reference to it")
    plain = functools.partial(
        ControlProblem.solve, problem, method=method, rtol=rtol, max_iterations=max_iterations, monitor=monitor
    )
    if method is not None and method not in (*solvers.METHODS, *tao.METHODS):
        return plain()  # which says what is wrong with it
    parameter = guest.parameter()
    newton = JudgingNewton(problem, None if method in tao.METHODS else method, guest, rtol)
    try:
        if method in tao.METHODS:
            guest.choose_start(newton, rtol)
            report = plain()
        else:
            report = newton.solve(rtol=rtol, max_iterations=max_iterations or 50, monitor=monitor)
    except ConvergenceError:
        if newton.rival is None:
            raise
        guest.note_second_start()
        problem.system.set_unknowns(newton.rival)
        report = plain()
    finally:
        newton.destroy()
    guest.conclude(report.iterations, report.reason, report.residuals)
    unknowns = problem.system.layout.create_vector()
    problem.system.get_unknowns(unknowns)
    guest.remember(unknowns, parameter)
    unknowns.destroy()
    return report


@make_guest.register
def _(solver: ControlProblem, sources: Sources, dual_norm: DualNorm | None) -> Guest:
    return ControlGuest(solver, sources, dual_norm)
