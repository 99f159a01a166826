"""Families that the first-solve rule was not fitted on, and systems of half a million unknowns."""

from collections.abc import Iterator, Mapping

import dolfinx

from pdeopt import problems
from pdeopt.bench import tune_families as families
from pdeopt.bench.study import Study
from pdeopt.bench.tune_families import ELASTIC, SYMMETRIC, UNSYMMETRIC, FirstSolve, Options
from pdeopt.problems.linear import LinearModelProblem

type Case = tuple[str, LinearModelProblem, Mapping[str, Options]]


def measure(study: Study, quick: bool) -> None:
    """Line 2 on families held out and on large systems. Collective: yes."""
    for label, title, cases in (
        ("2f", "families held out", _held_out(study, quick)),
        ("2g", "large systems", _large(study, quick)),
    ):
        table = f"First solve, set-up included: {title}"
        first = [families.first_solve(study, *case, table=table) for case in cases]
        _give_targets(study, label, title, first)


def _give_targets(study: Study, label: str, title: str, first: list[FirstSolve]) -> None:
    share = families.mean([min(one.share, 1.0) for one in first])
    study.target(label, f"{title}: rule's gain over the best arm's, geometric mean", share, 0.75, at_least=True)
    # NaN where default GAMG has not solved.
    gains = [one.over_gamg for one in first if one.over_gamg == one.over_gamg]
    study.target(f"{label}.gamg", f"{title}: default GAMG over the rule, the least", min(gains), 0.95, at_least=True)


def _held_out(study: Study, quick: bool) -> Iterator[Case]:
    comm, seed = study.comm, study.settings.seed
    cells = 8 if quick else 32
    cube = dolfinx.mesh.create_unit_cube(comm, cells, cells, cells)
    hexahedra = dolfinx.mesh.create_unit_cube(comm, cells, cells, cells, dolfinx.mesh.CellType.hexahedron)
    square = families.square(comm, 24 if quick else 180)
    coarse = dolfinx.mesh.create_unit_cube(comm, cells // 2, cells // 2, cells // 2)
    yield "checkerboard, 3D", problems.checkerboard_diffusion(cube, contrast=1e4), SYMMETRIC
    yield "rotated anisotropy, 3D", problems.anisotropic_diffusion(cube, ratio=1e-2), SYMMETRIC
    yield "Poisson, 3D, quadratic", problems.poisson(coarse, degree=2), SYMMETRIC
    yield "lognormal, 3D, hexahedra", problems.lognormal_diffusion(hexahedra, sigma=1.0, seed=seed + 1), SYMMETRIC
    yield "Poisson, 2D, cubic", problems.poisson(families.square(comm, 8 if quick else 70), degree=3), SYMMETRIC
    yield "elasticity, 2D", problems.linear_elasticity(square, clamped=families.at_left), ELASTIC
    yield "convection-diffusion, 2D, diffusive", problems.convection_diffusion(square, 0.1), UNSYMMETRIC


def _large(study: Study, quick: bool) -> Iterator[Case]:
    comm, seed = study.comm, study.settings.seed
    # Factors of half a million unknowns in space take more memory and time than any other arm.
    factors = {"LU by MUMPS", "Cholesky by MUMPS"}
    iterative = {name: options for name, options in SYMMETRIC.items() if name not in factors}
    square = families.square(comm, 32 if quick else 710)
    cells = 8 if quick else 79
    cube = dolfinx.mesh.create_unit_cube(comm, cells, cells, cells)
    yield "lognormal, 2D", problems.lognormal_diffusion(square, sigma=2.0, seed=seed), SYMMETRIC
    yield "rotated anisotropy, 2D", problems.anisotropic_diffusion(square, ratio=1e-3), SYMMETRIC
    yield "Poisson, 3D", problems.poisson(cube), iterative
    yield "lognormal, 3D", problems.lognormal_diffusion(cube, sigma=2.0, correlation_length=0.3, seed=seed), iterative
    del cube
    rod = families.bar(comm, 4 if quick else 33)
    elastic = {name: options for name, options in ELASTIC.items() if name not in factors}
    yield "elasticity, 3D bar", problems.linear_elasticity(rod, clamped=families.at_left), elastic
    yield "convection-diffusion, 2D", problems.convection_diffusion(square, 1e-3, supg=True), UNSYMMETRIC
