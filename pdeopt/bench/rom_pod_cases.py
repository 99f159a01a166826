"""The cases of line 6 of `pdeopt bench rom`: decompositions at size, on several ranks, and beside pyMOR's."""

import math
import pathlib
import shutil
import statistics
import tempfile
import time

from mpi4py import MPI

import dolfinx
import numpy as np
from dolfinx import fem

from pdeopt.bench.harness import Row, paired_times
from pdeopt.bench.rivals import require_package
from pdeopt.parallel import on_root, random_stream
from pdeopt.reduced_order.basis import Basis
from pdeopt.reduced_order.checkpoint import load_basis, save_basis
from pdeopt.reduced_order.inner_product import Array, InnerProduct
from pdeopt.reduced_order.pod import proper_orthogonal_decomposition
from pdeopt.reduced_order.snapshots import Snapshots


def h1_of_square(comm: MPI.Comm, cells: int) -> InnerProduct:
    """Return the H1 inner product of linear elements on the unit square. Collective: yes."""
    mesh = dolfinx.mesh.create_unit_square(comm, cells, cells)
    return InnerProduct(fem.functionspace(mesh, ("Lagrange", 1)))


def bumps(inner: InnerProduct, count: int, stream: str, seed: int = 0) -> Snapshots:
    """Return Gaussians of random places and widths, interpolated: the fields of a source that moves.

    Collective: yes.
    """
    random = random_stream(stream, seed)
    places = inner.space.tabulate_dof_coordinates()[: inner.owned]
    columns = np.empty((inner.owned, count), order="F")
    for column in range(count):
        centre, width = random.uniform(0.2, 0.8, 2), random.uniform(0.06, 0.15)
        # One exponential a coordinate: it is as cheap as this.
        square = (places[:, 0] - centre[0]) ** 2 + (places[:, 1] - centre[1]) ** 2
        np.exp(square * (-0.5 / width**2), out=columns[:, column])
    snapshots = Snapshots(inner)
    snapshots.extend(columns)
    return snapshots


def orthogonality_loss(basis: Basis) -> float:
    """Return the largest entry of Phi' M Phi - I. Collective: yes."""
    return float(np.abs(basis.inner_product.gram(basis.modes) - np.eye(basis.size)).max())


def speed(comm: MPI.Comm, cells: int, count: int, modes: int, repeat: int, method: str, seed: int) -> Row:
    """Time the decomposition of snapshots whose Gram matrix is not known yet. Collective: yes."""
    inner = h1_of_square(comm, cells)
    snapshots = bumps(inner, count, "POD at size", seed)
    samples = []
    for _ in range(repeat):
        fresh = Snapshots(inner)
        fresh.extend(snapshots.columns)
        comm.Barrier()
        began = time.perf_counter()
        basis = proper_orthogonal_decomposition(fresh, modes=modes, method=method)  # type: ignore[arg-type]
        samples.append(comm.allreduce(time.perf_counter() - began, op=MPI.MAX))
    return {
        "method": method,
        "unknowns": int(comm.allreduce(inner.owned)),
        "snapshots": count,
        "modes": basis.size,
        "seconds": statistics.median(samples),
        "fastest": min(samples),
        "loss of orthogonality": orthogonality_loss(basis),
        "last singular value over first": float(basis.singular_values[basis.size - 1] / basis.singular_values[0]),
    }


def on_three_ranks(
    comm: MPI.Comm, cells: int, count: int, modes: int, saved_cells: int, saved_modes: int, seed: int
) -> Row:
    """Decompose on one, two and three ranks, and move a basis between them. Collective: yes, three ranks."""
    return subspaces(comm, cells, count, modes, seed) | between_ranks(comm, saved_cells, saved_modes, seed)


def subspaces(comm: MPI.Comm, cells: int, count: int, modes: int, seed: int) -> Row:
    """Compare modes and subspaces of one, two and three ranks. Collective: yes, three ranks."""
    found = {}
    for ranks in (1, 2, 3):
        part = comm.Split(int(comm.rank < ranks))
        if comm.rank < ranks:
            inner = h1_of_square(part, cells)
            basis = proper_orthogonal_decomposition(bumps(inner, count, "POD subspaces", seed), modes=modes)
            found[ranks] = _in_order_of_places(basis)
        part.Free()

    def compare() -> Row:
        inner = h1_of_square(MPI.COMM_SELF, cells)
        places = inner.space.tabulate_dof_coordinates()[:, :2]
        back = np.argsort(np.lexsort(np.round(1e9 * places).T))
        serial, *others = (Basis(inner, np.asfortranarray(modes[back])) for modes in found.values())
        row: Row = {"modes": serial.size}
        for ranks, other in zip((2, 3), others, strict=True):
            row[f"1 and {ranks} ranks: largest angle"] = largest_angle(serial, other)
            row[f"1 and {ranks} ranks: largest mode error"] = float(inner.norms(serial.modes - other.modes).max())
        return row

    return on_root(comm, compare)


def largest_angle(first: Basis, second: Basis) -> float:
    """Return the sine of the largest principal angle between the spans of two bases. Collective: yes."""
    left = second.modes - first.modes @ first.coordinates(second.modes)
    return math.sqrt(max(float(np.linalg.eigvalsh(first.inner_product.gram(left))[-1]), 0.0))


def _in_order_of_places(basis: Basis) -> Array:
    """Return the modes of nodal elements on rank 0, in the order of the nodes' coordinates. Collective: yes."""
    places = basis.space.tabulate_dof_coordinates()[: basis.inner_product.owned, :2]
    parts = basis.comm.gather((places, basis.modes))
    if parts is None:
        return np.empty((0, basis.size))
    places, modes = (np.concatenate(part) for part in zip(*parts, strict=True))
    return np.asarray(modes[np.lexsort(np.round(1e9 * places).T)])


def between_ranks(comm: MPI.Comm, cells: int, modes: int, seed: int) -> Row:
    """Save a basis on two ranks and read it on one and three: coordinates of the same fields. Collective: yes."""
    folder = on_root(comm, lambda: tempfile.mkdtemp(prefix="pdeopt-basis-"))
    place = pathlib.Path(folder, "basis")
    part, expected = comm.Split(int(comm.rank < 2)), None
    if comm.rank < 2:
        inner = h1_of_square(part, cells)
        basis = proper_orthogonal_decomposition(bumps(inner, 60, "offline", seed), modes=modes)
        save_basis(place, basis)
        expected = basis.coordinates(bumps(inner, 10, "online", seed).columns)
    expected = comm.bcast(expected)
    part.Free()
    row: Row = {"modes saved": modes}
    for ranks, online in ((1, MPI.COMM_SELF), (3, comm)):
        inner = h1_of_square(online, cells)
        began = time.perf_counter()
        basis, _ = load_basis(place, inner)
        row[f"2 -> {ranks} ranks: seconds to load"] = time.perf_counter() - began
        found = basis.coordinates(bumps(inner, 10, "online", seed).columns)
        row[f"2 -> {ranks} ranks: coordinates differ by"] = float(
            np.abs(found - expected).max() / np.abs(expected).max()
        )
    comm.Barrier()
    on_root(comm, lambda: shutil.rmtree(folder, ignore_errors=True))
    return row


def beside_pymor(comm: MPI.Comm, cells: int, modes: int, repeat: int, seed: int) -> Row:
    """Decompose the same snapshots with pyMOR, and project unseen fields on both bases. Collective: yes, one rank."""
    pymor_pod = require_package("pymor.algorithms.pod", "rivals").pod
    spaces = require_package("pymor.vectorarrays.numpy", "rivals").NumpyVectorSpace
    operators = require_package("pymor.operators.numpy", "rivals").NumpyMatrixOperator
    require_package("pymor.core.logger", "rivals").set_log_levels({"pymor": "ERROR"})
    sparse = require_package("scipy.sparse", "rivals")
    inner = h1_of_square(comm, cells)
    snapshots = bumps(inner, 4 * modes, "POD beside pyMOR", seed)
    offsets, columns, values = inner.matrix.getValuesCSR()
    product = operators(sparse.csr_matrix((values, columns, offsets)))
    array = spaces(inner.owned).from_numpy(np.array(snapshots.columns))

    def ours() -> Basis:
        fresh = Snapshots(inner)  # whose Gram matrix is not known yet
        fresh.extend(snapshots.columns)
        return proper_orthogonal_decomposition(fresh, modes=modes)

    def theirs() -> Basis:
        return Basis(inner, np.asfortranarray(pymor_pod(array, product=product, modes=modes)[0].to_numpy()))

    timings = paired_times({"ours": ours, "pyMOR": theirs}, repeat, comm)
    unseen = bumps(inner, 60, "unseen by POD", seed).columns
    row: Row = {"unknowns": inner.owned, "modes": modes}
    for name, timing in timings.items():
        row[f"{name}: seconds"] = timing.median
        row[f"{name}: mean unseen error"] = float(timing.result.projection_errors(unseen).mean())
        row[f"{name}: worst unseen error"] = float(timing.result.projection_errors(unseen).max())
        row[f"{name}: loss of orthogonality"] = orthogonality_loss(timing.result)
    return row
