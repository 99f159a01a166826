"""The quick runs of the benches in parts: every part measures, and says what it missed."""

import math

from mpi4py import MPI

import pytest

from pdeopt.bench import (
    BENCHES,
    adaptivity,
    certificates,
    checkpoints,
    cylinder,
    estimators,
    guests,
    layer_conservation,
    layer_derivatives,
    layer_tolerance,
    layer_training,
    layers,
    linear,
    linear_changing,
    linear_checks,
    linear_directions,
    linear_grid,
    linear_rivals,
    linear_systems,
    linear_unfit,
    optimise,
    optimise_randomised,
    optimise_small,
    relax,
    relax_curves,
    relax_heat,
    rom,
    rom_cubature,
    rom_gradient,
    rom_heat,
    rom_history,
    rom_local,
    rom_materials,
    saddle_points,
    time,
    tune,
    tune_families,
    tune_large,
)
from pdeopt.bench.harness import BenchSettings
from pdeopt.bench.study import Study

# What coarse meshes and a busy machine may miss: times, and what the quick sizes are too small for.
PARTS = {
    "orders": (time._orders, set()),
    "all at once": (time._all_at_once, set()),
    "sweeps": (time._sweeps, set()),
    "derivatives": (time._derivatives, set()),
    "cylinder": (cylinder.measure, set()),
    "saddle points": (saddle_points.measure, set()),
    "checkpoints": (checkpoints.measure, set()),
    "estimators": (estimators.measure, {"4f", "4o"}),
    "adaptivity": (adaptivity.measure, {"4k", "4m"}),
    "guests": (guests.measure, {"5a", "5a steps"}),
    "regret curves": (relax_curves.measure, {"1c"}),
    "families": (tune_families.measure, {"2a", "2b", "2c", "2d", "2e"}),
    "families held out": (tune_large.measure, {"2f", "2f.gamg", "2g", "2g.gamg"}),
    "gradients through solves": (layer_derivatives.measure, {"2c", "2d"}),
    "adjoint tolerances": (layer_tolerance.measure, set()),
    "conservation": (layer_conservation.measure, set()),
    "a learned law": (layer_training.measure, {"5", "5.spline", "5.oracle", "5.off"}),
    "relaxed heat": (relax_heat.measure, {"1d", "1e"}),
    "small programs": (optimise_small.measure, {"2b"}),
    "eigenpairs and sketches": (optimise_randomised.measure, {"5a", "5b"}),
    "certified heat": (rom_heat.measure, {"1a", "1c", "1e", "1f", "3 heat, in range, low", "7a", "7b"}),
    # With so few snapshots the clustering by the true position misses both lines of 2b itself.
    "local bases": (rom_local.measure, {"2a", "2b", "2b centre", "2d", "2e", "2f"}),
    "cubature": (rom_cubature.measure, {"5d"}),
    "laws with internal variables": (rom_materials.measure, {"3a.seconds"}),
    "models with a history": (rom_history.measure, {"3c", "3d-least-in", "5a", "5b", "5c", "5f", "5g"}),
    "reduced gradients": (rom_gradient.measure, set()),
    "classical linear solvers": (linear_rivals.measure, {"2d"}),
    "multigrid on grids": (linear_grid.measure, {"5a checker"}),
    "sequences of matrices": (
        linear_changing.measure,
        {f"3{part}{arm} samples" for part in "abc" for arm in ("", " algebraic", " recycling")},
    ),
    "unseen systems": (linear_systems.measure, {"4a", "4c", "4d", "4e"}),
    "growth, ranks, symmetry": (linear_checks.measure, {"5b grid", "5b algebraic"}),
    "conjugate directions": (linear_directions.measure, {"6b"}),
    "matrices that do not fit": (linear_unfit.measure, set()),
}


@pytest.mark.parametrize("name", PARTS)
def test_part_measures_and_keeps_its_claims(name):
    measure, may_miss = PARTS[name]
    study = Study("bench", BenchSettings(quick=True, repeat=1), MPI.COMM_WORLD)
    measure(study, True)
    assert study.rows
    assert not any("failed" in row for row in study.rows)
    assert all(target.value is not None and math.isfinite(target.value) for target in study.targets)
    missed = {target.id.removeprefix("bench.") for target in study.targets if not target.holds}
    assert missed <= may_miss


def test_benches_are_made_of_these_parts():
    assert {"time", "certificates", "relax", "tune", "layers", "optimise", "rom", "linear"} <= BENCHES.keys()
    assert optimise.run.__module__ == BENCHES["optimise"]
    assert rom.run.__module__ == BENCHES["rom"]
    assert linear.run.__module__ == BENCHES["linear"]
    assert layers.run.__module__ == BENCHES["layers"]
    assert certificates.run.__module__ == BENCHES["certificates"]
    assert time.run.__module__ == BENCHES["time"]
    assert relax.run.__module__ == BENCHES["relax"]
    assert tune.run.__module__ == BENCHES["tune"]


def test_a_case_that_fails_leaves_a_row_and_no_target_holds():
    study = Study("bench", BenchSettings(quick=True, repeat=1), MPI.COMM_WORLD)
    row = study.case("pdeopt.bench.time_cases:large", 1, cells=-1, steps=2)
    assert "failed" in row
    study.target("x", "what failed", row.get("unknowns"), 1.0)
    assert not study.targets[0].holds
