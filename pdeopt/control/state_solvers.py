"""Solvers for the linearised state equation and its transpose."""

from petsc4py import PETSc

from pdeopt.control.kkt import KKTSystem
from pdeopt.control.two_way import two_way_solver
from pdeopt.fem import forms
from pdeopt.fem.saddle import SolverSetup

_STATE_DIRECT_LIMIT = {1: 10_000_000, 2: 500_000, 3: 60_000}


def state_solver(
    system: KKTSystem, operator: PETSc.Mat, symmetric: bool, setup: SolverSetup | None = None
) -> PETSc.KSP:
    """Return a KSP for the linearised state equation and its transpose, prefix ``state_``. Collective: yes.

    That of the setup, if there is one; otherwise a factorisation up to the limit of the dimension, CG or GMRES with
    algebraic multigrid above it. The tolerance makes it exact for the solvers around it.
    """
    dimension = system.lagrangian.state.function_space.mesh.topology.dim
    return linear_state_solver(operator, symmetric, dimension, setup)


def linear_state_solver(
    operator: PETSc.Mat, symmetric: bool, dimension: int, setup: SolverSetup | None = None, prefix: str = "state_"
) -> PETSc.KSP:
    """Return such a KSP for an operator on a mesh of a topological dimension. Collective: yes."""
    if setup is not None:
        return two_way_solver(operator, setup, prefix)
    ksp = PETSc.KSP().create(operator.comm)
    ksp.setOptionsPrefix(prefix)
    ksp.setOperators(operator)
    defaults: dict[str, object]
    if operator.getSize()[0] <= _STATE_DIRECT_LIMIT[dimension]:
        factorisation = "cholesky" if symmetric else "lu"
        operator.setOption(PETSc.Mat.Option.SYMMETRIC, symmetric)
        defaults = {"ksp_type": "preonly", "pc_type": factorisation, "pc_factor_mat_solver_type": "mumps"}
    else:
        krylov = "cg" if symmetric else "gmres"
        defaults = {"ksp_type": krylov, "ksp_rtol": 1e-12, "ksp_max_it": 1000, "pc_type": "gamg"}
    with forms.default_options(prefix, defaults):
        ksp.setFromOptions()
        ksp.setUp()
    return ksp
