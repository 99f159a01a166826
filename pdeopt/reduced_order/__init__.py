"""Reduced-order models: bases from snapshots, hyper-reduction, error indicators that enrich, certified answers."""

import importlib
from typing import Any

# Public name -> the module that defines it, loaded when the name is first used.
_PUBLIC_NAMES = {
    "Basis": "pdeopt.reduced_order.basis",
    "GradientCertificate": "pdeopt.reduced_order.gradient_error",
    "InnerProduct": "pdeopt.reduced_order.inner_product",
    "ReducedControl": "pdeopt.reduced_order.control_model",
    "ReducedSystem": "pdeopt.reduced_order.system",
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
