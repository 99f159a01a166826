"""What learned solvers share: finite elements inside torch, conservation, training, weights."""

import importlib
from typing import Any

# Public name -> the module that defines it, loaded when the name is first used; all of them need torch.
_PUBLIC_NAMES = {
    "NetworkCoefficient": "pdeopt.learn.network_coefficient",
    "PDELayer": "pdeopt.learn.pde_layer",
    "Replicated": "pdeopt.learn.collective",
    "Trainer": "pdeopt.learn.trainer",
    "TrainerSettings": "pdeopt.learn.trainer",
    "load_weights": "pdeopt.learn.weights",
    "mlp": "pdeopt.learn.layers",
    "save_weights": "pdeopt.learn.weights",
    "sum_over_ranks": "pdeopt.learn.collective",
}

__all__ = list(_PUBLIC_NAMES)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC_NAMES:
        return getattr(importlib.import_module(_PUBLIC_NAMES[name]), name)
    raise AttributeError(f"module 'pdeopt.learn' has no attribute {name!r}; it offers {', '.join(_PUBLIC_NAMES)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC_NAMES})
