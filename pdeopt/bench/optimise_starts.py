"""Random starts of the benchmark problems, and a certificate of what the optimiser calls converged."""

import dataclasses
import math
from typing import Any

from mpi4py import MPI

import numpy as np

from pdeopt.bench.harness import Row
from pdeopt.bench.optimise_problem_cases import Case, solve
from pdeopt.control import ControlProblem
from pdeopt.fem import forms
from pdeopt.optimise.barrier import BoundMultipliers, Bounds
from pdeopt.optimise.control_program import ControlProgram
from pdeopt.optimise.interior_state import State
from pdeopt.optimise.program import norm
from pdeopt.optimise.reduced_program import ReducedProgram
from pdeopt.parallel import random_stream
from pdeopt.report import PdeoptError

_SLACK = 100.0  # multipliers are read off the gradient here, with lumped masses; times the tolerance of the solver
_ON = 1e-14  # slack of a coordinate that a bound holds
_SAME = 1e-6  # relative difference of objectives up to which two minima count as one


@dataclasses.dataclass(frozen=True)
class Certificate:
    """What holds at a point, whoever found it.

    Parameters
    ----------
    residual
        The largest of stationarity, feasibility and complementarity, in Riesz norms, over the reference that
        tolerances of the solver refer to; multipliers of bounds are those that the gradient asks for.
    violation
        Largest violation of a bound.
    minimum
        Whether the inertia is that of a minimum; None where it is not known.
    """

    residual: float
    violation: float
    minimum: bool | None

    def holds(self, rtol: float) -> bool:
        """Whether the point is a minimum to a tolerance."""
        return self.residual <= _SLACK * rtol and self.violation <= 1e-10 and self.minimum is not False


def certify(problem: Any, reference: float = math.nan) -> Certificate:
    """Judge the point at which a problem stands by evaluating everything anew. Collective: yes.

    Parameters
    ----------
    reference
        Norm of the first gradient, for unsteady problems.
    """
    if not isinstance(problem, ControlProblem):
        program = ReducedProgram(problem.functional)
        residual = program.create()
        program.residual(residual)
        size = norm(program, residual)
        residual.destroy()
        program.destroy()
        return Certificate(size / reference, 0.0, None)
    control = ControlProgram(problem, "factorisation")
    bounds, point, residual = Bounds(control), control.create(), control.create()
    control.get(point)
    control.residual(residual)
    gradient = np.array(residual.primal.array_r) / bounds.weights
    residual.destroy()
    multipliers = BoundMultipliers(
        bounds.has_lower * np.maximum(gradient, 0.0), bounds.has_upper * np.maximum(-gradient, 0.0)
    )
    state = State(control, bounds, point, multipliers)
    violation = float(np.max(np.maximum(bounds.lower - state.x, state.x - bounds.upper), initial=0.0))
    low, high = bounds.slacks(state.x)
    held = bounds.fixed | ((low <= _ON) & bounds.has_lower) | ((high <= _ON) & bounds.has_upper)
    diagonal = point.primal.duplicate()
    with np.errstate(divide="ignore", invalid="ignore"):
        diagonal.array[:] = np.where(held, 0.0, bounds.diagonal(state.x, multipliers))
    kkt = control.kkt_solver(
        diagonal=diagonal if bounds.measure > 0.0 else None, fixed=held if bounds.sum(float(held.any())) else None
    )
    minimum = None if kkt.singular else kkt.inertia_is_right
    kkt.destroy()
    diagonal.destroy()
    result = Certificate(state.norms.largest / control.reference_norm(), -bounds.minimum(-violation), minimum)
    state.destroy()
    control.destroy()
    return result


def random_starts(case: Case, mesh: int, seeds: int, rtol: float = 1e-8) -> Row:
    """Solve from random starts and certify what is called converged. Collective: yes.

    State, controls and adjoint start as independent normal numbers in every degree of freedom, of the size of the
    largest value of the optimum; controls are clipped to their bounds, values on the boundary are kept.
    """
    case = dataclasses.replace(case, stages=case.stages[:1])
    instance = case.build(mesh)
    solve(case, instance, rtol)
    problem = instance.problem
    optimum = _get(problem)
    values, verdicts, steps, reasons = [problem.objective_value()], [], [], set()
    worst = 0.0
    for seed in range(seeds):
        reference = _start(problem, optimum, seed)
        try:
            reports, converged = solve(case, instance, rtol)
        except PdeoptError as error:
            reports, converged = [], False
            reasons.add(str(error)[:60])
        if not converged:
            verdicts.append("failed")
            reasons.update(str(report.reason) for report in reports if not report.converged)
            continue
        certificate = certify(problem, reference)
        worst = max(worst, certificate.residual)
        verdicts.append("solved" if certificate.holds(rtol) else "false")
        steps.append(reports[-1].iterations)
        values.append(problem.objective_value())
    least = min(values)
    return {
        "problem": f"{case.number} {case.name}",
        "mesh": mesh,
        "starts": seeds,
        "solved": verdicts.count("solved"),
        "failed": verdicts.count("failed"),
        "false": verdicts.count("false"),
        "least value": least,
        "at other minima": sum(value > least + _SAME * abs(least) for value in values[1:]),
        "most iterations": max(steps, default=None),
        "worst certified residual": worst,
        "reasons of failures": ", ".join(sorted(reasons)),
    }


def _get(problem: Any) -> list[np.ndarray]:
    """Return state, adjoint and controls, or the control over time."""
    if isinstance(problem, ControlProblem):
        return [forms.owned_values(function).copy() for function in _functions(problem)]
    control = problem.functional.create_vector()
    problem.functional.get_control(control)
    values = np.array(control.array_r)
    control.destroy()
    return [values]


def _functions(problem: ControlProblem) -> list[Any]:
    return [problem.state, problem.adjoint, *(control.function for control in problem.controls)]


def _start(problem: Any, optimum: list[np.ndarray], seed: int) -> float:
    """Put a problem to a random start; return the norm of its gradient there if it is unsteady. Collective: yes."""
    stream = random_stream("bench.optimise.starts", seed, problem.comm)
    noise = []
    for values in optimum:
        largest = problem.comm.allreduce(float(np.max(np.abs(values), initial=0.0)), op=MPI.MAX)
        noise.append(largest * stream.standard_normal(values.size))
    if not isinstance(problem, ControlProblem):
        functional = problem.functional
        control = functional.create_vector()
        control.array[:] = noise[0]
        functional.set_control(control)
        control.destroy()
        program = ReducedProgram(functional)
        residual = program.create()
        program.residual(residual)
        gradient = norm(program, residual)
        residual.destroy()
        program.destroy()
        return gradient
    for multiplier in problem.system.lagrangian.multipliers:
        multiplier.value = np.asarray(0.0)
    bounds = [None, None, *problem.bounds]
    for function, values, between in zip(_functions(problem), noise, bounds, strict=True):
        if between is not None:
            values = np.clip(values, between.lower, between.upper)
        forms.set_function(function, values)
    problem.system.impose_dirichlet()
    return math.nan
