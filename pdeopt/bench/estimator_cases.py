"""The case of the certificates' benchmark that runs on other rank counts."""

from mpi4py import MPI

import numpy as np

from pdeopt.bench import estimator_elliptic as elliptic
from pdeopt.bench import estimator_steps as steps
from pdeopt.bench.estimator_flows import Flow
from pdeopt.bench.harness import Row
from pdeopt.fem import forms
from pdeopt.fem.estimate import linearised_norm, oseen_norm, stokes_norm


def fingerprint(comm: MPI.Comm, cells: int = 16) -> Row:
    """Return eta in every norm for fields that do not depend on the number of ranks. Collective: yes."""
    found: Row = {}
    flow = Flow(comm, "cavity", cells)
    flow.start()
    flow.viscosity.value[...] = 1.0 / 400.0
    flow.set_fields(flow.fields() + 3.0 * flow.random_velocity(4, 0))
    for name, norm in (
        ("Stokes", stokes_norm(flow.spaces, flow.viscosity, flow.bcs)),
        ("Oseen", oseen_norm(flow.spaces, flow.viscosity, flow.velocity, flow.bcs)),
        ("linearised", linearised_norm(flow.spaces, flow.viscosity, flow.velocity, flow.bcs)),
    ):
        estimate = norm.estimate(flow.residual)
        owned = forms.owned_values(estimate.cells)
        found |= {
            f"eta, {name}": estimate.eta,
            f"eta, {name}, from cells": float(np.sqrt(comm.allreduce(float(owned.sum())))),
            f"eta, {name}, largest cell": float(np.sqrt(max(comm.allgather(float(owned.max(initial=0.0)))))),
        }
        norm.destroy()
    for name in elliptic.NONLINEAR:
        problem = elliptic.EllipticProblem(comm, name, cells)
        problem.solve()
        problem.load.value[...] = 1.1
        found[f"eta, {name}"] = problem.norm.estimate(problem.residual).eta
        problem.norm.destroy()
    heat = steps.Heat(comm, cells, steps.Scheme("BDF2", 0.05))
    _, proposals = steps.heat_errors(heat, 10, 0)
    for kind, levels in (proposals[0], proposals[3]):
        found[f"eta, slabs, {kind}"] = steps.score(heat, levels).total
    return found
