"""Snapshots of three families of problems, on a fine mesh and on one of a quarter of the resolution."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from mpi4py import MPI

import dolfinx
import numpy as np

from pdeopt.parallel import random_stream
from pdeopt.problems.moving_source import NARROW, MovingSource
from pdeopt.problems.neo_hookean_block import NeoHookeanBlock
from pdeopt.problems.thermoplastic_plate import ThermoplasticPlate
from pdeopt.reduced_order.dissimilarity import Indices, check_groups
from pdeopt.reduced_order.inner_product import Array, InnerProduct
from pdeopt.reduced_order.snapshots import Snapshots


@dataclasses.dataclass(frozen=True, eq=False)
class Family:
    """Snapshots of one problem, of which items are clustered: the snapshots or whole trajectories.

    Parameters
    ----------
    name
        Of the problem.
    gram, coarse_gram
        Products of all pairs of snapshots on both meshes, shape (n, n).
    features
        Parameters of the items, scaled, shape (items, p).
    position
        What the oracle clusters by, shape (items, d).
    trajectories
        Trajectory of each snapshot, or None.
    training
        Items that a split trains on; the others are unseen.
    clusters, modes
        K and m.
    odd
        Whether -u solves the problem of the opposite load, so that signs may be mixed.
    """

    name: str
    gram: Array
    coarse_gram: Array
    features: Array
    position: Array
    trajectories: Indices | None
    training: int
    clusters: int
    modes: int
    odd: bool

    @property
    def items(self) -> int:
        """Number of items."""
        return len(self.features)

    @property
    def groups(self) -> list[Indices]:
        """Snapshots of each item."""
        return check_groups(self.trajectories, len(self.gram))

    def split(self, stream: np.random.Generator) -> tuple[Indices, Indices]:
        """Return training and unseen items."""
        order = stream.permutation(self.items)
        return np.sort(order[: self.training]), np.sort(order[self.training :])

    def part(self, items: Indices) -> tuple[Indices, Indices | None]:
        """Return the snapshots of some items, and the trajectories of these, numbered anew."""
        columns = np.concatenate([self.groups[item] for item in items])
        if self.trajectories is None:
            return columns, None
        return columns, np.repeat(np.arange(items.size), columns.size // items.size)


def families(comm: MPI.Comm, seed: int, quick: bool) -> Iterator[Family]:
    """Solve for the snapshots of each problem in turn. Collective: yes."""
    yield _heat(comm, seed, quick)
    yield _block(comm, seed, quick)
    yield _plate(comm, seed, quick)


def heat_snapshots(comm: MPI.Comm, cells: int, parameters: Array) -> tuple[MovingSource, Snapshots]:
    """Return the problem with a narrow source and its solutions. Collective: yes."""
    case = MovingSource(dolfinx.mesh.create_unit_square(comm, cells, cells), NARROW)
    return case, _solve_all(case, case.solver("local_heat_"), parameters)


def _heat(comm: MPI.Comm, seed: int, quick: bool) -> Family:
    cells, count = (16, 40) if quick else (128, 400)
    parameters = NARROW.draw(count, random_stream("bench.rom_local.heat", seed))
    fine, coarse = (heat_snapshots(comm, number, parameters)[1].gram() for number in (cells, cells // 4))
    features = np.column_stack([parameters[:, :2], np.log(parameters[:, 2])])
    return Family(
        "heat, narrow source", fine, coarse, features, parameters[:, :2], None, count // 2, *_size(quick), True
    )


def _block(comm: MPI.Comm, seed: int, quick: bool) -> Family:
    cells, count = (8, 40) if quick else (64, 400)
    grams = []
    for number in (cells, cells // 4):
        case = NeoHookeanBlock(comm, number)
        parameters = case.parameters(count, "bench.rom_local.block", seed)
        grams.append(_solve_all(case, case.solver("local_block_"), parameters).gram())
    fine, coarse = grams
    features = np.column_stack([parameters[:, :2], np.log(parameters[:, 2:])])
    place, sizes = features[:, :1], _size(quick)
    return Family("Neo-Hooke block", fine, coarse, features, place, None, count // 2, *sizes, False)


def _plate(comm: MPI.Comm, seed: int, quick: bool) -> Family:
    cells, count = (4, 12) if quick else (40, 120)
    grams = []
    for number in (cells, cells // 4):
        case = ThermoplasticPlate(comm, number, prefix="local_plate_")
        parameters = case.parameters(count, "bench.rom_local.plate", seed)
        snapshots = Snapshots(InnerProduct(case.space, bcs=case.bcs))
        for parameter in parameters:
            snapshots.extend(case.solve_trajectory(parameter).unknowns)
        grams.append(snapshots.gram())
        case.solver.destroy()
    fine, coarse = grams
    trajectories = np.repeat(np.arange(count), len(snapshots) // count)
    features = _scaled(parameters)
    place, sizes = features[:, :4], _size(quick)
    return Family("plastic plate", fine, coarse, features, place, trajectories, 3 * count // 4, *sizes, True)


def _size(quick: bool) -> tuple[int, int]:
    return (3, 4) if quick else (8, 12)


def _scaled(parameters: Array) -> Array:
    return (parameters - parameters.mean(axis=0)) / parameters.std(axis=0)


def _solve_all(case: MovingSource | NeoHookeanBlock, solver: Any, parameters: Array) -> Snapshots:
    """Solve for each parameter, each time from zero. Collective: yes."""
    snapshots = Snapshots(InnerProduct(case.space, bcs=case.bcs), parameter_size=parameters.shape[1])
    for parameter in parameters:
        case.set_parameter(parameter)
        case.u.x.array[:] = 0.0
        solver.solve()
        snapshots.append(case.u, parameter)
    return snapshots
