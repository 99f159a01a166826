"""Solver types that this PETSc lacks, and what comes nearest to them.

PETSc is built with or without its external packages. A script written for another build ends in error 86 (unknown
type) or 92 (no such factorisation); here it gets the nearest type that exists. Options of the missing type are not
translated. This file imports nothing of pdeopt: see `pdeopt.relaxation.overlay`.
"""

import contextlib
import difflib
import re
from collections.abc import Iterator
from typing import Any

# Which factory knows the type that an option names. Sub-solvers' options end the same way.
_TYPE_OPTION = re.compile(r"(?:.*_)?(ksp|pc|snes|ts|tao|pc_factor_mat_solver)_type")
_CLASSES = {"ksp": "KSP", "pc": "PC", "snes": "SNES", "ts": "TS", "tao": "TAO"}

# Nearest first; the last one is part of every PETSc.
_NEAREST: dict[tuple[str, str], tuple[str, ...]] = {
    ("pc", "hypre"): ("gamg",),
    ("pc", "ml"): ("gamg",),
    ("pc", "amgx"): ("gamg",),
    ("pc", "syspfmg"): ("gamg",),
    ("pc", "pfmg"): ("gamg",),
    ("pc", "smg"): ("gamg",),
    ("pc", "hpddm"): ("asm",),
    ("pc", "h2opus"): ("gamg",),
    ("pc", "parms"): ("asm",),
    ("pc", "spai"): ("bjacobi",),
    ("pc", "chowiluviennacl"): ("bjacobi",),
    ("pc", "rowscalingviennacl"): ("jacobi",),
    ("pc", "saviennacl"): ("gamg",),
    ("ksp", "hpddm"): ("fgmres",),
    ("ts", "sundials"): ("bdf",),
    ("ts", "radau5"): ("rosw",),
}
_DIRECT = ("mumps", "superlu_dist", "petsc")
_ON_DEVICES = {"cusparse", "cuda", "hipsparse", "hip", "kokkos", "kokkosdevice", "viennacl"}
_ERROR_UNKNOWN_TYPE = 86

_known: dict[tuple[str, str], bool] = {}


def family_of(option: str) -> str | None:
    """Return what an option chooses the type of ("ksp", "pc", ..., "pc_factor_mat_solver"), or None. Collective: no."""
    match = _TYPE_OPTION.fullmatch(option)
    return match.group(1) if match else None


def exists(family: str, name: str) -> bool:
    """Whether this PETSc has the type: PETSc's own does; others are tried on an object of this rank alone.

    Collective: no.
    """
    if (family, name) not in _known:
        # Not all types survive being tried on an empty object, so only those in doubt are.
        in_doubt = (family, name) in _NEAREST or family not in _CLASSES or name not in _names(_CLASSES[family], "Type")
        _known[family, name] = not in_doubt or _try(family, name)
    return _known[family, name]


def nearest(family: str, name: str) -> str | None:
    """Return the type to take where ``name`` belongs to a package that is absent; None if it exists or is unknown.

    Collective: no, and equal on all ranks.
    """
    candidates: tuple[str, ...]
    if family == "pc_factor_mat_solver":
        if name not in _names("Mat", "SolverType") | _ON_DEVICES:
            return None
        # Those of devices also do incomplete factorisations, which the direct solvers do not.
        candidates = ("petsc",) if name in _ON_DEVICES else _DIRECT
    else:
        candidates = _NEAREST.get((family, name), ())
    if not candidates or exists(family, name):
        return None
    return next((other for other in candidates if exists(family, other)), None)


def similar(family: str, name: str) -> str | None:
    """Return the existing type whose name is most like ``name``, for those who misspelt it. Collective: no."""
    holder = ("Mat", "SolverType") if family == "pc_factor_mat_solver" else (_CLASSES[family], "Type")
    near = difflib.get_close_matches(name, _names(*holder), n=1)
    return near[0] if near and exists(family, near[0]) else None


def _names(class_name: str, table: str) -> set[str]:
    """Return the types that petsc4py lists, whether they exist in this build or not."""
    from petsc4py import PETSc

    holder = getattr(getattr(PETSc, class_name), table)
    return {value for key, value in vars(holder).items() if key.isupper() and isinstance(value, str)}


def _try(family: str, name: str) -> bool:
    from petsc4py import PETSc

    with errors_as_exceptions():
        if family == "pc_factor_mat_solver":
            return any(_can_factor(kind, name) for kind in ("lu", "cholesky", "icc"))
        scratch = getattr(PETSc, _CLASSES[family])().create(PETSc.COMM_SELF)
        try:
            scratch.setType(name)
        except PETSc.Error as error:
            return error.ierr != _ERROR_UNKNOWN_TYPE
        finally:
            with contextlib.suppress(PETSc.Error):  # some types, as pipelcg, cannot be destroyed before their set-up
                scratch.destroy()
        return True


def _can_factor(kind: str, solver: str) -> bool:
    """Whether a matrix of one entry can be handed to the solver."""
    from petsc4py import PETSc

    matrix = PETSc.Mat().createAIJ((1, 1), nnz=1, comm=PETSc.COMM_SELF)
    matrix[0, 0] = 1.0
    matrix.assemble()
    scratch: Any = PETSc.PC().create(PETSc.COMM_SELF)
    try:
        scratch.setOperators(matrix)
        scratch.setType(kind)
        scratch.setFactorSolverType(solver)
        scratch.setFactorSetUpSolverType()
    except PETSc.Error:
        return False
    finally:
        scratch.destroy()
        matrix.destroy()
    return True


@contextlib.contextmanager
def errors_as_exceptions() -> Iterator[None]:
    """Let PETSc report errors to Python alone, also in a script that asked for an abort. Collective: no."""
    from petsc4py import PETSc

    PETSc.Sys.pushErrorHandler("python")
    try:
        yield
    finally:
        PETSc.Sys.popErrorHandler()
