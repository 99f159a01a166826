"""Model problems with their exact or published answers; demos, tests and benchmarks use them."""

import importlib
from typing import Any

# Public name -> the module that defines it, loaded when the name is first used.
_PUBLIC_NAMES = {
    "BladeSection": "pdeopt.problems.blade_section",
    "BoundaryControl": "pdeopt.problems.boundary_control",
    "BoundedBoundaryControl": "pdeopt.problems.bounded_boundary_control",
    "BoundedPoissonControl": "pdeopt.problems.bounded_control",
    "BratuControl": "pdeopt.problems.bratu_control",
    "BurgersControl": "pdeopt.problems.burgers_control",
    "CoefficientInversion": "pdeopt.problems.coefficient_inversion",
    "ConductivityRecords": "pdeopt.problems.conductivity",
    "ConstrainedControl": "pdeopt.problems.constrained_control",
    "CylinderFlow": "pdeopt.problems.cylinder_flow",
    "FieldRecovery": "pdeopt.problems.field_recovery",
    "GaussianRandomField": "pdeopt.problems.lognormal",
    "HeatControl": "pdeopt.problems.heat_control",
    "HeatSinkControl": "pdeopt.problems.heat_sink_control",
    "LShapeControl": "pdeopt.problems.l_shape",
    "LShapePoisson": "pdeopt.problems.l_shape",
    "LinearModelProblem": "pdeopt.problems.linear",
    "MovingSource": "pdeopt.problems.moving_source",
    "NeoHookeanBlock": "pdeopt.problems.neo_hookean_block",
    "NonlinearProgram": "pdeopt.problems.nonlinear_program",
    "PressurisedCylinder": "pdeopt.problems.pressurised_cylinder",
    "PublishedPoissonControl": "pdeopt.problems.published_control",
    "NavierStokesControl": "pdeopt.problems.navier_stokes_control",
    "MaurerMittelmannControl": "pdeopt.problems.maurer_mittelmann_control",
    "ReesDollarWathenControl": "pdeopt.problems.rees_dollar_wathen_control",
    "SemilinearControl": "pdeopt.problems.semilinear_control",
    "StokesDirichletControl": "pdeopt.problems.stokes_dirichlet_control",
    "StokesDoublePipe": "pdeopt.problems.stokes_double_pipe",
    "ThermoplasticPlate": "pdeopt.problems.thermoplastic_plate",
    "UnsteadyDiffusion": "pdeopt.problems.unsteady_diffusion",
    "UnsteadyCylinderFlow": "pdeopt.problems.cylinder_unsteady",
    "WakeControl": "pdeopt.problems.cylinder_control",
    "anisotropic_diffusion": "pdeopt.problems.diffusion",
    "checkerboard_diffusion": "pdeopt.problems.diffusion",
    "convection_diffusion": "pdeopt.problems.convection",
    "cylinder_mesh": "pdeopt.problems.cylinder_mesh",
    "helmholtz": "pdeopt.problems.waves",
    "l_shape_mesh": "pdeopt.problems.l_shape",
    "linear_elasticity": "pdeopt.problems.elasticity",
    "lognormal_diffusion": "pdeopt.problems.diffusion",
    "ManufacturedUnsteadyControl": "pdeopt.problems.unsteady_manufactured",
    "ManufacturedControl": "pdeopt.problems.manufactured_control",
    "ObstacleComplementarityControl": "pdeopt.problems.obstacle_control",
    "ObstacleControl": "pdeopt.problems.obstacle_control",
    "PartialObservationControl": "pdeopt.problems.partial_observation_control",
    "PoissonControl": "pdeopt.problems.poisson_control",
    "PoissonTopology": "pdeopt.problems.poisson_topology",
    "obstacle_mesh": "pdeopt.problems.stokes_dirichlet_control",
    "make_records": "pdeopt.problems.conductivity",
    "poisson": "pdeopt.problems.diffusion",
    "read_s2mpj": "pdeopt.problems.s2mpj",
    "rigid_body_modes": "pdeopt.problems.elasticity",
    "true_conductivity": "pdeopt.problems.conductivity",
    "s2mpj_names": "pdeopt.problems.s2mpj",
    "stokes": "pdeopt.problems.flow",
}

__all__ = list(_PUBLIC_NAMES)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC_NAMES:
        return getattr(importlib.import_module(_PUBLIC_NAMES[name]), name)
    raise AttributeError(f"module 'pdeopt.problems' has no attribute {name!r}; it offers {', '.join(_PUBLIC_NAMES)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC_NAMES})
