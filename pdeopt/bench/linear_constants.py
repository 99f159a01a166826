"""The best classical solvers of each group of families, the fastest first.

Found on validation seeds by ``python -c "from pdeopt.bench.linear_rivals import main; main()"``: the best setting of
each kind of solver that is at most five times as slow as the best of all, as larger systems may turn their order.
Those of elasticity in space stem from one small system of each setting, not from the sweep.
"""

from collections.abc import Mapping

_FOUND: Mapping[str, tuple[str, ...]] = {
    "square, lognormal": (
        "ML: SOR 1",
        "BoomerAMG: HMIS, Chebyshev",
        "ICC: 4",
        "PyAMG: classical",
        "Eisenstat: 1.9",
        "ILU: 3",
        "GAMG: SOR 1",
        "SSOR: 1.9",
    ),
    "square, checker": (
        "ML: SOR 1",
        "BoomerAMG: HMIS, Chebyshev",
        "PyAMG: classical",
        "ICC: 4",
        "GAMG: default",
        "ILU: 3",
        "MUMPS: Cholesky",
        "Eisenstat: 1.7",
        "SSOR: 1.7",
    ),
    "square, anisotropy": ("ICC: 1", "ILU: 2", "BoomerAMG: HMIS, threshold 0.7"),
    "cube, lognormal": (
        "Eisenstat: 1.7",
        "SSOR: 1.7",
        "ICC: 1",
        "ILU: 1",
        "ML: SOR 1",
        "BoomerAMG: HMIS, aggressive",
        "Jacobi: CG",
        "GAMG: threshold 0.05, aggressive 1, unsmoothed",
    ),
    "cube, checker": (
        "Eisenstat: 1.7",
        "SSOR: 1.6",
        "ICC: 0",
        "ILU: 1",
        "BoomerAMG: HMIS, aggressive",
        "ML: SOR 1",
        "Jacobi: CG",
        "GAMG: threshold 0.05, aggressive 2, SOR, unsmoothed",
        "PyAMG: aggregation",
    ),
    "cube, anisotropy": (
        "Eisenstat: 1.7",
        "SSOR: 1.8",
        "ICC: 1",
        "ILU: 1",
        "ML: unsmoothed",
        "Jacobi: CG",
        "GAMG: threshold 0.05, aggressive 2, SOR, unsmoothed",
    ),
    "mesh in 2D, lognormal": (
        "ML: threshold 0.05, Chebyshev",
        "BoomerAMG: HMIS, aggressive",
        "GAMG: threshold 0.02, Chebyshev 3",
        "Eisenstat: 1.7",
        "ICC: 3",
        "PyAMG: classical",
        "ILU: 2",
        "SSOR: 1.7",
        "MUMPS: Cholesky",
    ),
    "mesh in 2D, inclusions": (
        "BoomerAMG: HMIS, aggressive",
        "GAMG: threshold 0.02",
        "ML: threshold 0.05, Chebyshev",
        "PyAMG: classical",
        "MUMPS: LDLT",
        "ICC: 4",
    ),
    "mesh in 2D, anisotropy": (
        "MUMPS: Cholesky",
        "BoomerAMG: HMIS, Chebyshev",
        "ML: threshold 0.05, Chebyshev",
        "GAMG: threshold 0.02",
    ),
    "mesh in 2D, inclusions, elasticity": ("MUMPS: Cholesky", "GAMG: threshold 0.02", "ML: SOR 1"),
    "mesh in 3D, lognormal": (
        "Eisenstat: 1.4",
        "BoomerAMG: PMIS, aggressive",
        "ICC: 1",
        "ML: threshold 0.05, Chebyshev",
        "ILU: 1",
        "SSOR: 1.4",
        "Jacobi: CG",
        "GAMG: threshold 0.02",
        "PyAMG: aggregation, strength 0.05",
        "MUMPS: Cholesky",
    ),
    "mesh in 3D, inclusions": (
        "Eisenstat: 1.4",
        "BoomerAMG: HMIS, aggressive",
        "ML: threshold 0.05, Chebyshev",
        "ICC: 1",
        "ILU: 1",
        "SSOR: 1.4",
        "GAMG: threshold 0.05 halved, aggressive 2",
        "Jacobi: CG",
        "PyAMG: aggregation, strength 0.05",
        "MUMPS: Cholesky",
    ),
    "mesh in 3D, anisotropy": (
        "MUMPS: Cholesky",
        "ML: threshold 0.05, Chebyshev",
        "BoomerAMG: HMIS, Chebyshev",
        "GAMG: threshold 0.05 halved, aggressive 2",
    ),
    "mesh in 3D, inclusions, elasticity": (
        "MUMPS: Cholesky",
        "GAMG: threshold 0.05, aggressive 1, unsmoothed",
        "GAMG: threshold 0.05",
        "SSOR: 1.4",
        "ICC: 0",
        "PyAMG: aggregation, strength 0.05",
        "ML: SOR 1",
        "BoomerAMG: nodal, threshold 0.5",
    ),
}

_NEAR = {
    "mesh in 2D, lognormal, degree 2": "mesh in 2D, lognormal",
    "mesh in 2D, anisotropy, degree 2": "mesh in 2D, anisotropy",
    "mesh in 3D, inclusions, degree 2": "mesh in 3D, inclusions",
}
# A sine transform solves what has constant coefficients.
_CONSTANT = {"square, constant": "square, lognormal", "cube, constant": "cube, lognormal"}

CONSTANTS: Mapping[str, tuple[str, ...]] = {
    **_FOUND,
    **{group: _FOUND[near] for group, near in _NEAR.items()},
    **{group: ("Sine transform: SciPy", *_FOUND[near]) for group, near in _CONSTANT.items()},
}
"""By group; those of the last five are taken from a near group."""
