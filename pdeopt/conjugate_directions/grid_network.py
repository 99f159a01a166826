"""The network that says at each point of a lattice what its smoother keeps: its weights, and what it predicts."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from mpi4py import MPI

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from pdeopt.conjugate_directions.grid_stencils import Array, Lattice
from pdeopt.parallel import on_root
from pdeopt.report import InputError

__all__ = ["SmootherNetwork", "WeightsError", "load_network"]

_FOLDER = pathlib.Path(__file__).with_name("weights")
_NAMES = ("first.weight", "first.bias", "second.weight", "second.bias")
_BLOCK = 8  # the kernel takes the units by so many
_REMEDY = "give a file that save_weights wrote for this network"


class WeightsError(InputError):
    """A file of weights cannot be used; the message names it."""


@dataclasses.dataclass(frozen=True, eq=False)
class SmootherNetwork:
    r"""One hidden layer that takes the stencil of a point to the share of dropped couplings that its smoother keeps.

    :math:`keep(p) = \tanh(c + v \cdot \max(0, b + W f(p)))`, where the inputs f(p) are the couplings of p with
    :math:`p + o_1, p + o_2, \ldots`, then those with :math:`p - o_1, p - o_2, \ldots`, all over the diagonal entry, and
    :math:`o_h` are the half offsets of the lattice; zero where the diagonal entry is not positive.

    Parameters
    ----------
    tensors
        ``first.weight`` W of shape (units, 8 in 2D or 26 in 3D), ``first.bias`` b of shape (units,), ``second.weight``
        v of shape (1, units) and ``second.bias`` c of shape (1,).
    card
        What is known about the weights: the fields of `pdeopt.learn.weights.ModelCard`.
    """

    tensors: Mapping[str, npt.NDArray[np.float32]]
    card: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def dimensions(self) -> int:
        """Number of directions of the lattices that it is for."""
        return {8: 2, 26: 3}[self.tensors["first.weight"].shape[1]]

    def predict(self, lattice: Lattice, stencils: Array) -> Array:
        """Return what each point keeps, padded shape. Collective: no.

        Parameters
        ----------
        lattice, stencils
            The matrix in the order of elimination; the stencils' outer layers hold the neighbours' values.
        """
        kernels, keep = lattice.kernels, lattice.values()
        units = self.tensors["first.bias"].size
        missing = -units % _BLOCK
        W, b, v = (
            np.ascontiguousarray(np.pad(self.tensors[name].reshape(units, -1), ((0, missing), (0, 0))), kernels.dtype)
            for name in ("first.weight", "first.bias", "second.weight")
        )
        arrays = map(kernels.pointer, (stencils, W, b, v))
        kernels.library.predict(lattice.c, units + missing, *arrays, float(self.tensors["second.bias"][0]),
                                kernels.pointer(keep))  # fmt: skip
        return keep

    def __str__(self) -> str:
        facts = ", ".join(f"{name} {value:.3g}" for name, value in self.card.get("metric", {}).items())
        return f"predicted by {self.card.get('name', 'a network')}{f' ({facts})' if facts else ''}"


def load_network(comm: MPI.Comm, weights: str, dimensions: int) -> SmootherNetwork | None:
    """Read the weights of a network on rank 0, and hand them to all ranks; return None where a constant is kept.

    Parameters
    ----------
    comm
        The ranks that call.
    weights
        ``constant``, ``learned`` for what comes with the package for lattices of these dimensions, if anything does, or
        the path of a file that `pdeopt.learn.weights.save_weights` wrote.
    dimensions
        Number of directions of the lattice.

    Raises
    ------
    WeightsError
        On all ranks, if the file is missing, damaged, or belongs to another network.

    Collective: yes.
    """
    if weights == "constant":
        return None
    path = _FOLDER / f"grid_{dimensions}d.safetensors" if weights == "learned" else pathlib.Path(weights)
    return on_root(comm, lambda: None if weights == "learned" and not path.exists() else _read(path, dimensions))


def _read(path: pathlib.Path, dimensions: int) -> SmootherNetwork:
    """Read a file and look whether it holds what it should. Collective: no; call it on rank 0."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"weights {path} cannot be read: {error.strerror}; {_REMEDY}") from error
    try:
        tensors = safetensors.numpy.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        text, checksum = header["pdeopt"], header["sha256"]
        card = json.loads(text)["card"]
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"weights {path} are damaged, or of another origin ({error}): {_REMEDY}") from error
    shapes = {name: tensors[name].shape for name in _NAMES if name in tensors}
    units = shapes.get("first.bias", (0,))[0]
    wanted = dict(zip(_NAMES, ((units, 3**dimensions - 1), (units,), (1, units), (1,)), strict=True))
    if shapes != wanted or len(tensors) != len(wanted) or any(t.dtype != np.float32 for t in tensors.values()):
        raise WeightsError(
            f"weights {path} hold {', '.join(f'{name} {t.shape} {t.dtype}' for name, t in tensors.items())}, and in "
            f"{dimensions}D the network has {', '.join(wanted)} of shapes {(*wanted.values(),)} in float32: {_REMEDY}"
        )
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(f"\0{name} torch.float32 {tensors[name].shape}\0".encode())
        digest.update(np.ascontiguousarray(tensors[name]).data)
    if digest.hexdigest() != checksum:
        raise WeightsError(f"weights {path} are not what was written (wrong SHA-256): write or fetch the file again")
    return SmootherNetwork(tensors, card)
