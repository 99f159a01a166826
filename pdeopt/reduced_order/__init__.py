"""Reduced-order models: bases from snapshots, hyper-reduction, error indicators that enrich, certified answers."""

import importlib
from typing import Any

# Public name -> the module that defines it, loaded when the name is first used.
_PUBLIC_NAMES = {
    "Basis": "pdeopt.reduced_order.basis",
    "CompressedIntegrands": "pdeopt.reduced_order.compression",
    "Cubature": "pdeopt.reduced_order.cubature",
    "HyperReducedSystem": "pdeopt.reduced_order.hyper_reduced",
    "InnerProduct": "pdeopt.reduced_order.inner_product",
    "Integrands": "pdeopt.reduced_order.integrands",
    "ReducedMesh": "pdeopt.reduced_order.reduced_mesh",
    "ReducedSystem": "pdeopt.reduced_order.system",
    "all_cells": "pdeopt.reduced_order.cubature",
    "empirical_cubature": "pdeopt.reduced_order.cubature",
    "select_cells": "pdeopt.reduced_order.cubature",
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
