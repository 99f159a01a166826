"""Malformed control problems: each ends in one sentence that names the mistake, on every rank, within seconds."""

import time

from mpi4py import MPI

import dolfinx
import numpy as np
import pytest
import ufl

from pdeopt.control import ControlProblem
from pdeopt.report import ConvergenceError, OptionError, ProblemError

SECONDS = 10.0


class Parts:
    """The ingredients of a sound problem, and pieces to spoil it with."""

    def __init__(self):
        self.mesh = dolfinx.mesh.create_unit_square(MPI.COMM_WORLD, 4, 4)
        self.space = dolfinx.fem.functionspace(self.mesh, ("Lagrange", 1))
        self.other = dolfinx.fem.functionspace(self.mesh, ("Lagrange", 2))
        self.y, self.u = dolfinx.fem.Function(self.space), dolfinx.fem.Function(self.space)
        self.v, self.trial = ufl.TestFunction(self.space), ufl.TrialFunction(self.space)
        self.residual = self.equation(self.y, self.v)
        self.sound = {
            "objective": self.y**2 * ufl.dx + self.u**2 * ufl.dx,
            "state_equation": self.residual,
            "state": self.y,
            "control": self.u,
        }

    def equation(self, y, v):
        return ufl.inner(ufl.grad(y), ufl.grad(v)) * ufl.dx + y * v * ufl.dx - self.u * v * ufl.dx

    def function(self, space=None, value=None, rank=None):
        function = dolfinx.fem.Function(space or self.space)
        if value is not None and rank in (None, MPI.COMM_WORLD.rank):
            function.x.array[:] = value
        return function

    def condition(self, space):
        return dolfinx.fem.dirichletbc(0.0, np.arange(1, dtype=np.int32), space)


LAST = MPI.COMM_WORLD.size - 1
MISTAKES = {
    "state is a number": (lambda p: {"state": 3.0}, "state is a float"),
    "no control": (lambda p: {"control": []}, "empty sequence"),
    "control is a name": (lambda p: {"control": "u"}, "control 0 is a str"),
    "control is the state": (lambda p: {"control": p.y}, "is the state itself"),
    "control given twice": (lambda p: {"control": [p.u, p.u]}, "given twice"),
    "control appears nowhere": (lambda p: {"control": p.function()}, "appears neither in the objective"),
    "adjoint is a number": (lambda p: {"adjoint": 1}, "adjoint is a int"),
    "adjoint of another space": (lambda p: {"adjoint": p.function(p.other)}, "functions of different spaces"),
    "adjoint is the state": (lambda p: {"adjoint": p.y}, "the adjoint is also the state"),
    "NaN in the state on one rank": (
        lambda p: {
            "state": (y := p.function(value=np.nan, rank=LAST)),
            "state_equation": p.equation(y, p.v),
            "objective": y**2 * ufl.dx + p.u**2 * ufl.dx,
        },
        "have NaN or Inf",
    ),
    "objective is a number": (lambda p: {"objective": 1.0}, "objective is a float"),
    "objective without a measure": (lambda p: {"objective": p.y**2 + p.u**2}, "multiply the integrand by a measure"),
    "objective with a test function": (lambda p: {"objective": p.y * p.v * ufl.dx}, "must be a number"),
    "objective without unknowns": (
        lambda p: {"objective": 1.0 * ufl.dx(p.mesh)},
        "depends neither on the state nor on a control",
    ),
    "no regularisation": (lambda p: {"objective": p.y**2 * ufl.dx}, "not curved in control 0"),
    "state equation is a number": (lambda p: {"state_equation": 1.0}, "state_equation is a float"),
    "state equation with ==": (
        lambda p: {"state_equation": ufl.inner(p.y, p.v) * ufl.dx == p.u * p.v * ufl.dx},
        "move the right-hand side over",
    ),
    "state equation with a trial function": (
        lambda p: {"state_equation": p.trial * p.v * ufl.dx + p.u * p.v * ufl.dx},
        "where the TrialFunction stands",
    ),
    "state equation without a test function": (
        lambda p: {"state_equation": p.y * ufl.dx + p.u * ufl.dx},
        "neither a test function nor the adjoint",
    ),
    "test function of another space": (
        lambda p: {"state_equation": p.equation(p.y, ufl.TestFunction(p.other))},
        "of another space than the state",
    ),
    "equation not linear in the adjoint": (
        lambda p: (lambda q: {"adjoint": q, "state_equation": p.y * q**2 * ufl.dx - p.u * q * ufl.dx})(p.function()),
        "not linear in the test function",
    ),
    "equation without the state": (lambda p: {"state_equation": p.u * p.v * ufl.dx}, "does not appear in"),
    "boundary condition not in a list": (lambda p: {"bcs": p.condition(p.space)}, "pass a list"),
    "boundary condition is a number": (lambda p: {"bcs": [1]}, r"bcs\[0\] is a int"),
    "boundary condition of another space": (lambda p: {"bcs": [p.condition(p.other)]}, "on another function space"),
    "bounds in the wrong order": (lambda p: {"bounds": (1.0, 0.0)}, "exceeds the upper one"),
    "bound is NaN": (lambda p: {"bounds": (float("nan"), 0.0)}, "NaN"),
    "bound has NaN on one rank": (
        lambda p: {"bounds": (None, p.function(value=np.nan, rank=LAST))},
        "a bound of control 0 is NaN",
    ),
    "bounds are a number": (lambda p: {"bounds": 3.0}, "bounds must be a pair"),
    "bound of another space": (lambda p: {"bounds": (p.function(p.other), None)}, "interpolate it there first"),
    "state bounds in the wrong order": (
        lambda p: {"state_bounds": (p.function(value=1.0, rank=LAST), 0.5)},
        r"lower bound of the state exceeds the upper one \(1 > 0.5\)",
    ),
    "state bounds are a number": (lambda p: {"state_bounds": 3.0}, "state_bounds must be a pair"),
    "state bound of another space": (
        lambda p: {"state_bounds": (None, p.function(p.other))},
        "upper bound of the state is a function of another space",
    ),
    "bound is a name": (lambda p: {"bounds": ("low", None)}, "give a number, an array or a function"),
    "constraint is a number": (lambda p: {"constraints": [2.0]}, "constraint 0 is a float"),
    "too many inner products": (
        lambda p: {"control_inner_product": [None, None]},
        "one bilinear form",
    ),
}


@pytest.mark.parallel([1, 2])
def test_malformed_problems_are_refused_on_every_rank():
    assert len(MISTAKES) >= 15
    for name, (change, message) in MISTAKES.items():
        parts = Parts()
        started = time.perf_counter()
        with pytest.raises(ProblemError, match=message):
            ControlProblem(**(parts.sound | change(parts)))
        assert time.perf_counter() - started <= SECONDS, name


@pytest.mark.parallel([1, 2])
def test_problems_without_a_solution_end_in_an_error():
    """Well-formed, but not solvable: a constraint that cannot hold, a solver that does not exist."""
    started = time.perf_counter()
    parts = Parts()
    impossible = ControlProblem(**(parts.sound | {"constraints": [(parts.y**2 + 1.0) * ufl.dx]}))
    with pytest.raises(ConvergenceError):
        impossible.solve()
    parts = Parts()
    with pytest.raises(OptionError, match="'magic' is unknown"):
        ControlProblem(**parts.sound).solve(method="magic")
    assert time.perf_counter() - started <= 2 * SECONDS


@pytest.mark.parallel([1, 2])
def test_nonlinear_state_equation_that_has_no_solution():
    """exp(y) = -1 has none: Newton's method says so instead of returning its last iterate."""
    parts = Parts()
    parts.u.x.array[:] = -1.0
    equation = ufl.exp(parts.y) * parts.v * ufl.dx + parts.v * ufl.dx - 1e-8 * parts.u * parts.v * ufl.dx
    problem = ControlProblem(**(parts.sound | {"state_equation": equation}))
    for method in ("direct", "bqnls"):
        with pytest.raises(ConvergenceError):
            problem.solve(method=method)
