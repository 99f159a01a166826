"""IPOPT as the judge of small nonlinear programs; serial, with exact first and second derivatives.

Whoever solved a problem is judged by `kkt_residual`: the largest entry of the unscaled optimality conditions.
"""

import dataclasses
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pdeopt.bench.harness import Row
from pdeopt.bench.rivals import require_package
from pdeopt.problems.nonlinear_program import NonlinearProgram
from pdeopt.problems.s2mpj import read_s2mpj
from pdeopt.report import InputError

Array = npt.NDArray[np.float64]

TOLERANCE = 1e-8
"""Largest `kkt_residual` of a solved problem."""

_NO_STATUS = -1000  # none of IPOPT's


@dataclasses.dataclass(frozen=True)
class KKTResidual:
    """Largest absolute entries of what vanishes at a solution; each NaN if a function is undefined there.

    Parameters
    ----------
    stationarity
        Of the gradient of the Lagrangian, fixed unknowns left out.
    feasibility
        Of the violated constraints and bounds.
    complementarity
        Of multiplier times slack, and of multipliers of the wrong sign.
    """

    stationarity: float
    feasibility: float
    complementarity: float

    @property
    def largest(self) -> float:
        """The largest of the three, NaN if one is."""
        return float(np.max([self.stationarity, self.feasibility, self.complementarity]))


def kkt_residual(
    program: NonlinearProgram, x: Array, multipliers: Array, bound_multipliers: Array | None = None
) -> KKTResidual:
    """Return how far a point is from the first-order conditions f' + c'^T p + z = 0.

    Parameters
    ----------
    x
        Shape (n,).
    multipliers
        p, shape (m,): of any sign at an equality, >= 0 at an upper side and <= 0 at a lower side.
    bound_multipliers
        z, shape (n,): >= 0 at an upper bound and <= 0 at a lower one; None means zero.

    Raises
    ------
    InputError
        If a shape is wrong.

    Collective: no.
    """
    z = np.zeros(program.size) if bound_multipliers is None else np.asarray(bound_multipliers, dtype=float)
    shapes = (x.shape, np.shape(multipliers), z.shape)
    if shapes != ((program.size,), (program.constraint_count,), (program.size,)):
        raise InputError(
            f"{program.name}: shapes of x, multipliers and bound multipliers are {shapes}, for {program.size} unknowns "
            f"and {program.constraint_count} constraints"
        )
    constraints = program.constraints(x)
    gradient = program.gradient(x) + program.jacobian(x).T @ multipliers + z
    pairs = [
        (constraints, program.constraint_lower, program.constraint_upper, np.asarray(multipliers, dtype=float)),
        (x, program.lower, program.upper, z),
    ]
    violations, products = [], []
    for values, lower, upper, duals in pairs:
        violations.append(np.maximum(np.maximum(lower - values, values - upper), 0.0))
        for slack, dual in ((upper - values, np.maximum(duals, 0.0)), (values - lower, np.maximum(-duals, 0.0))):
            free = lower < upper
            # A multiplier at a side that does not exist is wrong by its whole size.
            products.append(np.where(np.isfinite(slack), np.abs(slack), 1.0)[free] * dual[free])
    return KKTResidual(
        _largest(gradient[program.lower < program.upper]),
        _largest(np.concatenate(violations)),
        _largest(np.concatenate(products)),
    )


def solve_by_ipopt(program: NonlinearProgram, **options: str | float) -> Row:
    """Solve a program by IPOPT and judge the point that it returns.

    An exception in one of the program's functions ends this solve only, and its text is the column "message".

    Parameters
    ----------
    options
        Of IPOPT, over the defaults: all tolerances 1e-8 and unscaled, at most 3000 iterations and 60 s, exact Hessian,
        no acceptable level, MUMPS.

    Returns
    -------
    Row
        "converged" tells whether the KKT residual is at most `TOLERANCE`, whatever IPOPT's own status says. Evaluations
        are those of f; all columns are there for every outcome.

    Raises
    ------
    MissingPackageError
        If cyipopt is not installed.
    InputError
        If IPOPT refuses an option.

    Collective: no.
    """
    cyipopt = require_package("cyipopt", "rivals")
    callbacks = _Callbacks(program)
    settings: dict[str, str | float] = {
        "tol": TOLERANCE,
        "dual_inf_tol": TOLERANCE,  # these three are compared with unscaled residuals
        "constr_viol_tol": TOLERANCE,
        "compl_inf_tol": TOLERANCE,
        "acceptable_iter": 0,
        "max_iter": 3000,
        "max_wall_time": 60.0,
        "linear_solver": "mumps",
        "check_derivatives_for_naninf": "yes",
        "print_level": 0,
        "sb": "yes",
    }
    started = time.perf_counter()
    solver = cyipopt.Problem(
        n=program.size,
        m=program.constraint_count,
        problem_obj=callbacks,
        lb=program.lower,
        ub=program.upper,
        cl=program.constraint_lower,
        cu=program.constraint_upper,
    )
    for name, value in (settings | options).items():
        try:
            solver.add_option(name, value)
        except TypeError as error:
            raise InputError(f"IPOPT has no option {name!r} that takes {value!r}: see its list of options") from error
    status, message, objective = _NO_STATUS, "", np.nan
    residual = KKTResidual(np.nan, np.nan, np.nan)
    try:
        x, info = solver.solve(program.start)
        seconds = time.perf_counter() - started
        status, text = int(info["status"]), info["status_msg"]
        message = text.decode() if isinstance(text, bytes) else str(text)
        residual = kkt_residual(program, x, info["mult_g"], info["mult_x_U"] - info["mult_x_L"])
        objective = program.objective(x)
    except Exception as error:  # of whatever kind: one bad problem must not end a run over a hundred
        seconds = time.perf_counter() - started
        message = f"{type(error).__name__}: {error}"
    finally:
        solver.close()
    return {
        "problem": program.name,
        "method": "IPOPT",
        "unknowns": program.size,
        "constraints": program.constraint_count,
        "converged": bool(residual.largest <= TOLERANCE),
        "status": status,
        "message": message,
        "iterations": callbacks.iterations,
        "evaluations": callbacks.evaluations["objective"],
        "constraint evaluations": callbacks.evaluations["constraints"],
        "gradient evaluations": callbacks.evaluations["gradient"],
        "Hessian evaluations": callbacks.evaluations["hessian"],
        "objective": objective,
        "known value": program.known_value,
        "KKT residual": residual.largest,
        "feasibility": residual.feasibility,
        "seconds": seconds,
    }


def solve_set_by_ipopt(
    names: Iterable[str], arguments: Mapping[str, tuple[float, ...]] | None = None, **options: str | float
) -> list[Row]:
    """Solve problems of the S2MPJ collection one after the other; parameters are given by name. Collective: no."""
    given = arguments or {}
    return [solve_by_ipopt(read_s2mpj(name, *given.get(name, ())), **options) for name in names]


class _Callbacks:
    """A program in the calls that cyipopt makes; each counts its evaluations."""

    def __init__(self, program: NonlinearProgram) -> None:
        self._program = program
        self.iterations = 0
        self.evaluations = dict.fromkeys(("objective", "gradient", "constraints", "jacobian", "hessian"), 0)
        jacobian = program.jacobian(program.start).tocoo()
        self._jacobian = jacobian.row, jacobian.col
        hessian = program.hessian(program.start, np.zeros(program.constraint_count)).tocoo()
        self._lower = hessian.row >= hessian.col
        self._hessian = hessian.row[self._lower], hessian.col[self._lower]

    def objective(self, x: Array) -> float:
        self.evaluations["objective"] += 1
        return self._program.objective(x)

    def gradient(self, x: Array) -> Array:
        self.evaluations["gradient"] += 1
        return self._program.gradient(x)

    def constraints(self, x: Array) -> Array:
        self.evaluations["constraints"] += 1
        return self._program.constraints(x)

    def jacobianstructure(self) -> tuple[Array, Array]:
        return self._jacobian

    def jacobian(self, x: Array) -> Array:
        self.evaluations["jacobian"] += 1
        return np.asarray(self._program.jacobian(x).tocoo().data)

    def hessianstructure(self) -> tuple[Array, Array]:
        return self._hessian

    def hessian(self, x: Array, multipliers: Array, factor: float) -> Array:
        self.evaluations["hessian"] += 1
        # The program's Hessian is f'' + sum p_i c_i'': with the factor of f'' taken out when there is one.
        if factor == 0.0:
            zero = np.zeros_like(multipliers)
            return self._entries(x, multipliers) - self._entries(x, zero)
        return np.asarray(factor * self._entries(x, multipliers / factor))

    def _entries(self, x: Array, multipliers: Array) -> Array:
        return np.asarray(self._program.hessian(x, multipliers).tocoo().data[self._lower])

    def intermediate(self, mode: int, iteration: int, *numbers: Any) -> bool:
        self.iterations = iteration
        return True


def _largest(values: Array) -> float:
    return float(np.max(np.abs(values), initial=0.0))
