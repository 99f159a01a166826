"""Samples to train on: how many there are, batches of them, and a hash by which they are known again."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pdeopt.learn._torch import torch
from pdeopt.learn.collective import content_of
from pdeopt.report import InputError


class SampleSet:
    """Samples in one of the forms that `Trainer.fit` takes.

    Parameters
    ----------
    samples
        A tensor, a tuple or dictionary of tensors, a sequence of anything else, or None.

    Attributes
    ----------
    digest
        SHA-256 of the samples; empty where they are no tensors or arrays.
    """

    def __init__(self, samples: Any) -> None:
        self._samples = samples
        self._tensors = _tensors(samples)
        self.digest = ""
        if samples is None:
            self._count = 1
            return
        if self._tensors:
            lengths = {len(tensor) if tensor.ndim else -1 for tensor in self._tensors}
            if len(lengths) > 1 or -1 in lengths:
                shapes = ", ".join(str(tuple(tensor.shape)) for tensor in self._tensors)
                raise InputError(
                    f"tensors of samples need the same length along their first axis, but have shapes {shapes}"
                )
            self._count = lengths.pop()
        elif hasattr(samples, "__len__") and hasattr(samples, "__getitem__") and not isinstance(samples, Mapping | str):
            self._count = len(samples)
        else:
            kind = type(samples).__name__
            raise InputError(f"samples are a tensor, a tuple or dictionary of tensors, a sequence or None, not {kind}")
        if self._count == 0:
            raise InputError("there are no samples to train on")
        self.digest = _hash(samples)

    def __len__(self) -> int:
        return self._count

    def batch(self, indices: Sequence[int] | np.ndarray) -> Any:
        """Return the samples of these numbers, as the loss sees them. Collective: no."""
        samples = self._samples
        if samples is None:
            return None
        if not self._tensors:
            return [samples[int(index)] for index in indices]
        chosen = torch.as_tensor(np.asarray(indices))
        if isinstance(samples, torch.Tensor):
            return samples[chosen]
        if isinstance(samples, Mapping):
            return {name: tensor[chosen] for name, tensor in samples.items()}
        return tuple(tensor[chosen] for tensor in samples)


def _hash(samples: Any) -> str:
    """Return the SHA-256 of nested tensors, arrays and numbers; nothing if something else stands in them."""
    digest = hashlib.sha256()
    return digest.hexdigest() if _feed(digest, samples) else ""


def _feed(digest: Any, part: Any) -> bool:
    if isinstance(part, torch.Tensor | np.ndarray | np.generic):
        tensor = torch.as_tensor(part)
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(content_of(tensor).data)
        return True
    if isinstance(part, bool | int | float | str):
        digest.update(f"{part!r}\0".encode())
        return True
    if isinstance(part, Mapping):
        return all(_feed(digest, str(name)) and _feed(digest, item) for name, item in part.items())
    if isinstance(part, list | tuple):
        digest.update(f"{len(part)}\0".encode())
        return all(_feed(digest, item) for item in part)
    return False


def _tensors(samples: Any) -> list[torch.Tensor]:
    """Return the tensors whose rows are samples, or nothing. A list is a sequence of samples, a tuple is not."""
    if isinstance(samples, torch.Tensor):
        return [samples]
    parts = (
        list(samples.values()) if isinstance(samples, Mapping) else list(samples) if isinstance(samples, tuple) else []
    )
    return parts if all(isinstance(part, torch.Tensor) for part in parts) else []
