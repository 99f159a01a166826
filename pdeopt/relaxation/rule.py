"""From the features of a matrix to a solver: a rule that a person can read.

The constants were measured on one core with PETSc 3.25, set-up and solve counted, relative residual 1e-8. Seconds are
compared in the time of one product with the matrix, which moves from machine to machine with them.
"""

import dataclasses
import functools
import importlib.util
import os
from collections.abc import Iterator, Mapping
from typing import Literal

from pdeopt.relaxation.features import MatrixFeatures

# Conjugate gradients with ICC(3) beat multigrid up to here in the plane (2x at 5e4, 0.75x at 2.6e5 unknowns), with
# ICC(0) or relaxation in space (6x at 4e4; iterations grow like the cube root of the size).
ICC_UNKNOWNS_2D = 120_000
ICC_UNKNOWNS_3D = 1_000_000
# Linear elements on tetrahedra have up to 15 entries per row: there symmetric relaxation is as strong as ICC(0),
# without its set-up; on quadratic ones, with 27, it takes twice as long. Across ranks it is local, and weaker.
RELAXED_ROW = 15.5
# With several unknowns per node in space, set-up of multigrid pays from here on; later if it lacks rigid-body modes.
ICC_UNKNOWNS_VECTOR = 40_000
ICC_UNKNOWNS_VECTOR_WITHOUT_MODES = 100_000
# Denser rows, as those of quadratic hexahedra or fourth-order problems, make incomplete factors dear and weak.
DENSE_ROW = 40.0
# Vector-valued problems in the plane are factored up to here.
DIRECT_UNKNOWNS_VECTOR_2D = 200_000
# From here on pdeopt.NeuralMultigrid stands for multigrid in the race, if what it needs is installed.
NEURAL_UNKNOWNS = 50_000
# Share of set-ups in the seconds of solves above which a cheaper preconditioner may pay.
SETUP_SHARE = 0.35
# Bytes of a factorisation that may be tried, as a share of what the machine has.
MEMORY_SHARE = 0.5

Kind = Literal["factor", "incomplete", "multigrid", "own"]


@dataclasses.dataclass(frozen=True)
class Choice:
    """A solver, as PETSc's options.

    Parameters
    ----------
    name
        What people call it; choices of the same name are the same.
    kind
        ``"factor"``: complete factorisation, ``"incomplete"``: a preconditioner that holds all that it needs,
        ``"multigrid"``: one that also looks at the matrix when it is applied, ``"own"``: what the script has.
    options
        Options of the KSP and its PC, without prefix and hyphen.
    why
        One sentence.
    """

    name: str
    kind: Kind
    options: Mapping[str, str]
    why: str

    def __str__(self) -> str:
        return f"{self.name}: {self.why}"


def candidates(features: MatrixFeatures, direct: bool = False) -> Iterator[Choice]:
    """Yield what to solve with, the best first; the next ones are for when it fails.

    Parameters
    ----------
    features
        Of the matrix.
    direct
        Whether a factorisation pays, since these values are solved with again and again.

    Collective: no; the same on all ranks.
    """
    f = features
    if not f.assembled:
        yield Choice("own", "own", {"ksp_type": "fgmres"}, "the matrix is not assembled: it keeps its preconditioner")
        return

    # What Krylov methods may answer wrongly, or not at all, stays with the solver that scripts have for it.
    if f.diagonal == "zero":
        yield lu("zeros on the diagonal tell of a saddle point, where a small residual is no small error")
        return
    if f.kernel == "constants":
        yield lu("the matrix is singular, or nearly so, and no null space is attached to it")
        return
    if f.diagonal != "positive" or f.indefinite:
        if f.symmetric and f.kernel == "none":
            yield ldl("the matrix is symmetric and not positive definite")
        yield lu("the matrix is not positive definite")
        return

    affordable = factor_bytes(f) < MEMORY_SHARE * memory()
    if direct and affordable and f.kernel == "none":
        again = "these values are solved with again and again"
        if f.symmetric:
            yield ldl(again)
        yield lu(again)
    elif not f.symmetric:
        yield from _unsymmetric(f)
    elif f.block_size > 1:
        yield from _vector(f, affordable)
    else:
        yield from _scalar(f, affordable)
    if affordable:
        yield lu("nothing cheaper converged")
    else:
        yield ilu(f, 1, "nothing cheaper converged, and a factorisation would not fit into memory")


def _scalar(f: MatrixFeatures, affordable: bool) -> Iterator[Choice]:
    """Yield choices for a symmetric matrix with one unknown per node and positive diagonal."""
    if f.entries_per_row > DENSE_ROW and affordable and f.kernel == "none":
        yield ldl(f"{f.entries_per_row:.0f} entries per row make incomplete factors dear and multigrid weak")
    elif f.dimension == 3 and f.size <= ICC_UNKNOWNS_3D and f.ranks == 1 and f.entries_per_row < RELAXED_ROW:
        yield ssor("symmetric in space, few entries per row and of moderate size: few iterations without any set-up")
    elif f.dimension == 3 and f.size <= ICC_UNKNOWNS_3D * f.ranks:
        yield icc(f, 0, "symmetric in space and of moderate size: few iterations, and hardly any set-up")
    elif f.dimension < 3 and f.size <= ICC_UNKNOWNS_2D * f.ranks:
        yield icc(f, 3, "symmetric in the plane and of moderate size: cheaper than the set-up of multigrid")
    yield gamg(f, "symmetric and large: multigrid needs about the same number of iterations at any size")


def _vector(f: MatrixFeatures, affordable: bool) -> Iterator[Choice]:
    """Yield choices for a symmetric matrix with several unknowns per node, as elasticity."""
    if f.dimension < 3 and f.size <= DIRECT_UNKNOWNS_VECTOR_2D and affordable and f.kernel == "none":
        yield ldl("several unknowns per node in the plane: factors stay small")
    if f.size <= f.ranks * (ICC_UNKNOWNS_VECTOR if f.near_nullspace else ICC_UNKNOWNS_VECTOR_WITHOUT_MODES):
        yield icc(f, 0, "several unknowns per node and moderate size: cheaper than the set-up of multigrid")
    yield gamg(f, "several unknowns per node and large: multigrid, coarsened aggressively")


def _unsymmetric(f: MatrixFeatures) -> Iterator[Choice]:
    """Yield choices for an unsymmetric matrix with positive diagonal."""
    if f.block_size > 1 or f.entries_per_row > DENSE_ROW:
        yield lu("unsymmetric with several unknowns per node or dense rows: incomplete factors are not to be trusted")
    elif f.dimension == 3:
        yield ilu(f, 0, "unsymmetric in space: incomplete factors are strong where convection is")
    else:
        yield ilu(f, 2, "unsymmetric in the plane: incomplete factors are strong where convection is")


def challengers(features: MatrixFeatures, incumbent: Choice, setup_share: float) -> list[Choice]:
    """Return at most two choices that may be faster than the one that was used so far.

    Parameters
    ----------
    features
        Of the matrix.
    incumbent
        What was used so far.
    setup_share
        Share of its seconds that went into set-ups. If it is large, cheaper preconditioners come first: the matrices
        are well conditioned, as those of small time steps. If it is small, stronger ones do.

    Collective: no; the same on all ranks.
    """
    f = features
    if not f.assembled or f.diagonal != "positive" or f.indefinite or f.kernel == "constants":
        return []
    neural = f.symmetric and f.size >= NEURAL_UNKNOWNS and _has_multigrid_extra()
    if f.symmetric:
        cheap, strong = [jacobi(f), icc(f, 0, "")], [neural_multigrid("") if neural else gamg(f, ""), ldl("")]
    else:
        cheap, strong = [jacobi(f), ilu(f, 0, "")], [gamg_gmres(f), lu("")]
    # Beside GAMG, whose set-up is dearer, NeuralMultigrid comes first whatever dominates.
    cheap_first = setup_share > SETUP_SHARE and not (neural and incumbent.kind == "multigrid")
    order = [*cheap, *strong] if cheap_first else [strong[0], cheap[1], strong[1], cheap[0]]
    affordable = factor_bytes(f) < MEMORY_SHARE * memory() and f.kernel == "none"
    others = [choice for choice in order if choice.name != incumbent.name and (choice.kind != "factor" or affordable)]
    why = "faster than the rule's choice on these matrices"
    return [dataclasses.replace(choice, why=why) for choice in others[:2]]


# --- solvers by name --------------------------------------------------------------------------------------------------


def lu(why: str) -> Choice:
    """Return MUMPS's LU factorisation, with one GMRES step as iterative refinement. Collective: no."""
    return Choice("LU by MUMPS", "factor", _factor("lu"), why)


def ldl(why: str) -> Choice:
    """Return MUMPS's symmetric factorisation with pivoting: PETSc calls it Cholesky. Collective: no."""
    return Choice("Cholesky by MUMPS", "factor", _factor("cholesky"), why)


def icc(f: MatrixFeatures, levels: int, why: str) -> Choice:
    """Return conjugate gradients with incomplete Cholesky factors, on each rank those of its own part."""
    return Choice(f"CG with ICC({levels})", "incomplete", {"ksp_type": "cg", **_local(f, "icc", levels)}, why)


def ssor(why: str) -> Choice:
    """Return conjugate gradients with symmetric relaxation; the best omega in space lies between 1.6 and 1.8."""
    return Choice("CG with SSOR(1.7)", "incomplete", {"ksp_type": "cg", "pc_type": "sor", "pc_sor_omega": "1.7"}, why)


def ilu(f: MatrixFeatures, levels: int, why: str) -> Choice:
    """Return BiCGStab with incomplete LU factors, on each rank those of its own part."""
    options = {"ksp_type": "bcgs", "ksp_pc_side": "right", **_local(f, "ilu", levels)}
    return Choice(f"BiCGStab with ILU({levels})", "incomplete", options, why)


def jacobi(f: MatrixFeatures) -> Choice:
    """Return the Krylov method alone, scaled by the diagonal. Collective: no."""
    krylov, name = ("cg", "CG") if f.symmetric else ("bcgs", "BiCGStab")
    return Choice(f"{name} with Jacobi", "incomplete", {"ksp_type": krylov, "pc_type": "jacobi"}, "")


def gamg_gmres(f: MatrixFeatures) -> Choice:
    """Return GMRES with smoothed aggregation, for matrices whose symmetric part dominates. Collective: no."""
    options = dict(gamg(f, "").options) | {"ksp_type": "gmres", "ksp_gmres_restart": "60"}
    return Choice("GMRES with GAMG", "multigrid", options, "")


def gamg(f: MatrixFeatures, why: str) -> Choice:
    """Return conjugate gradients with smoothed aggregation.

    The threshold keeps weak couplings, as across jumps, out of the aggregates; in space, where it makes the coarse
    levels dense, only nodes with several unknowns pay for it, together with two levels of aggressive coarsening.
    """
    options = {"ksp_type": "cg", "pc_type": "gamg", "pc_gamg_reuse_interpolation": "1"}
    if f.block_size > 1:
        options |= {"pc_gamg_threshold": "0.02", "pc_gamg_aggressive_coarsening": "2"}
    elif f.dimension < 3:
        options |= {"pc_gamg_threshold": "0.02"}
    return Choice("CG with GAMG", "multigrid", options, why)


def neural_multigrid(why: str) -> Choice:
    """Return conjugate gradients with a multigrid cycle whose constants follow from the class of the matrix.

    As with GAMG, new values keep the interpolation: a set-up is a quarter then.
    """
    options = {
        "ksp_type": "cg",
        "pc_type": "python",
        "pc_python_type": "pdeopt.NeuralMultigrid",
        "pc_nmg_body": "algebraic",
        "pc_nmg_reuse_interpolation": "1",
    }
    return Choice("CG with NeuralMultigrid", "multigrid", options, why)


@functools.cache
def _has_multigrid_extra() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in ("scipy", "pyamg"))


def _factor(kind: str) -> dict[str, str]:
    # Flexible GMRES applies the factors once a step and tests the residual: one step if they are exact, more if they
    # belong to earlier values. MUMPS gets room for pivoting that its default lacks on saddle points.
    return {
        "ksp_type": "fgmres",
        "pc_type": kind,
        "pc_factor_mat_solver_type": "mumps",
        "pc_factor_mat_ordering_type": "external",  # not what a script has chosen for PETSc's own factors
        "mat_mumps_icntl_14": "50",
    }


def _local(f: MatrixFeatures, kind: str, levels: int) -> dict[str, str]:
    """Return an incomplete factorisation, of the whole matrix on one rank, of the diagonal blocks on several."""
    inner = {"pc_type": kind, "pc_factor_levels": str(levels)}
    if levels:  # without fill the ordering matters little, and costs as much as the factors
        inner["pc_factor_mat_ordering_type"] = "rcm"
    if f.ranks == 1:
        return inner
    return {"pc_type": "bjacobi", **{f"sub_{name}": value for name, value in inner.items()}}


# --- what a factorisation costs ---------------------------------------------------------------------------------------


def factor_products(features: MatrixFeatures) -> float:
    """Return the predicted time of a symmetric factorisation over that of a product with the matrix. Collective: no.

    Nested dissection needs n^{3/2} operations in the plane and n^2 in space (George, SIAM J. Numer. Anal. 10 (1973)
    345-363); the constants are those of MUMPS at 4e3 to 5e4 unknowns.
    """
    n = features.size
    symmetric = 600.0 + 2.5 * n**0.5 if features.dimension < 3 else 200.0 + n / 12.0
    return symmetric if features.symmetric else 1.6 * symmetric


def substitution_products(features: MatrixFeatures) -> float:
    """Return the predicted time of a solve with the factors over that of a product. Collective: no."""
    return 70.0 if features.dimension < 3 else 3.0 * features.size ** (1.0 / 3.0)


def factor_pays(features: MatrixFeatures, solves: int, products: float) -> bool:
    """Whether as many solves again would pay for a factorisation: then it costs at most twice the best in hindsight.

    Parameters
    ----------
    features
        Of the matrix.
    solves
        Number of solves with the same values so far.
    products
        Time of one of them over that of a product with the matrix.

    Collective: no.
    """
    saved = solves * (products - substitution_products(features))
    return saved > factor_products(features)


def iteration_limit(features: MatrixFeatures | None, kind: Kind) -> int:
    """Return after how many iterations a factorisation would have been cheaper by half. Collective: no."""
    if features is None or not features.assembled or kind in ("factor", "own"):
        return 10_000
    products = 4.0 if kind == "incomplete" else 20.0
    return max(100, int(2.0 * factor_products(features) / products))


def factor_bytes(features: MatrixFeatures) -> float:
    """Return the predicted memory of the factors of an unsymmetric matrix [bytes]. Collective: no."""
    n, width = features.size, features.entries_per_row
    if features.dimension < 3:
        return 16.0 * n * width * 6.0
    return 16.0 * width * 0.4 * float(n) ** (4.0 / 3.0)


@functools.cache
def memory() -> float:
    """Return the memory of this machine [bytes]. Collective: no."""
    return float(os.sysconf("SC_PHYS_PAGES")) * os.sysconf("SC_PAGE_SIZE")
