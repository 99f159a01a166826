"""The mechanics under the reduced models: the limit load of a cylinder, tangents, and what a trajectory costs."""

import time
from collections.abc import Callable

from mpi4py import MPI

import dolfinx
import numpy as np
import ufl
from dolfinx import fem

from pdeopt.bench.harness import say
from pdeopt.bench.study import Study
from pdeopt.fem.kinematics import PlaneStrain, virtual_strain
from pdeopt.fem.materials import (
    KinematicHardening,
    LinearHardening,
    NortonViscosity,
    VoceHardening,
    VonMisesMaterial,
)
from pdeopt.fem.tangent_check import tangent_orders
from pdeopt.problems import NeoHookeanBlock, PressurisedCylinder, ThermoplasticPlate

_LAWS = {
    "perfect plasticity": VonMisesMaterial(200e9, 0.3, 250e6, 250e6),
    "linear and Prager's hardening": VonMisesMaterial(
        200e9, 0.3, 250e6, 250e6, hardening=LinearHardening(5e9), kinematic=KinematicHardening(3e9)
    ),
    "Voce's, Armstrong and Frederick's": VonMisesMaterial(
        200e9, 0.3, 250e6, 250e6, hardening=VoceHardening(100e6, 50.0), kinematic=KinematicHardening(30e9, 100.0)
    ),
    "viscoplasticity": VonMisesMaterial(
        200e9, 0.3, 50e6, 100e6, hardening=LinearHardening(5e9), viscosity=NortonViscosity(400e6, 5.0)
    ),
    "Norton's creep": VonMisesMaterial(200e9, 0.3, 0.0, 100e6, viscosity=NortonViscosity(400e6, 7.0)),
}


def measure(study: Study, quick: bool) -> None:
    """Compare with closed forms, check the tangents and time trajectories. Collective: yes."""
    _limit_loads(study, ((4, 6), (8, 12)) if quick else ((4, 6), (8, 12), (16, 24), (32, 48)))
    _tangents(study)
    _trajectories(study, cells=8 if quick else 40, count=1 if quick else 5)


def _limit_loads(study: Study, meshes: tuple[tuple[int, int], ...]) -> None:
    say(study.comm, "  limit load of the pressurised cylinder")
    error = np.nan
    for cells in meshes:
        cylinder = PressurisedCylinder(study.comm, cells, radii=(1.0, 2.0))
        started = time.perf_counter()
        _, pressures = cylinder.solve_limit()
        error = abs(pressures[-1] / cylinder.limit_pressure - 1.0)
        study.row(
            "limit load of the cylinder, quadratic triangles with three points",
            {"cells": f"{cells[0]} x {cells[1]}", "relative error": error, "seconds": time.perf_counter() - started},
        )
        cylinder.solver.destroy()
    study.target("3a", "limit load against 2/sqrt(3) sigma_0 ln(R_e/R_i), relative error", error, 0.01)


def _tangents(study: Study) -> None:
    say(study.comm, "  Taylor tests of the tangents")
    orders = {name: float(_plastic_orders(study.comm, law).min()) for name, law in _LAWS.items()}
    orders["Neo-Hooke"] = float(_rubber_orders(study.comm).min())
    for name, order in orders.items():
        study.row("least order of the Taylor remainders", {"law": name, "order": order})
    study.target(
        "3a.taylor", "order of the Taylor remainders of all tangents, least", min(orders.values()), 1.9, at_least=True
    )


def _waves(amplitude: float, phase: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: amplitude * np.stack([np.sin(3.0 * x[k] + 2.0 * x[k - 1] + phase + k) for k in range(2)])


def _plastic_orders(comm: MPI.Comm, law: VonMisesMaterial) -> np.ndarray:
    """Take the orders in the second of two steps, which begins with a history."""
    mesh = dolfinx.mesh.create_unit_square(comm, 4, 4)
    space = fem.functionspace(mesh, ("Lagrange", 2, (2,)))
    u: fem.Function[np.float64] = fem.Function(space)
    direction: fem.Function[np.float64] = fem.Function(space)
    kinematics = PlaneStrain()
    stress, internal = law.at_points(u, kinematics, 2, time_step=fem.Constant(mesh, 10.0))
    dx = ufl.dx(mesh, metadata={"quadrature_degree": 2, "quadrature_rule": "default"})
    residual = ufl.inner(stress, virtual_strain(kinematics, u, ufl.TestFunction(space))) * dx
    u.interpolate(_waves(2e-3, 0.0))
    internal.update()
    internal.commit()
    u.interpolate(_waves(3e-3, 0.3))
    direction.interpolate(_waves(1e-6, 1.0))
    return tangent_orders(residual, internal.tangent(residual), u, direction, internal.update)


def _rubber_orders(comm: MPI.Comm) -> np.ndarray:
    block = NeoHookeanBlock(comm, 4)
    direction: fem.Function[np.float64] = fem.Function(block.space)
    block.u.interpolate(_waves(0.1, 0.0))
    direction.interpolate(_waves(1e-3, 1.0))
    return tangent_orders(block.residual, ufl.derivative(block.residual, block.u), block.u, direction)


def _trajectories(study: Study, cells: int, count: int) -> None:
    say(study.comm, "  trajectories of the plate")
    plate = ThermoplasticPlate(study.comm, cells)
    seconds = []
    for parameter in plate.parameters(count, "bench: trajectories of the plate", study.settings.seed):
        started = time.perf_counter()
        trajectory = plate.solve_trajectory(parameter)
        seconds.append(time.perf_counter() - started)
        study.row(
            "trajectories of the plate, 20 steps",
            {"cells": 2 * cells**2, "Newton iterations": int(trajectory.iterations.sum()), "seconds": seconds[-1]},
        )
    study.target("3a.seconds", "seconds of a trajectory of 20 steps, median", float(np.median(seconds)), 1.0)
    plate.solver.destroy()
