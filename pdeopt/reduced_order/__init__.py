"""Reduced-order models: bases from snapshots, hyper-reduction, error indicators that enrich, certified answers."""

import importlib
from typing import Any

# Public name -> the module that defines it, loaded when the name is first used.
_PUBLIC_NAMES = {
    "Basis": "pdeopt.reduced_order.basis",
    "Certificate": "pdeopt.reduced_order.certificate",
    "CoordinateInterpolation": "pdeopt.reduced_order.start",
    "ExpandedResidual": "pdeopt.reduced_order.expansion",
    "FullResidual": "pdeopt.reduced_order.certificate",
    "GalerkinSystem": "pdeopt.reduced_order.galerkin",
    "HierarchicalIndicator": "pdeopt.reduced_order.hierarchical",
    "InnerProduct": "pdeopt.reduced_order.inner_product",
    "NewtonSettings": "pdeopt.reduced_order.newton",
    "ReducedModel": "pdeopt.reduced_order.model",
    "ReducedNewton": "pdeopt.reduced_order.petsc",
    "ReducedSettings": "pdeopt.reduced_order.petsc",
    "ReducedSystem": "pdeopt.reduced_order.system",
    "Stability": "pdeopt.reduced_order.certificate",
    "as_guess": "pdeopt.reduced_order.model",
    "calibrate": "pdeopt.reduced_order.conformal",
    "sampled_stability": "pdeopt.reduced_order.certificate",
    "solve_reduced": "pdeopt.reduced_order.newton",
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
