"""Deep conjugate directions and neural multigrid: operators learned once per matrix, sparse solves, PETSc's verdict."""

from pdeopt._lazy import lazy_names

# Public name -> the module that defines it, loaded when the name is first used.
_PUBLIC_NAMES: dict[str, str] = {
    "AlgebraicMultigrid": "pdeopt.conjugate_directions.algebraic_body",
    "Constants": "pdeopt.conjugate_directions.algebraic_hierarchy",
    "CycleSettings": "pdeopt.conjugate_directions.grid_cycle",
    "DeepConjugateDirections": "pdeopt.conjugate_directions.petsc",
    "DirectionSettings": "pdeopt.conjugate_directions.petsc",
    "GridMultigrid": "pdeopt.conjugate_directions.grid_body",
    "MultigridSettings": "pdeopt.conjugate_directions.neural_multigrid",
    "NetworkProposal": "pdeopt.conjugate_directions.published",
    "NeuralMultigrid": "pdeopt.conjugate_directions.neural_multigrid",
    "PublishedNetwork": "pdeopt.conjugate_directions.published",
    "train_published": "pdeopt.conjugate_directions.published",
}

__all__ = list(_PUBLIC_NAMES)

__getattr__, __dir__ = lazy_names(__name__, _PUBLIC_NAMES)
