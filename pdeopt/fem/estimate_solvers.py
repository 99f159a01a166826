"""The linear solvers behind dual norms: a factorisation below a size, multigrid and block preconditioners above it."""

from collections.abc import Mapping

from petsc4py import PETSc

import numpy as np
import numpy.typing as npt

from pdeopt.fem import forms
from pdeopt.report import KSP_ADVICE, ConvergenceError

# Unknowns up to which one factorisation, used for many residuals, is the cheaper way (by dimension of the mesh).
DIRECT_LIMIT = {1: 10_000_000, 2: 300_000, 3: 40_000}

# In the energy norm the error of eta is quadratic in that of the representative: 1e-5 gives ten digits of eta.
_ENERGY_RTOL = 1e-5


def definite_solver(
    matrix: PETSc.Mat, prefix: str, direct: bool, near_nullspace: PETSc.NullSpace | None = None
) -> PETSc.KSP:
    """Return a KSP for a symmetric positive definite matrix: Cholesky, or CG with algebraic multigrid.

    Parameters
    ----------
    matrix
        The inner product, Dirichlet rows and columns replaced by the identity.
    prefix
        Options prefix.
    direct
        Whether to factorise.
    near_nullspace
        What multigrid must represent on every level; PETSc's default is a constant for each component.

    Collective: yes.
    """
    matrix.setOption(PETSc.Mat.Option.SPD, True)
    if near_nullspace is not None:
        matrix.setNearNullSpace(near_nullspace)
    if direct:
        return _ksp(matrix, matrix, prefix, _direct("cholesky"))
    defaults: dict[str, object] = {
        "ksp_type": "cg",
        "ksp_norm_type": "natural",
        "ksp_rtol": _ENERGY_RTOL,
        "ksp_max_it": 500,
        "pc_type": "gamg",
        "pc_gamg_threshold": 0.02,
        "mg_levels_ksp_type": "chebyshev",
        "mg_levels_pc_type": "jacobi",
    }
    return _ksp(matrix, matrix, prefix, defaults)


def saddle_solver(
    operator: PETSc.Mat,
    preconditioner: PETSc.Mat,
    rows: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]],
    prefix: str,
    symmetric: bool,
) -> PETSc.KSP:
    """Return a Krylov method with a block preconditioner for a velocity-pressure system.

    The symmetric system is solved by MINRES with the block diagonal of multigrid and the pressure mass matrix
    (Silvester and Wathen, SIAM J. Numer. Anal. 31 (1994)), the other one by FGMRES with the block triangle of the
    same parts, which needs hundreds of iterations at Re = 400: a factorisation is worth its memory there.

    Parameters
    ----------
    operator
        The saddle-point matrix.
    preconditioner
        The same with a pressure block: plus (symmetric, without coupling) or minus the mass matrix over viscosity.
    rows
        Local indices of the owned velocity and pressure unknowns.
    prefix
        Options prefix.
    symmetric
        Whether the operator is symmetric.

    Collective: yes.
    """
    first = operator.getOwnershipRange()[0]
    defaults: dict[str, object] = {
        "pc_type": "fieldsplit",
        "ksp_max_it": 1000,
        "fieldsplit_velocity_pc_type": "gamg",
        "fieldsplit_velocity_pc_gamg_threshold": 0.02,
        "fieldsplit_velocity_mg_levels_ksp_type": "chebyshev",
        "fieldsplit_velocity_mg_levels_pc_type": "jacobi",
    }
    if symmetric:
        defaults |= {
            "ksp_type": "minres",
            "ksp_rtol": 1e-8,
            "pc_fieldsplit_type": "additive",
            "fieldsplit_velocity_ksp_type": "preonly",
            "fieldsplit_pressure_ksp_type": "chebyshev",
            "fieldsplit_pressure_ksp_max_it": 5,
            "fieldsplit_pressure_pc_type": "jacobi",
        }
    else:
        defaults |= {
            "ksp_type": "fgmres",
            "ksp_gmres_restart": 300,
            "ksp_rtol": 1e-8,
            "pc_fieldsplit_type": "schur",
            "pc_fieldsplit_schur_fact_type": "upper",
            "pc_fieldsplit_schur_precondition": "a11",
            # With Jacobi or SOR as smoothers multigrid diverges where convection dominates.
            "fieldsplit_velocity_ksp_type": "fgmres",
            "fieldsplit_velocity_ksp_rtol": 1e-2,
            "fieldsplit_velocity_ksp_max_it": 50,
            "fieldsplit_velocity_mg_levels_ksp_type": "gmres",
            "fieldsplit_velocity_mg_levels_ksp_max_it": 3,
            "fieldsplit_velocity_mg_levels_pc_type": "bjacobi",
            "fieldsplit_pressure_ksp_type": "preonly",
            "fieldsplit_pressure_pc_type": "jacobi",
        }
    ksp = PETSc.KSP().create(operator.comm)
    ksp.setOptionsPrefix(prefix)
    ksp.setOperators(operator, preconditioner)
    with forms.default_options(prefix, defaults):
        ksp.setFromOptions()
        index_sets = [PETSc.IS().createGeneral((first + part).astype(PETSc.IntType), operator.comm) for part in rows]
        ksp.getPC().setFieldSplitIS(("velocity", index_sets[0]), ("pressure", index_sets[1]))
        ksp.setUp()
        ksp.setUpOnBlocks()  # where the blocks' solvers read their options
    return ksp


def factorise(matrix: PETSc.Mat, prefix: str) -> PETSc.KSP:
    """Return a KSP that solves with a matrix and its transpose by MUMPS. Collective: yes.

    LU for symmetric saddle points, too: symmetric pivoting on an indefinite matrix is slower.
    """
    return _ksp(matrix, matrix, prefix, _direct("lu"))


def check_solved(ksp: PETSc.KSP, what: str) -> None:
    """Raise a `ConvergenceError` if the last solve failed. Collective: no, but the verdict is that of all ranks."""
    reason = ksp.getConvergedReason()
    if reason <= 0:
        advice = KSP_ADVICE.get(reason, "")
        raise ConvergenceError(f"the Riesz solve of the {what} failed (reason {reason}): {advice}")


def _direct(factorisation: str) -> dict[str, object]:
    return {
        "ksp_type": "preonly",
        "pc_type": factorisation,
        "pc_factor_mat_solver_type": "mumps",
        "mat_mumps_icntl_14": 50,
    }


def _ksp(operator: PETSc.Mat, preconditioner: PETSc.Mat, prefix: str, defaults: Mapping[str, object]) -> PETSc.KSP:
    ksp = PETSc.KSP().create(operator.comm)
    ksp.setOptionsPrefix(prefix)
    ksp.setOperators(operator, preconditioner)
    with forms.default_options(prefix, defaults):
        ksp.setFromOptions()
        ksp.setUp()
    return ksp
