"""The tensors that a PDE layer is called with: shapes, batches, and what has to be the same on all ranks."""

from collections.abc import Sequence

from mpi4py import MPI

import numpy as np
import numpy.typing as npt

from pdeopt.learn._inputs import Input
from pdeopt.learn._torch import torch
from pdeopt.parallel import raise_everywhere
from pdeopt.report import InputError

Array = npt.NDArray[np.float64]


class Arguments:
    """Checks a layer's tensors.

    Parameters
    ----------
    inputs
        What the tensors stand for.
    steps
        Number of time steps, 0 for a steady problem.
    per_step
        For each input, whether it has another value in each step.
    comm
        Communicator of the layer.
    """

    def __init__(self, inputs: Sequence[Input], steps: int, per_step: Sequence[bool], comm: MPI.Comm) -> None:
        self._inputs, self._steps, self._per_step, self._comm = tuple(inputs), steps, tuple(per_step), comm

    def _shape(self, index: int) -> tuple[int, ...]:
        size = self._inputs[index].size
        if self._steps and self._per_step[index]:
            return (self._steps, size)
        return (size,)

    def batched(self, index: int, tensor: torch.Tensor) -> bool:
        """Whether a tensor has the batch's axis. Collective: no."""
        return tensor.dim() == len(self._shape(index)) + 1

    def shaped(self, controls: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Give numbers the axis that they may lack, and all the layer's type. Collective: no."""
        return [
            tensor.to(device="cpu", dtype=torch.float64).reshape(self._shape(index))
            for index, tensor in enumerate(controls)
        ]

    def check(self, controls: Sequence[torch.Tensor]) -> int | None:
        """Return the size of the batch; raise on all ranks what is wrong on one. Collective: yes."""
        error: Exception | None = None
        batch: int | None = None
        try:
            batch = self._check_shapes(controls)
        except Exception as caught:  # of any kind: the other ranks wait for this one's word
            error = caught
        own = [float(error is not None), -1.0 if batch is None else float(batch)]
        numbers: list[Array] = []
        if error is None:
            own += [float(tensor.requires_grad) for tensor in controls]
            numbers = [
                tensor.detach().to(device="cpu", dtype=torch.float64).numpy().ravel()
                for one, tensor in zip(self._inputs, controls, strict=True)
                if one.replicated
            ]
        if self._comm.size > 1:
            # What must be equal on all ranks: its maximum is minus the maximum of its negative.
            length = 2 + len(self._inputs)
            flat = np.zeros(length)
            flat[: len(own)] = own
            both = np.concatenate([flat, -flat])
            most = np.empty_like(both)
            self._comm.Allreduce(both, most, op=MPI.MAX)
            unequal = np.flatnonzero(most[:length] != -most[length:])
            if error is None and most[0] == 0.0 and unequal.size:
                error = InputError(_difference(int(unequal[0]), self._inputs))
            elif most[0] == 0.0 and not unequal.size:
                error = self._check_numbers(numbers)
                most[0] = float(self._comm.allreduce(error is not None))
            if most[0] > 0.0 or unequal.size:
                raise_everywhere(self._comm, error)
        elif error is not None:
            raise error
        return batch

    def _check_numbers(self, numbers: Sequence[Array]) -> InputError | None:
        """Return what is wrong if real numbers differ from those of rank 0. Collective: yes."""
        labels = [one.label for one in self._inputs if one.replicated]
        error = None
        for label, own in zip(labels, numbers, strict=True):
            first = own.copy()
            self._comm.Bcast(first)
            if error is None and not np.array_equal(first, own):
                error = InputError(f"{label} has other numbers on this rank than on rank 0: they have to be equal")
        return error

    def _check_shapes(self, controls: Sequence[torch.Tensor]) -> int | None:
        if len(controls) != len(self._inputs):
            raise InputError(f"the layer takes {len(self._inputs)} tensors, one per control, and got {len(controls)}")
        batches: dict[str, int] = {}
        for index, (one, tensor) in enumerate(zip(self._inputs, controls, strict=True)):
            wanted = self._shape(index)
            shape = tuple(tensor.shape)
            if shape == () and wanted == (1,):
                shape = (1,)
            if shape != wanted and shape[1:] != wanted:
                raise InputError(
                    f"the tensor of {one.label} has shape {tuple(tensor.shape)}: it has to be {wanted}, the "
                    f"{'numbers of the constant' if one.replicated else 'degrees of freedom that this rank owns'}, or "
                    "have a batch's axis before that"
                )
            if len(shape) > len(wanted):
                batches[one.label] = shape[0]
            if not bool(torch.isfinite(tensor).all()):
                raise InputError(f"the tensor of {one.label} has NaN or infinity in it: look at what computed it")
        if len(set(batches.values())) > 1:
            raise InputError(f"the batches differ in size: {batches}")
        return next(iter(batches.values()), None)


def _difference(position: int, inputs: Sequence[Input]) -> str:
    if position == 1:
        return "the ranks call the layer with batches of different sizes"
    label = inputs[position - 2].label
    return f"the tensor of {label} requires a gradient on some ranks only: backward would wait for ever"
