"""What learned solvers share: finite elements inside torch, conservation, training, weights."""

from pdeopt._lazy import lazy_names

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

__getattr__, __dir__ = lazy_names(__name__, _PUBLIC_NAMES)
