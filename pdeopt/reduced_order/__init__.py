"""Reduced-order models: bases from snapshots, hyper-reduction, error indicators that enrich, certified answers."""

import importlib
from typing import Any

# Public name -> the module that defines it, loaded when the name is first used.
_PUBLIC_NAMES = {
    "Basis": "pdeopt.reduced_order.basis",
    "BasisClassifier": "pdeopt.reduced_order.classifier",
    "CheckedChoice": "pdeopt.reduced_order.classifier",
    "Clustering": "pdeopt.reduced_order.clustering",
    "Completion": "pdeopt.reduced_order.gappy",
    "Gain": "pdeopt.reduced_order.gain",
    "IncrementalDecomposition": "pdeopt.reduced_order.incremental",
    "InnerProduct": "pdeopt.reduced_order.inner_product",
    "LocalBases": "pdeopt.reduced_order.local",
    "ReducedDeflation": "pdeopt.reduced_order.deflation",
    "ReducedSystem": "pdeopt.reduced_order.system",
    "Snapshots": "pdeopt.reduced_order.snapshots",
    "cluster": "pdeopt.reduced_order.clustering",
    "complete_snapshots": "pdeopt.reduced_order.gappy",
    "load_basis": "pdeopt.reduced_order.checkpoint",
    "predicted_gain": "pdeopt.reduced_order.gain",
    "proper_orthogonal_decomposition": "pdeopt.reduced_order.pod",
    "save_basis": "pdeopt.reduced_order.checkpoint",
}

__all__ = list(_PUBLIC_NAMES)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC_NAMES:
        return getattr(importlib.import_module(_PUBLIC_NAMES[name]), name)
    raise AttributeError(
        f"module 'pdeopt.reduced_order' has no attribute {name!r}; it offers {', '.join(_PUBLIC_NAMES)}"
    )


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC_NAMES})
