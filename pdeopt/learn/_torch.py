"""The one place that imports torch, so that a missing one is said in a sentence."""

from pdeopt.report import MissingPackageError

try:
    import torch
except ImportError as error:
    raise MissingPackageError(
        "pdeopt.learn needs torch: run `python -m pip install pdeopt[learn]`, or with conda "
        "`conda install -c conda-forge pytorch safetensors`"
    ) from error

__all__ = ["torch"]
