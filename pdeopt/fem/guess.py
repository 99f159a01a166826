"""Initial guesses judged before they are used: a guest proposes, the residual decides, and the answer stays the same.

A proposal (a learned network, a reduced model, a loose solve) competes with what costs little or nothing: the present
iterate, earlier solutions and their extrapolation, the solution on a coarse mesh. The smallest residual starts the
solve, and the solver's tolerance keeps referring to the start that it would have had without guests, since relative to
a good start's own residual it would be harder to meet, and for the exact solution impossible.
"""

from collections.abc import Callable, Mapping

from petsc4py import PETSc

import dolfinx
import numpy as np

from pdeopt.fem import _guess_ksp, _guess_snes  # noqa: F401  (they register their solvers)
from pdeopt.fem._guess_guest import NESTED, ORDERS, PRESENT, Guest, Sources, make_guest
from pdeopt.fem._guess_norm import DualNorm, RieszNorm
from pdeopt.fem._guess_report import Candidate, GuessReport
from pdeopt.report import InputError, SolveReport

__all__ = ["Candidate", "DualNorm", "GuessReport", "Guest", "Provider", "RieszNorm", "attach_guess"]

type Provider = Callable[[], object] | dolfinx.fem.Function | PETSc.Vec
"""Returns a Function (of any mesh), a PETSc Vec or an array of the owned degrees of freedom, or None for no guess."""


def attach_guess(
    solver: object,
    proposal: Provider | Mapping[str, Provider] | None = None,
    *,
    dual_norm: DualNorm | None = None,
    coarse: object | None = None,
    parameter: Callable[[], float] | dolfinx.fem.Constant | None = None,
    combine: bool = False,
) -> Guest:
    """Let guesses compete for the start of every solve to come; the answer does not depend on who wins.

    Before each solve the proposals are evaluated and their residuals compared with those of the rivals: the present
    iterate (the start that the solver would have had), with a ``parameter`` the last solution and its linear and
    quadratic extrapolation, and with ``coarse`` nested iteration. The smallest residual in the dual norm wins. A
    proposal that raises, has NaN or Inf or the wrong size loses, and the report says so; one that loses several times
    running is asked less often. Once a guess meets the solver's tolerance the coarse problem is not solved.

    Parameters
    ----------
    solver
        A PETSc SNES or KSP, a DOLFINx NonlinearProblem or LinearProblem, or a `ControlProblem`.
    proposal
        A provider, or several by name. A provider that communicates must fail on all ranks if it fails on one.
    dual_norm
        Takes a residual (owned degrees of freedom, Dirichlet rows zero) and returns its norm. `RieszNorm` of the
        spaces if None; for a bare SNES or KSP whose spaces are unknown the Euclidean norm, which is blind to the merit
        of coarse solutions.
    coarse
        A coarse problem of the same kind, or any callable that solves one and returns the solution on its own mesh.
    parameter
        The number that changes from solve to solve, such as time, a load or a Reynolds number, for extrapolation.
    combine
        Put the affine combination of the guesses with the smallest linearised residual on offer too. It costs one
        residual and a norm for each pair.

    Returns
    -------
    Guest
        Keeps the report of the last solve; ``detach()`` gives the solver back as it was.

    Raises
    ------
    InputError
        If the solver or a provider is of none of these kinds, or a name is taken.
    OptionError
        If the solver's type cannot profit: ``preonly``, variational inequalities.

    Collective: yes.
    """
    named = dict(proposal) if isinstance(proposal, Mapping) else {"proposal": proposal} if proposal is not None else {}
    taken = (PRESENT, *ORDERS, NESTED, "combination")
    for name in named:
        if name in taken:
            raise InputError(f"a proposal is named {name!r}, as one of its rivals is: choose another name")
    providers = {name: _provider(name, given) for name, given in named.items()}
    sources = Sources(providers, _coarse_call(coarse), None if parameter is None else _reader(parameter), combine)
    return make_guest(solver, sources, dual_norm)


def _provider(name: str, given: object) -> Callable[[], object]:
    """Return a provider as a callable: functions of DOLFINx are callable too, in another sense."""
    if isinstance(given, dolfinx.fem.Function | PETSc.Vec | np.ndarray):
        return lambda: given
    if not callable(given):
        raise InputError(f"{name} is a {type(given).__name__}: give a callable, a Function, a PETSc Vec or an array")
    return given


def _reader(parameter: Callable[[], float] | dolfinx.fem.Constant) -> Callable[[], float]:
    if isinstance(parameter, dolfinx.fem.Constant):
        return lambda: float(parameter.value)
    return parameter


def _coarse_call(coarse: object) -> Callable[[], object] | None:
    """Return what solves the coarse problem as a callable."""
    if coarse is None or callable(coarse):
        return coarse
    solve = getattr(coarse, "solve", None)
    if not callable(solve):
        raise InputError(
            f"coarse is a {type(coarse).__name__}: give a callable that solves the coarse problem and returns its "
            "solution, such as coarse_problem.solve, or the coarse problem itself"
        )

    def solve_coarse() -> object:
        result = solve()
        return coarse if isinstance(result, SolveReport) else result

    return solve_coarse
