"""Loss and gradient of a batch on all ranks: one reduction, errors and NaN that all ranks learn of together."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from mpi4py import MPI

import numpy as np

from pdeopt.learn._samples import SampleSet
from pdeopt.learn._torch import torch
from pdeopt.learn.collective import summed
from pdeopt.parallel import raise_everywhere
from pdeopt.report import ConvergenceError, InputError

type Loss = Callable[[torch.nn.Module, Any], torch.Tensor]
type Indices = Sequence[int] | np.ndarray

_RESTORED = "the weights are those of the last step at which all was finite"


class GradientEvaluator:
    """Loss and gradient of a network, in parallel over the samples or inside each of them.

    Parameters
    ----------
    network
        Its gradients are left in its parameters.
    loss
        ``loss(network, batch)``, the mean over the samples of the batch.
    comm
        The ranks.
    share_samples
        Whether each rank takes a share of a batch; otherwise all ranks work on all of it.
    """

    def __init__(self, network: torch.nn.Module, loss: Loss, comm: MPI.Comm, share_samples: bool) -> None:
        self.network, self.comm = network, comm
        self._loss, self._share_samples = loss, share_samples
        self._named = [(name, value) for name, value in network.named_parameters() if value.requires_grad]
        if not self._named:
            raise InputError("the network has no parameters that require gradients: there is nothing to train")
        self._good = self._copies()
        self._checked = False

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """The parameters that are trained."""
        return [value for _, value in self._named]

    def evaluate(self, samples: SampleSet, indices: Indices, where: str) -> float:
        """Return the loss of a batch, and leave its gradient in the parameters.

        Parameters
        ----------
        samples, indices
            Which samples; the same on all ranks.
        where
            Names the step in messages.

        Raises
        ------
        ConvergenceError
            On all ranks, if loss or gradient is NaN or Inf; then the weights are the last good ones.
        InputError
            On all ranks, if gradients differ between ranks that have to be equal.

        Any error of the loss on one rank is raised on all.

        Collective: yes.
        """
        share = self._share(indices)
        value, error = self._attempt(samples, share)
        value *= len(share) / len(indices)
        finite = math.isfinite(value) and self._gradient_is_finite()
        message = torch.tensor([value, error is not None, not finite], dtype=torch.float64)
        reduce = self._share_samples and self.comm.size > 1
        if reduce:
            message = torch.cat([message, self._flat_gradient().cpu() * (len(share) / len(indices))])
        total = summed(message, self.comm)
        if total[1] > 0.0:
            raise_everywhere(self.comm, error)
        if total[2] > 0.0:
            self._raise_not_finite(samples, indices, where)
        if reduce:
            value = float(total[0])
            self._set_gradient(total[3:])
        else:
            for (_, parameter), (_, gradient) in zip(self._named, self._gradients(), strict=True):
                parameter.grad = gradient  # zero where the loss did not come by
        if not self._share_samples and not self._checked:
            replicated_loss = torch.tensor(value, dtype=self.parameters[0].dtype)
            self._check_agreement([("loss", replicated_loss), *self._gradients()], "the gradient of ")
            self._checked = True
        self._good = self._copies()
        return value

    def mean_loss(self, samples: SampleSet, batch_size: int, where: str) -> float:
        """Return the mean loss of all samples; gradients are not made. Collective: yes."""
        mean = 0.0
        for start in range(0, len(samples), batch_size):
            indices = np.arange(start, min(start + batch_size, len(samples)))
            share = self._share(indices)
            value, error = self._attempt(samples, share, backward=False)
            if self._share_samples:
                value *= len(share) / len(indices)
            finite = math.isfinite(value)
            total = summed(torch.tensor([value, error is not None, not finite], dtype=torch.float64), self.comm)
            if total[1] > 0.0:
                raise_everywhere(self.comm, error)
            if total[2] > 0.0:
                self._raise_not_finite(samples, indices, f"{where}, validation")
            mean += (float(total[0]) if self._share_samples else value) * len(indices) / len(samples)
        return mean

    def check_weights(self) -> None:
        """Raise on all ranks an `InputError` if weights or buffers have drifted apart. Collective: yes."""
        if self.comm.size == 1:
            return
        named = [(name, tensor) for name, tensor in self.network.state_dict().items() if tensor.dtype.is_floating_point]
        self._check_agreement(named, "")

    def restore(self) -> None:
        """Go back to the weights at which loss and gradient were last finite. Collective: no."""
        with torch.no_grad():
            for tensor, copy in zip(self._tensors(), self._good, strict=True):
                tensor.copy_(copy)

    def _share(self, indices: Indices) -> Indices:
        if not self._share_samples:
            return indices
        return np.array_split(np.asarray(indices), self.comm.size)[self.comm.rank]

    def _attempt(self, samples: SampleSet, indices: Indices, backward: bool = True) -> tuple[float, Exception | None]:
        """Evaluate the loss here and its gradient; 0 without samples. Errors are returned for all ranks to raise."""
        for parameter in self.parameters:
            parameter.grad = None
        if len(indices) == 0:
            return 0.0, None
        try:
            loss = self._loss(self.network, samples.batch(indices))
            if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
                shape = tuple(loss.shape) if isinstance(loss, torch.Tensor) else type(loss).__name__
                raise InputError(f"the loss has to be a tensor with one entry, not {shape}: take its mean")
            if backward:
                if not loss.requires_grad:
                    raise InputError("the loss does not depend on the network's parameters: nothing can be learned")
                loss.backward()
            return float(loss.detach()), None
        except Exception as error:
            for parameter in self.parameters:
                parameter.grad = None
            return 0.0, error

    def _gradients(self) -> list[tuple[str, torch.Tensor]]:
        return [
            (name, torch.zeros_like(value) if value.grad is None else value.grad.detach())
            for name, value in self._named
        ]

    def _gradient_is_finite(self) -> bool:
        return all(bool(torch.isfinite(gradient).all()) for _, gradient in self._gradients())

    def _flat_gradient(self) -> torch.Tensor:
        return torch.cat([gradient.reshape(-1).to(torch.float64) for _, gradient in self._gradients()])

    def _set_gradient(self, flat: torch.Tensor) -> None:
        start = 0
        for parameter in self.parameters:
            piece = flat[start : start + parameter.numel()]
            parameter.grad = piece.view(parameter.shape).to(parameter.device, parameter.dtype, copy=True)
            start += parameter.numel()

    def _tensors(self) -> list[torch.Tensor]:
        return [*self.network.parameters(), *self.network.buffers()]

    def _copies(self) -> list[torch.Tensor]:
        return [tensor.detach().clone() for tensor in self._tensors()]

    def _check_agreement(self, named: Sequence[tuple[str, torch.Tensor]], what: str) -> None:
        """Raise on all ranks if tensors differ between ranks by more than rounding. Collective: yes."""
        if self.comm.size == 1:
            return
        flat = torch.cat([tensor.detach().reshape(-1).to("cpu", torch.float64) for _, tensor in named])
        extremes = torch.cat([flat, -flat])
        self.comm.Allreduce(MPI.IN_PLACE, extremes.numpy(), MPI.MAX)
        high, low = extremes[: len(flat)], -extremes[len(flat) :]
        start, largest = 0, float(torch.maximum(high.abs(), low.abs()).max())
        for name, tensor in named:
            entries = slice(start, start + tensor.numel())
            start += tensor.numel()
            if not tensor.numel():
                continue
            epsilon = torch.finfo(tensor.dtype).eps
            # 4e-10 of the tensor's own size in float64, 7e-5 in float32, and rounding of larger neighbours.
            scale = float(torch.maximum(high[entries].abs(), low[entries].abs()).max())
            spread = float((high[entries] - low[entries]).max())
            if not spread <= epsilon**0.6 * scale + 1e3 * epsilon * largest:
                subject = name if name == "loss" else f"{what}{name!r}"
                raise InputError(
                    f"{subject} has to be equal on all ranks, but differs by {spread:.1e} (of {scale:.1e}): wrap the "
                    "network in pdeopt.learn.Replicated, and sum what each rank has of the loss with sum_over_ranks"
                )

    def _raise_not_finite(self, samples: SampleSet, indices: Indices, where: str) -> NoReturn:
        """Find a sample that is to blame, restore the weights, and raise on all ranks. Collective: yes."""
        bad: list[int] = []
        for index in sorted(self._share(indices)):
            value, error = self._attempt(samples, [int(index)])
            finite = error is None and math.isfinite(value) and self._gradient_is_finite()
            if not self._share_samples:
                finite = self.comm.allreduce(finite, MPI.LAND)
            if not finite:
                bad.append(int(index))
                break
        if self._share_samples:
            bad = sorted(index for indices_there in self.comm.allgather(bad) for index in indices_there)
        self.restore()
        named = f"sample {bad[0]}" if bad else f"samples {', '.join(str(index) for index in indices[:8])} together"
        raise ConvergenceError(
            f"{where}, {named}: loss or gradient is NaN or Inf; {_RESTORED}. Lower the learning rate, clip the "
            "gradient, or look at the sample"
        )
