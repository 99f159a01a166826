"""Reduced-order models: bases from snapshots, hyper-reduction, error indicators that enrich, certified answers."""

import importlib
from typing import Any

# Public name -> the module that defines it, loaded when the name is first used.
_PUBLIC_NAMES = {
    "Adaptive": "pdeopt.reduced_order.enrichment",
    "Basis": "pdeopt.reduced_order.basis",
    "BasisClassifier": "pdeopt.reduced_order.classifier",
    "Certificate": "pdeopt.reduced_order.certificate",
    "CheckedChoice": "pdeopt.reduced_order.classifier",
    "Clustering": "pdeopt.reduced_order.clustering",
    "Completion": "pdeopt.reduced_order.gappy",
    "CompressedIntegrands": "pdeopt.reduced_order.compression",
    "CoordinateInterpolation": "pdeopt.reduced_order.start",
    "Cubature": "pdeopt.reduced_order.cubature",
    "ElasticCorrection": "pdeopt.reduced_order.elastic_correction",
    "EnrichmentSettings": "pdeopt.reduced_order.enrichment",
    "ExpandedResidual": "pdeopt.reduced_order.expansion",
    "FullResidual": "pdeopt.reduced_order.certificate",
    "Gain": "pdeopt.reduced_order.gain",
    "GalerkinSystem": "pdeopt.reduced_order.galerkin",
    "GappyHistory": "pdeopt.reduced_order.gappy_history",
    "GradientCertificate": "pdeopt.reduced_order.gradient_error",
    "HierarchicalHistory": "pdeopt.reduced_order.hierarchical_history",
    "HierarchicalIndicator": "pdeopt.reduced_order.hierarchical",
    "HyperReducedSystem": "pdeopt.reduced_order.hyper_reduced",
    "IncrementalDecomposition": "pdeopt.reduced_order.incremental",
    "InnerProduct": "pdeopt.reduced_order.inner_product",
    "Integrands": "pdeopt.reduced_order.integrands",
    "InternalForces": "pdeopt.reduced_order.internal_forces",
    "LocalBases": "pdeopt.reduced_order.local",
    "NewtonSettings": "pdeopt.reduced_order.newton",
    "ReducedControl": "pdeopt.reduced_order.control_model",
    "ReducedDeflation": "pdeopt.reduced_order.deflation",
    "ReducedEquilibrium": "pdeopt.reduced_order.history",
    "ReducedMesh": "pdeopt.reduced_order.reduced_mesh",
    "ReducedModel": "pdeopt.reduced_order.model",
    "ReducedNewton": "pdeopt.reduced_order.petsc",
    "ReducedSettings": "pdeopt.reduced_order.petsc",
    "ReducedSystem": "pdeopt.reduced_order.system",
    "ScaledCorrection": "pdeopt.reduced_order.scaled_correction",
    "SinglePrecisionModes": "pdeopt.reduced_order.single_precision",
    "Snapshots": "pdeopt.reduced_order.snapshots",
    "Stability": "pdeopt.reduced_order.certificate",
    "all_cells": "pdeopt.reduced_order.cubature",
    "as_guess": "pdeopt.reduced_order.model",
    "calibrate": "pdeopt.reduced_order.conformal",
    "cluster": "pdeopt.reduced_order.clustering",
    "cluster_by_parameters": "pdeopt.reduced_order.parametric",
    "cluster_subspaces": "pdeopt.reduced_order.subspaces",
    "complete_snapshots": "pdeopt.reduced_order.gappy",
    "empirical_cubature": "pdeopt.reduced_order.cubature",
    "load_basis": "pdeopt.reduced_order.checkpoint",
    "minimise_by_model": "pdeopt.reduced_order.trust_region",
    "predicted_gain": "pdeopt.reduced_order.gain",
    "proper_orthogonal_decomposition": "pdeopt.reduced_order.pod",
    "read_basis_mesh": "pdeopt.reduced_order.checkpoint",
    "replay": "pdeopt.reduced_order.history",
    "sampled_stability": "pdeopt.reduced_order.certificate",
    "save_basis": "pdeopt.reduced_order.checkpoint",
    "select_cells": "pdeopt.reduced_order.cubature",
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
